//! Every activation, gradient and workspace of a micro-batch: what it is called, its shape and
//! type, and where it lies in the one arena.
//!
//! ```text
//! a block declares ─▶ Place, a handle ─▶ Places lays them out ─views(arena)─▶ tensors by handle
//! ```
//!
//! *Saved* places are each a place of their own, from the forward pass to the backward pass, and of
//! each micro-batch that is in flight.
//! *Scratch* is by name: all who declare one name use the same memory, as large as the largest of
//! them needs, under the shape that each declared.

use device::{Buffer, DType, Shape, Tensor};

use crate::ModelError;

/// The types of a model's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Types {
    /// Of activations and gradients: f32 or f64.
    pub compute: DType,
    /// Of the flat weights: as `compute`, or bf16, which is widened where it is used.
    pub weights: DType,
}

impl Types {
    /// Those of training: f32, and weights as they are stored.
    pub fn stored_as(weights: DType) -> Types {
        Types { compute: DType::F32, weights }
    }

    pub(crate) fn widens(self) -> bool {
        self.weights == DType::Bf16
    }
}

/// Shape of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MicroBatch {
    pub windows: usize,
    pub positions: usize,
}

impl MicroBatch {
    /// Token rows.
    pub fn rows(self) -> usize {
        self.windows * self.positions
    }
}

/// The use of a place, by which the printed plan sums bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    Activations,
    Gradients,
    Logits,
    Widened,
}

const USES: [(Use, &str); 4] = [
    (Use::Activations, "activations"),
    (Use::Gradients, "activation gradients and workspace"),
    (Use::Logits, "logits chunk"),
    (Use::Widened, "the largest weight as f32"),
];

/// A handle to a tensor of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place(usize);

#[derive(Debug, Clone, Copy)]
struct Planned {
    shape: Shape,
    dtype: DType,
    room: usize,
}

/// Memory that one saved place has, or all of one name.
#[derive(Debug, Clone, Copy)]
struct Room {
    /// Of scratch.
    name: Option<&'static str>,
    what: Use,
    bytes: usize,
}

impl Room {
    /// Of so many micro-batches.
    fn bytes_of(&self, in_flight: usize) -> usize {
        let copies = if self.name.is_none() { in_flight } else { 1 };
        self.bytes.saturating_mul(copies)
    }
}

/// An arena before there is memory for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Places {
    planned: Vec<Planned>,
    rooms: Vec<Room>,
}

impl Places {
    pub fn saved<const RANK: usize>(&mut self, dtype: DType, dims: [usize; RANK]) -> Place {
        self.rooms.push(Room { name: None, what: Use::Activations, bytes: 0 });
        self.place(self.rooms.len() - 1, dtype, &dims)
    }

    pub fn scratch<const RANK: usize>(
        &mut self,
        what: Use,
        name: &'static str,
        dtype: DType,
        dims: [usize; RANK],
    ) -> Place {
        let room = self.rooms.iter().position(|room| room.name == Some(name));
        let room = room.unwrap_or_else(|| {
            self.rooms.push(Room { name: Some(name), what, bytes: 0 });
            self.rooms.len() - 1
        });
        self.place(room, dtype, &dims)
    }

    fn place(&mut self, room: usize, dtype: DType, dims: &[usize]) -> Place {
        const LINE: usize = 64;
        // A plan beyond the address space says so by its size; whoever allocates it is refused.
        let bytes = dims.iter().fold(dtype.bytes(), |all, n| all.saturating_mul(*n));
        let bytes = bytes.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        self.rooms[room].bytes = self.rooms[room].bytes.max(bytes);
        let shape = Shape::new(dims).expect("places have at most three axes");
        self.planned.push(Planned { shape, dtype, room });
        Place(self.planned.len() - 1)
    }

    /// Bytes of the arena of so many micro-batches.
    pub fn bytes(&self, in_flight: usize) -> usize {
        self.by_use(in_flight).iter().fold(0, |all, (_, bytes)| all.saturating_add(*bytes))
    }

