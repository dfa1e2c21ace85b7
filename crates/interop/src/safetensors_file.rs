//! The header of one safetensors file: which tensors it has, and where their bytes lie.
//!
//! The header's JSON is read by the `safetensors` crate, which proves that the tensors' bytes
//! follow each other without holes and are as many as types and shapes say. The data are not read.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use layout::Dtype;
use safetensors::tensor::Metadata;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, Visitor};

use crate::Error;
use crate::files::Regular;

/// Bytes that say how long the header is.
const LENGTH_BYTES: u64 = 8;

/// The longest header that safetensors allows.
const HEADER_BYTES: u64 = 100_000_000;

/// A file's tensors and its own words about them.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetensorsHeader {
    pub tensors: BTreeMap<String, SafetensorsEntry>,
    /// `__metadata__`; empty where there is none.
    pub metadata: BTreeMap<String, String>,
}

/// A tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetensorsEntry {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Bytes of the file that are its elements.
    pub range: Range<u64>,
}

impl SafetensorsHeader {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// The file cannot be read, is damaged, longer or shorter than its header says, or has a tensor
    /// of a type that Muster has not.
    pub fn read(path: &Path) -> Result<SafetensorsHeader, Error> {
        let file = Regular::open(path)?;
        let mut length = [0; LENGTH_BYTES as usize];
        length.copy_from_slice(&file.read(0, LENGTH_BYTES)?);
        let length = u64::from_le_bytes(length);
        let room = file.bytes - LENGTH_BYTES;
        if length > room.min(HEADER_BYTES) {
            let reason = format!(
                "its header would have {length} bytes; {room} follow, and at most {HEADER_BYTES} \
                 are allowed"
            );
            return Err(Error::malformed(path, reason));
        }
        SafetensorsHeader::parse(path, &file.read(LENGTH_BYTES, length)?, file.bytes)
    }

    /// Reads the JSON of a header that is known to lie at byte 8 of a file of `file_bytes`.
    ///
    /// # Errors
    /// As [`SafetensorsHeader::read`]; the path is for messages alone.
    pub fn parse(path: &Path, json: &[u8], file_bytes: u64) -> Result<SafetensorsHeader, Error> {
        let malformed = |reason: String| Error::malformed(path, reason);
        let header: Metadata = serde_json::from_slice(json)
            .map_err(|error| malformed(format!("its header is not of safetensors: {error}")))?;
        if let Some(name) = repeated(json) {
            return Err(malformed(format!("its header has tensor `{name}` twice")));
        }
        let start = LENGTH_BYTES + json.len() as u64;
        let end = start.checked_add(header.data_len() as u64);
        if end != Some(file_bytes) {
            let data = header.data_len();
            let reason = format!(
                "it has {file_bytes} bytes; its header says {data} of data from byte {start} on"
            );
            return Err(malformed(reason));
        }
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors() {
            let theirs = info.dtype.to_string();
            let Some(dtype) = Dtype::ALL.into_iter().find(|ours| ours.name() == theirs) else {
                let all = Dtype::ALL.map(Dtype::name).join(", ");
                let reason = format!(
                    "tensor `{name}` is of type {theirs}; what can be read is {all}. Convert or \
                     remove it first"
                );
                return Err(Error::refused(path, reason));
            };
            let (first, last) = info.data_offsets;
            let range = start + first as u64..start + last as u64;
            tensors.insert(name, SafetensorsEntry { dtype, shape: info.shape.clone(), range });
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(SafetensorsHeader { tensors, metadata })
    }
}

/// The first key that an object has twice: of these the crate keeps the last and says nothing.
fn repeated(json: &[u8]) -> Option<String> {
    struct Keys;

    impl<'de> Visitor<'de> for Keys {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut seen = BTreeSet::new();
            while let Some((key, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                if seen.contains(&key) {
                    return Ok(Some(key));
                }
                seen.insert(key);
            }
            Ok(None)
        }
    }
    serde_json::Deserializer::from_slice(json).deserialize_map(Keys).ok().flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend(vec![0; data]);
        bytes
    }

    fn read(bytes: &[u8]) -> Result<SafetensorsHeader, Error> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        SafetensorsHeader::read(file.path())
    }

    const TWO: &str = r#"{"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,3],
        "data_offsets":[0,24]},"y":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}}"#;

    #[test]
    fn tensors_are_found_where_they_lie() {
        let header = read(&file(TWO, 26)).unwrap();
        let start = 8 + TWO.len() as u64;
        let x = SafetensorsEntry { dtype: Dtype::F32, shape: vec![2, 3], range: start..start + 24 };
        let range = start + 24..start + 26;
        let y = SafetensorsEntry { dtype: Dtype::Bf16, shape: vec![], range };
        assert_eq!(header.tensors, BTreeMap::from([("x".into(), x), ("y".into(), y)]));
        assert_eq!(header.metadata, BTreeMap::from([("a".into(), "b".into())]));
    }

    #[test]
    fn files_that_contradict_themselves_are_refused() {
        let twice = TWO.replace(r#""y""#, r#""x""#);
        let hole = TWO.replace("24,26", "25,27");
        let four_bits = r#"{"x":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#;
        let empty = r#"{"x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},
            "x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
        let mut long = file(TWO, 26);
        long[..8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
        let told = [
            (file(TWO, 25), "its header says 26 of data"),
            (file(TWO, 27), "its header says 26 of data"),
            (file(&twice, 26), "not of safetensors"),
            (file(empty, 0), "`x` twice"),
            (file(&hole, 27), "not of safetensors"),
            (file(four_bits, 1), "of type F4"),
            (long, "at most 100000000"),
            (vec![1; 7], "it has 7 bytes"),
        ];
        for (bytes, wanted) in told {
            let told = read(&bytes).unwrap_err().to_string();
            assert!(told.contains(wanted), "{told}");
        }
        let told = SafetensorsHeader::read(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(told.contains("no regular file"), "{told}");
    }

    proptest! {
        #[test]
        fn mangled_headers_are_read_or_refused(
            places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        ) {
            let mut bytes = file(TWO, 26);
            for (place, value) in places {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if let Ok(header) = read(&bytes) {
                for entry in header.tensors.values() {
                    prop_assert!(entry.range.end <= bytes.len() as u64);
                }
            }
        }
    }
}
