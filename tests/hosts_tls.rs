//! TLS between hosts, as people use it. Hosts are processes of one host here.

#[path = "../crates/comm/tests/common/certificates.rs"]
#[allow(dead_code)]
mod certificates;
mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use certificates::{Authority, Made};
use common::{Done, Job, MUSTER, Workdir, free_port};

/// Both hosts say what is wrong within this, though their timeout is a minute.
const SOON: Duration = Duration::from_secs(20);

fn place(port: u16, node: usize) -> Vec<String> {
    let words = format!(
        "--rendezvous 127.0.0.1:{port} --nodes 2 --node-rank {node} --ranks 2 --backend tcp"
    );
    words.split(' ').map(str::to_owned).collect()
}

fn host(run: &Workdir, port: u16, node: usize, more: &[&str]) -> Job {
    let mut command = run.command(more);
    command.args(place(port, node)).env("MUSTER_SECRET", "the secret of this job");
    run.spawn(command)
}

/// A directory of a host with these.
fn dir(run: &Workdir, name: &str, made: &Made, authority: &Authority) {
    let dir = run.path().join(name);
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("certificate.pem"), &made.certificate).unwrap();
    std::fs::write(dir.join("authority.pem"), &authority.pem).unwrap();
    let key = dir.join("key.pem");
    std::fs::write(&key, &made.key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
}

/// Directories of two hosts of a job, `one` and `two`.
fn hosts(run: &Workdir) -> Authority {
    let authority = Authority::new();
    for name in ["one", "two"] {
        dir(run, name, &authority.sign(2000, 4000), &authority);
    }
    authority
}

fn is_well(done: &Done) {
    assert_eq!(done.code(), Some(0), "{done}");
}

fn warnings(run: &Workdir) -> Vec<String> {
    let events = run.events_of(&run.name, "warning").into_iter();
    events.filter_map(|event| Some(event["message"].as_str()?.to_owned())).collect()
}

#[test]
fn weights_over_tls_are_those_of_one_host() {
    let run = Workdir::new("tls-run");
    hosts(&run);
    let expected = run.digest("alone", &["--ranks", "2"]);
    let port = free_port();
    let keys = "ranks.tls={certificate: two/certificate.pem, key: two/key.pem, \
                authority: two/authority.pem}";
    let more = [&["--tls", "one"][..], &["--set", keys]];
    [0, 1].map(|node| host(&run, port, node, more[node])).map(Job::wait).iter().for_each(is_well);
    assert_eq!(run.final_digest(&run.name), expected);
    // A host that is alone has nothing to hide, and says so.
    let alone = run.train(&["--ranks", "2", "--backend", "tcp", "--tls", "none", "--name", "one"]);
    is_well(&alone);
    let said = "ranks.tls is for jobs of several hosts; this one has one host, inside of which \
                nothing is encrypted";
    assert!(format!("{}{}", alone.stdout, alone.stderr).contains(said), "{alone}");
}

