//! `muster ckpt reshape` and `muster ckpt plan`: a checkpoint cut for another layout of ranks.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use checkpoint::objects::is_url;
use checkpoint::{Checkpoint, Region, Reshape, ReshapeOptions, Store, Wanted, slabs};
use layout::{Demands, HeadRows, Mesh, MeshSpec, Placements, Written, write_plan};
use serde::Serialize;

use crate::cli::{PlanArgs, RANKS_MAX, ReshapeArgs};
use crate::console::{SharedProgress, bytes, duration, plural};
use crate::error::{CliError, Exit};
use crate::limits::cores;
use crate::output::say;
use crate::run_dir::open_checkpoint;
use crate::saved_model::model_of;

/// Bytes of a wave, and of a rank's part of it: shards of many ranks should not be tiny.
const WAVE_BYTES: u64 = 1 << 30;
const RANK_BYTES: u64 = 64 << 20;

/// Data that are read to time a disk.
const TIMED_BYTES: u64 = 256 << 20;

/// Of each rank the boxes that it has, as (number of the tensor, box).
type Boxes = Vec<Vec<(usize, Region)>>;

/// # Errors
/// A layout that the model does not allow; a target that holds something; damaged data; a disk that
/// is full or fails.
pub fn reshape(args: &ReshapeArgs) -> Result<Exit, CliError> {
    let checkpoint = open_checkpoint(&args.source)?;
    let (mesh, ranks) = cut(&checkpoint, args.layout.0)?;
    check_target(&args.target, &checkpoint)?;
    // The shards of two waves, and those of the source.
    let files = 2 * ranks.len() as u64 + 512;
    comm::files::allow(files).map_err(|limit| {
        CliError::mistake(format!(
            "{} need {files} files open at once, and {limit} are allowed; raise the limit \
             (`ulimit -n {files}`), or cut for fewer ranks",
            plural(ranks.len(), "rank")
        ))
    })?;
    let options = ReshapeOptions {
        threads: args.threads.map_or_else(cores, usize::from),
        wave_bytes: WAVE_BYTES.max(ranks.len() as u64 * RANK_BYTES),
    };
    let store = Store::new(&args.target);
    let layout = serde_json::to_value(Axes::from(mesh)).unwrap_or_default();
    let reshape = Reshape::new(&checkpoint, &store, &ranks, options).named(layout);
    let all = reshape.bytes();
    let progress = SharedProgress::new("reshaping", all);
    let started = Instant::now();
    let done = reshape.run(&|more| progress.more(more));
    drop(progress);
    let done = done?;
    let seconds = started.elapsed().as_secs_f64();
    let mut text = format!(
        "{} cut for {}\n  {:<10} {}\n  {:<10} {} in {}, {} at {:.2} GB/s\n",
        checkpoint.path().display(),
        axes(mesh),
        "written to",
        done.committed.path.display(),
        "data",
        bytes(done.committed.bytes),
        plural(done.committed.shards, "file"),
        duration(seconds),
        (all as f64 - done.taken_over_bytes as f64).max(0.0) / 1e9 / seconds.max(1e-9),
    );
    if done.taken_over_bytes > 0 {
        let before = bytes(done.taken_over_bytes);
        let _ = writeln!(text, "  {:<10} {before} were there from an earlier attempt", "");
    }
    let _ = write!(text, "  {:<10} {}", "digest", done.committed.manifest_blake3);
    say(&text)?;
    Ok(Exit::Ok)
}

/// # Errors
/// A layout that the model does not allow; data that cannot be read.
pub fn plan(args: &PlanArgs) -> Result<Exit, CliError> {
    if let Some(rate) = args.rate.filter(|rate| !(0.001..=100_000.0).contains(rate)) {
        return Err(CliError::mistake(format!(
            "--rate {rate:e} is no speed of a disk; give GB/s from 0.001 to 100000, such as 2.5"
        )));
    }
    let checkpoint = open_checkpoint(&args.source)?;
    let (mesh, ranks) = cut(&checkpoint, args.layout.0)?;
    let rate = match args.rate {
        Some(gb_per_s) => Rate { gb_per_s, timed_bytes: None },
        None => read_rate(&checkpoint)?,
    };
    let plan = Plan::new(&checkpoint, mesh, &ranks, rate);
    say(&match args.json {
        true => format!("{:#}", serde_json::to_value(&plan).unwrap_or_default()),
        false => plan.text(mesh),
    })?;
    Ok(Exit::Ok)
}

/// Ranks that are listed one by one, but for programs.
const LISTED: usize = 32;

