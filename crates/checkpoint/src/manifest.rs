//! `manifest.json`: what a checkpoint holds and where, in JSON that people can read.
//!
//! A manifest is trusted only after its digest has matched `COMMIT`; then parsing it still proves
//! that it makes sense by itself: every state tensor is covered exactly once, every
//! chunk lies inside its file, and no path leaves the directory.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::path::Path;

use layout::{LogicalTensor, Part, Role};
use serde::{Deserialize, Serialize};
use serde_json::ser::Formatter;
use serde_json::value::Value;

use crate::region::{CoverFault, elements, prove_cover};
use crate::{Digest, Dtype, Error, FORMAT_VERSION, Region, TensorKey, names, sums};

/// The value of the `format` key.
const FORMAT: &str = "muster-checkpoint";

/// The whole manifest. Keys appear in the file in the order of the fields here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always `muster-checkpoint`.
    pub format: String,
    /// [`FORMAT_VERSION`].
    pub format_version: u32,
    /// Optimizer steps taken.
    pub step: u64,
    /// Fencing generation of the attempt.
    pub generation: u32,
    /// Ranks that saved. Informative: any number of ranks may load.
    pub world: u32,
    /// The state besides tensors that a run needs to go on.
    pub run_state: RunState,
    /// The logical tensors of the model.
    pub schema: Vec<TensorRecord>,
    /// The shards, by rank and number.
    pub files: Vec<FileRecord>,
    /// The state tensors and where their parts lie.
    pub tensors: Vec<StateTensor>,
}

/// The state besides tensors that a run needs to go on with the same bits.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Version of the program that saved.
    pub muster_version: String,
    /// Optimizer steps taken.
    pub step: u64,
    /// Global sample cursor: index of the first sample not yet used, over all ranks.
    pub samples: u64,
    /// Tokens trained on.
    pub tokens: u64,
    /// Seed of the counter-based generator.
    pub seed: u64,
    /// Its counter.
    pub rng_counter: u64,
    /// Digest of the resolved configuration.
    pub config_digest: Digest,
    /// Digest of everything that decides rounding.
    pub numeric_plan_digest: Digest,
    /// State of the learning-rate schedule, as the trainer wants it.
    pub schedule: Value,
    /// Anything else that the trainer wants back.
    pub extra: Value,
}

/// A logical tensor of the schema, as the file spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorRecord {
    pub name: String,
    pub shape: Vec<usize>,
    pub role: RoleRecord,
    /// The true matrices inside a tensor published fused; empty: it is one.
    pub parts: Vec<PartRecord>,
    pub published_transposed: bool,
    pub fused: bool,
}

/// [`layout::Role`] as the file spells it; the two may grow apart when `layout` changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RoleRecord {
    Matrix,
    Embedding,
    Head,
    Vector,
    Router,
    Expert { index: u32, of: u32 },
}

/// [`layout::Part`] as the file spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartRecord {
    pub label: String,
    /// First row and one past the last.
    pub rows: [usize; 2],
}

/// One shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileRecord {
    /// `rank-00000/shard-000.safetensors`.
    pub path: String,
    /// Length of the file.
    pub bytes: u64,
    /// BLAKE3 of the sums table beside it (the same path ending in `.sums`).
    pub sums_blake3: Digest,
    /// BLAKE3 of the file itself, where the save was asked for it.
    pub data_blake3: Option<Digest>,
}

/// One state tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateTensor {
    /// Logical tensor name.
    pub name: String,
    /// `param`, `momentum` …
    pub slot: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Boxes that tile the tensor, sorted by offset; none for a tensor of no elements.
    pub chunks: Vec<ChunkRecord>,
}

/// A box of a state tensor and the bytes that hold it, row-major.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkRecord {
    pub offset: Vec<usize>,
    pub shape: Vec<usize>,
    /// Index into `files`.
    pub file: u32,
    /// First byte and one past the last, counted from the start of the file.
    pub range: [u64; 2],
}

/// The part of every version's manifest that never changes.
#[derive(Deserialize)]
struct Head {
    format: String,
    format_version: u32,
}

impl From<&LogicalTensor> for TensorRecord {
    fn from(tensor: &LogicalTensor) -> TensorRecord {
        let part = |part: &Part| PartRecord {
            label: part.label.clone(),
            rows: [part.rows.start, part.rows.end],
        };
        TensorRecord {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            role: match tensor.role {
                Role::Matrix => RoleRecord::Matrix,
                Role::Embedding => RoleRecord::Embedding,
                Role::Head => RoleRecord::Head,
                Role::Vector => RoleRecord::Vector,
                Role::Router => RoleRecord::Router,
                Role::Expert { index, of } => RoleRecord::Expert { index, of },
            },
            parts: tensor.parts.iter().map(part).collect(),
            published_transposed: tensor.published_transposed,
            fused: tensor.fused,
        }
    }
}

