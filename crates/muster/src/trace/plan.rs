//! The request for a trace: where it goes, and which steps it is of.

use std::ffi::OsString;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::merge;
use crate::console::plural;
use crate::error::CliError;
use crate::out_file;
use crate::output::tell;

/// Steps that are left out at the beginning of a start, and steps that are traced, if nobody says
/// which: the first ones make what later ones reuse.
const WARM_UP: u64 = 2;
const STEPS: u64 = 10;

/// From the first to the last step, both included, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Steps {
    pub first: u64,
    pub last: u64,
}

impl Steps {
    /// Of `A..B`.
    ///
    /// # Errors
    /// Anything else, in words for whoever typed it.
    pub fn parse(text: &str) -> Result<Steps, String> {
        let numbers =
            text.split_once("..").map(|(a, b)| (a.trim().parse::<u64>(), b.trim().parse::<u64>()));
        let Some((Ok(first), Ok(last))) = numbers else {
            return Err("not two steps; for example 3..12".into());
        };
        match first {
            0 => Err(format!("steps are counted from 1; for example 1..{}", last.max(1))),
            _ if first > last => {
                Err(format!("it ends before it begins; did you mean {last}..{first}?"))
            }
            _ => Ok(Steps { first, last }),
        }
    }

    /// If nobody says which, after `taken` steps.
    pub fn after(taken: u64) -> Steps {
        let first = taken.saturating_add(WARM_UP + 1);
        Steps { first, last: first.saturating_add(STEPS - 1) }
    }

    pub fn contains(&self, step: u64) -> bool {
        (self.first..=self.last).contains(&step)
    }
}

impl std::fmt::Display for Steps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}..{}", self.first, self.last)
    }
}

/// The part of the request that a rank is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Where the parts go.
    parts: PathBuf,
    /// `None`: [`Steps::after`] those that were taken before.
    pub steps: Option<Steps>,
}

impl Plan {
    /// The part of a rank.
    pub fn part(&self, rank: usize) -> PathBuf {
        self.parts.join(format!("rank-{rank:05}.json"))
    }
}

/// Where the parts of a host's trace are until they are merged into `file`.
fn parts(file: &Path) -> PathBuf {
    let mut parts = OsString::from(file);
    parts.push(".parts");
    parts.into()
}

/// The parts of a host's trace.
#[derive(Debug, Clone)]
pub struct Parts(PathBuf);

impl Parts {
    /// Of host `node` of `nodes`, whose trace is that of `path` ([`file()`]).
    pub fn of(path: &Path, (node, nodes): (usize, usize)) -> Parts {
        Parts(parts(&file(path, node, nodes)))
    }

    /// The message about parts that nobody merges any more, if they are there.
    pub fn stay(&self) -> Option<String> {
        let path = self.0.display();
        self.0.is_dir().then(|| format!("what was recorded stays in {path} (muster trace merge)"))
    }
}

/// A host's trace, while its ranks record it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    file: PathBuf,
    plan: Plan,
    ranks: Range<usize>,
    /// Directories that were not there, the innermost first.
    made: Vec<PathBuf>,
}

impl Traced {
    /// Of these ranks of host `node` of `nodes`. The file is that of `path` ([`file()`]).
    pub fn new(
        path: &Path,
        (node, nodes): (usize, usize),
        steps: Option<Steps>,
        ranks: Range<usize>,
    ) -> Traced {
        let file = file(path, node, nodes);
        let plan = Plan { parts: parts(&file), steps };
        Traced { file, plan, ranks, made: Vec::new() }
    }

    /// Whether the file can be written, without making anything.
    ///
    /// # Errors
    /// It cannot, or a directory that is missing cannot be made.
    pub fn check(&self) -> Result<(), CliError> {
        out_file::place(&self.file)?;
        let failed = |error| CliError::file("write", &self.file, &error);
        out_file::try_beside(&self.file).map_err(failed)
    }

    /// The file that the trace becomes.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The directory of the parts.
    pub fn parts(&self) -> &Path {
        &self.plan.parts
    }

