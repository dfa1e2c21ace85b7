//! Tokenizers, token files, corpora and the global sample order.
//!
//! ```text
//! config ─ prepare (once per host) ─▶ token files + Prepared ─ Dataset::open (each rank) ─▶ sample
//!            │ text: tokenize, cached by digest         a pure function of (seed, index, contents)
//!            └ token files: checked, read once
//! ```
//! Pure host code: nothing here knows of devices, ranks or training state. Whoever reads sample
//! `g`, at whatever time, gets the same tokens.
//!
//! * [`config`]: what a person writes. [`prepare()`]: from there to files. [`Dataset`]: samples.
//! * [`Tokenizer`]: bytes, GPT-2, or any `tokenizer.json`. [`cut`]: where a long text may be
//!   divided.
//! * [`token_file`]: the `.tok` format. [`foreign`]: Megatron and 256-integer headers. [`source`]:
//!   all of them behind one type.
//! * [`tokenize()`]: text to a token file. [`text`]: what a document is. [`corpus`]: crates as
//!   text.
//! * [`describe()`]: what is in a token file. [`order2_bits_per_byte`]: a model to beat.
//! * [`order`]: permutations, mixtures and the split.

pub mod config;
pub mod corpus;
pub mod cut;
mod dataset;
mod describe;
pub mod digest;
mod error;
pub mod foreign;
mod gpt2;
mod huggingface;
mod json_line;
mod map;
mod ngram;
pub mod order;
#[cfg(feature = "parquet")]
mod parquet_text;
mod prepare;
pub mod source;
mod temporary;
pub mod text;
pub mod token_file;
mod token_writer;
mod tokenize;
mod tokenizer;
mod twin;
mod unknown;

pub use config::{DataConfig, MixtureEntry, OneOrMany, TokenizerSpec};
pub use dataset::{Dataset, IGNORE, SampleInfo, SampleMut, Split};
pub use describe::{Description, describe};
pub use error::{DataError, Result, left_out};
pub use ngram::{Order2, order2_bits_per_byte, order2_bits_per_byte_of};
pub use prepare::{Prepared, PreparedPart, PreparedSource, Progress, Stage, prepare};
pub use text::{TextInput, TextKind};
pub use token_writer::TokenWriter;
pub use tokenize::{TokenizeOptions, TokenizeProgress, TokenizeReport, tokenize};
pub use tokenizer::Tokenizer;
pub use unknown::Lost;
