//! `--trace`: what two ranks leave, read by a strict reader of its own; and that the run is the
//! same with it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::path::Path;

use common::{Done, LONG, Workdir, free_port, message, send};
use serde_json::Value;

/// Parts of a step: together they are all of it.
const PARTS: [&str; 8] =
    ["data", "forward", "backward", "fold", "reduce", "vote", "optimizer", "gather"];

/// A span of time; times are whole nanoseconds.
#[derive(Debug, Clone, PartialEq)]
struct Span {
    name: String,
    category: String,
    begin: i64,
    end: i64,
    rank: u64,
    track: u64,
    args: Value,
}

/// A trace of which everything was checked that `docs/trace.md` says.
struct Trace {
    spans: Vec<Span>,
    /// By rank and number.
    tracks: BTreeMap<(u64, u64), String>,
    processes: BTreeMap<u64, String>,
    arrows: usize,
    other: Value,
}

/// The nanoseconds of microseconds with three decimals.
fn nanoseconds(event: &Value, key: &str) -> i64 {
    let us = event[key].as_f64().unwrap_or_else(|| panic!("no {key} in {event}"));
    assert!(us >= 0.0, "{event}");
    let ns = (us * 1e3).round();
    assert!((us * 1e3 - ns).abs() < 1e-3, "{event}");
    ns as i64
}

fn text<'a>(event: &'a Value, key: &str) -> &'a str {
    event[key].as_str().filter(|text| !text.is_empty()).unwrap_or_else(|| panic!("{key}: {event}"))
}

fn keys(event: &Value, expected: &[&str]) {
    let keys: BTreeSet<&str> = event.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, expected.iter().copied().collect(), "{event}");
}

