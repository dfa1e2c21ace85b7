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
//! * [`tokenize()`]: text to a token file. [`text`]: what a document is. [`kind`]: what a file is,
//!   and which are refused. [`input`]: files, pipes and what is neither. [`corpus`]: crates as
//!   text.
//! * [`describe()`]: what is in a token file. [`order2_bits_per_byte`]: a model to beat.
//! * [`order`]: permutations, mixtures and the split.

mod byte_alphabet;
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
pub mod input;
mod json_line;
pub mod kind;
mod map;
mod ngram;
mod open_text;
pub mod order;
#[cfg(feature = "parquet")]
mod parquet_text;
mod prepare;
mod signature;
pub mod source;
mod temporary;
pub mod text;
mod token_bytes;
pub mod token_file;
mod token_writer;
mod tokenize;
mod tokenizer;
mod twin;
mod unknown;
mod unpack;

pub use config::{DataConfig, MixtureEntry, OneOrMany, TokenizerSpec};
pub use dataset::{Dataset, SampleInfo, SampleMut, Split};
pub use describe::{Description, describe};
pub use error::{DataError, Result, left_out};
pub use kind::TextKind;
pub use ngram::{Order2, order2_bits_per_byte, order2_bits_per_byte_of};
pub use open_text::Form;
pub use prepare::{Prepared, PreparedPart, PreparedSource, Progress, Stage, prepare};
pub use source::IGNORE;
pub use text::TextInput;
pub use tokenize::{TokenizeOptions, TokenizeProgress, TokenizeReport, tokenize};
pub use tokenizer::Tokenizer;
pub use unknown::Lost;
