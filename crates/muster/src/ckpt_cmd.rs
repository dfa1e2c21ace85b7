//! `muster ckpt`: tables over the checkpoint crate.

use std::fmt::Write as _;
use std::path::Path;

use checkpoint::objects::is_url;
use checkpoint::{
    Checkpoint, Diff, Distance, Error, Keep, Proof, Removable, StateTensor, Status, Store,
    TensorDifference, VerifyReport, diff, verify,
};

use interop::Dead;

use crate::cli::CkptCommand;
use crate::console::{bytes, count, plural, short};
use crate::error::{CliError, Exit};
use crate::output::say;
use crate::run_dir::{PassedOver, open_checkpoint, run_name, store, usable};
use crate::{export_cmd, import_cmd, reshape_cmd};

pub fn run(command: CkptCommand) -> Result<Exit, CliError> {
    match command {
        CkptCommand::Ls { dir } => list(&dir),
        CkptCommand::Show { path, json: true, .. } => {
            say(&as_json(&open_checkpoint(&path)?))?;
            Ok(Exit::Ok)
        }
        CkptCommand::Show { path, tensors, .. } => {
            say(&show(&open_checkpoint(&path)?, tensors))?;
            Ok(Exit::Ok)
        }
        CkptCommand::Verify { path, deep } => {
            let (path, passed) = usable(&path)?;
            let report = verify(path, deep)?;
            if !report.is_whole() {
                return Err(CliError::mistake(not_whole(&report)));
            }
            if !passed.is_empty() {
                return Err(CliError::mistake(newer_damage(&report, &passed)));
            }
            say(&whole(&report))?;
            Ok(Exit::Ok)
        }
        CkptCommand::Reshape(args) => reshape_cmd::reshape(&args),
        CkptCommand::Plan(args) => reshape_cmd::plan(&args),
        CkptCommand::Import(args) => import_cmd::import(&args),
        CkptCommand::Export(args) => export_cmd::export(&args),
        CkptCommand::Gc { dir, keep, keep_every, dry_run } => {
            collect(&dir, Keep { newest: keep.get(), every: keep_every }, dry_run)
        }
        CkptCommand::Diff { a, b, parameters_only } => {
            let (a, b) = (open_checkpoint(&a)?, open_checkpoint(&b)?);
            let mut found = diff(&a, &b)?;
            if parameters_only {
                found.tensors.retain(|tensor| PARAMETER_SLOTS.contains(&tensor.key.slot.as_str()));
                found.run_state.clear();
            }
            say(&difference(&a, &b, &found))?;
            Ok(if found.is_equal() { Exit::Ok } else { Exit::Mistake })
        }
    }
}

/// Slots that hold the model rather than the optimizer's state.
const PARAMETER_SLOTS: [&str; 2] = ["param", "router_bias"];

/// Removes all checkpoints but those to keep, or says which.
fn collect(dir: &Path, keep: Keep, dry_run: bool) -> Result<Exit, CliError> {
    let store = store(dir)?;
    let entries = store.list()?;
    if entries.is_empty() {
        return match collect_dead(dir, dry_run)? {
            text if text.is_empty() => Err(nothing_in(&store)),
            text => say(text.trim_end()).map(|()| Exit::Ok),
        };
    }
    let size = |path: &Path| {
        entries.iter().find(|entry| entry.path == path).and_then(|entry| entry.bytes).unwrap_or(0)
    };
    let Removable { doomed, damaged } = store.removable(keep, Proof::EveryByte)?;
    let gone = if dry_run { doomed } else { store.retain(keep, Proof::EveryByte)? };
    let verb = verb(dry_run);
    let mut text = collect_dead(dir, dry_run)?;
    for path in &gone {
        let _ = writeln!(text, "{verb}: {} ({})", path.display(), bytes(size(path)));
    }
    for path in &damaged {
        let path = path.display();
        let _ = writeln!(text, "damaged, and stays: {path} (`muster ckpt verify` says where)");
    }
    let all: u64 = gone.iter().map(|path| size(path)).sum();
    let _ = write!(
        text,
        "{} of {} {verb}, {}, in {}",
        plural(gone.len(), "checkpoint"),
        entries.len(),
        bytes(all),
        store.root().display()
    );
    say(&text)?;
    Ok(if damaged.is_empty() { Exit::Ok } else { Exit::Mistake })
}

