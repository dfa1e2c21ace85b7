//! TLS of a job of several hosts: its files, on every host its own.
//!
//! ```text
//! ranks.tls, --tls DIR ─▶ supervisor (reads them, and says what is wrong) ─ paths ─▶ each rank
//! ```

use std::io::Read;
use std::path::Path;

use comm::tls::{Pem, Security, Tls, TlsPart};
use train::config::TlsFiles;

use crate::error::CliError;
use crate::key_file::{self, Readers};
use crate::secret::JobSecret;

/// The files in a directory of [`of_dir`].
const NAMES: [&str; 3] = ["certificate.pem", "key.pem", "authority.pem"];

/// More than certificates and keys have; of other files the beginning shows that they are none.
const BYTES_MAX: u64 = 1 << 20;

/// A job's TLS, as its processes have it.
#[derive(Debug, Default)]
pub struct JobTls {
    pub tls: Option<Tls>,
    /// For the ranks.
    pub files: Option<TlsFiles>,
    warning: Option<String>,
}

impl JobTls {
    /// The settings that keep strangers out.
    pub fn security(&self, secret: &JobSecret) -> Security {
        Security { secret: secret.secret, tls: self.tls.clone() }
    }

    /// The warning about that, given once and not on every host: without a secret strangers have no
    /// certificate either.
    pub fn warning(&self, secret: &JobSecret) -> Option<String> {
        let of_secret = secret.warning.clone().filter(|_| self.tls.is_none());
        self.warning.clone().or(of_secret)
    }
}

/// The files of a directory, by their names.
pub fn of_dir(dir: &Path) -> TlsFiles {
    let [certificate, key, authority] = NAMES.map(|name| dir.join(name));
    TlsFiles { certificate, key, authority }
}

/// The TLS of a job on so many hosts; `flag` is what `files` were given by. Whether the others can
/// take the certificate is [`check`]'s question.
///
/// One host has nothing to hide from itself: its ranks talk through memory, or over loopback. It is
/// not refused, since a config is for one host today and for two tomorrow, and it is said.
///
/// # Errors
/// A file that is missing, or holds something else; a key that others may read, or of another
/// certificate.
pub fn of_job(files: Option<(&str, TlsFiles)>, nodes: usize) -> Result<JobTls, CliError> {
    let Some((flag, files)) = files else { return Ok(JobTls::default()) };
    if nodes <= 1 {
        let warning = format!(
            "{flag} is for jobs of several hosts; this one has one host, inside of which nothing \
             is encrypted"
        );
        return Ok(JobTls { warning: Some(warning), ..JobTls::default() });
    }
    let tls = load(flag, &files)?;
    Ok(JobTls { tls: Some(tls), files: Some(files), warning: None })
}

/// Reads the files.
///
/// # Errors
/// As [`of_job`].
pub fn load(flag: &str, files: &TlsFiles) -> Result<Tls, CliError> {
    let read = |part: TlsPart| {
        let readers = if part == TlsPart::Key { Readers::OwnerAlone } else { Readers::Anyone };
        let read = read(file(files, part), readers);
        read.map_err(|error| named(flag, part, error))
    };
    let certificate = read(TlsPart::Certificate)?;
    let (key, authority) = (read(TlsPart::Key)?, read(TlsPart::Authority)?);
    let pem = Pem { certificate: &certificate, key: &key, authority: &authority };
    Tls::new(&pem).map_err(|error| of_mistake(flag, files, &error))
}

fn read(path: &Path, readers: Readers) -> Result<Vec<u8>, CliError> {
    let file = key_file::open(path, readers, "give one in PEM")?;
    let mut bytes = Vec::new();
    let read = file.take(BYTES_MAX).read_to_end(&mut bytes);
    read.map(|_| bytes).map_err(|error| CliError::file("read", path, &error))
}

/// Whether the others can take the certificate.
///
/// # Errors
/// The authority has not signed it; it has expired, or is not valid yet.
pub fn check(flag: &str, job: &JobTls) -> Result<(), CliError> {
    let (Some(tls), Some(files)) = (&job.tls, &job.files) else { return Ok(()) };
    tls.check().map_err(|error| of_mistake(flag, files, &error))
}

fn of_mistake(flag: &str, files: &TlsFiles, error: &comm::tls::TlsMistake) -> CliError {
    let path = file(files, error.part()).display();
    named(flag, error.part(), CliError::mistake(format!("{path} {error}")))
}

/// An error by what has given the file: a key of the config, or a flag.
fn named(flag: &str, part: TlsPart, error: CliError) -> CliError {
    let place = if flag.starts_with('-') { String::new() } else { format!(".{}", part.name()) };
    CliError { message: format!("{flag}{place}: {}", error.message), ..error }
}

fn file(files: &TlsFiles, part: TlsPart) -> &Path {
    match part {
        TlsPart::Certificate => &files.certificate,
        TlsPart::Key => &files.key,
        TlsPart::Authority => &files.authority,
    }
}
