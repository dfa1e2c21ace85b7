//! `muster orthogonalize` on files: results are orthogonal, all else is as it was, and mistakes
//! leave nothing behind.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

/// Exit code, standard output, standard error.
fn orthogonalize(dir: &Path, args: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.arg("orthogonalize").args(args).current_dir(dir).env_remove("RUST_BACKTRACE");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Values without structure: parts of multiples of an irrational number.
fn values(len: usize, seed: u64) -> Vec<f32> {
    let part = |i: u64| ((i * i + 7 * seed + 1) as f64 * 0.618_033_988_749_894_9).fract() - 0.5;
    (0..len as u64).map(|i| part(i) as f32).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(view: &TensorView) -> Vec<f32> {
    view.data().as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

type Entry<'a> = (&'a str, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Entry]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let metadata = HashMap::from([("made_by".to_owned(), "a test".to_owned())]);
    let file = safetensors::serialize(views, Some(metadata)).unwrap();
    std::fs::write(path, file).unwrap();
}

/// The largest entry of |X·Xᵀ − I| over the short side.
fn defect(x: &[f32], rows: usize, cols: usize) -> f64 {
    let at = |i: usize, k: usize| {
        f64::from(if rows <= cols { x[i * cols + k] } else { x[k * cols + i] })
    };
    let (short, long) = (rows.min(cols), rows.max(cols));
    let mut most: f64 = 0.0;
    for i in 0..short {
        for j in 0..short {
            let dot: f64 = (0..long).map(|k| at(i, k) * at(j, k)).sum();
            most = most.max((dot - f64::from(u8::from(i == j))).abs());
        }
    }
    most
}

fn sample(dir: &Path) {
    write(
        &dir.join("in.safetensors"),
        &[
            ("bias", Dtype::F32, vec![5], bytes(&values(5, 9))),
            ("experts", Dtype::F32, vec![3, 12, 20], bytes(&values(720, 2))),
            ("tall", Dtype::F32, vec![30, 8], bytes(&values(240, 1))),
            ("tokens", Dtype::I32, vec![2, 2], vec![1; 16]),
        ],
    );
}

#[test]
fn matrices_become_orthogonal_and_all_else_stays() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let (code, out, err) =
        orthogonalize(dir.path(), &["in.safetensors", "out.safetensors", "--algorithm", "svd"]);
    assert_eq!(code, Some(0), "{err}");
    for words in [
        "bias [5] F32: copied (not two- or three-dimensional)",
        "experts [3, 12, 20] F32: 3 matrices of 12×20 orthogonalized",
        "tokens [2, 2] I32: copied",
        "4 matrices of ",
    ] {
        assert!(out.contains(words), "{words} is not in\n{out}");
    }
    let before = std::fs::read(dir.path().join("in.safetensors")).unwrap();
    let after = std::fs::read(dir.path().join("out.safetensors")).unwrap();
    let (_, header) = SafeTensors::read_metadata(&after).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["made_by"], "a test");
    let (before, after) =
        (SafeTensors::deserialize(&before).unwrap(), SafeTensors::deserialize(&after).unwrap());
    for name in ["bias", "tokens"] {
        assert_eq!(before.tensor(name).unwrap().data(), after.tensor(name).unwrap().data());
    }
    assert!(defect(&floats(&after.tensor("tall").unwrap()), 30, 8) < 1e-5);
    for expert in floats(&after.tensor("experts").unwrap()).chunks(240) {
        assert!(defect(expert, 12, 20) < 1e-5);
    }
}

/// Every algorithm follows the same polynomials, and eight steps come close to the exact factor.
#[test]
fn algorithms_agree() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let mut results = Vec::new();
    for algorithm in ["svd", "standard", "symmetric", "gram", "auto"] {
        let out = format!("{algorithm}.safetensors");
        let args = ["in.safetensors", &out, "--algorithm", algorithm, "--steps", "8"];
        let (code, _, err) = orthogonalize(dir.path(), &args);
        assert_eq!(code, Some(0), "{err}");
        let file = std::fs::read(dir.path().join(out)).unwrap();
        results.push(floats(&SafeTensors::deserialize(&file).unwrap().tensor("tall").unwrap()));
    }
    for result in &results[1..] {
        let apart = result.iter().zip(&results[0]).map(|(a, b)| (a - b).abs());
        assert!(apart.fold(0.0, f32::max) < 1e-3);
    }
}

