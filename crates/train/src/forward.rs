//! Ranges of files that several ranks need, or that not every rank can read: one reads each of
//! them and hands it on.
//!
//! ```text
//! what each rank needs, and can read ─▶ the same plan on every rank
//!   ─▶ batches: read and verified by one ─▶ exchange ─▶ verified again ─▶ taken
//! ```
//! So each byte of a checkpoint is read once per job. Memory: a batch, 64 MiB.

use std::collections::BTreeMap;

use checkpoint::{FileRange, RANGE_BYTES};
use comm::{Op, P2p, World};
use device::{DType, Device, Tensor};

use crate::TrainError;

/// Ranges that travel at a time.
const BATCH: usize = 16;

/// A range, the rank that reads it, and those that get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandedOn {
    pub(crate) at: FileRange,
    pub(crate) reader: usize,
    pub(crate) to: Vec<usize>,
}

/// Who reads what is to be handed on, where rank `r` needs the ranges `needs[r]`: of those that can
/// read a range, one that needs it if there is one, and the one with the least to read so far. All
/// other ranges are read by the one rank that needs them.
///
/// # Errors
/// A range that no rank can read.
pub(crate) fn plan(
    needs: &[Vec<FileRange>],
    can_read: impl Fn(usize, FileRange) -> bool,
) -> Result<Vec<HandedOn>, FileRange> {
    let mut needed_by: BTreeMap<FileRange, Vec<usize>> = BTreeMap::new();
    for (rank, ranges) in needs.iter().enumerate() {
        for at in ranges {
            needed_by.entry(*at).or_default().push(rank);
        }
    }
    let mut read = vec![0_u64; needs.len()];
    let mut handed_on = Vec::new();
    for (at, mut to) in needed_by {
        let near = to.iter().copied().filter(|&rank| can_read(rank, at)).min_by_key(|&r| read[r]);
        let any = || (0..needs.len()).filter(|&rank| can_read(rank, at)).min_by_key(|&r| read[r]);
        let reader = near.or_else(any).ok_or(at)?;
        read[reader] += 1;
        to.retain(|&rank| rank != reader);
        if !to.is_empty() {
            handed_on.push(HandedOn { at, reader, to });
        }
    }
    Ok(handed_on)
}

/// Ranges as runs of neighbours: file, first range, number of ranges, each 4 bytes.
pub(crate) fn encode(ranges: impl Iterator<Item = FileRange>) -> Vec<u8> {
    let mut runs: Vec<[u32; 3]> = Vec::new();
    for FileRange { file, number } in ranges {
        match runs.last_mut() {
            Some([of, first, count]) if *of == file && *first + *count == number => *count += 1,
            _ => runs.push([file, number, 1]),
        }
    }
    runs.iter().flatten().flat_map(|number| number.to_le_bytes()).collect()
}

/// The ranges that [`encode`] made runs of; None of anything else.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<FileRange>> {
    let (runs, rest) = bytes.as_chunks::<12>();
    let mut ranges = Vec::new();
    for run in runs {
        let [file, first, count] = [0, 4, 8]
            .map(|at| u32::from_le_bytes([run[at], run[at + 1], run[at + 2], run[at + 3]]));
        let end = first.checked_add(count)?;
        ranges.extend((first..end).map(|number| FileRange { file, number }));
    }
    rest.is_empty().then_some(ranges)
}

/// Follow the bytes of a range on its way: the CRC32C of those that were read, and whether
/// they could be.
const TRAILER_BYTES: usize = 8;

/// From one range in memory to the next.
const PLACE_BYTES: usize = RANGE_BYTES as usize + 4096;

fn seal(bytes: &mut Vec<u8>, is_read: bool) {
    let crc = crc_fast::crc32_iscsi(bytes);
    bytes.extend(crc.to_le_bytes());
    bytes.extend(u32::from(is_read).to_le_bytes());
}

/// The bytes and their sum, if they could be read.
fn unseal(sealed: &[u8]) -> Option<(&[u8], u32)> {
    let (bytes, trailer) = sealed.split_last_chunk::<TRAILER_BYTES>()?;
    let [a, b, c, d, is_read, ..] = *trailer;
    (is_read == 1).then_some((bytes, u32::from_le_bytes([a, b, c, d])))
}

