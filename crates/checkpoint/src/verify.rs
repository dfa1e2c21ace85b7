//! Reading a checkpoint through: every byte of every file against what is recorded of it.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use crate::disk::{Disk, Kind, OsDisk, exists, read_exact_at};
use crate::shard::ALIGN_BYTES;
use crate::verified::has_no_commit;
use crate::{Checkpoint, Digest, Dtype, Error, names};

/// The result of reading a checkpoint through.
#[derive(Debug)]
pub struct VerifyReport {
    pub path: PathBuf,
    pub shards: usize,
    pub state_tensors: usize,
    /// Bytes of shards read.
    pub bytes: u64,
    /// 4 MiB ranges summed.
    pub ranges: usize,
    /// With `deep`: the BLAKE3 digest of each shard in order, recorded or not.
    pub data_blake3: Vec<Digest>,
    /// With `deep`: how many shards had a recorded digest to compare.
    pub digests_compared: usize,
    /// Files that the manifest does not know; readers pass them over.
    pub strangers: Vec<PathBuf>,
    /// All that is wrong, or could not be read: [`Error::is_damage`] tells these apart.
    pub problems: Vec<Error>,
}

impl VerifyReport {
    /// True where nothing is wrong.
    pub fn is_whole(&self) -> bool {
        self.problems.is_empty()
    }
}

/// Reads every byte of a checkpoint. `deep` also hashes the data by BLAKE3 and compares where the
/// save recorded digests. What is wrong with the checkpoint is reported, not an error.
///
/// # Errors
/// The directory cannot be read.
pub fn verify(path: impl AsRef<Path>, deep: bool) -> Result<VerifyReport, Error> {
    verify_on(Arc::new(OsDisk), path, deep)
}

/// As [`verify`], on another disk.
///
/// # Errors
/// As [`verify`].
pub fn verify_on(
    disk: Arc<dyn Disk>,
    path: impl AsRef<Path>,
    deep: bool,
) -> Result<VerifyReport, Error> {
    let path = path.as_ref();
    disk.list(path).map_err(Error::io(disk.as_ref(), "list", path))?;
    let report = match Checkpoint::open_on(Arc::clone(&disk), path) {
        Ok(checkpoint) => verify_checkpoint(&checkpoint, deep)?,
        Err(problem) => VerifyReport { problems: vec![problem], ..empty(path) },
    };
    // A run removes its older checkpoints, at any moment.
    let was_there = |problem: &Error| matches!(problem, Error::MissingFile { .. });
    let is_gone = || disk.list(path).is_err() || !matches!(exists(disk.as_ref(), path), Ok(true));
    let removed = report.problems.iter().any(|problem| matches!(problem, Error::Removed { .. }))
        || (report.problems.iter().any(was_there) && has_no_commit(disk.as_ref(), path))
        || (!report.problems.is_empty() && is_gone());
    match removed {
        true => Err(Error::Removed { path: path.to_path_buf() }),
        false => Ok(report),
    }
}

fn empty(path: &Path) -> VerifyReport {
    VerifyReport {
        path: path.to_path_buf(),
        shards: 0,
        state_tensors: 0,
        bytes: 0,
        ranges: 0,
        data_blake3: Vec::new(),
        digests_compared: 0,
        strangers: Vec::new(),
        problems: Vec::new(),
    }
}

