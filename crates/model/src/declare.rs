//! Declarations of blocks, in the order of the forward pass: parameters with their published names,
//! places for activations, and states that no gradient trains.
//!
//! Members of a fused matrix (q, k, v; gate, up; all experts) follow one another, so that one
//! [`Weight`] spans them.

use device::DType;
use kernels::rope::Turns;
use layout::{LogicalTensor, Role, Schema};

use crate::ModelError;
use crate::architecture::Architecture;
use crate::arena::{MicroBatch, Place, Places, Types, Use};
use crate::names::{Family, Part};

/// A view `[rows, cols]` of the flat buffers; `cols` is 1 for vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Weight {
    /// First tensor of the group, an index into the schema.
    pub tensor: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Weight {
    /// Number of elements.
    pub fn len(self) -> usize {
        self.rows * self.cols
    }
}

/// A projection `[out, in]` and its bias `[out]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Linear {
    pub weight: Weight,
    pub bias: Option<Weight>,
}

/// The initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    /// Normal deviates of the architecture's `init_std`.
    Normal,
    /// Of a projection back to the residual stream: over √(2·layers).
    ToResidual,
    One,
    Zero,
}

/// Whether a projection has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    With,
    Without,
}

impl From<bool> for Bias {
    fn from(has: bool) -> Bias {
        if has { Bias::With } else { Bias::Without }
    }
}

/// Places of the inputs of every pass, each `[N]` u32: see [`crate::Inputs`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct InputPlaces {
    pub tokens: Place,
    pub targets: Place,
    pub doc_start: Place,
}

/// The declarations of a model, as they are made.
pub(crate) struct Declare<'a> {
    pub a: &'a Architecture,
    pub batch: MicroBatch,
    /// The layer that declares.
    pub layer: usize,
    pub inputs: InputPlaces,
    pub tensors: Vec<LogicalTensor>,
    pub inits: Vec<Init>,
    /// Names of the balancing biases, a row of experts each.
    pub router_biases: Vec<String>,
    /// How planes turn by position, where a block turns them.
    pub rotary: Option<Turns>,
    family: &'static Family,
    types: Types,
    places: Places,
    /// Elements of the largest weights that are used as a matrix and as a vector.
    largest: [usize; 2],
    /// The first part that the family has no name for.
    unnamed: Option<Part>,
}

/// All that was declared.
pub(crate) struct Declared {
    pub schema: Schema,
    pub inits: Vec<Init>,
    pub router_biases: Vec<String>,
    pub rotary: Option<Turns>,
    pub places: Places,
    pub inputs: InputPlaces,
    /// Where bf16 weights are widened: a matrix, and two vectors.
    pub widened: [Place; 2],
}

