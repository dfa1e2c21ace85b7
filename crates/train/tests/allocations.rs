//! After warm-up a step allocates nothing: 20 steps are watched by the allocator, on all threads
//! of the process, with one rank and two, one thread and two, without a trace and with one.
//!
//! Allocations that libraries make for themselves are listed in [`LIBRARIES`], by name and with a
//! bound; they are told apart by the innermost frame of the backtrace that is not the standard
//! library's.
//! There is no test harness here, since it would be watched too.

mod rank;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use device::Device;
use train::{Config, Wants};

const STEPS: usize = 20;

/// Makes a config of so many leaves in a directory.
type Make = fn(&Path, usize) -> Config;

const MODELS: [(&str, Make); 3] = [
    ("mixture f32", rank::config),
    ("dense bf16", rank::dense_bf16),
    ("latent attention f32", rank::latent),
];

/// Ranks, threads of each, and whether a trace is recorded.
const PLACES: [(usize, usize, bool); 4] =
    [(1, 1, false), (1, 2, false), (2, 2, false), (2, 2, true)];

/// A library that allocates in a step.
struct Library {
    /// Purpose of the memory.
    what: &'static str,
    /// How names of its crates begin.
    crates: &'static [&'static str],
    /// Most that it may in a step of all ranks. Measured: gemm 1624, rayon none.
    per_step: usize,
}

const LIBRARIES: [Library; 2] = [
    Library {
        what: "gemm's packing buffers, made anew for every product",
        crates: &["gemm", "dyn_stack", "dyn-stack"],
        per_step: 3000,
    },
    Library {
        what: "queues of rayon's threads, which grow with the work that waits",
        crates: &["rayon", "crossbeam"],
        per_step: 1,
    },
];

/// Crates whose frames say nothing about who wanted the memory.
const NOBODY: [&str; 5] = ["std", "core", "alloc", "__rust", "allocations"];

struct Watching;

static WATCH: AtomicBool = AtomicBool::new(false);
/// Spans that were recorded.
static SPANS: AtomicUsize = AtomicUsize::new(0);
/// Where it was allocated, and how often.
static SEEN: Mutex<BTreeMap<String, usize>> = Mutex::new(BTreeMap::new());

thread_local! {
    /// While the watcher itself allocates.
    static PAUSED: Cell<bool> = const { Cell::new(false) };
}

fn note() {
    if !WATCH.load(Ordering::SeqCst) || PAUSED.try_with(Cell::get) != Ok(false) {
        return;
    }
    PAUSED.set(true);
    let place = std::backtrace::Backtrace::force_capture().to_string();
    *SEEN.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_default() += 1;
    PAUSED.set(false);
}

// SAFETY: every call goes to the system allocator unchanged.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note();
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// Everything allocated since the last call.
fn seen() -> BTreeMap<String, usize> {
    assert!(!WATCH.load(Ordering::SeqCst));
    std::mem::take(&mut *SEEN.lock().unwrap_or_else(PoisonError::into_inner))
}

/// The library that a backtrace ends in.
fn library(place: &str) -> Option<usize> {
    let lines: Vec<&str> = place.lines().map(str::trim_start).collect();
    let frames = lines.iter().enumerate().filter_map(|(index, line)| {
        let (number, name) = line.split_once(": ")?;
        number.parse::<usize>().ok()?;
        Some(owner(name, lines.get(index + 1).and_then(|line| line.strip_prefix("at "))))
    });
    let is = |name: &str, words: &[&str]| words.iter().any(|word| name.starts_with(word));
    let name = frames.into_iter().find(|name| !is(name, &NOBODY))?;
    LIBRARIES.iter().position(|library| is(name, library.crates))
}

/// The crate of a frame: where its source is known, the name is without it.
fn owner<'a>(name: &'a str, source: Option<&'a str>) -> &'a str {
    match source {
        Some(source) if source.starts_with("/rustc/") => "std",
        Some(source) if source.contains("tests/allocations.rs") => "allocations",
        Some(source) => match source.split_once("/registry/src/") {
            Some((_, path)) => path.split('/').nth(1).unwrap_or_default(),
            None => "ours",
        },
        None => name.trim_start_matches(['<', '&']),
    }
}

/// Counts allocations by place in 20 steps of all ranks together, after some that warm up.
fn watch(config: &Config, dir: &Path, place: (usize, usize, bool)) -> BTreeMap<String, usize> {
    let (ranks, threads, is_traced) = place;
    device::trace::switch(is_traced);
    rank::with_group("shm", ranks, |world| {
        let device = Device::cpu(threads).unwrap();
        let cache = dir.join(world.rank().to_string());
        let mut trainer = rank::trainer(config, &cache, world.clone(), &device);
        let mut steps = |count: usize| {
            for _ in 0..count {
                let step = trainer.take_step(Wants::default()).unwrap().step;
                assert!(!step.skipped);
                assert_eq!(step.expert_load.is_some(), config.model.moe.is_some());
                // Not in every step: a ring holds the spans of several.
                if is_traced && world.rank() == 0 && step.step.is_multiple_of(4) {
                    device::trace::drain(&mut |_| {
                        SPANS.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        };
        let switch = |on: bool| {
            world.control(comm::Channel::Training).barrier().unwrap();
            if world.rank() == 0 {
                WATCH.store(on, Ordering::SeqCst);
            }
            world.control(comm::Channel::Training).barrier().unwrap();
        };
        steps(5);
        switch(true);
        steps(STEPS);
        switch(false);
    });
    seen()
}

/// A watcher that sees nothing would be content with everything.
fn assert_that_it_watches() {
    WATCH.store(true, Ordering::SeqCst);
    std::thread::scope(|scope| {
        scope.spawn(allocate_on_purpose).join().unwrap();
    });
    WATCH.store(false, Ordering::SeqCst);
    assert!(seen().keys().any(|place| place.contains("allocate_on_purpose")));
}

#[inline(never)]
fn allocate_on_purpose() {
    drop(std::hint::black_box(Box::new(7)));
}

fn main() {
    assert_that_it_watches();
    for (ranks, threads, is_traced) in PLACES {
        for (model, config) in MODELS {
            let dir = tempfile::tempdir().unwrap();
            let config = config(dir.path(), 2);
            let trace = if is_traced { ", traced" } else { "" };
            let case = format!("{model}, {ranks} ranks of {threads} threads{trace}");
            let (mut ours, mut theirs) = (Vec::new(), [0; LIBRARIES.len()]);
            for (place, count) in watch(&config, dir.path(), (ranks, threads, is_traced)) {
                match library(&place) {
                    Some(library) => theirs[library] += count,
                    None => ours.push(format!("{count} times\n{place}")),
                }
            }
            println!("{case}: {theirs:?} by libraries in {STEPS} steps");
            assert!(ours.is_empty(), "{case}: {}", ours.join("\n\n"));
            for (Library { what, per_step, .. }, count) in LIBRARIES.iter().zip(theirs) {
                assert!(count <= per_step * STEPS, "{case}: {what}: {count} in {STEPS} steps");
            }
        }
    }
    assert!(SPANS.load(Ordering::Relaxed) > 1000, "nothing was recorded");
}