impl From<&TensorRecord> for LogicalTensor {
    fn from(record: &TensorRecord) -> LogicalTensor {
        let part = |part: &PartRecord| Part {
            label: part.label.clone(),
            rows: Range { start: part.rows[0], end: part.rows[1] },
        };
        LogicalTensor {
            name: record.name.clone(),
            shape: record.shape.clone(),
            role: match record.role {
                RoleRecord::Matrix => Role::Matrix,
                RoleRecord::Embedding => Role::Embedding,
                RoleRecord::Head => Role::Head,
                RoleRecord::Vector => Role::Vector,
                RoleRecord::Router => Role::Router,
                RoleRecord::Expert { index, of } => Role::Expert { index, of },
            },
            parts: record.parts.iter().map(part).collect(),
            published_transposed: record.published_transposed,
            fused: record.fused,
        }
    }
}

impl StateTensor {
    /// Name and slot.
    pub fn key(&self) -> TensorKey {
        TensorKey::new(&*self.name, &*self.slot)
    }

    /// Bytes of the whole tensor (the manifest has been checked to keep them in a `u64`).
    pub fn bytes(&self) -> u64 {
        elements(&self.shape).unwrap_or(0) as u64 * self.dtype.size_bytes() as u64
    }
}

impl ChunkRecord {
    /// The box.
    pub fn region(&self) -> Region {
        Region::new(&self.offset, &self.shape)
    }
}

impl FileRecord {
    /// The rank that wrote it.
    pub fn rank(&self) -> Option<u32> {
        names::parse_shard_path(&self.path).map(|(rank, _)| rank)
    }

    /// The path of the sums table within the attempt.
    pub(crate) fn sums_path(&self) -> String {
        let stem = self.path.strip_suffix(".safetensors").unwrap_or(&self.path);
        format!("{stem}.sums")
    }
}

impl Manifest {
    /// A manifest of this version.
    pub(crate) fn new(step: u64, generation: u32, world: u32, run_state: RunState) -> Manifest {
        Manifest {
            format: FORMAT.to_string(),
            format_version: FORMAT_VERSION,
            step,
            generation,
            world,
            run_state,
            schema: Vec::new(),
            files: Vec::new(),
            tensors: Vec::new(),
        }
    }

