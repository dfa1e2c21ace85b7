//! `muster bench links` as people run it: all pairs are measured, and a slowed host is found. Hosts
//! are network namespaces on one switch, of which `tc` slows one; that needs root, `ip` and `tc`,
//! and elsewhere the test says that it was skipped, and why.

mod common;

use std::process::{Command, Stdio};

use common::{MUSTER, Workdir, skip};
use serde_json::Value;

fn report(run: &Workdir) -> Value {
    let text = std::fs::read_to_string(run.path().join("l.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn all_pairs_are_measured_in_both_directions() {
    for (backend, ranks) in [("shm", "4"), ("tcp", "3")] {
        let run = Workdir::new("links");
        let args = ["bench", "links", "--ranks", ranks, "--backend", backend];
        let files = ["--size", "64KiB", "--messages", "4", "--json", "l.json", "--csv", "l.csv"];
        let done = run.muster(&[&args[..], &files].concat());
        assert_eq!(done.code(), Some(0), "{done}");
        let report = report(&run);
        let edges = report["edges"].as_array().unwrap();
        let count: usize = ranks.parse().unwrap();
        assert_eq!(edges.len(), count * (count - 1), "{report}");
        for edge in edges {
            assert!(edge["gb_per_s"].as_f64().unwrap() > 0.0, "{report}");
            assert!(edge["round_trip_us"].as_f64().unwrap() > 0.0, "{report}");
        }
        let seats = report["seats"].as_array().unwrap();
        let rails: Vec<u64> = seats.iter().map(|seat| seat["rail"].as_u64().unwrap()).collect();
        assert_eq!(rails, (0..count as u64).collect::<Vec<_>>(), "{report}");
        assert_eq!(report["hosts"].as_array().unwrap().len(), 1, "{report}");
        assert!(done.stdout.contains(&format!("# {ranks} ranks on 1 host, {backend}")), "{done}");
        let cores = std::thread::available_parallelism().unwrap().get();
        let crowds = report["crowds"].as_array().unwrap();
        assert_eq!(crowds.len(), usize::from(cores < count), "{report}");
        assert_eq!(done.stdout.contains("warning: "), cores < count, "{done}");
        let csv = std::fs::read_to_string(run.path().join("l.csv")).unwrap();
        assert_eq!(csv.lines().count(), 1 + edges.len());
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let run = Workdir::new("links-refused");
    for (more, said) in [
        (&["--ranks", "1"][..], "--ranks 1: a link has two ends; use 2 or more"),
        (&["--ranks", "2", "--size", "4"], "4 bytes; use 8 to 1GiB"),
        (&["--ranks", "2", "--messages", "0"], "0 is not in 1"),
    ] {
        let done = run.muster(&[&["bench", "links"], more].concat());
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(done.stderr.contains(said), "{done}");
    }
}

/// Runs a command; what it said if it failed.
fn system(program: &str, args: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    let output = command.args(args.split(' ')).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("cannot run {program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{program} {args}: {}", said.trim()))
        }
    }
}

/// Namespaces on a switch that is one, too; removed when dropped.
struct Hosts {
    id: u32,
    count: usize,
}

impl Hosts {
    fn new(count: usize) -> Result<Hosts, String> {
        let hosts = Hosts { id: std::process::id(), count };
        let switch = hosts.name("s");
        system("ip", &format!("netns add {switch}"))?;
        system("ip", &format!("-n {switch} link add sw0 type bridge"))?;
        system("ip", &format!("-n {switch} link set sw0 up"))?;
        for host in 0..count {
            let name = hosts.name(&host.to_string());
            system("ip", &format!("netns add {name}"))?;
            let pair =
                format!("link add eth0 netns {name} type veth peer name p{host} netns {switch}");
            system("ip", &pair)?;
            system("ip", &format!("-n {switch} link set p{host} master sw0 up"))?;
            system("ip", &format!("-n {name} addr add {}/24 dev eth0", hosts.addr(host)))?;
            system("ip", &format!("-n {name} link set eth0 up"))?;
            system("ip", &format!("-n {name} link set lo up"))?;
        }
        Ok(hosts)
    }

    fn name(&self, end: &str) -> String {
        format!("muster-links-{}-{end}", self.id)
    }

    fn addr(&self, host: usize) -> String {
        format!("10.204.{}.{}", self.id % 250, host + 1)
    }

    /// Lets a host send at so many bits a second.
    fn slow(&self, host: usize, rate: &str) -> Result<(), String> {
        let name = self.name(&host.to_string());
        let limit = format!("tbf rate {rate} burst 256kb latency 200ms");
        system("ip", &format!("netns exec {name} tc qdisc add dev eth0 root {limit}"))
    }

    fn command(&self, host: usize, args: &[String]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(&host.to_string()), MUSTER]).args(args);
        command
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for end in (0..self.count).map(|host| host.to_string()).chain(["s".to_owned()]) {
            // The links go with their ends; a namespace that was never made is no loss.
            let _ = system("ip", &format!("netns del {}", self.name(&end)));
        }
    }
}

#[test]
fn a_slowed_host_is_named() {
    const HOSTS: usize = 4;
    const SLOW: usize = 2;
    let hosts =
        match Hosts::new(HOSTS).and_then(|hosts| hosts.slow(SLOW, "200mbit").map(|()| hosts)) {
            Ok(hosts) => hosts,
            Err(why) => return skip(&why),
        };
    let run = Workdir::new("links-slow");
    let start = |host: usize| {
        let line = format!(
            "bench links --ranks {HOSTS} --backend tcp --nodes {HOSTS} --node-rank {host} \
             --rendezvous {}:4200 --bind {} --size 1MiB --messages 6 --launcher none",
            hosts.addr(0),
            hosts.addr(host)
        );
        let mut args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        if host == 0 {
            args.extend(["--json", "l.json", "--fail"].map(str::to_owned));
        }
        run.spawn(hosts.command(host, &args))
    };
    let jobs: Vec<_> = (0..HOSTS).map(start).collect();
    let done: Vec<_> = jobs.into_iter().map(|job| job.wait()).collect();
    assert_eq!(done[0].code(), Some(3), "{}", done[0]);
    assert!(done[0].stderr.contains("slow: host 2 sends 0.0"), "{}", done[0]);
    // It was measured three times, each time with the rest of its rounds.
    assert!(done[0].stderr.contains(" of 9 rounds"), "{}", done[0]);
    for other in &done[1..] {
        assert_eq!(other.code(), Some(0), "{other}");
    }
    let report = report(&run);
    assert_eq!(report["hosts"].as_array().unwrap().len(), HOSTS, "{report}");
    let first = &report["findings"][0];
    assert_eq!(first["part"]["host"]["host"], SLOW, "{report}");
    assert_eq!(first["part"]["host"]["sends"], true, "{report}");
    // 200 Mbit/s are 0.025 GB/s.
    let seen = first["gb_per_s"].as_f64().unwrap();
    assert!((0.01..0.05).contains(&seen), "{report}");
}
