//! From the variables of a map to a schema: names in order, roles, true matrices.

use std::cmp::Ordering;
use std::collections::{BTreeMap, HashMap};
use std::sync::PoisonError;

use candle_core::{DType, Var};
use candle_nn::VarMap;
use layout::{FlatLayout, LogicalTensor, Part, Role, Schema};
use optim::glob;
use train::config::BUCKET_BYTES;
use train::{Config, Declared, MicroBatch};

use crate::CandleError;
use crate::engine::{CandleEngine, Tokens};
use crate::parameter::Parameter;

/// Names whose matrices are looked up by index, as models of the common families call them.
const EMBEDDINGS: [&str; 4] = ["*embed*", "*wte*", "*wpe*", "*embd*"];

/// Names of output projections.
const HEADS: [&str; 2] = ["*lm_head*", "*output_head*"];

/// An engine in the making.
///
/// Roles follow from shapes and names: what has two dimensions is a hidden matrix, unless its name
/// is that of an embedding (`*embed*`, `*wte*`, `*wpe*`, `*embd*`) or of an output projection
/// (`*lm_head*`); all else is a vector. In patterns `*` stands for any characters and `?` for one.
pub struct Builder<'a> {
    vars: &'a VarMap,
    roles: Vec<(String, Role)>,
    parts: Vec<(String, Vec<(String, usize)>)>,
    may_lack_gradient: Vec<String>,
}

impl<'a> Builder<'a> {
    /// Of the variables in `vars`, all of which are trained. The model has been built with them.
    pub fn new(vars: &'a VarMap) -> Builder<'a> {
        Builder { vars, roles: Vec::new(), parts: Vec::new(), may_lack_gradient: Vec::new() }
    }

    /// Parameters of these names have another role than their names and shapes say; the last call
    /// that matches counts.
    #[must_use]
    pub fn role(mut self, names: &str, role: Role) -> Builder<'a> {
        self.roles.push((names.to_owned(), role));
        self
    }

