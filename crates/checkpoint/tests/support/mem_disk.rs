//! A disk in memory that counts operations, fails or crashes at any of them, and knows what
//! would survive a power cut.
//!
//! The bytes of a file and the names in a directory are durable apart from each other: each is
//! what it was at its last successful fsync, plus whatever part of the later changes the
//! kernel happened to write out. [`Model`] says which part.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::OsString;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use checkpoint::disk::{DirEntry, Disk, Free, Kind, NotAFile, ReadFile, Stat, WriteFile};

use super::Rng;

/// The fault at the chosen operation.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// The machine stops: a write is torn, nothing after it happens.
    Crash,
    /// This one operation fails.
    Fail(io::ErrorKind),
}

/// The bytes and names that survive a crash.
#[derive(Debug, Clone, Copy)]
pub enum Model {
    /// Every completed operation.
    Everything,
    /// Only what was fsynced, bytes and names.
    SyncedOnly,
    /// Every name; of bytes that were not fsynced only the length.
    NamesWithoutBytes,
    /// Each changed name and each 512-byte sector by a coin of this seed.
    Coins(u64),
}

#[derive(Clone)]
enum Node {
    File { bytes: Vec<u8>, synced: Vec<u8> },
    Dir { names: BTreeMap<OsString, usize>, synced: BTreeMap<OsString, usize> },
}

#[derive(Clone)]
struct Inner {
    /// Nodes are never reused, so that a removed name that is still durable finds its own.
    nodes: Vec<Node>,
    operations: u64,
    /// Bytes that were read.
    read_bytes: u64,
    fault: Option<(u64, Fault)>,
    crashed: bool,
    /// Files whose fsync has failed: to try again would be to trust it.
    unsyncable: HashSet<usize>,
    /// Names whose change a directory's failed fsync has lost: a later one does not bring
    /// them to the disk unless they change again.
    lost: BTreeMap<(usize, OsString), Option<usize>>,
    capacity_bytes: Option<u64>,
    /// The room that the disk reports.
    free: Option<Free>,
    /// A file that another process makes just before the next link.
    rival: Option<PathBuf>,
    max_transfer: usize,
    rng: u64,
}

/// The disk; clones share it.
#[derive(Clone)]
pub struct MemDisk(Arc<Mutex<Inner>>);

