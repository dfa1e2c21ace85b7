#!/usr/bin/env bash
# How long 1,024 and 16,384 ranks take to meet at one rendezvous on this machine, and the memory of
# its server: clients in two processes, beside the server on the same cores. Fails where the limits
# are missed: 1 s and 200 MB, 30 s. The larger meeting needs as many open files (`ulimit -n`).
#
#   benches/cpu/meeting.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo test --workspace --release --quiet --test scale what_a_meeting_takes -- --ignored --nocapture
