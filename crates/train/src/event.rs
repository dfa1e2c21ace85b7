//! The events of a run, typed. The console, the JSONL file and the plot only read them.

use serde::{Deserialize, Serialize};

use crate::nan::{null_is_nan, nulls_are_nan, nulls_are_nan_if_any};
pub use crate::rank_times::{OperationTimes, RankTimes, Spread};

/// One event; `runs/NAME/events.jsonl` holds one per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Event {
    /// Before the first step: everything that was decided.
    Header(Header),
    /// Weights and state came from a checkpoint, or not.
    Resumed(Resumed),
    /// A new run's weights are those of a checkpoint.
    Initialized(Initialized),
    /// Ranks have failed, and start again from the newest checkpoint.
    Restarting(Restarting),
    Step(Step),
    /// Times of the ranks for a step, told with the vote of the next one.
    Ranks(RankTimes),
    Evaluation(Evaluation),
    Saved(Saved),
    /// A local checkpoint, on every host.
    SavedLocally(Saved),
    /// Older checkpoints that are no longer kept.
    Removed {
        paths: Vec<String>,
    },
    /// Gradients that were not finite; never applied.
    NonFinite(NonFinite),
    /// Something odd that does not stop the run.
    Warning {
        message: String,
    },
    /// The order-2 byte model on the same split, for comparison.
    Baseline {
        #[serde(deserialize_with = "null_is_nan")]
        bits_per_byte: f64,
        train_bytes: u64,
        validation_bytes: u64,
    },
    /// Text generated at the end.
    Sample {
        prompt: String,
        text: String,
    },
    /// Times of rank 0's operations, where they were asked for.
    Profile(Profile),
    Finished(Finished),
}

/// The plan of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Header {
    pub version: String,
    pub name: String,
    pub config_digest: String,
    pub data_digest: String,
    /// Trained parameters.
    pub parameters: u64,
    /// Parameters that one token meets.
    pub active_parameters: u64,
    pub steps: u64,
    pub tokens_per_step: u64,
    pub leaves: usize,
    pub radices: Vec<usize>,
    pub ranks: usize,
    pub backend: String,
    pub threads: usize,
    /// Which CPUs the ranks of host 0 are bound to, or why to none.
    #[serde(default)]
    pub cpus: String,
    /// Whether ranks that fail are started again, and what becomes of a host that is gone.
    #[serde(default)]
    pub restarts: String,
    pub device: String,
    pub weights: String,
    /// Whether every rank, or by hosts every host, sends exactly one partial per element.
    pub free: bool,
    /// Gradient bytes over those of a ring reduce-scatter.
    #[serde(deserialize_with = "null_is_nan")]
    pub byte_factor: f64,
    /// Of how many hosts the two are, where gradients go by hosts: of what goes between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<usize>,
    /// Whether hosts with other CPUs may join, so that bits depend on which rank runs where.
    #[serde(default)]
    pub mixed_cpus: bool,
    /// Bytes per rank by what for, the largest rank.
    pub memory: Vec<(String, u64)>,
    /// How gradients are cut to be sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buckets: Option<Buckets>,
    /// Where the optimizer is, if not beside the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<Offload>,
    /// One line per group of parameters: rule, scale, count.
    pub optimizer: Vec<String>,
    /// Mean over maximum load of the owners.
    #[serde(deserialize_with = "null_is_nan")]
    pub balance: f64,
    /// The costliest matrix.
    pub critical: Option<String>,
    pub clip: String,
    pub corpus: Vec<Corpus>,
    pub run_dir: String,
}

/// Buckets of gradients.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buckets {
    pub count: usize,
    /// A bucket is closed once it holds so many bytes of f32.
    pub bytes: u64,
    /// Why that many.
    pub reason: String,
}

/// An optimizer on a device of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Offload {
    pub device: String,
    /// Bytes of it per rank by what for, the largest rank.
    pub memory: Vec<(String, u64)>,
}

impl Offload {
    /// All bytes of a rank.
    pub fn bytes(&self) -> u64 {
        self.memory.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// One source of text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    pub name: String,
    pub tokens: u64,
    pub documents: u64,
    pub bytes: Option<u64>,
    /// Documents and lines that held nothing, in words, if there were any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    #[serde(deserialize_with = "null_is_nan")]
    pub weight: f64,
    pub digest: String,
}

/// Where a run continues.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Resumed {
    pub step: u64,
    pub path: String,
    /// Newer checkpoints that were passed over, and why.
    pub skipped: Vec<(String, String)>,
    /// Ranks that wrote it.
    pub written_by: usize,
}

/// Ranks that have failed and start again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Restarting {
    /// The rank that failed, and how.
    pub failure: String,
    /// The so manyth time since a checkpoint, of as many as are allowed.
    pub number: u32,
    pub of: u32,
    /// How long that takes to begin, in seconds.
    pub wait_s: f64,
    /// On how many hosts, of how many at the beginning, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hosts: Option<(usize, usize)>,
}

/// Where the weights of a new run are from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Initialized {
    pub path: String,
    /// Steps that it has been trained for.
    pub step: u64,
}

