//! The command line: what may be typed, with examples.

mod bench;
mod ckpt;
mod collectives;
mod links;
mod report;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use comm::BackendWord;
use train::config::Cpus;

use crate::config::Override;
use crate::launch_env::{Choice, Launcher};
use crate::trace::Steps;

pub use bench::{
    BenchArgs, BenchCommand, CompareArgs, GemmArgs, MemoryArgs, NewtonSchulzArgs, OrthogonalizeArgs,
};
pub use ckpt::{
    CkptCommand, ExportArgs, FileType, ImportArgs, Library, PlanArgs, RANKS_MAX, ReshapeArgs,
    RuleWord,
};
pub use collectives::CollectivesArgs;
pub use links::LinksArgs;
pub use report::ReportArgs;

/// Trains mixture-of-experts language models with Muon, sharded over ranks.
#[derive(Debug, Parser)]
#[command(name = "muster", version, max_term_width = 100, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done, 1 `bench compare` found a regression, 2 your mistake, 3 a rank, the network or a
device failed, 70 a bug in Muster, 75 told to stop and saved (run again to go on).";

/// The commands of `muster`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a model
    Train(TrainArgs),
    /// Continue a text with a trained model
    Generate(GenerateArgs),
    /// Make and look at token files
    #[command(subcommand)]
    Data(DataCommand),
    /// Print or check configs
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Look at checkpoints
    #[command(subcommand)]
    Ckpt(CkptCommand),
    /// Put traces of several ranks or hosts together
    #[command(subcommand)]
    Trace(TraceCommand),
    /// Measure kernels and memory, and compare reports of collectives
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Orthogonalize the matrices of a safetensors file
    Orthogonalize(OrthogonalizeArgs),
    /// One rank of a run; started by `train`
    #[command(hide = true)]
    Worker(WorkerArgs),
    /// One rank of a benchmark; started by `bench collectives`
    #[command(hide = true)]
    BenchWorker(WorkerArgs),
}

/// Overrides of config keys.
#[derive(Debug, Clone, Default, Args)]
pub struct SetArgs {
    /// Set a config key, with its sections; may be repeated. VALUE is YAML
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = Override::parse_set)]
    pub set: Vec<Override>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  muster train configs/quickstart.yaml
  muster train configs/quickstart.yaml --set data.files=mine.txt --name mine
  muster train configs/quickstart.yaml --ranks 4 --threads 1 --backend tcp
  muster train configs/gpt2-124m.yaml --set data.files='[a.txt, b.jsonl]' --dry-run
  muster train configs/quickstart.yaml --resume never
  muster train finetune.yaml --init imported
  muster train configs/quickstart.yaml --ranks 2 --trace trace.json.gz --trace-steps 20..25
  srun --ntasks-per-node=1 muster train run.yaml --backend tcp --ranks 16
  mpirun -n 8 muster train run.yaml --backend tcp

Ctrl-C finishes the step and saves; a second one stops at once. SIGTERM, SIGHUP, SIGXCPU and the
signal that a scheduler warns with (ranks.warn_signal, USR1 by default) do so with exit code 75.
Run the same command again to go on.")]
#[command(allow_negative_numbers = true)]
pub struct TrainArgs {
    /// The config; `muster config default` prints one to start from
    #[arg(value_name = "CONFIG")]
    pub config: PathBuf,
    #[command(flatten)]
    pub set: SetArgs,
    /// Name of the run; it writes to RUNS_DIR/NAME
    #[arg(long)]
    pub name: Option<String>,
    /// Worker processes
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// Threads per rank; 0 divides the cores among the ranks
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Backend that connects the ranks
    #[arg(long, value_parser = backend())]
    pub backend: Option<BackendWord>,
    /// Checkpoint to start from: `auto` (this run's newest), `never`, a checkpoint or a run
    #[arg(long, value_name = "auto|never|DIR")]
    pub resume: Option<String>,
    /// Where a run begins that resumes from nothing: with the parameters of an import, a run or a
    /// checkpoint
    #[arg(long, value_name = "DIR")]
    pub init: Option<String>,
    /// Stop after this step, saved; the schedule is that of the whole run
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Show at the end what each operation of rank 0 took
    #[arg(long)]
    pub profile: bool,
    /// Record what every rank did and when, for ui.perfetto.dev or chrome://tracing: a file that
    /// ends in .json or .json.gz, or a directory for trace.json; of several hosts one each
    #[arg(long, value_name = "FILE|DIR")]
    pub trace: Option<PathBuf>,
    /// Steps to record, from A to B; by default ten after the first two of this start
    #[arg(long, value_name = "A..B", requires = "trace", value_parser = Steps::parse)]
    pub trace_steps: Option<Steps>,
    /// Print what would be done, and do nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub hosts: HostArgs,
}

