//! Checkpoints whose files lie on the disks or in the memory of several hosts.
//!
//! Each host has a [`Store`] of its own, with some ranks' files under the names that they have in
//! any checkpoint, and the whole manifest. `COMMIT` there says that all files are somewhere, which
//! whoever writes it has made sure of; whoever reads asks all hosts who has which.

use std::path::{Path, PathBuf};

use crate::commit::{self, check_shard};
use crate::disk::Disk;
use crate::manifest::FileRecord;
use crate::verified::read_file;
use crate::write::create_error;
use crate::{
    Attempt, Checkpoint, Digest, Error, RankDigest, RunState, SavePlan, Store, names, sums,
};

impl RankDigest {
    /// Files of the rank, shards and tables of sums, by their names in the attempt's directory, and
    /// their lengths in bytes.
    pub fn file_names(&self) -> Vec<(String, u64)> {
        let of = |(shard, bytes): (u32, u64)| {
            let table = (names::sums_path(self.rank, shard), sums::table_bytes(bytes));
            [(names::shard_path(self.rank, shard), bytes), table]
        };
        (0..).zip(self.files.iter().map(|file| file.bytes)).flat_map(of).collect()
    }
}

impl SavePlan {
    /// The bytes of the manifest of an attempt in which the ranks have written these files.
    ///
    /// # Errors
    /// As [`Store::commit_planned`], of what the ranks say.
    pub fn manifest(
        &mut self,
        attempt: Attempt,
        digests: &[RankDigest],
        run_state: &RunState,
    ) -> Result<Vec<u8>, Error> {
        Ok(self.fill(attempt, digests, run_state)?.render())
    }
}

impl Store {
    /// Commits an attempt of which some files lie in other stores: writes this manifest and
    /// `COMMIT`. The caller has made sure that every file lies durably where it will be looked for.
    ///
    /// # Errors
    /// As [`Store::commit`], but for files.
    pub fn publish(&self, attempt: Attempt, manifest: &[u8]) -> Result<PathBuf, Error> {
        let (disk, dir) = (self.disk(), self.path_of(attempt));
        // A host whose ranks wrote nothing has no directory yet.
        crate::disk::create_dirs(disk, &dir).map_err(create_error(disk, &dir, 0))?;
        commit::publish(disk, self.root(), attempt, manifest, || self.newest_generation())?;
        Ok(dir)
    }
}

impl Checkpoint {
    /// A checkpoint of this manifest, which was verified elsewhere, and of whose files some may lie
    /// in `path`. Files are looked at when they are needed.
    ///
    /// # Errors
    /// A manifest that contradicts itself.
    pub fn of_manifest(path: &Path, manifest: &[u8]) -> Result<Checkpoint, Error> {
        Checkpoint::of_bytes(path, manifest)
    }

    /// The bytes of the manifest.
    ///
    /// # Errors
    /// It cannot be read; it is not the one any more that was opened.
    pub fn manifest_bytes(&self) -> Result<Vec<u8>, Error> {
        let (disk, path): (&dyn Disk, _) =
            (self.files.disk.as_ref(), self.path().join(names::MANIFEST));
        let found = disk.stat(&path).map_err(Error::io(disk, "read", &path))?;
        let bytes = read_file(disk, &path, found.bytes)?;
        let (expected, actual) = (self.manifest_blake3(), Digest::of(&bytes));
        match actual == expected {
            true => Ok(bytes),
            false => Err(Error::FileDigest { path, expected, actual }),
        }
    }

    /// Which files of the manifest are here, shard and table, with their lengths.
    pub fn files_here(&self) -> Vec<bool> {
        let disk = self.files.disk.as_ref();
        let here = |file| check_shard(disk, self.path(), file).is_ok();
        self.manifest().files.iter().map(here).collect()
    }

    /// The file that an error is about, by its number in the manifest.
    pub fn file_of(&self, error: &Error) -> Option<u32> {
        let path = error.path()?;
        let is_of =
            |file: &FileRecord| path.ends_with(&file.path) || path.ends_with(file.sums_path());
        self.manifest().files.iter().position(is_of).map(|number| number as u32)
    }
}
