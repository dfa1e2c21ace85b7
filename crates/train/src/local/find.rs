//! Which local checkpoint can be loaded, and who has which of its files.
//!
//! ```text
//! each host: its committed attempts, the files it has of each ─▶ all hosts
//!   ─▶ the newest of which every file is somewhere ─▶ its manifest, from one that has it
//! ```

use std::collections::BTreeSet;

use checkpoint::{Attempt, Checkpoint, Digest};
use comm::Control;
use serde::{Deserialize, Serialize};

use super::Local;
use crate::TrainError;

/// An attempt that a host has committed, and the files that it has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    step: u64,
    generation: u32,
    manifest: Digest,
    files: Vec<bool>,
}

impl Held {
    fn attempt(&self) -> Attempt {
        Attempt { step: self.step, generation: self.generation }
    }
}

/// An attempt of which every file is somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Whole {
    attempt: Attempt,
    /// A host that has its manifest.
    host: usize,
    /// Of each file, the hosts that have it.
    holders: Vec<Vec<usize>>,
}

/// A local checkpoint that can be loaded.
pub(crate) struct Found {
    pub(crate) checkpoint: Checkpoint,
    /// Of each file, the hosts that have it.
    pub(crate) holders: Vec<Vec<usize>>,
}

/// The newest local checkpoint that is newer than `than`, and why newer ones are passed over.
/// Collective.
///
/// # Errors
/// Lost peers; a manifest that was removed meanwhile.
pub(crate) fn find(
    local: &Local,
    control: &dyn Control,
    than: Option<Attempt>,
) -> Result<(Option<Found>, Vec<String>), TrainError> {
    let held = if local.leads() { held(local) } else { Vec::new() };
    let words = control.all_gather_bytes(&serde_json::to_vec(&held).unwrap_or_default())?;
    let of_host = |host| {
        let word = &words[local.hosts.leader(host)];
        serde_json::from_slice(word).unwrap_or_default()
    };
    let hosts: Vec<Vec<Held>> = (0..local.hosts.count()).map(of_host).collect();
    let (whole, passed_over) = choose(&hosts, than);
    let Some(Whole { attempt, host, holders }) = whole else { return Ok((None, passed_over)) };
    let path = local.store.path_of(attempt);
    let (leader, mut manifest) = (local.hosts.leader(host), Vec::new());
    if local.rank == leader {
        let checkpoint = Checkpoint::open_lazily(&path);
        manifest = checkpoint.and_then(|of| of.manifest_bytes()).unwrap_or_default();
    }
    control.broadcast_bytes(leader, &mut manifest)?;
    let checkpoint = Checkpoint::of_manifest(&path, &manifest)?;
    Ok((Some(Found { checkpoint, holders }), passed_over))
}

/// The committed attempts of this host. What cannot be read is not there.
fn held(local: &Local) -> Vec<Held> {
    let attempts = local.store.attempts().unwrap_or_default();
    let held = |attempt: Attempt| {
        let checkpoint = Checkpoint::open_lazily(local.store.path_of(attempt)).ok()?;
        let Attempt { step, generation } = attempt;
        let (manifest, files) = (checkpoint.manifest_blake3(), checkpoint.files_here());
        Some(Held { step, generation, manifest, files })
    };
    attempts.into_iter().filter_map(held).collect()
}

/// The newest attempt after `than` of which the hosts together have every file, and in words those
/// that are newer and not whole.
fn choose(hosts: &[Vec<Held>], than: Option<Attempt>) -> (Option<Whole>, Vec<String>) {
    let all = hosts.iter().flatten().map(|held| (held.attempt().age_key(), held.manifest));
    let newer: BTreeSet<_> =
        all.filter(|(age, _)| than.is_none_or(|than| *age > than.age_key())).collect();
    let mut passed_over = Vec::new();
    for ((generation, step), manifest) in newer.into_iter().rev() {
        let attempt = Attempt { step, generation };
        let of = |host: &Vec<Held>| {
            host.iter().find(|held| held.attempt() == attempt && held.manifest == manifest).cloned()
        };
        let held: Vec<Option<Held>> = hosts.iter().map(of).collect();
        let Some(host) = held.iter().position(Option::is_some) else { continue };
        let files = held[host].as_ref().map_or(0, |held| held.files.len());
        let has = |host: &usize, file: usize| {
            held[*host].as_ref().is_some_and(|held| held.files.get(file) == Some(&true))
        };
        let holders: Vec<Vec<usize>> = (0..files)
            .map(|file| (0..hosts.len()).filter(|host| has(host, file)).collect())
            .collect();
        let missing = holders.iter().filter(|hosts| hosts.is_empty()).count();
        if missing == 0 {
            return (Some(Whole { attempt, host, holders }), passed_over);
        }
        passed_over.push(format!(
            "the local checkpoint of step {step}: {missing} of its {files} files are on no host \
             that is here"
        ));
    }
    (None, passed_over)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(step: u64, generation: u32, files: &[u8]) -> Held {
        let files = files.iter().map(|&has| has == 1).collect();
        Held { step, generation, manifest: Digest::of(&step.to_le_bytes()), files }
    }

    #[test]
    fn the_newest_that_the_hosts_have_together_is_chosen() {
        let hosts = [
            vec![held(10, 1, &[1, 1, 0]), held(20, 1, &[1, 1, 0]), held(15, 2, &[1, 0, 0])],
            vec![held(10, 1, &[0, 1, 1]), held(20, 1, &[0, 1, 1])],
        ];
        let (whole, passed_over) = choose(&hosts, None);
        let whole = whole.unwrap();
        assert_eq!(whole.attempt, Attempt { step: 20, generation: 1 });
        assert_eq!(whole.holders, [vec![0], vec![0, 1], vec![1]]);
        let told = "the local checkpoint of step 15: 2 of its 3 files are on no host that is here";
        assert_eq!(passed_over, [told]);
        // One on the disk is newer.
        let newer = Attempt { step: 30, generation: 1 };
        let (whole, passed_over) = choose(&hosts, Some(newer));
        assert_eq!((whole, passed_over.len()), (None, 1));
        // A host is gone.
        let (whole, passed_over) = choose(&hosts[1..], None);
        assert_eq!((whole, passed_over.len()), (None, 2));
        assert_eq!(choose(&[], None), (None, Vec::new()));
    }

    #[test]
    fn an_attempt_of_another_job_with_the_same_name_does_not_help() {
        let mut other = held(10, 1, &[0, 1]);
        other.manifest = Digest::of(b"another");
        let (whole, passed_over) = choose(&[vec![held(10, 1, &[1, 0])], vec![other]], None);
        assert_eq!((whole, passed_over.len()), (None, 2));
    }
}
