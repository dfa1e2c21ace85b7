//! The command line of `muster bench collectives`.

use std::path::PathBuf;

use ::bench::collectives::roofline::KnownLink;
use ::bench::collectives::run::{Beside, Place, Plan, can_overlap, reduction, supports};
use ::bench::collectives::{ElementType, Op, RedOp, Step, StopRule, Sweep, parse_size};
use ::bench::{BatchShape, BenchError};
use clap::{Args, ValueEnum};
use comm::{BackendWord, DeviceTransport, GroupOptions, SumOrder};
use device::DeviceKind;

use super::{HostArgs, ReportArgs, backend, timeout_ms};
use crate::error::CliError;
use crate::limits::cores;

#[derive(Debug, Args)]
pub struct CollectivesArgs {
    /// Operations: all_reduce, reduce_scatter, all_gather, broadcast, reduce, gather, scatter,
    /// all_to_all, send_recv, barrier; the first four by default
    #[arg(value_name = "OP", value_parser = operation)]
    pub operations: Vec<Op>,
    /// Operations, too, in one argument
    #[arg(long, value_name = "OP,…", value_delimiter = ',', value_parser = operation)]
    pub ops: Vec<Op>,
    /// Worker processes of all hosts; by default one per task of a launcher, or per core of this
    /// host
    #[arg(long, value_name = "N")]
    pub ranks: Option<usize>,
    /// Also measure among the first so many ranks, for each of these numbers
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub ranks_sweep: Vec<usize>,
    /// Backend that connects the ranks
    #[arg(long, default_value = "shm", value_parser = backend())]
    pub backend: BackendWord,
    /// Backend of ranks of one host, where `--backend tcp` connects several hosts
    #[arg(long, value_name = "BACKEND", default_value = "shm", value_parser = backend())]
    pub within_host: BackendWord,
    /// Where the buffers of a host's ranks lie: `cpu`, `cuda:N`, `hip:N`, `sim`, `sim:ARCH`; of
    /// several each rank has one in turn. Times on a simulated device mean nothing
    #[arg(long, value_name = "DEVICE,…", value_delimiter = ',', default_value = "cpu")]
    pub device: Vec<DeviceKind>,
    /// Transport of GPU memory: auto, staged (through the host), nccl, rccl
    #[arg(long, value_name = "TRANSPORT", default_value = "auto")]
    pub transport: DeviceTransport,
    /// Who makes sums: ordered (their owner, the same bits at any number of ranks), or vendor
    /// (NCCL or RCCL, in an order of its own)
    #[arg(long, value_name = "ORDER", default_value = "ordered")]
    pub sum: SumOrder,
    /// Threads per rank; 0 divides the cores among the ranks
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// The smallest size. K, M, G and KiB, MiB, GiB are binary; KB, MB, GB decimal
    #[arg(long, value_name = "BYTES", default_value = "8", value_parser = size)]
    pub min: u64,
    /// The largest size
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = size)]
    pub max: u64,
    /// Each size is so many times the one before
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "step")]
    pub factor: u64,
    /// Each size is so many bytes more than the one before
    #[arg(long, value_name = "BYTES", value_parser = size)]
    pub step: Option<u64>,
    /// Measure each size less and more one element, too
    #[arg(long)]
    pub odd: bool,
    /// Types of elements: f32, f64, bf16, f16, i32, i64, u8; where nothing is reduced, any
    #[arg(
        long,
        alias = "dtype",
        value_name = "DTYPE,…",
        value_delimiter = ',',
        default_value = "f32"
    )]
    pub dtypes: Vec<ElementType>,
    /// Reductions: sum, prod, min, max, avg
    #[arg(
        long,
        alias = "redop",
        value_name = "REDOP,…",
        value_delimiter = ',',
        default_value = "sum"
    )]
    pub redops: Vec<RedOp>,
    /// Where results go
    #[arg(long, value_name = "PLACE", default_value = "both")]
    pub place: PlaceArg,
    /// The ranks that others receive from or give to, each measured; `all` for each rank in turn
    #[arg(long, alias = "root", value_name = "R,…", value_delimiter = ',', default_value = "0")]
    pub roots: Vec<RootArg>,
    /// Launches that are not counted
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub warmup: u64,
    /// Launches of a case, at most
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub iterations: u64,
    /// Seconds of measured operations of a case, at most
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub seconds: f64,
    /// A case is measured until the 95 % interval of its median is this close around it
    #[arg(long, value_name = "PERCENT", default_value_t = 1.0)]
    pub within: f64,
    /// Do not check results
    #[arg(long)]
    pub no_check: bool,
    /// Measure each case beside Newton-Schulz, too: what each takes alone and together
    #[arg(long)]
    pub overlap: bool,
    /// Shape that each rank orthogonalizes with --overlap, as ROWSxCOLS or COUNTxROWSxCOLS
    #[arg(long, value_name = "SHAPE", default_value = "2x256x1024")]
    pub overlap_shape: BatchShape,
    /// The link whose published figures bound the bandwidth: nvlink4, mi300x-xgmi, pollara400, ndr,
    /// hdr; by default that of the devices, or the memory of the host, where one of them is known
    #[arg(long, value_name = "NAME", value_parser = link)]
    pub link: Option<&'static KnownLink>,
    /// Write the fitted curves as a table that `train` reads (`ranks.links`); `auto` is the place
    /// in the user's cache where it looks by itself
    #[arg(long, value_name = "FILE|auto")]
    pub links: Option<PathBuf>,
    /// Write the first hundred timed launches of each case, on all ranks, as a trace for
    /// ui.perfetto.dev or chrome://tracing (docs/trace.md): a file that ends in .json or .json.gz,
    /// or a directory for trace.json; of several hosts one each
    #[arg(long, value_name = "FILE|DIR")]
    pub trace: Option<PathBuf>,
    /// How long a rank may stand still, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 30_000, value_parser = timeout_ms)]
    pub timeout_ms: u64,
    #[command(flatten)]
    pub hosts: HostArgs,
    #[command(flatten)]
    pub files: ReportArgs,
    /// Flip a bit of a result of rank 0, in its launch of this number
    #[arg(long, value_name = "N", hide = true)]
    pub flip_at: Option<u64>,
}