impl Trace {
    fn read(path: &Path) -> Trace {
        let mut bytes = std::fs::read(path).unwrap();
        if path.extension().is_some_and(|extension| extension == "gz") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut plain).unwrap();
            bytes = plain;
        }
        let whole: Value = serde_json::from_slice(&bytes).unwrap();
        keys(&whole, &["traceEvents", "displayTimeUnit", "otherData"]);
        assert_eq!(whole["displayTimeUnit"], "ms");
        let mut trace = Trace {
            spans: Vec::new(),
            tracks: BTreeMap::new(),
            processes: BTreeMap::new(),
            arrows: 0,
            other: whole["otherData"].clone(),
        };
        let (mut begun, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for event in whole["traceEvents"].as_array().unwrap() {
            let (rank, track) = (event["pid"].as_u64().unwrap(), event["tid"].as_u64().unwrap());
            match text(event, "ph") {
                "M" => trace.metadata(event, (rank, track)),
                "X" => {
                    keys(event, &["name", "cat", "ph", "ts", "dur", "pid", "tid", "args"]);
                    let (begin, dur) = (nanoseconds(event, "ts"), nanoseconds(event, "dur"));
                    trace.spans.push(Span {
                        name: text(event, "name").to_owned(),
                        category: text(event, "cat").to_owned(),
                        begin,
                        end: begin + dur,
                        rank,
                        track,
                        args: event["args"].clone(),
                    });
                }
                ph @ ("s" | "f") => {
                    let side = if ph == "s" { &mut begun } else { &mut ended };
                    let place = (nanoseconds(event, "ts"), rank, track);
                    let id = event["id"].as_u64().unwrap();
                    assert_eq!(side.insert(id, place), None, "{event}");
                }
                other => panic!("{other}: {event}"),
            }
        }
        trace.check_arrows(&begun, &ended);
        trace.check_nesting();
        trace
    }

    fn metadata(&mut self, event: &Value, place: (u64, u64)) {
        keys(event, &["name", "ph", "pid", "tid", "args"]);
        let args = &event["args"];
        let known = match text(event, "name") {
            "process_name" => self.processes.insert(place.0, text(args, "name").into()).is_none(),
            "thread_name" => self.tracks.insert(place, text(args, "name").into()).is_none(),
            "process_sort_index" | "thread_sort_index" => args["sort_index"].is_u64(),
            "muster_rank" => args["rank"] == place.0 && args["clock_uncertainty_ns"].is_u64(),
            "muster_lost" => args["spans"].is_u64(),
            _ => false,
        };
        assert!(known, "{event}");
    }

    /// Both ends of an arrow lie in operations of one name, group and number, and it goes onward.
    fn check_arrows(
        &mut self,
        begun: &BTreeMap<u64, (i64, u64, u64)>,
        ended: &BTreeMap<u64, (i64, u64, u64)>,
    ) {
        assert!(begun.keys().eq(ended.keys()));
        let at = |&(at, rank, track): &(i64, u64, u64)| {
            let here = |span: &&Span| {
                (span.rank, span.track) == (rank, track) && (span.begin..span.end).contains(&at)
            };
            let mut spans = self.spans.iter().filter(here);
            let span = spans.next().expect("an arrow ends in a span");
            assert_eq!(spans.next(), None);
            (&span.name, &span.args["group"], &span.args["sequence"])
        };
        for (from, to) in begun.values().zip(ended.values()) {
            assert!(from.0 <= to.0 && from.1 != to.1);
            assert_eq!(at(from), at(to));
        }
        self.arrows = begun.len();
    }

    /// Spans of a track lie in or beside each other, and each has a name to stand under.
    fn check_nesting(&self) {
        let mut by_track = BTreeMap::<_, Vec<&Span>>::new();
        for span in &self.spans {
            assert!(self.processes.contains_key(&span.rank), "{span:?}");
            let track = (span.rank, span.track);
            assert!(self.tracks.contains_key(&track), "{span:?}");
            by_track.entry(track).or_default().push(span);
        }
        for spans in by_track.values_mut() {
            spans.sort_by_key(|span| (span.begin, -span.end));
            let mut open: Vec<&Span> = Vec::new();
            for span in spans {
                open.retain(|outer| outer.end > span.begin);
                for outer in &open {
                    assert!(span.end <= outer.end, "{span:?} is cut by {outer:?}");
                }
                open.push(span);
            }
        }
    }

    fn of(&self, category: &str, rank: u64) -> Vec<&Span> {
        let is = |span: &&Span| span.category == category && span.rank == rank;
        self.spans.iter().filter(is).collect()
    }

    /// Of a rank, each operation's group, number and name.
    fn operations(&self, rank: u64) -> BTreeSet<(String, u64, String)> {
        let name = |span: &&Span| {
            let group = text(&span.args, "group");
            assert_eq!(group, self.tracks[&(span.rank, span.track)]);
            let sequence = span.args["sequence"].as_u64().unwrap();
            (group.to_owned(), sequence, span.name.clone())
        };
        let spans = self.of("operation", rank);
        let all: BTreeSet<_> = spans.iter().map(name).collect();
        assert_eq!(all.len(), spans.len(), "an operation is recorded once");
        all
    }
}

/// Checks a trace of two ranks over these steps: tracks, spans and arrows.
fn check_two_ranks(trace: &Trace, transport: &str, steps: std::ops::RangeInclusive<u64>) {
    assert_eq!(trace.processes.len(), 2);
    for rank in 0..2 {
        assert!(trace.processes[&rank].starts_with(&format!("rank {rank} on ")));
        let seen = trace.of("step", rank);
        let numbers = seen.iter().map(|span| span.args["step"].as_u64().unwrap());
        assert!(numbers.eq(steps.clone()), "{seen:?}");
        let parts: Vec<&Span> = trace
            .of("part", rank)
            .into_iter()
            .filter(|span| PARTS.contains(&&*span.name))
            .collect();
        for step in seen {
            let inside = |part: &&&Span| part.begin >= step.begin && part.end <= step.end;
            let inside: Vec<&&Span> = parts.iter().filter(inside).collect();
            assert!(inside.iter().all(|part| part.track == step.track));
            let covered: i64 = inside.iter().map(|part| part.end - part.begin).sum();
            assert!(covered as f64 >= 0.95 * (step.end - step.begin) as f64, "{step:?}");
            let names: BTreeSet<&str> = inside.iter().map(|part| &*part.name).collect();
            assert_eq!(names, PARTS.into_iter().collect());
        }
        let kernels: BTreeSet<&str> =
            trace.of("kernel", rank).iter().map(|span| &*span.name).collect();
        assert!(["matmul", "copy_in", "copy_out"].iter().all(|name| kernels.contains(name)));
        for span in trace.of("operation", rank) {
            assert_eq!(span.args["transport"], transport);
            let waited = nanoseconds(&span.args, "waited_us");
            assert!(waited <= span.end - span.begin, "{span:?}");
        }
    }
    let operations = trace.operations(0);
    assert_eq!(operations, trace.operations(1));
    for name in ["reduce_scatter_ordered", "all_gather_segments", "all_gather_bytes"] {
        let count = operations.iter().filter(|(_, _, other)| other == name).count();
        assert!(count >= steps.clone().count(), "{count} of {name}");
    }
    // From one of two ranks to the other; a root need not wait for those whom it tells something.
    let waiting = operations.iter().filter(|(_, _, name)| name != "broadcast_bytes").count();
    assert!((waiting..=operations.len()).contains(&trace.arrows), "{} of {waiting}", trace.arrows);
    assert_eq!(trace.other["ranks"].as_array().unwrap().len(), 2);
    assert_eq!(trace.other["lost"].as_array().unwrap().len(), 0);
}

