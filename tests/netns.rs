//! A job over two network namespaces that share no `/dev/shm`: two hosts, as far as the program
//! can tell. Needs root and `ip`; elsewhere the test says that it was skipped, and why.
//!
//! ```text
//! namespace A ── veth ──────── veth ── namespace B
//! 10.203.X.1, rank 0, server           10.203.X.2, rank 1
//! own tmpfs on /dev/shm                own tmpfs on /dev/shm
//! ```

mod common;

use std::process::{Command, Stdio};

use common::{MUSTER, Workdir, skip};

/// Runs `ip …`; what it said if it failed.
fn ip(args: &str) -> Result<(), String> {
    let mut command = Command::new("ip");
    let output = command.args(args.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run ip: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("ip {args}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Two connected namespaces, removed when dropped.
struct Hosts {
    names: [String; 2],
    addrs: [String; 2],
}

impl Hosts {
    fn new() -> Result<Hosts, String> {
        let id = std::process::id();
        let names = ["a", "b"].map(|end| format!("muster-{id}-{end}"));
        // Another third byte for tests that run at once.
        let addrs = [1, 2].map(|host| format!("10.203.{}.{host}", id % 250));
        let hosts = Hosts { names, addrs };
        let ([a, b], links) =
            (&hosts.names, ["a", "b"].map(|end| format!("mu{}{end}", id % 100_000)));
        ip(&format!("netns add {a}"))?;
        ip(&format!("netns add {b}"))?;
        let [one, two] = &links;
        ip(&format!("link add {one} netns {a} type veth peer name {two} netns {b}"))?;
        for ((name, link), addr) in hosts.names.iter().zip(&links).zip(&hosts.addrs) {
            ip(&format!("-n {name} addr add {addr}/24 dev {link}"))?;
            ip(&format!("-n {name} link set {link} up"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        Ok(hosts)
    }

    /// A shell line in a namespace, with a `/dev/shm` of its own.
    fn command(&self, host: usize, line: &str) -> Command {
        let line = format!("mount -t tmpfs -o size=1m tmpfs /dev/shm && {line}");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.names[host], "unshare", "-m", "sh", "-c", &line]);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for name in &self.names {
            // The veth pair goes with its ends; a namespace that was never made is no loss.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

#[test]
fn two_hosts_in_networks_of_their_own_have_the_bits_of_one() {
    let hosts = match Hosts::new() {
        Ok(hosts) => hosts,
        Err(why) => return skip(&why),
    };
    let run = Workdir::new("netns");
    let probe = run.spawn(hosts.command(0, "true")).wait();
    if probe.code() != Some(0) {
        return skip(&format!("no mount namespaces: {}", probe.stderr.trim()));
    }
    let expected = run.digest("one-host", &["--ranks", "2"]);
    // Checkpoints lie on a file system that both hosts reach; events are node 0's.
    let start = |node: usize| {
        let (meet, bind) = (&hosts.addrs[0], &hosts.addrs[node]);
        let line = format!(
            "exec {MUSTER} train run.yaml --name two-hosts --ranks 4 --backend tcp --nodes 2 \
             --node-rank {node} --rendezvous {meet}:4100 --bind {bind} --set checkpoint.every=3"
        );
        run.spawn(hosts.command(node, &line))
    };
    let jobs = [start(0), start(1)];
    let [first, second] = jobs.map(|job| job.wait());
    assert_eq!((first.code(), second.code()), (Some(0), Some(0)), "{first}\n{second}");
    // All that the second host shows.
    let shown: Vec<&str> = second.stdout.lines().collect();
    assert_eq!(shown.len(), 2, "{second}");
    assert!(shown[0].starts_with("node 1 of 2: ranks ") && shown[0].contains("4100"), "{second}");
    assert_eq!(shown[1], "node 1: its ranks are done");
    assert_eq!(run.final_digest("two-hosts"), expected);
    assert_eq!(run.events_of("two-hosts", "header")[0]["backend"], "shm+tcp 2 × 2");
    assert_eq!(run.verify("two-hosts"), 2);
}
