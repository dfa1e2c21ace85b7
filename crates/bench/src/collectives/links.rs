//! What links can carry: the published figures of known ones, and a table of measured curves that
//! a run can be planned by.
//!
//! The table is a file of its own, made from a report, and small enough to be looked at.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dtype::ElementType;
use super::fit::{Fit, Reach, fit, reach};
use super::formula::Op;
use super::report::Report;
use super::row::curves;
use crate::BenchError;

/// A link between devices whose limits are known, per device and direction, in 10⁹ bytes/s.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KnownLink {
    /// As it is typed.
    pub name: &'static str,
    pub describes: &'static str,
    /// Of all wires together, before any protocol.
    pub raw_gb_per_s: f64,
    /// What an all_reduce reaches at best, as busbw.
    pub effective_gb_per_s: f64,
    /// Where switches add up on their own, busbw goes beyond the wires.
    pub switched_gb_per_s: Option<f64>,
}

/// Published figures. H100 and H200: 18 NVLink 4 of 25 GB/s; 370 by rings and 480 with NVLS
/// (nccl-tests issue 212). MI300X: 7 xGMI links of 64 GB/s, of which 48 are usable (AMD's
/// "Understanding RCCL Bandwidth and xGMI Performance on AMD Instinct MI300X"). Pollara 400 and
/// ConnectX-7 NDR: 400 Gbit/s.
pub const KNOWN_LINKS: [KnownLink; 5] = [
    KnownLink {
        name: "nvlink4",
        describes: "H100 or H200 in one node",
        raw_gb_per_s: 450.0,
        effective_gb_per_s: 370.0,
        switched_gb_per_s: Some(480.0),
    },
    KnownLink {
        name: "mi300x-xgmi",
        describes: "8 MI300X in one node",
        raw_gb_per_s: 448.0,
        effective_gb_per_s: 336.0,
        switched_gb_per_s: None,
    },
    KnownLink {
        name: "pollara400",
        describes: "one Pollara 400 per device",
        raw_gb_per_s: 50.0,
        effective_gb_per_s: 50.0,
        switched_gb_per_s: None,
    },
    KnownLink {
        name: "ndr",
        describes: "one 400 Gbit/s InfiniBand port per device",
        raw_gb_per_s: 50.0,
        effective_gb_per_s: 50.0,
        switched_gb_per_s: None,
    },
    KnownLink {
        name: "hdr",
        describes: "one 200 Gbit/s InfiniBand port per device",
        raw_gb_per_s: 25.0,
        effective_gb_per_s: 25.0,
        switched_gb_per_s: None,
    },
];

impl KnownLink {
    /// A link by its name.
    ///
    /// # Errors
    /// [`BenchError::Argument`] with the names there are.
    pub fn named(name: &str) -> Result<&'static KnownLink, BenchError> {
        KNOWN_LINKS.iter().find(|link| link.name == name).ok_or_else(|| {
            let names = KNOWN_LINKS.map(|link| link.name).join(", ");
            BenchError::Argument(format!("no link `{name}`; use one of {names}"))
        })
    }

    /// The highest busbw that can be right.
    pub fn limit_gb_per_s(&self) -> f64 {
        self.switched_gb_per_s.unwrap_or(0.0).max(self.raw_gb_per_s)
    }

    /// A busbw in percent of what is reached at best.
    pub fn percent(&self, busbw_gb_per_s: f64) -> f64 {
        busbw_gb_per_s / self.switched_gb_per_s.unwrap_or(self.effective_gb_per_s) * 100.0
    }
}

/// The version of the file.
pub const SCHEMA_VERSION: u32 = 1;

/// One measured curve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkCurve {
    pub op: Op,
    pub dtype: ElementType,
    pub in_place: bool,
    #[serde(default)]
    pub ranks: Option<usize>,
    #[serde(default)]
    pub transport: Option<String>,
    #[serde(default)]
    pub algorithm: Option<String>,
    #[serde(default)]
    pub ordered: Option<bool>,
    pub fit: Fit,
    #[serde(default)]
    pub reach: Option<Reach>,
}

/// Measured curves of one machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkTable {
    /// [`SCHEMA_VERSION`].
    pub links: u32,
    pub hosts: Vec<String>,
    pub curves: Vec<LinkCurve>,
}

impl LinkTable {
    /// Of all curves of a report that have enough points.
    pub fn of(report: &Report) -> LinkTable {
        let curves = curves(&report.rows).into_iter().filter_map(|(key, rows)| {
            let points =
                rows.iter().filter_map(|row| Some((row.key.bytes, row.times.center_us()?)));
            let fit = fit(&points.collect::<Vec<_>>())?;
            Some(LinkCurve {
                op: key.op,
                dtype: key.dtype,
                in_place: key.in_place,
                ranks: key.ranks,
                transport: key.transport,
                algorithm: key.algorithm,
                ordered: key.ordered,
                fit,
                reach: reach(&rows),
            })
        });
        let hosts = report.hosts.iter().map(|host| host.name.clone()).collect();
        LinkTable { links: SCHEMA_VERSION, hosts, curves: curves.collect() }
    }

