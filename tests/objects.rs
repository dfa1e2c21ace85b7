//! Checkpoints on an object store, by the binary: saved to and resumed from a server of S3's
//! protocol on the loopback, and looked at by every command that takes a checkpoint.

mod common;
#[path = "common/s3.rs"]
mod s3;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Done, Job, MUSTER, Workdir, send};
use s3::Server;

const BUCKET: &str = "bucket";
const URL: &str = "s3://bucket/runs/a";

/// A run and a server with an empty bucket.
struct Cloud {
    run: Workdir,
    server: Server,
}

impl Cloud {
    fn new(name: &str) -> Cloud {
        Cloud { run: Workdir::new(name), server: Server::start(BUCKET) }
    }

    /// A command that is told of the server, and of nothing else.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(MUSTER);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.args(args).envs(self.server.environment());
        command.env("AWS_EC2_METADATA_DISABLED", "true").env("MUSTER_STORE_SECONDS", "20");
        command
    }

    fn muster(&self, args: &[&str]) -> Done {
        self.run.spawn(self.command(args)).wait()
    }

    fn start(&self, args: &[&str]) -> Job {
        let store = format!("checkpoint.store={URL}");
        let args = [&["train", "run.yaml", "--set", &store], args].concat();
        self.run.spawn(self.command(&args))
    }

    fn train(&self, args: &[&str]) -> Done {
        self.start(args).wait()
    }

    /// Its words, once it has done as it was told.
    fn says(&self, args: &[&str]) -> String {
        let done = self.muster(args);
        assert_eq!(done.code(), Some(0), "{args:?}: {done}");
        done.stdout
    }

    /// Attempts in the bucket, by name.
    fn attempts(&self, under: &str) -> Vec<PathBuf> {
        let dir = self.server.files(BUCKET).join(under);
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        // The directories of objects that were deleted stay, empty.
        paths.retain(|path| name(path).starts_with("step-") && path.join("manifest.json").exists());
        paths.sort();
        paths
    }
}

/// SIGKILL to the supervisor and its ranks.
fn kill(mut job: Job) {
    let workers = job.workers();
    job.signal(libc::SIGKILL);
    workers.iter().for_each(|&(_, pid)| send(pid, libc::SIGKILL));
    job.wait_until(|| false);
}

