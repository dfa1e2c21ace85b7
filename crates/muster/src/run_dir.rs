//! Where a run keeps what it writes.
//!
//! ```text
//! runs/NAME/config.yaml          the config with every default, overrides included
//!           events.jsonl         one event a line
//!           loss.svg             plot of the losses
//!           checkpoints/         see `muster ckpt`
//!           data/                the text as token files
//!           links.json           a table of links for this run, if somebody put one there
//!           logs/                standard error of each rank
//!           job-nodeN.json       what host N told its ranks
//!           nodeN.lock           held while host N trains
//!           published/           of an import: tokenizer, generation_config.json
//! ```

use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use checkpoint::disk::{Disk, Kind};
use checkpoint::objects::is_url;
use checkpoint::{Anywhere, Attempt, Checkpoint, Entry, Status, Store};
use data::TokenizerSpec;
use train::Config;

use crate::config::nearest;
use crate::error::CliError;
use crate::output::complain;

/// A run's directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The directory at `root`, which need not be there yet.
    pub fn new(root: impl Into<PathBuf>) -> RunDir {
        RunDir { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.root.join("config.yaml")
    }

    /// The event log.
    pub fn events(&self) -> PathBuf {
        self.root.join("events.jsonl")
    }

    /// The plot of the losses.
    pub fn plot(&self) -> PathBuf {
        self.root.join("loss.svg")
    }

    /// A table of links for this run; Muster writes none here.
    pub fn links(&self) -> PathBuf {
        self.root.join("links.json")
    }

    /// Held by the supervisor of a host.
    pub fn lock(&self, node: usize) -> PathBuf {
        self.root.join(format!("node{node}.lock"))
    }

    /// The file with the job of host `node`, for its ranks.
    pub fn job(&self, node: usize) -> PathBuf {
        self.root.join(format!("job-node{node}.json"))
    }

    /// Where ranks log to.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The standard error of a rank.
    pub fn log(&self, rank: usize) -> PathBuf {
        self.logs().join(format!("rank-{rank:05}.log"))
    }

    /// Whether no pipe stands where host `node` keeps a file: opening one waits for whoever is at
    /// its other end.
    ///
    /// # Errors
    /// The pipe.
    pub fn check_pipes(&self, node: usize, ranks: Range<usize>) -> Result<(), CliError> {
        let own = [self.config(), self.events(), self.plot(), self.lock(node), self.job(node)];
        let mut all = own.into_iter().chain(ranks.map(|rank| self.log(rank)));
        match all.find(|path| matches!(data::input::look(path), Ok(data::input::Input::Pipe))) {
            None => Ok(()),
            Some(path) => Err(CliError::mistake(format!(
                "{} is a pipe, where the run keeps a file; remove it, or give the run another name \
                 (--name)",
                path.display()
            ))),
        }
    }

    /// Where checkpoints lie, unless the run's config says otherwise.
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Where the checkpoints of a run with this config lie.
    pub fn checkpoints_of(&self, config: &Config) -> PathBuf {
        config.checkpoint.store.clone().unwrap_or_else(|| self.checkpoints())
    }

    /// Where the config that the run has kept says that they lie.
    fn kept_elsewhere(&self) -> Option<PathBuf> {
        let text = std::fs::read_to_string(self.config()).ok()?;
        let config: serde_json::Value = serde_yaml::from_str(&text).ok()?;
        config.pointer("/checkpoint/store")?.as_str().map(PathBuf::from)
    }
}

/// Where an import keeps the files that came beside the weights.
pub const COMPANIONS: &str = "published";

/// Files that belong to the model of a checkpoint in a run's directory, beside its weights: those
/// of an import, or those that lie with the tokenizer that the run's config names.
pub fn companions(run: &Path, tokenizer: &TokenizerSpec) -> Vec<PathBuf> {
    let own = interop::hf::companions(&run.join(COMPANIONS));
    match tokenizer {
        TokenizerSpec::File(path) if own.is_empty() => {
            path.parent().map(interop::hf::companions).unwrap_or_default()
        }
        _ => own,
    }
}

