//! The JSON of nccl-tests (versions 1 to 3) and rccl-tests (version 1).
//!
//! Known oddities: booleans and NaN are strings, the root is a string filled up with blanks,
//! `nwrong` is `null` where nothing was checked, `cpu_time` stands for `time` with `-C`, the whole
//! environment is in it, and the operation is only named by the program in `args`. After an error
//! the file is closed mechanically: it ends with any row, any part of a row may be missing, open
//! keys hold `null`, and neither averages nor `end_time` come. `errors` holds an empty text where
//! there was none.
//!
//! `out_of_bounds` is a failure of the run. `errors` has the library's last error, which is also
//! what it only warned of: it is a failure where the run has another sign of one. An average below
//! what was asked for is none: how fast it was is for whoever compares.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::super::dtype::{ElementType, RedOp};
use super::super::environment;
use super::super::formula::Op;
use super::super::host::Host;
use super::super::report::{Report, Tool};
use super::super::row::{Check, Key, RankTimes, Row};
use super::super::stats::{CONFIDENCE, Times, median};
use crate::BenchError;

/// The versions that are known.
const VERSIONS: std::ops::RangeInclusive<u32> = 1..=3;

/// A number, or `"nan"`.
#[derive(Clone, Copy, Default)]
struct Number(Option<f64>);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        struct Numbers;
        impl Visitor<'_> for Numbers {
            type Value = Number;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number or \"nan\"")
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Number, E> {
                Ok(Number(Some(value).filter(|value| value.is_finite())))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Number, E> {
                Ok(Number(Some(value as f64)))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Number, E> {
                Ok(Number(Some(value as f64)))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                match text {
                    "nan" => Ok(Number(None)),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Numbers)
    }
}

/// A text that is read as something else.
fn parsed<'de, D: Deserializer<'de>, T: FromStr<Err = BenchError>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}

/// A reduction, or `none`.
fn redop<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RedOp>, D::Error> {
    match String::deserialize(deserializer)?.as_str() {
        "none" => Ok(None),
        text => text.parse().map(Some).map_err(de::Error::custom),
    }
}

/// A rank as a text with blanks before it; `-1` is none.
fn root<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    let text = String::deserialize(deserializer)?;
    match text.trim() {
        "-1" => Ok(None),
        rank => rank.parse().map(Some).map_err(|_| {
            de::Error::custom(format!("`{text}` is no root; expected a rank, or -1 for none"))
        }),
    }
}

/// Elements as a number with a point, or `null`.
fn wrong<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match Option::<Number>::deserialize(deserializer)? {
        None => Ok(None),
        Some(Number(Some(value))) if value >= 0.0 && value.fract() == 0.0 => Ok(Some(value as u64)),
        Some(_) => Err(de::Error::custom("`nwrong` is no whole number of elements")),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    start_time: Option<String>,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    nccl_version: Option<u64>,
    rccl_version: Option<u64>,
    config: Option<Config>,
    results: Option<Vec<Case>>,
    out_of_bounds: Option<OutOfBounds>,
    average_bus_bandwidth: Option<de::IgnoredAny>,
    errors: Option<Vec<Option<String>>>,
    end_time: Option<String>,
}

/// How many results of how many cases were wrong.
#[derive(Deserialize)]
struct OutOfBounds {
    count: Option<u64>,
    okay: Option<String>,
}

/// The settings that matter; their names grow with every version.
#[derive(Deserialize)]
struct Config {
    nthreads: Option<usize>,
    iterations: Option<u64>,
    #[serde(default)]
    devices: Vec<Device>,
}

