//! Which way an operation takes, by its size and the number of members, and why.
//!
//! ```text
//!                 up to half a box, or a box     beyond
//!                 (reduce_scatter; tcp)
//! all_reduce,     one round: all read all boxes  owners reduce their shares, and write them to all
//! reduce                                         windows where they reach those, else a gather
//! reduce_scatter  one round                      owners read the peers' windows
//! gathers,        one round                      members read the owners' windows
//! broadcast       one round                      the root writes one part of *n* of each window,
//!                                                the member the others: all copy alike
//! ```
//!
//! The measurements that decided it: two ranks on two cores (Xeon, 2 MiB of second-level cache
//! each), over shared memory, in place; microseconds, the best median of 25 short rounds on a busy
//! machine.
//!
//! ```text
//!                                    64 KiB   256 KiB   1 MiB   4 MiB
//! all_reduce, share, then gather       17.1      42.8     198     473
//! all_reduce, shares written to all     3.9      10.0      38     351
//! broadcast, all read                   2.2       5.7      31     349
//! broadcast, divided                    1.6       3.4      12     375
//! ```
//!
//! And where one round ends, with inputs that are new in each launch; idle:
//!
//! ```text
//!                                2 KiB   4 KiB   8 KiB   16 KiB
//! all_gather, one round           0.94    1.47    1.48     2.18
//! all_gather, windows read                1.28    1.43     1.80
//! broadcast, one round            1.18    1.31    2.06     3.46
//! broadcast, divided                      1.37    1.34     1.73
//! all_reduce, one round           1.60    1.88    2.81     4.96
//! all_reduce, shares written              2.01    2.39     2.87
//! reduce_scatter, one round       1.07    1.30    1.66     2.48
//! reduce_scatter, windows read            1.82    2.06     2.70
//! ```

/// Bytes of a box where members read each other's. Other transports have other boxes
/// (`Transport::box_bytes`).
pub(crate) const BOX_BYTES: usize = 8 << 10;

/// Bytes of all others' boxes together that a member reads at most where all read all, with boxes
/// of `room` bytes: up to there a round less is worth more than the bytes. Boxes that members read
/// (`is_mapped`) have to be filled first, while windows are read where they lie, so there two
/// rounds are better sooner.
pub(crate) fn most_for_all(room: usize, is_mapped: bool) -> usize {
    if is_mapped { room / 2 } else { room }
}

/// Whether all members read all inputs, of `bytes` bytes each, in one round that is for `most`.
pub(crate) fn is_one_round_for_all(bytes: usize, members: usize, most: usize) -> bool {
    bytes * (members - 1) <= most
}

/// Whether shares of windows of `bytes` bytes, or segments of as many together, are moved in one
/// round that is for `most`.
pub(crate) fn is_one_round(bytes: usize, most: usize) -> bool {
    bytes <= most
}

/// Bytes of results that an owner makes before it writes them to its peers: they and the peers'
/// inputs, over which they go, are still in a second-level cache.
pub(crate) const PUSHED_BYTES: usize = 128 << 10;

/// Of a range of `bytes` bytes that one member gives all: those at its end that it writes itself,
/// while each of the others reads what is before them. All copy (n − 1)/n of the range in all.
pub(crate) fn pushed_by_root(bytes: usize, members: usize) -> usize {
    // Whole cache lines, but for the last.
    let share = bytes / members;
    share - share % 64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_copies_as_much_as_the_others() {
        for members in 2..9 {
            for bytes in [0, 1, 63, 1000, 1 << 20, (1 << 20) + 7] {
                let pushed = pushed_by_root(bytes, members);
                let (root, other) = (pushed * (members - 1), bytes - pushed);
                assert!(root <= other && other - root < 64 * members, "{bytes} {members}");
            }
        }
    }

    #[test]
    fn what_all_read_is_bounded_by_a_box() {
        let most = most_for_all(BOX_BYTES, true);
        assert!(most < BOX_BYTES && most_for_all(BOX_BYTES, false) == BOX_BYTES);
        let for_all = |bytes, members| is_one_round_for_all(bytes, members, most);
        assert!(for_all(most, 2) && !for_all(most, 3) && for_all(most / 7, 8));
        assert!(is_one_round(BOX_BYTES, BOX_BYTES) && !is_one_round(BOX_BYTES + 1, BOX_BYTES));
    }
}
