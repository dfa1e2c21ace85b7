//! Published models of the fixtures, and the commands that read and write such.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::common::{Done, Workdir};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/interop/hf").join(name)
}

pub fn ckpt(run: &Workdir, args: &[&str]) -> Done {
    run.muster(&[&["ckpt"], args].concat())
}

pub fn ok(done: Done) -> Done {
    assert_eq!(done.code(), Some(0), "{done}");
    done
}

pub fn refused(done: &Done, wanted: &[&str]) {
    assert_eq!(done.code(), Some(2), "{done}");
    for words in wanted {
        assert!(done.stderr.contains(words), "{words}: {done}");
    }
}

pub fn import(run: &Workdir, name: &str, target: &str) -> Done {
    ckpt(run, &["import", fixture(name).to_str().unwrap(), target])
}

/// A tensor's type, shape and bytes.
pub type Tensor = (Dtype, Vec<usize>, Vec<u8>);

/// All tensors of a directory's files.
pub fn tensors(dir: &Path) -> BTreeMap<String, Tensor> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let is_model = path.file_name().unwrap().to_str().unwrap().starts_with("model");
        if !is_model || path.extension().is_none_or(|end| end != "safetensors") {
            continue;
        }
        let bytes = fs::read(path).unwrap();
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
            let tensor = (view.dtype(), view.shape().to_vec(), view.data().to_vec());
            assert!(all.insert(name, tensor).is_none());
        }
    }
    all
}
