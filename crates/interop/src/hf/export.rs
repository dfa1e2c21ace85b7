//! A checkpoint's parameters as a published model's directory.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, TensorKey};
use layout::{Dtype, LogicalTensor, Schema};
use model::Architecture;
use serde_json::Value;

use super::families::FAMILIES;
use super::published::{CONFIG, ROUTER_BIAS, config_of, keep_tokens};
use super::table::Family;
use super::write::{SafetensorsOptions, Written, write_safetensors};
use crate::convert::{Transposed, Types, cast};
use crate::fp8::{BLOCK, Codes, Factors, Known};
use crate::saved::Saved;
use crate::{Arriving, Elements, Error, Outgoing};

/// How the matrices of attention and of MLPs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Matrices {
    /// As all other parameters.
    Alike,
    /// FP8 (e4m3) with a factor for each block of 128 by 128, as DeepSeek-V3 was published.
    Fp8,
}

/// A model, as it is to be published.
pub struct Exported<'a> {
    checkpoint: &'a Checkpoint,
    tensors: Vec<Tensor>,
    config: Value,
    dtype: Types,
    companions: &'a [PathBuf],
    known: Known,
}

/// A published tensor and the state that it is.
struct Tensor {
    name: String,
    key: TensorKey,
    shape: Vec<usize>,
    form: Form,
}

/// How a state is written.
#[derive(Clone, Copy)]
enum Form {
    Plain {
        dtype: Types,
        /// Shape of the state, if the file has its transpose.
        transposed: Option<[usize; 2]>,
    },
    /// The codes of a matrix of so many columns, or their factors.
    Codes(usize),
    Factors(usize),
}

impl Form {
    fn dtype(self) -> Dtype {
        match self {
            Form::Plain { dtype, .. } => dtype.dtype,
            Form::Codes(_) => Dtype::F8E4M3,
            Form::Factors(_) => Dtype::F32,
        }
    }
}

impl<'a> Exported<'a> {
    /// Decides names and shapes of all tensors, and the `config.json` of the model.
    ///
    /// # Errors
    /// A model that its family's files cannot tell; a checkpoint of another model; balancing
    /// biases, of a family that has none; FP8, of a family that has none, or without leave to
    /// round.
    pub fn new(
        checkpoint: &'a Checkpoint,
        of: &Architecture,
        seq_len: usize,
        dtype: Types,
        matrices: Matrices,
        companions: &'a [PathBuf],
    ) -> Result<Exported<'a>, Error> {
        let (family, mut config) = config_of(of, seq_len, dtype.dtype)?;
        keep_tokens(&mut config, companions)?;
        let refuse = |reason: String| Error::refused(checkpoint.path(), reason);
        let (schema, parameters) =
            model::parameters(of).map_err(|error| refuse(error.to_string()))?;
        check_schema(checkpoint, &schema)?;
        let mut tensors = Vec::with_capacity(schema.tensors.len());
        for tensor in &schema.tensors {
            match matrices == Matrices::Fp8 && family.is_fp8(&tensor.name) {
                true => tensors.extend(in_blocks(tensor, family, dtype)?),
                false => tensors.push(published(tensor, family, dtype)),
            }
        }
        if matrices == Matrices::Fp8 {
            check_fp8(family)?;
            let names: Vec<&str> = schema.tensors.iter().map(|tensor| &*tensor.name).collect();
            config["quantization_config"] = family.fp8_config(BLOCK, &names);
        }
        for name in &parameters.router_biases {
            let key = TensorKey::new(&**name, ROUTER_BIAS);
            if family.router_bias {
                let shape = checkpoint.tensor(&key)?.shape.clone();
                let name = name.clone();
                let dtype = Types { dtype: Dtype::F32, may_round: false };
                let form = Form::Plain { dtype, transposed: None };
                tensors.push(Tensor { name, key, shape, form });
            } else {
                check_zero(checkpoint, &key, family)?;
            }
        }
        let known = Known::default();
        Ok(Exported { checkpoint, tensors, config, dtype, companions, known })
    }

    /// Bytes of all tensors in the files.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| {
            let elements = layout::region::elements(&tensor.shape).unwrap_or(0);
            (elements * tensor.form.dtype().size_bytes()) as u64
        };
        self.tensors.iter().map(bytes).sum()
    }

    /// The type of the parameters that are not FP8.
    pub fn dtype(&self) -> Dtype {
        self.dtype.dtype
    }

    fn outgoing(&self, number: usize) -> Result<Outgoing<'_>, Error> {
        let Tensor { name, key, shape, form } = &self.tensors[number];
        let mut elements: Box<dyn Elements + 'a> = Box::new(Saved::new(self.checkpoint, key)?);
        let whole = Types { dtype: Dtype::F32, may_round: true };
        let known = &self.known;
        let elements: Box<dyn Elements + '_> = match *form {
            Form::Plain { dtype, transposed } => {
                if let Some(shape) = transposed {
                    elements = Box::new(Transposed::new(elements, shape));
                }
                cast(name, elements, dtype)?
            }
            Form::Codes(columns) => {
                let of = cast(name, elements, whole)?;
                Box::new(Codes::new(key.name.clone(), of, columns, known))
            }
            Form::Factors(columns) => {
                let of = cast(name, elements, whole)?;
                Box::new(Factors::new(key.name.clone(), of, columns, known))
            }
        };
        Ok(Outgoing { name: name.clone(), shape: shape.clone(), elements })
    }
}

