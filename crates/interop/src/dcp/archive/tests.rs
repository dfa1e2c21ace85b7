//! Archives as they should be, damaged ones, and ones of other kinds.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::dcp::zip_out::ZipOut;

const ENTRIES: [(&str, &[u8]); 4] = [
    ("archive/data.pkl", b"\x80\x02N."),
    ("archive/byteorder", b"little"),
    ("archive/data/0", &[7; 5000]),
    ("archive/version", b"3\n"),
];

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut zip = ZipOut::new(&mut bytes);
    entries.iter().for_each(|(name, data)| zip.entry(name, data).unwrap());
    assert_eq!(zip.finish().unwrap(), bytes.len() as u64);
    bytes
}

/// `bytes` after some others.
fn put(dir: &Path, bytes: &[u8]) -> (Regular, Range<u64>) {
    let path = dir.join("x");
    std::fs::write(&path, [&b"before"[..], bytes, b"after"].concat()).unwrap();
    let file = Regular::open(&path).unwrap();
    (file, 6..6 + bytes.len() as u64)
}

fn told(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (file, range) = put(dir.path(), bytes);
    match Archive::open(&file, range) {
        Err(error) => error.to_string(),
        Ok(archive) => {
            let read = archive.pickle().and_then(|_| archive.verify("data/0"));
            read.err().map(|error| error.to_string()).unwrap_or_default()
        }
    }
}

#[test]
fn entries_are_found_summed_and_aligned() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(&ENTRIES);
    let (file, range) = put(dir.path(), &bytes);
    let archive = Archive::open(&file, range).unwrap();
    assert_eq!(archive.pickle().unwrap(), b"\x80\x02N.");
    let place = archive.place("data/0").unwrap();
    assert_eq!((place.start - 6) % 64, 0);
    assert_eq!(file.read(place.start, place.bytes).unwrap(), [7; 5000]);
    archive.verify("data/0").unwrap();
    let told = archive.place("data/1").unwrap_err().to_string();
    assert!(told.contains("no entry `archive/data/1`"), "{told}");
    let told = archive.read("data/0", 4999).unwrap_err().to_string();
    assert!(told.contains("at most 4999"), "{told}");
}

#[test]
fn other_archives_are_refused() {
    let big = [ENTRIES[0], ("archive/byteorder", &b"big"[..])];
    assert!(told(&archive(&big)).contains("byte order \"big\""));
    let twice = [ENTRIES[0], ENTRIES[0]];
    assert!(told(&archive(&twice)).contains("two entries are named `archive/data.pkl`"));
    let two = [ENTRIES[0], ("other/data.pkl", &b""[..])];
    assert!(told(&archive(&two)).contains("two entries are named data.pkl"));
    assert!(told(&archive(&ENTRIES[1..])).contains("no entry is named data.pkl"));
    assert!(told(&archive(&[])).contains("no entry is named data.pkl"));
    let mut packed = archive(&ENTRIES);
    let at = packed.windows(4).position(|four| four == b"PK\x01\x02").unwrap();
    packed[at + 10] = 8;
    assert!(told(&packed).contains("is compressed (method 8)"));
    assert!(told(&archive(&ENTRIES)[1..]).contains("its zip64 end is not before"));
    assert!(told(b"PK").contains("too short"));
    let bytes = archive(&ENTRIES);
    assert!(told(&bytes[..bytes.len() - 1]).contains("no archive of torch.save ends"));
}

#[test]
fn a_range_outside_of_the_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (file, _) = put(dir.path(), b"");
    #[expect(clippy::reversed_empty_ranges, reason = "a file may say so")]
    for range in [0..12, 5..4, u64::MAX - 1..u64::MAX] {
        let told = Archive::open(&file, range).err().unwrap().to_string();
        assert!(told.contains("and it has 11 bytes"), "{told}");
    }
}

#[test]
fn every_flipped_bit_is_found_or_changes_nothing_that_is_read() {
    let good = archive(&ENTRIES);
    let dir = tempfile::tempdir().unwrap();
    let mut found = 0;
    // All of the structure, and some of the payload.
    let payload = good.windows(9).position(|nine| nine == [7; 9]).unwrap()..;
    let is_looked_at =
        |at: &usize| !payload.contains(at) || good[*at] != 7 || at.is_multiple_of(97);
    for at in (0..good.len()).filter(is_looked_at) {
        let mut bytes = good.clone();
        bytes[at] ^= 1 << (at % 8);
        let (file, range) = put(dir.path(), &bytes);
        let Ok(archive) = Archive::open(&file, range) else {
            found += 1;
            continue;
        };
        let Ok(pickle) = archive.pickle() else {
            found += 1;
            continue;
        };
        assert_eq!(pickle, b"\x80\x02N.", "byte {at}");
        if archive.verify("data/0").is_ok() {
            let place = archive.place("data/0").unwrap();
            assert_eq!(file.read(place.start, place.bytes).unwrap(), [7; 5000], "byte {at}");
        } else {
            found += 1;
        }
    }
    assert!(found > 300, "{found}");
}

proptest! {
    #[test]
    fn mangled_archives_are_read_or_refused(
        places in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        is_last in any::<bool>(),
    ) {
        let mut bytes = archive(&ENTRIES);
        for (place, value) in places {
            // The directory is at the end.
            let first = if is_last { bytes.len() - 400 } else { 0 };
            let place = first + place.index(bytes.len() - first);
            bytes[place] = value;
        }
        told(&bytes);
    }
}
