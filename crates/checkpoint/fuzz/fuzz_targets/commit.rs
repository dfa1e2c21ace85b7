//! `COMMIT` of any bytes, as they are and with a sum that fits them. None but the right one opens.
#![no_main]

#[allow(dead_code)] // Each fuzzer uses its own part.
mod support;

use checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;
use support::{DIR, Files, HEADER, SHARD, SUMS, manifest, shard, summed, table};

fuzz_target!(|data: &[u8]| {
    let shard = shard(HEADER);
    let sums = table(&shard);
    let manifest = manifest(shard.len() as u64, &sums);
    let files = Files::default().with(SHARD, &shard).with(SUMS, &sums).committed(&manifest);
    let right = files.clone().disk();
    assert!(Checkpoint::open_on(right, DIR).is_ok());
    for commit in [data.to_vec(), summed(data)] {
        let opened = Checkpoint::open_on(files.clone().with("COMMIT", &commit).disk(), DIR);
        if let Ok(opened) = opened {
            // Whatever spelling was taken, it named this manifest.
            assert_eq!(opened.manifest_blake3(), checkpoint::Digest::of(&manifest));
            assert!(commit.starts_with(b"muster-checkpoint 1\n"));
        }
    }
});
