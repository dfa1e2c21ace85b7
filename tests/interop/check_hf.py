"""Loads what `muster ckpt export` writes with Hugging Face's transformers, and compares logits.

    python tests/interop/check_hf.py target/release/muster

Each model of tests/fixtures/interop/hf is imported, trained for three steps with Muon, exported and
loaded by transformers; its logits must be those of `muster generate --logits` to 1e-4 in f32. So is
what `--fp8` writes, which transformers multiplies out, beside an import of the same files; wider
models have several blocks. That needs the package accelerate. The output of the last run is in
tests/interop/check_hf.txt.
"""

import pathlib
import subprocess
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/fixtures/interop/hf"
BOUND = 1e-4

CONFIG = """
data: {files: text.txt}
batch: {leaves: 2, micro_batch: 2, seq_len: 32}
train: {steps: 3, eval_every: 0, sample_tokens: 0}
"""


# Sizes of models with several blocks of 128 by 128. Where a grid of blocks does not divide a
# matrix, transformers 5.24 takes the blocks for smaller ones; so sides are multiples of 128, or one
# block.
WIDE = {
    "llama": dict(hidden_size=256, intermediate_size=384, head_dim=64),
    "qwen3_moe": dict(hidden_size=256, moe_intermediate_size=128, head_dim=64),
    "olmoe": dict(hidden_size=256, intermediate_size=128),
    "mixtral": dict(hidden_size=256, intermediate_size=256, head_dim=64),
    "deepseek_v3": dict(
        hidden_size=256, intermediate_size=384, moe_intermediate_size=128, q_lora_rank=128,
        num_attention_heads=8, num_key_value_heads=8, kv_lora_rank=120, qk_nope_head_dim=24,
        qk_rope_head_dim=8, qk_head_dim=32, head_dim=8, v_head_dim=8,
    ),
}


def runner(muster, at):
    def run(*words):
        subprocess.run([muster, *words], cwd=at, check=True, stdout=subprocess.DEVNULL)

    return run


def check(muster, name, at):
    run = runner(muster, at)
    run("ckpt", "import", str(FIXTURES / name), name)
    run("train", "tune.yaml", "--name", name, "--init", name,
        "--set", "data.tokenizer={file: %s}" % (FIXTURES / "qwen3_moe/tokenizer.json"))
    run("ckpt", "export", f"runs/{name}", f"{name}-out")
    return compare(run, at, name, f"runs/{name}", f"{name}-out")


def widen(name, path):
    """A model of a fixture's kind with several blocks."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(FIXTURES / name)
    for key, value in WIDE[name].items():
        setattr(config, key, value)
    config.initializer_range = 0.05
    transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)


def check_fp8(muster, name, source, at):
    run = runner(muster, at)
    run("ckpt", "import", str(source), name)
    run("ckpt", "export", name, f"{name}-out", "--fp8", "--cast")
    run("ckpt", "import", f"{name}-out", f"{name}-again")
    return compare(run, at, name, f"{name}-again", f"{name}-out")


def compare(run, at, name, ours, theirs):
    """Logits of a checkpoint of ours, and of a directory that transformers loads."""
    ids = list(range(1, 25))
    run("generate", ours, "--ids", ",".join(map(str, ids)), "--logits", f"{name}.logits")
    ours = load_file(at / f"{name}.logits")["logits"]
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        at / theirs, dtype=torch.float32, output_loading_info=True
    )
    strange = {key: value for key, value in told.items() if value}
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0]
    worst = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    good = worst < BOUND and not strange
    print(f"{name:21} {type(model).__name__:24} logits up to {largest:5.2f}, worst distance "
          f"{worst:.1e} {'ok' if good else 'BAD'} {strange or ''}")
    return good


def main():
    muster = str(pathlib.Path(sys.argv[1]).resolve())
    print(f"transformers {transformers.__version__}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as at:
        at = pathlib.Path(at)
        (at / "tune.yaml").write_text(CONFIG)
        text = "".join(chr(32 + i * i % 91) for i in range(8000))
        (at / "text.txt").write_text(text)
        models = sorted(path.name for path in FIXTURES.iterdir() if path.is_dir())
        results = [check(muster, name, at) for name in models]
        for name in models:
            if name.split("-")[0] in WIDE:
                results.append(check_fp8(muster, f"{name}+fp8", FIXTURES / name, at))
        for name in WIDE:
            widen(name, at / f"{name}-wide")
            results.append(check_fp8(muster, f"{name}-wide+fp8", at / f"{name}-wide", at))
    sys.exit(0 if all(results) else 1)


main()
