//! Files of other programs, made here from the description of their formats.

use std::fmt::Write;

use super::super::dtype::{ElementType, RedOp};
use super::super::formula::Op;
use super::super::table::fixed;

/// The results of one side of a case.
#[derive(Debug, Clone, PartialEq)]
pub struct MadeSide {
    pub time_us: f64,
    pub alg_bw: f64,
    pub bus_bw: f64,
    pub wrong: Option<u64>,
    /// Times of single iterations, by process.
    pub samples_us: Vec<Vec<f64>>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct MadeCase {
    pub size: u64,
    pub out_of_place: MadeSide,
    pub in_place: MadeSide,
}

/// The results of a program, from which its output is made.
#[derive(Debug, Clone, PartialEq)]
pub struct Made {
    pub op: Op,
    pub dtype: ElementType,
    pub redop: Option<RedOp>,
    pub root: Option<usize>,
    pub cases: Vec<MadeCase>,
}

/// How it prints.
#[derive(Debug, Clone, Default)]
pub struct Style {
    /// Before every line.
    pub tag: String,
    /// Messages of the library come between and within the lines.
    pub log: bool,
    /// `-I`.
    pub per_iteration: bool,
    /// `-C`.
    pub host_time: bool,
    /// `-S`.
    pub timestamp: bool,
    /// rccl-tests' additional times.
    pub hip_events: bool,
    /// rccl-tests' `-A`.
    pub choice: bool,
    /// rccl-tests' `-O`, or a replay.
    pub only_out_of_place: bool,
    pub only_in_place: bool,
    /// A replay prints blanks for the other side.
    pub blank_out_of_place: bool,
    /// Versions before 2.18 have one blank less before #wrong.
    pub narrow_wrong: bool,
}

impl Made {
    pub fn example() -> Made {
        let side = |size: u64, factor: f64, wrong| {
            let time_us = 10.0 + size as f64 / 1e4 * factor;
            let alg_bw = size as f64 / time_us / 1e3;
            let process = |skew: f64| (0..8).map(|i| time_us + skew + f64::from(i % 3)).collect();
            MadeSide {
                time_us,
                alg_bw,
                bus_bw: alg_bw * 1.75,
                wrong,
                samples_us: vec![process(0.0), process(0.5)],
            }
        };
        let case = |size: u64| MadeCase {
            size,
            out_of_place: side(size, 1.0, (size > 1024).then_some(0)),
            in_place: side(size, 1.1, Some(u64::from(size > 1 << 20) * 31)),
        };
        Made {
            op: Op::AllReduce,
            dtype: ElementType::F32,
            redop: Some(RedOp::Sum),
            root: None,
            cases: [1024, 1 << 20, 1 << 30].map(case).to_vec(),
        }
    }

    /// As nccl-tests or rccl-tests print it.
    pub fn text(&self, style: &Style) -> String {
        let mut lines = vec![
            "# nccl-tests version 2.19.6 nccl-headers=23007 nccl-library=23007".to_owned(),
            format!("# Collective test starting: {}", self.op.program().unwrap()),
            "# nThread 1 nGpus 8 minBytes 1024 maxBytes 1073741824 step: 1024(factor) warmup \
             iters: 5 iters: 20 agg iters: 1 validation: 1 graph: 0 unalign: 0"
                .to_owned(),
            "#".to_owned(),
            "# Using devices".to_owned(),
        ];
        for rank in 0..8 {
            lines.push(format!(
                "#  Rank {rank:2} Group  0 Pid {:6} on {:>10} device {rank:2} [0000:{rank:02x}:00] \
                 A GPU of 141 GB",
                4000 + rank,
                "node-a"
            ));
        }
        lines.push("#".to_owned());
        lines.extend(style.header());
        for case in &self.cases {
            lines.push(self.line(case, style));
        }
        lines.extend(
            [
                "# Out of bounds values : 0 OK",
                "# Avg bus bandwidth    : 123.4 ",
                "#",
                "# Collective test concluded: all_reduce_perf",
                "",
                "#",
            ]
            .map(str::to_owned),
        );
        lines.iter().fold(String::new(), |text, line| text + &style.tag + line + "\n")
    }

    fn line(&self, case: &MadeCase, style: &Style) -> String {
        let parts = if self.op.divided() { 8 } else { 1 };
        let count = case.size / self.dtype.bytes() / parts;
        let root = self.root.map_or(-1, |root| root as i64);
        let mut line = format!(
            "{:>12}  {count:>12}  {:>8}  {:>6}  {root:>6}",
            case.size,
            self.dtype.nccl_word(),
            self.redop.map_or("none", |redop| redop.word())
        );
        let log = format!("4node:1:2 [0] NCCL INFO a message\n{}", style.tag);
        if style.log {
            line += &log;
        }
        if !style.only_in_place {
            match style.blank_out_of_place {
                true => line += &" ".repeat(32),
                false => line += &case.out_of_place.text(style),
            }
        }
        if style.log {
            line += &log.replace("NCCL INFO", "x.cc:3 NCCL WARN");
        }
        if !style.only_out_of_place {
            line += &case.in_place.text(style);
            if style.timestamp && !style.per_iteration {
                line += "  2026-07-09 16:03:21";
            }
        }
        if style.choice {
            line += "    RING        LL          56";
        }
        line
    }

