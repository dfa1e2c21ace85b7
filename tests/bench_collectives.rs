//! `muster bench collectives` as people run it: every operation is measured and checked on both
//! transports, a wrong bit is found, mistakes and lost ranks are named.

mod common;

use std::collections::BTreeSet;
use std::process::Command;

use common::{Job, Workdir, free_port};
use serde_json::Value;

const OPS: [&str; 10] = [
    "all_reduce",
    "reduce_scatter",
    "all_gather",
    "broadcast",
    "reduce",
    "gather",
    "scatter",
    "all_to_all",
    "send_recv",
    "barrier",
];

/// The arguments of a short run.
fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec!["bench", "collectives"];
    args.extend(["--threads", "1", "--seconds", "0.02", "--json", "r.json"]);
    args.extend(more);
    args
}

/// Starts `muster` with such arguments.
fn start(run: &Workdir, more: &[&str]) -> Job {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(args(more));
    run.spawn(command)
}

fn rows(run: &Workdir) -> Vec<Value> {
    let text = std::fs::read_to_string(run.path().join("r.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["complete"], true, "{report}");
    report["rows"].as_array().unwrap().clone()
}

fn refused(more: &[&str]) -> String {
    let run = Workdir::new("collectives-refused");
    let done = run.muster(&args(more));
    assert_eq!(done.code(), Some(2), "{more:?}\n{}", done.stderr);
    done.stderr
}

/// More inputs than one kernel takes.
#[test]
fn many_ranks_reduce_little() {
    let run = Workdir::new("collectives-many");
    let more = ["all_reduce", "reduce_scatter", "--ranks", "26", "--min", "1KiB", "--max", "1KiB"];
    let done = run.muster(&args(&more));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    assert!(rows(&run).iter().all(|row| row["check"]["wrong"] == 0));
}

#[test]
fn every_operation_is_measured_and_right_on_both_transports() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new("collectives-all");
        let mut more = OPS.to_vec();
        more.extend(["--ranks", "3", "--backend", backend, "--odd", "--csv", "r.csv"]);
        more.extend(["--min", "8", "--max", "600KiB", "--factor", "64", "--svg", "r.svg"]);
        let done = run.muster(&args(&more));
        assert_eq!(done.code(), Some(0), "{backend}\n{}", done.stderr);
        let rows = rows(&run);
        let ops: BTreeSet<_> = rows.iter().filter_map(|row| row["key"]["op"].as_str()).collect();
        assert_eq!(ops, OPS.into_iter().collect(), "{backend}");
        for row in &rows {
            let (wrong, launches) = (&row["check"]["wrong"], &row["check"]["launches"]);
            assert_eq!(wrong, 0, "{backend}: {row}");
            assert!(launches.as_u64() > Some(0), "{backend}: {row}");
            assert!(row["times"]["p50_us"].as_f64() > Some(0.0), "{backend}: {row}");
            assert_eq!(row["key"]["transport"], backend);
            assert_eq!(row["per_rank"].as_array().map(Vec::len), Some(3), "{backend}: {row}");
        }
        // Sizes are what the ranks' parts add up to, and no rows are twice there.
        let keys: BTreeSet<String> = rows.iter().map(|row| row["key"].to_string()).collect();
        assert_eq!(keys.len(), rows.len(), "{backend}");
        let csv = std::fs::read_to_string(run.path().join("r.csv")).unwrap();
        assert_eq!(csv.lines().count(), rows.len() + 1, "{backend}");
        let svg = std::fs::read_to_string(run.path().join("r.svg")).unwrap();
        assert!(svg.trim_start().starts_with("<svg"), "{backend}");
        assert!(done.stdout.contains("Collective test starting: all_reduce_perf"));
        let same = run.muster(&["bench", "compare", "r.json", "r.json"]);
        assert_eq!(same.code(), Some(0), "{}", same.stderr);
    }
}

