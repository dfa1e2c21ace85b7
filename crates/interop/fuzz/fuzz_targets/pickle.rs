//! Pickles of any bytes: read as a graph, and walked for plain values.
#![no_main]

use interop::dcp::Plain;
use interop::dcp::pickle::{Globals, Pickle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let allowed = [("collections", "OrderedDict")];
    let _ = Pickle::read(data, Globals::Only(&allowed));
    if let Ok(pickle) = Pickle::read(data, Globals::Any) {
        let _ = pickle.node(pickle.root()).kind();
    }
    if let Ok((Some(value), _)) = Plain::read(data) {
        let _ = value.to_string();
    }
});
