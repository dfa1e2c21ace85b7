#!/usr/bin/env bash
# Training speed on the CPU beside PyTorch, JAX and candle at their best, one after the other, in
# rounds; prints one table per case.
#
#   benches/cpu/run.sh [ROUNDS]
#
# PyTorch runs eagerly, compiled, and compiled with its products chosen by timing, with every
# allocator that is here (see tuned.sh); the best of them counts. Under bf16 it is shown, too.
# candle is built from this workspace. The others run if TORCH_PYTHON and JAX_PYTHON name
# interpreters that have them:
#   python3 -m venv t && t/bin/pip install torch==2.15.0 numpy
#   export TORCH_PYTHON=$PWD/t/bin/python
#   python3 -m venv j && j/bin/pip install jax==0.10.2 numpy
#   export JAX_PYTHON=$PWD/j/bin/python
#   apt-get install g++ libjemalloc2 libtcmalloc-minimal4
# A rate is the median over the steps of one process. STEPS (default 12) are what a process of
# PyTorch is timed for, after those in which it settles.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
steps=${STEPS:-12}
cargo build --release --quiet
bin=${CARGO_TARGET_DIR:-target}/release/muster
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
mapfile -t allocators < <(benches/peers/tuned.sh list)

# Notes what ran in a case, and the rate at the end of its last line.
note() {
  local case=$1 side=$2 name=$3 line
  line=$(tail -1)
  echo "$name: $line" >&2
  printf '%s\t%s\t%s\t%s\n' "$case" "$side" "$name" \
    "$(sed -E 's|.*, ([0-9.]+) tok/s.*|\1|' <<<"$line")" >>"$out/measured"
}

# The median of the steps after the first three, from the run's events.
muster() {
  local name=$1
  shift
  "$bin" train "benches/cpu/$name.yaml" --set "runs_dir=$out" "$@" >/dev/null
  python3 - "$out/bench-$name/events.jsonl" <<'PY'
import json, statistics, sys
steps = [e["step"] for e in map(json.loads, open(sys.argv[1])) if "step" in e][3:]
median = statistics.median(s["ms"] for s in steps)
rate = statistics.median(s["tokens_per_s"] for s in steps)
print(f"median {median:.0f} ms, {rate:.1f} tok/s", flush=True)
PY
  rm -rf "$out/bench-$name"
}

torch() {
  local allocator=$1
  shift
  benches/peers/tuned.sh "$allocator" 1 "$TORCH_PYTHON" benches/peers/gpt2_torch.py \
    --threads 1 --steps "$steps" "$@"
}

jax() {
  benches/peers/tuned.sh "$1" 2 "$JAX_PYTHON" benches/peers/small_jax.py
}

candle() {
  benches/peers/tuned.sh "$1" 2 cargo bench --quiet -p oracle --bench small_candle 2>/dev/null
}
cargo bench --quiet -p oracle --bench small_candle --no-run

gpt2="GPT-2 124M, 4 × 64 tokens, 1 thread"
small="d 256, 4 layers, 8 × 128 tokens, vocabulary 4096, 2 threads"
two="the same in two leaves"
for round in $(seq "$rounds"); do
  echo "round $round" >&2
  muster gpt2-124m | note "$gpt2" muster "Muster"
  if [ -n "${TORCH_PYTHON:-}" ]; then
    for allocator in "${allocators[@]}"; do
      for mode in eager compile max-autotune; do
        torch "$allocator" --mode "$mode" | note "$gpt2" peer "PyTorch $mode, $allocator"
      done
    done
    for mode in eager compile; do
      torch glibc --mode "$mode" --type bf16 | note "$gpt2" peer "PyTorch $mode, glibc, bf16"
    done
  fi
  muster gpt2-124m-muon | note "$gpt2, Muon" muster "Muster"
  muster small | note "$small" muster "Muster"
  for allocator in "${allocators[@]}"; do
    [ -z "${JAX_PYTHON:-}" ] || jax "$allocator" | note "$small" peer "JAX, $allocator"
    candle "$allocator" | note "$small" peer "candle, $allocator"
  done
  muster small --ranks 1 --threads 2 --set batch.leaves=2 --set batch.micro_batch=4 |
    note "$two" muster "1 rank × 2 threads"
  muster small --ranks 2 --threads 1 --set batch.leaves=2 --set batch.micro_batch=4 |
    note "$two" muster "2 ranks × 1 thread"
done
python3 benches/cpu/table.py "$out/measured"