/// A host that is not taken is named by itself and by node 0; then the right one is taken.
#[test]
fn a_host_that_is_not_taken_is_named_on_both_sides_and_the_job_goes_on() {
    let run = Workdir::new("tls-strangers");
    let authority = hosts(&run);
    let other = Authority::new();
    dir(&run, "other", &other.sign(2000, 4000), &other);
    dir(&run, "expired", &authority.sign(2001, 2002), &authority);
    std::fs::create_dir(run.path().join("empty")).unwrap();
    let port = free_port();
    let mut first = host(&run, port, 0, &["--tls", "one"]);
    first.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let meeting = format!("error: the meeting point at 127.0.0.1:{port}, node 0 of the job,");
    for (more, said, told) in [
        (
            &["--tls", "other"][..],
            format!("{meeting} has no certificate of this job's authority"),
            "which takes this process's certificate for one of another authority",
        ),
        (&[], format!("{meeting} speaks TLS alone"), "which speaks without TLS"),
        (
            &["--tls", "expired"],
            "error: ranks.tls.certificate: expired/certificate.pem has a certificate that expired \
             at 2002-01-01 00:00:00 UTC, and the clock here says 2"
                .into(),
            "which has a certificate that expired at 2002-01-01 00:00:00 UTC",
        ),
        (
            &["--tls", "empty"],
            "error: ranks.tls.certificate: cannot read empty/certificate.pem: No such file".into(),
            "turned away node 1 from 127.0.0.1, which says, without a proof, that it will not \
             start: its files of TLS cannot be used; see its own messages",
        ),
    ] {
        let begun = Instant::now();
        let guest = host(&run, port, 1, &[more, &["--name", "guest"]].concat()).wait();
        assert_eq!(guest.code(), Some(2), "{guest}");
        assert!(guest.stderr.contains(&said), "{said}\n{guest}");
        let is_told = || warnings(&run).iter().any(|warning| warning.contains(told));
        assert!(first.wait_until(is_told), "{told}: {:?}", warnings(&run));
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    let second = host(&run, port, 1, &["--tls", "two"]);
    [first.wait(), second.wait()].iter().for_each(is_well);
    // And the other way round.
    let port = free_port();
    let mut first = host(&run, port, 0, &["--name", "plain"]);
    first.wait_until(|| std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let guest = host(&run, port, 1, &["--tls", "two", "--name", "guest"]).wait();
    assert_eq!(guest.code(), Some(2), "{guest}");
    let said =
        format!("error: the meeting point at 127.0.0.1:{port}, node 0 of the job, speaks without");
    assert!(guest.stderr.starts_with(&said), "{guest}");
}

/// Where node 0 cannot use its files, it says so at once, and those who come hear it.
#[test]
fn node_0_that_cannot_use_its_files_tells_the_others_at_once() {
    let run = Workdir::new("tls-zero");
    hosts(&run);
    let port = free_port();
    let missing = "error: ranks.tls.certificate: cannot read none/certificate.pem: No such file";
    let in_part = ["--set", "ranks.tls.certificate=one/certificate.pem"];
    let two = ["--tls", "two"];
    // Files that are not there, and sections of a config that are none.
    for (more, wrong, said) in [
        (&two[..], &["--tls", "none"][..], missing),
        (&[], &["--tls", "none"], missing),
        (&two, &in_part, "mistakes in run.yaml"),
        (&two, &["--set", "ranks.tls=one"], "1 mistake in run.yaml"),
    ] {
        let begun = Instant::now();
        let second = host(&run, port, 1, &[more, &["--name", "second"]].concat());
        let mut first = host(&run, port, 0, wrong);
        assert!(first.wait_until_it_says(said), "{}", first.wait());
        let second = second.wait();
        assert_eq!(second.code(), Some(3), "{second}");
        let told = format!(
            "error: node 0 ended before the job began: its files of TLS cannot be used, as who \
             listens at 127.0.0.1:{port} says without a proof; see node 0's own messages\n"
        );
        assert!(second.stderr.starts_with(&told), "{second}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        let first = first.wait();
        assert_eq!(first.code(), Some(2), "{first}");
        assert_eq!(first.stderr.matches(said).count(), 1, "{first}");
    }
}

#[test]
fn files_that_are_not_what_they_should_be_are_named() {
    let run = Workdir::new("tls-files");
    let authority = hosts(&run);
    let (one, two) = (authority.sign(2000, 4000), authority.sign(2000, 4000));
    dir(&run, "open", &one, &authority);
    dir(&run, "mixed", &Made { certificate: one.certificate, key: two.key }, &authority);
    let key = run.path().join("open/key.pem");
    std::fs::set_permissions(key, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(run.path().join("two/authority.pem"), "text").unwrap();
    // All at once: each stays for a while to tell the other host.
    let jobs = [
        ("open", "key", "others than its owner may use open/key.pem (mode 644)"),
        ("mixed", "key", "mixed/key.pem is not the key of the certificate; give both files of"),
        ("two", "authority", "two/authority.pem holds no certificate; give a PEM file"),
        ("none", "certificate", "cannot read none/certificate.pem: No such file"),
    ]
    .map(|(name, part, said)| {
        let train = host(&run, free_port(), 0, &["--tls", name]);
        let mut bench = Command::new(MUSTER);
        bench.args(["bench", "links", "--tls", name]).args(place(free_port(), 0));
        let expected =
            [format!("error: ranks.tls.{part}: {said}"), format!("error: --tls: {said}")];
        ([train, run.spawn(bench)], expected)
    });
    for (job, said) in jobs.into_iter().flat_map(|(jobs, said)| jobs.into_iter().zip(said)) {
        let done = job.wait();
        assert_eq!(done.code(), Some(2), "{done}");
        assert!(done.stderr.starts_with(&said), "{done}");
    }
}

#[test]
fn benchmarks_over_hosts_have_it_too() {
    let run = Workdir::new("tls-bench");
    hosts(&run);
    for words in ["links --messages 2 --size 4KiB", "collectives all_reduce --max 1KiB"] {
        let port = free_port();
        let start = |node: usize, name: &str| {
            let mut command = Command::new(MUSTER);
            command.arg("bench").args(words.split(' ')).args(place(port, node));
            command.args(["--timeout-ms", "20000", "--tls", name]).env_remove("MUSTER_SECRET");
            run.spawn(command)
        };
        let [first, second] = [start(0, "one"), start(1, "two")].map(Job::wait);
        [&first, &second].into_iter().for_each(is_well);
        // There is no secret, and whoever has no certificate is kept out all the same.
        assert!(!first.stderr.contains("have no common secret"), "{first}");
    }
}
