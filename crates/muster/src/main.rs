//! `muster`: configs, progress and reports around the training crates.
//!
//! Commands decide nothing that the library crates could: they read what was typed, call, and
//! render what comes back. Every failure ends in `CliError`, whose exit code says whose fault it
//! is.

mod bench_arguments;
mod bench_cmd;
mod bench_compare_cmd;
mod bench_folder;
mod bench_job;
mod bench_report;
mod bench_task;
mod ckpt_cmd;
mod cli;
mod collectives_cmd;
mod config;
mod config_cmd;
mod console;
mod cpus;
mod data_cmd;
mod entries;
mod error;
mod events;
mod exhausted;
mod export_cmd;
mod import_cmd;
mod key_file;
mod launch_env;
mod limits;
mod links_cmd;
mod links_file;
mod method;
mod orthogonalize_cmd;
mod out_file;
mod output;
mod panic;
mod plot;
mod reshape_cmd;
mod run_dir;
mod saved_model;
mod secret;
mod tls;
mod trace;
mod train_cmd;

use std::process::ExitCode;

use clap::Parser;

use crate::cli::{Cli, Command};
use crate::error::{CliError, Exit};

/// The versions of every dependency this program was built with; `data.crates` reads from them.
pub const CARGO_LOCK: &str = include_str!("../../../Cargo.lock");

#[global_allocator]
static ALLOCATOR: exhausted::Noting = exhausted::Noting;

fn main() -> ExitCode {
    panic::install_hook();
    exhausted::survive_limits();
    match limits::check_stack().and_then(|()| obey()) {
        Ok(exit) => exit.into(),
        Err(mut error) => {
            error.tell();
            error.exit.into()
        }
    }
}

/// Does what was typed; not inlined, since it needs much of the stack that is checked before.
#[inline(never)]
fn obey() -> Result<Exit, CliError> {
    match Cli::try_parse() {
        Ok(cli) => run(cli.command),
        Err(instead) => output::show_clap(&instead),
    }
}

fn run(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Train(args) => train_cmd::train(args),
        Command::Generate(args) => train_cmd::generate(args),
        Command::Worker(args) => train_cmd::worker(args),
        Command::BenchWorker(args) => bench_job::worker(args),
        Command::Data(command) => data_cmd::run(command),
        Command::Config(command) => config_cmd::run(command),
        Command::Ckpt(command) => ckpt_cmd::run(command),
        Command::Trace(command) => trace::run(command),
        Command::Bench(command) => bench_cmd::run(command),
        Command::Orthogonalize(args) => orthogonalize_cmd::run(args),
    }
}
