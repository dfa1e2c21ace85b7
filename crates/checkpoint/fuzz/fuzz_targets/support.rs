//! A checkpoint in memory whose files vouch for each other, whatever one of them says.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use checkpoint::disk::{DirEntry, Disk, Free, Kind, ReadFile, Stat, WriteFile};
use checkpoint::{Digest, RANGE_BYTES};

pub const DIR: &str = "/checkpoint";
pub const SHARD: &str = "rank-00000/shard-000.safetensors";
pub const SUMS: &str = "rank-00000/shard-000.sums";

/// Files, by their path in [`DIR`]; nothing can be written.
#[derive(Default, Clone)]
pub struct Files(BTreeMap<PathBuf, Arc<[u8]>>);

struct Open(Arc<[u8]>);

impl ReadFile for Open {
    fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        let count = out.len().min(self.0.len() - start);
        out[..count].copy_from_slice(&self.0[start..start + count]);
        Ok(count)
    }
}

fn refused<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl Disk for Files {
    fn create_new(&self, _: &Path) -> io::Result<Box<dyn WriteFile>> {
        refused()
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let bytes = self.0.get(path).ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(Open(Arc::clone(bytes))))
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let is_dir = self.0.keys().any(|name| name != path && name.starts_with(path));
        match self.0.get(path) {
            Some(bytes) => Ok(Stat { kind: Kind::File, bytes: bytes.len() as u64 }),
            None if is_dir => Ok(Stat { kind: Kind::Dir, bytes: 0 }),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn link_target(&self, _: &Path) -> Option<PathBuf> {
        None
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn link(&self, _: &Path, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        refused()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries: Vec<DirEntry> = Vec::new();
        for name in self.0.keys() {
            let Ok(rest) = name.strip_prefix(path) else { continue };
            let mut parts = rest.iter();
            let Some(first) = parts.next() else { continue };
            let kind = if parts.next().is_some() { Kind::Dir } else { Kind::File };
            entries.push(DirEntry { name: first.to_owned(), kind });
        }
        entries.sort();
        entries.dedup();
        Ok(entries)
    }

    fn free(&self, _: &Path) -> Option<Free> {
        None
    }
}

impl Files {
    pub fn with(mut self, name: &str, bytes: &[u8]) -> Files {
        self.0.insert(Path::new(DIR).join(name), bytes.into());
        self
    }

    /// With a manifest, and a `COMMIT` that vouches for it.
    pub fn committed(self, manifest: &[u8]) -> Files {
        let lines = format!(
            "muster-checkpoint 1\nmanifest-bytes {}\nmanifest-blake3 {}\n",
            manifest.len(),
            Digest::of(manifest)
        );
        let commit = summed(lines.as_bytes());
        self.with("manifest.json", manifest).with("COMMIT", &commit)
    }

    pub fn disk(self) -> Arc<dyn Disk> {
        Arc::new(self)
    }
}

/// Lines of a `COMMIT`, and the line of their sum.
pub fn summed(lines: &[u8]) -> Vec<u8> {
    let sum = crc_fast::crc32_iscsi(lines);
    [lines, format!("crc32c {sum:08x}\n").as_bytes()].concat()
}

/// The table of sums of a shard.
pub fn table(shard: &[u8]) -> Vec<u8> {
    let mut table = b"MUSTSUMS".to_vec();
    table.extend_from_slice(&1_u32.to_le_bytes());
    table.extend_from_slice(&(RANGE_BYTES as u32).to_le_bytes());
    table.extend_from_slice(&(shard.len() as u64).to_le_bytes());
    for range in shard.chunks(RANGE_BYTES as usize) {
        table.extend_from_slice(&crc_fast::crc32_iscsi(range).to_le_bytes());
    }
    table
}

/// A manifest of one shard, which ends with the 24 bytes of `w:param`, f32 `[2, 3]`.
pub fn manifest(shard_bytes: u64, sums: &[u8]) -> Vec<u8> {
    let digest = Digest::of(b"").to_string();
    serde_json::to_vec(&serde_json::json!({
        "format": "muster-checkpoint", "format_version": 1,
        "step": 3, "generation": 1, "world": 1,
        "run_state": {
            "muster_version": "0.1.0", "step": 3, "samples": 1, "tokens": 2, "seed": 3,
            "rng_counter": 0, "config_digest": digest, "numeric_plan_digest": digest,
            "schedule": null, "extra": null
        },
        "schema": [{
            "name": "w", "shape": [2, 3], "role": "matrix", "parts": [],
            "published_transposed": false, "fused": false
        }],
        "files": [{
            "path": SHARD, "bytes": shard_bytes, "sums_blake3": Digest::of(sums).to_string(),
            "data_blake3": null
        }],
        "tensors": [{
            "name": "w", "slot": "param", "dtype": "F32", "shape": [2, 3],
            "chunks": [{
                "offset": [0, 0], "shape": [2, 3], "file": 0,
                "range": [shard_bytes - 24, shard_bytes]
            }]
        }]
    }))
    .unwrap()
}

/// As the writer makes it.
pub fn shard(json: &[u8]) -> Vec<u8> {
    let start = (8 + json.len()).next_multiple_of(4096);
    let mut shard = (start as u64 - 8).to_le_bytes().to_vec();
    shard.extend_from_slice(json);
    shard.resize(start, b' ');
    shard.extend((0..6_u8).flat_map(|i| f32::from(i).to_le_bytes()));
    shard
}

/// The header of that shard.
pub const HEADER: &[u8] = br#"{
    "__metadata__": {"muster.format_version": "1", "muster.rank": "0", "muster.shard": "0"},
    "w:param[0,0]": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
}"#;
