//! A report as text, in nccl-tests' columns, so that what reads its output reads Muster's.
//!
//! ```text
//! #       size         count      type   redop    root     time   algbw   busbw  #wrong     time …
//! #        (B)    (elements)                               (us)  (GB/s)  (GB/s)             (us) …
//!         1024           256     float     sum      -1    12.00    0.09    0.15       0      N/A …
//! ```
//!
//! Out of place and in place are on one line. Where percentiles are known, each side has the four
//! columns of nccl-tests' `-I` as well: `i_min i_max i_p99 i_cv%`. One section per operation,
//! number of ranks and whatever else nccl-tests runs apart. The first line is `# muster VERSION`,
//! by which a reader knows that times are medians.

use std::fmt::Write;

use super::report::Report;
use super::row::{Key, Row};

/// A number in `width` characters: with two digits after the point, one, none, or an exponent, as
/// nccl-tests' `getFloatStr` does it.
pub(crate) fn fixed(value: f64, width: usize) -> String {
    let forms = [format!("{value:.2}"), format!("{value:.1}"), format!("{value:.0}")];
    let fits = forms.into_iter().find(|form| form.len() <= width);
    let digits = if width >= 7 { 1 } else { 0 };
    let text = fits.unwrap_or_else(|| exponent(value, digits));
    format!("{text:>width$}")
}

/// A time in `width` characters. Below a microsecond it has four digits, two more than nccl-tests
/// gives it: those would be off by several percent.
fn microseconds(value: f64, width: usize) -> String {
    match value > 0.0 && value < 0.999_95 {
        true => format!("{value:>width$.4}"),
        false => fixed(value, width),
    }
}

/// As C's `%.<digits>e`: at least two digits of exponent, with a sign.
fn exponent(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let exponent: i32 = exponent.parse().unwrap_or(0);
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{mantissa}e{sign}{:02}", exponent.abs())
        }
        None => text,
    }
}

/// A count as C's `%6g`: six significant digits, above 999999 with an exponent.
fn count(value: u64) -> String {
    if value < 1_000_000 {
        return format!("{value:>6}");
    }
    let text = exponent(value as f64, 5);
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            format!("{}e{exponent}", mantissa.trim_end_matches('0').trim_end_matches('.'))
        }
        None => text,
    }
}

/// The key of one section: all but size and place.
fn section(key: &Key) -> Key {
    Key { in_place: false, ..key.series() }
}

/// The whole report.
pub fn table(report: &Report) -> String {
    let mut text = format!(
        "# {} {}\n",
        report.tool.name,
        report.tool.version.as_deref().unwrap_or("of unknown version")
    );
    for (library, version) in &report.libraries {
        let _ = writeln!(text, "# {library} {version}");
    }
    if let Some(cpus) = &report.cpus {
        let _ = writeln!(text, "# cpus {cpus}");
    }
    if !report.complete {
        text += "# incomplete: the run ended before its last case\n";
    }
    let mut sections: Vec<(Key, Vec<&Row>)> = Vec::new();
    for row in &report.rows {
        let key = section(&row.key);
        match sections.iter_mut().find(|(known, _)| *known == key) {
            Some((_, rows)) => rows.push(row),
            None => sections.push((key, vec![row])),
        }
    }
    for (key, rows) in &sections {
        one_section(key, rows, &mut text);
    }
    text
}

