//! The workspace's own rules of form, as CONTRIBUTING promises them: each finding has a place, and
//! each rule a number per area that may only fall.
//!
//! ```text
//! tidy/source   the files of the workspace, and the areas that they belong to
//! tidy/text     columns, headers, and comments that begin with a question
//! tidy/rust     long functions, and public items that nobody outside names
//! tidy/circles  imports of a crate's modules that lead back to where they began
//! tidy/names    names in documents, which must exist
//! ```
//!
//! It reads text and needs no crate of the workspace. A number in [`ALLOWED`] that could be lower
//! is a failure as well, which tells the new number.

mod tidy {
    pub mod circles;
    pub mod names;
    pub mod rust;
    pub mod source;
    pub mod text;
}

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::OnceLock;

use tidy::source::{Finding, Source};
use tidy::{circles, names, rust, source, text};

/// A rule, in the order of the columns of [`ALLOWED`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Columns,
    Functions,
    Headers,
    Circles,
    Public,
    Names,
    Questions,
}

/// By area (a crate, or a folder at the top) the findings that are still allowed: lines of more
/// than 100 characters, functions of more than 70 lines, files without a header, imports within
/// circles of modules, public items that nobody outside names, names in documents that do not
/// exist, comments that begin with "What". Areas without a row are allowed none.
const ALLOWED: &[(&str, [usize; 7])] = &[];

fn sources() -> &'static [Source] {
    static ALL: OnceLock<Vec<Source>> = OnceLock::new();
    ALL.get_or_init(|| source::walk(env!("CARGO_MANIFEST_DIR")))
}

/// Fails where the findings of an area are more than allowed, or fewer.
fn hold(rule: Rule, findings: &[Finding]) {
    let allowed = ALLOWED.iter().map(|&(area, counts)| (area, counts[rule as usize]));
    if let Err(text) = compare(findings, allowed) {
        panic!("{rule:?}:\n{text}");
    }
}

/// # Errors
/// Areas with more findings than allowed, with all of them, and areas with fewer.
fn compare<'a>(
    findings: &[Finding],
    allowed: impl Iterator<Item = (&'a str, usize)>,
) -> Result<(), String> {
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (area, most) in allowed {
        counts.entry(area).or_default().1 += most;
    }
    for finding in findings {
        counts.entry(&finding.area).or_default().0 += 1;
    }
    let mut text = String::new();
    for (area, (found, most)) in counts {
        if found > most {
            let _ = writeln!(text, "{area}: {found}, where {most} are allowed; all of them:");
            for finding in findings.iter().filter(|finding| finding.area == area) {
                let _ = writeln!(text, "    {finding}");
            }
        } else if found < most {
            let _ = writeln!(text, "{area}: {found}; lower the {most} of ALLOWED to that");
        }
    }
    if text.is_empty() { Ok(()) } else { Err(text) }
}

#[test]
fn lines_have_at_most_100_columns() {
    hold(Rule::Columns, &text::long_lines(sources()));
}

#[test]
fn functions_have_at_most_70_lines() {
    hold(Rule::Functions, &rust::long_functions(sources()));
}

#[test]
fn files_have_headers() {
    hold(Rule::Headers, &text::missing_headers(sources()));
}

#[test]
fn imports_have_no_circles() {
    hold(Rule::Circles, &circles::find(sources()));
}

#[test]
fn public_items_are_named_outside() {
    hold(Rule::Public, &rust::unused_public(sources()));
}

#[test]
fn names_in_documents_exist() {
    hold(Rule::Names, &names::unknown(sources()));
}

#[test]
fn comments_begin_with_no_question() {
    hold(Rule::Questions, &text::questions(sources()));
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
fn more_findings_than_allowed_fail_and_so_do_fewer() {
    let finding = |area: &str| Finding::new(area, "a.rs", 3, "too long".to_owned());
    let found = [finding("comm"), finding("comm")];
    let told = |most: usize| compare(&found, [("comm", most)].into_iter());
    assert_eq!(told(2), Ok(()));
    let more = told(1).unwrap_err();
    assert!(more.starts_with("comm: 2, where 1 are allowed") && more.contains("a.rs:3 too long"));
    assert_eq!(told(3).unwrap_err(), "comm: 2; lower the 3 of ALLOWED to that\n");
    assert!(compare(&found, [].into_iter()).is_err());
}

#[test]
fn the_table_has_each_area_once_and_no_row_of_zeros() {
    for (index, (area, counts)) in ALLOWED.iter().enumerate() {
        assert!(counts.iter().any(|&count| count > 0), "{area}: remove its row");
        assert!(index == 0 || ALLOWED[index - 1].0 < *area, "{area}: out of order");
    }
}
