//! Reasons why a rank cannot go on, in words for whoever started the run.

use std::path::PathBuf;

/// Why a rank cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    #[error(transparent)]
    Layout(#[from] layout::LayoutError),
    #[error(transparent)]
    Device(#[from] device::DeviceError),
    #[error(transparent)]
    Kernel(#[from] kernels::KernelError),
    #[error(transparent)]
    Comm(#[from] comm::CommError),
    #[error(transparent)]
    Optimizer(#[from] optim::OptimError),
    #[error(transparent)]
    Model(model::ModelError),
    /// Of an engine other than the native one.
    #[error(transparent)]
    Engine(Box<dyn std::error::Error + Send + Sync>),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// A gradient was infinite or NaN and the config says stop.
    #[error(
        "step {step}: the gradient is not finite in {places}; nothing was applied. Lower the \
         learning rate, clip gradients (optimizer.clip), or set optimizer.non_finite: skip"
    )]
    NonFinite { step: u64, places: String },
    /// An engine that does not begin with the same bits on all ranks.
    #[error(
        "rank {rank} begins with other weights than rank 0, first in `{tensor}`; make them from \
         the same seed on every rank"
    )]
    InitialWeights { rank: usize, tensor: String },
    /// An engine that breaks the contract with the trainer.
    #[error("{reason}")]
    Declared { reason: String },
    /// Another rank could not do its part of a save.
    #[error("step {step} was not saved: rank {rank}: {reason}")]
    PeerSave { step: u64, rank: usize, reason: String },
    /// The checkpoint is of another model.
    #[error(
        "{path} holds another model:{difference}\nGive the run another name, or use --resume never"
    )]
    OtherModel { path: PathBuf, difference: String },
    /// A disk without room for a checkpoint, before the first step.
    #[error(
        "no checkpoint of this run would fit on the disk of {path}: about {needed_bytes} bytes in \
         {needed_files} files are needed, and {} bytes{} are free; free some space, or let runs \
         lie on another disk (runs_dir)", free.bytes, files_text(free.files)
    )]
    NoRoom { path: PathBuf, needed_bytes: u64, needed_files: u64, free: checkpoint::disk::Free },
    /// Some rank's part of a checkpoint is damaged; every rank gets this error.
    /// The reason names the file, and whether it is damaged, missing or renamed.
    #[error("{reason}")]
    Damaged {
        path: PathBuf,
        reason: String,
        /// The rank that found it, and the number of the file in the manifest, where it is one.
        at: Option<(usize, u32)>,
    },
    /// Checkpoints of which none can be used.
    #[error(
        "no checkpoint in {path} is whole: {reasons}; restore one from a copy, or start over in \
         another directory"
    )]
    NoneWhole { path: PathBuf, reasons: String },
    /// Another rank could not read its part of a checkpoint.
    #[error("rank {rank} could not load its part of the checkpoint: {reason}")]
    PeerLoad { rank: usize, reason: String },
    /// The message of a peer cannot be read; ranks of different versions were refused before.
    #[error("rank {rank} sent a vote of {got} bytes where {expected} were expected")]
    Vote { rank: usize, got: usize, expected: usize },
    /// A host's directory of local checkpoints.
    #[error(
        "local checkpoints cannot be kept in {path}: {source}; choose another directory \
         (checkpoint.local.dir)"
    )]
    LocalDir { path: PathBuf, source: std::io::Error },
    /// Another rank's.
    #[error("rank {rank} cannot keep local checkpoints; see its log")]
    LocalPeer { rank: usize },
    /// Of the thread that saves.
    #[error("a checkpoint cannot be written beside the training: {0}")]
    Thread(std::io::Error),
    #[error("cannot tell what happens: {0}")]
    Events(std::io::Error),
}

impl From<model::ModelError> for TrainError {
    fn from(error: model::ModelError) -> TrainError {
        match error {
            model::ModelError::Hook(error) => TrainError::of_hook(error),
            error => TrainError::Model(error),
        }
    }
}

impl TrainError {
    /// The error that the trainer's own hooks ended a pass with, or another's.
    pub fn of_hook(error: model::HookError) -> TrainError {
        error.downcast().map_or_else(TrainError::Engine, |own| *own)
    }
}

fn files_text(files: Option<u64>) -> String {
    files.map_or_else(String::new, |files| format!(" and {files} files"))
}
