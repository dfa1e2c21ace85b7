//! The decisions of `train` for its workers, in one file of the run's directory.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use comm::rendezvous::Entries;
use data::Prepared;
use device::Device;
use serde::{Deserialize, Serialize};
use train::config::{Config, Cpus, Links, OptimizerDevice, TlsFiles};

use super::offload;
use crate::cpus::Binding;
use crate::entries::entries;
use crate::error::CliError;
use crate::trace;

/// The name of the command that all ranks run, as an entry.
pub const COMMAND: &str = "command";

/// The entry that ranks have the same unless `ranks.mixed_cpus` says otherwise.
pub const KIND_OF_CPU: &str = "kind of CPU";

/// And, whatever it says, where the optimizer is: of a device the kind, without its number.
pub const OPTIMIZER_DEVICE: &str = "ranks.optimizer_device";

/// The entry with the part of their configs that hosts must have the same.
const CONFIGURATION: &str = "configuration";

/// The entry with the size of buckets, which hosts choose from tables of their own, and must choose
/// alike.
pub const BUCKETS: &str = "size of buckets";

/// A start of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// Keeps strangers apart; on one host new for each start.
    pub name: String,
    pub config: Config,
    pub prepared: Prepared,
    /// Ranks of all hosts.
    pub world: usize,
    /// The so manyth start of the job's ranks, from 0, where its hosts start them together.
    #[serde(default)]
    pub incarnation: u64,
    /// The number of this host, and of how many, if there are several.
    #[serde(default)]
    pub node: Option<(usize, usize)>,
    pub threads: usize,
    /// Which CPUs this host's ranks are bound to.
    pub cpus: Binding,
    /// Bytes of a bucket of gradients.
    pub bucket_bytes: usize,
    /// Where the ranks meet: any of these addresses.
    pub rendezvous: Vec<SocketAddr>,
    /// The number under which the ranks inherit the memory that they share.
    pub shared_memory: Option<i32>,
    /// Where ranks share memory beside tcp: how many on each host.
    #[serde(default)]
    pub sharing: Option<usize>,
    /// Where a rank listens for its peers.
    pub bind: IpAddr,
    pub checkpoints: PathBuf,
    pub max_steps: Option<u64>,
    /// Whether rank 0 times its operations.
    #[serde(default)]
    pub profile: bool,
    /// The trace that the ranks record.
    #[serde(default)]
    pub trace: Option<trace::Plan>,
    /// Of this host, where the job has several.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
}

impl Job {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), CliError> {
        let text = serde_json::to_vec_pretty(self).map_err(CliError::bug)?;
        std::fs::write(path, text)
            .map_err(|error| CliError::mistake(format!("cannot write {}: {error}", path.display())))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a job of this version.
    pub fn read(path: &Path) -> Result<Job, CliError> {
        let failed = |error: &dyn std::fmt::Display| {
            CliError::mistake(format!(
                "cannot read the job {}: {error}; workers are started by `muster train`",
                path.display()
            ))
        };
        let text = std::fs::read(path).map_err(|error| failed(&error))?;
        serde_json::from_slice(&text).map_err(|error| failed(&error))
    }

    /// Which steps are recorded, in words.
    fn traced(&self) -> String {
        let Some(plan) = &self.trace else { return "none".into() };
        plan.steps.map_or("ten steps".into(), |steps| format!("steps {steps}"))
    }

