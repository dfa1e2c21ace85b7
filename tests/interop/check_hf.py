"""Loads what `muster ckpt export` writes with Hugging Face's transformers, and compares logits.

    python tests/interop/check_hf.py target/release/muster

Each model of tests/fixtures/interop/hf is imported, trained for three steps with Muon, exported and
loaded by transformers; its logits must be those of `muster generate --logits` to 1e-4 in f32. The
output of the last run is in tests/interop/check_hf.txt.
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


def check(muster, name, at):
    def run(*words):
        subprocess.run([muster, *words], cwd=at, check=True, stdout=subprocess.DEVNULL)

    run("ckpt", "import", str(FIXTURES / name), name)
    run("train", "tune.yaml", "--name", name, "--init", name,
        "--set", "data.tokenizer={file: %s}" % (FIXTURES / "qwen3_moe/tokenizer.json"))
    run("ckpt", "export", f"runs/{name}", f"{name}-out")
    ids = list(range(1, 25))
    run("generate", f"runs/{name}", "--ids", ",".join(map(str, ids)), "--logits", f"{name}.logits")
    ours = load_file(at / f"{name}.logits")["logits"]
    model, told = transformers.AutoModelForCausalLM.from_pretrained(
        at / f"{name}-out", dtype=torch.float32, output_loading_info=True
    )
    strange = {key: value for key, value in told.items() if value}
    with torch.no_grad():
        theirs = model.eval()(torch.tensor([ids])).logits[0]
    worst = (ours - theirs).abs().max().item()
    largest = theirs.abs().max().item()
    good = worst < BOUND and not strange
    print(f"{name:16} {type(model).__name__:24} logits up to {largest:5.2f}, worst distance "
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
    sys.exit(0 if all(results) else 1)


main()
