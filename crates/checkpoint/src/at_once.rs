//! Many small operations on files, as many at once as the disk takes.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::Error;
use crate::disk::Disk;

/// Does `work` for each of the numbers below `count`, on the disk that holds `path`.
///
/// # Errors
/// Of those that failed, that of the lowest number; later ones may not have been tried.
pub(crate) fn each(
    disk: &dyn Disk,
    path: &Path,
    count: usize,
    work: impl Fn(usize) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let threads = disk.at_once(path).min(count);
    if threads <= 1 {
        return (0..count).try_for_each(work);
    }
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(None::<(usize, Error)>));
    let lock = || failed.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                // Whoever takes a number tries it, and so all below one that failed are tried.
                while lock().is_none() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    if let Err(error) = work(number) {
                        let mut failed = lock();
                        if failed.as_ref().is_none_or(|(lowest, _)| number < *lowest) {
                            *failed = Some((number, error));
                        }
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    failed.map_or(Ok(()), |(_, error)| Err(error))
}