/// How the hosts of a job find each other, and what of a host its ranks use.
#[derive(Debug, Clone, Default, Args)]
pub struct HostArgs {
    /// Where the ranks of several hosts meet: an address of node 0
    #[arg(long, value_name = "HOST:PORT")]
    pub rendezvous: Option<String>,
    /// Number of hosts, or of tasks of a launcher
    #[arg(long, value_name = "N")]
    pub nodes: Option<usize>,
    /// Number of this host, from 0
    #[arg(long, value_name = "I")]
    pub node_rank: Option<usize>,
    /// Address to listen on for other ranks; only this host's own by default
    #[arg(long, value_name = "IP", value_parser = ip)]
    pub bind: Option<IpAddr>,
    /// A file whose first line, of 16 bytes or more, is the job's secret, the same on all hosts
    #[arg(long, value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// A directory with certificate.pem, key.pem and authority.pem, with which all connections of
    /// a job of several hosts are encrypted
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Whose environment says what these flags do not: each task that it started is a host
    #[arg(long, value_name = "NAME", default_value = "auto")]
    pub launcher: LauncherArg,
    /// Which CPUs a rank may use; by default its share, where a host has several NUMA nodes
    #[arg(long, value_name = "WHICH")]
    pub cpus: Option<CpusArg>,
    /// A directory that describes a host as /sys/devices/system does
    #[arg(long, value_name = "DIR", hide = true)]
    pub topology: Option<PathBuf>,
}

/// Which CPUs a rank may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum CpusArg {
    /// Its share of the host's, if these are of several NUMA nodes
    #[default]
    Auto,
    /// Those of its host
    Any,
}

impl From<CpusArg> for Cpus {
    fn from(arg: CpusArg) -> Cpus {
        match arg {
            CpusArg::Auto => Cpus::Auto,
            CpusArg::Any => Cpus::Any,
        }
    }
}

/// Who may have started this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum LauncherArg {
    /// Whoever did
    #[default]
    Auto,
    /// Nobody: the environment is not read
    None,
    /// Slurm's srun
    Slurm,
    /// An indexed Job or JobSet of Kubernetes
    Kubernetes,
    /// Open MPI, MPICH, Intel MPI
    Mpi,
    /// PyTorch's torchrun
    Torchrun,
}

impl From<LauncherArg> for Choice {
    fn from(arg: LauncherArg) -> Choice {
        match arg {
            LauncherArg::Auto => Choice::Any,
            LauncherArg::None => Choice::Nobody,
            LauncherArg::Slurm => Choice::Only(Launcher::Slurm),
            LauncherArg::Kubernetes => Choice::Only(Launcher::Kubernetes),
            LauncherArg::Mpi => Choice::Only(Launcher::Mpi),
            LauncherArg::Torchrun => Choice::Only(Launcher::Torchrun),
        }
    }
}

