//! The messages and checks of each end: a pure state machine.
//!
//! ```text
//! Dialler ─ hail ▶            Listener::challenge
//!         prove  ◀ challenge ─
//! Proven  ─ proof ▶           Listener::judge ─▶ Accepted, or a stranger
//!       conclude ◀ answer ────
//! ```

use super::seal::Key;
use crate::lack::Lack;
use crate::secret::Secret;

/// Of everything that travels between processes of a job. Changes when a message or a frame does.
pub(crate) const PROTOCOL: u8 = 9;

/// First bytes of a connection, by protocols from 5 on.
const MAGIC: [u8; 4] = *b"MSTR";
/// Where protocols before 5 had it, behind a length.
const FORMER_MAGIC: [u8; 4] = *b"MSTC";

/// Name and protocol, with which a hail begins.
pub(super) const GREETING_BYTES: usize = 8;
pub(super) const HAIL_BYTES: usize = GREETING_BYTES + 32;
/// Of the hail that a challenge is the answer to.
const MARK_BYTES: usize = 4;
pub(super) const CHALLENGE_BYTES: usize = MARK_BYTES + 1 + 32;
const CLAIM_BYTES: usize = 32;
pub(super) const PROOF_BYTES: usize = CLAIM_BYTES + 32;
pub(crate) const ANSWER_BYTES: usize = 1 + 32;

const TAKEN: u8 = 1;

/// In place of a protocol, of who speaks TLS alone.
pub(super) const OVER_TLS: u8 = u8::MAX;

const OF_DIALLER: &str = "Muster 2026-11 proof of who connects";
const OF_LISTENER: &str = "Muster 2026-11 proof of who listens";
const FROM_DIALLER: &str = "Muster 2026-11 key of what comes from who connects";
const FROM_LISTENER: &str = "Muster 2026-11 key of what comes from who listens";

/// The ranks at the ends of a connection, and its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    /// The mark of a start of a job; of none where that is not known yet.
    pub scope: [u8; 16],
    pub from: u32,
    pub to: u32,
    pub purpose: u64,
}

impl Claim {
    fn encode(&self) -> [u8; CLAIM_BYTES] {
        let mut bytes = [0; CLAIM_BYTES];
        bytes[..16].copy_from_slice(&self.scope);
        bytes[16..20].copy_from_slice(&self.from.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.to.to_le_bytes());
        bytes[24..].copy_from_slice(&self.purpose.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; CLAIM_BYTES]) -> Claim {
        let word = |at: usize| {
            let bytes = bytes[at..at + 4].iter().rev();
            bytes.fold(0_u32, |word, &byte| word << 8 | u32::from(byte))
        };
        let mut scope = [0; 16];
        scope.copy_from_slice(&bytes[..16]);
        let purpose = u64::from(word(28)) << 32 | u64::from(word(24));
        Claim { scope, from: word(16), to: word(20), purpose }
    }
}

/// A key for each direction, as this end sees them.
#[derive(Clone)]
pub(crate) struct Keys {
    pub send: Key,
    pub receive: Key,
}

/// Why the other end is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is another program.
    Stranger,
    /// It speaks this protocol.
    Protocol(u32),
    /// Its secret is another one.
    Secret,
}

/// Everything that both ends have said.
struct Transcript {
    secret: Secret,
    bytes: [u8; 64 + CLAIM_BYTES],
}

impl Transcript {
    fn new(secret: Secret, hail: [u8; 32], challenge: [u8; 32], claim: &Claim) -> Transcript {
        let mut bytes = [0; 64 + CLAIM_BYTES];
        bytes[..32].copy_from_slice(&hail);
        bytes[32..64].copy_from_slice(&challenge);
        bytes[64..].copy_from_slice(&claim.encode());
        Transcript { secret, bytes }
    }

    /// Hashes are compared in constant time.
    fn hash(&self, context: &str) -> blake3::Hash {
        blake3::keyed_hash(&self.secret.key(context), &self.bytes)
    }

    fn key(&self, context: &str) -> Key {
        Key::new(*self.hash(context).as_bytes())
    }
}

