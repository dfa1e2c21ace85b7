//! Runs operations on the ranks of a job and times them.
//!
//! ```text
//! each rank        barrier ─▶ arrives ─▶ operation ─▶ is done      so often, in batches
//! all ranks        stamps of a batch ─▶ every rank draws the same times from them, and so stops
//!                  at the same time
//! ```
//!
//! Where ranks share a clock an operation takes from the arrival of the last of them to the end of
//! the last: what the others waited for it is the skew, and is told apart. Between hosts it takes
//! as long as the rank that it took longest.
//!
//! Results are checked on the timed launches themselves. Where filling and comparing takes longer
//! than the operation, some are left out; a row tells how many were checked.

mod case;
mod clock;
mod here;
mod overlap;
mod pattern;
mod stamps;

use std::collections::{HashMap, HashSet};

use comm::{Channel, Group, GroupOptions, Route, SumOrder, WindowPath, World};
use device::trace::{self, Detail, Span};
use device::{Device, Stream};
use serde::{Deserialize, Serialize};

use case::{Buffers, Case};
pub use case::{reduction, supports};
use overlap::Computing;
pub use overlap::{Beside, NoOverlap, can_overlap};
use stamps::{Batch, Combined};

use super::{
    ElementType, Host, Key, Op, Parts, Path, RedOp, Row, Sampler, Step, StopRule, Sweep, plausible,
};
use crate::BenchError;

/// Time of a batch, after which ranks tell each other their stamps.
const BATCH_US: f64 = 20_000.0;
/// Iterations of the first batch, and of any.
const BATCH_FIRST: u64 = 8;
const BATCH_MAX: u64 = 2000;
/// Timed launches of a case that are in a trace, the first ones: all would be gigabytes.
const TRACED: u64 = 100;
/// How often a case is measured again whose figures look impossible.
const AGAIN: usize = 3;
/// Bytes of results that are compared for each iteration, about.
const CHECK_BYTES: u64 = 256 << 10;

/// The cases to measure: every combination.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub ops: Vec<Op>,
    pub dtypes: Vec<ElementType>,
    /// Of operations that reduce.
    pub redops: Vec<RedOp>,
    /// Of operations with one; those that are no rank of a group are left out there.
    pub roots: Vec<usize>,
    pub sweep: Sweep,
    /// Numbers of ranks, each measured among the first so many.
    pub ranks: Vec<usize>,
    /// In place, out of place, or both; operations that have one of them alone are measured in it.
    pub places: Vec<Place>,
    /// Iterations that are not counted.
    pub warmup: u64,
    pub rule: StopRule,
    pub check: bool,
    /// Ranks read the same clock.
    pub common_clock: bool,
    /// The transport of devices' memory, and who makes sums there.
    #[serde(default)]
    pub group: GroupOptions,
    /// Flips a bit of a result of rank 0 in its launch of this number: for tests of the check.
    #[serde(default)]
    pub flip_at: Option<u64>,
    /// Records the first timed launches of each case ([`device::trace`]).
    #[serde(default)]
    pub trace: bool,
    /// The computation beside which each operation is measured once more, where that is asked for.
    #[serde(default)]
    pub beside: Option<Beside>,
}

/// The reports of a run as it goes on.
#[allow(clippy::large_enum_variant)] // One exists at a time.
pub enum Told {
    /// The transport of the devices that the next rows are of.
    Route(Used),
    /// Where the ranks are, before the first row.
    Hosts(Vec<Host>),
    /// In place of an earlier one with its key, if there is one.
    Row(Row),
}

/// A transport, as a report has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// In words: with its library and version, why it is used, who makes sums, and how the library
    /// knows the windows.
    pub text: String,
    pub transport: String,
    /// Name (`nccl`) and version.
    pub library: Option<(String, String)>,
}

impl Used {
    fn of(group: &Group, device: &Device) -> Used {
        let route = group.route();
        let simulated = device.properties().simulated;
        let simulated = if simulated { "; SIMULATED: times mean nothing" } else { "" };
        let windows = group.window_path().map(|path| format!(", windows {}", path.name()));
        let library = route.library.as_ref().and_then(|library| library.split_once(' '));
        Used {
            text: format!("{route}{}{simulated}", windows.unwrap_or_default()),
            transport: route.transport.to_owned(),
            library: library.map(|(name, version)| (name.to_lowercase(), version.to_owned())),
        }
    }
}

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Into memory of their own.
    Out,
    /// Over the inputs.
    In,
}