#[derive(Deserialize)]
struct Device {
    rank: usize,
    #[serde(default)]
    group: i64,
    hostname: String,
    #[serde(default)]
    device_info: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    size: u64,
    count: u64,
    #[serde(rename = "type", deserialize_with = "parsed")]
    dtype: ElementType,
    #[serde(deserialize_with = "redop")]
    redop: Option<RedOp>,
    #[serde(deserialize_with = "root")]
    root: Option<usize>,
    out_of_place: Option<Side>,
    out_of_place_per_iter: Option<PerIteration>,
    in_place: Option<Side>,
    in_place_per_iter: Option<PerIteration>,
    actual_iterations: Option<u64>,
    #[serde(rename = "experiment_name")]
    _experiment_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSide {
    time: Option<Number>,
    cpu_time: Option<Number>,
    #[serde(rename = "hip_event_time")]
    _hip_event_time: Option<Number>,
    alg_bw: Number,
    bus_bw: Number,
    #[serde(default, deserialize_with = "wrong")]
    nwrong: Option<u64>,
}

#[derive(Deserialize)]
#[serde(try_from = "RawSide")]
struct Side {
    time_us: Option<f64>,
    host_time: bool,
    alg_bw: Option<f64>,
    bus_bw: Option<f64>,
    wrong: Option<u64>,
}

impl TryFrom<RawSide> for Side {
    type Error = &'static str;

    fn try_from(raw: RawSide) -> Result<Side, &'static str> {
        let (time, host_time) = match (raw.time, raw.cpu_time) {
            (Some(time), None) => (time, false),
            (None, Some(time)) => (time, true),
            _ => return Err("expected either `time` or `cpu_time`"),
        };
        Ok(Side {
            time_us: time.0,
            host_time,
            alg_bw: raw.alg_bw.0,
            bus_bw: raw.bus_bw.0,
            wrong: raw.nwrong,
        })
    }
}

#[derive(Deserialize)]
struct PerIteration {
    #[serde(default)]
    skipped_iterations: usize,
    /// The skipped ones come first.
    times_us: Option<Vec<Number>>,
    #[serde(default)]
    per_process_max_times_us: Vec<Vec<Number>>,
}

/// Reads a file.
///
/// # Errors
/// [`BenchError::Read`]: damaged, of another version, or with what this reader does not know.
pub fn read(text: &str) -> Result<Report, BenchError> {
    let file: File = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
    let refuse = |why: String| BenchError::Read { line: 1, column: 1, why };
    if !VERSIONS.contains(&file.version) {
        return Err(refuse(format!(
            "version {} of nccl-tests' JSON; versions {} to {} are known, and its text output can \
             be read as well",
            file.version,
            VERSIONS.start(),
            VERSIONS.end()
        )));
    }
    let program = file.args.first().map_or("", String::as_str);
    let op: Op = program.parse().map_err(|error| {
        refuse(format!(
            "`args` name no program of nccl-tests, so the operation is unknown: {error}"
        ))
    })?;
    let ended = file.end_time.is_some() && file.average_bus_bandwidth.is_some();
    let mut report = header(&file);
    let config = file.config.as_ref();
    let iterations = config.and_then(|config| config.iterations);
    let mut whole = true;
    for case in file.results.unwrap_or_default() {
        whole &= case.actual_iterations.is_some();
        rows(op, report.ranks, iterations, case, &mut report.rows);
    }
    report.complete = ended && whole;
    report.failures.extend(file.out_of_bounds.as_ref().and_then(failure));
    let errors = file.errors.unwrap_or_default().into_iter().flatten();
    let errors = errors.filter(|error| !error.trim().is_empty());
    let errors = errors.map(|error| format!("`errors` has \"{}\"", error.trim()));
    report.take_last_words(errors.collect());
    Ok(report)
}

/// The run's failure by its own count of wrong results, if there is one.
fn failure(OutOfBounds { count, okay }: &OutOfBounds) -> Option<String> {
    let is_bad = okay.as_deref() == Some("false") || count.is_some_and(|count| count > 0);
    let (count, okay) = (count.map_or("unknown".into(), |n| n.to_string()), okay.as_deref());
    let okay = okay.unwrap_or("unknown");
    is_bad.then(|| format!("`out_of_bounds` has count {count}, okay \"{okay}\""))
}

