//! Directories of `HuggingFaceStorageWriter`: a safetensors file of each rank, without an index.
//!
//! ```text
//! shard-0000r-model-….safetensors   __metadata__.DCP_SHARDING_INFO   name ─▶ saved_offsets
//! ```
//! Nothing says how large a whole is, or how many files there are: a tensor reaches as far as its
//! farthest box. PyTorch reads nothing into the rest; here, a hole among the boxes is an error.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use layout::Region;
use serde::Deserialize;

use super::read::TorchCheckpoint;
use crate::{Error, Foreign, Located, Piece, SafetensorsHeader};

/// Where files say which boxes they have.
const INFO: &str = "DCP_SHARDING_INFO";

/// Of a tensor in a file.
#[derive(Deserialize)]
struct Saved {
    saved_offsets: Vec<usize>,
}

/// Opens a directory of files `shard-*.safetensors`.
///
/// # Errors
/// There are none; one is damaged, or boxes of a tensor leave a hole, overlap or differ in type.
pub fn open_dcp_safetensors(path: &Path) -> Result<TorchCheckpoint, Error> {
    let files = shards(path)?;
    if files.is_empty() {
        let reason = "it has no files `shard-….safetensors` of a distributed checkpoint";
        return Err(Error::refused(path, reason));
    }
    let (mut tensors, mut seen) = (BTreeMap::new(), BTreeSet::new());
    for (number, file) in files.iter().enumerate() {
        add(&mut tensors, &mut seen, number, file)?;
    }
    let notes = holes(&files);
    let foreign = Foreign::new(path, files, tensors)?;
    let (values, left_out) = (BTreeMap::new(), Vec::new());
    Ok(TorchCheckpoint { foreign, values, left_out, notes })
}

/// The files of ranks, in the order of their names.
fn shards(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("shard-") && name.ends_with(".safetensors") {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// Adds the boxes of a file. A box that another file has too is a replica, and counts once.
fn add(
    tensors: &mut BTreeMap<String, Located>,
    seen: &mut BTreeSet<(String, Region)>,
    number: usize,
    file: &Path,
) -> Result<(), Error> {
    let header = SafetensorsHeader::read(file)?;
    let Some(info) = header.metadata.get(INFO) else {
        let reason = format!("its `__metadata__` has no {INFO}; a distributed save writes it");
        return Err(Error::refused(file, reason));
    };
    let mut info: HashMap<String, Saved> = serde_json::from_str(info)
        .map_err(|error| Error::malformed(file, format!("{INFO}: {error}")))?;
    for (name, entry) in header.tensors {
        let refuse = |reason: String| Error::malformed(file, format!("tensor `{name}`: {reason}"));
        let Some(Saved { saved_offsets }) = info.remove(&name) else {
            return Err(refuse(format!("{INFO} has no offsets of it")));
        };
        if saved_offsets.len() != entry.shape.len() {
            let shape = &entry.shape;
            return Err(refuse(format!("it has {shape:?} at the offsets {saved_offsets:?}")));
        }
        let ends: Option<Vec<usize>> =
            saved_offsets.iter().zip(&entry.shape).map(|(a, b)| a.checked_add(*b)).collect();
        let Some(ends) = ends else {
            return Err(refuse(format!("its offsets {saved_offsets:?} are too large")));
        };
        let whole = tensors.entry(name.clone()).or_insert_with(|| Located {
            dtype: entry.dtype,
            shape: vec![0; ends.len()],
            pieces: Vec::new(),
        });
        if whole.dtype != entry.dtype || whole.shape.len() != ends.len() {
            let (dtype, axes) = (whole.dtype, whole.shape.len());
            return Err(refuse(format!(
                "it is {} of {} axes here, and {dtype} of {axes} in another file",
                entry.dtype,
                ends.len()
            )));
        }
        whole.shape.iter_mut().zip(ends).for_each(|(extent, end)| *extent = end.max(*extent));
        let region = Region { offset: saved_offsets, shape: entry.shape };
        if !region.shape.contains(&0) && seen.insert((name.clone(), region.clone())) {
            let start = entry.range.start;
            whole.pieces.push(Piece { region, file: number, start, crc32: None });
        }
    }
    Ok(())
}

/// Numbers that lack among those of the files. A rank that had nothing to write has no file, so
/// this is no error.
fn holes(files: &[PathBuf]) -> Vec<String> {
    let number = |file: &PathBuf| {
        let name = file.file_name()?.to_str()?.strip_prefix("shard-")?;
        name.split('-').next()?.parse::<u64>().ok()
    };
    let found: BTreeSet<u64> = files.iter().filter_map(number).collect();
    let mut notes = Vec::new();
    let mut last = 0;
    for number in found {
        if number > last + 1 {
            notes.push(format!(
                "no file begins with shard-{:05}, and one with shard-{number:05} does: either that \
                 rank had nothing to write, or its file is lost",
                last + 1
            ));
        }
        last = number;
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_lack_are_noted() {
        let files = |numbers: &[u64]| -> Vec<PathBuf> {
            let name = |n: &u64| format!("d/shard-{n:05}-model-00001-of-00001.safetensors").into();
            numbers.iter().map(name).collect()
        };
        assert_eq!(holes(&files(&[1, 2, 3])), [""; 0]);
        assert_eq!(holes(&files(&[2, 3, 7])).len(), 2);
        assert!(holes(&files(&[1, 3]))[0].contains("shard-00002, and one with shard-00003"));
    }
}