impl<'a> Declare<'a> {
    pub fn new(a: &'a Architecture, batch: MicroBatch, types: Types) -> Declare<'a> {
        let mut places = Places::default();
        let mut input = || places.saved(DType::U32, [batch.rows()]);
        let inputs = InputPlaces { tokens: input(), targets: input(), doc_start: input() };
        Declare {
            a,
            batch,
            layer: 0,
            inputs,
            tensors: Vec::new(),
            inits: Vec::new(),
            router_biases: Vec::new(),
            rotary: None,
            family: Family::of(a.names),
            types,
            places,
            largest: [0; 2],
            unnamed: None,
        }
    }

    /// Token rows of the micro-batch.
    pub fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// Kept from the forward pass to the backward pass.
    pub fn saved<const RANK: usize>(&mut self, dims: [usize; RANK]) -> Place {
        self.places.saved(self.types.compute, dims)
    }

    /// As [`Declare::saved`], of u32.
    pub(crate) fn saved_integers<const RANK: usize>(&mut self, dims: [usize; RANK]) -> Place {
        self.places.saved(DType::U32, dims)
    }

    /// Shared with all who declare this name: not kept beyond the block.
    pub fn scratch<const RANK: usize>(&mut self, name: &'static str, dims: [usize; RANK]) -> Place {
        self.places.scratch(Use::Gradients, name, self.types.compute, dims)
    }

    /// As [`Declare::scratch`], counted by itself.
    pub(crate) fn scratch_for<const RANK: usize>(
        &mut self,
        what: Use,
        name: &'static str,
        dims: [usize; RANK],
    ) -> Place {
        self.places.scratch(what, name, self.types.compute, dims)
    }

    /// Gradient of the residual stream, `[N, D]`.
    pub fn dx(&mut self) -> Place {
        self.scratch("dx", [self.batch.rows(), self.a.d_model])
    }

    /// Gradient of what a norm gives, `[N, D]`.
    pub(crate) fn dh(&mut self) -> Place {
        self.scratch("dh", [self.batch.rows(), self.a.d_model])
    }

    /// A matrix `[rows, cols]` alone.
    pub fn matrix(&mut self, part: Part, shape: [usize; 2], role: Role, init: Init) -> Weight {
        let weight = self.add(part, 0, "weight", &shape, role, init);
        self.tensors[weight.tensor].published_transposed = self.family.is_transposed(part);
        self.used(weight)
    }

    /// A hidden matrix and its bias.
    pub fn linear(&mut self, part: Part, shape: [usize; 2], bias: Bias, init: Init) -> Linear {
        let weight = self.matrix(part, shape, Role::Matrix, init);
        let bias = (bias == Bias::With).then(|| self.bias(part, shape[0]));
        Linear { weight, bias }
    }

    /// Several matrices of `cols` columns, used as one: `(part, rows)` each. A family may publish
    /// them as one tensor, `whole`.
    pub fn fused(
        &mut self,
        members: &[(Part, usize)],
        whole: Option<Part>,
        cols: usize,
        bias: Bias,
    ) -> Linear {
        if let Some(whole) = whole.filter(|whole| self.family.has(*whole)) {
            let rows = members.iter().map(|(_, rows)| rows).sum();
            let linear = self.linear(whole, [rows, cols], bias, Init::Normal);
            self.tensors[linear.weight.tensor].parts = parts(members);
            return linear;
        }
        let of = |part: &(Part, usize)| (part.0, 0, part.1);
        let weights: Vec<Member> = members.iter().map(of).collect();
        let weight = self.joined(&weights, "weight", &[cols], |_| Role::Matrix, Init::Normal);
        let bias = (bias == Bias::With)
            .then(|| self.joined(&weights, "bias", &[], |_| Role::Vector, Init::Zero));
        Linear { weight, bias }
    }

    /// The same matrices `[rows, cols]` of each of `of` experts, used as one `[of·…·rows, cols]`.
    pub fn experts(
        &mut self,
        parts: &[Part],
        of: usize,
        [rows, cols]: [usize; 2],
        init: Init,
    ) -> Weight {
        let of_expert = |expert: usize| parts.iter().map(move |&part| (part, expert, rows));
        let members: Vec<Member> = (0..of).flat_map(of_expert).collect();
        let role = |expert: usize| Role::Expert { index: expert as u32, of: of as u32 };
        self.joined(&members, "weight", &[cols], role, init)
    }

    /// Gains of a norm.
    pub fn gain(&mut self, part: Part, len: usize) -> Weight {
        let weight = self.add(part, 0, "weight", &[len], Role::Vector, Init::One);
        self.used(weight)
    }

    pub fn bias(&mut self, part: Part, len: usize) -> Weight {
        let weight = self.add(part, 0, "bias", &[len], Role::Vector, Init::Zero);
        self.used(weight)
    }

    /// A balancing bias; the number of those before it.
    pub fn router_bias(&mut self) -> usize {
        let name = self.name(Part::RouterBias, 0);
        self.router_biases.push(name);
        self.router_biases.len() - 1
    }

    /// Members as one view.
    fn joined(
        &mut self,
        members: &[Member],
        what: &str,
        cols: &[usize],
        role: impl Fn(usize) -> Role,
        init: Init,
    ) -> Weight {
        let mut whole: Option<Weight> = None;
        for &(part, expert, rows) in members {
            let shape = [&[rows], cols].concat();
            let weight = self.add(part, expert, what, &shape, role(expert), init);
            self.tensors[weight.tensor].fused = whole.is_some();
            let rows = whole.map_or(0, |whole| whole.rows) + weight.rows;
            whole = Some(Weight { rows, ..whole.unwrap_or(weight) });
        }
        let whole = whole.expect("a fused matrix has members");
        self.used(whole)
    }

    fn add(
        &mut self,
        part: Part,
        expert: usize,
        what: &str,
        shape: &[usize],
        role: Role,
        init: Init,
    ) -> Weight {
        let name = format!("{}.{what}", self.name(part, expert));
        let tensor = LogicalTensor::new(name, shape, role);
        let (rows, cols) = (tensor.rows(), tensor.row_len());
        self.tensors.push(tensor);
        self.inits.push(init);
        Weight { tensor: self.tensors.len() - 1, rows, cols }
    }

    fn name(&mut self, part: Part, expert: usize) -> String {
        let name = self.family.name(part, self.layer, expert);
        name.unwrap_or_else(|| {
            self.unnamed.get_or_insert(part);
            format!("{part:?}")
        })
    }

    /// A view that passes use.
    fn used(&mut self, weight: Weight) -> Weight {
        let is_vector = self.tensors[weight.tensor].role == Role::Vector;
        let largest = &mut self.largest[usize::from(is_vector)];
        *largest = (*largest).max(weight.len());
        weight
    }

    /// Elements and number of the tensors since the last call, in numbers that cannot wrap.
    pub(crate) fn count_and_forget(&mut self) -> (u128, u128) {
        let elements = |t: &LogicalTensor| {
            t.shape.iter().fold(1_u128, |all, &extent| all.saturating_mul(extent as u128))
        };
        let sum = self.tensors.iter().map(elements).fold(0_u128, u128::saturating_add);
        let count = self.tensors.len() as u128;
        self.tensors.clear();
        self.inits.clear();
        (sum, count)
    }

    /// # Errors
    /// A part that the family has no name for; two tensors of one name.
    pub fn finish(mut self) -> Result<Declared, ModelError> {
        if let Some(part) = self.unnamed {
            let (part, names) = (format!("{part:?}"), format!("{:?}", self.a.names));
            return Err(ModelError::Unnamed { part, names });
        }
        let [matrix, vector] = if self.types.widens() { self.largest } else { [0; 2] };
        let matrix = self.scratch_for(Use::Widened, "widened", [matrix]);
        let vectors = self.scratch_for(Use::Widened, "widened vectors", [2, vector]);
        Ok(Declared {
            schema: Schema::new(self.tensors)?,
            inits: self.inits,
            router_biases: self.router_biases,
            rotary: self.rotary,
            places: self.places,
            inputs: self.inputs,
            widened: [matrix, vectors],
        })
    }
}

/// Part, expert, rows.
type Member = (Part, usize, usize);

/// The true matrices inside a tensor that is published fused.
fn parts(members: &[(Part, usize)]) -> Vec<layout::Part> {
    let mut start = 0;
    let part = |&(part, rows): &(Part, usize)| {
        start += rows;
        layout::Part { label: part.label().to_owned(), rows: start - rows..start }
    };
    members.iter().map(part).collect()
}
