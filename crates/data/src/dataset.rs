//! The global sample order: which tokens sample number `g` holds.
//!
//! A *window* is T + 1 tokens of a source's stream at a multiple of T: T inputs, and the T tokens
//! that follow each of them as targets. Documents lie back to back, each ended by end-of-text; a
//! target that begins another document is [`IGNORE`].
//!
//! Sample `g` is a pure function of (seed, g, content digests): no cursor, no shuffle buffer,
//! nothing that depends on ranks or threads. Within an epoch of a source every training window
//! comes once.

use std::path::Path;

use crate::config::TokenizerSpec;
use crate::error::{DataError, Result};
use crate::order::{Mixture, PERIOD_MAX, Permutation, Split as Windows};
use crate::prepare::{Prepared, PreparedSource};
use crate::source::{IGNORE, Stream, TokenSource};
use crate::tokenizer::Tokenizer;

/// Training windows or held-out ones; a window is in exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    Train,
    Validation,
}

/// Where a sample is put: three slices of length T.
pub struct SampleMut<'a> {
    /// The tokens.
    pub inputs: &'a mut [u32],
    /// The token after each, or [`IGNORE`].
    pub targets: &'a mut [u32],
    /// Index in the sample of the first token of the document that each position belongs to; a
    /// position may attend to those from there to itself.
    pub doc_start: &'a mut [u32],
}

/// The divisors of a sample's losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SampleInfo {
    /// Targets with a loss.
    pub target_tokens: u32,
    /// Bytes of text those targets stand for (end-of-text: none); `None` if the tokenizer cannot
    /// say.
    pub target_bytes: Option<u64>,
}

struct Source {
    stream: Stream,
    windows: Windows,
    digest: [u8; 32],
}

/// Samples of length T from one or more sources. Reading allocates nothing and may be done from
/// many threads at once.
pub struct Dataset {
    sources: Vec<Source>,
    mixture: Mixture,
    /// Order in which validation samples are numbered: mixed, so that any first few represent all.
    validation_order: Permutation,
    /// Validation windows of the sources before each one, and of all.
    validation_before: Vec<u64>,
    /// The tokenizer that the tokens were made with, and its digest. It is loaded when it is asked
    /// for: training needs the bytes of each token alone, and a large vocabulary's tables take tens
    /// of MiB.
    tokenizer: (TokenizerSpec, [u8; 32]),
    vocab_size: usize,
    /// Bytes of each token id.
    token_bytes: Option<Vec<u32>>,
    seq_len: usize,
    seed: u64,
    digest: [u8; 32],
}