impl TrainArgs {
    /// `--set` and the flags that stand for a key, in one list; flags of their own win.
    pub fn overrides(&self) -> Vec<Override> {
        let mut all = self.set.set.clone();
        let mut flag = |path: &str, value: Option<String>, flag: &str| {
            all.extend(value.map(|value| Override::flag(path, value, flag)));
        };
        flag("name", self.name.clone(), "--name");
        flag("ranks.count", self.ranks.map(|n| n.to_string()), "--ranks");
        flag("ranks.threads", self.threads.map(|n| n.to_string()), "--threads");
        flag("ranks.backend", self.backend.map(|backend| backend.word().into()), "--backend");
        let cpus = self.hosts.cpus.and_then(|cpus| cpus.to_possible_value());
        flag("ranks.cpus", cpus.map(|word| word.get_name().to_string()), "--cpus");
        // JSON's quoting is YAML's, whatever the path holds.
        let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
        let secret = self.hosts.secret_file.as_deref().map(quoted);
        flag("ranks.secret_file", secret, "--secret-file");
        let files = self.hosts.tls.as_deref().map(crate::tls::of_dir);
        let files = files.and_then(|files| serde_json::to_string(&files).ok());
        flag("ranks.tls", files, "--tls");
        let resume = self.resume.as_ref().map(|word| match word.as_str() {
            "auto" | "never" => word.clone(),
            path => format!("{{from: {}}}", serde_json::Value::from(path)),
        });
        if let (Some(value), Some(word)) = (resume, &self.resume) {
            let over = Override::flag("checkpoint.resume", value, "--resume");
            all.push(Override { flag: format!("--resume {word}"), ..over });
        }
        if let Some(dir) = &self.init {
            let value = serde_json::Value::from(&**dir).to_string();
            let over = Override::flag("checkpoint.init", value, "--init");
            all.push(Override { flag: format!("--init {dir}"), ..over });
        }
        all
    }
}

/// A backend by its word; each with what it is.
fn backend() -> impl TypedValueParser<Value = BackendWord> {
    let words = BackendWord::ALL.map(|backend| {
        PossibleValue::new(backend.word()).help(match backend {
            BackendWord::Shm => "Shared memory, on one host",
            BackendWord::Tcp => "TCP",
        })
    });
    PossibleValuesParser::new(words).try_map(|word| {
        let named = BackendWord::ALL.into_iter().find(|backend| backend.word() == word);
        named.ok_or("no such backend")
    })
}

/// How long a rank may stand still, as configs bound it (`ranks.timeout_ms`).
fn timeout_ms(text: &str) -> Result<u64, String> {
    const BOUNDS: std::ops::RangeInclusive<u64> = 1000..=604_800_000;
    let ms: u64 = text
        .parse()
        .map_err(|_| format!("`{text}` is no number of milliseconds; for example 30000"))?;
    match ms.clamp(*BOUNDS.start(), *BOUNDS.end()) {
        near if near == ms => Ok(ms),
        near if near > ms => Err(format!(
            "{ms} is out of range: a busy machine lets a healthy rank stand still for half a \
             second; the nearest is {near}"
        )),
        near => {
            Err(format!("{ms} is out of range: that is more than a week; the nearest is {near}"))
        }
    }
}

/// An address without a port.
fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| match text.parse::<SocketAddr>() {
        Ok(addr) => format!("ranks listen on any free port; leave it out: {}", addr.ip()),
        Err(_) => {
            "not an IP address; for example 127.0.0.1, 10.0.0.7 or 0.0.0.0 (every interface)".into()
        }
    })
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  muster generate runs/quickstart --prompt 'fn main() {'
  muster generate runs/quickstart --tokens 400 --temperature 0.7 --top-k 40 --seed 3
  muster generate runs/quickstart/checkpoints/step-00000400.g0001")]
