//! Rules that need no grammar: columns, headers, and comments that begin with a question.

use super::source::{Finding, Source};

const COLUMNS: usize = 100;

/// Lines of code and scripts with more than 100 characters. Those of inline snapshots are left out:
/// a message that is printed as one line stands there as one.
pub fn long_lines(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| !["md", "toml"].contains(&source.ending())) {
        let mut snapshot = None;
        for (index, line) in source.text.lines().enumerate() {
            let columns = own_part(line, &mut snapshot).chars().count();
            if columns > COLUMNS {
                found.push(Finding::of(source, index + 1, format!("has {columns} columns")));
            }
        }
    }
    found
}

/// The part of a line that is no text of an inline snapshot. `open` is the end of the snapshot that
/// is open before the line, and becomes that of the one behind it.
fn own_part<'a>(line: &'a str, open: &mut Option<&'static str>) -> &'a str {
    if let Some(end) = *open {
        let Some(rest) = line.trim_start().strip_prefix(end) else { return "" };
        *open = None;
        return rest;
    }
    for (start, end) in [("@r#\"", "\"#)"), ("@r\"", "\")"), ("@\"", "\")")] {
        if let Some((own, text)) = line.split_once(start).filter(|(own, _)| own.ends_with(", ")) {
            *open = (!text.contains(end)).then_some(end);
            return own;
        }
    }
    line
}

/// Files of code and scripts that do not begin with a comment: `//!` in Rust, `//` in device code,
/// `#` or a docstring behind the first line of a script.
pub fn missing_headers(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources {
        let mut lines = source.text.lines().filter(|line| !line.starts_with("#!/"));
        let first = lines.find(|line| !line.trim().is_empty()).unwrap_or("");
        let begins = |starts: &[&str]| starts.iter().any(|start| first.starts_with(start));
        let is_there = match source.ending() {
            "rs" => begins(&["//!"]),
            "h" | "cu" | "hip" | "cpp" => begins(&["//", "/*"]),
            "sh" | "py" => begins(&["#", "\"\"\"", "r\"\"\""]),
            _ => true,
        };
        if !is_there {
            found.push(Finding::of(source, 1, "has no header".to_owned()));
        }
    }
    found
}

/// Comments whose first word is "What": they ask what an item is instead of saying it.
pub fn questions(sources: &[Source]) -> Vec<Finding> {
    let mut found = Vec::new();
    for source in sources.iter().filter(|source| source.is_rust() || source.is_device_code()) {
        let mut before = None;
        for (index, line) in source.text.lines().enumerate() {
            let comment = comment(line);
            if let Some((marker, text)) = comment {
                let goes_on = before.is_some_and(|(other, text): (&str, &str)| {
                    other == marker && !text.is_empty() && !text.starts_with("# ")
                });
                let word = text.split(|c: char| !c.is_alphanumeric()).next();
                if word == Some("What") && !goes_on {
                    found.push(Finding::of(source, index + 1, text.to_owned()));
                }
            }
            before = comment;
        }
    }
    found
}

/// The marker and the text of a line that is a comment.
fn comment(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    let marker = ["///", "//!", "//"].into_iter().find(|marker| line.starts_with(marker))?;
    Some((marker, line[marker.len()..].trim_start()))
}

#[test]
fn a_long_line_is_found_in_characters() {
    let (long, wide) = ("x".repeat(101), "→".repeat(100));
    let rust = Source::new("crates/comm/src/a.rs", &format!("{wide}\n{long}\n"));
    let found = long_lines(&[rust, Source::new("README.md", &long)]);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].to_string(), "crates/comm/src/a.rs:2 has 101 columns");
    let snapshot = |code: &str| {
        let text = format!("s!(f(), @\"\n{long}\n\");\ns!(g(), @r#\"{long}\"#);\n{code}\n");
        long_lines(&[Source::new("a.rs", &text)]).len()
    };
    assert_eq!((snapshot(""), snapshot(&long)), (0, 1));
    assert_eq!(snapshot(&format!("s!({long}, @\"{long}\");")), 1);
    for name in ["kernels/a.cu", "kernels/a.hip", "kernels/a.h", "kernels/a.cpp", "a.sh", "a.py"] {
        assert_eq!(long_lines(&[Source::new(name, &long)]).len(), 1, "{name}");
    }
}

#[test]
fn a_file_without_a_header_is_found() {
    let lacks = |path: &str, text: &str| missing_headers(&[Source::new(path, text)]).len() == 1;
    for (path, with, without) in [
        ("a.rs", "//! Sums.\n\nuse b::c;\n", "use b::c;\n"),
        ("a.cu", "// Sums.\n#pragma once\n", "#pragma once\n// Sums.\n"),
        ("a.sh", "#!/usr/bin/env bash\n# Sums.\n", "#!/usr/bin/env bash\nset -e\n"),
        ("a.py", "#!/usr/bin/env python3\n\"\"\"Sums.\"\"\"\n", "import sys\n"),
    ] {
        assert!(!lacks(path, with) && lacks(path, without), "{path}");
    }
}

#[test]
fn a_comment_that_asks_is_found() {
    let text = [
        "//! Sums.",
        "//!",
        "//! What they cost.",
        "",
        "/// What a sum is.",
        "struct Sum;",
        "    // What it takes.",
        "/// Sums of",
        "/// What follows.",
        "///",
        "/// # Errors",
        "/// What is refused.",
        "fn sum() {}",
    ];
    let lines = |text: &str| -> Vec<String> {
        questions(&[Source::new("a.rs", text)]).iter().map(ToString::to_string).collect()
    };
    assert_eq!(
        lines(&text.join("\n")),
        [
            "a.rs:3 What they cost.",
            "a.rs:5 What a sum is.",
            "a.rs:7 What it takes.",
            "a.rs:12 What is refused."
        ]
    );
    assert_eq!(questions(&[Source::new("a.hip", "// What a lane holds.\n")]).len(), 1);
}
