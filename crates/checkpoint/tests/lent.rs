//! Boxes that are read straight into memory of whoever wants them: every byte is right, none is
//! written twice, and a damaged one fails the load or comes from a copy.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use checkpoint::{
    Attempt, Checkpoint, Dtype, Error, Places, RANGE_BYTES, Region, Store, TensorKey, Wanted,
    WriteOptions,
};
use layout::Schema;
use support::mem_disk::MemDisk;
use support::{Rng, State, cut, save};

const FIRST: Attempt = Attempt { step: 7, generation: 1 };

/// Boxes in memory of the host; those of even numbers are lent.
struct Memory {
    boxes: Vec<Mutex<Vec<u8>>>,
    lent_bytes: AtomicUsize,
    put_bytes: AtomicUsize,
    /// The box that refuses to be lent.
    refuses: Option<usize>,
}

impl Memory {
    fn of(wanted: &[Wanted]) -> Memory {
        let bytes = |of: &Wanted| 4 * of.region.elements().unwrap();
        let boxes = wanted.iter().map(|of| Mutex::new(vec![0; bytes(of)])).collect();
        let (lent_bytes, put_bytes) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Memory { boxes, lent_bytes, put_bytes, refuses: None }
    }
}

impl Places for Memory {
    type Error = Error;

    fn lend(
        &self,
        of: usize,
        element: usize,
        bytes: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), Error> {
        if self.refuses == Some(of) {
            return Err(Error::NotCommitted { path: "refused".into() });
        }
        if !of.is_multiple_of(2) {
            return Ok(());
        }
        self.lent_bytes.fetch_add(bytes, Ordering::Relaxed);
        fill(&mut self.boxes[of].lock().unwrap()[4 * element..][..bytes]);
        Ok(())
    }

    fn put(&self, of: usize, element: usize, bytes: &[u8]) -> Result<(), Error> {
        self.put_bytes.fetch_add(bytes.len(), Ordering::Relaxed);
        self.boxes[of].lock().unwrap()[4 * element..][..bytes.len()].copy_from_slice(bytes);
        Ok(())
    }
}

/// Tensors of more and of less than a range, cut into boxes of two ranks, on a disk that
/// transfers 256 KiB at a time.
fn saved(rng: &mut Rng) -> (MemDisk, Store, Vec<State>) {
    let range = RANGE_BYTES as usize;
    let shapes = [vec![3, range / 4 + 77], vec![range / 4], vec![1021, 1031], vec![3], vec![0, 4]];
    let mut states: Vec<State> = Vec::new();
    for (number, shape) in shapes.iter().enumerate() {
        let mut state = State::new(&format!("t{number}"), "param", Dtype::F32, shape, rng);
        let boxes = cut(Region::whole(shape), 2, rng);
        state.boxes = boxes.into_iter().zip([0, 1, 0]).map(|(b, rank)| (rank, b)).collect();
        states.push(state);
    }
    let disk = MemDisk::new();
    disk.limit_transfers(1 << 18);
    let store = Store::on(Arc::new(disk.clone()), "/checkpoints");
    store.claim_generation().unwrap();
    let model = (Schema::default(), states.clone());
    save(&store, FIRST, 2, &model, &WriteOptions::default()).unwrap();
    (disk, store, states)
}

fn box_of(state: &State, region: Region) -> Wanted {
    Wanted { key: state.key.clone(), dtype: state.dtype, region }
}

fn state_of<'a>(states: &'a [State], key: &TensorKey) -> &'a State {
    states.iter().find(|state| state.key == *key).unwrap()
}