    /// Bytes of all shards and their tables.
    pub fn data_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes + sums::table_bytes(file.bytes)).sum()
    }

    /// The bytes of the file: the same for the same manifest.
    pub(crate) fn render(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let rows = RowPerLine { depth: 0, has_value: false };
        let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, rows);
        self.serialize(&mut serializer).expect("a manifest serializes into memory");
        bytes.push(b'\n');
        bytes
    }

    /// Reads a manifest and proves it consistent. `path` is named in errors.
    ///
    /// # Errors
    /// A later version; a syntax error with line and column; a contradiction.
    pub(crate) fn parse(bytes: &[u8], path: &Path) -> Result<Manifest, Error> {
        let syntax = |error: serde_json::Error| Error::ManifestSyntax {
            path: path.to_path_buf(),
            line: error.line(),
            column: error.column(),
            reason: error.to_string(),
        };
        let head: Head = serde_json::from_slice(bytes).map_err(syntax)?;
        let content = |reason: String| Error::ManifestContent { path: path.to_path_buf(), reason };
        if head.format != FORMAT {
            return Err(content(format!("format is `{}`, not `{FORMAT}`", head.format)));
        }
        if head.format_version != FORMAT_VERSION {
            let (path, found) = (path.to_path_buf(), head.format_version);
            return Err(Error::UnsupportedVersion { path, found });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(syntax)?;
        manifest.check().map_err(content)?;
        Ok(manifest)
    }

    /// Looks for contradictions within the manifest; the first one is the error, in words.
    fn check(&self) -> Result<(), String> {
        if self.run_state.step != self.step {
            let (step, of_run) = (self.step, self.run_state.step);
            return Err(format!("step is {step}, but its run state is of step {of_run}"));
        }
        let mut paths = HashSet::new();
        for file in &self.files {
            if names::parse_shard_path(&file.path).is_none() {
                return Err(format!("`{}` is not a shard's path", file.path));
            }
            if !paths.insert(file.path.as_str()) {
                return Err(format!("`{}` is listed twice", file.path));
            }
        }
        let mut keys = HashSet::new();
        let mut used: Vec<(u32, [u64; 2])> = Vec::new();
        for tensor in &self.tensors {
            let key = tensor.key();
            self.check_tensor(tensor).map_err(|reason| format!("tensor {key}: {reason}"))?;
            if !keys.insert(key) {
                return Err(format!("tensor {} is listed twice", tensor.key()));
            }
            used.extend(tensor.chunks.iter().map(|chunk| (chunk.file, chunk.range)));
        }
        used.sort_unstable();
        let clash = used.windows(2).find(|w| w[0].0 == w[1].0 && w[0].1[1] > w[1].1[0]);
        clash.map_or(Ok(()), |pair| {
            let path = &self.files[pair[0].0 as usize].path;
            Err(format!("two chunks share bytes of {path} at {}", pair[1].1[0]))
        })
    }

    fn check_tensor(&self, tensor: &StateTensor) -> Result<(), String> {
        let size = tensor.dtype.size_bytes();
        elements(&tensor.shape)
            .and_then(|count| count.checked_mul(size))
            .ok_or_else(|| format!("shape {:?} is too large", tensor.shape))?;
        if !tensor.key().slot_is_valid() {
            return Err(format!("`{}` is not a slot: use a-z, 0-9 and _", tensor.slot));
        }
        let mut regions = Vec::with_capacity(tensor.chunks.len());
        for chunk in &tensor.chunks {
            let region = chunk.region();
            let file = self.files.get(chunk.file as usize);
            let file = file.ok_or_else(|| format!("chunk {region} is in no listed file"))?;
            if !region.fits(&tensor.shape) || region.shape.contains(&0) {
                return Err(format!("chunk {region} is empty or outside {:?}", tensor.shape));
            }
            let [start, end] = chunk.range;
            let bytes = region.elements().map(|count| (count * size) as u64);
            if end > file.bytes || end.checked_sub(start) != bytes {
                return Err(format!(
                    "chunk {region} cannot be bytes {start}..{end} of {}, which has {}",
                    file.path, file.bytes
                ));
            }
            regions.push(region);
        }
        prove_cover(&tensor.shape, &regions).map_err(|fault| match fault {
            CoverFault::Gap(region) => format!("no chunk holds {region}"),
            CoverFault::Overlap(a, b) => format!("{} and {} overlap", regions[a], regions[b]),
        })
    }
}

/// Formats the two outer levels over lines and keeps deeper ones on one, so that the tables of
/// files and tensors have one row per line.
struct RowPerLine {
    depth: usize,
    has_value: bool,
}

impl RowPerLine {
    fn open<W: io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.has_value = false;
        out.write_all(bracket)
    }

    fn close<W: io::Write + ?Sized>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        if self.has_value && self.depth <= 2 {
            new_line(out, self.depth - 1)?;
        }
        self.depth -= 1;
        out.write_all(bracket)
    }

    fn separate<W: io::Write + ?Sized>(&self, out: &mut W, first: bool) -> io::Result<()> {
        out.write_all(if first { b"" } else { b"," })?;
        match self.depth {
            0..=2 => new_line(out, self.depth),
            _ => out.write_all(if first { b"" } else { b" " }),
        }
    }
}

fn new_line<W: io::Write + ?Sized>(out: &mut W, depth: usize) -> io::Result<()> {
    out.write_all(b"\n")?;
    (0..depth).try_for_each(|_| out.write_all(b"  "))
}

impl Formatter for RowPerLine {
    fn begin_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn end_array_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: io::Write + ?Sized>(
        &mut self,
        out: &mut W,
        first: bool,
    ) -> io::Result<()> {
        self.separate(out, first)
    }

