//! Tensors that states are made of: of a foreign checkpoint, or of one of Muster's.

use std::path::Path;

use checkpoint::{Checkpoint, TensorKey};
use layout::Dtype;

use crate::saved::Saved;
use crate::{Elements, Error, Foreign};

/// Tensors by name. A state that is no parameter is called `NAME:SLOT`.
pub trait Origin: Sync {
    fn path(&self) -> &Path;

    /// All names, in order.
    fn names(&self) -> Vec<String>;

    /// Type and shape of a tensor, if there is one of this name.
    fn find(&self, name: &str) -> Option<(Dtype, &[usize])>;

    /// Its elements.
    ///
    /// # Errors
    /// There is none of this name.
    fn elements<'a>(&'a self, name: &'a str) -> Result<Box<dyn Elements + 'a>, Error>;
}

impl Origin for Foreign {
    fn path(&self) -> &Path {
        &self.path
    }

    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn find(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensors.get(name).map(|located| (located.dtype, &*located.shape))
    }

    fn elements<'a>(&'a self, name: &'a str) -> Result<Box<dyn Elements + 'a>, Error> {
        Ok(Box::new(self.tensor(name)?))
    }
}

/// The key of a state by the name that it has here.
pub(crate) fn state_key(name: &str) -> TensorKey {
    match name.rsplit_once(':') {
        Some((name, slot)) => TensorKey::new(name, slot),
        None => TensorKey::new(name, "param"),
    }
}

impl Origin for Checkpoint {
    fn path(&self) -> &Path {
        Checkpoint::path(self)
    }

    fn names(&self) -> Vec<String> {
        let name = |state: &checkpoint::StateTensor| match &*state.slot {
            "param" => state.name.clone(),
            slot => format!("{}:{slot}", state.name),
        };
        self.tensors().iter().map(name).collect()
    }

    fn find(&self, name: &str) -> Option<(Dtype, &[usize])> {
        self.tensor(&state_key(name)).ok().map(|state| (state.dtype, &*state.shape))
    }

    fn elements<'a>(&'a self, name: &'a str) -> Result<Box<dyn Elements + 'a>, Error> {
        Ok(Box::new(Saved::new(self, &state_key(name))?))
    }
}
