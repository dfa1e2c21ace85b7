//! Object stores as a [`Disk`]: S3, Google's, Azure's, and what speaks their protocols.
//!
//! | a disk's | here |
//! |---|---|
//! | file | an object, which appears whole when its writer syncs it, and only where there is none |
//! | directory | a prefix that has objects; its creation, exclusively, one named `.directory` |
//! | link | a conditional put of the same bytes: what makes `COMMIT`; of a long object, a copy |
//! | fsync | nothing more: what a store has acknowledged is durable, names and bytes alike |
//!
//! Needed of a store: that it lists and reads what it has acknowledged, at once, and honours
//! `If-None-Match: *`. The latter is tried, since a store that ignores it says nothing.

mod connect;
mod error;
mod exclusive;
mod object;
mod parts;
mod place;
mod remote;
mod upload;

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path as Key;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};

pub use error::ObjectError;
pub use place::is_url;
pub use remote::{Limits, Service, upload_bytes};

use crate::disk::{DirEntry, Disk, Free, Kind, NotAFile, ReadFile, Stat, WriteFile};
use place::{Bucket, Place};
use remote::Remote;

/// The object that stands for a directory: whoever creates it has created that.
pub(crate) const DIRECTORY: &str = ".directory";

/// Enough that a store's answers, tens of milliseconds each, do not make a thousand files slow;
/// each holds up to two times 4 MiB where bytes are read.
const REQUESTS_AT_ONCE: usize = 8;

/// Looks whether a path is a URL that can be one, without asking anybody.
///
/// # Errors
/// It is none of an object store.
pub fn check(path: &Path) -> Result<(), ObjectError> {
    Place::parse(path).map(drop)
}

/// The object stores that URLs name. Connections are made when they are needed, once a process.
#[derive(Clone, Default)]
pub struct ObjectDisk {
    /// In place of the services that the environment describes.
    fixed: Option<Remote>,
    known: Arc<Mutex<HashMap<Bucket, Remote>>>,
    /// Whether the store has shown that it honours conditions.
    is_proven: Arc<AtomicBool>,
}

impl ObjectDisk {
    /// A disk on which every bucket is this service's one: a store in memory, say.
    pub fn of(service: Arc<dyn Service>, limits: Limits) -> ObjectDisk {
        let advice = error::Advice {
            bucket: "this store".to_owned(),
            variables: "its credentials",
            endpoint: "its address",
            region: "its region",
            seconds: limits.total.as_secs(),
        };
        let fixed = Some(Remote::new(service, limits, advice));
        ObjectDisk { fixed, ..ObjectDisk::default() }
    }

