//! Tokens with document boundaries, whatever file they lie in, and several files as one stream.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result};
use crate::foreign::{Element, Headered, Megatron};
use crate::map::Map;
use crate::token_file::{MAGIC, TokenFile, TokenFileInfo};
use crate::tokenizer::Tokenizer;

/// Target without a loss: the token after it belongs to another document.
pub const IGNORE: u32 = u32::MAX;

/// A token file of any kind.
pub struct TokenSource {
    path: PathBuf,
    file: Kind,
    element: Element,
    tokens: u64,
}

enum Kind {
    Native(TokenFile),
    Megatron(Megatron),
    Headered(Headered),
}

/// The result of a full read of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    pub documents: u64,
    /// `None` if there are no tokens.
    pub largest_token: Option<u32>,
    /// Bytes of text, where the tokenizer knows the bytes of every token.
    pub text_bytes: Option<u64>,
    /// BLAKE3 of the tokens as u32 and the document starts: the same for every kind of file.
    pub digest: [u8; 32],
}

/// Whether the name says that the file holds tokens rather than text.
pub fn is_token_file(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["tok", "bin", "idx"].iter().any(|e| extension.eq_ignore_ascii_case(e))
}

impl TokenSource {
    /// Opens a `.tok` file, a Megatron pair (by either name) or a `.bin` with a 256-integer header.
    pub fn open(path: &Path) -> Result<Self> {
        let is_index = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("idx"));
        let map = Map::open(path)?;
        let (file, element, tokens) = if map.starts_with(MAGIC) {
            drop(map);
            let file = TokenFile::open(path)?;
            let element = if file.info().token_bytes == 2 { Element::U16 } else { Element::U32 };
            let tokens = file.info().tokens;
            (Kind::Native(file), element, tokens)
        } else if is_index || Megatron::index_path(path).is_file() {
            drop(map);
            let file = Megatron::open(path)?;
            let (element, tokens) = (file.element, file.tokens);
            (Kind::Megatron(file), element, tokens)
        } else if Headered::matches(&map) {
            let file = Headered::open(path, map)?;
            let (element, tokens) = (file.element, file.tokens);
            (Kind::Headered(file), element, tokens)
        } else {
            return Err(unknown_format(path, &map));
        };
        Ok(Self { path: path.to_path_buf(), file, element, tokens })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// How a token lies in the file.
    pub fn element(&self) -> Element {
        self.element
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `tok`, `megatron` or `256-int header`.
    pub fn kind(&self) -> &'static str {
        match self.file {
            Kind::Native(_) => "tok",
            Kind::Megatron(_) => "megatron",
            Kind::Headered(_) => "256-int header",
        }
    }

    /// The header, for our own kind.
    pub fn info(&self) -> Option<&TokenFileInfo> {
        match &self.file {
            Kind::Native(file) => Some(file.info()),
            _ => None,
        }
    }

    /// Checks every checksum that the kind of file has.
    pub fn verify(&self) -> Result<()> {
        match &self.file {
            Kind::Native(file) => file.verify(),
            Kind::Megatron(_) | Kind::Headered(_) => Ok(()),
        }
    }

    fn data(&self) -> &[u8] {
        match &self.file {
            Kind::Native(file) => file.token_data(),
            Kind::Megatron(file) => &file.data,
            Kind::Headered(file) => &file.map[Headered::DATA..],
        }
    }

    /// Fills `out` with the tokens from `start` on; the range must lie inside the file. Values that
    /// do not fit become `u32::MAX`, which no vocabulary reaches.
    pub fn read(&self, start: u64, out: &mut [u32]) {
        let width = self.element.bytes();
        let data = &self.data()[start as usize * width..][..out.len() * width];
        fn fill<const N: usize>(out: &mut [u32], data: &[u8], get: impl Fn([u8; N]) -> u32) {
            let (elements, _) = data.as_chunks::<N>();
            for (token, &bytes) in out.iter_mut().zip(elements) {
                *token = get(bytes);
            }
        }
        match self.element {
            Element::U8 => fill(out, data, |[b]| u32::from(b)),
            Element::U16 => fill(out, data, |b| u32::from(u16::from_le_bytes(b))),
            Element::U32 => fill(out, data, u32::from_le_bytes),
            Element::I16 => {
                fill(out, data, |b| u32::try_from(i16::from_le_bytes(b)).unwrap_or(u32::MAX))
            }
            Element::I32 => {
                fill(out, data, |b| u32::try_from(i32::from_le_bytes(b)).unwrap_or(u32::MAX))
            }
            Element::I64 => {
                fill(out, data, |b| u32::try_from(i64::from_le_bytes(b)).unwrap_or(u32::MAX))
            }
        }
    }

    /// Calls `mark(i)`, ascending, for every i in 1..=n for which the token at `start + i` is the
    /// first of a document; `window` holds the n tokens from `start` on.
    pub(crate) fn mark_document_starts(
        &self,
        start: u64,
        window: &[u32],
        mark: &mut impl FnMut(usize),
    ) {
        let end = (start + window.len() as u64).min(self.tokens.saturating_sub(1));
        let mut from_table = |documents: u64, begin: &dyn Fn(u64) -> u64| {
            let mut d = first_after(documents, begin, start);
            while d < documents && begin(d) <= end {
                // Empty documents share their start with the next one.
                if d + 1 == documents || begin(d + 1) > begin(d) {
                    mark((begin(d) - start) as usize);
                }
                d += 1;
            }
        };
        match &self.file {
            Kind::Native(file) => from_table(file.info().documents, &|d| file.document_start(d)),
            Kind::Megatron(file) => from_table(file.documents, &|d| file.document_start(d)),
            Kind::Headered(file) => {
                let within = (end - start) as usize;
                for (i, _) in window[..within].iter().enumerate().filter(|t| *t.1 == file.separator)
                {
                    mark(i + 1);
                }
            }
        }
    }

