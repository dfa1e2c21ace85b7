//! Reading a checkpoint through: every byte of every file against what is recorded of it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::disk::{Disk, Kind, exists, read_exact_at};
use crate::manifest::{ChunkRecord, StateTensor};
use crate::shard::{ALIGN_BYTES, MAX_DATA_START};
use crate::verified::has_no_commit;
use crate::{Anywhere, Checkpoint, Digest, Dtype, Error, names};

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
    verify_on(Arc::new(Anywhere), path, deep)
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
        Ok(checkpoint) => {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            verify_checkpoint(&checkpoint, deep, threads)?
        }
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

/// Reads every byte of an open checkpoint, on several threads of 4 MiB each.
pub(crate) fn verify_checkpoint(
    checkpoint: &Checkpoint,
    deep: bool,
    threads: usize,
) -> Result<VerifyReport, Error> {
    let mut report = empty(checkpoint.path());
    report.state_tensors = checkpoint.tensors().len();
    let files = 0..checkpoint.manifest().files.len();
    let mut unopened: Vec<Option<Error>> = files.map(|file| checkpoint.shard(file).err()).collect();
    // A digest is of a whole file, in order.
    let step = if deep { usize::MAX } else { PIECE_RANGES };
    let mut pieces = Vec::new();
    for file in (0..unopened.len()).filter(|&file| unopened[file].is_none()) {
        let count = checkpoint.ranges(file).count();
        let starts = (0..count.max(1)).step_by(step);
        pieces.extend(starts.map(|start| (file, start..start.saturating_add(step).min(count))));
    }
    let chunks = chunks_by_file(checkpoint);
    let mut read = read_pieces(checkpoint, &pieces, deep, threads).into_iter().peekable();
    for (file, unopened) in unopened.iter_mut().enumerate() {
        report.shards += 1;
        if let Some(problem) = unopened.take() {
            report.problems.push(problem);
            continue;
        }
        let (before, mut digest) = (report.problems.len(), None);
        while let Some(piece) = read.next_if(|piece| piece.file == file) {
            report.ranges += piece.ranges;
            report.bytes += piece.bytes;
            report.problems.extend(piece.problems);
            digest = piece.digest;
        }
        let whole = report.problems.len() == before;
        if whole && let Err(problem) = check_header(checkpoint, file, &chunks[file]) {
            report.problems.push(problem);
        }
        compare(checkpoint, (file, digest), whole, &mut report);
    }
    report.strangers = strangers(checkpoint)?;
    Ok(report)
}

/// Compares the digest of a file with the recorded one, where both are there.
fn compare(
    checkpoint: &Checkpoint,
    (file, digest): (usize, Option<Digest>),
    whole: bool,
    report: &mut VerifyReport,
) {
    let Some(actual) = digest else { return };
    report.data_blake3.push(actual);
    let record = &checkpoint.manifest().files[file];
    let Some(expected) = record.data_blake3 else { return };
    report.digests_compared += 1;
    // Where a range has failed already, the digest says nothing more.
    if whole && expected != actual {
        let path = checkpoint.path().join(&record.path);
        report.problems.push(Error::FileDigest { path, expected, actual });
    }
}

/// Ranges that a thread takes at a time.
const PIECE_RANGES: usize = 16;

/// Some ranges of one file that have been read.
struct Piece {
    file: usize,
    ranges: usize,
    bytes: u64,
    digest: Option<Digest>,
    problems: Vec<Error>,
}