/// All but the rows.
fn header(file: &File) -> Report {
    let amd = file.rccl_version.is_some();
    let name = if amd { "rccl-tests" } else { "nccl-tests" };
    let tool = Tool { name: name.to_owned(), version: None, commit: None };
    let mut report = Report::new(tool);
    report.local_time = file.start_time.clone();
    report.command = (!file.args.is_empty()).then(|| file.args.join(" "));
    let variables = file.env.iter().filter_map(|pair| pair.split_once('='));
    report.environment =
        environment::allowed(variables.map(|(name, value)| (name.into(), value.into())));
    let library = file.nccl_version.or(file.rccl_version);
    if let Some(version) = library {
        let library = if amd { "rccl" } else { "nccl" };
        report.libraries.insert(library.to_owned(), dotted(version));
    }
    if let Some(config) = &file.config {
        report.threads = config.nthreads;
        let group = config.devices.first().map_or(0, |device| device.group);
        let devices = || config.devices.iter().filter(|device| device.group == group);
        report.ranks = Some(devices().count()).filter(|&ranks| ranks > 0);
        for device in devices() {
            let known = report.hosts.iter_mut().find(|host| host.name == device.hostname);
            let info = device.device_info.clone();
            match known {
                Some(host) => {
                    host.ranks.push(device.rank);
                    host.devices.push(info);
                }
                None => report.hosts.push(Host {
                    name: device.hostname.clone(),
                    ranks: vec![device.rank],
                    devices: vec![info],
                    cpus: Vec::new(),
                }),
            }
        }
    }
    report
}

/// 23007 is 2.30.7; before 2.9 it was 2804 for 2.8.4.
pub(crate) fn dotted(version: u64) -> String {
    let (major, minor) = match version {
        0..10_000 => (version / 1000, version / 100 % 10),
        _ => (version / 10_000, version / 100 % 100),
    };
    format!("{major}.{minor}.{}", version % 100)
}

/// The rows of the two sides of a case, as far as they are there.
fn rows(op: Op, ranks: Option<usize>, configured: Option<u64>, case: Case, rows: &mut Vec<Row>) {
    let iterations = case.actual_iterations.or(configured);
    let sides = [
        (false, case.out_of_place, case.out_of_place_per_iter),
        (true, case.in_place, case.in_place_per_iter),
    ];
    for (in_place, side, per_iteration) in sides {
        let Some(side) = side else { continue };
        let mut times = Times {
            mean_us: side.time_us,
            iterations,
            host_time: side.host_time,
            ..Times::default()
        };
        let mut per_rank = Vec::new();
        if let Some(per_iteration) = per_iteration {
            let samples = counted(per_iteration.times_us.as_deref(), &per_iteration);
            // The mean stays that of the whole loop, which runs without `-I` have as well.
            let of_samples = Times::of(&samples, CONFIDENCE);
            times = Times { mean_us: times.mean_us, host_time: times.host_time, ..of_samples };
            per_rank = per_process(&per_iteration);
        }
        let key = Key {
            op,
            dtype: case.dtype,
            redop: case.redop.filter(|_| op.reduces()),
            root: case.root,
            ranks,
            bytes: case.size,
            in_place,
            algorithm: None,
            transport: None,
            ordered: None,
        };
        rows.push(Row {
            algbw_gb_per_s: side.alg_bw,
            busbw_gb_per_s: side.bus_bw,
            check: side.wrong.map(|wrong| Check { wrong, ..Check::default() }),
            per_rank,
            ..Row::new(key, Some(case.count), times)
        });
    }
}

/// Times without the skipped ones.
fn counted(times: Option<&[Number]>, per_iteration: &PerIteration) -> Vec<f64> {
    let times = times.unwrap_or_default().iter();
    times.skip(per_iteration.skipped_iterations).filter_map(|number| number.0).collect()
}

