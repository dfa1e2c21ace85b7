//! `muster ckpt export`: a checkpoint's parameters as a published model's directory.

use std::path::PathBuf;
use std::time::Instant;

use checkpoint::Checkpoint;
use data::TokenizerSpec;
use interop::dcp::{DcpOptions, write_dcp};
use interop::hf::{self, Exported, Matrices, SafetensorsOptions, Written, write_safetensors};
use interop::{Arriving, Outgoing, States, Types};
use layout::Dtype;

use crate::cli::{ExportArgs, FileType, Library};
use crate::console::{SharedProgress, bytes, duration, plural};
use crate::error::{CliError, Exit};
use crate::limits::cores;
use crate::output::{complain, say};
use crate::run_dir::{companions, open_checkpoint};
use crate::saved_model::model_of;

/// # Errors
/// A model that the files of its family cannot tell; damaged data; a target that holds something; a
/// full disk.
pub fn export(args: &ExportArgs) -> Result<Exit, CliError> {
    if !(1e-6..=1e6).contains(&args.max_file_gb) {
        return Err(CliError::mistake(format!(
            "--max-file-gb {:e} is no size of a file; give GB from 0.000001 to 1000000, such as 5",
            args.max_file_gb
        )));
    }
    let checkpoint = open_checkpoint(&args.source)?;
    let dtype = match args.dtype {
        FileType::F32 => Dtype::F32,
        FileType::Bf16 => Dtype::Bf16,
        FileType::F16 => Dtype::F16,
    };
    let types = Types { dtype, may_round: args.cast };
    let started = Instant::now();
    let written = match args.to {
        Library::Hf if args.all_states => {
            return Err(CliError::mistake(
                "--all-states: transformers has no place for an optimizer's states; give --to dcp \
                 or --to safetensors",
            ));
        }
        Library::Hf => as_published(args, &checkpoint, types)?,
        _ if args.fp8 => {
            return Err(CliError::mistake(
                "--fp8: only a config.json tells that matrices have factors; leave out --to, or \
                 give --dtype bf16",
            ));
        }
        Library::Safetensors | Library::Dcp => as_states(args, &checkpoint, types)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    say(&format!(
        "{} exported\n  {:<10} {}\n  {:<10} {}, {} in {}, {} at {:.2} GB/s",
        checkpoint.path().display(),
        "written to",
        args.target.display(),
        "data",
        plural(written.tensors, "tensor"),
        bytes(written.bytes),
        plural(written.files, "file"),
        duration(seconds),
        written.bytes as f64 / 1e9 / seconds.max(1e-9),
    ))?;
    Ok(Exit::Ok)
}

fn options(args: &ExportArgs) -> SafetensorsOptions {
    SafetensorsOptions {
        max_file_bytes: (args.max_file_gb * 1e9) as u64,
        threads: args.threads.map_or_else(cores, usize::from),
    }
}

fn as_published(
    args: &ExportArgs,
    checkpoint: &Checkpoint,
    types: Types,
) -> Result<Written, CliError> {
    let (config, architecture) = model_of(checkpoint)?;
    let run = checkpoint.path().parent().and_then(std::path::Path::parent);
    let tokenizer = &config.data.tokenizer;
    let companions = run.map(|run| companions(run, tokenizer)).unwrap_or_default();
    if let Some(warning) = without_tokenizer(tokenizer, &companions) {
        complain(&format!("warning: {warning}"));
    }
    let window = config.batch.seq_len;
    let matrices = if args.fp8 { Matrices::Fp8 } else { Matrices::Alike };
    let model = Exported::new(checkpoint, &architecture, window, types, matrices, &companions)?;
    let progress = SharedProgress::new("exporting", model.bytes());
    Ok(hf::export(&model, &args.target, options(args), &|more| progress.more(more))?)
}

/// A tokenizer that is built in has no files to go with the model.
fn without_tokenizer(tokenizer: &TokenizerSpec, companions: &[PathBuf]) -> Option<String> {
    let (word, remedy) = match tokenizer {
        _ if companions.iter().any(|path| path.ends_with("tokenizer.json")) => return None,
        TokenizerSpec::Gpt2 => {
            ("gpt2", "copy tokenizer.json and tokenizer_config.json of openai-community/gpt2 to it")
        }
        TokenizerSpec::Byte => {
            ("byte", "its tokens are bytes, 256 ends a document: give readers ids, not text")
        }
        TokenizerSpec::File(_) | TokenizerSpec::Ids(_) => return None,
    };
    Some(format!(
        "the tokenizer `{word}` is built in, and the target gets no files of it; {remedy}"
    ))
}

fn as_states(
    args: &ExportArgs,
    checkpoint: &Checkpoint,
    types: Types,
) -> Result<Written, CliError> {
    // Integers and such stay as they are.
    let types = (args.dtype != FileType::F32).then_some(types);
    let states = States::new(checkpoint, args.all_states, types);
    let all = (0..states.len()).map(|number| states.outgoing(number));
    let all = all.collect::<Result<Vec<Outgoing>, interop::Error>>()?;
    let bytes = all.iter().map(Outgoing::bytes).sum();
    if args.to == Library::Dcp {
        let tensors = all.len();
        let options = DcpOptions { max_file_bytes: options(args).max_file_bytes };
        let files = write_dcp(&args.target, all, &options)?.files;
        return Ok(Written { tensors, files, bytes });
    }
    drop(all);
    let arriving = Arriving::new(&args.target)?;
    let progress = SharedProgress::new("exporting", bytes);
    let make = |number| states.outgoing(number);
    let done = |more| progress.more(more);
    let written = write_safetensors(&arriving, states.len(), &make, options(args), &done)?;
    arriving.finish()?;
    Ok(written)
}
