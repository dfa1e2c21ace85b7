//! Ranks as processes: what they are started with, and what they have said.

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use comm::rendezvous::{Hello, Server, join};
use comm::shm::SharedMemory;
use comm::{Backend, World};
use device::{Device, DeviceKind};
use kernels::gpu::modules::Family;
use kernels::modules::{file_name, image};

use crate::common::PATIENCE_MS;

pub const VENDORS: [&str; 2] = ["cuda", "hip"];

/// The names of a vendor's driver and of its kernels' images, and what stands in for those.
fn names(vendor: &str) -> (&'static str, &'static str, &'static str) {
    match vendor {
        "cuda" => ("libcuda.so.1", "cuda", "sim-sm_90a"),
        _ => ("libamdhip64.so.6", "gfx942", "sim-gfx942"),
    }
}

/// A task for several ranks.
pub struct Job {
    task: String,
    vendor: String,
    ranks: usize,
    backend: String,
    timeout_ms: u64,
    environment: Vec<(Option<usize>, String, String)>,
    dir: tempfile::TempDir,
    library: PathBuf,
}

/// The output of one process, on both streams.
pub struct Said {
    pub text: String,
    pub output: Output,
    bits: Option<Vec<u8>>,
}

impl Said {
    #[track_caller]
    pub fn without_complaint(&self) {
        assert!(!self.text.contains("lookalike: "), "{}", self.text);
    }

    /// The rest of the line that begins with `word`.
    #[track_caller]
    pub fn line(&self, word: &str) -> &str {
        let mut lines = self.text.lines();
        let found = lines.find_map(|line| line.strip_prefix(word)?.strip_prefix(' '));
        found.unwrap_or_else(|| panic!("it did not say `{word}`:\n{}", self.text))
    }

    #[track_caller]
    pub fn bits(&self) -> Vec<u32> {
        let bytes = self.bits.as_ref().expect("it has written its memory");
        bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect()
    }
}

impl Job {
    /// `None`, said once, where the build has no simulated kernels.
    pub fn new(task: &str, vendor: &str, ranks: usize) -> Option<Job> {
        let dir = tempfile::tempdir().unwrap();
        let (_, target, stand_in) = names(vendor);
        match image(stand_in, Family::OrderedSum.name()) {
            Ok(image) => {
                let name = file_name(target, Family::OrderedSum.name());
                std::fs::write(dir.path().join(name), image).unwrap();
            }
            Err(error) => {
                eprintln!("nothing was tested: {error}");
                return None;
            }
        }
        let library = lookalike::library().unwrap();
        let (task, vendor) = (task.to_owned(), vendor.to_owned());
        let (backend, environment) = ("shm".to_owned(), Vec::new());
        let timeout_ms = PATIENCE_MS;
        Some(Job { task, vendor, ranks, backend, timeout_ms, environment, dir, library })
    }

    pub fn backend(mut self, backend: &str) -> Job {
        backend.clone_into(&mut self.backend);
        self
    }

    pub fn timeout_ms(mut self, timeout_ms: u64) -> Job {
        self.timeout_ms = timeout_ms;
        self
    }

    pub fn env(self, name: &str, value: &str) -> Job {
        self.env_of(None, name, value)
    }

    /// For one rank, or all.
    pub fn env_of(mut self, rank: Option<usize>, name: &str, value: &str) -> Job {
        self.environment.push((rank, name.to_owned(), value.to_owned()));
        self
    }

    /// With a library that has the symbols of a version.
    pub fn version(mut self, version: u32) -> Job {
        self.library = lookalike::nccl::library_of(version, self.dir.path()).unwrap();
        self.env("LOOKALIKE_NCCL_VERSION", &version.to_string())
    }

