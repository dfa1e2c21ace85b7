//! `muster bench collectives`: what the ranks measure, as a table and files.
//!
//! ```text
//! bench_job: ranks ─▶ rows of rank 0 ─▶ progress ─▶ curves ─▶ table, JSON, CSV, SVG, links
//! ```
//!
//! A run that ends early, for whatever reason, shows and writes what it has measured by then,
//! marked as incomplete. It writes no links: a table for trainings is of a whole run.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bench::collectives::bucket::Bounds;
use bench::collectives::fit::POINTS_MIN;
use bench::collectives::roofline::Roof;
use bench::collectives::run::Plan;
use bench::collectives::{Report, Row, Tool, curve, environment, plausible, plot, table};
use bench::{Bench, BenchError, Repeat};
use comm::BackendWord;
use device::{Device, DeviceKind};
use kernels::gpu::bandwidth::Traffic;

use crate::bench_job::{self, Asked, Ran};
use crate::bench_report::{self, Form};
use crate::bench_task::Task;
use crate::cli::{CollectivesArgs, ReportArgs};
use crate::console::CaseProgress;
use crate::error::{CliError, Exit};
use crate::links_file;
use crate::method;
use crate::out_file;
use crate::output::{complain, say};
use crate::trace::Traced;
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
    let trace = args.trace.as_deref();
    let asked = Asked { hosts, backend, within_host, threads, timeout_ms, devices, trace };
    let mut report = begin(args);
    let rows = std::cell::Cell::new(0);
    let memory = std::cell::Cell::new(None);
    let task = |place: &Place, world| {
        let plan = plan(args, place, world)?;
        check_files(args, place)?;
        check_sizes(args, place, &plan)?;
        rows.set(plan.rows()?);
        // Before the ranks use it.
        memory.set(memory_gb_per_s(args, place)?);
        Ok(Task::Collectives(plan))
    };
    let (mut progress, mut again) = (None, 0);
    let ran =
        bench_job::measure(
            &asked,
            |hosts| args.world(hosts.tasks),
            task,
            &mut |told| match told {
                Told::Hosts(hosts) => report.hosts = hosts,
                Told::Measured(row) => {
                    let bar = progress.get_or_insert_with(|| CaseProgress::new(rows.get()));
                    let words = last(&row);
                    again += usize::from(add(&mut report.rows, row));
                    bar.update(report.rows.len(), &words);
                }
                Told::Route(used) => {
                    let bar = progress.get_or_insert_with(|| CaseProgress::new(rows.get()));
                    bar.say(&format!("over {}", used.text));
                    report.transport = Some(used.transport);
                    report.libraries.extend(used.library);
                }
                _ => {}
            },
        )?;
    drop(progress);
    if again > 0 {
        let more = crate::console::plural(again, "more measurement");
        complain(&format!("{more}, in place of figures that could not be"));
    }
    report.complete = report.rows.len() == rows.get();
    if ran.place.node > 0 {
        if ran.was_stopped() {
            complain("stopped; node 0 has what was measured");
        }
        return ran.ended;
    }
    if !tell_if_early(&report, rows.get(), &ran) {
        return ran.ended;
    }
    (report.ranks, report.threads) = (Some(ran.world), Some(ran.threads));
    report.cpus = Some(ran.cpus);
    let roof = Roof::of(&report.hosts, report.transport.as_deref(), args.link, memory.get());
    report.curves = curve::of_rows(&report.rows, &roof, bounds);
    let shown = finish(args, (&report, ran.place.nodes), &roof);
    match ran.ended {
        Ok(Exit::Ok) => shown,
        Ok(exit) => shown.map(|_| exit),
        Err(error) => {
            // The first cause comes last.
            let _ = shown.inspect_err(|also| complain(&also.to_string()));
            Err(error)
        }
    }
}

/// Says how far a run came that ended early; whether there is anything to show.
fn tell_if_early(report: &Report, of: usize, ran: &Ran) -> bool {
    if report.complete {
        return true;
    }
    let why = if ran.was_stopped() { "stopped" } else { "the run ended early" };
    let (done, of) = (report.rows.len(), crate::console::plural(of, "case"));
    complain(&match done {
        0 => format!("{why}: nothing was measured, and no file is written"),
        done => format!("{why}: {done} of {of} measured; what is shown and written is incomplete"),
    });
    done > 0
}

/// Whether what was asked for can be written, before anything is measured. Node 0 writes it, and
/// each node its own trace.
fn check_files(args: &CollectivesArgs, place: &Place) -> Result<(), CliError> {
    let ReportArgs { json, csv, svg } = &args.files;
    let flags = [("--json", json), ("--csv", csv), ("--svg", svg), ("--links", &args.links)];
    let asked = flags.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?)));
    let mut files: Vec<(&str, &Path)> = asked.collect();
    if place.node > 0 {
        let flags: Vec<&str> = files.drain(..).map(|(flag, _)| flag).collect();
        if !flags.is_empty() {
            complain(&format!("{}: node 0 writes it, not this node", flags.join(", ")));
        }
    } else if let Some(path) = &args.links {
        links_file::check(path, place.nodes)?;
        files.retain(|(flag, path)| *flag != "--links" || !links_file::is_auto(path));
    }
    let nodes = (place.node, place.nodes);
    let traced = args.trace.as_deref().map(|path| Traced::new(path, nodes, None, 0..0));
    out_file::check_all(files.iter().copied())?;
    let Some(traced) = traced else { return Ok(()) };
    traced.check()?;
    // Also where its directory is made later, so that a file has its name by then.
    files.extend([("--trace", traced.file()), ("--trace", traced.parts())]);
    out_file::check_apart(&files)
}

