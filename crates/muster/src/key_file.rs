//! Files that a user names and that prove something: a secret, a certificate, a key.

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::CliError;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    Anyone,
    OwnerAlone,
}

/// Opens a file, which must be one and not a pipe or a directory; `advice` says what to give else.
///
/// # Errors
/// It is missing, no file, or others than `readers` may read it.
pub fn open(path: &Path, readers: Readers, advice: &str) -> Result<File, CliError> {
    let failed = |error| CliError::file("read", path, &error);
    let shown = path.display();
    // Before it is opened: a pipe without a writer would be waited for.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(CliError::mistake(format!("{shown} is no file; {advice}")));
    }
    let file = File::open(path).map_err(failed)?;
    // Of what was opened, whatever the name stands for by now.
    match file.metadata().map_err(failed)?.permissions().mode() & 0o777 {
        mode if readers == Readers::OwnerAlone && mode & 0o077 != 0 => {
            Err(CliError::mistake(format!(
                "others than its owner may use {shown} (mode {mode:03o}); `chmod 600 {shown}`, and \
                 if they have read it, make another"
            )))
        }
        _ => Ok(file),
    }
}
