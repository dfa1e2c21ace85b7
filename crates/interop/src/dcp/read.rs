//! A directory of `torch.distributed.checkpoint`: `.metadata`, and archives within its files.
//!
//! ```text
//! .metadata ─▶ chunks ─▶ (file, range) ─▶ archive ─▶ type, shape, place, sum ─▶ Foreign
//! ```
//! PyTorch loads a directory in which one rank's file is of another save, and a payload of which
//! bits were flipped. Here each chunk's archive must say what the metadata says, end where its
//! range ends, and have the sum that it keeps; `docs/pytorch-checkpoints.md` says what cannot be
//! found.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Component, Path, PathBuf};

use layout::Region;
use serde::Deserialize;

use super::archive::Archive;
use super::metadata::{Chunk, Metadata, Stored, Stretch};
use super::pickle::{Globals, Pickle};
use super::plain::{LeftOut, Plain};
use super::tensor::{self, Described};
use crate::files::{Regular, read_json};
use crate::{Error, Foreign, Located, Piece};

/// The longest `.metadata` that is read: that of some 10^7 chunks.
const METADATA_BYTES: u64 = 4_000_000_000;

/// A checkpoint of PyTorch's kind.
#[derive(Debug)]
pub struct TorchCheckpoint {
    pub foreign: Foreign,
    /// Plain values by name: steps, learning rates, and so on.
    pub values: BTreeMap<String, Plain>,
    /// Entries that are neither.
    pub left_out: Vec<LeftOut>,
    /// Remarks on things that are no errors and may be.
    pub notes: Vec<String>,
}

/// Megatron's words on how it wrote a directory.
#[derive(Deserialize)]
struct Backend {
    sharded_backend: Option<String>,
    sharded_backend_version: Option<u64>,
}

/// The longest `metadata.json` of Megatron's.
const BACKEND_BYTES: u64 = 1 << 16;

/// Refuses tensors that Megatron has written in another way than PyTorch's.
fn check_backend(dir: &Path) -> Result<(), Error> {
    let path = dir.join("metadata.json");
    if !path.exists() {
        return Ok(());
    }
    let Backend { sharded_backend, sharded_backend_version } = read_json(&path, BACKEND_BYTES)?;
    match (sharded_backend.as_deref(), sharded_backend_version) {
        (None | Some("torch_dist"), None | Some(1)) => Ok(()),
        (None | Some("torch_dist"), Some(version)) => {
            let reason = format!("sharded_backend_version is {version}, and 1 is what is read");
            Err(Error::refused(&path, reason))
        }
        (Some(other), _) => {
            let reason = format!(
                "sharded_backend is `{other}`; let Megatron write the checkpoint as torch_dist \
                 (--ckpt-convert-format torch_dist --ckpt-convert-save DIR), and import that"
            );
            Err(Error::refused(&path, reason))
        }
    }
}

/// Opens a directory that has `.metadata`; Megatron's `common.pt` is read if it is there.
///
/// # Errors
/// It is damaged, does not agree with itself, or is of a kind that is not read.
pub fn open_dcp(path: &Path) -> Result<TorchCheckpoint, Error> {
    let file_path = path.join(".metadata");
    let file = match Regular::open(&file_path) {
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::refused(path, no_metadata(path)));
        }
        file => file?,
    };
    check_backend(path)?;
    let bytes = file.read_all(METADATA_BYTES)?;
    let metadata = Metadata::read(&bytes).map_err(|reason| Error::malformed(&file_path, reason))?;
    drop(bytes);
    let mut open = Open::new(path, &file_path);
    let named = open.named(&metadata)?;
    let tensors = open.tensors(&metadata, &named)?;
    let values = open.values(&metadata, &named)?;
    open.left_out.extend(metadata.left_out);
    open.common()?;
    let notes = open.notes(&file);
    let Open { files, left_out, common, .. } = open;
    let foreign = Foreign::new(path, files, tensors)?;
    let values = values.into_iter().chain(common).collect();
    Ok(TorchCheckpoint { foreign, values, left_out, notes })
}

fn no_metadata(path: &Path) -> String {
    if path.join("__0.metadata").exists() {
        return "each rank has metadata of its own here (`use_collectives=False`), which say \
                nothing about the whole; save it with `use_collectives=True`"
            .to_owned();
    }
    "it has no `.metadata`, which PyTorch writes last: the save was not finished, or this is no \
     distributed checkpoint"
        .to_owned()
}

