//! A shard whose bytes come from several threads in any order.
//!
//! ```text
//! pieces ─▶ CRC32C of each, within one 4 MiB range ─▶ written where it belongs
//! at the end: the sums of a range's pieces, joined in order, are its sum; fsync; .sums, fsync
//! ```
//! No byte is summed twice or read back. A place that nobody has written, or that two have, is
//! found when the sums are joined.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crc_fast::CrcAlgorithm::Crc32Iscsi;

use crate::disk::{Disk, WriteFile};
use crate::shard::Plan;
use crate::sums::{RANGE_BYTES, Sums, ranges};
use crate::write::{ReportedFile, create_error, sync_file, write_error, write_file};
use crate::{Digest, Error};

/// A shard that is being written.
pub(crate) struct Scattered {
    path: PathBuf,
    sums_path: PathBuf,
    file: Box<dyn WriteFile>,
    bytes: u64,
    pieces: Mutex<Vec<Piece>>,
}

/// Bytes of one range that have been written.
#[derive(Clone, Copy)]
struct Piece {
    start: u64,
    bytes: u64,
    crc: u32,
}

impl Scattered {
    /// Creates the file and writes its header.
    ///
    /// # Errors
    /// It exists; the disk is full; a write fails.
    pub(crate) fn create(
        disk: &dyn Disk,
        (path, sums_path): (PathBuf, PathBuf),
        plan: &Plan,
    ) -> Result<Scattered, Error> {
        let file = disk.create_new(&path).map_err(create_error(disk, &path, plan.bytes))?;
        let pieces = Mutex::default();
        let shard = Scattered { path, sums_path, file, bytes: plan.bytes, pieces };
        shard.put(disk, 0, &plan.header)?;
        Ok(shard)
    }

    /// Writes bytes at their place.
    ///
    /// # Errors
    /// The disk is full; a write fails.
    pub(crate) fn put(&self, disk: &dyn Disk, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let (mut start, mut rest) = (at, bytes);
        while !rest.is_empty() {
            let end = (start / RANGE_BYTES + 1) * RANGE_BYTES;
            let (piece, later) = rest.split_at(rest.len().min((end - start) as usize));
            let crc = crc_fast::crc32_iscsi(piece);
            self.write_all(disk, start, piece)?;
            let written = Piece { start, bytes: piece.len() as u64, crc };
            self.pieces.lock().unwrap_or_else(PoisonError::into_inner).push(written);
            (start, rest) = (end, later);
        }
        Ok(())
    }

    fn write_all(&self, disk: &dyn Disk, mut at: u64, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            match self.file.write_at(bytes, at) {
                Ok(0) => {
                    let (path, left) = (self.path.clone(), bytes.len() as u64);
                    return Err(Error::ShortWrite { path, offset: at, left });
                }
                Ok(count) => {
                    at += count as u64;
                    bytes = &bytes[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(write_error(disk, &self.path, at, self.bytes - at, error));
                }
            }
        }
        Ok(())
    }

    /// Joins the sums, and makes shard and table durable.
    ///
    /// # Errors
    /// A place without bytes, or written twice; a failed fsync or write of the table.
    pub(crate) fn finish(self, disk: &dyn Disk) -> Result<ReportedFile, Error> {
        let Scattered { path, sums_path, mut file, bytes, pieces } = self;
        let mut pieces = pieces.into_inner().unwrap_or_else(PoisonError::into_inner);
        pieces.sort_by_key(|piece| piece.start);
        let mut sums = Sums { file_bytes: bytes, crcs: vec![0; ranges(bytes) as usize] };
        let mut end = 0;
        for Piece { start, bytes, crc } in pieces {
            if start != end {
                let left = start.abs_diff(end);
                return Err(Error::ShortWrite { path, offset: end.min(start), left });
            }
            let sum = &mut sums.crcs[(start / RANGE_BYTES) as usize];
            *sum = match start.is_multiple_of(RANGE_BYTES) {
                true => crc,
                false => join(*sum, crc, bytes),
            };
            end = start + bytes;
        }
        if end != bytes {
            return Err(Error::ShortWrite { path, offset: end, left: bytes.abs_diff(end) });
        }
        sync_file(disk, file.as_mut(), &path, 0)?;
        let table = sums.encode();
        write_file(disk, &sums_path, &table, 0)?;
        Ok(ReportedFile { bytes, sums_blake3: Digest::of(&table), data_blake3: None })
    }
}

/// The sum of two runs of bytes, one after the other, from their sums.
fn join(first: u32, second: u32, second_bytes: u64) -> u32 {
    let joined = crc_fast::checksum_combine(Crc32Iscsi, first.into(), second.into(), second_bytes);
    joined as u32
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::disk::OsDisk;

    fn shard(dir: &std::path::Path, bytes: u64) -> Scattered {
        let plan = Plan { header: vec![7; 24], places: Vec::new(), bytes };
        let paths = (dir.join("a.safetensors"), dir.join("a.sums"));
        Scattered::create(&OsDisk, paths, &plan).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn pieces_in_any_order_have_the_sums_of_the_whole(
            cuts in proptest::collection::btree_set(25_u64..9_000_000, 1..12),
            order in any::<u64>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let total = 9_000_000_u64;
            let ends: Vec<u64> = [24].into_iter().chain(cuts).chain([total]).collect();
            let data: Vec<u8> = (0..total).map(|i| (i * 31 % 251) as u8).collect();
            let mut pieces: Vec<(u64, u64)> =
                ends.windows(2).map(|pair| (pair[0], pair[1])).collect();
            pieces.sort_by_key(|(start, _)| (start ^ order).wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let shard = shard(dir.path(), total);
            std::thread::scope(|scope| {
                for half in pieces.chunks(pieces.len().div_ceil(2)) {
                    let (shard, data) = (&shard, &data);
                    scope.spawn(move || {
                        for &(start, end) in half {
                            let bytes = &data[start as usize..end as usize];
                            shard.put(&OsDisk, start, bytes).unwrap();
                        }
                    });
                }
            });
            let report = shard.finish(&OsDisk).unwrap();
            let mut whole = data;
            whole[..24].fill(7);
            prop_assert!(std::fs::read(dir.path().join("a.safetensors")).unwrap() == whole);
            let crcs = whole.chunks(RANGE_BYTES as usize).map(crc_fast::crc32_iscsi).collect();
            let table = Sums { file_bytes: total, crcs }.encode();
            prop_assert_eq!(report.sums_blake3, Digest::of(&table));
            prop_assert!(std::fs::read(dir.path().join("a.sums")).unwrap() == table);
        }
    }

    #[test]
    fn a_gap_and_an_overlap_are_found() {
        for places in [vec![24, 40], vec![24, 32, 40, 40], vec![32, 40]] {
            let dir = tempfile::tempdir().unwrap();
            let shard = shard(dir.path(), 48);
            for at in &places {
                shard.put(&OsDisk, *at, &[1; 8]).unwrap();
            }
            let error = shard.finish(&OsDisk).unwrap_err();
            assert!(matches!(error, Error::ShortWrite { .. }), "{places:?}: {error}");
        }
    }
}
