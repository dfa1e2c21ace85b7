//! A directory of checkpoints: claim a generation, save, find, and delete old ones.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use layout::Schema;

use crate::commit::{self, Committed, ExpectedTensor};
use crate::disk::{DirEntry, Disk, Free, Kind, create_dirs, exists};
use crate::verified::read_file;
use crate::write::{self, Chunk, RankReport, WriteOptions, create_error, sync_dir, write_file};
use crate::{
    Anywhere, Attempt, Checkpoint, Digest, Error, RankDigest, RunState, SavePlan, names, verify,
};

/// A directory of checkpoints. Clones share what they have proven.
#[derive(Clone)]
pub struct Store {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Attempts of which every byte has been read and verified by this handle.
    proven: Arc<Mutex<HashSet<Attempt>>>,
}

/// One attempt in the directory.
#[derive(Debug)]
pub struct Entry {
    pub attempt: Attempt,
    pub path: PathBuf,
    pub status: Status,
    /// Bytes of all files found in it; `None` where it could not be looked through.
    pub bytes: Option<u64>,
}

/// The condition of an attempt.
#[derive(Debug)]
pub enum Status {
    /// Committed, and its structure verifies.
    Committed,
    /// It has no `COMMIT`: being written, or given up.
    Incomplete,
    /// Committed, but not usable for this reason.
    Corrupt(Error),
    /// Whole perhaps, but it cannot be read, or not by this program.
    Unreadable(Error),
}

/// The result of [`Store::newest`].
#[derive(Debug)]
pub struct Newest {
    /// The newest commit whose structure verifies.
    pub checkpoint: Option<Checkpoint>,
    /// Newer attempts that were passed over, newest first.
    pub skipped: Vec<Skipped>,
}

/// An attempt that was passed over.
#[derive(Debug)]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: Error,
}

/// The result of [`Store::removable`], oldest first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removable {
    /// They would be deleted.
    pub doomed: Vec<PathBuf>,
    /// Damaged commits that would stay.
    pub damaged: Vec<PathBuf>,
}

/// How sure [`Store::retain`] must be of the newest commit before it deletes older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Digests, lengths and exact cover.
    Structure,
    /// Every byte read back and summed, once per commit and `Store`.
    EveryByte,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