/// The speed of a disk.
#[derive(Clone, Copy)]
struct Rate {
    gb_per_s: f64,
    /// Bytes that were read and verified to find it; `None` where it was given.
    timed_bytes: Option<u64>,
}

impl Rate {
    fn seconds(self, bytes: u64) -> f64 {
        bytes as f64 / 1e9 / self.gb_per_s
    }
}

/// The work of a reshape; the keys of `--json`.
#[derive(Serialize)]
struct Plan<'a> {
    checkpoint: &'a Path,
    layout: Axes,
    tensors: usize,
    bytes: u64,
    gb_per_s: f64,
    timed_bytes: Option<u64>,
    /// Of one process that reads and writes all of it.
    seconds_alone: f64,
    /// Of ranks that each write their own.
    seconds_together: f64,
    ranks: Vec<RankPlan>,
}

/// Ranks along the axes of a layout, or a rank's place among them.
#[derive(Clone, Copy, Serialize)]
struct Axes {
    pp: usize,
    dp: usize,
    ep: usize,
    tp: usize,
}

impl From<Mesh> for Axes {
    fn from(Mesh { pp, dp, ep, tp }: Mesh) -> Axes {
        Axes { pp, dp, ep, tp }
    }
}

#[derive(Serialize)]
struct RankPlan {
    rank: usize,
    at: Axes,
    boxes: usize,
    bytes: u64,
    seconds: f64,
}

