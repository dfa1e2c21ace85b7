//! Very many random operations in several groups at the same time, every result checked: memory,
//! files and threads stay what they were.

mod common;
#[path = "common/mixed.rs"]
mod mixed;

use std::sync::Barrier;
use std::time::{Duration, Instant};

use common::{BACKENDS, PATIENCE_MS, settings, with_settings};
use mixed::{Mixed, held};

const RANKS: usize = 3;
/// Groups of all ranks that work at the same time; the first of them uses a channel as well.
const GROUPS: usize = 3;
/// The growth of the process in all, from a tenth of the operations on, at most: MiB. Without
/// limits a hundred bytes per operation would be more.
const GROWTH_MIB: usize = 48;

/// Memory of this process that is there, in MiB.
fn resident_mib() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
    (pages * 4096) >> 20
}

/// Files and threads that are held once threads that have done their work have ended.
fn settled() -> (usize, usize) {
    (0..20).fold(held(), |(files, threads), _| {
        std::thread::sleep(Duration::from_millis(50));
        let now = held();
        (files.min(now.0), threads.min(now.1))
    })
}

/// `operations` of all groups together, of each backend.
fn soak(operations: usize) {
    for kind in BACKENDS {
        let before = held();
        let (start, all) = (Instant::now(), Barrier::new(RANKS));
        let marks = with_settings(
            kind,
            RANKS,
            |_| settings(PATIENCE_MS),
            |world| {
                let mut groups: Vec<Mixed> = (0..GROUPS)
                    .map(|group| {
                        Mixed::new(&world, group as u64, &[1, 60, 900, 9000], group == 0).unwrap()
                    })
                    .collect();
                let mut run = |steps: usize| {
                    std::thread::scope(|scope| {
                        for group in &mut groups {
                            scope.spawn(move || (0..steps).for_each(|_| group.step().unwrap()));
                        }
                    });
                    // Looked at by one rank while none does anything.
                    all.wait();
                    let now = (world.rank() == 0).then(|| (resident_mib(), settled()));
                    all.wait();
                    now.unwrap_or_default()
                };
                let steps = operations / GROUPS;
                [run(steps / 10), run(steps - steps / 10)]
            },
        );
        let took = start.elapsed().as_secs_f64();
        let [(early, held_early), (late, held_late)] = marks[0];
        println!(
            "{kind}: {operations} operations of {GROUPS} groups of {RANKS} ranks in {took:.0} s, \
             {:.0} per second; {early} MiB at a tenth, {late} MiB at the end; files and threads \
             {held_early:?} and {held_late:?}, {before:?} before",
            operations as f64 / took
        );
        assert!(late <= early + GROWTH_MIB, "{kind}: from {early} to {late} MiB");
        assert!(held_late.0 <= held_early.0 && held_late.1 <= held_early.1, "{kind}");
    }
}

#[test]
fn a_few_thousand_operations_leave_nothing_behind() {
    soak(20_000);
}

#[test]
#[ignore = "takes many minutes: benches/cpu/transports.sh runs it; a short form runs above"]
fn a_million_operations_leave_nothing_behind() {
    soak(1_000_000);
}