    fn begin_object_value<W: io::Write + ?Sized>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }

    fn end_object_value<W: io::Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.has_value = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Manifest {
        let run_state = RunState {
            muster_version: "0.1.0".to_string(),
            step: 3,
            samples: 1 << 60,
            tokens: 5,
            seed: u64::MAX,
            rng_counter: 0,
            config_digest: Digest::of(b"config"),
            numeric_plan_digest: Digest::of(b"plan"),
            schedule: serde_json::json!({"list": [], "lr": 0.1 + 0.2, "map": {}}),
            extra: Value::Null,
        };
        let mut manifest = Manifest::new(3, 1, 2, run_state);
        let tensor = LogicalTensor::new("w", &[2, 3], Role::Expert { index: 1, of: 4 });
        manifest.schema.push(TensorRecord::from(&tensor));
        for rank in 0..2 {
            manifest.files.push(FileRecord {
                path: names::shard_path(rank, 0),
                bytes: 4108,
                sums_blake3: Digest::of(b"sums"),
                data_blake3: None,
            });
        }
        let chunk = |row: usize| ChunkRecord {
            offset: vec![row, 0],
            shape: vec![1, 3],
            file: row as u32,
            range: [4096, 4108],
        };
        manifest.tensors.push(StateTensor {
            name: "w".to_string(),
            slot: "param".to_string(),
            dtype: Dtype::F32,
            shape: vec![2, 3],
            chunks: vec![chunk(0), chunk(1)],
        });
        manifest
    }

    fn parse(bytes: &[u8]) -> Result<Manifest, Error> {
        Manifest::parse(bytes, Path::new("m"))
    }

    #[test]
    fn what_is_written_reads_back_with_one_row_per_line() {
        let bytes = sample().render();
        assert_eq!(parse(&bytes).unwrap(), sample());
        let text = String::from_utf8(bytes).unwrap();
        let row = "\n    {\"name\": \"w\", \"slot\": \"param\", \"dtype\": \"F32\", \
                   \"shape\": [2, 3], \"chunks\": [{\"offset\": [0, 0]";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("{\"list\": [], \"lr\": 0.30000000000000004, \"map\": {}}"),
            "{text}"
        );
    }

    #[test]
    fn contradictions_are_told() {
        let told = |change: fn(&mut Manifest)| {
            let mut manifest = sample();
            change(&mut manifest);
            parse(&manifest.render()).unwrap_err().to_string()
        };
        let cases = [
            told(|m| m.format = "other".to_string()),
            told(|m| m.format_version = 2),
            told(|m| m.step = 4),
            told(|m| m.files[0].path = "../rank-00000/shard-000.safetensors".to_string()),
            told(|m| m.files[1].path = m.files[0].path.clone()),
            told(|m| m.tensors[0].chunks.truncate(1)),
            told(|m| m.tensors[0].chunks[1].offset = vec![0, 0]),
            told(|m| m.tensors[0].chunks[1].file = 2),
            told(|m| m.tensors[0].chunks[1].file = 0),
            told(|m| m.tensors[0].chunks[1].range[1] += 1),
            told(|m| m.tensors[0].shape = vec![usize::MAX, 3]),
            told(|m| m.tensors.push(m.tensors[0].clone())),
        ];
        let wanted = [
            "m contradicts itself: format is `other`, not `muster-checkpoint`",
            "m has checkpoint format version 2; this program reads version 1: use a later Muster",
            "m contradicts itself: step is 4, but its run state is of step 3",
            "m contradicts itself: `../rank-00000/shard-000.safetensors` is not a shard's path",
            "m contradicts itself: `rank-00000/shard-000.safetensors` is listed twice",
            "m contradicts itself: tensor w:param: no chunk holds [1, 0]+[1, 3]",
            "m contradicts itself: tensor w:param: [0, 0]+[1, 3] and [0, 0]+[1, 3] overlap",
            "m contradicts itself: tensor w:param: chunk [1, 0]+[1, 3] is in no listed file",
            "m contradicts itself: two chunks share bytes of rank-00000/shard-000.safetensors at \
             4096",
            "m contradicts itself: tensor w:param: chunk [1, 0]+[1, 3] cannot be bytes 4096..4109 \
             of rank-00001/shard-000.safetensors, which has 4108",
            "m contradicts itself: tensor w:param: shape [18446744073709551615, 3] is too large",
            "m contradicts itself: tensor w:param is listed twice",
        ];
        assert_eq!(cases, wanted);
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        let text = String::from_utf8(sample().render()).unwrap();
        let error = parse(text.replace("\"slot\"", "\"slit\"").as_bytes()).unwrap_err();
        assert!(matches!(error, Error::ManifestSyntax { line: 16.., column: 1.., .. }), "{error}");
        assert!(error.to_string().contains("unknown field `slit`"), "{error}");
    }

    proptest! {
        #[test]
        fn mangled_manifests_never_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            digits in any::<bool>(),
        ) {
            let mut bytes = sample().render();
            for (place, value) in edits {
                let at = place.index(bytes.len());
                match digits {
                    // Grow numbers, the way to nonsense that still parses.
                    true if bytes[at].is_ascii_digit() => {
                        bytes.splice(at..at, [b'0' + value % 10; 12]);
                    }
                    true => {}
                    false => bytes[at] = value,
                }
            }
            let _ = parse(&bytes);
        }
    }
}
