//! Fixtures, generated; shared by the test programs, each of which uses some.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use data::source::TokenSource;
use data::{DataConfig, Dataset, Prepared, Result, SampleInfo, SampleMut, Split, prepare};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sample {
    pub inputs: Vec<u32>,
    pub targets: Vec<u32>,
    pub doc_start: Vec<u32>,
}

pub fn read(data: &Dataset, split: Split, index: u64) -> (Sample, SampleInfo) {
    let t = data.seq_len();
    // Not zeros: what is not written must be seen.
    let garbage = || vec![0xDEAD_BEEF; t];
    let mut sample = Sample { inputs: garbage(), targets: garbage(), doc_start: garbage() };
    let mut out = SampleMut {
        inputs: &mut sample.inputs,
        targets: &mut sample.targets,
        doc_start: &mut sample.doc_start,
    };
    let info = data.read(split, index, &mut out).unwrap();
    (sample, info)
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

/// Any bytes but NUL, which no text has.
pub fn random_text(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..bytes).map(|_| 1 + random.below(255) as u8).collect()
}

/// At least `bytes` of something like prose, with some of what makes splitting hard.
pub fn words(bytes: usize, seed: u64) -> Vec<u8> {
    const WORDS: [&str; 16] = [
        "the",
        "muster",
        "don't",
        "1789",
        "x=3;",
        "—",
        "Größe",
        "\n\n",
        "  ",
        "of",
        "zeta-function",
        "I'll",
        "日本語",
        "\t",
        "a",
        "end.",
    ];
    let mut random = Random(seed);
    let mut text = String::new();
    while text.len() < bytes {
        text.push_str(WORDS[random.below(16) as usize]);
        text.push_str([" ", " ", " ", "\n"][random.below(4) as usize]);
    }
    text.into_bytes()
}

pub fn write_texts(dir: &Path, texts: &[Vec<u8>]) -> Vec<PathBuf> {
    let write = |(i, text): (usize, &Vec<u8>)| {
        let path = dir.join(format!("text-{i}.txt"));
        std::fs::write(&path, text).unwrap();
        path
    };
    texts.iter().enumerate().map(write).collect()
}

pub fn prepare_json(dir: &Path, cfg: &serde_json::Value) -> Result<Prepared> {
    let cfg: DataConfig = serde_json::from_value(cfg.clone()).unwrap();
    prepare(&cfg, &dir.join("cache"), "", &mut |_| {})
}

pub fn prepare_files(dir: &Path, files: &[PathBuf], tokenizer: &str) -> Prepared {
    let cfg = serde_json::json!({"files": files, "tokenizer": tokenizer});
    let prepared = prepare_json(dir, &cfg).unwrap();
    // Workers get it through a file.
    serde_json::from_str(&serde_json::to_string(&prepared).unwrap()).unwrap()
}

/// All tokens of the only part.
pub fn tokens_of(prepared: &Prepared) -> Vec<u32> {
    let file = TokenSource::open(&prepared.sources[0].parts[0].path).unwrap();
    let mut tokens = vec![0; file.tokens() as usize];
    file.read(0, &mut tokens);
    tokens
}

/// Lengths of the documents, each of which ends with `end`.
pub fn document_lengths(stream: &[u32], end: u32) -> Vec<usize> {
    stream.split_inclusive(|&t| t == end).map(<[u32]>::len).collect()
}

pub fn write_headered(path: &Path, tokens: &[u32]) {
    let mut bytes = header([20240520, 1, tokens.len() as u32]);
    bytes.extend(tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

/// As llm.c writes Llama-3 tokens.
pub fn write_headered_wide(path: &Path, tokens: &[u32]) {
    let mut bytes = header([20240801, 7, tokens.len() as u32]);
    bytes.extend(tokens.iter().flat_map(|t| t.to_le_bytes()));
    std::fs::write(path, bytes).unwrap();
}

fn header(ints: [u32; 3]) -> Vec<u8> {
    let mut bytes: Vec<u8> = ints.into_iter().flat_map(u32::to_le_bytes).collect();
    bytes.resize(1024, 0);
    bytes
}

/// A Megatron pair with one sequence per document, with element type 8 (u16) or 4 (i32).
pub fn write_megatron(path: &Path, tokens: &[u32], lengths: &[usize], element: u8) {
    let width = if element == 8 { 2 } else { 4 };
    let data: Vec<u8> = match width {
        2 => tokens.iter().flat_map(|&t| (t as u16).to_le_bytes()).collect(),
        _ => tokens.iter().flat_map(|&t| t.to_le_bytes()).collect(),
    };
    std::fs::write(path, data).unwrap();
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(element);
    index.extend((lengths.len() as u64).to_le_bytes());
    index.extend((lengths.len() as u64 + 1).to_le_bytes());
    index.extend(lengths.iter().flat_map(|&n| (n as i32).to_le_bytes()));
    let mut at = 0;
    for &n in lengths {
        index.extend((at as i64).to_le_bytes());
        at += n * width;
    }
    index.extend((0..=lengths.len() as i64).flat_map(i64::to_le_bytes));
    std::fs::write(path.with_extension("idx"), index).unwrap();
}
