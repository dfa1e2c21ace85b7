//! The outside world of the tests: ranks as processes and as threads, and a GPU's memory and
//! streams, which the look-alike of the vendor's driver provides.

#![allow(dead_code)] // Each test file uses its part.

pub mod gpu;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

pub use gpu::Gpu;
use nccl_rs::{
    Code, Communicator, Config, Error, JobId, Library, Progress, Stream, UniqueId, Vendor,
};

pub const VENDORS: [Vendor; 2] = [Vendor::Nvidia, Vendor::Amd];
pub const JOB: JobId = JobId([5; 16]);

/// The task and place of a rank of a test.
#[derive(Clone)]
pub struct Rank {
    pub vendor: Vendor,
    pub rank: u32,
    pub ranks: u32,
    pub dir: PathBuf,
}

impl Rank {
    pub fn library(&self) -> Library {
        Library::open(self.vendor).unwrap()
    }

    /// The id that rank 0 makes, by a file.
    pub fn id(&self, library: &Library) -> UniqueId {
        let (path, part) = (self.dir.join("id"), self.dir.join("id.part"));
        if self.rank == 0 {
            std::fs::write(&part, library.unique_id(JOB).unwrap().to_bytes()).unwrap();
            std::fs::rename(&part, &path).unwrap();
        }
        wait_for(&path);
        UniqueId::from_bytes(&std::fs::read(&path).unwrap()).unwrap()
    }

    pub fn try_init(&self, config: &Config) -> Result<Communicator, Error> {
        let library = self.library();
        let id = self.id(&library);
        Communicator::init_rank(&library, &id, JOB, self.rank, self.ranks, config)
    }

    pub fn init(&self) -> Communicator {
        self.try_init(&within(20_000)).unwrap()
    }

    /// Tells the other ranks something.
    pub fn mark(&self, name: &str) {
        std::fs::write(self.dir.join(name), "").unwrap();
    }

    /// Waits until all ranks have come to this point.
    pub fn meet(&self, name: &str) {
        self.mark(&format!("{name}-{}", self.rank));
        (0..self.ranks).for_each(|rank| self.wait_for(&format!("{name}-{rank}")));
    }

    pub fn wait_for(&self, name: &str) {
        wait_for(&self.dir.join(name));
    }
}

pub fn within(timeout_ms: u64) -> Config {
    Config { timeout: Duration::from_millis(timeout_ms), ..Config::default() }
}

