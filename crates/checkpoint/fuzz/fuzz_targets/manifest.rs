//! Manifests of any bytes, with a `COMMIT` that vouches for them. Of one that opens, the chunks of
//! each tensor have its elements, and lie in their files and apart.
#![no_main]

#[allow(dead_code)] // Each fuzzer uses its own part.
mod support;

use checkpoint::{Checkpoint, Region};
use libfuzzer_sys::fuzz_target;
use support::{DIR, Files};

fuzz_target!(|data: &[u8]| {
    let disk = Files::default().committed(data).disk();
    let Ok(checkpoint) = Checkpoint::open_lazily_on(disk, DIR, &[]) else { return };
    let files = &checkpoint.manifest().files;
    let mut used = Vec::new();
    for tensor in checkpoint.tensors() {
        let whole = Region::whole(&tensor.shape).elements().unwrap();
        let mut held = 0;
        for chunk in &tensor.chunks {
            let elements = chunk.region().elements().unwrap();
            assert!(chunk.region().fits(&tensor.shape) && elements > 0);
            let [start, end] = chunk.range;
            assert_eq!(end - start, (elements * tensor.dtype.size_bytes()) as u64);
            assert!(end <= files[chunk.file as usize].bytes);
            used.push((chunk.file, start, end));
            held += elements;
        }
        assert_eq!(held, whole, "{}", tensor.key());
        // Its shards are not there.
        let first = Region::new(&vec![0; tensor.shape.len()], &vec![1; tensor.shape.len()]);
        if whole > 0 {
            let mut out = vec![0; tensor.dtype.size_bytes()];
            let read = checkpoint.read_box(&tensor.key(), tensor.dtype, &first, &mut out);
            assert!(read.is_err());
        }
    }
    used.sort_unstable();
    assert!(used.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1));
    let _ = checkpoint.schema();
});
