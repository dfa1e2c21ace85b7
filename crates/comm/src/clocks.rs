//! By how much the clocks of ranks differ: bounds that hold whatever messages take.
//!
//! ```text
//! rank 0   ── enters ─────────────── leaves ──▶   Nobody leaves a gather of messages before
//!                  ╲    ╳    ╱                    all have entered it. So on one time line
//! rank r   ─────── enters ── leaves ──────────▶     enter of 0 ≤ leave of r
//!                                                   enter of r ≤ leave of 0
//! ```
//!
//! With `clock 0 = clock r + offset` the first is `offset ≥ enter of 0 − leave of r`, the second
//! `offset ≤ leave of 0 − enter of r`. Of several rounds the closest bounds count; half of what is
//! between them is the uncertainty. No assumption that messages take as long one way as the other
//! is made (as in Marzullo and Owicki, "Maintaining the Time in a Distributed System", 1983).

use device::trace::now_ns;

use crate::control::Control;
use crate::{CommError, Operation, Result};

/// Rounds that are measured.
const ROUNDS: usize = 16;

/// The clock of a rank beside that of rank 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alignment {
    /// To be added to this rank's [`now_ns`].
    pub offset_ns: i64,
    /// The offset is wrong by this much at most; 0 where both read the same clock.
    pub uncertainty_ns: u64,
    /// A moment on rank 0's clock before the first round, the same on every rank.
    pub origin_ns: u64,
}

/// Compares the clocks of all ranks; a handful of messages. Collective.
///
/// # Errors
/// As [`Control::all_gather_bytes`].
pub fn align(control: &dyn Control, rank: usize) -> Result<Alignment> {
    let (host, mut left_ns) = (host(), 0);
    let mut rounds = Vec::with_capacity(ROUNDS);
    let (mut origin_ns, mut is_one_host) = (0, false);
    for round in 0..=ROUNDS {
        let entered_ns = now_ns();
        let mine = [entered_ns, left_ns, host].map(u64::to_le_bytes).concat();
        let all = control.all_gather_bytes(&mine)?;
        left_ns = now_ns();
        let reference = all.first().and_then(|message| words(message));
        let [entered_0, left_0, host_0] = reference.ok_or_else(|| {
            let theirs = "another version of the program".to_owned();
            CommError::Mismatch {
                operation: Operation::AllGatherBytes,
                sequence: 0,
                rank: 0,
                theirs,
            }
        })?;
        // Rank 0 sends the time of its leaving one round later.
        if let Some(Round { left_0: left, .. }) = rounds.last_mut() {
            *left = left_0;
        }
        if round < ROUNDS {
            rounds.push(Round { entered_0, left_0: u64::MAX, entered_ns, left_ns });
        }
        if round == 0 {
            (origin_ns, is_one_host) = (entered_0, host != 0 && host_0 == host);
        }
    }
    let (offset_ns, uncertainty_ns) = match rank {
        0 => (0, 0),
        _ => offset(&rounds, is_one_host),
    };
    Ok(Alignment { offset_ns, uncertainty_ns, origin_ns })
}

/// One gather, by the clocks of rank 0 and of this rank.
#[derive(Debug, Clone, Copy)]
struct Round {
    entered_0: u64,
    left_0: u64,
    entered_ns: u64,
    left_ns: u64,
}

/// The middle of what the rounds allow, and half of its width. On one host the clock is one, unless
/// the rounds say otherwise, as they do between containers with clocks of their own.
fn offset(rounds: &[Round], is_one_host: bool) -> (i64, u64) {
    let wide = |ns: u64| i128::from(ns);
    let low = rounds.iter().map(|round| wide(round.entered_0) - wide(round.left_ns)).max();
    let high = rounds.iter().map(|round| wide(round.left_0) - wide(round.entered_ns)).min();
    let (low, high) = (low.unwrap_or(0), high.unwrap_or(0));
    if is_one_host && low <= 0 && high >= 0 {
        return (0, 0);
    }
    let narrow = |ns: i128| i64::try_from(ns).unwrap_or(0);
    (narrow(low.midpoint(high)), narrow(((high - low).max(0) + 1) / 2).unsigned_abs())
}

fn words(message: &[u8]) -> Option<[u64; 3]> {
    let (words, rest) = message.as_chunks::<8>();
    let words: [[u8; 8]; 3] = words.try_into().ok()?;
    rest.is_empty().then(|| words.map(u64::from_le_bytes))
}

/// A number of the running system that clocks belong to; 0 where it has none.
fn host() -> u64 {
    let boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    if boot.is_empty() {
        return 0;
    }
    let mut digest = crate::digest::Digest::default();
    boot.iter().for_each(|&byte| digest.add(usize::from(byte)));
    digest.value()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the messages take and whoever comes late, the true offset lies within the
        /// uncertainty, which is no more than the quickest round took.
        #[test]
        fn the_true_offset_is_within_the_uncertainty(
            true_offset in -1_000_000_000_000_i64..1_000_000_000_000,
            rounds in prop::collection::vec(
                (0..9_000_u64, 0..9_000_u64, 1..900_u64, 1..900_u64),
                1..20,
            ),
        ) {
            let (mut now, mut quickest) = (2_000_000_000_000_u64, u64::MAX);
            let mut seen = Vec::new();
            for (late_0, late_r, to_0, to_r) in rounds {
                // On the clock of rank 0.
                let (entered_0, entered_r) = (now + late_0, now + late_r);
                let (left_0, left_r) =
                    ((entered_r + to_0).max(entered_0), (entered_0 + to_r).max(entered_r));
                let on_r = |ns: u64| ns.checked_add_signed(-true_offset).unwrap();
                let (entered_ns, left_ns) = (on_r(entered_r), on_r(left_r));
                seen.push(Round { entered_0, left_0, entered_ns, left_ns });
                quickest = quickest.min((left_r - entered_0) + (left_0 - entered_r));
                now = left_0.max(left_r);
            }
            let (offset_ns, uncertainty_ns) = offset(&seen, false);
            prop_assert!(offset_ns.abs_diff(true_offset) <= uncertainty_ns);
            prop_assert!(uncertainty_ns <= quickest.div_ceil(2));
        }
    }

    #[test]
    fn one_host_has_one_clock_unless_that_is_impossible() {
        let round = |left_0| Round { entered_0: 100, left_0, entered_ns: 110, left_ns: 130 };
        assert_eq!(offset(&[round(140)], true), (0, 0));
        assert_eq!(offset(&[round(140)], false), (0, 30));
        assert_eq!(offset(&[round(50)], true), (-45, 0));
    }
}
