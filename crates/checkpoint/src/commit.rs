//! The coordinator's part of a save: prove exact cover, write the manifest, commit.
//!
//! ```text
//! reports ─▶ cover proven ─▶ files there ─▶ manifest.json, fsync ─▶ fsync of the directory
//!   ─▶ COMMIT.partial, fsync ─▶ link to COMMIT ─▶ fsync of the directory ─▶ fsync of the root
//! ```
//! Everything `COMMIT` vouches for is durable before it appears, and it appears whole or not at
//! all: `link` is atomic and fails where the name exists. It is four lines of text:
//!
//! ```text
//! muster-checkpoint 1
//! manifest-bytes 1234
//! manifest-blake3 <64 hexadecimal digits>
//! crc32c <8 hexadecimal digits, of the lines before>
//! ```
//! The first and the last line keep their meaning in every version, so that a damaged file is
//! never mistaken for one from the future.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};

use layout::Schema;

use crate::at_once;
use crate::disk::{Disk, Kind};
use crate::error::nearest;
use crate::manifest::{ChunkRecord, FileRecord, Manifest, StateTensor};
use crate::region::{CoverFault, elements, prove_cover};
use crate::write::{OfRank, ReportedChunk, create_error, sync_dir, write_file};
use crate::{
    Attempt, Digest, Dtype, Error, FORMAT_VERSION, RankReport, Region, RunState, TensorKey, names,
    sums,
};

/// A state tensor that a whole checkpoint must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedTensor {
    pub key: TensorKey,
    pub dtype: Dtype,
    pub global_shape: Vec<usize>,
}

/// A checkpoint that has been committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The attempt's directory.
    pub path: PathBuf,
    /// Bytes of all its files.
    pub bytes: u64,
    pub shards: usize,
    pub state_tensors: usize,
    pub manifest_blake3: Digest,
}

/// See [`crate::Store::commit`].
pub(crate) fn commit(
    disk: &dyn Disk,
    root: &Path,
    manifest: &Manifest,
    newest_generation: impl Fn() -> Result<u32, Error>,
) -> Result<Committed, Error> {
    let attempt = Attempt { step: manifest.step, generation: manifest.generation };
    let dir = root.join(attempt.dir_name());
    let commit_path = dir.join(names::COMMIT);
    if crate::disk::exists(disk, &commit_path).map_err(Error::io(disk, "read", &commit_path))? {
        return Err(Error::AlreadyCommitted { path: dir });
    }
    check_files(disk, &dir, manifest)?;
    let bytes = manifest.render();
    let record_bytes = publish(disk, root, attempt, &bytes, newest_generation)?;
    Ok(Committed {
        bytes: manifest.data_bytes() + bytes.len() as u64 + record_bytes,
        path: dir,
        shards: manifest.files.len(),
        state_tensors: manifest.tensors.len(),
        manifest_blake3: Digest::of(&bytes),
    })
}

/// Writes the manifest, then `COMMIT`; returns the length of that. Everything that they vouch for
/// is durable.
///
/// # Errors
/// See [`crate::Store::commit`].
pub(crate) fn publish(
    disk: &dyn Disk,
    root: &Path,
    attempt: Attempt,
    manifest: &[u8],
    newest_generation: impl Fn() -> Result<u32, Error>,
) -> Result<u64, Error> {
    let dir = root.join(attempt.dir_name());
    let commit_path = dir.join(names::COMMIT);
    let record = render_commit(manifest);
    write_file(disk, &dir.join(names::MANIFEST), manifest, record.len() as u64)?;
    sync_dir(disk, &dir)?;
    let temporary = dir.join(names::COMMIT_TEMPORARY);
    write_file(disk, &temporary, record.as_bytes(), 0)?;
    let fence = || match newest_generation()? {
        newest if newest > attempt.generation => {
            Err(Error::Fenced { path: dir.clone(), ours: attempt.generation, newest })
        }
        _ => Ok(()),
    };
    fence()?;
    disk.link(&temporary, &commit_path).map_err(|source| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::AlreadyCommitted { path: dir.clone() },
        io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported => {
            Error::NoHardLinks { path: dir.clone(), source }
        }
        _ => create_error(disk, &commit_path, 0)(source),
    })?;
    // A second name of the same bytes: harmless where it stays or comes back.
    let _ = disk.remove_file(&temporary);
    // A generation may have been claimed between the look and the link.
    let durable = fence().and_then(|()| sync_dir(disk, &dir)).and_then(|()| sync_dir(disk, root));
    if let Err(error) = durable {
        // The commit is visible, but is not wanted or may vanish with the power. Take it back as
        // far as possible, so that nothing is deleted on its word.
        let _ = disk.remove_file(&commit_path);
        return Err(error);
    }
    Ok(record.len() as u64)
}