/// Where each entry's chunks are, by the offsets that the metadata has for them.
type Named<'m> = HashMap<&'m str, HashMap<Option<&'m [usize]>, &'m Stretch>>;

/// A checkpoint that is being opened.
struct Open<'p> {
    path: &'p Path,
    metadata_path: &'p Path,
    files: Vec<PathBuf>,
    /// Numbers of the files, by the names that the metadata has for them.
    numbers: HashMap<String, usize>,
    left_out: Vec<LeftOut>,
    common: BTreeMap<String, Plain>,
}

impl<'p> Open<'p> {
    fn new(path: &'p Path, metadata_path: &'p Path) -> Open<'p> {
        let (files, numbers, left_out) = (Vec::new(), HashMap::new(), Vec::new());
        Open { path, metadata_path, files, numbers, left_out, common: BTreeMap::new() }
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::malformed(self.metadata_path, reason)
    }

    /// Orders the places by entry, and lists all files.
    fn named<'m>(&mut self, metadata: &'m Metadata) -> Result<Named<'m>, Error> {
        let left: BTreeSet<&str> = metadata.left_out.iter().map(|left| &*left.name).collect();
        let bytes: BTreeSet<&str> = metadata.bytes.iter().map(|name| &**name).collect();
        let mut named = Named::new();
        for (name, places) in &metadata.files {
            if left.contains(&**name) {
                continue;
            }
            if !metadata.tensors.contains_key(name) && !bytes.contains(&**name) {
                return Err(self.malformed(format!("it has a place of `{name}` and no entry")));
            }
            let of_name = named.entry(name).or_default();
            for (offset, stretch) in places {
                if of_name.insert(offset.as_deref(), stretch).is_some() {
                    let offset = offset.as_deref().unwrap_or_default();
                    let reason = format!("it has two places of `{name}` at {offset:?}");
                    return Err(self.malformed(reason));
                }
                self.list(stretch, name)?;
            }
        }
        Ok(named)
    }

    /// Lists the file of a stretch, unless it is listed.
    fn list(&mut self, stretch: &Stretch, name: &str) -> Result<(), Error> {
        if self.numbers.contains_key(&stretch.file) {
            return Ok(());
        }
        if !is_below(Path::new(&stretch.file)) {
            let file = &stretch.file;
            let reason = format!("`{name}` would be in {file:?}, outside of the checkpoint");
            return Err(Error::refused(self.metadata_path, reason));
        }
        self.numbers.insert(stretch.file.clone(), self.files.len());
        self.files.push(self.path.join(&stretch.file));
        Ok(())
    }

    /// Opens an archive. The file stays open in `last`: one at a time, as there may be more than a
    /// process may have open.
    fn archive<'o>(
        &self,
        last: &'o mut Option<(usize, Regular)>,
        stretch: &Stretch,
        name: &str,
    ) -> Result<Archive<'o>, Error> {
        if !stretch.codecs.is_empty() {
            let (name, codecs) = (name.to_owned(), stretch.codecs.join(", "));
            let reason = format!("its bytes went through {codecs}; save it without extensions");
            return Err(Error::Tensor { name, reason });
        }
        let number = self.numbers[&stretch.file];
        let file = match last.take() {
            Some((before, file)) if before == number => file,
            _ => Regular::open(&self.files[number])?,
        };
        let (_, file) = last.insert((number, file));
        Archive::open(file, stretch.range.clone()).map_err(|error| of_tensor(name, error))
    }

    fn tensors(
        &self,
        metadata: &Metadata,
        named: &Named,
    ) -> Result<BTreeMap<String, Located>, Error> {
        let nowhere = HashMap::new();
        let mut tensors = BTreeMap::new();
        // In the order of the files, so that disks read ahead.
        let mut todo = Vec::new();
        for (name, stored) in &metadata.tensors {
            let places = named.get(&**name).unwrap_or(&nowhere);
            let wanted = self.chunks(name, stored, places)?;
            todo.extend(wanted.into_iter().map(|(region, stretch)| (name, region, stretch)));
            let Stored { dtype, shape, .. } = stored;
            let located = Located { dtype: *dtype, shape: shape.clone(), pieces: Vec::new() };
            tensors.insert(name.clone(), located);
        }
        todo.sort_by_key(|(_, _, stretch)| (self.numbers[&stretch.file], stretch.range.start));
        let mut last = None;
        for (name, region, stretch) in todo {
            let archive = self.archive(&mut last, stretch, name)?;
            let file = self.numbers[&stretch.file];
            let piece = piece(&archive, &metadata.tensors[name], region, file)
                .map_err(|error| of_tensor(name, error))?;
            if let (Some(piece), Some(tensor)) = (piece, tensors.get_mut(name)) {
                tensor.pieces.push(piece);
            }
        }
        for tensor in tensors.values_mut() {
            tensor.pieces.sort_by(|a, b| a.region.offset.cmp(&b.region.offset));
        }
        Ok(tensors)
    }

    /// The boxes of a tensor, and where each is. Replicas count once.
    fn chunks<'m>(
        &self,
        name: &str,
        stored: &'m Stored,
        places: &HashMap<Option<&'m [usize]>, &'m Stretch>,
    ) -> Result<Vec<(Region, &'m Stretch)>, Error> {
        let refuse = |reason| Err(Error::Tensor { name: name.to_owned(), reason });
        let chunks: BTreeSet<&Chunk> = stored.chunks.iter().collect();
        let mut offsets = BTreeSet::new();
        let mut found = Vec::new();
        for chunk in &chunks {
            let Chunk { offsets: offset, sizes } = chunk;
            let Some(more) = offset.len().checked_sub(sizes.len()) else {
                return refuse(format!("a chunk at {offset:?} has extents {sizes:?}"));
            };
            if offset.len() != stored.shape.len() {
                let shape = &stored.shape;
                return refuse(format!("a chunk is at {offset:?}, and the whole is {shape:?}"));
            }
            let extents = [&vec![1; more][..], sizes].concat();
            let Some(stretch) = places.get(&Some(&offset[..])) else {
                return refuse(format!("{:?} has no place for its chunk at {offset:?}", self.path));
            };
            offsets.insert(&offset[..]);
            found.push((Region::new(offset, &extents), *stretch));
        }
        let strays = places.keys().find(|key| key.is_none_or(|key| !offsets.contains(key)));
        if let Some(key) = strays {
            return refuse(format!("there is a place of a chunk at {key:?}, which is none of its"));
        }
        if let Some(reason) = sticks_out(&stored.shape, &found) {
            return refuse(reason);
        }
        Ok(found)
    }

    /// Entries that are no tensors.
    fn values(
        &mut self,
        metadata: &Metadata,
        named: &Named,
    ) -> Result<BTreeMap<String, Plain>, Error> {
        let (mut values, mut last) = (BTreeMap::new(), None);
        for name in &metadata.bytes {
            let places = named.get(&**name).map(|places| places.values().collect::<Vec<_>>());
            let [stretch] = places.as_deref().unwrap_or_default() else {
                return Err(self.malformed(format!("entry `{name}` has no place, or several")));
            };
            let archive = self.archive(&mut last, stretch, name)?;
            let pickle = archive.pickle().map_err(|error| of_tensor(name, error))?;
            let read = Plain::read(&pickle)
                .map_err(|error| archive.damaged(format!("`{name}`: {error}")))?;
            values.extend(take(name, read, &mut self.left_out).map(|value| (name.clone(), value)));
        }
        Ok(values)
    }

    /// Megatron's values that all ranks have in common, each under its own key.
    fn common(&mut self) -> Result<(), Error> {
        let path = self.path.join("common.pt");
        if !path.exists() {
            return Ok(());
        }
        let file = Regular::open(&path)?;
        let archive = Archive::open(&file, 0..file.bytes)?;
        let read = Plain::read(&archive.pickle()?)
            .map_err(|error| Error::malformed(&path, error.to_string()))?;
        if let Some(value) = take("common", read, &mut self.left_out) {
            self.common.insert("common".to_owned(), value);
        }
        Ok(())
    }

    /// PyTorch writes the metadata last: a file that is younger was written after it.
    fn notes(&self, metadata: &Regular) -> Vec<String> {
        let last = metadata.file.metadata().and_then(|found| found.modified());
        let Ok(last) = last else { return Vec::new() };
        let is_younger = |file: &&PathBuf| {
            let time = std::fs::metadata(file).and_then(|found| found.modified());
            time.is_ok_and(|time| time > last)
        };
        let note = |file: &PathBuf| {
            format!(
                "{} was written after .metadata: by a copy, or by a save into the same directory \
                 that was not finished. The latter may mix two steps",
                file.display()
            )
        };
        self.files.iter().filter(is_younger).map(note).collect()
    }
}

