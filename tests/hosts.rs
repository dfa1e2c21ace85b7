//! Runs on several hosts, which are processes of one host here, and what reaches the others when
//! something goes wrong on one of them.
//!
//! Whole messages are compared; directories, ports and what else differs between runs are
//! replaced by words in capitals.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    Done, Job, LONG, Workdir, free_port, last_step, mask, message, said_step, send, skip, steps,
};

/// Starts one of two hosts of one rank each, which share the run and meet at a port.
fn start_node(run: &Workdir, port: u16, number: usize, more: &[&str]) -> Job {
    let place = format!(
        "--rendezvous 127.0.0.1:{port} --nodes 2 --node-rank {number} --ranks 2 --backend tcp"
    );
    let args: Vec<&str> = place.split(' ').chain(more.iter().copied()).collect();
    run.start(&args)
}

/// Two hosts of one rank each that share a run, started.
fn two_hosts(run: &Workdir, port: u16, more: [&[&str]; 2]) -> [Job; 2] {
    [0, 1].map(|number| start_node(run, port, number, more[number]))
}

#[test]
fn a_port_that_is_taken_is_named() {
    let run = Workdir::new("fail-port");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let done = start_node(&run, port, 0, &[]).wait();
    assert_eq!(done.code(), Some(2), "{done}");
    let text = message(&run, &done, &[(&port.to_string(), "PORT")]);
    insta::assert_snapshot!(text, @"error: --rendezvous 127.0.0.1:PORT: cannot listen at 127.0.0.1:PORT: another process listens at port PORT; choose another port, or give this host a --node-rank of its own if node 0 of the job is there");
}

#[test]
fn addresses_of_other_hosts_are_named_with_their_flag() {
    let run = Workdir::new("fail-address");
    // An address that is kept for documentation is nobody's.
    let bind = run.train(&["--backend", "tcp", "--bind", "192.0.2.1"]);
    assert_eq!(bind.code(), Some(2), "{bind}");
    insta::assert_snapshot!(message(&run, &bind, &[]), @"error: --bind 192.0.2.1: cannot listen at 192.0.2.1:0: 192.0.2.1 is no address of this host; give one that is");
    let place = "--nodes 2 --node-rank 0 --ranks 2 --backend tcp --bind 0.0.0.0";
    let args: Vec<&str> = place.split(' ').chain(["--rendezvous", "192.0.2.1:4000"]).collect();
    let meeting = run.train(&args);
    assert_eq!(meeting.code(), Some(2), "{meeting}");
    insta::assert_snapshot!(message(&run, &meeting, &[]), @"error: --rendezvous 192.0.2.1:4000: cannot listen at 192.0.2.1:4000: 192.0.2.1 is no address of this host; give one that is");
}

#[test]
fn a_meeting_point_that_is_another_program_is_named() {
    let run = Workdir::new("fail-other");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let job = start_node(&run, port, 1, &[]);
    let (mut stream, _) = listener.accept().unwrap();
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
    let done = job.wait();
    assert_eq!(done.code(), Some(3), "{done}");
    let text = message(&run, &done, &[(&port.to_string(), "PORT")]);
    insta::assert_snapshot!(text.lines().next().unwrap(), @"error: 127.0.0.1:PORT answers as something else: the supervising process there has ended, or another program has that port; check the rendezvous address");
}

#[test]
fn two_names_of_one_meeting_point_meet() {
    let run = Workdir::new("fail-names");
    let port = free_port();
    let first = start_node(&run, port, 0, &[]);
    let place =
        format!("--rendezvous localhost:{port} --nodes 2 --node-rank 1 --ranks 2 --backend tcp");
    let second = run.start(&place.split(' ').collect::<Vec<_>>());
    for done in [first, second].map(Job::wait) {
        assert_eq!(done.code(), Some(0), "{done}");
    }
}

