#!/usr/bin/env bash
# Whether two builds of Muster train to the same bits: weights digests of a mixture and of dense
# models, in f32 and bf16, on 1 to 4 ranks and over both transports.
#
#   benches/cpu/same_digests.sh BEFORE AFTER
#
# BEFORE and AFTER are binaries. Prints a line for each case, and fails where two differ. A constant
# cannot stand for BEFORE: the bits depend on the instruction set of the CPU.
set -euo pipefail
cd "$(dirname "$0")/../.."
before=$(realpath "$1") after=$(realpath "$2")
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0

# The digest of a run: binary, config, further arguments.
digest() {
  local bin=$1 config=$2
  shift 2
  rm -rf "$out/runs"
  "$bin" train "$config" --set "runs_dir=$out/runs" --name same --resume never "$@" \
    >"$out/log" 2>&1 || { cat "$out/log" >&2; return 1; }
  python3 - "$out/runs/same/events.jsonl" <<'PY'
import json, sys
events = map(json.loads, open(sys.argv[1]))
print([e["finished"]["weights_digest"] for e in events if "finished" in e][-1])
PY
}

case_of() {
  local name=$1 old new
  shift
  old=$(digest "$before" "$@") new=$(digest "$after" "$@")
  if [[ $old == "$new" ]]; then
    printf '%-44s %s\n' "$name" "${old:0:16}"
  else
    printf '%-44s %s before, %s after\n' "$name" "${old:0:16}" "${new:0:16}"
    failed=1
  fi
}

small=(--set train.sample_tokens=0 --set train.eval_every=2 --set train.eval_samples=4
  --set batch.micro_batches=2 --set batch.micro_batch=1 --set batch.seq_len=32)
moe='model={preset: tiny-moe, layers: 2, d_model: 64, '
moe+='moe: {experts: 4, d_ff: 48, shared_experts: 1}}'
dense='model={layers: 2, d_model: 64, heads: 4, d_ff: 96}'
for ranks in 1 2 3 4; do
  for backend in shm tcp; do
    at=(--ranks "$ranks" --backend "$backend" --threads 1 --max-steps 4)
    quick=(configs/quickstart.yaml "${small[@]}" "${at[@]}")
    for weights in f32 bf16; do
      stored=(--set "train.weights=$weights")
      case_of "mixture, $weights, $ranks ranks, $backend" "${quick[@]}" --set "$moe" "${stored[@]}"
      case_of "dense, $weights, $ranks ranks, $backend" "${quick[@]}" --set "$dense" "${stored[@]}"
    done
  done
done
case_of "quickstart" configs/quickstart.yaml --ranks 2 --threads 1 --max-steps 20 \
  --set train.sample_tokens=0
case_of "d 256, names of GPT-2" benches/cpu/small.yaml --threads 1 --max-steps 3
case_of "d 256, two leaves" benches/cpu/small.yaml --ranks 2 --threads 1 --max-steps 3 \
  --set batch.leaves=2 --set batch.micro_batch=4
exit "$failed"
