//! A checkpoint written anew in other boxes, file to file, in bounded memory.
//!
//! ```text
//! tensors ─▶ waves ─▶ slabs ─▶ threads: read, verify ─▶ cut ─▶ every rank's shard, summed
//!                              per wave: fsync of shards, tables, directories; then its record
//! at the end: cover proven, manifest, COMMIT; records removed
//! ```
//! Each byte is read, verified, summed and written once. What is committed is a checkpoint like any
//! other. A reshape that was interrupted goes on behind its last whole wave, under a generation of
//! its own, which fences off whatever may still be writing the old attempt.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::ScopedJoinHandle;

use crate::commit::{Committed, ExpectedTensor};
use crate::disk::Disk;
use crate::region::{for_each_run, slabs};
use crate::scattered::Scattered;
use crate::shard::{self, Label};
use crate::sums::RANGE_BYTES;
use crate::waves::{RankWave, Wave, make_dir};
use crate::write::{RankReport, ReportedChunk, create_error, sync_dir};
use crate::{Attempt, Checkpoint, Digest, Error, Region, StateTensor, Store, names};

/// How to reshape.
#[derive(Debug, Clone, Copy)]
pub struct ReshapeOptions {
    /// Threads that read and write.
    pub threads: usize,
    /// Memory for data on their way, of all threads.
    pub buffer_bytes: usize,
    /// Bytes of tensors after which what is done is made durable, so that an interrupted reshape
    /// need not begin anew.
    pub wave_bytes: u64,
}

