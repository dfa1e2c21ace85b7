//! The secret that the processes of a job share and strangers do not know.

use std::fmt;

use crate::{CommError, Result};

/// Of the text of a secret to its key, so that a secret of Muster's is no key of anything else.
const OF_TEXT: &str = "Muster 2026-11 the text of a job's secret";
/// Of a job's name and size to its mark.
const SCOPE: &str = "Muster 2026-11 the mark of one start of a job";

/// The secret of a job. Every connection between its processes begins with a proof, by both ends,
/// that they know it, and what is said afterwards cannot be forged, replayed or reordered without
/// it (the `handshake` module says how).
///
/// It gives no privacy: whoever sees the packets reads weights, gradients and addresses. And
/// payloads are covered by a CRC-32C alone, which is no keyed sum: the sum itself cannot be
/// forged, but whoever alters packets on their way can choose another payload of the same sum.
/// Against that there is [`crate::tls`]; or keep others out of the network between the hosts.
///
/// Whoever listens in, or takes the place of a listener, can try guesses of a secret at leisure; so
/// take one that cannot be guessed, such as 32 random bytes in hex.
#[derive(Clone, Copy)]
pub struct Secret([u8; 32]);

impl Secret {
    /// Fewest bytes of a text that can be one.
    pub const BYTES_MIN: usize = 16;

    /// No secret: everyone knows it. Proofs then keep accidents out, such as ranks of another start
    /// of a job, and nobody who is up to something.
    pub const fn none() -> Secret {
        Secret([0; 32])
    }

    /// That of a text which all processes of the job have; `None` if it is shorter than
    /// [`Secret::BYTES_MIN`].
    pub fn of_text(text: &[u8]) -> Option<Secret> {
        let is_enough = text.len() >= Secret::BYTES_MIN;
        is_enough.then(|| Secret(blake3::derive_key(OF_TEXT, text)))
    }

    /// A new one.
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn random() -> Result<Secret> {
        random().map(Secret)
    }

    /// For a process that this one starts. It is the secret itself: not for files, arguments,
    /// environments or messages.
    pub fn to_hex(&self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }

    /// The inverse of [`Secret::to_hex`].
    pub fn from_hex(hex: &str) -> Option<Secret> {
        blake3::Hash::from_hex(hex).ok().map(|hash| Secret(*hash.as_bytes()))
    }

    /// A key for one use, which `context` names.
    pub(crate) fn key(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, &self.0)
    }

    /// The mark of a start of a job: another one for another name, size or secret, and none of
    /// them can be told from it.
    pub(crate) fn scope(&self, job: &str, world: usize) -> [u8; 16] {
        let words = [&(world as u64).to_le_bytes()[..], job.as_bytes()].concat();
        let hash = blake3::keyed_hash(&self.key(SCOPE), &words);
        let mut scope = [0; 16];
        scope.copy_from_slice(&hash.as_bytes()[..16]);
        scope
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Random bytes of the system.
///
/// # Errors
/// It has none.
pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| CommError::Runtime(std::io::Error::from(error)))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_text_and_is_never_shown() {
        let of = |text: &str| Secret::of_text(text.as_bytes()).map(|secret| secret.0);
        assert_eq!(of("fifteen bytes.."), None);
        assert!(of("sixteen bytes...").is_some_and(|key| key != Secret::none().0));
        assert_ne!(of("sixteen bytes..."), of("sixteen bytes..?"));
        let secret = Secret::random().unwrap();
        assert_ne!(secret.0, Secret::random().unwrap().0);
        assert_eq!(Secret::from_hex(&secret.to_hex()).unwrap().0, secret.0);
        assert!(Secret::from_hex("").is_none() && Secret::from_hex(&"g".repeat(64)).is_none());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
    }

    #[test]
    fn every_start_of_every_job_has_another_mark() {
        let (one, other) = (Secret::of_text(&[1; 16]).unwrap(), Secret::of_text(&[2; 16]).unwrap());
        assert_eq!(one.scope("job-1", 2), one.scope("job-1", 2));
        assert_ne!(one.scope("job-1", 2), one.scope("job-2", 2));
        assert_ne!(one.scope("job-1", 2), one.scope("job-1", 3));
        assert_ne!(one.scope("job-1", 2), other.scope("job-1", 2));
    }
}
