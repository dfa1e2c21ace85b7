//! Tables of sums of any bytes, which a manifest vouches for. What is read is right or an error.
#![no_main]

#[allow(dead_code)] // Each fuzzer uses its own part.
mod support;

use checkpoint::{Checkpoint, TensorKey};
use libfuzzer_sys::fuzz_target;
use support::{DIR, Files, HEADER, SHARD, SUMS, manifest, shard, table};

fuzz_target!(|data: &[u8]| {
    let shard = shard(HEADER);
    let files = Files::default().with(SHARD, &shard).with(SUMS, data);
    let disk = files.committed(&manifest(shard.len() as u64, data)).disk();
    let Ok(checkpoint) = Checkpoint::open_on(disk, DIR) else { return };
    let read = checkpoint.read_tensor(&TensorKey::new("w", "param"));
    match data == table(&shard) {
        true => assert_eq!(read.unwrap(), shard[shard.len() - 24..]),
        // Another magic, version, range or length has been refused; another sum is one now.
        false => assert!(read.is_err()),
    }
});
