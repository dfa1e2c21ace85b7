//! The files that are read as text: compressed files, pipes, byte order marks; and those that are
//! refused.

mod common;

use std::io::Write;
use std::path::{Path, PathBuf};

use common::*;
use data::source::TokenSource;
use data::{DataError, Result, TextInput, TokenizeOptions, Tokenizer, TokenizerSpec, tokenize};

/// The documents of a file, tokenized as bytes.
fn documents(dir: &Path, path: &Path) -> Result<Vec<String>> {
    let out = dir.join("out.tok");
    let byte = Tokenizer::load(&TokenizerSpec::Byte)?;
    let (inputs, options) = ([TextInput::new(path)], TokenizeOptions::default());
    let mut last = (0, None);
    tokenize(&inputs, &byte, &out, &options, &mut |p| {
        assert!(p.done_bytes >= last.0);
        last = (p.done_bytes, p.total_bytes);
    })?;
    // All bytes of the file as it lies there, compressed or not, are done at the end.
    let meta = std::fs::metadata(path).unwrap();
    assert_eq!(last.1, meta.is_file().then_some(meta.len()));
    assert!(last.1.is_none_or(|total| total == last.0), "{last:?}");
    Ok(split(&TokenSource::open(&out)?))
}

fn split(file: &TokenSource) -> Vec<String> {
    let mut tokens = vec![0; file.tokens() as usize];
    file.read(0, &mut tokens);
    let bytes = |document: &[u32]| document.iter().map(|&t| t as u8).collect::<Vec<u8>>();
    let mut all: Vec<String> = tokens
        .split(|&t| t == 256)
        .map(|document| String::from_utf8(bytes(document)).unwrap())
        .collect();
    assert_eq!(all.pop().as_deref(), Some(""), "the last document ends");
    all
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn put(dir: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn lines(count: usize) -> (String, Vec<String>) {
    let texts: Vec<String> = (0..count).map(|i| format!("line {i} größer {}", i * i)).collect();
    let line = |text: &String| serde_json::json!({ "text": text }).to_string() + "\n";
    (texts.iter().map(line).collect(), texts)
}

#[test]
fn compressed_files_are_read_as_what_they_hold() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (jsonl, texts) = lines(30_000);
    let (start, end) = jsonl.as_bytes().split_at(500_001);
    let packed = [
        ("gz", gzip(jsonl.as_bytes())),
        ("gz", [gzip(start), gzip(b""), gzip(end)].concat()),
        ("zst", zstd(jsonl.as_bytes())),
        // Two frames, with one to be skipped between them.
        ("zst", [zstd(start), b"\x50\x2A\x4D\x18\x03\0\0\0xyz".to_vec(), zstd(end)].concat()),
    ];
    for (end, bytes) in &packed {
        for name in ["a.jsonl", "a.json", "a"] {
            let path = put(dir, &format!("{name}.{end}"), bytes);
            assert!(documents(dir, &path).unwrap() == texts, "{path:?}");
        }
        let whole = documents(dir, &put(dir, &format!("a.txt.{end}"), bytes)).unwrap();
        assert!(whole == [jsonl.as_str()], "{end}");
        // The content decides that it is compressed, the name how it is divided.
        assert!(documents(dir, &put(dir, "misnamed.jsonl", bytes)).unwrap() == texts);
    }
    let empty = put(dir, "empty.jsonl.gz", gzip(b""));
    assert!(matches!(documents(dir, &empty), Err(DataError::NoText { .. })));
}

#[test]
fn a_stream_that_is_cut_off_or_damaged_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (jsonl, _) = lines(200);
    for (name, bytes) in
        [("a.jsonl.gz", gzip(jsonl.as_bytes())), ("a.jsonl.zst", zstd(jsonl.as_bytes()))]
    {
        let path = dir.join(name);
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = documents(dir, &path).unwrap_err();
            match error {
                DataError::Packed { offset, .. } => {
                    assert!(offset <= length as u64, "{offset} of {length}");
                }
                // Too little to be known for what its name says.
                DataError::NotText { .. } => assert!(length < 4, "{error}"),
                other => panic!("{length} of {}: {other}", bytes.len()),
            }
        }
        let mut damaged = bytes.clone();
        damaged[bytes.len() / 2] ^= 0x10;
        std::fs::write(&path, &damaged).unwrap();
        let error = documents(dir, &path).unwrap_err();
        assert!(!matches!(error, DataError::Io { .. }), "{error}");
        std::fs::write(&path, [&bytes[..], b"more"].concat()).unwrap();
        let error = documents(dir, &path).unwrap_err();
        let at_end = matches!(error, DataError::Packed { offset, .. }
            if offset >= bytes.len() as u64);
        assert!(at_end, "{error}");
    }
}

