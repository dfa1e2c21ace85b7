#!/usr/bin/env bash
# Packs what a GPU machine needs to test and measure Muster, when it has neither Rust nor a network:
#
#     bundle.sh [OUT]        OUT: a directory (default target/gpu-bundle)
#
#   core.tar.xz     the release binary with all kernels in it, test programs, and what run.sh reads
#   peers.tar.xz    gram-newton-schulz and quack for Python 3.12, which the peers' PyTorch imports
#   run.sh          unpacks what lies beside it, and runs
#
# Each file stays under 64 MiB. The binaries need a C library no older than this machine's (BUILT
# says which) and find the driver at run time; nothing of CUDA is linked.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

out=${1:-target/gpu-bundle}
readonly LIMIT=$((64 << 20))
# Tests that run on the devices that MUSTER_TEST_DEVICES names: package, program, filter.
readonly TESTS=(
    "lookalike devices real_devices" "lookalike streams real_devices"
    "kernels on_device real_devices" "optim sim real_devices"
)
readonly PEERS=(
    gram-newton-schulz==0.1.6 quack-kernels==0.5.0 nvidia-cutlass-dsl==4.5.2
    nvidia-cutlass-dsl-libs-base==4.5.2 apache-tvm-ffi==0.1.15 torch-c-dlpack-ext==0.1.5
    einops==0.8.2
)
# Tags that the wheels above carry; pip takes only exact ones.
readonly PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64
    manylinux2014_x86_64)

core=$out/core
mkdir -p "$core/bin" "$core/tests"
export MUSTER_KERNELS=${MUSTER_KERNELS:-cuda,sim}
cargo build --release --locked
cp target/release/muster "$core/bin/"

# Cargo's messages name the program of a test.
program() {
    cargo test --release --locked --no-run -p "$1" --test "$2" --message-format=json 2>/dev/null |
        python3 -c 'import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("executable")]
print(found[-1])'
}
for test in "${TESTS[@]}"; do
    read -r package name filter <<<"$test"
    cp "$(program "$package" "$name")" "$core/tests/$package-$name"
    echo "$package-$name $filter"
done >"$core/tests.txt"
strip --strip-all "$core"/bin/* "$core"/tests/*
cp benches/gpu/*.py "$core/"
{
    echo "commit $(git rev-parse --short HEAD)$(git diff --quiet HEAD || echo ' with changes')"
    echo "built $(date -u +%F) with $(rustc --version) and $(ldd --version | head -n 1)"
} >"$core/BUILT"
cp benches/gpu/run.sh "$out/"
tar -C "$core" -cf - . | xz -T0 -6 >"$out/core.tar.xz"

if [[ ! -e $out/peers.tar.xz ]]; then
    wheels=$out/wheels
    mkdir -p "$wheels" "$out/peers/site"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
        --implementation cp "${PLATFORMS[@]/#/--platform=}" -d "$wheels" "${PEERS[@]}"
    for wheel in "$wheels"/*.whl; do
        python3 -m zipfile -e "$wheel" "$out/peers/site"
    done
    tar -C "$out/peers" -cf - . | xz -9 >"$out/peers.tar.xz"
fi

for file in "$out"/*.tar.xz; do
    size=$(stat -c %s "$file")
    printf '%-16s %5.1f MiB\n' "$(basename "$file")" "$(awk "BEGIN { print $size / 1048576 }")"
    ((size <= LIMIT)) || { echo "$file is larger than 64 MiB" >&2; exit 1; }
done
cat "$core/BUILT"
