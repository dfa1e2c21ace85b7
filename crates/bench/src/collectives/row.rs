//! One measured case: what was varied, and what came out.
//!
//! Invariants: two rows of one report differ in their [`Key`]; everything outside the key was
//! measured or chosen by the library, and may differ from run to run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dtype::{ElementType, RedOp};
use super::formula::Op;
use super::stats::Times;
use crate::BenchError;

/// The independent variables. `None` where a program does not say.
#[derive(
    Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(deny_unknown_fields)]
pub struct Key {
    pub op: Op,
    pub dtype: ElementType,
    /// `None` also for operations that combine nothing.
    #[serde(default)]
    pub redop: Option<RedOp>,
    /// `None` also for operations without one.
    #[serde(default)]
    pub root: Option<usize>,
    #[serde(default)]
    pub ranks: Option<usize>,
    /// As in the column `size(B)` of nccl-tests: see [`Op::extent`].
    pub bytes: u64,
    /// Whether the result overwrites what was sent.
    pub in_place: bool,
    /// That was asked for.
    #[serde(default)]
    pub algorithm: Option<String>,
    /// `shm`, `tcp`, `nccl`, `rccl`.
    #[serde(default)]
    pub transport: Option<String>,
    /// Whether sums are made in the order of Muster's tree.
    #[serde(default)]
    pub ordered: Option<bool>,
}

impl Key {
    /// All that rows of one curve have in common: the key with 0 bytes.
    pub(crate) fn series(&self) -> Key {
        Key { bytes: 0, ..self.clone() }
    }

    /// Names of fields that both sides state, and state differently.
    pub(crate) fn contradictions(&self, other: &Key) -> Vec<&'static str> {
        fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
            a.is_some() && b.is_some() && a != b
        }
        let fields = [
            ("op", self.op != other.op),
            ("dtype", self.dtype != other.dtype),
            ("redop", differ(&self.redop, &other.redop)),
            ("root", differ(&self.root, &other.root)),
            ("ranks", differ(&self.ranks, &other.ranks)),
            ("bytes", self.bytes != other.bytes),
            ("in_place", self.in_place != other.in_place),
            ("algorithm", differ(&self.algorithm, &other.algorithm)),
            ("transport", differ(&self.transport, &other.transport)),
            ("ordered", differ(&self.ordered, &other.ordered)),
        ];
        fields.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name).collect()
    }

    /// Whether nothing that both sides state differs.
    pub(crate) fn agrees(&self, other: &Key) -> bool {
        // The two that differ most often come first.
        self.bytes == other.bytes && self.op == other.op && self.contradictions(other).is_empty()
    }

    /// This key, with what only the other one states.
    pub fn or(&self, other: &Key) -> Key {
        Key {
            redop: self.redop.or(other.redop),
            root: self.root.or(other.root),
            ranks: self.ranks.or(other.ranks),
            algorithm: self.algorithm.clone().or_else(|| other.algorithm.clone()),
            transport: self.transport.clone().or_else(|| other.transport.clone()),
            ordered: self.ordered.or(other.ordered),
            ..self.clone()
        }
    }

    /// Every field as (name, text), empty where it is not stated.
    pub fn fields(&self) -> [(&'static str, String); 10] {
        fn text<T: ToString>(value: &Option<T>) -> String {
            value.as_ref().map(T::to_string).unwrap_or_default()
        }
        [
            ("op", self.op.to_string()),
            ("dtype", self.dtype.to_string()),
            ("redop", text(&self.redop)),
            ("root", text(&self.root)),
            ("ranks", text(&self.ranks)),
            ("bytes", self.bytes.to_string()),
            ("in_place", self.in_place.to_string()),
            ("algorithm", text(&self.algorithm)),
            ("transport", text(&self.transport)),
            ("ordered", text(&self.ordered)),
        ]
    }
}

