//! The whole configuration of a run, as YAML.
//!
//! Every field has a default except the corpus, and a doc comment that becomes the comment of
//! `muster config default` and the description of `muster config schema`.

use std::path::PathBuf;

use comm::BackendWord;
use data::DataConfig;
use device::DType;

pub use crate::optimizer_device::OptimizerDevice;
use model::ModelConfig;
use optim::OptimizerConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The run's name; everything it writes lies in `runs_dir/NAME`.
    pub name: String,
    /// Where runs lie, relative to the directory the command is called in.
    pub runs_dir: PathBuf,
    /// Seeds the initial weights and the sample order.
    pub seed: u64,
    /// The shape of the model.
    pub model: ModelConfig,
    /// The text.
    pub data: DataConfig,
    /// How a step's samples are divided.
    pub batch: BatchConfig,
    /// Update rules, schedule, clipping.
    pub optimizer: OptimizerConfig,
    /// Length and rhythm of the run.
    pub train: TrainConfig,
    /// Saving and resuming.
    pub checkpoint: CheckpointConfig,
    /// Processes, threads and what connects them.
    pub ranks: RanksConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            name: "run".into(),
            runs_dir: "runs".into(),
            seed: 1,
            model: ModelConfig::default(),
            data: DataConfig::default(),
            batch: BatchConfig::default(),
            optimizer: OptimizerConfig::default(),
            train: TrainConfig::default(),
            checkpoint: CheckpointConfig::default(),
            ranks: RanksConfig::default(),
        }
    }
}

/// More leaves than any cluster has devices.
pub const LEAVES_MAX: usize = 65_536;

/// The most micro-batches of a leaf.
pub const MICRO_BATCHES_MAX: usize = 1_048_576;

/// The `batch` section. Tokens per step = leaves · micro_batches · micro_batch · seq_len.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BatchConfig {
    /// Virtual ranks that the batch is divided over; at least the number of ranks. The weights
    /// have the same bits for every number of ranks that shares these leaves.
    #[schemars(range(min = 1, max = LEAVES_MAX))]
    pub leaves: usize,
    /// The summation tree over the leaves, root first; their product is `leaves`. Empty: its
    /// prime factors, small ones first.
    #[schemars(inner(range(min = 2, max = 65_536)))]
    pub radices: Vec<usize>,
    /// Micro-batches that each leaf accumulates.
    #[schemars(range(min = 1, max = MICRO_BATCHES_MAX))]
    pub micro_batches: usize,
    /// Windows per micro-batch.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub micro_batch: usize,
    /// Tokens per window.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub seq_len: usize,
}

impl Default for BatchConfig {
    fn default() -> BatchConfig {
        let radices = Vec::new();
        BatchConfig { leaves: 4, radices, micro_batches: 1, micro_batch: 4, seq_len: 256 }
    }
}

impl BatchConfig {
    /// Windows per step.
    pub(crate) fn samples_per_step(&self) -> u64 {
        (self.leaves * self.micro_batches * self.micro_batch) as u64
    }

    /// Input tokens per step.
    pub fn tokens_per_step(&self) -> u64 {
        self.samples_per_step() * self.seq_len as u64
    }
}

/// The `train` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Steps of the whole run.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub steps: u64,
    /// Validate every so many steps, and at the end; 0 only at the end.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub eval_every: u64,
    /// Validation windows that are read, at most; 0 reads all of them.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub eval_samples: u64,
    /// Type in which weights are stored and exchanged. With bf16 the owner of a weight keeps it
    /// as f32, too, and a pass widens one matrix at a time: it halves what ranks send each other,
    /// and takes more memory than f32 on one rank.
    pub weights: WeightsDtype,
    /// Tokens of the sample of generated text at the end; 0 for none.
    #[schemars(range(max = 1_048_576))]
    pub sample_tokens: usize,
    /// Text that the sample continues.
    pub sample_prompt: String,
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            steps: 1000,
            eval_every: 100,
            eval_samples: 256,
            weights: WeightsDtype::F32,
            sample_tokens: 200,
            sample_prompt: String::new(),
        }
    }
}