fn verb(dry_run: bool) -> &'static str {
    if dry_run { "would be removed" } else { "removed" }
}

/// Removes what imports and exports that were killed have left in a directory or beside it, as the
/// next one there would, or says which.
fn collect_dead(dir: &Path, dry_run: bool) -> Result<String, CliError> {
    if is_url(dir) {
        return Ok(String::new());
    }
    let dir = std::path::absolute(dir).map_err(CliError::mistake)?;
    let places = [dir.parent(), Some(&*dir)].into_iter().flatten();
    let mut text = String::new();
    for dead in places.flat_map(Dead::all_in) {
        let (path, size) = (dead.path().display().to_string(), bytes(dead.bytes()));
        if !dry_run {
            dead.remove()?;
        }
        let _ =
            writeln!(text, "{}: {path} ({size}, left by a killed import or export)", verb(dry_run));
    }
    Ok(text)
}

fn nothing_in(store: &Store) -> CliError {
    CliError::mistake(format!("there is no checkpoint in {}", store.root().display()))
}

fn list(dir: &Path) -> Result<Exit, CliError> {
    let store = store(dir)?;
    let entries = store.list()?;
    let root = store.root().display();
    if entries.is_empty() {
        return Err(nothing_in(&store));
    }
    let mut rows = vec![row(["step", "generation", "size", "state"])];
    for entry in &entries {
        let state = match &entry.status {
            Status::Committed => "committed".to_string(),
            Status::Incomplete => {
                "not committed (being written or removed, or abandoned)".to_string()
            }
            Status::Corrupt(why) => format!("UNUSABLE: {why}"),
            Status::Unreadable(why) => format!("NOT READABLE, perhaps whole: {why}"),
        };
        let size = entry.bytes.map_or_else(|| "unknown".to_string(), bytes);
        let attempt = entry.attempt;
        let numbers = [attempt.step.to_string(), attempt.generation.to_string()];
        let [step, generation] = numbers;
        rows.push(vec![step, generation, size, state]);
    }
    say(&format!("{root}\n{}", table(&rows)))?;
    Ok(Exit::Ok)
}

/// The manifest, with where it lies and by what digest it is named.
fn as_json(checkpoint: &Checkpoint) -> String {
    let value = serde_json::json!({
        "path": checkpoint.path(),
        "manifest_blake3": checkpoint.manifest_blake3(),
        "manifest": checkpoint.manifest(),
    });
    format!("{value:#}")
}

