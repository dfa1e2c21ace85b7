//! An operation beside Newton–Schulz, as a step of training has both.
//!
//! ```text
//! in turns, so often      barrier ─▶ operation                     ─▶ done
//!                         barrier ─▶             Newton–Schulz     ─▶ done
//!                         barrier ─▶ operation │ Newton–Schulz     ─▶ each done, both done
//! ```
//!
//! In all three the operation is submitted to the group, which runs it on a thread of its own, and
//! its end is seen by a stream that waits for it: what that costs is in both of its times. Every
//! member orthogonalizes matrices of its own, with its own threads or device.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use comm::{Channel, World};
use device::{Device, DeviceKind, Stream};
use serde::{Deserialize, Serialize};

use super::case::{Bad, Case};
use super::{Member, Plan, clock};
use crate::BenchError;
use crate::collectives::row::{Check, FirstBad, Overlap};
use crate::collectives::{Key, Op, Row, stats};
use crate::newton_schulz::Repeated;

/// Turns before ranks tell each other their stamps, and turns of a case.
const TURNS_AT_ONCE: usize = 4;
const TURNS_MIN: usize = 8;
const TURNS_MAX: usize = 64;

/// The computation beside each operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beside {
    /// Matrices of each rank, as [`crate::BatchShape`] reads them.
    pub shape: String,
}

/// Why an operation cannot run beside something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NoOverlap {
    OneRank,
    NothingMoves(Op),
    Device(DeviceKind),
}

impl fmt::Display for NoOverlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoOverlap::OneRank => write!(
                f,
                "one rank has nobody to send to, so that nothing runs beside Newton-Schulz; use 2 \
                 ranks or more"
            ),
            NoOverlap::NothingMoves(op) => {
                write!(
                    f,
                    "{op} moves nothing to be hidden; leave it out, or name another operation"
                )
            }
            NoOverlap::Device(kind) => write!(
                f,
                "times on {kind} mean nothing, and it runs one thing after the other; use --device \
                 cpu, cuda:0 or hip:0"
            ),
        }
    }
}

/// Whether an operation among so many ranks can run beside something else on such devices.
///
/// # Errors
/// It cannot.
pub fn can_overlap(op: Op, ranks: usize, kind: DeviceKind) -> Result<(), NoOverlap> {
    match kind {
        DeviceKind::Guarded | DeviceKind::Sim(_) => Err(NoOverlap::Device(kind)),
        _ if op == Op::Barrier => Err(NoOverlap::NothingMoves(op)),
        _ if ranks < 2 => Err(NoOverlap::OneRank),
        _ => Ok(()),
    }
}

/// A rank's matrices, and streams for both.
pub(super) struct Computing {
    repeated: Repeated,
    compute: Stream,
    /// The stream that the operation comes after, and the one that sees its end.
    moving: Stream,
    seeing: Stream,
}

impl Computing {
    pub(super) fn new(device: &Device, beside: &Beside) -> Result<Computing, BenchError> {
        let repeated = Repeated::new(device, &beside.shape.parse()?)?;
        let [compute, moving, seeing] = [device.stream(), device.stream(), device.stream()];
        Ok(Computing { repeated, compute, moving, seeing })
    }

    /// Whether what was orthogonalized last is right.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        self.repeated.check()
    }
}

/// When a rank began something, and when each part of it was done; 0 for what was not part of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Stamps {
    began_ns: u64,
    collective_ns: u64,
    newton_schulz_ns: u64,
}

/// The three ways, each once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Turn {
    collective: Stamps,
    newton_schulz: Stamps,
    both: Stamps,
}

/// Turns of one rank, told to the others.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Batch {
    turns: Vec<Turn>,
    checked: u64,
    wrong: u64,
    first_bad: Option<Bad>,
}

/// Of a launch that was checked: wrong elements, and the first of them.
type Found = Option<(u64, Option<Bad>)>;

/// Which of the two are launched.
#[derive(Clone, Copy)]
struct Parts {
    collective: bool,
    newton_schulz: bool,
}

impl Computing {
    /// The three ways, the last of them checked if `salt` says so; the launch before may have left
    /// its result where the inputs were.
    fn turn(
        &self,
        (member, case): (&Member, &mut Case),
        salt: Option<u64>,
    ) -> Result<(Turn, Found), BenchError> {
        let stamped = |case: &Case, collective, newton_schulz| {
            self.stamped(member, case, Parts { collective, newton_schulz })
        };
        let (collective, newton_schulz) =
            (stamped(case, true, false)?, stamped(case, false, true)?);
        if let Some(salt) = salt {
            case.fill(salt)?;
        }
        let both = stamped(case, true, true)?;
        let found = salt.map(|salt| case.check(salt)).transpose()?;
        Ok((Turn { collective, newton_schulz, both }, found))
    }