/// Type in which weights are stored and exchanged; the owner's masters are always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightsDtype {
    F32,
    Bf16,
}

impl WeightsDtype {
    /// As tensors name it.
    pub fn dtype(self) -> DType {
        match self {
            WeightsDtype::F32 => DType::F32,
            WeightsDtype::Bf16 => DType::Bf16,
        }
    }
}

/// The `checkpoint` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Save every so many steps, and at the end; 0 only at the end.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub every: u64,
    /// Committed checkpoints to keep; 0 keeps all.
    #[schemars(range(max = 1_000_000))]
    pub keep: usize,
    /// Checkpoints of every so many steps stay, too, as long as they are whole; 0: none.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub keep_every: u64,
    /// Where checkpoints are saved in place of the run's own directory, and resumed from: a
    /// directory, or the URL of a prefix in an object store, as s3://BUCKET/PREFIX (or gs://,
    /// az://), whose credentials are taken from the usual environment variables. One run's alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<PathBuf>,
    /// The checkpoint to start from: `auto` (the newest of this run, if any), `never` (none), or
    /// the directory or the URL of one.
    pub resume: Resume,
    /// Where a run begins that resumes from no checkpoint: with the parameters of this one (an
    /// import's directory, a run's or a checkpoint's) in place of drawn ones. Without a `model`
    /// section the model and its tokenizer are that checkpoint's, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<PathBuf>,
    /// Whether steps go on while a checkpoint is written.
    pub mode: SaveMode,
    /// Megabytes a second that each rank writes at most beside the training, in mode `async`; 0: no
    /// limit.
    #[schemars(range(max = 1_000_000_000))]
    pub max_mb_per_s: u64,
    /// Checkpoints between those, in a directory of each host, from which a run goes on after it
    /// has lost a rank or a host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
}

/// Checkpoints in memory or on a disk of each host. Every file is copied to the next host before
/// one counts; the newest one stays, until the run ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// A directory on each host, in memory (`/dev/shm`) or on a local disk; not one that hosts
    /// share. It needs room for four times what the ranks of a host save, or on a single host
    /// twice.
    pub dir: PathBuf,
    /// Steps from one to the next.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub every: u64,
}

impl Default for CheckpointConfig {
    fn default() -> CheckpointConfig {
        let (resume, mode) = (Resume::Auto, SaveMode::Async);
        CheckpointConfig {
            every: 100,
            keep: 3,
            keep_every: 0,
            store: None,
            resume,
            init: None,
            mode,
            max_mb_per_s: 0,
            local: None,
        }
    }
}

/// Whether a step waits for a checkpoint that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SaveMode {
    /// For a copy of the state, into one of two buffers; a thread writes it. The last checkpoint of
    /// a run is waited for.
    Async,
    /// For the checkpoint.
    Sync,
}

/// The checkpoint to start from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    Auto,
    Never,
    From(PathBuf),
}

impl std::str::FromStr for Resume {
    type Err = std::convert::Infallible;

    fn from_str(word: &str) -> Result<Resume, Self::Err> {
        Ok(match word {
            "auto" => Resume::Auto,
            "never" => Resume::Never,
            path => Resume::From(path.into()),
        })
    }
}

