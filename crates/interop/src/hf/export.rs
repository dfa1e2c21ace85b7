//! A checkpoint's parameters as a published model's directory.

use std::path::{Path, PathBuf};

use checkpoint::{Checkpoint, TensorKey};
use layout::{Dtype, LogicalTensor, Schema};
use model::Architecture;
use serde_json::Value;

use super::published::{CONFIG, ROUTER_BIAS, config_of, keep_tokens};
use super::table::Family;
use super::write::{SafetensorsOptions, Written, write_safetensors};
use crate::convert::Types;
use crate::convert::{Transposed, cast};
use crate::saved::Saved;
use crate::{Arriving, Elements, Error, Outgoing};

/// A model, as it is to be published.
pub struct Exported<'a> {
    checkpoint: &'a Checkpoint,
    tensors: Vec<Tensor>,
    config: Value,
    dtype: Types,
    companions: &'a [PathBuf],
}

/// A published tensor and the state that it is.
struct Tensor {
    name: String,
    key: TensorKey,
    /// Of the state, if the file has its transpose.
    transposed: Option<[usize; 2]>,
    shape: Vec<usize>,
    dtype: Types,
}

impl<'a> Exported<'a> {
    /// Decides names and shapes of all tensors, and the `config.json` of the model.
    ///
    /// # Errors
    /// A model that its family's files cannot tell; a checkpoint of another model; balancing
    /// biases, of a family that has none.
    pub fn new(
        checkpoint: &'a Checkpoint,
        of: &Architecture,
        seq_len: usize,
        dtype: Types,
        companions: &'a [PathBuf],
    ) -> Result<Exported<'a>, Error> {
        let (family, mut config) = config_of(of, seq_len, dtype.dtype)?;
        keep_tokens(&mut config, companions)?;
        let refuse = |reason: String| Error::refused(checkpoint.path(), reason);
        let (schema, parameters) =
            model::parameters(of).map_err(|error| refuse(error.to_string()))?;
        check_schema(checkpoint, &schema)?;
        let mut tensors: Vec<Tensor> =
            schema.tensors.iter().map(|tensor| published(tensor, family, dtype)).collect();
        for name in &parameters.router_biases {
            let key = TensorKey::new(&**name, ROUTER_BIAS);
            if family.router_bias {
                let shape = checkpoint.tensor(&key)?.shape.clone();
                let name = name.clone();
                let dtype = Types { dtype: Dtype::F32, may_round: false };
                tensors.push(Tensor { name, key, transposed: None, shape, dtype });
            } else {
                check_zero(checkpoint, &key, family)?;
            }
        }
        Ok(Exported { checkpoint, tensors, config, dtype, companions })
    }

    /// Bytes of all tensors in the files.
    pub fn bytes(&self) -> u64 {
        let bytes = |tensor: &Tensor| {
            let elements = layout::region::elements(&tensor.shape).unwrap_or(0);
            (elements * tensor.dtype.dtype.size_bytes()) as u64
        };
        self.tensors.iter().map(bytes).sum()
    }

    /// The type of the parameters.
    pub fn dtype(&self) -> Dtype {
        self.dtype.dtype
    }

    fn outgoing(&self, number: usize) -> Result<Outgoing<'a>, Error> {
        let Tensor { name, key, transposed, shape, dtype } = &self.tensors[number];
        let mut elements: Box<dyn Elements + 'a> = Box::new(Saved::new(self.checkpoint, key)?);
        if let Some(shape) = transposed {
            elements = Box::new(Transposed::new(elements, *shape));
        }
        let elements = cast(name, elements, *dtype)?;
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
    let prefix = if name.starts_with("lm_head") { "" } else { family.prefix };
    let key = TensorKey::new(&**name, "param");
    Tensor { name: format!("{prefix}{name}"), key, transposed, shape, dtype }
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
