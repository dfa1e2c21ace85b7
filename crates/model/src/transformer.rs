//! The model: an embedding, layers of two blocks each, a last norm, the head; and its passes.

use device::{Device, Placement, Stream, Tensor};
use kernels::{Onto, rope};
use layout::{FlatLayout, LogicalTensor, Role, Schema};

use crate::architecture::{Architecture, Feed};
use crate::arena::{MicroBatch, Place, Types};
use crate::attention::Attention;
use crate::block::Block;
use crate::declare::{Declare, Declared};
use crate::embedding::Embedding;
use crate::experts::Experts;
use crate::head::Head;
use crate::latent::LatentAttention;
use crate::mlp::Mlp;
use crate::names::Part;
use crate::norm::Norm;
use crate::run::{Back, Core, Done, Gradients, Pass, State};
use crate::stash::{Stash, Stashes};
use crate::{Hooks, ModelError};

/// The parts of a model, each with its weights and places.
struct Transformer {
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Norm,
    head: Head,
}

/// One layer: `x → x_mid → the next layer's x`.
struct Layer {
    /// The residual stream before it, `[N, D]`.
    x: Place,
    norm: Norm,
    mixer: Box<dyn Block>,
    /// Between its blocks, `[N, D]`.
    x_mid: Place,
    feed_norm: Norm,
    feed: Box<dyn Block>,
    /// Its experts' choice, where it has any.
    chosen: Option<Place>,
}

impl Layer {
    fn new(d: &mut Declare, layer: usize) -> Layer {
        d.layer = layer;
        let shape = [d.rows(), d.a.d_model];
        let x = d.saved(shape);
        let norm = Norm::new(d, Part::AttentionNorm, x);
        let mixer: Box<dyn Block> = match d.a.latent {
            Some(latent) => Box::new(LatentAttention::new(d, latent)),
            None => Box::new(Attention::new(d)),
        };
        let x_mid = d.saved(shape);
        let feed_norm = Norm::new(d, Part::FeedNorm, x_mid);
        let (feed, chosen): (Box<dyn Block>, _) = match (d.a.feed(layer), &d.a.moe) {
            (Feed::Experts, Some(moe)) => {
                let experts = Experts::new(d, moe);
                let chosen = experts.chosen();
                (Box::new(experts), Some(chosen))
            }
            _ => (Box::new(Mlp::dense(d, d.a.d_ff)), None),
        };
        Layer { x, norm, mixer, x_mid, feed_norm, feed, chosen }
    }

    /// From its `x` to `next`.
    fn forward(&self, p: &Pass, next: Place, hooks: &mut dyn Hooks) -> Done {
        hooks.need(p.section(self.norm.first_tensor()))?;
        self.norm.forward(p)?;
        p.copy(self.x, self.x_mid)?;
        self.mixer.forward(p, self.norm.h, self.x_mid)?;
        hooks.need(p.section(self.feed_norm.first_tensor()))?;
        self.feed_norm.forward(p)?;
        p.copy(self.x_mid, next)?;
        self.feed.forward(p, self.feed_norm.h, next)
    }

    /// From `dx` of what follows to `dx` of its `x`.
    fn backward(&self, b: &Back, hooks: &mut dyn Hooks) -> Done {
        hooks.need(b.section(self.feed_norm.first_tensor()))?;
        self.feed.backward(b, self.feed_norm.h)?;
        self.feed_norm.backward(b, Onto::Add)?;
        hooks.ready(b.section(self.feed_norm.first_tensor()))?;
        hooks.need(b.section(self.norm.first_tensor()))?;
        self.mixer.backward(b, self.norm.h)?;
        self.norm.backward(b, Onto::Add)?;
        Ok(hooks.ready(b.section(self.norm.first_tensor()))?)
    }
}

impl Transformer {
    /// Declares everything, in the order of the forward pass.
    fn new(d: &mut Declare) -> Transformer {
        let embedding = Embedding::new(d);
        let layers = (0..d.a.layers).map(|layer| Layer::new(d, layer)).collect();
        let x_final = d.saved([d.rows(), d.a.d_model]);
        let final_norm = Norm::new(d, Part::FinalNorm, x_final);
        let head = Head::new(d, final_norm.h, embedding.table);
        Transformer { embedding, layers, final_norm, head }
    }

    /// The first tensor of each section: embedding, both halves of each layer, final norm, head.
    fn sections(&self) -> Vec<usize> {
        let halves = self.layers.iter().flat_map(|layer| [&layer.norm, &layer.feed_norm]);
        let norms = halves.chain([&self.final_norm]).map(Norm::first_tensor);
        std::iter::once(0).chain(norms).chain(self.head.own_tensor).collect()
    }

    /// The residual stream before `layer`, or after the last.
    fn x(&self, layer: usize) -> Place {
        self.layers.get(layer).map_or(self.final_norm.x, |layer| layer.x)
    }
}