/// Hands on all ranges, in their order. `read` fills memory with one that this rank reads; `take`
/// gets each that it needs from another, and the CRC32C that its reader found right. Collective.
///
/// # Errors
/// Of the ranks' connections at once; the first of `read` and `take` at the end, since others wait
/// for what comes after.
pub(crate) fn hand_on(
    world: &World,
    handed_on: &[HandedOn],
    bytes_of: impl Fn(FileRange) -> usize,
    mut read: impl FnMut(FileRange, &mut Vec<u8>) -> Result<(), TrainError>,
    mut take: impl FnMut(FileRange, &[u8], u32) -> Result<(), TrainError>,
) -> Result<(), TrainError> {
    if handed_on.is_empty() {
        return Ok(());
    }
    let (device, rank) = (Device::cpu(1)?, world.rank());
    let (group, stream) = (world.group(&device)?, device.stream());
    let places = device.zeros(&[BATCH * PLACE_BYTES], DType::U8)?;
    let place = |slot: usize, at: FileRange| -> Result<Tensor, TrainError> {
        let first = slot * PLACE_BYTES;
        Ok(places.flat(first..first + bytes_of(at) + TRAILER_BYTES)?)
    };
    let (mut outcome, mut bytes) = (Ok(()), Vec::new());
    for batch in handed_on.chunks(BATCH) {
        let mut messages = Vec::new();
        for (slot, HandedOn { at, reader, to }) in batch.iter().enumerate() {
            if *reader == rank {
                let tensor = place(slot, *at)?;
                let done = read(*at, &mut bytes);
                bytes.resize(bytes_of(*at), 0);
                seal(&mut bytes, done.is_ok());
                outcome = outcome.and(done);
                stream.copy_in(&tensor, &bytes)?;
                messages.extend(to.iter().map(|&to| P2p::Send { to, tensor: tensor.clone() }));
            } else if to.contains(&rank) {
                messages.push(P2p::Receive { from: *reader, tensor: place(slot, *at)? });
            }
        }
        group.run(&stream, Op::Exchange(messages))?;
        let mine = batch.iter().enumerate().filter(|(_, handed_on)| handed_on.to.contains(&rank));
        for (slot, HandedOn { at, .. }) in mine {
            bytes.resize(bytes_of(*at) + TRAILER_BYTES, 0);
            stream.copy_out(&place(slot, *at)?, &mut bytes)?;
            // Whoever could not read it says so.
            if let Some((bytes, crc)) = unseal(&bytes) {
                outcome = outcome.and_then(|()| take(*at, bytes, crc));
            }
        }
    }
    outcome
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<FileRange>> {
        let range = (0_u32..3, 0_u32..9).prop_map(|(file, number)| FileRange { file, number });
        proptest::collection::btree_set(range, 0..20).prop_map(|set| set.into_iter().collect())
    }

    proptest! {
        #[test]
        fn every_range_is_read_once_by_one_that_can(
            needs in proptest::collection::vec(ranges(), 1..6),
            files in proptest::collection::vec(1_u32..8, 6),
        ) {
            // Which of the three files each rank can read.
            let can_read = |rank: usize, at: FileRange| files[rank] & (1 << at.file) != 0;
            let needed = |rank: usize, at: &FileRange| needs[rank].contains(at);
            let all = || {
                let of = |rank: usize| needs[rank].iter().map(move |at| (rank, *at));
                (0..needs.len()).flat_map(of)
            };
            let handed_on = match plan(&needs, can_read) {
                Ok(handed_on) => handed_on,
                Err(at) => {
                    prop_assert!((0..needs.len()).all(|rank| !can_read(rank, at)));
                    return Ok(());
                }
            };
            let mut ranges: Vec<FileRange> = handed_on.iter().map(|of| of.at).collect();
            ranges.dedup();
            prop_assert!(ranges.is_sorted() && ranges.len() == handed_on.len());
            for HandedOn { at, reader, to } in &handed_on {
                prop_assert!(can_read(*reader, *at) && !to.is_empty() && !to.contains(reader));
                for rank in 0..needs.len() {
                    prop_assert_eq!(to.contains(&rank), needed(rank, at) && rank != *reader);
                }
            }
            for (rank, at) in all().filter(|(_, at)| !ranges.contains(at)) {
                prop_assert!(can_read(rank, at));
                prop_assert!(all().all(|(other, same)| same != at || other == rank));
            }
        }

        #[test]
        fn runs_say_all_ranges(ranges in ranges()) {
            let bytes = encode(ranges.iter().copied());
            prop_assert_eq!(decode(&bytes), Some(ranges));
            prop_assert_eq!(decode(&[&bytes[..], &[1]].concat()), None);
        }
    }

    #[test]
    fn ranges_that_all_need_are_spread_over_the_ranks() {
        let all: Vec<FileRange> = (0..8).map(|number| FileRange { file: 0, number }).collect();
        let needs = vec![all; 4];
        let handed_on = plan(&needs, |_, _| true).unwrap();
        let readers: Vec<usize> = handed_on.iter().map(|of| of.reader).collect();
        assert_eq!(readers, [0, 1, 2, 3, 0, 1, 2, 3]);
    }
}
