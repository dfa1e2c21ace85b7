//! The locks of this crate's small protocols, named once so that a test can put a model checker's
//! in their place.

pub(crate) use std::sync::Mutex;