/// The `ranks` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RanksConfig {
    /// Worker processes.
    #[schemars(range(min = 1, max = 65_536))]
    pub count: usize,
    /// Transport between the ranks: `shm` (one host) or `tcp`.
    pub backend: BackendWord,
    /// Transport between ranks of one host, where `backend: tcp` connects several hosts: `shm`, or
    /// `tcp`, which then connects all.
    pub within_host: BackendWord,
    /// How the ranks divide the model; without it, all of them are parallel over data. Training
    /// knows nothing else for now: another mesh can be planned (`--dry-run`) but not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<MeshConfig>,
    /// Threads per rank; 0 divides the cores of the host among its ranks.
    #[schemars(range(max = 4_096))]
    pub threads: usize,
    /// Which CPUs a rank may use: `auto` binds each to its share of the host's, in one NUMA node
    /// where that is possible, if there are several nodes and cores enough; `any` leaves it to the
    /// scheduler.
    pub cpus: Cpus,
    /// `cpu`, or `guarded` (the slow test device that proves that nothing assumes host memory).
    pub device: DeviceName,
    /// Where the optimizer keeps its state and updates: `cpu` (beside the weights), `cuda:N`,
    /// `hip:N`, or `sim:ARCH`, a simulator of either. Gradients go there and weights come back.
    /// Muon then needs `storage: bf16` or `f16`.
    #[serde(skip_serializing_if = "OptimizerDevice::is_beside")]
    pub optimizer_device: OptimizerDevice,
    /// How long a rank may get nothing done while others wait for it, and say nothing to its
    /// supervisor, before the job is declared broken. Time in which the job is stopped does not
    /// count. One call to a disk may take ten times as long, and ten minutes at least.
    #[schemars(range(min = 1000, max = 604_800_000))]
    pub timeout_ms: u64,
    /// How long a rank may live without any progress, such as a kernel or a write to a file,
    /// before the job is declared broken; 0 for ever. After `timeout_ms` it is told in any case.
    /// One call to a disk may take as long, too.
    #[schemars(range(max = 604_800_000))]
    pub step_timeout_ms: u64,
    /// How often ranks that have failed are started again, from the newest checkpoint, until the
    /// next one is saved; 0: never. The first time after a second, then after twice as long as
    /// before, up to a minute. The same failure twice at the same step ends the run. Of a job of
    /// several hosts all start again together: node 0 decides.
    #[schemars(range(max = 1_000_000))]
    pub restarts: u32,
    /// How long a host's supervising process may say nothing to node 0's before that host is taken
    /// for gone, and its ranks for lost. Where the job is not started again, nobody is judged.
    #[schemars(range(min = 1000, max = 604_800_000))]
    pub host_timeout_ms: u64,
    /// How long the others wait for a host that is gone before they go on without it, or end: its
    /// scheduler may start `muster train` there again.
    #[schemars(range(max = 604_800_000))]
    pub host_wait_ms: u64,
    /// Fewest hosts, node 0 among them, with which a run goes on that began with more; left out:
    /// all. Each starts as many ranks as before, so there are fewer of them: the bits of the
    /// weights stay the same.
    #[schemars(range(min = 1, max = 65_536))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_hosts: Option<usize>,
    /// The signal by which a scheduler warns before it ends the job: `usr1`, `usr2` or `none`. The
    /// run saves and ends with exit code 75, as after SIGTERM, SIGHUP and SIGXCPU. For Slurm:
    /// `--signal=USR1@300`.
    pub warn_signal: WarnSignal,
    /// Measurements of the links between ranks, for sizes of buckets: `auto` (a table of this
    /// place, `links.json` in the run's directory or, on one host, what
    /// `muster bench collectives --links auto` wrote; without one, 32 MiB), `off`, or such a
    /// table's file.
    #[serde(skip_serializing_if = "Links::is_auto")]
    pub links: Links,
    /// Size of a communication bucket in bytes of f32 gradient; left out, `links` decides. The bits
    /// of the weights do not depend on it.
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bucket_bytes: Option<usize>,
    /// A file whose first line, of 16 bytes or more, is the job's secret: who does not have it is
    /// none of the job's. The same on all hosts, and readable by its owner alone. Without it the
    /// environment variable MUSTER_SECRET counts, and a job on one host makes a secret of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_file: Option<PathBuf>,
    /// With which all connections of a job of several hosts are TLS, those within a host, too;
    /// without it nothing is encrypted. Every host has its own certificate and key, and the same
    /// authority. What a vendor's library (NCCL, RCCL) sends is not covered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsFiles>,
    /// Let hosts with CPUs of different kinds train together. The last bits of the weights then
    /// depend on which leaf is computed where; without it, such ranks refuse to start.
    pub mixed_cpus: bool,
}

