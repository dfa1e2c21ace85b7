//! Events as lines of text: a fold without side effects.

mod time;

use std::fmt::Write as _;

use train::event::{
    Action, Buckets, Evaluation, Event, FinishReason, Finished, Header, Initialized, Restarting,
    Saved, Step,
};

use super::units::{bytes, count, duration, ms, short};
use crate::output::{BOLD, PLAIN, visible};

/// The state from earlier events that later lines need.
#[derive(Debug, Default)]
pub struct Renderer {
    /// Marks of bold text.
    pub color: bool,
    steps: u64,
    name: String,
    run_dir: String,
    baseline: Option<f64>,
    prompt: String,
    sample: Option<String>,
}

impl Renderer {
    /// Renders events for a terminal that shows color, or for one that does not.
    pub fn new(color: bool) -> Renderer {
        Renderer { color, ..Renderer::default() }
    }

    /// The lines that `event` is worth, without a newline at the end; empty for none.
    pub fn render(&mut self, event: &Event) -> String {
        match event {
            Event::Header(header) => {
                self.steps = header.steps;
                self.name.clone_from(&header.name);
                self.run_dir.clone_from(&header.run_dir);
                self.header(header)
            }
            Event::Resumed(resumed) => {
                let mut out = String::new();
                for (path, why) in &resumed.skipped {
                    let _ = writeln!(out, "{} {path}: {why}", self.strong("passed over"));
                }
                let _ = write!(
                    out,
                    "resuming after step {} from {} (saved by {})",
                    resumed.step,
                    resumed.path,
                    plural(resumed.written_by, "rank"),
                );
                out
            }
            Event::Initialized(Initialized { path, step }) => {
                format!("starting with the weights of {path} (step {step})")
            }
            Event::Restarting(restarting) => self.restarting(restarting),
            Event::Step(step) => self.step(step),
            Event::Ranks(_) => String::new(), // Their sums belong to the summary.
            Event::Evaluation(evaluation) => self.evaluation(evaluation),
            Event::Saved(saved) => self.saved(saved),
            Event::SavedLocally(saved) => self.saved_locally(saved),
            Event::Removed { paths } => {
                format!("removed {}", plural(paths.len(), "older checkpoint"))
            }
            Event::NonFinite(event) => {
                let places: Vec<String> =
                    event.places.iter().map(|place| format!("\n  {place}")).collect();
                let what = self.strong(&format!("step {}: gradients not finite", event.step));
                let action = match event.action {
                    Action::Stopped => "stopped",
                    Action::Skipped => "skipped",
                };
                format!("{what}, {action}; first seen in{}", places.concat())
            }
            Event::Warning { message } => format!("{} {message}", self.strong("warning:")),
            Event::Baseline { bits_per_byte, train_bytes, validation_bytes } => {
                self.baseline = Some(*bits_per_byte);
                format!(
                    "order-2 byte model on the same split: {bits_per_byte:.3} bpb ({} of training, \
                     {} of validation text)",
                    bytes(*train_bytes),
                    bytes(*validation_bytes),
                )
            }
            Event::Sample { prompt, text } => {
                self.prompt.clone_from(prompt);
                self.sample = Some(text.clone());
                String::new() // It belongs to the summary.
            }
            Event::Profile(profile) => {
                format!("{}\n{}", self.strong("operations of rank 0"), time::table(profile))
            }
            Event::Finished(finished) => self.finished(finished),
        }
    }

    fn header(&self, header: &Header) -> String {
        let mut out = format!("{}\n", self.strong(&format!("muster {}", header.version)));
        let mut row = |name: &str, text: String| {
            let _ = writeln!(out, "  {name:<10} {text}");
        };
        let digests = format!("config {}", short(&header.config_digest));
        row("run", format!("{} in {} ({digests})", header.name, header.run_dir));
        let (total, active) = (count(header.parameters), count(header.active_parameters));
        row("model", format!("{total} parameters, {active} active per token"));
        let tokens = header.tokens_per_step;
        row(
            "length",
            format!(
                "{} steps of {tokens} tokens: {} tokens",
                header.steps,
                count(tokens.saturating_mul(header.steps))
            ),
        );
        row("ranks", ranks(header));
        // Events of older versions do not tell, and one rank has nothing to divide.
        if header.ranks > 1 && !header.cpus.is_empty() {
            row("cpus", header.cpus.clone());
        }
        if !header.restarts.is_empty() {
            row("restarts", header.restarts.clone());
        }
        row("leaves", leaves(header));
        for corpus in &header.corpus {
            row("text", corpus_line(corpus));
        }
        row("data", data_line(&header.data_digest));
        for (i, line) in header.optimizer.iter().enumerate() {
            row(if i == 0 { "optimizer" } else { "" }, line.clone());
        }
        let critical = header.critical.as_ref().map(|name| format!(", costliest {name}"));
        row(
            "",
            format!(
                "owners balanced to {:.0} %{}, clip {}",
                header.balance * 100.0,
                critical.unwrap_or_default(),
                header.clip
            ),
        );
        let total: u64 = header.memory.iter().map(|(_, bytes)| bytes).sum();
        let parts: Vec<String> =
            header.memory.iter().map(|(what, n)| format!("{what} {}", bytes(*n))).collect();
        row("memory", format!("{} per rank: {}", bytes(total), parts.join(", ")));
        if let Some(text) = buckets_line(header) {
            row("buckets", text);
        }
        if let Some(offload) = &header.offload {
            let total = bytes(offload.bytes());
            let parts: Vec<String> =
                offload.memory.iter().map(|(what, n)| format!("{what} {}", bytes(*n))).collect();
            let there = format!("{} for the optimizer: {total} per rank: ", offload.device);
            row("device", there + &parts.join(", "));
        }
        out.truncate(out.trim_end().len());
        out
    }

