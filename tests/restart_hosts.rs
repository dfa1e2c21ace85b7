//! Hosts of a job, which are processes of one host here, start their ranks again together: where a
//! rank or a whole host is lost, and where its supervisor comes back, or had only stood still. The
//! weights come out with the bits of a run that was left alone.

mod common;

use common::{Done, Job, LONG, Workdir, free_port, send, steps};

/// One rank on each host; few enough steps to end, and enough to be disturbed.
const RUN: [&str; 4] = ["--set", "train.steps=40", "--set", "checkpoint.every=5"];

/// Hosts that start their ranks again, and are gone after two seconds of silence.
struct Hosts<'a> {
    run: &'a Workdir,
    port: u16,
    nodes: usize,
    more: Vec<&'a str>,
}

impl<'a> Hosts<'a> {
    fn new(run: &'a Workdir, nodes: usize, more: &[&'a str]) -> Hosts<'a> {
        let ours = ["--set", "ranks.restarts=5", "--set", "ranks.host_timeout_ms=2000"];
        Hosts { run, port: free_port(), nodes, more: [&ours, more].concat() }
    }

    fn start(&self, node: usize) -> Job {
        let Hosts { port, nodes, .. } = self;
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes {nodes} --node-rank {node} --ranks {nodes} \
             --backend tcp"
        );
        let args: Vec<&str> = place.split(' ').chain(self.more.iter().copied()).collect();
        self.run.start(&args)
    }

    fn start_all(&self) -> Vec<Job> {
        (0..self.nodes).map(|node| self.start(node)).collect()
    }
}

/// Steps enough that the ranks are still at it when their supervisor has stood still for too long:
/// they train on until then.
const LONGER: [&str; 4] = ["--set", "train.steps=600", "--set", "checkpoint.every=20"];

/// The digest of a run on one host that nobody disturbs.
fn undisturbed(run: &Workdir, of: &[&str]) -> String {
    run.digest("alone", &of[..2])
}

fn restarts(run: &Workdir) -> usize {
    run.events_of(&run.name, "restarting").len()
}

/// Waits until the ranks start again.
fn started_again(run: &Workdir, job: &mut Job) {
    assert!(job.wait_until(|| restarts(run) > 0), "it has ended early");
}

fn well(done: &Done) {
    assert_eq!(done.code(), Some(0), "{done}");
}

fn says(text: &str, words: &[&str], done: &Done) {
    for words in words {
        assert!(text.contains(words), "{words}: {done}");
    }
}

