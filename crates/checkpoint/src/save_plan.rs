//! A save as it is planned: where the chunks of every rank lie, without their data.
//!
//! ```text
//! boxes of all ranks ─▶ SavePlan: files, chunks, cover proven, a digest for each rank    before
//! each rank: writes ─▶ RankDigest: its files, the digest of what it wrote          ─▶ commit
//! ```
//! Placement is a pure function of the boxes, so the coordinator need not be told of chunks: it
//! has computed them, and by its digest each rank proves that it wrote those. What a rank sends has
//! a fixed size for each file, and a plan serves all saves of a run.

use std::ops::Range;

use layout::Schema;

use crate::commit::{ExpectedTensor, check_expected, check_ranks, state_tensor};
use crate::manifest::{ChunkRecord, FileRecord, Manifest};
use crate::shard::{self, Label};
use crate::write::{OfRank, ReportedFile};
use crate::{
    Attempt, Digest, Dtype, Error, RankReport, Region, RunState, TensorKey, WriteOptions, names,
};

/// The boxes of a rank: the number of a state in the list of those that are expected, and a box
/// of it.
pub type Boxes = Vec<(usize, Region)>;

/// All that the ranks of a job are to write in a save, and where.
pub struct SavePlan {
    /// Whole, but for the digests of files and what an attempt is about.
    manifest: Manifest,
    /// Of each rank: its files there.
    files: Vec<Range<usize>>,
    /// Of each rank: [`RankDigest::planned`].
    digests: Vec<Digest>,
}

/// All that a rank tells the coordinator of what it has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankDigest {
    pub attempt: Attempt,
    pub rank: u32,
    pub world: u32,
    /// Of its files' lengths and of all its chunks: keys, types, boxes, places.
    pub planned: Digest,
    pub files: Vec<ReportedFile>,
}

/// Bytes of a message before the files, and for each of them.
const HEAD_BYTES: usize = 8 + 4 * 4 + 32;
const FILE_BYTES: usize = 8 + 32 + 1 + 32;

impl SavePlan {
    /// Plans: `ranks` are the boxes of each; together they tile every expected state. The order of
    /// a rank's boxes is that in which it hands its chunks to [`crate::Store::write_rank`].
    ///
    /// # Errors
    /// A state with a gap or an overlap, or a box outside of it; a tensor of the schema of which no
    /// state is expected.
    pub fn new(
        schema: &Schema,
        expected: &[ExpectedTensor],
        ranks: &[Boxes],
        options: &WriteOptions,
    ) -> Result<SavePlan, Error> {
        check_expected(schema, expected)?;
        let world = ranks.len() as u32;
        let mut manifest = Manifest::new(0, 0, world, RunState::default());
        manifest.schema = schema.tensors.iter().map(Into::into).collect();
        let mut chunks: Vec<Vec<(u32, ChunkRecord)>> = vec![Vec::new(); expected.len()];
        let (mut files, mut digests) = (Vec::new(), Vec::new());
        for (rank, boxes) in (0..world).zip(ranks) {
            let placed = Placed::new(expected, boxes, rank, options)?;
            let first_file = manifest.files.len();
            digests.push(placed.digest((rank, world), expected, boxes));
            for Place { number, shard, range } in placed.chunks {
                let (state, Region { offset, shape }) = boxes[number].clone();
                let file = first_file as u32 + shard;
                chunks[state].push((rank, ChunkRecord { offset, shape, file, range }));
            }
            let record = |(bytes, shard)| FileRecord {
                path: names::shard_path(rank, shard),
                bytes,
                sums_blake3: Digest::default(),
                data_blake3: None,
            };
            manifest.files.extend(placed.files.into_iter().zip(0..).map(record));
            files.push(first_file..manifest.files.len());
        }
        for (tensor, chunks) in expected.iter().zip(chunks) {
            manifest.tensors.push(state_tensor(tensor, chunks)?);
        }
        Ok(SavePlan { manifest, files, digests })
    }