/// Reads every byte of an open checkpoint.
pub(crate) fn verify_checkpoint(
    checkpoint: &Checkpoint,
    deep: bool,
) -> Result<VerifyReport, Error> {
    let mut report = empty(checkpoint.path());
    report.state_tensors = checkpoint.tensors().len();
    // Small checkpoints need less, and a run that reads its own beside training has it to spare.
    let files = 0..checkpoint.manifest().files.len();
    let longest = files.flat_map(|file| checkpoint.ranges(file)).map(|(_, count)| count).max();
    let mut buffer = vec![0; longest.unwrap_or(0)];
    for (file, record) in checkpoint.manifest().files.iter().enumerate() {
        report.shards += 1;
        let mut digest = deep.then(blake3::Hasher::new);
        let mut whole = true;
        if let Err(problem) = checkpoint.shard(file) {
            report.problems.push(problem);
            continue;
        }
        for (number, count) in checkpoint.ranges(file) {
            let bytes = &mut buffer[..count];
            if let Err(problem) = checkpoint.read_range(file, number, bytes) {
                report.problems.push(problem);
                whole = false;
            }
            if let Some(digest) = &mut digest {
                digest.update(bytes);
            }
            report.ranges += 1;
            report.bytes += count as u64;
        }
        if whole && let Err(problem) = check_header(checkpoint, file) {
            report.problems.push(problem);
        }
        let Some(digest) = digest else { continue };
        let actual = Digest(*digest.finalize().as_bytes());
        report.data_blake3.push(actual);
        if let Some(expected) = record.data_blake3 {
            report.digests_compared += 1;
            // Where a range has failed already, the digest says nothing more.
            if whole && expected != actual {
                let path = checkpoint.path().join(&record.path);
                report.problems.push(Error::FileDigest { path, expected, actual });
            }
        }
    }
    report.strangers = strangers(checkpoint)?;
    Ok(report)
}

/// The value of a chunk's key in a safetensors header.
#[derive(Debug, PartialEq, Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The safetensors header says what the manifest says.
fn check_header(checkpoint: &Checkpoint, file: usize) -> Result<(), Error> {
    let manifest = checkpoint.manifest();
    let record = &manifest.files[file];
    let path = || checkpoint.path().join(&record.path);
    let wrong = |reason: String| Error::ShardHeader { path: path(), reason };
    let shard = checkpoint.shard(file)?;
    let read = |out: &mut [u8], offset: u64| {
        let failed = |error| Error::io(checkpoint.files.disk.as_ref(), "read", &path())(error);
        read_exact_at(shard.as_ref(), out, offset).map_err(failed)
    };
    let mut length = [0; 8];
    read(&mut length, 0)?;
    let data_start = u64::from_le_bytes(length).saturating_add(8);
    if data_start > record.bytes || !data_start.is_multiple_of(ALIGN_BYTES) {
        return Err(wrong(format!("its data would begin at byte {data_start}")));
    }
    let mut json = vec![0; data_start as usize - 8];
    read(&mut json, 8)?;
    let parsed: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
    let mut left = parsed.len() - usize::from(parsed.contains_key("__metadata__"));
    let mut data_bytes = 0;
    for tensor in &manifest.tensors {
        for chunk in tensor.chunks.iter().filter(|chunk| chunk.file as usize == file) {
            let name = tensor.key().chunk_name(&chunk.region());
            let entry = parsed.get(&name).ok_or_else(|| wrong(format!("it has no `{name}`")))?;
            let entry = Entry::deserialize(entry).map_err(|e| wrong(format!("`{name}`: {e}")))?;
            let [start, end] = chunk.range.map(|at| at.saturating_sub(data_start));
            let (dtype, shape) = (tensor.dtype, chunk.shape.clone());
            if entry != (Entry { dtype, shape, data_offsets: [start, end] }) {
                return Err(wrong(format!("`{name}` is {entry:?}, not as in the manifest")));
            }
            left = left.saturating_sub(1);
            data_bytes += end - start;
        }
    }
    if left > 0 || data_start + data_bytes != record.bytes {
        return Err(wrong(format!("{left} of its tensors are not in the manifest")));
    }
    Ok(())
}

/// The files in the directory that the manifest does not know. A rank's directory may be a link.
fn strangers(checkpoint: &Checkpoint) -> Result<Vec<PathBuf>, Error> {
    let mut known: HashSet<PathBuf> = [names::MANIFEST, names::COMMIT].map(PathBuf::from).into();
    let mut known_dirs = HashSet::new();
    for file in &checkpoint.manifest().files {
        known.extend([PathBuf::from(&file.path), PathBuf::from(file.sums_path())]);
        known_dirs.extend(Path::new(&file.path).parent().map(Path::to_path_buf));
    }
    let mut found = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let (disk, dir) = (checkpoint.files.disk.as_ref(), checkpoint.path().join(&relative));
        for entry in disk.list(&dir).map_err(Error::io(disk, "list", &dir))? {
            let path = relative.join(&entry.name);
            match entry.kind {
                Kind::Dir => pending.push(path),
                Kind::Link if known_dirs.contains(&path) => pending.push(path),
                _ if known.contains(&path) => {}
                _ => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}
