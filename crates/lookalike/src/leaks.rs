//! The report at the end of the process: handles of the drivers and of the collective library that
//! nobody let go of.

use crate::{nccl, world};

pub(crate) extern "C" fn report() {
    // The state of the drivers is let go of before the library is asked.
    let all = world::held().into_iter().chain(nccl::held());
    for (count, what) in all.filter(|(count, _)| *count > 0) {
        eprintln!("lookalike: at exit: {count} {what} not released");
    }
}