    /// Reads all tokens once: finds the first that the tokenizer does not have, counts documents
    /// and bytes, and digests the content.
    pub fn scan(&self, tokenizer: &Tokenizer, progress: &mut dyn FnMut(u64)) -> Result<Scan> {
        let vocab_size = tokenizer.vocab_size() as u32;
        let lengths: Option<Vec<u32>> =
            (0..vocab_size).map(|id| tokenizer.token_bytes(id)).collect();
        let mut hasher = blake3::Hasher::new();
        let mut starts = blake3::Hasher::new();
        let mut documents = u64::from(self.tokens > 0);
        let mut text_bytes = 0u64;
        let mut largest_token = None;
        let mut chunk = vec![0u32; 1 << 16];
        let mut encoded = vec![[0u8; 4]; chunk.len()];
        let mut at = 0u64;
        while at < self.tokens {
            let take = (chunk.len() as u64).min(self.tokens - at);
            let window = &mut chunk[..take as usize];
            self.read(at, window);
            if let Some(i) = window.iter().position(|&t| t >= vocab_size) {
                if window[i] == IGNORE {
                    return Err(DataError::NoToken {
                        path: self.path.clone(),
                        index: at + i as u64,
                    });
                }
                return Err(DataError::TokenOutOfRange {
                    path: self.path.clone(),
                    token: u64::from(window[i]),
                    index: at + i as u64,
                    tokenizer: tokenizer.name().to_string(),
                    vocab_size,
                });
            }
            largest_token = largest_token.max(window.iter().max().copied());
            if let Some(lengths) = &lengths {
                text_bytes += window.iter().map(|&t| u64::from(lengths[t as usize])).sum::<u64>();
            }
            for (bytes, token) in encoded.iter_mut().zip(window.iter()) {
                *bytes = token.to_le_bytes();
            }
            hasher.update(encoded[..window.len()].as_flattened());
            self.mark_document_starts(at, window, &mut |i| {
                documents += 1;
                starts.update(&(at + i as u64).to_le_bytes());
            });
            at += take;
            progress(at);
        }
        hasher.update(starts.finalize().as_bytes());
        let text_bytes = lengths.map(|_| text_bytes);
        let digest = *hasher.finalize().as_bytes();
        Ok(Scan { documents, largest_token, text_bytes, digest })
    }
}

/// The first document that begins after `position`.
fn first_after(documents: u64, begin: &dyn Fn(u64) -> u64, position: u64) -> u64 {
    let (mut low, mut high) = (0, documents);
    while low < high {
        let middle = low + (high - low) / 2;
        if begin(middle) <= position {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn unknown_format(path: &Path, content: &[u8]) -> DataError {
    let start: Vec<String> = content.iter().take(8).map(|b| format!("{b:02x}")).collect();
    let reason = format!(
        "it begins with `{}`; known are .tok (4d 55 53 54 52 54 4f 4b), .bin with a 256-integer \
         header (e8 d8 34 01, or a1 d9 34 01) and Megatron .bin with an .idx beside it; text files \
         need another extension",
        start.join(" ")
    );
    DataError::UnknownFormat { path: path.to_path_buf(), reason }
}

/// Several token files, one after the other, as one sequence of tokens.
pub struct Stream {
    parts: Vec<TokenSource>,
    /// Position of each part's first token in the stream, and the end.
    starts: Vec<u64>,
}

impl Stream {
    /// The parts in the order given.
    pub fn new(parts: Vec<TokenSource>) -> Self {
        let mut starts = vec![0];
        for part in &parts {
            starts.push(starts[starts.len() - 1] + part.tokens());
        }
        Self { parts, starts }
    }

    /// Number of tokens in all parts.
    pub fn tokens(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Fills `window` with the tokens from `start` on; the range must lie inside the stream.
    pub fn read(&self, start: u64, window: &mut [u32]) {
        let mut done = 0;
        for (part, at, here) in self.pieces(start, window.len()) {
            self.parts[part].read(at, &mut window[done..done + here]);
            done += here;
        }
    }

    /// Calls `mark(i)`, ascending, for every i in 1..=n for which the token at `start + i` begins a
    /// document; `window` holds the n tokens from `start` on. A part always begins a document.
    pub(crate) fn mark_document_starts(
        &self,
        start: u64,
        window: &[u32],
        mut mark: impl FnMut(usize),
    ) {
        let mut done = 0;
        for (part, at, here) in self.pieces(start, window.len()) {
            let slice = &window[done..done + here];
            self.parts[part].mark_document_starts(at, slice, &mut |i| mark(done + i));
            done += here;
            if at + here as u64 == self.parts[part].tokens()
                && start + (done as u64) < self.tokens()
            {
                mark(done);
            }
        }
    }

    /// (part, first token in it, number of tokens) for `len` tokens from `start` on; none is empty.
    fn pieces(&self, start: u64, len: usize) -> impl Iterator<Item = (usize, u64, usize)> {
        let end = start + len as u64;
        let first = self.starts.partition_point(|&s| s <= start) - 1;
        (first..self.parts.len())
            .map_while(move |part| {
                let from = start.max(self.starts[part]);
                let to = end.min(self.starts[part + 1]);
                (from < end)
                    .then(|| (part, from - self.starts[part], to.saturating_sub(from) as usize))
            })
            .filter(|(_, _, here)| *here > 0)
    }
}
