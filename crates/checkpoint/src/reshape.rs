//! A checkpoint written anew in other boxes, file to file, in bounded memory.
//!
//! ```text
//! reshape (a record in the target's root) ─▶ generation ─▶ attempt ─▶ waves of tensors:
//!   ranges of the source ─▶ threads: read, verify ─▶ cut ─▶ every rank's shard, summed
//!   fsync of shards, tables, directories, beside the next wave; then the wave's record
//! at the end: cover proven, manifest, COMMIT; records removed
//! ```
//! Each byte is written once, and read once but for ranges at the seams of waves. What is committed
//! is a checkpoint like any other. A target belongs to a reshape by its record: nothing else is
//! written into, and nothing of anybody else's is removed. One that was interrupted goes on behind
//! its last whole wave, under a generation of its own, which fences off whatever may still be
//! writing the old attempt.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::thread::ScopedJoinHandle;

use crate::commit::{Committed, ExpectedTensor};
use crate::disk::Disk;
use crate::region::{CoverFault, prove_cover};
use crate::scattered::Scattered;
use crate::shard::{self, Label};
use crate::sums::RANGE_BYTES;
use crate::waves::{RankWave, Wave, make_dir};
use crate::write::{RankReport, ReportedChunk, create_error, sync_dir};
use crate::{
    Attempt, Checkpoint, Digest, Error, Region, StateTensor, Store, Wanted, WriteOptions, names,
};

/// How to reshape.
#[derive(Debug, Clone, Copy)]
pub struct ReshapeOptions {
    /// Threads that read and write, each in 8 MiB.
    pub threads: usize,
    /// Bytes of tensors after which what is done is made durable, so that an interrupted reshape
    /// need not begin anew.
    pub wave_bytes: u64,
}

/// A reshape that is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reshaped {
    pub committed: Committed,
    /// Bytes that an earlier attempt had written.
    pub taken_over_bytes: u64,
}

/// The reshape of one checkpoint into another place.
pub struct Reshape<'a> {
    source: &'a Checkpoint,
    store: &'a Store,
    /// The chunks of each tensor in the target: rank and box.
    chunks: Vec<Vec<(u32, Region)>>,
    world: u32,
    options: ReshapeOptions,
    waves: Vec<Range<usize>>,
    plan: Digest,
    layout: Option<serde_json::Value>,
}

impl<'a> Reshape<'a> {
    /// Plans: `ranks` are the boxes that each rank of the target is to have, as (number of the
    /// tensor in the source, box); together they tile every tensor.
    pub fn new(
        source: &'a Checkpoint,
        store: &'a Store,
        ranks: &[Vec<(usize, Region)>],
        options: ReshapeOptions,
    ) -> Reshape<'a> {
        let tensors = source.tensors();
        let mut chunks = vec![Vec::new(); tensors.len()];
        for (rank, boxes) in ranks.iter().enumerate() {
            for (tensor, region) in boxes {
                chunks[*tensor].push((rank as u32, region.clone()));
            }
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(&source.manifest_blake3().0);
        hasher.update(format!("{} {}", ranks.len(), options.wave_bytes).as_bytes());
        for boxes in ranks {
            hasher.update(format!("{boxes:?}").as_bytes());
        }
        let plan = Digest(*hasher.finalize().as_bytes());
        let waves = waves(tensors, options.wave_bytes);
        let (world, layout) = (ranks.len() as u32, None);
        Reshape { source, store, chunks, world, options, waves, plan, layout }
    }

