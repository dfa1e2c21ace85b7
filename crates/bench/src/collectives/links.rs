//! A table of what was measured between ranks, that a run can be planned by.
//!
//! ```text
//! Report ─▶ LinkTable ─▶ a file of a few KiB ─▶ gradients(place) ─▶ bucket
//! ```
//!
//! The file is JSON, frozen by [`SCHEMA_VERSION`]: a reader refuses another version, and figures
//! that no measurement has. It says what was measured, where, when and by which build, and has one
//! curve with its fit per case.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::curve::Curve;
use super::dtype::{ElementType, RedOp};
use super::fit::{Fit, Reach};
use super::formula::Op;
use super::host::Host;
use super::report::{Report, Tool};
use crate::BenchError;

/// The version of the file.
pub const SCHEMA_VERSION: u32 = 2;

/// Measured curves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkTable {
    /// [`SCHEMA_VERSION`].
    pub links: u32,
    pub tool: Tool,
    /// Seconds since 1970 at the start.
    #[serde(default)]
    pub unix_time_s: Option<u64>,
    #[serde(default)]
    pub command: Option<String>,
    /// The job's: of several on one machine each.
    pub hosts: Vec<Host>,
    /// Threads of one rank.
    #[serde(default)]
    pub threads: Option<usize>,
    /// Each with a fit.
    pub curves: Vec<Curve>,
}

/// Only what tells one version from another.
#[derive(Deserialize)]
struct Version {
    links: u32,
}

/// Why a table has no curve for a run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoCurve {
    #[error("it has no all_reduce or reduce_scatter of f32 sums with a peak")]
    Sums,
    #[error("it was measured over {}, not over {transport}", measured.join(" and "))]
    Transport { transport: String, measured: Vec<String> },
}

impl LinkTable {
    /// Of all curves of a report that have a fit, measured by a job of so many hosts.
    pub fn of(report: &Report, hosts: usize) -> LinkTable {
        let curves = report.curves.iter().filter(|curve| curve.fit.is_some());
        LinkTable {
            links: SCHEMA_VERSION,
            tool: report.tool.clone(),
            unix_time_s: report.unix_time_s,
            command: report.command.clone(),
            hosts: of_job(&report.hosts, hosts),
            threads: report.threads,
            curves: curves.cloned().collect(),
        }
    }

    /// The file.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// The JSON schema of the file.
    pub fn json_schema() -> Value {
        schemars::schema_for!(LinkTable).to_value()
    }

    /// Reads what [`LinkTable::to_json`] wrote.
    ///
    /// # Errors
    /// [`BenchError::Read`] with line and column: damaged, of another version, or with figures that
    /// cannot be.
    pub fn from_json(text: &str) -> Result<LinkTable, BenchError> {
        let version: Version = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        let refuse = |why: String| Err(BenchError::Read { line: 1, column: 1, why });
        if version.links != SCHEMA_VERSION {
            return refuse(format!(
                "a table of links of version {}, where this Muster reads version {SCHEMA_VERSION}; \
                 measure again (`muster bench collectives --links FILE`)",
                version.links
            ));
        }
        let table: LinkTable = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        match table.curves.iter().find_map(|curve| Some((curve, impossible(curve)?))) {
            None => Ok(table),
            Some((curve, why)) => {
                refuse(format!("the curve of {}: {why}; measure again", curve.label()))
            }
        }
    }

    /// The curve by which gradients of `ranks` ranks are sent over a transport: sums of f32, of
    /// reduce_scatter rather than all_reduce, out of place rather than in place. Where that number
    /// of ranks was not measured, the one that is nearest by factor.
    ///
    /// # Errors
    /// There is none.
    pub fn gradients(&self, ranks: usize, transport: &str) -> Result<&Curve, NoCurve> {
        let is_sum = |curve: &&Curve| {
            let key = &curve.key;
            matches!(key.op, Op::AllReduce | Op::ReduceScatter)
                && key.dtype == ElementType::F32
                && key.redop.is_none_or(|redop| redop == RedOp::Sum)
                && curve.reach.is_some()
        };
        let sums: Vec<&Curve> = self.curves.iter().filter(is_sum).collect();
        let over = |curve: &&&Curve| curve.key.transport.as_deref() == Some(transport);
        let preference = |curve: &Curve| {
            let measured = curve.key.ranks.unwrap_or(1).max(1) as f64;
            let distance = (measured / ranks.max(1) as f64).ln().abs();
            (distance, curve.key.op != Op::ReduceScatter, curve.key.in_place)
        };
        let nearest = sums.iter().filter(over).min_by(|a, b| {
            let (a, b) = (preference(a), preference(b));
            a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)))
        });
        if let Some(curve) = nearest {
            return Ok(curve);
        }
        let mut measured: Vec<String> =
            sums.iter().filter_map(|curve| curve.key.transport.clone()).collect();
        measured.sort_unstable();
        measured.dedup();
        match measured.is_empty() {
            true => Err(NoCurve::Sums),
            false => Err(NoCurve::Transport { transport: transport.to_owned(), measured }),
        }
    }
}