    fn stamped(&self, member: &Member, case: &Case, parts: Parts) -> Result<Stamps, BenchError> {
        member.group.call(&member.stream, &member.barrier)?;
        let done = [(); 2].map(|()| Arc::new(AtomicU64::new(0)));
        let stamp = |stream: &Stream, done: &Arc<AtomicU64>| {
            let done = Arc::clone(done);
            stream.host(move || {
                done.store(clock::now_ns(), Ordering::Release);
                Ok(())
            })
        };
        let began_ns = clock::now_ns();
        let compute = || -> Result<(), BenchError> {
            if parts.newton_schulz {
                self.repeated.launch(&self.compute)?;
                stamp(&self.compute, &done[1])?;
            }
            Ok(())
        };
        let pending = match parts.collective {
            true => Some(case.submit(member.group, &self.moving)?),
            false => None,
        };
        // A launch on a CPU returns when it is done, and on a GPU what sees the operation's end may
        // wait for it.
        let computes_first = !self.compute.device().kind().is_host();
        if computes_first {
            compute()?;
        }
        if let Some(pending) = &pending {
            pending.then(&self.seeing)?;
            stamp(&self.seeing, &done[0])?;
        }
        if !computes_first {
            compute()?;
        }
        pending.map_or(Ok(()), |pending| pending.wait())?;
        self.seeing.synchronize()?;
        self.compute.synchronize()?;
        let [collective_ns, newton_schulz_ns] = done.map(|done| done.load(Ordering::Acquire));
        Ok(Stamps { began_ns, collective_ns, newton_schulz_ns })
    }

    /// Some turns, the last of them checked if `salt` says so.
    fn batch(
        &self,
        member: &Member,
        case: &mut Case,
        salt: Option<u64>,
    ) -> Result<Batch, BenchError> {
        let mut batch = Batch::default();
        for turn in 0..TURNS_AT_ONCE {
            let salt = salt.filter(|_| turn + 1 == TURNS_AT_ONCE);
            let (turn, found) = self.turn((member, case), salt)?;
            batch.turns.push(turn);
            if let Some((wrong, first_bad)) = found {
                (batch.checked, batch.wrong, batch.first_bad) = (1, wrong, first_bad);
            }
        }
        Ok(batch)
    }
}

/// Times of turns, of all ranks together.
#[derive(Debug, Default)]
struct Times {
    collective_us: Vec<f64>,
    newton_schulz_us: Vec<f64>,
    /// Of the operation, of Newton–Schulz, and of both.
    together_us: [Vec<f64>; 3],
    spent_us: f64,
}

/// From the last rank's beginning to the last rank's end where ranks share a clock; else of the
/// rank that it took longest.
fn last_us(common_clock: bool, of: impl Iterator<Item = (u64, u64)> + Clone) -> f64 {
    let us = |from: u64, to: u64| to.saturating_sub(from) as f64 / 1e3;
    match common_clock {
        true => {
            let began = of.clone().map(|(began, _)| began).max().unwrap_or(0);
            us(began, of.map(|(_, done)| done).max().unwrap_or(0))
        }
        false => of.map(|(began, done)| us(began, done)).fold(0.0, f64::max),
    }
}

impl Times {
    /// Takes the same turns of every member.
    fn add(&mut self, turns: &[Vec<Turn>], common_clock: bool) {
        let count = turns.iter().map(Vec::len).min().unwrap_or(0);
        for at in 0..count {
            let time = |of: fn(&Turn) -> (u64, u64)| {
                last_us(common_clock, turns.iter().map(move |turns| of(&turns[at])))
            };
            let collective = time(|turn| (turn.collective.began_ns, turn.collective.collective_ns));
            let newton_schulz =
                time(|turn| (turn.newton_schulz.began_ns, turn.newton_schulz.newton_schulz_ns));
            let together = [
                time(|turn| (turn.both.began_ns, turn.both.collective_ns)),
                time(|turn| (turn.both.began_ns, turn.both.newton_schulz_ns)),
                time(|turn| {
                    let both = &turn.both;
                    (both.began_ns, both.collective_ns.max(both.newton_schulz_ns))
                }),
            ];
            self.collective_us.push(collective);
            self.newton_schulz_us.push(newton_schulz);
            for (times, time) in self.together_us.iter_mut().zip(together) {
                times.push(time);
            }
            self.spent_us += collective + newton_schulz + together[2];
        }
    }

    fn overlap(self, shape: String) -> Overlap {
        let median = |mut times: Vec<f64>| {
            times.sort_by(f64::total_cmp);
            stats::median(&times).unwrap_or(0.0)
        };
        let turns = self.collective_us.len() as u64;
        let alone_us = (median(self.collective_us), median(self.newton_schulz_us));
        let [collective, newton_schulz, both] = self.together_us.map(median);
        Overlap::of(shape, alone_us, (collective, newton_schulz, both), turns)
    }
}

