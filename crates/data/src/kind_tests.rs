//! Names and first bytes of files, and the kind that is read from them or the format that is
//! refused.

use super::*;

fn text(kind: TextKind) -> Result<Kind, Refusal> {
    Ok(Kind::Text { kind, byte_order_mark: false })
}

/// The format that it is refused for.
fn refused(name: &str, start: &[u8]) -> String {
    kind_of(name, start).unwrap_err().what
}

#[test]
fn the_name_says_how_text_is_divided() {
    let line = b"{\"text\": 1}\n";
    for name in ["a.jsonl", "A.JSONL", "b.x.ndjson", "c.json", "corpus", "63"] {
        assert_eq!(kind_of(name, line), text(TextKind::JsonLines), "{name}");
    }
    for name in ["a.txt", "a.rs", "a.md", "README", "a.json", ".jsonl"] {
        assert_eq!(kind_of(name, b"prose {"), text(TextKind::Whole), "{name}");
    }
    assert_eq!(kind_of("a.txt", line), text(TextKind::Whole));
    assert_eq!(kind_of("main", b"{ int i; }"), text(TextKind::Whole));
    assert_eq!(kind_of("a.json", b"\r\n \t{"), text(TextKind::JsonLines));
    assert_eq!(kind_of("a.parquet", b"PAR1\x15"), text(TextKind::Parquet));
    assert_eq!(kind_of("empty.jsonl", b""), text(TextKind::JsonLines));
    assert_eq!(refused("a.json", b" [{}]"), "one JSON array");
}

#[test]
fn a_byte_order_mark_is_not_text() {
    let marked = |kind| Ok(Kind::Text { kind, byte_order_mark: true });
    assert_eq!(kind_of("a.txt", b"\xEF\xBB\xBFhi"), marked(TextKind::Whole));
    assert_eq!(kind_of("a.json", b"\xEF\xBB\xBF{}"), marked(TextKind::JsonLines));
    assert_eq!(kind_of("a.txt", b"\xEF\xBB"), text(TextKind::Whole));
}

#[test]
fn compressed_files_hold_what_their_inner_name_says() {
    let gzip = Ok(Kind::Packed(Packing::Gzip));
    let zstd = Ok(Kind::Packed(Packing::Zstd));
    for name in ["a.jsonl.gz", "a.txt", "a.parquet"] {
        assert_eq!(kind_of(name, b"\x1F\x8B\x08\x00"), gzip);
        assert_eq!(kind_of(name, b"\x28\xB5\x2F\xFD\x04"), zstd);
        assert_eq!(kind_of(name, b"\x5A\x2A\x4D\x18\x04"), zstd);
    }
    let inner = ["a.jsonl.gz", "a.jsonl.GZ", "a.jsonl.zst", "a.jsonl.zstd", "a.jsonl", "gz"];
    assert_eq!(
        inner.map(unpacked_name),
        ["a.jsonl", "a.jsonl", "a.jsonl", "a.jsonl", "a.jsonl", "gz"]
    );
    assert_eq!(refused("a.txt.gz", b"text"), "not gzip, though its name says so");
    assert_eq!(refused("a.txt.zst", b""), "not zstd, though its name says so");
    assert_eq!(refused("a.parquet", b"text"), "not parquet, though its name says so");
}

#[test]
fn token_files_are_known_under_any_name() {
    for start in [&b"MUSTRTOK"[..], &20240520_u32.to_le_bytes(), &20240801_u32.to_le_bytes()] {
        assert_eq!(kind_of("a.txt", start), Ok(Kind::Tokens));
    }
}

#[test]
fn foreign_formats_are_named() {
    let mut tar = vec![b'x'; 100];
    tar.resize(257, 0);
    tar.extend(b"ustar\x0000");
    let cases: [(&[u8], &str); 15] = [
        (b"BZh91AY&SY\x12\x34", "compressed by bzip2"),
        (b"\xFD7zXZ\0\0", "compressed by xz"),
        (b"\x04\x22\x4D\x18", "compressed by lz4"),
        (b"PK\x03\x04", "a zip archive (or what is packed as one: .docx, .npz, .pt)"),
        (&tar, "a tar archive"),
        (b"PAR1\x15\x04", "a parquet file"),
        (b"ARROW1\0\0", "an Arrow file"),
        (b"\xFF\xFF\xFF\xFF\x10", "an Arrow stream"),
        (b"\x89HDF\r\n\x1A\n", "an HDF5 file"),
        (b"\x80\x04\x95\x01", "a Python pickle"),
        (b"\x93NUMPY\x01\0", "a NumPy array"),
        (b"%PDF-1.7\n", "a PDF document"),
        (b"\x40\0\0\0\0\0\0\0{\"__", "a safetensors file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x7FELF\x02", "a program (ELF)"),
    ];
    for (start, what) in cases {
        for name in ["a.txt", "a.jsonl", "a"] {
            assert_eq!(refused(name, start), what);
        }
    }
    // Whatever its name says, but for one that ends in .parquet.
    for name in ["a.txt", "a.TXT", "a.md", "a.jsonl", "a.json", "a.gz", "a.parquet.zst", "a"] {
        assert_eq!(refused(name, b"PAR1\x15\x04\x15\x20 text PAR1"), "a parquet file", "{name}");
    }
    // Words that begin like a format are text.
    for words in ["BZh is a magic number", "PAR1 and PAR2", "RIFFs", "ORCs", "GGUF: a format, ü"] {
        assert_eq!(kind_of("a.txt", words.as_bytes()), text(TextKind::Whole), "{words}");
    }
}

#[test]
fn wide_encodings_are_named_with_and_without_a_mark() {
    let utf16 = |text: &str, big: bool| -> Vec<u8> {
        let bytes = |u: u16| if big { u.to_be_bytes() } else { u.to_le_bytes() };
        text.encode_utf16().flat_map(bytes).collect()
    };
    let utf32 = |text: &str, big: bool| -> Vec<u8> {
        let bytes = |c: char| if big { (c as u32).to_be_bytes() } else { (c as u32).to_le_bytes() };
        text.chars().flat_map(bytes).collect()
    };
    for words in ["some words, größer", "\u{feff}marked", "日本語 and a bit of English\n"] {
        for (bytes, name) in [
            (utf16(words, false), "text in UTF-16LE"),
            (utf16(words, true), "text in UTF-16BE"),
            (utf32(words, false), "text in UTF-32LE"),
            (utf32(words, true), "text in UTF-32BE"),
        ] {
            assert_eq!(refused("a.txt", &bytes), name, "{words}");
        }
    }
    assert_eq!(refused("a.txt", &utf16("\u{feff}日本語", false)), "text in UTF-16LE");
    assert_eq!(refused("a.txt", b"some\0thing"), "not text: its byte 4 is NUL");
    assert_eq!(kind_of("a.txt", "größer, 日本語".as_bytes()), text(TextKind::Whole));
}