#[test]
fn two_hosts_that_claim_one_place_are_named() {
    let run = Workdir::new("hosts-twice");
    let port = free_port();
    let start = |node: usize, name: &str| {
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes 3 --node-rank {node} --ranks 3 --backend tcp \
             --name {name}"
        );
        run.start(&place.split(' ').collect::<Vec<_>>())
    };
    // In one directory the second would be told that the first trains there.
    let jobs = [start(0, "one"), start(1, "one"), start(1, "another")];
    for done in jobs.map(Job::wait) {
        assert_eq!(done.code(), Some(2), "{done}");
        let what = "error: two processes claim rank 1, both from 127.0.0.1; start each rank once, \
                    and give every host a --node-rank of its own";
        assert!(done.stderr.starts_with(what), "{done}");
    }
}

#[test]
fn a_host_that_does_not_come_is_named() {
    let run = Workdir::new("hosts-missing");
    let place = format!(
        "--rendezvous 127.0.0.1:{} --nodes 2 --node-rank 0 --ranks 4 --backend tcp \
         --set ranks.timeout_ms=2000",
        free_port()
    );
    let done = run.start(&place.split(' ').collect::<Vec<_>>()).wait();
    assert_eq!(done.code(), Some(3), "{done}");
    let what = "ranks 2 and 3 (all of node 1) did not come within 2000 ms";
    assert!(done.stderr.contains(what), "{done}");
}

#[test]
fn a_mistake_on_one_host_ends_the_waiting_of_the_other() {
    let run = Workdir::new("fail-one");
    let (port, started) = (free_port(), Instant::now());
    let first = start_node(&run, port, 0, &[]);
    // Until it waits.
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    let second = start_node(&run, port, 1, &["--set", "data.files=nothing.txt"]).wait();
    assert_eq!(second.code(), Some(2), "{second}");
    let first = first.wait();
    assert_eq!(first.code(), Some(3), "{first}");
    assert!(started.elapsed() < Duration::from_secs(45), "{:?}", started.elapsed());
    let start = "error: node 1 ended before the job began: 1 mistake in run.yaml";
    assert!(first.stderr.starts_with(start), "{first}");
    assert!(first.stderr.contains("cannot read nothing.txt"), "{first}");
    // Also where the mistaken host was started first.
    let port = free_port();
    let second = start_node(&run, port, 1, &["--set", "data.files=nothing.txt"]);
    std::thread::sleep(Duration::from_millis(2500));
    let first = start_node(&run, port, 0, &[]).wait();
    assert_eq!(first.code(), Some(3), "{first}");
    assert!(first.stderr.starts_with(start), "{first}");
    let second = second.wait();
    let looks = format!("node 1 will not start; looking for node 0 at 127.0.0.1:{port} for 8 s");
    // The mistake is told before others are looked for, and once.
    assert!(second.stderr.starts_with("error: 1 mistake in run.yaml"), "{second}");
    assert_eq!(second.stderr.matches("1 mistake in run.yaml").count(), 1, "{second}");
    assert!(second.stderr.contains(&looks), "{second}");
    let [first, second] = two_hosts(&run, free_port(), [&[], &["--name", "fail-two"]]);
    for done in [first.wait(), second.wait()] {
        assert_eq!(done.code(), Some(2), "{done}");
        let what = "the ranks differ in name of the run: fail-one on rank 0, fail-two on rank 1;";
        assert!(done.stderr.contains(what), "{done}");
    }
}

