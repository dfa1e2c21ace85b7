//! Bytes at which operations take another way: tests look on both sides of each.

use crate::algorithm::{BOX_BYTES, PUSHED_BYTES, most_for_all};
use crate::tcp::{FRAME_BYTES, ONE_ROUND_BYTES, RING_BYTES};

/// The most bytes that come to a member in one round: over shared memory where all read all, and
/// where each has a share; and over tcp. Of some operations it is divided among the peers.
pub fn one_round() -> [usize; 3] {
    [most_for_all(BOX_BYTES, true), BOX_BYTES, ONE_ROUND_BYTES]
}

/// Bytes pushed at a time, bytes of a frame, and the least that goes around a ring.
pub const PARTS: [usize; 3] = [PUSHED_BYTES, FRAME_BYTES, RING_BYTES];
