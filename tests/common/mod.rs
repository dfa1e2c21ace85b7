//! Real `muster` processes in directories of their own.
//!
//! A [`Workdir`] holds a config and a text; [`Workdir::start`] gives a [`Job`], which is killed
//! when dropped and never waited for without a limit. Runs are judged by their exit code, what
//! they printed, and the events that they left.

// Each test file uses its own part of this.
#![allow(dead_code)]

pub mod cpus;
pub mod desk;
pub mod random;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Far more than any run here needs, for machines that do much else.
const PATIENCE: Duration = Duration::from_secs(180);

/// The program under test.
pub const MUSTER: &str = env!("CARGO_BIN_EXE_muster");

/// A mixture of experts, one with latent attention after a dense layer, and a dense model, of some
/// hundred thousand parameters.
pub const MOE: &str = "{preset: tiny-moe, layers: 2, d_model: 64, moe: {experts: 4, d_ff: 48}}";
pub const LATENT: &str = "{preset: deepseek-v3, layers: 2, d_model: 64, heads: 4, d_ff: 96, \
    vocab_size: 320, latent: {q_rank: 24, kv_rank: 16, nope_dim: 16, rope_dim: 8, value_dim: 12}, \
    moe: {experts: 8, top_k: 2, groups: 4, top_groups: 2, d_ff: 32, first_dense_layers: 1}}";
pub const DENSE: &str = "{layers: 2, d_model: 64, heads: 4, d_ff: 96}";

/// A directory with `run.yaml` and a text, for runs that are called `name`.
pub struct Workdir {
    dir: tempfile::TempDir,
    pub name: String,
}

impl Workdir {
    /// `name` must be no other test's: it also names shared memory.
    pub fn new(name: &str) -> Workdir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("text.txt"), text()).unwrap();
        let config = format!(
            "name: {name}\n\
             model: {MOE}\n\
             data: {{tokenizer: byte, files: text.txt}}\n\
             batch: {{leaves: 4, micro_batches: 2, micro_batch: 1, seq_len: 32}}\n\
             train: {{steps: 6, eval_every: 0, eval_samples: 4, sample_tokens: 0}}\n\
             checkpoint: {{every: 0, keep: 2}}\n\
             ranks: {{threads: 1, timeout_ms: 60000, restarts: 0}}\n"
        );
        std::fs::write(dir.path().join("run.yaml"), config).unwrap();
        Workdir { dir, name: name.to_owned() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The directory of the run `name`.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.path().join("runs").join(name)
    }

    /// `muster train run.yaml …`, ready to be changed and started.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MUSTER);
        command.args(["train", "run.yaml"]).args(args);
        command
    }

    /// Starts `muster train run.yaml …`.
    pub fn start(&self, args: &[&str]) -> Job {
        self.spawn(self.command(args))
    }

    /// Starts any command here.
    pub fn spawn(&self, mut command: Command) -> Job {
        let out = tempfile::NamedTempFile::new_in(self.path()).unwrap();
        let err = tempfile::NamedTempFile::new_in(self.path()).unwrap();
        command.current_dir(self.path()).stdin(Stdio::null());
        command.stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap());
        command.env_remove("RUST_BACKTRACE");
        // Whoever starts the tests by `nohup` has it ignored, and who is started inherits that.
        // SAFETY: between fork and exec this is one system call, which allocates nothing.
        unsafe {
            command.pre_exec(|| match libc::signal(libc::SIGHUP, libc::SIG_DFL) {
                libc::SIG_ERR => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            });
        }
        let child = command.spawn().unwrap();
        Job { child, ended: false, out, err }
    }

    /// Runs `muster train run.yaml …` to its end.
    pub fn train(&self, args: &[&str]) -> Done {
        self.start(args).wait()
    }

    /// Runs any `muster …` to its end.
    pub fn muster<S: AsRef<OsStr>>(&self, args: &[S]) -> Done {
        let mut command = Command::new(MUSTER);
        command.args(args);
        self.spawn(command).wait()
    }

    /// Trains under another name and returns the digest of the final weights.
    pub fn digest(&self, name: &str, args: &[&str]) -> String {
        let done = self.train(&[args, &["--name", name]].concat());
        assert_eq!(done.code(), Some(0), "{name} {args:?}\n{done}");
        self.final_digest(name)
    }

    /// The digest in the run's last `finished` event.
    pub fn final_digest(&self, name: &str) -> String {
        let finished = self.finished(name);
        finished["weights_digest"].as_str().unwrap().to_owned()
    }

    /// The run's last `finished` event.
    pub fn finished(&self, name: &str) -> Value {
        self.events_of(name, "finished").pop().expect("the run has finished")
    }

    /// The run's events of one kind, in order; a torn last line is passed over.
    pub fn events_of(&self, name: &str, kind: &str) -> Vec<Value> {
        let path = self.run_dir(name).join("events.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter_map(|mut event| event.get_mut(kind).map(Value::take)).collect()
    }

    /// The steps of the run's steps and saves as they were told, and whether each is of a save.
    pub fn steps_and_saves(&self, name: &str) -> Vec<(u64, bool)> {
        let path = self.run_dir(name).join("events.jsonl");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of = |event: Value| {
            let step = |kind: &str| event.get(kind).and_then(|of| of["step"].as_u64());
            step("step").map(|step| (step, false)).or(step("saved").map(|step| (step, true)))
        };
        events.filter_map(of).collect()
    }

    /// Names in the run's directory of checkpoints: attempts, committed or not.
    pub fn attempts(&self, name: &str) -> Vec<PathBuf> {
        let dir = self.run_dir(name).join("checkpoints");
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.retain(|path| path.file_name().unwrap().to_str().unwrap().starts_with("step-"));
        paths.sort();
        paths
    }

    /// `muster ckpt verify --deep` finds nothing wrong with any committed checkpoint of the run;
    /// returns how many there are.
    pub fn verify(&self, name: &str) -> usize {
        let mut committed = self.attempts(name);
        committed.retain(|path| path.join("COMMIT").exists());
        for path in &committed {
            let args = ["ckpt", "verify", "--deep", path.to_str().unwrap()];
            let done = self.muster(&args);
            assert_eq!(done.code(), Some(0), "{done}");
        }
        committed.len()
    }
}

