//! Everything that is decided before the first step, without talking and without memory.

use std::collections::BTreeMap;
use std::ops::Range;

use checkpoint::objects::is_url;
use comm::{BackendWord, SumRoom};
use device::{DType, Device, DeviceKind};
use layout::{
    Accumulation, CostTable, Dtype, FlatLayout, Node, Ownership, Schema, Sharing, StateDecl,
    SumProgram, Tree,
};
use model::MicroBatch;
use optim::TensorPlan;

use crate::TrainError;
use crate::config::{Config, SaveMode};
use crate::engine::Declared;
use crate::event::Offload;

/// Bytes of a process beside the planned buffers: the allocator, thread stacks, buffers of files,
/// and the remains of a large tokenizer that was loaded for its tokens' lengths. Measured, see the
/// memory benchmark.
const PROCESS_BYTES: usize = 7 << 20;

/// Bytes of the simulator for the stacks of a block's threads and for shared memory: measured.
const SIMULATOR_BYTES: u64 = 16 << 20;

/// Bytes that it notes of each byte that a launch touches: its accesses, to find races.
const SIMULATOR_FACTOR: u64 = 8;

/// Copies of its boxes that a rank has room for: one is written while the next is made.
pub(crate) const SAVE_BUFFERS: usize = 2;

/// The plan of a run for a number of ranks.
pub struct RunPlan {
    pub schema: Schema,
    pub flat: FlatLayout,
    pub tree: Tree,
    pub world: usize,
    pub threads: usize,
    pub batch: MicroBatch,
    pub weights: DType,
    /// Where the optimizer is, if not beside the weights.
    pub optimizer_device: Option<DeviceKind>,
    /// Whether older checkpoints are removed, once a newer one has been read back.
    pub removes_checkpoints: bool,
    /// Whether steps go on while a checkpoint is written. The last one is waited for, so that a run
    /// that saves no other needs no memory for it.
    pub saves_beside: bool,
    /// Whether checkpoints go to an object store, in parts that are kept until they are there.
    saves_to_objects: bool,
    /// Bytes of a checkpoint that each rank writes.
    save_bytes: Vec<u64>,
    /// Whether gradients come over sockets, and not from where peers have them.
    pub is_over_tcp: bool,
    /// Whether ranks of one host then share memory, if there are several hosts.
    shares_within_hosts: bool,
    /// The update of each tensor.
    pub updates: Vec<TensorPlan>,
    pub ownership: Ownership,
    /// Of every rank: each partial's node and the gradient buffer that holds it.
    pub partials: Vec<Vec<(Node, usize)>>,
    /// How an owner adds the partials of all ranks.
    pub program: SumProgram,
    /// Per bucket, per rank: the elements it owns.
    pub bucket_segments: Vec<Vec<Vec<Range<usize>>>>,
    /// Per rank: all elements it owns.
    pub segments: Vec<Vec<Range<usize>>>,
    /// Per rank: the numbers of the statistics that it fills.
    pub own_statistics: Vec<Vec<Range<usize>>>,
    pub bucket_elements: usize,
    /// Every state that a checkpoint holds: those of parameters and their updates, in the order of
    /// [`optim::declared`], then the engine's.
    pub states: Vec<StateDecl>,
    /// How many of them are the engine's.
    engine_states: usize,
    /// Integers that ranks add up each step.
    pub counts: usize,
    /// Entries of the engine in the numeric plan.
    pub(crate) numeric: BTreeMap<String, String>,
    pub(crate) active_parameters: u64,
    /// Bytes of the engine, by use.
    engine_memory: Vec<(String, u64)>,
}

