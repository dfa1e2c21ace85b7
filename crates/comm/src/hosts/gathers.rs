//! A gather by hosts, prepared: what each column carries, and what the members of a host then read
//! from each other.

use std::ops::Range;
use std::sync::atomic::AtomicU64;

use device::Tensor;

use super::shape::Hosts;
use crate::primitives::Gather;
use crate::site::Site;
use crate::{Operation, Window};

/// Bytes of the members of one host are divided at multiples of this.
const ALIGN: usize = 64;

/// Bytes of a member's tray: what its column brings of other hosts at a time, where the windows are
/// to stay as they are. Between hosts that is milliseconds, beside which the meetings are little.
const TRAY_BYTES: usize = 4 << 20;

/// Bytes of a member's window: its place, and which.
pub(crate) type Piece = (usize, Range<usize>);

/// A checked gather by hosts, or a round of one into other memory.
pub(crate) struct GatherByHosts {
    pub window: Window,
    pub digest: u64,
    pub hosts: Hosts,
    pub host: usize,
    /// Of each host, what this member's column carries to the others; the places are the owners'.
    pub carried: Vec<Vec<Piece>>,
    /// Bytes of the window that this member itself gives; in the first round, all of them.
    pub own: Vec<Range<usize>>,
    /// Copies that this member makes at the end.
    pub copied: Vec<Copied>,
    /// Bytes read out of the windows of each member of this host, by column.
    pub reads: Vec<AtomicU64>,
    pub apart: Option<Apart>,
}

/// Bytes that a member of this host has.
pub(crate) struct Copied {
    pub place: usize,
    /// Where they begin, there.
    pub from: usize,
    pub is_in_tray: bool,
    /// Of the window, or of the memory apart.
    pub to: Range<usize>,
}

/// Where results go that are not to be in the window.
pub(crate) struct Apart {
    /// Bytes.
    pub into: Tensor,
    /// Of a tray, for each other host.
    room: usize,
}

/// The division of a gather into hosts and columns.
struct Columns {
    hosts: Hosts,
    /// Of this member: its host, and its column.
    host: usize,
    column: usize,
    /// Of each host, by columns.
    carried: Vec<Vec<Vec<Piece>>>,
}

impl Columns {
    /// Where the group does it by hosts.
    fn of(op: &Gather, site: &Site) -> Option<Columns> {
        let elements: usize = op.segments.iter().flatten().map(|range| range.len()).sum();
        let hosts = site.hosts_for(elements * op.element_bytes)?;
        let (host, column) = hosts.of(site.members.place);
        let held = (0..hosts.count).map(|host| held(op, hosts, host));
        let carried = held.map(|held| divided(&held, hosts.each)).collect();
        Some(Columns { hosts, host, column, carried })
    }

    /// Of the other hosts: which, and what each column carries.
    fn others(&self) -> impl Iterator<Item = (usize, &Vec<Vec<Piece>>)> {
        self.carried.iter().enumerate().filter(|(from, _)| *from != self.host)
    }

    fn gather(self, op: &Gather, digest: u64, copied: Vec<Copied>) -> GatherByHosts {
        let Columns { hosts, host, column, carried } = self;
        let own = op.segments[hosts.place(host, column)].iter();
        let own = own.filter(|range| !range.is_empty()).map(|range| bytes(op, range)).collect();
        let carried = carried.into_iter().map(|mut columns| columns.swap_remove(column)).collect();
        let reads = (0..hosts.each).map(|_| AtomicU64::new(0)).collect();
        let (window, apart) = (op.window.clone(), None);
        GatherByHosts { window, digest, hosts, host, carried, own, copied, reads, apart }
    }
}

impl GatherByHosts {
    /// Where that is what the group does with it.
    pub(crate) fn of(op: &Gather, digest: u64, site: &Site) -> Option<GatherByHosts> {
        let columns = Columns::of(op, site)?;
        let Columns { hosts, host, column, .. } = columns;
        let mut copied = Vec::new();
        for other in (0..hosts.each).filter(|&other| other != column) {
            let place = hosts.place(host, other);
            let here = |to: Range<usize>| Copied { place, from: to.start, is_in_tray: false, to };
            let own = op.segments[place].iter().filter(|range| !range.is_empty());
            copied.extend(own.map(|range| here(bytes(op, range))));
            for (_, carried) in columns.others() {
                copied.extend(carried[other].iter().map(|(_, range)| here(range.clone())));
            }
        }
        Some(columns.gather(op, digest, copied))
    }

