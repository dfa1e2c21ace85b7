#!/usr/bin/env bash
# Peak anonymous memory of rank 0 beside the printed plan, on three configs.
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