#[test]
fn a_worker_that_is_killed_on_any_host_starts_all_again() {
    let run = Workdir::new("rehosts-worker");
    let expected = undisturbed(&run, &RUN);
    // The save of step 5 is there when step 7 is told, however slow the disk is.
    let hosts = Hosts::new(&run, 2, &[&RUN[..], &["--set", "checkpoint.mode=sync"]].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 7);
    send(jobs[1].workers()[0].1, libc::SIGKILL);
    started_again(&run, &mut jobs[0]);
    let done: Vec<Done> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(well);
    let words = [
        "restarts   5 until the next checkpoint, ",
        "rank 1 failed: killed by signal 9",
        "starting again in 1 s from the newest checkpoint (1 of 5 times",
        "resuming after step 5 from ",
    ];
    says(&done[0].stdout, &words, &done[0]);
    says(&done[1].stdout, &["starting again on 2 of 2 hosts in 1 s (1 of 5 times"], &done[1]);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn the_others_go_on_without_a_host_that_is_gone() {
    let run = Workdir::new("rehosts-gone");
    let expected = undisturbed(&run, &RUN);
    let more = ["--set", "ranks.min_hosts=2", "--set", "ranks.host_wait_ms=500"];
    let hosts = Hosts::new(&run, 3, &[&RUN[..], &more].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 7);
    // Its worker dies with it; the host behind it takes its place.
    send(jobs[1].pid(), libc::SIGKILL);
    let killed = jobs.remove(1);
    started_again(&run, &mut jobs[0]);
    let done: Vec<Done> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(well);
    says(&done[0].stderr, &["node 1 is gone (the host's supervisor "], &done[0]);
    says(&done[0].stdout, &["starting again on 2 of 3 hosts in 1 s from"], &done[0]);
    says(&done[1].stdout, &["starting again on 2 of 3 hosts", "node 1 of 2: ranks 1"], &done[1]);
    assert_eq!(run.final_digest(&run.name), expected);
    drop(killed);
}

#[test]
fn a_host_that_is_started_again_in_time_is_of_the_next_start() {
    let run = Workdir::new("rehosts-back");
    let expected = undisturbed(&run, &RUN);
    let more = ["--set", "ranks.min_hosts=1", "--set", "ranks.host_wait_ms=120000"];
    let hosts = Hosts::new(&run, 2, &[&RUN[..], &more].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 7);
    send(jobs[1].pid(), libc::SIGKILL);
    assert!(jobs[0].wait_until_it_says("waiting for 120 s at most"), "it has ended early");
    jobs.remove(1).wait();
    jobs.push(hosts.start(1));
    let done: Vec<Done> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(well);
    says(&done[0].stdout, &["starting again in 1 s from the newest checkpoint"], &done[0]);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn a_supervisor_that_stood_still_for_too_long_rejoins() {
    let run = Workdir::new("rehosts-frozen");
    let expected = undisturbed(&run, &LONGER);
    let hosts =
        Hosts::new(&run, 2, &[&LONGER[..], &["--set", "ranks.host_wait_ms=120000"]].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 7);
    // Its worker lives, and is of a start that is over.
    send(jobs[1].pid(), libc::SIGSTOP);
    assert!(jobs[0].wait_until_it_says("node 1 is gone"), "it has ended early");
    send(jobs[1].pid(), libc::SIGCONT);
    let done: Vec<Done> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(well);
    let said = ["the host's supervisor said nothing for ", "(ranks.host_timeout_ms is 2000)"];
    says(&done[0].stderr, &said, &done[0]);
    says(&done[1].stderr, &["this host was taken for gone: the host's supervisor said"], &done[1]);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn a_supervisor_without_which_the_others_went_on_waits_and_ends_with_them() {
    let run = Workdir::new("rehosts-spare");
    let expected = undisturbed(&run, &LONGER);
    let more = ["--set", "ranks.min_hosts=1", "--set", "ranks.host_wait_ms=0"];
    let hosts = Hosts::new(&run, 2, &[&LONGER[..], &more].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 7);
    send(jobs[1].pid(), libc::SIGSTOP);
    started_again(&run, &mut jobs[0]);
    send(jobs[1].pid(), libc::SIGCONT);
    let done: Vec<Done> = jobs.into_iter().map(Job::wait).collect();
    done.iter().for_each(well);
    says(&done[1].stderr, &["this host was taken for gone: the host's supervisor said"], &done[1]);
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn too_few_hosts_end_the_run_with_the_reason() {
    let run = Workdir::new("rehosts-few");
    let hosts = Hosts::new(&run, 3, &[&LONG[..], &["--set", "ranks.host_wait_ms=500"]].concat());
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 3);
    send(jobs[1].pid(), libc::SIGKILL);
    let killed = jobs.remove(1);
    for done in jobs.into_iter().map(Job::wait) {
        assert_eq!(done.code(), Some(3), "{done}");
        let why = "That leaves 2 of 3 hosts, and 3 are needed (ranks.min_hosts)";
        says(&done.stderr, &[why, "Gone: node 1 (the host's supervisor "], &done);
    }
    drop(killed);
}

#[test]
fn node_0_that_is_killed_ends_the_others() {
    let run = Workdir::new("rehosts-zero");
    let hosts = Hosts::new(&run, 3, &LONG);
    let mut jobs = hosts.start_all();
    steps(&run, &mut jobs[0], 3);
    send(jobs[0].pid(), libc::SIGKILL);
    let killed = jobs.remove(0);
    for done in jobs.into_iter().map(Job::wait) {
        assert_eq!(done.code(), Some(3), "{done}");
        let why = "Node 0, which decides whether the ranks start again, is lost: ";
        says(&done.stderr, &[why], &done);
    }
    drop(killed);
}

#[test]
fn the_same_failure_at_the_same_step_ends_it_on_all_hosts() {
    let run = Workdir::new("rehosts-same");
    let more = ["--set", "checkpoint.every=3", "--set", "checkpoint.mode=sync"];
    let limit = ["--set", "ranks.step_timeout_ms=1500"];
    let hosts = Hosts::new(&run, 2, &[&LONG[..], &more, &limit].concat());
    let start = |node: usize| {
        let place = format!(
            "--rendezvous 127.0.0.1:{} --nodes 2 --node-rank {node} --ranks 2 --backend tcp",
            hosts.port
        );
        let args: Vec<&str> = place.split(' ').chain(hosts.more.iter().copied()).collect();
        let mut command = run.command(&args);
        // No save gets past it.
        command.env("MUSTER_SLOW_DISK", "fsync,rank-00001,60000");
        run.spawn(command)
    };
    let jobs = [start(0), start(1)];
    for done in jobs.map(Job::wait) {
        assert_eq!(done.code(), Some(3), "{done}");
        let why = "It was the same failure twice after step 3, so the ranks were not started again";
        says(&done.stderr, &[why], &done);
    }
    assert_eq!(restarts(&run), 1);
}

#[test]
fn who_asks_one_host_to_stop_ends_all_in_training_and_while_they_wait() {
    for node in [0, 1] {
        let run = Workdir::new(&format!("rehosts-term-{node}"));
        let mut jobs = Hosts::new(&run, 2, &LONG).start_all();
        steps(&run, &mut jobs[0], 2);
        jobs[node].signal(libc::SIGTERM);
        for done in jobs.into_iter().map(Job::wait) {
            assert_eq!(done.code(), Some(75), "{done}");
        }
        assert_eq!(run.finished(&run.name)["reason"], "terminated");
        let run = Workdir::new(&format!("rehosts-wait-{node}"));
        let more = ["--set", "ranks.host_wait_ms=120000"];
        let mut jobs = Hosts::new(&run, 3, &[&LONG[..], &more].concat()).start_all();
        steps(&run, &mut jobs[0], 2);
        let killed = jobs.remove(2);
        send(killed.pid(), libc::SIGKILL);
        assert!(jobs[0].wait_until_it_says("node 2 is gone"), "it has ended early");
        jobs[node].signal(libc::SIGTERM);
        for done in jobs.into_iter().map(Job::wait) {
            assert_eq!(done.code(), Some(75), "{done}");
        }
        drop(killed);
    }
}