    /// Parameters of these names are several true matrices, one below the other: label and rows of
    /// each. Muon orthogonalizes each by itself.
    #[must_use]
    pub fn parts(mut self, names: &str, parts: &[(&str, usize)]) -> Builder<'a> {
        let parts = parts.iter().map(|&(label, rows)| (label.to_owned(), rows)).collect();
        self.parts.push((names.to_owned(), parts));
        self
    }

    /// Parameters of these names may get no gradient from a pass; it is zero then.
    #[must_use]
    pub fn may_lack_gradient(mut self, names: &str) -> Builder<'a> {
        self.may_lack_gradient.push(names.to_owned());
        self
    }

    /// The engine: `loss` takes a micro-batch of `config.batch` to the sum of its losses, one F32
    /// or F64 number. Flat buffers lie on `device`, a host; variables may lie elsewhere. Of the
    /// config, the batch and the size of buckets are looked at; the model is not.
    ///
    /// # Errors
    /// No variable, or one that is not F32; a pattern that no variable has; parts that do not tile
    /// a variable; bf16 weights in the config.
    pub fn build<L: FnMut(&Tokens) -> candle_core::Result<candle_core::Tensor>>(
        self,
        device: &device::Device,
        config: &Config,
        loss: L,
    ) -> Result<CandleEngine<L>, CandleError> {
        if !device.kind().is_host() {
            return Err(CandleError::Device { device: device.kind() });
        }
        let weights = config.train.weights.dtype();
        if weights != device::DType::F32 {
            return Err(CandleError::Weights { weights });
        }
        let named = self.named()?;
        let schema = self.schema(&named)?;
        let bucket_bytes = config.ranks.bucket_bytes.unwrap_or(BUCKET_BYTES);
        let bucket_elements = bucket_bytes.div_ceil(4);
        let flat = FlatLayout::new(&schema, bucket_elements);
        let may_lack = |name: &str| self.may_lack_gradient.iter().any(|of| glob::matches(of, name));
        let parameter = |(index, (name, var)): (usize, (String, Var))| {
            let (flat, may_lack_gradient) = (flat.range(index), may_lack(&name));
            let parts = schema.tensors[index].parts.clone();
            Parameter { name, var, flat, parts, may_lack_gradient }
        };
        let parameters: Vec<Parameter> = named.into_iter().enumerate().map(parameter).collect();
        let (windows, positions) = (config.batch.micro_batch, config.batch.seq_len);
        let active_parameters = schema.parameters() as u64;
        // Variables, their gradients, and a parameter on its way: activations nobody knows before.
        let all: u64 = parameters.iter().map(|parameter| 4 * parameter.flat.len() as u64).sum();
        let largest = parameters.iter().map(|parameter| parameter.flat.len()).max().unwrap_or(0);
        let candle = 2 * all + 8 * largest as u64;
        let declared = Declared {
            schema,
            flat,
            bucket_elements,
            batch: MicroBatch { windows, positions },
            weights,
            states: Vec::new(),
            counts: 0,
            memory: vec![("candle's variables and gradients".to_owned(), candle)],
            numeric: numeric(),
            active_parameters,
        };
        Ok(CandleEngine::new(declared, parameters, device.stream(), loss))
    }

    /// All variables, in order.
    fn named(&self) -> Result<Vec<(String, Var)>, CandleError> {
        let data = self.vars.data().lock().unwrap_or_else(PoisonError::into_inner);
        let mut named: Vec<(String, Var)> =
            data.iter().map(|(name, var)| (name.clone(), var.clone())).collect();
        named.sort_by(|a, b| by_segments(&a.0, &b.0));
        if named.is_empty() {
            return Err(CandleError::NoVariable);
        }
        if let Some((name, var)) = named.iter().find(|(_, var)| var.dtype() != DType::F32) {
            return Err(CandleError::Dtype { name: name.clone(), dtype: var.dtype() });
        }
        let mut first = HashMap::new();
        for (name, var) in &named {
            if let Some(before) = first.insert(var.as_tensor().id(), name) {
                return Err(CandleError::Twice { names: [before.clone(), name.clone()] });
            }
        }
        Ok(named)
    }

    fn schema(&self, named: &[(String, Var)]) -> Result<Schema, CandleError> {
        let patterns = self.roles.iter().map(|(pattern, _)| pattern);
        let patterns = patterns.chain(self.parts.iter().map(|(pattern, _)| pattern));
        for pattern in patterns.chain(&self.may_lack_gradient) {
            if !named.iter().any(|(name, _)| glob::matches(pattern, name)) {
                let likeness = |name: &String| strsim::normalized_levenshtein(pattern, name);
                let nearest = named.iter().map(|(name, _)| name);
                let nearest = nearest.max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
                let nearest = nearest.cloned().unwrap_or_default();
                return Err(CandleError::Unmatched { pattern: pattern.clone(), nearest });
            }
        }
        let tensor = |(name, var): &(String, Var)| {
            let shape = var.dims();
            let mut tensor = LogicalTensor::new(name.as_str(), shape, self.role_of(name, shape));
            let parts = self.parts.iter().rev().find(|(of, _)| glob::matches(of, name));
            if let Some((_, parts)) = parts {
                tensor.parts = tiles(name, shape, parts)?;
            }
            Ok::<_, CandleError>(tensor)
        };
        Ok(Schema::new(named.iter().map(tensor).collect::<Result<_, _>>()?)?)
    }

    fn role_of(&self, name: &str, shape: &[usize]) -> Role {
        let given = self.roles.iter().rev().find(|(of, _)| glob::matches(of, name));
        let is_of = |names: &[&str]| names.iter().any(|of| glob::matches(of, name));
        match given {
            Some((_, role)) => *role,
            None if shape.len() != 2 => Role::Vector,
            None if is_of(&EMBEDDINGS) => Role::Embedding,
            None if is_of(&HEADS) => Role::Head,
            None => Role::Matrix,
        }
    }
}

/// Labelled rows, one after the other.
fn tiles(name: &str, shape: &[usize], parts: &[(String, usize)]) -> Result<Vec<Part>, CandleError> {
    let all: usize = parts.iter().map(|(_, rows)| rows).sum();
    if shape.first() != Some(&all) || parts.iter().any(|(_, rows)| *rows == 0) {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        return Err(CandleError::Parts { name, shape, rows: all });
    }
    let mut start = 0;
    let part = |(label, rows): &(String, usize)| {
        start += rows;
        Part { label: label.clone(), rows: start - rows..start }
    };
    Ok(parts.iter().map(part).collect())
}

/// Everything of candle that may decide bits.
fn numeric() -> BTreeMap<String, String> {
    let threads = candle_core::utils::get_num_threads().to_string();
    // Not all of it decides bits; as with builds, to warn once too often is better.
    let source = concat!(
        include_str!("engine.rs"),
        include_str!("gradients.rs"),
        include_str!("loss.rs"),
        include_str!("schema.rs")
    );
    let source = &blake3::hash(source.as_bytes()).to_hex()[..16];
    let entries = [
        ("engine", format!("candle-engine {} {source}", env!("CARGO_PKG_VERSION"))),
        ("candle threads", threads),
    ];
    entries.map(|(name, value)| (name.to_owned(), value)).into()
}