/// Times of each process; a process is a rank where each has one device.
fn per_process(per_iteration: &PerIteration) -> Vec<RankTimes> {
    let processes: Vec<Vec<f64>> = per_iteration
        .per_process_max_times_us
        .iter()
        .map(|times| counted(Some(times), per_iteration))
        .collect();
    let iterations = processes.iter().map(Vec::len).min().unwrap_or(0);
    if iterations == 0 {
        return Vec::new();
    }
    let mut last = vec![0_usize; processes.len()];
    for iteration in 0..iterations {
        let slowest = (0..processes.len())
            .max_by(|&a, &b| processes[a][iteration].total_cmp(&processes[b][iteration]));
        if let Some(slowest) = slowest {
            last[slowest] += 1;
        }
    }
    let summary = |(rank, times): (usize, &Vec<f64>)| {
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        Some(RankTimes {
            rank,
            p50_us: median(&sorted)?,
            min_us: *sorted.first()?,
            max_us: *sorted.last()?,
            last_share: last[rank] as f64 / iterations as f64,
        })
    };
    processes.iter().enumerate().filter_map(summary).collect()
}

#[cfg(test)]
mod tests {
    use super::super::made::Made;
    use super::*;

    #[test]
    fn everything_that_was_measured_is_read() {
        let made = Made::example();
        let report = read(&made.json()).unwrap();
        assert!(report.complete);
        assert_eq!((report.ranks, report.threads), (Some(8), Some(1)));
        assert_eq!(report.libraries["nccl"], "2.30.7");
        assert_eq!(report.environment.keys().collect::<Vec<_>>(), ["NCCL_ALGO"]);
        assert_eq!(report.command.as_deref(), Some("./build/all_reduce_perf -g 8"));
        assert_eq!((report.hosts.len(), report.hosts[0].ranks.len()), (1, 8));
        assert_eq!(report.rows.len(), 6);
        let (row, side) = (&report.rows[2], &made.cases[1].out_of_place);
        assert_eq!((row.key.bytes, row.key.root, row.key.in_place), (1 << 20, None, false));
        assert_eq!(row.wrong(), side.wrong);
        assert!((row.times.mean_us.unwrap() - side.time_us).abs() < 1e-6);
        // Two of the eight are skipped; the other process is later by half a microsecond.
        assert_eq!(row.times.iterations, Some(6));
        assert!((row.times.min_us.unwrap() - side.time_us - 0.5).abs() < 1e-5);
        assert!(row.times.interval.is_some());
        let [first, second] = row.per_rank[..] else { panic!("{:?}", row.per_rank) };
        assert_eq!((first.last_share, second.last_share), (0.0, 1.0));
        assert!((second.p50_us - first.p50_us - 0.5).abs() < 1e-5);
    }

