//! `muster bench compare` as people and CI run it: exit codes, formats by their contents, and
//! mistakes with their places.

use std::path::Path;
use std::process::Command;

/// Exit code, standard output, standard error.
fn compare(dir: &Path, args: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["bench", "compare"]).args(args).current_dir(dir).env_remove("RUST_BACKTRACE");
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// The output of nccl-tests for an all_reduce on two devices: (bytes, µs, wrong elements).
fn log(cases: &[(u64, f64, &str)]) -> String {
    let mut text = "\
# nccl-tests version 2.19.6 nccl-headers=23007 nccl-library=23007
# Collective test starting: all_reduce_perf
# nThread 1 nGpus 2 minBytes 8 maxBytes 128 step: 2(factor) warmup iters: 1 iters: 20 agg iters: 1
#
# Using devices
#  Rank  0 Group  0 Pid   4000 on       node device  0 [0000:01:00] A GPU
#  Rank  1 Group  0 Pid   4000 on       node device  1 [0000:02:00] A GPU
node:4000:4000 [0] NCCL INFO Bootstrap: Using lo
#
#                                                              out-of-place
#       size         count      type   redop    root     time   algbw   busbw  #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)
"
    .to_owned();
    for (bytes, us, wrong) in cases {
        let (count, algbw) = (bytes / 4, *bytes as f64 / us / 1e3);
        text += &format!(
            "{bytes:>12}  {count:>12}     float     sum      -1  {us:7.2}  {algbw:6.2}  \
             {algbw:6.2}  {wrong:>6}\n"
        );
    }
    text + "# Out of bounds values : 0 OK\n# Avg bus bandwidth    : 1\n"
}

/// The same as a report of Muster, over shared memory and with medians.
fn report(cases: &[(u64, f64)]) -> String {
    let rows: Vec<String> = cases
        .iter()
        .map(|(bytes, us)| {
            format!(
                "{{\"key\": {{\"op\": \"all_reduce\", \"dtype\": \"f32\", \"redop\": \"sum\", \
                 \"ranks\": 2, \"bytes\": {bytes}, \"in_place\": false, \"transport\": \"shm\"}},\n\
                 \"times\": {{\"p50_us\": {us}, \"mean_us\": {us}}}}}"
            )
        })
        .collect();
    format!(
        "{{\"schema\": 1, \"tool\": {{\"name\": \"muster\"}}, \"complete\": true,\n\
         \"rows\": [\n{}\n]}}",
        rows.join(",\n")
    )
}

fn put(dir: &Path, name: &str, text: &str) {
    std::fs::write(dir.join(name), text).unwrap();
}

#[test]
fn the_exit_code_says_whether_something_became_worse() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    put(dir, "base.log", &log(&[(1 << 20, 100.0, "0"), (1 << 21, 200.0, "0")]));
    put(dir, "same.json", &report(&[(1 << 20, 103.0), (1 << 21, 150.0)]));
    put(dir, "slow.log", &log(&[(1 << 20, 100.0, "0"), (1 << 21, 212.0, "N/A")]));
    put(dir, "wrong.log", &log(&[(1 << 20, 90.0, "7"), (1 << 21, 200.0, "0")]));
    put(dir, "short.log", &log(&[(1 << 20, 100.0, "0")]));

    let (code, table, stderr) = compare(dir, &["base.log", "same.json"]);
    assert_eq!(code, 0, "{table}{stderr}");
    assert!(table.contains("faster") && table.ends_with("no regression\n"), "{table}");

    let (code, table, _) = compare(dir, &["base.log", "slow.log", "--json", "c.json"]);
    assert_eq!(code, 1, "{table}");
    assert!(table.contains("SLOWER") && table.contains("+6.0 %"), "{table}");
    let json = std::fs::read_to_string(dir.join("c.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["cases"][1]["verdict"], "slower");
    assert_eq!(compare(dir, &["base.log", "slow.log", "--threshold", "7%"]).0, 0);

    let (code, table, _) = compare(dir, &["base.log", "wrong.log"]);
    assert_eq!(code, 1);
    assert!(table.contains("regression: all_reduce: wrong results in 1 case"), "{table}");

    let (code, table, _) = compare(dir, &["base.log", "short.log"]);
    assert_eq!(code, 1);
    assert!(table.contains("NEW lacks 1 case of BASE"), "{table}");
    assert_eq!(compare(dir, &["base.log", "short.log", "--allow-missing"]).0, 0);
    assert_eq!(compare(dir, &["short.log", "base.log"]).0, 0);
}

#[test]
fn a_run_that_broke_off_is_a_regression() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let whole = log(&[(1 << 20, 100.0, "0"), (1 << 21, 200.0, "0")]);
    put(dir, "base.log", &whole);
    put(dir, "cut.log", &whole[..whole.find("     2097152").unwrap()]);
    let (code, table, _) = compare(dir, &["base.log", "cut.log", "--allow-missing"]);
    assert_eq!(code, 1);
    assert!(table.contains("regression: NEW ended early"), "{table}");
}