impl Plan {
    /// Number of rows.
    ///
    /// # Errors
    /// Sizes that make no sweep.
    pub fn rows(&self) -> Result<usize, BenchError> {
        self.ranks.iter().map(|&ranks| self.keys(ranks).map(|keys| keys.len())).sum()
    }

    /// The most sizes that any case has.
    ///
    /// # Errors
    /// As [`Plan::rows`].
    pub fn sizes_most(&self) -> Result<usize, BenchError> {
        let mut sizes = HashMap::new();
        for &ranks in &self.ranks {
            for key in self.keys(ranks)? {
                *sizes.entry(key.series().fields()).or_insert(0) += 1;
            }
        }
        Ok(sizes.into_values().max().unwrap_or(0))
    }

    /// The least largest size with which some case has so many sizes, if a sweep from here reaches
    /// it.
    ///
    /// # Errors
    /// As [`Plan::rows`].
    pub fn least_bytes(&self, sizes: usize) -> Result<Option<u64>, BenchError> {
        let next = |size: &u64| match self.sweep.step {
            Step::Factor(factor) => size.checked_mul(factor),
            Step::Bytes(bytes) => size.checked_add(bytes),
        };
        for to_bytes in std::iter::successors(Some(self.sweep.from_bytes), next).take(1024) {
            let sweep = Sweep { to_bytes, ..self.sweep };
            if (Plan { sweep, ..self.clone() }).sizes_most()? >= sizes {
                return Ok(Some(to_bytes));
            }
        }
        Ok(None)
    }

    /// The cases among `ranks` ranks, in the order in which they are measured.
    fn keys(&self, ranks: usize) -> Result<Vec<Key>, BenchError> {
        let mut keys = Vec::new();
        for &op in &self.ops {
            // An operation without elements has no type either.
            let dtypes = if op == Op::Barrier { &self.dtypes[..1] } else { &self.dtypes[..] };
            for ways in self.ways(op, dtypes) {
                let dtype = ways.0;
                let sizes = match op {
                    Op::Barrier => vec![0],
                    _ => self.sweep.sizes(dtype.bytes())?,
                };
                for bytes in sizes {
                    let places = self.places.iter().filter(|place| case::has(op, **place));
                    let places: Vec<Place> = places.copied().collect();
                    let places = if places.is_empty() { case::only(op) } else { places };
                    let size = (bytes, ranks);
                    keys.extend(places.iter().map(|place| key(op, ways, size, *place)));
                }
            }
        }
        // A size of less than an element for each rank moves nothing.
        keys.retain(|key| key.op == Op::Barrier || key.bytes > 0);
        keys.retain(|key| key.root.is_none_or(|root| root < ranks));
        let mut seen = HashSet::new();
        keys.retain(|key| seen.insert(key.fields()));
        Ok(keys)
    }

    /// The types, reductions and roots of an operation.
    fn ways(&self, op: Op, dtypes: &[ElementType]) -> Vec<Way> {
        let redops: Vec<Option<RedOp>> = match op.reduces() {
            true => self.redops.iter().copied().map(Some).collect(),
            false => vec![None],
        };
        let roots: Vec<Option<usize>> = match op.rooted() {
            true => self.roots.iter().copied().map(Some).collect(),
            false => vec![None],
        };
        let mut ways = Vec::new();
        for &dtype in dtypes {
            for &redop in &redops {
                ways.extend(roots.iter().map(|&root| (dtype, redop, root)));
            }
        }
        ways
    }

    /// The computation of this rank beside operations, if it has one.
    fn computing(&self, world: &World, device: &Device) -> Result<Option<Computing>, BenchError> {
        let Some(beside) = &self.beside else { return Ok(None) };
        for (&op, &ranks) in self.ops.iter().flat_map(|op| self.ranks.iter().map(move |n| (op, n)))
        {
            can_overlap(op, ranks, device.kind())?;
        }
        let takes_part = self.ranks.iter().any(|&ranks| world.rank() < ranks);
        takes_part.then(|| Computing::new(device, beside)).transpose()
    }

