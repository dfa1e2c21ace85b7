//! Ordered sums on another device than the one whose memory their inputs are.
//!
//! ```text
//!                    host                                    device of `out`
//! partials ──copied──▶ pinned 0 ──on stream 0──▶ inputs ──ordered sum──▶ out      lane 0
//! partials ──copied──▶ pinned 1 ──on stream 1──▶ inputs ──ordered sum──▶ out      lane 1
//! ```
//!
//! An owner's elements go through two lanes, part by part, in turn: while one lane's copy and sum
//! run, the host fills the other. A part belongs to one lane, so lanes need no order between them,
//! and every element is summed once, in the program's order: the bits are the host's.
//!
//! Lanes have a bounded size and belong to the group, whose operations run one after another.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use device::{DType, Device, Placement, Staged, Stream, Tensor};
use kernels::ordered_sum::{OrderedSum, RedOp, Summation, computed_in};
use layout::SumProgram;

use crate::copies::{Joined, load};
use crate::primitives::OrderedReduce;
use crate::source::{Source, Wanted};
use crate::{CommError, Result};

/// Bytes of a lane: enough for a bus to be busy, few enough to overlap.
const LANE_BYTES: usize = 4 << 20;

/// Inputs of a part begin at multiples of this many elements, which lets kernels read whole groups.
const ALIGN: usize = 64;

/// Memory for sums that are made elsewhere than their inputs lie: of a lane, and of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SumRoom {
    /// Pinned, and as much on the device.
    staged_bytes: usize,
    /// On the device.
    workspace_bytes: usize,
    /// Elements of a part.
    part: usize,
}

impl SumRoom {
    /// Pinned memory of the host that a group takes for sums of `inputs` partials of type `dtype`,
    /// all of which lie elsewhere.
    pub fn pinned_bytes(inputs: usize, dtype: DType) -> usize {
        2 * inputs * part(inputs, dtype) * dtype.bytes()
    }

    /// Memory of `device` that it takes for them, by this program.
    ///
    /// # Errors
    /// A program that does not add each of its partials once and in order.
    pub fn device_bytes(
        device: &Device,
        program: &SumProgram,
        inputs: usize,
        dtype: DType,
    ) -> Result<usize> {
        // Other reductions in that order take the same room.
        let sum = OrderedSum::new(program, inputs, RedOp::Sum)?;
        let room = SumRoom::of(device, &sum, inputs, dtype);
        Ok(2 * (room.staged_bytes + room.workspace_bytes))
    }

    /// Of a lane, where `uploaded` of the partials lie elsewhere.
    fn of(device: &Device, sum: &OrderedSum, uploaded: usize, dtype: DType) -> SumRoom {
        let part = part(uploaded, dtype);
        let sum_bytes = computed_in(dtype).map_or(0, DType::bytes);
        let workspace_bytes = sum.workspace_elements(device, part) * sum_bytes;
        SumRoom { staged_bytes: uploaded * part * dtype.bytes(), workspace_bytes, part }
    }

    fn holds(&self, other: &SumRoom) -> bool {
        self.staged_bytes >= other.staged_bytes && self.workspace_bytes >= other.workspace_bytes
    }
}

/// Elements of a part of this many partials.
fn part(uploaded: usize, dtype: DType) -> usize {
    let most = LANE_BYTES / (uploaded.max(1) * dtype.bytes());
    (most / ALIGN).max(1) * ALIGN
}

/// The lanes of a group, made when the first operation needs them.
#[derive(Default)]
pub(crate) struct AllLanes {
    known: Mutex<Vec<Arc<Lanes>>>,
}

/// The two lanes to a device.
struct Lanes {
    device: Device,
    room: SumRoom,
    /// And which of them is next.
    lanes: Mutex<([Lane; 2], usize)>,
}

struct Lane {
    stream: Stream,
    pinned: Staged,
    /// On the device, bytes: inputs of a part one after another, and what [`OrderedSum`] asks for.
    memory: Tensor,
    workspace: Tensor,
    inputs: Vec<Tensor>,
}

