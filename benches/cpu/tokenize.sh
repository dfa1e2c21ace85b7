#!/usr/bin/env bash
# GPT-2 tokenization: MB/s beside Python's tiktoken on the same text, and peak memory as the text
# grows.
#
#   benches/cpu/tokenize.sh [MEGABYTES]
#
# The text is the Rust sources of cargo's registry, over and over, MEGABYTES (default 1000) of it;
# tiktoken gets the first 64 MB. Runs it if TIKTOKEN_PYTHON names an interpreter that has it:
#   python3 -m venv t && t/bin/pip install tiktoken && export TIKTOKEN_PYTHON=$PWD/t/bin/python
set -euo pipefail
cd "$(dirname "$0")/../.."
megabytes=${1:-1000}
cargo build --release --quiet
bin=${CARGO_TARGET_DIR:-target}/release/muster
registry=${CARGO_HOME:-$HOME/.cargo}/registry/src
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# One document a file of up to 64 MB: the first is what tiktoken reads.
# (`head` closes the pipe early, which is no failure.)
{ find "$registry" -name '*.rs' -type f | LC_ALL=C sort | xargs cat 2>/dev/null |
  head -c 64000000; } >"$out/0.txt" || true
for i in $(seq 1 $((megabytes / 64))); do ln "$out/0.txt" "$out/$i.txt"; done

measure() {
  local name=$1
  shift
  python3 - "$name" "$@" <<'PY'
import os, resource, subprocess, sys, time
name, command, texts = sys.argv[1], sys.argv[2:], [a for a in sys.argv[2:] if a.endswith(".txt")]
size = sum(os.path.getsize(text) for text in texts)
start = time.monotonic()
subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
seconds = time.monotonic() - start
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
print(f"{name}: {size / 1e6:.0f} MB in {seconds:.1f} s, {size / seconds / 1e6:.1f} MB/s, "
      f"peak {peak:.0f} MiB resident", flush=True)
PY
}

measure "muster, one file" "$bin" data tokenize --tokenizer gpt2 "$out/0.txt" "$out/one.tok"
measure "muster, one thread" \
  "$bin" data tokenize --tokenizer gpt2 --threads 1 "$out/0.txt" "$out/single.tok"
if [ -n "${TIKTOKEN_PYTHON:-}" ]; then
  table=$(find "$registry" -path '*tiktoken-rs*/assets/r50k_base.tiktoken' | tail -1)
  "$TIKTOKEN_PYTHON" benches/peers/tokenize_tiktoken.py "$table" "$out/0.txt"
fi
[ "$megabytes" -le 64 ] ||
  measure "muster, all" "$bin" data tokenize --tokenizer gpt2 "$out"/[0-9]*.txt "$out/all.tok"
