//! DeepSpeed's universal checkpoints: a directory of each parameter, with a file of each state.
//!
//! ```text
//! zero/PARAMETER/{fp32, exp_avg, exp_avg_sq, step}.pt     mp_rank_00_model_states.pt
//!                  │        │         └─▶ PARAMETER:adam_v      └─▶ version, values
//!                  │        └─▶ PARAMETER:adam_m
//!                  └─▶ PARAMETER
//! ```
//! DeepSpeed merges the shards of all ranks before, so each file has a whole tensor.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use layout::{Dtype, Region};

use crate::dcp::archive::Archive;
use crate::dcp::pickle::{Globals, Node, Pickle};
use crate::dcp::read::{TorchCheckpoint, locate, take};
use crate::dcp::tensor::{self, Described};
use crate::dcp::{LeftOut, Plain};
use crate::files::Regular;
use crate::{Error, Foreign, Located, Piece};

/// Versions of the layout that are known.
const VERSIONS: [f64; 3] = [0.2, 0.3, 0.4];

/// Of states, what follows a parameter's name.
const STATES: [(&str, &str); 3] = [("fp32", ""), ("exp_avg", ":adam_m"), ("exp_avg_sq", ":adam_v")];

/// Directories within each other that a parameter's name may be.
const LEVELS: usize = 16;

/// Opens a directory that has `zero`.
///
/// # Errors
/// It is damaged, of another version, or has no parameters.
pub fn open_universal(path: &Path) -> Result<TorchCheckpoint, Error> {
    let mut open = Open::default();
    let zero = path.join("zero");
    if !zero.is_dir() {
        let reason = match std::fs::read_to_string(path.join("latest_universal")) {
            Ok(name) => format!("it has no `zero`; the newest one is in its `{}`", name.trim()),
            Err(_) => "it has no `zero`, which ds_to_universal.py makes".to_owned(),
        };
        return Err(Error::refused(path, reason));
    }
    open.model_states(path)?;
    open.directory(&zero, &mut Vec::new())?;
    complete(&zero, &open.parameters)?;
    if open.tensors.is_empty() {
        return Err(Error::refused(&zero, "it has no parameter's fp32.pt"));
    }
    let Open { files, tensors, values, left_out, notes, .. } = open;
    let foreign = Foreign::new(path, files, tensors)?;
    Ok(TorchCheckpoint { foreign, values, left_out, notes })
}

#[derive(Default)]
struct Open {
    files: Vec<PathBuf>,
    tensors: BTreeMap<String, Located>,
    values: BTreeMap<String, Plain>,
    left_out: Vec<LeftOut>,
    notes: Vec<String>,
    /// By name.
    parameters: BTreeMap<String, Shapes>,
}

/// The shapes of a parameter's states, by their files.
type Shapes = BTreeMap<&'static str, Vec<usize>>;

/// Every parameter has the same states, the values among them, all of one shape.
fn complete(zero: &Path, parameters: &BTreeMap<String, Shapes>) -> Result<(), Error> {
    let has = |state: &str| parameters.values().any(|shapes| shapes.contains_key(state));
    for (name, shapes) in parameters {
        let path = |state: &str| zero.join(name).join(format!("{state}.pt"));
        let refuse = |state: &str, reason: String| {
            let hint = "run ds_to_universal.py again, or copy it again";
            Err(Error::refused(&path(state), format!("{reason}; {hint}")))
        };
        let [(values, _), moments @ ..] = STATES;
        let Some(shape) = shapes.get(values) else {
            return refuse(values, format!("it is missing, and has the values of `{name}`"));
        };
        for (state, _) in moments {
            match shapes.get(state) {
                None if has(state) => {
                    let reason = format!("`{name}` lacks it, and other parameters have theirs");
                    return refuse(state, reason);
                }
                Some(other) if other != shape => {
                    let reason = format!("`{name}` is {other:?} here and {shape:?} in {values}.pt");
                    return refuse(state, reason);
                }
                _ => {}
            }
        }
    }
    Ok(())
}

impl Open {
    /// The version, and values beside the parameters.
    fn model_states(&mut self, path: &Path) -> Result<(), Error> {
        let path = path.join("mp_rank_00_model_states.pt");
        if !path.exists() {
            self.notes.push(format!("{} is not there, so its version is not", path.display()));
            return Ok(());
        }
        // Its tensors are the parameters again, as the forward pass had them.
        let (value, mut left) = plain(&path)?;
        left.retain(|left| !left.name.starts_with("module"));
        let Some(Plain::Dict(mut pairs)) = take("model_states", (value, left), &mut self.left_out)
        else {
            return Err(Error::malformed(&path, "it is no dictionary"));
        };
        pairs.retain(|(key, _)| !matches!(key, Plain::Text(key) if key == "module"));
        let states = Plain::Dict(pairs);
        let info = states.get("universal_checkpoint_info");
        match info.and_then(|info| info.get("universal_checkpoint_version")) {
            Some(Plain::Float(version)) if VERSIONS.contains(version) => {}
            None => self.notes.push(format!("{} names no version", path.display())),
            Some(other) => {
                let reason = format!("it is of version {other}; {VERSIONS:?} can be read");
                return Err(Error::refused(&path, reason));
            }
        }
        self.values.insert("model_states".to_owned(), states);
        Ok(())
    }

