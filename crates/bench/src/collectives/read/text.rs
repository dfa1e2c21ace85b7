//! What nccl-tests and rccl-tests print, also as it ends up in the log of a job.
//!
//! ```text
//! # nccl-tests version …           the program
//! # Collective test starting: …    the operation
//! # nThread … iters: 20 …          iterations
//! #  Rank  0 … on HOST device …    ranks, hosts and devices
//! #  size  count  type  redop …    columns: rows follow
//!    1024    256  float    sum …
//! # Avg bus bandwidth …            the table's end
//! ```
//!
//! This program's own tables have these columns, too, below `# muster VERSION`; their times are
//! medians, and a line `# N ranks, TRANSPORT, ordered` stands above each.
//!
//! Several programs may follow each other. Known oddities: see [`super::lines`] and
//! [`super::layout`]; #wrong is `N/A` where nothing was checked; the file may end anywhere. Between
//! the columns' header and the end of a table nothing but rows, comments, blank lines and messages
//! of the library may come; elsewhere lines that begin like rows are refused, others passed over.

use super::super::formula::Op;
use super::super::report::{Host, Report, Tool};
use super::super::row::{Check, Key, Row};
use super::super::stats::Times;
use super::json::dotted;
use super::layout::{Cells, Column, Layout};
use super::lines::{message, untagged, words};
use crate::BenchError;

/// This program, as its tables begin.
const MUSTER: &str = "muster";
const UNVERSIONED: &str = "muster of unknown version";

/// What these programs print when they give up.
const FAILURES: [&str; 4] =
    [": Test NCCL failure ", ": Test CUDA failure ", ": Test failure ", ": Test timeout "];

/// Of the rows of one table, beside what their columns say.
#[derive(Default)]
struct Stated {
    transport: Option<String>,
    algorithm: Option<String>,
    ordered: Option<bool>,
}

struct Reader {
    report: Report,
    op: Option<Op>,
    ranks: Option<usize>,
    /// The group whose ranks are counted: of several, all have the same number.
    group: Option<String>,
    /// What this program's own tables state above their columns.
    stated: Stated,
    iterations: Option<u64>,
    /// The comment before, which names the sides where columns follow.
    places: String,
    /// Inside a table.
    layout: Option<Layout>,
    /// The beginning of a row that a message broke off.
    pending: String,
    tables: usize,
    /// Tables with their end.
    ended: usize,
    failed: bool,
    /// The number of the line that is read.
    line: usize,
}

/// Reads a log.
///
/// # Errors
/// [`BenchError::Read`]: no table, a table of an unknown operation or with unknown columns, or a
/// line in it that is no row.
pub fn read(text: &str) -> Result<Report, BenchError> {
    let tool = Tool { name: "nccl-tests".to_owned(), version: None, commit: None };
    let mut reader = Reader {
        report: Report::new(tool),
        op: None,
        ranks: None,
        group: None,
        stated: Stated::default(),
        iterations: None,
        places: String::new(),
        layout: None,
        pending: String::new(),
        tables: 0,
        ended: 0,
        failed: false,
        line: 1,
    };
    for (index, whole) in text.split_inclusive('\n').enumerate() {
        reader.line = index + 1;
        let line = whole.trim_end_matches(['\n', '\r']);
        let cut_off = !whole.ends_with('\n');
        let taken = reader.line(line, cut_off);
        let line = reader.line;
        taken.map_err(|(column, why)| BenchError::Read { line, column, why })?;
    }
    if reader.tables == 0 {
        let why = "no table of nccl-tests or rccl-tests, and no report: a line `# size count type \
                   redop root time …` is missing";
        return Err(BenchError::Read { line: reader.line, column: 1, why: why.to_owned() });
    }
    reader.report.complete =
        reader.ended == reader.tables && !reader.failed && reader.pending.is_empty();
    Ok(reader.report)
}

impl Reader {
    /// Takes a line; a mistake is at a column, counted from 1.
    fn line(&mut self, line: &str, cut_off: bool) -> Result<(), (usize, String)> {
        let untagged = untagged(line);
        let tag = line.len() - untagged.len();
        let carried = self.pending.len();
        let mut text = std::mem::take(&mut self.pending) + untagged;
        let column = |at: usize| (at + tag).saturating_sub(carried) + 1;
        let mut broken = false;
        if let Some(message) = message(&text) {
            let cut = self.layout.as_ref().and_then(|layout| layout.cut(&text, message.word));
            text.truncate(cut.unwrap_or(message.start));
            broken = true;
            if text.trim().is_empty() {
                return Ok(());
            }
        }
        if FAILURES.iter().any(|words| text.contains(words)) {
            self.failed = true;
            self.layout = None;
            return Ok(());
        }
        let start = text.trim_start();
        if start.is_empty() {
            return Ok(());
        }
        if start.starts_with('#') {
            return self.comment(&text).map_err(|(at, why)| (column(at), why));
        }
        let begins_like_a_row =
            words(&text).take(2).filter(|(_, word)| word.parse::<u64>().is_ok()).count() == 2;
        let Some(layout) = &self.layout else {
            return match begins_like_a_row {
                true => Err((column(0), "a row before the names of its columns".to_owned())),
                false => Ok(()),
            };
        };
        if cut_off {
            // Its last number may have lost digits.
            self.failed = true;
            if let Some(cells) = layout.row_cut_off(&text) {
                self.rows(cells);
            }
            return Ok(());
        }
        match layout.row(&text) {
            Ok(Some(cells)) => self.rows(cells),
            Ok(None) => self.pending = text,
            // A message within a number's column, which no program writes.
            Err((at, why)) if broken => return Err((column(at), format!("{why}, broken off"))),
            Err((at, why)) => return Err((column(at), why)),
        }
        Ok(())
    }

