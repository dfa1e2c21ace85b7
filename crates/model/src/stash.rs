//! Micro-batches in flight: a forward pass takes a stash, which has saved places of its own, and
//! whoever runs backward from it, or lets go of it, gives it back.

use std::sync::{Arc, Mutex, PoisonError};

use crate::ModelError;

/// The activations of a micro-batch that was run forward, until its backward pass.
#[derive(Debug)]
pub struct Stash {
    number: usize,
    free: Arc<Free>,
}

impl Drop for Stash {
    fn drop(&mut self) {
        self.free.numbers().push(self.number);
    }
}

/// All stashes of a model.
#[derive(Debug)]
pub(crate) struct Stashes {
    free: Arc<Free>,
    count: usize,
}

/// Numbers of those that nobody has.
#[derive(Debug)]
struct Free(Mutex<Vec<usize>>);

impl Free {
    fn numbers(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stashes {
    pub fn new(count: usize) -> Stashes {
        // The first comes first.
        let numbers = (0..count).rev().collect();
        Stashes { free: Arc::new(Free(Mutex::new(numbers))), count }
    }

    /// # Errors
    /// All are in use.
    pub fn take(&self) -> Result<Stash, ModelError> {
        let number = self.free.numbers().pop();
        let number = number.ok_or(ModelError::InFlight { most: self.count })?;
        Ok(Stash { number, free: Arc::clone(&self.free) })
    }

    /// Which it is.
    ///
    /// # Errors
    /// It is another model's.
    pub fn number(&self, stash: &Stash) -> Result<usize, ModelError> {
        match Arc::ptr_eq(&self.free, &stash.free) {
            true => Ok(stash.number),
            false => Err(ModelError::Unplanned { what: "activations of another model" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stash_is_one_micro_batchs_until_it_is_given_back() {
        let stashes = Stashes::new(2);
        let (first, second) = (stashes.take().unwrap(), stashes.take().unwrap());
        let number = |stash: &Stash| stashes.number(stash).unwrap();
        assert_eq!((number(&first), number(&second)), (0, 1));
        let refused = stashes.take().unwrap_err().to_string();
        assert!(refused.starts_with("2 micro-batches are in flight"), "{refused}");
        drop(first);
        assert_eq!(number(&stashes.take().unwrap()), 0);
        assert!(Stashes::new(1).number(&second).is_err());
    }
}