/// Every shard and table is there with its length: ranks that write to disks that the
/// coordinator does not see must not yield a commit.
///
/// # Errors
/// The first file that is missing, is no file or has another length.
pub(crate) fn check_files(disk: &dyn Disk, dir: &Path, manifest: &Manifest) -> Result<(), Error> {
    let files = &manifest.files;
    at_once::each(disk, dir, files.len(), |file| check_shard(disk, dir, &files[file]))
}

/// A shard and its table are there with their lengths.
///
/// # Errors
/// As [`check_files`].
pub(crate) fn check_shard(disk: &dyn Disk, dir: &Path, file: &FileRecord) -> Result<(), Error> {
    check_file(disk, &dir.join(&file.path), file.bytes)?;
    check_file(disk, &dir.join(file.sums_path()), sums::table_bytes(file.bytes))
}

/// A file is there, is one, and has its length.
///
/// # Errors
/// It is not so.
pub(crate) fn check_file(disk: &dyn Disk, path: &Path, expected: u64) -> Result<(), Error> {
    let found = disk.stat(path).map_err(Error::io(disk, "read", path))?;
    let (path, actual) = (path.to_path_buf(), found.bytes);
    match found.kind {
        Kind::File if actual == expected => Ok(()),
        Kind::File => Err(Error::FileLength { path, expected, actual }),
        found => Err(Error::WrongKind { path, found, wanted: Kind::File }),
    }
}

/// The manifest's length and digest, as `COMMIT` records them.
pub(crate) struct CommitRecord {
    pub manifest_bytes: u64,
    pub manifest_blake3: Digest,
}

/// The bytes of `COMMIT`.
fn render_commit(manifest: &[u8]) -> String {
    let text = format!(
        "muster-checkpoint {FORMAT_VERSION}\nmanifest-bytes {}\nmanifest-blake3 {}\n",
        manifest.len(),
        Digest::of(manifest)
    );
    let crc = crc_fast::crc32_iscsi(text.as_bytes());
    format!("{text}crc32c {crc:08x}\n")
}

/// Reads the bytes of `COMMIT`.
///
/// # Errors
/// A damaged `COMMIT`, or one of another version.
pub(crate) fn parse_commit(commit: &[u8], path: &Path) -> Result<CommitRecord, Error> {
    let damaged = |reason: &str| Error::Commit { path: path.to_path_buf(), reason: reason.into() };
    let text = std::str::from_utf8(commit).map_err(|_| damaged("it is not text"))?;
    let body = text.rfind("crc32c ").map(|at| &text[..at]);
    let body = body.ok_or_else(|| damaged("its last line is not `crc32c …`"))?;
    if text[body.len()..] != format!("crc32c {:08x}\n", crc_fast::crc32_iscsi(body.as_bytes())) {
        return Err(damaged("its checksum does not match its text"));
    }
    let version = body.lines().next().and_then(|line| line.strip_prefix("muster-checkpoint "));
    let found = version.and_then(|version| version.parse::<u32>().ok());
    let found = found.ok_or_else(|| damaged("its first line is not `muster-checkpoint N`"))?;
    if found != FORMAT_VERSION {
        return Err(Error::UnsupportedVersion { path: path.to_path_buf(), found });
    }
    let recorded = |word: &str| body.lines().find_map(|line| line.strip_prefix(word));
    let digest = recorded("manifest-blake3 ").and_then(|text| text.parse::<Digest>().ok());
    let bytes = recorded("manifest-bytes ").and_then(|text| text.parse::<u64>().ok());
    Ok(CommitRecord {
        manifest_blake3: digest.ok_or_else(|| damaged("it names no digest of the manifest"))?,
        manifest_bytes: bytes.ok_or_else(|| damaged("it names no length of the manifest"))?,
    })
}

