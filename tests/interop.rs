//! `muster ckpt import` and `export`, `--init` and `generate --logits`, by the binary, on models
//! that Hugging Face's transformers wrote (tests/interop/make_hf.py), and with its logits.

mod common;
#[path = "common/published.rs"]
mod published;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::{Done, Workdir};
use published::{ckpt, fixture, import, ok, refused, tensors};
use safetensors::{Dtype, SafeTensors};

/// Every family, and models with FP8 matrices, with stretched positions and without experts.
const MODELS: [&str; 11] = [
    "gpt2",
    "llama",
    "llama-tied",
    "qwen3_moe",
    "olmoe",
    "mixtral",
    "deepseek_v3",
    "deepseek_v3-fp8",
    "llama-scaled",
    "deepseek_v3-yarn",
    "deepseek_v3-dense",
];

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let bytes = file.tensor(name).unwrap().data().to_vec();
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The tokens of a fixture's logits, as `--ids` takes them.
fn ids(name: &str) -> String {
    let bytes = fs::read(fixture(name).join("logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tokens = file.tensor("tokens").unwrap().data().to_vec();
    let tokens = tokens.as_chunks().0.iter().map(|bytes| i64::from_le_bytes(*bytes).to_string());
    tokens.collect::<Vec<_>>().join(",")
}

/// The largest distance of our logits from transformers'.
fn distance(run: &Workdir, model: &str, name: &str) -> f32 {
    let out = format!("{model}.logits");
    ok(run.muster(&["generate", model, "--ids", &ids(name), "--logits", &out]));
    let ours = floats(&run.path().join(out), "logits");
    let theirs = floats(&fixture(name).join("logits.safetensors"), "logits");
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_family_computes_what_transformers_computes() {
    let run = Workdir::new("interop-logits");
    for name in MODELS {
        ok(import(&run, name, name));
        let done = ok(ckpt(&run, &["verify", name]));
        assert!(!done.stdout.contains("not part of it"), "{done}");
        let worst = distance(&run, name, name);
        // Logits are of the order of one.
        assert!(worst < 1e-4, "{name}: {worst}");
    }
}

#[test]
fn an_export_is_what_was_imported_to_the_bit() {
    let run = Workdir::new("interop-export");
    for name in MODELS {
        ok(import(&run, name, name));
        let (out, again) = (format!("{name}-out"), format!("{name}-again"));
        // OLMoE's was published as BF16, in several files.
        let narrow: &[&str] = match name {
            "olmoe" => &["--dtype", "bf16", "--cast", "--max-file-gb", "0.00003"],
            _ => &[],
        };
        ok(ckpt(&run, &[&["export", name, &out], narrow].concat()));
        let (theirs, ours) = (tensors(&fixture(name)), tensors(&run.path().join(&out)));
        if name == "deepseek_v3-fp8" {
            assert!(ours.values().all(|(dtype, ..)| *dtype == Dtype::F32));
        } else {
            assert_eq!(theirs.keys().collect::<Vec<_>>(), ours.keys().collect::<Vec<_>>());
            assert!(theirs == ours, "{name}");
        }
        let path = run.path().join(&out);
        ok(ckpt(&run, &["import", path.to_str().unwrap(), &again]));
        let done = ok(ckpt(&run, &["diff", name, &again, "--parameters-only"]));
        assert!(done.stdout.contains("equal: all bits"), "{done}");
    }
    // Readers take a rank of their own where none is told.
    let dense = fs::read(run.path().join("deepseek_v3-dense-out/config.json")).unwrap();
    let dense: serde_json::Value = serde_json::from_slice(&dense).unwrap();
    assert_eq!(dense.get("q_lora_rank"), Some(&serde_json::Value::Null));
    assert!(run.path().join("olmoe-out/model.safetensors.index.json").is_file());
    assert!(run.path().join("llama-out/generation_config.json").is_file());
}

/// The matrices of queries, keys and values of a GPT-2, each `[out, in]`, in the place of one that
/// is published as `[in, out]`.
fn cut_apart(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, view) in file.tensors() {
        let Some((before, end)) = name.split_once("c_attn.") else {
            tensors.push((name, view.dtype(), view.shape().to_vec(), view.data().to_vec()));
            continue;
        };
        let values: &[[u8; 4]] = view.data().as_chunks().0;
        let all = *view.shape().last().unwrap();
        let (inputs, outputs) = (values.len() / all, all / 3);
        for (number, part) in ["q_proj", "k_proj", "v_proj"].into_iter().enumerate() {
            let rows = number * outputs..(number + 1) * outputs;
            let turned = rows.flat_map(|row| (0..inputs).map(move |column| (row, column)));
            let bytes = turned.flat_map(|(row, column)| values[column * all + row]).collect();
            let shape = match end {
                "bias" => vec![outputs],
                _ => vec![outputs, inputs],
            };
            tensors.push((format!("{before}{part}.{end}"), view.dtype(), shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let view = safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes);
        (name.clone(), view.unwrap())
    });
    fs::write(path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
}

#[test]
fn queries_keys_and_values_that_are_apart_become_one_matrix() {
    let run = Workdir::new("interop-apart");
    ok(import(&run, "gpt2", "whole"));
    let dir = copy(&run, "gpt2", "apart");
    cut_apart(&dir.join("model.safetensors"));
    ok(ckpt(&run, &["import", "apart", "joined"]));
    let done = ok(ckpt(&run, &["diff", "whole", "joined", "--parameters-only"]));
    assert!(done.stdout.contains("equal: all bits"), "{done}");
}

/// A config without a model: the checkpoint's is used, with its tokenizer.
fn tune(run: &Workdir, args: &[&str]) -> Done {
    let text: String = (0..4000_u32).map(|i| char::from(b' ' + (i * i % 61) as u8)).collect();
    fs::write(run.path().join("text.txt"), text).unwrap();
    let config = "data: {files: text.txt}\n\
                  batch: {leaves: 2, micro_batch: 2, seq_len: 16}\n\
                  train: {steps: 3, eval_every: 0, eval_samples: 4, sample_tokens: 0}\n\
                  checkpoint: {every: 1}\n\
                  ranks: {threads: 1}\n";
    fs::write(run.path().join("tune.yaml"), config).unwrap();
    run.muster(&[&["train", "tune.yaml"], args].concat())
}

#[test]
fn an_imported_model_is_tuned_as_any_other() {
    let run = Workdir::new("interop-tune");
    ok(import(&run, "qwen3_moe", "base"));
    let name = |ranks: &str| format!("interop-tune-{ranks}");
    for ranks in ["1", "2"] {
        let done = ok(tune(&run, &["--init", "base", "--name", &name(ranks), "--ranks", ranks]));
        assert!(done.stdout.contains("starting with the weights of base/checkpoints/"), "{done}");
        assert!(!done.stdout.contains("warning"), "{done}");
    }
    assert_eq!(run.final_digest(&name("1")), run.final_digest(&name("2")));
    ok(tune(&run, &["--init", "base", "--name", "interop-tune-0", "--max-steps", "1"]));
    // A run that was stopped goes on from its own checkpoint, not from the import.
    let done = ok(tune(&run, &["--init", "base", "--name", "interop-tune-0", "--max-steps", "3"]));
    assert!(done.stdout.contains("resuming after step 1"), "{done}");
    assert_eq!(run.final_digest("interop-tune-0"), run.final_digest(&name("1")));
    // A tuned model can be published, and begun with.
    let tuned = format!("runs/{}", name("2"));
    ok(ckpt(&run, &["export", &tuned, "tuned"]));
    ok(tune(&run, &["--init", &tuned, "--name", "interop-tune-again"]));
    let done = ok(run.muster(&["generate", "base", "--prompt", "abc", "--tokens", "5"]));
    assert!(done.stdout.starts_with("abc"), "{done}");
}

#[test]
fn an_import_can_be_moved_and_a_run_outlives_it() {
    let run = Workdir::new("interop-moved");
    ok(import(&run, "qwen3_moe", "base"));
    fs::rename(run.path().join("base"), run.path().join("moved")).unwrap();
    let done = ok(run.muster(&["generate", "moved", "--prompt", "abc", "--tokens", "2"]));
    assert!(done.stdout.starts_with("abc"), "{done}");
    ok(tune(&run, &["--init", "moved", "--name", "interop-moved-1", "--max-steps", "1"]));
    // A run's export has the tokenizer, and the ids of its special tokens.
    ok(ckpt(&run, &["export", "runs/interop-moved-1", "out"]));
    assert!(run.path().join("out/tokenizer.json").is_file());
    let config = fs::read(run.path().join("out/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(
        (&config["eos_token_id"], &config["max_position_embeddings"]),
        (&0.into(), &64.into())
    );
    fs::rename(run.path().join("moved"), run.path().join("away")).unwrap();
    let tokenizer = fixture("qwen3_moe").join("tokenizer.json");
    let tokenizer = format!("data.tokenizer={{file: {}}}", tokenizer.display());
    let args = ["--init", "moved", "--name", "interop-moved-1", "--set", &tokenizer];
    let done = ok(tune(&run, &args));
    assert!(done.stdout.contains("resuming after step 1"), "{done}");
    let published = fixture("llama");
    let args = ["--init", published.to_str().unwrap(), "--name", "interop-moved-2"];
    let done = tune(&run, &args);
    refused(&done, &["1 mistake in", "import it first"]);
}

/// The tensors of a safetensors file, written again.
fn rewrite(path: &Path, change: impl Fn(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) {
    let mut all = tensors(path.parent().unwrap());
    change(&mut all);
    let views = all.iter().map(|(name, (dtype, shape, bytes))| {
        (name, safetensors::tensor::TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn models_that_lack_a_part_are_refused() {
    let run = Workdir::new("interop-lacks");
    let path = copy(&run, "deepseek_v3-fp8", "raw").join("model.safetensors");
    let factor = "model.layers.0.mlp.down_proj.weight_scale_inv";
    rewrite(&path, |all| drop(all.remove(factor).unwrap()));
    let done = ckpt(&run, &["import", "raw", "target"]);
    refused(&done, &["is F8_E4M3, and its factors", factor]);
    let path = copy(&run, "deepseek_v3", "unbiased").join("model.safetensors");
    let bias = "model.layers.1.mlp.gate.e_score_correction_bias";
    rewrite(&path, |all| drop(all.remove(bias).unwrap()));
    refused(&ckpt(&run, &["import", "unbiased", "target"]), &[bias, "nothing there is it"]);
    // Two models in one file: neither is chosen.
    let dir = copy(&run, "llama", "two");
    rewrite(&dir.join("model.safetensors"), |all| {
        let old = std::mem::take(all);
        for (name, tensor) in old {
            all.insert(format!("ema.{name}"), tensor.clone());
            all.insert(format!("live.{name}"), tensor);
        }
    });
    fs::remove_file(dir.join("config.json")).unwrap();
    fs::remove_file(dir.join("logits.safetensors")).unwrap();
    config_of(&run, "two.yaml", "vocab_size: 96, d_ff: 48, positions: {rotary: {theta: 5e5}}");
    let done = ckpt(&run, &["import", "two", "target", "--config", "two.yaml"]);
    refused(&done, &["`ema.model.embed_tokens.weight` and `live.model.embed_tokens.weight` are"]);
    // A tensor that an index does not know is there all the same.
    let dir = copy(&run, "olmoe", "more");
    let index = fs::read_to_string(dir.join("model.safetensors.index.json")).unwrap();
    let line = index.lines().find(|line| line.contains("layers.1.input_layernorm")).unwrap();
    fs::write(dir.join("model.safetensors.index.json"), index.replace(line, "")).unwrap();
    ok(ckpt(&run, &["import", "more", "found"]));
}

#[test]
fn changes_that_no_tensor_shows_are_told() {
    let run = Workdir::new("interop-unseen");
    fs::write(run.path().join("text.txt"), "the quick brown fox ".repeat(200)).unwrap();
    ok(import(&run, "llama", "base"));
    let llama = "vocab_size: 96, d_ff: 48, positions: {rotary: {theta: 1e4}}";
    config_of(&run, "other.yaml", llama);
    let done = ok(ckpt(&run, &["import", "base", "other", "--config", "other.yaml"]));
    let words = "model.positions.rotary.theta is 500000.0 there and 10000.0 here";
    assert!(done.stderr.contains(words), "{done}");
    let done = ok(run.muster(&[
        "train",
        "other.yaml",
        "--init",
        "base",
        "--name",
        "interop-unseen-1",
        "--max-steps",
        "1",
    ]));
    assert!(done.stdout.contains(words), "{done}");
    // Of a checkpoint nothing is left out without a rule, either.
    ok(import(&run, "llama-tied", "tied"));
    config_of(&run, "plain.yaml", "vocab_size: 96, d_ff: 48, head_dim: 16, tie_embeddings: true");
    let done = ckpt(&run, &["import", "tied", "plain", "--config", "plain.yaml"]);
    refused(&done, &["q_proj.bias`", "have no place in the model"]);
    config_of(&run, "tied.yaml", &format!("{llama}, tie_embeddings: true"));
    let done = ckpt(&run, &["import", "base", "x", "--config", "tied.yaml"]);
    refused(&done, &["differs from `model.embed_tokens.weight`", "--allow tied leaves it out"]);
    let done = ckpt(&run, &["import", "base", "x", "--config", "other.yaml", "--layers", "0..1"]);
    refused(&done, &["--layers 0..1 are 1, and the model of the config has 2"]);
}

#[test]
fn a_model_that_disagrees_is_told_by_its_tensors() {
    let run = Workdir::new("interop-disagrees");
    ok(import(&run, "qwen3_moe", "base"));
    let model = "model={preset: tiny-moe, layers: 2, d_model: 64, moe: {experts: 4, d_ff: 48}}";
    let args = ["--init", "base", "--name", "interop-disagrees-1", "--set", model];
    let done = tune(&run, &args);
    let words = ["`model.embed_tokens.weight`: [96, 32] there, [320, 64] here", "more tensors"];
    refused(&done, &words);
    let done = tune(&run, &["--init", "bsae", "--name", "interop-disagrees-2"]);
    refused(&done, &["there is no directory bsae", "did you mean base?"]);
    let done = tune(&run, &["--init", "runs", "--name", "interop-disagrees-3"]);
    refused(&done, &["checkpoint.init: there is no checkpoint in runs"]);
}

/// A config of a model of the fixtures' width, with some of its keys changed.
fn config_of(run: &Workdir, name: &str, model: &str) {
    let text = format!(
        "model: {{layers: 2, d_model: 32, heads: 4, kv_heads: 2, norm_eps: 1e-6, {model}}}\n\
         data: {{files: text.txt, tokenizer: {{file: {}}}}}\nbatch: {{seq_len: 64}}\n",
        fixture("qwen3_moe").join("tokenizer.json").display()
    );
    fs::write(run.path().join(name), text).unwrap();
}

/// Logits of two models after the same tokens: how far apart they are, in the first columns.
fn apart(run: &Workdir, a: &str, b: &str, columns: usize) -> f32 {
    let logits = |model: &str| -> Vec<Vec<f32>> {
        let out = format!("{model}.logits");
        ok(run.muster(&["generate", model, "--ids", &ids("llama"), "--logits", &out]));
        let all = floats(&run.path().join(out), "logits");
        let rows = all.len() / ids("llama").split(',').count();
        all.chunks(rows).map(<[f32]>::to_vec).collect()
    };
    let rows = logits(a).into_iter().zip(logits(b));
    let distance = |(a, b): (Vec<f32>, Vec<f32>)| {
        a[..columns].iter().zip(&b[..columns]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    };
    rows.map(distance).fold(0.0, f32::max)
}

const QWEN: &str = "names: qwen3_moe, vocab_size: 96, head_dim: 16, qk_norm: head, positions: \
    {rotary: {theta: 1e4}}";

#[test]
fn rules_make_a_model_of_another_that_computes_the_same() {
    let run = Workdir::new("interop-rules");
    ok(import(&run, "qwen3_moe", "six"));
    ok(import(&run, "llama", "dense"));
    let llama = "vocab_size: 96, positions: {rotary: {theta: 5e5}}";
    let cases = [
        // Two of each of six experts: twice as many are chosen, each with half the weight.
        ("six", "copies", format!("{QWEN}, moe: {{experts: 12, top_k: 4, d_ff: 24}}"), "experts"),
        (
            "six",
            "slices",
            format!("{QWEN}, moe: {{experts: 12, top_k: 4, d_ff: 12, route_scale: 2}}"),
            "experts",
        ),
        (
            "dense",
            "upcycled",
            format!("{llama}, moe: {{experts: 4, top_k: 2, d_ff: 48}}"),
            "experts",
        ),
        ("dense", "padded", format!("{}, d_ff: 48", llama.replace("96", "128")), "vocabulary"),
    ];
    for (source, name, model, rule) in cases {
        config_of(&run, "other.yaml", &model);
        let args = ["import", source, name, "--config", "other.yaml"];
        refused(&ckpt(&run, &args), &[&format!("--allow {rule} would do that")]);
        let done = ok(ckpt(&run, &[&args[..], &["--allow", rule]].concat()));
        assert!(done.stdout.contains("changed"), "{done}");
        let worst = apart(&run, source, name, 96);
        assert!(worst < 1e-4, "{name}: {worst}");
    }
    // And back: the mean of two equal ones, and the rows that were there before.
    config_of(&run, "other.yaml", &format!("{QWEN}, moe: {{experts: 6, top_k: 2, d_ff: 24}}"));
    let args = ["import", "copies", "again", "--config", "other.yaml", "--allow", "experts"];
    ok(ckpt(&run, &args));
    ok(ckpt(&run, &["diff", "six", "again", "--parameters-only"]));
    config_of(&run, "other.yaml", &format!("{llama}, d_ff: 48"));
    let args = ["import", "padded", "cut", "--config", "other.yaml", "--allow", "vocabulary"];
    ok(ckpt(&run, &args));
    ok(ckpt(&run, &["diff", "dense", "cut", "--parameters-only"]));
}

#[test]
fn heads_are_tied_and_layers_taken_by_rule() {
    let run = Workdir::new("interop-heads");
    ok(import(&run, "llama-tied", "tied"));
    let tied = "vocab_size: 96, d_ff: 48, head_dim: 16, attention_bias: true";
    config_of(&run, "other.yaml", tied);
    let args = ["import", "tied", "own", "--config", "other.yaml"];
    refused(&ckpt(&run, &args), &["lm_head.weight", "--allow tied would do that"]);
    ok(ckpt(&run, &[&args[..], &["--allow", "tied"]].concat()));
    assert!(apart(&run, "tied", "own", 96) < 1e-5);
    ok(import(&run, "llama", "two"));
    let one = "layers: 1, vocab_size: 96, d_ff: 48, positions: {rotary: {theta: 5e5}}";
    config_of(&run, "one.yaml", one);
    let text = fs::read_to_string(run.path().join("one.yaml")).unwrap();
    fs::write(run.path().join("one.yaml"), text.replacen("layers: 2, ", "", 1)).unwrap();
    let llama = fixture("llama");
    let args = ["import", llama.to_str().unwrap(), "last", "--config", "one.yaml"];
    refused(&ckpt(&run, &args), &["model.layers.1.", "have no place in the model"]);
    ok(ckpt(&run, &[&args[..], &["--layers", "1..2"]].concat()));
    // Its layer 0 is the source's layer 1, to the bit.
    let state = |of: &str, layer: usize| {
        let dir = format!("{of}-{layer}");
        ok(ckpt(&run, &["export", of, &dir]));
        let name = format!("model.layers.{layer}.self_attn.q_proj.weight");
        tensors(&run.path().join(dir))[&name].clone()
    };
    assert!(state("last", 0) == state("two", 1));
}

#[test]
fn all_states_of_a_run_go_to_other_libraries_and_back() {
    let run = Workdir::new("interop-states");
    run.digest("a", &["--ranks", "2"]);
    for library in ["dcp", "safetensors"] {
        let (out, back) = (format!("{library}-out"), format!("{library}-back"));
        let to = ["export", "runs/a", &out, "--to", library, "--all-states"];
        ok(ckpt(&run, &[&to[..], &["--max-file-gb", "0.0001"]].concat()));
        let as_is = match library {
            "dcp" => ok(ckpt(&run, &["import", &out, &back, "--as-is"])),
            // Files without a config.json are no published model.
            _ => {
                refused(&ckpt(&run, &["import", &out, &back]), &["it has no config.json"]);
                ok(ckpt(&run, &["import", &out, &back, "--as-is"]))
            }
        };
        assert!(as_is.stdout.contains("as it is"), "{as_is}");
        ok(ckpt(&run, &["verify", &back]));
        // Exit code 0: all bits of all tensors; what a run is besides is not there.
        ok(ckpt(&run, &["diff", "runs/a", &back]));
    }
    // With the config of the run its model can be begun with.
    let done = ckpt(&run, &["import", "dcp-out", "model"]);
    refused(&done, &["says nothing of its model", "--as-is"]);
    let with = ["import", "dcp-out", "model", "--config", "run.yaml"];
    ok(ckpt(&run, &with));
    ok(ckpt(&run, &["diff", "runs/a", "model", "--parameters-only"]));
    let done = ok(run.train(&["--name", "begun", "--init", "model"]));
    assert!(done.stdout.contains("starting with the weights of model/"), "{done}");
    let done = ckpt(&run, &["export", "runs/a", "published"]);
    refused(&done, &["a Qwen3MoeForCausalLM cannot be what this model is: model.moe."]);
    refused(&ckpt(&run, &["export", "runs/a", "x", "--all-states"]), &["--to dcp"]);
}

/// A copy of a fixture that can be spoilt.
fn copy(run: &Workdir, name: &str, as_name: &str) -> PathBuf {
    let to = run.path().join(as_name);
    fs::create_dir(&to).unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to
}

/// Sets a key of its config.json.
fn edit(dir: &Path, key: &str, value: serde_json::Value) {
    let path = dir.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config[key] = value;
    fs::write(path, config.to_string()).unwrap();
}

/// Neither the target of a command that was refused, nor what would have become it.
fn nothing_left(run: &Workdir) {
    let left = fs::read_dir(run.path()).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name();
        name == "target" || name.to_string_lossy().contains("arriving")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn directories_that_are_no_model_are_refused_by_name() {
    let run = Workdir::new("interop-refused");
    let dir = copy(&run, "olmoe", "missing");
    fs::remove_file(dir.join("model-00002-of-00004.safetensors")).unwrap();
    let done = ckpt(&run, &["import", "missing", "target"]);
    refused(&done, &["model-00002-of-00004.safetensors: it is missing"]);
    let dir = copy(&run, "llama", "family");
    edit(&dir, "model_type", "mamba".into());
    let done = ckpt(&run, &["import", "family", "target"]);
    refused(&done, &["`model_type` is `mamba`", "deepseek_v3"]);
    let dir = copy(&run, "llama", "scaled");
    edit(&dir, "rope_parameters", serde_json::json!({"rope_type": "yarn", "rope_theta": 1e4}));
    let done = ckpt(&run, &["import", "scaled", "target"]);
    refused(&done, &["`rope_parameters.factor` is missing", "--ignore-key"]);
    let dir = copy(&run, "llama", "dynamic");
    edit(&dir, "rope_scaling", serde_json::json!({"type": "dynamic", "factor": 2}));
    let done = ckpt(&run, &["import", "dynamic", "target"]);
    refused(&done, &["`rope_scaling.type` is \"dynamic\"; Muster has default, llama3 and yarn"]);
    for eps in [serde_json::json!(0), (-1e-6).into(), 1.5.into()] {
        let dir = copy(&run, "llama", "epsilon");
        edit(&dir, "rms_norm_eps", eps);
        let done = ckpt(&run, &["import", "epsilon", "target"]);
        refused(&done, &["no more than 1 is read"]);
        fs::remove_dir_all(dir).unwrap();
    }
    let dir = copy(&run, "llama", "scaled-by");
    edit(&dir, "rope_parameters", serde_json::json!({"rope_theta": 1e4, "factor": 4}));
    let done = ckpt(&run, &["import", "scaled-by", "target"]);
    refused(&done, &["`rope_parameters.factor` is 4, which Muster does not have"]);
    let dir = copy(&run, "llama", "wrong-type");
    edit(&dir, "hidden_size", "32".into());
    let done = ckpt(&run, &["import", "wrong-type", "target"]);
    refused(&done, &["model.d_model: invalid type: string"]);
    refused(&ckpt(&run, &["import", "lama", "target"]), &["no directory lama"]);
    let dir = copy(&run, "llama", "narrow");
    edit(&dir, "intermediate_size", 40.into());
    let done = ckpt(&run, &["import", "narrow", "target"]);
    refused(&done, &["mlp.gate_proj.weight", "[48, 32] there, and [40, 32] is wanted"]);
    let dir = copy(&run, "llama", "deep");
    edit(&dir, "num_hidden_layers", 1.into());
    let done = ckpt(&run, &["import", "deep", "target"]);
    refused(&done, &["model.layers.1.", "and 5 more have no place in the model"]);
    let dir = copy(&run, "llama", "shallow");
    edit(&dir, "num_hidden_layers", 3.into());
    let done = ckpt(&run, &["import", "shallow", "target"]);
    refused(&done, &["`model.layers.2.", "the nearest is"]);
    let dir = copy(&run, "llama", "short");
    let path = dir.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 4]).unwrap();
    let done = ckpt(&run, &["import", "short", "target"]);
    refused(&done, &["model.safetensors is damaged"]);
    let dir = copy(&run, "llama", "pickled");
    fs::rename(dir.join("model.safetensors"), dir.join("pytorch_model.bin")).unwrap();
    fs::remove_file(dir.join("logits.safetensors")).unwrap();
    let done = ckpt(&run, &["import", "pickled", "target"]);
    refused(&done, &["pickles of PyTorch, which can run code"]);
    nothing_left(&run);
}

/// Directories of targets that have not arrived.
fn arriving(run: &Workdir) -> Vec<String> {
    let names = fs::read_dir(run.path()).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains("arriving")).collect()
}

#[test]
fn what_a_killed_import_left_is_collected_and_what_lives_is_not() {
    let run = Workdir::new("interop-left");
    ok(import(&run, "llama", "base"));
    let gc = |dir: &str, more: &[&str]| ckpt(&run, &[&["gc", dir, "--keep", "1"], more].concat());
    let nothing = ok(gc("base", &[]));
    assert!(!nothing.stdout.contains("arriving"), "{nothing}");
    refused(&gc(".", &[]), &["there is no checkpoint in"]);
    for dir in ["base", "."] {
        let [dead, lives] =
            [".base.arriving-a1B2c3", ".next.arriving-Zz9"].map(|name| run.path().join(name));
        for left in [&dead, &lives] {
            fs::create_dir_all(left.join("checkpoints")).unwrap();
            fs::write(left.join("checkpoints/part"), [0; 1000]).unwrap();
        }
        let lock = fs::File::open(&lives).unwrap();
        lock.lock().unwrap();
        let told = ok(gc(dir, &["--dry-run"]));
        assert!(told.stdout.contains("would be removed: ") && dead.exists(), "{told}");
        let told = ok(gc(dir, &[]));
        let words = ".base.arriving-a1B2c3 (1000 B, left by a killed import or export)";
        assert!(told.stdout.contains(words), "{told}");
        assert_eq!(arriving(&run), [".next.arriving-Zz9"]);
        drop(lock);
        assert!(ok(gc(dir, &[])).stdout.contains("removed: "));
        assert_eq!(arriving(&run), [""; 0]);
    }
}

#[test]
fn targets_that_hold_something_are_left_alone() {
    let run = Workdir::new("interop-targets");
    fs::create_dir(run.path().join("full")).unwrap();
    fs::write(run.path().join("full/a"), "1").unwrap();
    symlink(run.path().join("elsewhere"), run.path().join("link")).unwrap();
    for (target, words) in
        [("full", "is not empty"), ("link", "a link"), ("/dev/null", "directory")]
    {
        refused(&import(&run, "llama", target), &[words]);
    }
    ok(import(&run, "llama", "base"));
    refused(&ckpt(&run, &["export", "base", "full"]), &["is not empty"]);
    let done = ckpt(&run, &["export", "base", "target", "--dtype", "bf16"]);
    refused(&done, &["is F32 and is wanted as BF16, which would round its values", "--cast"]);
    nothing_left(&run);
}