impl Store {
    /// The checkpoints under `root`, a directory or a URL, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Store {
        Store::on(Arc::new(Anywhere), root)
    }

    /// As [`Store::new`], on another disk.
    pub fn on(disk: Arc<dyn Disk>, root: impl Into<PathBuf>) -> Store {
        Store { disk, root: root.into(), proven: Arc::default() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    /// The directory of an attempt.
    pub fn path_of(&self, attempt: Attempt) -> PathBuf {
        self.root.join(attempt.dir_name())
    }

    /// Makes the directory one of the reshape with this plan: new or empty ones become it, one that
    /// is stays it.
    ///
    /// # Errors
    /// It holds anything else: files, checkpoints, the work of another reshape or of a run.
    pub(crate) fn take_for_reshape(&self, plan: Digest) -> Result<(), Error> {
        let disk = self.disk.as_ref();
        create_dirs(disk, &self.root).map_err(create_error(disk, &self.root, 0))?;
        let path = self.root.join(names::RESHAPE);
        let used = |holds: String| Error::TargetInUse { path: self.root.clone(), holds };
        let (mut is_taken, mut other) = (false, None);
        for DirEntry { name, .. } in self.entries(&self.root)? {
            let text = name.to_string_lossy().into_owned();
            let is_ours = names::parse_claim(&text).is_some() || Attempt::parse(&text).is_some();
            match text == names::RESHAPE {
                true => is_taken = true,
                false if is_ours && other.is_none() => other = Some((text, true)),
                false if !is_ours => other = Some((text, false)),
                false => {}
            }
        }
        let record = plan.to_string();
        if is_taken {
            let bytes = disk.stat(&path).map_err(Error::io(disk, "read", &path))?.bytes;
            let found = if bytes == record.len() as u64 {
                read_file(disk, &path, bytes)?
            } else {
                Vec::new()
            };
            if found == record.as_bytes() {
                return match other {
                    Some((name, false)) => Err(used(format!("`{name}`"))),
                    _ if self.committed()? > 0 => Err(used("a checkpoint already".to_owned())),
                    _ => Ok(()),
                };
            }
            // Torn while it was written: then nothing came after it.
            let is_torn =
                other.is_none() && Digest::from_str(&String::from_utf8_lossy(&found)).is_err();
            if !is_torn {
                return Err(used("an interrupted reshape of another source or layout".to_owned()));
            }
            self.remove_file(&path)?;
            sync_dir(disk, &self.root)?;
        } else if let Some((name, is_ours)) = other {
            let holds = match is_ours {
                true if self.committed()? > 0 => "a checkpoint already".to_owned(),
                true => format!("`{name}`, by which a run saves there"),
                false => format!("`{name}`"),
            };
            return Err(used(holds));
        }
        write_file(disk, &path, record.as_bytes(), 0)?;
        sync_dir(disk, &self.root)
    }

    /// The attempts of earlier generations at the step of `attempt` that have no `COMMIT`, oldest
    /// first.
    pub(crate) fn unfinished(&self, attempt: Attempt) -> Result<Vec<Attempt>, Error> {
        let mut attempts = self.attempts()?;
        attempts
            .retain(|other| other.step == attempt.step && other.generation < attempt.generation);
        let mut unfinished = Vec::new();
        for attempt in attempts {
            let commit = self.path_of(attempt).join(names::COMMIT);
            let disk = self.disk.as_ref();
            if !exists(disk, &commit).map_err(Error::io(disk, "read", &commit))? {
                unfinished.push(attempt);
            }
        }
        Ok(unfinished)
    }

    /// Removes what an attempt has of shards that are not reported; all of it, if none is.
    pub(crate) fn remove_unrecorded(
        &self,
        attempt: Attempt,
        reports: &[RankReport],
    ) -> Result<(), Error> {
        if reports.iter().all(|report| report.files.is_empty()) {
            return self.discard(attempt);
        }
        let dir = self.path_of(attempt);
        for report in reports {
            let rank_dir = dir.join(names::rank_dir(report.rank));
            let kept = (0..report.files.len() as u32).flat_map(|shard| {
                [names::shard_path(report.rank, shard), names::sums_path(report.rank, shard)]
            });
            let kept: HashSet<PathBuf> = kept.map(|path| dir.join(path)).collect();
            for DirEntry { name, .. } in self.entries(&rank_dir)? {
                let path = rank_dir.join(name);
                if !kept.contains(&path) {
                    self.remove_file(&path)?;
                }
            }
        }
        Ok(())
    }

    /// Refuses to go on where a later generation has been claimed.
    pub(crate) fn check_fence(&self, attempt: Attempt) -> Result<(), Error> {
        match self.newest_generation()? {
            newest if newest > attempt.generation => {
                let (path, ours) = (self.path_of(attempt), attempt.generation);
                Err(Error::Fenced { path, ours, newest })
            }
            _ => Ok(()),
        }
    }

    /// Takes a fencing generation higher than any seen: by one process, once, when a job starts.
    /// Two processes never get the same one, and earlier incarnations can no longer commit.
    /// Creates the directory where it is missing.
    ///
    /// # Errors
    /// The directory cannot be made or written; the highest generation of all is claimed.
    pub fn claim_generation(&self) -> Result<u32, Error> {
        let disk = self.disk.as_ref();
        create_dirs(disk, &self.root).map_err(create_error(disk, &self.root, 0))?;
        loop {
            let generation = self.next_generation()?;
            match write_file(disk, &self.root.join(names::claim_name(generation)), b"", 0) {
                Err(Error::AlreadyExists { .. }) => {} // Another process was quicker.
                result => {
                    result?;
                    sync_dir(disk, &self.root)?;
                    return Ok(generation);
                }
            }
        }
    }

    /// Writes this rank's part of an attempt: streams the chunks into shards under the rank's own
    /// directory and makes them durable. The report goes to the coordinator. Memory: 4 MiB.
    ///
    /// # Errors
    /// A chunk that contradicts itself; files that exist; a full disk; any failed write or fsync.
    /// Files that were written stay for [`Store::discard`].
    pub fn write_rank(
        &self,
        attempt: Attempt,
        rank: u32,
        world: u32,
        chunks: &[Chunk],
        options: &WriteOptions,
    ) -> Result<RankReport, Error> {
        let disk = self.disk.as_ref();
        write::write_rank(disk, &self.root, attempt, (rank, world), chunks, options)
    }

    /// Commits an attempt, once every rank's report is there: proves that the reports hold each
    /// expected tensor exactly once and nothing else, then writes the manifest and `COMMIT`.
    ///
    /// # Errors
    /// A report or a tensor is missing, doubled or contradictory; a file is missing; the attempt
    /// is committed or fenced off already; a write or fsync fails; the file system has no hard
    /// links. After an error the attempt
    /// does not count as a checkpoint.
    pub fn commit(
        &self,
        attempt: Attempt,
        schema: &Schema,
        expected: &[ExpectedTensor],
        reports: &[RankReport],
        run_state: &RunState,
    ) -> Result<Committed, Error> {
        let manifest = commit::assemble(attempt, schema, expected, reports, run_state)?;
        commit::commit(self.disk.as_ref(), &self.root, &manifest, || self.newest_generation())
    }

    /// As [`Store::commit`], of what is planned: the ranks need say no more than that they wrote
    /// that.
    ///
    /// # Errors
    /// As [`Store::commit`]; a rank that wrote anything else.
    pub fn commit_planned(
        &self,
        attempt: Attempt,
        plan: &mut SavePlan,
        digests: &[RankDigest],
        run_state: &RunState,
    ) -> Result<Committed, Error> {
        let manifest = plan.fill(attempt, digests, run_state)?;
        commit::commit(self.disk.as_ref(), &self.root, manifest, || self.newest_generation())
    }

    /// Every attempt, oldest first. What cannot be read of one is told in its entry.
    ///
    /// # Errors
    /// The directory cannot be read; a missing one is empty.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let entry = |attempt: Attempt| {
            let path = self.root.join(attempt.dir_name());
            let status = match self.open(attempt) {
                Ok(_) => Status::Committed,
                Err(Error::NotCommitted { .. }) => Status::Incomplete,
                Err(error) if is_gone(&error, &path) => return None,
                Err(error) if error.is_damage() => Status::Corrupt(error),
                Err(error) => Status::Unreadable(error),
            };
            let bytes = self.bytes_under(&path, true).ok();
            Some(Entry { attempt, path, status, bytes })
        };
        Ok(self.attempts()?.into_iter().filter_map(entry).collect())
    }

    /// How many attempts have a `COMMIT`; whether they are whole is not looked at.
    ///
    /// # Errors
    /// The directory cannot be read; a missing one is empty.
    pub fn committed(&self) -> Result<usize, Error> {
        let commit = |attempt: &Attempt| self.root.join(attempt.dir_name()).join(names::COMMIT);
        let there = |attempt: &Attempt| self.disk.stat(&commit(attempt)).is_ok();
        Ok(self.attempts()?.iter().filter(|attempt| there(attempt)).count())
    }

    /// Room for this user on the disk of the directory; `None` where it is not told.
    pub fn free(&self) -> Option<Free> {
        self.disk.free(&self.root)
    }

    /// Opens one attempt.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open(&self, attempt: Attempt) -> Result<Checkpoint, Error> {
        Checkpoint::open_on(Arc::clone(&self.disk), self.root.join(attempt.dir_name()))
    }

    /// The newest commit whose structure verifies, and the newer attempts passed over.
    ///
    /// # Errors
    /// The directory or the newest commit cannot be read, or that commit is of a later format
    /// version: it may be whole, so going on from an older one would silently lose work.
    pub fn newest(&self) -> Result<Newest, Error> {
        self.newest_before(None)
    }

    /// As [`Store::newest`], among the attempts older than one whose data turned out damaged.
    ///
    /// # Errors
    /// As [`Store::newest`].
    pub fn newest_before(&self, bound: Option<Attempt>) -> Result<Newest, Error> {
        let mut skipped = Vec::new();
        let mut attempts = self.attempts()?;
        attempts.retain(|attempt| bound.is_none_or(|bound| attempt.age_key() < bound.age_key()));
        for attempt in attempts.into_iter().rev() {
            let path = self.root.join(attempt.dir_name());
            match self.open(attempt) {
                Ok(checkpoint) => return Ok(Newest { checkpoint: Some(checkpoint), skipped }),
                Err(reason) if is_gone(&reason, &path) => {}
                Err(reason) if reason.is_damage() => skipped.push(Skipped { path, reason }),
                Err(error) => return Err(error),
            }
        }
        Ok(Newest { checkpoint: None, skipped })
    }

    /// Deletes all commits but those to `keep` that verify (at least one), and what incomplete
    /// attempts of generations before the current one left. Nothing committed is deleted unless
    /// the newest commit verifies again, as far as `proof` asks. Damaged commits are deleted only
    /// when `keep` newer ones are whole; those of a later format version, those that cannot be
    /// read and those under another's name never. Of one that is linked from elsewhere the link
    /// is deleted. Returns what was deleted, oldest first.
    ///
    /// # Errors
    /// A directory cannot be read, or a file not deleted.
    pub fn retain(&self, keep: impl Into<Keep>, proof: Proof) -> Result<Vec<PathBuf>, Error> {
        let (doomed, _, current) = self.doomed(keep.into(), proof)?;
        let mut deleted = Vec::new();
        for attempt in doomed {
            match self.delete(attempt) {
                // The run itself, or another who cleans up, was quicker.
                Err(error) if is_gone(&error, &self.path_of(attempt)) => {}
                result => deleted.push(result?),
            }
        }
        self.remove_old_claims(current)?;
        Ok(deleted)
    }

    /// The directories that [`Store::retain`] would delete, and the damaged ones that it would not.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn removable(&self, keep: impl Into<Keep>, proof: Proof) -> Result<Removable, Error> {
        let (doomed, damaged, _) = self.doomed(keep.into(), proof)?;
        let paths = |attempts: Vec<Attempt>| {
            attempts.into_iter().map(|attempt| self.path_of(attempt)).collect()
        };
        Ok(Removable { doomed: paths(doomed), damaged: paths(damaged) })
    }

    /// The attempts to delete and those that are damaged and stay, oldest first; and the current
    /// generation.
    fn doomed(&self, keep: Keep, proof: Proof) -> Result<(Vec<Attempt>, Vec<Attempt>, u32), Error> {
        let current = self.newest_generation()?;
        let mut attempts = Vec::new();
        for attempt in self.attempts()?.into_iter().rev() {
            let mut worth = worth(&self.open(attempt));
            let first = attempts.iter().all(|(_, worth)| *worth != Worth::Whole);
            if worth == Worth::Whole && first && !self.proves(attempt, proof)? {
                worth = Worth::Damaged;
            }
            attempts.push((attempt, worth));
        }
        let mut doomed = doomed(&attempts, keep, current);
        doomed.reverse();
        let stays = |(attempt, worth): &(Attempt, Worth)| {
            *worth == Worth::Damaged && !doomed.contains(attempt)
        };
        let mut damaged: Vec<Attempt> =
            attempts.iter().filter(|of| stays(of)).map(|(attempt, _)| *attempt).collect();
        damaged.reverse();
        Ok((doomed, damaged, current))
    }

    /// Deletes what an attempt that failed left behind.
    ///
    /// # Errors
    /// It is committed; a file cannot be deleted.
    pub fn discard(&self, attempt: Attempt) -> Result<(), Error> {
        let dir = self.root.join(attempt.dir_name());
        let commit = dir.join(names::COMMIT);
        let disk = self.disk.as_ref();
        if exists(disk, &commit).map_err(Error::io(disk, "read", &commit))? {
            return Err(Error::AlreadyCommitted { path: dir });
        }
        if exists(disk, &dir).map_err(Error::io(disk, "read", &dir))? {
            self.delete(attempt)?;
        }
        Ok(())
    }

    /// Deletes an attempt, whether it is committed or not.
    ///
    /// # Errors
    /// A file cannot be deleted.
    pub fn remove(&self, attempt: Attempt) -> Result<(), Error> {
        self.delete(attempt).map(drop)
    }

    /// Whether the newest whole commit stands up to the proof that deletion asks for.
    fn proves(&self, attempt: Attempt, proof: Proof) -> Result<bool, Error> {
        let known = |proven: &HashSet<Attempt>| proven.contains(&attempt);
        if proof == Proof::Structure
            || known(&self.proven.lock().unwrap_or_else(PoisonError::into_inner))
        {
            return Ok(true);
        }
        let checkpoint = self.open(attempt)?;
        // Pages that are still in memory say nothing about the medium.
        checkpoint.forget();
        let mut report = verify::verify_checkpoint(&checkpoint, false, 1)?;
        // A file that cannot be read is not known to be damaged.
        if let Some(at) = report.problems.iter().position(|problem| !problem.is_damage()) {
            return Err(report.problems.swap_remove(at));
        }
        if report.is_whole() {
            self.proven.lock().unwrap_or_else(PoisonError::into_inner).insert(attempt);
        }
        Ok(report.is_whole())
    }

    /// `COMMIT` goes first, durably: from then on the attempt is incomplete, never half there.
    fn delete(&self, attempt: Attempt) -> Result<PathBuf, Error> {
        let (disk, dir) = (self.disk.as_ref(), self.root.join(attempt.dir_name()));
        // The target of a link lies elsewhere and is not ours to delete.
        if disk.link_target(&dir).is_some() {
            self.remove_file(&dir)?;
            sync_dir(disk, &self.root)?;
            return Ok(dir);
        }
        let commit = dir.join(names::COMMIT);
        match disk.remove_file(&commit) {
            Ok(()) => sync_dir(disk, &dir)?,
            // A directory of this name commits nothing.
            Err(error)
                if [io::ErrorKind::NotFound, io::ErrorKind::IsADirectory]
                    .contains(&error.kind()) => {}
            Err(error) => return Err(Error::io(disk, "delete", &commit)(error)),
        }
        match disk.remove_tree(&dir) {
            Some(removed) => removed.map_err(Error::io(disk, "delete", &dir))?,
            None => self.delete_tree(&dir)?,
        }
        sync_dir(disk, &self.root)?;
        Ok(dir)
    }

    fn delete_tree(&self, dir: &Path) -> Result<(), Error> {
        for DirEntry { name, kind } in self.entries(dir)? {
            let path = dir.join(name);
            match kind {
                Kind::Dir => self.delete_tree(&path)?,
                _ => self.remove_file(&path)?,
            }
        }
        let disk = self.disk.as_ref();
        disk.remove_dir(dir).map_err(Error::io(disk, "delete", dir))
    }

    fn remove_file(&self, path: &Path) -> Result<(), Error> {
        let disk = self.disk.as_ref();
        disk.remove_file(path).map_err(Error::io(disk, "delete", path))
    }

    /// Claims below the current one say nothing more.
    fn remove_old_claims(&self, current: u32) -> Result<(), Error> {
        for DirEntry { name, .. } in self.entries(&self.root)? {
            let claim = name.to_str().and_then(names::parse_claim);
            if claim.is_some_and(|generation| generation < current) {
                self.remove_file(&self.root.join(name))?;
            }
        }
        Ok(())
    }

    /// The highest generation seen, in claims or attempts; 0 for none.
    pub(crate) fn newest_generation(&self) -> Result<u32, Error> {
        Ok(self.newest_claim()?.map_or(0, |(generation, _)| generation))
    }

    /// The one after it.
    fn next_generation(&self) -> Result<u32, Error> {
        let Some((newest, path)) = self.newest_claim()? else { return Ok(1) };
        newest.checked_add(1).ok_or(Error::LastGeneration { path })
    }

    /// The highest generation and what bears it.
    fn newest_claim(&self) -> Result<Option<(u32, PathBuf)>, Error> {
        let claim = |entry: &DirEntry| {
            let name = entry.name.to_str()?;
            let of_attempt = || Attempt::parse(name).map(|attempt| attempt.generation);
            Some((names::parse_claim(name).or_else(of_attempt)?, self.root.join(name)))
        };
        Ok(self.entries(&self.root)?.iter().filter_map(claim).max())
    }

    /// The attempts, oldest first; a whole one may be linked from another disk.
    ///
    /// # Errors
    /// The directory cannot be read; a missing one is empty.
    pub fn attempts(&self) -> Result<Vec<Attempt>, Error> {
        let attempt = |entry: &DirEntry| {
            let may_be = matches!(entry.kind, Kind::Dir | Kind::Link);
            entry.name.to_str().filter(|_| may_be).and_then(Attempt::parse)
        };
        let mut attempts: Vec<Attempt> =
            self.entries(&self.root)?.iter().filter_map(attempt).collect();
        attempts.sort_by_key(|attempt| attempt.age_key());
        Ok(attempts)
    }

    /// The names in a directory; none where it is missing.
    fn entries(&self, dir: &Path) -> Result<Vec<DirEntry>, Error> {
        match self.disk.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            result => result.map_err(Error::io(self.disk.as_ref(), "list", dir)),
        }
    }

    /// The bytes of all files; what vanishes meanwhile, or leads nowhere, counts as none. Links to
    /// directories are followed at the first level only, where those of ranks lie: no further, so
    /// that none leads in a circle.
    fn bytes_under(&self, dir: &Path, first_level: bool) -> io::Result<u64> {
        let entries = match self.disk.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut bytes = 0;
        for DirEntry { name, kind } in entries {
            let path = dir.join(name);
            let found = match self.disk.stat(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                found => found?,
            };
            bytes += match found.kind {
                Kind::File => found.bytes,
                Kind::Dir if kind == Kind::Dir || first_level => self.bytes_under(&path, false)?,
                _ => 0,
            };
        }
        Ok(bytes)
    }
}