/// One optimizer step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Counted from 1.
    pub step: u64,
    /// Mean cross-entropy per target token, nats; JSON's `null` where it is not finite.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    pub bits_per_byte: Option<f64>,
    /// Norm of the mean gradient over all parameters, before clipping; `null` as the loss.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Factor of the schedule times the base rate of the first rule.
    #[serde(deserialize_with = "null_is_nan")]
    pub lr: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub ms: f64,
    pub tokens: u64,
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_s: f64,
    /// Expert load over the mean load, all MoE layers: smallest, median, largest.
    #[serde(default, deserialize_with = "nulls_are_nan_if_any")]
    pub expert_load: Option<[f64; 3]>,
    /// Experts that saw no token in this step.
    pub dead_experts: u64,
    /// The step was computed and not applied.
    pub skipped: bool,
    /// Milliseconds by phase of this rank: forward and backward, reduce, optimizer, gather.
    #[serde(deserialize_with = "nulls_are_nan")]
    pub phases_ms: [f64; 4],
    /// Milliseconds in which this rank read samples, before the phases.
    #[serde(default, deserialize_with = "null_is_nan")]
    pub data_ms: f64,
}

/// Loss on the validation split.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub step: u64,
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    pub bits_per_byte: Option<f64>,
    pub samples: u64,
    #[serde(deserialize_with = "null_is_nan")]
    pub ms: f64,
}

/// A committed checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    pub step: u64,
    pub path: String,
    pub bytes: u64,
    #[serde(deserialize_with = "null_is_nan")]
    pub ms: f64,
}

/// Where a gradient was not finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NonFinite {
    pub step: u64,
    /// The first few.
    pub places: Vec<Place>,
    pub action: Action,
}

/// A gradient that is not finite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub parameter: String,
    /// Rank and leaf; `None` where every leaf is finite and their sum is not.
    pub at: Option<(usize, usize)>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.at {
            Some((rank, leaf)) => write!(f, "`{}` (rank {rank}, leaf {leaf})", self.parameter),
            None => write!(f, "`{}` (each leaf is finite, their sum is not)", self.parameter),
        }
    }
}

/// The response to gradients that are not finite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Stopped,
    Skipped,
}

/// The end of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    pub step: u64,
    pub reason: FinishReason,
    /// Since this start.
    #[serde(deserialize_with = "null_is_nan")]
    pub seconds: f64,
    /// Trained on since this start.
    pub tokens: u64,
    /// Trained on since the run's first step.
    #[serde(default)]
    pub tokens_in_all: u64,
    pub final_loss: Option<f64>,
    pub final_bits_per_byte: Option<f64>,
    pub peak_anonymous_bytes: u64,
    pub planned_bytes: u64,
    /// Digest of all weights: equal digests are equal bits.
    pub weights_digest: String,
    pub checkpoint: Option<String>,
    /// Of rank 0.
    #[serde(default)]
    pub times: Times,
    /// Of all steps since this start, where there are several ranks: by part, and of each kind of
    /// operation waiting and moving.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub spreads: Vec<Spread>,
}

/// Where the time of a rank went, all of it in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Opening the data, memory, initial weights, and the checkpoint that it goes on from.
    #[serde(deserialize_with = "null_is_nan")]
    pub start_ms: f64,
    /// Reading samples to train on.
    #[serde(deserialize_with = "null_is_nan")]
    pub data_ms: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub forward_backward_ms: f64,
    /// Waiting until the gradients of all ranks are added.
    #[serde(deserialize_with = "null_is_nan")]
    pub reduce_ms: f64,
    /// With the vote before it, in which ranks wait for each other.
    #[serde(deserialize_with = "null_is_nan")]
    pub optimizer_ms: f64,
    /// Submitting the exchange of the weights, and waiting for it where they are read.
    #[serde(deserialize_with = "null_is_nan")]
    pub gather_ms: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub evaluation_ms: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub saves_ms: f64,
    /// Writing the sample of text.
    #[serde(deserialize_with = "null_is_nan")]
    pub sample_ms: f64,
    /// From the start of the rank's work to its last event.
    #[serde(deserialize_with = "null_is_nan")]
    pub all_ms: f64,
}

impl Times {
    /// The parts by name, the largest first; what is left over comes last, as `other`.
    pub fn parts(&self) -> Vec<(&'static str, f64)> {
        let mut parts = vec![
            ("start", self.start_ms),
            ("data", self.data_ms),
            ("forward and backward", self.forward_backward_ms),
            ("reduce", self.reduce_ms),
            ("optimizer", self.optimizer_ms),
            ("gather", self.gather_ms),
            ("evaluation", self.evaluation_ms),
            ("saves", self.saves_ms),
            ("sample", self.sample_ms),
        ];
        parts.sort_by(|a, b| b.1.total_cmp(&a.1));
        let known: f64 = parts.iter().map(|(_, ms)| ms).sum();
        parts.push(("other", (self.all_ms - known).max(0.0)));
        parts
    }

