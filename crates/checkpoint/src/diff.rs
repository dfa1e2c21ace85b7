//! The comparison of two checkpoints, tensor by tensor, in bounded memory.

use half::{bf16, f16};
use serde_json::Value;

use crate::manifest::StateTensor;
use crate::{
    Checkpoint, Dtype, Error, Region, RunState, TensorKey, ValueDifference, slabs,
    value_differences,
};

/// Elements compared at a time.
const SLAB_ELEMENTS: usize = 1 << 18;

/// An object with more keys than a line holds is told by their number.
const MAX_KEYS: usize = 6;

/// The result of comparing two checkpoints.
#[derive(Debug, Clone, PartialEq)]
pub struct Diff {
    /// Per state tensor of either: first those of `a` in its order, then those only in `b`.
    pub tensors: Vec<TensorDiff>,
    /// Fields of the run state that differ.
    pub run_state: Vec<RunStateDifference>,
}

/// One state tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorDiff {
    pub key: TensorKey,
    pub difference: TensorDifference,
}

/// How a state tensor differs.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorDifference {
    /// All bits equal.
    Equal,
    OnlyInA,
    OnlyInB,
    Dtype {
        a: Dtype,
        b: Dtype,
    },
    Shape {
        a: Vec<usize>,
        b: Vec<usize>,
    },
    Values {
        /// Elements whose bits differ.
        elements: u64,
        /// Row-major index of the first of them.
        first: Vec<usize>,
        /// By how much; `None` for types that are not compared as numbers.
        by: Option<Distance>,
    },
}

/// How far the values of two tensors are apart; NaN where one side alone is not a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Largest |a − b|.
    pub max_absolute: f64,
    /// Largest |a − b| / max(|a|, |b|).
    pub max_relative: f64,
    /// The Euclidean norm of a − b.
    pub norm: f64,
    /// That of a.
    pub norm_of_a: f64,
}

/// A field of the run state that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStateDifference {
    pub field: String,
    pub a: String,
    pub b: String,
}

impl Diff {
    /// True where both have the same tensors with equal bits. Run states may differ, as those of
    /// runs with other names or numbers of ranks do.
    pub fn is_equal(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.difference == TensorDifference::Equal)
    }
}

/// Compares two checkpoints; how each was cut into chunks does not matter.
///
/// # Errors
/// Either cannot be read or is damaged.
pub fn diff(a: &Checkpoint, b: &Checkpoint) -> Result<Diff, Error> {
    let mut tensors = Vec::new();
    for in_a in a.tensors() {
        let key = in_a.key();
        let difference = match b.tensor(&key) {
            Ok(in_b) => compare(a, b, &key, in_a, in_b)?,
            Err(_) => TensorDifference::OnlyInA,
        };
        tensors.push(TensorDiff { key, difference });
    }
    let only_in_b = b.tensors().iter().map(StateTensor::key).filter(|key| a.tensor(key).is_err());
    tensors.extend(only_in_b.map(|key| TensorDiff { key, difference: TensorDifference::OnlyInB }));
    Ok(Diff { tensors, run_state: run_state(a.run_state(), b.run_state()) })
}

fn compare(
    a: &Checkpoint,
    b: &Checkpoint,
    key: &TensorKey,
    in_a: &StateTensor,
    in_b: &StateTensor,
) -> Result<TensorDifference, Error> {
    if in_a.dtype != in_b.dtype {
        return Ok(TensorDifference::Dtype { a: in_a.dtype, b: in_b.dtype });
    }
    if in_a.shape != in_b.shape {
        return Ok(TensorDifference::Shape { a: in_a.shape.clone(), b: in_b.shape.clone() });
    }
    let dtype = in_a.dtype;
    let size = dtype.size_bytes();
    let (mut left, mut right) = (Vec::new(), Vec::new());
    let mut tally = Tally::default();
    for slab in slabs(&in_a.shape, SLAB_ELEMENTS) {
        let bytes = slab.elements().unwrap_or(0) * size;
        left.resize(bytes, 0);
        right.resize(bytes, 0);
        a.read_box(key, dtype, &slab, &mut left)?;
        b.read_box(key, dtype, &slab, &mut right)?;
        tally.add_norm(dtype, &left);
        if left != right {
            tally.add(dtype, &slab, &left, &right);
        }
    }
    Ok(tally.finish(dtype))
}

