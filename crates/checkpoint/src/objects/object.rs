//! An object open for reading: its bytes of one version, or an error.

use std::io;

use object_store::path::Path as Key;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStore};

use super::error::ObjectError;
use super::remote::Remote;
use crate::disk::ReadFile;

/// An object as it was when it was opened.
pub(super) struct Object {
    remote: Remote,
    key: Key,
    meta: ObjectMeta,
}

impl Object {
    pub(super) fn new(remote: Remote, key: Key, meta: ObjectMeta) -> Object {
        Object { remote, key, meta }
    }

    /// The bytes from `start` to `end`, within the object.
    fn get(&self, start: u64, end: u64) -> Result<bytes::Bytes, ObjectError> {
        let options = GetOptions {
            range: Some(GetRange::Bounded(start..end)),
            if_match: self.meta.e_tag.clone(),
            version: self.meta.version.clone(),
            ..GetOptions::default()
        };
        let (service, key, size) = (self.remote.service.clone(), self.key.clone(), self.meta.size);
        let got = self.remote.ask(async move {
            let result = service.get_opts(&key, options).await?;
            let same = result.meta.size == size && result.range == (start..end);
            result.bytes().await.map(|bytes| same.then_some(bytes))
        })?;
        // Of a service that knows no condition, the length alone tells.
        got.filter(|bytes| bytes.len() as u64 == end - start).ok_or(ObjectError::Changed)
    }
}

impl ReadFile for Object {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let end = self.meta.size.min(offset.saturating_add(out.len() as u64));
        if offset >= end {
            return Ok(0);
        }
        let bytes = self.get(offset, end)?;
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    fn is_far(&self) -> bool {
        true
    }
}
