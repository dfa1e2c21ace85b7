//! Tables printed in every form of every program by [`super::super::made`]: what is read must be
//! what was printed, and what is no table must be refused with its place.

use proptest::prelude::*;

use super::super::super::dtype::{ElementType, RedOp};
use super::super::made::{Made, MadeSide, Style};
use super::*;

/// Expects the rows of what was made.
fn expect(made: &Made, report: &Report, style: &Style) {
    let sides: Vec<(u64, bool, &MadeSide)> = made
        .cases
        .iter()
        .flat_map(|case| {
            [(case.size, false, &case.out_of_place), (case.size, true, &case.in_place)]
        })
        .filter(|(_, in_place, _)| match in_place {
            false => !style.only_in_place && !style.blank_out_of_place,
            true => !style.only_out_of_place,
        })
        .collect();
    assert_eq!(report.rows.len(), sides.len());
    assert!(report.complete);
    for (row, (size, in_place, side)) in report.rows.iter().zip(sides) {
        assert_eq!((row.key.bytes, row.key.in_place), (size, in_place));
        assert_eq!((row.key.op, row.key.ranks), (made.op, Some(8)));
        assert_eq!((row.key.redop, row.key.root), (made.redop, made.root));
        assert_eq!(row.wrong(), side.wrong);
        let near = |got: Option<f64>, expected: f64, what: &str| {
            let got = got.unwrap_or_else(|| panic!("no {what}"));
            // Two digits after the point, or as many as fit.
            let tolerance = 0.006_f64.max(expected * 1e-5);
            assert!((got - expected).abs() < tolerance, "{what}: {got} for {expected}");
        };
        near(row.times.mean_us, side.time_us, "time");
        near(row.algbw_gb_per_s, side.alg_bw, "algbw");
        near(row.busbw_gb_per_s, side.bus_bw, "busbw");
        assert_eq!(row.times.iterations, Some(20));
        assert_eq!(row.times.host_time, style.host_time);
        assert_eq!(row.times.cv_pct, style.per_iteration.then_some(3.25));
        assert_eq!(row.chosen.as_deref(), style.choice.then_some("RING/LL/56"));
    }
}

#[test]
fn the_header_tells_program_hosts_and_versions() {
    let report = read(&Made::example().text(&Style::default())).unwrap();
    assert_eq!(report.tool.name, "nccl-tests");
    assert_eq!(report.tool.version.as_deref(), Some("2.19.6"));
    assert_eq!(report.libraries["nccl"], "2.30.7");
    assert_eq!(report.hosts.len(), 1);
    assert_eq!(report.hosts[0].ranks, (0..8).collect::<Vec<_>>());
    assert_eq!(report.hosts[0].devices[7], "A GPU of 141 GB");
}

#[test]
fn every_form_of_every_program_is_read() {
    let made = Made::example();
    let tags = ["", "[1,0]<stdout>:", "[prterun-a-1@1,0]<stdout>: ", "0: ", "[0] "];
    for bits in 0..64_u32 {
        let on = |bit: u32| bits & (1 << bit) != 0;
        let style = Style {
            tag: tags[bits as usize % tags.len()].to_owned(),
            log: on(0),
            per_iteration: on(1),
            host_time: on(2),
            timestamp: on(3),
            hip_events: on(4),
            choice: on(5),
            ..Style::default()
        };
        expect(&made, &read(&made.text(&style)).unwrap(), &style);
    }
    let plain = Style::default();
    for style in [
        Style { only_out_of_place: true, ..plain.clone() },
        Style { only_in_place: true, choice: true, ..plain.clone() },
        Style { narrow_wrong: true, log: true, ..plain.clone() },
        Style { blank_out_of_place: true, ..plain },
    ] {
        expect(&made, &read(&made.text(&style)).unwrap(), &style);
    }
}

#[test]
fn narrow_columns_have_exponents_and_nan() {
    let made = Made::example().text(&Style::default());
    let (head, _) = made.split_once("        1024 ").unwrap();
    let row = "  1073741824     268435456     float     sum      -1  1.2e+07   9e+01  nan  \
               1.23e+06    12.00    0.10    0.20     N/A\n";
    let report = read(&format!("{head}{row}")).unwrap();
    let [out_of_place, in_place] = &report.rows[..] else { panic!() };
    assert_eq!(out_of_place.times.mean_us, Some(1.2e7));
    assert_eq!((out_of_place.algbw_gb_per_s, out_of_place.busbw_gb_per_s), (Some(90.0), None));
    assert_eq!((out_of_place.wrong(), in_place.wrong()), (Some(1_230_000), None));
    assert!(!report.complete);
}