/// Of every step the events hold what each rank spent, and the parts are all of the step.
fn check_rank_times(run: &Workdir, name: &str, steps: u64) {
    let (times, events) = (run.events_of(name, "ranks"), run.events_of(name, "step"));
    assert!(times.iter().map(|event| event["step"].as_u64().unwrap()).eq(1..=steps));
    for (times, step) in times.iter().zip(&events) {
        let parts = times["parts_ms"].as_object().unwrap();
        let of_rank_0 = |name: &str| parts[name][0].as_f64().unwrap();
        let sum: f64 = PARTS.into_iter().map(of_rank_0).sum();
        // Whole microseconds of each part.
        assert!((step["ms"].as_f64().unwrap() - sum).abs() < 0.01, "{times}\n{step}");
        let operations = times["operations"].as_object().unwrap();
        for name in ["reduce_scatter_ordered", "all_gather_segments", "all_gather_bytes"] {
            let numbers = |key: &str| -> Vec<f64> {
                let list = operations[name][key].as_array().unwrap().iter();
                list.map(|number| number.as_f64().unwrap()).collect()
            };
            let [calls, ms, waited] = ["calls", "ms", "waited_ms"].map(numbers);
            assert!(calls.len() == 2 && calls[0] == calls[1] && calls[0] > 0.0, "{times}");
            assert!(ms.iter().zip(&waited).all(|(ms, waited)| waited <= ms), "{times}");
        }
    }
}

