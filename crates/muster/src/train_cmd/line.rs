//! What a worker writes on standard output for its supervisor: one JSON object a line.

use std::borrow::Cow;
use std::io::Write;

use comm::Fault;
use serde::{Deserialize, Serialize};
use train::Event;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Line<'a> {
    /// Of the run; only rank 0 tells them.
    Event(Cow<'a, Event>),
    /// Steps that this rank has done.
    At(u64),
    /// This rank ends because others failed.
    Fault(Cow<'a, Fault>),
}

impl Line<'_> {
    /// Writes the line.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn say(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n")?;
        out.flush()
    }
}