/// Some 80 KB of our own sources.
fn text() -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../layout/src");
    let mut paths: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "rs"));
    paths.sort();
    paths.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect()
}

/// A started process.
pub struct Job {
    child: Child,
    ended: bool,
    out: tempfile::NamedTempFile,
    err: tempfile::NamedTempFile,
}

impl Job {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the supervisor alone.
    pub fn signal(&self, signal: i32) {
        send(self.pid(), signal);
    }

    /// Worker processes by rank: the children that were started as such.
    pub fn workers(&self) -> Vec<(usize, u32)> {
        let mut workers: Vec<(usize, u32)> = processes()
            .into_iter()
            .filter(|process| process.parent == self.pid())
            .filter_map(|process| Some((process.rank()?, process.pid)))
            .collect();
        workers.sort_unstable();
        workers
    }

    /// The exit status, if it has ended.
    pub fn poll(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap();
        self.ended |= status.is_some();
        status
    }

    /// Waits until `holds`, and returns whether it did before the process ended.
    pub fn wait_until(&mut self, mut holds: impl FnMut() -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if holds() {
                return true;
            }
            if self.poll().is_some() {
                return false;
            }
            assert!(Instant::now() < deadline, "waited too long\n{}", self.so_far());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until standard error has `text`, and returns whether it had before the process ended.
    pub fn wait_until_it_says(&mut self, text: &str) -> bool {
        let path = self.err.path().to_owned();
        self.wait_until(|| std::fs::read_to_string(&path).is_ok_and(|said| said.contains(text)))
    }

    /// Waits for the end.
    pub fn wait(mut self) -> Done {
        self.wait_until(|| false);
        let status = self.child.wait().unwrap();
        let read = |file: &tempfile::NamedTempFile| {
            String::from_utf8_lossy(&std::fs::read(file.path()).unwrap()).into_owned()
        };
        Done { status, stdout: read(&self.out), stderr: read(&self.err) }
    }

    /// The output up to now.
    pub fn so_far(&self) -> String {
        let read = |file: &tempfile::NamedTempFile| std::fs::read(file.path()).unwrap_or_default();
        String::from_utf8_lossy(&[read(&self.out), read(&self.err)].concat()).into_owned()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A process that has ended.
pub struct Done {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Done {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- stdout\n{}\n--- stderr\n{}", self.status, self.stdout, self.stderr)
    }
}

/// A line of the process table.
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    /// `Z` for a zombie.
    pub state: char,
    pub words: Vec<String>,
}

impl Process {
    /// The rank, if this is a worker.
    pub fn rank(&self) -> Option<usize> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        match words[..] {
            [_, "worker" | "bench-worker", "--plan", _, "--rank", rank] => rank.parse().ok(),
            _ => None,
        }
    }
}

/// Every process that there is.
pub fn processes() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries.filter_map(|entry| process(&entry.path())).collect()
}

