//! The files of the workspace that are looked at, and what is found in them.

use std::fmt;
use std::path::Path;

/// Endings of files that are read: Rust, device code, scripts, documents.
const ENDINGS: [&str; 9] = ["rs", "h", "cu", "hip", "cpp", "sh", "py", "md", "toml"];

/// Folders of files that are not the workspace's own words: builds, and files of frozen formats.
pub const LEFT_OUT: [&str; 4] = ["target", "fixtures", "shared", "__pycache__"];

/// A file, by its path from the root with `/` between its parts.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: String,
    pub text: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    pub fn ending(&self) -> &str {
        self.path.rsplit_once('.').map_or("", |(_, ending)| ending)
    }

    pub fn is_rust(&self) -> bool {
        self.ending() == "rs"
    }

    /// Code that devices run, and the simulator's.
    pub fn is_device_code(&self) -> bool {
        ["h", "cu", "hip", "cpp"].contains(&self.ending())
    }

    /// The path from `src/` on, of a file of the library or program of a crate.
    pub fn in_src(&self) -> Option<(&str, &str)> {
        let (name, rest) = self.path.strip_prefix("crates/")?.split_once('/')?;
        Some((name, rest.strip_prefix("src/")?))
    }
}

/// A place that breaks a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    path: String,
    /// From 1.
    line: usize,
    what: String,
}

impl Finding {
    pub fn of(source: &Source, line: usize, what: String) -> Finding {
        Finding { path: source.path.clone(), line, what }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{} {}", self.path, self.line, self.what)
    }
}

/// All files of the workspace that has a crate in `crate_dir`, in the order of their paths.
pub fn walk(crate_dir: &str) -> Vec<Source> {
    let mut all = Vec::new();
    read(&Path::new(crate_dir).join("../.."), "", &mut all);
    all.sort_by(|a, b| a.path.cmp(&b.path));
    all
}

fn read(dir: &Path, prefix: &str, all: &mut Vec<Source>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let (path, kind) = (format!("{prefix}{name}"), entry.file_type().unwrap());
        let is_known = name.rsplit_once('.').is_some_and(|(_, ending)| ENDINGS.contains(&ending));
        if name.starts_with('.') || LEFT_OUT.contains(&&*name) {
            continue;
        }
        if kind.is_dir() {
            read(&entry.path(), &format!("{path}/"), all);
        } else if kind.is_file() && is_known {
            let text = std::fs::read_to_string(entry.path()).unwrap();
            all.push(Source { path, text });
        }
    }
}