    /// Takes a line that begins with `#`; a mistake is at a byte of it.
    fn comment(&mut self, text: &str) -> Result<(), (usize, String)> {
        if !self.pending.is_empty() {
            return Err((0, "a comment within a row".to_owned()));
        }
        let body = text.trim_start().trim_start_matches('#').trim();
        let mut all = body.split_whitespace();
        match (all.next(), all.next()) {
            (Some("nccl-tests" | "rccl-tests"), Some("version")) => self.program(body),
            (Some(MUSTER), Some(version)) if is_version(version) || body == UNVERSIONED => {
                self.report.tool.name = MUSTER.to_owned();
                self.report.tool.version = Some(version.to_owned()).filter(|v| is_version(v));
            }
            (Some("incomplete:"), _) if self.is_own() => self.failed = true,
            (Some("cpus"), Some(_)) if self.is_own() => {
                self.report.cpus = Some(body["cpus".len()..].trim().to_owned());
            }
            (Some(library), Some(version))
                if self.is_own() && self.op.is_none() && is_version(version) =>
            {
                self.report.libraries.insert(library.to_owned(), version.to_owned());
            }
            (Some("Collective"), Some("test")) => self.test(body),
            (Some("nThread"), _) => {
                let iterations = body.split(" iters: ").nth(2).and_then(|rest| {
                    rest.split_whitespace().next().and_then(|number| number.parse().ok())
                });
                self.iterations = iterations;
            }
            (Some("Using"), Some("devices")) => {
                (self.ranks, self.group) = (None, None);
                self.report.hosts.clear();
            }
            (Some("Rank"), Some(_)) => self.rank(body)?,
            (Some(n), Some("ranks," | "ranks")) if n.parse::<usize>().is_ok() => {
                self.ranks = n.parse().ok();
                self.stated = stated(body);
            }
            (Some("size"), Some("count")) => return self.table(text),
            (Some("Out"), Some("of")) => {
                let verdict = body.split_once(':').map_or("", |(_, verdict)| verdict.trim());
                // This program's counts rows, which say it themselves.
                let is_good = verdict.starts_with("0 ") && !verdict.ends_with("FAILED");
                if !is_good && !self.is_own() {
                    self.fail(body);
                }
            }
            // The library's last word, below the tables.
            (Some("error:"), Some(_)) => self.fail(body),
            (Some("Avg"), Some("bus")) => {
                self.ended += usize::from(self.layout.take().is_some());
            }
            _ => {}
        }
        self.places = text.to_owned();
        Ok(())
    }

    /// Whether this program wrote what is read.
    fn is_own(&self) -> bool {
        self.report.tool.name == MUSTER
    }

    /// Keeps what the program says of its own run that went wrong.
    fn fail(&mut self, said: &str) {
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        self.report.failures.push(format!("line {}: {said}", self.line));
    }

    /// `nccl-tests version V nccl-headers=N nccl-library=N`.
    fn program(&mut self, body: &str) {
        let mut all = body.split_whitespace();
        let name = all.next().unwrap_or_default().to_owned();
        self.report.tool.version = all.nth(1).map(str::to_owned);
        self.report.tool.name = name;
        for word in all {
            let Some((library, number)) = word.split_once("-library=") else { continue };
            if let Ok(number) = number.parse() {
                self.report.libraries.insert(library.to_owned(), dotted(number));
            }
        }
    }

    /// `Collective test starting: NAME`; an unknown name is told where its table comes.
    fn test(&mut self, body: &str) {
        if let Some(name) = body.strip_prefix("Collective test starting:") {
            self.op = name.trim().parse().ok();
            self.layout = None;
            self.stated = Stated::default();
        }
    }