    /// The file.
    ///
    /// # Errors
    /// A number that JSON cannot hold.
    pub fn to_json(&self) -> Result<String, BenchError> {
        serde_json::to_string_pretty(self).map_err(BenchError::Json)
    }

    /// Reads what [`LinkTable::to_json`] wrote.
    ///
    /// # Errors
    /// [`BenchError::Read`] with line and column: damaged, of another version, or with times that
    /// cannot be.
    pub fn from_json(text: &str) -> Result<LinkTable, BenchError> {
        let table: LinkTable = serde_json::from_str(text).map_err(|e| BenchError::in_json(&e))?;
        let refuse = |why: String| Err(BenchError::Read { line: 1, column: 1, why });
        if table.links != SCHEMA_VERSION {
            return refuse(format!(
                "a table of links of version {}, where this Muster reads version \
                 {SCHEMA_VERSION}; measure again",
                table.links
            ));
        }
        for curve in &table.curves {
            let segments = &curve.fit.segments;
            let ascending = segments.windows(2).all(|pair| pair[0].from_bytes < pair[1].from_bytes);
            let possible = segments
                .iter()
                .all(|segment| segment.alpha_us >= 0.0 && segment.beta_us_per_byte >= 0.0);
            if segments.is_empty() || !ascending || !possible {
                return refuse(format!(
                    "segments of {} that are none, do not ascend, or have times below 0; measure \
                     again",
                    curve.op
                ));
            }
        }
        Ok(table)
    }

    /// The curve of an operation among so many ranks over a transport; where that was not measured,
    /// the one with the number of ranks that is nearest by factor. Of several that fit equally well
    /// the first.
    pub fn curve(&self, op: Op, ranks: usize, transport: &str) -> Option<&LinkCurve> {
        let fits = |curve: &&LinkCurve| {
            curve.op == op && curve.transport.as_deref().is_none_or(|known| known == transport)
        };
        let distance = |curve: &LinkCurve| {
            let known = curve.ranks.unwrap_or(ranks).max(1) as f64;
            (known / ranks.max(1) as f64).ln().abs()
        };
        let curves = self.curves.iter().filter(fits);
        curves.min_by(|a, b| distance(a).total_cmp(&distance(b)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::full;
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
        LinkTable::of(&report)
    }

    #[test]
    fn a_report_becomes_a_table_that_is_read_back() {
        let table = table();
        assert_eq!(table.curves.len(), 2);
        let json = table.to_json().unwrap();
        let read = LinkTable::from_json(&json).unwrap();
        assert_eq!(read.curves.len(), 2);
        for (read, made) in read.curves.iter().zip(&table.curves) {
            // The last bit of a number may be lost in decimals.
            let ratio = read.fit.time_us(1 << 26) / made.fit.time_us(1 << 26);
            assert!((ratio - 1.0).abs() < 1e-12);
            assert_eq!((read.ranks, read.reach.is_some()), (made.ranks, true));
        }
        let eight = table.curve(Op::AllReduce, 8, "shm").unwrap();
        assert!((eight.fit.time_us(1 << 20) - 80.0 - 20.97).abs() < 0.1, "{eight:?}");
        assert!(eight.reach.unwrap().bucket_bytes > 1 << 24);
        // Sixteen ranks were not measured; eight is nearer than two.
        assert_eq!(table.curve(Op::AllReduce, 16, "shm").unwrap().ranks, Some(8));
        assert_eq!(table.curve(Op::AllReduce, 1, "shm").unwrap().ranks, Some(2));
        assert_eq!(table.curve(Op::AllReduce, 8, "tcp"), None);
        assert_eq!(table.curve(Op::AllGather, 8, "shm"), None);
    }

    #[test]
    fn tables_that_cannot_be_are_refused() {
        let json = table().to_json().unwrap();
        let refusal = |from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            LinkTable::from_json(&changed).unwrap_err().to_string()
        };
        assert!(refusal("\"links\": 1", "\"links\": 7").contains("version 7"));
        assert!(refusal("\"alpha_us\": ", "\"alpha_us\": -").contains("below 0"));
        assert!(refusal("\"fit\"", "\"fitt\"").contains("line"));
        for end in 0..json.len() {
            assert!(LinkTable::from_json(&json[..end]).is_err());
        }
    }

    #[test]
    fn known_links_have_limits_and_names() {
        let nvlink = KnownLink::named("nvlink4").unwrap();
        assert_eq!((nvlink.limit_gb_per_s(), nvlink.percent(240.0)), (480.0, 50.0));
        let xgmi = KnownLink::named("mi300x-xgmi").unwrap();
        assert_eq!((xgmi.limit_gb_per_s(), xgmi.percent(336.0)), (448.0, 100.0));
        assert!(KnownLink::named("pci").unwrap_err().to_string().contains("pollara400"));
    }
}