#[test]
fn a_run_that_failed_by_its_own_word_is_not_fit_to_compare() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let good = log(&[(1 << 20, 100.0, "0")]);
    put(dir, "good.log", &good);
    put(dir, "failed.log", &good.replace("0 OK", "7 FAILED"));
    for (args, side) in [(["good.log", "failed.log"], "NEW"), (["failed.log", "good.log"], "BASE")]
    {
        let (code, table, stderr) = compare(dir, &args);
        assert_eq!(code, 1, "{table}{stderr}");
        let said = "line 14: Out of bounds values : 7 FAILED";
        assert!(
            table.contains(&format!("regression: the run of {side} failed: {said}")),
            "{table}"
        );
        assert!(stderr.contains(&format!("failed.log: its run failed: {said}")), "{stderr}");
    }
    // A warning of its library is told, and is no failure.
    put(dir, "warned.log", &(good + "# error: no such plugin\n"));
    let (code, table, stderr) = compare(dir, &["good.log", "warned.log"]);
    let said = "warned.log: its run did not fail, and said: line 16: error: no such plugin";
    assert!(stderr.contains(said), "{stderr}");
    assert_eq!((code, table.ends_with("no change\n")), (0, true), "{table}");
}

#[test]
fn a_row_that_a_message_tore_apart_is_named_and_the_file_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let good = log(&[(1 << 20, 100.0, "0"), (1 << 21, 200.0, "0"), (1 << 22, 400.0, "0")]);
    put(dir, "good.log", &good);
    let info = "node:4000:4000 [0] NCCL INFO a message";
    let glued = good.replacen("     1048576", &format!("{info}     1048576"), 1);
    put(dir, "mended.log", &glued.replacen("  400.00", &format!("  40{info}\n0.00"), 1));
    let (code, table, stderr) = compare(dir, &["good.log", "mended.log"]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{table}");
    assert!(table.ends_with("no change\n"), "{table}");
    put(dir, "torn.log", &good.replacen("  200.00", &format!("  200.00 {info}"), 1));
    let (code, table, stderr) = compare(dir, &["good.log", "torn.log", "--allow-missing"]);
    assert_eq!(code, 0, "{table}{stderr}");
    assert!(stderr.starts_with("warning: torn.log: line 14: a row that a message"), "{stderr}");
    assert!(table.contains("MISSING"), "{table}");
}

#[test]
fn mistakes_are_named_with_file_and_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let good = log(&[(1 << 20, 100.0, "0")]);
    put(dir, "good.log", &good);
    put(dir, "odd.log", &good.replacen("100.00", "1oo.00", 1));
    put(dir, "notes.txt", "nothing measured\n");
    put(dir, "bad.json", &report(&[(8, 1.0)]).replace("\"bytes\"", "\"byte\""));
    put(dir, "tcp.json", &report(&[(8, 1.0)]).replace("shm", "tcp"));
    put(dir, "shm.json", &report(&[(8, 1.0)]));
    put(dir, "empty", "");
    put(dir, "headless.csv", "dtype,bytes,in_place,p50_us\nf32,8,false,1.5\n");
    for (args, words) in [
        (&["none.log", "good.log"][..], "none.log"),
        (&["good.log", "odd.log"], "odd.log: line 13, column 56: `1oo.00` is no number"),
        (&["good.log", "notes.txt"], "notes.txt: line 1, column 1: no table"),
        (&["bad.json", "good.log"], "bad.json: line 3, column "),
        (&["empty", "good.log"], "empty file"),
        (&["shm.json", "tcp.json"], "transport is shm in BASE and tcp in NEW"),
        (&["good.log", "good.log", "--threshold", "5"], "write 5%"),
        (&["good.log", "good.log", "--only", "all_redcue"], "did you mean `all_reduce`?"),
        (&["good.log", "good.log", "--only", "broadcast"], "no broadcast; it has all_reduce"),
        (&["good.log"], "NEW"),
        (&["good.log", "good.log", "--threshold", "inf"], "`inf` has no percent sign; write 5%"),
        (&["/dev/zero", "good.log"], "/dev/zero is a device; name a report, a log, or a pipe"),
        (&["good.log", "."], ". is a directory; name a report or a log in it"),
        (&["headless.csv", "good.log"], "headless.csv: line 1, column 1: no column `op`"),
    ] {
        let (code, _, stderr) = compare(dir, args);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(words), "{args:?}: {stderr}");
    }
}

