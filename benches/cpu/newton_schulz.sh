#!/usr/bin/env bash
# Newton–Schulz in f32 on one core beside candle, and beside PyTorch if TORCH_PYTHON names an
# interpreter that has it (see run.sh), in rounds.
#
#   benches/cpu/newton_schulz.sh [ROUNDS]
#
# Each figure is the median over seven calls of one process; compare ratios within a round.
set -euo pipefail
cd "$(dirname "$0")/../.."
rounds=${1:-3}
export RAYON_NUM_THREADS=1
bench() {
  cargo bench --quiet -p oracle --bench newton_schulz_candle
}
cargo bench --quiet -p oracle --bench newton_schulz_candle --no-run
for round in $(seq "$rounds"); do
  echo "round $round"
  bench
  [ -z "${TORCH_PYTHON:-}" ] || "$TORCH_PYTHON" benches/peers/newton_schulz_torch.py --threads 1
done