fn process(dir: &Path) -> Option<Process> {
    let pid = dir.file_name()?.to_str()?.parse().ok()?;
    let stat = std::fs::read_to_string(dir.join("stat")).ok()?;
    // The name in brackets may hold anything, brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let command = std::fs::read(dir.join("cmdline")).ok()?;
    let words = command.split(|&byte| byte == 0).filter(|word| !word.is_empty());
    let words = words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
    Some(Process { pid, parent, state, words })
}

/// Sends a signal.
pub fn send(pid: u32, signal: i32) {
    // SAFETY: a system call without memory; the process is one that a test has started.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

/// Files of shared memory whose name holds `name`.
pub fn shared_memory_of(name: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|file| file.contains(name)).collect()
}

/// A port of the loopback interface that nobody listens on.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Says why a test does nothing on this machine; not by a macro, whose output would be captured.
pub fn skip(why: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Runs `muster …` in the run's directory as a user who owns nothing there, or as whoever runs the
/// tests where that is not root.
pub fn as_nobody(run: &Workdir, args: &[&str]) -> Done {
    // SAFETY: a system call without arguments that always succeeds.
    let is_root = unsafe { libc::geteuid() } == 0;
    let mut command = match is_root {
        true => Command::new("setpriv"),
        false => Command::new(MUSTER),
    };
    if is_root {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", MUSTER]);
    }
    command.args(args);
    run.spawn(command).wait()
}

/// Opens a file for appending, making it.
pub fn append_to(path: &Path) -> File {
    File::options().create(true).append(true).open(path).unwrap()
}

/// Steps enough that a run does not end by itself meanwhile.
pub const LONG: [&str; 2] = ["--set", "train.steps=100000"];

/// Waits until the run has taken `count` steps more than `before`.
pub fn steps(run: &Workdir, job: &mut Job, count: usize) {
    let before = run.events_of(&run.name, "step").len();
    let done = job.wait_until(|| run.events_of(&run.name, "step").len() >= before + count);
    assert!(done, "the run has ended early");
}

/// The last step in the events.
pub fn last_step(run: &Workdir) -> u64 {
    run.events_of(&run.name, "step").last().unwrap()["step"].as_u64().unwrap()
}

/// The last step of a rank, as the user was told.
pub fn said_step(done: &Done) -> u64 {
    let (_, rest) = done.stderr.split_once("last step was ").expect("a last step");
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().unwrap()
}

/// Without the last operation of a rank that was killed, which is there if the rank lived long
/// enough to tell of one, and is chance.
pub fn without_operation(text: &str) -> String {
    let clause = "; the last operation it told of was ";
    let Some((start, rest)) = text.split_once(clause) else { return text.to_owned() };
    format!("{start}{}", rest.trim_start_matches(|c: char| !";\n".contains(c)))
}

/// Standard error with the directory replaced, and some other words; without last operations.
pub fn message(run: &Workdir, done: &Done, words: &[(&str, &str)]) -> String {
    let mut text = done.stderr.replace(run.path().to_str().unwrap(), "HERE");
    for (from, to) in words {
        text = text.replace(from, to);
    }
    without_operation(text.trim_end())
}

/// Replaces the number after each of some words, wherever they stand.
pub fn mask(text: &str, words: &[&str]) -> String {
    let mut text = text.to_owned();
    for word in words {
        let mut parts = text.split(word);
        let mut masked = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let rest = part.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            let number = if rest.len() < part.len() { "N" } else { "" };
            masked.extend([word, number, rest]);
        }
        text = masked;
    }
    text
}