/// Reads all pieces, and gives them in order.
fn read_pieces(
    checkpoint: &Checkpoint,
    pieces: &[(usize, Range<usize>)],
    deep: bool,
    threads: usize,
) -> Vec<Piece> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut done, mut buffer) = (Vec::new(), Vec::new());
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((file, ranges)) = pieces.get(number) else { return done };
            done.push((number, read_piece(checkpoint, *file, ranges.clone(), deep, &mut buffer)));
        }
    };
    let threads = checkpoint.reading_threads(threads);
    let mut done: Vec<(usize, Piece)> = match threads.min(pieces.len()) {
        0 | 1 => work(),
        several => std::thread::scope(|scope| {
            let all: Vec<_> = (0..several).map(|_| scope.spawn(work)).collect();
            let done = all.into_iter().map(|thread| thread.join());
            done.flat_map(|done| done.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        }),
    };
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, piece)| piece).collect()
}

fn read_piece(
    checkpoint: &Checkpoint,
    file: usize,
    ranges: Range<usize>,
    deep: bool,
    buffer: &mut Vec<u8>,
) -> Piece {
    let mut digest = deep.then(blake3::Hasher::new);
    let mut piece = Piece { file, ranges: 0, bytes: 0, digest: None, problems: Vec::new() };
    let those = checkpoint.ranges(file).skip(ranges.start).take(ranges.len());
    for (number, count) in those {
        buffer.resize(count, 0);
        if let Err(problem) = checkpoint.read_range(file, number, buffer) {
            piece.problems.push(problem);
        }
        if let Some(digest) = &mut digest {
            digest.update(buffer);
        }
        piece.ranges += 1;
        piece.bytes += count as u64;
    }
    piece.digest = digest.map(|digest| Digest(*digest.finalize().as_bytes()));
    piece
}

/// The chunks of each file.
fn chunks_by_file(checkpoint: &Checkpoint) -> Vec<Vec<(&StateTensor, &ChunkRecord)>> {
    let mut chunks = vec![Vec::new(); checkpoint.manifest().files.len()];
    for tensor in checkpoint.tensors() {
        for chunk in &tensor.chunks {
            chunks[chunk.file as usize].push((tensor, chunk));
        }
    }
    chunks
}

/// The entries of a safetensors header. A key that is there twice is refused: readers differ in
/// which of the two counts.
struct Header(HashMap<String, Entry>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Header, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a header of safetensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut entries, mut metadata) = (HashMap::new(), None);
                while let Some(name) = map.next_key::<String>()? {
                    let twice = match name == "__metadata__" {
                        true => {
                            metadata.replace(map.next_value::<HashMap<String, String>>()?).is_some()
                        }
                        false => entries.insert(name.clone(), map.next_value()?).is_some(),
                    };
                    if twice {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                }
                Ok(Header(entries))
            }
        }
        from.deserialize_map(Entries)
    }
}

/// The value of a chunk's key in a safetensors header.
#[derive(Debug, PartialEq, Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [u64; 2],
}

/// The safetensors header says what the manifest says.
fn check_header(
    checkpoint: &Checkpoint,
    file: usize,
    chunks: &[(&StateTensor, &ChunkRecord)],
) -> Result<(), Error> {
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
    let most = record.bytes.min(MAX_DATA_START);
    if data_start > most || !data_start.is_multiple_of(ALIGN_BYTES) {
        return Err(wrong(format!("its data would begin at byte {data_start}")));
    }
    let mut json = vec![0; data_start as usize - 8];
    read(&mut json, 8)?;
    let Header(parsed) = serde_json::from_slice(&json).map_err(|error| wrong(error.to_string()))?;
    let mut left = parsed.len();
    let mut data_bytes = 0;
    for (tensor, chunk) in chunks {
        let name = tensor.key().chunk_name(&chunk.region());
        let entry = parsed.get(&name).ok_or_else(|| wrong(format!("it has no `{name}`")))?;
        let [start, end] = chunk.range.map(|at| at.saturating_sub(data_start));
        let (dtype, shape) = (tensor.dtype, chunk.shape.clone());
        if *entry != (Entry { dtype, shape, data_offsets: [start, end] }) {
            return Err(wrong(format!("`{name}` is {entry:?}, not as in the manifest")));
        }
        left = left.saturating_sub(1);
        data_bytes += end - start;
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