impl MemDisk {
    /// An empty disk.
    pub fn new() -> MemDisk {
        MemDisk(Arc::new(Mutex::new(Inner {
            nodes: vec![Node::Dir { names: BTreeMap::new(), synced: BTreeMap::new() }],
            operations: 0,
            read_bytes: 0,
            fault: None,
            crashed: false,
            unsyncable: HashSet::new(),
            lost: BTreeMap::new(),
            capacity_bytes: None,
            free: None,
            rival: None,
            max_transfer: usize::MAX,
            rng: 1,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// A disk of its own with the same contents, the same durability and no fault.
    pub fn fork(&self) -> MemDisk {
        let mut inner = self.lock().clone();
        (inner.operations, inner.fault, inner.crashed) = (0, None, false);
        MemDisk(Arc::new(Mutex::new(inner)))
    }

    /// Lets operation number `at` (from 0, counted from the fork) fail.
    pub fn inject(&self, at: u64, fault: Fault) {
        self.lock().fault = Some((at, fault));
    }

    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    pub fn read_bytes(&self) -> u64 {
        self.lock().read_bytes
    }

    /// Transfers at most so many bytes by one read or write.
    pub fn limit_transfers(&self, max: usize) {
        self.lock().max_transfer = max;
    }

    /// Says that the disk is full once this many more bytes are written.
    pub fn limit_capacity(&self, bytes: u64) {
        self.lock().capacity_bytes = Some(bytes);
    }

    /// Makes the disk report this room, whatever it has.
    pub fn say_free(&self, free: Free) {
        self.lock().free = Some(free);
    }

    /// Lets another process make a file just before the next link.
    pub fn make_before_link(&self, path: &str) {
        self.lock().rival = Some(path.into());
    }

    /// The disk as it is after the power comes back.
    pub fn survivor(&self, model: Model) -> MemDisk {
        let survivor = self.fork();
        let mut rng = Rng(match model {
            Model::Coins(seed) => seed,
            _ => 0,
        });
        for node in &mut survivor.lock().nodes {
            match node {
                Node::File { bytes, synced } => {
                    *bytes = surviving_bytes(model, bytes, synced, &mut rng);
                    synced.clone_from(bytes);
                }
                Node::Dir { names, synced } => {
                    *names = surviving_names(model, names, synced, &mut rng);
                    synced.clone_from(names);
                }
            }
        }
        survivor
    }

    /// Every file with its bytes.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        let inner = self.lock();
        let mut files = Vec::new();
        let mut pending = vec![(String::new(), 0)];
        while let Some((path, node)) = pending.pop() {
            match &inner.nodes[node] {
                Node::File { bytes, .. } => files.push((path, bytes.clone())),
                Node::Dir { names, .. } => pending.extend(
                    names.iter().map(|(name, node)| (format!("{path}/{}", name.display()), *node)),
                ),
            }
        }
        files.sort();
        files
    }

    /// Gives what lies under a path a second name, as `cp -r` would.
    pub fn copy(&self, from: &str, to: &str) {
        let mut inner = self.lock();
        let node = inner.find(Path::new(from)).unwrap();
        let copy = inner.clone_tree(node);
        inner.give_name(Path::new(to), copy).unwrap();
    }

    /// Removes a file, as somebody might.
    pub fn remove(&self, path: &str) {
        let mut inner = self.lock();
        let (names, name) = inner.place(Path::new(path)).unwrap();
        names.remove(&name).unwrap();
    }

    /// Replaces a file's bytes, as a failing disk or a stray program might.
    pub fn tamper(&self, path: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut inner = self.lock();
        let node = inner.find(Path::new(path)).unwrap();
        match &mut inner.nodes[node] {
            Node::File { bytes, .. } => change(bytes),
            Node::Dir { .. } => panic!("{path} is a directory"),
        }
    }
}

fn surviving_bytes(model: Model, bytes: &[u8], synced: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut left = match model {
        Model::Everything => bytes.to_vec(),
        Model::SyncedOnly => synced.to_vec(),
        Model::NamesWithoutBytes => vec![0; bytes.len()],
        Model::Coins(_) => {
            let length = synced.len() + rng.below(bytes.len() - synced.len() + 1);
            let mut left = bytes[..length].to_vec();
            for sector in left.chunks_mut(512) {
                if rng.coin() {
                    sector.fill(0);
                }
            }
            left
        }
    };
    left[..synced.len()].copy_from_slice(synced);
    left
}

type Names = BTreeMap<OsString, usize>;

fn surviving_names(model: Model, names: &Names, synced: &Names, rng: &mut Rng) -> Names {
    match model {
        Model::Everything | Model::NamesWithoutBytes => names.clone(),
        Model::SyncedOnly => synced.clone(),
        Model::Coins(_) => {
            let all: BTreeSet<&OsString> = names.keys().chain(synced.keys()).collect();
            all.into_iter()
                .filter_map(|name| {
                    let from = if rng.coin() { names } else { synced };
                    from.get(name).map(|node| (name.clone(), *node))
                })
                .collect()
        }
    }
}

fn error(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

impl Inner {
    /// Counts an operation; fails where it is the chosen one.
    fn operation(&mut self) -> io::Result<()> {
        if self.crashed {
            return Err(io::Error::other("the machine is down"));
        }
        let number = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, Fault::Crash)) if at == number => {
                self.crashed = true;
                Err(io::Error::other("the power failed"))
            }
            Some((at, Fault::Fail(kind))) if at == number => Err(error(kind)),
            _ => Ok(()),
        }
    }

    fn find(&self, path: &Path) -> io::Result<usize> {
        path.components().try_fold(0, |node, component| match (component, &self.nodes[node]) {
            (Component::RootDir, _) => Ok(node),
            (Component::Normal(name), Node::Dir { names, .. }) => {
                names.get(name).copied().ok_or_else(|| error(io::ErrorKind::NotFound))
            }
            _ => Err(error(io::ErrorKind::NotADirectory)),
        })
    }

    /// The names of the directory that holds `path`, and the last name of it.
    fn place(&mut self, path: &Path) -> io::Result<(&mut Names, OsString)> {
        let parent = self.find(path.parent().unwrap())?;
        match &mut self.nodes[parent] {
            Node::Dir { names, .. } => Ok((names, path.file_name().unwrap().to_owned())),
            Node::File { .. } => Err(error(io::ErrorKind::NotADirectory)),
        }
    }

    fn add(&mut self, path: &Path, node: Node) -> io::Result<usize> {
        let number = self.nodes.len();
        self.give_name(path, number)?;
        self.nodes.push(node);
        Ok(number)
    }

    fn clone_tree(&mut self, node: usize) -> usize {
        let mut copy = self.nodes[node].clone();
        if let Node::Dir { names, synced } = &mut copy {
            names.values_mut().for_each(|node| *node = self.clone_tree(*node));
            synced.clone_from(names);
        }
        self.nodes.push(copy);
        self.nodes.len() - 1
    }

    fn give_name(&mut self, path: &Path, number: usize) -> io::Result<()> {
        let (names, name) = self.place(path)?;
        if names.contains_key(&name) {
            return Err(error(io::ErrorKind::AlreadyExists));
        }
        names.insert(name, number);
        Ok(())
    }

    fn sync(&mut self, number: usize) -> io::Result<()> {
        assert!(!self.unsyncable.contains(&number), "a failed fsync was tried again");
        let result = self.operation();
        match &mut self.nodes[number] {
            Node::File { .. } if result.is_err() => {
                self.unsyncable.insert(number);
            }
            Node::File { bytes, synced } => synced.clone_from(bytes),
            Node::Dir { names, synced } => {
                let all: BTreeSet<OsString> = names.keys().chain(synced.keys()).cloned().collect();
                for name in all {
                    let now = names.get(&name).copied();
                    let key = (number, name);
                    if now == synced.get(&key.1).copied() || self.lost.get(&key) == Some(&now) {
                        continue;
                    }
                    match (now, result.is_err()) {
                        (_, true) => drop(self.lost.insert(key, now)),
                        (Some(node), false) => drop(synced.insert(key.1, node)),
                        (None, false) => drop(synced.remove(&key.1)),
                    }
                }
            }
        }
        result
    }
}

struct OpenFile {
    disk: MemDisk,
    node: usize,
}

impl OpenFile {
    /// Writes at an offset, or at the end.
    fn put(&self, wanted: &[u8], offset: Option<u64>) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        let result = inner.operation();
        let was_up = result.is_err() && inner.crashed && inner.operations > 0;
        let mut count = wanted.len().min(inner.max_transfer);
        if was_up {
            // Torn: some first part of the write may have come through.
            let mut rng = Rng(inner.rng);
            count = rng.below(count + 1);
            inner.rng = rng.next();
        }
        if let Some(left) = &mut inner.capacity_bytes {
            if *left == 0 {
                return Err(error(io::ErrorKind::StorageFull));
            }
            count = count.min(*left as usize);
            *left -= count as u64;
        }
        if let (Node::File { bytes, .. }, true) =
            (&mut inner.nodes[self.node], result.is_ok() || was_up)
        {
            let at = offset.map_or(bytes.len(), |offset| offset as usize);
            let end = bytes.len().max(at + count);
            bytes.resize(end, 0);
            bytes[at..at + count].copy_from_slice(&wanted[..count]);
        }
        result.map(|()| count)
    }
}

impl WriteFile for OpenFile {
    fn write(&mut self, wanted: &[u8]) -> io::Result<usize> {
        self.put(wanted, None)
    }

