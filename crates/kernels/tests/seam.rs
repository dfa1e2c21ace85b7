//! `kernels/dev/dev.h` lists every name of the seam that kernels call: what is called above the
//! seam and implemented below it is written there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Words of C++ in a text, comments left out.
fn words(text: &str) -> BTreeSet<&str> {
    let code = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')).collect()
}

/// Names of the functions that a header defines for devices: `DEV_FN type name(…`.
fn defined(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().filter_map(|line| line.split_once("DEV_FN "));
    lines.filter_map(|(_, rest)| {
        let (before, _) = rest.split_once('(')?;
        let name = before.rsplit([' ', '*', '&']).next()?;
        Some(name.split('<').next().unwrap_or(name)).filter(|name| !name.is_empty())
    })
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// Headers and sources of a directory, not of those in it.
fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let is_code = |path: &PathBuf| {
        let extension = path.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("h" | "cu" | "hip" | "cpp"))
    };
    entries.filter(is_code).collect()
}

#[test]
fn every_name_that_kernels_call_is_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
    let list = read(&root.join("dev/dev.h"));
    let listed: BTreeSet<&str> = list
        .lines()
        .filter_map(|line| line.strip_prefix("//"))
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .collect();
    let below: Vec<String> = sources(&root.join("dev")).iter().map(|path| read(path)).collect();
    let names: BTreeSet<&str> = below.iter().flat_map(|text| defined(text)).collect();
    assert!(names.len() > 40, "{names:?}");
    let mut above = sources(&root);
    for dir in ["gemm", "newton_schulz", "memory", "optimizer", "ordered_sum"] {
        let dir = root.join(dir);
        above.extend(dir.is_dir().then(|| sources(&dir)).into_iter().flatten());
    }
    let mut called = 0;
    for path in above {
        let text = read(&path);
        // A name that the file defines for itself is not the seam's.
        let own: BTreeSet<&str> = defined(&text).collect();
        for name in words(&text).intersection(&names).filter(|name| !own.contains(*name)) {
            called += 1;
            let path = path.display();
            assert!(listed.contains(name), "dev.h does not list `{name}`, which {path} calls");
        }
    }
    assert!(called > 40, "{called}");
}
