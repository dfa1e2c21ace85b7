//! The ZIP archives of `torch.save`, each at a range of bytes of a file.
//!
//! ```text
//! PREFIX/data.pkl   PREFIX/byteorder   PREFIX/data/0 …   central directory   (zip64 end)   end
//! ```
//! Invariants:
//! - the archive ends where the range ends, and its parts lie within it; nothing is searched for;
//! - entries are stored, not compressed, so that an entry's bytes are a place in the file;
//! - whatever is read here is compared with its CRC-32; of the rest the sum is handed on.
//!
//! A directory holds hundreds of thousands of these, nearly all a kilobyte around their payload, so
//! one is looked at with two reads: of its head, where the pickle is, and its tail.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use crc_fast::{CrcAlgorithm, Digest};

use crate::Error;
use crate::files::Regular;

/// Bytes that are read at once at either end.
const HEAD_BYTES: u64 = 2048;
const TAIL_BYTES: u64 = 2048;

/// Of records of the format, without names and fields of variable length.
const LOCAL_BYTES: u64 = 30;
const CENTRAL_BYTES: usize = 46;
const END_BYTES: u64 = 22;
const LOCATOR_BYTES: u64 = 20;
const END64_BYTES: u64 = 56;

/// Bytes that a pickle of an archive, or its central directory, may have.
const PART_BYTES: u64 = 1 << 30;

/// Bytes that are summed at once.
const BLOCK_BYTES: u64 = 4 << 20;

/// An archive whose directory has been read.
pub(crate) struct Archive<'f> {
    window: Window<'f>,
    /// Names begin with this and a slash.
    prefix: String,
    entries: BTreeMap<String, Entry>,
}

/// A file of the archive.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    crc32: u32,
    bytes: u64,
    /// Of its local header, from the archive's beginning.
    header: u64,
}

/// Where an entry's bytes are in the file, and their sum.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Place {
    pub start: u64,
    pub bytes: u64,
    pub crc32: u32,
}