/// The kinds of a first message, told from its first eight bytes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Greeting {
    Hail,
    /// That of a former protocol, whose number comes next.
    Former,
    /// In place of a hail: who comes cannot prove itself.
    Lacks(Lack),
    Other(Refused),
}

pub(super) fn greeting(bytes: &[u8; GREETING_BYTES]) -> Greeting {
    let (start, rest) = (&bytes[..4], &bytes[4..]);
    match (start == MAGIC, rest == FORMER_MAGIC) {
        (true, _) if rest == [PROTOCOL, 0, 0, 0] => Greeting::Hail,
        (true, _) => match Lack::of_word(rest[1]) {
            Some(lack) if rest == [PROTOCOL, lack.word(), 0, 0] => Greeting::Lacks(lack),
            _ => Greeting::Other(Refused::Protocol(u32::from(rest[0]))),
        },
        (false, true) => Greeting::Former,
        (false, false) => Greeting::Other(Refused::Stranger),
    }
}

/// The answer to a process of a former protocol: this one's number, in its own words, and nothing
/// else. It is a frame's length, then what it expects to come first.
pub(super) fn answer_to_former() -> [u8; 12] {
    let mut bytes = [8, 0, 0, 0, 0, 0, 0, 0, PROTOCOL, 0, 0, 0];
    bytes[4..8].copy_from_slice(&FORMER_MAGIC);
    bytes
}

/// Who connects.
pub(super) struct Dialler {
    secret: Secret,
    claim: Claim,
    hail: [u8; HAIL_BYTES],
}

/// And has proved itself.
pub(super) struct Proven(Transcript);

impl Dialler {
    pub(super) fn new(secret: Secret, claim: Claim, nonce: [u8; 32]) -> Dialler {
        let mut hail = [0; HAIL_BYTES];
        hail[..4].copy_from_slice(&MAGIC);
        hail[4] = PROTOCOL;
        hail[GREETING_BYTES..].copy_from_slice(&nonce);
        Dialler { secret, claim, hail }
    }

    pub(super) fn hail(&self) -> &[u8; HAIL_BYTES] {
        &self.hail
    }

    /// Whether what has come so far can be the beginning of a challenge.
    pub(super) fn may_be_challenge(&self, start: &[u8]) -> bool {
        start.iter().zip(mark(&self.hail)).all(|(&byte, of_mark)| byte == of_mark)
    }

    /// The proof that a challenge asks for.
    pub(super) fn prove(
        &self,
        challenge: &[u8; CHALLENGE_BYTES],
    ) -> Result<(Proven, [u8; PROOF_BYTES]), Refused> {
        if !self.may_be_challenge(challenge) {
            return Err(Refused::Stranger);
        }
        if challenge[MARK_BYTES] != PROTOCOL {
            return Err(Refused::Protocol(u32::from(challenge[MARK_BYTES])));
        }
        let (ours, theirs) = (nonce(&self.hail), nonce(challenge));
        let transcript = Transcript::new(self.secret, ours, theirs, &self.claim);
        let mut proof = [0; PROOF_BYTES];
        proof[..CLAIM_BYTES].copy_from_slice(&self.claim.encode());
        proof[CLAIM_BYTES..].copy_from_slice(transcript.hash(OF_DIALLER).as_bytes());
        Ok((Proven(transcript), proof))
    }
}

impl Proven {
    /// The keys, if the answer proves the listener, too.
    pub(super) fn conclude(&self, answer: &[u8; ANSWER_BYTES]) -> Result<Keys, Refused> {
        let Proven(transcript) = self;
        let [taken, proof @ ..] = *answer;
        if taken != TAKEN || transcript.hash(OF_LISTENER) != blake3::Hash::from_bytes(proof) {
            return Err(Refused::Secret);
        }
        let (send, receive) = (transcript.key(FROM_DIALLER), transcript.key(FROM_LISTENER));
        Ok(Keys { send, receive })
    }
}

/// Who listens, and was hailed.
pub(super) struct Listener {
    hail: [u8; 32],
    nonce: [u8; 32],
}

/// Someone of the job.
pub(crate) struct Accepted {
    pub claim: Claim,
    pub keys: Keys,
    /// To be said as soon as the connection is wanted.
    pub answer: [u8; ANSWER_BYTES],
}