/// A matrix of rank 1 with the rounding of its type: nothing is made of the rounding.
#[test]
fn the_exact_factor_of_low_rank_has_low_rank() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (values(24, 1), values(36, 2));
    let outer = |i: usize| f64::from(a[i / 36]) * f64::from(b[i % 36]);
    let all: Vec<f64> = (0..24 * 36).map(outer).collect();
    let encode = |each: &dyn Fn(f64) -> Vec<u8>| all.iter().flat_map(|&x| each(x)).collect();
    write(
        &dir.path().join("in.safetensors"),
        &[
            (
                "bf16",
                Dtype::BF16,
                vec![24, 36],
                encode(&|x| bf16::from_f64(x).to_le_bytes().into()),
            ),
            ("f16", Dtype::F16, vec![24, 36], encode(&|x| f16::from_f64(x).to_le_bytes().into())),
            ("f32", Dtype::F32, vec![24, 36], encode(&|x| (x as f32).to_le_bytes().into())),
            ("f64", Dtype::F64, vec![24, 36], encode(&|x| x.to_le_bytes().into())),
        ],
    );
    let args = ["in.safetensors", "out.safetensors", "--algorithm", "svd"];
    let (code, _, err) = orthogonalize(dir.path(), &args);
    assert_eq!(code, Some(0), "{err}");
    let file = std::fs::read(dir.path().join("out.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let squares = |name: &str| -> f64 {
        let view = file.tensor(name).unwrap();
        let data = view.data();
        match view.dtype() {
            Dtype::F64 => data.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b).powi(2)).sum(),
            Dtype::F32 => floats(&view).iter().map(|x| f64::from(x * x)).sum(),
            Dtype::BF16 => {
                let all = data.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f64());
                all.map(|x| x * x).sum()
            }
            _ => data.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f64().powi(2)).sum(),
        }
    };
    for name in ["bf16", "f16", "f32", "f64"] {
        assert!((squares(name) - 1.0).abs() < 1e-2, "{name}: {}", squares(name));
    }
}

/// Steps that round to 16 bits take matrices of every type.
#[test]
fn every_type_goes_with_every_storage() {
    let dir = tempfile::tempdir().unwrap();
    let wide = values(240, 1).iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
    let half = values(240, 1).iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    write(
        &dir.path().join("in.safetensors"),
        &[
            ("f16", Dtype::F16, vec![8, 30], half),
            ("f32", Dtype::F32, vec![8, 30], bytes(&values(240, 1))),
            ("f64", Dtype::F64, vec![8, 30], wide),
        ],
    );
    for storage in ["f32", "bf16", "f16"] {
        for algorithm in ["auto", "gram", "svd"] {
            let out = format!("{storage}-{algorithm}.safetensors");
            let args = ["in.safetensors", &out, "--dtype", storage, "--algorithm", algorithm];
            let (code, _, err) = orthogonalize(dir.path(), &args);
            assert_eq!(code, Some(0), "{storage} {algorithm}\n{err}");
        }
    }
}

/// Results do not depend on a matrix's scale, be it beyond what the arithmetic holds.
#[test]
fn the_scale_of_f64_does_not_matter() {
    let dir = tempfile::tempdir().unwrap();
    let scaled = |power: i32| {
        let scale = 2.0_f64.powi(power);
        let values =
            values(240, 1).into_iter().flat_map(move |x| (f64::from(x) * scale).to_le_bytes());
        values.collect::<Vec<u8>>()
    };
    let powers = [0, 1000, -1000, 200, -200];
    let entries: Vec<Entry> = powers
        .iter()
        .zip(["a", "b", "c", "d", "e"])
        .map(|(&power, name)| (name, Dtype::F64, vec![8, 30], scaled(power)))
        .collect();
    write(&dir.path().join("in.safetensors"), &entries);
    for storage in ["f32", "bf16", "f16"] {
        let out = format!("{storage}.safetensors");
        let (code, _, err) =
            orthogonalize(dir.path(), &["in.safetensors", &out, "--dtype", storage]);
        assert_eq!(code, Some(0), "{storage}\n{err}");
        let bytes = std::fs::read(dir.path().join(out)).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let of = |name: &str| file.tensor(name).unwrap().data().to_vec();
        let base = of("a");
        assert!(base.iter().any(|&byte| byte != 0));
        for name in ["b", "c", "d", "e"] {
            assert!(of(name) == base, "{storage} {name}");
        }
    }
}