fn declare(
    a: &Architecture,
    batch: MicroBatch,
    types: Types,
) -> Result<(Transformer, Declared), ModelError> {
    let mut d = Declare::new(a, batch, types);
    let parts = Transformer::new(&mut d);
    Ok((parts, d.finish()?))
}

/// The declarations of an architecture, with the places of a micro-batch of no tokens.
pub(crate) fn declared(a: &Architecture) -> Result<Declared, ModelError> {
    let nothing = MicroBatch { windows: 0, positions: 0 };
    Ok(declare(a, nothing, Types::stored_as(device::DType::F32))?.1)
}

/// The states of a model beside the tensors of its schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// Names of the balancing biases, states that no gradient trains, in the order of their layers.
    pub router_biases: Vec<String>,
}

/// The schema of an architecture, and its states.
///
/// # Errors
/// Never for a checked architecture; a duplicate name would be reported.
pub fn parameters(a: &Architecture) -> Result<(Schema, Parameters), ModelError> {
    let Declared { schema, router_biases, .. } = declared(a)?;
    Ok((schema, Parameters { router_biases }))
}

/// Parameters that one token meets: all but the experts it does not visit.
pub fn active_parameters(a: &Architecture, schema: &Schema) -> usize {
    let Some(moe) = &a.moe else { return schema.parameters() };
    let experts = schema.tensors.iter().filter(|t| matches!(t.role, Role::Expert { .. }));
    let experts: usize = experts.map(LogicalTensor::len).sum();
    schema.parameters() - experts + experts / moe.experts * moe.top_k
}

/// Bytes of the arena by use, without allocating it, where weights are stored as `weights` and so
/// many micro-batches are in flight.
///
/// # Errors
/// As [`parameters`].
pub fn memory_plan(
    a: &Architecture,
    batch: MicroBatch,
    weights: device::DType,
    in_flight: usize,
) -> Result<Vec<(&'static str, usize)>, ModelError> {
    Ok(declare(a, batch, Types::stored_as(weights))?.1.places.by_use(in_flight))
}

/// The f32 weights of more would not fit the 2^47 bytes that a process can address.
pub(crate) const PARAMETERS_MAX: u128 = 1 << 45;

/// More names than this are a slip of the keyboard, and would take minutes to build.
pub(crate) const TENSORS_MAX: u128 = 1 << 20;

/// Refuses a model that is too large, without building it: one layer of each kind is counted.
pub(crate) fn check_size(a: &Architecture) -> Result<(), ModelError> {
    let nothing = MicroBatch { windows: 0, positions: 0 };
    let mut d = Declare::new(a, nothing, Types::stored_as(device::DType::F32));
    let one = Architecture { layers: 0, ..a.clone() };
    d.a = &one;
    Transformer::new(&mut d);
    d.a = a;
    let (mut parameters, mut tensors) = d.count_and_forget();
    let dense = a.layers - a.moe_layers();
    for (layer, count) in [(0, dense), (dense, a.layers - dense)] {
        if count > 0 {
            Layer::new(&mut d, layer);
            let (inside, names) = d.count_and_forget();
            parameters = parameters.saturating_add(inside.saturating_mul(count as u128));
            tensors = tensors.saturating_add(names.saturating_mul(count as u128));
        }
    }
    if parameters <= PARAMETERS_MAX && tensors <= TENSORS_MAX {
        return Ok(());
    }
    // In words: 128-bit fields would widen every error.
    let (parameters, tensors) = (parameters.to_string(), tensors.to_string());
    Err(ModelError::TooLarge { parameters, tensors })
}

/// A model on a device: its schema, and one arena for a micro-batch.
pub struct Model {
    a: Architecture,
    schema: Schema,
    parts: Transformer,
    core: Core,
    stashes: Stashes,
}

/// Host side of a micro-batch, each `[windows · positions]`.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub tokens: &'a [u32],
    /// The next token of each position, or [`kernels::loss::IGNORE`].
    pub targets: &'a [u32],
    /// The window position where each position's document begins.
    pub doc_start: &'a [u32],
}

impl Model {
    /// Plans and allocates, with one micro-batch in flight; `bucket_elements` cuts flat buffers.
    ///
    /// # Errors
    /// Memory.
    pub fn new(
        device: &Device,
        a: &Architecture,
        batch: MicroBatch,
        bucket_elements: usize,
        types: Types,
    ) -> Result<Model, ModelError> {
        Model::with_stashes(device, a, (batch, 1), bucket_elements, types)
    }