#[test]
fn what_the_run_says_of_itself_is_kept() {
    let text = Made::example().text(&Style::default());
    assert_eq!(read(&text).unwrap().failures, [""; 0]);
    let failed =
        text.replace(" values : 0 OK", " values : 7 FAILED") + "# error: unhandled system error\n";
    let said =
        ["line 22: Out of bounds values : 7 FAILED", "line 28: error: unhandled system error"];
    assert_eq!(read(&failed).unwrap().failures, said);
    // The last warnings of NCCL, in a run that did all.
    let warned = read(&(text.clone() + "# error: no such plugin\n")).unwrap();
    assert_eq!(warned.failures, [""; 0]);
    assert_eq!(warned.warnings, ["line 28: error: no such plugin"]);
    // And in one that did not.
    let early = text.replace("# Avg", "# Gva") + "# error: unhandled system error\n";
    let early = read(&early).unwrap();
    assert_eq!((early.complete, early.warnings.len()), (false, 0));
    assert_eq!(early.failures, ["line 28: error: unhandled system error"]);
}

/// Whatever its words are, what follows is read.
#[test]
fn the_rest_of_a_row_that_was_skipped_is_passed_over() {
    let text = Made::example().text(&Style::default());
    let whole = read(&text).unwrap();
    let message = "other:1:2 [0] NCCL INFO a message";
    let (head, tail) = text.split_once("114.86").unwrap();
    let (to_count, behind) = text.split_once("262144").unwrap();
    for broken in [
        // Too little for a row.
        format!("{to_count}2621{message}\n44{behind}"),
        format!("{to_count}2621{message}\n{message}\n44{behind}"),
        format!("{head}114.8{message}\n6{tail}"),
        // Twice in the same row.
        format!("{head}114.8{message}\n6{}", tail.replacen("0", &format!("0{message}\n"), 1)),
        // And what looks like a row's beginning.
        format!("{head}{message} 114.8\n6 0{tail}"),
    ] {
        let read = read(&broken).unwrap_or_else(|error| panic!("{error}\n{broken}"));
        assert!(!read.skipped.is_empty() && read.complete, "{broken}");
        assert_eq!(
            [&read.rows[..2], &read.rows[2..]],
            [&whole.rows[..2], &whole.rows[4..]],
            "{broken}"
        );
    }
}

#[test]
fn several_programs_may_follow_each_other() {
    let reduce = Made::example();
    let gather = Made { op: Op::AllGather, redop: None, ..Made::example() };
    let both = reduce.text(&Style::default()) + &gather.text(&Style::default());
    let report = read(&both).unwrap();
    assert!(report.complete);
    let of = |op: Op| report.rows.iter().filter(|row| row.key.op == op).count();
    assert_eq!((of(Op::AllReduce), of(Op::AllGather)), (6, 6));
    assert!(report.rows.iter().all(|row| row.key.ranks == Some(8)));
    assert_eq!(report.rows[6].count, Some(1024 / 4 / 8));
}

/// A log that ends anywhere gives whole rows of what was there, and none that is not.
#[test]
fn a_log_that_ends_early_is_incomplete_and_invents_nothing() {
    let made = Made::example();
    let text = made.text(&Style::default());
    let whole = read(&text).unwrap();
    let table = text.find("#wrong").unwrap();
    let end = text.find("# Avg bus").unwrap();
    for cut in table..end {
        let Ok(report) = read(&text[..cut]) else { continue };
        assert!(!report.complete, "{cut}");
        assert!(report.rows.len() <= whole.rows.len());
        assert_eq!(report.rows[..], whole.rows[..report.rows.len()], "{cut}");
    }
    let failed = text.replacen(
        "        1024           256     float     sum      -1",
        "        1024           256     float     sum      -1node: Test NCCL failure a.cu:1\n",
        1,
    );
    let (failed, _) = failed.split_once("failure a.cu:1\n").unwrap();
    let report = read(&format!("{failed}failure a.cu:1\n .. node pid 1: Test failure b:2\n"));
    let report = report.unwrap();
    assert!(!report.complete && report.rows.is_empty());
}

