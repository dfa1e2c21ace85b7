//! Headers of shards of any bytes, with sums and a manifest that vouch for them. Whatever is whole
//! to `verify`, the library of the format loads, with the tensor that the manifest has.
#![no_main]

#[allow(dead_code)] // Each fuzzer uses its own part.
mod support;

use checkpoint::verify_on;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use support::{DIR, Files, SHARD, SUMS, manifest, shard, table};

fuzz_target!(|data: &[u8]| {
    // As the writer would wrap it, and as it is, its length included.
    let mut raw = data.to_vec();
    raw.resize(data.len().max(24), 0);
    for shard in [shard(data), raw] {
        let sums = table(&shard);
        let files = Files::default().with(SHARD, &shard).with(SUMS, &sums);
        let disk = files.committed(&manifest(shard.len() as u64, &sums)).disk();
        let report = verify_on(disk, DIR, true).unwrap();
        if report.is_whole() {
            let read = SafeTensors::deserialize(&shard).expect("what is whole is valid");
            let view = read.tensor("w:param[0,0]").unwrap();
            assert_eq!((view.shape(), view.data()), (&[2, 3][..], &shard[shard.len() - 24..]));
        }
    }
});
