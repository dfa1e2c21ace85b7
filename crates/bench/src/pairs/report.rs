//! The bandwidths that were measured between all pairs.

use std::fmt::Write as _;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::crowd::Crowd;
use super::diagnose::Finding;
use super::edge::{Edge, Seat};
use super::judge::Dismissed;
use crate::BenchError;

/// The version of the file.
pub const SCHEMA_VERSION: u32 = 1;

/// Ranks up to which the table is a matrix.
const MATRIX_RANKS: usize = 16;

/// All pairs of a job, and what is slow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub pairs: u32,
    pub command: Option<String>,
    pub unix_time_s: Option<u64>,
    pub transport: String,
    /// Of a message whose time gives the bandwidth.
    pub message_bytes: u64,
    /// Names, by number.
    pub hosts: Vec<String>,
    /// By rank.
    pub seats: Vec<Seat>,
    /// The best of each, where some were measured again.
    pub edges: Vec<Edge>,
    pub findings: Vec<Finding>,
    /// Parts that seemed slow at first, and are not called so.
    #[serde(default)]
    pub dismissed: Vec<Dismissed>,
    /// Machines whose ranks outnumber their cores.
    #[serde(default)]
    pub crowds: Vec<Crowd>,
}

impl Report {
    /// The file.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// One line per direction.
    pub fn csv(&self) -> String {
        let mut text = String::from("from,to,from_host,to_host,gb_per_s,round_trip_us\n");
        for Edge { from, to, gb_per_s, round_trip_us } in &self.edges {
            let (a, b) = (self.seats[*from].host, self.seats[*to].host);
            let _ = writeln!(text, "{from},{to},{a},{b},{gb_per_s},{round_trip_us}");
        }
        text
    }

