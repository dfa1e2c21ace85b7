//! The sources of an image: a file and all that it includes by `"…"`, and a digest of them.

use std::path::{Component, Path, PathBuf};

/// The file and those it includes, directly or not, relative to `root`, in the order of names.
///
/// Conditions are not looked at, so a file may be here that one target never reads; `<…>` belongs
/// to the compiler, whose version is in the digest by itself.
pub fn closure(root: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let mut open: Vec<PathBuf> = files.to_vec();
    let mut seen: Vec<PathBuf> = Vec::new();
    while let Some(file) = open.pop() {
        if seen.contains(&file) {
            continue;
        }
        let text = std::fs::read_to_string(root.join(&file))
            .map_err(|error| format!("{}: {error}", root.join(&file).display()))?;
        let beside = file.parent().unwrap_or(Path::new(""));
        for name in text.lines().filter_map(included) {
            let candidates = [plain(&beside.join(name)), PathBuf::from(name)];
            open.extend(candidates.into_iter().find(|path| root.join(path).is_file()));
        }
        seen.push(file);
    }
    seen.sort();
    Ok(seen)
}

/// `dev/dev.h` of `#include "dev/dev.h"`.
fn included(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    rest.trim_start().strip_prefix('"')?.split('"').next()
}

/// The path without `a/..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir if plain.file_name().is_some() => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// FNV-1a of 128 bits (Fowler, Noll, Vo) over parts, each with its length before it.
pub struct Digest(u128);

impl Default for Digest {
    fn default() -> Self {
        Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }
}

impl Digest {
    pub fn add(&mut self, part: &[u8]) {
        for &byte in (part.len() as u64).to_le_bytes().iter().chain(part) {
            self.0 = (self.0 ^ u128::from(byte)).wrapping_mul((1 << 88) | 0x13b);
        }
    }

    pub fn finish(self) -> u128 {
        self.0
    }
}