/// Reads boxes, all of which must be right; the bytes that were read into memory that was lent.
fn read(checkpoint: &Checkpoint, states: &[State], wanted: &[Wanted], threads: usize) -> usize {
    let memory = Memory::of(wanted);
    checkpoint.reads(wanted).unwrap().read(threads, |_| true, &memory).unwrap();
    let (lent, put) = (memory.lent_bytes.into_inner(), memory.put_bytes.into_inner());
    let mut bytes = 0;
    for (of, got) in wanted.iter().zip(memory.boxes) {
        let got = got.into_inner().unwrap();
        bytes += got.len();
        assert!(got == state_of(states, &of.key).cut(&of.region), "{} {}", of.key, of.region);
    }
    assert_eq!(lent + put, bytes, "every byte once");
    lent
}

#[test]
fn boxes_are_right_wherever_they_are_lent() {
    for seed in 0..2 {
        let mut rng = Rng(seed);
        let (_, store, states) = saved(&mut rng);
        let checkpoint = store.open(FIRST).unwrap();
        for threads in 1..4 {
            let whole = states.iter().map(|state| box_of(state, Region::whole(&state.shape)));
            let mut wanted: Vec<Wanted> = whole.collect();
            assert!(read(&checkpoint, &states, &wanted, threads) > RANGE_BYTES as usize);
            // Pieces in any order, none of which overlap.
            let cuts = |state: &State| cut(Region::whole(&state.shape), 3, &mut rng);
            let pieces: Vec<Vec<Region>> = states.iter().map(cuts).collect();
            let named = states.iter().zip(pieces);
            let mut pieces: Vec<Wanted> = named
                .flat_map(|(state, pieces)| pieces.into_iter().map(|piece| box_of(state, piece)))
                .collect();
            pieces.sort_by_key(|_| rng.next());
            read(&checkpoint, &states, &pieces, threads);
            // Bytes that two boxes want.
            wanted.extend(pieces);
            read(&checkpoint, &states, &wanted, threads);
        }
    }
}

#[test]
fn a_damaged_range_fails_the_load_unless_there_is_a_copy() {
    let mut rng = Rng(3);
    let (disk, store, states) = saved(&mut rng);
    let wanted: Vec<Wanted> =
        states.iter().map(|state| box_of(state, Region::whole(&state.shape))).collect();
    let path = format!("/checkpoints/{}", FIRST.dir_name());
    let copy = "/copy".to_owned();
    disk.copy(&path, &copy);
    for rank in 0..2 {
        let shard = format!("{path}/rank-{rank:05}/shard-000.safetensors");
        disk.tamper(&shard, |bytes| *bytes.last_mut().unwrap() ^= 4);
    }
    for threads in 1..4 {
        let checkpoint = store.open(FIRST).unwrap();
        let memory = Memory::of(&wanted);
        let read = checkpoint.reads(&wanted[..]).unwrap().read(threads, |_| true, &memory);
        let error = read.unwrap_err();
        let Error::Range { holds, .. } = &error else { panic!("{error}") };
        assert!(holds.contains(":param"), "{error}");
        let copies = [copy.clone().into()];
        let disk = Arc::new(disk.clone());
        let checkpoint = Checkpoint::open_lazily_on(disk, &path, &copies).unwrap();
        let memory = Memory::of(&wanted);
        checkpoint.reads(&wanted[..]).unwrap().read(threads, |_| true, &memory).unwrap();
        for (state, got) in states.iter().zip(memory.boxes) {
            assert!(got.into_inner().unwrap() == state.bytes, "{}", state.key);
        }
        assert_eq!(checkpoint.recovered().len(), 2);
    }
}

#[test]
fn what_refuses_to_be_lent_ends_the_load() {
    let (_, store, states) = saved(&mut Rng(4));
    let checkpoint = store.open(FIRST).unwrap();
    let wanted: Vec<Wanted> =
        states.iter().map(|state| box_of(state, Region::whole(&state.shape))).collect();
    for threads in 1..4 {
        let memory = Memory { refuses: Some(0), ..Memory::of(&wanted) };
        let read = checkpoint.reads(&wanted[..]).unwrap().read(threads, |_| true, &memory);
        assert!(matches!(read, Err(Error::NotCommitted { .. })), "{read:?}");
    }
}