    /// Bytes of the two buffers that each rank has.
    pub fn buffer_bytes(&self) -> u64 {
        2 * self.sweep.to_bytes
    }
}

/// A type, a reduction and a root, where an operation has them.
type Way = (ElementType, Option<RedOp>, Option<usize>);

fn key(op: Op, (dtype, redop, root): Way, (bytes, ranks): (u64, usize), place: Place) -> Key {
    let extent = op.extent(bytes, dtype.bytes(), ranks, Parts::Exact);
    Key {
        op,
        dtype,
        redop,
        root,
        ranks: Some(ranks),
        bytes: extent.bytes,
        in_place: place == Place::In,
        algorithm: None,
        transport: None,
        ordered: op.reduces().then_some(true),
    }
}

/// Measures the plan, on every rank of a job; `tell` gets each row as soon as it is known, the same
/// on every rank that has a part in it. A case whose figures look impossible is measured again, and
/// told again.
///
/// # Errors
/// An operation that a group or the device refuses; a rank that fails or is late.
pub fn run(
    world: &World,
    device: &Device,
    plan: &Plan,
    tell: &mut dyn FnMut(Told) -> Result<(), BenchError>,
) -> Result<(), BenchError> {
    let mut used = None;
    tell(Told::Hosts(here::hosts(world, device)?))?;
    let computing = plan.computing(world, device)?;
    for &ranks in &plan.ranks {
        let others = (ranks..world.size()).collect::<Vec<_>>();
        let parts = [(0..ranks).collect(), others];
        let parts: Vec<Vec<usize>> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let group = world.split_with(device, &parts, plan.group)?;
        let member =
            (world.rank() < ranks).then(|| Member::new(&group, device, plan)).transpose()?;
        // On the host there is one way alone.
        let now = (!device.kind().is_host()).then(|| Used::of(&group, device));
        if let Some(now) = now.filter(|now| used.as_ref() != Some(now)) {
            tell(Told::Route(now.clone()))?;
            used = Some(now);
        }
        let keys = plan.keys(ranks)?;
        let mut measure_one = |plan: &Plan, key: &Key| {
            let (mut row, is_by_hosts) = measure(world, member.as_ref(), plan, key)?;
            if let Some(beside) = &plan.beside {
                let parts = member.as_ref().zip(computing.as_ref());
                overlap::measure(world, parts, (plan, beside), key, &mut row)?;
            }
            mark(&mut row, group.route(), (group.window_path(), is_by_hosts));
            tell(Told::Row(row.clone()))?;
            Ok::<_, BenchError>(row)
        };
        let rows = keys.iter().map(|key| measure_one(plan, key));
        let mut rows = rows.collect::<Result<Vec<Row>, BenchError>>()?;
        // All ranks have the same times, and so measure the same again. What is traced are the
        // first launches of a case.
        let untraced = Plan { trace: false, ..plan.clone() };
        for _ in 0..AGAIN {
            for index in plausible::doubtful(&rows) {
                rows[index] = measure_one(&untraced, &keys[index])?;
            }
        }
    }
    match computing.filter(|_| plan.check) {
        Some(computing) => computing.check(),
        None => Ok(()),
    }
}

/// Enters the transport, path and order of sums that the row was measured over.
fn mark(row: &mut Row, route: &Route, (windows, is_by_hosts): (Option<WindowPath>, bool)) {
    let is_ordered = route.sum == SumOrder::Ordered;
    row.key.transport = Some(route.transport.to_owned());
    row.key.ordered = row.key.ordered.map(|_| is_ordered);
    row.path = Some(match (windows, route.transport) {
        (Some(WindowPath::Symmetric), _) => Path::Symmetric,
        (Some(WindowPath::Registered), _) => Path::Registered,
        (Some(WindowPath::Plain), _) => Path::Plain,
        (None, "shm" | "staged-shm") => Path::Shm,
        (None, _) if is_by_hosts => Path::ByHosts,
        (None, _) => Path::Tcp,
    });
}

