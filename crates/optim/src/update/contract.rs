//! The face of an update towards rules, ownership, memory and step, whichever it is.
//!
//! ```text
//! UpdateRule ──prepare(Group)──▶ Planned ──needs(Place)──▶ memory plan
//!                                   └─bind(Binding)─▶ Launch ──apply──▶ a step
//! ```

use device::{DType, Device, Stream, Tensor};
use kernels::optimizer::{Span, Spans, Weights};
use layout::Absent;
use layout::flat::ALIGN;

use crate::OptimError;

/// An optimizer's rule for the parameters it is given, with its numbers.
pub(crate) trait UpdateRule {
    /// Learning rate before `scale` and schedule.
    fn lr(&self) -> f64;

    /// Checks every value; `at` is where they stand in the config.
    ///
    /// # Errors
    /// The first value out of range, with the nearest valid one.
    fn check(&self, at: &str) -> Result<(), OptimError>;

    /// The part of a parameter that it needs whole.
    fn unit(&self) -> Unit;

    /// FLOPs of the update of one matrix beside a pass over its elements; for [`Unit::Matrix`].
    ///
    /// # Errors
    /// None after [`UpdateRule::check`].
    fn flops(&self, rows: usize, cols: usize) -> Result<f64, OptimError> {
        let _ = (rows, cols);
        Ok(0.0)
    }

    /// Factor on the update of a matrix `[rows, cols]`, beside the learning rate.
    fn scale(&self, rows: usize, cols: usize) -> f64 {
        let _ = (rows, cols);
        1.0
    }

    /// Its numbers, in a line of the plan; `scale` is that of the matrices there.
    fn words(&self, scale: f64) -> String;

    /// A line below the plan: a promise about the result.
    fn promise(&self) -> Option<String> {
        None
    }

    /// The states that it keeps of a matrix `[rows, cols]`, or of any run of rows.
    fn states(&self, rows: usize, cols: usize) -> Vec<StateKind>;

    /// Whether they fit such a matrix.
    ///
    /// # Errors
    /// The first that does not.
    fn fits(&self, rows: usize, cols: usize) -> Result<(), Misfit> {
        let _ = (rows, cols);
        Ok(())
    }

    /// Plans the update of pieces that are launched together.
    ///
    /// # Errors
    /// None after [`UpdateRule::check`].
    fn prepare(&self, group: &Group) -> Result<Box<dyn Planned>, OptimError>;
}

/// The part of a parameter that an update needs whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A true matrix, which has one owner.
    Matrix,
    /// An element: rows are shared out.
    Element,
}

/// One state of f32 elements, as a checkpoint names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateKind {
    /// A word of the checkpoint format, never used for another meaning.
    pub slot: &'static str,
    pub axes: Axes,
    /// Its beginning where a checkpoint lacks it, and in a new run.
    pub absent: Absent,
}

/// The shape of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axes {
    /// That of the parameter.
    Same,
    /// `[rows, elements per row]` of each true matrix; those of a fused parameter are stacked. For
    /// [`Unit::Matrix`].
    Rows(usize, usize),
}

impl StateKind {
    /// A state of the parameter's own shape that begins at zero.
    pub(crate) fn same(slot: &'static str) -> StateKind {
        StateKind { slot, axes: Axes::Same, absent: Absent::Zero }
    }

    /// Rows, and elements of each, of what belongs to `rows` rows of `cols` elements.
    pub(crate) fn extent(&self, rows: usize, cols: usize) -> (usize, usize) {
        match self.axes {
            Axes::Same => (rows, cols),
            Axes::Rows(rows, row_len) => (rows, row_len),
        }
    }
}

/// A state that does not fit a matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Misfit {
    /// The key that decides its size, and its value.
    pub key: &'static str,
    pub got: usize,
    /// The state, in words, and the shape that it would have.
    pub state: &'static str,
    pub shape: [usize; 2],
    /// The largest value that fits.
    pub most: usize,
}