#[test]
fn what_is_inside_is_looked_at_too() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let said = |name: &str, bytes: &[u8]| documents(dir, &put(dir, name, bytes)).unwrap_err();
    let twice = said("a.txt.gz", &zstd(&gzip(b"text"))).to_string();
    assert!(twice.contains("zstd of gzip: decompress it first"), "{twice}");
    let wide = said("a.txt.zst", &zstd(b"w\0i\0d\0e\0")).to_string();
    assert!(wide.contains("zstd of text in UTF-16LE"), "{wide}");
    let tokens = said("a.tok.gz", &gzip(b"MUSTRTOK")).to_string();
    assert!(tokens.contains("gzip of a token file"), "{tokens}");
}

#[test]
fn nul_bytes_are_refused_with_their_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mut text = words(3_000_000, 3);
    text[2_500_000] = 0;
    for (name, bytes) in [("a.txt", text.clone()), ("b.txt.gz", gzip(&text))] {
        let error = documents(dir, &put(dir, name, bytes)).unwrap_err().to_string();
        assert!(error.contains("not text: its byte 2500000 is NUL"), "{error}");
    }
    let marked = [b"\xEF\xBB\xBF", &text[..]].concat();
    let error = documents(dir, &put(dir, "c.txt", marked)).unwrap_err().to_string();
    assert!(error.contains("byte 2500003"), "{error}");
    // A line says where, too; JSON's own way to write it is text.
    let error = documents(dir, &put(dir, "d.jsonl", b"{\"text\": \"a\0b\"}")).unwrap_err();
    assert!(error.to_string().contains("byte 11 "), "{error}");
    let escaped = put(dir, "e.jsonl", br#"{"text": "a\u0000b"}"#);
    assert_eq!(documents(dir, &escaped).unwrap(), ["a\0b"]);
}

#[test]
fn a_byte_order_mark_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mark = |text: &str| format!("\u{feff}{text}");
    assert_eq!(documents(dir, &put(dir, "a.txt", mark("hi"))).unwrap(), ["hi"]);
    let (jsonl, texts) = lines(3);
    assert_eq!(documents(dir, &put(dir, "a.jsonl", mark(&jsonl))).unwrap(), texts);
    let packed = gzip(mark(&jsonl).as_bytes());
    assert_eq!(documents(dir, &put(dir, "b.jsonl.gz", packed)).unwrap(), texts);
    // Two files put together.
    let error = documents(dir, &put(dir, "c.jsonl", jsonl.clone() + &mark(&jsonl))).unwrap_err();
    assert!(error.to_string().contains("c.jsonl:4: the line begins with a byte order"), "{error}");
}