#[test]
fn every_type_reduction_root_and_place_is_measured_and_right() {
    let (types, redops) = ("f32,f64,bf16,f16,i32,i64,u8", "sum,prod,min,max,avg");
    for backend in ["shm", "tcp"] {
        let run = Workdir::new("collectives-types");
        let mut more = vec!["--ops", "all_reduce,reduce_scatter,reduce,gather", "scatter"];
        more.extend(["--ranks", "3", "--backend", backend, "--dtypes", types, "--redops", redops]);
        more.extend(["--roots", "0,2", "--min", "100", "--max", "70000", "--factor", "700"]);
        more.extend(["--iterations", "12"]);
        let done = run.muster(&args(&more));
        assert_eq!(done.code(), Some(0), "{backend}\n{}", done.stderr);
        let rows = rows(&run);
        assert!(rows.iter().all(|row| row["check"]["wrong"] == 0), "{backend}");
        let count = |op: &str| rows.iter().filter(|row| row["key"]["op"] == op).count();
        // Two sizes, two places; types by reductions, or by roots, or by both.
        let counts = ["all_reduce", "reduce_scatter", "reduce", "gather", "scatter"].map(count);
        assert_eq!(counts, [140, 140, 280, 56, 56], "{backend}");
        assert!(done.stdout.contains("bfloat16     avg       2"), "{}", done.stdout);
    }
}

#[test]
fn numbers_of_ranks_are_swept_in_one_job() {
    let run = Workdir::new("collectives-sweep");
    let more = ["all_reduce", "all_gather", "--ranks-sweep", "1,2,3", "--max", "1KiB"];
    let done = run.muster(&args(&more));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    let ranks: BTreeSet<_> =
        rows(&run).iter().filter_map(|row| row["key"]["ranks"].as_u64()).collect();
    assert_eq!(ranks, [1, 2, 3].into());
}

#[test]
fn what_a_run_printed_and_wrote_is_the_same_to_compare() {
    let run = Workdir::new("collectives-forms");
    let more = ["all_reduce", "broadcast", "barrier", "--ranks-sweep", "1,2", "--min", "256"];
    let more = [&more[..], &["--max", "64KiB", "--factor", "16", "--csv", "r.csv"]].concat();
    let done = run.muster(&args(&more));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    std::fs::write(run.path().join("r.txt"), &done.stdout).unwrap();
    let files = ["r.json", "r.csv", "r.txt"];
    for (base, new) in files.iter().flat_map(|base| files.map(|new| (base, new))) {
        let same = run.muster(&["bench", "compare", base, new]);
        let all = format!("{base} {new}\n{}{}", same.stdout, same.stderr);
        assert_eq!(same.code(), Some(0), "{all}");
        assert!(same.stdout.ends_with("no change\n") && same.stderr.is_empty(), "{all}");
    }
}

#[test]
fn each_rank_may_be_the_root() {
    let run = Workdir::new("collectives-roots");
    let more = ["broadcast", "gather", "--ranks", "3", "--root", "all", "--min", "1KiB"];
    let done = run.muster(&args(&[&more[..], &["--max", "1KiB"]].concat()));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    let roots: Vec<_> = rows(&run).iter().map(|row| row["key"]["root"].as_u64()).collect();
    // Each in both places.
    let both = [0, 0, 1, 1, 2, 2].map(Some);
    assert_eq!(roots, [both, both].concat());
    // Of fewer ranks those that there are.
    let sweep = ["reduce", "--ranks-sweep", "2,3", "--root", "all", "--place", "out"];
    let done = run.muster(&args(&[&sweep[..], &["--min", "1KiB", "--max", "1KiB"]].concat()));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    let key = |row: &Value| (row["key"]["ranks"].as_u64(), row["key"]["root"].as_u64());
    let keys: Vec<_> = rows(&run).iter().map(key).collect();
    assert_eq!(keys, [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)].map(|(n, r)| (Some(n), Some(r))));
}

