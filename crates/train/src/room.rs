//! Whether a run's checkpoints fit on their disk: told before the first step, not after hours.

use checkpoint::Store;
use checkpoint::disk::Free;

use crate::plan::SAVE_BUFFERS;
use crate::{Engine, Event, TrainError, Trainer};

/// Header and manifest say about so much of each tensor.
const BYTES_PER_TENSOR: u64 = 512;

/// The approximate size of one checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    bytes: u64,
    /// Directories among them.
    files: u64,
}

/// The room of a disk, compared with the checkpoints to come.
#[derive(Debug, PartialEq, Eq)]
enum Room {
    Enough,
    /// For this many whole checkpoints, which are fewer than are to come.
    For(u64),
    /// Not for one.
    None,
}

/// Judges the room for `copies` checkpoints beside what is there.
fn room(size: Size, copies: u64, free: Free) -> Room {
    let by_bytes = free.bytes / size.bytes.max(1);
    let by_files = free.files.map_or(u64::MAX, |files| files / size.files.max(1));
    match by_bytes.min(by_files) {
        fits if fits >= copies => Room::Enough,
        0 => Room::None,
        fits => Room::For(fits),
    }
}

/// The saves of a run from now on, and those of them that stay.
#[derive(Debug, Clone, Copy)]
struct Saves {
    /// Steps taken, and the last that will be.
    step: u64,
    last: u64,
    /// Steps from one save to the next; 0: only at the end.
    every: u64,
    /// Checkpoints that stay; 0 for all.
    keep: u64,
    /// Those of every so many steps stay, too.
    keep_every: u64,
    /// Saves that may be written before another checkpoint is removed.
    open: u64,
}

impl Saves {
    /// Checkpoints that are still to be written, and to lie there together besides the `kept` that
    /// do.
    fn copies(self, kept: u64) -> u64 {
        let Saves { step, last, every, keep, keep_every, open } = self;
        let to_come = match last.saturating_sub(step) {
            0 => 0,
            _ if every == 0 => 1,
            _ => last.div_ceil(every) - step / every,
        };
        if keep == 0 {
            return to_come;
        }
        let stay = match (every, keep_every) {
            (0, _) | (_, 0) => 0,
            // Steps that are saved and stay, but for the newest, which are counted.
            _ => last / lcm(every, keep_every) - step / lcm(every, keep_every),
        };
        let most = keep.saturating_add(open).saturating_add(stay);
        to_come.min(most.saturating_sub(kept).max(1))
    }
}

/// The least common multiple of two numbers that are not zero.
fn lcm(a: u64, b: u64) -> u64 {
    let (mut divisor, mut rest) = (a, b);
    while rest > 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    (a / divisor).saturating_mul(b)
}

impl<E: Engine> Trainer<E> {
    /// Looks, on rank 0, whether the checkpoints to come fit on their disk; a warning where not all
    /// do. Nothing is told of a disk that does not say what is free.
    ///
    /// # Errors
    /// Not one fits.
    pub fn check_room(
        &self,
        store: &Store,
        max_steps: Option<u64>,
    ) -> Result<Option<Event>, TrainError> {
        let Some(free) = store.free().filter(|_| self.ranks.rank() == 0) else { return Ok(None) };
        let config = &self.config.checkpoint;
        let total = self.config.train.steps;
        let last = max_steps.map_or(total, |most| total.min(most));
        let kept = store.committed().unwrap_or(0) as u64;
        let open = if self.plan.saves_beside { SAVE_BUFFERS as u64 } else { 1 };
        let (step, every, keep) = (self.steps_taken(), config.every, config.keep as u64);
        let saves = Saves { step, last, every, keep, keep_every: config.keep_every, open };
        let copies = saves.copies(kept);
        let (size, path) = (self.checkpoint_size(), store.root());
        let Size { bytes: needed_bytes, files: needed_files } = size;
        let fits = match room(size, copies, free) {
            Room::Enough => return Ok(None),
            Room::None => {
                let path = path.to_owned();
                return Err(TrainError::NoRoom { path, needed_bytes, needed_files, free });
            }
            Room::For(fits) => fits,
        };
        let keeps = match config.keep {
            0 => "checkpoint.keep: 0 keeps all".to_owned(),
            keep => {
                let open = if open == 1 { "one is" } else { "two may be" };
                format!("checkpoint.keep: {keep}, and {open} saved before another is removed")
            }
        };
        let files = free.files.map_or_else(String::new, |files| format!(" and {files} files"));
        let message = format!(
            "the disk of {} has room for {fits} of the {copies} checkpoints that are to lie there \
             together ({keeps}), each of about {needed_bytes} bytes in {needed_files} files; {} \
             bytes{files} are free",
            path.display(),
            free.bytes,
        );
        Ok(Some(Event::Warning { message }))
    }

    fn checkpoint_size(&self) -> Size {
        let states = self.plan.states.iter();
        let bytes = states.map(|state| state.bytes() + BYTES_PER_TENSOR).sum();
        // Of each rank a directory, a shard and its sums; their directory, manifest and COMMIT,
        // which has two names for a moment: some file systems count it twice.
        Size { bytes, files: 3 * self.plan.world as u64 + 4 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_files_both_run_out() {
        let size = Size { bytes: 100, files: 6 };
        let judge = |bytes, files| room(size, 4, Free { bytes, files });
        assert_eq!(judge(400, None), Room::Enough);
        assert_eq!(judge(399, None), Room::For(3));
        assert_eq!(judge(99, Some(1000)), Room::None);
        assert_eq!(judge(1000, Some(24)), Room::Enough);
        assert_eq!(judge(1000, Some(23)), Room::For(3));
        assert_eq!(judge(1000, Some(5)), Room::None);
        // Nothing is to come.
        assert_eq!(room(size, 0, Free { bytes: 0, files: Some(0) }), Room::Enough);
    }

    #[test]
    fn what_is_to_come_is_counted_as_it_will_be_saved() {
        let of =
            |step, last, every, keep| Saves { step, last, every, keep, keep_every: 0, open: 1 };
        assert_eq!(of(0, 0, 5, 3).copies(0), 0);
        assert_eq!(of(6, 6, 1, 3).copies(0), 0);
        // Only at the end.
        assert_eq!(of(0, 100, 0, 3).copies(0), 1);
        // After 10, 20, 25.
        assert_eq!(of(0, 25, 10, 0).copies(0), 3);
        assert_eq!(of(10, 25, 10, 0).copies(0), 2);
        assert_eq!(of(12, 30, 10, 0).copies(0), 2);
        // Three are kept and a fourth is saved meanwhile; those that are there already count.
        assert_eq!(of(0, 100, 10, 3).copies(0), 4);
        assert_eq!(of(30, 100, 10, 3).copies(2), 2);
        assert_eq!(of(30, 100, 10, 3).copies(9), 1);
        assert_eq!(of(0, 100, 10, u64::MAX).copies(0), 10);
        // Two may be written at once; 30, 60 and 90 stay for good.
        assert_eq!(Saves { open: 2, ..of(0, 100, 10, 3) }.copies(0), 5);
        assert_eq!(Saves { keep_every: 15, ..of(0, 100, 10, 3) }.copies(0), 7);
        assert_eq!(Saves { keep_every: 15, ..of(50, 100, 10, 3) }.copies(0), 5);
        assert_eq!(Saves { keep_every: 15, ..of(0, 100, 0, 3) }.copies(0), 1);
    }
}
