//! A copy that does not pass through the caches: what is written is not read again soon.
//!
//! An ordinary store first reads the line that it overwrites. A library's copy leaves that out for
//! runs far longer than a tensor; here it is left out for any, which saves a third of the traffic.

/// Copies `from` to `to`, which have the same length.
///
/// # Panics
/// If they have not.
pub fn copy_streaming(from: &[u8], to: &mut [u8]) {
    assert_eq!(from.len(), to.len(), "the caller cuts both alike");
    #[cfg(target_arch = "x86_64")]
    stream(from, to);
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Bytes of a cache line.
#[cfg(target_arch = "x86_64")]
const LINE: usize = 64;

/// As [`copy_streaming`], line by line of `to`.
#[cfg(target_arch = "x86_64")]
fn stream(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};

    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (first, to) = to.split_at_mut(head);
    let (first_of, from) = from.split_at(head);
    first.copy_from_slice(first_of);
    let (lines, last) = to.as_chunks_mut::<LINE>();
    let (lines_of, last_of) = from.as_chunks::<LINE>();
    for (line, of) in lines.iter_mut().zip(lines_of) {
        for part in (0..LINE).step_by(size_of::<__m128i>()) {
            // SAFETY: SSE2 belongs to every x86-64; both arrays have 16 bytes at `part`, and those
            // of `line` lie at a multiple of 16 bytes, as lines begin at multiples of 64.
            unsafe {
                let values = _mm_loadu_si128(of.as_ptr().add(part).cast());
                _mm_stream_si128(line.as_mut_ptr().add(part).cast(), values);
            }
        }
    }
    // SAFETY: as above. Streaming stores are weakly ordered: whoever is told that the copy is made
    // sees all of it.
    unsafe { _mm_sfence() };
    last.copy_from_slice(last_of);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_run_is_copied_and_nothing_beside_it(
            len in 0_usize..800, at in 0_usize..80, to_at in 0_usize..80,
        ) {
            let from: Vec<u8> = (0..960).map(|x| (x % 251) as u8).collect();
            let mut to = vec![255; 960];
            copy_streaming(&from[at..at + len], &mut to[to_at..to_at + len]);
            let expected = |place: usize| match (to_at..to_at + len).contains(&place) {
                true => from[at + place - to_at],
                false => 255,
            };
            prop_assert!(to.iter().enumerate().all(|(place, x)| *x == expected(place)));
        }
    }
}