impl<'f> Archive<'f> {
    /// Reads the directory of the archive that is `range` of a file.
    ///
    /// # Errors
    /// The range is no such archive, or the archive is compressed, encrypted or big-endian.
    pub fn open(file: &'f Regular, range: Range<u64>) -> Result<Archive<'f>, Error> {
        let window = Window::new(file, range)?;
        let (central, count) = find_directory(&window)?;
        let bytes = window.read(central.start, central.end - central.start)?;
        let entries = read_directory(&window, &bytes, count)?;
        let mut pickles = entries.keys().filter_map(|name| {
            name.strip_suffix("/data.pkl").filter(|prefix| !prefix.contains('/'))
        });
        let prefix = match (pickles.next(), pickles.next()) {
            (Some(prefix), None) => prefix.to_owned(),
            (Some(_), Some(_)) => return Err(window.damaged("two entries are named data.pkl")),
            (None, _) => return Err(window.damaged("no entry is named data.pkl")),
        };
        let archive = Archive { window, prefix, entries };
        if archive.has("byteorder") {
            let order = archive.read("byteorder", 64)?;
            if order != b"little" {
                let order = String::from_utf8_lossy(&order);
                let reason = format!(
                    "it was written on a machine of byte order {order:?}; only \"little\" can be \
                     read. Load and save it once on a little-endian machine"
                );
                return Err(Error::refused(&archive.window.file.path, reason));
            }
        }
        Ok(archive)
    }

    fn has(&self, name: &str) -> bool {
        self.entries.contains_key(&format!("{}/{name}", self.prefix))
    }

    fn entry(&self, name: &str) -> Result<(String, Entry), Error> {
        let full = format!("{}/{name}", self.prefix);
        match self.entries.get(&full) {
            Some(entry) => Ok((full, *entry)),
            None => Err(self.window.damaged(format!("it has no entry `{full}`"))),
        }
    }

    /// Where the bytes of an entry lie.
    ///
    /// # Errors
    /// There is none of this name, or its two headers contradict each other.
    pub fn place(&self, name: &str) -> Result<Place, Error> {
        let (full, entry) = self.entry(name)?;
        let window = &self.window;
        let local = window.read(entry.header, LOCAL_BYTES)?;
        let wrong = |what: &str| window.damaged(format!("entry `{full}`: {what}"));
        if u32_at(&local, 0) != 0x0403_4b50 {
            return Err(wrong("there is no header at its place"));
        }
        let (name_bytes, extra) = (u64::from(u16_at(&local, 26)), u64::from(u16_at(&local, 28)));
        let here = window.read(entry.header + LOCAL_BYTES, name_bytes)?;
        if *here != *full.as_bytes() {
            return Err(wrong("its header at its place bears another name"));
        }
        if u16_at(&local, 8) != 0 || u16_at(&local, 6) & 1 != 0 {
            return Err(wrong("its header says that it is compressed or encrypted"));
        }
        // A sum that is not left to the record after the data must be the directory's.
        let crc32 = u32_at(&local, 14);
        if u16_at(&local, 6) & 8 == 0 && crc32 != entry.crc32 {
            return Err(wrong("its two headers have different sums"));
        }
        let start = entry.header + LOCAL_BYTES + name_bytes + extra;
        if start.checked_add(entry.bytes).is_none_or(|end| end > window.len) {
            return Err(wrong("it ends after the archive"));
        }
        Ok(Place { start: window.start + start, bytes: entry.bytes, crc32: entry.crc32 })
    }

    /// The bytes of an entry of at most `limit`, after a look at their sum.
    ///
    /// # Errors
    /// As [`Archive::place`]; the bytes are longer, or not those that were summed.
    pub fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>, Error> {
        let place = self.place(name)?;
        if place.bytes > limit {
            let reason = format!("entry `{name}` has {} bytes; at most {limit} are", place.bytes);
            return Err(self.window.damaged(reason));
        }
        let bytes = self.window.read(place.start - self.window.start, place.bytes)?;
        let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        digest.update(&bytes);
        self.compare(name, place, digest)?;
        Ok(bytes.into_owned())
    }

    /// The pickle that describes everything else.
    ///
    /// # Errors
    /// As [`Archive::read`].
    pub fn pickle(&self) -> Result<Vec<u8>, Error> {
        self.read("data.pkl", PART_BYTES)
    }

    /// Compares an entry with its sum, in blocks.
    ///
    /// # Errors
    /// As [`Archive::place`]; the bytes are not those that were summed.
    pub fn verify(&self, name: &str) -> Result<(), Error> {
        let place = self.place(name)?;
        let mut digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        let (mut at, end) = (place.start, place.start + place.bytes);
        while at < end {
            let len = (end - at).min(BLOCK_BYTES);
            digest.update(&self.window.file.read(at, len)?);
            at += len;
        }
        self.compare(name, place, digest)
    }

    fn compare(&self, name: &str, place: Place, digest: Digest) -> Result<(), Error> {
        let (actual, expected) = (digest.finalize() as u32, place.crc32);
        if actual == expected {
            return Ok(());
        }
        let (start, end) = (place.start, place.start + place.bytes);
        let (path, tensor) = (self.window.file.path.clone(), format!("entry `{name}`"));
        Err(Error::Sum { path, start, end, tensor, expected, actual })
    }

    /// An error about this archive.
    pub fn damaged(&self, reason: impl Into<String>) -> Error {
        self.window.damaged(reason)
    }

    /// An error about this archive, which is whole and of a kind that is not read.
    pub fn refused(&self, reason: impl Into<String>) -> Error {
        let Window { file, start, len, .. } = &self.window;
        let reason = format!("archive at bytes {start}..{}: {}", start + len, reason.into());
        Error::refused(&file.path, reason)
    }
}

/// A range of a file, with both of its ends in memory.
struct Window<'f> {
    file: &'f Regular,
    start: u64,
    len: u64,
    head: Vec<u8>,
    /// The last bytes; empty where the head is everything.
    tail: Vec<u8>,
}

impl<'f> Window<'f> {
    fn new(file: &'f Regular, range: Range<u64>) -> Result<Window<'f>, Error> {
        let (start, end) = (range.start, range.end);
        if end < start || end > file.bytes {
            let reason =
                format!("an archive is to be at {start}..{end}, and it has {}", file.bytes);
            return Err(Error::malformed(&file.path, format!("{reason} bytes")));
        }
        let len = end - start;
        let is_small = len <= HEAD_BYTES + TAIL_BYTES;
        let head = file.read(start, if is_small { len } else { HEAD_BYTES })?;
        let tail = match is_small {
            true => Vec::new(),
            false => file.read(end - TAIL_BYTES, TAIL_BYTES)?,
        };
        Ok(Window { file, start, len, head, tail })
    }

    /// Bytes by their place in the range.
    fn read(&self, at: u64, len: u64) -> Result<Cow<'_, [u8]>, Error> {
        let end = at.checked_add(len).filter(|end| *end <= self.len);
        let Some(end) = end else {
            return Err(self.damaged(format!("{len} bytes at {at} would lie after its end")));
        };
        let tail_start = self.len - self.tail.len() as u64;
        if end <= self.head.len() as u64 {
            return Ok(Cow::Borrowed(&self.head[at as usize..end as usize]));
        }
        if at >= tail_start {
            let (at, end) = (at - tail_start, end - tail_start);
            return Ok(Cow::Borrowed(&self.tail[at as usize..end as usize]));
        }
        self.file.read(self.start + at, len).map(Cow::Owned)
    }

    fn damaged(&self, reason: impl Into<String>) -> Error {
        let (start, end) = (self.start, self.start + self.len);
        let reason = format!("archive at bytes {start}..{end}: {}", reason.into());
        Error::malformed(&self.file.path, reason)
    }
}

