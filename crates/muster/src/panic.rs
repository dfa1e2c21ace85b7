//! The last resort: a panic is a bug in Muster, and is called that; unless a library panicked
//! because a limit of the machine was met.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

use crate::console;
use crate::error::Exit;
use crate::limits;
use crate::output::complain;

/// From now on a panic in any thread ends the process, the terminal usable: with exit code 70 and
/// a message that says what to report, or 3 and the limit that was met.
pub fn install_hook() {
    std::panic::set_hook(Box::new(|info| {
        console::restore_terminal();
        let what = info.payload_as_str().unwrap_or("an unknown panic");
        if let Some(met) = limits::met_in(what) {
            complain(&format!("error: {met}\nCheckpoints that were saved are intact."));
            std::process::exit(Exit::Peer.code().into());
        }
        complain(&message(what, info, &Backtrace::capture()));
        std::process::exit(Exit::Bug.code().into());
    }));
}

fn message(what: &str, info: &PanicHookInfo, backtrace: &Backtrace) -> String {
    let place = info.location().map_or_else(String::new, |place| format!(" ({place})"));
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("unnamed");
    // Names of files may be any bytes.
    let command = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    let command: Vec<String> = command.collect();
    let trace = match backtrace.status() {
        BacktraceStatus::Captured => format!("\n{backtrace}"),
        _ => "\n(set RUST_BACKTRACE=1 to see where it came from)".into(),
    };
    format!(
        "error: this is a bug in Muster: {what}{place}, thread {thread}\n\
         Checkpoints that were saved are intact.\n\
         Please report it with these lines, config.yaml and events.jsonl of the run:\n  \
         muster {}, {} {}\n  {}{trace}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        command.join(" "),
    )
}