/// Trains two ranks with a trace and without.
fn same_with_trace(backend: &str, file: &str) {
    let run = Workdir::new(&format!("trace-{backend}"));
    let sets = ["train.steps=8", "train.eval_every=3", "checkpoint.every=4"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let place = [&sets[..], &["--ranks", "2", "--backend", backend]].concat();
    let plain = run.digest("plain", &place);
    let traced = [&place[..], &["--trace", file, "--trace-steps", "3..6"]].concat();
    assert_eq!(run.digest("traced", &traced), plain);
    let trace = Trace::read(&run.path().join(file));
    check_two_ranks(&trace, backend, 3..=6);
    for name in ["evaluation", "saves"] {
        assert!(trace.of("part", 0).iter().any(|span| span.name == name), "{name}");
    }
    assert!(trace.of("call", 0).iter().any(|span| span.name == "fsync"));
    assert!(!run.path().join(format!("{file}.parts")).exists());
    check_rank_times(&run, "plain", 8);
    check_rank_times(&run, "traced", 8);
}

#[test]
fn over_shared_memory() {
    same_with_trace("shm", "trace.json");
}

#[test]
fn over_tcp_and_packed() {
    same_with_trace("tcp", "deep/er/trace.json.gz");
}

#[test]
fn a_directory_and_ten_steps_after_the_first_two_are_the_default() {
    let run = Workdir::new("trace-default");
    let steps = ["--set", "train.steps=20", "--trace", "traces"];
    let first = run.train(&[&steps[..], &["--max-steps", "4"]].concat());
    assert_eq!(first.code(), Some(0), "{first}");
    let of = |trace: &Trace| -> Vec<u64> {
        trace.of("step", 0).iter().map(|span| span.args["step"].as_u64().unwrap()).collect()
    };
    let file = run.path().join("traces/trace.json");
    assert_eq!(of(&Trace::read(&file)), [3, 4]);
    // Steps that were taken before do not count.
    let second = run.train(&steps);
    assert_eq!(second.code(), Some(0), "{second}");
    assert_eq!(of(&Trace::read(&file)), (7..=16).collect::<Vec<_>>());
    let none = run.train(&["--name", "none", "--trace", "traces", "--trace-steps", "90..99"]);
    assert_eq!(none.code(), Some(0), "{none}");
    let said = "the trace is empty: no step of --trace-steps was taken, or no timed launch; the \
                file is left as it was";
    assert!(none.stdout.contains(said), "{none}");
    assert_eq!(of(&Trace::read(&file)), (7..=16).collect::<Vec<_>>());
    let fresh = ["--name", "none", "--trace", "fresh.json", "--trace-steps", "90..99"];
    let none = run.train(&fresh);
    assert!(none.stdout.contains("the trace is empty: no step of --trace-steps"), "{none}");
    assert!(Trace::read(&run.path().join("fresh.json")).spans.is_empty());
}

/// Of a benchmark: the timed launches of every case, on both ranks, and nothing between them.
#[test]
fn launches_of_a_benchmark_are_traced_on_all_ranks() {
    for backend in ["shm", "tcp"] {
        let run = Workdir::new(&format!("trace-bench-{backend}"));
        let line = format!(
            "bench collectives all_reduce broadcast --ranks 2 --threads 1 --backend {backend} \
             --min 1KiB --max 2MiB --factor 2048 --place in --iterations 120 --within 0.00001 \
             --seconds 60 --trace t.json.gz"
        );
        let done = run.muster(&line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(done.code(), Some(0), "{done}");
        assert!(done.stdout.contains("trace of 2 ranks, "), "{done}");
        let trace = Trace::read(&run.path().join("t.json.gz"));
        assert!(!run.path().join("t.json.gz.parts").exists());
        for rank in 0..2 {
            let launches = trace.of("part", rank);
            for name in ["all_reduce", "broadcast"] {
                let count = launches.iter().filter(|span| span.name == name).count();
                assert_eq!(count, 2 * 100, "the first ones of two sizes of {name}");
            }
            let operations = trace.of("operation", rank);
            assert!(operations.len() >= launches.len(), "{}", operations.len());
            for span in operations {
                let inside = |launch: &&&Span| launch.begin <= span.begin && span.end <= launch.end;
                assert!(launches.iter().any(|launch| inside(&launch)), "{span:?}");
            }
        }
        assert_eq!(trace.operations(0), trace.operations(1));
        assert!(trace.arrows > 0);
    }
}

/// A part that outgrows what the system lets a file have ends, the benchmark does not, and each
/// rank says so once.
#[test]
fn a_benchmark_says_that_a_rank_records_no_more() {
    let run = Workdir::new("trace-full");
    let line = "trap '' XFSZ; ulimit -f 64; exec \"$0\" bench collectives all_reduce broadcast \
                --ranks 2 --threads 1 --backend tcp --min 1KiB --max 2MiB --factor 2048 \
                --iterations 120 --within 0.00001 --seconds 60 --trace t.json";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line, common::MUSTER]);
    let done = run.spawn(command).wait();
    assert_eq!(done.code(), Some(0), "{done}");
    for rank in 0..2 {
        let words =
            format!("warning: rank {rank}: its trace ends early: cannot write t.json.parts");
        assert_eq!(done.stderr.matches(&words).count(), 1, "{done}");
    }
    assert!(done.stdout.contains("Collective test starting: broadcast_perf"), "{done}");
}

