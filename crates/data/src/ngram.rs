//! The yardstick: how well an order-2 byte model predicts the validation split.
//!
//! It predicts each byte from the two before it, interpolated with shorter contexts after Witten &
//! Bell (1991), in the recursive form of Chen & Goodman (1998, eq. 17–19):
//!
//! ```text
//! p(w | h) = (c(h, w) + t(h) · p(w | h′)) / (c(h) + t(h))
//! ```
//! where c counts, t(h) is the number of different symbols seen after h, and h′ is h without its
//! oldest symbol; below order 0 lies the uniform distribution. There are 257 symbols: the bytes and
//! end-of-text.
//!
//! It sees what a trained model sees: the same windows, no context from before the window or from
//! another document, no cost where the target is ignored, end-of-text predicted but no byte. So its
//! bits per byte compare directly with (loss summed over targets) / (ln 2 · bytes of those
//! targets).

use crate::dataset::{Dataset, SampleMut, Split};
use crate::error::{DataError, Result};
use crate::source::IGNORE;
use crate::tokenizer::Tokenizer;

const SYMBOLS: usize = 257;
/// End of text; also what stands before the first symbol of a document or window.
const END: u16 = 256;
/// Training stops after this much text: more no longer changes such a small model, only the
/// waiting.
const TRAIN_BYTES_MAX: u64 = 256 << 20;

/// How well the order-2 byte model does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Order2 {
    pub bits_per_byte: f64,
    /// Bytes it was trained on: one epoch of the training split, or the first 256 MiB of it.
    pub train_bytes: u64,
    /// Bytes it was asked to predict.
    pub validation_bytes: u64,
}

/// Trains on the training split and evaluates all validation samples. Needs 70 MB of memory.
///
/// # Errors
/// There is nothing to compare on: tokens without bytes, or a validation split without a byte to
/// predict (documents of one byte are nobody's targets, the ends of documents have no bytes).
pub fn order2_bits_per_byte(data: &Dataset, tokenizer: &Tokenizer) -> Result<Order2> {
    order2_bits_per_byte_of(data, tokenizer, data.validation_samples())
}

/// The same for the first `samples` validation samples only.
pub fn order2_bits_per_byte_of(
    data: &Dataset,
    tokenizer: &Tokenizer,
    samples: u64,
) -> Result<Order2> {
    if tokenizer.bytes_of(0).is_none() {
        let name = tokenizer.name();
        return Err(DataError::Unsupported(format!(
            "the tokenizer `{name}` does not define the bytes of its tokens: no byte model to \
             compare with"
        )));
    }
    let mut reader = Reader::new(data, tokenizer);
    let mut counts = Counts::new();
    let mut train_bytes = 0;
    for index in 0..data.train_samples_per_epoch() {
        train_bytes +=
            reader.read(Split::Train, index, |context, symbol| counts.add(context, symbol))?;
        if train_bytes >= TRAIN_BYTES_MAX {
            break;
        }
    }
    let model = counts.into_model();
    let mut bits = 0.0;
    let mut validation_bytes = 0;
    for index in 0..samples {
        validation_bytes += reader.read(Split::Validation, index, |context, symbol| {
            bits -= model.probability(context, symbol).log2();
        })?;
    }
    if validation_bytes == 0 {
        let reason = "the validation split has no bytes to predict: its documents are of one byte";
        return Err(DataError::Unsupported(reason.into()));
    }
    Ok(Order2 { bits_per_byte: bits / validation_bytes as f64, train_bytes, validation_bytes })
}

/// The two symbols before the one to predict, oldest first.
type Context = (u16, u16);

/// Turns samples into (context, symbol) pairs.
struct Reader<'a> {
    data: &'a Dataset,
    tokenizer: &'a Tokenizer,
    inputs: Vec<u32>,
    targets: Vec<u32>,
    doc_start: Vec<u32>,
}

impl<'a> Reader<'a> {
    fn new(data: &'a Dataset, tokenizer: &'a Tokenizer) -> Self {
        let row = || vec![0; data.seq_len()];
        Self { data, tokenizer, inputs: row(), targets: row(), doc_start: row() }
    }

    /// Calls `each` for every symbol of every target with a loss; returns how many of them are
    /// bytes.
    fn read(
        &mut self,
        split: Split,
        index: u64,
        mut each: impl FnMut(Context, u16),
    ) -> Result<u64> {
        let mut out = SampleMut {
            inputs: &mut self.inputs,
            targets: &mut self.targets,
            doc_start: &mut self.doc_start,
        };
        let info = self.data.read(split, index, &mut out)?;
        let mut context = (END, END);
        for (i, &input) in self.inputs.iter().enumerate() {
            if self.doc_start[i] as usize == i {
                context = (END, END);
                for symbol in symbols(self.tokenizer, input) {
                    context = (context.1, symbol);
                }
            }
            // Within a document the next input is this target, so that its symbols are context too.
            if self.targets[i] != IGNORE {
                for symbol in symbols(self.tokenizer, self.targets[i]) {
                    each(context, symbol);
                    context = (context.1, symbol);
                }
            }
        }
        Ok(info.target_bytes.unwrap_or(0))
    }
}