/// Chunks of no elements prove nothing by their elements; they, too, must lie in the whole, and
/// those of a whole of no elements must reach its end.
fn sticks_out(shape: &[usize], chunks: &[(Region, &Stretch)]) -> Option<String> {
    let outside = chunks.iter().find(|(region, _)| !region.fits(shape));
    if let Some((region, _)) = outside {
        return Some(format!("the chunk {region} is outside of {shape:?}"));
    }
    let reach = |axis: usize| {
        let ends = chunks.iter().map(|(region, _)| region.offset[axis] + region.shape[axis]);
        ends.max().unwrap_or(0)
    };
    let hull: Vec<usize> = (0..shape.len()).map(reach).collect();
    let is_short = shape.contains(&0) && hull != shape;
    is_short.then(|| format!("it is {shape:?}, and its chunks reach {hull:?}"))
}

/// Looks into the archive of a chunk. Chunks of no elements are no pieces.
fn piece(
    archive: &Archive,
    stored: &Stored,
    region: Region,
    file: usize,
) -> Result<Option<Piece>, Error> {
    let found = tensor_of(archive)?;
    let (dtype, shape) = (found.dtype, &found.shape);
    if dtype != stored.dtype || without_ones(shape) != without_ones(&region.shape) {
        return Err(archive.damaged(format!(
            "it holds {dtype} {shape:?}, and the metadata says {} {region}; the file is of another \
             save",
            stored.dtype
        )));
    }
    let (start, crc32) = locate(archive, &found)?;
    let has_elements = !region.shape.contains(&0);
    Ok(has_elements.then_some(Piece { region, file, start, crc32 }))
}

