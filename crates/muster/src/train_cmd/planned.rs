//! The plan of a start, before anything is read or written: of all hosts, and anew of those that
//! remain where one is gone.

use std::path::{Path, PathBuf};

use comm::BackendWord;
use data::Prepared;
use train::RunPlan;
use train::config::{Config, RanksConfig};
use train::event::{Corpus, Offload};

use super::address::{self, Addresses};
use super::buckets::{self, Buckets};
use super::fit::{self, Fit, Start};
use super::offload;
use super::place::{Place, Share};
use super::restart;
use super::room;
use crate::config::Loaded;
use crate::cpus::{Binding, Near};
use crate::error::CliError;
use crate::launch_env::Hosts;
use crate::limits;
use crate::run_dir::RunDir;
use crate::secret::JobSecret;
use crate::tls::JobTls;

/// The part that is the same in every start of a run.
pub struct Frame {
    pub config: Config,
    /// As the command or a launcher says it.
    pub hosts: Hosts,
    pub addresses: Addresses,
    /// The name of the job among hosts, if there are several.
    pub name: Option<String>,
    pub secret: JobSecret,
    pub tls: JobTls,
    vocab: usize,
    gradient_bytes: u64,
    topology: Option<PathBuf>,
}

/// The plan of a start.
pub struct Planned {
    pub frame: Frame,
    /// Ranks of all hosts.
    pub world: usize,
    pub place: Place,
    pub plan: RunPlan,
    pub buckets: Buckets,
    pub threads: usize,
    pub cpus: Binding,
    /// Whether the memory of this host suffices, and a warning where it is tight.
    pub fit: Result<Option<String>, String>,
    /// The optimizer's part of a device of its own, or why it cannot be there.
    pub offload: Result<Option<Offload>, CliError>,
}

impl Planned {
    /// As it is, if it can be.
    ///
    /// # Errors
    /// The part that does not fit.
    pub fn that_fits(mut self) -> Result<Planned, CliError> {
        self.offload = Ok(self.offload?);
        match &self.fit {
            Ok(_) => Ok(self),
            Err(why) => Err(CliError::mistake(why)),
        }
    }
}

/// The plan of the first start, on all hosts.
///
/// # Errors
/// The user's mistake.
pub fn plan(
    hosts: &Hosts,
    loaded: Loaded,
    (secret, tls): (JobSecret, JobTls),
    topology: Option<&Path>,
) -> Result<Planned, CliError> {
    let config = loaded.config;
    // Before the addresses: they are of hosts that there are.
    Place::new(hosts, config.ranks.count, config.ranks.backend == BackendWord::Shm)?;
    let addresses = Addresses::new(hosts)?;
    let name = (hosts.nodes > 1).then(|| address::job(hosts));
    let vocab = loaded.resolved.tokenizer.vocab_size();
    let gradient_bytes = 4 * loaded.resolved.schema.parameters() as u64;
    let (hosts, topology) = (hosts.clone(), topology.map(Path::to_owned));
    let all: Vec<usize> = (0..hosts.nodes).collect();
    let frame =
        Frame { config, hosts, addresses, name, secret, tls, vocab, gradient_bytes, topology };
    frame.on(&all)
}

impl Frame {
    /// The plan of a start on these hosts, by their numbers at the beginning, in the order of their
    /// ranks; this one is among them. Each has as many ranks as before.
    ///
    /// # Errors
    /// Something that they cannot do.
    pub fn on(self, members: &[usize]) -> Result<Planned, CliError> {
        let Frame { config, hosts, vocab, gradient_bytes, topology, .. } = &self;
        let nodes = members.len();
        let node = members.iter().position(|&member| member == hosts.node).unwrap_or(hosts.node);
        let world = config.ranks.count / hosts.nodes.max(1) * nodes;
        // A number that does not divide over all hosts is refused there, as it was given.
        let world = if nodes == hosts.nodes { config.ranks.count } else { world };
        let is_shm = config.ranks.backend == BackendWord::Shm;
        let place = Place::new(&Hosts { nodes, node, ..hosts.clone() }, world, is_shm)?;
        let share = place.of_cores();
        let threads = place.threads(config.ranks.threads);
        limits::check_threads(share.ranks, threads, share.parts)?;
        let near = config.ranks.optimizer_device.kind().map_or(Near::Memory, |_| Near::Shared);
        let cpus = Binding::new(config.ranks.cpus, &place, threads, near, topology.as_deref());
        let run = RunDir::new(config.runs_dir.join(&config.name));
        let site = (place.nodes, transport(&place, config));
        let ranks = RanksConfig { count: world, ..config.ranks.clone() };
        let buckets = buckets::resolve(&ranks, &run, site, *gradient_bytes)?;
        let plan = RunPlan::with_buckets(config, *vocab, world, threads, buckets.bytes)?;
        let fit = memory(config, &plan, *vocab, &place);
        let offload = offload::plan(config, &plan, place.ranks.clone());
        Ok(Planned { frame: self, world, place, plan, buckets, threads, cpus, fit, offload })
    }