/// Writes a directory that transformers loads; `done` is told of bytes as they are written.
///
/// # Errors
/// Something is at `target`; damaged data; a full disk, and whatever else hinders. Nothing is at
/// `target` then.
pub fn export(
    model: &Exported,
    target: &Path,
    options: SafetensorsOptions,
    done: &(dyn Fn(u64) + Sync),
) -> Result<Written, Error> {
    // Types that do not go together are told before anything is written.
    (0..model.tensors.len()).try_for_each(|number| model.outgoing(number).map(drop))?;
    let arriving = Arriving::new(target)?;
    let make = |number| model.outgoing(number);
    let written = write_safetensors(&arriving, model.tensors.len(), &make, options, done)?;
    arriving.write(CONFIG, format!("{:#}\n", model.config).as_bytes())?;
    for path in model.companions.iter().filter(|path| !path.ends_with(CONFIG)) {
        let bytes = std::fs::read(path).map_err(Error::io("read", path))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        arriving.write(&name, &bytes)?;
    }
    arriving.finish()?;
    Ok(written)
}

fn published(tensor: &LogicalTensor, family: &Family, dtype: Types) -> Tensor {
    let LogicalTensor { name, shape, published_transposed, .. } = tensor;
    let transposed = match shape[..] {
        [rows, columns] if *published_transposed => Some([rows, columns]),
        _ => None,
    };
    let shape = match transposed {
        Some([rows, columns]) => vec![columns, rows],
        None => shape.clone(),
    };
    let key = TensorKey::new(&**name, "param");
    let form = Form::Plain { dtype, transposed };
    Tensor { name: prefixed(name, family), key, shape, form }
}

fn prefixed(name: &str, family: &Family) -> String {
    let prefix = if name.starts_with("lm_head") { "" } else { family.prefix };
    format!("{prefix}{name}")
}

/// The name of a matrix's factors, after its own.
const FACTORS: &str = "_scale_inv";

/// A matrix as FP8, and its factors.
///
/// # Errors
/// Values may not be rounded; it is no matrix.
fn in_blocks(tensor: &LogicalTensor, family: &Family, dtype: Types) -> Result<[Tensor; 2], Error> {
    let LogicalTensor { name, shape, .. } = tensor;
    let ([rows, columns], false) = (&shape[..], tensor.published_transposed) else {
        let reason = format!("is {shape:?}, and only matrices are FP8 in blocks");
        return Err(Error::Tensor { name: name.clone(), reason });
    };
    if !dtype.may_round {
        return Err(Error::Rounds { name: name.clone(), from: Dtype::F32, to: Dtype::F8E4M3 });
    }
    let key = TensorKey::new(&**name, "param");
    let blocks = vec![rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)];
    let (codes, factors) = (Form::Codes(*columns), Form::Factors(*columns));
    let name = prefixed(name, family);
    let of = format!("{name}{FACTORS}");
    Ok([
        Tensor { name, key: key.clone(), shape: shape.clone(), form: codes },
        Tensor { name: of, key, shape: blocks, form: factors },
    ])
}

/// A family whose models are read from files with FP8 matrices.
fn check_fp8(family: &Family) -> Result<(), Error> {
    if !family.fp8.is_empty() {
        return Ok(());
    }
    let have = FAMILIES.iter().filter(|family| !family.fp8.is_empty());
    let have: Vec<&str> = have.map(|family| family.architecture).collect();
    let reason = format!(
        "nothing reads a {} with FP8 matrices; {} may have them; leave out --fp8, and give \
         --dtype bf16",
        family.architecture,
        have.join(", ")
    );
    Err(Error::Refused { path: PathBuf::from(CONFIG), reason })
}

/// The checkpoint is of this model.
fn check_schema(checkpoint: &Checkpoint, schema: &Schema) -> Result<(), Error> {
    let theirs = checkpoint.schema();
    for tensor in &schema.tensors {
        let there = theirs.tensors.iter().find(|other| other.name == tensor.name);
        let found = there.map(|there| &there.shape);
        if found != Some(&tensor.shape) {
            let found = found.map_or_else(|| "not there".to_owned(), |shape| format!("{shape:?}"));
            let reason = format!("is {found}, and its config says {:?}", tensor.shape);
            return Err(Error::Tensor { name: tensor.name.clone(), reason });
        }
    }
    Ok(())
}

/// Biases that a family's files have no place for steer nothing.
fn check_zero(checkpoint: &Checkpoint, key: &TensorKey, family: &Family) -> Result<(), Error> {
    let bytes = checkpoint.read_tensor(key)?;
    let values = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
    if values.into_iter().all(|value| value == 0.0) {
        return Ok(());
    }
    let reason = format!(
        "steers which experts a token visits, and a {} has no such biases; to write the tensors \
         without a config.json, give --to safetensors or --to dcp",
        family.architecture
    );
    Err(Error::Tensor { name: key.to_string(), reason })
}
