//! The arguments of `muster ckpt`.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand};
use layout::MeshSpec;

#[derive(Debug, Subcommand)]
pub enum CkptCommand {
    /// List a run's checkpoints
    #[command(after_help = "Example: muster ckpt ls runs/quickstart")]
    Ls {
        /// A run's directory, or one that holds checkpoints
        dir: PathBuf,
    },
    /// Say what a checkpoint holds
    #[command(after_help = "Example: muster ckpt show runs/quickstart")]
    Show {
        /// A checkpoint, or a run's directory (its newest one)
        path: PathBuf,
        /// List every tensor: type, shape, size, and the ranks that wrote it
        #[arg(long)]
        tensors: bool,
        /// Print the manifest as JSON: run state, schema, files, and the boxes of each tensor
        #[arg(long, conflicts_with = "tensors")]
        json: bool,
    },
    /// Read every byte of a checkpoint and compare it with its checksums
    #[command(after_help = "\
Example: muster ckpt verify runs/quickstart/checkpoints/step-00000400.g0001

Exits with 0 if it is whole, with 2 if it is damaged.")]
    Verify {
        /// A checkpoint, or a run's directory (its newest one)
        path: PathBuf,
        /// Also hash all data with BLAKE3
        #[arg(long)]
        deep: bool,
    },
    /// Compare two checkpoints, tensor by tensor
    #[command(after_help = "\
Example: muster ckpt diff runs/a runs/b

Exits with 0 if all bits of all tensors are equal, with 2 if not.")]
    Diff {
        /// A checkpoint, or a run's directory (its newest one)
        a: PathBuf,
        /// Another
        b: PathBuf,
        /// Compare the model's parameters alone, not the optimizer's state nor the run's
        #[arg(long)]
        parameters_only: bool,
    },
    /// Write a checkpoint anew, cut for another layout of ranks
    #[command(after_help = "\
Examples:
  muster ckpt reshape runs/a reshaped --layout dp=8
  muster ckpt reshape runs/a reshaped --layout pp=2,dp=8,ep=4,tp=2
  muster train run.yaml --resume reshaped

Any checkpoint loads into any number of ranks as it is. This one's files hold the boxes that the
ranks of a layout have, replicas sharing theirs evenly. Every value stays as it is, to the bit. A
reshape that was interrupted goes on when the same command is given again.")]
    Reshape(ReshapeArgs),
    /// Say what `reshape` would do: boxes, bytes and seconds of each rank
    #[command(after_help = "\
Examples:
  muster ckpt plan runs/a --layout pp=2,dp=8,ep=4,tp=2
  muster ckpt plan runs/a --layout dp=64 --rate 2.5 --json

Keys of --json: checkpoint, layout {pp, dp, ep, tp}, tensors, bytes, gb_per_s, timed_bytes (read to
find that speed; null if it was given), seconds_alone (one process reads and writes all),
seconds_together (each rank writes its own), and ranks: of every one rank, at {pp, dp, ep, tp},
boxes, bytes and seconds.")]
    Plan(PlanArgs),
    /// Make a checkpoint of a published model, or of a checkpoint for another model
    #[command(after_help = "\
Examples:
  muster ckpt import Qwen3-30B-A3B-Base qwen3
  muster generate qwen3 --prompt \"Once upon a time\"
  muster train finetune.yaml --init qwen3
  muster ckpt import Llama-3-8B mixture --config moe.yaml --allow experts
  muster ckpt import runs/a padded --config wider.yaml --allow vocabulary

Reads a directory as Hugging Face's transformers writes it: config.json, safetensors files with or
without an index, tokenizer. Families: gpt2, llama, qwen3_moe, olmoe, mixtral, deepseek_v3. Nothing
in it is executed. Parameters become F32, which loses nothing of BF16 or F16; FP8 matrices with
factors (weight_scale_inv) become their products. TARGET appears whole or not at all.

A config with another model than the source's is made by rules, each of which has to be allowed:
  vocabulary  rows more are zero, rows less are left out
  tied        a head of its own begins as the embedding; one that is not needed is left out
  experts     k of each one, k slices of each one, the mean of k each, or copies or slices of a
              dense MLP, with routers drawn anew
Of a checkpoint the parameters are taken, not the optimizer's state.

Directories of torch.distributed.checkpoint (.metadata or DCP's safetensors; Megatron's torch_dist),
and DeepSpeed's universal checkpoints are read, too: with --config, or --as-is.")]
    Import(ImportArgs),
    /// Write a checkpoint for another library
    #[command(after_help = "\
Examples:
  muster ckpt export runs/a out
  muster ckpt export runs/a out --dtype bf16 --cast
  muster ckpt export runs/a out --dtype bf16 --fp8 --cast
  muster ckpt export runs/a out --to dcp --all-states

