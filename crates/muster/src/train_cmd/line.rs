//! The lines of a worker on standard output, for its supervisor: one JSON object a line.

use std::borrow::Cow;

use bench::collectives::run::Used;
use bench::collectives::{Host, Row};
use bench::pairs::Measured;
use comm::Fault;
use serde::{Deserialize, Serialize};
use train::Event;
use train::pulse::Pulse;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Line<'a> {
    /// Of the run; only rank 0 tells them, but for warnings of a benchmark's ranks.
    Event(Cow<'a, Event>),
    /// Of a benchmark; only rank 0 tells them.
    Measured(Cow<'a, Row>),
    /// Of a benchmark: what moves the memory; only rank 0 tells it.
    Route(Cow<'a, Used>),
    /// Of a benchmark: where the ranks are; only rank 0 tells it.
    Hosts(Cow<'a, [Host]>),
    /// Of a benchmark of pairs: rounds that are done, of so many; only rank 0 tells it.
    Rounds(usize, usize),
    /// Of that: all of it.
    Pairs(Cow<'a, Measured>),
    /// Steps that this rank has done.
    At(u64),
    /// This rank has met the others: the name of this start.
    Met(Cow<'a, str>),
    /// Nothing to say, but alive.
    Alive(Pulse),
    /// A message for people while other hosts are awaited; every rank of a host tells it.
    Hint(String),
    /// This rank ends because others failed.
    Fault(Cow<'a, Fault>),
}

impl Line<'_> {
    /// The line with its end.
    ///
    /// # Errors
    /// None of today's lines has any.
    pub fn bytes(&self) -> std::io::Result<Vec<u8>> {
        let mut bytes = serde_json::to_vec(self)?;
        bytes.push(b'\n');
        Ok(bytes)
    }
}