    /// The manifest of an attempt in which the ranks have written these files.
    ///
    /// # Errors
    /// A rank missing or twice, of another attempt or world, or that wrote anything else than is
    /// planned; a run state of another step.
    pub(crate) fn fill(
        &mut self,
        attempt: Attempt,
        digests: &[RankDigest],
        run_state: &RunState,
    ) -> Result<&Manifest, Error> {
        if run_state.step != attempt.step {
            let (found, expected) = (run_state.step, attempt.step);
            return Err(Error::RunStateStep { found, expected });
        }
        let digests = check_ranks(attempt, self.digests.len() as u32, digests)?;
        let manifest = &mut self.manifest;
        for ((digest, planned), files) in digests.iter().zip(&self.digests).zip(&self.files) {
            let records = &mut manifest.files[files.clone()];
            let lengths = digest.files.iter().map(|file| file.bytes);
            if digest.planned != *planned || !lengths.eq(records.iter().map(|file| file.bytes)) {
                return Err(wrote_others(digest, planned));
            }
            for (record, file) in records.iter_mut().zip(&digest.files) {
                (record.sums_blake3, record.data_blake3) = (file.sums_blake3, file.data_blake3);
            }
        }
        (manifest.step, manifest.generation) = (attempt.step, attempt.generation);
        manifest.run_state = run_state.clone();
        Ok(manifest)
    }
}

fn wrote_others(digest: &RankDigest, planned: &Digest) -> Error {
    let reason = format!(
        "it wrote other chunks than are planned for it (digest {} where {planned} was expected); \
         give all ranks the same program and the same config",
        digest.planned
    );
    Error::Report { rank: digest.rank, reason }
}

/// The files of one rank, and where its chunks lie in them.
struct Placed {
    /// Their lengths.
    files: Vec<u64>,
    /// In file order.
    chunks: Vec<Place>,
}

struct Place {
    /// Position among the rank's boxes.
    number: usize,
    shard: u32,
    range: [u64; 2],
}

impl Placed {
    /// As [`crate::Store::write_rank`] places the chunks of these boxes.
    fn new(
        expected: &[ExpectedTensor],
        boxes: &[(usize, Region)],
        rank: u32,
        options: &WriteOptions,
    ) -> Result<Placed, Error> {
        let (mut labels, mut numbers) = (Vec::new(), Vec::new());
        for (number, (state, region)) in boxes.iter().enumerate() {
            let tensor = expected.get(*state).ok_or_else(|| {
                let reason = format!("box {number} is of state {state} of {}", expected.len());
                Error::Report { rank, reason }
            })?;
            let ExpectedTensor { key, dtype, global_shape } = tensor;
            if !region.fits(global_shape) {
                let (key, shape, region) = (key.clone(), global_shape.clone(), region.clone());
                return Err(Error::OutOfBounds { key, shape, region });
            }
            // Of a tensor that fits, as is checked before.
            let bytes = (region.elements().unwrap_or(0) * dtype.size_bytes()) as u64;
            if bytes > 0 {
                labels.push(Label { name: key.chunk_name(region), dtype: *dtype, region, bytes });
                numbers.push(number);
            }
        }
        let plans = shard::plan(&labels, (rank, 0), options.max_shard_bytes);
        let files = plans.iter().map(|plan| plan.bytes).collect();
        let place = |shard: u32, place: &shard::Place| Place {
            number: numbers[place.chunk],
            shard,
            range: [place.start, place.end],
        };
        let plans = plans.iter().zip(0..);
        let chunks = plans.flat_map(|(plan, shard)| plan.places.iter().map(move |p| (shard, p)));
        Ok(Placed { files, chunks: chunks.map(|(shard, p)| place(shard, p)).collect() })
    }

    fn digest(
        &self,
        of: (u32, u32),
        expected: &[ExpectedTensor],
        boxes: &[(usize, Region)],
    ) -> Digest {
        let chunk = |Place { number, shard, range }: &Place| {
            let (state, region) = &boxes[*number];
            let ExpectedTensor { key, dtype, global_shape } = &expected[*state];
            Told { key, dtype: *dtype, global_shape, region, shard: *shard, range: *range }
        };
        digest(of, self.files.iter().copied(), self.chunks.iter().map(chunk))
    }
}

/// A chunk, as digests know it.
struct Told<'a> {
    key: &'a TensorKey,
    dtype: Dtype,
    global_shape: &'a [usize],
    region: &'a Region,
    shard: u32,
    range: [u64; 2],
}

