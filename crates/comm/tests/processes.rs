//! Real processes: this test binary runs itself once per rank.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use comm::rendezvous::{Hello, Server, join};
use comm::shm::SharedMemory;
use comm::{Backend, EvenPlan, Op, Settings, World};
use common::{BACKENDS, PATIENCE_MS};
use device::{DType, Device};
use layout::Tree;

const LEN: usize = 100_003;
/// The timeout of ranks that are to find out soon.
const SHORT_MS: u64 = 1500;

/// A worker, when started as one; nothing otherwise.
#[test]
fn worker() {
    let Ok(task) = std::env::var("COMM_TEST_TASK") else { return };
    let number = |name| std::env::var(name).unwrap().parse::<usize>().unwrap();
    let (rank, world) = (number("COMM_TEST_RANK"), number("COMM_TEST_WORLD"));
    let text = |name| std::env::var(name).unwrap();
    let listener = comm::tcp::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let hello = Hello {
        job: "job".to_owned(),
        rank,
        world,
        version: "1".to_owned(),
        listen: Some(listener.local_addr().unwrap()),
        ..Hello::default()
    };
    let joined = join(text("COMM_TEST_ADDR"), hello, PATIENCE_MS).unwrap();
    let backend = match text("COMM_TEST_BACKEND").as_str() {
        "shm" => {
            let descriptor = text("COMM_TEST_MEMORY").parse().unwrap();
            Backend::Shm { memory: SharedMemory::inherited(descriptor).unwrap() }
        }
        _ => Backend::Tcp { listener, peers: joined.peers.clone(), job: joined.group.clone() },
    };
    let patience_ms = if task == "impatient" { SHORT_MS } else { PATIENCE_MS };
    let world = match task.as_str() {
        "controlled" => joined.control.connect(backend, rank, world, Settings::new(patience_ms)),
        _ => comm::connect(backend, rank, world, patience_ms),
    };
    let world = world.unwrap();
    let error = work(&world, if task == "sum" { 50 } else { usize::MAX });
    match error {
        None => {
            println!("\nresult {:?}", world.counters().total().calls);
            joined.control.bye();
        }
        // As a real worker does: out, without goodbye.
        Some(error) => println!("\nerror {error}"),
    }
}

/// All-reduces again and again, each checked; the error that ended it.
fn work(ranks: &World, rounds: usize) -> Option<String> {
    let (rank, world) = (ranks.rank(), ranks.size());
    let device = Device::cpu(1).unwrap();
    let group = ranks.group(&device).unwrap();
    let stream = device.stream();
    let window = group.window(4 * LEN).unwrap();
    let tensor = window.tensor(0, &[LEN], DType::F32).unwrap();
    let plan = EvenPlan::new(&Tree::for_leaves(world), 0..LEN, DType::F32);
    let (again, plan_again) = (window.clone(), plan.clone());
    let sum = group.prepare(Op::AllReduce { window, plan }).unwrap();
    let again = Op::AllGather { window: again, plan: plan_again };
    let again = group.prepare(again).unwrap();
    // Several operations are queued at any time; the later ones change nothing.
    let submit = || {
        let first = group.submit(&stream, &sum)?;
        let later: Vec<_> = (0..5).map(|_| group.submit(&stream, &again)).collect();
        first.wait()?;
        later.into_iter().try_for_each(|pending| pending?.wait())
    };
    for round in 0..rounds {
        let value = |rank: usize, i: usize| (rank * 3 + i % 1000 + round % 100) as f32;
        let mine: Vec<f32> = (0..LEN).map(|i| value(rank, i)).collect();
        stream.copy_in(&tensor, &mine).unwrap();
        if let Err(error) = submit() {
            return Some(error.to_string());
        }
        let got = stream.to_vec::<f32>(&tensor).unwrap();
        for (i, got) in got.iter().enumerate() {
            let expected: f32 = (0..world).map(|rank| value(rank, i)).sum();
            assert!(*got == expected, "round {round}, element {i}");
        }
        if round == 3 {
            println!("\nready");
        }
    }
    None
}

fn start(task: &str, kind: &str, world: usize, server: &Server) -> Vec<Child> {
    start_by(|_| Command::new(std::env::current_exe().unwrap()), task, kind, world, server)
}