/// The condition of an attempt, as retention judges it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worth {
    Whole,
    Incomplete,
    Damaged,
    /// Whole perhaps, but not for this program to judge.
    Foreign,
}

fn worth(opened: &Result<Checkpoint, Error>) -> Worth {
    match opened {
        Ok(_) => Worth::Whole,
        Err(Error::NotCommitted { .. }) => Worth::Incomplete,
        // Somebody moved it here, and it may be their only one.
        Err(Error::Misnamed { .. } | Error::Removed { .. }) => Worth::Foreign,
        Err(error) if error.is_damage() => Worth::Damaged,
        Err(_) => Worth::Foreign,
    }
}

/// Checkpoints that stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// So many of the newest that are whole; one at least.
    pub newest: usize,
    /// Those of every so many steps, too; 0 for none.
    pub every: u64,
}

impl Keep {
    fn holds(self, step: u64) -> bool {
        self.every > 0 && step.is_multiple_of(self.every)
    }
}

impl From<usize> for Keep {
    fn from(newest: usize) -> Keep {
        Keep { newest, every: 0 }
    }
}

/// True where an attempt that was there a moment ago is not there any more.
fn is_gone(error: &Error, dir: &Path) -> bool {
    match error {
        Error::Removed { .. } => true,
        Error::MissingFile { path } => path == dir,
        _ => false,
    }
}