/// A root, or each rank in turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootArg {
    All,
    Rank(usize),
}

impl std::str::FromStr for RootArg {
    type Err = String;

    fn from_str(word: &str) -> Result<RootArg, String> {
        match word {
            "all" => Ok(RootArg::All),
            rank => rank
                .parse()
                .map(RootArg::Rank)
                .map_err(|_| format!("`{rank}` is no rank; use a number, or all")),
        }
    }
}

/// Where results go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlaceArg {
    /// Over the inputs
    In,
    /// Into memory of their own
    Out,
    /// Each where an operation has it
    Both,
}

impl CollectivesArgs {
    /// Whether the devices have what was asked for.
    fn check_devices(&self) -> Result<(), CliError> {
        let is_gpu = |kind: &DeviceKind| matches!(kind, DeviceKind::Cuda(_) | DeviceKind::Hip(_));
        let Some(other) = self.device.iter().find(|kind| !is_gpu(kind)) else { return Ok(()) };
        let libraries = [DeviceTransport::Nccl, DeviceTransport::Rccl];
        if libraries.contains(&self.transport) {
            let transport = self.transport;
            return Err(CliError::mistake(format!(
                "--transport {transport}: {other} has no such library; use --device cuda:0 or \
                 hip:0, or leave the transport out"
            )));
        }
        match self.sum {
            SumOrder::Ordered => Ok(()),
            SumOrder::Vendor => Err(CliError::mistake(format!(
                "--sum vendor: {other} has no library of a vendor; use --device cuda:0 or hip:0, \
                 or leave it out"
            ))),
        }
    }

    /// Ranks of all hosts: by default those tasks that a launcher started, or a rank per core.
    ///
    /// # Errors
    /// None, or a sweep beyond them.
    pub fn world(&self, tasks: Option<usize>) -> Result<usize, CliError> {
        if self.ranks_sweep.contains(&0) {
            return Err(CliError::mistake("--ranks-sweep 0; use 1 or more"));
        }
        let most = self.ranks_sweep.iter().copied().max();
        let world = self.ranks.or(most).or(tasks).unwrap_or_else(cores);
        match (world, self.ranks_sweep.iter().find(|&&ranks| ranks > world)) {
            (0, _) => Err(CliError::mistake("--ranks 0; use 1 or more")),
            (_, Some(ranks)) => Err(CliError::mistake(format!(
                "--ranks-sweep {ranks}: there are {world} ranks; use 1 to {world}"
            ))),
            (world, None) => Ok(world),
        }
    }

    /// Those that were asked for, in either way.
    fn all_ops(&self) -> Vec<Op> {
        let asked: Vec<Op> = self.operations.iter().chain(&self.ops).copied().collect();
        match asked.is_empty() {
            true => vec![Op::AllReduce, Op::ReduceScatter, Op::AllGather, Op::Broadcast],
            false => asked,
        }
    }

