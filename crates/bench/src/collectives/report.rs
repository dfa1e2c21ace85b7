//! A report: all rows of a run and where they come from, as JSON with a schema and as CSV.
//!
//! The JSON is frozen by [`SCHEMA_VERSION`]: a reader refuses later versions, and unknown fields.
//! It reads all earlier versions, whose fields are some of today's:
//!
//! ```text
//! 1   rows
//! 2   and curves; of a row what overlapped
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::curve::Curve;
use super::host::Host;
use super::row::Row;
use crate::BenchError;
use crate::report::quoted;

/// The version of the JSON.
pub const SCHEMA_VERSION: u32 = 2;

/// The program that measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// `muster`, `nccl-tests`, `rccl-tests`.
    pub name: String,
    #[serde(default)]
    pub version: Option<String>,
    /// Of its sources, or what else tells builds apart.
    #[serde(default)]
    pub commit: Option<String>,
}

/// All rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema: u32,
    pub tool: Tool,
    /// Seconds since 1970 at the start.
    #[serde(default)]
    pub unix_time_s: Option<u64>,
    /// The start as the program wrote it, without a time zone.
    #[serde(default)]
    pub local_time: Option<String>,
    #[serde(default)]
    pub command: Option<String>,
    #[serde(default)]
    pub hosts: Vec<Host>,
    /// Of all rows together; see `key.transport`.
    #[serde(default)]
    pub transport: Option<String>,
    #[serde(default)]
    pub ranks: Option<usize>,
    /// Threads of one rank.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Which CPUs the ranks of the first host were bound to, in words, or why to none.
    #[serde(default)]
    pub cpus: Option<String>,
    /// Variables that [`super::environment`] lets through.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Versions by library.
    #[serde(default)]
    pub libraries: BTreeMap<String, String>,
    /// False if the run ended before its last row, or the file before its end.
    pub complete: bool,
    /// Failures that another program reports of its own run, with the place in its file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<String>,
    /// The last warnings of its library in a run that did not fail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// Rows of a file that could not be put together, with their lines and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<String>,
    pub rows: Vec<Row>,
    /// Fits of the rows of each case.
    #[serde(default)]
    pub curves: Vec<Curve>,
}

/// Only what tells one version from another.
#[derive(Deserialize)]
struct Version {
    schema: u32,
}

impl Report {
    /// A report of `tool` without rows.
    pub fn new(tool: Tool) -> Report {
        Report {
            schema: SCHEMA_VERSION,
            tool,
            unix_time_s: None,
            local_time: None,
            command: None,
            hosts: Vec::new(),
            transport: None,
            ranks: None,
            threads: None,
            cpus: None,
            environment: BTreeMap::new(),
            libraries: BTreeMap::new(),
            complete: true,
            failures: Vec::new(),
            warnings: Vec::new(),
            skipped: Vec::new(),
            rows: Vec::new(),
            curves: Vec::new(),
        }
    }

    /// Takes what NCCL keeps of errors, and of all that it warns of: the reason of a failure only
    /// where the run has another sign of one.
    pub(super) fn take_last_words(&mut self, said: Vec<String>) {
        let has_failed = !self.complete || !self.failures.is_empty();
        let told = if has_failed { &mut self.failures } else { &mut self.warnings };
        told.extend(said);
    }

    /// The whole report.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// Reads what [`Report::to_json`] wrote.
    ///
    /// # Errors
    /// [`BenchError::Read`] with line and column: no JSON, another version, or a field that is
    /// missing, unknown or of another type.
    pub fn from_json(text: &str) -> Result<Report, BenchError> {
        let version: Version = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        if !(1..=SCHEMA_VERSION).contains(&version.schema) {
            let why = format!(
                "a report of version {}, where this Muster reads versions 1 to {SCHEMA_VERSION}; \
                 compare with the Muster that wrote it, or measure again",
                version.schema
            );
            return Err(BenchError::Read { line: 1, column: 1, why });
        }
        let report: Report = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        Ok(Report { schema: SCHEMA_VERSION, ..report })
    }

    /// The JSON schema of a report.
    pub fn json_schema() -> Value {
        schemars::schema_for!(Report).to_value()
    }

    /// One line per tuple of independent variables, which come first. Whether the run was complete
    /// is the same in all of them.
    pub fn csv(&self) -> String {
        let mut csv = String::new();
        for (index, row) in self.rows.iter().enumerate() {
            let run = vec![("run_complete", self.complete.to_string())];
            let cells = [row.key.fields().to_vec(), measured(row), run].concat();
            if index == 0 {
                csv += &line(cells.iter().map(|(name, _)| *name));
            }
            csv += &line(cells.iter().map(|(_, value)| value.as_str()));
        }
        csv
    }
}