/// The tokenizer of a run's config; of an import that was moved, its own.
pub fn tokenizer_of(run: &Path, named: TokenizerSpec) -> TokenizerSpec {
    let own = run.join(COMPANIONS).join("tokenizer.json");
    match named {
        TokenizerSpec::File(path) if !path.exists() && own.is_file() => TokenizerSpec::File(own),
        other => other,
    }
}

/// The store of a directory or URL that a person named: a run's, or the one of its checkpoints.
///
/// # Errors
/// It is no directory.
pub fn store(path: &Path) -> Result<Store, CliError> {
    if is_url(path) {
        return match kind(path)? {
            Some(Kind::Dir) => Ok(store_in(path)),
            Some(_) => Err(CliError::mistake(format!("{} is an object", path.display()))),
            None => Err(CliError::mistake(format!(
                "there is nothing under {}; look at its name",
                path.display()
            ))),
        };
    }
    match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => Ok(store_in(path)),
        Ok(_) => Err(CliError::mistake(format!("{} is no directory", path.display()))),
        Err(error) if is_absent(&error) => Err(not_there(path)),
        Err(error) => Err(CliError::mistake(format!(
            "cannot look at {}: {error}; let this user read it and the directories above it",
            path.display()
        ))),
    }
}

/// True where nothing is there, rather than something that cannot be looked at.
fn is_absent(error: &std::io::Error) -> bool {
    [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind())
}