    fn restarting(&self, restarting: &Restarting) -> String {
        let Restarting { failure, number, of, wait_s, hosts } = restarting;
        let what = self.strong(failure);
        let fewer = hosts.filter(|(now, all)| now < all);
        let on = fewer.map(|(now, all)| format!(" on {now} of {all} hosts"));
        format!(
            "{what}\nstarting again{} in {wait_s} s from the newest checkpoint ({number} of {of} \
             times until the next one is saved)",
            on.unwrap_or_default()
        )
    }

    fn step(&self, step: &Step) -> String {
        let mut out = format!("step {} | loss {:.4}", self.of_steps(step.step), step.loss);
        if let Some(bpb) = step.bits_per_byte {
            let _ = write!(out, " | {bpb:.3} bpb");
        }
        let _ = write!(
            out,
            " | norm {:.3} | lr {:.2e} | {} | {:.0} tok/s",
            step.grad_norm,
            step.lr,
            ms(step.ms),
            step.tokens_per_s
        );
        if let Some([min, median, max]) = step.expert_load {
            let dead = step.dead_experts;
            let _ = write!(out, " | experts {min:.2}/{median:.2}/{max:.2} | dead {dead}");
        }
        if step.skipped {
            out.push_str(" | skipped");
        }
        out
    }

    fn evaluation(&self, evaluation: &Evaluation) -> String {
        let what = self.strong(&format!("validation loss {:.4}", evaluation.loss));
        let mut out = format!("step {} | {what}", self.of_steps(evaluation.step));
        if let Some(bpb) = evaluation.bits_per_byte {
            let _ = write!(out, " | {}", self.strong(&format!("{bpb:.3} bpb")));
        }
        let _ = write!(out, " | {} windows | {}", evaluation.samples, ms(evaluation.ms));
        out
    }

    fn saved(&self, saved: &Saved) -> String {
        format!(
            "step {} | saved {} ({}) in {}",
            self.of_steps(saved.step),
            saved.path,
            bytes(saved.bytes),
            ms(saved.ms)
        )
    }

    fn saved_locally(&self, saved: &Saved) -> String {
        format!(
            "step {} | saved on every host ({}) in {}",
            self.of_steps(saved.step),
            bytes(saved.bytes),
            ms(saved.ms)
        )
    }

    fn finished(&self, finished: &Finished) -> String {
        let mut out = String::new();
        if let Some(sample) = &self.sample {
            let title = match self.prompt.is_empty() {
                true => "a sample".to_string(),
                false => format!("a sample after {:?}", self.prompt),
            };
            let _ = writeln!(out, "{}", self.strong(&title));
            for line in visible(sample).lines() {
                let _ = writeln!(out, "  │ {line}");
            }
        }
        let _ = writeln!(out, "{}", self.strong(&self.reason(finished)));
        let mut row = |name: &str, text: String| {
            let _ = writeln!(out, "  {name:<10} {text}");
        };
        if finished.reason != FinishReason::AlreadyComplete {
            let rate = finished.tokens as f64 / finished.seconds.max(1e-9);
            let (tokens, time) = (count(finished.tokens), duration(finished.seconds));
            let all = match finished.tokens_in_all {
                all if all > finished.tokens => format!("; {} in all", count(all)),
                _ => String::new(),
            };
            row("trained", format!("{tokens} tokens in {time}, {rate:.0} tok/s{all}"));
        }
        if finished.times.all_ms > 0.0 && finished.reason != FinishReason::AlreadyComplete {
            row("time", time::line(&finished.times));
        }
        if !finished.spreads.is_empty() {
            row("ranks", time::spreads(&finished.spreads));
        }
        if let Some(loss) = finished.final_loss {
            let result = self.result(loss, finished.final_bits_per_byte);
            row("validation", result);
        }
        if finished.peak_anonymous_bytes > 0 {
            let (peak, planned) = (finished.peak_anonymous_bytes, finished.planned_bytes);
            row("memory", format!("{} at the peak, {} planned", bytes(peak), bytes(planned)));
        }
        row("weights", format!("digest {}", short(&finished.weights_digest)));
        if let Some(checkpoint) = &finished.checkpoint {
            row("checkpoint", checkpoint.clone());
        }
        if finished.reason != FinishReason::AlreadyComplete {
            row("plot", format!("{}/loss.svg", self.run_dir));
        }
        row("next", self.next(finished));
        out.truncate(out.trim_end().len());
        out
    }