    /// The entries that all ranks must have the same: name and digest. `cpu` is the kind that this
    /// rank runs on, as [`kernels::gemm::arithmetic`] tells it.
    pub fn identity(
        &self,
        plan: &train::RunPlan,
        cpu: String,
        optimizer: Option<&Device>,
    ) -> Vec<(String, String)> {
        let hex = |bytes: [u8; 32]| blake3::Hash::from(bytes).to_hex()[..16].to_owned();
        let config = serde_json::to_vec(&self.common_config()).unwrap_or_default();
        let mut identity = vec![
            ("build".into(), train::BUILD.into()),
            (COMMAND.into(), "muster train".into()),
            ("name of the run".into(), self.config.name.clone()),
            (OPTIMIZER_DEVICE.into(), optimizer.map_or("cpu".into(), offload::kind)),
            (CONFIGURATION.into(), hex(*blake3::hash(&config).as_bytes())),
            ("data".into(), hex(self.prepared.digest)),
            (BUCKETS.into(), self.bucket_bytes.to_string()),
            ("model".into(), hex(plan.schema.digest())),
            ("ownership plan".into(), hex(plan.ownership.digest())),
            // Comparing clocks takes all of them.
            ("--trace".into(), self.traced()),
            ("--max-steps".into(), self.max_steps.map_or("none".into(), |most| most.to_string())),
        ];
        if !self.config.ranks.mixed_cpus {
            // Whole, so that a refusal shows in what the CPUs differ.
            identity.push((KIND_OF_CPU.into(), cpu));
        }
        identity
    }

    /// The entries behind a digest there; of several hosts the first rank of each tells them.
    pub fn entries(&self, rank: usize) -> Vec<(String, Entries)> {
        let first = self.node.map(|(node, nodes)| node * (self.world / nodes.max(1)));
        match first == Some(rank) {
            true => vec![(CONFIGURATION.to_owned(), entries(&self.common_config()))],
            false => Vec::new(),
        }
    }

    /// The part of their configs that all hosts have the same.
    fn common_config(&self) -> Config {
        // Hosts may number their devices as they like; of what kind they are is compared apart.
        let mut config = self.config.clone();
        config.ranks.optimizer_device = OptimizerDevice::default();
        // And have their files where they like; that secret and authority are the same is proved.
        config.ranks.secret_file = None;
        config.ranks.tls = None;
        // Tables of links may lie elsewhere on each host; what they decide is compared.
        config.ranks.links = Links::default();
        // And no bit depends on which CPU of a host computes what.
        config.ranks.cpus = Cpus::default();
        config
    }
}

#[cfg(test)]
mod tests {
    use comm::rendezvous::{Hello, Server, join};
    use data::{Prepared, TokenizerSpec};

    use super::*;

    fn job(mixed_cpus: bool) -> Job {
        let mut config = Config::default();
        config.model.preset = Some(model::Preset::TinyMoe);
        config.ranks.mixed_cpus = mixed_cpus;
        let prepared = Prepared {
            sources: Vec::new(),
            tokenizer: TokenizerSpec::Byte,
            tokenizer_name: "byte".into(),
            tokenizer_digest: [0; 32],
            vocab_size: 257,
            end_of_text: 256,
            digest: [0; 32],
        };
        Job {
            name: "job".into(),
            config,
            prepared,
            world: 2,
            node: None,
            incarnation: 0,
            threads: 1,
            cpus: Binding::default(),
            bucket_bytes: 32 << 20,
            rendezvous: vec![([127, 0, 0, 1], 0).into()],
            shared_memory: None,
            sharing: None,
            bind: [127, 0, 0, 1].into(),
            checkpoints: PathBuf::new(),
            max_steps: None,
            profile: false,
            trace: None,
            tls: None,
        }
    }

    /// Two ranks on these CPUs meet; what each of them is told.
    fn meet(mixed_cpus: bool, cpus: [&str; 2]) -> Vec<Result<(), String>> {
        meet_as([job(mixed_cpus), job(mixed_cpus)], cpus)
    }