/// As `start`, each rank by a command that is this program.
fn start_by(
    program: impl Fn(usize) -> Command,
    task: &str,
    kind: &str,
    world: usize,
    server: &Server,
) -> Vec<Child> {
    // They inherit it, and hold it when it is closed here.
    let memory = SharedMemory::create("processes", world).unwrap();
    let worker = |rank: usize| {
        program(rank)
            .args(["--exact", "worker", "--nocapture"])
            .env("COMM_TEST_TASK", task)
            .env("COMM_TEST_BACKEND", kind)
            .env("COMM_TEST_RANK", rank.to_string())
            .env("COMM_TEST_WORLD", world.to_string())
            .env("COMM_TEST_ADDR", server.addr().to_string())
            .env("COMM_TEST_MEMORY", memory.descriptor().to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    (0..world).map(worker).collect()
}

/// The rest of the first line that starts with `word`.
fn line(child: &mut Child, word: &str) -> String {
    let out = child.stdout.as_mut().unwrap();
    let mut lines = BufReader::with_capacity(1, out).lines();
    let found = lines.find_map(|line| line.unwrap().strip_prefix(word).map(str::to_owned));
    found.unwrap_or_else(|| panic!("a worker ended without saying `{word}`"))
}

#[test]
fn processes_sum_and_leave_in_good_order() {
    for (kind, world) in [("shm", 1), ("shm", 2), ("shm", 5), ("tcp", 3)] {
        let server = Server::bind("127.0.0.1:0", "job", world, PATIENCE_MS);
        let server = server.unwrap();
        for mut child in start("sum", kind, world, &server) {
            line(&mut child, "result");
            assert!(child.wait().unwrap().success());
        }
        assert_eq!(server.lost(), None);
    }
}

#[test]
fn a_killed_rank_is_named_by_the_others() {
    // With the control connection and without, since either alone must do.
    for task in ["controlled", "alone"] {
        for kind in BACKENDS {
            let server = Server::bind("127.0.0.1:0", "job", 3, PATIENCE_MS);
            let server = server.unwrap();
            let mut children = start(task, kind, 3, &server);
            children.iter_mut().for_each(|child| drop(line(child, "ready")));
            children[1].kill().unwrap();
            let killed = Instant::now();
            // Not waited for: until then it is a zombie, which must count as dead.
            for rank in [0, 2] {
                let error = line(&mut children[rank], "error");
                assert!(error.contains("rank 1 is lost"), "{task} {kind} {rank}: {error}");
            }
            assert!(killed.elapsed() < Duration::from_secs(5), "{task} {kind}");
            for child in &mut children {
                child.wait().unwrap();
            }
            // None of the three said goodbye.
            while server.lost().is_none() {
                assert!(killed.elapsed() < Duration::from_secs(30), "{task} {kind}");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}

/// This program in a namespace of process numbers of its own, where it is number 1, as each rank of
/// a job may be in a container of its own; rank 0 stays here.
fn apart(rank: usize) -> Command {
    let program = std::env::current_exe().unwrap();
    if rank == 0 {
        return Command::new(program);
    }
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]).arg(program);
    command
}

/// Whether that is allowed here; if not, says so.
fn can_be_apart() -> bool {
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "true"]);
    let output = command.output();
    let is_allowed = output.as_ref().is_ok_and(|output| output.status.success());
    if !is_allowed {
        let why = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
        eprintln!("skipped what needs namespaces of process numbers: {why:?}");
    }
    is_allowed
}

/// The process in the namespace that `unshare` has made.
fn inside(child: &Child) -> libc::pid_t {
    let pid = child.id();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    children.trim().parse().unwrap()
}

#[test]
fn ranks_whose_process_numbers_mean_nothing_to_each_other_sum() {
    if !can_be_apart() {
        return;
    }
    let server = Server::bind("127.0.0.1:0", "job", 3, PATIENCE_MS).unwrap();
    for mut child in start_by(apart, "sum", "shm", 3, &server) {
        line(&mut child, "result");
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(server.lost(), None);
}

#[test]
fn a_rank_in_another_namespace_is_named_when_it_dies_or_stops() {
    if !can_be_apart() {
        return;
    }
    for (task, signal, what) in [
        ("alone", libc::SIGKILL, "rank 1 is lost: its process has ended"),
        ("impatient", libc::SIGSTOP, "rank 1 had not arrived after 1500 ms"),
    ] {
        let server = Server::bind("127.0.0.1:0", "job", 3, PATIENCE_MS).unwrap();
        let mut children = start_by(apart, task, "shm", 3, &server);
        children.iter_mut().for_each(|child| drop(line(child, "ready")));
        // SAFETY: a signal to a process that was started here.
        unsafe { libc::kill(inside(&children[1]), signal) };
        let since = Instant::now();
        for rank in [0, 2] {
            let error = line(&mut children[rank], "error");
            assert!(error.contains(what), "{task}, {rank}: {error}");
        }
        assert!(since.elapsed() < Duration::from_secs(8), "{task}: {:?}", since.elapsed());
        // And what was stopped ends with it.
        children[1].kill().unwrap();
        for child in &mut children {
            child.wait().unwrap();
        }
    }
}
