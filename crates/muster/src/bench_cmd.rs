//! `muster bench newton-schulz|gemm|memory`: cases from what was typed, reports where they were
//! asked for.

use bench::gemm::GemmCase;
use bench::newton_schulz::Bounds;
use bench::{Bench, Repeat, Report, Row};
use device::{Device, DeviceKind};
use kernels::gpu::limit::Ceiling;
use kernels::newton_schulz::{Method, Storage};

use crate::bench_compare_cmd;
use crate::bench_report;
use crate::cli::{BenchArgs, BenchCommand, GemmArgs, MemoryArgs, NewtonSchulzArgs, ReportArgs};
use crate::error::{CliError, Exit};
use crate::method;
use crate::out_file;
use crate::output::{complain, say};

pub fn run(command: BenchCommand) -> Result<Exit, CliError> {
    match command {
        BenchCommand::NewtonSchulz(args) => newton_schulz(args),
        BenchCommand::Collectives(args) => crate::collectives_cmd::run(&args),
        BenchCommand::Links(args) => crate::links_cmd::run(args),
        BenchCommand::Gemm(args) => gemm(args),
        BenchCommand::Memory(args) => memory(args),
        BenchCommand::Compare(args) => bench_compare_cmd::run(args),
    }
}

fn bench(args: &BenchArgs) -> Result<Bench, CliError> {
    check(&args.files)?;
    let device = Device::new(args.device, method::threads(args.threads))?;
    let repeat = Repeat { warmup: args.warmup, iterations: args.iterations as usize };
    Ok(Bench::new(device, repeat)?)
}

/// The types asked for, or what the device is best at.
fn storages(words: &[String], device: DeviceKind) -> Result<Vec<Storage>, CliError> {
    match words {
        [] => Ok(vec![method::default_storage(device)]),
        words => words.iter().map(|word| method::storage(word)).collect(),
    }
}

fn newton_schulz(args: NewtonSchulzArgs) -> Result<Exit, CliError> {
    let methods = methods(&args)?;
    let bench = bench(&args.common)?;
    if let Some(ceiling) = args.ceiling.filter(|ceiling| ceiling.is_nan() || *ceiling <= 0.0) {
        return Err(CliError::mistake(format!("--ceiling {ceiling}; use TFLOP/s above 0")));
    }
    let mut ceilings: Vec<(Storage, Option<f64>)> = Vec::new();
    let mut rows = Vec::new();
    for shape in &args.shapes {
        for method in &methods {
            let known = ceilings.iter().find(|(storage, _)| *storage == method.storage);
            let ceiling_tflops = match (args.ceiling, known) {
                (Some(given), _) => Some(given),
                (None, Some((_, measured))) => *measured,
                (None, None) => {
                    let measured = bench::gemm::ceiling_tflops(&bench, method.storage)?;
                    ceilings.push((method.storage, measured));
                    measured
                }
            };
            let (gb_per_s, check_gflop) = (None, args.check_gflop);
            let bounds = Bounds { ceiling_tflops, gb_per_s, check_gflop };
            complain(&format!("{shape} {} …", method.algorithm.word()));
            rows.push(bench::newton_schulz::measure(&bench, shape, method, args.io, bounds)?);
        }
    }
    finish(&args.common, "newton-schulz", &bench, rows)
}

/// Every combination of what was asked for, checked before anything is measured.
fn methods(args: &NewtonSchulzArgs) -> Result<Vec<Method>, CliError> {
    let mut methods = Vec::new();
    for coefficients in &args.coefficients {
        for storage in storages(&args.dtype, args.common.device)? {
            for algorithm in &args.algorithm {
                let method = method::method(algorithm, coefficients, args.steps, storage)?;
                let iteration = method::iteration(&method, args.common.device)?;
                if algorithm == &args.algorithm[0] {
                    complain(&iteration.to_string());
                }
                methods.push(method);
            }
        }
    }
    Ok(methods)
}

fn gemm(args: GemmArgs) -> Result<Exit, CliError> {
    let bench = bench(&args.common)?;
    let mut rows = Vec::new();
    for storage in storages(&args.dtype, args.common.device)? {
        let limits_are_known = !bench.device.kind().is_host();
        let ceiling = match limits_are_known {
            true => bench::gemm::ceiling_tflops(&bench, storage)?,
            false => None,
        };
        let ceiling = ceiling
            .map(|tflops| Ceiling { flops_per_s: tflops * 1e12, bytes_per_s: f64::INFINITY });
        for &shape in &args.shapes {
            let case = GemmCase { shape, storage, symmetric: args.symmetric };
            rows.extend(bench::gemm::measure(&bench, case, ceiling)?);
        }
    }
    finish(&args.common, "gemm", &bench, rows)
}

fn memory(args: MemoryArgs) -> Result<Exit, CliError> {
    let bench = bench(&args.common)?;
    let mut rows = Vec::new();
    for &bytes in &args.sizes {
        rows.extend(bench::traffic::measure(&bench, bytes)?);
    }
    finish(&args.common, "memory", &bench, rows)
}

/// Shows the table, and writes what was asked for.
fn finish<R: Row>(
    args: &BenchArgs,
    benchmark: &'static str,
    bench: &Bench,
    rows: Vec<R>,
) -> Result<Exit, CliError> {
    let environment = bench.environment(benchmark, bench_report::command());
    let report = Report { environment, rows };
    let written =
        bench_report::write(&args.files, [&|| report.json(), &|| report.csv(), &|| report.svg()]);
    say(&report.table())?;
    written.map(|()| Exit::Ok)
}

/// Whether the files can be written, before anything is measured.
fn check(files: &ReportArgs) -> Result<(), CliError> {
    let ReportArgs { json, csv, svg } = files;
    let flags = [("--json", json), ("--csv", csv), ("--svg", svg)];
    out_file::check_all(flags.into_iter().filter_map(|(flag, path)| Some((flag, path.as_deref()?))))
}
