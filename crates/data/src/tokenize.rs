//! Text files to one token file: parallel, streaming, in bounded memory.
//!
//! ```text
//!  reader ──blocks of ~1 MiB──▶ workers (any number) ──tokens──▶ writer, in the order read
//!     ▲                                                             │
//!     └──────────── budget: bytes read but not yet written ◀────────┘
//! ```
//! Blocks are cut at document ends, or inside a long document where it does not change its tokens
//! (see [`crate::cut`]). How documents are cut depends on nothing but their bytes and the
//! tokenizer, and the writer takes blocks in order: the file is the same for any number of threads
//! and any memory limit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::error::{DataError, Result};
use crate::json_line;
use crate::text::{Block, BlockReader, TextInput};
use crate::token_writer::TokenWriter;
use crate::tokenizer::Tokenizer;

/// How to tokenize; `Default` is right for most.
#[derive(Debug, Clone)]
pub struct TokenizeOptions {
    /// Tokenizing threads; 0: one per core.
    pub threads: usize,
    /// Limit of the memory for text and tokens in flight, in bytes. A block larger than it is still
    /// done, alone.
    pub max_memory_bytes: usize,
    /// Field of `.jsonl` objects (and column of parquet files) that holds the text.
    pub jsonl_field: String,
    /// Recorded in the file, to know it again; zeros: unknown.
    pub source_digest: [u8; 32],
}

impl Default for TokenizeOptions {
    fn default() -> Self {
        Self {
            threads: 0,
            max_memory_bytes: 256 << 20,
            jsonl_field: "text".into(),
            source_digest: [0; 32],
        }
    }
}

/// The counts of a tokenization.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizeReport {
    /// Bytes of text in documents (without JSON around them).
    pub bytes: u64,
    /// Tokens written, end-of-text tokens included.
    pub tokens: u64,
    pub documents: u64,
    /// Documents without a token, and lines without a document: left out.
    pub empty_documents: u64,
    pub blank_lines: u64,
    pub seconds: f64,
    pub content_digest: [u8; 32],
}

/// How far tokenizing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenizeProgress {
    /// Bytes of the input files done, compressed as they lie there, of [`Self::total_bytes`].
    pub done_bytes: u64,
    /// `None` where a pipe is among them.
    pub total_bytes: Option<u64>,
    pub tokens: u64,
}

/// Bytes of memory for each byte of text in flight: the text, tokens of 4 bytes, and room they grow
/// in.
const MEMORY_FACTOR: usize = 8;

/// Tokenizes `inputs`, in order, into one `.tok` file at `out`, which appears only when it is
/// complete. Inputs without any token are an error.
pub fn tokenize(
    inputs: &[TextInput],
    tokenizer: &Tokenizer,
    out: &Path,
    options: &TokenizeOptions,
    progress: &mut dyn FnMut(TokenizeProgress),
) -> Result<TokenizeReport> {
    let started = Instant::now();
    let sizes = inputs.iter().map(TextInput::check).collect::<Result<Vec<_>>>()?;
    let total_bytes = sizes.into_iter().sum::<Option<u64>>();
    let mut writer = TokenWriter::create(out, tokenizer, options.source_digest)?;
    let threads = match options.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let budget = Budget::new(options.max_memory_bytes / MEMORY_FACTOR);
    let (block_sender, block_receiver) = channel::<(u64, Block)>();
    let block_receiver = Mutex::new(block_receiver);
    let (done_sender, done_receiver) = channel();
    let written = std::thread::scope(|scope| {
        let (budget, block_receiver) = (&budget, &block_receiver);
        let reader = thread(scope, move || {
            let mut number = 0;
            let give = |block: Block| {
                let wanted = budget.take(block.text_bytes());
                let sent = wanted && block_sender.send((number, block)).is_ok();
                number += 1;
                sent
            };
            BlockReader::new(tokenizer.cut(), &options.jsonl_field, give).read_all(inputs)
        })?;
        for _ in 0..threads {
            let done_sender = done_sender.clone();
            let field = &options.jsonl_field;
            let worker = move || work(block_receiver, tokenizer, field, &done_sender);
            // The reader stops, and with it the workers that there are.
            thread(scope, worker).inspect_err(|_| budget.close())?;
        }
        drop(done_sender);
        let written = write(&mut writer, done_receiver, budget, total_bytes, progress);
        budget.close();
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // An error in an earlier block comes before one that the reader met later.
        written.and_then(|left_out| read.map(|()| left_out))
    });
    let LeftOut { empty_documents, blank_lines } = written?;
    if writer.tokens() == 0 {
        let path = inputs.first().map(|input| input.path.clone()).unwrap_or_default();
        return Err(DataError::NoText { path, empty_documents, blank_lines });
    }
    let info = writer.finish()?;
    Ok(TokenizeReport {
        bytes: info.text_bytes.unwrap_or(0),
        tokens: info.tokens,
        documents: info.documents,
        empty_documents,
        blank_lines,
        seconds: started.elapsed().as_secs_f64(),
        content_digest: info.content_digest,
    })
}