    /// Whether the supervisors of several hosts start their ranks again together.
    pub fn is_supervised(&self) -> bool {
        self.hosts.nodes > 1 && self.config.ranks.restarts > 0
    }
}

/// Compares the plan with the memory of this host: a warning, or why the run cannot be.
fn memory(
    config: &Config,
    plan: &RunPlan,
    vocab: usize,
    place: &Place,
) -> Result<Option<String>, String> {
    let Share { ranks: local, parts: nodes } = place.of_machine();
    let peak_bytes = plan.peak_bytes();
    let start = Start { config, plan, peak_bytes, vocab, nodes, local };
    match fit::fit(&start, &room::limits()) {
        Fit::Fits => Ok(None),
        Fit::Tight(why) => Ok(Some(why)),
        Fit::Impossible(why) => Err(why),
    }
}

/// As the group of all ranks names what connects it.
fn transport(place: &Place, config: &Config) -> &'static str {
    match (config.ranks.backend, sharing(place, config)) {
        (BackendWord::Shm, _) => BackendWord::Shm.word(),
        (BackendWord::Tcp, None) => BackendWord::Tcp.word(),
        (BackendWord::Tcp, Some(_)) => "shm+tcp",
    }
}

/// How many ranks of each host share memory beside tcp.
pub fn sharing(place: &Place, config: &Config) -> Option<usize> {
    let ranks = &config.ranks;
    place.sharing(ranks.backend == BackendWord::Tcp, ranks.within_host == BackendWord::Shm)
}

/// The header of a run.
///
/// # Errors
/// A plan that cannot be told.
pub fn header(
    (plan, place, cpus, buckets): (&RunPlan, &Place, &Binding, String),
    config: &Config,
    prepared: Option<&Prepared>,
    run: &RunDir,
    offload: Option<Offload>,
) -> Result<train::event::Header, CliError> {
    let hex = |bytes: [u8; 32]| blake3::Hash::from(bytes).to_hex().to_string();
    let sources = prepared.map(|prepared| prepared.sources.as_slice()).unwrap_or_default();
    let corpus = sources.iter().map(|source| Corpus {
        name: source.name.clone(),
        tokens: source.tokens,
        documents: source.documents,
        bytes: source.bytes,
        left_out: data::left_out(source.empty_documents, source.blank_lines),
        weight: source.weight,
        digest: hex(if source.text_files > 0 { source.text_digest } else { source.digest }),
    });
    let config_digest = blake3::hash(&serde_json::to_vec(config).map_err(CliError::bug)?);
    let data_digest = prepared.map(|prepared| hex(prepared.digest)).unwrap_or_default();
    let digests = (config_digest.to_hex().to_string(), data_digest);
    let run_dir = run.root().display().to_string();
    let of_run = (run_dir, buckets);
    let mut header = plan.header(config, corpus.collect(), digests, of_run, offload)?;
    header.cpus.clone_from(&cpus.why);
    header.restarts = restart::words(&config.ranks, place.nodes);
    if let Some(each) = sharing(place, config) {
        header.backend = format!("shm+tcp {} × {each}", place.nodes);
        if let Some(factor) = plan.byte_factor_by_hosts(each, comm::BY_HOSTS_BYTES) {
            // More than one partial of any host is more than a ring.
            (header.free, header.byte_factor) = (factor <= 1.0, factor);
            header.hosts = Some(place.nodes);
        }
    }
    Ok(header)
}