    fn at(&self, path: &Path) -> Result<(Remote, Key), ObjectError> {
        let Place { bucket, key } = Place::parse(path)?;
        if let Some(remote) = &self.fixed {
            return Ok((remote.clone(), key));
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = known.get(&bucket) {
            return Ok((remote.clone(), key));
        }
        let remote = connect::connect(&bucket)?;
        known.insert(bucket, remote.clone());
        Ok((remote, key))
    }

    /// Creates a small object; the first time, tries whether the store would do so twice.
    fn create(&self, path: &Path, bytes: Bytes) -> Result<(), ObjectError> {
        let (remote, key) = self.at(path)?;
        exclusive::create(&remote, &key, bytes.clone())?;
        if self.is_proven.load(Ordering::Relaxed) {
            return Ok(());
        }
        match exclusive::create(&remote, &key, bytes) {
            Err(ObjectError::Exists) => {
                self.is_proven.store(true, Ordering::Relaxed);
                Ok(())
            }
            Ok(()) => Err(ObjectError::Unsupported {
                bucket: remote.advice.bucket.clone(),
                reason: "it overwrites an object although the request says `If-None-Match: *`, so \
                         that two jobs could commit over each other"
                    .to_owned(),
            }),
            Err(error) => Err(error),
        }
    }

    fn bytes(&self, path: &Path) -> Result<Bytes, ObjectError> {
        let (remote, key) = self.at(path)?;
        let service = remote.service.clone();
        remote.ask(async move { service.get(&key).await?.bytes().await })
    }

    fn head(&self, path: &Path) -> Result<(Remote, Key, ObjectMeta), ObjectError> {
        let (remote, key) = self.at(path)?;
        if key.as_ref().is_empty() {
            return Err(ObjectError::NotFound);
        }
        let (service, of) = (remote.service.clone(), key.clone());
        let meta = match remote.ask(async move { service.head(&of).await }) {
            // Such an answer has no body that would say why; that to a list has.
            Err(error) if !matches!(error, ObjectError::NotFound) => {
                first_under(&remote, &key)?;
                return Err(error);
            }
            meta => meta?,
        };
        Ok((remote, key, meta))
    }

    fn entries(&self, path: &Path) -> Result<Vec<DirEntry>, ObjectError> {
        let (remote, key) = self.at(path)?;
        let (service, of) = (remote.service.clone(), key.clone());
        let found = remote.ask(async move { service.list_with_delimiter(some(&of)).await })?;
        if found.objects.is_empty() && found.common_prefixes.is_empty() && !is_root(&key) {
            return Err(ObjectError::NotFound);
        }
        let name = |key: &Key| OsString::from(key.filename().unwrap_or_default());
        let dirs = found.common_prefixes.iter().map(|key| (name(key), Kind::Dir));
        let files = found.objects.iter().map(|meta| (name(&meta.location), Kind::File));
        let mut entries: Vec<DirEntry> = dirs
            .chain(files)
            .filter(|(name, _)| !name.is_empty() && name != DIRECTORY)
            .map(|(name, kind)| DirEntry { name, kind })
            .collect();
        entries.sort();
        Ok(entries)
    }

    fn remove_prefix(&self, path: &Path) -> Result<(), ObjectError> {
        let (remote, key) = self.at(path)?;
        let service = remote.service.clone();
        remote.ask(async move {
            let found = service.list(some(&key)).map_ok(|meta| meta.location).boxed();
            let mut keys: Vec<Key> = found.try_collect().await?;
            // The one that stands for the directory goes last: it is there as long as anything is.
            keys.sort_by_key(|key| key.filename() == Some(DIRECTORY));
            let keys = futures_util::stream::iter(keys).map(Ok).boxed();
            let removed = service.delete_stream(keys);
            let missing =
                |error: &object_store::Error| matches!(error, object_store::Error::NotFound { .. });
            let tell = |result| async {
                match result {
                    Err(error) if missing(&error) => Ok(()),
                    result => result.map(drop),
                }
            };
            removed.then(tell).try_collect::<Vec<()>>().await.map(drop)
        })
    }
}

fn is_root(key: &Key) -> bool {
    key.as_ref().is_empty()
}

fn some(key: &Key) -> Option<&Key> {
    (!is_root(key)).then_some(key)
}

/// Some object under a prefix, if there is one.
fn first_under(remote: &Remote, key: &Key) -> Result<Option<Key>, ObjectError> {
    let (service, key) = (remote.service.clone(), key.clone());
    remote.ask(async move {
        let first = service.list(some(&key)).next().await;
        first.transpose().map(|meta| meta.map(|meta| meta.location))
    })
}

/// Lets the store copy a long object to a name in a directory that is ours alone; what must be
/// created by one of several is short.
fn copy(remote: &Remote, from: Key, to: Key, bytes: u64) -> Result<(), ObjectError> {
    let size = |of: &Key| -> Result<Option<u64>, ObjectError> {
        let (service, of) = (remote.service.clone(), of.clone());
        match remote.ask(async move { service.head(&of).await }) {
            Err(ObjectError::NotFound) => Ok(None),
            meta => meta.map(|meta| Some(meta.size)),
        }
    };
    if size(&to)?.is_some() {
        return Err(ObjectError::Exists);
    }
    let (service, target) = (remote.service.clone(), to.clone());
    match remote.ask(async move { service.copy(&from, &target).await }) {
        Err(error) if error.is_outage() && size(&to)? == Some(bytes) => Ok(()),
        result => result,
    }
}

impl Disk for ObjectDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let (remote, key) = self.at(path)?;
        Ok(Box::new(upload::Upload::new(remote, key)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        match self.head(path) {
            Ok((remote, key, meta)) => Ok(Box::new(object::Object::new(remote, key, meta))),
            Err(ObjectError::NotFound) => match self.stat(path)?.kind {
                Kind::Dir => Err(NotAFile(Kind::Dir).into()),
                _ => Err(ObjectError::NotFound.into()),
            },
            Err(error) => Err(error.into()),
        }
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        match self.head(path) {
            Ok((_, _, meta)) => Ok(Stat { kind: Kind::File, bytes: meta.size }),
            Err(ObjectError::NotFound) => {
                let (remote, key) = self.at(path)?;
                match first_under(&remote, &key)? {
                    None if !is_root(&key) => Err(ObjectError::NotFound.into()),
                    _ => Ok(Stat { kind: Kind::Dir, bytes: 0 }),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    fn link_target(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Ok(self.create(&path.join(DIRECTORY), Bytes::new())?)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn link(&self, existing: &Path, new: &Path) -> io::Result<()> {
        let (remote, from, meta) = self.head(existing)?;
        if meta.size <= remote.limits.part_bytes as u64 {
            let bytes = self.bytes(existing)?;
            return Ok(self.create(new, bytes)?);
        }
        let (_, to) = self.at(new)?;
        Ok(copy(&remote, from, to, meta.size)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (remote, key) = self.at(path)?;
        let service = remote.service.clone();
        Ok(remote.ask(async move { service.delete(&key).await })?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        match self.entries(path) {
            Ok(entries) if !entries.is_empty() => Err(ObjectError::NotEmpty.into()),
            Ok(_) => self.remove_file(&path.join(DIRECTORY)),
            // It was nothing but what it held.
            Err(ObjectError::NotFound) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn remove_tree(&self, path: &Path) -> Option<io::Result<()>> {
        Some(self.remove_prefix(path).map_err(io::Error::from))
    }

    fn at_once(&self, _: &Path) -> usize {
        REQUESTS_AT_ONCE
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        Ok(self.entries(path)?)
    }

    fn free(&self, _: &Path) -> Option<Free> {
        None
    }
}
