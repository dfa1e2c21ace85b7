#!/usr/bin/env bash
# Training speed on the CPU beside PyTorch, JAX and candle, one after the other, in rounds.
#
#   benches/cpu/run.sh [ROUNDS]
#
# candle is built from this workspace. The others run if TORCH_PYTHON and JAX_PYTHON name
# interpreters that have them:
#   python3 -m venv t && t/bin/pip install torch==2.11.0 numpy
#   export TORCH_PYTHON=$PWD/t/bin/python
#   python3 -m venv j && j/bin/pip install jax numpy
#   export JAX_PYTHON=$PWD/j/bin/python
# Each line is a median over the steps of one process; compare ratios within a round.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
cargo build --release --quiet
bin=${CARGO_TARGET_DIR:-target}/release/muster
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# The median of the steps after the first three, from the run's events.
muster() {
  local name=$1
  shift
  "$bin" train "benches/cpu/$name.yaml" --set "runs_dir=$out" "$@" >/dev/null
  python3 - "$out/bench-$name/events.jsonl" "$name $*" <<'PY'
import json, statistics, sys
steps = [e["step"] for e in map(json.loads, open(sys.argv[1])) if "step" in e][3:]
median = statistics.median(s["ms"] for s in steps)
rate = statistics.median(s["tokens_per_s"] for s in steps)
print(f"muster {sys.argv[2]}: median {median:.0f} ms, {rate:.1f} tok/s", flush=True)
PY
  rm -rf "$out/bench-$name"
}

candle() {
  RAYON_NUM_THREADS=2 cargo bench --quiet -p oracle --bench small_candle 2>/dev/null | tail -1
}
candle >/dev/null # Builds.

for round in $(seq "$rounds"); do
  echo "round $round"
  muster gpt2-124m
  [ -z "${TORCH_PYTHON:-}" ] || "$TORCH_PYTHON" benches/peers/gpt2_torch.py --threads 1 | tail -1
  muster gpt2-124m-muon
  muster small
  [ -z "${JAX_PYTHON:-}" ] || "$JAX_PYTHON" benches/peers/small_jax.py | tail -1
  candle
  muster small --ranks 1 --threads 2 --set batch.leaves=2 --set batch.micro_batch=4
  muster small --ranks 2 --threads 1 --set batch.leaves=2 --set batch.micro_batch=4
done
