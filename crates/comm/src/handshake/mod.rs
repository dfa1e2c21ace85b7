//! The first four messages of every connection: both ends prove that they know the job's secret,
//! and agree on a key for each direction.
//!
//! ```text
//! who connects ── hail       name, protocol, 32 random bytes ──────────────▶ who listens
//!              ◀─ challenge  mark of the hail, protocol, 32 random bytes ───
//!              ── proof      claim; keyed hash of everything so far ───────▶
//!              ◀─ answer     taken or not; keyed hash of everything so far ─
//! ```
//!
//! A *claim* says of which start of which job the connection is (a keyed mark, which tells nobody
//! the name), from which rank to which, and for what. The proofs, and the keys of what follows, are
//! keyed BLAKE3 of both random numbers and the claim, each under a key of its own that is derived
//! from the secret. So:
//!
//!   * none of the messages is of use on another connection, in another start, between other ranks,
//!     for another purpose, or in the other direction;
//!   * a stranger who connects sees a protocol's number and random bytes, whatever it says, until
//!     it has proved itself; what the listener does for it is one hash, and the door bounds how
//!     many there are and for how long;
//!   * a stranger who listens sees a rank's number and a keyed hash.
//!
//! The one who connects proves itself first, since anyone can connect, and hardly anyone can take
//! a listener's place. Proofs are compared in constant time.
//!
//! In a job with TLS ([`crate::tls`]) all of this goes on inside of it. Who speaks plain to such a
//! process is told so by a challenge with a protocol that none has; who begins TLS with a process
//! that has none, by the first eight bytes of a hail, which are no record of TLS.
//!
//! A host that cannot prove itself gives a notice instead of a hail, or answers a hail with what it
//! lacks ([`crate::lack`] says what that is worth).
//!
//! After that every frame and message carries a [`seal`] under the key of its direction.
//!
//! Keyed BLAKE3 is a pseudorandom function by design (section 2 of its paper: keyed hashing, key
//! derivation), which is all that is asked of it here: HMAC's nesting is there for hashes that can
//! be extended, and BLAKE3's cannot.

mod drive;
mod seal;
mod states;

pub(crate) use drive::{
    Failed, Heard, Stranger, answer_lacking, dial, give_notice, hear, hear_known,
};
pub(crate) use seal::{Key, Seal, TAG_BYTES};
pub(crate) use states::{ANSWER_BYTES, Accepted, Claim, Keys, PROTOCOL, Refused};