impl Dataset {
    /// Opens the prepared token files for samples of `seq_len` tokens.
    pub fn open(
        prepared: &Prepared,
        seq_len: usize,
        seed: u64,
        validation_fraction: f64,
    ) -> Result<Self> {
        if seq_len == 0 {
            return Err(DataError::config("sequence length", "0; it must be at least 1".into()));
        }
        if !(0.0..=0.5).contains(&validation_fraction) {
            let reason = format!("{validation_fraction} is outside 0 to 0.5");
            return Err(DataError::config("data.validation_fraction", reason));
        }
        if prepared.sources.is_empty() || prepared.sources.len() > PERIOD_MAX as usize {
            let reason =
                format!("{} sources; 1 to {PERIOD_MAX} are possible", prepared.sources.len());
            return Err(DataError::config("data.mixture", reason));
        }
        let tokenizer = load_tokenizer(&prepared.tokenizer, &prepared.tokenizer_digest)?;
        let open = |source| open_source(source, seq_len, validation_fraction);
        let sources: Vec<Source> = prepared.sources.iter().map(open).collect::<Result<_>>()?;
        let weights: Vec<f64> = prepared.sources.iter().map(|s| s.weight).collect();
        let mut validation_before = vec![0];
        for source in &sources {
            let before = validation_before[validation_before.len() - 1];
            validation_before.push(before + source.windows.validation());
        }
        let vocab_size = tokenizer.vocab_size();
        let vocabulary = 0..vocab_size as u32;
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"muster sample order 1").update(&prepared.digest);
        hasher.update(&(seq_len as u64).to_le_bytes()).update(&seed.to_le_bytes());
        hasher.update(&validation_fraction.to_le_bytes());
        let validation_key = blake3::derive_key("muster data validation order 1", &prepared.digest);
        let validation = validation_before[validation_before.len() - 1];
        Ok(Self {
            sources,
            mixture: Mixture::new(&weights),
            validation_order: Permutation::new(validation, &validation_key),
            validation_before,
            token_bytes: vocabulary.map(|id| tokenizer.token_bytes(id)).collect(),
            tokenizer: (prepared.tokenizer.clone(), prepared.tokenizer_digest),
            vocab_size,
            seq_len,
            seed,
            digest: *hasher.finalize().as_bytes(),
        })
    }

    /// Writes sample `index` into `out`. Training indices never end (epoch follows epoch);
    /// validation indices are below [`Dataset::validation_samples`].
    ///
    /// # Panics
    /// If a slice of `out` is not T long.
    pub fn read(&self, split: Split, index: u64, out: &mut SampleMut) -> Result<SampleInfo> {
        let (source, window) = match split {
            Split::Train => self.train_place(index),
            Split::Validation => self.validation_place(index)?,
        };
        Ok(self.read_window(&self.sources[source], window, out))
    }

    /// Source and window of a training sample.
    fn train_place(&self, index: u64) -> (usize, u64) {
        let (s, nth) = self.mixture.place(index);
        let source = &self.sources[s];
        let count = source.windows.train();
        let (epoch, place) = (nth / count, nth % count);
        let mut hasher = blake3::Hasher::new_derive_key("muster data training order 1");
        hasher.update(&self.seed.to_le_bytes()).update(&(s as u64).to_le_bytes());
        hasher.update(&source.digest).update(&epoch.to_le_bytes());
        let order = Permutation::new(count, hasher.finalize().as_bytes());
        (s, source.windows.train_window(order.apply(place)))
    }

    fn validation_place(&self, index: u64) -> Result<(usize, u64)> {
        let count = self.validation_samples();
        if index >= count {
            let hint = match count {
                0 => ": data.validation_fraction is 0",
                _ => "",
            };
            return Err(DataError::NoSuchSample { index, count, hint });
        }
        let place = self.validation_order.apply(index);
        let s = self.validation_before.partition_point(|&before| before <= place) - 1;
        let window = self.sources[s].windows.validation_window(place - self.validation_before[s]);
        Ok((s, window))
    }

    fn read_window(&self, source: &Source, window: u64, out: &mut SampleMut) -> SampleInfo {
        let t = self.seq_len;
        assert_eq!(out.inputs.len(), t, "inputs must be one sample long");
        assert_eq!(out.targets.len(), t, "targets must be one sample long");
        assert_eq!(out.doc_start.len(), t, "doc_start must be one sample long");
        let start = window * t as u64;
        source.stream.read(start, out.inputs);
        out.targets[..t - 1].copy_from_slice(&out.inputs[1..]);
        source.stream.read(start + t as u64, &mut out.targets[t - 1..]);
        out.doc_start.fill(0);
        let (starts, targets) = (&mut *out.doc_start, &mut *out.targets);
        source.stream.mark_document_starts(start, out.inputs, |i| {
            // Position i begins a document: it is no target for position i - 1.
            targets[i - 1] = IGNORE;
            if i < t {
                starts[i] = i as u32;
            }
        });
        for i in 1..t {
            starts[i] = starts[i].max(starts[i - 1]);
        }
        let with_loss = || targets.iter().filter(|&&target| target != IGNORE);
        let bytes = self.token_bytes.as_ref();
        SampleInfo {
            target_tokens: with_loss().count() as u32,
            target_bytes: bytes.map(|b| with_loss().map(|&t| u64::from(b[t as usize])).sum()),
        }
    }

    /// Held-out samples in all sources.
    pub fn validation_samples(&self) -> u64 {
        self.validation_before[self.sources.len()]
    }

    /// Different training samples in all sources. With one source an epoch is this long; in a
    /// mixture each source begins its own next epoch when its windows are used up.
    pub fn train_samples_per_epoch(&self) -> u64 {
        self.sources.iter().map(|s| s.windows.train()).sum()
    }

    /// Epoch, counted from 0, that the source of training sample `index` is in.
    pub fn epoch_of(&self, index: u64) -> u64 {
        let (s, nth) = self.mixture.place(index);
        nth / self.sources[s].windows.train()
    }

    /// Digest of everything that decides the samples: contents, tokenizer, T, seed and split.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// T, the tokens of a sample.
    pub fn seq_len(&self) -> usize {
        self.seq_len
    }

    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Loads the tokenizer the tokens were made with.
    ///
    /// # Errors
    /// Its file cannot be read any more, or has changed.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let (spec, digest) = &self.tokenizer;
        load_tokenizer(spec, digest)
    }
}

fn load_tokenizer(spec: &TokenizerSpec, digest: &[u8; 32]) -> Result<Tokenizer> {
    let tokenizer = Tokenizer::load(spec)?;
    check_unchanged(Path::new(tokenizer.name()), &tokenizer.digest(), digest)?;
    Ok(tokenizer)
}

fn check_unchanged(path: &Path, found: &[u8; 32], expected: &[u8; 32]) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    let hex = |digest: &[u8; 32]| crate::digest::short(digest);
    let (found, expected) = (hex(found), hex(expected));
    Err(DataError::Changed { path: path.to_path_buf(), found, expected })
}

fn open_source(source: &PreparedSource, seq_len: usize, fraction: f64) -> Result<Source> {
    let mut parts = Vec::with_capacity(source.parts.len());
    for part in &source.parts {
        let file = TokenSource::open(&part.path)?;
        if let Some(info) = file.info() {
            check_unchanged(&part.path, &info.content_digest, &part.digest)?;
        }
        if file.tokens() != part.tokens {
            let counts = [file.tokens(), part.tokens].map(|n| format!("of {n} tokens"));
            let [found, expected] = counts;
            return Err(DataError::Changed { path: part.path.clone(), found, expected });
        }
        parts.push(file);
    }
    let stream = Stream::new(parts);
    let tokens = stream.tokens();
    let windows = Windows::new(tokens.saturating_sub(1) / seq_len as u64, fraction);
    let held_out = fraction > 0.0;
    if windows.train() == 0 {
        let wanted = if held_out { 2 } else { 1 };
        let fits = tokens.saturating_sub(1) / wanted;
        return Err(DataError::TooFewTokens {
            source_name: source.name.clone(),
            tokens,
            seq_len,
            needed: wanted * seq_len as u64 + 1,
            why: if held_out { " (one sample to train on and one to validate)" } else { "" },
            remedy: match fits {
                0 => "add text; at no sequence length are these enough".to_string(),
                _ => format!("add text or set a shorter sequence length (at most {fits})"),
            },
        });
    }
    Ok(Source { stream, windows, digest: source.digest })
}
