//! Real text without a download: the sources of crates that cargo has unpacked on this machine.
//!
//! Names become versions through the lock file, so that a list of names means the same text
//! everywhere the same program was built. Cargo is not asked: its metadata command needs crates of
//! other platforms.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, io_error, nearest};

/// One file of the corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusFile {
    pub path: PathBuf,
    /// `NAME-VERSION/src/lib.rs`: the same on every machine.
    pub label: String,
}

/// Every `.rs` file of the named crates, crate by crate in the order given, each crate's files in
/// byte order of their paths. A name stands for all versions of it in the lock file, in its order.
pub fn crate_files(names: &[String], cargo_lock: &str) -> Result<Vec<CorpusFile>> {
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    crate_files_in(cargo_home.as_deref(), names, cargo_lock)
}

/// [`crate_files`] for a given cargo home.
pub(crate) fn crate_files_in(
    cargo_home: Option<&Path>,
    names: &[String],
    cargo_lock: &str,
) -> Result<Vec<CorpusFile>> {
    let locked = locked_packages(cargo_lock);
    let mut files = Vec::new();
    for name in names {
        let versions: Vec<&str> =
            locked.iter().filter(|(n, _)| n == name).map(|(_, version)| *version).collect();
        if versions.is_empty() {
            let near = nearest(name, locked.iter().map(|(n, _)| *n));
            let hint = near.map_or(String::new(), |n| format!("; did you mean `{n}`?"));
            return Err(DataError::UnknownCrate { name: name.clone(), hint });
        }
        for version in versions {
            let root = find_sources(cargo_home, name, version)?;
            let mut paths = Vec::new();
            collect(&root, &mut |path| {
                if path.extension().is_some_and(|e| e == "rs") {
                    paths.push(path);
                }
            })?;
            let relative = |path: &Path| {
                let inside = path.strip_prefix(&root).unwrap_or(path);
                inside.to_string_lossy().replace(std::path::MAIN_SEPARATOR, "/")
            };
            let mut here: Vec<CorpusFile> = paths
                .into_iter()
                .map(|path| CorpusFile {
                    label: format!("{name}-{version}/{}", relative(&path)),
                    path,
                })
                .collect();
            here.sort_by(|a, b| a.label.as_bytes().cmp(b.label.as_bytes()));
            files.extend(here);
        }
    }
    Ok(files)
}

/// (name, version) of the registry packages of a lock file, in its order.
fn locked_packages(cargo_lock: &str) -> Vec<(&str, &str)> {
    cargo_lock
        .split("[[package]]")
        .skip(1)
        .filter_map(|package| {
            let field = |key| package.lines().find_map(|line| toml_string(line, key));
            field("source")?;
            Some((field("name")?, field("version")?))
        })
        .collect()
}

/// The text of `key = "text"`.
fn toml_string<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let value = line.strip_prefix(key)?.trim_start().strip_prefix('=')?.trim();
    value.strip_prefix('"')?.strip_suffix('"')
}

/// The unpacked sources, under whichever registry name cargo gave them.
fn find_sources(cargo_home: Option<&Path>, name: &str, version: &str) -> Result<PathBuf> {
    let missing = |looked: String| DataError::CrateSources {
        name: name.to_string(),
        version: version.to_string(),
        looked,
    };
    let Some(home) = cargo_home else {
        return Err(missing("no place: neither CARGO_HOME nor HOME is set".into()));
    };
    let registries = home.join("registry").join("src");
    let Ok(entries) = std::fs::read_dir(&registries) else {
        return Err(missing(format!("{}, which is not there", registries.display())));
    };
    let mut candidates: Vec<PathBuf> =
        entries.flatten().map(|e| e.path().join(format!("{name}-{version}"))).collect();
    candidates.sort();
    match candidates.iter().find(|c| c.is_dir()) {
        Some(found) => Ok(found.clone()),
        None => {
            let places: Vec<String> = candidates.iter().map(|c| c.display().to_string()).collect();
            Err(missing(if places.is_empty() {
                format!("{}, which is empty", registries.display())
            } else {
                places.join(", ")
            }))
        }
    }
}

/// Calls `found` for every file under `directory`; links are not followed out of it.
fn collect(directory: &Path, found: &mut impl FnMut(PathBuf)) -> Result<()> {
    let entries = std::fs::read_dir(directory).map_err(io_error("list", directory))?;
    for entry in entries {
        let entry = entry.map_err(io_error("list", directory))?;
        let kind = entry.file_type().map_err(io_error("list", directory))?;
        if kind.is_dir() {
            collect(&entry.path(), found)?;
        } else if kind.is_file() {
            found(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCK: &str = r#"
version = 4

[[package]]
name = "ours"
version = "0.1.0"
dependencies = [
 "alpha",
]

[[package]]
name = "alpha"
version = "1.2.3"
source = "registry+https://example.invalid/index"
checksum = "00"

[[package]]
name = "alpha"
version = "2.0.0"
source = "registry+https://example.invalid/index"

[[package]]
name = "beta_parser"
version = "0.3.1"
source = "registry+https://example.invalid/index"
"#;

    fn registry() -> tempfile::TempDir {
        let home = tempfile::tempdir().unwrap();
        let src = home.path().join("registry/src/index-1");
        let files = [
            "alpha-1.2.3/src/z.rs",
            "alpha-1.2.3/src/a/b.rs",
            "alpha-1.2.3/src/a.rs",
            "alpha-1.2.3/README.md",
            "alpha-2.0.0/build.rs",
        ];
        for file in files {
            let path = src.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, file).unwrap();
        }
        home
    }

    #[test]
    fn all_versions_in_byte_order() {
        let home = registry();
        let files = crate_files_in(Some(home.path()), &["alpha".into()], LOCK).unwrap();
        let labels: Vec<&str> = files.iter().map(|f| f.label.as_str()).collect();
        let expected = [
            "alpha-1.2.3/src/a.rs",
            "alpha-1.2.3/src/a/b.rs",
            "alpha-1.2.3/src/z.rs",
            "alpha-2.0.0/build.rs",
        ];
        assert_eq!(labels, expected);
    }

    #[test]
    fn what_is_missing_is_named_with_the_remedy() {
        let home = registry();
        let error = |name: &str| {
            crate_files_in(Some(home.path()), &[name.into()], LOCK).unwrap_err().to_string()
        };
        assert!(error("beta-parser").contains("did you mean `beta_parser`?"));
        assert!(error("ours").contains("no crate `ours`"));
        let sources = error("beta_parser");
        for part in ["beta_parser 0.3.1", "index-1", "cargo fetch", "data.files"] {
            assert!(sources.contains(part), "{sources}");
        }
        let nowhere = crate_files_in(None, &["alpha".into()], LOCK).unwrap_err().to_string();
        assert!(nowhere.contains("CARGO_HOME"), "{nowhere}");
    }
}
