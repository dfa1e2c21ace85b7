//! The workspace's own rules of form, as CONTRIBUTING promises them: each finding has a place.
//!
//! ```text
//! tidy/source   the files of the workspace, and the areas that they belong to
//! tidy/text     columns, headers, and comments that begin with a question
//! tidy/rust     long functions, and public items that nobody outside names
//! tidy/circles  imports of a crate's modules that lead back to where they began
//! tidy/names    names in documents, which must exist
//! ```
//!
//! It reads text and needs no crate of the workspace.

mod tidy {
    pub mod circles;
    pub mod names;
    pub mod rust;
    pub mod source;
    pub mod text;
}

use std::sync::OnceLock;

use tidy::source::{Finding, Source};
use tidy::{circles, names, rust, source, text};

fn sources() -> &'static [Source] {
    static ALL: OnceLock<Vec<Source>> = OnceLock::new();
    ALL.get_or_init(|| source::walk(env!("CARGO_MANIFEST_DIR")))
}

/// Fails with all findings, if there are any.
fn hold(findings: &[Finding]) {
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "{} findings:\n    {}", lines.len(), lines.join("\n    "));
}

#[test]
fn lines_have_at_most_100_columns() {
    hold(&text::long_lines(sources()));
}

#[test]
fn functions_have_at_most_70_lines() {
    hold(&rust::long_functions(sources()));
}

#[test]
fn files_have_headers() {
    hold(&text::missing_headers(sources()));
}

#[test]
fn imports_have_no_circles() {
    hold(&circles::find(sources()));
}

#[test]
fn public_items_are_named_outside() {
    hold(&rust::unused_public(sources()));
}

#[test]
fn names_in_documents_exist() {
    hold(&names::unknown(sources()));
}

#[test]
fn comments_begin_with_no_question() {
    hold(&text::questions(sources()));
}

/// The rules would hold of no files at all.
#[test]
fn the_walk_finds_the_workspace() {
    let has = |path: &str| sources().iter().any(|source| source.path == path);
    for path in ["tests/tidy.rs", "kernels/abi.h", "crates/comm/src/lib.rs", "README.md"] {
        assert!(has(path), "{path}");
    }
    assert!(!sources().iter().any(|source| source.path.starts_with("target/")));
    assert!(!sources().iter().any(|source| source.path.contains("fixtures/")));
}

#[test]
#[should_panic(expected = "1 findings:\n    a.rs:3 too long")]
fn a_finding_fails_and_is_told() {
    hold(&[Finding::of(&Source::new("a.rs", ""), 3, "too long".to_owned())]);
}