/// The answer to a stranger.
pub(super) const NOT_TAKEN: [u8; ANSWER_BYTES] = [0; ANSWER_BYTES];

impl Listener {
    /// The challenge that a hail is answered with.
    pub(super) fn challenge(
        hail: &[u8; HAIL_BYTES],
        random: [u8; 32],
    ) -> (Listener, [u8; CHALLENGE_BYTES]) {
        let mut challenge = [0; CHALLENGE_BYTES];
        challenge[..MARK_BYTES].copy_from_slice(&mark(hail));
        challenge[MARK_BYTES] = PROTOCOL;
        challenge[MARK_BYTES + 1..].copy_from_slice(&random);
        (Listener { hail: nonce(hail), nonce: random }, challenge)
    }

    /// Who it is, or what a stranger claims to be.
    pub(super) fn judge(
        &self,
        secret: Secret,
        proof: &[u8; PROOF_BYTES],
    ) -> Result<Accepted, Claim> {
        let (mut claim, mut hash) = ([0; CLAIM_BYTES], [0; 32]);
        claim.copy_from_slice(&proof[..CLAIM_BYTES]);
        hash.copy_from_slice(&proof[CLAIM_BYTES..]);
        let claim = Claim::decode(&claim);
        let transcript = Transcript::new(secret, self.hail, self.nonce, &claim);
        if transcript.hash(OF_DIALLER) != blake3::Hash::from_bytes(hash) {
            return Err(claim);
        }
        let (send, receive) = (transcript.key(FROM_LISTENER), transcript.key(FROM_DIALLER));
        let mut answer = [TAKEN; ANSWER_BYTES];
        answer[1..].copy_from_slice(transcript.hash(OF_LISTENER).as_bytes());
        Ok(Accepted { claim, keys: Keys { send, receive }, answer })
    }
}

/// The answer to a hail instead of a challenge: that it should have come over TLS, or the lack of
/// the listener.
pub(super) fn no_challenge(hail: &[u8; HAIL_BYTES], word: u8) -> [u8; CHALLENGE_BYTES] {
    let mut challenge = [0; CHALLENGE_BYTES];
    challenge[..MARK_BYTES].copy_from_slice(&mark(hail));
    challenge[MARK_BYTES] = word;
    challenge
}

/// The message of a host that cannot prove itself, instead of a hail.
pub(super) fn notice(node: u32, lack: Lack) -> [u8; HAIL_BYTES] {
    let mut notice = [0; HAIL_BYTES];
    notice[..GREETING_BYTES].copy_from_slice(&name());
    notice[5] = lack.word();
    notice[GREETING_BYTES..][..4].copy_from_slice(&node.to_le_bytes());
    notice
}

/// Of which host a notice is.
pub(super) fn noticed(notice: &[u8; HAIL_BYTES]) -> u32 {
    let node = notice[GREETING_BYTES..].first_chunk();
    u32::from_le_bytes(*node.expect("a notice is longer"))
}

/// The answer of a listener that cannot prove itself to a process that begins TLS: a fatal alert,
/// which names the lack (RFC 8446, sections 5.1 and 6).
pub(super) const fn alert(lack: Lack) -> [u8; 7] {
    [21, 3, 3, 0, 2, 2, lack.word()]
}

/// A name and a protocol: what is said to who begins TLS with a process that has none, which is no
/// record of TLS; and to who has given a notice, which then knows that it was heard.
pub(super) fn name() -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = PROTOCOL;
    bytes
}

/// By which a challenge shows that it is one: no other program answers with it by accident.
fn mark(hail: &[u8; HAIL_BYTES]) -> [u8; MARK_BYTES] {
    let mut mark = [0; MARK_BYTES];
    mark.copy_from_slice(&blake3::hash(hail).as_bytes()[..MARK_BYTES]);
    mark
}

/// The random bytes at the end of a message.
fn nonce<const N: usize>(message: &[u8; N]) -> [u8; 32] {
    let mut nonce = [0; 32];
    nonce.copy_from_slice(&message[N - 32..]);
    nonce
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