/// Pieces of a rank that are updated by one launch: of one rule, and of one shape where that
/// matters.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    /// `[rows, cols]` of each piece; of no meaning for [`Unit::Element`].
    pub shape: (usize, usize),
    /// Where each piece lies; `Span::local` counts from the start of the group.
    pub spans: Vec<Span>,
    /// Elements from there, gaps included.
    pub len: usize,
}

impl Group {
    /// Where the part of piece `index` begins in a state of `elements` elements of each, counted
    /// from the start of the group's.
    pub(crate) fn state_start(index: usize, elements: usize) -> usize {
        index * elements.next_multiple_of(ALIGN)
    }
}

/// One allocation, or several of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryItem {
    pub name: &'static str,
    pub elements: usize,
    pub dtype: DType,
}

impl MemoryItem {
    pub fn bytes(&self) -> usize {
        self.elements * self.dtype.bytes()
    }
}

/// Where launches run.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// On a host with so many threads, which nothing has begun yet.
    Threads(usize),
    On(&'a Device),
}

/// Memory that a group takes beside its states.
pub(crate) struct Needs {
    /// Groups run one after another, so they share what has one name: as much as the largest needs.
    pub scratch: Vec<MemoryItem>,
    /// Bytes that binding uploads.
    pub table_bytes: usize,
}

/// A planned group.
pub(crate) trait Planned {
    /// # Errors
    /// A device without code for this update.
    fn needs(&self, place: Place) -> Result<Needs, OptimError>;

    /// # Errors
    /// As [`Planned::needs`]; no memory.
    fn bind(&self, at: Binding) -> Result<Box<dyn Launch>, OptimError>;
}

/// The memory of a group.
pub(crate) struct Binding<'a> {
    pub device: &'a Device,
    pub spans: Spans,
    pub masters: Option<Tensor>,
    /// The group's part of each state, in the order of [`UpdateRule::states`].
    pub states: Vec<Tensor>,
    /// In the order of [`Needs::scratch`], each at least as large.
    pub scratch: Vec<Tensor>,
    /// u32, one for each piece: a matrix with an infinity or NaN. Empty for [`Unit::Element`].
    pub status: Tensor,
}

/// The tensors of a binding, whose number is that of the update's own list.
pub(crate) fn in_order<const N: usize>(tensors: Vec<Tensor>) -> [Tensor; N] {
    tensors.try_into().unwrap_or_else(|tensors: Vec<Tensor>| {
        unreachable!("{} tensors are bound where the update lists {N}", tensors.len())
    })
}

/// A bound group: nothing is left but to launch it.
pub(crate) trait Launch: Send {
    /// # Errors
    /// An earlier error of the stream.
    fn apply(&self, step: &Applying) -> Result<(), OptimError>;

    /// Takes over, by piece, how many updates had been made when its states began.
    ///
    /// # Errors
    /// No memory on the device.
    fn set_begun(&mut self, _: &Device, _begun: &[i64]) -> Result<(), OptimError> {
        Ok(())
    }

    /// Lines of [`crate::ShardedOptimizer::numeric_plan`].
    fn numeric_plan(&self) -> Vec<String> {
        Vec::new()
    }
}

/// The arguments of a step.
pub(crate) struct Applying<'a> {
    pub stream: &'a Stream,
    /// Flat, f32 or bf16.
    pub weights: &'a Tensor,
    /// Flat, f32: sums over tokens.
    pub grads: &'a Tensor,
    /// f32, one of each piece: what makes clipped means of them.
    pub factors: &'a Tensor,
    /// Number of the step in the run, from 1.
    pub step: u64,
    /// The schedule's factor on every learning rate.
    pub lr_factor: f64,
}

impl Applying<'_> {
    /// The weights, with their f32 masters where they have some.
    pub(crate) fn weights(&self, masters: &Option<Tensor>) -> Weights {
        let flat = self.weights.clone();
        match masters.clone() {
            None => Weights::InPlace(flat),
            Some(masters) => Weights::Mastered { masters, flat },
        }
    }
}