/// Starts a thread; the system may have none to spare.
fn thread<'scope, T: Send + 'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<std::thread::ScopedJoinHandle<'scope, T>> {
    let started = std::thread::Builder::new().spawn_scoped(scope, work);
    started.map_err(|source| DataError::Thread { source })
}

/// Bytes of text that may still be read ahead.
struct Budget {
    state: Mutex<BudgetState>,
    changed: Condvar,
    limit: usize,
}

struct BudgetState {
    in_flight: usize,
    closed: bool,
}

impl Budget {
    fn new(limit: usize) -> Self {
        let state = Mutex::new(BudgetState { in_flight: 0, closed: false });
        Self { state, changed: Condvar::new(), limit }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BudgetState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits for room; false once nothing more is wanted.
    fn take(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        while !state.closed && state.in_flight > 0 && state.in_flight + bytes > self.limit {
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.in_flight += bytes;
        !state.closed
    }

    fn give_back(&self, bytes: usize) {
        self.lock().in_flight -= bytes;
        self.changed.notify_all();
    }

    fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A tokenized block.
#[derive(Default)]
struct Done {
    tokens: Vec<u32>,
    /// Numbers of tokens after which a document ends.
    document_ends: Vec<usize>,
    /// Bytes of text in it, and bytes of the block they were read from.
    text_bytes: u64,
    block_bytes: usize,
    /// Bytes of the input files that were read for it.
    read_bytes: u64,
    blank_lines: u64,
}

/// Documents and lines that were left out.
#[derive(Default)]
struct LeftOut {
    empty_documents: u64,
    blank_lines: u64,
}

type Numbered = (u64, Result<Done>);

fn work(
    blocks: &Mutex<Receiver<(u64, Block)>>,
    tokenizer: &Tokenizer,
    field: &str,
    done: &Sender<Numbered>,
) {
    loop {
        let next = blocks.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok((number, block)) = next else { return };
        // A panic in an encoder must not leave the writer waiting for this block.
        let encode = std::panic::AssertUnwindSafe(|| encode_block(&block, tokenizer, field));
        let result = std::panic::catch_unwind(encode).unwrap_or_else(|_| {
            let reason = format!("the tokenizer `{}` failed on its text", tokenizer.name());
            Err(DataError::Encode { path: block.path().to_path_buf(), reason })
        });
        if done.send((number, result)).is_err() {
            return;
        }
    }
}

fn encode_block(block: &Block, tokenizer: &Tokenizer, field: &str) -> Result<Done> {
    let (block_bytes, read_bytes) = (block.text_bytes(), block.read_bytes());
    let mut done = Done { block_bytes, read_bytes, ..Done::default() };
    match block {
        Block::Pieces { path, text, pieces, .. } => {
            let mut start = 0;
            for piece in pieces {
                let bytes = &text[start..piece.end];
                tokenizer
                    .encode_piece(bytes, piece.starts_document, &mut done.tokens)
                    .map_err(|error| error.in_text(path.display()))?;
                if piece.ends_document {
                    done.document_ends.push(done.tokens.len());
                }
                start = piece.end;
            }
            done.text_bytes = text.len() as u64;
        }
        Block::Lines { path, first_line, text, .. } => {
            let newlines = memchr::memchr_iter(b'\n', text).count() as u64;
            for (line, number) in text.split(|&b| b == b'\n').zip(*first_line..) {
                if line.iter().all(u8::is_ascii_whitespace) {
                    // The rest behind the last line's end is no line.
                    done.blank_lines += u64::from(first_line + newlines > number);
                    continue;
                }
                let document = json_line::text_of(line, field).map_err(|reason| {
                    DataError::Line { path: path.to_path_buf(), line: number, reason }
                })?;
                tokenizer
                    .encode(document.as_bytes(), &mut done.tokens)
                    .map_err(|error| error.in_text(format!("{}:{number}", path.display())))?;
                done.document_ends.push(done.tokens.len());
                done.text_bytes += document.len() as u64;
            }
        }
    }
    Ok(done)
}

/// Writes blocks in the order they were read, until there are no more.
fn write(
    writer: &mut TokenWriter,
    done: Receiver<Numbered>,
    budget: &Budget,
    total_bytes: Option<u64>,
    progress: &mut dyn FnMut(TokenizeProgress),
) -> Result<LeftOut> {
    let mut left_out = LeftOut::default();
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    let mut done_bytes = 0;
    for (number, result) in done {
        waiting.insert(number, result);
        while let Some(result) = waiting.remove(&next) {
            let block = result?;
            let mut start = 0;
            for &end in &block.document_ends {
                writer.push(&block.tokens[start..end])?;
                left_out.empty_documents += u64::from(!writer.end_document()?);
                start = end;
            }
            writer.push(&block.tokens[start..])?;
            writer.add_text_bytes(block.text_bytes);
            left_out.blank_lines += block.blank_lines;
            budget.give_back(block.block_bytes);
            done_bytes += block.read_bytes;
            let tokens = writer.tokens();
            progress(TokenizeProgress { done_bytes, total_bytes, tokens });
            next += 1;
        }
    }
    Ok(left_out)
}
