//! Chrome's trace events, a line each, as `docs/trace.md` describes them.
//!
//! Source: "Trace Event Format", the Chromium project (docs.google.com/document/d/
//! 1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU): JSON array format, which may lack its end,
//! complete events (`X`), metadata (`M`), flow events (`s`, `f`).

use std::io::Write;

use comm::clocks::Alignment;
use device::trace::{Detail, Moved, Span, Told};
use serde_json::{Value, json};

/// Before the first event of a part.
pub const OPENING: &str = "[";

/// The name of the metadata of a rank and of its lost spans.
pub const RANK: &str = "muster_rank";
pub const LOST: &str = "muster_lost";

/// Categories of spans.
pub const OPERATION: &str = "operation";

/// The events of one rank, on rank 0's clock.
pub struct Writer {
    rank: usize,
    alignment: Alignment,
    /// Names of tracks by number.
    tracks: Vec<String>,
}

impl Writer {
    pub fn new(rank: usize, alignment: Alignment) -> Writer {
        Writer { rank, alignment, tracks: Vec::new() }
    }

    /// The beginning of a part: the name of the rank, and the alignment of its clock.
    pub fn begin(&self, out: &mut Vec<u8>, host: &str) {
        out.extend_from_slice(OPENING.as_bytes());
        out.push(b'\n');
        let rank = self.rank;
        let args = json!({"name": format!("rank {rank} on {host}")});
        self.metadata(out, "process_name", 0, &args);
        self.metadata(out, "process_sort_index", 0, &json!({"sort_index": rank}));
        let Alignment { offset_ns, uncertainty_ns, origin_ns } = self.alignment;
        let args = json!({
            "rank": rank,
            "host": host,
            "version": env!("CARGO_PKG_VERSION"),
            "clock_offset_ns": offset_ns,
            "clock_uncertainty_ns": uncertainty_ns,
            "origin_ns": origin_ns,
        });
        self.metadata(out, RANK, 0, &args);
    }

    /// Writes a record of the recorder.
    pub fn tell(&mut self, out: &mut Vec<u8>, told: Told) {
        match told {
            Told::Track { track, name } => {
                let index = track as usize;
                if self.tracks.len() <= index {
                    self.tracks.resize(index + 1, String::new());
                }
                self.tracks[index] = name.to_owned();
                self.metadata(out, "thread_name", track, &json!({"name": name}));
                let sort_index = match name {
                    "main" => 0,
                    name if name.starts_with("channel") => 1,
                    name if name.starts_with("group") => 2,
                    _ => 3,
                };
                self.metadata(out, "thread_sort_index", track, &json!({"sort_index": sort_index}));
            }
            Told::Span { track, span } => self.span(out, track, span),
            Told::Lost { track, spans } => {
                self.metadata(out, LOST, track, &json!({"spans": spans}));
            }
        }
    }

    fn metadata(&self, out: &mut Vec<u8>, name: &str, track: u32, args: &Value) {
        let pid = self.rank;
        let line = json!({"name": name, "ph": "M", "pid": pid, "tid": track, "args": args});
        push(out, format_args!("{line}"));
    }

    fn span(&self, out: &mut Vec<u8>, track: u32, span: &Span) {
        let Span { name, begin_ns, end_ns, detail } = *span;
        let Alignment { offset_ns, origin_ns, .. } = self.alignment;
        // Nothing is recorded before the clocks are compared.
        let begun = begin_ns.saturating_add_signed(offset_ns).saturating_sub(origin_ns);
        let (ts, dur, pid) = (Micros(begun), Micros(end_ns.saturating_sub(begin_ns)), self.rank);
        let (name, category) = (Value::from(name), category(detail));
        let args =
            Args { detail, group: self.tracks.get(track as usize).map_or("", String::as_str) };
        push(
            out,
            format_args!(
                "{{\"name\":{name},\"cat\":\"{category}\",\"ph\":\"X\",\"ts\":{ts},\"dur\":{dur},\
                 \"pid\":{pid},\"tid\":{track},\"args\":{{{args}}}}}"
            ),
        );
    }
}

/// Every event ends its line by a comma.
fn push(out: &mut Vec<u8>, text: std::fmt::Arguments) {
    writeln!(out, "{text},").expect("a Vec takes everything");
}

fn category(detail: Detail) -> &'static str {
    match detail {
        Detail::Part => "part",
        Detail::Step(_) => "step",
        Detail::Call => "call",
        Detail::Kernel { .. } => "kernel",
        Detail::Operation(_) => OPERATION,
    }
}

/// The members of an event's `args`.
struct Args<'a> {
    detail: Detail,
    group: &'a str,
}

impl std::fmt::Display for Args<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.detail {
            Detail::Part | Detail::Call => Ok(()),
            Detail::Step(step) => write!(f, "\"step\":{step}"),
            Detail::Kernel { flops: 0, bytes: 0 } => Ok(()),
            Detail::Kernel { flops, bytes: 0 } => write!(f, "\"flops\":{flops}"),
            Detail::Kernel { flops: 0, bytes } => write!(f, "\"bytes\":{bytes}"),
            Detail::Kernel { flops, bytes } => write!(f, "\"flops\":{flops},\"bytes\":{bytes}"),
            Detail::Operation(moved) => {
                let Moved { sequence, transport, sent_bytes, received_bytes, waited_ns } = moved;
                let (group, waited_us) = (Value::from(self.group), Micros(waited_ns));
                write!(
                    f,
                    "\"group\":{group},\"sequence\":{sequence},\"transport\":\"{transport}\",\
                     \"sent_bytes\":{sent_bytes},\"received_bytes\":{received_bytes},\
                     \"waited_us\":{waited_us}"
                )
            }
        }
    }
}

/// Nanoseconds as the microseconds of events, all digits.
pub struct Micros(pub u64);

impl std::fmt::Display for Micros {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_as_documented() {
        let alignment = Alignment { offset_ns: -500, uncertainty_ns: 20, origin_ns: 1000 };
        let mut writer = Writer::new(3, alignment);
        let mut out = Vec::new();
        writer.begin(&mut out, "node\"7");
        let moved = Moved {
            sequence: 9,
            transport: "tcp",
            sent_bytes: 4096,
            received_bytes: 512,
            waited_ns: 1500,
        };
        let details = [
            ("forward", Detail::Part),
            ("step", Detail::Step(12)),
            ("fsync", Detail::Call),
            ("gemm", Detail::Kernel { flops: 8, bytes: 0 }),
            ("barrier", Detail::Operation(moved)),
        ];
        writer.tell(&mut out, Told::Track { track: 1, name: "group 0" });
        for (name, detail) in details {
            let span = Span { name, begin_ns: 2_000, end_ns: 5_678, detail };
            writer.tell(&mut out, Told::Span { track: 1, span: &span });
        }
        writer.tell(&mut out, Told::Lost { track: 1, spans: 4 });
        let text = String::from_utf8(out).unwrap().replace(env!("CARGO_PKG_VERSION"), "VERSION");
        insta::assert_snapshot!(text);
    }
}