#[test]
fn curves_are_fitted_and_bounded() {
    let run = Workdir::new("collectives-fit");
    let more = ["all_reduce", "barrier", "--ranks", "2", "--min", "64", "--max", "1MiB"];
    let svg = ["--factor", "4", "--svg", "r.svg", "--place", "out"];
    let done = run.muster(&args(&[&more[..], &svg].concat()));
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    let text = std::fs::read_to_string(run.path().join("r.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let [reduce, barrier] = &report["curves"].as_array().unwrap()[..] else { panic!("{report}") };
    assert_eq!(reduce["sizes"], 8);
    assert!(reduce["fit"]["segments"][0]["alpha_us"].is_number(), "{reduce}");
    assert_eq!(reduce["roofline"]["of"], "memory", "{reduce}");
    assert!(reduce["roofline"]["percent"].as_f64() > Some(0.0), "{reduce}");
    let half = reduce["reach"]["half_bytes"].as_u64().unwrap();
    assert!(half <= reduce["reach"]["ninety_bytes"].as_u64().unwrap(), "{reduce}");
    assert!(barrier["fit"].is_null() && barrier["no_fit"] == "it moves no bytes", "{barrier}");
    assert!(done.stdout.contains("# barrier f32 2 ranks shm: no fit: it moves no bytes"));
    let svg = std::fs::read_to_string(run.path().join("r.svg")).unwrap();
    assert!(svg.contains("n90 "), "{svg}");
    // A link that is named bounds it instead.
    let named = run.muster(&args(&[&more[..], &["--factor", "4", "--link", "ndr"]].concat()));
    assert!(named.stdout.contains("% of 50.00 GB/s, ndr"), "{}\n{}", named.stdout, named.stderr);
    // Nothing is known of a network that nobody named.
    let tcp = run.muster(&args(&[&more[..], &["--factor", "4", "--backend", "tcp"]].concat()));
    assert!(tcp.stdout.contains("# roofline: none known of this network"), "{}", tcp.stdout);
}

#[test]
fn operations_run_beside_newton_schulz() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new("collectives-overlap");
        let more = ["all_reduce", "all_gather", "--ranks", "2", "--backend", backend];
        let sizes = ["--min", "4KiB", "--max", "64KiB", "--factor", "4", "--csv", "r.csv"];
        let beside = ["--overlap", "--overlap-shape", "2x48x96", "--iterations", "12"];
        let done = run.muster(&args(&[&more[..], &sizes, &beside].concat()));
        assert_eq!(done.code(), Some(0), "{backend}\n{}", done.stderr);
        let rows = rows(&run);
        for row in &rows {
            let overlap = &row["overlap"];
            let time = |name: &str| overlap[name].as_f64().unwrap();
            let (alone, newton_schulz) =
                (time("collective_alone_us"), time("newton_schulz_alone_us"));
            let both = time("both_us");
            assert!(alone > 0.0 && newton_schulz > 0.0 && both > 0.0, "{overlap}");
            let hidden = 100.0 * (alone + newton_schulz - both) / alone.min(newton_schulz);
            assert!((time("hidden_pct") - hidden).abs() < 1e-6, "{overlap}");
            assert_eq!(overlap["shape"], "2x48x96");
            assert!((8..=12).contains(&overlap["iterations"].as_u64().unwrap()), "{overlap}");
            // Those beside it are checked, too.
            assert_eq!(row["check"]["wrong"], 0);
        }
        assert!(
            done.stdout.contains("# Beside Newton-Schulz of 2x48x96 per rank"),
            "{}",
            done.stdout
        );
        let csv = std::fs::read_to_string(run.path().join("r.csv")).unwrap();
        assert!(csv.lines().next().unwrap().contains(",overlap_alone_us,"), "{csv}");
        assert_eq!(csv.lines().count(), rows.len() + 1);
        let same = run.muster(&["bench", "compare", "r.json", "r.json"]);
        assert_eq!(same.code(), Some(0), "{}", same.stderr);
    }
}

#[test]
fn hosts_measure_together() {
    let run = Workdir::new("collectives-hosts");
    let at = format!("127.0.0.1:{}", free_port());
    let host = |node| {
        let mut more = vec!["all_reduce", "broadcast", "--ranks", "2", "--backend", "tcp"];
        more.extend(["--nodes", "2", "--node-rank", node, "--rendezvous", &at]);
        more.extend(["--bind", "127.0.0.1", "--max", "4KiB", "--factor", "8"]);
        start(&run, &more)
    };
    let (first, second) = (host("0"), host("1"));
    let (first, second) = (first.wait(), second.wait());
    assert_eq!(first.code(), Some(0), "{}", first.stderr);
    assert_eq!(second.code(), Some(0), "{}", second.stderr);
    let rows = rows(&run);
    assert!(rows.iter().all(|row| row["check"]["wrong"] == 0 && row["skew"].is_null()));
    assert!(!second.stdout.contains("Collective test"), "{}", second.stdout);
    assert!(second.stderr.contains("--json: node 0 writes it, not this node"), "{second}");
}

