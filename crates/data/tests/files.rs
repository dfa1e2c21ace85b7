//! Text to token files, their cache, and what is said about wrong ones.

mod common;

use std::path::Path;

use common::*;
use data::source::TokenSource;
use data::{
    DataError, Dataset, Split, TextInput, TokenizeOptions, Tokenizer, TokenizerSpec, describe,
    order2_bits_per_byte, tokenize,
};

fn tokenize_to(
    dir: &Path,
    inputs: &[TextInput],
    spec: &TokenizerSpec,
    options: &TokenizeOptions,
) -> Vec<u8> {
    let out = dir.join("out.tok");
    let tokenizer = Tokenizer::load(spec).unwrap();
    let mut last = 0;
    let report = tokenize(inputs, &tokenizer, &out, options, &mut |p| {
        assert!(p.done_bytes >= last && Some(p.done_bytes) <= p.total_bytes);
        last = p.done_bytes;
    })
    .unwrap();
    let described = describe(&out).unwrap();
    assert_eq!((report.tokens, report.documents), (described.tokens, described.documents));
    assert_eq!(Some(report.bytes), described.text_bytes);
    std::fs::read(out).unwrap()
}

fn mixed_inputs(dir: &Path) -> Vec<TextInput> {
    let mut texts: Vec<Vec<u8>> = (0..60).map(|i| words(1 + 997 * i, i as u64)).collect();
    texts.push(words(3_000_000, 99)); // A document of several blocks.
    let mut inputs: Vec<TextInput> =
        write_texts(dir, &texts).into_iter().map(TextInput::new).collect();
    let lines: String = (0..4000u64)
        .map(|i| {
            let text = String::from_utf8(words(300, i)).unwrap();
            let gap = if i % 7 == 0 { "\n \n" } else { "\n" };
            serde_json::json!({"id": i, "text": text}).to_string() + gap
        })
        .collect();
    let path = dir.join("lines.jsonl");
    std::fs::write(&path, lines.trim_end()).unwrap(); // The last line ends without a newline.
    inputs.insert(30, TextInput::new(path));
    inputs
}

#[test]
fn the_file_does_not_depend_on_threads_or_memory() {
    let dir = tempfile::tempdir().unwrap();
    let inputs = mixed_inputs(dir.path());
    for spec in [TokenizerSpec::Byte, TokenizerSpec::Gpt2] {
        let with = |threads, max_memory_bytes| TokenizeOptions {
            threads,
            max_memory_bytes,
            ..TokenizeOptions::default()
        };
        let reference = tokenize_to(dir.path(), &inputs, &spec, &with(1, 1 << 30));
        for (threads, memory) in [(2, 1 << 30), (3, 0), (8, 20 << 20)] {
            let again = tokenize_to(dir.path(), &inputs, &spec, &with(threads, memory));
            assert!(again == reference, "{threads} threads, {memory} bytes");
        }
    }
}

#[test]
fn long_documents_are_cut_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let text = words(2_000_000, 4);
    let inputs: Vec<TextInput> = write_texts(dir.path(), std::slice::from_ref(&text))
        .into_iter()
        .map(TextInput::new)
        .collect();
    tokenize_to(dir.path(), &inputs, &TokenizerSpec::Gpt2, &TokenizeOptions::default());
    let file = TokenSource::open(&dir.path().join("out.tok")).unwrap();
    let mut tokens = vec![0; file.tokens() as usize];
    file.read(0, &mut tokens);
    assert_eq!(tokens.pop(), Some(50256));
    let whole =
        tiktoken_rs::r50k_base_singleton().encode_ordinary(std::str::from_utf8(&text).unwrap());
    assert!(tokens == whole);
}

#[test]
fn a_bad_line_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.jsonl");
    let good = serde_json::json!({"text": "x".repeat(1000)}).to_string() + "\n";
    std::fs::write(&path, good.repeat(5000) + "{\"body\": 1}\n" + &good + "nonsense\n").unwrap();
    let byte = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
    let out = dir.path().join("a.tok");
    let options = TokenizeOptions { threads: 3, ..TokenizeOptions::default() };
    let error = tokenize(&[TextInput::new(&path)], &byte, &out, &options, &mut |_| {}).unwrap_err();
    assert!(matches!(error, DataError::Line { line: 5001, .. }), "{error}");
    assert!(error.to_string().contains("`body`"), "{error}");
    assert!(!out.exists());
}