    /// As nccl-tests writes it with `-J`.
    pub fn json(&self) -> String {
        let mut devices = Vec::new();
        for rank in 0..8 {
            devices.push(format!(
                "{{\"rank\":{rank},\"group\":0,\"pid\":1,\"hostname\":\"node\",\"device\":{rank},\
                 \"device_hex\":\"0000:01:00\",\"device_info\":\"A GPU\"}}"
            ));
        }
        let cases: Vec<String> = self.cases.iter().map(|case| self.json_case(case)).collect();
        format!(
            "{{\"version\":3,\"start_time\":\"2026-07-09 16:03:21\",\"args\":[\".\\/build\\/{}\",\
             \"-g\",\"8\"],\"env\":[\"NCCL_ALGO=Ring\",\"AWS_SECRET_ACCESS_KEY=hidden\"],\
             \"nccl_version\":23007,\"config\":{{\"nthreads\":1,\"ngpus\":8,\"minimum_bytes\":1024,\
             \"maximum_bytes\":1073741824,\"step_factor\":1024,\"warmup_iters\":1,\
             \"iterations\":20,\"aggregated_iterations\":1,\"validation\":1,\"graph\":0,\
             \"blocking_collectives\":\"false\",\"per_iter_timing\":\"true\",\"per_iter_skip\":2,\
             \"parallel_init\":\"false\",\"devices\":[{}]}},\"results\":[{}],\
             \"out_of_bounds\":{{\"count\":0,\"okay\":\"true\"}},\"average_bus_bandwidth\":\
             {{\"bandwidth\":123.400000,\"okay\":\"unchecked\"}},\"errors\":[\"\"],\
             \"end_time\":\"2026-07-09 16:03:29\"}}",
            self.op.program().unwrap(),
            devices.join(","),
            cases.join(",")
        )
    }

    fn json_case(&self, case: &MadeCase) -> String {
        let side = |name: &str, side: &MadeSide| {
            let wrong = side.wrong.map_or("null".to_owned(), |wrong| format!("{wrong}.000000"));
            let list = |times: &[f64]| {
                let times: Vec<String> = times.iter().map(|time| format!("{time:.6}")).collect();
                format!("[{}]", times.join(","))
            };
            let most = |i: usize| side.samples_us.iter().map(|s| s[i]).fold(0.0, f64::max);
            let times: Vec<f64> = (0..side.samples_us[0].len()).map(most).collect();
            let processes: Vec<String> = side.samples_us.iter().map(|times| list(times)).collect();
            format!(
                "\"{name}\":{{\"time\":{:.6},\"alg_bw\":{:.6},\"bus_bw\":{:.6},\
                 \"nwrong\":{wrong}}},\
                 \"{name}_per_iter\":{{\"skipped_iterations\":2,\"min_us\":0.000000,\
                 \"max_us\":0.000000,\"avg_us\":0.000000,\"p50_us\":0.000000,\"p95_us\":0.000000,\
                 \"p99_us\":0.000000,\"stdev_us\":0.000000,\"cv_pct\":\"nan\",\"times_us\":{},\
                 \"per_process_max_times_us\":[{}]}}",
                side.time_us,
                side.alg_bw,
                side.bus_bw,
                list(&times),
                processes.join(",")
            )
        };
        format!(
            "{{\"size\":{},\"count\":{},\"type\":\"{}\",\"redop\":\"{}\",\"root\":\"{:>6}\",{},{},\
             \"actual_iterations\":8,\"experiment_name\":\"\"}}",
            case.size,
            case.size / self.dtype.bytes(),
            self.dtype.nccl_word(),
            self.redop.map_or("none", |redop| redop.word()),
            self.root.map_or(-1, |root| root as i64),
            side("out_of_place", &case.out_of_place),
            side("in_place", &case.in_place)
        )
    }

