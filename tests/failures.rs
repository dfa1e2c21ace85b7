//! The messages, and the files left on disk, when a run is stopped or something breaks.
//!
//! Whole messages are compared; directories, ports and what else differs between runs are
//! replaced by words in capitals.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::{DENSE, LONG, Workdir, last_step, mask, message, said_step, send, skip, steps};

/// Sets a limit of a process.
fn limit(pid: u32, what: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: a system call that reads the limit given here, which outlives it.
    let set = unsafe { libc::prlimit(pid as i32, what, &raw const limit, std::ptr::null_mut()) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_worker_that_dies_has_the_last_word() {
    let run = Workdir::new("fail-memory");
    let place = ["--ranks", "2", "--set", "checkpoint.every=20"];
    let mut job = run.start(&[&LONG[..], &place].concat());
    steps(&run, &mut job, 3);
    // Steps allocate nothing; the next save does.
    limit(job.workers()[1].1, libc::RLIMIT_AS, 4096);
    let done = job.wait();
    assert_eq!(done.code(), Some(3), "{done}");
    let text = mask(&message(&run, &done, &[]), &["last step was ", "allocation of "]);
    insta::assert_snapshot!(text, @"
    error: rank 1 failed: exit status 3; its last step was N; its last log lines:
        memory allocation of N bytes failed
        note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace
        error: out of memory: the machine has no more, or a limit of this process is reached (`ulimit -v`, memory.max of the control group); raise it, or train with fewer --ranks or --threads, or a smaller model or batch
    The other ranks were stopped. Checkpoints are intact: the same command continues from the newest one, or anew where none was saved yet.
    ");
}

#[test]
fn a_killed_worker_ends_the_job() {
    let run = Workdir::new("fail-killed");
    let place = ["--ranks", "3", "--set", "checkpoint.every=2"];
    let mut job = run.start(&[&LONG[..], &place].concat());
    steps(&run, &mut job, 5);
    // Steps go on while it is written.
    assert!(job.wait_until(|| !run.events_of(&run.name, "saved").is_empty()));
    let workers = job.workers();
    assert_eq!(workers.len(), 3);
    let killed = Instant::now();
    send(workers[1].1, libc::SIGKILL);
    let done = job.wait();
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    assert_eq!(done.code(), Some(3), "{done}");
    // It may have finished a step more than rank 0 had told of.
    let last = said_step(&done).to_string();
    assert!(said_step(&done).abs_diff(last_step(&run)) <= 1, "{done}");
    insta::assert_snapshot!(message(&run, &done, &[(&last, "STEP")]), @"
    error: rank 1 failed: killed by signal 9; its last step was STEP
    The other ranks were stopped. Checkpoints are intact: the same command continues from the newest one, or anew where none was saved yet.
    ");
    assert!(run.verify(&run.name) > 0);
    // As it says.
    let more = (last_step(&run) + 2).to_string();
    let again = [&LONG[..], &["--ranks", "2", "--max-steps", &more]].concat();
    let done = run.train(&again);
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.events_of(&run.name, "resumed").len(), 1);
}

#[test]
fn a_worker_that_stands_still_is_the_one_at_fault() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("fail-still-{backend}"));
        let place = ["--ranks", "3", "--backend", backend, "--set", "ranks.timeout_ms=2000"];
        let mut job = run.start(&[&LONG[..], &place].concat());
        steps(&run, &mut job, 3);
        send(job.workers()[1].1, libc::SIGSTOP);
        let done = job.wait();
        assert_eq!(done.code(), Some(3), "{done}");
        assert!(said_step(&done).abs_diff(last_step(&run)) <= 1, "{done}");
        let text = mask(&message(&run, &done, &[]), &["last step was ", "#"]);
        // Which operation it missed, and after how many bytes, is chance.
        let (start, rest) = text.split_once(" in ").unwrap();
        let (operation, end) = rest.split_once(" (see").unwrap();
        assert!(operation.contains('_') && operation.contains(" #N"), "{done}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(format!("{start} in OPERATION (see{end}"), @"
            error: rank 1 failed: no sign of life within 2000 ms in OPERATION (see what it is doing, or raise ranks.timeout_ms); its last step was N
            The other ranks were stopped. Checkpoints are intact: the same command continues from the newest one, or anew where none was saved yet.
            ");
        }
    }
}

#[test]
fn ctrl_c_saves_and_the_same_command_goes_on() {
    let run = Workdir::new("fail-interrupt");
    let expected = run.digest("undisturbed", &["--set", "train.steps=40"]);
    let args = ["--set", "train.steps=40", "--ranks", "2"];
    let mut job = run.start(&args);
    steps(&run, &mut job, 3);
    job.signal(libc::SIGINT);
    let done = job.wait();
    assert_eq!(done.code(), Some(0), "{done}");
    insta::assert_snapshot!(
        message(&run, &done, &[]),
        @"finishing the step and saving; Ctrl-C again stops at once"
    );
    let finished = run.finished(&run.name);
    assert_eq!(finished["reason"], "interrupted");
    assert_eq!(finished["step"], last_step(&run));
    assert_eq!(run.verify(&run.name), 1);
    assert_eq!(run.digest(&run.name, &args), expected);
    assert_eq!(run.events_of(&run.name, "resumed")[0]["step"], finished["step"]);
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let intact = "stopped at once; checkpoints that were saved are intact";
    let stays = "; what was recorded stays in t.json.parts (muster trace merge)";
    for (more, traced) in [(&[][..], ""), (&["--trace", "t.json"], stays)] {
        let run = Workdir::new("fail-at-once");
        let said = stopped_at_once(&run, more);
        let begun = "finishing the step and saving; Ctrl-C again stops at once";
        assert_eq!(said, format!("{begun}\n{intact}{traced}"));
        assert_eq!(run.path().join("t.json.parts").exists(), !traced.is_empty());
    }
}

/// The error of a run of two ranks, of which one stands still.
fn stopped_at_once(run: &Workdir, more: &[&str]) -> String {
    let mut job = run.start(&[&LONG[..], &["--ranks", "2"], more].concat());
    steps(run, &mut job, 2);
    // A rank that stands still cannot finish its step.
    let workers = job.workers();
    send(workers[1].1, libc::SIGSTOP);
    job.signal(libc::SIGINT);
    std::thread::sleep(Duration::from_millis(300));
    assert!(job.poll().is_none());
    let before = Instant::now();
    job.signal(libc::SIGINT);
    let done = job.wait();
    assert!(before.elapsed() < Duration::from_secs(5));
    assert_eq!(done.code(), Some(130), "{done}");
    message(run, &done, &[]).trim_end().to_owned()
}

#[test]
fn signals_before_training_end_it_at_once() {
    let run = Workdir::new("fail-early");
    // Text enough for a while of reading and tokenizing.
    let text = "fn main() { println!(); }\n".repeat(4_000_000);
    std::fs::write(run.path().join("text.txt"), text).unwrap();
    let data = run.run_dir(&run.name).join("data");
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 75)] {
        let mut job = run.start(&[]);
        let begun = job.wait_until(|| data.read_dir().is_ok_and(|mut dir| dir.next().is_some()));
        assert!(begun, "it has ended early");
        job.signal(signal);
        let done = job.wait();
        assert_eq!(done.code(), Some(code), "{done}");
        assert_eq!(message(&run, &done, &[]), "stopped before training began");
        assert_eq!(data.read_dir().unwrap().count(), 0);
    }
    assert!(run.events_of(&run.name, "header").is_empty());
}