  hf           what Hugging Face's transformers loads: config.json, safetensors files of at most
               5 GB with an index, and the tokenizer
  safetensors  the same files, of any model, without a config.json
  dcp          what torch.distributed.checkpoint loads
Every byte of the checkpoint is verified as it is read. TARGET appears whole or not at all.")]
    Export(ExportArgs),
    /// Remove all checkpoints of a run but the newest
    #[command(after_help = "\
Examples:
  muster ckpt gc runs/a --keep 2 --dry-run
  muster ckpt gc runs/a --keep 2

Before anything is removed the newest checkpoint is read and verified, every byte of it. Damaged
checkpoints go only when as many newer ones are whole; what later versions wrote stays. Exits with 2
if one that is damaged stays. Removes, too, what imports and exports that were killed have left in
DIR or beside it (.NAME.arriving-…), unless one that lives is writing there.")]
    Gc {
        /// A run's directory, or one that holds checkpoints
        dir: PathBuf,
        /// How many whole checkpoints stay
        #[arg(long, value_name = "N")]
        keep: std::num::NonZeroUsize,
        /// Checkpoints of every so many steps stay, too, as long as they are whole
        #[arg(long, value_name = "STEPS", default_value_t = 0, hide_default_value = true)]
        keep_every: u64,
        /// Say what would be removed, and remove nothing
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct ReshapeArgs {
    /// A checkpoint, or a run's directory (its newest one)
    pub source: PathBuf,
    /// A directory for the result: new, empty, or of the same reshape, interrupted
    pub target: PathBuf,
    /// Ranks along pp (pipeline), dp (data), ep (experts) and tp (tensor); 1 if left out
    #[arg(long, value_name = "AXIS=N,…")]
    pub layout: Layout,
    /// Threads that read and write, in 8 MiB each; by default one per core
    #[arg(long, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// A checkpoint, or a run's directory (its newest one)
    pub source: PathBuf,
    /// Ranks along pp (pipeline), dp (data), ep (experts) and tp (tensor); 1 if left out
    #[arg(long, value_name = "AXIS=N,…")]
    pub layout: Layout,
    /// Speed of the disks that are to be read and written, in GB/s; by default reading is timed
    #[arg(long, value_name = "GB/S")]
    pub rate: Option<f64>,
    /// All ranks, as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The directory of a published model or of another trainer's checkpoint; a checkpoint, or a
    /// run's directory
    pub source: PathBuf,
    /// A directory for the result, as that of a run: new, or empty
    pub target: PathBuf,
    /// A config whose model the result is of; by default it is the source's
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Take every tensor as it is, of whatever model: to verify, compare or export it
    #[arg(long, conflicts_with_all = ["config", "allow", "ignored"])]
    pub as_is: bool,
    /// Rules that may make one model's tensors of another's
    #[arg(long, value_name = "RULE,…", value_delimiter = ',')]
    pub allow: Vec<RuleWord>,
    /// Layers of the source that the model's are, from FIRST to the one before END
    #[arg(long, value_name = "FIRST..END", value_parser = layers, requires = "config")]
    pub layers: Option<std::ops::Range<usize>>,
    /// Read config.json as if it had no such key; may be repeated. The model then computes
    /// something else than the published one
    #[arg(long = "ignore-key", value_name = "KEY")]
    pub ignored: Vec<String>,
    /// Round values that F32 cannot hold (F64) instead of refusing them
    #[arg(long)]
    pub cast: bool,
    /// Threads that read and write; by default one per core
    #[arg(long, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// A checkpoint, or a run's directory (its newest one)
    pub source: PathBuf,
    /// A directory for the result: new, or empty
    pub target: PathBuf,
    /// The library
    #[arg(long, value_enum, default_value = "hf")]
    pub to: Library,
    /// Write the optimizer's and the routers' states, too, each as NAME:SLOT
    #[arg(long)]
    pub all_states: bool,
    /// Type of the parameters in the files
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: FileType,
    /// Write the matrices of attention and of MLPs as FP8 (e4m3) with an f32 factor for each block
    /// of 128 by 128, as DeepSeek-V3 is published; the rest is of --dtype. Needs --cast
    #[arg(long)]
    pub fp8: bool,
    /// Round values to that type; without it nothing is rounded
    #[arg(long)]
    pub cast: bool,
    /// A file is closed before it would grow beyond so many GB
    #[arg(long, value_name = "GB", default_value_t = 5.0)]
    pub max_file_gb: f64,
    /// Files that are written at once; by default one per core
    #[arg(long, value_name = "N")]
    pub threads: Option<std::num::NonZeroUsize>,
}

/// A rule of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum RuleWord {
    Vocabulary,
    Tied,
    Experts,
}

fn layers(text: &str) -> Result<std::ops::Range<usize>, String> {
    let ends = text.split_once("..").map(|(first, end)| (first.trim().parse(), end.trim().parse()));
    match ends {
        Some((Ok(first), Ok(end))) if first < end => Ok(first..end),
        _ => Err("write FIRST..END with FIRST below END, such as 0..16".to_owned()),
    }
}

/// Libraries that checkpoints are written for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Library {
    Hf,
    Safetensors,
    Dcp,
}