/// The first element that was not what it should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FirstBad {
    pub rank: usize,
    /// In elements, from the start of that rank's result.
    pub offset: u64,
    /// Written as a number of the element's type.
    pub got: String,
    pub expected: String,
}

/// The result of a check.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Elements, of all ranks together.
    pub wrong: u64,
    /// Launches whose results were compared, timed ones among them.
    #[serde(default)]
    pub launches: Option<u64>,
    #[serde(default)]
    pub first_bad: Option<FirstBad>,
}

/// From the arrival of the first rank to that of the last; it is not part of the times.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Skew {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

/// The way that the data really took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Path {
    /// Windows that all ranks address in the same way.
    Symmetric,
    /// Buffers that are registered with the library.
    Registered,
    /// Through the library's own buffers.
    Plain,
    /// Shared memory.
    Shm,
    /// Shared memory within hosts, and tcp between them.
    #[serde(rename = "shm+tcp")]
    ByHosts,
    Tcp,
}

impl Path {
    pub const ALL: [Path; 6] =
        [Path::Symmetric, Path::Registered, Path::Plain, Path::Shm, Path::ByHosts, Path::Tcp];

    /// As it is written.
    pub fn word(self) -> &'static str {
        match self {
            Path::Symmetric => "symmetric",
            Path::Registered => "registered",
            Path::Plain => "plain",
            Path::Shm => comm::BackendWord::Shm.word(),
            Path::ByHosts => "shm+tcp",
            Path::Tcp => comm::BackendWord::Tcp.word(),
        }
    }
}

impl std::str::FromStr for Path {
    type Err = BenchError;

    fn from_str(text: &str) -> Result<Path, BenchError> {
        Path::ALL.into_iter().find(|path| path.word() == text).ok_or_else(|| {
            let all = Path::ALL.map(Path::word).join(", ");
            BenchError::Argument(format!("no path `{text}`; use one of {all}"))
        })
    }
}

/// The times of one rank.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RankTimes {
    pub rank: usize,
    pub p50_us: f64,
    pub min_us: f64,
    pub max_us: f64,
    /// In what part of the iterations it took longest, or arrived last; 0 to 1.
    pub last_share: f64,
}

/// The operation beside Newton–Schulz: medians, of launches that took turns. Each rank begins both
/// at once, and all ranks begin together; each time is that of the last rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Overlap {
    /// The shape that each rank orthogonalizes, in words.
    pub shape: String,
    pub collective_alone_us: f64,
    pub collective_together_us: f64,
    pub newton_schulz_alone_us: f64,
    pub newton_schulz_together_us: f64,
    /// Until both are done.
    pub both_us: f64,
    /// 100 · (sum of both alone − both together) / the shorter of both alone: 100 where the shorter
    /// costs nothing, 0 where one after the other is as fast, below 0 where they hinder each other.
    #[serde(default)]
    pub hidden_pct: Option<f64>,
    /// Launches of each kind.
    pub iterations: u64,
}

impl Overlap {
    /// Of what each takes alone, and of the operation, Newton–Schulz and both together.
    pub fn of(
        shape: String,
        (collective_alone_us, newton_schulz_alone_us): (f64, f64),
        (collective_together_us, newton_schulz_together_us, both_us): (f64, f64, f64),
        iterations: u64,
    ) -> Overlap {
        let shorter = collective_alone_us.min(newton_schulz_alone_us);
        let saved = collective_alone_us + newton_schulz_alone_us - both_us;
        let hidden_pct = Some(100.0 * saved / shorter).filter(|percent| percent.is_finite());
        Overlap {
            shape,
            collective_alone_us,
            collective_together_us,
            newton_schulz_alone_us,
            newton_schulz_together_us,
            both_us,
            hidden_pct,
            iterations,
        }
    }

    /// Together over alone, of the operation and of Newton–Schulz.
    pub(crate) fn slowdowns(&self) -> (f64, f64) {
        (
            self.collective_together_us / self.collective_alone_us,
            self.newton_schulz_together_us / self.newton_schulz_alone_us,
        )
    }
}