#[test]
fn the_cache_is_used_and_distrusted() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_texts(dir.path(), &[words(100_000, 1), words(5000, 2)]);
    let first = prepare_files(dir.path(), &files, "byte");
    let made = &first.sources[0].parts[0].path;
    let inode =
        |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let original = inode(made);
    assert_eq!(prepare_files(dir.path(), &files, "byte"), first);
    assert_eq!(inode(made), original, "tokenized again for nothing");

    let mut bytes = std::fs::read(made).unwrap();
    bytes[9000] ^= 1;
    std::fs::write(made, bytes).unwrap();
    assert_eq!(prepare_files(dir.path(), &files, "byte"), first, "a damaged file is made again");
    describe(made).unwrap();

    std::fs::write(&files[1], b"other text").unwrap();
    let changed = prepare_files(dir.path(), &files, "byte");
    assert_ne!(changed.digest, first.digest);
    assert_ne!(&changed.sources[0].parts[0].path, made);
    assert_ne!(prepare_files(dir.path(), &files, "gpt2").digest, changed.digest);
}

#[test]
fn what_holds_nothing_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        TextInput::new(path)
    };
    let empty = put("empty.txt", "");
    let lines = put("a.jsonl", "{\"text\": \"one\"}\n\n{\"text\": \"\"}\n \n{\"text\": \"two\"}\n");
    let byte = Tokenizer::load(&TokenizerSpec::Byte).unwrap();
    let out = dir.path().join("a.tok");
    let options = TokenizeOptions::default();
    let inputs = [empty.clone(), lines.clone(), put("c.txt", "three")];
    let report = tokenize(&inputs, &byte, &out, &options, &mut |_| {}).unwrap();
    assert_eq!((report.documents, report.empty_documents, report.blank_lines), (3, 2, 2));

    // In a run, too.
    let cfg = serde_json::json!({"files": [&empty.path, &lines.path], "tokenizer": "byte"});
    let source = &prepare_json(dir.path(), &cfg).unwrap().sources[0];
    assert_eq!((source.documents, source.empty_documents, source.blank_lines), (2, 2, 2));

    // Nothing but these: no file, and nothing temporary.
    let nothing = [empty, put("b.jsonl", "\n\n{\"text\": \"\"}\n")];
    let count = || std::fs::read_dir(dir.path()).unwrap().count();
    let (out, before) = (dir.path().join("b.tok"), count());
    let error = tokenize(&nothing, &byte, &out, &options, &mut |_| {}).unwrap_err();
    let no_text = matches!(error, DataError::NoText { empty_documents: 2, blank_lines: 2, .. });
    assert!(no_text, "{error}");
    assert!(error.to_string().contains("(2 empty documents and 2 blank lines)"), "{error}");
    assert_eq!(count(), before);
}