/// The measurements beside Newton–Schulz, as lines behind `#`; empty if there are none.
pub fn overlaps(report: &Report) -> String {
    let mut text = String::new();
    let measured = report.rows.iter().filter_map(|row| Some((row, row.overlap.as_ref()?)));
    for (row, overlap) in measured {
        if text.is_empty() {
            let _ = writeln!(
                text,
                "#\n# Beside Newton-Schulz of {} per rank: medians in us, alone and together\n\
                 #{:>12}  {:>10}  {:>10}  {:>6}  {:>10}  {:>10}  {:>6}  {:>10}  {:>8}  case",
                overlap.shape,
                "size",
                "operation",
                "together",
                "times",
                "N-S",
                "together",
                "times",
                "both",
                "% hidden",
            );
        }
        let (slower, slower_ns) = overlap.slowdowns();
        let hidden = overlap.hidden_pct.map_or("N/A".to_owned(), |percent| format!("{percent:.0}"));
        let key = &row.key;
        let place = if key.in_place { "in place" } else { "out of place" };
        let words = [Some(key.op.to_string()), Some(key.dtype.to_string())].into_iter().chain([
            key.redop.map(|redop| redop.to_string()),
            key.root.map(|root| format!("root {root}")),
            key.ranks.map(|ranks| format!("{ranks} ranks")),
            Some(place.to_owned()),
        ]);
        let _ = writeln!(
            text,
            "#{:>12}  {}  {}  {slower:>6.2}  {}  {}  {slower_ns:>6.2}  {}  {hidden:>8}  {}",
            key.bytes,
            fixed(overlap.collective_alone_us, 10),
            fixed(overlap.collective_together_us, 10),
            fixed(overlap.newton_schulz_alone_us, 10),
            fixed(overlap.newton_schulz_together_us, 10),
            fixed(overlap.both_us, 10),
            words.flatten().collect::<Vec<_>>().join(" "),
        );
    }
    text
}

