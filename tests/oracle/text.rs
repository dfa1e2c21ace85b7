//! Real text: this repository's own sources, as bytes.

use std::path::{Path, PathBuf};

use kernels::loss::IGNORE;
use model::MicroBatch;

/// The sources of all crates one after another, cut into documents at blank lines.
pub struct Text {
    tokens: Vec<u32>,
    /// Where each token's document begins.
    begins: Vec<usize>,
}

/// One micro-batch.
pub struct Sample {
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
    pub doc_start: Vec<u32>,
}

impl Text {
    pub const VOCABULARY: usize = 256;

    pub fn of_this_repository() -> Text {
        let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates");
        let mut files = Vec::new();
        for entry in std::fs::read_dir(crates).unwrap() {
            list(&entry.unwrap().path().join("src"), &mut files);
        }
        files.sort();
        let mut text = Text { tokens: Vec::new(), begins: Vec::new() };
        for file in files {
            for document in std::fs::read_to_string(file).unwrap().split_inclusive("\n\n") {
                let begin = text.tokens.len();
                text.tokens.extend(document.bytes().map(u32::from));
                text.begins.resize(text.tokens.len(), begin);
            }
        }
        text
    }

    /// Micro-batch `step`: windows follow one another through the text.
    pub fn sample(&self, batch: MicroBatch, step: usize) -> Sample {
        let first = step * batch.rows();
        assert!(first + batch.rows() < self.tokens.len(), "the text ends before step {step}");
        let rows = first..first + batch.rows();
        let window = |row: usize| row - (row - first) % batch.positions;
        let target = |row: usize| match self.begins[row + 1] > row {
            true => IGNORE,
            false => self.tokens[row + 1],
        };
        let start = |row: usize| self.begins[row].saturating_sub(window(row)) as u32;
        Sample {
            tokens: self.tokens[rows.clone()].to_vec(),
            targets: rows.clone().map(target).collect(),
            doc_start: rows.map(start).collect(),
        }
    }
}

fn list(dir: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}
