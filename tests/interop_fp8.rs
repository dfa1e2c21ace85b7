//! `muster ckpt export --fp8`: which tensors are FP8, what they are worth, and that an import of
//! them has exactly that.

mod common;
#[path = "common/published.rs"]
mod published;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::Workdir;
use published::{Tensor, ckpt, import, ok, refused, tensors};
use safetensors::Dtype;
use serde_json::{Value, json};

/// Rows and columns of a block.
const BLOCK: usize = 128;

/// Families that have FP8 files, an end that only their FP8 tensors have, and modules that their
/// files name as none.
const FAMILIES: [(&str, &[&str], &[&str]); 6] = [
    ("llama", &["_proj.weight"], &[]),
    ("llama-tied", &["_proj.weight"], &[]),
    ("qwen3_moe", &["_proj.weight"], &["lm_head", "model.layers.0.mlp.gate"]),
    ("olmoe", &["_proj.weight"], &["lm_head", "model.layers.0.mlp.gate"]),
    (
        "mixtral",
        &["_proj.weight", "w1.weight", "w2.weight", "w3.weight"],
        &["lm_head", "model.layers.0.block_sparse_moe.gate"],
    ),
    ("deepseek_v3", &["_proj.weight", "_proj_with_mqa.weight"], &[]),
];

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// Magnitudes of e4m3 in order, by OCP's table: 2^-9 each up to 2^-6, then eight each octave.
fn magnitude(code: u8) -> f64 {
    match code / 8 {
        0 => f64::from(code) / 512.0,
        octave => f64::from(8 + code % 8) / 512.0 * f64::from(1 << (octave - 1)),
    }
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The values of a matrix: of a code the number of its place, times its block's factor.
fn values((dtype, shape, codes): &Tensor, (of, blocks, factors): &Tensor) -> Vec<f64> {
    assert_eq!((*dtype, *of), (Dtype::F8_E4M3, Dtype::F32));
    let [rows, columns] = shape[..] else { panic!("{shape:?} is no matrix") };
    assert_eq!(blocks[..], [rows.div_ceil(BLOCK), columns.div_ceil(BLOCK)]);
    let factors = f32s(factors);
    let value = |(element, code): (usize, &u8)| {
        let block = element / columns / BLOCK * blocks[1] + element % columns / BLOCK;
        let sign = if *code < 0x80 { 1.0 } else { -1.0 };
        sign * magnitude(*code & 0x7f) * f64::from(factors[block])
    };
    codes.iter().enumerate().map(value).collect()
}

#[test]
fn matrices_are_fp8_and_read_back_as_what_they_are_worth() {
    let run = Workdir::new("interop-fp8");
    let at = |name: &str| run.path().join(name);
    for (name, ends, kept) in FAMILIES {
        let [plain, out, again, back, twice] =
            ["plain", "out", "again", "back", "twice"].map(|what| format!("{name}-{what}"));
        ok(import(&run, name, name));
        ok(ckpt(&run, &["export", name, &plain]));
        let done = ok(ckpt(&run, &["export", name, &out, "--fp8", "--cast"]));
        ok(ckpt(&run, &["import", &out, &again]));
        ok(ckpt(&run, &["export", &again, &back]));
        ok(ckpt(&run, &["export", &again, &twice, "--fp8", "--cast"]));
        let [before, written, read, rewritten] =
            [&plain, &out, &back, &twice].map(|dir| tensors(&at(dir)));
        let is_fp8 = |name: &str| ends.iter().any(|end| name.ends_with(end));
        let bytes: usize = written.values().map(|(_, _, bytes)| bytes.len()).sum();
        assert!(done.stdout.contains(&format!("{} tensors", written.len())), "{done}");
        assert!(bytes < before.values().map(|(_, _, bytes)| bytes.len()).sum());
        assert_eq!(written.len(), before.len() + before.keys().filter(|name| is_fp8(name)).count());
        for (name, whole) in &before {
            let own = &written[name];
            if !is_fp8(name) {
                assert_eq!((own, &read[name]), (whole, whole), "{name}");
                continue;
            }
            let worth = values(own, &written[&format!("{name}_scale_inv")]);
            let exact: Vec<f32> = worth.iter().map(|value| *value as f32).collect();
            assert_eq!(f32s(&read[name].2), exact, "{name}");
            check_near(&f32s(&whole.2), &worth);
            // Written again with the same codes; factors may be their neighbours.
            assert_eq!(rewritten[name], *own, "{name}");
        }
        let mut told = json!({
            "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128],
            "activation_scheme": "dynamic",
        });
        if !kept.is_empty() {
            let second = kept[1].replace(".0.", ".1.");
            told["modules_to_not_convert"] = json!([kept[0], kept[1], second]);
        }
        assert_eq!(config(&at(&out))["quantization_config"], told);
        assert!(config(&at(&plain)).get("quantization_config").is_none());
    }
}

/// Each matrix here is one block: no value is further off than half a step of e4m3.
fn check_near(whole: &[f32], worth: &[f64]) {
    let largest = whole.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for (value, worth) in whole.iter().zip(worth) {
        // A step is an eighth of the octave's beginning, of numbers up to 448.
        let part = f64::from(value.abs()) / f64::from(largest) * 448.0;
        let step = 2.0_f64.powf(part.log2().floor().max(-6.0)) / 8.0;
        let bound = step / 2.0 * f64::from(largest) / 448.0 * (1.0 + 1e-6);
        assert!((f64::from(*value) - worth).abs() <= bound, "{value}: {worth}");
    }
}

#[test]
fn fp8_goes_with_types_of_the_rest_and_with_several_files() {
    let run = Workdir::new("interop-fp8-types");
    ok(import(&run, "qwen3_moe", "base"));
    let narrow = ["--fp8", "--dtype", "bf16", "--cast", "--max-file-gb", "0.000004"];
    ok(ckpt(&run, &[&["export", "base", "out"], &narrow[..]].concat()));
    ok(ckpt(&run, &["export", "base", "whole", "--fp8", "--cast", "--threads", "1"]));
    let [out, whole] = ["out", "whole"].map(|dir| tensors(&run.path().join(dir)));
    let fp8 = |all: &BTreeMap<String, Tensor>| -> Vec<Tensor> {
        let all = all
            .iter()
            .filter(|(name, _)| name.ends_with("_proj.weight") || name.ends_with("_scale_inv"));
        all.map(|(_, tensor)| tensor.clone()).collect()
    };
    assert_eq!(fp8(&out), fp8(&whole));
    assert_eq!(out["model.embed_tokens.weight"].0, Dtype::BF16);
    assert_eq!(out["model.layers.0.mlp.gate.weight"].0, Dtype::BF16);
    assert_eq!(config(&run.path().join("out"))["torch_dtype"], "bfloat16");
    let index = fs::read(run.path().join("out/model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let files: Vec<&Value> = index["weight_map"].as_object().unwrap().values().collect();
    assert!(files.iter().any(|file| *file != files[0]));
    ok(ckpt(&run, &["import", "out", "again"]));
}

#[test]
fn exports_that_cannot_be_fp8_are_refused_by_name() {
    let run = Workdir::new("interop-fp8-refused");
    ok(import(&run, "gpt2", "gpt2"));
    ok(import(&run, "llama", "llama"));
    let done = ckpt(&run, &["export", "gpt2", "out", "--fp8", "--cast"]);
    refused(&done, &["nothing reads a GPT2LMHeadModel with FP8 matrices", "DeepseekV3ForCausalLM"]);
    let done = ckpt(&run, &["export", "llama", "out", "--fp8"]);
    let words = "self_attn.q_proj.weight` is F32 and is wanted as F8_E4M3, which would round";
    refused(&done, &[words, "--cast"]);
    for to in ["dcp", "safetensors"] {
        let done = ckpt(&run, &["export", "llama", "out", "--fp8", "--cast", "--to", to]);
        refused(&done, &["--fp8: only a config.json tells", "leave out --to"]);
    }
    assert!(!run.path().join("out").exists());
}