    /// As [`meet`], of what each rank's host decided.
    fn meet_as(jobs: [Job; 2], cpus: [&str; 2]) -> Vec<Result<(), String>> {
        let job = &jobs[0];
        let plan = train::RunPlan::new(&job.config, 257, job.world, job.threads).unwrap();
        let server = Server::bind(&job.rendezvous[..], &job.name, 2, 60_000).unwrap();
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..2)
                .map(|rank| {
                    let hello = Hello {
                        job: job.name.clone(),
                        rank,
                        world: job.world,
                        version: "1.0".into(),
                        identity: jobs[rank].identity(&plan, cpus[rank].to_owned(), None),
                        entries: jobs[rank].entries(rank),
                        ..Hello::default()
                    };
                    let addr = server.addr();
                    scope.spawn(move || join(addr, hello, 60_000).map(|met| met.control.bye()))
                })
                .collect();
            let told = ranks.into_iter().map(|rank| rank.join().unwrap());
            told.map(|told| told.map_err(|error| CliError::from(error).message)).collect()
        })
    }

    #[test]
    fn devices_of_one_kind_may_have_any_number() {
        let (mut first, mut second) = (job(false), job(false));
        let kind = |name: &str| serde_json::from_value(name.into()).unwrap();
        first.config.ranks.optimizer_device = kind("cuda:0");
        second.config.ranks.optimizer_device = kind("cuda:1");
        let plan = train::RunPlan::new(&first.config, 257, 2, 1).unwrap();
        let sim = |arch| Device::sim(arch, 1, device::SimOptions::default()).unwrap();
        let of = |job: &Job, device: Option<&Device>| job.identity(&plan, "cpu".into(), device);
        let hopper = sim(device::Arch::Sm90a);
        assert_eq!(of(&first, Some(&hopper)), of(&second, Some(&sim(device::Arch::Sm90a))));
        let instinct = of(&second, Some(&sim(device::Arch::Gfx942)));
        let [first, second] = [of(&first, None), instinct].map(|identity| identity[3].clone());
        assert_eq!(first, ("ranks.optimizer_device".to_owned(), "cpu".to_owned()));
        assert_eq!(second, ("ranks.optimizer_device".to_owned(), "sim:gfx942".to_owned()));
    }

    #[test]
    fn configs_that_differ_are_told_by_the_first_key() {
        let jobs = [6, 7].map(|steps| {
            let mut job = job(false);
            job.config.train.steps = steps;
            job.node = Some((steps as usize - 6, 2));
            job
        });
        for told in meet_as(jobs, ["cpu"; 2]) {
            let said = "the ranks differ in train.steps of the configuration: 6 on rank 0, 7 on \
                        rank 1; start every rank with the same train.steps of the configuration";
            assert_eq!(told.unwrap_err(), said);
        }
    }

    #[test]
    fn a_host_may_bind_its_ranks_as_it_likes() {
        let (first, mut second) = (job(false), job(false));
        second.config.ranks.cpus = Cpus::Any;
        let plan = train::RunPlan::new(&first.config, 257, 2, 1).unwrap();
        let of = |job: &Job| job.identity(&plan, "cpu".into(), None);
        assert_eq!(of(&first), of(&second));
    }

    #[test]
    fn hosts_that_chose_other_buckets_are_refused() {
        let other = Job { bucket_bytes: 1 << 20, ..job(false) };
        for told in meet_as([job(false), other], ["x86_64 fma"; 2]) {
            assert_eq!(
                told.unwrap_err(),
                "the ranks differ in size of buckets: 33554432 on rank 0, 1048576 on rank 1; start \
                 every rank with the same size of buckets: give every host the same table \
                 (ranks.links), or a size (ranks.bucket_bytes)"
            );
        }
    }

    #[test]
    fn another_kind_of_cpu_is_refused_unless_the_config_allows_it() {
        let cpus = ["x86_64 avx512f", "x86_64 fma"];
        for told in meet(false, cpus) {
            assert_eq!(
                told.unwrap_err(),
                "the ranks differ in kind of CPU: x86_64 avx512f on rank 0, x86_64 fma on rank 1; \
                 start every rank with the same kind of CPU, or let bits depend on the hosts \
                 (ranks.mixed_cpus: true)"
            );
        }
        assert_eq!(meet(true, cpus), [Ok(()), Ok(())]);
        assert_eq!(meet(false, ["x86_64 fma"; 2]), [Ok(()), Ok(())]);
    }
}
