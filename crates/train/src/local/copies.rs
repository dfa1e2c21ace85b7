//! Copies of a rank's files on the next host.
//!
//! All ranks send a block of theirs and receive one of each rank whose files they keep, in rounds,
//! until the one with the most to send has sent all. Memory: one block, and one for each such rank.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use comm::{Group, Op, P2p, World};
use device::{DType, Device, Stream, Tensor};

use super::hosts::Hosts;
use crate::TrainError;

/// Bytes of a block.
const BLOCK: u64 = 4 << 20;

/// All that a rank needs to send its files and to keep those of others.
pub(super) struct Copies {
    rank: usize,
    keeper: usize,
    kept: Vec<usize>,
    group: Group,
    stream: Stream,
    out: Tensor,
    /// Of each rank in `kept`.
    into: Vec<Tensor>,
}

impl Copies {
    /// Collective, over several hosts.
    ///
    /// # Errors
    /// Memory; lost peers.
    pub(super) fn new(world: &World, hosts: &Hosts) -> Result<Copies, TrainError> {
        let (rank, device) = (world.rank(), Device::cpu(1)?);
        let (keeper, kept) = (hosts.keeper(rank).unwrap_or(rank), hosts.kept_by(rank));
        let (group, stream) = (world.group(&device)?, device.stream());
        let block = || device.zeros(&[BLOCK as usize], DType::U8);
        let into = kept.iter().map(|_| block()).collect::<Result<_, _>>()?;
        Ok(Copies { rank, keeper, kept, group, stream, out: block()?, into })
    }

    /// Copies the files of all ranks below `dir`, of which `names` has names and lengths for each
    /// rank, to the hosts of their keepers. Collective.
    ///
    /// # Errors
    /// Lost peers at once; the first failed read or write at the end, since others wait for what
    /// comes after.
    pub(super) fn copy(&self, dir: &Path, names: &[Vec<(String, u64)>]) -> Result<(), TrainError> {
        let total = |rank: usize| names[rank].iter().map(|(_, bytes)| bytes).sum::<u64>();
        let most = (0..names.len()).map(total).max().unwrap_or(0);
        let mut own = Strip::new(dir, &names[self.rank]);
        let mut kept: Vec<Strip> =
            self.kept.iter().map(|&rank| Strip::new(dir, &names[rank])).collect();
        let (mut outcome, mut bytes) = (Ok(()), Vec::new());
        for start in (0..most).step_by(BLOCK as usize) {
            let count = |rank: usize| total(rank).saturating_sub(start).min(BLOCK) as usize;
            let mut messages = Vec::new();
            bytes.resize(count(self.rank), 0);
            if !bytes.is_empty() {
                outcome = outcome.and_then(|()| own.read(&mut bytes));
                let tensor = self.out.flat(0..bytes.len())?;
                self.stream.copy_in(&tensor, &bytes)?;
                messages.push(P2p::Send { to: self.keeper, tensor });
            }
            for (&from, into) in self.kept.iter().zip(&self.into) {
                if count(from) > 0 {
                    messages.push(P2p::Receive { from, tensor: into.flat(0..count(from))? });
                }
            }
            self.group.run(&self.stream, Op::Exchange(messages))?;
            for ((&from, into), strip) in self.kept.iter().zip(&self.into).zip(&mut kept) {
                bytes.resize(count(from), 0);
                if !bytes.is_empty() {
                    self.stream.copy_out(&into.flat(0..bytes.len())?, &mut bytes)?;
                    outcome = outcome.and_then(|()| strip.write(&bytes));
                }
            }
        }
        let outcome = kept.iter_mut().fold(outcome, |all, strip| all.and_then(|()| strip.end()));
        outcome.map_err(|(path, source)| TrainError::LocalDir { path, source })
    }
}

/// A failure at a file.
type Failed = (PathBuf, io::Error);

/// Files one after another, as one run of bytes that is walked once.
struct Strip {
    /// Those to come, the next one last.
    files: Vec<(PathBuf, u64)>,
    open: Option<(PathBuf, File)>,
    /// In the open file, and bytes left of it.
    at: u64,
    left: u64,
}

impl Strip {
    fn new(dir: &Path, names: &[(String, u64)]) -> Strip {
        let files = names.iter().rev().map(|(name, bytes)| (dir.join(name), *bytes)).collect();
        Strip { files, open: None, at: 0, left: 0 }
    }

    /// Walks on by `count` bytes: `each` gets a file, the place in it, and which of the bytes.
    fn walk(
        &mut self,
        count: usize,
        open: impl Fn(&Path) -> io::Result<File>,
        mut each: impl FnMut(&mut File, u64, std::ops::Range<usize>) -> io::Result<()>,
    ) -> Result<(), Failed> {
        let mut done = 0;
        while done < count {
            if self.left == 0 {
                self.end()?;
                let Some((path, bytes)) = self.files.pop() else {
                    return Err((PathBuf::new(), io::ErrorKind::UnexpectedEof.into()));
                };
                let file = open(&path).map_err(|error| (path.clone(), error))?;
                (self.open, self.at, self.left) = (Some((path, file)), 0, bytes);
                continue;
            }
            let part = (self.left as usize).min(count - done);
            if let Some((path, file)) = &mut self.open {
                let done = each(file, self.at, done..done + part);
                done.map_err(|error| (path.clone(), error))?;
            }
            (self.at, self.left) = (self.at + part as u64, self.left - part as u64);
            done += part;
        }
        Ok(())
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), Failed> {
        let count = bytes.len();
        self.walk(
            count,
            |path| File::open(path),
            |file, at, part| file.read_exact_at(&mut bytes[part], at),
        )
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failed> {
        let create = |path: &Path| {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            OpenOptions::new().write(true).create_new(true).open(path)
        };
        self.walk(bytes.len(), create, |file, _, part| file.write_all(&bytes[part]))
    }

    /// Makes what was written to the open file durable.
    fn end(&mut self) -> Result<(), Failed> {
        match self.open.take() {
            Some((path, file)) => file.sync_all().map_err(|error| (path, error)),
            None => Ok(()),
        }
    }
}