#[test]
fn wrong_files_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let error = |files: &[&Path], tokenizer: &str| {
        let cfg = serde_json::json!({"files": files, "tokenizer": tokenizer});
        prepare_json(dir.path(), &cfg).unwrap_err()
    };
    let missing = error(&[&dir.path().join("missing.txt")], "byte");
    assert!(matches!(missing, DataError::Io { .. }), "{missing}");
    let directory = error(&[dir.path()], "byte");
    assert!(matches!(directory, DataError::IsDirectory { .. }), "{directory}");

    let empty = dir.path().join("empty.txt");
    std::fs::write(&empty, "").unwrap();
    assert!(matches!(error(&[&empty], "byte"), DataError::NoText { .. }));

    let headered = dir.path().join("h.bin");
    write_headered(&headered, &[5, 6, 300, 7]);
    let range = error(&[&headered], "byte");
    assert!(matches!(range, DataError::TokenOutOfRange { token: 300, index: 2, .. }), "{range}");
    assert!(range.to_string().contains("257"), "{range}");

    let bytes = std::fs::read(&headered).unwrap();
    // As 32-bit tokens, of which one is negative.
    let mut wide = bytes[..1024].to_vec();
    for (at, value) in [(0, 20_240_801_u32), (4, 7), (8, 3)] {
        wide[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    wide.extend([1_i32, 2, -1].iter().flat_map(|token| token.to_le_bytes()));
    std::fs::write(&headered, wide).unwrap();
    let negative = error(&[&headered], "byte");
    assert!(matches!(negative, DataError::NoToken { index: 2, .. }), "{negative}");
    std::fs::write(&headered, &bytes[..1029]).unwrap();
    let short = error(&[&headered], "gpt2");
    let sizes =
        matches!(short, DataError::WrongSize { expected_bytes: 1032, actual_bytes: 1029, .. });
    assert!(sizes, "{short}");

    let files = write_texts(dir.path(), &[words(1000, 1)]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let mismatch = error(&[&prepared.sources[0].parts[0].path], "gpt2");
    let text = mismatch.to_string();
    assert!(text.contains("`byte` (257") && text.contains("`gpt2` (50257"), "{text}");

    let odd = dir.path().join("odd.bin");
    std::fs::write(&odd, b"PK\x03\x04").unwrap();
    assert!(matches!(error(&[&odd], "byte"), DataError::UnknownFormat { .. }));
}

#[test]
fn wrong_megatron_indices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    let tokens: Vec<u32> = (0..100).collect();
    write_megatron(&path, &tokens, &[40, 0, 60], 8);
    let good = std::fs::read(path.with_extension("idx")).unwrap();
    let described = describe(&path).unwrap();
    assert_eq!((described.tokens, described.largest_token), (100, Some(99)));
    assert_eq!(described.documents, 2, "the empty document has no first token");
    assert_eq!(describe(&path.with_extension("idx")).unwrap().tokens, 100);
    // Version, element type, counts, a length, a pointer, a document: each made wrong.
    for at in [9, 17, 18, 26, 34, 34 + 12 + 8, 34 + 36 + 8, 34 + 36 + 24] {
        let mut bad = good.clone();
        bad[at] ^= 0x2A;
        std::fs::write(path.with_extension("idx"), bad).unwrap();
        assert!(describe(&path).is_err(), "byte {at}");
    }
    for length in [0, 5, 33, 34, good.len() - 1] {
        std::fs::write(path.with_extension("idx"), &good[..length]).unwrap();
        assert!(describe(&path).is_err(), "{length} bytes");
    }
    std::fs::write(path.with_extension("idx"), &good).unwrap();
    std::fs::write(&path, [0u8; 150]).unwrap();
    assert!(matches!(describe(&path), Err(DataError::WrongSize { expected_bytes: 200, .. })));
}

#[test]
fn what_is_wrong_with_a_megatron_index_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.bin");
    let tokens: Vec<u32> = (0..5).collect();
    write_megatron(&path, &tokens, &[2, 3], 8);
    let good = std::fs::read(path.with_extension("idx")).unwrap();
    let documents = good.len() - 3 * 8;
    let error = |at: usize, value: i64| {
        let mut bad = good.clone();
        bad[at..at + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(path.with_extension("idx"), bad).unwrap();
        describe(&path).unwrap_err().to_string()
    };
    let cases = [
        (34 + 2 * 4 + 8, -8, "sequence 1 begins at byte -8 instead of 4"),
        (documents, 1, "document index 0 of 0 to 2 is 1: the first document begins at sequence 0"),
        (documents + 8, -1, "document index 1 of 0 to 2 is -1, less than 0 before it"),
        (documents + 8, 3, "document index 1 of 0 to 2 is 3, but there are 2 sequences"),
        (documents + 16, 1, "document index 2 of 0 to 2 is 1: the last is the number of sequences"),
        (documents + 16, 7, "document index 2 of 0 to 2 is 7, but there are 2 sequences"),
    ];
    for (at, value, reason) in cases {
        let error = error(at, value);
        assert!(error.contains(&format!("m.idx is wrong at byte {at}: {reason}")), "{error}");
        assert!(!error.contains("muster data tokenize"), "{error}");
    }
}

#[test]
fn llama_3_tokens_of_llm_c_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("l.bin");
    let tokens = [128_000, 9906, 1917, 128_000, 100_257, 7];
    write_headered_wide(&path, &tokens);
    let described = describe(&path).unwrap();
    assert_eq!((described.kind, described.dtype), ("256-int header", "uint32"));
    assert_eq!((described.tokens, described.documents), (6, 3));
    assert_eq!(described.first_tokens, tokens);
    assert_eq!(described.largest_token, Some(128_000));
    let cfg = serde_json::json!({"files": path, "tokenizer": {"ids": 128_256}});
    let prepared = prepare_json(dir.path(), &cfg).unwrap();
    assert_eq!((prepared.sources[0].tokens, prepared.sources[0].documents), (6, 3));
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 2]).unwrap();
    assert!(matches!(describe(&path), Err(DataError::WrongSize { expected_bytes: 1048, .. })));
    let mut other = bytes.clone();
    other[4] = 1;
    std::fs::write(&path, &other).unwrap();
    let version = describe(&path).unwrap_err();
    assert!(matches!(version, DataError::Version { found: 1, supported: 7, .. }), "{version}");
}