impl RunPlan {
    /// The plan of any engine; the config's model, its type of weights and its size of buckets are
    /// not looked at.
    ///
    /// # Errors
    /// A tree that does not fit the leaves; more ranks than leaves; optimizer rules that leave a
    /// parameter out.
    pub fn of(
        config: &Config,
        declared: Declared,
        world: usize,
        threads: usize,
    ) -> Result<RunPlan, TrainError> {
        let Declared { schema, flat, bucket_elements, batch, weights, .. } = declared;
        let tree = Tree::with_leaves(&config.batch.radices, config.batch.leaves)?;
        let updates = optim::plan(&schema, &config.optimizer)?;
        let treatments = optim::treatments(&updates)?;
        let cost = &CostTable::CPU;
        let ownership = Ownership::new(&schema, &flat, &treatments, world, cost)?;
        let mut partials = Vec::with_capacity(world);
        for rank in 0..world {
            partials.push(tree.accumulation(&tree.leaf_range(rank, world)?).partials);
        }
        let nodes: Vec<Node> = partials.iter().flatten().map(|(node, _)| node.clone()).collect();
        let segments: Vec<Vec<Range<usize>>> =
            (0..world).map(|rank| ownership.segments(rank)).collect();
        let cut_to = |bucket: &Range<usize>| segments.iter().map(|s| cut(s, bucket)).collect();
        let mut states = optim::declared(&schema, &updates);
        let engine_states = declared.states.len();
        declared.states.iter().try_for_each(check_engine_state)?;
        states.extend(declared.states);
        let own_statistics =
            (0..world).map(|r| ownership.owned(r).map(|p| p.statistics.clone()).collect());
        let checkpoint = &config.checkpoint;
        let is_midway = |every| (1..config.train.steps).contains(&every);
        let saves_midway = is_midway(checkpoint.every)
            || checkpoint.local.as_ref().is_some_and(|local| is_midway(local.every));
        let mut plan = RunPlan {
            program: tree.combine(&nodes),
            bucket_segments: flat.buckets.iter().map(|b| cut_to(&b.range)).collect(),
            own_statistics: own_statistics.collect(),
            states,
            engine_states,
            counts: declared.counts,
            numeric: declared.numeric,
            active_parameters: declared.active_parameters,
            engine_memory: declared.memory,
            batch,
            weights,
            optimizer_device: config.ranks.optimizer_device.kind(),
            removes_checkpoints: config.checkpoint.keep > 0,
            saves_beside: saves_midway && checkpoint.mode == SaveMode::Async,
            saves_to_objects: checkpoint.store.as_deref().is_some_and(is_url),
            save_bytes: Vec::new(),
            is_over_tcp: config.ranks.backend == BackendWord::Tcp,
            shares_within_hosts: config.ranks.within_host == BackendWord::Shm,
            schema,
            flat,
            tree,
            world,
            threads,
            updates,
            ownership,
            partials,
            segments,
            bucket_elements,
        };
        let boxes = plan.save_boxes()?;
        plan.save_bytes = boxes.iter().map(|boxes| plan.bytes_of(boxes)).collect();
        Ok(plan)
    }

    /// The accumulation of a rank.
    ///
    /// # Errors
    /// Never for a rank of the plan.
    pub fn accumulation(&self, rank: usize) -> Result<Accumulation, TrainError> {
        Ok(self.tree.accumulation(&self.tree.leaf_range(rank, self.world)?))
    }

    /// Gradient buffers of every rank: those of the rank that needs most.
    pub fn gradient_buffers(&self) -> usize {
        let accumulations = (0..self.world).filter_map(|rank| self.accumulation(rank).ok());
        accumulations.map(|accumulation| accumulation.buffers).max().unwrap_or(1)
    }

    /// Gradient bytes sent by all ranks over those of a ring reduce-scatter.
    pub fn byte_factor(&self) -> f64 {
        if self.world == 1 {
            return 1.0;
        }
        let total: usize = self.flat.lens.iter().sum();
        let mut sent = 0;
        for (rank, partials) in self.partials.iter().enumerate() {
            let own: usize = self.segments[rank].iter().map(ExactSizeIterator::len).sum();
            sent += partials.len() * (total - own);
        }
        sent as f64 / ((self.world - 1) * total) as f64
    }