fn wait_for(path: &Path) {
    let begun = Instant::now();
    while !path.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{path:?} does not appear");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits for a stream, and looks at the communicator meanwhile.
pub fn wait(gpu: &Gpu, stream: Stream, comm: &Communicator) -> Result<(), Error> {
    let begun = Instant::now();
    while !gpu.is_done(stream) {
        comm.async_error()?;
        assert!(begun.elapsed() < Duration::from_secs(20), "the stream hangs");
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

/// Waits until the communicator fails.
pub fn failure(comm: &Communicator) -> Error {
    let begun = Instant::now();
    loop {
        match comm.async_error() {
            Err(error) => return error,
            Ok(Progress::Done | Progress::InProgress) => {}
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "nothing fails");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[track_caller]
pub fn assert_async(error: &Error, expected: Code, words: &str) {
    let Error::Async { code, .. } = error else { panic!("{error}") };
    assert_eq!(*code, expected, "{error}");
    assert!(error.to_string().contains(words), "{error}");
}

/// Runs one task of this test program: a rank, or all ranks as threads.
pub fn run_task(task: impl Fn(&str, &Rank) + Sync) {
    let variable = |name: &str| std::env::var(name).unwrap();
    let number = |name: &str| variable(name).parse::<u32>().unwrap();
    let vendor = if variable("CHILD_VENDOR") == "NCCL" { Vendor::Nvidia } else { Vendor::Amd };
    let (ranks, dir) = (number("CHILD_RANKS"), PathBuf::from(variable("CHILD_DIR")));
    let of = |rank| Rank { vendor, rank, ranks, dir: dir.clone() };
    let (name, rank) = (variable("CHILD_TASK"), variable("CHILD_RANK"));
    if rank != "all" {
        return task(&name, &of(rank.parse().unwrap()));
    }
    std::thread::scope(|scope| {
        for rank in 0..ranks {
            let (of, task, name) = (&of, &task, &name);
            scope.spawn(move || task(name, &of(rank)));
        }
    });
}

/// A task of this test program, to be run by several ranks.
pub struct Job {
    task: String,
    vendor: Vendor,
    ranks: u32,
    environment: Vec<(String, String)>,
    dir: tempfile::TempDir,
    library: PathBuf,
}

/// The output of one process, on both streams.
pub struct Said {
    pub text: String,
    pub output: Output,
}

impl Said {
    #[track_caller]
    pub fn passed(&self) -> &Said {
        let text = &self.text;
        assert!(self.output.status.success(), "the child failed:\n{text}");
        assert!(text.contains("1 passed"), "the child ran nothing:\n{text}");
        self
    }

    #[track_caller]
    pub fn without_complaint(&self) {
        assert!(!self.text.contains("lookalike: "), "{}", self.text);
    }
}

impl Job {
    pub fn new(task: &str, vendor: Vendor, ranks: u32) -> Job {
        Job {
            task: task.to_owned(),
            vendor,
            ranks,
            environment: Vec::new(),
            dir: tempfile::tempdir().unwrap(),
            library: lookalike::library().unwrap(),
        }
    }

    pub fn env(mut self, name: &str, value: &str) -> Job {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn faults(self, list: &str) -> Job {
        self.env("LOOKALIKE_NCCL_FAULTS", list)
    }

    /// With a library that has the symbols of a version.
    pub fn version(mut self, version: u32) -> Job {
        self.library = lookalike::nccl::library_of(version, self.dir.path()).unwrap();
        self.env("LOOKALIKE_NCCL_VERSION", &version.to_string())
    }

    /// With a library of the newest version that lacks some functions all the same.
    pub fn without(mut self, symbols: &[&str]) -> Job {
        self.library = self.dir.path().join("liblookalike-without.so");
        lookalike::nccl::library_without(symbols, &self.library).unwrap();
        self
    }

    /// With the libraries where the loader looks, under their vendors' names: all of them links to
    /// one shared object, as the drivers' are.
    pub fn linked(mut self) -> Job {
        let dir = self.dir.path();
        for name in ["libcuda.so.1", "libnccl.so.2", "librccl.so.1"] {
            std::os::unix::fs::symlink(&self.library, dir.join(name)).unwrap();
        }
        self.library = dir.join("libcuda.so.1");
        let dir = dir.display().to_string();
        let job = VENDORS.into_iter().fold(self, |job, vendor| job.env(vendor.variable(), ""));
        job.env("LD_LIBRARY_PATH", &dir)
    }

    fn command(&self, rank: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env("CHILD_TASK", &self.task).env("CHILD_RANK", rank);
        command.env("CHILD_RANKS", self.ranks.to_string()).env("CHILD_DIR", self.dir.path());
        command.env("CHILD_VENDOR", self.vendor.library());
        command.env("CHILD_DRIVER", &self.library);
        for vendor in VENDORS {
            command.env(vendor.variable(), &self.library);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// One process per rank of `started`.
    pub fn run(self, started: std::ops::Range<u32>) -> Vec<Said> {
        let children: Vec<_> =
            started.map(|rank| self.command(&rank.to_string()).spawn().unwrap()).collect();
        // Read together: a full pipe must not hold up a rank that others wait for.
        let readers: Vec<_> = children
            .into_iter()
            .map(|child| std::thread::spawn(move || said(child.wait_with_output().unwrap())))
            .collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    }

    /// All ranks as processes, which pass without a complaint of the look-alike.
    pub fn processes(self) {
        let ranks = self.ranks;
        self.run(0..ranks).iter().for_each(|said| said.passed().without_complaint());
    }

    /// All ranks as threads of one process.
    pub fn threads(self) {
        said(self.command("all").output().unwrap()).passed().without_complaint();
    }
}

fn said(output: Output) -> Said {
    let text = [&output.stdout[..], &output.stderr].concat();
    Said { text: String::from_utf8_lossy(&text).into_owned(), output }
}