    /// Adds a step's.
    pub(crate) fn add(&mut self, step: &Step) {
        let [forward_backward, reduce, optimizer, gather] = step.phases_ms;
        self.data_ms += step.data_ms;
        self.forward_backward_ms += forward_backward;
        self.reduce_ms += reduce;
        self.optimizer_ms += optimizer;
        self.gather_ms += gather;
    }
}

/// Times and counts of a rank's operations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// From the first step to the end of training, with what was between the operations.
    #[serde(deserialize_with = "null_is_nan")]
    pub ms: f64,
    /// The costliest first.
    pub operations: Vec<Operation>,
}

/// All calls of one operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operation {
    pub name: String,
    pub calls: u64,
    #[serde(deserialize_with = "null_is_nan")]
    pub ms: f64,
    /// Floating-point operations, where they are counted.
    pub flops: Option<u64>,
    /// Bytes of the operands, each counted once, where they are counted.
    pub bytes: Option<u64>,
}

impl Profile {
    /// Of what a device counted in `ms` milliseconds.
    pub fn new(ms: f64, seen: &[(&'static str, device::Operation)]) -> Profile {
        let operation = |(name, seen): &(&'static str, device::Operation)| Operation {
            name: (*name).to_owned(),
            calls: seen.calls,
            ms: seen.time.as_secs_f64() * 1e3,
            flops: Some(seen.flops).filter(|&flops| flops > 0),
            bytes: Some(seen.bytes).filter(|&bytes| bytes > 0),
        };
        let mut operations: Vec<Operation> = seen.iter().map(operation).collect();
        operations.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        Profile { ms, operations }
    }
}

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// All steps are done.
    Complete,
    /// All steps had been done before.
    AlreadyComplete,
    /// `--max-steps` was reached.
    MaxSteps,
    /// Ctrl-C.
    Interrupted,
    /// SIGTERM.
    Terminated,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_not_finite_survive_the_event_file() {
        for loss in [f64::NAN, f64::INFINITY, 1.5] {
            let event = Evaluation { step: 3, loss, bits_per_byte: None, samples: 1, ms: 0.5 };
            let text = serde_json::to_string(&Event::Evaluation(event)).unwrap();
            let back = serde_json::from_str(&text).unwrap();
            let Event::Evaluation(back) = back else { panic!("{back:?}") };
            assert_eq!(back.loss.is_finite(), loss.is_finite());
            assert!(!loss.is_finite() || back.loss == loss);
        }
    }

    /// Every number of each kind of event, none of which is whole.
    fn events() -> Vec<Event> {
        let step = Step {
            step: 1,
            loss: 0.5,
            bits_per_byte: Some(0.5),
            grad_norm: 0.5,
            lr: 0.5,
            ms: 0.5,
            tokens: 1,
            tokens_per_s: 0.5,
            expert_load: Some([0.5; 3]),
            dead_experts: 0,
            skipped: false,
            phases_ms: [0.5; 4],
            data_ms: 0.5,
        };
        let times = Times {
            start_ms: 0.5,
            data_ms: 0.5,
            forward_backward_ms: 0.5,
            reduce_ms: 0.5,
            optimizer_ms: 0.5,
            gather_ms: 0.5,
            evaluation_ms: 0.5,
            saves_ms: 0.5,
            sample_ms: 0.5,
            all_ms: 0.5,
        };
        let operation =
            Operation { name: String::new(), calls: 1, ms: 0.5, flops: Some(1), bytes: None };
        let spread =
            Spread { name: String::new(), min_ms: 0.5, median_ms: 0.5, max_ms: 0.5, slowest: 1 };
        let (path, bits_per_byte) = (String::new(), Some(0.5));
        let evaluation = Evaluation { step: 1, loss: 0.5, bits_per_byte, samples: 1, ms: 0.5 };
        vec![
            Event::Step(step),
            Event::Evaluation(evaluation),
            Event::Saved(Saved { step: 1, path, bytes: 1, ms: 0.5 }),
            Event::Baseline { bits_per_byte: 0.5, train_bytes: 1, validation_bytes: 1 },
            Event::Finished(Finished {
                step: 1,
                reason: FinishReason::Complete,
                seconds: 0.5,
                tokens: 1,
                tokens_in_all: 1,
                final_loss: Some(0.5),
                final_bits_per_byte: bits_per_byte,
                peak_anonymous_bytes: 1,
                planned_bytes: 1,
                weights_digest: String::new(),
                checkpoint: None,
                times,
                spreads: vec![spread],
            }),
            Event::Profile(Profile { ms: 0.5, operations: vec![operation] }),
        ]
    }

    #[test]
    fn any_number_of_any_event_may_not_be_finite() {
        for event in events() {
            let text = serde_json::to_string(&event).unwrap();
            let numbers: Vec<usize> = text.match_indices("0.5").map(|(at, _)| at).collect();
            assert!(!numbers.is_empty(), "{text}");
            for at in numbers {
                let lost = format!("{}null{}", &text[..at], &text[at + 3..]);
                let back = serde_json::from_str::<Event>(&lost);
                assert!(back.is_ok(), "{lost}: {back:?}");
            }
        }
    }
}