impl Default for ReshapeOptions {
    fn default() -> ReshapeOptions {
        ReshapeOptions { threads: 2, buffer_bytes: 256 << 20, wave_bytes: 1 << 30 }
    }
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
        Reshape { source, store, chunks, world: ranks.len() as u32, options, waves, plan }
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.source.tensors().iter().map(StateTensor::bytes).sum()
    }

    /// Reshapes; `done` is told of bytes as they are written.
    ///
    /// # Errors
    /// Damaged or missing data of the source; a full disk, and whatever else hinders a save;
    /// another reshape into the same directory. What is whole stays for the next attempt, except
    /// where the disk is full.
    pub fn run(&self, done: &(dyn Fn(u64) + Sync)) -> Result<Reshaped, Error> {
        let step = self.source.manifest().step;
        let before = self.store.unfinished(step)?;
        let generation = self.store.claim_generation()?;
        let attempt = Attempt { step, generation };
        let result = self.attempt(attempt, &before, done);
        if let Err(Error::DiskFull { .. }) = &result {
            // The reason for the failure matters more than leftovers.
            let _ = self.store.discard(attempt);
        }
        result
    }

    fn attempt(
        &self,
        attempt: Attempt,
        before: &[Attempt],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<Reshaped, Error> {
        let (disk, dir) = (self.store.disk(), self.store.path_of(attempt));
        disk.create_dir(&dir).map_err(create_error(disk, &dir, self.bytes()))?;
        let mut reports = Reports::new(attempt, self.world);
        let mut taken_over_bytes = 0;
        for number in 0..self.waves.len() {
            let Some(wave) = self.take_over(disk, &dir, number as u32, before)? else { break };
            taken_over_bytes += wave.bytes();
            done(self.tensor_bytes(number));
            reports.add(wave);
        }
        for old in before {
            self.store.discard(*old)?;
        }
        self.check_room(disk, reports.waves)?;
        self.write_waves((disk, &dir), attempt, &mut reports, done)?;
        let waves = reports.waves;
        let expected: Vec<ExpectedTensor> = self.source.tensors().iter().map(expected).collect();
        let schema = self.source.schema();
        let state = self.source.run_state();
        let reports = reports.ranks;
        let committed = self.store.commit(attempt, &schema, &expected, &reports, state)?;
        for number in 0..waves {
            // Of no use any more, and of no harm where they stay.
            let _ = disk.remove_file(&dir.join(names::wave_name(number as u32)));
        }
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
        let left = self.waves.iter().skip(from_wave).flat_map(|wave| wave.clone());
        let data: u64 = left.map(|tensor| self.source.tensors()[tensor].bytes()).sum();
        let needed_bytes = data + data / RANGE_BYTES * 4;
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
        std::thread::scope(|scope| {
            let mut before = None;
            for number in reports.waves..self.waves.len() {
                let tensors = self.waves[number].clone();
                let mut open = self.open_shards(disk, dir, tensors.clone(), &mut first_shards)?;
                let targets = std::mem::take(&mut open.targets);
                self.copy(disk, tensors, &targets, &open.shards, done)?;
                if let Some(before) = before.take() {
                    reports.add(joined(before)?);
                }
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
            targets: vec![Vec::new(); tensors.len()],
            ranks: Vec::new(),
            shards_of: BTreeMap::new(),
        };
        for (rank, boxes) in of_rank {
            let labels: Vec<Label> =
                boxes.iter().map(|(tensor, region)| self.label(*tensor, region)).collect();
            let first_shard = first_shards[rank as usize];
            let plans = shard::plan(&labels, (rank, first_shard), u64::MAX);
            first_shards[rank as usize] += plans.len();
            open.shards_of.insert(rank, plans.len());
            make_dir(disk, &dir.join(names::rank_dir(rank)))?;
            let mut chunks = Vec::with_capacity(boxes.len());
            for (plan, shard) in plans.iter().zip(first_shard as u32..) {
                for place in &plan.places {
                    let (tensor, region) = boxes[place.chunk];
                    let target = (open.shards.len(), region.clone(), place.start);
                    open.targets[tensor - tensors.start].push(target);
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

    /// Copies tensors to the chunks of the target, slab by slab, on several threads.
    fn copy(
        &self,
        disk: &dyn Disk,
        tensors: Range<usize>,
        targets: &[Vec<Target>],
        shards: &[Scattered],
        done: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Error> {
        let threads = self.options.threads.max(1);
        // A slab as it is read, and the part of it that goes to a chunk.
        let slab_bytes = (self.options.buffer_bytes / threads / 2).clamp(64 << 10, 64 << 20);
        let mut work = Vec::new();
        for tensor in tensors.clone() {
            let of = &self.source.tensors()[tensor];
            let all = slabs(&of.shape, (slab_bytes / of.dtype.size_bytes()).max(1));
            work.extend(all.into_iter().map(|slab| (tensor, slab)));
        }
        self.source.read_by(2 * threads);
        let (next, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
        let failed = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..threads.min(work.len()) {
                scope.spawn(|| {
                    let mut buffers = (Vec::new(), Vec::new());
                    while !is_over.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some((tensor, slab)) = work.get(number) else { break };
                        let of = &targets[tensor - tensors.start];
                        let to = (disk, &of[..], shards);
                        match self.copy_slab(
                            &self.source.tensors()[*tensor],
                            slab,
                            to,
                            &mut buffers,
                        ) {
                            Ok(()) => done(buffers.0.len() as u64),
                            Err(error) => {
                                let mut failed =
                                    failed.lock().unwrap_or_else(PoisonError::into_inner);
                                failed.get_or_insert(error);
                                is_over.store(true, Ordering::Relaxed);
                            }
                        }
                    }
                });
            }
        });
        match failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn copy_slab(
        &self,
        tensor: &StateTensor,
        slab: &Region,
        (disk, targets, shards): (&dyn Disk, &[Target], &[Scattered]),
        (whole, cut): &mut (Vec<u8>, Vec<u8>),
    ) -> Result<(), Error> {
        let size = tensor.dtype.size_bytes();
        whole.resize(slab.elements().unwrap_or(0) * size, 0);
        self.source.read_box(&tensor.key(), tensor.dtype, slab, whole)?;
        for (shard, chunk, start) in targets {
            let Some(part) = chunk.intersect(slab) else { continue };
            let bytes: &[u8] = if part == *slab {
                whole
            } else {
                cut.resize(part.elements().unwrap_or(0) * size, 0);
                for_each_run::<Error>(&part, slab, &part, |from, to, len| {
                    let (from, to, len) = (from * size, to * size, len * size);
                    cut[to..to + len].copy_from_slice(&whole[from..from + len]);
                    Ok(())
                })?;
                cut
            };
            for_each_run(&part, &part, chunk, |from, to, len| {
                let at = start + (to * size) as u64;
                shards[*shard].put(disk, at, &bytes[from * size..(from + len) * size])
            })?;
        }
        Ok(())
    }
}

/// A chunk of the target: number of its shard, box, first byte.
type Target = (usize, Region, u64);

/// The shards of a wave while they are written.
struct OpenWave {
    shards: Vec<Scattered>,
    /// Of each tensor of the wave.
    targets: Vec<Vec<Target>>,
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