fn one_section(key: &Key, rows: &[&Row], text: &mut String) {
    // Writing to a String cannot fail.
    let _ =
        writeln!(text, "#\n# Collective test starting: {}", key.op.program().unwrap_or("barrier"));
    let stated = [
        key.ranks.map(|ranks| format!("{ranks} ranks")),
        key.transport.clone(),
        key.algorithm.clone(),
        key.ordered.map(|ordered| if ordered { "ordered" } else { "unordered" }.to_owned()),
    ];
    let stated: Vec<String> = stated.into_iter().flatten().collect();
    if !stated.is_empty() {
        let _ = writeln!(text, "# {}", stated.join(", "));
    }
    let wide = rows.iter().any(|row| row.times.p99_us.is_some());
    header(wide, text);
    let mut sizes: Vec<u64> = rows.iter().map(|row| row.key.bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for bytes in sizes {
        let side = |in_place: bool| {
            rows.iter().find(|row| row.key.bytes == bytes && row.key.in_place == in_place).copied()
        };
        let (out_of_place, in_place) = (side(false), side(true));
        let elements = out_of_place.or(in_place).and_then(|row| row.count);
        let elements = elements.unwrap_or(bytes / key.dtype.bytes());
        let redop = key.redop.map_or("none", |redop| redop.word());
        let root = key.root.map_or("-1".to_owned(), |root| root.to_string());
        let _ = write!(
            text,
            "{bytes:>12}  {elements:>12}  {:>8}  {redop:>6}  {root:>6}",
            key.dtype.nccl_word()
        );
        *text += &body(out_of_place, wide);
        *text += &body(in_place, wide);
        text.push('\n');
    }
    footer(rows, text);
}

fn header(wide: bool, text: &mut String) {
    let (titles, units) = match wide {
        true => (
            "     time   algbw   busbw  #wrong    i_min    i_max    i_p99    i_cv%",
            "     (us)  (GB/s)  (GB/s)             (us)     (us)     (us)      (%)",
        ),
        false => ("     time   algbw   busbw  #wrong", "     (us)  (GB/s)  (GB/s)        "),
    };
    let width = titles.len();
    let names = ["size", "count", "type", "redop", "root"];
    let line = |cells: [&str; 5], side: &str, other: &str| {
        let [size, count, dtype, redop, root] = cells;
        format!("# {size:>10}  {count:>12}  {dtype:>8}  {redop:>6}  {root:>6}{side}{other}")
    };
    let (out, into) = (format!("{:^width$}", "out-of-place"), format!("{:^width$}", "in-place"));
    for line in [
        line([""; 5], &out, &into),
        line(names, titles, titles),
        line(["(B)", "(elements)", "", "", ""], units, units),
    ] {
        *text += line.trim_end();
        text.push('\n');
    }
}

/// The columns of one side; of one that was not measured all are N/A.
fn body(row: Option<&Row>, wide: bool) -> String {
    let shown = |value: Option<f64>, width: usize, of: fn(f64, usize) -> String| match value {
        Some(value) => of(value, width),
        None => format!("{:>width$}", "N/A"),
    };
    let number = |value, width| shown(value, width, fixed);
    let time = |value| shown(value, 7, microseconds);
    let times = row.map(|row| row.times).unwrap_or_default();
    let wrong = row.and_then(Row::wrong).map_or("   N/A".to_owned(), count);
    let mut text = format!(
        "  {}  {}  {}  {wrong}",
        time(times.center_us()),
        number(row.and_then(|row| row.algbw_gb_per_s), 6),
        number(row.and_then(|row| row.busbw_gb_per_s), 6),
    );
    if wide {
        let values = [times.min_us, times.max_us, times.p99_us].map(time);
        for value in values.into_iter().chain([number(times.cv_pct, 7)]) {
            text += "  ";
            text += &value;
        }
    }
    text
}

fn footer(rows: &[&Row], text: &mut String) {
    let wrong = rows.iter().filter(|row| row.wrong().is_some_and(|wrong| wrong > 0)).count();
    let verdict = if wrong > 0 { "FAILED" } else { "OK" };
    let _ = writeln!(text, "# {:<20} : {wrong} {verdict}", "Out of bounds values");
    let busbw: Vec<f64> = rows.iter().filter_map(|row| row.busbw_gb_per_s).collect();
    let mean = match busbw.len() {
        0 => "N/A".to_owned(),
        rows => format!("{:.6}", busbw.iter().sum::<f64>() / rows as f64),
    };
    let _ = writeln!(text, "# {:<20} : {mean}", "Avg bus bandwidth");
    for row in rows {
        let first = row.check.as_ref().and_then(|check| check.first_bad.as_ref());
        if let Some(bad) = first {
            let _ = writeln!(
                text,
                "# wrong at {} bytes: rank {}, element {}: got {}, expected {}",
                row.key.bytes, bad.rank, bad.offset, bad.got, bad.expected
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::full;
    use super::super::row::tests::row;
    use super::*;

    #[test]
    fn numbers_lose_digits_as_those_of_nccl_tests() {
        for (value, width, text) in [
            (12.345, 7, "  12.35"),
            (12345.67, 7, "12345.7"),
            (1234567.8, 7, "1234568"),
            (12_000_000.0, 7, "1.2e+07"),
            (9000.4, 6, "9000.4"),
            (9_000_000.0, 6, " 9e+06"),
            (0.0, 6, "  0.00"),
        ] {
            assert_eq!(fixed(value, width), text, "{value}");
        }
        assert_eq!(microseconds(0.034_94, 7), " 0.0349");
        assert_eq!(microseconds(0.999_96, 7), "   1.00");
        assert_eq!(
            (microseconds(12.345, 7), microseconds(0.0, 7)),
            ("  12.35".into(), "   0.00".into())
        );
        assert_eq!(count(0), "     0");
        assert_eq!(count(999_999), "999999");
        assert_eq!(count(1_234_567), "1.23457e+06");
        assert_eq!(count(5_000_000), "5e+06");
    }

    #[test]
    fn both_places_are_on_one_line_under_the_names_of_their_columns() {
        let mut report = full();
        let mut inside = row(2048, 8.0);
        inside.key.in_place = true;
        report.rows = vec![row(2048, 16.0), inside, row(1024, 4.0)];
        let text = table(&report);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let [small, large] = lines[..] else { panic!("{text}") };
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(words(small), "1024 256 float sum -1 4.00 0.26 0.45 N/A N/A N/A N/A N/A");
        assert_eq!(words(large), "2048 512 float sum -1 16.00 0.13 0.22 N/A 8.00 0.26 0.45 N/A");
        // Numbers end where their titles end.
        let titles = text.lines().find(|line| line.contains("#wrong")).unwrap();
        let end = |line: &str, word: &str| line.find(word).unwrap() + word.len();
        for (title, number) in
            [("size", "2048"), ("count", "512"), ("root", "-1"), ("time", "16.00")]
        {
            assert_eq!(end(titles, title), end(large, number), "{title}\n{text}");
        }
        let head = "# muster 0.1.0\n# nccl 2.30.7\n# cpus bound: rank 0 in NUMA node 0\n#\n\
                    # Collective test starting: all_reduce_perf\n";
        assert!(text.starts_with(head), "{text}");
        assert!(text.contains("# Out of bounds values : 0 OK"), "{text}");
        // The wide form, with what is wrong named below.
        let text = table(&full());
        assert!(text.contains("i_min    i_max    i_p99    i_cv%"), "{text}");
        assert!(text.contains("# Out of bounds values : 1 FAILED"), "{text}");
        assert!(text.contains("rank 3, element 17: got 2, expected 1,5"), "{text}");
    }

    #[test]
    fn what_has_no_bandwidth_has_no_average() {
        let mut report = full();
        let mut barrier = row(0, 3.0);
        barrier.key.op = crate::collectives::Op::Barrier;
        (barrier.algbw_gb_per_s, barrier.busbw_gb_per_s) = (None, None);
        report.rows = vec![barrier];
        assert!(table(&report).contains("# Avg bus bandwidth    : N/A\n"), "{}", table(&report));
    }

    #[test]
    fn overlap_is_told_case_by_case() {
        let text = overlaps(&full());
        let last = text.lines().last().unwrap();
        let words: Vec<&str> = last.split_whitespace().collect();
        // 100 and 250 alone; 120, 280 and 290 together: 60 of 100 are hidden.
        assert_eq!(
            words[..9],
            ["#", "1024", "100.00", "120.00", "1.20", "250.00", "280.00", "1.12", "290.00"]
        );
        assert_eq!(
            words[9..],
            ["60", "all_reduce", "f32", "sum", "8", "ranks", "out", "of", "place"]
        );
        let mut none = full();
        none.rows.remove(0);
        assert_eq!(overlaps(&none), "");
    }

    #[test]
    fn what_reads_nccl_tests_reads_this() {
        for wide in [false, true] {
            let mut report = full();
            let mut gather = row(4096, 12.0);
            gather.key.op = crate::collectives::Op::AllGather;
            (gather.key.redop, gather.key.in_place) = (None, true);
            report.rows = vec![row(2048, 16.0), row(1 << 30, 1e7), gather];
            if wide {
                report.rows.extend(full().rows.drain(..1));
            }
            let roof = crate::collectives::roofline::Roof::Memory { gb_per_s: 20.0 };
            let curves = crate::collectives::curve::text(&report.curves, &roof);
            let all = table(&report) + &curves + &overlaps(&full());
            let read = crate::collectives::read::read(all.as_bytes()).unwrap();
            assert!(read.complete);
            let early = table(&Report { complete: false, ..report.clone() });
            assert!(!crate::collectives::read::read(early.as_bytes()).unwrap().complete);
            assert_eq!(read.rows.len(), report.rows.len());
            for expected in &report.rows {
                let same = |row: &&Row| row.key.agrees(&expected.key);
                let row = read.rows.iter().find(same).unwrap();
                let (time, center) = (row.times.p50_us.unwrap(), expected.times.p50_us.unwrap());
                assert!((time - center).abs() < 0.01 + center * 0.05, "{time} {center}");
                assert_eq!((row.times.mean_us, row.wrong()), (None, expected.wrong()));
            }
        }
    }
}