#[test]
fn a_mistake_on_node_0_ends_the_waiting_of_the_others() {
    let run = Workdir::new("fail-zero");
    let start = "error: node 0 ended before the job began: 1 mistake in run.yaml";
    let wrong = ["--set", "data.files=nothing.txt"];
    let port = free_port();
    let second = start_node(&run, port, 1, &[]);
    std::thread::sleep(Duration::from_millis(500));
    let asked = Instant::now();
    let first = start_node(&run, port, 0, &wrong).wait();
    assert_eq!(first.code(), Some(2), "{first}");
    assert!(first.stderr.contains("error: 1 mistake in run.yaml"), "{first}");
    let second = second.wait();
    assert_eq!(second.code(), Some(3), "{second}");
    assert!(second.stderr.starts_with(start), "{second}");
    assert!(second.stderr.contains("cannot read nothing.txt"), "{second}");
    assert!(asked.elapsed() < Duration::from_secs(45), "{:?}", asked.elapsed());
    // Also where the others come later; and where none comes it ends by itself.
    let port = free_port();
    let asked = Instant::now();
    let mut first = start_node(&run, port, 0, &wrong);
    assert!(first.wait_until_it_says("error: 1 mistake in run.yaml"), "it has ended");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    std::thread::sleep(Duration::from_millis(3000));
    let second = start_node(&run, port, 1, &[]).wait();
    assert!(second.stderr.starts_with(start), "{second}");
    let first = first.wait();
    let tells =
        format!("node 0 will not start; telling the other hosts at 127.0.0.1:{port} for 10 s");
    assert!(first.stderr.contains(&tells), "{first}");
    assert_eq!(first.stderr.matches("1 mistake in run.yaml").count(), 1, "{first}");
    let alone = start_node(&run, free_port(), 0, &wrong).wait();
    assert_eq!(alone.code(), Some(2), "{alone}");
    // If they have another secret, it is no word of this host's: they wait for who has theirs.
    let port = free_port();
    let file = run.path().join("secret");
    std::fs::write(&file, "the secret of this job").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let more = ["--secret-file", "secret", "--set", "ranks.timeout_ms=3000"];
    let second = start_node(&run, port, 1, &more);
    let first = start_node(&run, port, 0, &wrong).wait();
    assert_eq!(first.code(), Some(2), "{first}");
    let second = second.wait();
    assert!(second.stderr.contains("nobody answers at "), "{second}");
}

#[test]
fn a_rank_that_is_lost_before_the_ranks_connect_ends_all_hosts() {
    let run = Workdir::new("fail-between");
    let port = free_port();
    let mut first = start_node(&run, port, 0, &[]);
    assert!(first.wait_until(|| connections_to(port) > 0), "it has ended early");
    // It has joined, and will not connect.
    std::thread::sleep(Duration::from_millis(200));
    let worker = first.workers()[0].1;
    send(worker, libc::SIGSTOP);
    let mut second = start_node(&run, port, 1, &[]);
    assert!(second.wait_until(|| connections_to(port) > 1), "it has ended early");
    std::thread::sleep(Duration::from_millis(500));
    let killed = Instant::now();
    send(worker, libc::SIGKILL);
    for done in [first.wait(), second.wait()] {
        assert_eq!(done.code(), Some(3), "{done}");
        assert!(done.stderr.starts_with("error: rank 0 failed: "), "{done}");
    }
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
}

/// Connections that a listener at a port of the loopback interface has taken.
fn connections_to(port: u16) -> usize {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let (end, established) = (format!(":{port:04X}"), "01");
    let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.filter(|row| row[1].ends_with(&end) && row[3] == established).count()
}

/// `muster train run.yaml …` after a shell line, in namespaces of its own; `None` where that may
/// not be.
fn apart(run: &Workdir, namespaces: &str, before: &str, args: &str) -> Option<Done> {
    let in_them = |line: &str| {
        let mut command = Command::new("unshare");
        command.args([namespaces, "sh", "-c", line]);
        command
    };
    let probe = run.spawn(in_them(before)).wait();
    if probe.code() != Some(0) {
        skip(&format!("no namespaces here: {}", probe.stderr.trim()));
        return None;
    }
    let exe = common::MUSTER;
    Some(run.spawn(in_them(&format!("{before} && exec {exe} train run.yaml {args}"))).wait())
}

