#!/usr/bin/env bash
# Peak anonymous memory of rank 0 beside the printed plan: three configs, and a small model with
# vocabularies of 257, 32768 and 131072 tokens on ranks and threads, with both types of weights.
#
#   benches/cpu/memory.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo build --release --quiet
bin=${CARGO_TARGET_DIR:-target}/release/muster
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

measure() {
  local name=$1
  shift
  "$bin" train "$@" --name "$name" --set "runs_dir=$out" --max-steps 4 --resume never >/dev/null
  python3 - "$out/$name/events.jsonl" "$name" <<'PY'
import json, sys
end = [e["finished"] for e in map(json.loads, open(sys.argv[1])) if "finished" in e][-1]
peak, plan = end["peak_anonymous_bytes"], end["planned_bytes"]
print(f"{sys.argv[2]}: peak {peak / 2**20:.1f} MiB, planned {plan / 2**20:.1f} MiB, "
      f"{100 * (peak / plan - 1):+.1f} %", flush=True)
PY
  rm -rf "${out:?}/$name"
}

measure quickstart configs/quickstart.yaml
measure gpt2-124m benches/cpu/gpt2-124m.yaml
measure small-2-ranks benches/cpu/small.yaml --ranks 2 --threads 1 \
  --set batch.leaves=2 --set batch.micro_batch=4
for vocab in 257 32768 131072; do
  for weights in f32 bf16; do
    for place in 1x1 1x2 2x1; do
      measure "vocab-$vocab-$weights-$place" benches/cpu/small.yaml \
        --set "model.vocab_size=$vocab" --set "train.weights=$weights" \
        --ranks "${place%x*}" --threads "${place#*x}" \
        --set batch.leaves=2 --set batch.micro_batch=4
    done
  done
done
