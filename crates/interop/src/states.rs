//! A checkpoint's states for files that know no model: under their own names, as they are.

use checkpoint::{Checkpoint, TensorKey};

use crate::convert::Types;
use crate::convert::cast;
use crate::saved::Saved;
use crate::{Error, Outgoing};

/// States to be written: parameters as `NAME`, others as `NAME:SLOT`.
pub struct States<'a> {
    checkpoint: &'a Checkpoint,
    keys: Vec<TensorKey>,
    types: Option<Types>,
}

impl<'a> States<'a> {
    /// The parameters, or all states; parameters in another type, if one is given.
    pub fn new(checkpoint: &'a Checkpoint, all: bool, types: Option<Types>) -> States<'a> {
        let keys = checkpoint.tensors().iter().map(|state| state.key());
        let keys = keys.filter(|key| all || key.slot == "param").collect();
        States { checkpoint, keys, types }
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// State `number`.
    ///
    /// # Errors
    /// A type that is not turned into the wanted one.
    pub fn outgoing(&self, number: usize) -> Result<Outgoing<'a>, Error> {
        let key = &self.keys[number];
        let shape = self.checkpoint.tensor(key)?.shape.clone();
        let is_param = key.slot == "param";
        let name = if is_param { key.name.clone() } else { key.to_string() };
        let elements = Box::new(Saved::new(self.checkpoint, key)?);
        let elements = match self.types.filter(|_| is_param) {
            Some(types) => cast(&name, elements, types)?,
            None => elements,
        };
        Ok(Outgoing { name, shape, elements })
    }
}
