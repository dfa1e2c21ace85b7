//! Files of which other directories hold copies: what is damaged or gone where a checkpoint lies is
//! read from there, held to the same sums, and told.

use std::fs;
use std::path::{Path, PathBuf};

use checkpoint::{
    Attempt, Checkpoint, Chunk, Dtype, Error, ExpectedTensor, RunState, Store, TensorKey,
    WriteOptions, slabs,
};

/// Some more than three ranges of a file of each of two ranks.
const ELEMENTS: usize = 6 << 20;
const ATTEMPT: Attempt = Attempt { step: 3, generation: 1 };

fn bytes() -> Vec<u8> {
    (0..4 * ELEMENTS).map(|i| ((i * 2_654_435_761) >> 9) as u8).collect()
}

/// A tensor that two ranks have saved; its directory.
fn saved(root: &Path) -> PathBuf {
    fs::create_dir_all(root).unwrap();
    let (store, data) = (Store::new(root), bytes());
    let (key, shape) = (TensorKey::new("t", "param"), [ELEMENTS]);
    let halves = slabs(&shape, ELEMENTS / 2);
    let reports: Vec<_> = (0..2_u32)
        .map(|rank| {
            let half = &data[rank as usize * 2 * ELEMENTS..][..2 * ELEMENTS];
            let region = halves[rank as usize].clone();
            let chunk = Chunk::new(key.clone(), Dtype::F32, &shape, region, half);
            store.write_rank(ATTEMPT, rank, 2, &[chunk], &WriteOptions::default()).unwrap()
        })
        .collect();
    let expected = [ExpectedTensor { key, dtype: Dtype::F32, global_shape: shape.to_vec() }];
    let state = RunState { step: ATTEMPT.step, ..RunState::default() };
    store.commit(ATTEMPT, &layout::Schema::default(), &expected, &reports, &state).unwrap().path
}

fn copied(from: &Path, to: PathBuf) -> PathBuf {
    fs::create_dir_all(&to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        match path.is_dir() {
            true => drop(copied(&path, to.join(name))),
            false => drop(fs::copy(path, to.join(name)).unwrap()),
        }
    }
    to
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn whatever_of_a_file_cannot_be_had_comes_from_a_copy_and_is_told() {
    let root = tempfile::tempdir().unwrap();
    let path = saved(&root.path().join("a"));
    let copy = copied(&path, root.path().join("b").join(ATTEMPT.dir_name()));
    let shard = |dir: &Path, rank: u32| dir.join(format!("rank-{rank:05}/shard-000.safetensors"));
    let key = TensorKey::new("t", "param");
    let copies = [root.path().join("none"), copy.clone()];
    // A bit, a table and a whole file.
    flip(&shard(&path, 0), 5 << 20);
    fs::write(path.join("rank-00000/shard-000.sums"), "x").unwrap();
    fs::remove_file(shard(&path, 1)).unwrap();
    let alone = Checkpoint::open(&path).unwrap_err();
    assert!(matches!(alone, Error::FileLength { .. }), "{alone}");

    let checkpoint = Checkpoint::open_with_copies(&path, &copies).unwrap();
    assert!(checkpoint.read_tensor(&key).unwrap() == bytes());
    let told = checkpoint.recovered();
    let says = |words: &str| told.iter().any(|line| line.contains(words));
    assert!(says("rank-00000/shard-000.sums has 1 bytes instead of "), "{told:#?}");
    assert!(says("damaged in bytes 4194304..8388608, which hold t:param (elements "), "{told:#?}");
    assert!(says("rank-00001/shard-000.safetensors is missing"), "{told:#?}");
    let end = format!("; the copy in {} serves instead", copy.display());
    assert!(told.iter().all(|line| line.ends_with(&end)), "{told:#?}");
    assert_eq!(checkpoint.recovered(), Vec::<String>::new(), "each is told once");

    // A copy is held to the same sums.
    flip(&shard(&copy, 0), 6 << 20);
    let checkpoint = Checkpoint::open_lazily_with_copies(&path, &copies).unwrap();
    let error = checkpoint.read_tensor(&key).unwrap_err();
    assert!(matches!(&error, Error::Range { path: at, .. } if *at == shard(&path, 0)), "{error}");
}