/// `layers.2` before `layers.10`: numbers by value, all else by letters, segment by segment.
fn by_segments(a: &str, b: &str) -> Ordering {
    let (mut a_rest, mut b_rest) = (a.split('.'), b.split('.'));
    loop {
        let order = match (a_rest.next(), b_rest.next()) {
            (None, None) => return a.cmp(b),
            (a, b) if a.is_none() || b.is_none() => a.cmp(&b),
            (a, b) => {
                let number = |text: Option<&str>| text.and_then(|text| text.parse::<u64>().ok());
                match (number(a), number(b)) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    _ => a.cmp(&b),
                }
            }
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn map(names: &[(&str, &[usize])]) -> VarMap {
        let vars = VarMap::new();
        for (name, shape) in names {
            let zero = candle_nn::Init::Const(0.0);
            vars.get(*shape, name, zero, DType::F32, &Device::Cpu).unwrap();
        }
        vars
    }

    fn engine(
        builder: Builder,
    ) -> Result<CandleEngine<impl FnMut(&Tokens) -> candle_core::Result<Tensor>>, CandleError> {
        let device = device::Device::cpu(1).unwrap();
        builder.build(&device, &Config::default(), |tokens: &Tokens| Ok(tokens.inputs.clone()))
    }

    fn refused(builder: Builder) -> String {
        engine(builder).err().map(|error| error.to_string()).unwrap()
    }

    #[test]
    fn names_are_in_order_and_have_roles() {
        let vars = map(&[
            ("h.10.mlp.weight", &[8, 4]),
            ("h.2.mlp.weight", &[8, 4]),
            ("h.2.mlp.bias", &[8]),
            ("wte.weight", &[16, 4]),
            ("lm_head.weight", &[16, 4]),
            ("h.2.gate.weight", &[2, 4]),
            ("h.2.qkv.weight", &[12, 4]),
            ("h.2.conv.weight", &[4, 4, 3]),
        ]);
        let parts = [("q", 4), ("k", 4), ("v", 4)];
        let builder = Builder::new(&vars).role("h.*.gate.*", Role::Router).parts("*qkv*", &parts);
        let engine = engine(builder).unwrap();
        let schema = &train::Engine::declared(&engine).schema;
        let all: Vec<_> = schema.tensors.iter().map(|t| (t.name.as_str(), t.role.word())).collect();
        assert_eq!(
            all,
            [
                ("h.2.conv.weight", "vector"),
                ("h.2.gate.weight", "router"),
                ("h.2.mlp.bias", "vector"),
                ("h.2.mlp.weight", "matrix"),
                ("h.2.qkv.weight", "matrix"),
                ("h.10.mlp.weight", "matrix"),
                ("lm_head.weight", "head"),
                ("wte.weight", "embedding"),
            ]
        );
        assert_eq!(schema.tensors[4].row_ranges(), [0..4, 4..8, 8..12]);
    }

    #[test]
    fn mistakes_are_named() {
        assert!(refused(Builder::new(&VarMap::new())).contains("from_varmap"));
        let twice = map(&[("wte.weight", &[8, 4])]);
        let tied = twice.data().lock().unwrap()["wte.weight"].clone();
        twice.data().lock().unwrap().insert("lm_head.weight".to_owned(), tied);
        let told = refused(Builder::new(&twice));
        assert!(told.starts_with("`lm_head.weight` and `wte.weight` are one variable"), "{told}");
        let vars = map(&[("fc.weight", &[8, 4]), ("fc.bias", &[8])]);
        let slip = refused(Builder::new(&vars).may_lack_gradient("fc.wieght"));
        assert_eq!(slip, "no variable is called `fc.wieght`; the nearest is `fc.weight`");
        let parts = refused(Builder::new(&vars).parts("fc.weight", &[("a", 4), ("b", 3)]));
        assert!(parts.contains("7 rows in all do not tile `fc.weight`, whose shape is [8, 4]"));
        assert!(parts.ends_with("use parts of 8 rows in all"), "{parts}");
        let half = candle_nn::Init::Const(0.0);
        vars.get(&[2][..], "half", half, DType::BF16, &Device::Cpu).unwrap();
        assert!(refused(Builder::new(&vars)).contains("`half` is BF16"));
    }
}