#[command(allow_negative_numbers = true)]
pub struct GenerateArgs {
    /// A run's directory (its newest checkpoint) or a checkpoint
    #[arg(value_name = "RUN_OR_CHECKPOINT")]
    pub from: PathBuf,
    /// Text to continue; without it the model begins a document
    #[arg(long, default_value = "", hide_default_value = true)]
    pub prompt: String,
    /// Tokens to generate
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub tokens: usize,
    /// Divides the logits: below 1 likelier, above 1 wilder, 0 always the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.8)]
    pub temperature: f64,
    /// Choose among the K likeliest tokens only; 0: among all
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Seeds the choice: the same seed gives the same text
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write the logits after each token of the prompt to a safetensors file (`tokens` as I64,
    /// `logits` as F32 [tokens, vocabulary]), and generate nothing
    #[arg(long, value_name = "FILE")]
    pub logits: Option<PathBuf>,
    /// Tokens in the place of a prompt, as their numbers
    #[arg(long, value_name = "ID,…", value_delimiter = ',', requires = "logits")]
    #[arg(conflicts_with = "prompt")]
    pub ids: Vec<u32>,
}

#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Turn text files into one token file
    #[command(after_help = "\
Examples:
  muster data tokenize book.txt notes.txt corpus.tok
  muster data tokenize --tokenizer gpt2 --field content part-*.jsonl corpus.tok

A text file is one document; a .jsonl file has one per line. Files may be compressed by gzip or
zstd, and text may come through a pipe. The token file is the same for any number of threads.")]
    Tokenize(TokenizeArgs),
    /// Say what is in a token file, reading all of it
    #[command(after_help = "Example: muster data show corpus.tok")]
    Show {
        /// A `.tok` file, a Megatron `.bin` + `.idx` pair, or a `.bin` with a 256-integer header
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
#[command(override_usage = "muster data tokenize [OPTIONS] <IN>... <OUT>")]
pub struct TokenizeArgs {
    /// Text files, in order, and at the end the token file to write (`.tok`)
    #[arg(value_name = "IN… OUT", num_args = 2.., required = true)]
    pub paths: Vec<PathBuf>,
    /// `byte`, `gpt2`, or a Hugging Face `tokenizer.json`
    #[arg(long, default_value = "byte")]
    pub tokenizer: String,
    /// Field of a `.jsonl` line that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub field: String,
    /// Threads; 0 uses every core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
}

#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every key with its default and what it means, as YAML
    #[command(after_help = "Example: muster config default > run.yaml")]
    Default,
    /// Print the JSON schema of configs, for editors
    #[command(after_help = "Example: muster config schema > muster.schema.json")]
    Schema,
    /// Say what is wrong in each section of a config
    #[command(after_help = "\
Examples:
  muster config check configs/quickstart.yaml
  muster config check run.yaml --set model.d_model=100

Exits with 0 if nothing is wrong, else with 2.")]
    Check {
        /// The config
        #[arg(value_name = "CONFIG")]
        file: PathBuf,
        #[command(flatten)]
        set: SetArgs,
    },
}

#[derive(Debug, Subcommand)]
pub enum TraceCommand {
    /// Write one trace of several, such as those of a job's hosts
    #[command(after_help = "\
Examples:
  muster trace merge trace-node0.json trace-node1.json trace.json.gz
  muster trace merge trace.json.parts trace.json

A run that was killed leaves a directory of parts beside its trace.")]
    #[command(override_usage = "muster trace merge <IN>... <OUT>")]
    Merge {
        /// Traces, or directories of parts, and at the end the file to write (.json or .json.gz)
        #[arg(value_name = "IN… OUT", num_args = 2.., required = true)]
        paths: Vec<PathBuf>,
    },
}

/// The arguments that `train` gives to the processes it starts.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// The file in which `train` left all that this rank needs
    #[arg(long, value_name = "FILE")]
    pub plan: PathBuf,
    /// Number of this rank, from 0
    #[arg(long, value_name = "R")]
    pub rank: usize,
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_timeout_is_longer_than_a_busy_machine_lets_ranks_wait() {
        let read = super::timeout_ms;
        assert_eq!((read("1000"), read("30000")), (Ok(1000), Ok(30_000)));
        for (text, near) in [("500", "1000"), ("0", "1000"), ("99999999999", "604800000")] {
            let refused = read(text).unwrap_err();
            assert!(refused.ends_with(&format!("; the nearest is {near}")), "{refused}");
            assert_eq!(read(near), Ok(near.parse().unwrap()));
        }
        assert!(read("soon").unwrap_err().contains("for example 30000"));
    }

    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_become_overrides_that_name_themselves() {
        let words = "muster train c.yaml --set seed=2 --ranks 3 --backend tcp --resume a/b";
        let Command::Train(args) = Cli::parse_from(words.split(' ')).command else { panic!() };
        let overrides = args.overrides();
        let shown: Vec<(&str, &str, &str)> = overrides
            .iter()
            .map(|o| (o.path.as_str(), o.value.as_str(), o.flag.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("seed", "2", "--set seed=2"),
                ("ranks.count", "3", "--ranks 3"),
                ("ranks.backend", "tcp", "--backend tcp"),
                ("checkpoint.resume", "{from: \"a/b\"}", "--resume a/b"),
            ]
        );
    }
}