fn line<'a>(cells: impl Iterator<Item = &'a str>) -> String {
    cells.map(quoted).collect::<Vec<_>>().join(",") + "\n"
}

/// The dependent columns of a row.
fn measured(row: &Row) -> Vec<(&'static str, String)> {
    fn text<T: ToString>(value: Option<T>) -> String {
        value.map(|value| value.to_string()).unwrap_or_default()
    }
    let times = &row.times;
    let interval = times.interval.as_ref();
    let first_bad = row.check.as_ref().and_then(|check| check.first_bad.as_ref());
    let (skew, overlap) = (row.skew.as_ref(), row.overlap.as_ref());
    vec![
        ("count", text(row.count)),
        ("p50_us", text(times.p50_us)),
        ("p90_us", text(times.p90_us)),
        ("p99_us", text(times.p99_us)),
        ("min_us", text(times.min_us)),
        ("max_us", text(times.max_us)),
        ("mean_us", text(times.mean_us)),
        ("cv_pct", text(times.cv_pct)),
        ("iterations", text(times.iterations)),
        ("interval_low_us", text(interval.map(|interval| interval.low_us))),
        ("interval_high_us", text(interval.map(|interval| interval.high_us))),
        ("confidence", text(interval.map(|interval| interval.confidence))),
        ("algbw_gb_per_s", text(row.algbw_gb_per_s)),
        ("busbw_gb_per_s", text(row.busbw_gb_per_s)),
        ("wrong", text(row.wrong())),
        ("bad_rank", text(first_bad.map(|bad| bad.rank))),
        ("bad_offset", text(first_bad.map(|bad| bad.offset))),
        ("bad_got", text(first_bad.map(|bad| bad.got.clone()))),
        ("bad_expected", text(first_bad.map(|bad| bad.expected.clone()))),
        ("skew_p50_us", text(skew.map(|skew| skew.p50_us))),
        ("skew_p99_us", text(skew.map(|skew| skew.p99_us))),
        ("skew_max_us", text(skew.map(|skew| skew.max_us))),
        ("path", text(row.path.map(|path| path.word()))),
        ("chosen", text(row.chosen.clone())),
        ("overlap_shape", text(overlap.map(|overlap| overlap.shape.clone()))),
        ("overlap_alone_us", text(overlap.map(|overlap| overlap.collective_alone_us))),
        ("overlap_together_us", text(overlap.map(|overlap| overlap.collective_together_us))),
        ("newton_schulz_alone_us", text(overlap.map(|overlap| overlap.newton_schulz_alone_us))),
        (
            "newton_schulz_together_us",
            text(overlap.map(|overlap| overlap.newton_schulz_together_us)),
        ),
        ("both_us", text(overlap.map(|overlap| overlap.both_us))),
        ("hidden_pct", text(overlap.and_then(|overlap| overlap.hidden_pct))),
        ("overlap_iterations", text(overlap.map(|overlap| overlap.iterations))),
    ]
}

#[cfg(test)]
pub mod tests {
    use super::super::bucket::{Bucket, Decided};
    use super::super::fit::{Fit, Reach, Segment};
    use super::super::roofline::Roofline;
    use super::super::row::tests::{key, row};
    use super::super::row::{Check, FirstBad, Overlap, Path, RankTimes, Skew};
    use super::super::stats::{CONFIDENCE, Times};
    use super::*;

    /// With numbers that decimals hold.
    fn curve() -> Curve {
        let segment = Segment {
            from_bytes: 1024,
            to_bytes: 4096,
            alpha_us: 20.0,
            beta_us_per_byte: 0.5,
            max_error: 0.25,
        };
        Curve {
            key: key(0),
            sizes: 3,
            fit: Some(Fit { segments: vec![segment], mean_error: 0.125, max_error: 0.25 }),
            no_fit: None,
            reach: Some(Reach {
                peak_busbw_gb_per_s: 175.0,
                peak_bytes: 4096,
                half_bytes: 1024,
                ninety_bytes: 2048,
                saturated: true,
            }),
            roofline: Some(Roofline { of: "memory".into(), busbw_gb_per_s: 350.0, percent: 50.0 }),
            bucket: Some(Bucket { bytes: 2048, decided: Decided::Peak }),
        }
    }