/// The hosts of a job of so many, each with as many ranks: a report has one entry for all that are
/// on one machine, and a run that reads the table counts them apart, since they share no memory.
fn of_job(machines: &[Host], hosts: usize) -> Vec<Host> {
    let world: usize = machines.iter().map(|machine| machine.ranks.len()).sum();
    let each = (world / hosts.max(1)).max(1);
    let part = |machine: &Host, host: usize| {
        let is_there = |&place: &usize| machine.ranks[place] / each == host;
        let places: Vec<usize> = (0..machine.ranks.len()).filter(is_there).collect();
        let of = |all: &[String]| -> Vec<String> {
            places.iter().filter_map(|&place| all.get(place).cloned()).collect()
        };
        (!places.is_empty()).then(|| Host {
            name: machine.name.clone(),
            ranks: places.iter().map(|&place| machine.ranks[place]).collect(),
            devices: of(&machine.devices),
            cpus: of(&machine.cpus),
        })
    };
    let parts = |host| machines.iter().filter_map(move |machine| part(machine, host));
    (0..world.div_ceil(each)).flat_map(parts).collect()
}

/// Why a curve was not measured, if it cannot have been.
fn impossible(curve: &Curve) -> Option<&'static str> {
    if curve.key.ranks == Some(0) {
        return Some("among no ranks");
    }
    let Some(fit) = &curve.fit else { return Some("it has no fit") };
    impossible_fit(fit).or_else(|| curve.reach.as_ref().and_then(impossible_reach))
}

fn impossible_fit(fit: &Fit) -> Option<&'static str> {
    let segments = &fit.segments;
    let first_is_larger = |s: &super::fit::Segment| s.from_bytes > s.to_bytes;
    if segments.is_empty() {
        return Some("its fit has no segments");
    }
    if segments.windows(2).any(|pair| pair[0].to_bytes >= pair[1].from_bytes)
        || segments.iter().any(first_is_larger)
    {
        return Some("its segments do not ascend");
    }
    let figures = segments.iter().flat_map(|s| [s.alpha_us, s.beta_us_per_byte, s.max_error]);
    let mut figures = figures.chain([fit.mean_error, fit.max_error]);
    if figures.any(|figure| !figure.is_finite() || figure < 0.0) {
        return Some("a time or an error below 0");
    }
    let has_no_time = |s: &super::fit::Segment| s.alpha_us == 0.0 && s.beta_us_per_byte == 0.0;
    segments.iter().any(has_no_time).then_some("operations that take no time")
}

/// The largest bucket of a config.
const MOST_BYTES: u64 = 1 << 40;

fn impossible_reach(reach: &Reach) -> Option<&'static str> {
    let &Reach { peak_busbw_gb_per_s: peak, peak_bytes, half_bytes, ninety_bytes, .. } = reach;
    if !peak.is_finite() || peak <= 0.0 {
        return Some("a peak that is not above 0");
    }
    let ascend = 0 < half_bytes && half_bytes <= ninety_bytes && ninety_bytes <= peak_bytes;
    if peak_bytes > MOST_BYTES {
        return Some("a size above a tebibyte");
    }
    (!ascend).then_some("sizes with half, with 90 % and with all of the peak that do not ascend")
}

#[cfg(test)]
pub mod tests {
    use super::super::bucket::Bounds;
    use super::super::curve;
    use super::super::report::tests::full;
    use super::super::roofline::{Roof, Unknown};
    use super::super::row::tests::row;
    use super::super::row::{Key, Row};
    use super::*;

    fn table() -> LinkTable {
        let mut report = full();
        let ranked = |ranks: usize, bytes: u64| {
            let key =
                Key { ranks: Some(ranks), transport: Some("shm".into()), ..row(bytes, 1.0).key };
            Row::new(key, None, row(bytes, 10.0 * ranks as f64 + bytes as f64 / 50e3).times)
        };
        let sizes = [1 << 10, 1 << 16, 1 << 20, 1 << 24, 1 << 28];
        report.rows = sizes.iter().flat_map(|&b| [ranked(2, b), ranked(8, b)]).collect();
        // Too few for a curve.
        report.rows.push(ranked(4, 64));
        let roof = Roof::Unknown(Unknown::Memory);
        report.curves = curve::of_rows(&report.rows, &roof, |_| Bounds::default());
        LinkTable::of(&report, 1)
    }

