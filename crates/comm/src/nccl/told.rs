//! The accounts that the library and the ranks give of a failure: the library knows no names of
//! ranks whose process has ended or who do something else, and its complaint may come first.

use std::time::{Duration, Instant};

use nccl_rs::Code;

use crate::job::Job;
use crate::transport::Transport;
use crate::{CommError, Operation};

/// How long a failure of the library may be known before it is known which rank it was.
const NAMED: Duration = Duration::from_secs(2);

/// The error of an operation that the library told `source` of: the job's, if that is known soon.
pub(super) fn error(
    companion: &dyn Transport,
    (operation, sequence): (Operation, u64),
    source: nccl_rs::Error,
) -> CommError {
    let (job, begun) = (companion.job(), Instant::now());
    loop {
        if let Some(error) = of_job(job, (operation, sequence)) {
            return error;
        }
        if !may_be_of_a_peer(&source) || begun.elapsed() > NAMED {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let members = companion.members().ranks.to_vec();
    CommError::Library { operation, sequence, members, source: Box::new(source) }
}

/// Why the job is given up, if it is.
pub(super) fn of_job(job: &Job, (operation, sequence): (Operation, u64)) -> Option<CommError> {
    job.revocation().error(operation, sequence)
}

/// Whether a peer of this rank failed, as the library says without naming it.
pub(crate) fn is_of_a_peer(error: &nccl_rs::Error) -> bool {
    code(error) == Some(Code::RemoteError)
}

/// Whether it may be, or may have come of another rank's doing something else.
fn may_be_of_a_peer(error: &nccl_rs::Error) -> bool {
    is_of_a_peer(error) || matches!(code(error), Some(Code::InvalidUsage | Code::InvalidArgument))
}

fn code(error: &nccl_rs::Error) -> Option<Code> {
    match error {
        nccl_rs::Error::Async { code, .. } | nccl_rs::Error::Call { code, .. } => Some(*code),
        nccl_rs::Error::Group { source, .. } => code(source),
        _ => None,
    }
}