impl AllLanes {
    /// Lanes to `device` of at least this size.
    fn to(&self, device: &Device, room: SumRoom) -> Result<Arc<Lanes>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut there = known.iter().filter(|lanes| lanes.device.is_same(device));
        if let Some(lanes) = there.find(|lanes| lanes.room.holds(&room)) {
            return Ok(Arc::clone(lanes));
        }
        let lanes = Mutex::new(([Lane::new(device, room)?, Lane::new(device, room)?], 0));
        let lanes = Arc::new(Lanes { device: device.clone(), room, lanes });
        known.push(Arc::clone(&lanes));
        Ok(lanes)
    }
}

impl Lane {
    fn new(device: &Device, room: SumRoom) -> Result<Lane> {
        let memory = |bytes| -> Result<Tensor> {
            let buffer = device.alloc(bytes, &Placement::Private)?;
            Ok(Tensor::new(buffer, 0, &[bytes], DType::U8)?)
        };
        Ok(Lane {
            stream: device.new_stream()?,
            pinned: Staged::new(device, room.staged_bytes)?,
            memory: memory(room.staged_bytes)?,
            workspace: memory(room.workspace_bytes)?,
            inputs: Vec::new(),
        })
    }
}

/// How the sums of one reduction are made elsewhere.
pub(crate) struct Elsewhere {
    lanes: Arc<Lanes>,
    /// Elements of a part.
    part: usize,
    /// Whether this member's own partials are memory of the device already.
    is_own_there: bool,
}

/// Elements of the joined segments of an owner, inside one tile.
struct Part<'a> {
    op: &'a OrderedReduce,
    sum: &'a OrderedSum,
    place: usize,
    is_own_there: bool,
    /// Of the joined segments.
    elements: Range<usize>,
    /// Where they begin in the tile.
    at: usize,
}

impl Elsewhere {
    /// `None` where the inputs of `op` are memory of the device of `out`, and the host reaches it.
    /// The member's own are memory of the host, too, where a source `has_own`.
    ///
    /// # Errors
    /// The device refuses memory or a stream.
    pub(crate) fn of(
        op: &OrderedReduce,
        sum: &OrderedSum,
        (place, has_own): (usize, bool),
        all: &AllLanes,
    ) -> Result<Option<Elsewhere>> {
        let Some(window) = op.buffers.first() else { return Ok(None) };
        let device = op.out.buffer().device();
        let are_there = window.buffer().device().is_same(device);
        if are_there && window.mirror().is_none() {
            return Ok(None);
        }
        let is_own_there = are_there && !has_own;
        let own = if is_own_there { op.partials[place].len() } else { 0 };
        let room = SumRoom::of(device, sum, sum.inputs() - own, op.dtype);
        Ok(Some(Elsewhere { lanes: all.to(device, room)?, part: room.part, is_own_there }))
    }

    fn lanes(&self) -> MutexGuard<'_, ([Lane; 2], usize)> {
        self.lanes.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins the sums of tile `round`, in tiles of `tile` elements. The inputs have been taken
    /// when this returns.
    pub(crate) fn sum_tile<S: Source>(
        &self,
        (op, sum): (&OrderedReduce, &OrderedSum),
        (place, tile, round): (usize, usize, usize),
        source: &S,
    ) -> Result<()> {
        let len = Joined { segments: &op.segments[place] }.tile_len(tile, round);
        let mut guard = self.lanes();
        let (lanes, next) = &mut *guard;
        for at in (0..len).step_by(self.part) {
            let start = round * tile + at;
            let elements = start..start + self.part.min(len - at);
            let part = Part { op, sum, place, is_own_there: self.is_own_there, elements, at };
            lanes[*next].sum(&part, source)?;
            *next = 1 - *next;
        }
        Ok(())
    }

    /// Returns when all sums are done.
    pub(crate) fn finish(&self) -> Result<()> {
        let (lanes, _) = &*self.lanes();
        Ok(lanes.iter().try_for_each(|lane| lane.stream.synchronize())?)
    }
}