    /// A report in which every field says something.
    pub fn full() -> Report {
        let tool = Tool {
            name: "muster".into(),
            version: Some("0.1.0".into()),
            commit: Some("abc".into()),
        };
        let samples: Vec<f64> = (0..40).map(|i| 10.0 + f64::from(i % 7)).collect();
        let first_bad = FirstBad { rank: 3, offset: 17, got: "2".into(), expected: "1,5".into() };
        let mut full = Row::new(row(1024, 1.0).key, Some(256), Times::of(&samples, CONFIDENCE));
        full.check = Some(Check { wrong: 2, launches: Some(41), first_bad: Some(first_bad) });
        full.skew = Some(Skew { p50_us: 0.5, p99_us: 3.0, max_us: 4.0 });
        full.path = Some(Path::Shm);
        full.chosen = Some("ring/ll/56".into());
        let alone_us = (100.0, 250.0);
        full.overlap = Some(Overlap::of("2x256x1024".into(), alone_us, (120.0, 280.0, 290.0), 9));
        full.per_rank = vec![
            RankTimes { rank: 0, p50_us: 12.0, min_us: 10.0, max_us: 16.0, last_share: 0.25 },
            RankTimes { rank: 1, p50_us: 13.0, min_us: 10.0, max_us: 16.5, last_share: 0.75 },
        ];
        Report {
            unix_time_s: Some(1),
            command: Some("muster bench collectives".into()),
            hosts: vec![Host {
                name: "a".into(),
                ranks: vec![0, 1],
                devices: Vec::new(),
                cpus: vec!["0-3".into(), "4-7".into()],
            }],
            transport: Some("shm".into()),
            ranks: Some(8),
            threads: Some(2),
            cpus: Some("bound: rank 0 in NUMA node 0".into()),
            environment: [("NCCL_ALGO".to_owned(), "Ring".to_owned())].into(),
            libraries: [("nccl".to_owned(), "2.30.7".to_owned())].into(),
            rows: vec![full, row(2048, 20.0)],
            curves: vec![curve()],
            ..Report::new(tool)
        }
    }

    #[test]
    fn json_holds_everything_and_the_schema_names_it() {
        let report = full();
        assert_eq!(Report::from_json(&report.to_json().unwrap()).unwrap(), report);
        let schema = Report::json_schema();
        assert!(schema["properties"]["rows"].is_object());
        assert!(schema["$defs"]["Key"]["properties"]["in_place"]["description"].is_string());
        // Every field that is written is in the schema.
        let value = serde_json::to_value(&report).unwrap();
        for (section, name) in [(&value, None), (&value["rows"][0], Some("Row"))] {
            let known = name.map_or(&schema["properties"], |n| &schema["$defs"][n]["properties"]);
            for key in section.as_object().unwrap().keys() {
                assert!(known[key].is_object() || known[key] == true, "{key}");
            }
        }
    }

    #[test]
    fn what_is_no_report_is_refused_with_its_place() {
        let json = full().to_json().unwrap();
        let refusal = |text: &str| Report::from_json(text).unwrap_err().to_string();
        let newer = json.replacen("\"schema\": 2", "\"schema\": 3", 1);
        assert!(refusal(&newer).contains("version 3"), "{}", refusal(&newer));
        let unknown = json.replacen("\"in_place\"", "\"in_pace\"", 1);
        let message = refusal(&unknown);
        assert!(message.contains("in_pace") && message.contains("line"), "{message}");
        assert!(refusal("{}").contains("schema"));
        for end in 0..json.len() {
            assert!(Report::from_json(&json[..end]).is_err(), "{end}");
        }
    }

    #[test]
    fn reports_of_version_1_are_read() {
        let mut report = full();
        report.curves.clear();
        report.rows.iter_mut().for_each(|row| row.overlap = None);
        let mut value = serde_json::to_value(&report).unwrap();
        value["schema"] = 1.into();
        value.as_object_mut().unwrap().remove("curves");
        for row in value["rows"].as_array_mut().unwrap() {
            row.as_object_mut().unwrap().remove("overlap");
        }
        assert_eq!(Report::from_json(&value.to_string()).unwrap(), report);
    }

    /// Splits a line of CSV without using the writer's own ideas.
    fn split(line: &str) -> Vec<String> {
        let (mut cells, mut inside) = (vec![String::new()], false);
        for c in line.chars() {
            match c {
                '"' => inside = !inside,
                ',' if !inside => cells.push(String::new()),
                c => cells.last_mut().unwrap().push(c),
            }
        }
        cells
    }

    #[test]
    fn csv_has_a_line_per_tuple_of_independent_variables() {
        let csv = full().csv();
        let lines: Vec<Vec<String>> = csv.lines().map(split).collect();
        assert_eq!(lines.len(), 3);
        assert!(lines.iter().all(|cells| cells.len() == lines[0].len()));
        let cell = |row: usize, name: &str| {
            lines[row][lines[0].iter().position(|title| title == name).unwrap()].clone()
        };
        assert_eq!((cell(1, "op"), cell(1, "bytes")), ("all_reduce".into(), "1024".into()));
        assert_eq!((cell(1, "bad_expected"), cell(2, "wrong")), ("1,5".into(), String::new()));
        assert_eq!(cell(2, "p50_us"), "20");
        assert_eq!(Report::new(full().tool).csv(), "");
    }
}
