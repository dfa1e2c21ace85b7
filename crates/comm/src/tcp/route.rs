//! Which way a gather goes: a pure function of the number of members and what each holds.
//!
//! Every byte reaches `n - 1` members either way. Sent *directly*, all copies of a member's part
//! leave that member; around the *ring*, each member sends every part once, on to the next, as its
//! frames come in. Where all hold the same both ways send the same from everyone, and the direct
//! one has no hops. Where one holds far more than the others, as in a broadcast, its link is what
//! everybody waits for, and the ring is up to `n - 1` times as fast; it costs a hop of a frame per
//! member.

/// Fewest bytes in all for a ring: below, hops cost more than copies.
pub(crate) const RING_BYTES: usize = 1 << 20;

/// How a gather goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Direct,
    Ring,
}

/// The way for a gather of members that hold so many bytes each.
pub(super) fn of_gather(held: impl Iterator<Item = usize>) -> Route {
    let (mut count, mut total, mut most) = (0, 0, 0);
    for bytes in held {
        (count, total, most) = (count + 1, total + bytes, most.max(bytes));
    }
    // Bytes that the busiest member sends directly; around the ring no more than `total`.
    let direct = most * (count.max(1) - 1);
    match count > 2 && total >= RING_BYTES && direct >= total + total / 2 {
        true => Route::Ring,
        false => Route::Direct,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(held: &[usize]) -> Route {
        of_gather(held.iter().copied())
    }

    #[test]
    fn large_parts_of_few_members_go_around_the_ring() {
        let large = 16 << 20;
        assert_eq!(route(&[large, 0, 0, 0]), Route::Ring);
        assert_eq!(route(&[0, 0, large]), Route::Ring);
        assert_eq!(route(&[large, large, 0, 0]), Route::Ring);
        // The root of two sends one copy.
        assert_eq!(route(&[large, 0]), Route::Direct);
        assert_eq!(route(&[1 << 18, 0, 0, 0]), Route::Direct);
    }

    #[test]
    fn even_parts_go_directly_and_so_does_nothing() {
        assert_eq!(route(&[1 << 24; 8]), Route::Direct);
        assert_eq!(route(&[]), Route::Direct);
        assert_eq!(route(&[0; 4]), Route::Direct);
        assert_eq!(route(&[1 << 24]), Route::Direct);
    }
}