/// The tensor that is all of an archive.
pub(crate) fn tensor_of(archive: &Archive) -> Result<Described, Error> {
    let bytes = archive.pickle()?;
    let pickle = Pickle::read(&bytes, Globals::Only(&tensor::GLOBALS))
        .map_err(|error| archive.damaged(error.to_string()))?;
    tensor::describe(&pickle, pickle.root()).map_err(|reason| archive.refused(reason))
}

/// Where a tensor's elements begin in the file, and their sum. The sum is of the whole storage:
/// where the tensor is a part of that, all of it is summed at once.
pub(crate) fn locate(archive: &Archive, found: &Described) -> Result<(u64, Option<u32>), Error> {
    let Described { dtype, shape, key, storage_bytes, start } = found;
    let name = format!("data/{key}");
    let place = archive.place(&name)?;
    if place.bytes != *storage_bytes {
        let has = place.bytes;
        return Err(archive.damaged(format!("`{name}` has {has} bytes, not {storage_bytes}")));
    }
    let elements = layout::region::elements(shape).unwrap_or(0) as u64;
    let is_whole = *start == 0 && elements * dtype.size_bytes() as u64 == place.bytes;
    if !is_whole {
        archive.verify(&name)?;
    }
    Ok((place.start + start, is_whole.then_some(place.crc32)))
}

/// A value that was read, with what was left out of it told under its name.
pub(crate) fn take(
    name: &str,
    (value, left): (Option<Plain>, Vec<LeftOut>),
    left_out: &mut Vec<LeftOut>,
) -> Option<Plain> {
    left_out.extend(left.into_iter().map(|LeftOut { name: below, reason }| {
        let name = match below.is_empty() {
            true => name.to_owned(),
            false => format!("{name}.{below}"),
        };
        LeftOut { name, reason }
    }));
    value
}

/// Says of which tensor an archive is.
fn of_tensor(name: &str, error: Error) -> Error {
    match error {
        Error::Malformed { path, reason } => {
            Error::Malformed { path, reason: format!("tensor `{name}`: {reason}") }
        }
        Error::Refused { path, reason } => {
            Error::Refused { path, reason: format!("tensor `{name}`: {reason}") }
        }
        Error::Sum { path, start, end, tensor, expected, actual } => {
            let tensor = format!("{tensor} of `{name}`");
            Error::Sum { path, start, end, tensor, expected, actual }
        }
        other => other,
    }
}

/// A shape from its first axis of other than one index on: leading ones say nothing.
fn without_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|&&extent| extent == 1).count();
    &shape[ones..]
}

/// Whether a path leads nowhere but down.
fn is_below(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests;
