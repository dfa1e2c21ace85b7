#!/usr/bin/env bash
# What the tests of the transports do for seconds, for as long as it is worth: a soak of a million
# operations, a flipped bit among a hundred thousand around every switch of algorithms, fuzzers of
# what reads what others sent, harm to connections by seeds; and what a tag of a frame costs, and
# TLS. Fails with the first that finds something.
#
#   benches/cpu/transports.sh [SECONDS of each fuzzer] [SEEDS]        an hour, 3000
set -euo pipefail
cd "$(dirname "$0")/../.."
export MUSTER_FUZZ_SECONDS=${1:-3600} MUSTER_CHAOS_SEEDS=${2:-3000}
ignored() { cargo test --workspace --release --quiet "$@" -- --ignored --nocapture; }

ignored --lib what_a_tag_costs
ignored --test tls what_tls_costs
ignored --test switches a_flipped_bit_is_found_among_a_hundred_thousand_operations
ignored --test soak a_million_operations_leave_nothing_behind
cargo test --workspace --release --quiet --test chaos -- --nocapture
cargo test --workspace --release --quiet --test strangers -- --nocapture
cargo test --workspace --release --quiet --lib fuzz:: -- --nocapture