    #[test]
    fn hosts_of_one_machine_are_counted_as_the_job_counts_them() {
        let host = |name: &str, ranks: &[usize]| Host {
            name: name.into(),
            ranks: ranks.to_vec(),
            devices: ranks.iter().map(|rank| format!("d{rank}")).collect(),
            cpus: Vec::new(),
        };
        let one = [host("a", &[0, 1, 2, 3])];
        assert_eq!(of_job(&one, 1), one);
        assert_eq!(of_job(&one, 2), [host("a", &[0, 1]), host("a", &[2, 3])]);
        // Hosts of a machine that are no neighbours.
        let two = [host("a", &[0, 1, 4, 5]), host("b", &[2, 3])];
        let apart = [host("a", &[0, 1]), host("b", &[2, 3]), host("a", &[4, 5])];
        assert_eq!(of_job(&two, 3), apart);
        assert_eq!(of_job(&[], 2), []);
    }

    #[test]
    fn a_report_becomes_a_table_that_is_read_back() {
        let table = table();
        assert_eq!(table.curves.len(), 2);
        let json = table.to_json().unwrap();
        let read = LinkTable::from_json(&json).unwrap();
        assert_eq!(read.curves.len(), 2);
        assert_eq!((&read.tool, &read.hosts), (&table.tool, &table.hosts));
        let time = |curve: &Curve| curve.fit.as_ref().unwrap().time_us(1 << 26);
        for (read, made) in read.curves.iter().zip(&table.curves) {
            // The last bit of a number may be lost in decimals.
            assert!((time(read) / time(made) - 1.0).abs() < 1e-12);
            assert_eq!((read.key.ranks, read.bucket), (made.key.ranks, made.bucket));
        }
        let eight = table.gradients(8, "shm").unwrap();
        assert!((time(eight) - 80.0 - 1342.18).abs() < 0.1, "{eight:?}");
        assert!(eight.reach.unwrap().ninety_bytes > 1 << 24);
        // Every field is in the schema.
        let schema = LinkTable::json_schema();
        for key in serde_json::to_value(&table).unwrap().as_object().unwrap().keys() {
            assert!(!schema["properties"][key].is_null(), "{key}");
        }
    }

    #[test]
    fn gradients_go_as_what_is_most_like_them() {
        let mut table = table();
        let ranks = |table: &LinkTable, ranks| table.gradients(ranks, "shm").unwrap().key.ranks;
        // Sixteen ranks were not measured; eight is nearer than two.
        assert_eq!(
            [ranks(&table, 16), ranks(&table, 1), ranks(&table, 8)],
            [Some(8), Some(2), Some(8)]
        );
        let mut scatter = table.curves[1].clone();
        scatter.key.op = Op::ReduceScatter;
        let mut inside = scatter.clone();
        inside.key.in_place = true;
        table.curves.extend([inside, scatter]);
        let key = &table.gradients(8, "shm").unwrap().key;
        assert_eq!((key.op, key.in_place), (Op::ReduceScatter, false));
        assert_eq!(table.gradients(2, "shm").unwrap().key.op, Op::AllReduce);
        let refusal = table.gradients(8, "tcp").unwrap_err();
        assert_eq!(refusal.to_string(), "it was measured over shm, not over tcp");
        table.curves.iter_mut().for_each(|curve| curve.key.op = Op::AllGather);
        assert_eq!(table.gradients(8, "shm").unwrap_err(), NoCurve::Sums);
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        let table = table();
        let json = table.to_json().unwrap();
        let refusal = |from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            LinkTable::from_json(&changed).unwrap_err().to_string()
        };
        assert!(refusal("\"links\": 2", "\"links\": 1").contains("version 1"));
        assert!(refusal("\"links\": 2", "\"links\": 7").contains("version 7"));
        assert!(refusal("\"alpha_us\": ", "\"alpha_us\": -").contains("below 0"));
        assert!(refusal("\"half_bytes\": ", "\"half_bytes\": 99999").contains("ascend"));
        assert!(
            refusal("\"peak_busbw_gb_per_s\": ", "\"peak_busbw_gb_per_s\": -").contains("peak")
        );
        assert!(refusal("\"fit\"", "\"fitt\"").contains("line"));
        for end in 0..json.len() {
            assert!(LinkTable::from_json(&json[..end]).is_err());
        }
        let changed = |change: fn(&mut Curve)| {
            let mut table = table.clone();
            change(&mut table.curves[0]);
            LinkTable::from_json(&table.to_json().unwrap()).unwrap_err().to_string()
        };
        assert!(changed(|curve| curve.fit = None).contains("all_reduce f32 sum 2 ranks shm"));
        assert!(changed(|curve| curve.key.ranks = Some(0)).contains("no ranks"));
        assert!(changed(|c| c.fit.as_mut().unwrap().segments.clear()).contains("no segments"));
        let still: fn(&mut Curve) = |curve| {
            let segment = &mut curve.fit.as_mut().unwrap().segments[0];
            (segment.alpha_us, segment.beta_us_per_byte) = (0.0, 0.0);
        };
        assert!(changed(still).contains("no time"));
    }
}