/// Puts the ranks' reports together, proving that they hold every expected tensor exactly once
/// and nothing else.
///
/// # Errors
/// A rank missing or twice, of another attempt or world; a tensor with a gap, an overlap, another
/// type or shape; a tensor that nobody expects; a schema tensor of which no state is expected;
/// a run state of another step.
pub(crate) fn assemble(
    attempt: Attempt,
    schema: &Schema,
    expected: &[ExpectedTensor],
    reports: &[RankReport],
    run_state: &RunState,
) -> Result<Manifest, Error> {
    if run_state.step != attempt.step {
        let (found, expected) = (run_state.step, attempt.step);
        return Err(Error::RunStateStep { found, expected });
    }
    check_expected(schema, expected)?;
    let world = reports.iter().min_by_key(|report| report.rank).map_or(1, |first| first.world);
    let reports = check_ranks(attempt, world.max(1), reports)?;
    let mut manifest =
        Manifest::new(attempt.step, attempt.generation, reports.len() as u32, run_state.clone());
    manifest.schema = schema.tensors.iter().map(Into::into).collect();
    let index: HashMap<&TensorKey, usize> =
        expected.iter().enumerate().map(|(number, tensor)| (&tensor.key, number)).collect();
    let mut chunks: Vec<Vec<(u32, ChunkRecord)>> = vec![Vec::new(); expected.len()];
    for report in &reports {
        let first_file = manifest.files.len() as u32;
        for chunk in &report.chunks {
            let Some(&number) = index.get(&chunk.key) else {
                let (key, rank) = (chunk.key.clone(), report.rank);
                let keys = expected.iter().map(|tensor| &tensor.key);
                let nearest = nearest(&key.to_string(), keys);
                return Err(Error::Stranger { key, rank, nearest });
            };
            check_reported(report, chunk, &expected[number])?;
            let record = ChunkRecord {
                offset: chunk.region.offset.clone(),
                shape: chunk.region.shape.clone(),
                file: first_file + chunk.shard,
                range: chunk.range,
            };
            chunks[number].push((report.rank, record));
        }
        manifest.files.extend(report.files.iter().zip(0..).map(|(file, shard)| FileRecord {
            path: names::shard_path(report.rank, shard),
            bytes: file.bytes,
            sums_blake3: file.sums_blake3,
            data_blake3: file.data_blake3,
        }));
    }
    for (tensor, chunks) in expected.iter().zip(chunks) {
        manifest.tensors.push(state_tensor(tensor, chunks)?);
    }
    Ok(manifest)
}

/// A tensor of these chunks, each of a rank, which are proven to tile it.
///
/// # Errors
/// A gap or an overlap.
pub(crate) fn state_tensor(
    tensor: &ExpectedTensor,
    mut chunks: Vec<(u32, ChunkRecord)>,
) -> Result<StateTensor, Error> {
    chunks.sort_by(|(_, a), (_, b)| (&a.offset, &a.shape).cmp(&(&b.offset, &b.shape)));
    prove_tensor(tensor, &chunks)?;
    Ok(StateTensor {
        name: tensor.key.name.clone(),
        slot: tensor.key.slot.clone(),
        dtype: tensor.dtype,
        shape: tensor.global_shape.clone(),
        chunks: chunks.into_iter().map(|(_, record)| record).collect(),
    })
}

/// Checks that `expected` names each state once and leaves out no tensor of the schema.
pub(crate) fn check_expected(schema: &Schema, expected: &[ExpectedTensor]) -> Result<(), Error> {
    let mut slots: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let params: HashMap<&str, &Vec<usize>> = expected
        .iter()
        .filter(|tensor| tensor.key.slot == "param")
        .map(|tensor| (tensor.key.name.as_str(), &tensor.global_shape))
        .collect();
    for ExpectedTensor { key, dtype, global_shape } in expected {
        let fail = |reason: String| Err(Error::Tensor { key: key.clone(), reason });
        if !key.slot_is_valid() {
            return fail(format!("`{}` is not a slot: use a-z, 0-9 and _", key.slot));
        }
        let bytes = elements(global_shape).and_then(|n| n.checked_mul(dtype.size_bytes()));
        if bytes.is_none() {
            return fail(format!("shape {global_shape:?} is too large"));
        }
        let of_name = slots.entry(&key.name).or_default();
        if of_name.contains(&key.slot.as_str()) {
            return fail("is expected twice".to_string());
        }
        of_name.push(&key.slot);
    }
    for tensor in &schema.tensors {
        if !slots.contains_key(tensor.name.as_str()) {
            let key = TensorKey::new(&*tensor.name, "param");
            let reason = "is in the schema, but no state of it is expected".to_string();
            return Err(Error::Tensor { key, reason });
        }
        let wanted = &tensor.shape;
        if let Some(found) = params.get(tensor.name.as_str()).filter(|found| **found != wanted) {
            let key = TensorKey::new(&*tensor.name, "param");
            let reason = format!("is expected with shape {found:?}, the schema has {wanted:?}");
            return Err(Error::Tensor { key, reason });
        }
    }
    Ok(())
}