    /// Gradient bytes that leave hosts of `each` ranks, over those of a ring reduce-scatter of the
    /// hosts; `None` where no bucket goes by hosts. Those do that have `from_bytes` bytes at least.
    pub fn byte_factor_by_hosts(&self, each: usize, from_bytes: usize) -> Option<f64> {
        let partials: Vec<usize> = self.partials.iter().map(Vec::len).collect();
        let host_of: Vec<usize> = (0..self.world).map(|rank| rank / each.max(1)).collect();
        let flat: Vec<usize> =
            partials.chunks(each.max(1)).map(|host| 4 * host.iter().sum::<usize>()).collect();
        let (mut is_any, mut sent, mut total) = (false, 0, 0);
        for owned in &self.bucket_segments {
            let lens = owned.iter().map(|ranges| ranges.iter().map(Range::len).sum());
            let lens: Vec<usize> = lens.collect();
            let len: usize = lens.iter().sum();
            let of = (&partials[..], DType::F32);
            let place = (&host_of[..], from_bytes);
            let by_hosts = comm::sent_by_hosts(&self.program, of, 4 * len, place);
            is_any |= by_hosts.is_some();
            let bytes = by_hosts.as_ref().unwrap_or(&flat);
            let own = lens.chunks(each.max(1)).map(|host| host.iter().sum::<usize>());
            sent += bytes.iter().zip(own).map(|(bytes, own)| bytes * (len - own)).sum::<usize>();
            total += 4 * len * (flat.len() - 1);
        }
        (is_any && total > 0).then(|| sent as f64 / total as f64)
    }

    /// Bytes of a rank by what for.
    ///
    /// # Errors
    /// Plans that do not match, which [`RunPlan::new`] excludes.
    pub fn memory(&self, rank: usize) -> Result<Vec<(String, u64)>, TrainError> {
        let page = |bytes: usize| bytes.next_multiple_of(4096) as u64;
        let mut items = vec![
            ("weights".to_owned(), page(self.flat.len * self.weights.bytes())),
            (
                format!("gradients, {} buffers", self.gradient_buffers()),
                self.gradient_buffers() as u64 * page(self.flat.len * 4),
            ),
        ];
        let (schema, plan) = (&self.schema, &self.ownership);
        if self.optimizer_device.is_some() {
            let partials = SumRoom::pinned_bytes(self.inputs(), DType::F32);
            let bytes = optim::staging_bytes(plan, rank) + partials;
            items.push(("copies for the optimizer's device".to_owned(), page(bytes)));
        } else {
            let state =
                optim::memory_plan(schema, plan, rank, &self.updates, self.weights, self.threads)?;
            for item in state.iter().filter(|item| item.elements > 0) {
                items.push((item.name.to_owned(), page(item.bytes())));
            }
        }
        if self.is_over_tcp && self.world > 1 {
            items.push(("gradients from peers".to_owned(), page(self.received_bytes(rank))));
        }
        for (name, bytes) in &self.engine_memory {
            items.push((name.clone(), page(*bytes as usize)));
        }
        if rank == 0 && self.removes_checkpoints {
            // Beside the training, and so beside the buffer of the save after.
            let buffer = checkpoint::RANGE_BYTES.min(self.state_bytes());
            items.push(("reading a checkpoint back".to_owned(), page(buffer as usize)));
        }
        if self.saves_beside {
            let bytes = self.save_bytes[rank];
            let buffers = SAVE_BUFFERS as u64 * page(bytes as usize);
            items.push((format!("copies to be saved, {SAVE_BUFFERS} buffers"), buffers));
            let buffer = checkpoint::RANGE_BYTES.min(bytes);
            items.push(("writing a checkpoint".to_owned(), page(buffer as usize)));
        }
        if self.saves_to_objects {
            let bytes = checkpoint::objects::upload_bytes(self.save_bytes[rank]);
            items.push(("uploading a checkpoint".to_owned(), page(bytes as usize)));
        }
        items.extend(self.simulation(rank));
        let packing = self.threads * kernels::gemm::packing_bytes();
        items.push(("process and libraries".to_owned(), (PROCESS_BYTES + packing) as u64));
        Ok(items)
    }