    fn check_types(&self, ops: &[Op]) -> Result<(), CliError> {
        let refuse = |what: String| Err(CliError::mistake(what));
        for &op in ops {
            if let Some(&dtype) = self.dtypes.iter().find(|&&dtype| !supports(op, dtype)) {
                let can = |dtype: &&ElementType| supports(op, **dtype);
                let all = ElementType::ALL;
                let types: Vec<String> = all.iter().filter(can).map(|d| d.to_string()).collect();
                return refuse(format!("--dtypes {dtype}: {op} takes {}", types.join(", ")));
            }
        }
        if let Some(redop) = self.redops.iter().find(|&&redop| reduction(redop).is_none()) {
            let can = RedOp::ALL.into_iter().filter(|&redop| reduction(redop).is_some());
            let can: Vec<&str> = can.map(RedOp::word).collect();
            return refuse(format!("--redops {redop} is not offered; use {}", can.join(", ")));
        }
        Ok(())
    }

    /// The plan of the measurement.
    ///
    /// # Errors
    /// An operation or type that cannot be measured; numbers out of range.
    pub fn plan(&self, world: usize, nodes: usize) -> Result<Plan, CliError> {
        let refuse = |what: String| Err(CliError::mistake(what));
        let ops = self.all_ops();
        self.check_types(&ops)?;
        self.check_devices()?;
        let roots = self.all_roots(world)?;
        if !(self.within > 0.0 && self.within < 100.0) {
            return refuse(format!("--within {}; use percent above 0, such as 1", self.within));
        }
        if !(self.seconds > 0.0 && self.seconds.is_finite()) {
            return refuse(format!("--seconds {}; use seconds above 0, such as 1", self.seconds));
        }
        if self.iterations == 0 {
            return refuse("--iterations 0; use 1 or more".into());
        }
        let step = self.step.map_or(Step::Factor(self.factor), Step::Bytes);
        let mut ranks = self.ranks_sweep.clone();
        ranks.push(world);
        ranks.sort_unstable();
        ranks.dedup();
        let iterations_min = StopRule::default().iterations_min.min(self.iterations);
        Ok(Plan {
            beside: self.beside(&ops, &ranks)?,
            ops,
            dtypes: self.dtypes.clone(),
            redops: self.redops.clone(),
            roots,
            sweep: Sweep { from_bytes: self.min, to_bytes: self.max, step, odd: self.odd },
            ranks,
            places: match self.place {
                PlaceArg::In => vec![Place::In],
                PlaceArg::Out => vec![Place::Out],
                PlaceArg::Both => vec![Place::Out, Place::In],
            },
            warmup: self.warmup,
            rule: StopRule {
                half_width: self.within / 100.0,
                iterations_min,
                iterations_max: self.iterations,
                seconds_max: self.seconds,
                ..StopRule::default()
            },
            check: !self.no_check,
            common_clock: nodes == 1,
            group: GroupOptions { transport: self.transport, sum: self.sum },
            flip_at: self.flip_at,
            trace: self.trace.is_some(),
        })
    }

    /// The roots of any of the groups.
    fn all_roots(&self, world: usize) -> Result<Vec<usize>, CliError> {
        let least = self.ranks_sweep.iter().copied().min().map_or(world, |few| few.min(world));
        let mut roots = Vec::new();
        for root in &self.roots {
            match *root {
                RootArg::All => roots.extend(0..world),
                RootArg::Rank(root) if root < least => roots.push(root),
                RootArg::Rank(root) => {
                    let last = least - 1;
                    return Err(CliError::mistake(format!(
                        "--roots {root} is no rank of {least}; use 0 to {last}, or all"
                    )));
                }
            }
        }
        Ok(roots)
    }

    /// The computation that operations are measured beside, if all of them can be.
    fn beside(&self, ops: &[Op], ranks: &[usize]) -> Result<Option<Beside>, CliError> {
        if !self.overlap {
            return Ok(None);
        }
        for &op in ops {
            for &ranks in ranks {
                for &kind in &self.device {
                    can_overlap(op, ranks, kind).map_err(BenchError::from)?;
                }
            }
        }
        Ok(Some(Beside { shape: self.overlap_shape.to_string() }))
    }
}

/// One that can be measured.
fn operation(name: &str) -> Result<Op, String> {
    let can = |op: &Op| ElementType::ALL.into_iter().any(|dtype| supports(*op, dtype));
    let offered: Vec<Op> = Op::ALL.into_iter().filter(can).collect();
    Op::among(name, &offered).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn link(name: &str) -> Result<&'static KnownLink, String> {
    KnownLink::named(name).map_err(|error| error.to_string())
}