impl Part<'_> {
    /// Elements from one uploaded input to the next.
    fn stride(&self) -> usize {
        self.elements.len().next_multiple_of(ALIGN)
    }

    /// Of each input: its member and number there, its buffer, and whether it is uploaded.
    fn inputs(&self) -> impl Iterator<Item = (usize, usize, usize, bool)> + '_ {
        self.op.partials.iter().enumerate().flat_map(move |(holder, partials)| {
            let is_uploaded = holder != self.place || !self.is_own_there;
            let buffers = partials.iter().map(|(_, buffer)| *buffer).enumerate();
            buffers.map(move |(index, buffer)| (holder, index, buffer, is_uploaded))
        })
    }

    /// The runs of neighbouring elements: where they begin in the part, in `out`, and in buffers.
    fn pieces(&self) -> impl Iterator<Item = (usize, usize, Range<usize>)> + '_ {
        let (op, mut at) = (self.op, 0);
        let joined = Joined { segments: &op.segments[self.place] };
        joined.within(self.elements.clone()).map(move |(segment, piece)| {
            let start = at;
            at += piece.len();
            (start, op.place_in_out(self.place, segment, piece.start), piece)
        })
    }

    /// Copies all inputs that are uploaded.
    fn fill<S: Source>(&self, bytes: &mut [u8], source: &S) -> Result<()> {
        let (op, size) = (self.op, self.op.dtype.bytes());
        let uploaded = self.inputs().filter(|(.., is_uploaded)| *is_uploaded);
        let rooms = bytes.chunks_exact_mut(self.stride() * size);
        for ((holder, index, buffer, _), room) in uploaded.zip(rooms) {
            for (at, _, piece) in self.pieces() {
                let into = &mut room[at * size..(at + piece.len()) * size];
                if holder == self.place && !S::HAS_OWN {
                    let window = op.buffers[buffer].on_host();
                    let own = window.tensor(piece.start, &[piece.len()], op.dtype)?;
                    load(window.buffer().device(), &own.as_bytes(), into)?;
                } else {
                    let at = self.at + at;
                    source.copy(Wanted { holder, index, range: piece, at }, into)?;
                }
            }
        }
        Ok(())
    }
}

impl Lane {
    fn sum<S: Source>(&mut self, part: &Part, source: &S) -> Result<()> {
        let Lane { stream, pinned, memory, workspace, inputs } = self;
        let (op, stride) = (part.op, part.stride());
        let uploaded = part.inputs().filter(|(.., is_uploaded)| *is_uploaded).count();
        let bytes = uploaded * stride * op.dtype.bytes();
        part.fill(&mut pinned.write()?[..bytes], source)?;
        pinned.upload(stream, &memory.flat(0..bytes)?)?;
        for (at, out, piece) in part.pieces() {
            let (len, mut before) = (piece.len(), 0);
            inputs.clear();
            for (_, _, buffer, is_uploaded) in part.inputs() {
                inputs.push(match is_uploaded {
                    false => op.buffers[buffer].tensor(piece.start, &[len], op.dtype)?,
                    true => {
                        let start = before * stride + at;
                        before += 1;
                        Tensor::new(memory.buffer().clone(), start, &[len], op.dtype)?
                    }
                });
            }
            let elements = part.sum.workspace_elements(stream.device(), len);
            let buffer = workspace.buffer().clone();
            let number = computed_in(op.dtype).unwrap_or(op.dtype);
            let workspace = Tensor::new(buffer, 0, &[elements], number)?;
            let out = op.out.flat(out..out + len)?;
            Summation { sum: part.sum, inputs, out: &out, workspace: &workspace }.launch(stream)?;
        }
        inputs.clear();
        Ok(())
    }
}

impl From<kernels::KernelError> for CommError {
    fn from(error: kernels::KernelError) -> CommError {
        match error {
            kernels::KernelError::Device(error) => CommError::Device(error),
            other => CommError::Sum(other),
        }
    }
}
