#!/usr/bin/env bash
# Fetches the real libnccl.so.2 for the test of crates/nccl-rs that opens it: the wheel
# nvidia-nccl-cu13 (216 MB) into DIR (default target/toolchain/nccl). What is there already is left
# alone. Prints the library's path.
#
#     MUSTER_TEST_NCCL_LIB=$(scripts/fetch_nccl.sh) cargo test -p nccl-rs --test real
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly WHEEL=nvidia-nccl-cu13==2.30.7
dir=${1:-target/toolchain/nccl}
library=$dir/libnccl.so.2

if [[ ! -s $library || $(cat "$dir/wheel.txt" 2>/dev/null) != "$WHEEL" ]]; then
    mkdir -p "$dir"
    scratch=$(mktemp -d "$dir/fetch.XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-cache-dir \
        --only-binary=:all: --dest "$scratch" "$WHEEL" >&2
    python3 - "$scratch" "$library.part" <<'END'
import pathlib, shutil, sys, zipfile
wheel = next(pathlib.Path(sys.argv[1]).glob("*.whl"))
with zipfile.ZipFile(wheel) as archive:
    name = next(n for n in archive.namelist() if n.endswith("/libnccl.so.2"))
    with archive.open(name) as source, open(sys.argv[2], "wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
END
    mv "$library.part" "$library"
    echo "$WHEEL" >"$dir/wheel.txt"
fi
echo "$(cd "$dir" && pwd)/libnccl.so.2"