    /// With a name of the layout, which the target's run state keeps as `layout` in `extra`.
    #[must_use]
    pub fn named(self, layout: serde_json::Value) -> Reshape<'a> {
        Reshape { layout: Some(layout), ..self }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.source.tensors().iter().map(StateTensor::bytes).sum()
    }

    /// Reshapes; `done` is told of bytes as they are written.
    ///
    /// # Errors
    /// Boxes that do not tile a tensor; a target that belongs to something else; damaged or missing
    /// data of the source; a full disk, and whatever else hinders a save; another reshape into the
    /// same directory. Waves that are whole stay for the next attempt, and nothing else.
    pub fn run(&self, done: &(dyn Fn(u64) + Sync)) -> Result<Reshaped, Error> {
        self.check_cover()?;
        self.store.take_for_reshape(self.plan)?;
        let generation = self.store.claim_generation()?;
        let attempt = Attempt { step: self.source.manifest().step, generation };
        let before = self.store.unfinished(attempt)?;
        let mut reports = Reports::new(attempt, self.world);
        let result = self.attempt(attempt, &before, &mut reports, done);
        result.map_err(|error| {
            // Whatever it looked like: somebody else has the target now, and removes what is ours.
            if let Err(fenced @ Error::Fenced { .. }) = self.store.check_fence(attempt) {
                return fenced;
            }
            // The reason for the failure matters more than leftovers.
            let _ = self.store.remove_unrecorded(attempt, &reports.ranks);
            error
        })
    }

    /// The boxes of the target tile every tensor: known before anything is copied.
    fn check_cover(&self) -> Result<(), Error> {
        for (tensor, chunks) in self.source.tensors().iter().zip(&self.chunks) {
            let key = || tensor.key();
            let boxes: Vec<Region> = chunks.iter().map(|(_, region)| region.clone()).collect();
            if let Some(region) = boxes.iter().find(|region| !region.fits(&tensor.shape)) {
                let (shape, region) = (tensor.shape.clone(), region.clone());
                return Err(Error::OutOfBounds { key: key(), shape, region });
            }
            match prove_cover(&tensor.shape, &boxes) {
                Ok(()) => {}
                Err(CoverFault::Gap(region)) => return Err(Error::Gap { key: key(), region }),
                Err(CoverFault::Overlap(first, second)) => {
                    let text = |number: usize| {
                        let (rank, region) = &chunks[number];
                        format!("{region} of rank {rank}")
                    };
                    let (first, second) = (text(first), text(second));
                    return Err(Error::Overlap { key: key(), first, second });
                }
            }
        }
        Ok(())
    }

    fn attempt(
        &self,
        attempt: Attempt,
        before: &[Attempt],
        reports: &mut Reports,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Reshaped, Error> {
        let (disk, dir) = (self.store.disk(), self.store.path_of(attempt));
        disk.create_dir(&dir).map_err(create_error(disk, &dir, self.bytes()))?;
        sync_dir(disk, self.store.root())?;
        let mut taken_over_bytes = 0;
        for number in 0..self.waves.len() {
            let Some(wave) = self.take_over(disk, &dir, number as u32, before)? else { break };
            taken_over_bytes += wave.bytes();
            done(self.tensor_bytes(number));
            reports.add(wave);
        }
        self.check_room(disk, reports.waves)?;
        for old in before {
            self.store.discard(*old)?;
        }
        self.write_waves((disk, &dir), attempt, reports, done)?;
        let expected: Vec<ExpectedTensor> = self.source.tensors().iter().map(expected).collect();
        let schema = self.source.schema();
        let mut state = self.source.run_state().clone();
        if let (Some(extra), Some(layout)) = (state.extra.as_object_mut(), &self.layout) {
            extra.insert("layout".to_owned(), layout.clone());
        }
        let committed = self.store.commit(attempt, &schema, &expected, &reports.ranks, &state)?;
        // Of no use any more, and of no harm where they stay.
        for number in 0..reports.waves {
            let _ = disk.remove_file(&dir.join(names::wave_name(number as u32)));
        }
        let _ = disk.remove_file(&self.store.root().join(names::RESHAPE));
        Ok(Reshaped { committed, taken_over_bytes })
    }

    /// A wave that an earlier attempt has finished, under new names.
    fn take_over(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        number: u32,
        before: &[Attempt],
    ) -> Result<Option<Wave>, Error> {
        for old in before.iter().rev() {
            let from = self.store.path_of(*old);
            let Some(wave) = Wave::read(disk, &from, number, self.plan)? else { continue };
            wave.link(disk, &from, dir)?;
            wave.write(disk, dir, number)?;
            return Ok(Some(wave));
        }
        Ok(None)
    }

    /// Refuses to begin what the disk has no room for.
    fn check_room(&self, disk: &dyn Disk, from_wave: usize) -> Result<(), Error> {
        let left = || self.waves.iter().skip(from_wave).flat_map(|wave| wave.clone());
        let data: u64 = left().map(|tensor| self.source.tensors()[tensor].bytes()).sum();
        let chunks: u64 = left().map(|tensor| self.chunks[tensor].len() as u64).sum();
        let shards = (self.waves.len() - from_wave) as u64 * u64::from(self.world).min(chunks);
        // Names in headers and manifest, headers' padding, sums.
        let needed_bytes = data + 512 * chunks + 8192 * shards + data / RANGE_BYTES * 4;
        let root = self.store.root();
        match disk.free(root).filter(|free| free.bytes < needed_bytes) {
            Some(free) => {
                let path = root.to_path_buf();
                Err(Error::DiskFull { path, needed_bytes, free: Some(free), quota: false })
            }
            None => Ok(()),
        }
    }

    fn tensor_bytes(&self, wave: usize) -> u64 {
        self.waves[wave].clone().map(|tensor| self.source.tensors()[tensor].bytes()).sum()
    }

    /// Writes the waves that are left. While one is made durable the next one is copied.
    fn write_waves(
        &self,
        (disk, dir): (&dyn Disk, &Path),
        attempt: Attempt,
        reports: &mut Reports,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        let mut first_shards: Vec<usize> =
            reports.ranks.iter().map(|report| report.files.len()).collect();
        let mut copied = |number: usize| {
            self.store.check_fence(attempt)?;
            let tensors = self.waves[number].clone();
            let open = self.open_shards(disk, dir, tensors, &mut first_shards)?;
            self.copy(disk, &open, done).map(|()| open)
        };
        std::thread::scope(|scope| {
            let mut before = None;
            for number in reports.waves..self.waves.len() {
                let open = copied(number);
                // Even after a failure: what is sealed is reported, or it would be removed.
                if let Some(before) = before.take() {
                    reports.add(joined(before)?);
                }
                let open = open?;
                let seal = move || self.seal((disk, dir), attempt, number as u32, open);
                match self.options.threads {
                    0 | 1 => reports.add(seal()?),
                    _ => before = Some(scope.spawn(seal)),
                }
            }
            before.map_or(Ok(()), |before| {
                reports.add(joined(before)?);
                Ok(())
            })
        })
    }

    /// Makes a wave durable, and says so in its record.
    fn seal(
        &self,
        (disk, dir): (&dyn Disk, &Path),
        attempt: Attempt,
        number: u32,
        open: OpenWave,
    ) -> Result<Wave, Error> {
        let OpenWave { shards, mut ranks, shards_of, .. } = open;
        let mut files = finish(disk, shards, self.options.threads)?.into_iter();
        for rank in &mut ranks {
            rank.files.extend(files.by_ref().take(shards_of[&rank.rank]));
            sync_dir(disk, &dir.join(names::rank_dir(rank.rank)))?;
        }
        let wave = Wave { plan: self.plan, ranks };
        self.store.check_fence(attempt)?;
        wave.write(disk, dir, number)?;
        Ok(wave)
    }

    /// Creates the shards that hold the chunks of some tensors, with their headers.
    fn open_shards(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        tensors: Range<usize>,
        first_shards: &mut [usize],
    ) -> Result<OpenWave, Error> {
        let mut of_rank: BTreeMap<u32, Vec<(usize, &Region)>> = BTreeMap::new();
        for tensor in tensors.clone() {
            for (rank, region) in &self.chunks[tensor] {
                of_rank.entry(*rank).or_default().push((tensor, region));
            }
        }
        let mut open = OpenWave {
            shards: Vec::new(),
            wanted: Vec::new(),
            targets: Vec::new(),
            ranks: Vec::new(),
            shards_of: BTreeMap::new(),
        };
        for (rank, boxes) in of_rank {
            let labels: Vec<Label> =
                boxes.iter().map(|(tensor, region)| self.label(*tensor, region)).collect();
            let first_shard = first_shards[rank as usize];
            let plans =
                shard::plan(&labels, (rank, first_shard), WriteOptions::default().max_shard_bytes);
            first_shards[rank as usize] += plans.len();
            open.shards_of.insert(rank, plans.len());
            make_dir(disk, &dir.join(names::rank_dir(rank)))?;
            let mut chunks = Vec::with_capacity(boxes.len());
            for (plan, shard) in plans.iter().zip(first_shard as u32..) {
                for place in &plan.places {
                    let (tensor, region) = boxes[place.chunk];
                    let of = &self.source.tensors()[tensor];
                    let (key, dtype, region_of) = (of.key(), of.dtype, region.clone());
                    open.wanted.push(Wanted { key, dtype, region: region_of });
                    let element_bytes = dtype.size_bytes() as u64;
                    let target =
                        Target { shard: open.shards.len(), start: place.start, element_bytes };
                    open.targets.push(target);
                    chunks.push(self.reported(tensor, region, shard, [place.start, place.end]));
                }
                let paths = (names::shard_path(rank, shard), names::sums_path(rank, shard));
                let paths = (dir.join(paths.0), dir.join(paths.1));
                open.shards.push(Scattered::create(disk, paths, plan)?);
            }
            let (first_shard, files) = (first_shard as u32, Vec::new());
            open.ranks.push(RankWave { rank, first_shard, files, chunks });
        }
        Ok(open)
    }

    fn label<'b>(&self, tensor: usize, region: &'b Region) -> Label<'b> {
        let of = &self.source.tensors()[tensor];
        let bytes = (region.elements().unwrap_or(0) * of.dtype.size_bytes()) as u64;
        Label { name: of.key().chunk_name(region), dtype: of.dtype, region, bytes }
    }

    fn reported(
        &self,
        tensor: usize,
        region: &Region,
        shard: u32,
        range: [u64; 2],
    ) -> ReportedChunk {
        let of = &self.source.tensors()[tensor];
        let (key, dtype, global_shape) = (of.key(), of.dtype, of.shape.clone());
        ReportedChunk { key, dtype, global_shape, region: region.clone(), shard, range }
    }

    /// Copies the chunks of a wave to their places.
    fn copy(
        &self,
        disk: &dyn Disk,
        open: &OpenWave,
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        self.source.read_boxes(&open.wanted, self.options.threads, |of, element, bytes| {
            let Target { shard, start, element_bytes } = open.targets[of];
            open.shards[shard].put(disk, start + element as u64 * element_bytes, bytes)?;
            done(bytes.len() as u64);
            Ok(())
        })
    }
}