    /// As [`Model::new`], with so many micro-batches in flight at most.
    ///
    /// # Errors
    /// Memory.
    pub fn with_stashes(
        device: &Device,
        a: &Architecture,
        (batch, in_flight): (MicroBatch, usize),
        bucket_elements: usize,
        types: Types,
    ) -> Result<Model, ModelError> {
        let (parts, declared) = declare(a, batch, types)?;
        let Declared { schema, places, rotary, inputs, widened, .. } = declared;
        let arena = device.alloc(places.bytes(in_flight), &Placement::Private)?;
        let views = |number| places.views(&arena, (number, in_flight));
        let table = |turns| rope::table(device, batch.positions, &turns, types.compute);
        let core = Core {
            flat: FlatLayout::new(&schema, bucket_elements),
            sections: parts.sections(),
            batch,
            views: (0..in_flight).map(views).collect::<Result<_, _>>()?,
            inputs,
            stream: device.stream(),
            angles: rotary.map(table).transpose()?,
            widened,
        };
        let stashes = Stashes::new(in_flight);
        Ok(Model { a: a.clone(), schema, parts, core, stashes })
    }

    pub fn architecture(&self) -> &Architecture {
        &self.a
    }

    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    pub fn flat(&self) -> &FlatLayout {
        &self.core.flat
    }

    pub fn batch(&self) -> MicroBatch {
        self.core.batch
    }

    pub fn stream(&self) -> &Stream {
        &self.core.stream
    }

    /// The experts that each token of a micro-batch visits `[tokens, per token]` (u32), in a layer
    /// that has experts.
    ///
    /// # Errors
    /// A layer without experts.
    pub fn chosen(&self, stash: &Stash, layer: usize) -> Result<Tensor, ModelError> {
        let chosen = self.parts.layers.get(layer).and_then(|layer| layer.chosen);
        let chosen = chosen.ok_or(ModelError::Unplanned { what: "experts of this layer" })?;
        Ok(self.core.views[self.stashes.number(stash)?].at(chosen).clone())
    }

    fn pass<'a>(&'a self, stash: &Stash, state: State<'a>) -> Result<Pass<'a>, ModelError> {
        let views = &self.core.views[self.stashes.number(stash)?];
        Ok(Pass { core: &self.core, views, state })
    }

    /// Runs a micro-batch up to the final norm.
    ///
    /// # Errors
    /// As many micro-batches are in flight as may be; inputs of another size; device errors; a
    /// token outside the vocabulary.
    pub fn forward(
        &self,
        inputs: &Inputs,
        state: State,
        hooks: &mut dyn Hooks,
    ) -> Result<Stash, ModelError> {
        let stash = self.stashes.take()?;
        let (p, parts, places) = (self.pass(&stash, state)?, &self.parts, self.core.inputs);
        self.core.stream.copy_in(&p.at(places.tokens), inputs.tokens)?;
        self.core.stream.copy_in(&p.at(places.targets), inputs.targets)?;
        self.core.stream.copy_in(&p.at(places.doc_start), inputs.doc_start)?;
        hooks.need(p.section(0))?;
        parts.embedding.forward(&p, parts.x(0))?;
        for (i, layer) in parts.layers.iter().enumerate() {
            layer.forward(&p, parts.x(i + 1), hooks)?;
        }
        hooks.need(p.section(parts.final_norm.first_tensor()))?;
        parts.final_norm.forward(&p)?;
        Ok(stash)
    }

    /// Sum of the cross-entropies of a micro-batch, written to `loss [1]` f64.
    ///
    /// # Errors
    /// Device errors.
    pub fn evaluate(
        &self,
        stash: &Stash,
        state: State,
        loss: &Tensor,
        hooks: &mut dyn Hooks,
    ) -> Result<(), ModelError> {
        let p = self.pass(stash, state)?;
        hooks.need(p.section(self.parts.head.output_tensor()))?;
        self.parts.head.evaluate(&p, loss)
    }

    /// Logits of one row of a micro-batch, for sampling.
    ///
    /// # Errors
    /// Device errors.
    pub fn row_logits(
        &self,
        stash: &Stash,
        state: State,
        row: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let logits = self.parts.head.row_logits(&self.pass(stash, state)?, row)?;
        Ok(self.core.stream.to_vec(&logits)?)
    }

    /// Head, loss and backward pass of a micro-batch, last layers first. The gradients of its
    /// activations take the place of some of them, so it is of no use any more.
    ///
    /// # Errors
    /// Device errors; a target outside the vocabulary.
    pub fn backward(
        &self,
        stash: Stash,
        state: State,
        to: Gradients,
        hooks: &mut dyn Hooks,
    ) -> Result<(), ModelError> {
        let (b, parts) = (Back { pass: self.pass(&stash, state)?, to }, &self.parts);
        hooks.need(b.section(parts.head.output_tensor()))?;
        parts.head.backward(&b)?;
        if let Some(own) = parts.head.own_tensor {
            hooks.ready(b.section(own))?;
        }
        hooks.need(b.section(parts.final_norm.first_tensor()))?;
        parts.final_norm.backward(&b, Onto::Overwrite)?;
        hooks.ready(b.section(parts.final_norm.first_tensor()))?;
        for layer in parts.layers.iter().rev() {
            layer.backward(&b, hooks)?;
        }
        parts.embedding.backward(&b)?;
        Ok(hooks.ready(b.section(0))?)
    }
}

#[cfg(test)]
mod tests;
