//! The progress of a reshape on disk: which tensors' shards are done and durable.
//!
//! ```text
//! step-00001000.g0002/wave-0000       64 hexadecimal digits (BLAKE3 of what follows), line feed,
//!                                     JSON: the plan's digest, and each rank's shards and chunks
//! ```
//! A wave is a run of tensors whose shards of all ranks are written together. Its record is written
//! after they are durable, so whoever reads it may take them as they are: the next attempt gives
//! them a second name in its own directory instead of copying them.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::commit::check_file;
use crate::disk::{Disk, exists};
use crate::error::Error;
use crate::verified::read_file;
use crate::write::{ReportedChunk, ReportedFile, create_error, sync_dir, write_file};
use crate::{Digest, names, sums};

/// No record is longer: a million chunks have less.
const MAX_RECORD_BYTES: u64 = 1 << 30;

/// The shards that a rank has of a wave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RankWave {
    pub rank: u32,
    /// Number of the first of its shards.
    pub first_shard: u32,
    pub files: Vec<ReportedFile>,
    pub chunks: Vec<ReportedChunk>,
}

/// A wave that is durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wave {
    /// Of source and target; of another plan nothing can be taken over.
    pub plan: Digest,
    pub ranks: Vec<RankWave>,
}

impl Wave {
    /// Bytes of all its shards.
    pub(crate) fn bytes(&self) -> u64 {
        self.ranks.iter().flat_map(|rank| &rank.files).map(|file| file.bytes).sum()
    }

    /// Writes the record, durably: all that it names must be so already.
    ///
    /// # Errors
    /// It exists; a write or fsync fails.
    pub(crate) fn write(&self, disk: &dyn Disk, dir: &Path, number: u32) -> Result<(), Error> {
        let json = serde_json::to_vec(self).expect("a record serializes into memory");
        let mut bytes = format!("{}\n", Digest::of(&json)).into_bytes();
        bytes.extend(json);
        write_file(disk, &dir.join(names::wave_name(number)), &bytes, 0)?;
        sync_dir(disk, dir)
    }

    /// The record of a wave of this plan, all of whose files are there; `None` for any other.
    ///
    /// # Errors
    /// It is there and cannot be read.
    pub(crate) fn read(
        disk: &dyn Disk,
        dir: &Path,
        number: u32,
        plan: Digest,
    ) -> Result<Option<Wave>, Error> {
        let path = dir.join(names::wave_name(number));
        if !exists(disk, &path).map_err(Error::io(disk, "read", &path))? {
            return Ok(None);
        }
        let bytes = disk.stat(&path).map_err(Error::io(disk, "read", &path))?.bytes;
        if bytes > MAX_RECORD_BYTES {
            return Ok(None);
        }
        let bytes = read_file(disk, &path, bytes)?;
        let Some((digest, json)) = bytes.split_at_checked(65) else { return Ok(None) };
        if digest != format!("{}\n", Digest::of(json)).as_bytes() {
            return Ok(None);
        }
        let wave: Option<Wave> = serde_json::from_slice(json).ok();
        Ok(wave.filter(|wave| wave.plan == plan && wave.files_are_there(disk, dir)))
    }

    fn paths(&self) -> impl Iterator<Item = (u32, [String; 2], &ReportedFile)> {
        self.ranks.iter().flat_map(|of| {
            of.files.iter().zip(of.first_shard..).map(|(file, shard)| {
                let paths = [names::shard_path(of.rank, shard), names::sums_path(of.rank, shard)];
                (of.rank, paths, file)
            })
        })
    }

    fn files_are_there(&self, disk: &dyn Disk, dir: &Path) -> bool {
        self.paths().all(|(_, [shard, table], file)| {
            let table_bytes = sums::table_bytes(file.bytes);
            check_file(disk, &dir.join(shard), file.bytes).is_ok()
                && read_file(disk, &dir.join(table), table_bytes)
                    .is_ok_and(|table| Digest::of(&table) == file.sums_blake3)
        })
    }

    /// Gives its files second names under `to`, durably.
    ///
    /// # Errors
    /// A name exists; the file system has no hard links; a failed fsync.
    pub(crate) fn link(&self, disk: &dyn Disk, from: &Path, to: &Path) -> Result<(), Error> {
        let mut dirs = BTreeMap::new();
        for (rank, paths, _) in self.paths() {
            let rank_dir = to.join(names::rank_dir(rank));
            if dirs.insert(rank, rank_dir.clone()).is_none() {
                make_dir(disk, &rank_dir)?;
            }
            for path in paths {
                let new = to.join(&path);
                disk.link(&from.join(&path), &new).map_err(create_error(disk, &new, 0))?;
            }
        }
        dirs.values().try_for_each(|dir| sync_dir(disk, dir))
    }
}

/// Makes a directory that may be there.
///
/// # Errors
/// As the disk says.
pub(crate) fn make_dir(disk: &dyn Disk, path: &Path) -> Result<(), Error> {
    match disk.create_dir(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(create_error(disk, path, 0)(error))
        }
        _ => Ok(()),
    }
}