    /// The cells of each side of each case, as rccl-tests writes them.
    fn cells(&self, mpi: bool) -> Vec<Vec<(&'static str, String)>> {
        let quoted = |text: &str| format!("\"{text}\"");
        let mut rows = Vec::new();
        for case in &self.cases {
            for (in_place, side) in [(0, &case.out_of_place), (1, &case.in_place)] {
                let wrong = side.wrong.map_or("N/A".to_owned(), |wrong| wrong.to_string());
                let mut row = vec![("numCycle", "0".to_owned()), ("name", quoted("AllReduce"))];
                if mpi {
                    row.extend([
                        ("nodes", "2".to_owned()),
                        ("ranks", "4".to_owned()),
                        ("ranksPerNode", "2".to_owned()),
                        ("gpusPerRank", "2".to_owned()),
                    ]);
                } else {
                    row.push(("gpus", "8".to_owned()));
                }
                row.extend([
                    ("size", case.size.to_string()),
                    ("type", quoted(self.dtype.nccl_word())),
                    ("redop", quoted(self.redop.map_or("none", |redop| redop.word()))),
                    ("inPlace", in_place.to_string()),
                    ("time", format!("{:.6}", side.time_us)),
                    ("algBw", format!("{:.6}", side.alg_bw)),
                    ("busBw", format!("{:.6}", side.bus_bw)),
                    ("wrong", quoted(&wrong)),
                ]);
                rows.push(row);
            }
        }
        rows
    }

    /// As rccl-tests writes it with `-Z json`.
    pub(crate) fn reporter_json(&self, mpi: bool) -> String {
        let object = |row: &Vec<(&str, String)>| {
            let pairs = row.iter().map(|(name, value)| format!("\"{name}\":{value}"));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(", "))
        };
        let objects: Vec<String> = self.cells(mpi).iter().map(object).collect();
        format!("[\n{}\n]\n", objects.join(",\n"))
    }

    /// As rccl-tests writes it with `-Z csv`: with MPI the header lacks a name.
    pub(crate) fn reporter_csv(&self, mpi: bool) -> String {
        let counts = if mpi { "ranks,rankspernode,gpusperrank" } else { "gpus" };
        let mut csv = format!(
            "numCycle,collective,{counts},size,type,redop,inplace,time,algbw,busbw,#wrong\n"
        );
        for row in self.cells(mpi) {
            let cells: Vec<String> = row.into_iter().map(|(_, value)| value).collect();
            csv += &cells.join(",");
            csv.push('\n');
        }
        csv
    }
}

impl Style {
    fn header(&self) -> Vec<String> {
        let mut columns =
            vec![if self.host_time { "cputime" } else { "time" }, "algbw", "busbw", "#wrong"];
        let mut units = vec!["(us)", "(GB/s)", "(GB/s)", ""];
        if self.hip_events {
            columns.insert(1, "hipevt");
            units.insert(1, "(us)");
        }
        if self.per_iteration {
            columns.extend(["i_min", "i_max", "i_p99", "i_cv%"]);
            units.extend(["(us)", "(us)", "(us)", "(%)"]);
        }
        let sides = match (self.only_out_of_place, self.only_in_place) {
            (true, _) => vec!["out-of-place"],
            (_, true) => vec!["in-place"],
            _ => vec!["out-of-place", "in-place"],
        };
        let mut title = "#                                                  ".to_owned();
        let mut names = "#       size         count      type   redop    root".to_owned();
        let mut below = "#        (B)    (elements)                          ".to_owned();
        for side in &sides {
            let note = if self.per_iteration { " (+ per-iteration)" } else { "" };
            let _ = write!(title, "         {side}{note}          ");
            for (column, unit) in columns.iter().zip(&units) {
                let width = if column.contains("bw") || *column == "#wrong" { 6 } else { 7 };
                let blanks = if self.narrow_wrong && *column == "#wrong" { " " } else { "  " };
                let _ = write!(names, "{blanks}{column:>width$}");
                let _ = write!(below, "  {unit:>width$}");
            }
        }
        if self.choice {
            names += " algo      proto      nchannels";
        }
        if self.timestamp {
            names += "           timestamp";
            below += "   %Y-%m-%d %H:%M:%S";
        }
        vec!["#".to_owned(), title, names, below]
    }
}

impl MadeSide {
    fn text(&self, style: &Style) -> String {
        let mut text = format!("  {}", fixed(self.time_us, 7));
        if style.hip_events {
            text += "      N/A";
        }
        let width = if style.narrow_wrong { 5 } else { 6 };
        let wrong = self.wrong.map_or("N/A".to_owned(), |wrong| wrong.to_string());
        let wrong = format!("{wrong:>width$}");
        let (alg_bw, bus_bw) = (fixed(self.alg_bw, 6), fixed(self.bus_bw, 6));
        let _ = write!(text, "  {alg_bw}  {bus_bw}  {wrong}");
        if style.per_iteration {
            let all = || self.samples_us.iter().flatten().copied();
            let (low, high) = (all().fold(f64::MAX, f64::min), all().fold(0.0, f64::max));
            for time in [low, high, high, 3.25] {
                let _ = write!(text, "  {}", fixed(time, 7));
            }
        }
        text
    }
}