    /// `Rank R Group G Pid P on HOST device D [BUS] NAME`; one that is cut off makes their number
    /// unknown, and one that comes twice is that of another run.
    fn rank(&mut self, body: &str) -> Result<(), (usize, String)> {
        let all: Vec<&str> = body.split_whitespace().collect();
        let after = |name: &str| {
            all.iter().position(|word| *word == name).and_then(|at| all.get(at + 1)).copied()
        };
        let rank = after("Rank").and_then(|rank| rank.parse::<usize>().ok());
        let (Some(rank), Some(host), Some(device)) = (rank, after("on"), body.split_once("] "))
        else {
            self.ranks = None;
            self.group = Some(String::new());
            return Ok(());
        };
        let group = after("Group").unwrap_or("0").to_owned();
        if *self.group.get_or_insert_with(|| group.clone()) != group {
            return Ok(());
        }
        if self.report.hosts.iter().any(|known| known.ranks.contains(&rank)) {
            let why = format!(
                "rank {rank} for the second time: the log is of several runs at once, each on its \
                 own; build nccl-tests with MPI=1, so that they become one"
            );
            return Err((0, why));
        }
        self.ranks = Some(self.ranks.unwrap_or(0) + 1);
        let device = device.1.to_owned();
        match self.report.hosts.iter_mut().find(|known| known.name == host) {
            Some(known) => {
                known.ranks.push(rank);
                known.devices.push(device);
            }
            None => {
                let name = host.to_owned();
                self.report.hosts.push(Host {
                    name,
                    ranks: vec![rank],
                    devices: vec![device],
                    cpus: Vec::new(),
                });
            }
        }
        Ok(())
    }

    /// The line of columns.
    fn table(&mut self, titles: &str) -> Result<(), (usize, String)> {
        if self.op.is_none() {
            let known = Op::ALL.iter().filter_map(|op| op.program()).collect::<Vec<_>>().join(", ");
            let why = format!(
                "a table of an operation that is not named; write the line `# Collective test \
                 starting: NAME` above it, where NAME is one of {known}"
            );
            return Err((0, why));
        }
        self.layout = Some(Layout::of(titles, &self.places)?);
        self.tables += 1;
        // Of several programs in one file the first says how many ranks there are.
        self.report.ranks = self.report.ranks.or(self.ranks);
        Ok(())
    }

    fn rows(&mut self, cells: Cells) {
        let Some(op) = self.op else { return };
        for (in_place, side) in &cells.sides {
            let number = |column: Column| {
                side.iter().find(|(known, _)| *known == column).and_then(|(_, value)| *value)
            };
            let host_time = side.iter().any(|(column, _)| *column == Column::HostTime);
            let time = number(if host_time { Column::HostTime } else { Column::Time });
            let (p50_us, mean_us) = if self.is_own() { (time, None) } else { (None, time) };
            let times = Times {
                p50_us,
                mean_us,
                min_us: number(Column::Min),
                max_us: number(Column::Max),
                p99_us: number(Column::P99),
                cv_pct: number(Column::CvPct),
                iterations: self.iterations,
                host_time,
                ..Times::default()
            };
            // A side that was not measured has no numbers at all.
            if side.iter().all(|(_, value)| value.is_none()) {
                continue;
            }
            let key = Key {
                op,
                dtype: cells.dtype,
                redop: cells.redop.filter(|_| op.reduces()),
                root: cells.root,
                ranks: self.ranks,
                bytes: cells.size,
                in_place: *in_place,
                algorithm: self.stated.algorithm.clone(),
                transport: self.stated.transport.clone(),
                ordered: self.stated.ordered,
            };
            let wrong = number(Column::Wrong);
            self.report.rows.push(Row {
                algbw_gb_per_s: number(Column::AlgBw),
                busbw_gb_per_s: number(Column::BusBw),
                check: wrong.map(|n| Check { wrong: n as u64, ..Check::default() }),
                chosen: cells.choice.clone(),
                ..Row::new(key, Some(cells.count), times)
            });
        }
    }
}

/// `N ranks, TRANSPORT, ALGORITHM, ordered`, of which only the first is always there.
fn stated(body: &str) -> Stated {
    let mut stated = Stated::default();
    for word in body.split(',').skip(1).map(str::trim) {
        match word {
            "ordered" => stated.ordered = Some(true),
            "unordered" => stated.ordered = Some(false),
            word if stated.transport.is_none() => stated.transport = Some(word.to_owned()),
            word => stated.algorithm = Some(word.to_owned()),
        }
    }
    stated
}

/// `2.30.7`
fn is_version(word: &str) -> bool {
    word.contains('.') && word.split('.').all(|part| part.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::super::dtype::{ElementType, RedOp};
    use super::super::made::{Made, MadeSide, Style};
    use super::*;

    /// What was made, as rows.
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
        let failed = text.replace(" values : 0 OK", " values : 7 FAILED")
            + "# error: unhandled system error\n";
        let said = ["line 22: Out of bounds values : 7 FAILED", "line 28: error: unhandled system error"];
        assert_eq!(read(&failed).unwrap().failures, said);
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
}