/// Types that parameters are published in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum FileType {
    F32,
    Bf16,
    F16,
}

/// More ranks than any cluster has; each gets a directory.
pub const RANKS_MAX: usize = 1 << 17;

/// Ranks along each axis, as `dp=8,tp=2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout(pub MeshSpec);

impl FromStr for Layout {
    type Err = String;

    fn from_str(text: &str) -> Result<Layout, String> {
        let mut axes = [("pp", None), ("dp", None), ("ep", None), ("tp", None)];
        for part in text.split(',') {
            let (axis, ranks) = part.split_once('=').ok_or_else(|| {
                format!("`{part}` is not AXIS=N; write dp=8, or pp=2,dp=8,ep=4,tp=2")
            })?;
            let known = axes.iter_mut().find(|(name, _)| *name == axis.trim());
            let (name, place) =
                known.ok_or_else(|| format!("there is no axis `{axis}`; use pp, dp, ep or tp"))?;
            let number = ranks.trim().parse::<usize>().ok().filter(|n| (1..=RANKS_MAX).contains(n));
            let number = number.ok_or_else(|| {
                format!("{name} = `{ranks}` is no number of ranks; use 1 to {RANKS_MAX}")
            })?;
            if place.replace(number).is_some() {
                return Err(format!("{name} is given twice; leave one out"));
            }
        }
        let [pp, dp, ep, tp] = axes.map(|(_, ranks)| ranks.unwrap_or(1));
        Ok(Layout(MeshSpec { pp, dp: Some(dp), ep, tp }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_read_and_mistakes_named() {
        let layout: Layout = "tp=2, dp=8".parse().unwrap();
        assert_eq!(layout.0, MeshSpec { pp: 1, dp: Some(8), ep: 1, tp: 2 });
        for (text, told) in [
            ("8", "`8` is not AXIS=N"),
            ("cp=2", "there is no axis `cp`; use pp, dp, ep or tp"),
            ("dp=0", "dp = `0` is no number of ranks; use 1 to"),
            ("dp=2,dp=3", "dp is given twice"),
            ("", "`` is not AXIS=N"),
        ] {
            let error = text.parse::<Layout>().unwrap_err();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