#[test]
fn shared_memory_needs_no_room_and_leaves_no_name_in_dev_shm() {
    let run = Workdir::new("fail-shm");
    let before = "mount -t tmpfs -o ro,size=64k tmpfs /dev/shm";
    let Some(done) = apart(&run, "-m", before, "--ranks 2") else { return };
    assert_eq!(done.code(), Some(0), "{done}");
    assert_eq!(run.final_digest(&run.name), run.digest("plain", &["--ranks", "2"]));
}

#[test]
fn a_loopback_interface_that_is_down_is_named_at_once() {
    let run = Workdir::new("fail-loopback");
    let start = Instant::now();
    let Some(done) = apart(&run, "-n", "true", "--ranks 2") else { return };
    assert!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    assert_eq!(done.code(), Some(3), "{done}");
    let text = mask(&message(&run, &done, &[]), &["127.0.0.1:"]);
    insta::assert_snapshot!(text, @"error: 127.0.0.1:N cannot be reached from here: Network is unreachable (os error 101); this host's loopback interface is down: `ip link set lo up`");
}

#[test]
fn strangers_at_every_port_do_not_keep_the_ranks_apart() {
    let run = Workdir::new("fail-strangers");
    let port = free_port();
    // Fewer descriptors than there are strangers.
    let (exe, limits) = (common::MUSTER, "ulimit -n 60");
    let line = format!(
        "{limits}; exec {exe} train run.yaml --rendezvous 127.0.0.1:{port} --nodes 2 --ranks 2 \
         --backend tcp --node-rank 0"
    );
    let mut command = Command::new("sh");
    command.args(["-c", &line]);
    let first = run.spawn(command);
    let connect = |port| std::net::TcpStream::connect(("127.0.0.1", port));
    while connect(port).is_err() {
        std::thread::sleep(Duration::from_millis(5));
    }
    let _strangers: Vec<_> = (0..100).map(|_| connect(port).unwrap()).collect();
    let second = start_node(&run, port, 1, &[]);
    for done in [first.wait(), second.wait()] {
        assert_eq!(done.code(), Some(0), "{done}");
    }
}

#[test]
fn who_waits_says_where_and_for_how_long() {
    let port = free_port();
    for (node, at) in [(0, "127.0.0.1"), (1, "127.0.0.2")] {
        let run = Workdir::new(&format!("hosts-waits-{node}"));
        let place = format!("--rendezvous {at}:{port} --nodes 2 --node-rank {node} --ranks 2");
        let more = ["--backend", "tcp", "--set", "ranks.timeout_ms=4000"];
        let args: Vec<&str> = place.split(' ').chain(more).collect();
        let done = run.start(&args).wait();
        assert_eq!(done.code(), Some(3), "{done}");
        let what = match node {
            0 => format!("node 0: waiting at {at}:{port} for the other hosts, for 4 s at most\n"),
            _ => format!(
                "node 1: waiting for node 0 at {at}:{port} and the other hosts, for 4 s at most\n"
            ),
        };
        assert!(done.stdout.contains(&what), "{done}");
        let named = node == 0 || done.stderr.contains(&format!("nobody answers at {at}:{port} "));
        assert!(named, "{done}");
        assert!(done.stderr.contains("start all hosts again"), "{done}");
    }
}

#[test]
fn a_stop_is_obeyed_while_another_host_is_waited_for() {
    for (signal, code) in [(libc::SIGINT, 130), (libc::SIGTERM, 75)] {
        let run = Workdir::new("hosts-alone");
        let mut job = start_node(&run, free_port(), 0, &[]);
        // Its rank waits for the other one, which never comes.
        while job.poll().is_none() && job.workers().is_empty() {}
        std::thread::sleep(Duration::from_millis(1500));
        let asked = Instant::now();
        job.signal(signal);
        let done = job.wait();
        assert_eq!(done.code(), Some(code), "{done}");
        assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
        assert!(done.stderr.contains("stopped before training began"), "{done}");
    }
}

