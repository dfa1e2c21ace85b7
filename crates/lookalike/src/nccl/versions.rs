//! Libraries of earlier versions, or of other builds: the same one, without some of its symbols.

use std::io;
use std::path::{Path, PathBuf};

/// Symbols that came after 2.18, each with the number of the first version that has it (tags of
/// NVIDIA/nccl).
const LATER: [(&str, u32); 12] = [
    ("ncclCommRegister", 21_901),
    ("ncclCommDeregister", 21_901),
    ("ncclMemAlloc", 21_901),
    ("ncclMemFree", 21_901),
    ("ncclGroupSimulateEnd", 22_203),
    ("ncclCommShrink", 22_703),
    ("ncclCommWindowRegister", 22_703),
    ("ncclCommWindowDeregister", 22_703),
    ("ncclAlltoAll", 22_803),
    ("ncclGather", 22_803),
    ("ncclScatter", 22_803),
    ("ncclCommRevoke", 22_807),
];

/// Writes a library into `dir` that has the symbols of a version, for drivers and collectives; to
/// be used with `LOOKALIKE_NCCL_VERSION`.
///
/// # Errors
/// [`crate::library`]'s, and those of files.
pub fn library_of(version: u32, dir: &Path) -> io::Result<PathBuf> {
    let later = LATER.into_iter().filter(|(_, since)| *since > version);
    let symbols: Vec<_> = later.map(|(symbol, _)| symbol).collect();
    let path = dir.join(format!("liblookalike-{version}.so"));
    library_without(&symbols, &path)?;
    Ok(path)
}

/// Writes a library that lacks `symbols`: a copy with other names in their places.
///
/// # Errors
/// [`crate::library`]'s, those of files, and a symbol that there is not.
pub fn library_without(symbols: &[&str], path: &Path) -> io::Result<()> {
    let mut library = std::fs::read(crate::library()?)?;
    symbols.iter().try_for_each(|symbol| hide(&mut library, symbol))?;
    std::fs::write(path, library)
}

/// Renames a symbol, wherever its name stands as a whole.
fn hide(library: &mut [u8], symbol: &str) -> io::Result<()> {
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    let mut found = 0;
    let mut at = 0;
    while let Some(next) = library[at..].windows(name.len()).position(|part| part == name) {
        at += next + 1;
        library[at] = b'x';
        found += 1;
    }
    match found {
        0 => Err(io::Error::other(format!("the look-alike does not export {symbol}"))),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_changed_where_it_stands_as_a_whole() {
        let mut bytes = *b"\0ncclGather\0ncclGatherAll\0";
        hide(&mut bytes, "ncclGather").unwrap();
        assert_eq!(&bytes, b"\0xcclGather\0ncclGatherAll\0");
        assert!(hide(&mut bytes, "ncclGather").is_err());
    }
}
