//! Ranks as threads of this process, which share memory: for small runs, examples and tests.

use comm::shm::SharedMemory;
use comm::{Backend, Settings, World};

use crate::TrainError;

/// Patience of ranks with each other, in milliseconds: long enough for a loaded machine.
const TIMEOUT_MS: u64 = 120_000;

/// Runs `body` as each of `count` ranks, and returns what each returned, in rank order.
///
/// # Errors
/// Shared memory; the first rank's error. The others are given up then, and do not wait.
pub fn ranks<R: Send>(
    count: usize,
    body: impl Fn(World) -> Result<R, TrainError> + Sync,
) -> Result<Vec<R>, TrainError> {
    let memory = SharedMemory::create("ranks", count)?;
    let run = |rank: usize| -> Result<R, TrainError> {
        let backend = Backend::Shm { memory: memory.clone() };
        let world = comm::connect_with(backend, rank, count, Settings::new(TIMEOUT_MS))?;
        let revocation = world.revocation();
        body(world).inspect_err(|error| {
            revocation.revoke(&format!("rank {rank}: {error}"));
        })
    };
    let run = &run;
    let mut all: Vec<Result<R, TrainError>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..count).map(|rank| scope.spawn(move || run(rank))).collect();
        let join = |rank: std::thread::ScopedJoinHandle<_>| {
            rank.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        ranks.into_iter().map(join).collect()
    });
    // Those that were given up, or waited for one that failed, only say so.
    let is_own = |error: &TrainError| {
        use comm::CommError::{PeerLost, Revoked, Timeout};
        !matches!(error, TrainError::Comm(Revoked { .. } | PeerLost { .. } | Timeout { .. }))
    };
    let own = all.iter().position(|result| result.as_ref().err().is_some_and(is_own));
    match own {
        Some(rank) => all.swap_remove(rank).map(|one| vec![one]),
        None => all.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_fails_is_the_one_that_speaks() {
        let failed = ranks(3, |world| {
            if world.rank() == 1 {
                return Err(TrainError::NonFinite { step: 7, places: "here".into() });
            }
            Ok(world.control(comm::Channel::Training).barrier()?)
        });
        assert!(matches!(failed, Err(TrainError::NonFinite { step: 7, .. })), "{failed:?}");
        assert_eq!(ranks(2, |world| Ok(world.rank())).unwrap(), [0, 1]);
    }
}
