#!/usr/bin/env bash
# Runs what bundle.sh packed: tests on the device, Muster's benchmarks, its peers', and their summary.
#
#     run.sh [--device cuda:0] [--out DIR] [--seconds 460] [--quick]
#
# Needs no Rust, no compiler and no network; PyTorch for the peers. Writes one JSON file per part
# into DIR (default results/ beside this script), and ends within the given seconds: what has no time
# left is listed as not measured. Fails if a test or a benchmark of Muster's fails. --quick takes tiny
# shapes; `--device sim --quick` goes through everything without a GPU, and calls itself SIMULATED.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

device=cuda:0 out=$here/results seconds=460 quick=()
while (($#)); do
    case $1 in
        --device) device=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --quick) quick=(--quick); shift ;;
        *) echo "unknown argument $1; see the head of $0" >&2; exit 2 ;;
    esac
done
mkdir -p "$out"
out=$(cd "$out" && pwd)

# Parts as they travelled, if they are not unpacked yet.
for part in "$here"/*.tar.xz; do
    [[ -e $part && ! -e $part.done ]] && tar -xJf "$part" -C "$here" && touch "$part.done"
done
muster=${MUSTER:-$here/bin/muster}
if ! "$muster" --version; then
    echo "$muster does not run here (the C library may be older than that of the machine that built \
it, see BUILT); build with cargo on this machine, and set MUSTER to the binary" >&2
    exit 1
fi

failed=0
left() { echo $((seconds - SECONDS)); }
prefix() { if ((${#quick[@]})); then echo QUICK_; fi; }
shapes() { (cd "$here" && python3 -B shapes.py "$(prefix)$1"); }

# Runs a part within its share of what is left, and says how it went.
part() {
    local name=$1 share=$2 begin=$SECONDS status
    shift 2
    (($(left) > 5)) || { echo "-- $name: no time left"; return 1; }
    ((share > $(left))) && share=$(left)
    timeout --kill-after=5 "$share" "$@" >"$out/$name.log" 2>&1
    status=$?
    echo "-- $name: $((SECONDS - begin)) s, exit status $status"
    ((status)) && tail -n 5 "$out/$name.log" | sed 's/^/     /'
    return $status
}

environment() {
    local gpu
    gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2>/dev/null |
        head -n 1)
    printf '{"gpu": "%s", "device": "%s", "muster": "%s", "built": "%s", "date": "%s", "cpus": %s}\n' \
        "${gpu:-none}" "$device" "$("$muster" --version)" "$(cat "$here/BUILT" 2>/dev/null | tr '\n' ' ')" \
        "$(date -u +%FT%TZ)" "$(nproc)" >"$out/environment.json"
}

# The programs of tests.txt; each takes its devices from MUSTER_TEST_DEVICES.
tests() {
    local name filter lines=() begin status
    while read -r name filter; do
        begin=$SECONDS
        MUSTER_TEST_DEVICES=$device part "test-$name" 90 "$here/tests/$name" "$filter" --nocapture
        status=$?
        ((status)) && failed=1
        lines+=("{\"name\": \"$name\", \"exit\": $status, \"seconds\": $((SECONDS - begin))}")
    done < <(cat "$here/tests.txt" 2>/dev/null)
    local IFS=,
    echo "[${lines[*]}]" >"$out/tests.json"
}

bench() {
    local name=$1 share=$2
    shift 2
    part "bench-$name" "$share" "$muster" bench "$@" --device "$device" --json "$out/$name.json" ||
        failed=1
}

environment
few=()
((${#quick[@]})) && few=(--warmup 0 --iterations 1)
tests
bench memory 30 memory --sizes "$( ((${#quick[@]})) && echo 64KiB || echo 1GiB,4GiB)" "${few[@]}"
bench gemm 60 gemm --shapes "$(shapes GEMM)" --dtype bf16 "${few[@]}"
bench symmetric 60 gemm --symmetric --shapes "$(shapes SYMMETRIC)" --dtype bf16 "${few[@]}"
bench newton-schulz 120 newton-schulz --shapes "$(shapes NEWTON_SCHULZ)" \
    --algorithm standard,symmetric,gram --coefficients polar_express --dtype bf16,f16 "${few[@]}"
# The peers get what is left but for the summary.
# The second path is what a .pth file of the wheel says, which only real site directories obey.
PYTHONPATH=$here/site:$here/site/nvidia_cutlass_dsl/python_packages:${PYTHONPATH:-} \
    part peers "$(left)" python3 -B "$here/peers.py" \
    --json "$out/peers.json" --seconds "$(($(left) - 60))" "${quick[@]}"
(cd "$here" && python3 -B summary.py "$out") | tee "$out/summary.txt"
echo "-- all: $SECONDS s; results in $out"
exit $failed