    /// Of a gather into other memory, whose first byte is byte `start` of a window, the rounds:
    /// each brings as much of other hosts as the trays hold. The first also copies what this host
    /// has.
    pub(crate) fn rounds(
        op: &Gather,
        digest: u64,
        (start, into): (usize, &Tensor),
        site: &Site,
    ) -> Option<Vec<GatherByHosts>> {
        let whole = Columns::of(op, site)?;
        let room = room(whole.hosts);
        let lens = whole.carried.iter().flatten().map(|pieces| len(pieces));
        let rounds = lens.max().unwrap_or(0).div_ceil(room).max(1);
        let round = |round: usize| {
            let part = |pieces: &Vec<Piece>| {
                within(pieces, round * room..(round + 1) * room).collect::<Vec<_>>()
            };
            let carried = whole.carried.iter().map(|columns| columns.iter().map(part).collect());
            let columns = Columns { carried: carried.collect(), ..whole };
            let mut copied = columns.in_trays(start, room);
            if round == 0 {
                let here = held(op, columns.hosts, columns.host).into_iter();
                copied.extend(here.map(|(place, Range { start: from, end })| {
                    let to = from - start..end - start;
                    Copied { place, from, is_in_tray: false, to }
                }));
            }
            let digest = digest.rotate_left(8) ^ (round as u64 + 1);
            let apart = Some(Apart { into: into.clone(), room });
            let mut gather = GatherByHosts { apart, ..columns.gather(op, digest, copied) };
            if round > 0 {
                gather.own.clear();
            }
            gather
        };
        Some((0..rounds).map(round).collect())
    }

    /// Where in a tray begins what comes of another host.
    pub(crate) fn place_in_tray(&self, host: usize) -> usize {
        let room = self.apart.as_ref().map_or(0, |apart| apart.room);
        place_in_tray((self.host, host), room)
    }

    /// Bytes of the window that other members give, where results go there.
    pub(crate) fn brought(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let others = self.carried.iter().enumerate().filter(|(host, _)| *host != self.host);
        let carried = others.flat_map(|(_, pieces)| pieces.iter().map(|(_, range)| range.clone()));
        self.copied.iter().map(|copied| copied.to.clone()).chain(carried)
    }

    pub(crate) fn operation(&self) -> Operation {
        Operation::AllGatherSegments
    }
}

impl Columns {
    /// The pieces that lie in the trays of this host at the end.
    fn in_trays(&self, start: usize, room: usize) -> Vec<Copied> {
        let Columns { hosts, host, .. } = *self;
        let mut brought = Vec::new();
        for (other, columns) in self.others() {
            for (column, pieces) in columns.iter().enumerate() {
                let (place, mut end) =
                    (hosts.place(host, column), place_in_tray((host, other), room));
                brought.extend(pieces.iter().map(|(_, range)| {
                    end += range.len();
                    let to = range.start - start..range.end - start;
                    Copied { place, from: end - range.len(), is_in_tray: true, to }
                }));
            }
        }
        brought
    }
}

fn place_in_tray((own, other): (usize, usize), room: usize) -> usize {
    (other - usize::from(other > own)) * room
}

/// Bytes of a tray for each other host.
fn room(hosts: Hosts) -> usize {
    (TRAY_BYTES / (hosts.count - 1) / ALIGN).max(1) * ALIGN
}

/// Bytes of a tray.
pub(crate) fn tray_bytes(hosts: Hosts) -> usize {
    room(hosts) * (hosts.count - 1)
}

fn len(pieces: &[Piece]) -> usize {
    pieces.iter().map(|(_, range)| range.len()).sum()
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
    let share = len(pieces).div_ceil(parts).next_multiple_of(ALIGN);
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
