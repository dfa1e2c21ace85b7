//! `muster bench links`: every pair of ranks, as a table and files, and what is slow.

use std::time::{SystemTime, UNIX_EPOCH};

use bench::pairs::{self, Finding, Measured, Report, Told as Pairs};
use comm::BackendWord;
use device::DeviceKind;

use crate::bench_job::{self, Asked};
use crate::bench_report;
use crate::bench_task::Task;
use crate::cli::LinksArgs;
use crate::error::{CliError, Exit};
use crate::out_file;
use crate::output::{complain, say};
use crate::train_cmd::place::Place;
use crate::train_cmd::watch::Told;

/// Measures.
///
/// # Errors
/// The user's mistake; a rank that failed; with `--fail`, something that is slow.
pub fn run(args: LinksArgs) -> Result<Exit, CliError> {
    let (backend, timeout_ms) = (args.backend, args.timeout_ms);
    let devices = [DeviceKind::Cpu];
    let (hosts, within_host) = (&args.hosts, BackendWord::Tcp);
    let asked = Asked {
        hosts,
        backend,
        within_host,
        threads: 1,
        timeout_ms,
        devices: &devices,
        trace: None,
    };
    let plan = pairs::Plan { message_bytes: args.size as usize, messages: args.messages as usize };
    let task = |place: &Place, _| {
        let files = [("--json", &args.json), ("--csv", &args.csv)];
        let asked = files.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
        if place.node == 0 {
            out_file::check_all(asked)?;
        }
        Ok(Task::Pairs(plan))
    };
    let begun = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    let mut measured = None;
    let ran =
        bench_job::measure(
            &asked,
            |hosts| args.world(hosts.tasks),
            task,
            &mut |told| match told {
                Told::Rounds(done, of) => complain(&format!("{done} of {of} rounds")),
                Told::Pairs(pairs) => measured = Some(pairs),
                _ => {}
            },
        )?;
    // Host 0 shows it, and all of it or nothing.
    let Some(measured) = measured else {
        if !matches!(ran.ended, Ok(Exit::Ok)) {
            complain("the run ended early; nothing was written");
        }
        return ran.ended;
    };
    let report = report(&args, begun.map(|begun| begun.as_secs()), measured);
    let written = write(&args, &report);
    say(&report.table())?;
    written?;
    match report.findings.first() {
        Some(finding) if args.fail && matches!(ran.ended, Ok(Exit::Ok)) => {
            Err(CliError::peer(slow(finding, report.findings.len())))
        }
        // Of a rank that failed after all was measured.
        _ => ran.ended,
    }
}

fn report(args: &LinksArgs, unix_time_s: Option<u64>, measured: Measured) -> Report {
    let Measured { hosts, seats, crowds, told } = measured;
    let Pairs { edges, findings, dismissed } = told;
    Report {
        pairs: pairs::report::SCHEMA_VERSION,
        command: Some(bench_report::command()),
        unix_time_s,
        transport: args.backend.word().into(),
        message_bytes: args.size,
        hosts,
        seats,
        edges,
        findings,
        dismissed,
        crowds,
    }
}

/// To the files that were asked for; one that cannot be written keeps no other from its file.
fn write(args: &LinksArgs, report: &Report) -> Result<(), CliError> {
    let json = || match &args.json {
        Some(path) => out_file::write(path, report.to_json()?.as_bytes()),
        None => Ok(()),
    };
    let csv = || match &args.csv {
        Some(path) => out_file::write(path, report.csv().as_bytes()),
        None => Ok(()),
    };
    let written = json();
    csv().and(written)
}

fn slow(first: &Finding, count: usize) -> String {
    match count {
        1 => format!("slow: {first}"),
        count => format!("slow: {first}; and {} more", count - 1),
    }
}