/// The ranks that wrote a tensor: `0`, `0-3`, `0, 2`.
fn writers(checkpoint: &Checkpoint, tensor: &StateTensor) -> String {
    let files = &checkpoint.manifest().files;
    let ranks = tensor.chunks.iter().filter_map(|chunk| files[chunk.file as usize].rank());
    let ranks: Vec<u32> = std::collections::BTreeSet::from_iter(ranks).into_iter().collect();
    let runs = ranks.chunk_by(|before, after| before + 1 == *after).map(|run| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

fn show(checkpoint: &Checkpoint, tensors: bool) -> String {
    let manifest = checkpoint.manifest();
    let state = checkpoint.run_state();
    let data_bytes: u64 = checkpoint.tensors().iter().map(|tensor| tensor.bytes()).sum();
    let parameters = checkpoint.schema().parameters() as u64;
    let mut out = format!("{}\n", checkpoint.path().display());
    let mut line = |name: &str, text: String| {
        let _ = writeln!(out, "  {name:<12} {text}");
    };
    line("format", format!("version {}", manifest.format_version));
    if let Some(name) = run_name(&state.extra) {
        line("run", name.to_string());
    }
    line("step", format!("{} (generation {})", manifest.step, manifest.generation));
    line(
        "written by",
        format!("muster {}, {}", state.muster_version, plural(manifest.world as usize, "rank")),
    );
    line("layout", layout(checkpoint));
    line("seen", format!("{} samples, {} tokens", count(state.samples), count(state.tokens)));
    line("seed", format!("{}, counter {}", state.seed, state.rng_counter));
    let model = plural(manifest.schema.len(), "tensor");
    line("model", format!("{} parameters in {model}", count(parameters)));
    for (slot, number, size) in slots(checkpoint) {
        line("state", format!("{slot}: {}, {}", plural(number, "tensor"), bytes(size)));
    }
    let files = plural(manifest.files.len(), "file");
    line("data", format!("{} in {files}", bytes(data_bytes)));
    line("config", short(&state.config_digest.to_string()).to_string());
    line("numerics", short(&state.numeric_plan_digest.to_string()).to_string());
    line("digest", checkpoint.manifest_blake3().to_string());
    if tensors {
        let mut rows = vec![row(["tensor", "slot", "type", "shape", "size", "chunks", "ranks"])];
        for tensor in checkpoint.tensors() {
            rows.push(vec![
                tensor.name.clone(),
                tensor.slot.clone(),
                tensor.dtype.name().to_string(),
                format!("{:?}", tensor.shape),
                bytes(tensor.bytes()),
                tensor.chunks.len().to_string(),
                writers(checkpoint, tensor),
            ]);
        }
        out.push_str(&table(&rows));
    }
    out
}

/// The axes along which the ranks cut what they wrote: as a reshape has recorded; a run's own ranks
/// are data-parallel.
fn layout(checkpoint: &Checkpoint) -> String {
    let (extra, world) = (&checkpoint.run_state().extra, checkpoint.manifest().world);
    let Some(axes) = extra.get("layout") else { return format!("dp {world}") };
    let axis = |name: &str| axes.get(name)?.as_u64().filter(|of| *of > 1);
    let named = ["pp", "dp", "ep", "tp"].iter().filter_map(|name| Some((name, axis(name)?)));
    let all: Vec<String> = named.map(|(name, of)| format!("{name} {of}")).collect();
    if all.is_empty() { "one rank".to_owned() } else { all.join(" · ") }
}

/// (slot, tensors, bytes) in the order in which slots are met.
fn slots(checkpoint: &Checkpoint) -> Vec<(&str, usize, u64)> {
    let mut slots: Vec<(&str, usize, u64)> = Vec::new();
    for tensor in checkpoint.tensors() {
        match slots.iter_mut().find(|(slot, ..)| *slot == tensor.slot) {
            Some((_, number, size)) => {
                *number += 1;
                *size += tensor.bytes();
            }
            None => slots.push((&tensor.slot, 1, tensor.bytes())),
        }
    }
    slots
}

fn whole(report: &VerifyReport) -> String {
    let mut out = format!(
        "{} is whole: {} in {}, {} of {}, every checksum right",
        report.path.display(),
        plural(report.state_tensors, "tensor"),
        plural(report.shards, "file"),
        plural(report.ranges, "range"),
        bytes(report.bytes),
    );
    if !report.data_blake3.is_empty() {
        let _ = write!(
            out,
            "\nBLAKE3 of the data compared for {}",
            plural(report.digests_compared, "file")
        );
    }
    for stranger in &report.strangers {
        let _ = write!(out, "\nnot part of it: {}", stranger.display());
    }
    out
}

/// Problems of a checkpoint, in words. What cannot be read is not thereby damaged, and nothing is
/// to be removed for it.
fn not_whole(report: &VerifyReport) -> String {
    use Error::{Misnamed, NotCommitted, Removed, UnsupportedVersion};
    let path = report.path.display();
    let problems = &report.problems;
    if let [
        one @ (Misnamed { .. } | NotCommitted { .. } | Removed { .. } | UnsupportedVersion { .. }),
    ] = &problems[..]
    {
        return one.to_string();
    }
    let list = |out: &mut String, damaged: bool| {
        for problem in problems.iter().filter(|problem| problem.is_damage() == damaged) {
            let _ = write!(out, "\n  {problem}");
        }
    };
    let damaged = problems.iter().filter(|problem| problem.is_damage()).count();
    let unread = problems.len() - damaged;
    if damaged == 0 {
        let mut out = format!("{path} cannot be read through, and may be whole:");
        list(&mut out, false);
        out.push_str("\nKeep it, and verify it again where all of it can be read.");
        return out;
    }
    let mut out = format!("{path} is damaged: {}", plural(damaged, "problem"));
    list(&mut out, true);
    if unread > 0 {
        let _ = write!(out, "\n{} of it cannot be read, and may be whole:", plural(unread, "part"));
        list(&mut out, false);
    }
    out.push_str(
        "\nA run resumes from the newest whole checkpoint (`muster ckpt ls` lists them); restore \
         the files named above from a copy, or remove this checkpoint's directory.",
    );
    out
}

/// The newest checkpoints of a run are damaged, and this one is not.
fn newer_damage(report: &VerifyReport, passed: &[PassedOver]) -> String {
    let mut out = format!(
        "{} newer than the newest whole one cannot be used:",
        plural(passed.len(), "checkpoint")
    );
    for (path, why) in passed {
        let _ = write!(out, "\n  {path}: {why}");
    }
    let _ = write!(out, "\n{}\nThe run would resume from there.", whole(report));
    out
}

fn difference(a: &Checkpoint, b: &Checkpoint, found: &Diff) -> String {
    let (path_a, path_b) = (a.path().display(), b.path().display());
    let number = plural(found.tensors.len(), "tensor");
    let differing: Vec<_> =
        found.tensors.iter().filter(|t| t.difference != TensorDifference::Equal).collect();
    let verdict = match differing.len() {
        0 => format!("equal: all bits of {number}"),
        some => format!("{some} of {number} differ"),
    };
    let mut out = format!("a = {path_a}\nb = {path_b}\n{verdict}\n");
    let rows: Vec<Vec<String>> = differing
        .iter()
        .map(|tensor| vec![tensor.key.to_string(), describe(&tensor.difference)])
        .collect();
    out.push_str(&table(&rows));
    for field in &found.run_state {
        let _ = writeln!(out, "{}: {} in a, {} in b", field.field, field.a, field.b);
    }
    out.truncate(out.trim_end().len());
    out
}

fn describe(difference: &TensorDifference) -> String {
    match difference {
        TensorDifference::Equal => "equal".into(),
        TensorDifference::OnlyInA => "only in a".into(),
        TensorDifference::OnlyInB => "only in b".into(),
        TensorDifference::Dtype { a, b } => format!("{} in a, {} in b", a.name(), b.name()),
        TensorDifference::Shape { a, b } => format!("{a:?} in a, {b:?} in b"),
        TensorDifference::Values { elements, first, by } => {
            let number = plural(*elements as usize, "element");
            let mut out = format!("{number}, first at {first:?}");
            if let Some(Distance { max_absolute, max_relative, norm, norm_of_a }) = by {
                let _ = write!(
                    out,
                    ", by up to {max_absolute:.3e} ({max_relative:.3e} relative), norm {norm:.3e} \
                     of {norm_of_a:.3e}"
                );
            }
            out
        }
    }
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(str::to_string).into()
}

/// Columns padded to their widest cell.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|c| width(c).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "  {}", cells.join("  ").trim_end());
    }
    out
}