/// Size of a bucket where nothing is known of the links and nothing was asked for.
pub const BUCKET_BYTES: usize = 32 << 20;

/// The least that one call to a disk may take where no limit is configured.
const CALL_LEAST_MS: u64 = 600_000;

impl RanksConfig {
    /// How long one call to a disk may last before the job is declared broken: disks of a network
    /// have been seen to stand still for minutes and to go on.
    pub fn call_limit_ms(&self) -> u64 {
        match self.step_timeout_ms {
            0 => self.timeout_ms.saturating_mul(10).max(CALL_LEAST_MS),
            limit_ms => limit_ms,
        }
    }
}

impl Default for RanksConfig {
    fn default() -> RanksConfig {
        RanksConfig {
            count: 1,
            backend: BackendWord::Shm,
            within_host: BackendWord::Shm,
            mesh: None,
            threads: 0,
            cpus: Cpus::Auto,
            device: DeviceName::Cpu,
            optimizer_device: OptimizerDevice::default(),
            timeout_ms: 120_000,
            step_timeout_ms: 0,
            restarts: 3,
            host_timeout_ms: 30_000,
            host_wait_ms: 120_000,
            min_hosts: None,
            warn_signal: WarnSignal::Usr1,
            links: Links::Auto,
            bucket_bytes: None,
            secret_file: None,
            tls: None,
            mixed_cpus: false,
        }
    }
}

/// The files by which a host's processes prove over TLS who they are, in PEM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The host's certificate, and those between it and the authority.
    pub certificate: PathBuf,
    /// Its private key, readable by its owner alone.
    pub key: PathBuf,
    /// The certificate of the job's own authority: whoever shows one that this has signed is of the
    /// job, whatever name is in it.
    pub authority: PathBuf,
}

/// The source of measurements of the links between ranks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Links {
    /// A table of this place, if there is one.
    #[default]
    Auto,
    Off,
    /// The table in a file.
    File(PathBuf),
}

impl Links {
    fn is_auto(&self) -> bool {
        *self == Links::Auto
    }
}

impl From<String> for Links {
    fn from(word: String) -> Links {
        match word.as_str() {
            "auto" => Links::Auto,
            "off" => Links::Off,
            _ => Links::File(word.into()),
        }
    }
}

impl From<Links> for String {
    fn from(links: Links) -> String {
        match links {
            Links::Auto => "auto".into(),
            Links::Off => "off".into(),
            Links::File(path) => path.to_string_lossy().into_owned(),
        }
    }
}

/// Ranks along each axis of the mesh; their product is the number of ranks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MeshConfig {
    /// Pipeline stages, each a contiguous run of layers.
    #[schemars(range(min = 1, max = 65_536))]
    pub pp: usize,
    /// Ranks that hold the same parameters and compute other samples; left out, or null: as many
    /// as the other axes leave.
    #[schemars(range(min = 1, max = 65_536))]
    pub dp: Option<usize>,
    /// Parts that the experts of each layer are divided into, by index; these ranks compute other
    /// samples, too.
    #[schemars(range(min = 1, max = 65_536))]
    pub ep: usize,
    /// Parts of every matrix: of its heads, its inner width, the vocabulary.
    #[schemars(range(min = 1, max = 65_536))]
    pub tp: usize,
}

impl Default for MeshConfig {
    fn default() -> MeshConfig {
        MeshConfig { pp: 1, dp: None, ep: 1, tp: 1 }
    }
}

/// The signal by which a scheduler warns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WarnSignal {
    Usr1,
    Usr2,
    None,
}

/// Which CPUs a rank may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cpus {
    /// Its share of the host's, where these are of several NUMA nodes.
    #[default]
    Auto,
    /// Those of its host.
    Any,
}

/// The device of every rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceName {
    Cpu,
    Guarded,
}