#[test]
fn a_byte_model_without_bytes_to_predict_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("one.jsonl");
    std::fs::write(&path, "{\"text\": \"x\"}\n".repeat(5000)).unwrap();
    let prepared = prepare_files(dir.path(), &[path], "byte");
    let data = Dataset::open(&prepared, 16, 1, 0.05).unwrap();
    let error = order2_bits_per_byte(&data, &data.tokenizer().unwrap()).unwrap_err().to_string();
    assert!(error.contains("no bytes to predict"), "{error}");
}

#[test]
fn the_byte_model_sees_what_a_trained_model_sees() {
    let dir = tempfile::tempdir().unwrap();
    // Each byte follows from the one before: almost nothing is left to say but where documents end.
    let sure: Vec<u8> = (0..60_000u32).map(|i| b'a' + (i % 20) as u8).collect();
    let files = write_texts(dir.path(), &[sure]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let data = Dataset::open(&prepared, 64, 1, 0.05).unwrap();
    let easy = order2_bits_per_byte(&data, &data.tokenizer().unwrap()).unwrap();
    assert!(easy.bits_per_byte < 0.05, "{easy:?}");
    let targets: u64 = (0..data.validation_samples())
        .map(|i| read(&data, Split::Validation, i).1.target_bytes.unwrap())
        .sum();
    assert_eq!(easy.validation_bytes, targets);

    // Uniform random bytes: at least 8 bits, and a bit more for believing the few pairs seen so
    // far.
    let files = write_texts(dir.path(), &[random_text(300_000, 7)]);
    let prepared = prepare_files(dir.path(), &files, "byte");
    let data = Dataset::open(&prepared, 64, 1, 0.05).unwrap();
    let hard = order2_bits_per_byte(&data, &data.tokenizer().unwrap()).unwrap();
    assert!((8.0..9.1).contains(&hard.bits_per_byte), "{hard:?}");

    // The tokenizer is not the model's business: about the same for the same text under GPT-2.
    let text = [words(400_000, 3), words(400_000, 5)];
    let files = write_texts(dir.path(), &text);
    let under = |tokenizer, t| {
        let prepared = prepare_files(dir.path(), &files, tokenizer);
        let data = Dataset::open(&prepared, t, 1, 0.05).unwrap();
        order2_bits_per_byte(&data, &data.tokenizer().unwrap()).unwrap().bits_per_byte
    };
    let (bytes, gpt2) = (under("byte", 512), under("gpt2", 256));
    assert!((bytes - gpt2).abs() < 0.03 * bytes, "{bytes} {gpt2}");
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_rows_are_documents() {
    use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
    use parquet::file::{properties::WriterProperties, writer::SerializedFileWriter};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.parquet");
    let schema = "message m { required int64 id; optional binary text (UTF8); }";
    let schema = std::sync::Arc::new(parquet::schema::parser::parse_message_type(schema).unwrap());
    let compression = parquet::basic::Compression::SNAPPY;
    let properties = WriterProperties::builder().set_compression(compression).build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, properties.into()).unwrap();
    let texts = ["first", "sécond", "third"].map(|t| ByteArray::from(t.as_bytes().to_vec()));
    let mut group = writer.next_row_group().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<Int64Type>().write_batch(&[1, 2, 3, 4], None, None).unwrap();
    column.close().unwrap();
    let mut column = group.next_column().unwrap().unwrap();
    column.typed::<ByteArrayType>().write_batch(&texts, Some(&[1, 0, 1, 1]), None).unwrap();
    column.close().unwrap();
    group.close().unwrap();
    writer.close().unwrap();
    let prepared = prepare_files(dir.path(), std::slice::from_ref(&path), "byte");
    let tokens = tokens_of(&prepared);
    let text: Vec<u8> = tokens.iter().map(|&t| if t == 256 { b'|' } else { t as u8 }).collect();
    assert_eq!(String::from_utf8(text).unwrap(), "first|sécond|third|");
    let cfg = serde_json::json!({"files": path, "jsonl_field": "body"});
    let error = prepare_json(dir.path(), &cfg).unwrap_err().to_string();
    assert!(error.contains("no column `body`; it has `id`, `text`"), "{error}");
}
