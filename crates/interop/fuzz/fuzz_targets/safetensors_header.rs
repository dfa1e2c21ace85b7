//! Headers of safetensors files of any bytes.
#![no_main]

use std::path::Path;

use interop::SafetensorsHeader;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The file's length: of the header alone, and of one with some data.
    for data_bytes in [0, 24] {
        let file_bytes = 8 + data.len() as u64 + data_bytes;
        if let Ok(header) = SafetensorsHeader::parse(Path::new("x"), data, file_bytes) {
            for entry in header.tensors.values() {
                assert!(entry.range.start <= entry.range.end && entry.range.end <= file_bytes);
            }
        }
    }
});
