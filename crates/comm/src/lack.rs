//! The credential that a host lacks which cannot prove that it is of the job, as it tells the
//! others all the same.
//!
//! A host whose secret or whose files of TLS cannot be used will not start, and the others wait for
//! it. It says so in plain, and nobody can tell its word from a stranger's. So:
//!
//!   * A number travels, and stands for one of few sentences. A stranger puts no words of its own
//!     before other people, and no name of a file leaves the host.
//!   * Who *comes* to the meeting point and says so ends nothing: anybody can come to a port, and
//!     would end every job. It is a hint for people, told by node 0 at once, and to all beside the
//!     ordinary message when the time is up. Until then the host may still come and prove itself.
//!   * Who *listens* where node 0 should, and says so, is taken at its word: whoever has that place
//!     keeps the ranks apart anyway, and need only answer as another program would. All that is
//!     believed is that this meeting will not be.
//!   * Where TLS alone is lacking, the secret proves nothing either: outside of TLS it would give
//!     who listens in a keyed hash to try guesses on.

/// A credential that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    #[error("its secret cannot be used")]
    Secret,
    #[error("its files of TLS cannot be used")]
    Tls,
}

impl Lack {
    const ALL: [Lack; 2] = [Lack::Secret, Lack::Tls];

    /// As it travels: where else there is a protocol, a zero, or what an alert of TLS is about
    /// (RFC 8446, section 6), and nothing else is called so.
    pub(crate) const fn word(self) -> u8 {
        match self {
            Lack::Secret => u8::MAX - 1,
            Lack::Tls => u8::MAX - 2,
        }
    }

    pub(crate) fn of_word(word: u8) -> Option<Lack> {
        Lack::ALL.into_iter().find(|lack| lack.word() == word)
    }
}
