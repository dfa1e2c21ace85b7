//! The secret of a job: from a file or the environment, or made for a single host; and on its way
//! to the ranks.
//!
//! ```text
//! ranks.secret_file, --secret-file ─┐
//! MUSTER_SECRET ────────────────────┼─▶ supervisor ── standard input ──▶ each rank
//! one host: random ─────────────────┘
//! ```
//!
//! A rank gets it through a pipe, which nobody else can read: arguments are seen by everyone on the
//! machine (`ps`), environments and files by whoever may read them.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use comm::Secret;

use crate::error::CliError;
use crate::key_file::{self, Readers};

/// The variable that has the secret where no file does.
pub const VARIABLE: &str = "MUSTER_SECRET";

/// Longest secret.
const BYTES_MAX: u64 = 4096;

/// How to make one.
const MAKE: &str = "make one with `head -c 32 /dev/urandom | base64 > FILE`, then `chmod 600 FILE`";

/// A job's secret, and what to say of it.
#[derive(Debug)]
pub struct JobSecret {
    pub secret: Secret,
    pub warning: Option<String>,
}

/// The secret of a job on so many hosts. `flag` is what `file` was given by.
///
/// # Errors
/// A file that is missing, that others may read, or whose first line is too short; a variable that
/// is too short; no random numbers.
pub fn of_job(file: Option<(&str, &Path)>, nodes: usize) -> Result<JobSecret, CliError> {
    choose(file, std::env::var_os(VARIABLE).as_deref(), nodes)
}

fn choose(
    file: Option<(&str, &Path)>,
    variable: Option<&OsStr>,
    nodes: usize,
) -> Result<JobSecret, CliError> {
    let known = |secret| JobSecret { secret, warning: None };
    if let Some((flag, path)) = file {
        return of_file(path)
            .map(known)
            .map_err(|error| CliError { message: format!("{flag}: {}", error.message), ..error });
    }
    match variable {
        Some(text) => of_text(VARIABLE, text.as_bytes()).map(known),
        None if nodes <= 1 => Ok(known(Secret::random()?)),
        None => Ok(JobSecret { secret: Secret::none(), warning: Some(warning()) }),
    }
}

fn warning() -> String {
    format!(
        "the hosts of this job have no common secret, so whoever reaches their ports can pass for \
         one of them; give all of them the same ranks.secret_file (--secret-file) or {VARIABLE}"
    )
}

/// The first line of a file that its owner alone may read.
fn of_file(path: &Path) -> Result<Secret, CliError> {
    let file = key_file::open(path, Readers::OwnerAlone, MAKE)?;
    let mut line = Vec::new();
    let read = BufReader::new(file.take(BYTES_MAX + 2)).read_until(b'\n', &mut line);
    read.map_err(|error| CliError::file("read", path, &error))?;
    let line = line.strip_suffix(b"\n").unwrap_or(&line);
    of_text(&path.display().to_string(), line.strip_suffix(b"\r").unwrap_or(line))
}

fn of_text(place: &str, text: &[u8]) -> Result<Secret, CliError> {
    let (len, least) = (text.len(), Secret::BYTES_MIN);
    let what = match len {
        0 => "is empty".to_owned(),
        len if len as u64 > BYTES_MAX => {
            return Err(CliError::mistake(format!(
                "the first line of {place} is longer than {BYTES_MAX} bytes; {MAKE}"
            )));
        }
        len => format!("has {len} bytes"),
    };
    Secret::of_text(text).ok_or_else(|| {
        CliError::mistake(format!("the secret in {place} {what}; use {least} or more: {MAKE}"))
    })
}

/// Hands the secret to a rank; one that is gone by now has no use for it.
pub fn pass_on(secret: Secret, mut to: impl Write) {
    let _ = to.write_all(secret.to_hex().as_bytes());
}

/// The secret that the process which started this one has handed over.
///
/// # Errors
/// It has not.
pub fn inherited() -> Result<Secret, CliError> {
    let mut text = String::new();
    let read = std::io::stdin().take(BYTES_MAX).read_to_string(&mut text);
    let secret = read.ok().and_then(|_| Secret::from_hex(&text));
    secret.ok_or_else(|| {
        CliError::mistake("no secret on standard input; `muster` itself starts workers")
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const TEXT: &str = "a secret of 27 bytes or so.";

    /// The key in hex of a file with this text and mode, or why it is refused.
    fn file(text: &[u8], mode: u32) -> Result<String, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        let chosen = choose(Some(("ranks.secret_file", &path)), None, 2);
        let said = |error: CliError| error.message.replace(&path.display().to_string(), "FILE");
        chosen.map(|JobSecret { secret, .. }| secret.to_hex()).map_err(said)
    }

    fn refused(result: Result<String, String>) -> String {
        let message = result.unwrap_err();
        message.strip_prefix("ranks.secret_file: ").unwrap().to_owned()
    }

    #[test]
    fn the_first_line_counts_and_files_of_others_do_not() {
        let expected = Secret::of_text(TEXT.as_bytes()).unwrap().to_hex();
        for text in [TEXT.to_owned(), format!("{TEXT}\n"), format!("{TEXT}\r\nmore\n")] {
            assert_eq!(file(text.as_bytes(), 0o600), Ok(expected.clone()));
        }
        assert_eq!(file(TEXT.as_bytes(), 0o400), Ok(expected));
        for mode in [0o640, 0o604, 0o660, 0o644] {
            assert_eq!(
                refused(file(TEXT.as_bytes(), mode)),
                format!(
                    "others than its owner may use FILE (mode {mode:03o}); `chmod 600 FILE`, and \
                     if they have read it, make another"
                )
            );
        }
        let empty = refused(file(b"\nsecond line, long enough", 0o600));
        assert!(empty.starts_with("the secret in FILE is empty; use 16 or more: make"), "{empty}");
        let short = refused(file(b"fifteen bytes..\n", 0o600));
        assert!(short.starts_with("the secret in FILE has 15 bytes; use 16 or more"), "{short}");
        let long = refused(file(&[b'x'; 5000], 0o600));
        assert!(long.starts_with("the first line of FILE is longer than 4096 bytes"), "{long}");
        assert!(file(&[b'x'; 4096], 0o600).is_ok());
        let said = |path: &str| choose(Some(("flag", path.as_ref())), None, 2).unwrap_err().message;
        assert!(said("/").starts_with("flag: / is no file; make one with"), "{}", said("/"));
        assert!(said("/nothing").starts_with("flag: cannot read /nothing: No such file"));
    }

    #[test]
    fn a_file_comes_before_the_variable_and_a_single_host_needs_neither() {
        let of = |variable: Option<&str>, nodes| choose(None, variable.map(OsStr::new), nodes);
        let hex = |chosen: Result<JobSecret, CliError>| chosen.unwrap().secret.to_hex();
        let expected = Secret::of_text(TEXT.as_bytes()).unwrap().to_hex();
        assert_eq!(hex(of(Some(TEXT), 1)), expected);
        assert_eq!(hex(of(Some(TEXT), 2)), expected);
        assert_ne!(hex(of(None, 1)), hex(of(None, 1)));
        let none = of(None, 2).unwrap();
        assert_eq!(none.secret.to_hex(), Secret::none().to_hex());
        assert!(none.warning.unwrap().ends_with("(--secret-file) or MUSTER_SECRET"));
        assert!(of(Some(""), 1).unwrap_err().message.contains("MUSTER_SECRET is empty"));
        let short = of(Some("short"), 2).unwrap_err().message;
        assert!(short.starts_with("the secret in MUSTER_SECRET has 5 bytes; use 16"), "{short}");
    }
}
