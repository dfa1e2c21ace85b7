//! Seeded fuzzing of what reads what others sent.
//!
//! Each round begins with something valid, changes it and gives it to the reader, with a seed of
//! its own that a failure prints: `MUSTER_FUZZ_SEED` repeats one round. Tests run for a few
//! seconds, or for `MUSTER_FUZZ_SECONDS`.

mod allocator;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::{Duration, Instant};

pub(crate) use allocator::within;

/// How long a test runs by default.
const SECONDS: u64 = 5;

/// Numbers without order, from a seed: splitmix64 (Steele, Lea, Flood 2014).
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Runs rounds of `round` for the time there is.
pub(crate) fn run(what: &str, mut round: impl FnMut(&mut Draw)) {
    let one = number("MUSTER_FUZZ_SEED");
    let limit = Duration::from_secs(number("MUSTER_FUZZ_SECONDS").unwrap_or(SECONDS));
    let (start, mut seed) = (Instant::now(), one.unwrap_or(0));
    loop {
        let result = catch_unwind(AssertUnwindSafe(|| round(&mut Draw(seed))));
        if let Err(panic) = result {
            eprintln!("{what}: MUSTER_FUZZ_SEED={seed} repeats this");
            resume_unwind(panic);
        }
        seed += 1;
        // Enough in any case that every kind of outcome is seen.
        if one.is_some() || (start.elapsed() >= limit && seed >= 1000) {
            break;
        }
    }
    println!("{what}: {seed} rounds in {:.1} s without a finding", start.elapsed().as_secs_f64());
}

/// Changes some bytes of a stream, or how many there are.
pub(crate) fn mutate(stream: &mut Vec<u8>, draw: &mut Draw) {
    if stream.is_empty() {
        return stream.push(draw.next() as u8);
    }
    let at = draw.below(stream.len());
    let end = (at + 1 + draw.below(64)).min(stream.len());
    match draw.below(7) {
        0 | 1 => stream[at] ^= 1 << draw.below(8),
        2 => stream[at] = [0, 1, 0x7f, 0x80, 0xff][draw.below(5)],
        3 => stream.truncate(at),
        4 => drop(stream.drain(at..end)),
        5 => {
            let again = stream[at..end].to_vec();
            let to = draw.below(stream.len() + 1);
            stream.splice(to..to, again);
        }
        _ => stream[at..end].fill_with(|| draw.next() as u8),
    }
}
