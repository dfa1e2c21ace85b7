//! The end of a save, which all ranks come to: what each tells rank 0, and what rank 0 tells all.
//!
//! ```text
//! each rank: a digest of what it wrote, or why it could not ─▶ rank 0: commit ─▶ outcome, to all
//! ```

use std::path::PathBuf;

use checkpoint::{Attempt, Committed, RankDigest, RunState, SavePlan, Store};
use comm::Control;

use crate::TrainError;

/// The outcome, as rank 0 tells it.
type Told = Result<(PathBuf, u64, usize, usize), (usize, String)>;

/// Commits what the ranks have `written`; all learn the outcome. Rank 0 has the plan. Collective.
///
/// # Errors
/// The first rank that could not write, or why the commit failed; the attempt is then removed as
/// far as possible, and no older checkpoint is touched.
pub(crate) fn conclude(
    control: &dyn Control,
    (store, attempt): (&Store, Attempt),
    plan: Option<&mut SavePlan>,
    written: Result<RankDigest, TrainError>,
    state: &RunState,
) -> Result<Committed, TrainError> {
    let messages = control.gather_bytes_to(0, &message(&written))?;
    let (mut outcome, mut own) = (Vec::new(), None);
    if let Some(plan) = plan {
        let done = commit(store, (attempt, plan), written, &messages, state);
        let told: Told = match &done {
            Ok(c) => Ok((c.path.clone(), c.bytes, c.shards, c.state_tensors)),
            Err(TrainError::PeerSave { rank, reason, .. }) => Err((*rank, reason.clone())),
            Err(error) => Err((0, error.to_string())),
        };
        outcome = serde_json::to_vec(&told).unwrap_or_default();
        own = Some(done);
    } else if let Err(error) = written {
        own = Some(Err(error));
    }
    control.broadcast_bytes(0, &mut outcome)?;
    if let Some(own) = own {
        return own;
    }
    let step = attempt.step;
    let refuse = |(rank, reason)| TrainError::PeerSave { step, rank, reason };
    let told: Told =
        serde_json::from_slice(&outcome).map_err(|error| refuse((0, error.to_string())))?;
    let (path, bytes, shards, state_tensors) = told.map_err(refuse)?;
    let manifest_blake3 = checkpoint::Digest([0; 32]);
    Ok(Committed { path, bytes, shards, state_tensors, manifest_blake3 })
}

/// A rank's message to rank 0: 0 and a digest, or 1 and why it could not write.
pub(crate) fn message(written: &Result<RankDigest, TrainError>) -> Vec<u8> {
    let (word, rest) = match written {
        Ok(digest) => (0, digest.encode()),
        Err(error) => (1, error.to_string().into_bytes()),
    };
    [&[word], &rest[..]].concat()
}

/// The digest in a message.
///
/// # Errors
/// Why that rank could not write, or that it says nothing that can be read.
pub(crate) fn heard(message: &[u8]) -> Result<RankDigest, String> {
    let unreadable = || format!("its message of {} bytes is none about a save", message.len());
    match message.split_first() {
        Some((0, digest)) => RankDigest::decode(digest).ok_or_else(unreadable),
        Some((1, reason)) => Err(String::from_utf8_lossy(reason).into_owned()),
        _ => Err(unreadable()),
    }
}

/// Commits what all ranks have written, if they could.
///
/// # Errors
/// The first rank that could not, or why the commit failed.
fn commit(
    store: &Store,
    (attempt, plan): (Attempt, &mut SavePlan),
    own: Result<RankDigest, TrainError>,
    messages: &[Vec<u8>],
    state: &RunState,
) -> Result<Committed, TrainError> {
    let mut digests = Vec::with_capacity(messages.len());
    let mut failed = own.err();
    for (rank, message) in messages.iter().enumerate() {
        match heard(message) {
            Ok(digest) => digests.push(digest),
            Err(reason) => {
                let step = attempt.step;
                failed.get_or_insert(TrainError::PeerSave { step, rank, reason });
            }
        }
    }
    if let Some(failed) = failed {
        // The reason for the failure matters more than leftovers. Nobody writes any more.
        let _ = store.discard(attempt);
        return Err(failed);
    }
    Ok(store.commit_planned(attempt, plan, &digests, state)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_say_nothing_are_told_from_reasons() {
        let failed = Err(TrainError::Events(std::io::Error::other("no room")));
        assert_eq!(heard(&message(&failed)), Err("cannot tell what happens: no room".to_owned()));
        for nothing in [&[][..], &[0], &[0, 1, 2], &[7; 60]] {
            let reason = heard(nothing).unwrap_err();
            assert!(reason.ends_with("bytes is none about a save"), "{reason}");
        }
    }
}