#[test]
fn a_killed_run_leaves_what_its_ranks_have_written() {
    let run = Workdir::new("trace-killed");
    let more = ["--ranks", "2", "--trace", "t.json", "--trace-steps", "1..100000"];
    let mut job = run.start(&[&LONG[..], &more].concat());
    common::steps(&run, &mut job, 30);
    job.signal(libc::SIGKILL);
    let killed = job.wait();
    assert_eq!(killed.code(), None, "{killed}");
    assert!(!run.path().join("t.json").exists());
    // The ranks die with their supervisor, and need a moment.
    let workers = || common::processes().into_iter().any(|p| p.rank().is_some() && holds(&p, &run));
    while workers() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let done = run.muster(&["trace", "merge", "t.json.parts", "t.json"]);
    assert_eq!(done.code(), Some(0), "{done}");
    let trace = Trace::read(&run.path().join("t.json"));
    assert!((0..2).all(|rank| trace.of("step", rank).len() >= 10));
}

/// Whether a process is a worker of this run.
fn holds(process: &common::Process, run: &Workdir) -> bool {
    process.words.iter().any(|word| word.contains(&format!("runs/{}/", run.name)))
}

#[test]
fn a_run_that_fails_has_a_trace() {
    let run = Workdir::new("trace-failed");
    let more = ["--ranks", "2", "--trace", "t.json", "--trace-steps", "1..100000"];
    let mut job = run.start(&[&LONG[..], &more].concat());
    common::steps(&run, &mut job, 30);
    send(job.workers()[1].1, libc::SIGKILL);
    let failed = job.wait();
    assert_eq!(failed.code(), Some(3), "{failed}");
    assert!(failed.stdout.contains("trace of 2 ranks"), "{failed}");
    let trace = Trace::read(&run.path().join("t.json"));
    assert!((0..2).all(|rank| trace.of("step", rank).len() >= 10));
}

/// Two hosts of one rank each, which are processes of one host here.
fn two_hosts(run: &Workdir, more: [&[&str]; 2]) -> [Done; 2] {
    let port = free_port();
    let start = |node: usize| {
        let place = format!(
            "--rendezvous 127.0.0.1:{port} --nodes 2 --node-rank {node} --ranks 2 --backend tcp"
        );
        let args: Vec<&str> = place.split(' ').chain(more[node].iter().copied()).collect();
        run.start(&args)
    };
    [start(0), start(1)].map(common::Job::wait)
}

#[test]
fn each_host_writes_a_file_and_they_merge() {
    let run = Workdir::new("trace-hosts");
    let traced = ["--trace", "t.json", "--trace-steps", "2..4"];
    for done in two_hosts(&run, [&traced, &traced]) {
        assert_eq!(done.code(), Some(0), "{done}");
    }
    let done = run.muster(&["trace", "merge", "t-node0.json", "t-node1.json", "t.json.gz"]);
    assert_eq!(done.code(), Some(0), "{done}");
    check_two_ranks(&Trace::read(&run.path().join("t.json.gz")), "tcp", 2..=4);
    let [first, second] =
        two_hosts(&run, [&[&traced[..], &["--name", "b"]].concat(), &["--name", "b"]]);
    assert!([&first, &second].iter().all(|done| done.code() == Some(2)), "{first}\n{second}");
    let words = "the ranks differ in --trace: steps 2..4 on rank 0, none on rank 1";
    assert!(first.stderr.contains(words), "{first}");
}

#[test]
fn mistakes() {
    let run = Workdir::new("trace-mistakes");
    std::fs::write(run.path().join("a-file"), "").unwrap();
    let cases: [&[&str]; 5] = [
        &["train", "run.yaml", "--trace-steps", "3..9"],
        &["train", "run.yaml", "--trace", "t", "--trace-steps", "9..3"],
        &["train", "run.yaml", "--trace", "a-file/t.json"],
        &["trace", "merge", "a-file", "t.json"],
        &["trace", "merge", "missing", "t.json"],
    ];
    let said = cases.map(|args| {
        let done = run.muster(args);
        assert_eq!(done.code(), Some(2), "{args:?}\n{done}");
        message(&run, &done, &[])
    });
    insta::assert_snapshot!(said.join("\n\n"));
}

#[test]
fn help() {
    let run = Workdir::new("trace-help");
    let train = run.muster(&["train", "--help"]).stdout;
    let from = train.find("      --trace ").expect("the flag");
    let to = train.find("      --dry-run").expect("the flag after it");
    let merge = run.muster(&["trace", "merge", "--help"]).stdout;
    insta::assert_snapshot!(format!("{}\n{merge}", &train[from..to]));
}