    /// The report for a reader: the matrix of a few ranks, the ends of more, and what is slow.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let ranks = self.seats.len();
        let _ = writeln!(
            text,
            "# {} ranks on {} {}, {}, messages of {} bytes; GB/s from row to column",
            ranks,
            self.hosts.len(),
            if self.hosts.len() == 1 { "host" } else { "hosts" },
            self.transport,
            self.message_bytes
        );
        match ranks <= MATRIX_RANKS {
            true => self.matrix(&mut text),
            false => self.ends(&mut text),
        }
        for finding in &self.findings {
            let _ = writeln!(text, "slow: {finding}");
        }
        if self.findings.is_empty() {
            let few = ranks < 3;
            let what =
                if few { "too few ranks to compare" } else { "nothing is slower than its like" };
            let _ = writeln!(text, "{what}");
        }
        for dismissed in &self.dismissed {
            let _ = writeln!(text, "seemed slow: {dismissed}");
        }
        for crowd in &self.crowds {
            let _ = writeln!(text, "warning: {crowd}");
        }
        if self.hosts.len() == 2 {
            let _ = writeln!(text, "two hosts are not compared with each other");
        }
        text
    }

    fn matrix(&self, text: &mut String) {
        let ranks = self.seats.len();
        let mut cells = vec![vec![None; ranks]; ranks];
        for edge in &self.edges {
            cells[edge.from][edge.to] = Some(edge.gb_per_s);
        }
        let _ = write!(text, "{:>6}", "");
        (0..ranks).for_each(|rank| {
            let _ = write!(text, "{rank:>9}");
        });
        let _ = writeln!(text, "{:>14}", "round trip us");
        for (from, row) in cells.iter().enumerate() {
            let _ = write!(text, "{from:>6}");
            for cell in row {
                let _ = match cell {
                    Some(value) => write!(text, "{value:>9.3}"),
                    None => write!(text, "{:>9}", "-"),
                };
            }
            let trips = self.edges.iter().filter(|edge| edge.from == from);
            let best = trips.map(|edge| edge.round_trip_us).fold(f64::INFINITY, f64::min);
            let _ = writeln!(text, "{best:>14.2}");
        }
    }

    /// The slowest and fastest directions.
    fn ends(&self, text: &mut String) {
        let mut sorted: Vec<&Edge> = self.edges.iter().collect();
        sorted.sort_by(|a, b| a.gb_per_s.total_cmp(&b.gb_per_s));
        let line = |text: &mut String, word: &str, edge: &Edge| {
            let Edge { from, to, gb_per_s, round_trip_us } = edge;
            let _ = writeln!(
                text,
                "{word} {from:>5} to {to:>5} {gb_per_s:>9.3} GB/s {round_trip_us:>9.2} us"
            );
        };
        sorted.iter().take(8).for_each(|edge| line(text, "slowest", edge));
        if let Some(middle) = sorted.get(sorted.len() / 2) {
            line(text, "median ", middle);
        }
        if let Some(fastest) = sorted.last() {
            line(text, "fastest", fastest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pairs::diagnose::Part;
    use crate::pairs::judge::Why;

    fn report(ranks: usize) -> Report {
        let seats: Vec<Seat> =
            (0..ranks).map(|rank| Seat { host: rank / 2, rail: rank % 2 }).collect();
        let pairs = (0..ranks).flat_map(|a| (0..ranks).map(move |b| (a, b)));
        let edge = |(from, to): (usize, usize)| Edge {
            from,
            to,
            gb_per_s: (from + to) as f64,
            round_trip_us: 7.5,
        };
        Report {
            pairs: SCHEMA_VERSION,
            command: None,
            unix_time_s: None,
            transport: "tcp".into(),
            message_bytes: 4 << 20,
            hosts: (0..ranks.div_ceil(2)).map(|host| format!("n{host}")).collect(),
            edges: pairs.filter(|(a, b)| a != b).map(edge).collect(),
            findings: vec![Finding {
                part: Part::Link { from: 0, to: 1 },
                between_hosts: false,
                gb_per_s: 1.0,
                median_gb_per_s: 4.0,
                z: -9.0,
            }],
            dismissed: Vec::new(),
            crowds: Vec::new(),
            seats,
        }
    }

    #[test]
    fn few_ranks_are_a_matrix_and_many_the_ends() {
        let table = report(4).table();
        assert!(table.contains("# 4 ranks on 2 hosts, tcp, messages of 4194304 bytes"), "{table}");
        assert!(
            table.contains("\n     1    1.000        -    3.000    4.000          7.50\n"),
            "{table}"
        );
        assert!(
            table.contains("slow: the link from rank 0 to rank 1 carries 1.000 GB/s"),
            "{table}"
        );
        let table = report(20).table();
        assert!(table.contains("slowest     0 to     1     1.000 GB/s"), "{table}");
        assert!(table.contains("fastest"), "{table}");
        let none = Report { findings: Vec::new(), ..report(4) };
        let end = "nothing is slower than its like\ntwo hosts are not compared with each other\n";
        assert!(none.table().ends_with(end));
        let [finding] = &report(4).findings[..] else { panic!("a finding") };
        let dismissed = Dismissed { finding: finding.clone(), why: Why::Faster { gb_per_s: 3.9 } };
        let crowd = Crowd { hosts: vec![0, 1], ranks: 4, cores: 2 };
        let busy = Report { dismissed: vec![dismissed], crowds: vec![crowd], ..none };
        let table = busy.table();
        let lines: Vec<&str> = table.lines().rev().take(4).collect();
        assert!(
            lines[1].starts_with("warning: the 4 ranks of hosts 0, 1 share 2 cores: "),
            "{table}"
        );
        assert!(lines[2].starts_with("seemed slow: the link from rank 0 to rank 1 "), "{table}");
        assert!(lines[2].ends_with("measured again, 3.900 GB/s"), "{table}");
        assert_eq!(lines[3], "nothing is slower than its like");
    }

    #[test]
    fn a_report_is_json_and_csv() {
        let report = report(4);
        let read: Report = serde_json::from_str(&report.to_json().unwrap()).unwrap();
        assert_eq!(read, report);
        let csv = report.csv();
        assert_eq!(csv.lines().count(), 13);
        assert!(csv.contains("\n0,3,0,1,3,7.5\n"), "{csv}");
    }
}