/// A rank that takes part.
struct Member<'a> {
    group: &'a Group,
    stream: Stream,
    buffers: Buffers,
    barrier: comm::Prepared,
}

impl<'a> Member<'a> {
    fn new(group: &'a Group, device: &Device, plan: &Plan) -> Result<Member<'a>, BenchError> {
        let bytes = usize::try_from(plan.sweep.to_bytes).unwrap_or(usize::MAX);
        let buffers = Buffers::new(group, bytes.next_multiple_of(8))?;
        let barrier = group.prepare(comm::Op::Barrier)?;
        Ok(Member { group, stream: device.stream(), buffers, barrier })
    }
}

/// One case, on every rank, and whether it went by hosts; ranks that have no part in it only hear
/// the stamps.
fn measure(
    world: &World,
    member: Option<&Member>,
    plan: &Plan,
    key: &Key,
) -> Result<(Row, bool), BenchError> {
    let mut case = member
        .map(|member| Case::new(member.group, &member.stream, &member.buffers, key))
        .transpose()?;
    let control = world.control(Channel::Training);
    let (mut sampler, mut combined) =
        (Sampler::new(plan.rule), Combined::new(key, plan.common_clock));
    let every = key.bytes.div_ceil(CHECK_BYTES).max(1);
    let most = plan.rule.iterations_max;
    let mut is_warm = plan.warmup == 0;
    let mut next = if is_warm { BATCH_FIRST.min(most) } else { plan.warmup.min(BATCH_MAX) };
    let mut launch = 0_u64;
    loop {
        let mut batch = Batch::default();
        for _ in 0..next {
            if let (Some(member), Some(case)) = (member, &mut case) {
                // The first that is timed is always among them.
                let checked = plan.check && launch.abs_diff(plan.warmup).is_multiple_of(every);
                let flip = plan.flip_at == Some(launch) && member.group.place() == 0;
                let is_traced = plan.trace && is_warm && launch - plan.warmup < TRACED;
                let name = is_traced.then(|| key.op.word());
                batch.add(member.launch(case, checked.then_some(launch), flip, name)?);
            }
            launch += 1;
        }
        let all = control.all_gather_bytes(&batch.bytes()?)?;
        // Fast operations leave no other sign of it.
        device::work::mark();
        let times = combined.add(&all, is_warm)?;
        let stop = times.iter().filter_map(|&time| sampler.push(time)).count() > 0;
        if is_warm && stop {
            break;
        }
        is_warm = launch >= plan.warmup;
        let typical = combined.typical_us().max(0.05);
        // Some are left, or the sampler would have stopped.
        let left = match is_warm {
            true => most - sampler.samples_us().len() as u64,
            false => plan.warmup - launch,
        };
        next = ((BATCH_US / typical) as u64).clamp(BATCH_FIRST, BATCH_MAX).min(left);
    }
    let is_by_hosts = case.is_some_and(|case| case.is_by_hosts());
    Ok((combined.row(key, sampler, plan), is_by_hosts))
}

/// One launch on one rank.
#[derive(Debug, Clone, PartialEq)]
struct Launch {
    arrived_ns: u64,
    done_ns: u64,
    /// Of a launch that was checked: wrong elements, and the first of them.
    checked: Option<(u64, Option<case::Bad>)>,
}

impl Member<'_> {
    /// In the trace under `traced`, if that is a name.
    fn launch(
        &self,
        case: &mut Case,
        salt: Option<u64>,
        flip: bool,
        traced: Option<&'static str>,
    ) -> Result<Launch, BenchError> {
        if let Some(salt) = salt {
            case.fill(salt)?;
        }
        self.group.call(&self.stream, &self.barrier)?;
        trace::switch(traced.is_some());
        let arrived_ns = clock::now_ns();
        case.launch(self.group)?;
        let done_ns = clock::now_ns();
        if let Some(name) = traced {
            let (begin_ns, end_ns) = (arrived_ns, done_ns);
            trace::record(Span { name, begin_ns, end_ns, detail: Detail::Part });
            trace::switch(false);
        }
        if flip {
            case.flip()?;
        }
        let checked = salt.map(|salt| case.check(salt)).transpose()?;
        Ok(Launch { arrived_ns, done_ns, checked })
    }
}