    fn reason(&self, finished: &Finished) -> String {
        let (step, steps) = (finished.step, self.steps);
        match finished.reason {
            FinishReason::Complete => format!("done: all {step} steps"),
            FinishReason::AlreadyComplete => {
                format!("this run is complete: all {step} steps had been done before")
            }
            FinishReason::MaxSteps => format!("stopped after step {step} of {steps}, as asked"),
            FinishReason::Interrupted => {
                format!("interrupted after step {step} of {steps}; all of it is saved")
            }
            FinishReason::Terminated => {
                format!("told to terminate after step {step} of {steps}; all of it is saved")
            }
        }
    }

    fn result(&self, loss: f64, bits_per_byte: Option<f64>) -> String {
        let mut out = format!("loss {loss:.4}");
        let Some(bpb) = bits_per_byte else { return out };
        let _ = write!(out, ", {bpb:.3} bits per byte");
        if let Some(baseline) = self.baseline {
            let verdict = if bpb < baseline { "below" } else { "NOT below" };
            let _ = write!(out, ", {verdict} the order-2 byte model's {baseline:.3}");
        }
        out
    }

    /// How to go on.
    fn next(&self, finished: &Finished) -> String {
        match finished.reason {
            FinishReason::Complete => {
                format!("muster generate {} --prompt 'some text'", self.run_dir)
            }
            FinishReason::AlreadyComplete => format!(
                "go on with more steps (--set train.steps={}), start over (--resume never), or \
                 give the new run a name (--name {}-2)",
                self.steps.max(finished.step) * 2,
                self.name
            ),
            FinishReason::MaxSteps | FinishReason::Interrupted | FinishReason::Terminated => {
                "run the same command again to go on".into()
            }
        }
    }

    fn of_steps(&self, step: u64) -> String {
        let width = self.steps.to_string().len();
        format!("{step:>width$}/{}", self.steps)
    }

    fn strong(&self, text: &str) -> String {
        if self.color { format!("{BOLD}{text}{PLAIN}") } else { text.to_string() }
    }
}

fn ranks(header: &Header) -> String {
    let link = if header.ranks > 1 { format!(" over {}", header.backend) } else { String::new() };
    let (ranks, threads) = (plural(header.ranks, "rank"), plural(header.threads, "thread"));
    format!("{ranks}{link}, {threads} each, {} with {} weights", header.device, header.weights)
}

fn leaves(header: &Header) -> String {
    let tree: Vec<String> = header.radices.iter().map(ToString::to_string).collect();
    let tree = if tree.is_empty() { "1".into() } else { tree.join("·") };
    let free = match header.free {
        true => "as many bytes as".to_string(),
        false => format!("{:.2} times the bytes of", header.byte_factor),
    };
    let place = header.hosts.map(|hosts| format!("between {hosts} hosts ")).unwrap_or_default();
    let mixed = match header.mixed_cpus {
        true => "; bits depend on the CPUs of the hosts (ranks.mixed_cpus)",
        false => "",
    };
    let leaves = plural(header.leaves, "virtual rank");
    let sums = format!("{leaves}, gradients summed in a tree of {tree}");
    format!("{sums}; {place}{free} a ring reduce-scatter{mixed}")
}

/// How gradients are cut, where they are sent anywhere.
fn buckets_line(header: &Header) -> Option<String> {
    let are_sent = header.ranks > 1 || header.offload.is_some();
    let Buckets { count, bytes: size, reason } = header.buckets.as_ref().filter(|_| are_sent)?;
    Some(format!("{} of {}: {reason}", plural(*count, "bucket"), bytes(*size)))
}

fn corpus_line(corpus: &train::event::Corpus) -> String {
    let size = corpus.bytes.map(|n| format!(" from {}", bytes(n))).unwrap_or_default();
    let weight =
        if corpus.weight == 1.0 { String::new() } else { format!(", weight {}", corpus.weight) };
    let (tokens, digest) = (count(corpus.tokens), short(&corpus.digest));
    let documents = plural(corpus.documents as usize, "document");
    let left_out = corpus.left_out.as_ref().map(|what| format!(" ({what} left out)"));
    let documents = documents + &left_out.unwrap_or_default();
    format!("{}: {tokens} tokens{size}, {documents}{weight}, digest {digest}", corpus.name)
}

/// A dry run reads no data, so that nothing is known of it.
fn data_line(digest: &str) -> String {
    match short(digest) {
        "" => "not read: this is a dry run".into(),
        digest => format!("digest {digest}"),
    }
}

/// `1 rank`, `2 ranks`.
pub fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests;
