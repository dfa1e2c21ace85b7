//! `muster bench` as people run it, on tiny shapes: reports are whole, results were checked, and
//! mistakes are named.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn muster(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(args).current_dir(dir).env_remove("RUST_BACKTRACE");
    command.output().unwrap()
}

fn ok(dir: &Path, args: &[&str]) -> String {
    let output = muster(dir, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{args:?}\n{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

fn refused(dir: &Path, args: &[&str]) -> String {
    let output = muster(dir, args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{args:?}\n{stderr}");
    stderr
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn newton_schulz_reports_every_case_with_times_and_errors() {
    let dir = tempfile::tempdir().unwrap();
    let table = ok(
        dir.path(),
        &[
            "bench",
            "newton-schulz",
            "--shapes",
            "2x24x48,16x40+30x10",
            "--algorithm",
            "standard,symmetric,gram,auto,svd",
            "--coefficients",
            "polar_express",
            "--coefficients",
            "{taylor: {kappa: 3}}",
            "--iterations",
            "2",
            "--warmup",
            "1",
            "--threads",
            "1",
            "--json",
            "ns.json",
            "--csv",
            "ns.csv",
            "--svg",
            "ns.svg",
        ],
    );
    assert!(table.contains("16x40+30x10") && !table.contains("SIMULATED"), "{table}");
    let report = json(&dir.path().join("ns.json"));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2 * 2 * 5);
    for row in rows {
        assert!(row["time"]["median_ms"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["error"].as_f64().unwrap() < 1e-4, "{row}");
        assert_eq!(row["time"]["iterations"], 2);
        assert!(row["ran"] != "auto", "{row}");
    }
    // 5 steps on 24×48: a Gram triangle, a square triangle and a full product each.
    let symmetric = rows.iter().find(|row| row["algorithm"] == "symmetric").unwrap();
    let (n, m) = (24.0, 48.0);
    let flops = 2.0 * 5.0 * (3.0 * n * n * m + n * n * n);
    let gflop = symmetric["useful_gflop"].as_f64().unwrap();
    assert!((gflop * 1e9 / flops - 1.0).abs() < 1e-9, "{gflop} for {flops}");
    assert_eq!(std::fs::read_to_string(dir.path().join("ns.csv")).unwrap().lines().count(), 21);
    assert!(std::fs::read_to_string(dir.path().join("ns.svg")).unwrap().starts_with("<svg"));
}

#[test]
fn products_and_memory_are_measured_and_checked() {
    let dir = tempfile::tempdir().unwrap();
    let few = ["--iterations", "2", "--warmup", "0", "--threads", "1", "--json", "r.json"];
    ok(dir.path(), &[&["bench", "gemm", "--shapes", "30x20x50,2x64x64x64"][..], &few].concat());
    let report = json(&dir.path().join("r.json"));
    assert_eq!(report["rows"][1]["shape"], "2x64x64x64");
    assert!(report["rows"][0]["error"].as_f64().unwrap() < 1e-6);
    ok(dir.path(), &[&["bench", "memory", "--sizes", "64KiB,1MiB"][..], &few].concat());
    let report = json(&dir.path().join("r.json"));
    let traffic: Vec<&str> =
        report["rows"].as_array().unwrap().iter().map(|r| r["traffic"].as_str().unwrap()).collect();
    assert_eq!(traffic, ["copy", "read", "write", "copy", "read", "write"]);
}

/// Skipped, aloud, where this build has no simulated kernels.
#[test]
fn a_simulated_device_checks_and_times_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["bench", "memory", "--device", "sim", "--sizes", "64KiB", "--json", "r.json"];
    let output = muster(dir.path(), &args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    if stderr.contains("kernels") && stderr.contains("toolchain") {
        println!("skipped: {stderr}");
        return;
    }
    assert!(output.status.success(), "{stderr}");
    for device in ["sim", "sim:sm_80", "sim:gfx942"] {
        let args = [
            "bench",
            "newton-schulz",
            "--device",
            device,
            "--shapes",
            "2x40x70",
            "--algorithm",
            "gram",
            "--json",
            "r.json",
        ];
        let table = ok(dir.path(), &args);
        assert!(table.contains("SIMULATED"), "{table}");
        let report = json(&dir.path().join("r.json"));
        assert_eq!(report["environment"]["simulated"], true);
        let row = &report["rows"][0];
        assert!(row["time"].is_null() && row["useful_tflops"].is_null(), "{row}");
        assert!(row["error"].as_f64().unwrap() < 2e-2, "{row}");
        assert!(row["launches"].as_u64().unwrap() > 4, "{row}");
    }
    let gemm = ["bench", "gemm", "--device", "sim", "--shapes", "100x100x70", "--symmetric"];
    assert!(ok(dir.path(), &gemm).contains("symmetric"));
}

#[test]
fn mistakes_name_the_value_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let ns = |args: &[&str]| refused(dir.path(), &[&["bench", "newton-schulz"], args].concat());
    for (args, words) in [
        (&["--shapes", "3"][..], "COUNTxROWSxCOLS"),
        (&["--algorithm", "grams"], "did you mean `gram`?"),
        (&["--dtype", "fp8"], "f32, bf16, f16"),
        (&["--coefficients", "polar"], "polar_express"),
        (&["--steps", "0"], "0 steps"),
        (&["--device", "cuda:0", "--dtype", "f32"], "--dtype f16"),
        (&["--device", "sim", "--algorithm", "svd"], "CPU alone"),
        (&["--device", "gpu"], "cuda:0"),
        (&["--iterations", "0"], "--iterations"),
    ] {
        let message = ns(args);
        assert!(message.contains(words), "{args:?}: {message}");
    }
    let odd = refused(dir.path(), &["bench", "memory", "--sizes", "17"]);
    assert!(odd.contains("use 32"), "{odd}");
    let oblong = ["bench", "gemm", "--shapes", "64x32x16", "--symmetric"];
    assert!(refused(dir.path(), &oblong).contains("M and N must be equal"));
}

/// No test machine has a GPU that may be used; where one has, this says so instead.
#[test]
fn a_device_that_is_not_there_is_an_error_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    for (device, library) in [("cuda:0", "libcuda"), ("hip:0", "libamdhip64")] {
        let args = ["bench", "memory", "--device", device, "--sizes", "64KiB"];
        let output = muster(dir.path(), &args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => println!("there is a {device}"),
            Some(3) => assert!(stderr.contains(library) || stderr.contains("device"), "{stderr}"),
            other => panic!("{device}: exit {other:?}\n{stderr}"),
        }
    }
}

#[test]
fn a_report_joins_what_is_printed_and_one_that_fails_keeps_no_other_away() {
    let dir = tempfile::tempdir().unwrap();
    let few = ["bench", "gemm", "--shapes", "8x8x8", "--iterations", "1", "--warmup", "0"];
    let log = dir.path().join("log");
    std::fs::write(&log, "before\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(few).args(["--threads", "1", "--csv", "/dev/stdout"]);
    command.stdout(std::fs::File::options().append(true).open(&log).unwrap());
    assert!(command.status().unwrap().success());
    let text = std::fs::read_to_string(&log).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "before");
    assert!(lines[1].contains("shape") && lines[2].contains("8x8x8"), "{text}");
    assert!(text.trim_end().rsplit('\n').next().unwrap().contains("8x8x8"), "{text}");

    // A file that cannot be there is known before anything is measured.
    let files = ["--threads", "1", "--json", "gone/r.json", "--csv", "r.csv"];
    refused(dir.path(), &[&few[..], &files].concat());
    assert!(!dir.path().join("r.csv").exists());
    let made = Command::new("mkfifo").arg(dir.path().join("pipe")).status().unwrap();
    assert!(made.success());
    let files = ["--threads", "1", "--json", "pipe", "--csv", "r.csv"];
    let unread = muster(dir.path(), &[&few[..], &files].concat());
    assert_eq!(unread.status.code(), Some(2));
    assert!(std::fs::read_to_string(dir.path().join("r.csv")).unwrap().contains("8x8x8"));
}