/// The same bytes from call to call, whatever the metadata; and what comes out can be read again.
#[test]
fn metadata_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let metadata: HashMap<String, String> =
        (0..12).map(|i| (format!("key \"{i}\""), format!("value {i}\n"))).collect();
    let data = bytes(&values(240, 1));
    let view = TensorView::new(Dtype::F32, vec![8, 30], &data).unwrap();
    let file = safetensors::serialize([("a", view)], Some(metadata.clone())).unwrap();
    std::fs::write(dir.path().join("in.safetensors"), file).unwrap();
    let mut files = Vec::new();
    for _ in 0..3 {
        let args = ["in.safetensors", "out.safetensors", "--force"];
        let (code, _, err) = orthogonalize(dir.path(), &args);
        assert_eq!(code, Some(0), "{err}");
        files.push(std::fs::read(dir.path().join("out.safetensors")).unwrap());
    }
    assert!(files[0] == files[1] && files[1] == files[2]);
    let (length, header) = SafeTensors::read_metadata(&files[0]).unwrap();
    assert_eq!((length % 8, header.metadata().as_ref()), (0, Some(&metadata)));
    SafeTensors::deserialize(&files[0]).unwrap();
}

/// A link leads to the file; a device and a pipe take the bytes; a directory is named.
#[test]
fn out_is_followed_and_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    std::fs::create_dir(dir.path().join("there")).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink("there/out", &link).unwrap();
    let (code, _, err) = orthogonalize(dir.path(), &["in.safetensors", "link"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(link.is_symlink() && dir.path().join("there/out").is_file());
    let (code, ..) = orthogonalize(dir.path(), &["in.safetensors", "link"]);
    assert_eq!(code, Some(2), "what the link leads to exists");
    let (code, _, err) = orthogonalize(dir.path(), &["in.safetensors", "/dev/null"]);
    assert_eq!(code, Some(0), "{err}");
    let (code, _, err) = orthogonalize(dir.path(), &["in.safetensors", "/dev/full"]);
    assert!(code == Some(2) && err.contains("is a device that takes no file"), "{err}");
    let (code, _, err) = orthogonalize(dir.path(), &["in.safetensors", "gone/out"]);
    assert!(code == Some(2) && err.contains("make it first (mkdir -p gone)"), "{err}");
    let (code, _, err) = orthogonalize(dir.path(), &["in.safetensors", "there", "--force"]);
    assert!(code == Some(2) && err.contains("there is a directory"), "{err}");
    let names = std::fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(names, 3, "nothing temporary is left");
}

#[test]
fn selected_tensors_alone_are_changed() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let args = ["in.safetensors", "out.safetensors", "--tensors", "exp*"];
    let (code, out, err) = orthogonalize(dir.path(), &args);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("tall [30, 8] F32: copied (not asked for)"), "{out}");
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let mut broken = values(240, 1);
    broken[121] = f32::NAN;
    write(
        &dir.path().join("nan.safetensors"),
        &[("experts", Dtype::F32, vec![2, 12, 10], bytes(&broken))],
    );
    write(
        &dir.path().join("flat.safetensors"),
        &[("bias", Dtype::F32, vec![5], bytes(&values(5, 9)))],
    );
    std::fs::write(dir.path().join("text.txt"), "no tensors").unwrap();
    std::fs::write(dir.path().join("taken.safetensors"), "mine").unwrap();
    for (args, words) in [
        (&["missing.safetensors", "o.safetensors"][..], "cannot read missing.safetensors"),
        (&["text.txt", "o.safetensors"], "not a safetensors file"),
        (&["nan.safetensors", "o.safetensors"], "experts[1]"),
        (&["flat.safetensors", "o.safetensors"], "holds no matrix"),
        (&["in.safetensors", "taken.safetensors"], "--force"),
        (&["in.safetensors", "in.safetensors"], "one file"),
        (&["in.safetensors", "o.safetensors", "--tensors", "tal"], "did you mean `tall`?"),
    ] {
        let (code, _, err) = orthogonalize(dir.path(), args);
        assert_eq!(code, Some(2), "{args:?}\n{err}");
        assert!(err.contains(words), "{args:?}\n{err}");
        assert!(!dir.path().join("o.safetensors").exists(), "{args:?}");
    }
    assert_eq!(std::fs::read(dir.path().join("taken.safetensors")).unwrap(), b"mine");
}

/// Eight bytes tell; not all of a file of gigabytes has to be read, nor fit the memory.
#[test]
fn what_is_no_safetensors_file_is_refused_by_its_first_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, bytes: u64| {
        let file = std::fs::File::create(dir.path().join(name)).unwrap();
        file.set_len(bytes).unwrap();
        let (code, _, said) = orthogonalize(dir.path(), &[name, "out.safetensors"]);
        assert_eq!(code, Some(2), "{said}");
        said
    };
    let said = refused("large", 1 << 40);
    assert!(
        said.contains("large is not a safetensors file: its header would have 0 bytes"),
        "{said}"
    );
    assert!(refused("small", 7).contains("it has 7 bytes, and a header takes more"));
}