/// The words of `world` ranks by rank, each once and of this attempt.
///
/// # Errors
/// A rank is missing or twice, or of another attempt or world.
pub(crate) fn check_ranks<T: OfRank>(
    attempt: Attempt,
    world: u32,
    words: &[T],
) -> Result<Vec<&T>, Error> {
    let mut sorted: Vec<&T> = words.iter().collect();
    let rank_of = |word: &T| word.of_rank().1;
    sorted.sort_by_key(|word| rank_of(word));
    for rank in 0..world {
        let fail = |reason: String| Err(Error::Report { rank, reason });
        let Some(word) = sorted.get(rank as usize).filter(|word| rank_of(word) == rank) else {
            let twice = rank > 0 && sorted.get(rank as usize).is_some_and(|w| rank_of(w) < rank);
            return fail(match twice {
                true => format!("rank {} reported twice and this one did not", rank - 1),
                false => format!("its report is missing; {world} ranks save"),
            });
        };
        let (of, _, of_world) = word.of_rank();
        if of != attempt {
            return fail(format!("reports {of}, but {attempt} is to be committed"));
        }
        if of_world != world {
            return fail(format!("saved as one of {of_world} ranks, others of {world}"));
        }
    }
    match sorted.get(world as usize) {
        Some(extra) => Err(Error::Report {
            rank: rank_of(extra),
            reason: format!("reports more than once, or is not one of {world} ranks"),
        }),
        None => Ok(sorted),
    }
}

fn check_reported(
    report: &RankReport,
    chunk: &ReportedChunk,
    expected: &ExpectedTensor,
) -> Result<(), Error> {
    let rank = report.rank;
    let fail = |reason: String| Err(Error::Tensor { key: chunk.key.clone(), reason });
    if chunk.dtype != expected.dtype {
        return fail(format!("rank {rank} saved {}, expected is {}", chunk.dtype, expected.dtype));
    }
    if chunk.global_shape != expected.global_shape {
        let (found, wanted) = (&chunk.global_shape, &expected.global_shape);
        return fail(format!("rank {rank} saved shape {found:?}, expected is {wanted:?}"));
    }
    let file = report.files.get(chunk.shard as usize);
    let inside = file.is_some_and(|file| chunk.range[1] <= file.bytes);
    let size = chunk.dtype.size_bytes();
    let bytes = chunk.region.elements().and_then(|n| n.checked_mul(size)).map(|n| n as u64);
    let fits = chunk.region.fits(&expected.global_shape) && !chunk.region.shape.contains(&0);
    if !inside || !fits || chunk.range[1].checked_sub(chunk.range[0]) != bytes {
        return fail(format!(
            "rank {rank} reports an impossible chunk {} at bytes {:?} of its shard {}",
            chunk.region, chunk.range, chunk.shard
        ));
    }
    Ok(())
}

fn prove_tensor(tensor: &ExpectedTensor, chunks: &[(u32, ChunkRecord)]) -> Result<(), Error> {
    let regions: Vec<Region> = chunks.iter().map(|(_, chunk)| chunk.region()).collect();
    let key = tensor.key.clone();
    prove_cover(&tensor.global_shape, &regions).map_err(|fault| match fault {
        CoverFault::Gap(region) => Error::Gap { key, region },
        CoverFault::Overlap(a, b) => {
            let told = |number: usize| format!("{} of rank {}", regions[number], chunks[number].0);
            Error::Overlap { key, first: told(a), second: told(b) }
        }
    })
}
