//! Formats that are not read, told by the files of a directory, and the way from each to one that
//! is.

use std::path::Path;

/// Names of a format's files, with `*` for any beginning or end; and the reason and the way out.
struct Format {
    files: &'static [&'static str],
    reason: &'static str,
}

/// The first that fits counts.
const FORMATS: [Format; 9] = [
    Format {
        files: &["*.gguf"],
        reason: "it is a GGUF file, as llama.cpp runs models; import the safetensors \
                 model that it was made of",
    },
    Format {
        files: &["*.nemo"],
        reason: "it is an archive of NeMo; export it to Hugging Face with NeMo, and \
                 import that",
    },
    Format {
        files: &["*.msgpack"],
        reason: "its weights are Flax's; load them with transformers \
                 (from_flax=True), save_pretrained writes safetensors, and import \
                 those",
    },
    Format {
        files: &["model_optim_rng.pt", "distrib_optim.pt"],
        reason: "it is a legacy checkpoint of Megatron-LM, whose files are pickles; \
                 let Megatron write it as torch_dist (--ckpt-convert-format \
                 torch_dist --ckpt-convert-save DIR), and import that",
    },
    Format {
        files: &["zero_pp_rank_*", "*_optim_states.pt", "mp_rank_*_model_states.pt"],
        reason: "it is a checkpoint of DeepSpeed that is not universal; make it so \
                 with DeepSpeed's ds_to_universal.py, and import that",
    },
    Format {
        files: &[".zarray", ".zgroup", "zarr.json"],
        reason: "its tensors are zarr's; let Megatron write it as torch_dist \
                 (--ckpt-convert-format torch_dist --ckpt-convert-save DIR), and \
                 import that",
    },
    Format {
        files: &["_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"],
        reason: "it is a checkpoint of JAX's orbax; restore it there, save the \
                 parameters with safetensors, and import those",
    },
    Format {
        files: &["saved_model.pb", "*.ckpt.index", "*.h5"],
        reason: "its weights are TensorFlow's; load them with transformers \
                 (from_tf=True), save_pretrained writes safetensors, and import those",
    },
    Format {
        files: &["*.bin", "*.pt", "*.pth", "*.ckpt"],
        reason: "its weights are pickles of PyTorch, which can run code; save the \
                 model with safetensors (save_pretrained does), and import that",
    },
];

/// Directories of a checkpoint's files lie no deeper: `iter_0000010/mp_rank_00`.
const DEPTH: usize = 3;

/// Names that are looked at.
const MOST: usize = 20_000;

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((start, end)) => {
            name.len() >= start.len() + end.len() && name.starts_with(start) && name.ends_with(end)
        }
    }
}

/// Why a directory of none of the formats that are read is refused, if its files tell which it is.
pub(crate) fn why(dir: &Path) -> Option<&'static str> {
    let mut names = Vec::new();
    collect(dir, DEPTH, &mut names);
    let has = |pattern: &&str| names.iter().any(|name| fits(pattern, name));
    FORMATS.iter().find(|format| format.files.iter().any(has)).map(|format| format.reason)
}

/// The names of files in a directory and those below it; links are not followed.
fn collect(dir: &Path, depth: usize, names: &mut Vec<String>) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut below = Vec::new();
    for entry in entries.flatten() {
        if names.len() >= MOST {
            return;
        }
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => below.push(entry.path()),
            _ => names.push(entry.file_name().to_string_lossy().into_owned()),
        }
    }
    if depth > 1 {
        below.iter().for_each(|dir| collect(dir, depth - 1, names));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_files() {
        let told = |file: &str| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
            std::fs::write(dir.path().join("latest_checkpointed_iteration.txt"), "10").unwrap();
            why(dir.path())
        };
        for (file, word) in [
            ("iter_0000010/mp_rank_00/model_optim_rng.pt", "legacy checkpoint of Megatron"),
            ("global_step5/zero_pp_rank_0_mp_rank_00_optim_states.pt", "ds_to_universal.py"),
            ("global_step5/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "ds_to_universal.py"),
            ("embedding.word_embeddings.weight/.zarray", "zarr"),
            ("default/_METADATA", "orbax"),
            ("flax_model.msgpack", "Flax"),
            ("model.nemo", "NeMo"),
            ("x-Q4_K_M.gguf", "llama.cpp"),
            ("tf_model.h5", "TensorFlow"),
            ("pytorch_model-00001-of-00002.bin", "can run code"),
        ] {
            let reason = told(file).unwrap_or_else(|| panic!("{file} is not known"));
            assert!(reason.contains(word), "{file}: {reason}");
        }
        assert_eq!(told("notes.txt"), None);
    }
}
