//! Errors of this crate, in the words of whoever reads them.

use std::fmt;

use crate::{DataType, JobId, Vendor, Version};

/// Results of a call of the library. The numbers are those of `ncclResult_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    UnhandledDriverError,
    SystemError,
    InternalError,
    InvalidArgument,
    InvalidUsage,
    RemoteError,
    /// It would be an answer and no error; the waits of this crate keep it to themselves.
    InProgress,
    Timeout,
    Other(i32),
}

impl Code {
    /// `None` for success.
    pub(crate) fn of(code: i32) -> Option<Code> {
        Some(match code {
            0 => return None,
            1 => Code::UnhandledDriverError,
            2 => Code::SystemError,
            3 => Code::InternalError,
            4 => Code::InvalidArgument,
            5 => Code::InvalidUsage,
            6 => Code::RemoteError,
            7 => Code::InProgress,
            8 => Code::Timeout,
            other => Code::Other(other),
        })
    }

    /// Advice, as the end of a message.
    const fn advice(self) -> &'static str {
        match self {
            Code::UnhandledDriverError => {
                "; a call of the GPU's driver failed: is there a GPU, and is its driver as new as \
                 the library needs?"
            }
            Code::SystemError => "; set NCCL_DEBUG=INFO to see which call of the system failed",
            Code::RemoteError => "; a peer failed or was lost: look at the other ranks' messages",
            _ => "",
        }
    }
}

/// One place where a library was looked for, and what the loader said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    pub place: String,
    pub reason: String,
}

/// A list of attempts, as a message shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Attempts(pub Vec<Attempt>);

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Attempt { place, reason }) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "; " };
            // The loader begins with the name that it was given.
            let reason = reason.strip_prefix(&format!("{place}: ")).unwrap_or(reason);
            write!(f, "{comma}{place}: {reason}")?;
        }
        Ok(())
    }
}

/// Rank `rank` of `ranks`, as messages name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seat {
    pub rank: u32,
    pub ranks: u32,
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank, self.ranks)
    }
}

/// Errors of this crate: misuse that it refuses, and calls that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{vendor} was not found ({tried}); {}", vendor.install())]
    Missing { vendor: Vendor, tried: Attempts },
    #[error("{library} is no {vendor}: it has no entry point `{symbol}`; {}", vendor.install())]
    Symbol { vendor: Vendor, library: String, symbol: &'static str },
    #[error(
        "{library} is {vendor} {version}; {} or later is needed: {}",
        Version::BASELINE,
        vendor.install()
    )]
    TooOld { vendor: Vendor, library: String, version: Version },
    /// The library is fit for use, and has not this; it may be new enough, and built without it.
    #[error("{what} needs {vendor} {since}, this is {version}{}", unexpected(*since, *version))]
    Absent { what: &'static str, vendor: Vendor, since: Version, version: Version },

    #[error("{call} failed: {text}{}{}", bracketed(detail), code.advice())]
    Call { call: &'static str, code: Code, text: String, detail: String },
    /// Told by the library apart from the call that met it.
    #[error("{seat}: the communicator failed, as {call} was told: {text}{}{}", bracketed(detail),
        code.advice())]
    Async { call: &'static str, seat: Seat, code: Code, text: String, detail: String },
    #[error("{seat}: {call} was not over after {waited_ms} ms: {awaited}")]
    Deadline { call: &'static str, seat: Seat, waited_ms: u64, awaited: &'static str },
    #[error("{seat}: {call} on a communicator that was {end}")]
    Ended { call: &'static str, seat: Seat, end: End },
    #[error("cannot start a thread for {call}: {source}")]
    Thread { call: &'static str, source: std::io::Error },
    /// Operations that came before the error in a group may have begun and cannot be taken back.
    #[error(
        "a group was left by an error when {queued} of its operations were queued already, which \
         may have begun; abort its communicators: {source}"
    )]
    Group { queued: usize, source: Box<Error> },

    #[error("this is no unique id: {what}")]
    IdMalformed { what: String },
    #[error(
        "the unique id is one of {theirs}, and this rank has opened {ours}: all ranks of a \
        communicator must use one vendor's GPUs"
    )]
    IdVendor { theirs: Vendor, ours: Vendor },
    #[error(
        "the unique id is one of {vendor} {theirs}, and this rank has opened {vendor} {ours}: use \
         the same version on all ranks"
    )]
    IdVersion { vendor: Vendor, theirs: Version, ours: Version },
    #[error(
        "the unique id is one of job {theirs}, and this rank belongs to job {ours}: give every \
         rank the id that a rank of its own job made"
    )]
    IdJob { theirs: JobId, ours: JobId },

    #[error("{what} is {rank}, and there are ranks 0 to {} (of {ranks})", ranks.saturating_sub(1))]
    Rank { what: &'static str, rank: u32, ranks: u32 },
    #[error("{call}: {what}")]
    Argument { call: &'static str, what: String },
    #[error("{call}: the reduction `{op}` does not go with {dtype}: {what}")]
    Reduction { call: &'static str, op: &'static str, dtype: DataType, what: &'static str },
    #[error("config: {what}")]
    Config { what: String },
}

/// How a communicator ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Revoked,
    Aborted,
    Finalized,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            End::Revoked => "revoked: shrink or split it, or abort it",
            End::Aborted => "aborted",
            End::Finalized => "finalized",
        })
    }
}

/// Said of what a library lacks although its version should have it.
fn unexpected(since: Version, version: Version) -> &'static str {
    if version >= since { " and lacks it all the same" } else { "" }
}

fn bracketed(detail: &str) -> String {
    match detail.trim() {
        "" => String::new(),
        detail => format!(" ({detail})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_what_is_needed() {
        let (vendor, since) = (Vendor::Nvidia, Version::new(2, 28, 7));
        let version = Version::from_code(22_105);
        let error = Error::Absent { what: "ncclCommRevoke", vendor, since, version };
        assert_eq!(error.to_string(), "ncclCommRevoke needs NCCL 2.28.7, this is 2.21.5");
        let error = Error::Rank { what: "the root", rank: 4, ranks: 4 };
        assert_eq!(error.to_string(), "the root is 4, and there are ranks 0 to 3 (of 4)");
    }

    #[test]
    fn every_attempt_is_shown_once() {
        let attempt = |place: &str, reason: &str| Attempt {
            place: place.to_owned(),
            reason: reason.to_owned(),
        };
        let attempts = vec![
            attempt("libnccl.so.2", "libnccl.so.2: cannot open"),
            attempt("/x/libnccl.so.2", "file too short"),
        ];
        let tried = Attempts(attempts).to_string();
        assert_eq!(tried, "libnccl.so.2: cannot open; /x/libnccl.so.2: file too short");
    }
}