#[test]
fn an_object_a_line_is_read_under_the_name_json() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (jsonl, texts) = lines(3);
    assert_eq!(documents(dir, &put(dir, "corpus.json", &jsonl)).unwrap(), texts);
    // White space says nothing, however much of it there is.
    let far = "\n".repeat(70_000) + &jsonl;
    assert_eq!(documents(dir, &put(dir, "far.json", far)).unwrap(), texts);
    let array = documents(dir, &put(dir, "array.json", "[{\"text\": \"a\"}]")).unwrap_err();
    assert!(array.to_string().contains("jq -c '.[]'"), "{array}");
    let pretty = put(dir, "pretty.json", "{\n  \"text\": \"a\"\n}\n");
    let error = documents(dir, &pretty).unwrap_err().to_string();
    assert!(error.contains("pretty.json:1") && error.contains("on one line"), "{error}");
}

fn fifo(dir: &Path) -> PathBuf {
    let path = dir.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    path
}

#[test]
fn a_pipe_is_read_once_and_whole() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let path = fifo(dir);
    let long = String::from_utf8(words(700_000, 8)).unwrap();
    let (jsonl, texts) = lines(50_000);
    let cases = [
        (b"ABCDEFGHIJKLMNOP\n".to_vec(), vec!["ABCDEFGHIJKLMNOP\n".to_string()]),
        (b"x".to_vec(), vec!["x".to_string()]),
        (long.clone().into_bytes(), vec![long]),
        (gzip(jsonl.as_bytes()), texts.clone()),
        (jsonl.into_bytes(), texts),
    ];
    for (bytes, expected) in cases {
        let target = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(target, bytes).unwrap());
        assert!(documents(dir, &path).unwrap() == expected);
        writer.join().unwrap();
    }
}

#[test]
fn what_is_read_more_than_once_or_never_ends_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pipe = fifo(dir);
    let device = PathBuf::from("/dev/zero");
    for (path, what) in [(&pipe, "a pipe"), (&device, "a device")] {
        let error = prepare_json(dir, &serde_json::json!({"files": path})).unwrap_err();
        assert!(matches!(error, DataError::NotAFile { what: w, .. } if w == what), "{error}");
        let named = path.with_extension("tok");
        if path == &pipe {
            std::fs::rename(path, &named).unwrap();
            assert!(matches!(data::describe(&named), Err(DataError::NotAFile { .. })));
        }
        let tokenizer = if path == &pipe { &named } else { path };
        let spec = TokenizerSpec::File(tokenizer.clone());
        assert!(matches!(Tokenizer::load(&spec), Err(DataError::NotAFile { .. })));
    }
    let error = documents(dir, &device).unwrap_err();
    assert!(matches!(error, DataError::NotAFile { .. }), "{error}");
}

#[test]
fn the_same_text_is_the_same_data_however_it_is_packed() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (jsonl, _) = lines(500);
    let marked = format!("\u{feff}{jsonl}");
    let files = [
        put(dir, "a.jsonl", &jsonl),
        put(dir, "a.json", &jsonl),
        put(dir, "b.jsonl", &marked),
        put(dir, "a.jsonl.gz", gzip(jsonl.as_bytes())),
        put(dir, "a.jsonl.zst", zstd(jsonl.as_bytes())),
    ];
    let prepared = files.map(|file| prepare_files(dir, &[file], "byte"));
    for other in &prepared[1..] {
        assert_eq!(other.digest, prepared[0].digest);
    }
    // Another reading of the same bytes must not be taken from the cache of the first.
    let whole = prepare_files(dir, &[put(dir, "a.txt", &jsonl)], "byte");
    assert_ne!(whole.sources[0].text_digest, prepared[0].sources[0].text_digest);
}

/// The digests that runs of earlier versions have in their checkpoints and caches.
#[test]
fn digests_of_plain_text_are_what_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = put(dir, "a.txt", "Some text.\n");
    let jsonl = put(dir, "b.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    let prepared = prepare_files(dir, &[text, jsonl], "byte");
    let part = &prepared.sources[0].parts[0];
    // Its name has the digest of text, tokenizer and version of what cuts texts.
    assert!(part.path.ends_with("files-6f4c6043e3dd23d1.tok"), "{part:?}");
    assert_eq!(data::digest::short(&part.digest), "fd10a4efff624553");
}
