//! `muster data tokenize|show`.

use std::path::{Path, PathBuf};

use data::input::Input;
use data::{TextInput, TokenizeOptions, TokenizeReport, Tokenizer, TokenizerSpec, tokenize};

use crate::cli::{DataCommand, TokenizeArgs};
use crate::config::{nearest, neighbour};
use crate::console::{ByteProgress, bytes, count, duration, plural, short};
use crate::error::{CliError, Exit};
use crate::out_file;
use crate::output::say;

pub fn run(command: DataCommand) -> Result<Exit, CliError> {
    match command {
        DataCommand::Tokenize(args) => run_tokenize(args),
        DataCommand::Show { file } => {
            say(&data::describe(&file)?.to_string())?;
            Ok(Exit::Ok)
        }
    }
}

fn run_tokenize(args: TokenizeArgs) -> Result<Exit, CliError> {
    let (out, inputs) = split_paths(&args.paths)?;
    let tokenizer = Tokenizer::load(&tokenizer_spec(&args.tokenizer)?)?;
    // A link is followed here: the token file takes its place under the name it is given.
    let place = out_file::regular(out)?;
    let inputs: Vec<TextInput> = inputs.iter().map(TextInput::new).collect();
    let options = TokenizeOptions {
        threads: args.threads,
        jsonl_field: args.field,
        ..TokenizeOptions::default()
    };
    for TextInput { path } in &inputs {
        if data::input::look(path).is_ok_and(|input| input == Input::Pipe) {
            let path = path.display();
            crate::output::complain(&format!("reading the pipe {path} until its end"));
        }
    }
    let mut progress = ByteProgress::new("tokenizing");
    let report = tokenize(&inputs, &tokenizer, &place, &options, &mut |at| {
        progress.update(at.done_bytes, at.total_bytes);
    })?;
    drop(progress);
    say(&summary(out, &tokenizer, &report))?;
    Ok(Exit::Ok)
}

/// The output is the last path, and is no text file that was meant to be read.
fn split_paths(paths: &[PathBuf]) -> Result<(&Path, &[PathBuf]), CliError> {
    let Some((out, inputs)) = paths.split_last().filter(|(_, inputs)| !inputs.is_empty()) else {
        return Err(CliError::mistake("give text files, and at the end the token file to write"));
    };
    if out.extension().is_none_or(|extension| extension != "tok") {
        let named = out.with_extension("tok");
        return Err(CliError::mistake(format!(
            "{} would be overwritten: the last path is the token file to write and ends in \
             `.tok`; add one, such as {}",
            out.display(),
            named.display()
        )));
    }
    Ok((out, inputs))
}

fn tokenizer_spec(word: &str) -> Result<TokenizerSpec, CliError> {
    match word {
        "byte" => Ok(TokenizerSpec::Byte),
        "gpt2" => Ok(TokenizerSpec::Gpt2),
        path if path.ends_with(".json") => match neighbour(Path::new(path)) {
            Some(near) if !Path::new(path).exists() => Err(CliError::mistake(format!(
                "--tokenizer {path}: there is no such file; did you mean {}?",
                near.display()
            ))),
            _ => Ok(TokenizerSpec::File(path.into())),
        },
        _ => {
            let near = nearest(word, ["byte", "gpt2"]);
            let near = near.map(|near| format!("did you mean `{near}`? ")).unwrap_or_default();
            Err(CliError::mistake(format!(
                "--tokenizer {word}: unknown tokenizer; {near}There are `byte`, `gpt2` and the \
                 path of a Hugging Face tokenizer.json"
            )))
        }
    }
}

fn summary(out: &Path, tokenizer: &Tokenizer, report: &TokenizeReport) -> String {
    let rate = report.bytes as f64 / 1e6 / report.seconds.max(1e-9);
    let ratio = report.bytes as f64 / report.tokens.max(1) as f64;
    let left_out = data::left_out(report.empty_documents, report.blank_lines);
    let left_out = left_out.map(|what| format!("; {what} left out")).unwrap_or_default();
    format!(
        "{}: {} tokens ({}) from {} in {}, {ratio:.3} bytes per token\n\
         {} at {rate:.1} MB/s; digest {}{left_out}\n\
         train on it with --set data.files={}{}",
        out.display(),
        count(report.tokens),
        tokenizer.name(),
        bytes(report.bytes),
        plural(report.documents as usize, "document"),
        duration(report.seconds),
        short(&hex(&report.content_digest)),
        out.display(),
        match tokenizer.name() {
            "byte" => "",
            _ => " and data.tokenizer as here",
        },
    )
}

fn hex(digest: &[u8; 32]) -> String {
    data::digest::hex(digest)
}