/// Of all that a rank writes; texts and lists with their lengths before them.
fn digest<'a>(
    (rank, world): (u32, u32),
    files: impl ExactSizeIterator<Item = u64>,
    chunks: impl Iterator<Item = Told<'a>>,
) -> Digest {
    let (mut hasher, mut bytes) = (blake3::Hasher::new(), Vec::new());
    let word = |bytes: &mut Vec<u8>, word: u64| bytes.extend_from_slice(&word.to_le_bytes());
    let text = |bytes: &mut Vec<u8>, text: &str| {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    };
    [rank.into(), world.into(), files.len() as u64].into_iter().for_each(|of| word(&mut bytes, of));
    files.for_each(|of| word(&mut bytes, of));
    for Told { key, dtype, global_shape, region, shard, range } in chunks {
        text(&mut bytes, &key.name);
        text(&mut bytes, &key.slot);
        text(&mut bytes, dtype.name());
        word(&mut bytes, global_shape.len() as u64);
        let extents = [global_shape, &region.offset, &region.shape].into_iter().flatten();
        extents.for_each(|&extent| word(&mut bytes, extent as u64));
        [shard.into(), range[0], range[1]].into_iter().for_each(|of| word(&mut bytes, of));
        if bytes.len() > 1 << 16 {
            hasher.update(&bytes);
            bytes.clear();
        }
    }
    hasher.update(&bytes);
    Digest(*hasher.finalize().as_bytes())
}

impl From<&RankReport> for RankDigest {
    fn from(report: &RankReport) -> RankDigest {
        let RankReport { attempt, rank, world, ref files, ref chunks } = *report;
        let chunks = chunks.iter().map(|chunk| Told {
            key: &chunk.key,
            dtype: chunk.dtype,
            global_shape: &chunk.global_shape,
            region: &chunk.region,
            shard: chunk.shard,
            range: chunk.range,
        });
        let planned = digest((rank, world), files.iter().map(|file| file.bytes), chunks);
        RankDigest { attempt, rank, world, planned, files: files.clone() }
    }
}

impl OfRank for RankDigest {
    fn of_rank(&self) -> (Attempt, u32, u32) {
        (self.attempt, self.rank, self.world)
    }
}

impl RankDigest {
    /// The message, little-endian: step u64, generation u32, rank u32, world u32, files u32,
    /// planned; per file: bytes u64, digest of its sums, 1 and the digest of its data or 0 and
    /// zeros.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.files.len() * FILE_BYTES);
        bytes.extend_from_slice(&self.attempt.step.to_le_bytes());
        let files = self.files.len() as u32;
        for word in [self.attempt.generation, self.rank, self.world, files] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&self.planned.0);
        for file in &self.files {
            bytes.extend_from_slice(&file.bytes.to_le_bytes());
            bytes.extend_from_slice(&file.sums_blake3.0);
            bytes.push(u8::from(file.data_blake3.is_some()));
            bytes.extend_from_slice(&file.data_blake3.unwrap_or_default().0);
        }
        bytes
    }

    /// Reads a message back; `None` where it is none.
    pub fn decode(bytes: &[u8]) -> Option<RankDigest> {
        let mut rest = bytes;
        let step = u64::from_le_bytes(*take(&mut rest)?);
        let mut words = [0; 4];
        for word in &mut words {
            *word = u32::from_le_bytes(*take(&mut rest)?);
        }
        let [generation, rank, world, count] = words;
        let planned = Digest(*take(&mut rest)?);
        if rest.len() != (count as usize).checked_mul(FILE_BYTES)? {
            return None;
        }
        let mut files = Vec::with_capacity(count as usize);
        while !rest.is_empty() {
            let bytes = u64::from_le_bytes(*take(&mut rest)?);
            let sums_blake3 = Digest(*take(&mut rest)?);
            let [has_data] = *take(&mut rest)?;
            let data = Digest(*take(&mut rest)?);
            let data_blake3 = (has_data == 1).then_some(data);
            files.push(ReportedFile { bytes, sums_blake3, data_blake3 });
        }
        let attempt = Attempt { step, generation };
        Some(RankDigest { attempt, rank, world, planned, files })
    }
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(first)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_round_trips_and_no_part_of_it_is_one(
            numbers in any::<(u64, u32, u32, u32)>(),
            files in prop::collection::vec(any::<(u64, [u8; 32], Option<[u8; 32]>)>(), 0..4),
            other in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let (step, generation, rank, world) = numbers;
            let file = |(bytes, sums, data): (u64, [u8; 32], Option<[u8; 32]>)| {
                let (sums_blake3, data_blake3) = (Digest(sums), data.map(Digest));
                ReportedFile { bytes, sums_blake3, data_blake3 }
            };
            let files = files.into_iter().map(file).collect();
            let (attempt, planned) = (Attempt { step, generation }, Digest::of(b"chunks"));
            let digest = RankDigest { attempt, rank, world, planned, files };
            let bytes = digest.encode();
            prop_assert_eq!(RankDigest::decode(&bytes), Some(digest));
            for cut in 0..bytes.len() {
                prop_assert_eq!(RankDigest::decode(&bytes[..cut]), None);
            }
            let _ = RankDigest::decode(&other);
        }
    }
}