#[test]
fn two_nodes_train_as_one() {
    let run = Workdir::new("fail-nodes");
    let expected = run.digest("one", &[]);
    for done in two_hosts(&run, free_port(), [&[], &[]]).map(Job::wait) {
        assert_eq!(done.code(), Some(0), "{done}");
    }
    assert_eq!(run.final_digest(&run.name), expected);
}

/// `ranks` ranks on `nodes` hosts, all of them here; how each ended.
fn on_nodes(run: &Workdir, nodes: usize, ranks: usize, name: &str, more: &[&str]) -> Vec<Job> {
    let port = free_port();
    let start = |number: usize| {
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes {nodes} --node-rank {number} --ranks {ranks} \
             --backend tcp --name {name}"
        );
        run.start(&place.split(' ').chain(more.iter().copied()).collect::<Vec<_>>())
    };
    (0..nodes).map(start).collect()
}

#[test]
fn hosts_whose_ranks_share_memory_train_to_the_bits_of_one_rank() {
    let run = Workdir::new("hosts-share");
    let leaves = |leaves: &str, radices: &str| {
        let sets = [format!("batch.leaves={leaves}"), format!("batch.radices={radices}")];
        sets.into_iter().flat_map(|set| ["--set".to_owned(), set]).collect::<Vec<_>>()
    };
    // One partial a host; of the others 5 by 3 hosts, and 4 by 2.
    for (nodes, ranks, batch, factor) in [
        (2, 4, leaves("4", "[2,2]"), 1.0),
        (3, 6, leaves("12", "[2,3,2]"), 5.0 / 3.0),
        (2, 6, leaves("6", "[3,2]"), 2.0),
    ] {
        // Enough parameters that their gradients go by hosts.
        let more = ["--set", "model.d_model=128"];
        let batch: Vec<&str> = batch.iter().map(String::as_str).chain(more).collect();
        let expected = run.digest(&format!("one-{nodes}-{ranks}"), &batch);
        let each = ranks / nodes;
        for (within, backend) in
            [("shm", format!("shm+tcp {nodes} × {each}")), ("tcp", "tcp".into())]
        {
            let (name, set) = (format!("{within}-{nodes}-{ranks}"), within_host(within));
            let more = [&batch[..], &["--set", &set]].concat();
            for done in on_nodes(&run, nodes, ranks, &name, &more).into_iter().map(Job::wait) {
                assert_eq!(done.code(), Some(0), "{name}: {done}");
            }
            assert_eq!(run.final_digest(&name), expected, "{name}");
            let header = run.events_of(&name, "header").pop().unwrap();
            assert_eq!(header["backend"], backend.as_str(), "{name}");
            let (hosts, factor) = match within {
                "shm" => (Some(nodes), factor),
                _ => (None, 1.0),
            };
            assert_eq!(header["hosts"].as_u64(), hosts.map(|hosts| hosts as u64), "{name}");
            let told = header["byte_factor"].as_f64().unwrap();
            // Owners of other hosts need not own as much.
            assert!((told / factor - 1.0).abs() < 0.1, "{name}: {told}");
            assert_eq!(header["free"], factor == 1.0, "{name}");
        }
    }
}

fn within_host(backend: &str) -> String {
    format!("ranks.within_host={backend}")
}

#[test]
fn a_rank_that_is_killed_is_named_by_every_host_whose_ranks_share_memory() {
    for (node, killed) in [(0, 1), (1, 2)] {
        let run = Workdir::new(&format!("hosts-killed-{killed}"));
        let mut jobs = on_nodes(&run, 2, 4, &run.name, &LONG);
        steps(&run, &mut jobs[0], 3);
        let workers = jobs[node].workers();
        let (_, process) = workers.iter().find(|(rank, _)| *rank == killed).unwrap();
        send(*process, libc::SIGKILL);
        for done in jobs.into_iter().map(Job::wait) {
            assert_eq!(done.code(), Some(3), "{done}");
            let start = format!("error: rank {killed} failed: ");
            assert!(done.stderr.contains(&start), "{done}");
        }
    }
}

