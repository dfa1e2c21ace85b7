//! Where tables of links lie: a file that somebody names, a run's directory, or the user's cache.
//!
//! ```text
//! $XDG_CACHE_HOME or ~/.cache ─ muster/links/HOST-TRANSPORT-RANKS.json     of one host
//! runs/NAME/links.json                                                     for that run
//! ```
//!
//! Hosts of one job must choose alike, and caches differ from host to host: what several hosts
//! measured goes to a file that all of them read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use bench::collectives::Report;
use bench::collectives::curve::Curve;
use bench::collectives::links::LinkTable;
use data::DataError;

use crate::error::CliError;
use crate::out_file;
use crate::output::complain;

/// A table is a few KiB.
pub const TABLE_BYTES_MAX: u64 = 16 << 20;

/// The word for the cache.
const AUTO: &str = "auto";

/// This host's name.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Where the tables of this user are: what the XDG base directory specification says of caches. An
/// address that is not absolute is ignored, as it asks.
pub fn cache() -> Option<PathBuf> {
    cache_in(std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))
}

fn cache_in(cache: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: PathBuf| path.is_absolute().then_some(path);
    let cache = cache.map(PathBuf::from).and_then(absolute);
    let below_home = || home.map(|home| Path::new(&home).join(".cache")).and_then(absolute);
    Some(cache.or_else(below_home)?.join("muster").join("links"))
}

/// A table's name in the cache.
pub fn name(host: &str, transport: &str, ranks: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let host: String = host.chars().map(|c| if is_plain(c) { c } else { '_' }).collect();
    format!("{host}-{transport}-{ranks}.json")
}

/// Whether `--links` names the cache.
pub fn is_auto(links: &Path) -> bool {
    links == Path::new(AUTO)
}

/// Whether what `--links` names can be written, before anything is measured.
///
/// # Errors
/// A directory, or a cache that is not known or that several hosts do not share.
pub fn check(links: &Path, nodes: usize) -> Result<(), CliError> {
    if !is_auto(links) {
        return out_file::check(links).map(|_| ());
    }
    if nodes > 1 {
        return Err(CliError::mistake(
            "--links auto: hosts do not share a user's cache, and must choose alike; name a file \
             that all of them read, and give it to train as ranks.links",
        ));
    }
    let cache = cache().ok_or_else(|| {
        CliError::mistake(
            "--links auto: neither XDG_CACHE_HOME nor HOME is an absolute path; set one of them, \
             or name a file",
        )
    })?;
    let table = cache.join(name(&host_name(), "shm", 1));
    out_file::try_beside(&table).map_err(|error| CliError::file("write into", &cache, &error))
}

/// Writes the table of a report of a job of so many hosts, and says where.
///
/// # Errors
/// No curve has a fit; a file that cannot be written.
pub fn write(links: &Path, report: &Report, hosts: usize) -> Result<(), CliError> {
    let table = LinkTable::of(report, hosts);
    if table.curves.is_empty() {
        // There were sizes enough: times of some are missing.
        return Err(CliError::mistake(
            "--links: no case has a fit; measure more sizes (--min, --max, --factor)",
        ));
    }
    if !is_auto(links) {
        return out_file::write(links, table.to_json()?.as_bytes());
    }
    let (Some(cache), [host]) = (cache(), &table.hosts[..]) else {
        return check(links, table.hosts.len());
    };
    std::fs::create_dir_all(&cache).map_err(|error| CliError::file("make", &cache, &error))?;
    for ((transport, ranks), curves) in places(&table) {
        let path = cache.join(name(&host.name, &transport, ranks));
        out_file::write(&path, LinkTable { curves, ..table.clone() }.to_json()?.as_bytes())?;
        complain(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// The curves of each transport and number of ranks.
fn places(table: &LinkTable) -> BTreeMap<(String, usize), Vec<Curve>> {
    let mut places: BTreeMap<_, Vec<Curve>> = BTreeMap::new();
    for curve in &table.curves {
        if let (Some(transport), Some(ranks)) = (&curve.key.transport, curve.key.ranks) {
            places.entry((transport.clone(), ranks)).or_default().push(curve.clone());
        }
    }
    places
}

/// Reads a table.
///
/// # Errors
/// In words, without the path: what cannot be read, and what is no table of this version.
pub fn read(path: &Path) -> Result<LinkTable, String> {
    let bytes = data::input::read_file(path, TABLE_BYTES_MAX).map_err(|error| match error {
        DataError::IsDirectory { .. } => "it is a directory".to_owned(),
        error => error.to_string(),
    })?;
    let text = std::str::from_utf8(&bytes).map_err(|error| format!("it is no text: {error}"))?;
    LinkTable::from_json(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_specification_has_it() {
        let of = |cache: Option<&str>, home: Option<&str>| {
            cache_in(cache.map(OsString::from), home.map(OsString::from))
        };
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(of(Some("/c"), Some("/home/a")), at("/c/muster/links"));
        assert_eq!(of(None, Some("/home/a")), at("/home/a/.cache/muster/links"));
        assert_eq!(of(Some("relative"), Some("/home/a")), at("/home/a/.cache/muster/links"));
        assert_eq!((of(Some(""), None), of(None, Some("x"))), (None, None));
    }

    #[test]
    fn names_stay_within_the_cache() {
        assert_eq!(name("node-7", "shm", 4), "node-7-shm-4.json");
        assert_eq!(name("../x y", "tcp", 16), ".._x_y-tcp-16.json");
    }
}