    #[test]
    fn oddities_of_the_program_are_understood() {
        let json = Made::example().json();
        let with = |from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            read(&changed)
        };
        let side = "\"out_of_place\":{\"time\":";
        let host = with(side, "\"out_of_place\":{\"cpu_time\":").unwrap();
        assert!(host.rows[0].times.host_time && !host.rows[1].times.host_time);
        let event = with("\"alg_bw\"", "\"hip_event_time\":1.0,\"alg_bw\"").unwrap();
        assert_eq!(event.rows.len(), 6);
        let amd = with("\"version\":3", "\"version\":1").unwrap();
        assert_eq!(amd.rows.len(), 6);
        let amd = with("\"nccl_version\"", "\"rccl_version\"").unwrap();
        assert_eq!(
            (amd.tool.name.as_str(), amd.libraries["rccl"].as_str()),
            ("rccl-tests", "2.30.7")
        );
        let rooted = with("\"    -1\"", "\"     3\"").unwrap();
        assert_eq!(rooted.rows[0].key.root, Some(3));
        let nan = with(
            &format!("{side}10.102400,\"alg_bw\":0.101362"),
            &format!("{side}\"nan\",\"alg_bw\":\"nan\""),
        );
        assert_eq!((nan.as_ref().unwrap().rows[0].times.mean_us), None);
        assert_eq!(nan.unwrap().rows[0].algbw_gb_per_s, None);
        assert_eq!((dotted(2804), dotted(23203)), ("2.8.4".to_owned(), "2.32.3".to_owned()));
    }

    #[test]
    fn what_the_run_says_of_itself_is_kept() {
        let json = Made::example().json();
        assert_eq!(read(&json).unwrap().failures, [""; 0]);
        let changed = |json: &str, from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            changed
        };
        let with = |from: &str, to: &str| read(&changed(&json, from, to)).unwrap().failures;
        let bounds = "\"out_of_bounds\":{\"count\":0,\"okay\":\"true\"}";
        assert_eq!(
            with(bounds, "\"out_of_bounds\":{\"count\":7,\"okay\":\"false\"}"),
            ["`out_of_bounds` has count 7, okay \"false\""]
        );
        assert_eq!(
            with(bounds, "\"out_of_bounds\":{\"okay\":\"false\"}"),
            ["`out_of_bounds` has count unknown, okay \"false\""]
        );
        // NCCL keeps there what it warned of, too: by itself that is no failure.
        let warned = changed(&json, "\"errors\":[\"\"]", "\"errors\":[\"\",\"unhandled error\"]");
        let report = read(&warned).unwrap();
        let said = "`errors` has \"unhandled error\"";
        assert_eq!((report.failures.len(), &report.warnings[..]), (0, &[said.to_owned()][..]));
        for (from, to, failures) in [
            (bounds, "\"out_of_bounds\":{\"count\":7,\"okay\":\"false\"}", 2),
            (",\"end_time\":\"2026-07-09 16:03:29\"", "", 1),
        ] {
            let report = read(&changed(&warned, from, to)).unwrap();
            assert_eq!((report.failures.len(), report.warnings.len()), (failures, 0), "{to}");
            assert_eq!(report.failures[failures - 1], said);
        }
        // A file that was closed mechanically.
        assert_eq!(with(bounds, "\"out_of_bounds\":null"), [""; 0]);
    }

    /// The file that the program leaves when it closes it after an error.
    #[test]
    fn a_file_that_was_closed_early_is_incomplete() {
        let json = Made::example().json();
        let (head, _) = json.split_once(",\"out_of_bounds\"").unwrap();
        let report = read(&format!("{head}}}")).unwrap();
        assert!(!report.complete && report.rows.len() == 6);
        let (head, _) = json.split_once(",\"in_place\"").unwrap();
        let report = read(&format!("{head}}}]}}")).unwrap();
        assert!(!report.complete && report.rows.len() == 1);
        let (head, _) = json.split_once("{\"time\"").unwrap();
        assert_eq!(read(&format!("{head}null}}]}}")).unwrap().rows.len(), 0);
        let (head, _) = json.split_once("[{\"size\"").unwrap();
        assert_eq!(read(&format!("{head}null}}")).unwrap().rows.len(), 0);
    }

    #[test]
    fn everything_else_is_refused_with_its_place() {
        let json = Made::example().json();
        for (from, to, words) in [
            ("\"version\":3", "\"version\":4", "versions 1 to 3"),
            ("\"size\":1024", "\"size\":\"1024\"", "line 1, column "),
            ("\"float\"", "\"flaot\"", "no element type `flaot`"),
            ("\"sum\"", "\"add\"", "no reduction `add`"),
            ("\"    -1\"", "\"    -2\"", "no root"),
            ("\"nwrong\":0.000000", "\"nwrong\":0.500000", "no whole number"),
            ("\"alg_bw\"", "\"alg_by\"", "alg_by"),
            ("\"time\"", "\"cpu_time\":1.0,\"time\"", "either `time` or `cpu_time`"),
            ("all_reduce_perf", "my_perf", "name no program"),
            ("\"experiment_name\"", "\"algorithm\"", "unknown field `algorithm`"),
        ] {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            let message = read(&changed).unwrap_err().to_string();
            assert!(message.contains(words), "{to}: {message}");
            assert!(message.starts_with("line 1, column "), "{message}");
        }
    }
}
