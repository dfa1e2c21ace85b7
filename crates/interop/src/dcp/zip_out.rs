//! Writes an archive as `torch.save` does, in one pass.
//!
//! Sums are known when an entry's bytes have passed, so they follow them, as in PyTorch's own
//! archives. Payloads begin at multiples of 64 bytes from the archive's beginning.

use std::io::{Result, Write};

use crc_fast::{CrcAlgorithm, Digest};

/// Where payloads begin.
const ALIGNMENT: u64 = 64;

/// Sums follow the data; names are UTF-8.
const FLAGS: u16 = 0x0808;

/// An archive that is being written.
pub(super) struct ZipOut<W> {
    out: W,
    /// Bytes written of this archive.
    at: u64,
    entries: Vec<Written>,
}

struct Written {
    name: String,
    header: u64,
    bytes: u64,
    crc32: u32,
}

/// An entry whose bytes are being written.
pub(super) struct EntryOut<'z, W> {
    zip: &'z mut ZipOut<W>,
    digest: Digest,
    entry: Written,
    rest: u64,
}

impl<W: Write> ZipOut<W> {
    /// An archive at wherever `out` is.
    pub fn new(out: W) -> ZipOut<W> {
        ZipOut { out, at: 0, entries: Vec::new() }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    /// Begins an entry of so many bytes.
    ///
    /// # Errors
    /// The disk fails.
    pub fn begin(&mut self, name: &str, bytes: u64) -> Result<EntryOut<'_, W>> {
        let header = self.at;
        let is_long = bytes >= u64::from(u32::MAX);
        let mut extra = Vec::new();
        if is_long {
            extra.extend(le16(&[1, 16]));
            extra.extend([bytes.to_le_bytes(), bytes.to_le_bytes()].concat());
        }
        // A field of PyTorch's own fills up to the alignment.
        let begun = header + 30 + (name.len() + extra.len() + 4) as u64;
        let fill = (begun.next_multiple_of(ALIGNMENT) - begun) as usize;
        extra.extend(le16(&[u16::from_le_bytes(*b"FB"), fill as u16]));
        extra.resize(extra.len() + fill, b'Z');
        let mut local = 0x0403_4b50_u32.to_le_bytes().to_vec();
        local.extend(le16(&[if is_long { 45 } else { 0 }, FLAGS, 0, 0, 0]));
        let size = if is_long { u32::MAX } else { 0 };
        local.extend([0, size, size].iter().flat_map(|value: &u32| value.to_le_bytes()));
        local.extend(le16(&[name.len() as u16, extra.len() as u16]));
        local.extend(name.as_bytes());
        local.extend(extra);
        self.put(&local)?;
        let entry = Written { name: name.to_owned(), header, bytes, crc32: 0 };
        let digest = Digest::new(CrcAlgorithm::Crc32IsoHdlc);
        Ok(EntryOut { zip: self, digest, entry, rest: bytes })
    }

    /// A small entry.
    ///
    /// # Errors
    /// The disk fails.
    pub fn entry(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let mut entry = self.begin(name, bytes.len() as u64)?;
        entry.write(bytes)?;
        entry.end()
    }

    /// Writes the directory; returns the archive's length.
    ///
    /// # Errors
    /// The disk fails.
    pub fn finish(mut self) -> Result<u64> {
        let start = self.at;
        for entry in std::mem::take(&mut self.entries) {
            self.put(&central(&entry))?;
            self.entries.push(entry);
        }
        let (bytes, count, end) = (self.at - start, self.entries.len() as u64, self.at);
        let mut last = 0x0606_4b50_u32.to_le_bytes().to_vec();
        last.extend(44_u64.to_le_bytes());
        last.extend(le16(&[45, 45, 0, 0, 0, 0]));
        last.extend([count, count, bytes, start].iter().flat_map(|value| value.to_le_bytes()));
        last.extend(0x0706_4b50_u32.to_le_bytes());
        last.extend([&[0; 4][..], &end.to_le_bytes(), &1_u32.to_le_bytes()].concat());
        last.extend(0x0605_4b50_u32.to_le_bytes());
        last.extend(le16(&[0, 0, count as u16, count as u16]));
        last.extend([bytes, start].iter().flat_map(|value| short(*value).to_le_bytes()));
        last.extend(le16(&[0]));
        self.put(&last)?;
        Ok(self.at)
    }
}

impl<W: Write> EntryOut<'_, W> {
    /// More of its bytes.
    ///
    /// # Errors
    /// The disk fails; there are more than were announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(rest) = self.rest.checked_sub(bytes.len() as u64) else {
            return Err(std::io::Error::other("an entry has more bytes than were announced"));
        };
        self.rest = rest;
        self.digest.update(bytes);
        self.zip.put(bytes)
    }

    /// Ends the entry.
    ///
    /// # Errors
    /// The disk fails; there are fewer bytes than were announced.
    pub fn end(mut self) -> Result<()> {
        if self.rest > 0 {
            return Err(std::io::Error::other("an entry has fewer bytes than were announced"));
        }
        self.entry.crc32 = self.digest.finalize() as u32;
        let bytes = self.entry.bytes;
        let mut sum = 0x0807_4b50_u32.to_le_bytes().to_vec();
        sum.extend(self.entry.crc32.to_le_bytes());
        for _ in 0..2 {
            match short(bytes) {
                u32::MAX => sum.extend(bytes.to_le_bytes()),
                short => sum.extend(short.to_le_bytes()),
            }
        }
        self.zip.put(&sum)?;
        self.zip.entries.push(self.entry);
        Ok(())
    }
}

/// An entry of the directory.
fn central(entry: &Written) -> Vec<u8> {
    let Written { name, header, bytes, crc32 } = entry;
    let mut long = Vec::new();
    if short(*bytes) == u32::MAX {
        long.extend([bytes.to_le_bytes(), bytes.to_le_bytes()].concat());
    }
    if short(*header) == u32::MAX {
        long.extend(header.to_le_bytes());
    }
    let mut extra = Vec::new();
    if !long.is_empty() {
        extra.extend(le16(&[1, long.len() as u16]));
        extra.extend(long);
    }
    let mut record = 0x0201_4b50_u32.to_le_bytes().to_vec();
    record.extend(le16(&[0, if extra.is_empty() { 0 } else { 45 }, FLAGS, 0, 0, 0]));
    record.extend([*crc32, short(*bytes), short(*bytes)].iter().flat_map(|v| v.to_le_bytes()));
    record.extend(le16(&[name.len() as u16, extra.len() as u16, 0, 0, 0]));
    record.extend([0, short(*header)].iter().flat_map(|value: &u32| value.to_le_bytes()));
    record.extend(name.as_bytes());
    record.extend(extra);
    record
}

/// A value where it fits, and else the mark for one that stands elsewhere.
fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn le16(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