    fn write_at(&self, wanted: &[u8], offset: u64) -> io::Result<usize> {
        self.put(wanted, Some(offset))
    }

    fn sync(&mut self) -> io::Result<()> {
        self.disk.lock().sync(self.node)
    }
}

impl ReadFile for OpenFile {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut inner = self.disk.lock();
        inner.operation()?;
        let Node::File { bytes, .. } = &inner.nodes[self.node] else {
            return Err(error(io::ErrorKind::IsADirectory));
        };
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = out.len().min(rest.len()).min(inner.max_transfer);
        out[..count].copy_from_slice(&rest[..count]);
        inner.read_bytes += count as u64;
        Ok(count)
    }
}

impl Disk for MemDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let mut inner = self.lock();
        inner.operation()?;
        let node = inner.add(path, Node::File { bytes: Vec::new(), synced: Vec::new() })?;
        Ok(Box::new(OpenFile { disk: self.clone(), node }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let mut inner = self.lock();
        inner.operation()?;
        let node = inner.find(path)?;
        match &inner.nodes[node] {
            Node::File { .. } => Ok(Box::new(OpenFile { disk: self.clone(), node })),
            Node::Dir { .. } => Err(NotAFile(Kind::Dir).into()),
        }
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut inner = self.lock();
        inner.operation()?;
        let node = inner.find(path)?;
        Ok(match &inner.nodes[node] {
            Node::File { bytes, .. } => Stat { kind: Kind::File, bytes: bytes.len() as u64 },
            Node::Dir { .. } => Stat { kind: Kind::Dir, bytes: 0 },
        })
    }

    fn link_target(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operation()?;
        inner.add(path, Node::Dir { names: BTreeMap::new(), synced: BTreeMap::new() })?;
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        let node = inner.find(path)?;
        inner.sync(node)
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operation()?;
        if let Some(rival) = inner.rival.take() {
            inner.add(&rival, Node::File { bytes: Vec::new(), synced: Vec::new() })?;
        }
        let node = inner.find(existing)?;
        inner.give_name(new, node)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operation()?;
        let (names, name) = inner.place(path)?;
        names.remove(&name).map(|_| ()).ok_or_else(|| error(io::ErrorKind::NotFound))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.lock();
        inner.operation()?;
        let node = inner.find(path)?;
        if matches!(&inner.nodes[node], Node::Dir { names, .. } if !names.is_empty()) {
            return Err(error(io::ErrorKind::DirectoryNotEmpty));
        }
        let (names, name) = inner.place(path)?;
        names.remove(&name);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut inner = self.lock();
        inner.operation()?;
        let node = inner.find(path)?;
        let Node::Dir { names, .. } = &inner.nodes[node] else {
            return Err(error(io::ErrorKind::NotADirectory));
        };
        let kind = |node: &usize| match inner.nodes[*node] {
            Node::Dir { .. } => Kind::Dir,
            Node::File { .. } => Kind::File,
        };
        Ok(names
            .iter()
            .map(|(name, node)| DirEntry { name: name.clone(), kind: kind(node) })
            .collect())
    }

    fn free(&self, _: &Path) -> Option<Free> {
        self.lock().free
    }
}