/// Where the central directory is in the archive, and how many entries it has.
fn find_directory(window: &Window) -> Result<(Range<u64>, u64), Error> {
    let Some(end_at) = window.len.checked_sub(END_BYTES) else {
        return Err(window.damaged("it is too short for an archive"));
    };
    let end = window.read(end_at, END_BYTES)?;
    if u32_at(&end, 0) != 0x0605_4b50 || u16_at(&end, 20) != 0 {
        return Err(window.damaged("no archive of torch.save ends at its end"));
    }
    if u16_at(&end, 4) != 0 || u16_at(&end, 6) != 0 {
        return Err(window.damaged("it is one of several volumes"));
    }
    let short = [
        (u64::from(u16_at(&end, 10)), 0xffff),
        (u64::from(u32_at(&end, 12)), 0xffff_ffff),
        (u64::from(u32_at(&end, 16)), 0xffff_ffff),
    ];
    let mut found = short.map(|(value, _)| value);
    let mut directory_end = end_at;
    let locator_at = end_at.checked_sub(LOCATOR_BYTES);
    let locator = locator_at.map(|at| window.read(at, LOCATOR_BYTES)).transpose()?;
    if let Some(locator) = locator.filter(|locator| u32_at(locator, 0) == 0x0706_4b50) {
        let at = u64_at(&locator, 8);
        let long = window.read(at, END64_BYTES)?;
        let follows = at.checked_add(END64_BYTES) == locator_at;
        if u32_at(&long, 0) != 0x0606_4b50 || !follows {
            return Err(window.damaged("its zip64 end is not before its locator"));
        }
        let values = [u64_at(&long, 32), u64_at(&long, 40), u64_at(&long, 48)];
        for ((short, escape), long) in short.into_iter().zip(values) {
            if short != escape && short != long {
                return Err(window.damaged(format!("its two ends say {short} and {long}")));
            }
        }
        (found, directory_end) = (values, at);
    }
    let [count, bytes, start] = found;
    if start.checked_add(bytes) != Some(directory_end) || bytes > PART_BYTES {
        let reason =
            format!("its directory of {bytes} bytes at {start} ends not at {directory_end}");
        return Err(window.damaged(reason));
    }
    Ok((start..directory_end, count))
}

fn read_directory(
    window: &Window,
    bytes: &[u8],
    count: u64,
) -> Result<BTreeMap<String, Entry>, Error> {
    let mut entries = BTreeMap::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let number = entries.len();
        let wrong = |what: &str| window.damaged(format!("entry {number} of its directory {what}"));
        if rest.len() < CENTRAL_BYTES || u32_at(rest, 0) != 0x0201_4b50 {
            return Err(wrong("is none"));
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| usize::from(u16_at(rest, at)));
        let all = CENTRAL_BYTES + name + extra + comment;
        if rest.len() < all {
            return Err(wrong("is cut"));
        }
        let (record, after) = rest.split_at(all);
        rest = after;
        let (name, variable) = record[CENTRAL_BYTES..].split_at(name);
        let name = std::str::from_utf8(name).map_err(|_| wrong("has a name that is no UTF-8"))?;
        if u16_at(record, 10) != 0 {
            let method = u16_at(record, 10);
            let reason = format!(
                "entry `{name}` is compressed (method {method}); torch.save stores entries as they \
                 are. Unpack the archive and pack it with `zip -0`, or save it again"
            );
            return Err(Error::refused(&window.file.path, reason));
        }
        if u16_at(record, 8) & 1 != 0 {
            return Err(wrong("is encrypted"));
        }
        let [packed, unpacked, header] = sizes(record, &variable[..extra])
            .ok_or_else(|| wrong("has no sizes where they should be"))?;
        if packed != unpacked {
            return Err(wrong("is stored and has two lengths"));
        }
        let entry = Entry { crc32: u32_at(record, 16), bytes: unpacked, header };
        if entries.insert(name.to_owned(), entry).is_some() {
            return Err(window.damaged(format!("two entries are named `{name}`")));
        }
    }
    if entries.len() as u64 != count {
        let found = entries.len();
        return Err(window.damaged(format!("its directory has {found} entries, not {count}")));
    }
    Ok(entries)
}

/// Compressed and plain length, and place of the local header; in the zip64 field where they are
/// too large for their own.
fn sizes(record: &[u8], mut extra: &[u8]) -> Option<[u64; 3]> {
    let mut long: &[u8] = &[];
    while extra.len() >= 4 {
        let (kind, len) = (u16_at(extra, 0), usize::from(u16_at(extra, 2)));
        let field = extra.get(4..4 + len)?;
        if kind == 1 {
            long = field;
        }
        extra = &extra[4 + len..];
    }
    // The plain length is the first in the field.
    let mut found = [0; 3];
    for (value, at) in [(1, 24), (0, 20), (2, 42)] {
        found[value] = match u32_at(record, at) {
            u32::MAX => {
                let (now, rest) = long.split_at_checked(8)?;
                long = rest;
                u64_at(now, 0)
            }
            short => short.into(),
        };
    }
    Some(found)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