impl<'a> Plan<'a> {
    fn new(checkpoint: &'a Checkpoint, mesh: Mesh, ranks: &Boxes, rate: Rate) -> Plan<'a> {
        let size = |(tensor, region): &(usize, Region)| {
            let element = checkpoint.tensors()[*tensor].dtype.size_bytes();
            (region.elements().unwrap_or(0) * element) as u64
        };
        let planned = ranks.iter().enumerate().filter_map(|(rank, boxes)| {
            let at = mesh.coordinate(rank).ok()?;
            let at = Axes { pp: at.pp, dp: at.dp, ep: at.ep, tp: at.tp };
            let bytes = boxes.iter().map(size).sum();
            Some(RankPlan { rank, at, boxes: boxes.len(), bytes, seconds: rate.seconds(bytes) })
        });
        let ranks: Vec<RankPlan> = planned.collect();
        let bytes = ranks.iter().map(|rank| rank.bytes).sum();
        let most = ranks.iter().map(|rank| rank.bytes).max().unwrap_or(0);
        Plan {
            checkpoint: checkpoint.path(),
            layout: mesh.into(),
            tensors: checkpoint.tensors().len(),
            bytes,
            gb_per_s: rate.gb_per_s,
            timed_bytes: rate.timed_bytes,
            seconds_alone: 2.0 * rate.seconds(bytes),
            seconds_together: rate.seconds(most),
            ranks,
        }
    }

    fn text(&self, mesh: Mesh) -> String {
        let sizes = || self.ranks.iter().map(|rank| rank.bytes);
        let how = match self.timed_bytes {
            None => "as given".to_owned(),
            Some(read) => format!("as {} of it were read and verified", bytes(read)),
        };
        let mut text = format!(
            "{} for {}\n  {} in {}; a rank writes {} to {}\n  at {:.3} GB/s, {how}: {} for one \
             process that reads and writes all of it, {} for ranks that each write their own\n",
            self.checkpoint.display(),
            axes(mesh),
            bytes(self.bytes),
            plural(self.tensors, "tensor"),
            bytes(sizes().min().unwrap_or(0)),
            bytes(sizes().max().unwrap_or(0)),
            self.gb_per_s,
            duration(self.seconds_alone),
            duration(self.seconds_together),
        );
        let _ = writeln!(text, "  rank   pp  dp  ep  tp   boxes        bytes  seconds");
        for RankPlan { rank, at, boxes, bytes: size, seconds } in self.ranks.iter().take(LISTED) {
            let Axes { pp, dp, ep, tp } = at;
            let _ = writeln!(
                text,
                "  {rank:>4} {pp:>4} {dp:>3} {ep:>3} {tp:>3} {boxes:>7} {:>12} {seconds:>8.2}",
                bytes(*size)
            );
        }
        if self.ranks.len() > LISTED {
            let _ = writeln!(text, "  and {} more", plural(self.ranks.len() - LISTED, "rank"));
        }
        text.truncate(text.trim_end().len());
        text
    }
}

/// The speed of reading and verifying.
fn read_rate(checkpoint: &Checkpoint) -> Result<Rate, CliError> {
    let (mut wanted, mut all) = (Vec::new(), 0);
    for tensor in checkpoint.tensors() {
        let (dtype, size) = (tensor.dtype, tensor.dtype.size_bytes());
        for region in slabs(&tensor.shape, (16 << 20) / size) {
            if all < TIMED_BYTES {
                all += (region.elements().unwrap_or(0) * size) as u64;
                wanted.push(Wanted { key: tensor.key(), dtype, region });
            }
        }
    }
    let started = Instant::now();
    checkpoint.read_boxes::<checkpoint::Error>(&wanted, cores(), |_, _, _| Ok(()))?;
    let gb_per_s = all as f64 / 1e9 / started.elapsed().as_secs_f64().max(1e-9);
    Ok(Rate { gb_per_s, timed_bytes: Some(all) })
}

/// The boxes of each rank of a layout.
fn cut(checkpoint: &Checkpoint, layout: MeshSpec) -> Result<(Mesh, Boxes), CliError> {
    let MeshSpec { pp, dp, ep, tp } = layout;
    let asked = Mesh { pp, dp: dp.unwrap_or(1), ep, tp };
    let world = asked.product().filter(|&world| world <= RANKS_MAX).ok_or_else(|| {
        CliError::mistake(format!(
            "--layout: {} · {} · {} · {} ranks are more than {RANKS_MAX}",
            pp, asked.dp, ep, tp
        ))
    })?;
    let schema = checkpoint.schema();
    let heads = match tp {
        1 => HeadRows::of(1),
        _ => heads_of(checkpoint)?,
    };
    let misfit = |error: layout::LayoutError| CliError::mistake(format!("--layout: {error}"));
    let mesh = layout.fill(world, &Demands::new(&schema, heads)).map_err(misfit)?;
    let placements = Placements::new(&schema, heads, mesh).map_err(misfit)?;
    let written = checkpoint.tensors().iter().map(|tensor| {
        let like = schema.find(&tensor.name);
        let like = like.filter(|&index| schema.tensors[index].shape == tensor.shape);
        Written { shape: tensor.shape.clone(), element_bytes: tensor.dtype.size_bytes(), like }
    });
    let written: Vec<Written> = written.collect();
    let ranks = write_plan(&placements, &written).map_err(misfit)?;
    Ok((mesh, ranks))
}

/// The rows of an attention head, from the config that the checkpoint keeps.
fn heads_of(checkpoint: &Checkpoint) -> Result<HeadRows, CliError> {
    let (_, architecture) = model_of(checkpoint).map_err(|error| {
        let why = error.message;
        CliError::mistake(format!("--layout: {why}; leave tp out, or use tp=1"))
    })?;
    Ok(architecture.head_rows())
}

fn axes(Mesh { pp, dp, ep, tp }: Mesh) -> String {
    let named = [("pp", pp), ("dp", dp), ("ep", ep), ("tp", tp)];
    let of: Vec<String> =
        named.iter().filter(|(_, n)| *n > 1).map(|(axis, n)| format!("{axis} {n}")).collect();
    let world = Mesh { pp, dp, ep, tp }.product().unwrap_or(usize::MAX);
    match of.len() {
        0 | 1 => plural(world, "rank"),
        _ => format!("{}: {}", of.join(" · "), plural(world, "rank")),
    }
}

/// A directory, or nothing yet; that it is nobody else's the reshape finds out.
fn check_target(target: &Path, source: &Checkpoint) -> Result<(), CliError> {
    let name = target.display();
    if is_url(target) {
        checkpoint::objects::check(target).map_err(CliError::mistake)?;
        return match target.starts_with(source.path()) {
            true => Err(in_source(target)),
            false => Ok(()),
        };
    }
    let found = match target.symlink_metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => Some(found.map_err(|error| CliError::mistake(format!("{name}: {error}")))?),
    };
    if let Some(found) = found.filter(|found| !found.is_dir()) {
        let what = if found.is_symlink() { "a link" } else { "no directory" };
        return Err(CliError::mistake(format!(
            "{name} is {what}; give a new or an empty directory for the result"
        )));
    }
    // Of a path that is not there yet, the directory above it.
    let real = |path: &Path| path.ancestors().find_map(|above| above.canonicalize().ok());
    let within = real(&std::path::absolute(target).unwrap_or_else(|_| target.to_owned()));
    let of_source = source.path().canonicalize().ok();
    if within.zip(of_source).is_some_and(|(target, source)| target.starts_with(source)) {
        return Err(in_source(target));
    }
    Ok(())
}

fn in_source(target: &Path) -> CliError {
    let name = target.display();
    CliError::mistake(format!(
        "{name} lies in the checkpoint that is to be cut; give a directory elsewhere"
    ))
}
