//! `muster ckpt reshape` and `muster ckpt plan`: a checkpoint cut for another layout of ranks.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Instant;

use checkpoint::objects::is_url;
use checkpoint::{Checkpoint, Region, Reshape, ReshapeOptions, Store, Wanted, slabs};
use layout::{Demands, HeadRows, Mesh, MeshSpec, Placements, Written, write_plan};

use crate::cli::{RANKS_MAX, ReshapeArgs};
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
    let reshape = Reshape::new(&checkpoint, &store, &ranks, options);
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
pub fn plan(source: &Path, layout: MeshSpec, rate: Option<f64>) -> Result<Exit, CliError> {
    if let Some(rate) = rate.filter(|rate| !(0.001..=100_000.0).contains(rate)) {
        return Err(CliError::mistake(format!(
            "--rate {rate:e} is no speed of a disk; give GB/s from 0.001 to 100000, such as 2.5"
        )));
    }
    let checkpoint = open_checkpoint(source)?;
    let (mesh, ranks) = cut(&checkpoint, layout)?;
    let (rate, how) = match rate {
        Some(rate) => (rate, "as given".to_owned()),
        None => {
            let (rate, read) = read_rate(&checkpoint)?;
            (rate, format!("as {} of it were read and verified", bytes(read)))
        }
    };
    say(&plan_text(&checkpoint, mesh, &ranks, (rate, &how)))?;
    Ok(Exit::Ok)
}

/// Ranks that are listed one by one.
const LISTED: usize = 32;

fn plan_text(
    checkpoint: &Checkpoint,
    mesh: Mesh,
    ranks: &Boxes,
    (rate, how): (f64, &str),
) -> String {
    let size = |boxes: &Vec<(usize, Region)>| -> u64 {
        let of = |(tensor, region): &(usize, Region)| {
            let element = checkpoint.tensors()[*tensor].dtype.size_bytes();
            (region.elements().unwrap_or(0) * element) as u64
        };
        boxes.iter().map(of).sum()
    };
    let sizes: Vec<u64> = ranks.iter().map(size).collect();
    let (least, most) = (sizes.iter().min().copied(), sizes.iter().max().copied());
    let (least, most) = (least.unwrap_or(0), most.unwrap_or(0));
    let all: u64 = sizes.iter().sum();
    let mut text = format!(
        "{} for {}\n  {} in {}; a rank writes {} to {}\n  at {rate:.3} GB/s, {how}: {} for one \
         process that reads and writes all of it, {} for ranks that each write their own\n",
        checkpoint.path().display(),
        axes(mesh),
        bytes(all),
        plural(checkpoint.tensors().len(), "tensor"),
        bytes(least),
        bytes(most),
        duration(2.0 * all as f64 / 1e9 / rate),
        duration(most as f64 / 1e9 / rate),
    );
    let _ = writeln!(text, "  rank   pp  dp  ep  tp   boxes        bytes  seconds");
    for (rank, size) in sizes.iter().enumerate().take(LISTED) {
        let Ok(at) = mesh.coordinate(rank) else { continue };
        let _ = writeln!(
            text,
            "  {rank:>4} {:>4} {:>3} {:>3} {:>3} {:>7} {:>12} {:>8.2}",
            at.pp,
            at.dp,
            at.ep,
            at.tp,
            ranks[rank].len(),
            bytes(*size),
            *size as f64 / 1e9 / rate
        );
    }
    if ranks.len() > LISTED {
        let _ = writeln!(text, "  and {} more", plural(ranks.len() - LISTED, "rank"));
    }
    text.truncate(text.trim_end().len());
    text
}

/// GB/s of reading and verifying, and the bytes that were read for it.
fn read_rate(checkpoint: &Checkpoint) -> Result<(f64, u64), CliError> {
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
    Ok((all as f64 / 1e9 / started.elapsed().as_secs_f64().max(1e-9), all))
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
