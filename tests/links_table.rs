//! A measured table of links reaches the trainer: the one that `bench collectives` writes sets the
//! size of buckets, says so, and changes no bit of the weights.

mod common;

use std::path::Path;
use std::process::Command;

use common::{Done, Job, MUSTER, Workdir, free_port};
use serde_json::Value;

/// Runs `muster …` with a cache of the test's own.
fn muster(run: &Workdir, args: &[&str]) -> Done {
    let mut command = Command::new(MUSTER);
    command.args(args).env("XDG_CACHE_HOME", run.path().join("cache"));
    run.spawn(command).wait()
}

/// Measures links between two ranks, quickly.
fn measure(run: &Workdir, more: &[&str]) -> Done {
    let mut args = vec!["bench", "collectives", "reduce_scatter", "--ranks", "2", "--threads", "1"];
    args.extend(["--seconds", "0.02", "--min", "4KiB", "--max", "4MiB", "--place", "out"]);
    args.extend(more);
    let done = muster(run, &args);
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    done
}

/// The line of the header that tells of buckets.
fn buckets(done: &Done) -> String {
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    let line = done.stdout.lines().find(|line| line.starts_with("  buckets "));
    line.unwrap_or_else(|| panic!("{}", done.stdout)).to_owned()
}

fn dry_run(run: &Workdir, more: &[&str]) -> String {
    let ranks: &[&str] = if more.contains(&"--ranks") { &[] } else { &["--ranks", "2"] };
    buckets(&muster(run, &[&["train", "run.yaml", "--dry-run"], ranks, more].concat()))
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn a_table_sets_the_size_of_buckets_and_no_bit() {
    let run = Workdir::new("links-table");
    let done = measure(&run, &["--links", "links.json", "--json", "report.json"]);
    for words in ["# Fitted: time", "n1/2 ", "roofline: ", "bucket: "] {
        assert!(done.stdout.contains(words), "{words}\n{}", done.stdout);
    }
    let table = json(&run.path().join("links.json"));
    assert_eq!(
        (&table["links"], &table["curves"][0]["key"]["transport"]),
        (&2.into(), &"shm".into())
    );
    assert!(table["hosts"][0]["name"].is_string() && table["tool"]["commit"].is_string());
    assert_eq!(table["curves"], json(&run.path().join("report.json"))["curves"]);

    let from_file = ["--set", "ranks.links=links.json"];
    let line = dry_run(&run, &from_file);
    assert!(line.contains(" GB/s at ") && line.contains("(links.json"), "{line}");
    assert!(
        dry_run(&run, &["--set", "ranks.links=off"]).ends_with("the default: ranks.links is off")
    );
    // A configured size wins over a table, even one that cannot be read.
    let both = ["--set", "ranks.links=none.json", "--set", "ranks.bucket_bytes=65536"];
    let line = dry_run(&run, &both);
    assert!(line.contains(" of 64.0 KiB: as configured (ranks.bucket_bytes)"), "{line}");

    let train = |name: &str, more: &[&str]| {
        let args = ["train", "run.yaml", "--ranks", "2", "--name", name];
        let line = buckets(&muster(&run, &[&args[..], more].concat()));
        (line, run.final_digest(name))
    };
    let (line, measured) = train("measured", &from_file);
    assert!(line.contains("(links.json"), "{line}");
    let (line, small) = train("small", &["--set", "ranks.bucket_bytes=4096"]);
    assert!(!line.contains(" 1 bucket "), "{line}");
    assert_eq!(measured, small);
    assert_eq!(measured, train("large", &["--set", "ranks.links=off"]).1);
    // The resolved config says what was asked for, not what was found.
    let kept = std::fs::read_to_string(run.run_dir("measured").join("config.yaml")).unwrap();
    assert!(kept.contains("links: links.json") && !kept.contains("bucket_bytes"), "{kept}");
}

#[test]
fn the_users_cache_is_found_for_the_same_place_alone() {
    let run = Workdir::new("links-cache");
    let line = dry_run(&run, &[]);
    assert!(line.contains("no table of links for 2 ranks over shm"), "{line}");
    let done = measure(&run, &["--links", "auto"]);
    assert!(
        done.stderr.contains("wrote ") && done.stderr.contains("-shm-2.json"),
        "{}",
        done.stderr
    );
    let line = dry_run(&run, &[]);
    assert!(line.contains("-shm-2.json"), "{line}");
    for (more, words) in [
        (&["--ranks", "3"][..], "no table of links for 3 ranks over shm"),
        (&["--backend", "tcp"], "no table of links for 2 ranks over tcp"),
    ] {
        let line = dry_run(&run, more);
        assert!(line.contains(words), "{line}");
    }
    // One that cannot be read is told of, and keeps nobody from training.
    let cache = run.path().join("cache/muster/links");
    let path = std::fs::read_dir(&cache).unwrap().next().unwrap().unwrap().path();
    let old = std::fs::read_to_string(&path).unwrap().replacen("\"links\": 2", "\"links\": 1", 1);
    std::fs::write(&path, old).unwrap();
    let line = dry_run(&run, &[]);
    assert!(line.contains("the default: ") && line.contains("version 1"), "{line}");
    // A table of the run itself comes first.
    std::fs::create_dir_all(run.run_dir("links-cache")).unwrap();
    measure(&run, &["--links", "runs/links-cache/links.json"]);
    let line = dry_run(&run, &[]);
    assert!(line.contains("runs/links-cache/links.json"), "{line}");
}

#[test]
fn a_table_that_was_named_must_fit() {
    let run = Workdir::new("links-misfit");
    measure(&run, &["--links", "links.json"]);
    let text = std::fs::read_to_string(run.path().join("links.json")).unwrap();
    let refused = |text: Option<&str>, more: &[&str]| {
        let path = run.path().join("other.json");
        let _ = std::fs::remove_file(&path);
        text.iter().for_each(|text| std::fs::write(&path, text).unwrap());
        let args = ["train", "run.yaml", "--dry-run", "--ranks", "2"];
        let set = ["--set", "ranks.links=other.json"];
        let done = muster(&run, &[&args[..], &set, more].concat());
        assert_eq!(done.code(), Some(2), "{}", done.stderr);
        done.stderr
    };
    for (changed, more, words) in [
        (None, &[][..], "other.json"),
        (Some("no table".to_owned()), &[], "line 1"),
        (Some(text.replacen("\"links\": 2", "\"links\": 1", 1)), &[], "version 1"),
        (Some(text.replacen("\"alpha_us\": ", "\"alpha_us\": -1", 1)), &[], "below 0"),
        (Some(text.clone()), &["--backend", "tcp"], "measured over shm, not over tcp"),
    ] {
        let told = refused(changed.as_deref(), more);
        assert!(told.contains(words) && told.contains("ranks.links"), "{words}\n{told}");
    }
    // Another number of ranks is near enough, and told.
    let args = ["--ranks", "4", "--set", "ranks.links=links.json"];
    let line = buckets(&muster(&run, &[&["train", "run.yaml", "--dry-run"][..], &args].concat()));
    assert!(line.contains("of 2 ranks, the nearest that was measured"), "{line}");
}

#[test]
fn a_table_needs_a_fit() {
    let run = Workdir::new("links-few");
    let args = ["bench", "collectives", "all_reduce", "--ranks", "2", "--seconds", "0.02"];
    // Known before anything is measured, and what it takes is told.
    let few = |max: &'static str, links| ["--min", "1KiB", "--max", max, "--links", links];
    for links in ["links.json", "auto"] {
        let done = muster(&run, &[&args[..], &few("2KiB", links)].concat());
        assert_eq!((done.code(), &done.stdout[..]), (Some(2), ""), "{done}");
        let words = "--links: a fit takes 3 sizes, and no case has as many; use --max 4096 or more";
        assert!(done.stderr.contains(words), "{done}");
        let done = muster(&run, &[&args[..], &few("4096", links)].concat());
        assert_eq!(done.code(), Some(0), "{done}");
    }
    let args_of_barrier = ["bench", "collectives", "barrier", "--ranks", "2", "--links", "b.json"];
    let done = muster(&run, &args_of_barrier);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(done.stderr.contains("name an operation that moves bytes"), "{done}");
    // A cache that cannot be made.
    std::fs::write(run.path().join("file"), "").unwrap();
    let mut command = Command::new(MUSTER);
    command.args(args).args(["--links", "auto"]).env("XDG_CACHE_HOME", run.path().join("file"));
    let done = run.spawn(command).wait();
    assert_eq!((done.code(), &done.stdout[..]), (Some(2), ""), "{done}");
    assert!(done.stderr.contains("cannot write into "), "{done}");
    let nodes =
        ["--nodes", "2", "--node-rank", "0", "--rendezvous", "127.0.0.1:1", "--backend", "tcp"];
    let done = muster(&run, &[&args[..], &nodes, &["--links", "auto"]].concat());
    assert_eq!(done.code(), Some(2), "{}", done.stderr);
    assert!(done.stderr.contains("name a file that all of them read"), "{}", done.stderr);
}

/// A machine may have several hosts of a job: a table of them counts as a run on them does.
#[test]
fn several_nodes_of_a_machine_read_what_as_many_measured() {
    let run = Workdir::new("links-nodes");
    let place = |port: u16, node: usize, nodes: usize| {
        let place = format!("--backend tcp --nodes {nodes} --node-rank {node} --ranks 4");
        let words = format!("{place} --rendezvous 127.0.0.1:{port}");
        words.split(' ').map(str::to_owned).collect::<Vec<_>>()
    };
    let port = free_port();
    let measure = |node: usize| {
        let words = "bench collectives reduce_scatter all_reduce --threads 1 --seconds 0.02 \
                     --min 4KiB --max 64KiB --place out";
        let mut command = Command::new(MUSTER);
        command.args(words.split_whitespace()).args(place(port, node, 2));
        command.args((node == 0).then_some("--links=links.json")).env_remove("MUSTER_SECRET");
        run.spawn(command)
    };
    for done in [0, 1].map(measure).map(Job::wait) {
        assert_eq!(done.code(), Some(0), "{done}");
    }
    let table = json(&run.path().join("links.json"));
    let hosts = table["hosts"].as_array().unwrap().iter();
    assert_eq!(hosts.map(|host| host["ranks"].to_string()).collect::<Vec<_>>(), ["[0,1]", "[2,3]"]);

    let dry_run = |nodes| {
        let mut command = run.command(&["--dry-run", "--set", "ranks.links=links.json"]);
        command.args(place(free_port(), 0, nodes)).env_remove("MUSTER_SECRET");
        run.spawn(command).wait()
    };
    let line = buckets(&dry_run(2));
    assert!(line.contains(" of reduce_scatter, ") && line.contains("(links.json"), "{line}");
    let other = dry_run(4);
    assert_eq!(other.code(), Some(2), "{other}");
    let words = "measured on 2 hosts, and this run is on 4 hosts";
    assert!(other.stderr.contains(words), "{other}");
}