    /// A parameter's directory, or one above such.
    fn directory(&mut self, dir: &Path, name: &mut Vec<String>) -> Result<(), Error> {
        if name.len() > LEVELS {
            return Err(Error::refused(dir, "it lies too deep for a parameter"));
        }
        let entries = std::fs::read_dir(dir).map_err(Error::io("list", dir))?;
        let entries: Result<Vec<_>, _> = entries.collect();
        let mut entries = entries.map_err(Error::io("list", dir))?;
        entries.sort_by_key(std::fs::DirEntry::file_name);
        let is_above = entries.iter().any(|entry| entry.path().is_dir());
        if !name.is_empty() && !is_above {
            self.parameters.entry(name.join("/")).or_default();
        }
        for entry in entries {
            let path = entry.path();
            let Ok(file) = entry.file_name().into_string() else {
                return Err(Error::refused(&path, "its name is no UTF-8"));
            };
            if path.is_dir() {
                name.push(file);
                self.directory(&path, name)?;
                name.pop();
            } else if let Some(state) = file.strip_suffix(".pt") {
                self.file(&path, &name.join("/"), state)?;
            } else {
                let reason = "no file of the universal format".to_owned();
                self.left_out.push(LeftOut { name: path.display().to_string(), reason });
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, parameter: &str, state: &str) -> Result<(), Error> {
        if parameter.is_empty() {
            let value = take(state, plain(path)?, &mut self.left_out);
            self.values.extend(value.map(|value| (state.to_owned(), value)));
            return Ok(());
        }
        if state == "step" {
            let step = step(path)?;
            self.values.insert(format!("{parameter}:step"), step);
            return Ok(());
        }
        let Some((state, slot)) = STATES.iter().find(|(known, _)| *known == state) else {
            let name = format!("{parameter}:{state}");
            self.left_out.push(LeftOut { name, reason: "no state that is known".to_owned() });
            return Ok(());
        };
        let file = Regular::open(path)?;
        let archive = Archive::open(&file, 0..file.bytes)?;
        let found = parameter_of(&archive)?;
        let (start, crc32) = locate(&archive, &found)?;
        let Described { dtype, shape, .. } = found;
        self.parameters.entry(parameter.to_owned()).or_default().insert(state, shape.clone());
        let mut pieces = Vec::new();
        if !shape.contains(&0) {
            let region = Region::whole(&shape);
            pieces.push(Piece { region, file: self.files.len(), start, crc32 });
        }
        self.files.push(path.to_path_buf());
        self.tensors.insert(format!("{parameter}{slot}"), Located { dtype, shape, pieces });
        Ok(())
    }
}

/// The plain values of a file.
fn plain(path: &Path) -> Result<(Option<Plain>, Vec<LeftOut>), Error> {
    let file = Regular::open(path)?;
    let archive = Archive::open(&file, 0..file.bytes)?;
    Plain::read(&archive.pickle()?).map_err(|error| Error::malformed(path, error.to_string()))
}

/// `{"param": tensor, …}`; the rest says how to cut it again.
fn parameter_of(archive: &Archive) -> Result<Described, Error> {
    let bytes = archive.pickle()?;
    let shape = ("deepspeed.checkpoint.universal_checkpoint", "SubparamShape");
    let allowed = [&tensor::GLOBALS[..], &[shape]].concat();
    let pickle = Pickle::read(&bytes, Globals::Only(&allowed))
        .map_err(|error| archive.damaged(error.to_string()))?;
    let root = match pickle.node(pickle.root()) {
        Node::Dict(pairs) => {
            let is_it = |(key, _): &&(u32, u32)| *pickle.node(*key) == Node::Text("param");
            let found = pairs.iter().find(is_it);
            found.ok_or_else(|| archive.damaged("it has no `param`"))?.1
        }
        _ => pickle.root(),
    };
    tensor::describe(&pickle, root).map_err(|reason| archive.refused(reason))
}

/// A number of steps: a plain one, or a tensor of one element.
fn step(path: &Path) -> Result<Plain, Error> {
    let file = Regular::open(path)?;
    let archive = Archive::open(&file, 0..file.bytes)?;
    let bytes = archive.pickle()?;
    let malformed = |reason: String| archive.damaged(reason);
    let pickle = Pickle::read(&bytes, Globals::Only(&tensor::GLOBALS))
        .map_err(|error| malformed(error.to_string()))?;
    match pickle.node(pickle.root()) {
        Node::Int(value) => return Ok(Plain::Int(*value)),
        Node::Float(value) => return Ok(Plain::Float(*value)),
        _ => {}
    }
    let found = tensor::describe(&pickle, pickle.root()).map_err(malformed)?;
    let element = found.dtype.size_bytes();
    let storage = archive.read(&format!("data/{}", found.key), 1 << 20)?;
    let value = storage.get(found.start as usize..).and_then(|rest| rest.get(..element));
    if layout::region::elements(&found.shape) != Some(1) {
        return Err(malformed(format!("a step of shape {:?}", found.shape)));
    }
    let value = value.and_then(|value| match found.dtype {
        Dtype::F32 => Some(Plain::Float(f32::from_le_bytes(value.try_into().ok()?).into())),
        Dtype::F64 => Some(Plain::Float(f64::from_le_bytes(value.try_into().ok()?))),
        Dtype::I32 => Some(Plain::Int(i32::from_le_bytes(value.try_into().ok()?).into())),
        Dtype::I64 => Some(Plain::Int(i64::from_le_bytes(value.try_into().ok()?))),
        _ => None,
    });
    value.ok_or_else(|| malformed(format!("a step of type {}", found.dtype)))
}
