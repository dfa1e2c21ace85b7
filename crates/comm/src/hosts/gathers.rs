//! A gather by hosts, prepared: what each column carries, and what the members of a host then read
//! from each other.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use super::shape::Hosts;
use crate::op::{Gather, Site};
use crate::{Operation, Window};

/// What the members of one host hold is divided at multiples of so many bytes.
const ALIGN: usize = 64;

/// Bytes of a member's window: its place, and which.
pub(crate) type Piece = (usize, Range<usize>);

/// A checked gather by hosts.
pub(crate) struct GatherByHosts {
    pub window: Window,
    pub digest: u64,
    pub hosts: Hosts,
    pub host: usize,
    /// Of each host, what this member's column carries to the others; the places are the owners'.
    pub carried: Vec<Vec<Piece>>,
    /// What this member reads in the windows of others of its host, in the end.
    pub copied: Vec<Piece>,
    /// Bytes read out of the windows of each member of this host, by column.
    pub reads: Vec<AtomicU64>,
}

impl GatherByHosts {
    /// Where that is what the group does with it.
    pub(crate) fn of(op: &Gather, digest: u64, site: &Site) -> Option<GatherByHosts> {
        let elements: usize = op.segments.iter().flatten().map(|range| range.len()).sum();
        let hosts = Hosts::are_for(site, elements * op.element_bytes)?;
        let (host, column) = hosts.of(site.members.place);
        let held = (0..hosts.count).map(|host| held(op, hosts, host));
        let mut by_column: Vec<Vec<Vec<Piece>>> =
            held.map(|held| divided(&held, hosts.each)).collect();
        let mut copied = Vec::new();
        for other in (0..hosts.each).filter(|&other| other != column) {
            let place = hosts.place(host, other);
            let own = op.segments[place].iter().filter(|range| !range.is_empty());
            copied.extend(own.map(|range| (place, bytes(op, range))));
            for (_, carried) in by_column.iter().enumerate().filter(|(from, _)| *from != host) {
                copied.extend(carried[other].iter().map(|(_, range)| (place, range.clone())));
            }
        }
        let carried = by_column.iter_mut().map(|columns| std::mem::take(&mut columns[column]));
        let (carried, window) = (carried.collect(), op.window.clone());
        let reads = (0..hosts.each).map(|_| AtomicU64::new(0)).collect();
        Some(GatherByHosts { window, digest, hosts, host, carried, copied, reads })
    }

    pub(crate) fn operation(&self) -> Operation {
        Operation::AllGatherSegments
    }
}

fn bytes(op: &Gather, range: &Range<usize>) -> Range<usize> {
    range.start * op.element_bytes..range.end * op.element_bytes
}

/// All that the members of a host hold.
fn held(op: &Gather, hosts: Hosts, host: usize) -> Vec<Piece> {
    let places = hosts.place(host, 0)..hosts.place(host + 1, 0);
    let pieces = places.flat_map(|place| {
        let filled = op.segments[place].iter().filter(|range| !range.is_empty());
        filled.map(move |range| (place, bytes(op, range)))
    });
    pieces.collect()
}

/// Pieces in `parts` parts, one after another, of as many bytes but for the last.
fn divided(pieces: &[Piece], parts: usize) -> Vec<Vec<Piece>> {
    let total: usize = pieces.iter().map(|(_, range)| range.len()).sum();
    let share = total.div_ceil(parts).next_multiple_of(ALIGN);
    let part = |part: usize| within(pieces, part * share..(part + 1) * share).collect();
    (0..parts).map(part).collect()
}

/// These bytes of pieces that are laid end to end.
pub(crate) fn within(pieces: &[Piece], wanted: Range<usize>) -> impl Iterator<Item = Piece> + '_ {
    let mut end = 0;
    pieces.iter().filter_map(move |(place, piece)| {
        let start = end;
        end += piece.len();
        let (from, to) = (wanted.start.max(start), wanted.end.min(end));
        (from < to).then(|| (*place, piece.start + from - start..piece.start + to - start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parts_are_even_and_cover_all(
            lens in prop::collection::vec(0_usize..5000, 0..9), parts in 1_usize..6,
        ) {
            let mut at = 0;
            let pieces: Vec<Piece> = lens
                .iter()
                .enumerate()
                .map(|(place, len)| {
                    at += len + 7;
                    (place, at - len..at)
                })
                .collect();
            let all = |pieces: &[Piece]| -> Vec<(usize, usize)> {
                let bytes = |(place, range): &Piece| {
                    let place = *place;
                    range.clone().map(move |byte| (place, byte)).collect::<Vec<_>>()
                };
                pieces.iter().flat_map(bytes).collect()
            };
            let divided = divided(&pieces, parts);
            prop_assert_eq!(all(&divided.concat()), all(&pieces));
            let total: usize = lens.iter().sum();
            for part in divided {
                prop_assert!(all(&part).len() <= total.div_ceil(parts) + ALIGN);
            }
        }
    }
}