/// Whether some case will have a fit, of which a table of links consists.
fn check_sizes(args: &CollectivesArgs, place: &Place, plan: &Plan) -> Result<(), CliError> {
    if args.links.is_none() || place.node > 0 || plan.sizes_most()? >= POINTS_MIN {
        return Ok(());
    }
    let advice = match plan.least_bytes(POINTS_MIN)? {
        Some(bytes) => format!("use --max {bytes} or more"),
        None => "name an operation that moves bytes, such as reduce_scatter".to_owned(),
    };
    Err(CliError::mistake(format!(
        "--links: a fit takes {POINTS_MIN} sizes, and no case has as many; {advice}"
    )))
}

/// Of a curve's bucket: what is hidden beside Newton–Schulz, where that was measured.
fn bounds(rows: &[&Row]) -> Bounds {
    let alone = rows.iter().filter_map(|row| Some(row.overlap.as_ref()?.newton_schulz_alone_us));
    let mut alone: Vec<f64> = alone.collect();
    alone.sort_by(f64::total_cmp);
    Bounds { window_us: alone.get(alone.len() / 2).copied(), most_bytes: None }
}

/// Bytes of the buffers that tell what memory carries: beyond the caches of most hosts.
const MEMORY_BYTES: usize = 64 << 20;

/// The bandwidth of this host's memory, read and written together, in GB/s, where ranks share it
/// and nothing else was named to bound them: the median of three copies by all cores.
fn memory_gb_per_s(args: &CollectivesArgs, place: &Place) -> Result<Option<f64>, CliError> {
    let is_host = args.device.iter().all(|kind| kind.is_host());
    if args.link.is_some() || args.backend != BackendWord::Shm || !is_host || place.node > 0 {
        return Ok(None);
    }
    let device = Device::new(DeviceKind::Cpu, method::threads(0))?;
    let bench = Bench::new(device, Repeat { warmup: 1, iterations: 3 })?;
    let row = bench::traffic::measure_one(&bench, Traffic::Copy, MEMORY_BYTES)?;
    Ok(row.gb_per_s)
}

fn plan(args: &CollectivesArgs, place: &Place, world: usize) -> Result<Plan, CliError> {
    let plan = args.plan(world, place.nodes)?;
    if plan.rows()? == 0 {
        let (max, least) = (plan.sweep.to_bytes, plan.least_bytes(1)?);
        let advice = least.map_or("use a larger --min".into(), |n| format!("use {n} or more"));
        return Err(CliError::mistake(format!(
            "--max {max}: less than an element for each rank; {advice}"
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
    report.command = Some(bench_report::command());
    report.transport = Some(args.backend.word().to_owned());
    report.environment = environment::allowed(variables());
    report
}

/// Those of the environment that are text.
fn variables() -> impl Iterator<Item = (String, String)> {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text)
}

/// Adds a row, or puts it in the place of an earlier one of its case; whether there was one.
fn add(rows: &mut Vec<Row>, row: Row) -> bool {
    match rows.iter_mut().find(|before| before.key == row.key) {
        Some(before) => {
            *before = row;
            true
        }
        None => {
            rows.push(row);
            false
        }
    }
}

/// A row, in words.
fn last(row: &Row) -> String {
    let time = row.times.p50_us.unwrap_or(0.0);
    let hidden = row.overlap.as_ref().and_then(|overlap| overlap.hidden_pct);
    let hidden = hidden.map(|percent| format!(", {percent:.0} % hidden")).unwrap_or_default();
    format!(
        "{} {} on {}: {time:.2} us{hidden}",
        row.key.op,
        crate::console::bytes(row.key.bytes),
        crate::console::plural(row.key.ranks.unwrap_or(1), "rank"),
    )
}

/// Shows the table, writes what was asked for, and says what cannot be.
fn finish(
    args: &CollectivesArgs,
    (report, nodes): (&Report, usize),
    roof: &Roof,
) -> Result<Exit, CliError> {
    let drawn = || {
        let nothing = || {
            let why = "--svg: no case has a bus bandwidth (one rank, or a barrier alone); leave it \
                       out, or use 2 ranks or more";
            BenchError::Argument(why.into())
        };
        plot::svg(report)?.ok_or_else(nothing)
    };
    let mut files = args.files.clone();
    if !report.complete && matches!(plot::svg(report), Ok(None)) {
        // Nothing to draw was measured so far, which is nobody's mistake.
        files.svg = None;
    }
    let forms: [Form; 3] = [&|| report.to_json(), &|| Ok(report.csv()), &drawn];
    let written = bench_report::write(&files, forms);
    let linked = match args.links.as_deref() {
        Some(path) if report.complete => links_file::write(path, report, nodes),
        Some(path) => {
            complain(&format!("--links {}: not written, the run ended early", path.display()));
            Ok(())
        }
        None => Ok(()),
    };
    let curves = curve::text(&report.curves, roof);
    say((table::table(report) + &table::overlaps(report) + &curves).trim_end())?;
    let link_gb_per_s = match roof {
        Roof::Link(link) => Some(link.limit_gb_per_s()),
        // Caches go beyond what a memory carries.
        Roof::Memory { .. } | Roof::Unknown(_) => None,
    };
    let limits = plausible::Limits { link_gb_per_s, ..plausible::Limits::default() };
    let findings = plausible::findings(report, limits);
    if !findings.is_empty() {
        complain(&plausible::text(&findings));
    }
    written.and(linked)?;
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