/// The bytes of a token; end-of-text and other tokens without bytes are the one symbol [`END`].
fn symbols(tokenizer: &Tokenizer, token: u32) -> impl Iterator<Item = u16> {
    let bytes = tokenizer.bytes_of(token).unwrap_or_default();
    let end = bytes.is_empty().then_some(END);
    bytes.iter().map(|&b| u16::from(b)).chain(end)
}

/// How often each symbol followed each pair: a dense cube, 68 MB.
struct Counts(Vec<u32>);

impl Counts {
    fn new() -> Self {
        Self(vec![0; SYMBOLS * SYMBOLS * SYMBOLS])
    }

    fn add(&mut self, (older, newer): Context, symbol: u16) {
        let at =
            (usize::from(older) * SYMBOLS + usize::from(newer)) * SYMBOLS + usize::from(symbol);
        self.0[at] = self.0[at].saturating_add(1);
    }

    fn into_model(self) -> Model {
        let mut order1 = vec![0u64; SYMBOLS * SYMBOLS];
        let mut order0 = vec![0u64; SYMBOLS];
        for (pair, row) in self.0.chunks_exact(SYMBOLS).enumerate() {
            let newer = pair % SYMBOLS;
            for (symbol, &count) in row.iter().enumerate().filter(|(_, c)| **c > 0) {
                order1[newer * SYMBOLS + symbol] += u64::from(count);
                order0[symbol] += u64::from(count);
            }
        }
        let uniform = vec![1.0 / SYMBOLS as f64; SYMBOLS];
        let order0 = interpolate(&order0, &uniform);
        let rows = order1.chunks_exact(SYMBOLS);
        let order1 = rows.flat_map(|row| interpolate(row, &order0)).collect();
        let order2 = self.0.chunks_exact(SYMBOLS).map(Seen::of).collect();
        Model { counts: self.0, seen: order2, order1 }
    }
}

/// The distribution after a context with these counts, given that of the shorter context.
fn interpolate(counts: &[u64], shorter: &[f64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>() as f64;
    let types = counts.iter().filter(|c| **c > 0).count() as f64;
    if total == 0.0 {
        return shorter.to_vec();
    }
    let weigh = |(&count, p): (&u64, &f64)| (count as f64 + types * p) / (total + types);
    counts.iter().zip(shorter).map(weigh).collect()
}

/// c(h) and t(h) of one pair.
#[derive(Clone, Copy)]
struct Seen {
    total: f64,
    types: f64,
}

impl Seen {
    fn of(row: &[u32]) -> Self {
        let total = row.iter().map(|&c| u64::from(c)).sum::<u64>() as f64;
        Self { total, types: row.iter().filter(|c| **c > 0).count() as f64 }
    }
}

struct Model {
    counts: Vec<u32>,
    seen: Vec<Seen>,
    /// p(symbol | newer), interpolated, by newer then symbol.
    order1: Vec<f64>,
}

impl Model {
    fn probability(&self, (older, newer): Context, symbol: u16) -> f64 {
        let (newer, symbol) = (usize::from(newer), usize::from(symbol));
        let pair = usize::from(older) * SYMBOLS + newer;
        let shorter = self.order1[newer * SYMBOLS + symbol];
        let Seen { total, types } = self.seen[pair];
        if total == 0.0 {
            return shorter;
        }
        (f64::from(self.counts[pair * SYMBOLS + symbol]) + types * shorter) / (total + types)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_context_has_a_distribution() {
        let mut counts = Counts::new();
        let mut context = (END, END);
        for i in 0..5000u32 {
            let symbol = (i * i % 61) as u16;
            counts.add(context, symbol);
            context = (context.1, symbol);
        }
        let model = counts.into_model();
        for context in [(END, END), (0, 1), (1, 4), (4, 9), (200, 201), (200, 0)] {
            let sum: f64 = (0..SYMBOLS as u16).map(|s| model.probability(context, s)).sum();
            assert!((sum - 1.0).abs() < 1e-12, "{context:?}: {sum}");
        }
    }

    #[test]
    fn the_formula_by_hand() {
        let mut counts = Counts::new();
        for (context, symbol) in [((1, 2), 3), ((1, 2), 3), ((1, 2), 4), ((9, 2), 5)] {
            counts.add(context, symbol);
        }
        let model = counts.into_model();
        // Order 0: 4 symbols, 3 types. Order 1 after 2: the same counts. Order 2 after (1, 2): 3
        // and 2.
        let u = 1.0 / 257.0;
        let p0 = (2.0 + 3.0 * u) / 7.0;
        let p1 = (2.0 + 3.0 * p0) / 7.0;
        let p2 = (2.0 + 2.0 * p1) / 5.0;
        assert!((model.probability((1, 2), 3) - p2).abs() < 1e-15);
        let unseen = |p: f64| 3.0 * p / 7.0;
        let (q0, q1) = (unseen(u), unseen(unseen(u)));
        assert!((model.probability((7, 2), 99) - q1).abs() < 1e-15);
        assert!((model.probability((7, 8), 99) - q0).abs() < 1e-15);
    }
}
