//! The cost of recording: `cargo run --workspace --release --example trace_cost`.
//!
//! Prints nanoseconds of a place that might record while recording is off, of a span that is
//! recorded, and of one that is lost because its ring is full.

use std::hint::black_box;
use std::time::Instant;

use device::trace::{self, Detail, SPANS};

const CALLS: u32 = 20_000;

fn place() {
    if let Some(begin_ns) = black_box(trace::begin()) {
        trace::end("place", begin_ns, Detail::Part);
    }
}

/// Nanoseconds of each call, the best of some rounds.
fn cost(calls: u32, before: impl Fn()) -> f64 {
    let round = || {
        before();
        let since = Instant::now();
        (0..calls).for_each(|_| place());
        since.elapsed().as_secs_f64() * 1e9 / f64::from(calls)
    };
    (0..200).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn main() {
    println!("off: {:.2} ns", cost(CALLS, || ()));
    trace::switch(true);
    let empty = || trace::drain(&mut |_| ());
    println!("recorded: {:.1} ns", cost(SPANS as u32, empty));
    println!("ring full: {:.1} ns", cost(CALLS, || ()));
}