#[test]
fn nodes_that_differ_are_told_in_what() {
    let run = Workdir::new("fail-differ");
    for done in two_hosts(&run, free_port(), [&[], &["--set", "seed=2"]]).map(Job::wait) {
        assert_eq!(done.code(), Some(2), "{done}");
        let text = mask(&message(&run, &done, &[]), &["configuration: ", "rank 0, "]);
        insta::allow_duplicates! {
            insta::assert_snapshot!(text, @"error: the ranks differ in seed of the configuration: N on rank 0, N on rank 1; start every rank with the same seed of the configuration");
        }
    }
    for done in two_hosts(&run, free_port(), [&["--max-steps", "3"], &[]]).map(Job::wait) {
        assert_eq!(done.code(), Some(2), "{done}");
        insta::allow_duplicates! {
            insta::assert_snapshot!(message(&run, &done, &[]), @"error: the ranks differ in --max-steps: 3 on rank 0, none on rank 1; start every rank with the same --max-steps");
        }
    }
    assert_eq!(run.events_of(&run.name, "step").len(), 0);
}

#[test]
fn every_host_names_the_rank_that_was_killed() {
    let run = Workdir::new("fail-remote");
    let [mut first, second] = two_hosts(&run, free_port(), [&LONG, &LONG]);
    steps(&run, &mut first, 3);
    send(second.workers()[0].1, libc::SIGKILL);
    let (first, second) = (first.wait(), second.wait());
    for done in [&first, &second] {
        assert_eq!(done.code(), Some(3), "{done}");
        assert!(said_step(done).abs_diff(last_step(&run)) <= 1, "{done}");
    }
    let masked = |done| mask(&message(&run, done, &[]), &["last step was ", "#"]);
    let text = masked(&first);
    // Which operation missed it first, and how, is chance.
    let (why, end) = text.split_once("; ").unwrap();
    assert!(why.starts_with("error: rank 1 failed: "), "{first}");
    insta::assert_snapshot!(end, @"
    its last step was N
    The other ranks were stopped. Checkpoints are intact: once the cause is mended, start all hosts again; they continue from the newest one, or anew where none was saved yet.
    ");
    insta::assert_snapshot!(masked(&second), @"
    error: rank 1 failed: killed by signal 9; its last step was N
    The other ranks were stopped. Checkpoints are intact: once the cause is mended, start all hosts again; they continue from the newest one, or anew where none was saved yet.
    ");
}

#[test]
fn a_supervisor_that_is_killed_is_named_at_the_other_host() {
    let run = Workdir::new("fail-supervisor");
    let [mut first, second] = two_hosts(&run, free_port(), [&LONG, &LONG]);
    steps(&run, &mut first, 3);
    send(first.pid(), libc::SIGKILL);
    let (_, second) = (first.wait(), second.wait());
    assert_eq!(second.code(), Some(3), "{second}");
    // Its rank dies with it, and which of the two ends is met first is chance.
    let line = second.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
    let named = ["rank 0 failed: ", "node 0's supervising process (at 127.0.0.1:"];
    assert!(named.iter().any(|name| line.contains(name)), "{second}");
}

#[test]
fn sigterm_at_one_host_is_the_exit_code_of_all() {
    for to_worker in [false, true] {
        let run = Workdir::new(&format!("fail-term-{to_worker}"));
        let [mut first, second] = two_hosts(&run, free_port(), [&LONG, &LONG]);
        steps(&run, &mut first, 2);
        match to_worker {
            true => send(second.workers()[0].1, libc::SIGTERM),
            false => second.signal(libc::SIGTERM),
        }
        for done in [first.wait(), second.wait()] {
            assert_eq!(done.code(), Some(75), "{done}");
        }
        assert_eq!(run.finished(&run.name)["reason"], "terminated");
    }
}