/// One measured case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Row {
    pub key: Key,
    /// Elements: see [`super::Extent::count`].
    #[serde(default)]
    pub count: Option<u64>,
    pub times: Times,
    /// Of the median, or of the mean where nothing else is known.
    #[serde(default)]
    pub algbw_gb_per_s: Option<f64>,
    #[serde(default)]
    pub busbw_gb_per_s: Option<f64>,
    /// `None` if nothing was checked.
    #[serde(default)]
    pub check: Option<Check>,
    #[serde(default)]
    pub skew: Option<Skew>,
    #[serde(default)]
    pub path: Option<Path>,
    /// Algorithm, protocol and channels that the library chose, where it says so.
    #[serde(default)]
    pub chosen: Option<String>,
    #[serde(default)]
    pub per_rank: Vec<RankTimes>,
    /// Where that was asked for.
    #[serde(default)]
    pub overlap: Option<Overlap>,
}

impl Row {
    /// A row with bandwidths by the formulas of nccl-tests, and nothing else.
    pub fn new(key: Key, count: Option<u64>, times: Times) -> Row {
        let ranks = key.ranks.unwrap_or(1);
        let bandwidths =
            times.center_us().and_then(|time| key.op.bandwidths(key.bytes, ranks, time));
        Row {
            count,
            times,
            algbw_gb_per_s: bandwidths.map(|both| both.algbw_gb_per_s),
            busbw_gb_per_s: bandwidths
                .filter(|_| key.ranks.is_some())
                .map(|both| both.busbw_gb_per_s),
            key,
            check: None,
            skew: None,
            path: None,
            chosen: None,
            per_rank: Vec::new(),
            overlap: None,
        }
    }

    /// Wrong elements, if anything was checked.
    pub fn wrong(&self) -> Option<u64> {
        self.check.as_ref().map(|check| check.wrong)
    }
}

/// Rows of each curve, ascending by size, in the order in which the curves first come.
pub fn curves(rows: &[Row]) -> Vec<(Key, Vec<&Row>)> {
    let mut curves: Vec<(Key, Vec<&Row>)> = Vec::new();
    for row in rows {
        let series = row.key.series();
        match curves.iter_mut().find(|(key, _)| *key == series) {
            Some((_, rows)) => rows.push(row),
            None => curves.push((series, vec![row])),
        }
    }
    for (_, rows) in &mut curves {
        rows.sort_by_key(|row| row.key.bytes);
    }
    curves
}

