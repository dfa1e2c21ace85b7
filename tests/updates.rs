//! Each update, as a user trains with it: the same bits at any number of ranks and after a kill and
//! a resume at another number; and a change to it from a checkpoint that lacks its states.

mod common;

use common::{Workdir, send, steps};

/// Rules by a name: matrices under an update of theirs, the rest under another.
const UPDATES: [(&str, &str); 3] = [
    ("sgd", "[{match: {}, sgd: {lr: 0.1, nesterov: true}}]"),
    ("normuon", "[{match: {roles: [matrix, expert]}, normuon: {}}, {match: {}, adamw: {}}]"),
    (
        "dion",
        "[{match: {roles: [matrix]}, dion: {rank: 7}}, {match: {roles: [expert]}, dion: {}}, \
          {match: {}, sgd: {}}]",
    ),
];

fn rules(update: &str) -> String {
    let found = UPDATES.iter().find(|(name, _)| *name == update).expect("the list has it");
    format!("optimizer.rules={}", found.1)
}

/// In f32 and bf16, over both transports.
fn same_at_every_width(update: &str) {
    let run = Workdir::new(&format!("updates-{update}"));
    let rules = rules(update);
    for weights in ["train.weights=f32", "train.weights=bf16"] {
        let mut reference = None;
        for (ranks, backend) in [("1", "shm"), ("2", "tcp"), ("3", "shm"), ("4", "shm")] {
            let name = format!("{weights}-{ranks}").replace(['.', '='], "-");
            let sets = ["--set", &rules, "--set", "optimizer.require_muon=false"];
            let place = ["--set", weights, "--ranks", ranks, "--backend", backend];
            let digest = run.digest(&name, &[&sets[..], &place].concat());
            assert_eq!(reference.get_or_insert(digest.clone()), &digest, "{update} {name}");
        }
        assert!(run.verify(&format!("{weights}-4").replace(['.', '='], "-")) > 0);
    }
}

/// Kills all ranks between steps, goes on at another number, twice.
fn same_after_kills(update: &str) {
    let run = Workdir::new(&format!("updates_{update}_{}", std::process::id()));
    let rules = rules(update);
    let sets = ["--set", &rules, "--set", "optimizer.require_muon=false"];
    let long = ["--set", "train.steps=40", "--set", "checkpoint={every: 1, mode: sync}"];
    let sets = [&sets[..], &long].concat();
    let expected = run.digest("undisturbed", &sets);
    for (ranks, backend) in [("3", "shm"), ("2", "tcp")] {
        let mut job = run.start(&[&sets[..], &["--ranks", ranks, "--backend", backend]].concat());
        steps(&run, &mut job, 5);
        let workers = job.workers();
        job.signal(libc::SIGKILL);
        workers.iter().for_each(|&(_, pid)| send(pid, libc::SIGKILL));
        job.wait();
    }
    let done = run.train(&[&sets[..], &["--ranks", "4"]].concat());
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(!run.events_of(&run.name, "resumed").is_empty());
    assert_eq!(run.final_digest(&run.name), expected);
}

#[test]
fn sgd() {
    same_at_every_width("sgd");
    same_after_kills("sgd");
}

#[test]
fn normuon() {
    same_at_every_width("normuon");
    same_after_kills("normuon");
}

#[test]
fn dion() {
    same_at_every_width("dion");
    same_after_kills("dion");
}

/// A run of Muon becomes one of Dion: what the checkpoint lacks begins as it says, and alike at any
/// number of ranks.
#[test]
fn a_checkpoint_without_a_basis_starts_from_the_seed_and_says_so() {
    let rules = rules("dion");
    let mut digests = Vec::new();
    for ranks in ["1", "3"] {
        let run = Workdir::new(&format!("updates-change-{ranks}"));
        let done = run.train(&["--ranks", "2", "--max-steps", "2"]);
        assert_eq!(done.code(), Some(0), "{done}");
        let done = run.train(&["--ranks", ranks, "--set", &rules]);
        assert_eq!(done.code(), Some(0), "{done}");
        let warnings = run.events_of(&run.name, "warning");
        let has = |slot: &str, end: &str| {
            let start = format!("the checkpoint has no {slot} of ");
            let text = |w: &serde_json::Value| w["message"].as_str().unwrap().to_owned();
            warnings.iter().map(text).any(|w| w.starts_with(&start) && w.ends_with(end))
        };
        assert!(has("dion_basis", "; it starts from the seed"), "{warnings:?}");
        assert!(has("dion_momentum", "; it starts at zero"), "{warnings:?}");
        assert!(has("sgd_momentum", "; it starts at zero"), "{warnings:?}");
        digests.push(run.final_digest(&run.name));
    }
    assert_eq!(digests[0], digests[1]);
}

/// A basis of another rank is not taken for this one's: it begins anew, and alike at any number of
/// ranks.
#[test]
fn a_basis_of_another_rank_is_not_read() {
    let of = |rank: usize| {
        format!(
            "optimizer.rules=[{{match: {{roles: [matrix, expert]}}, dion: {{rank: {rank}}}}}, \
                 {{match: {{}}, adamw: {{}}}}]"
        )
    };
    let mut digests = Vec::new();
    for ranks in ["1", "3"] {
        let run = Workdir::new(&format!("updates-rank-{ranks}"));
        let done = run.train(&["--ranks", "2", "--max-steps", "2", "--set", &of(7)]);
        assert_eq!(done.code(), Some(0), "{done}");
        let done = run.train(&["--ranks", ranks, "--set", &of(5)]);
        assert_eq!(done.code(), Some(0), "{done}");
        let warnings = run.events_of(&run.name, "warning");
        let is_told = |w: &serde_json::Value| {
            let text = w["message"].as_str().unwrap();
            text.starts_with("the checkpoint has dion_basis of ")
                && text.ends_with(" in another shape; it starts from the seed")
        };
        assert!(warnings.iter().any(is_told), "{warnings:?}");
        digests.push(run.final_digest(&run.name));
    }
    assert_eq!(digests[0], digests[1]);
}