#[test]
fn a_row_says_which_way_its_bytes_took() {
    let run = Workdir::new("collectives-path");
    let at = format!("127.0.0.1:{}", free_port());
    let host = |node| {
        let mut more = vec!["all_reduce", "all_gather", "gather", "--ranks", "4"];
        more.extend(["--ranks-sweep", "2,4", "--backend", "tcp", "--place", "both"]);
        more.extend(["--nodes", "2", "--node-rank", node, "--rendezvous", &at]);
        more.extend(["--bind", "127.0.0.1", "--min", "4KiB", "--max", "4MiB", "--factor", "1024"]);
        more.extend(["--dtypes", "bf16"]);
        start(&run, &more)
    };
    let done = [host("0"), host("1")].map(|host| host.wait());
    assert!(done.iter().all(|done| done.code() == Some(0)), "{}\n{}", done[0], done[1]);
    let rows = rows(&run);
    assert_eq!(rows.len(), 2 * 2 * 6);
    for row in rows {
        let key = &row["key"];
        let is_one_host = key["ranks"] == 2;
        let path = match (is_one_host, key["op"].as_str(), key["bytes"].as_u64()) {
            (true, ..) => "shm",
            (false, Some("gather"), _) | (false, _, Some(4096)) => "tcp",
            _ => "shm+tcp",
        };
        assert_eq!((&row["path"], &row["check"]["wrong"]), (&path.into(), &0.into()), "{row}");
        assert_eq!(key["transport"], if is_one_host { "shm" } else { "shm+tcp" }, "{row}");
    }
}

#[test]
fn a_mistake_on_node_0_ends_the_waiting_of_the_others() {
    let run = Workdir::new("collectives-zero");
    let at = format!("127.0.0.1:{}", free_port());
    let host = |node, max| {
        let mut more = vec!["all_reduce", "--ranks", "2", "--backend", "tcp", "--max", max];
        more.extend(["--nodes", "2", "--node-rank", node, "--rendezvous", &at]);
        more.extend(["--timeout-ms", "60000"]);
        start(&run, &more)
    };
    let begun = std::time::Instant::now();
    let second = host("1", "4KiB");
    let (first, second) = (host("0", "2").wait(), second.wait());
    assert_eq!(first.code(), Some(2), "{}", first.stderr);
    let mistake = "error: no sizes from 8 to 2 bytes; ";
    assert!(first.stderr.contains(mistake), "{}", first.stderr);
    assert_eq!(second.code(), Some(3), "{}", second.stderr);
    let start = "error: node 0 ended before the job began: no sizes from 8 to 2 bytes; ";
    assert!(second.stderr.contains(start), "{}", second.stderr);
    assert!(begun.elapsed() < std::time::Duration::from_secs(45), "{:?}", begun.elapsed());
}

#[test]
fn one_wrong_bit_is_found_where_it_is() {
    for (op, backend) in [("all_reduce", "shm"), ("all_to_all", "tcp")] {
        let run = Workdir::new("collectives-flip");
        let more = [op, "--ranks", "2", "--backend", backend, "--min", "1KiB", "--max", "1KiB"];
        let flip = [&more[..], &["--flip-at", "11", "--place", "both"]].concat();
        let done = run.muster(&args(&flip));
        assert_eq!(done.code(), Some(3), "{}", done.stderr);
        let words = "gave 1 wrong elements; the first on rank 0: element 0 is";
        assert!(done.stderr.contains(words), "{}", done.stderr);
    }
    // Of large sizes few launches are checked; the first that is timed is.
    let run = Workdir::new("collectives-flip-large");
    let more = ["all_gather", "--ranks", "2", "--min", "8MiB", "--max", "8MiB", "--warmup", "3"];
    let done = run.muster(&args(&[&more[..], &["--flip-at", "3", "--iterations", "5"]].concat()));
    assert_eq!(done.code(), Some(3), "{}", done.stderr);
    assert!(rows(&run).iter().all(|row| row["times"]["iterations"] == 5));
}

#[test]
fn a_rank_that_is_killed_ends_the_benchmark_by_name() {
    let run = Workdir::new("collectives-kill");
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["bench", "collectives", "all_reduce", "--ranks", "2", "--threads", "1"]);
    command.args(["--max", "64KiB", "--seconds", "30", "--within", "0.0001"]);
    // The first case is not done by then.
    command.args(["--iterations", "1000000000"]);
    let mut job = run.spawn(command);
    while job.workers().len() < 2 {
        assert!(job.poll().is_none(), "the ranks did not come\n{}", job.wait());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let (_, pid) = job.workers().into_iter().find(|(rank, _)| *rank == 1).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    common::send(pid, libc::SIGKILL);
    let done = job.wait();
    assert_eq!(done.code(), Some(3), "{}", done.stderr);
    assert!(done.stderr.contains("rank 1"), "{}", done.stderr);
    assert!(done.stderr.contains("nothing was measured, and no file is"), "{}", done.stderr);
    assert!(done.stderr.contains("Run it again once the cause is mended"), "{}", done.stderr);
}