/// The kind of what lies under a path or URL; `None` for nothing.
///
/// # Errors
/// It cannot be looked at.
fn kind(path: &Path) -> Result<Option<Kind>, CliError> {
    match Anywhere.stat(path) {
        Ok(found) => Ok(Some(found.kind)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(source) => {
            let path = path.to_path_buf();
            Err(checkpoint::Error::Io { action: "read", path, offset: None, source }.into())
        }
    }
}

/// As [`store`], of a directory that is known to be there.
pub fn store_in(path: &Path) -> Store {
    let run = RunDir::new(path);
    let inner = run.checkpoints();
    if is_url(path) {
        let is_run = matches!(Anywhere.stat(&inner), Ok(found) if found.kind == Kind::Dir);
        return Store::new(if is_run { inner } else { path.to_path_buf() });
    }
    if let Some(elsewhere) = run.kept_elsewhere() {
        return Store::new(elsewhere);
    }
    let is_run = match std::fs::metadata(&inner) {
        Ok(found) => found.is_dir(),
        // A directory that cannot be looked at is there.
        Err(error) => !is_absent(&error),
    };
    Store::new(if is_run { inner } else { path.to_path_buf() })
}

/// The directory of the checkpoint that a person named: itself, or the newest usable one of a
/// run. Newer ones that are damaged are told as warnings.
///
/// # Errors
/// There is none.
pub fn checkpoint_path(path: &Path) -> Result<PathBuf, CliError> {
    let (found, damaged) = usable(path)?;
    for (path, why) in damaged {
        complain(&format!("warning: passed over {path}: {why}"));
    }
    Ok(found)
}

/// As [`checkpoint_path`], with the damaged commits that are newer, newest first.
///
/// # Errors
/// There is none.
pub fn usable(path: &Path) -> Result<(PathBuf, Vec<PassedOver>), CliError> {
    if is_checkpoint(path) {
        return Ok((path.to_path_buf(), Vec::new()));
    }
    let store = store(path)?;
    let newest = store.newest()?;
    if let Some(checkpoint) = newest.checkpoint {
        let place = |entry: &Entry| store.root().join(entry.attempt.dir_name());
        let entries = store.list()?;
        let newer = entries.iter().rev().take_while(|entry| place(entry) != checkpoint.path());
        let damaged = newer.filter_map(|entry| match &entry.status {
            Status::Corrupt(why) | Status::Unreadable(why) => {
                Some(passed_over(&place(entry), &why.to_string()))
            }
            Status::Committed | Status::Incomplete => None,
        });
        return Ok((checkpoint.path().to_path_buf(), damaged.collect()));
    }
    let skipped: Vec<PassedOver> = newest
        .skipped
        .iter()
        .map(|skipped| passed_over(&skipped.path, &skipped.reason.to_string()))
        .collect();
    if skipped.is_empty() && path.join("config.json").is_file() {
        let path = path.display();
        return Err(CliError::mistake(format!(
            "{path} holds no checkpoint, but perhaps a published model; import it first: \
             `muster ckpt import {path} TARGET`"
        )));
    }
    Err(no_checkpoint(store.root(), &skipped, "restore one from a copy"))
}

/// Whether a path is that of one checkpoint, rather than of a directory that holds some.
pub fn is_checkpoint(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    // Whatever lies under these names, and wherever it leads: to open it tells.
    let has = |name: &str| match is_url(path) {
        true => Anywhere.stat(&path.join(name)).is_ok(),
        false => path.join(name).symlink_metadata().is_ok(),
    };
    (is_url(path) || path.is_dir())
        && (Attempt::parse(name).is_some() || has("manifest.json") || has("COMMIT"))
}

/// The name of the run that saved a checkpoint, by what it kept of its config; earlier versions
/// kept none.
pub fn run_name(extra: &serde_json::Value) -> Option<&str> {
    extra.pointer("/config/name")?.as_str()
}

/// A checkpoint that was not used, and why.
pub type PassedOver = (String, String);

/// A checkpoint that was not used; what is said of it need not name it again.
pub fn passed_over(path: &Path, reason: &str) -> PassedOver {
    let path = path.display().to_string();
    let of_it = reason.strip_prefix(&path).and_then(|rest| rest.strip_prefix(' '));
    let reason = of_it.map_or_else(|| reason.to_owned(), |rest| format!("it {rest}"));
    (path, reason)
}

/// Tells of so many checkpoints that cannot be used; `muster ckpt ls` lists all.
const TOLD: usize = 8;

/// There is no checkpoint in `root`, or none that can be used.
pub fn no_checkpoint(root: &Path, passed: &[PassedOver], remedy: &str) -> CliError {
    let root = root.display();
    if passed.is_empty() {
        return CliError::mistake(format!("there is no checkpoint in {root}"));
    }
    let mut text = format!("no checkpoint in {root} can be used:");
    for (path, why) in passed.iter().take(TOLD) {
        text += &format!("\n  {path}: {why}");
    }
    if passed.len() > TOLD {
        text += &format!("\n  and {} more; `muster ckpt ls` lists them", passed.len() - TOLD);
    }
    CliError::mistake(format!("{text}\n{remedy}"))
}

/// Opens the checkpoint that a person named.
///
/// # Errors
/// There is none, or it is damaged.
pub fn open_checkpoint(path: &Path) -> Result<Checkpoint, CliError> {
    Ok(Checkpoint::open(checkpoint_path(path)?)?)
}

fn not_there(path: &Path) -> CliError {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut names: Vec<String> = std::fs::read_dir(parent)
        .map(|entries| entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    names.sort();
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let hint = match nearest(name, names.iter().map(String::as_str)) {
        Some(near) => format!("; did you mean {}?", path.with_file_name(near).display()),
        None if names.is_empty() => String::new(),
        None => format!("; in {} there are {}", parent.display(), shorten(&names)),
    };
    CliError::mistake(format!("there is no directory {}{hint}", path.display()))
}

fn shorten(names: &[String]) -> String {
    let shown = names.iter().take(10).cloned().collect::<Vec<_>>().join(", ");
    if names.len() > 10 { format!("{shown}, …") } else { shown }
}