    /// Bytes of the arena by use.
    pub(crate) fn by_use(&self, in_flight: usize) -> Vec<(&'static str, usize)> {
        let of = |what: Use| {
            let rooms = self.rooms.iter().filter(|room| room.what == what);
            rooms.fold(0_usize, |all, room| all.saturating_add(room.bytes_of(in_flight)))
        };
        let uses = USES.iter().map(|&(what, name)| (name, of(what)));
        uses.filter(|(_, bytes)| *bytes > 0).collect()
    }

    /// The tensors of micro-batch `number` of so many, in the order of their handles.
    ///
    /// # Errors
    /// An arena that is smaller than the plan.
    pub fn views(
        &self,
        arena: &Buffer,
        (number, in_flight): (usize, usize),
    ) -> Result<Views, ModelError> {
        let mut starts = Vec::with_capacity(self.rooms.len());
        let mut bytes = 0_usize;
        for room in &self.rooms {
            let own = if room.name.is_none() { number.saturating_mul(room.bytes) } else { 0 };
            starts.push(bytes.saturating_add(own));
            bytes = bytes.saturating_add(room.bytes_of(in_flight));
        }
        let view = |planned: &Planned| {
            let Planned { shape, dtype, room } = planned;
            Tensor::new(arena.clone(), starts[*room] / dtype.bytes(), shape.dims(), *dtype)
        };
        Ok(Views(self.planned.iter().map(view).collect::<Result<_, _>>()?))
    }
}

/// The tensors of an arena, made once and used by every pass.
pub(crate) struct Views(Vec<Tensor>);

impl Views {
    pub fn at(&self, place: Place) -> &Tensor {
        &self.0[place.0]
    }
}

#[cfg(test)]
mod tests {
    use device::{Device, Placement};

    use super::*;

    #[test]
    fn saved_places_lie_apart_and_scratch_of_one_name_together() {
        let mut places = Places::default();
        let x = places.saved(DType::F32, [3, 5]);
        let small = places.scratch(Use::Gradients, "dx", DType::F32, [2, 4]);
        let y = places.saved(DType::U32, [1]);
        let large = places.scratch(Use::Gradients, "dx", DType::F64, [40]);
        let other = places.scratch(Use::Logits, "logits", DType::F32, [2, 2, 2]);
        assert_eq!(places.bytes(1), 64 + 320 + 64 + 64);
        assert_eq!(places.bytes(3), 3 * 64 + 320 + 3 * 64 + 64);
        let uses = [
            ("activations", 128),
            ("activation gradients and workspace", 320),
            ("logits chunk", 64),
        ];
        assert_eq!(places.by_use(1), uses);
        let alloc = |bytes| Device::cpu(1).unwrap().alloc(bytes, &Placement::Private).unwrap();
        let views = places.views(&alloc(places.bytes(1)), (0, 1)).unwrap();
        let offset = |tensor: &Tensor| tensor.offset() * tensor.dtype().bytes();
        let at = |place| (offset(views.at(place)), views.at(place).dims().to_vec());
        assert_eq!(at(x), (0, vec![3, 5]));
        assert_eq!(at(small), (64, vec![2, 4]));
        assert_eq!(at(large), (64, vec![40]));
        assert_eq!(at(y), (384, vec![1]));
        assert_eq!(at(other), (448, vec![2, 2, 2]));
        assert_eq!(views.at(large).dtype(), DType::F64);
        assert!(places.views(&alloc(256), (0, 1)).is_err());
        // The third of three has saved places of its own, and the same scratch.
        let third = places.views(&alloc(places.bytes(3)), (2, 3)).unwrap();
        assert_eq!([x, y].map(|place| offset(third.at(place))), [128, 3 * 64 + 320 + 128]);
        assert_eq!([small, other].map(|place| offset(third.at(place))), [192, 704]);
    }

    #[test]
    fn a_plan_beyond_the_address_space_has_its_size() {
        let mut places = Places::default();
        for _ in 0..8 {
            places.saved(DType::F32, [1 << 60]);
        }
        assert_eq!(places.bytes(1), usize::MAX);
    }
}