/// Starts more cases than anybody waits for, and returns once some are measured.
fn start_many(run: &Workdir, more: &[&str]) -> Job {
    let cases = ["all_reduce", "--ranks", "2", "--step", "64", "--max", "64KiB"];
    let files = ["--csv", "r.csv", "--svg", "r.svg", "--links", "l.json"];
    let mut job = start(run, &[&cases[..], &files, more].concat());
    while !job.so_far().contains("\n3 of 2048: ") {
        assert!(job.poll().is_none(), "it ended by itself\n{}", job.wait());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    job
}

/// All forms have what was measured, and say that it is not all.
fn is_there_in_part(run: &Workdir, done: &common::Done) {
    assert!(done.stderr.contains(" of 2048 cases measured; what is shown"), "{done}");
    let read = |name: &str| std::fs::read_to_string(run.path().join(name)).unwrap();
    let report: Value = serde_json::from_str(&read("r.json")).unwrap();
    assert_eq!(report["complete"], false);
    let rows = report["rows"].as_array().unwrap().len();
    assert!((3..2048).contains(&rows), "{rows}");
    assert_eq!(read("r.csv").lines().filter(|line| line.ends_with(",false")).count(), rows);
    assert!(read("r.svg").contains("incomplete"));
    assert!(done.stdout.contains("# incomplete: "), "{done}");
    assert!(!run.path().join("l.json").exists());
    std::fs::write(run.path().join("r.txt"), &done.stdout).unwrap();
    for file in ["r.json", "r.csv", "r.txt"] {
        let same = run.muster(&["bench", "compare", file, file]);
        assert_eq!(same.code(), Some(0), "{file}: {same}");
        for side in ["BASE", "NEW"] {
            assert!(same.stdout.contains(&format!("{side} ended early")), "{file}: {same}");
        }
    }
}

#[test]
fn what_is_measured_is_kept_when_a_run_is_stopped() {
    for (signal, code) in [(libc::SIGTERM, 3), (libc::SIGINT, 130)] {
        let run = Workdir::new("collectives-stopped");
        let job = start_many(&run, &["--trace", "t.json"]);
        let workers = job.workers();
        job.signal(signal);
        let done = job.wait();
        assert_eq!(done.code(), Some(code), "{done}");
        assert!(done.stderr.contains("stopped: "), "{done}");
        is_there_in_part(&run, &done);
        assert!(run.path().join("t.json").is_file() && !run.path().join("t.json.parts").exists());
        let left = common::processes();
        let left = |pid: u32| left.iter().any(|process| process.pid == pid && process.state != 'Z');
        assert!(!workers.into_iter().any(|(_, pid)| left(pid)));
    }
}

#[test]
fn what_is_measured_is_kept_when_a_rank_dies() {
    let run = Workdir::new("collectives-dies");
    let job = start_many(&run, &[]);
    let (_, pid) = job.workers().into_iter().find(|(rank, _)| *rank == 1).unwrap();
    common::send(pid, libc::SIGKILL);
    let done = job.wait();
    assert_eq!(done.code(), Some(3), "{done}");
    assert!(done.stderr.contains("error: rank 1 failed: "), "{done}");
    is_there_in_part(&run, &done);
}

#[test]
fn files_that_cannot_be_written_are_told_before_anything_is_measured() {
    let run = Workdir::new("collectives-files");
    let entries = || {
        let entries = std::fs::read_dir(run.path()).unwrap().flatten();
        let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
        names.retain(|name| !name.to_string_lossy().starts_with(".tmp"));
        names.sort();
        names
    };
    let before = entries();
    for (more, words) in [
        (&["--csv", "."][..], "--csv: . is a directory; name a file"),
        (&["--csv", "sub/"], "--csv: sub/ is a directory's name"),
        (&["--svg", "gone/r.svg"], "there is no directory gone; make it first (mkdir -p gone)"),
        (&["--csv", "/proc/r.csv"], "--csv: cannot write /proc/r.csv: "),
        (&["--csv", "./r.json"], "--json and --csv both name ./r.json"),
        (&["--links", "r.json"], "--json and --links both name r.json"),
        (&["--trace", "r.json"], "--json and --trace both name r.json"),
        (&["--trace", "text.txt/t.json"], "text.txt"),
        // A directory of a name that will be a file's.
        (
            &["--csv", "cc.csv", "--trace", "cc.csv"],
            "--trace: cc.csv/trace.json would lie in cc.csv, the file of --csv; give each a file",
        ),
        (
            &["--csv", "t.json.parts", "--trace", "t.json"],
            "--csv and --trace both name t.json.parts",
        ),
        (&["--csv", "/dev/full"], "--csv: /dev/full is a device that takes no file"),
        (&["--max", "8", "--links", "l.json"], "use --max 32 or more"),
        // A command that is refused for another reason leaves no directory.
        (&["--trace", "gone/t.json", "--warmup", "1", "--within", "0"], "--within 0"),
        (&["--trace", "gone", "--bind", "127.0.0.1"], "over shared memory no rank listens"),
    ] {
        let done = run.muster(&args(&[&["all_reduce", "--ranks", "2"], more].concat()));
        assert_eq!(done.code(), Some(2), "{more:?}\n{done}");
        assert!(done.stderr.contains(words), "{more:?}\n{done}");
        assert!(!done.stderr.contains("1 of "), "{more:?}\n{done}");
        assert_eq!(entries(), before, "{more:?}");
    }
}

#[test]
fn the_help_has_every_switch() {
    let run = Workdir::new("collectives-help");
    let done = run.muster(&["bench", "collectives", "--help"]);
    assert_eq!(done.code(), Some(0), "{}", done.stderr);
    insta::assert_snapshot!("help", done.stdout.trim_end());
}

#[test]
fn mistakes_name_what_would_do() {
    for (more, words) in [
        (&["allreduc"][..], "all_reduce"),
        (&["--ranks", "2", "--ranks-sweep", "3"], "--ranks-sweep 3: there are 2 ranks; use 1 to 2"),
        (&["--ranks", "0"], "use 1 or more"),
        (&["--max", "64Q"], "64Q"),
        (&["--min", "1MiB", "--max", "1KiB"], "no sizes from 1048576 to 1024 bytes"),
        (&["--dtype", "u64"], "--dtypes u64: all_reduce takes u8, i32, i64, f16, f32, f64, bf16"),
        (&["--redops", "mulsum"], "--redops mulsum is not offered; use sum, prod, max, min, avg"),
        (&["--ranks", "2", "--roots", "1,2"], "--roots 2 is no rank of 2; use 0 to 1, or all"),
        (&["--ranks-sweep", "2,3", "--root", "2"], "--roots 2 is no rank of 2; use 0 to 1, or all"),
        (&["--max", "1024GiB", "--factor", "1024", "--ranks", "2"], "fewer --ranks"),
        (&["--ranks-sweep", "0,2"], "--ranks-sweep 0; use 1 or more"),
        (&["--min", "1", "--max", "2"], "--max 2: less than an element for each rank; use 4 or"),
        (&["all_gather", "--ranks", "2", "--min", "1", "--max", "1", "--dtypes", "u8"], "use 2 or"),
        (&["all_gather", "--ranks", "3", "--min", "3", "--max", "4"], "use 12 or more"),
        (&["--iterations", "0"], "--iterations 0; use 1 or more"),
        (&["--ops", "hypercub"], "use one of all_reduce, reduce_scatter, all_gather, broadcast, "),
        (&["alltoallv"], "all_to_all_v is not offered; use one of all_reduce, reduce_scatter, "),
        (&["barrier", "--ranks", "2", "--svg", "r.svg"], "--svg: no case has a bus bandwidth"),
        (&["--within", "0"], "--within 0; use percent above 0"),
        (&["--bind", "127.0.0.1"], "over shared memory no rank listens"),
        (&["--roots", "every"], "`every` is no rank; use a number, or all"),
        (&["--link", "pci"], "no link `pci`; use one of nvlink4, mi300x-xgmi"),
        (&["--links", "."], "directory"),
        (&["--ranks", "1", "--overlap"], "--overlap: one rank has nobody to send to"),
        (&["barrier", "--ranks", "2", "--overlap"], "--overlap: barrier moves nothing"),
        (&["--ranks", "2", "--overlap", "--device", "sim:sm_90a"], "times on sim:sm_90a mean"),
        (&["--overlap", "--overlap-shape", "8"], "8"),
    ] {
        let told = refused(more);
        assert!(told.contains(words), "{more:?}\n{told}");
    }
    let run = Workdir::new("collectives-seconds");
    for (seconds, shown) in [("inf", "inf"), ("nan", "NaN"), ("0", "0")] {
        let done = run.muster(&["bench", "collectives", "--seconds", seconds]);
        let words = format!("error: --seconds {shown}; use seconds above 0, such as 1");
        assert!(done.code() == Some(2) && done.stderr.contains(&words), "{done}");
    }
}