    /// Makes room for the parts, and removes those of a run before.
    ///
    /// # Errors
    /// No file can be written there.
    pub fn begin(self) -> Result<Traced, CliError> {
        let Traced { file, plan, ranks, .. } = self;
        out_file::place(&file)?;
        let ancestors = plan.parts.ancestors();
        let made: Vec<PathBuf> =
            ancestors.take_while(|dir| !out_file::is_there(dir)).map(Path::to_owned).collect();
        std::fs::create_dir_all(&plan.parts)
            .map_err(|error| CliError::file("make the directory", &plan.parts, &error))?;
        for part in ranks.clone().map(|rank| plan.part(rank)) {
            match std::fs::remove_file(&part) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(CliError::file("remove", &part, &error));
                }
                _ => {}
            }
        }
        Ok(Traced { file, plan, ranks, made })
    }

    /// The plan that the ranks are told.
    pub fn plan(&self) -> Plan {
        self.plan.clone()
    }

    /// Merges the parts, if ranks came so far, and tells where the trace is; returns what is wrong
    /// with it. Parts that could not be merged stay where they are; where there were none, no
    /// directory is left that was not there before.
    pub fn end(&self) -> Vec<String> {
        let parts = self.ranks.clone().map(|rank| self.plan.part(rank));
        let parts: Vec<PathBuf> = parts.filter(|part| part.exists()).collect();
        let merged = match parts.is_empty() {
            true => Ok(None),
            false => merge::merge(&parts, &self.file).map(Some),
        };
        let merged = match merged {
            Ok(merged) => merged,
            Err(error) => return vec![format!("no trace: {}", error.message)],
        };
        for part in &parts {
            // A part that cannot be removed is in nobody's way.
            let _ = std::fs::remove_file(part);
        }
        let _ = std::fs::remove_dir(&self.plan.parts);
        let Some(merged) = merged else {
            for dir in &self.made {
                let _ = std::fs::remove_dir(dir);
            }
            return Vec::new();
        };
        let (file, ranks) = (self.file.display(), plural(merged.ranks(), "rank"));
        if !merged.keeps_file {
            tell(&format!(
                "trace of {ranks}, {} spans: {file} (open it in ui.perfetto.dev)",
                merged.spans
            ));
        }
        merged.warnings(self.ranks.len())
    }
}

/// The file of host `node` of `nodes`: `path` itself if it ends in `.json` or `.json.gz`, else
/// `trace.json` in it; of several hosts each has its number in the name.
fn file(path: &Path, node: usize, nodes: usize) -> PathBuf {
    let name_of = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name_of(path).to_ascii_lowercase();
    let is_file = |ending: &&str| name.len() > ending.len() && name.ends_with(ending);
    let (file, ending) = match [".json.gz", ".json"].into_iter().find(is_file) {
        Some(ending) => (path.to_owned(), ending),
        None => (path.join("trace.json"), ".json"),
    };
    if nodes <= 1 {
        return file;
    }
    let name = name_of(&file);
    let (stem, ending) = name.split_at(name.len() - ending.len());
    file.with_file_name(format!("{stem}-node{node}{ending}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_and_mistakes_are_explained() {
        assert_eq!(Steps::parse("3..12"), Ok(Steps { first: 3, last: 12 }));
        assert_eq!(Steps::parse("7..7").map(|steps| steps.to_string()), Ok("7..7".into()));
        let wrong = ["", "3", "a..b", "3..", "-1..2", "0..4", "9..5"]
            .map(|text| Steps::parse(text).unwrap_err());
        insta::assert_snapshot!(wrong.join("\n"), @r"
        not two steps; for example 3..12
        not two steps; for example 3..12
        not two steps; for example 3..12
        not two steps; for example 3..12
        not two steps; for example 3..12
        steps are counted from 1; for example 1..4
        it ends before it begins; did you mean 5..9?
        ");
        assert_eq!(Steps::after(100), Steps { first: 103, last: 112 });
        let steps = Steps { first: 2, last: 3 };
        assert_eq!([1, 2, 3, 4].map(|step| steps.contains(step)), [false, true, true, false]);
    }

    #[test]
    fn nothing_is_left_where_no_rank_came() {
        let dir = tempfile::tempdir().unwrap();
        let traced = || Traced::new(&dir.path().join("a/b/t.json"), (0, 1), None, 0..2);
        traced().check().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let begun = traced().begin().unwrap();
        assert!(dir.path().join("a/b/t.json.parts").is_dir());
        assert_eq!(begun.end(), [""; 0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Directories that were there before stay.
        std::fs::create_dir(dir.path().join("a")).unwrap();
        traced().begin().unwrap().end();
        assert!(dir.path().join("a").is_dir() && !dir.path().join("a/b").exists());
        std::fs::write(dir.path().join("file"), "").unwrap();
        let below = Traced::new(&dir.path().join("file/t.json"), (0, 1), None, 0..2);
        assert_eq!(below.check().unwrap_err().exit.code(), 2);
    }

    #[test]
    fn a_name_says_whether_it_is_a_file() {
        let file = |path: &str, node, nodes| {
            super::file(Path::new(path), node, nodes).display().to_string()
        };
        assert_eq!(file("a/b.json", 0, 1), "a/b.json");
        assert_eq!(file("a/b.json.gz", 1, 2), "a/b-node1.json.gz");
        assert_eq!(file("a/b", 0, 1), "a/b/trace.json");
        assert_eq!(file("a/b/", 3, 4), "a/b/trace-node3.json");
        assert_eq!(file(".json", 0, 1), ".json/trace.json");
    }
}