/// The place of a chunk of the target: number of its shard, first byte, and bytes of an element.
struct Target {
    shard: usize,
    start: u64,
    element_bytes: u64,
}

/// The shards of a wave while they are written.
struct OpenWave {
    shards: Vec<Scattered>,
    /// Its chunks, and where each goes.
    wanted: Vec<Wanted>,
    targets: Vec<Target>,
    ranks: Vec<RankWave>,
    /// Number of shards of each rank.
    shards_of: BTreeMap<u32, usize>,
}

/// The reports of all ranks, so far.
struct Reports {
    waves: usize,
    ranks: Vec<RankReport>,
}

impl Reports {
    fn new(attempt: Attempt, world: u32) -> Reports {
        let (files, chunks) = (Vec::new(), Vec::new());
        let empty = RankReport { attempt, rank: 0, world, files, chunks };
        let ranks = (0..world).map(|rank| RankReport { rank, ..empty.clone() });
        Reports { waves: 0, ranks: ranks.collect() }
    }

    fn add(&mut self, wave: Wave) {
        self.waves += 1;
        for RankWave { rank, files, chunks, .. } in wave.ranks {
            let report = &mut self.ranks[rank as usize];
            report.files.extend(files);
            report.chunks.extend(chunks);
        }
    }
}

fn joined(thread: ScopedJoinHandle<Result<Wave, Error>>) -> Result<Wave, Error> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn expected(tensor: &StateTensor) -> ExpectedTensor {
    let (dtype, global_shape) = (tensor.dtype, tensor.shape.clone());
    ExpectedTensor { key: tensor.key(), dtype, global_shape }
}