/// The differences found so far.
#[derive(Default)]
struct Tally {
    elements: u64,
    first: Option<Vec<usize>>,
    max_absolute: f64,
    max_relative: f64,
    /// Sums of squares, of a − b and of a.
    squares: [f64; 2],
}

impl Tally {
    fn add_norm(&mut self, dtype: Dtype, left: &[u8]) {
        let values = left.chunks_exact(dtype.size_bytes()).filter_map(|x| number(dtype, x));
        self.squares[1] += values.map(|x| x * x).sum::<f64>();
    }

    fn add(&mut self, dtype: Dtype, slab: &Region, left: &[u8], right: &[u8]) {
        let size = dtype.size_bytes();
        let pairs = left.chunks_exact(size).zip(right.chunks_exact(size)).enumerate();
        for (index, (x, y)) in pairs.filter(|(_, (x, y))| x != y) {
            self.elements += 1;
            self.first.get_or_insert_with(|| unravel(index, slab));
            let (Some(x), Some(y)) = (number(dtype, x), number(dtype, y)) else { continue };
            if x.is_nan() && y.is_nan() {
                continue; // Two spellings of not-a-number.
            }
            let absolute = if x == y { 0.0 } else { (x - y).abs() };
            let scale = x.abs().max(y.abs());
            let relative = if absolute == 0.0 { 0.0 } else { absolute / scale };
            // NaN sticks: it is worse than any number.
            let worse = |old: f64, new: f64| if new > old || new.is_nan() { new } else { old };
            self.max_absolute = worse(self.max_absolute, absolute);
            self.max_relative = worse(self.max_relative, relative);
            self.squares[0] += absolute * absolute;
        }
    }

    fn finish(self, dtype: Dtype) -> TensorDifference {
        let Some(first) = self.first else { return TensorDifference::Equal };
        let numeric = number(dtype, &[0; 8][..dtype.size_bytes()]).is_some();
        TensorDifference::Values {
            elements: self.elements,
            first,
            by: numeric.then_some(Distance {
                max_absolute: self.max_absolute,
                max_relative: self.max_relative,
                norm: self.squares[0].sqrt(),
                norm_of_a: self.squares[1].sqrt(),
            }),
        }
    }
}

/// The tensor's index of element number `index` of a slab.
fn unravel(mut index: usize, slab: &Region) -> Vec<usize> {
    let mut place = slab.offset.clone();
    for axis in (0..slab.shape.len()).rev() {
        place[axis] += index % slab.shape[axis];
        index /= slab.shape[axis];
    }
    place
}

/// An element as a number; `None` for types whose bits alone are compared.
fn number(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    let mut eight = [0; 8];
    eight[..bytes.len()].copy_from_slice(bytes);
    let bits = u64::from_le_bytes(eight);
    Some(match dtype {
        Dtype::F64 => f64::from_bits(bits),
        Dtype::F32 => f64::from(f32::from_bits(bits as u32)),
        Dtype::F16 => f16::from_bits(bits as u16).to_f64(),
        Dtype::Bf16 => bf16::from_bits(bits as u16).to_f64(),
        Dtype::U8 | Dtype::U16 | Dtype::U32 | Dtype::U64 => bits as f64,
        Dtype::I8 => f64::from(bits as i8),
        Dtype::I16 => f64::from(bits as i16),
        Dtype::I32 => f64::from(bits as i32),
        Dtype::I64 => bits as i64 as f64,
        Dtype::Bool
        | Dtype::F8E4M3
        | Dtype::F8E5M2
        | Dtype::F8E4M3Fnuz
        | Dtype::F8E5M2Fnuz
        | Dtype::F8E8M0 => return None,
    })
}

/// Fields that differ, those inside others by their path: `extra.data`.
fn run_state(a: &RunState, b: &RunState) -> Vec<RunStateDifference> {
    let value = |state: &RunState| {
        serde_json::to_value(state).expect("a run state has no keys but strings")
    };
    let told = |found: ValueDifference| RunStateDifference {
        field: found.place,
        a: text(found.a.as_ref()),
        b: text(found.b.as_ref()),
    };
    value_differences("", &value(a), &value(b)).into_iter().map(told).collect()
}

/// A value on a line.
fn text(value: Option<&Value>) -> String {
    match value {
        None => "nothing".to_owned(),
        Some(Value::String(text)) => text.clone(),
        // Whole sections, as a checkpoint of another version may have or lack.
        Some(Value::Object(keys)) if keys.len() > MAX_KEYS => format!("{} keys", keys.len()),
        Some(other) => other.to_string(),
    }
}
