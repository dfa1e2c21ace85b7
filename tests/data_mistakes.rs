//! The messages where the data of a run are not what its config says.

mod common;

use common::Workdir;

/// The error of `muster train` for these data, which must be the user's mistake.
fn refusal(run: &Workdir, sets: &[&str]) -> String {
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", *set]).collect();
    let done = run.train(&sets);
    assert_eq!(done.code(), Some(2), "{done}");
    assert!(run.events_of(&run.name, "step").is_empty());
    let text = done.stderr.replace(run.path().to_str().unwrap(), "HERE");
    text.trim_end().to_owned()
}

fn tokenize(run: &Workdir) -> Vec<u8> {
    let done = run.muster(&["data", "tokenize", "text.txt", "text.tok"]);
    assert_eq!(done.code(), Some(0), "{done}");
    std::fs::read(run.path().join("text.tok")).unwrap()
}

#[test]
fn a_token_file_of_another_tokenizer() {
    let run = Workdir::new("data-tokenizer");
    tokenize(&run);
    let data = "data={tokenizer: gpt2, files: text.tok}";
    insta::assert_snapshot!(refusal(&run, &[data]), @"error: text.tok was made with the tokenizer `byte` (257 tokens), but data.tokenizer is `gpt2` (50257 tokens): set data.tokenizer to the file's, or tokenize the text again");
    let data = "data={tokenizer: {ids: 200}, files: text.tok}";
    insta::assert_snapshot!(refusal(&run, &[data]), @"error: text.tok was made with the tokenizer `byte` (257 tokens), but data.tokenizer is `ids: 200` (200 tokens): set data.tokenizer to the file's, or tokenize the text again");
}

