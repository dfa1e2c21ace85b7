#!/usr/bin/env bash
# Training speed of two builds of Muster, run in turn: medians of steps, and their ratios.
#
#   benches/cpu/before_after.sh BEFORE AFTER [ROUNDS]
#
# BEFORE and AFTER are binaries. A figure is the median over a process's steps after the first
# three; a ratio is BEFORE's time over AFTER's, of one round. The last lines compare, for each
# build, two threads and two ranks with one of one.
set -euo pipefail
cd "$(dirname "$0")/../.."
before=$(realpath "$1") after=$(realpath "$2") rounds=${3:-3}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

# Milliseconds of a step: binary, config, further arguments.
step_ms() {
  local bin=$1 config=$2
  shift 2
  "$bin" train "$config" --set "runs_dir=$out/runs" --name timed --resume never "$@" >/dev/null 2>&1
  python3 - "$out/runs/timed/events.jsonl" <<'PY'
import json, statistics, sys
steps = [e["step"]["ms"] for e in map(json.loads, open(sys.argv[1])) if "step" in e][3:]
print(f"{statistics.median(steps):.2f}")
PY
  rm -rf "$out/runs"
}

case_of() {
  local name=$1
  shift
  for side in before after; do
    printf '%s\t%s\t%s\n' "$name" "$side" "$(step_ms "${!side}" "$@")" >>"$out/measured"
  done
}

small=benches/cpu/small.yaml
eight=(--set batch.leaves=8 --set batch.micro_batch=1 --set 'batch.radices=[2,2,2]'
  --set train.steps=12)
for round in $(seq "$rounds"); do
  echo "round $round" >&2
  case_of "quickstart, 1 × 2" configs/quickstart.yaml --ranks 1 --threads 2 --max-steps 30
  case_of "gpt2-124m, 1 × 1" benches/cpu/gpt2-124m.yaml --max-steps 8
  case_of "d 256, 1 × 2" "$small" --threads 2 --max-steps 20
  case_of "d 256, two leaves, 2 × 1" "$small" --ranks 2 --threads 1 --max-steps 20 \
    --set batch.leaves=2 --set batch.micro_batch=4
  case_of "d 256, eight leaves, 1 × 1" "$small" --ranks 1 --threads 1 "${eight[@]}"
  case_of "d 256, eight leaves, 1 × 2" "$small" --ranks 1 --threads 2 "${eight[@]}"
  case_of "d 256, eight leaves, 2 × 1" "$small" --ranks 2 --threads 1 "${eight[@]}"
done
python3 - "$out/measured" <<'PY'
import collections, statistics, sys
found = collections.defaultdict(lambda: collections.defaultdict(list))
for line in open(sys.argv[1]):
    name, side, ms = line.rstrip("\n").split("\t")
    found[name][side].append(float(ms))
text = lambda values: ", ".join(f"{v:.1f}" if v < 1000 else f"{v:.0f}" for v in values)
print("| case (ranks × threads) | before, ms | after, ms | before over after |\n|---|---|---|---|")
for name, sides in found.items():
    ratios = [b / a for b, a in zip(sides["before"], sides["after"])]
    print(f"| {name} | {text(sides['before'])} | {text(sides['after'])} |"
          f" {', '.join(f'{r:.2f}' for r in ratios)} |")
one = found["d 256, eight leaves, 1 × 1"]
for name in ("d 256, eight leaves, 1 × 2", "d 256, eight leaves, 2 × 1"):
    for side in ("before", "after"):
        gains = [a / b for a, b in zip(one[side], found[name][side])]
        print(f"{name} over 1 × 1, {side}: {', '.join(f'{g:.2f}' for g in gains)};"
              f" median {statistics.median(gains):.2f}")
PY