#[test]
fn a_run_that_is_killed_goes_on_from_the_store_with_the_same_bits() {
    let cloud = Cloud::new(&format!("objects_{}", std::process::id()));
    let steps = ["--set", "train.steps=24", "--set", "checkpoint.every=2"];
    let undisturbed = cloud.run.digest("undisturbed", &[&steps[..], &["--ranks", "1"]].concat());
    for ranks in ["2", "3"] {
        let before = cloud.attempts("runs/a").len();
        let mut job = cloud.start(&[&steps[..], &["--ranks", ranks]].concat());
        let is_saved = |path: &PathBuf| path.join("COMMIT").exists();
        let newer = || cloud.attempts("runs/a").iter().filter(|path| is_saved(path)).count();
        let killed = job.wait_until(|| newer() > before.min(1));
        assert!(killed, "it ended by itself: {}", job.so_far());
        kill(job);
    }
    let done = cloud.train(&[&steps[..], &["--ranks", "4"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    let resumed = cloud.run.events_of(&cloud.run.name, "resumed");
    assert!(!resumed.is_empty());
    for event in &resumed {
        assert!(event["path"].as_str().unwrap().starts_with("s3://bucket/runs/a/step-"), "{event}");
    }
    assert_eq!(cloud.run.final_digest(&cloud.run.name), undisturbed);
    assert!(!cloud.run.run_dir(&cloud.run.name).join("checkpoints").exists());
    // The newest two stay, and nothing is left of the others.
    assert_eq!(cloud.attempts("runs/a").len(), 2);
    // The run's directory leads there.
    let name = format!("runs/{}", cloud.run.name);
    assert!(cloud.says(&["ckpt", "verify", "--deep", &name]).contains("s3://bucket/runs/a/step-"));
    cloud.says(&["ckpt", "diff", "--parameters-only", "runs/undisturbed", URL]);
}

#[test]
fn every_command_takes_a_url() {
    let cloud = Cloud::new("objects-commands");
    let saved = ["--set", "checkpoint.every=2", "--set", "checkpoint.keep=0", "--ranks", "2"];
    let done = cloud.train(&saved);
    assert_eq!(done.code(), Some(0), "{done}");
    let newest = format!("{URL}/step-00000006.g0001");
    let listed = cloud.says(&["ckpt", "ls", URL]);
    assert_eq!(listed.matches("committed").count(), 3, "{listed}");
    assert!(listed.starts_with(URL), "{listed}");
    assert!(cloud.says(&["ckpt", "show", URL]).starts_with(&newest));
    assert!(cloud.says(&["ckpt", "show", &newest, "--json"]).contains(&newest));
    let verified = cloud.says(&["ckpt", "verify", "--deep", &newest]);
    assert!(verified.contains("is whole") && !verified.contains("not part of it"), "{verified}");
    cloud.says(&["ckpt", "plan", URL, "--layout", "dp=2,tp=2"]);
    // Cut from the store, on it, and to the disk and back.
    cloud.says(&["ckpt", "reshape", URL, "s3://bucket/cut", "--layout", "dp=2,tp=2"]);
    cloud.says(&["ckpt", "reshape", "s3://bucket/cut", "cut", "--layout", "dp=3"]);
    cloud.says(&["ckpt", "reshape", "cut", "s3://bucket/deep/cut", "--layout", "pp=2"]);
    for cut in ["s3://bucket/cut", "cut", "s3://bucket/deep/cut"] {
        cloud.says(&["ckpt", "diff", URL, cut]);
        let verified = cloud.says(&["ckpt", "verify", "--deep", cut]);
        assert!(!verified.contains("not part of it"), "{verified}");
    }
    let taken = cloud.muster(&["ckpt", "reshape", "cut", URL, "--layout", "dp=1"]);
    assert_eq!(taken.code(), Some(2), "{taken}");
    assert!(taken.stderr.contains("it holds a checkpoint already"), "{taken}");
    // Published, and taken in again as the beginning of another run.
    cloud.says(&["ckpt", "export", "--to", "safetensors", URL, "plain"]);
    cloud.says(&["ckpt", "import", URL, "s3://bucket/begun"]);
    cloud.says(&["ckpt", "diff", "--parameters-only", URL, "s3://bucket/begun"]);
    let begins = ["--set", "checkpoint.init=s3://bucket/begun", "--name", "begun", "--max-steps"];
    let done = cloud.muster(&[&["train", "run.yaml"], &begins[..], &["1"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(cloud.run.events_of("begun", "initialized").len(), 1);
    let from = ["train", "run.yaml", "--name", "from", "--resume", &newest, "--set"];
    let done = cloud.muster(&[&from[..], &["train.steps=7"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(cloud.run.events_of("from", "resumed")[0]["step"], 6);
    cloud.says(&["generate", URL, "--prompt", "fn ", "--tokens", "4"]);
    // The oldest two go, with all that they had.
    let collected = cloud.says(&["ckpt", "gc", URL, "--keep", "1"]);
    assert!(collected.contains("2 checkpoints of 3 removed"), "{collected}");
    assert_eq!(cloud.attempts("runs/a").len(), 1);
}

#[test]
fn long_objects_go_up_in_parts() {
    let cloud = Cloud::new("objects-parts");
    let wide = ["--set", "model.d_model=256", "--set", "model.vocab_size=4096", "--max-steps", "1"];
    let done = cloud.train(&[&wide[..], &["--ranks", "1"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(cloud.server.uploads_in_parts() > 0, "all objects were short");
    cloud.says(&["ckpt", "verify", "--deep", URL]);
}

/// The exit code and the words of a command that fails.
fn fails(cloud: &Cloud, mut command: Command) -> (i32, String) {
    command.env("MUSTER_STORE_SECONDS", "4");
    let done = cloud.run.spawn(command).wait();
    let text = done.stderr.replace(&cloud.server.endpoint, "ENDPOINT");
    (done.code().unwrap_or(-1), text)
}

#[test]
fn a_store_that_does_not_serve_is_told_with_what_to_set() {
    let cloud = Cloud::new("objects-refused");
    let list = |url: &str| cloud.command(&["ckpt", "ls", url]);
    let holds = |(code, text): (i32, String), exit: i32, words: &[&str]| {
        assert_eq!(code, exit, "{text}");
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in {text}"));
    };
    holds(fails(&cloud, list("s3://bucket/none")), 2, &["nothing under s3://bucket/none"]);
    holds(fails(&cloud, list("s3://other/x")), 2, &["no bucket s3://other", "AWS_ENDPOINT_URL"]);
    holds(fails(&cloud, list("s4://bucket/x")), 2, &["the nearest is `s3`"]);
    let mut wrong = list(URL);
    wrong.env("AWS_SECRET_ACCESS_KEY", "another");
    holds(fails(&cloud, wrong), 2, &["SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"]);
    let mut unknown = list(URL);
    unknown.env("AWS_ACCESS_KEY_ID", "nobody");
    holds(fails(&cloud, unknown), 2, &["s3://bucket", "AWS_ACCESS_KEY_ID"]);
    let mut half = list(URL);
    half.env_remove("AWS_SECRET_ACCESS_KEY");
    holds(fails(&cloud, half), 2, &["no credentials", "AWS_SECRET_ACCESS_KEY is not set"]);
    let mut nobody = list(URL);
    nobody.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", common::free_port()));
    holds(fails(&cloud, nobody), 3, &["cannot be reached", "AWS_ENDPOINT_URL"]);
    cloud.server.be_busy(true);
    holds(fails(&cloud, list(URL)), 3, &["asks for fewer requests"]);
    cloud.server.be_busy(false);
    let store = format!("checkpoint.store={URL}");
    let mut train = cloud.command(&["train", "run.yaml", "--set", &store, "--ranks", "2"]);
    train.env("AWS_SECRET_ACCESS_KEY", "another");
    holds(fails(&cloud, train), 2, &["SignatureDoesNotMatch"]);
    let check = cloud.command(&["train", "run.yaml", "--set", "checkpoint.store=s3://", "--ranks"]);
    let mut check = check;
    check.arg("1");
    holds(fails(&cloud, check), 2, &["checkpoint.store", "names no bucket"]);
    cloud.server.hang();
    holds(fails(&cloud, list(URL)), 3, &["no answer within 4 s"]);
}