    /// Bytes that come to `rank` before they are summed, where it does not read them in place.
    fn received_bytes(&self, rank: usize) -> usize {
        let most = self.partials.iter().map(Vec::len).max().unwrap_or(0);
        let len = |owned: &Vec<Range<usize>>| owned.iter().map(Range::len).sum();
        let own = self.bucket_segments.iter().map(|bucket| len(&bucket[rank])).max();
        let flat = comm::tcp::sum_room_bytes(self.world, most, DType::F32, own.unwrap_or(0));
        if !self.shares_within_hosts || self.world < 4 {
            return flat;
        }
        // However many ranks a host has; what others own is sent from such memory, too. A host
        // sends no more partials than its ranks have.
        let all = self.bucket_segments.iter().flatten().map(len).max().unwrap_or(0);
        let each = (2..=self.world / 2).filter(|each| self.world.is_multiple_of(*each));
        let room = each.map(|each| {
            comm::tcp::host_sum_room_bytes(self.world / each, each * most, DType::F32, all)
        });
        room.fold(flat, usize::max)
    }

    /// Partials of all ranks.
    fn inputs(&self) -> usize {
        self.partials.iter().map(Vec::len).sum()
    }

    /// The engine's part of [`RunPlan::states`].
    pub(crate) fn engine_states(&self) -> &[StateDecl] {
        &self.states[self.states.len() - self.engine_states..]
    }

    /// Bytes of a checkpoint's tensors.
    fn state_bytes(&self) -> u64 {
        self.states.iter().map(StateDecl::bytes).sum()
    }

    /// Memory of the host that a simulated device takes, its own included. Empty where it cannot do
    /// the work, which is told elsewhere.
    fn simulation(&self, rank: usize) -> Vec<(String, u64)> {
        let Some(kind @ DeviceKind::Sim(_)) = self.optimizer_device else { return Vec::new() };
        let offload = Device::new(kind, 1).map_err(TrainError::from);
        let Ok(offload) = offload.and_then(|device| self.offload(&device, rank)) else {
            return Vec::new();
        };
        let bytes = offload.bytes();
        vec![
            ("memory of the simulated device".to_owned(), bytes),
            ("the simulator".to_owned(), SIMULATOR_BYTES + SIMULATOR_FACTOR * bytes),
        ]
    }

    /// Memory that the optimizer of `rank` takes of `device`, [`RunPlan::optimizer_device`].
    ///
    /// # Errors
    /// A method that the device has no kernels for.
    pub fn offload(&self, device: &Device, rank: usize) -> Result<Offload, TrainError> {
        let RunPlan { schema, ownership, updates, weights, .. } = self;
        let items = optim::offload_plan(device, schema, ownership, rank, updates, *weights)?;
        let named = items.iter().filter(|item| item.elements > 0);
        let named = named.map(|item| (item.name.to_owned(), item.bytes() as u64));
        let sums = SumRoom::device_bytes(device, &self.program, self.inputs(), DType::F32)?;
        let memory = named.chain([("partials to be summed".to_owned(), sums as u64)]).collect();
        Ok(Offload { device: device.kind().to_string(), memory })
    }

    /// Planned bytes of the rank that needs most.
    pub fn peak_bytes(&self) -> u64 {
        let total = |rank| -> Option<u64> {
            Some(self.memory(rank).ok()?.iter().map(|(_, bytes)| bytes).sum())
        };
        (0..self.world).filter_map(total).max().unwrap_or(0)
    }
}

/// Refuses a state that an engine cannot declare.
fn check_engine_state(state: &StateDecl) -> Result<(), TrainError> {
    if state.sharing == Sharing::Replicated && state.dtype == Dtype::F32 {
        return Ok(());
    }
    let StateDecl { name, slot, dtype, sharing, .. } = state;
    let reason = format!(
        "state `{name}:{slot}` is {sharing:?} and {dtype}; states of engines are Replicated and F32"
    );
    Err(TrainError::Declared { reason })
}

/// The parts of `segments` inside `range`; they are sorted and disjoint, and there may be many of
/// both.
fn cut(segments: &[Range<usize>], range: &Range<usize>) -> Vec<Range<usize>> {
    let first = segments.partition_point(|segment| segment.end <= range.start);
    let inside = segments[first..].iter().take_while(|segment| segment.start < range.end);
    let parts = inside.map(|s| s.start.max(range.start)..s.end.min(range.end));
    parts.filter(|part| !part.is_empty()).collect()
}
