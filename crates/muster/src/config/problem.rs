//! One thing wrong with a config: where, what, and what to do.

use std::fmt;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file; line and column count from 1, in characters.
    File { line: usize, column: usize, width: usize },
    /// On the command line, as it was typed.
    Flag(String),
    /// Nowhere: it is missing, or the default.
    Nowhere,
}

/// One thing wrong with a config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    pub place: Place,
    /// The key with its sections (`model.d_model`); empty where there is none.
    pub path: String,
    /// The mistake, with the offending value.
    pub what: String,
    /// Advice, a sentence each.
    pub help: Vec<String>,
    /// The value in range that is closest to what was written.
    pub nearest: Option<String>,
}

impl Problem {
    /// A problem without advice yet.
    pub fn new(place: Place, path: impl Into<String>, what: impl Into<String>) -> Problem {
        Problem { place, path: path.into(), what: what.into(), help: Vec::new(), nearest: None }
    }

    /// Adds a line of advice.
    pub fn help(mut self, line: impl Into<String>) -> Problem {
        self.help.push(line.into());
        self
    }
}

/// All that is wrong with one config, in the order of its lines.
#[derive(Debug)]
pub struct Problems<'a> {
    /// How the file is called in messages.
    pub file: &'a str,
    /// Its text, to show the lines.
    pub text: &'a str,
    pub problems: Vec<Problem>,
}

impl Problems<'_> {
    fn write_one(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let colon = if problem.path.is_empty() { "" } else { ": " };
        let (path, what) = (&problem.path, &problem.what);
        match &problem.place {
            Place::File { line, column, width } => {
                writeln!(f, "{}:{line}:{column}: {path}{colon}{what}", self.file)?;
                if let Some(source) = self.text.lines().nth(line - 1) {
                    let gutter = line.to_string().len();
                    let source = source.replace('\t', " ");
                    let left = source.chars().count().saturating_sub(column - 1).max(1);
                    writeln!(f, "  {line} | {}", source.trim_end())?;
                    let (pad, mark) = (column - 1, "^".repeat(*width.min(&left)));
                    writeln!(f, "  {:gutter$} | {:pad$}{mark}", "", "")?;
                }
            }
            Place::Flag(flag) => writeln!(f, "{flag}: {path}{colon}{what}")?,
            Place::Nowhere => writeln!(f, "{}: {path}{colon}{what}", self.file)?,
        }
        let mut help = problem.help.clone();
        if let Some(value) = &problem.nearest {
            let before = help.pop().map_or_else(String::new, |line| format!("{line}; "));
            help.push(format!("{before}the nearest is {value}"));
        }
        for line in help {
            writeln!(f, "  help: {line}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problems<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sorted: Vec<&Problem> = self.problems.iter().collect();
        sorted.sort_by(|a, b| a.place.cmp(&b.place));
        for (i, problem) in sorted.into_iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            self.write_one(f, problem)?;
        }
        Ok(())
    }
}