    fn start(&self, server: &Server, memory: &SharedMemory, rank: usize) -> Child {
        let (driver, ..) = names(&self.vendor);
        let dir = self.dir.path();
        let link = dir.join(driver);
        if !link.exists() {
            std::os::unix::fs::symlink(&self.library, link).unwrap();
        }
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("CHILD_TASK", &self.task).env("CHILD_RANK", rank.to_string());
        command.env("CHILD_RANKS", self.ranks.to_string()).env("CHILD_DIR", dir);
        command.env("CHILD_DEVICE", format!("{}:{rank}", self.vendor));
        command.env("CHILD_BACKEND", &self.backend);
        command.env("CHILD_MEMORY", memory.descriptor().to_string());
        command.env("CHILD_RENDEZVOUS", server.addr().to_string());
        command.env("CHILD_TIMEOUT_MS", self.timeout_ms.to_string());
        command.env("LD_LIBRARY_PATH", dir).env("MUSTER_KERNEL_DIR", dir);
        command.env("MUSTER_NCCL_LIB", &self.library).env("MUSTER_RCCL_LIB", &self.library);
        command.env("LOOKALIKE_DEVICES", self.ranks.to_string());
        for variable in ["ROCM_PATH", "NCCL_MULTI_RANK_GPU_ENABLE", "LOOKALIKE_NCCL_FAULTS"] {
            command.env_remove(variable);
        }
        for (of, name, value) in &self.environment {
            if of.is_none_or(|of| of == rank) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// All ranks; what each has said.
    pub fn run(self) -> Vec<Said> {
        let server = Server::bind("127.0.0.1:0", "job", self.ranks, PATIENCE_MS).unwrap();
        let memory = SharedMemory::create("nccl", self.ranks).unwrap();
        let children: Vec<_> =
            (0..self.ranks).map(|rank| self.start(&server, &memory, rank)).collect();
        // Read together: a full pipe must not hold up a rank that others wait for.
        let readers = children
            .into_iter()
            .map(|child| std::thread::spawn(move || child.wait_with_output().unwrap()));
        let readers: Vec<_> = readers.collect();
        let outputs = readers.into_iter().map(|reader| reader.join().unwrap());
        let said = outputs.enumerate().map(|(rank, output)| {
            let text = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat())
                .into_owned();
            let bits = std::fs::read(self.dir.path().join(format!("bits-{rank}"))).ok();
            Said { text, output, bits }
        });
        said.collect()
    }

    /// All ranks, which pass.
    #[track_caller]
    pub fn passes(self) -> Vec<Said> {
        let said = self.run();
        for (rank, Said { text, output, .. }) in said.iter().enumerate() {
            assert!(output.status.success(), "rank {rank} failed:\n{text}");
            assert!(text.contains("1 passed"), "rank {rank} ran nothing:\n{text}");
        }
        said
    }
}

/// The task and place of a rank.
pub struct Rank {
    pub task: String,
    pub rank: usize,
    pub ranks: usize,
    pub dir: PathBuf,
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

impl Rank {
    pub fn from_environment() -> Rank {
        let number = |name| variable(name).parse().unwrap();
        let (rank, ranks) = (number("CHILD_RANK"), number("CHILD_RANKS"));
        Rank { task: variable("CHILD_TASK"), rank, ranks, dir: variable("CHILD_DIR").into() }
    }

    pub fn device(&self) -> Device {
        let kind: DeviceKind = variable("CHILD_DEVICE").parse().unwrap();
        Device::new(kind, 1).unwrap()
    }

    pub fn world(&self) -> World {
        let listener = comm::tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let hello = Hello {
            job: "job".to_owned(),
            rank: self.rank,
            world: self.ranks,
            version: "1".to_owned(),
            listen: Some(listener.local_addr().unwrap()),
            ..Hello::default()
        };
        let joined = join(variable("CHILD_RENDEZVOUS"), hello, PATIENCE_MS).unwrap();
        let backend = match variable("CHILD_BACKEND").as_str() {
            "shm" => {
                let descriptor = variable("CHILD_MEMORY").parse().unwrap();
                Backend::Shm { memory: SharedMemory::inherited(descriptor).unwrap() }
            }
            _ => Backend::Tcp { listener, peers: joined.peers.clone(), job: joined.group.clone() },
        };
        joined.control.bye();
        let timeout_ms = variable("CHILD_TIMEOUT_MS").parse().unwrap();
        comm::connect(backend, self.rank, self.ranks, timeout_ms).unwrap()
    }

    pub fn connect(&self) -> (World, Device) {
        (self.world(), self.device())
    }

    /// Tells the test what memory holds.
    pub fn write(&self, bits: &[u32]) {
        let bytes: Vec<u8> = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
        std::fs::write(self.dir.join(format!("bits-{}", self.rank)), bytes).unwrap();
    }
}

/// Waits until something is so.
#[track_caller]
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{what} does not come");
        std::thread::sleep(Duration::from_millis(2));
    }
}
