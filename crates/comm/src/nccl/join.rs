//! How the members of a group meet in the library: one of them makes an id, all get it over the
//! companion, and each begins its end of the communicator.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use device::Stream;
use nccl_rs::{Communicator, Config, JobId, Library, UniqueId};

use super::calls::with_device;
use super::{Refusal, told};
use crate::patience::LOOK;
use crate::transport::Transport;
use crate::{CommError, Operation, Result};

const CALL: (Operation, u64) = (Operation::Join, 0);

/// This member's end of a new communicator of `job`, on the device of `stream`. Collective.
///
/// # Errors
/// The first member cannot make an id; the library's; members that do not come.
pub(super) fn communicator(
    companion: &dyn Transport,
    stream: &Stream,
    library: &Library,
    job: JobId,
) -> Result<Communicator> {
    let (all, members) = (companion.job(), companion.members());
    let id = share_id(companion, library, job);
    // The companion's own failure has been settled there.
    let id = match all.revocation().why() {
        Some(_) => id?,
        None => all.settle(members, CALL, id)?,
    };
    let made = init(companion, stream, library, (id, job));
    all.settle(members, CALL, made)
}

fn told(companion: &dyn Transport, source: nccl_rs::Error) -> CommError {
    told::error(companion, CALL, source)
}

/// The first member's new id, on all members.
fn share_id(companion: &dyn Transport, library: &Library, job: JobId) -> Result<UniqueId> {
    let members = companion.members();
    let made = (members.place == 0).then(|| library.unique_id(job));
    let mine = made.map(|made| made.map(|id| id.to_bytes().to_vec()));
    // A member without one says why: the others would wait for it.
    let mine = mine.map(|mine| mine.map_err(|error| error.to_string()));
    let mine = postcard::to_stdvec(&mine).unwrap_or_default();
    let all = companion.gather_bytes(&mine)?;
    let first = all.first().and_then(|bytes| postcard::from_bytes(bytes).ok()).flatten();
    let first: std::result::Result<Vec<u8>, String> =
        first.unwrap_or_else(|| Err("it sent nothing".to_owned()));
    match first {
        Ok(bytes) => UniqueId::from_bytes(&bytes).map_err(|source| told(companion, source)),
        Err(reason) => {
            let (ranks_of, library) = (vec![members.ranks[0]], library.vendor());
            Err(Refusal::Library { ranks_of, library, reason }.into())
        }
    }
}

/// Meets the other members in the library, on a thread of its own, which a failure elsewhere leaves
/// to its deadline.
fn init(
    companion: &dyn Transport,
    stream: &Stream,
    library: &Library,
    (id, job_id): (UniqueId, JobId),
) -> Result<Communicator> {
    let (job, members) = (companion.job(), companion.members());
    let timeout = Duration::from_millis(job.timeout_ms());
    let (place, count) = (members.place as u32, members.len() as u32);
    let (tell, heard) = channel();
    let (stream, library) = (stream.clone(), library.clone());
    let work = move || {
        let config = Config { timeout, ..Config::default() };
        let made = with_device(&stream, |_| {
            Communicator::init_rank(&library, &id, job_id, place, count, &config)
        });
        // Nobody may listen any more; then it is aborted.
        drop(tell.send(made));
    };
    let thread = std::thread::Builder::new().name("nccl-init".to_owned());
    thread.spawn(work).map_err(CommError::Runtime)?;
    loop {
        match heard.recv_timeout(LOOK) {
            Ok(made) => return made?.map_err(|source| told(companion, source)),
            Err(RecvTimeoutError::Timeout) => job.revocation().check()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(CommError::Runtime(std::io::ErrorKind::BrokenPipe.into()));
            }
        }
    }
}
