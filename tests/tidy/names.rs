//! Names in backticks in documents: paths of files and items of the code, which must exist.
//!
//! Looked at are spans that can only be meant as one of these: a path that ends like a file of the
//! workspace or begins with a folder at its top; names joined by `::`. Blocks of code are not, nor
//! what tells of the past, which may name what is gone: the changelog and the results.

use std::collections::BTreeSet;

use super::rust::identifiers;
use super::source::{Finding, LEFT_OUT, Source};

const PAST: [&str; 2] = ["CHANGELOG.md", "benches/RESULTS.md"];

/// Names that nothing has.
pub fn unknown(sources: &[Source]) -> Vec<Finding> {
    let known = Known::new(sources);
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.ending() == "md") {
        if PAST.contains(&&*source.path) {
            continue;
        }
        let mut is_code = false;
        for (index, line) in source.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                is_code = !is_code;
            } else if !is_code {
                let unknown = line.split('`').skip(1).step_by(2).filter(|span| !known.has(span));
                found.extend(unknown.map(|span| {
                    Finding::of(source, index + 1, format!("`{span}` is no name in the workspace"))
                }));
            }
        }
    }
    found
}

struct Known<'a> {
    paths: Vec<&'a str>,
    /// Folders at the top.
    folders: BTreeSet<&'a str>,
    /// All names in Rust code, and the crates'.
    names: BTreeSet<String>,
}

impl<'a> Known<'a> {
    fn new(sources: &'a [Source]) -> Known<'a> {
        let mut names = BTreeSet::new();
        for source in sources.iter().filter(|source| source.is_rust()) {
            names.extend(identifiers(&source.text));
            names.extend(source.in_src().map(|(name, _)| name.replace('-', "_")));
        }
        let paths: Vec<&str> = sources.iter().map(|source| &*source.path).collect();
        let folders = paths.iter().filter_map(|path| Some(path.split_once('/')?.0)).collect();
        Known { paths, folders, names }
    }

    /// Whether a span exists; one that is neither a path nor an item does.
    fn has(&self, span: &str) -> bool {
        if self.is_path(span) {
            return self.has_path(span.trim_end_matches('/'));
        }
        let names: Vec<&str> =
            span.trim_end_matches("()").trim_end_matches('!').split("::").collect();
        let is_item = names.len() > 1 && names.iter().all(|name| is_name(name));
        !is_item || names.iter().all(|name| self.names.contains(*name))
    }

    fn is_path(&self, span: &str) -> bool {
        let is_plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
        let first = span.split('/').next().unwrap_or("");
        let is_source = ["rs", "h", "cu", "hip", "cpp", "sh", "py", "md"]
            .iter()
            .any(|ending| span.strip_suffix(ending).is_some_and(|name| name.ends_with('.')));
        let is_below = span.contains('/') && self.folders.contains(first);
        let is_read = !span.split('/').any(|part| LEFT_OUT.contains(&part));
        is_plain && is_read && (is_below || is_source && !span.starts_with(['/', '.']))
    }

    /// A file or a folder, from the root, from any folder, or from the `src/` of the crate that the
    /// path begins with; the ending `.rs` may be left out.
    fn has_path(&self, span: &str) -> bool {
        let in_src = span.split_once('/').map(|(name, rest)| format!("{name}/src/{rest}"));
        std::iter::once(span).chain(in_src.as_deref()).any(|span| {
            let (behind, within) = (format!("/{span}"), format!("/{span}/"));
            self.paths.iter().any(|path| {
                let path = format!("/{path}");
                let is_it = |path: &str| path.ends_with(&behind);
                is_it(&path)
                    || path.strip_suffix(".rs").is_some_and(is_it)
                    || path.contains(&within)
            })
        })
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[test]
fn a_name_that_nothing_has_is_found() {
    let found = |text: &str| -> Vec<String> {
        let sources = [
            Source::new("crates/comm/src/tcp/link.rs", "pub struct Link; impl Link { fn go() {} }"),
            Source::new("kernels/dev/dev.h", "#pragma once"),
            Source::new("docs/a.md", text),
            Source::new("CHANGELOG.md", "`gone.rs` went."),
        ];
        unknown(&sources).iter().map(ToString::to_string).collect()
    };
    let right = "`tcp/link.rs`, `kernels/dev/`, `dev/dev.h`, `comm/tcp/link.rs`, \
                 `crates/comm/src/tcp`, `comm::Link`, `Link::go()`, `--flag`, `N/A`, `a b.rs`, \
                 `*.rs`, `tests/fixtures/a`\n```\ngone.rs `gone.rs`\n```\n";
    assert_eq!(found(right), [""; 0]);
    let told = |name: &str| format!("docs/a.md:2 `{name}` is no name in the workspace");
    for wrong in ["tcp/lin.rs", "kernels/gone/", "crates/comm/gone", "comm::Lin", "Link::stop()"] {
        assert_eq!(found(&format!("`dev.h`\n`{wrong}`")), [told(wrong)]);
    }
}
