//! Faults of a certificate, or of a process without one, in words.

use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};

use super::Own;
use crate::lack::Lack;

/// Advice where one has TLS and another has not.
const SAME_TLS: &str = "give every host of the job ranks.tls (--tls), or none";
/// Advice about another authority.
const SAME_AUTHORITY: &str = "give every host of the job the same ranks.tls.authority \
                              (authority.pem of --tls), and a certificate that it has signed";
/// Advice about times.
const TIMES: &str = "compare the clocks of the hosts (`date -u`), and make a new certificate if it \
                     is too old";

/// Why the other end of a connection cannot be talked to over TLS; follows whoever that is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsFault {
    #[error("speaks without TLS, which this process has; {SAME_TLS}")]
    Plain,
    #[error("speaks TLS alone, which this process has not; {SAME_TLS}")]
    Needed,
    /// Or of none.
    #[error("has no certificate of this job's authority; {SAME_AUTHORITY}")]
    Authority,
    #[error(
        "has a certificate that expired at {}, and the clock here says {}; {TIMES}",
        utc(*ended_s),
        utc(*now_s)
    )]
    Expired { ended_s: u64, now_s: u64 },
    #[error(
        "has a certificate that is not valid before {}, and the clock here says {}; {TIMES}",
        utc(*begins_s),
        utc(*now_s)
    )]
    NotYet { begins_s: u64, now_s: u64 },
    /// The other end's complaint.
    #[error("takes this process's certificate for one of another authority; {SAME_AUTHORITY}")]
    OtherAuthority,
    /// The other end's complaint about a certificate that is valid in this time.
    #[error(
        "takes this process's certificate for one that has expired or is not valid yet{}, and the \
         clock here says {}; {TIMES}",
        validity(*valid_s),
        utc(*now_s)
    )]
    OtherTime { valid_s: Option<(u64, u64)>, now_s: u64 },
    /// Ranks connect and are connected to.
    #[error(
        "has a certificate that is not for both ends of a connection; sign one for serverAuth and \
         clientAuth, or for any use"
    )]
    Purpose,
    /// Over TLS or not.
    #[error("says, without a proof, that it will not start: {0}; see its own messages")]
    Lacks(Lack),
    #[error("does not come to terms over TLS: {0}; see whose process and certificate that is")]
    Broken(String),
}

/// One of the files that a process is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsPart {
    Certificate,
    Key,
    Authority,
}

impl TlsPart {
    /// As in the config.
    pub const fn name(self) -> &'static str {
        match self {
            TlsPart::Certificate => "certificate",
            TlsPart::Key => "key",
            TlsPart::Authority => "authority",
        }
    }

    /// Advice: the formats that can be used instead.
    const fn usable(self) -> &'static str {
        match self {
            TlsPart::Key => {
                "give an RSA, ECDSA (P-256 or P-384) or Ed25519 key in PEM, without a passphrase"
            }
            TlsPart::Certificate | TlsPart::Authority => {
                "give certificates of X.509 version 3 in PEM"
            }
        }
    }
}

/// Errors of the files that a process is given; follows the file's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsMistake {
    #[error(
        "holds no {}; give a PEM file, which has lines of `-----BEGIN …-----`",
        if *part == TlsPart::Key { "private key" } else { "certificate" }
    )]
    Nothing { part: TlsPart },
    #[error("cannot be used: {why}; {}", part.usable())]
    Unusable { part: TlsPart, why: String },
    #[error("is not the key of the certificate; give both files of the same host")]
    KeyOfAnother,
    #[error("{0}")]
    Own(TlsFault),
}

impl TlsMistake {
    /// The file at fault.
    pub fn part(&self) -> TlsPart {
        match self {
            TlsMistake::Nothing { part } | TlsMistake::Unusable { part, .. } => *part,
            TlsMistake::KeyOfAnother => TlsPart::Key,
            TlsMistake::Own(_) => TlsPart::Certificate,
        }
    }

    pub(super) fn pem(part: TlsPart, error: &rustls::pki_types::pem::Error) -> TlsMistake {
        match error {
            rustls::pki_types::pem::Error::NoItemsFound => TlsMistake::Nothing { part },
            error => TlsMistake::Unusable { part, why: error.to_string() },
        }
    }

    pub(super) fn of_key(error: &Error) -> TlsMistake {
        match error {
            Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => TlsMistake::KeyOfAnother,
            Error::InvalidCertificate(_) => {
                TlsMistake::Unusable { part: TlsPart::Certificate, why: error.to_string() }
            }
            error => TlsMistake::Unusable { part: TlsPart::Key, why: error.to_string() },
        }
    }
}

impl TlsFault {
    /// The fault of the other end.
    pub(super) fn of_peer(error: &Error) -> TlsFault {
        use CertificateError as Bad;
        match error {
            Error::InvalidMessage(_) => TlsFault::Plain,
            // Of two authorities with one name, the signature alone tells.
            Error::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)
            | Error::NoCertificatesPresented => TlsFault::Authority,
            Error::InvalidCertificate(Bad::ExpiredContext { time, not_after }) => {
                TlsFault::Expired { ended_s: not_after.as_secs(), now_s: time.as_secs() }
            }
            Error::InvalidCertificate(Bad::NotValidYetContext { time, not_before }) => {
                TlsFault::NotYet { begins_s: not_before.as_secs(), now_s: time.as_secs() }
            }
            Error::InvalidCertificate(Bad::InvalidPurpose | Bad::InvalidPurposeContext { .. }) => {
                TlsFault::Purpose
            }
            error => TlsFault::Broken(error.to_string()),
        }
    }

    /// Which of them it is, whatever its times.
    pub(crate) fn kind(&self) -> std::mem::Discriminant<TlsFault> {
        std::mem::discriminant(self)
    }

    /// The fault that has ended a handshake; none if it is nothing of TLS.
    pub(super) fn of(error: &io::Error, own: &Own) -> Option<TlsFault> {
        use AlertDescription as Alert;
        let error = error.get_ref()?.downcast_ref::<Error>()?;
        Some(match error {
            Error::AlertReceived(Alert::CertificateExpired) => {
                let now_s = UnixTime::now().as_secs();
                TlsFault::OtherTime { valid_s: own.valid_s(), now_s }
            }
            Error::AlertReceived(
                Alert::UnknownCA | Alert::DecryptError | Alert::CertificateRequired,
            ) => TlsFault::OtherAuthority,
            Error::AlertReceived(Alert::Unknown(word)) => {
                Lack::of_word(*word).map_or_else(|| TlsFault::of_peer(error), TlsFault::Lacks)
            }
            error => TlsFault::of_peer(error),
        })
    }
}

fn validity(valid_s: Option<(u64, u64)>) -> String {
    valid_s.map_or_else(String::new, |(from_s, until_s)| {
        format!(", it is valid from {} to {}", utc(from_s), utc(until_s))
    })
}

/// A time as `2026-11-29 17:40:00 UTC`, of seconds since 1970. Days are counted in years that begin
/// in March, so that leap days come last.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    // From 1 March of the year 0, in cycles of 400 years.
    let days = days + 719_468;
    let (cycle, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let is_next = month >= 10;
    let month = if is_next { month - 9 } else { month + 3 };
    let year = 400 * cycle + year + u64::from(is_next);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_words() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_709_251_199, "2024-02-29 23:59:59 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
            (253_402_300_799, "9999-12-31 23:59:59 UTC"),
        ] {
            assert_eq!(utc(seconds), expected);
        }
    }
}