#[test]
fn a_token_that_the_vocabulary_lacks() {
    let run = Workdir::new("data-range");
    // A header of 256 integers, of which three matter, and 16-bit tokens.
    let mut bytes = vec![0_u8; 1024];
    let tokens: Vec<u16> = (0..2000).map(|i| if i == 1234 { 5000 } else { i % 250 }).collect();
    for (at, value) in [(0, 20_240_520_u32), (4, 1), (8, tokens.len() as u32)] {
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    std::fs::write(run.path().join("foreign.bin"), bytes).unwrap();
    insta::assert_snapshot!(refusal(&run, &["data.files=foreign.bin"]), @"error: foreign.bin has token 5000 at index 1234, but the tokenizer `byte` has only 257 tokens (0 to 256): set data.tokenizer to the one the file was made with");
}

#[test]
fn a_token_file_that_was_cut_short() {
    let run = Workdir::new("data-short");
    let whole = tokenize(&run);
    std::fs::write(run.path().join("text.tok"), &whole[..whole.len() / 2]).unwrap();
    let text = refusal(&run, &["data.files=text.tok"]);
    // Sizes are those of our own sources.
    let text = text.replace(&whole.len().to_string(), "WHOLE");
    let text = text.replace(&(whole.len() / 2).to_string(), "HALF");
    insta::assert_snapshot!(text, @"error: text.tok is HALF bytes long but its header says WHOLE: it was cut short or appended to; copy or make it again");
}

#[test]
fn too_little_text_for_one_window() {
    let run = Workdir::new("data-few");
    std::fs::write(run.path().join("text.txt"), "a few words").unwrap();
    insta::assert_snapshot!(refusal(&run, &[]), @"error: source `files` has 12 tokens; at sequence length 32 at least 65 are needed (one sample to train on and one to validate): add text or set a shorter sequence length (at most 5)");
}

#[test]
fn a_tokenizer_file_that_is_not_there() {
    let run = Workdir::new("data-gone");
    std::fs::write(run.path().join("tokenizer.json"), "{}").unwrap();
    let sets = ["data.tokenizer.file=tokeniser.json"];
    insta::assert_snapshot!(refusal(&run, &sets), @"
    error: 1 mistake in run.yaml

    --set data.tokenizer.file=tokeniser.json: data.tokenizer.file: cannot read tokeniser.json: No such file or directory (os error 2)
      help: did you mean tokenizer.json?
    ");
    let args = ["data", "tokenize", "--tokenizer", "tokeniser.json", "text.txt", "text.tok"];
    let done = run.muster(&args);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(done.stderr.trim_end(), @"error: --tokenizer tokeniser.json: there is no such file; did you mean tokenizer.json?");
}

#[test]
fn every_section_has_its_say() {
    let run = Workdir::new("data-sections");
    let sets = [
        "data.files=[gone.txt, text.txt, missing.jsonl]",
        "data.validation_fraction=0.9",
        "data.tokenizer.file=gone.json",
        "model.heads=5",
        "batch.radices=[3]",
        "optimizer.clip.global=-1.0",
        "optimizer.schedule.linear.final_fraction=2.0",
        "checkpoint.resume.from=runs/nowhere",
    ];
    insta::assert_snapshot!("every_section", refusal(&run, &sets));
}

/// A file of a tokenizer that knows few characters, with this in its model.
fn letters(run: &Workdir, more: &str) {
    let vocab = r#"{"a": 0, "b": 1, "</s>": 2}"#;
    let json = format!(r#"{{"model": {{"type": "BPE", "merges": [], "vocab": {vocab}{more}}}}}"#);
    std::fs::write(run.path().join("tokenizer.json"), json).unwrap();
}

#[test]
fn what_a_tokenizer_would_lose_or_draw() {
    let run = Workdir::new("data-lost");
    letters(&run, "");
    std::fs::write(run.path().join("text.txt"), "ab\u{2603}ba\n").unwrap();
    let tokenizer = "data.tokenizer.file=tokenizer.json";
    let lost = refusal(&run, &[tokenizer]);
    let what = "2 characters (4 bytes), of which `\u{2603}` (U+2603) is the first in text.txt";
    assert!(lost.contains(what) && lost.contains("unk_token"), "{lost}");
    // A prompt before training, and not when it is over.
    std::fs::write(run.path().join("text.txt"), "ab\n".repeat(200)).unwrap();
    let mut sets = vec![tokenizer, "train.sample_tokens=4", "train.sample_prompt=a\u{2603}"];
    let prompt = refusal(&run, &sets);
    let what = "train.sample_prompt: \"a\u{2603}\" cannot become tokens: ";
    assert!(prompt.contains(what) && prompt.contains("(U+2603)"), "{prompt}");
    // It is never used where nothing is sampled.
    sets[1] = "train.sample_tokens=0";
    let args = sets.iter().flat_map(|set| ["--set", *set]);
    let check: Vec<&str> = ["config", "check", "run.yaml"].into_iter().chain(args).collect();
    assert_eq!(run.muster(&check).code(), Some(0));
    letters(&run, r#", "dropout": 0.5"#);
    let drawn = refusal(&run, &[tokenizer]);
    assert!(drawn.contains("its model has \"dropout\": 0.5"), "{drawn}");
}

#[test]
fn text_without_tokens() {
    let run = Workdir::new("data-nothing");
    std::fs::write(run.path().join("empty.txt"), "").unwrap();
    std::fs::write(run.path().join("lines.jsonl"), "\n{\"text\": \"\"}\n").unwrap();
    let done = run.muster(&["data", "tokenize", "empty.txt", "lines.jsonl", "nothing.tok"]);
    assert_eq!(done.code(), Some(2), "{done}");
    insta::assert_snapshot!(done.stderr.trim_end(), @"error: empty.txt holds no text (2 empty documents and 1 blank line); there is nothing to train on");
    assert!(!run.path().join("nothing.tok").exists());
    let done = run.muster(&["data", "tokenize", "empty.txt", "text.txt", "some.tok"]);
    assert_eq!(done.code(), Some(0), "{done}");
    assert!(done.stdout.contains("; 1 empty document left out\n"), "{done}");
}

/// Replacing what is not UTF-8 would lose it; bytes take it as it is.
#[test]
fn text_in_another_encoding() {
    let run = Workdir::new("data-encoding");
    std::fs::write(run.path().join("latin.txt"), b"cr\xc3\xa8me, caf\xe9\n".repeat(500)).unwrap();
    insta::assert_snapshot!(refusal(&run, &["data={tokenizer: gpt2, files: latin.txt}"]), @r#"error: latin.txt is not UTF-8: byte 0xe9 after "crème, caf"; convert it (`iconv -f ENCODING -t UTF-8`), or use the tokenizer `byte`, which takes all bytes as they are"#);
    let done = run.muster(&["data", "tokenize", "latin.txt", "latin.tok"]);
    assert_eq!(done.code(), Some(0), "{done}");
}