/// Which attempts, listed newest first, are to be deleted.
fn doomed(attempts: &[(Attempt, Worth)], keep: Keep, current: u32) -> Vec<Attempt> {
    let mut whole = 0;
    let newest = keep.newest.max(1);
    let mut is_doomed = |attempt: &Attempt, worth: Worth| match worth {
        Worth::Whole => {
            whole += 1;
            whole > newest && !keep.holds(attempt.step)
        }
        Worth::Damaged => whole >= newest,
        Worth::Incomplete => attempt.generation < current,
        Worth::Foreign => false,
    };
    let of = |(attempt, worth): &(Attempt, Worth)| is_doomed(attempt, *worth).then_some(*attempt);
    attempts.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retention_spares_what_is_in_use_unknown_or_needed() {
        let at = |step, generation| Attempt { step, generation };
        let attempts = [
            (at(9, 4), Worth::Incomplete),
            (at(8, 4), Worth::Damaged),
            (at(7, 4), Worth::Whole),
            (at(6, 3), Worth::Damaged),
            (at(5, 3), Worth::Incomplete),
            (at(4, 3), Worth::Whole),
            (at(3, 3), Worth::Damaged),
            (at(2, 2), Worth::Foreign),
            (at(1, 1), Worth::Whole),
        ];
        assert_eq!(doomed(&attempts, 2.into(), 4), [at(5, 3), at(3, 3), at(1, 1)]);
        assert_eq!(doomed(&attempts, 1.into(), 3), [at(6, 3), at(4, 3), at(3, 3), at(1, 1)]);
        assert_eq!(doomed(&attempts, 9.into(), 4), [at(5, 3)]);
        // Every fourth step stays if it is whole, whatever is newer.
        let keep = Keep { newest: 1, every: 4 };
        assert_eq!(doomed(&attempts, keep, 3), [at(6, 3), at(3, 3), at(1, 1)]);
        assert_eq!(doomed(&attempts, Keep { newest: 0, every: 0 }, 3).len(), 4);
    }
}