/// The fields, besides the size, in which these keys differ from each other, as a text per key:
/// what tells their curves apart.
pub fn labels(keys: &[Key]) -> Vec<String> {
    let varies = |name: &str| {
        let text = |key: &Key| key.fields().into_iter().find(|(n, _)| *n == name).map(|f| f.1);
        keys.windows(2).any(|pair| text(&pair[0]) != text(&pair[1]))
    };
    let label = |key: &Key| {
        let fields = key
            .fields()
            .into_iter()
            .filter(|(name, value)| !value.is_empty() && *name != "bytes" && varies(name));
        let words = fields.map(|(name, value)| match (name, value.as_str()) {
            ("ranks", ranks) => format!("{ranks} ranks"),
            ("root", root) => format!("root {root}"),
            ("in_place", "true") => "in place".to_owned(),
            ("in_place", _) => "out of place".to_owned(),
            ("ordered", "true") => "ordered".to_owned(),
            ("ordered", _) => "unordered".to_owned(),
            _ => value,
        });
        let words: Vec<String> = words.collect();
        if words.is_empty() { key.op.to_string() } else { words.join(" ") }
    };
    keys.iter().map(label).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An out-of-place all_reduce of f32 among 8 ranks.
    pub fn key(bytes: u64) -> Key {
        Key {
            op: Op::AllReduce,
            dtype: ElementType::F32,
            redop: Some(RedOp::Sum),
            root: None,
            ranks: Some(8),
            bytes,
            in_place: false,
            algorithm: None,
            transport: None,
            ordered: None,
        }
    }

    /// That took so long.
    pub fn row(bytes: u64, p50_us: f64) -> Row {
        let times = Times { p50_us: Some(p50_us), ..Times::default() };
        Row::new(key(bytes), Some(bytes / 4), times)
    }

    #[test]
    fn what_is_not_stated_contradicts_nothing() {
        let all = key(8);
        let open = Key { ranks: None, redop: None, transport: Some("tcp".into()), ..key(8) };
        assert!(all.contradictions(&open).is_empty() && all.agrees(&open));
        assert_eq!(all.or(&open), Key { transport: Some("tcp".into()), ..key(8) });
        let other = Key { ranks: Some(4), in_place: true, ..key(16) };
        assert_eq!(all.contradictions(&other), ["ranks", "bytes", "in_place"]);
    }

    #[test]
    fn curves_are_told_apart_by_what_differs() {
        let four = Row { key: Key { ranks: Some(4), ..key(16) }, ..row(16, 1.0) };
        let rows = [row(16, 1.0), four, row(8, 1.0)];
        let curves = curves(&rows);
        assert_eq!(curves.iter().map(|(_, rows)| rows.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(curves[0].1[0].key.bytes, 8);
        let keys: Vec<Key> = curves.into_iter().map(|(key, _)| key).collect();
        assert_eq!(labels(&keys), ["8 ranks", "4 ranks"]);
        assert_eq!(labels(&keys[..1]), ["all_reduce"]);
        let keys = [key(0), Key { in_place: true, op: Op::AllGather, redop: None, ..key(0) }];
        assert_eq!(labels(&keys), ["all_reduce sum out of place", "all_gather in place"]);
    }

    /// The schema has every path of the type.
    #[test]
    fn every_path_is_read_as_it_is_written() {
        let schema = schemars::schema_for!(Path).to_value();
        let kinds = schema["oneOf"].as_array().unwrap().iter();
        let words = kinds.flat_map(|kind| match kind["enum"].as_array() {
            Some(words) => words.clone(),
            None => vec![kind["const"].clone()],
        });
        let words: Vec<serde_json::Value> = words.collect();
        assert_eq!(words.len(), Path::ALL.len(), "{schema}");
        for path in Path::ALL {
            assert_eq!(path.word().parse::<Path>().unwrap(), path);
            assert_eq!(serde_json::to_value(path).unwrap(), path.word());
            assert!(words.iter().any(|word| word == path.word()), "{schema}");
        }
        let error = "shm+udp".parse::<Path>().unwrap_err().to_string();
        assert!(error.contains("shm, shm+tcp, tcp"), "{error}");
    }

    #[test]
    fn what_is_hidden_is_a_part_of_the_shorter() {
        let of = |both| Overlap::of(String::new(), (100.0, 300.0), (110.0, 330.0, both), 3);
        let hidden = |both| of(both).hidden_pct.unwrap();
        assert_eq!([hidden(300.0), hidden(350.0), hidden(400.0)], [100.0, 50.0, 0.0]);
        assert_eq!(hidden(450.0), -50.0);
        let (collective, newton_schulz) = of(330.0).slowdowns();
        assert!((collective - 1.1).abs() < 1e-12 && (newton_schulz - 1.1).abs() < 1e-12);
        let none = Overlap::of(String::new(), (0.0, 300.0), (0.0, 300.0, 300.0), 3);
        assert_eq!(none.hidden_pct, None);
    }

    #[test]
    fn bandwidths_follow_from_the_median() {
        let row = row(1 << 30, 4000.0);
        assert!((row.busbw_gb_per_s.unwrap() - 469.762_048).abs() < 1e-9);
        let unknown = Row::new(Key { ranks: None, ..key(8) }, None, row.times);
        assert_eq!(unknown.busbw_gb_per_s, None);
    }
}
