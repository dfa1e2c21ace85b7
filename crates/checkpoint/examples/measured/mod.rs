//! Parts that the measurements share.
#![allow(dead_code)] // Each measurement uses its part.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use checkpoint::{Digest, RunState};

pub type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A run that has taken `step` steps and knows nothing else.
pub fn run_state(step: u64) -> RunState {
    RunState {
        muster_version: String::new(),
        step,
        samples: 0,
        tokens: 0,
        seed: 0,
        rng_counter: 0,
        config_digest: Digest::default(),
        numeric_plan_digest: Digest::default(),
        schedule: serde_json::Value::Null,
        extra: serde_json::Value::Null,
    }
}

/// Prints and returns GB/s.
pub fn report(what: &str, bytes: u64, start: Instant) -> f64 {
    let seconds = start.elapsed().as_secs_f64();
    let rate = bytes as f64 / seconds / 1e9;
    println!("{what:>22}: {rate:.3} GB/s, {seconds:.2} s");
    rate
}

/// Drops a file, which is on the disk already, from the page cache.
pub fn forget(path: &Path) -> Outcome<()> {
    let path = path.to_str().ok_or("a directory of plain letters, please")?;
    let args = [&format!("if={path}"), "iflag=nocache", "count=0", "status=none"];
    assert!(Command::new("dd").args(args).status()?.success());
    Ok(())
}
