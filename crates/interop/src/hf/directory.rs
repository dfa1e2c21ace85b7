//! The tensors of a directory of safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use layout::Region;
use serde::Deserialize;

use crate::files::read_json;
use crate::{Error, Foreign, Located, Piece, SafetensorsHeader, unread};

/// Which file holds each tensor.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The one file of a small model.
pub(crate) const WHOLE: &str = "model.safetensors";

/// The index of a model of a million tensors is shorter.
const INDEX_BYTES: u64 = 1 << 28;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The tensors of a directory, by its index, or of the one file that it has.
///
/// # Errors
/// Neither is there; a file that is missing or damaged, or has not what the index says.
pub fn read_safetensors(dir: &Path) -> Result<Foreign, Error> {
    let index = dir.join(INDEX);
    if index.exists() {
        let Index { weight_map } = read_json(&index, INDEX_BYTES)?;
        return indexed(dir, &index, weight_map);
    }
    let one = match dir.join(WHOLE) {
        whole if whole.exists() => whole,
        _ => lone(dir)?,
    };
    let header = SafetensorsHeader::read(&one)?;
    let tensors = header.tensors.into_iter().map(|(name, entry)| (name, located(0, entry)));
    Foreign::new(dir, vec![one], tensors.collect())
}

/// The only safetensors file of a directory.
fn lone(dir: &Path) -> Result<PathBuf, Error> {
    let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
    let names = entries.flatten().map(|entry| entry.path());
    let all: BTreeSet<PathBuf> = names.collect();
    let ends = |path: &PathBuf, end: &str| path.extension().is_some_and(|found| found == end);
    let mut files = all.iter().filter(|path| ends(path, "safetensors"));
    match (files.next(), files.next()) {
        (Some(one), None) => Ok(one.clone()),
        (Some(_), Some(_)) => {
            let reason = format!("it has several safetensors files and no {INDEX}");
            Err(Error::refused(dir, reason))
        }
        _ => Err(Error::refused(dir, unread::why(dir).unwrap_or("it has no safetensors file"))),
    }
}

fn indexed(
    dir: &Path,
    index: &Path,
    weight_map: BTreeMap<String, String>,
) -> Result<Foreign, Error> {
    let names: BTreeSet<&String> = weight_map.values().collect();
    let mut files = Vec::with_capacity(names.len());
    let mut headers = BTreeMap::new();
    for (number, name) in names.into_iter().enumerate() {
        if name.contains('/') || name.contains("..") || name.is_empty() {
            let reason = format!("`{name}` is no file of its directory");
            return Err(Error::malformed(index, reason));
        }
        let path = dir.join(name);
        if !path.exists() {
            let of = weight_map.values().filter(|file| *file == name).count();
            let reason = format!("it is missing; {INDEX} says that it has {of} tensors");
            return Err(Error::refused(&path, reason));
        }
        headers.insert(name.clone(), (number, SafetensorsHeader::read(&path)?));
        files.push(path);
    }
    let mut tensors = BTreeMap::new();
    for (name, file) in &weight_map {
        let found = headers.get_mut(file);
        let entry =
            found.and_then(|(number, header)| Some((*number, header.tensors.remove(name)?)));
        let Some((number, entry)) = entry else {
            let reason = format!("it has no tensor `{name}`, and {INDEX} says that it has");
            return Err(Error::malformed(&dir.join(file), reason));
        };
        tensors.insert(name.clone(), located(number, entry));
    }
    // Tensors that the index leaves out are there all the same.
    for (file, (number, header)) in headers {
        for (name, entry) in header.tensors {
            if tensors.contains_key(&name) {
                let reason = format!("it has tensor `{name}`, and {INDEX} says that another has");
                return Err(Error::malformed(&dir.join(file), reason));
            }
            tensors.insert(name, located(number, entry));
        }
    }
    Foreign::new(dir, files, tensors)
}

fn located(file: usize, entry: crate::SafetensorsEntry) -> Located {
    let crate::SafetensorsEntry { dtype, shape, range } = entry;
    let region = Region::whole(&shape);
    let is_empty = shape.contains(&0);
    let piece = Piece { region, file, start: range.start, crc32: None };
    let pieces = if is_empty { Vec::new() } else { vec![piece] };
    Located { dtype, shape, pieces }
}