/// Runs of tensors of at least `most` bytes, but for the last; at least one.
fn waves(tensors: &[StateTensor], most: u64) -> Vec<Range<usize>> {
    let (mut waves, mut start, mut bytes) = (Vec::new(), 0, 0);
    for (number, tensor) in tensors.iter().enumerate() {
        bytes += tensor.bytes();
        if bytes >= most || number + 1 == tensors.len() {
            waves.push(start..number + 1);
            (start, bytes) = (number + 1, 0);
        }
    }
    waves
}

/// Makes shards durable, several at a time.
fn finish(
    disk: &dyn Disk,
    shards: Vec<Scattered>,
    threads: usize,
) -> Result<Vec<crate::ReportedFile>, Error> {
    let mut files = Vec::with_capacity(shards.len());
    let mut shards = shards.into_iter();
    loop {
        let some: Vec<Scattered> = shards.by_ref().take(threads.max(1)).collect();
        if some.is_empty() {
            return Ok(files);
        }
        let finished = std::thread::scope(|scope| {
            let all: Vec<_> =
                some.into_iter().map(|shard| scope.spawn(|| shard.finish(disk))).collect();
            all.into_iter().map(|thread| thread.join()).collect::<Vec<_>>()
        });
        for file in finished {
            match file {
                Ok(file) => files.push(file?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    }
}