/// Measures a case beside Newton–Schulz, on every rank of the job, into its row; those that have no
/// part in it only hear the stamps.
pub(super) fn measure(
    world: &World,
    parts: Option<(&Member, &Computing)>,
    (plan, beside): (&Plan, &Beside),
    key: &Key,
    row: &mut Row,
) -> Result<(), BenchError> {
    let mut case = parts
        .map(|(member, _)| Case::new(member.group, &member.stream, &member.buffers, key))
        .transpose()?;
    let control = world.control(Channel::Training);
    let ranks = key.ranks.unwrap_or(1);
    let mut times = Times::default();
    let most = TURNS_MAX.min(plan.rule.iterations_max as usize).max(1);
    let mut batches = 0;
    while times.collective_us.len() < most {
        let salt = plan.check.then_some(batches);
        let batch = match (parts, &mut case) {
            (Some((member, computing)), Some(case)) => computing.batch(member, case, salt)?,
            _ => Batch::default(),
        };
        let told = postcard::to_stdvec(&batch).map_err(BenchError::Stamps)?;
        let all = control.all_gather_bytes(&told)?;
        device::work::mark();
        let read = |bytes: &Vec<u8>| postcard::from_bytes(bytes).map_err(BenchError::Stamps);
        let all: Vec<Batch> = all.iter().take(ranks).map(read).collect::<Result<_, _>>()?;
        if let Some(check) = &mut row.check {
            count(check, &all);
        }
        batches += 1;
        // The first is a warm-up.
        if batches > 1 {
            let turns: Vec<Vec<Turn>> = all.into_iter().map(|batch| batch.turns).collect();
            times.add(&turns, plan.common_clock);
        }
        let enough = times.collective_us.len() >= TURNS_MIN.min(most);
        if enough && times.spent_us >= plan.rule.seconds_max * 1e6 {
            break;
        }
    }
    row.overlap = Some(times.overlap(beside.shape.clone()));
    Ok(())
}

/// Adds what the members found.
fn count(check: &mut Check, all: &[Batch]) {
    let launches = all.iter().map(|batch| batch.checked).max().unwrap_or(0);
    check.launches = check.launches.map(|before| before + launches);
    for (rank, batch) in all.iter().enumerate() {
        check.wrong += batch.wrong;
        if let (None, Some(bad)) = (&check.first_bad, &batch.first_bad) {
            let Bad { offset, got, expected } = bad.clone();
            check.first_bad = Some(FirstBad { rank, offset, got, expected });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamps(began_ns: u64, collective_ns: u64, newton_schulz_ns: u64) -> Stamps {
        Stamps { began_ns, collective_ns, newton_schulz_ns }
    }

    #[test]
    fn times_are_those_of_the_last_rank() {
        let early = Turn {
            collective: stamps(1000, 5000, 0),
            newton_schulz: stamps(10_000, 0, 40_000),
            both: stamps(50_000, 60_000, 85_000),
        };
        let late = Turn {
            collective: stamps(2000, 4000, 0),
            newton_schulz: stamps(11_000, 0, 39_000),
            both: stamps(51_000, 61_000, 84_000),
        };
        let mut shared = Times::default();
        shared.add(&[vec![early], vec![late]], true);
        assert_eq!(
            (&shared.collective_us[..], &shared.newton_schulz_us[..]),
            (&[3.0][..], &[29.0][..])
        );
        assert_eq!(shared.together_us, [vec![10.0], vec![34.0], vec![34.0]]);
        let overlap = shared.overlap("8x8".into());
        // 3 + 29 − 34, of 3.
        assert!((overlap.hidden_pct.unwrap() + 100.0 * 2.0 / 3.0).abs() < 1e-9, "{overlap:?}");
        let mut apart = Times::default();
        apart.add(&[vec![early], vec![late]], false);
        assert_eq!(
            (&apart.collective_us[..], &apart.newton_schulz_us[..]),
            (&[4.0][..], &[30.0][..])
        );
    }

    #[test]
    fn what_cannot_overlap_is_refused() {
        let of = |op, ranks, kind| can_overlap(op, ranks, kind);
        assert_eq!(of(Op::AllReduce, 2, DeviceKind::Cpu), Ok(()));
        assert_eq!(of(Op::AllReduce, 1, DeviceKind::Cpu), Err(NoOverlap::OneRank));
        let nothing = Err(NoOverlap::NothingMoves(Op::Barrier));
        assert_eq!(of(Op::Barrier, 2, DeviceKind::Cuda(0)), nothing);
        for kind in [DeviceKind::Guarded, "sim:gfx942".parse().unwrap()] {
            assert_eq!(of(Op::AllReduce, 2, kind), Err(NoOverlap::Device(kind)));
            assert!(NoOverlap::Device(kind).to_string().contains(&kind.to_string()));
        }
    }
}