#[test]
fn everything_else_is_refused_with_line_and_column() {
    let text = Made::example().text(&Style::default());
    let refusal = |from: &str, to: &str| {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        read(&changed).unwrap_err().to_string()
    };
    let row = "        1024           256     float     sum";
    for (from, to, words) in [
        (row, "hello\n", "line 19, column 1: `hello` begins neither a row nor a comment"),
        (row, "        1024           256     flaot     sum", "column 32: no element type"),
        (row, "        1024           256     float     add", "column 42: no reduction"),
        ("   10.10 ", "   10.1x ", "column 57: `10.1x` is no number"),
        ("   10.10 ", "   inf ", "`inf` is no number"),
        ("   10.10 ", "   10.10 7 ", "9 numbers behind the root where 8 belong"),
        ("#  Rank  1 ", "#  Rank  0 ", "line 7, column 1: rank 0 for the second time"),
        ("#wrong", "error", "a column `error`, which is not known"),
        ("redop", "root", "column `root` where `redop` belongs"),
        ("all_reduce_perf", "my_perf", "NAME is one of all_reduce_perf"),
        ("#       size", "#       siez", "line 19, column 1: a row before the names"),
    ] {
        let message = refusal(from, to);
        assert!(message.contains(words), "{to}: {message}");
    }
    assert!(read("no table\n").unwrap_err().to_string().contains("no table of nccl-tests"));
}

/// A program that crashed, a job that another program watched, a row whose rest is lost.
#[test]
fn what_is_nothing_of_a_table_ends_it_unless_it_goes_on() {
    let text = Made::example().text(&Style::default());
    let whole = read(&text).unwrap();
    let end = text.find("# Out of bounds").unwrap();
    let last = text[..end].trim_end().rfind('\n').unwrap() + 1;
    let half = "  2147483648     536870912     float     sum      -1    10.10    0.10";
    for said in [
        "terminate called after throwing an instance of 'std::bad_alloc'",
        "free(): invalid pointer",
        "command terminated with exit code 137",
        "Connection to node1 closed.",
        "make: *** [run] Error 1",
        "Traceback (most recent call last):\n  File \"run.py\", line 3, in <module>\n4 more",
        half,
        &format!("{half}\nKilled"),
        &format!("{half}\nsrun: error: node1: task 3: Exited with exit code 1"),
        &format!("{half}\n=======\n=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES"),
    ] {
        let ended = read(&format!("{}{said}\n", &text[..end])).unwrap();
        assert_eq!(ended.rows, whole.rows, "{said}");
        assert!(!ended.complete, "{said}");
        let [told] = &ended.skipped[..] else { panic!("{said}: {:?}", ended.skipped) };
        assert!(told.ends_with(", and nothing of the table follows"), "{said}: {told}");
        // Where a row follows, or the table's end.
        for at in [last, end] {
            let goes_on = format!("{}{said}\n{}", &text[..at], &text[at..]);
            let error = read(&goes_on).map(|_| ()).unwrap_err().to_string();
            let line = text[..at].lines().count() + 1;
            assert!(error.contains(&format!("line {line}, column ")), "{said}: {error}");
        }
    }
}

proptest! {
    /// Whatever was measured is read as it was printed.
    #[test]
    fn rows_are_read_as_they_were_printed(
        cases in prop::collection::vec(
            (1_u64..1 << 39, 0.01_f64..1e9, 0_u64..100_000_000), 1..6,
        ),
        dtype in prop::sample::select(ElementType::ALL.to_vec()),
        redop in prop::sample::select(RedOp::ALL.to_vec()),
    ) {
        let fixed = super::super::super::table::fixed;
        let mut text = Made::example().text(&Style::default());
        text.truncate(text.find("        1024 ").unwrap());
        for (size, time, wrong) in &cases {
            let body = format!(
                "  {}  {}  {}  {}", fixed(*time, 7), fixed(time / 3.0, 6), fixed(1e6 / time, 6),
                wrong,
            );
            text += &format!(
                "{size:>12}  {:>12}  {:>8}  {:>6}      -1{body}{body}\n", size / dtype.bytes(),
                dtype.nccl_word(), redop.word(),
            );
        }
        text += "# Avg bus bandwidth    : 1\n";
        let report = read(&text).unwrap();
        prop_assert!(report.complete);
        prop_assert_eq!(report.rows.len(), 2 * cases.len());
        for (row, (size, time, wrong)) in report.rows.iter().step_by(2).zip(&cases) {
            prop_assert_eq!(
                (row.key.bytes, row.key.dtype, row.key.redop), (*size, dtype, Some(redop))
            );
            // The narrowest form has two digits.
            let read = row.times.mean_us.unwrap();
            prop_assert!((read - time).abs() <= 0.006_f64.max(time * 0.051), "{read} {time}");
            prop_assert_eq!(row.wrong(), Some(*wrong));
        }
    }
}
