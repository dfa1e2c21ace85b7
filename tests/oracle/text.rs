//! Real text, as bytes: `tests/fixtures/oracle-text.txt`, which is words of our own, a copy of
//! ARCHITECTURE.md, docs/checkpoint-format.md and two sources of crates/layout as they were when
//! it was made. It stays as it is, since what a training comes across depends on every byte.

use kernels::loss::IGNORE;
use model::MicroBatch;

/// The text cut into documents at blank lines.
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

    pub fn pinned() -> Text {
        let mut text = Text { tokens: Vec::new(), begins: Vec::new() };
        for document in include_str!("../fixtures/oracle-text.txt").split_inclusive("\n\n") {
            let begin = text.tokens.len();
            text.tokens.extend(document.bytes().map(u32::from));
            text.begins.resize(text.tokens.len(), begin);
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