#[test]
fn a_signal_just_after_the_start_is_not_lost() {
    let run = Workdir::new("fail-start");
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let mut job = run.start(&[&LONG[..], &["--ranks", "2"]].concat());
        while job.poll().is_none() && job.workers().is_empty() {}
        job.signal(signal);
        let done = job.wait();
        let expected = if signal == libc::SIGINT { 0 } else { 75 };
        assert_eq!(done.code(), Some(expected), "{done}");
    }
}

#[test]
fn sigterm_saves_and_asks_to_be_started_again() {
    let run = Workdir::new("fail-term");
    let mut job = run.start(&[&LONG[..], &["--ranks", "2", "--backend", "tcp"]].concat());
    steps(&run, &mut job, 3);
    job.signal(libc::SIGTERM);
    let done = job.wait();
    assert_eq!(done.code(), Some(75), "{done}");
    let finished = run.finished(&run.name);
    assert_eq!(finished["reason"], "terminated");
    assert_eq!(finished["step"], last_step(&run));
    assert_eq!(run.verify(&run.name), 1);
}

#[test]
fn a_complete_run_says_so_and_can_start_over() {
    let run = Workdir::new("fail-complete");
    let digest = run.digest(&run.name, &[]);
    let done = run.train(&[]);
    assert_eq!(done.code(), Some(0), "{done}");
    let tail: Vec<&str> = done.stdout.lines().rev().take(3).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    insta::assert_snapshot!(tail.join("\n").replace(&digest[..12], "DIGEST"), @"
    this run is complete: all 6 steps had been done before
      weights    digest DIGEST
      next       go on with more steps (--set train.steps=12), start over (--resume never), or give the new run a name (--name fail-complete-2)
    ");
    let before = run.events_of(&run.name, "step").len();
    let done = run.train(&["--resume", "never"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.events_of(&run.name, "step").len(), before + 6);
    assert_eq!(run.final_digest(&run.name), digest);
}

#[test]
fn a_dry_run_writes_nothing() {
    let run = Workdir::new("fail-dry");
    let done = run.train(&["--dry-run"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.contains("6 steps of 256 tokens"), "{done}");
    assert!(!run.path().join("runs").exists());
}

#[test]
fn another_model_is_not_resumed() {
    let run = Workdir::new("fail-model");
    run.digest(&run.name, &[]);
    let done = run.train(&["--set", "model.d_model=32", "--ranks", "2"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(message(&run, &done, &[]), @"
    error: runs/fail-model/checkpoints/step-00000006.g0001 holds another model:
      `model.embed_tokens.weight`: [320, 64] there, [320, 32] here
      `model.layers.0.input_layernorm.weight`: [64] there, [32] here
      `model.layers.0.self_attn.q_proj.weight`: [64, 64] there, [32, 32] here
      `model.layers.0.self_attn.k_proj.weight`: [32, 64] there, [16, 32] here
      `model.layers.0.self_attn.v_proj.weight`: [32, 64] there, [16, 32] here
      `model.layers.0.self_attn.q_norm.weight`: [16] there, [8] here
      `model.layers.0.self_attn.k_norm.weight`: [16] there, [8] here
      `model.layers.0.self_attn.o_proj.weight`: [64, 64] there, [32, 32] here
      and 42 more tensors
    Give the run another name, or use --resume never
    ");
    let done = run.train(&["--set", &format!("model={DENSE}")]);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains("holds another model:"), "{done}");
    // The checkpoint's config is still beside it.
    let done = run.muster(&["generate", "runs/fail-model", "--tokens", "1"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.verify(&run.name), 1);
}

#[test]
fn another_numeric_plan_is_resumed_with_a_warning_that_names_it() {
    let run = Workdir::new("fail-plan");
    // A schedule in which the length of the run does not enter.
    let constant = ["--set", "optimizer.schedule={constant: {warmup_steps: 2}}", "--set"];
    run.digest(&run.name, &[&constant[..], &["train.steps=6"]].concat());
    // Other ranks and threads are no other plan.
    let more = ["train.steps=8", "--ranks", "2", "--threads", "2"];
    let done = run.train(&[&constant[..], &more].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.events_of(&run.name, "warning").len(), 0, "{done}");
    let more = ["train.steps=10", "--set", "batch.leaves=6"];
    let done = run.train(&[&constant[..], &more].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    let warnings = run.events_of(&run.name, "warning");
    assert_eq!(warnings.len(), 1, "{done}");
    let message = warnings[0]["message"].as_str().unwrap();
    insta::assert_snapshot!(message, @"different from the checkpoint: leaves (4 as 2·2 there, 6 as 2·3 here); the weights may not have the bits of an undisturbed run");
    // People see it too.
    assert!(done.stdout.contains(&format!("warning: {message}")), "{done}");
    assert_eq!(run.finished(&run.name)["step"], 10);
}

#[test]
fn an_event_file_that_cannot_be_written_or_read_ends_nothing() {
    let run = Workdir::new("fail-events");
    let events = run.run_dir(&run.name).join("events.jsonl");
    std::fs::create_dir_all(events.parent().unwrap()).unwrap();
    std::fs::write(&events, "{\"of another version\": {}}\n").unwrap();
    let done = run.train(&[]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.contains("warning: 1 line of "), "{done}");
    assert!(events.with_file_name("loss.svg").exists());
    // A limit of the supervisor alone stands for a full disk.
    let mut command = Command::new("sh");
    let exe = common::MUSTER;
    let line = format!("trap '' XFSZ; exec {exe} train run.yaml --ranks 2 --set train.steps=200");
    command.args(["-c", &line]);
    let mut job = run.spawn(command);
    steps(&run, &mut job, 3);
    let size = std::fs::metadata(&events).unwrap().len() + 50;
    limit(job.pid(), libc::RLIMIT_FSIZE, size);
    let done = job.wait();
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(done.stdout.matches("warning: cannot write to the event file").count(), 1, "{done}");
    let last = run.attempts(&run.name).pop().unwrap();
    assert!(last.to_string_lossy().contains("step-00000200"), "{done}");
    assert!(std::fs::read_to_string(&events).unwrap().ends_with("}\n"));
    assert_eq!(run.verify(&run.name), 2);
}

#[test]
fn a_pipe_in_the_place_of_a_file_is_named() {
    let run = Workdir::new("fail-pipe");
    for name in ["logs/rank-00000.log", "job-node0.json", "node0.lock", "events.jsonl"] {
        let pipe = run.run_dir(&run.name).join(name);
        std::fs::create_dir_all(pipe.parent().unwrap()).unwrap();
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let done = run.train(&[]);
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(done.stderr.contains(&format!("{name} is a pipe, where the run")), "{done}");
        std::fs::remove_file(&pipe).unwrap();
    }
}

#[test]
fn a_run_outlives_whoever_reads_its_output() {
    let run = Workdir::new("fail-pipe");
    let mut command = Command::new("sh");
    let exe = common::MUSTER;
    command.args(["-c", &format!("{{ {exe} train run.yaml; echo $? >&2; }} | head -n 1")]);
    let done = run.spawn(command).wait();
    assert_eq!(done.stderr, "0\n", "{done}");
    assert_eq!(done.stdout.lines().count(), 1, "{done}");
    assert_eq!(run.finished(&run.name)["reason"], "complete");
}

#[test]
fn a_full_disk_keeps_the_older_checkpoint() {
    let run = Workdir::new("fail-full");
    // The file system is filled while the run trains, so that its second checkpoint has no room.
    let train = format!(
        "{} train run.yaml --ranks 2 --set checkpoint.keep=0 --set train.steps=100000",
        common::MUSTER
    );
    let exe = common::MUSTER;
    let script = format!(
        "mkdir -p runs && mount -t tmpfs -o size=12m tmpfs runs || exit 99
         {train} --max-steps 2 > /dev/null || exit 98
         {train} > /dev/null & job=$!
         until [ $(grep -c '^.\"step\"' runs/fail-full/events.jsonl) -gt 3 ]; do sleep 0.02; done
         head -c 100m /dev/zero > runs/filler 2> /dev/null
         truncate -s -300k runs/filler
         kill -TERM $job; wait $job
         code=$?
         {exe} ckpt verify runs/fail-full > /dev/null || exit 97
         {exe} ckpt ls runs/fail-full
         exit $code"
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script]);
    if Command::new("unshare").args(["-m", "true"]).status().map_or(true, |s| !s.success()) {
        return skip("no private mount namespace here (needs root and `unshare`)");
    }
    let done = run.spawn(command).wait();
    if done.code() == Some(99) {
        return skip("a tmpfs cannot be mounted here");
    }
    assert_eq!(done.code(), Some(3), "{done}");
    let text = message(&run, &done, &[]);
    let words = text.split(' ').map(|word| match word.parse::<u64>() {
        Ok(_) => "N",
        Err(_) => word,
    });
    let text = words.collect::<Vec<_>>().join(" ").replace("rank-00001:", "rank-00000:");
    let text =
        mask(&text, &["step-", "last step was "]).replace("error: rank 1 ", "error: rank 0 ");
    insta::assert_snapshot!(text, @"
    error: rank N failed: exit status 3; its last step was N; its last log lines:
        error: disk full writing runs/fail-full/checkpoints/step-N.g0002/rank-00000: N more bytes are needed and N are free; older checkpoints are intact; free some space, keep fewer checkpoints or choose another directory
    The other ranks were stopped. Checkpoints are intact: the same command continues from the newest one, or anew where none was saved yet.
    ");
    // The checkpoint that was begun is removed, the one that was there is whole.
    assert!(done.stdout.contains("  2     1 "), "{done}");
    assert_eq!(done.stdout.lines().count(), 3, "{done}");
}

/// Rates at which the second forward pass overflows.
const DIVERGES: [&str; 6] = [
    "--set",
    "optimizer.rules=[{match: {}, adamw: {lr: 1.0e+30}}]",
    "--set",
    "optimizer.require_muon=false",
    "--set",
    "optimizer.schedule={constant: {warmup_steps: 0}}",
];

#[test]
fn a_gradient_that_is_not_finite_stops_the_run() {
    let run = Workdir::new("fail-finite");
    let done = run.train(&[&DIVERGES[..], &["--ranks", "2"]].concat());
    assert_eq!(done.code(), Some(2), "{done}");
    let text = message(&run, &done, &[]);
    assert!(text.starts_with("error: step 2: the gradient is not finite in `model."), "{done}");
    assert!(text.contains(" (rank 0, leaf 0)"), "{done}");
    let (_, end) = text.split_once("; ").unwrap();
    insta::assert_snapshot!(end, @"nothing was applied. Lower the learning rate, clip gradients (optimizer.clip), or set optimizer.non_finite: skip");
    let stopped = run.events_of(&run.name, "non_finite");
    assert_eq!((stopped.len(), &stopped[0]["action"]), (1, &"stopped".into()), "{done}");
    // The step was computed; nothing of it was applied.
    assert_eq!(run.events_of(&run.name, "step").last().unwrap()["skipped"], true, "{done}");
}

#[test]
fn a_gradient_that_is_not_finite_is_skipped_when_so_configured() {
    let run = Workdir::new("fail-skip");
    let skip = ["--set", "optimizer.non_finite=skip", "--ranks", "2"];
    let done = run.train(&[&DIVERGES[..], &skip].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    let steps = run.events_of(&run.name, "step");
    let skipped: Vec<bool> = steps.iter().map(|step| step["skipped"] == true).collect();
    assert_eq!(skipped, [false, true, true, true, true, true]);
    let reports = run.events_of(&run.name, "non_finite");
    assert_eq!(reports.len(), 5);
    assert!(reports.iter().all(|report| report["action"] == "skipped"));
}