/// A pipe is read as a file is.
#[test]
fn a_side_may_come_through_a_pipe() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "good.log", &log(&[(1 << 20, 100.0, "0")]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.args(["bench", "compare", "good.log", "/dev/stdin"]).current_dir(dir.path());
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut pipe, log(&[(1 << 20, 100.0, "0")]).as_bytes()).unwrap();
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8(output.stdout).unwrap().ends_with("no change\n"));
}

#[test]
fn where_the_comparison_goes_is_checked_before_anything_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let good = log(&[(1 << 20, 100.0, "0")]);
    put(dir, "base.log", &good);
    put(dir, "new.log", &good);
    std::os::unix::fs::symlink("base.log", dir.join("link")).unwrap();
    let read = "is read and would be overwritten; name another file";
    for (json, words) in [
        ("base.log", read),
        ("./new.log", read),
        ("link", read),
        ("gone/c.json", "there is no directory gone; make it first (mkdir -p gone)"),
        (".", "--json: . is a directory"),
        ("/dev/full", "--json: /dev/full is a device that takes no file"),
    ] {
        // Faults of a side would be told later.
        for new in ["new.log", "none.log"] {
            let new = if json == "./new.log" { "new.log" } else { new };
            let (code, stdout, stderr) = compare(dir, &["base.log", new, "--json", json]);
            assert_eq!((code, &stdout[..]), (2, ""), "{json}: {stderr}");
            assert!(stderr.contains(words), "{json}: {stderr}");
        }
    }
    for name in ["base.log", "new.log"] {
        assert_eq!(std::fs::read_to_string(dir.join(name)).unwrap(), good, "{name}");
    }
    assert_eq!(compare(dir, &["base.log", "new.log", "--json", "/dev/null"]).0, 0);
}

#[test]
fn a_log_that_a_launcher_ended_is_read_and_said_to_have_ended_early() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let whole = log(&[(1 << 20, 100.0, "0"), (1 << 21, 200.0, "0")]);
    put(dir, "base.log", &whole);
    let cut = &whole[..whole.find("     2097152").unwrap()];
    for said in [
        "slurmstepd: error: *** STEP 123.0 ON node1 CANCELLED AT 2026-07-09T16:03:21 DUE TO TIME \
         LIMIT ***\nsrun: error: node1: task 3: Exited with exit code 1\n",
        "./job.sh: line 3: 4242 Killed          ./all_reduce_perf -b 8\n",
        "Terminated",
    ] {
        put(dir, "cut.log", &format!("{cut}{said}"));
        let (code, table, stderr) = compare(dir, &["base.log", "cut.log"]);
        assert_eq!((code, &stderr[..]), (1, ""), "{said}: {table}");
        let words = "NEW ended early: only what it has was compared";
        assert!(table.contains(words) && table.contains("MISSING"), "{said}: {table}");
        // As a base it is worth what it has.
        let (code, table, stderr) = compare(dir, &["cut.log", "base.log"]);
        assert_eq!(code, 0, "{said}: {table}{stderr}");
        assert!(table.contains("BASE ended early"), "{said}: {table}");
        // And rows may go on.
        put(dir, "on.log", &whole.replacen("     2097152", &format!("{said}\n     2097152"), 1));
        let (code, table, stderr) = compare(dir, &["base.log", "on.log"]);
        assert_eq!(code, 0, "{said}: {table}{stderr}");
        assert!(table.ends_with("no change\n"), "{said}: {table}");
    }
}
