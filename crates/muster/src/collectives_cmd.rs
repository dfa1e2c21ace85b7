//! `muster bench collectives`: what the ranks measure, as a table and files.
//!
//! ```text
//! bench_job: ranks ─▶ rows of rank 0 ─▶ progress ─▶ table, JSON, CSV, SVG
//! ```

use std::time::{SystemTime, UNIX_EPOCH};

use bench::BenchError;
use bench::collectives::run::Plan;
use bench::collectives::{Host, Report, Row, Tool, environment, plausible, plot, table};
use device::DeviceKind;

use crate::bench_cmd::{self, Form};
use crate::bench_job::{self, Asked, Ran, Task};
use crate::cli::CollectivesArgs;
use crate::error::{CliError, Exit};
use crate::output::{complain, say};
use crate::train_cmd::place::Place;
use crate::train_cmd::room;
use crate::train_cmd::watch::Told;

/// Measures.
///
/// # Errors
/// The user's mistake, or a rank that failed.
pub fn run(args: &CollectivesArgs) -> Result<Exit, CliError> {
    let &CollectivesArgs { backend, within_host, threads, timeout_ms, .. } = args;
    let (hosts, devices) = (&args.hosts, &args.device);
    let asked = Asked { hosts, backend, within_host, threads, timeout_ms, devices };
    let mut report = begin(args);
    let rows = std::cell::Cell::new(0);
    let task = |place: &Place, world| {
        let plan = plan(args, place, world)?;
        rows.set(plan.rows()?);
        Ok(Task::Collectives(plan))
    };
    let ran =
        bench_job::measure(
            &asked,
            |hosts| args.world(hosts.tasks),
            task,
            &mut |told| match told {
                Told::Measured(row) => {
                    report.rows.push(row);
                    progress(&report.rows, rows.get());
                }
                Told::Route(used) => {
                    complain(&format!("over {}", used.text));
                    report.transport = Some(used.transport);
                    report.libraries.extend(used.library);
                }
                _ => {}
            },
        )?;
    if ran.place.node > 0 {
        return Ok(ran.exit);
    }
    report.hosts = vec![host(args, &ran)];
    (report.ranks, report.threads) = (Some(ran.world), Some(ran.threads));
    report.complete = report.rows.len() == rows.get();
    finish(args, &report)
}

fn plan(args: &CollectivesArgs, place: &Place, world: usize) -> Result<Plan, CliError> {
    let plan = args.plan(world, place.nodes)?;
    if plan.rows()? == 0 {
        let (max, least) = (plan.sweep.to_bytes, 8 * world);
        return Err(CliError::mistake(format!(
            "--max {max}: less than an element for each rank; use {least} or more"
        )));
    }
    if args.device.iter().any(|kind| !matches!(kind, DeviceKind::Cuda(_) | DeviceKind::Hip(_))) {
        check_memory(&plan, place.of_machine().ranks)?;
    }
    Ok(plan)
}

/// Whether this host has room for the buffers of its ranks.
fn check_memory(plan: &Plan, ranks: usize) -> Result<(), CliError> {
    let limits = room::limits();
    let needed = plan.buffer_bytes().saturating_mul(ranks as u64);
    let Some(limit) = limits.iter().filter(|limit| !limit.is_per_rank).min_by_key(|l| l.bytes)
    else {
        return Ok(());
    };
    // Some is in use already.
    let room = limit.bytes / 10 * 9;
    if needed <= room {
        return Ok(());
    }
    let most = (room / (2 * ranks as u64)).checked_ilog2().map_or(1, |log| 1_u64 << log);
    let bytes = crate::console::bytes;
    Err(CliError::mistake(format!(
        "--max {}: two buffers for each of {} need {}, of {} {}; use --max {} at most, or fewer \
         --ranks",
        bytes(plan.sweep.to_bytes),
        crate::console::plural(ranks, "rank"),
        bytes(needed),
        bytes(limit.bytes),
        limit.what,
        most,
    )))
}

/// A report without rows, and without what is known of the ranks once they are started.
fn begin(args: &CollectivesArgs) -> Report {
    let mut report = Report::new(Tool {
        name: "muster".into(),
        version: Some(env!("CARGO_PKG_VERSION").into()),
        commit: Some(train::BUILD.into()),
    });
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok();
    report.unix_time_s = now.map(|now| now.as_secs());
    report.command = Some(bench_cmd::command());
    report.transport = Some(args.backend_word().to_owned());
    report.environment = environment::allowed(variables());
    report
}

/// This host and its ranks.
fn host(args: &CollectivesArgs, ran: &Ran) -> Host {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let ranks: Vec<usize> = ran.place.ranks.clone().collect();
    // Dealt to the ranks in turn.
    let named = |turn: usize| match args.device.get(turn % args.device.len().max(1)) {
        Some(kind) if !kind.is_host() => kind.to_string(),
        _ => kernels::gemm::arithmetic(),
    };
    let devices = (0..ranks.len()).map(named).collect();
    Host { name: name.trim().to_owned(), ranks, devices }
}

/// Those of the environment that are text.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

fn progress(rows: &[Row], of: usize) {
    let Some(row) = rows.last() else { return };
    let time = row.times.p50_us.unwrap_or(0.0);
    complain(&format!(
        "{} of {of}: {} {} on {}: {time:.2} us",
        rows.len(),
        row.key.op,
        crate::console::bytes(row.key.bytes),
        crate::console::plural(row.key.ranks.unwrap_or(1), "rank"),
    ));
}

/// Shows the table, writes what was asked for, and says what cannot be.
fn finish(args: &CollectivesArgs, report: &Report) -> Result<Exit, CliError> {
    let drawn = || {
        let nothing = || {
            BenchError::Argument("--svg: no case has a bus bandwidth (one rank, or a barrier alone); leave it out, or use 2 ranks or more".into())
        };
        plot::svg(report)?.ok_or_else(nothing)
    };
    let forms: [Form; 3] = [&|| report.to_json(), &|| Ok(report.csv()), &drawn];
    let written = bench_cmd::write(&args.files, forms);
    say(&table::table(report))?;
    let findings = plausible::findings(report, plausible::Limits::default());
    if !findings.is_empty() {
        complain(&plausible::text(&findings));
    }
    written?;
    match report.rows.iter().find(|row| row.wrong().is_some_and(|wrong| wrong > 0)) {
        None => Ok(Exit::Ok),
        Some(row) => Err(CliError::peer(wrong(row))),
    }
}

fn wrong(row: &Row) -> String {
    let check = row.check.clone().unwrap_or_default();
    let place = check.first_bad.map(|bad| {
        let (rank, offset) = (bad.rank, bad.offset);
        format!("; the first on rank {rank}: element {offset} is {}, not {}", bad.got, bad.expected)
    });
    format!(
        "{} of {} {} gave {} wrong elements{}",
        row.key.op,
        crate::console::bytes(row.key.bytes),
        row.key.dtype,
        check.wrong,
        place.unwrap_or_default()
    )
}
