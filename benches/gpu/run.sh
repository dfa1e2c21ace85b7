#!/usr/bin/env bash
# Runs what bundle.sh packed: tests on the device, Muster's benchmarks, its peers', and their
# summary.
#
#     run.sh [--device cuda:0] [--out DIR] [--seconds 460] [--quick] [--no-peers]
#
# Needs no Rust, no compiler and no network; PyTorch for the peers. Writes one JSON file per part
# into DIR (default results/ beside this script), and ends within the given seconds: what has no
# time left is listed as not measured. Fails if a test or a benchmark of Muster's fails; after a
# test that fails nothing is measured. --quick takes tiny shapes; `--device sim --quick` goes
# through everything without a GPU, and calls itself SIMULATED.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

device=cuda:0 out=$here/results seconds=460 quick=() peers=1
while (($#)); do
    case $1 in
        --device) device=$2; shift 2 ;;
        --out) out=$2; shift 2 ;;
        --seconds) seconds=$2; shift 2 ;;
        --quick) quick=(--quick); shift ;;
        --no-peers) peers=0; shift ;;
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
    echo "$muster does not run here (the C library may be older than that of the machine that \
built it, see BUILT); build with cargo on this machine, and set MUSTER to the binary" >&2
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
    local gpu built
    built=$(cat "$here/BUILT" 2>/dev/null | tr '\n' ' ')
    gpu=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
        2>/dev/null | head -n 1)
    {
        printf '{"gpu": "%s", "device": "%s", ' "${gpu:-none}" "$device"
        printf '"muster": "%s", "built": "%s", ' "$("$muster" --version)" "$built"
        printf '"date": "%s", "cpus": %s}\n' "$(date -u +%FT%TZ)" "$(nproc)"
    } >"$out/environment.json"
}

# The programs of tests.txt; each takes its devices from MUSTER_TEST_DEVICES.
tests() {
    local name filter lines=() begin status
    while read -r name filter; do
        begin=$SECONDS
        MUSTER_TEST_DEVICES=$device part "test-$name" 60 "$here/tests/$name" "$filter" --nocapture
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

# NCCL as PyTorch's wheels bring it, where the loader does not find one by itself.
if [[ -z ${MUSTER_NCCL_LIB:-} ]]; then
    wheel=$(python3 -c 'import nvidia.nccl; print(list(nvidia.nccl.__path__)[0])' 2>/dev/null)
    [[ -e $wheel/lib/libnccl.so.2 ]] && export MUSTER_NCCL_LIB=$wheel/lib/libnccl.so.2
fi

readonly COLLECTIVES=(
    all_reduce reduce_scatter all_gather broadcast all_to_all send_recv barrier
)

# All ranks share the one GPU, which NCCL permits from 2.30 on. What a machine lacks (exit status
# 2, with the reason) is not measured; a wrong element, a hang or anything else fails.
collectives() {
    local ranks=$1 transport=nccl sizes=(--max 64MiB --seconds 0.05) status
    [[ $device == hip* ]] && transport=rccl
    [[ $device == sim* ]] && transport=staged
    ((${#quick[@]})) && sizes=(--max 4KiB --iterations 3 --warmup 1)
    NCCL_MULTI_RANK_GPU_ENABLE=1 part "collectives-$ranks" 40 "$muster" bench collectives \
        "${COLLECTIVES[@]}" --device "$device" --transport "$transport" --ranks "$ranks" \
        --threads 1 "${sizes[@]}" --factor 64 --odd --timeout-ms 20000 \
        --json "$out/collectives-$ranks.json"
    status=$?
    ((status == 0 || status == 2)) || failed=1
}

# The peers compile for minutes; all of them do so while the tests run.
readonly PEERS=(products standard gram quack)
# The second path is what a .pth file of the wheel says, which only real site directories obey.
export PYTHONPATH=$here/site:$here/site/nvidia_cutlass_dsl/python_packages:${PYTHONPATH:-}
declare -A peer_pid=()

prepare_peers() {
    local peer
    for peer in "${PEERS[@]}"; do
        rm -f "$out/$peer.ready" "$out/$peer.go"
        timeout --kill-after=5 "$(left)" python3 -B "$here/peers.py" "$peer" \
            --json "$out/peer-$peer.json" --seconds "$(($(left) - 10))" \
            --ready "$out/$peer.ready" --go "$out/$peer.go" "${quick[@]}" \
            >"$out/peer-$peer.log" 2>&1 &
        peer_pid[$peer]=$!
    done
}

# Nothing is measured while others compile, except after that many seconds.
await_peers() {
    local peer until=$((SECONDS + $1)) begin=$SECONDS
    for peer in "${PEERS[@]}"; do
        while [[ ! -e $out/$peer.ready ]] && kill -0 "${peer_pid[$peer]}" 2>/dev/null &&
            ((SECONDS < until)); do
            sleep 0.2
        done
        [[ -e $out/$peer.ready ]] || echo "-- $peer: not ready"
    done
    echo "-- waited $((SECONDS - begin)) s for peers"
}

measure_peers() {
    local peer begin
    for peer in "${PEERS[@]}"; do
        begin=$SECONDS
        touch "$out/$peer.go"
        wait "${peer_pid[$peer]}"
        echo "-- peer $peer: $((SECONDS - begin)) s, exit status $?"
    done
    rm -f "$out"/*.ready "$out"/*.go
}

environment
few=()
((${#quick[@]})) && few=(--warmup 0 --iterations 1)
((peers)) && prepare_peers
tests
if ((failed)); then
    echo "-- a test failed: nothing is measured" >&2
    kill "${peer_pid[@]}" 2>/dev/null
    exit 1
fi
for ranks in 1 2 4; do
    collectives "$ranks"
done
if ((failed)); then
    echo "-- a collective failed: nothing else is measured" >&2
    kill "${peer_pid[@]}" 2>/dev/null
    exit 1
fi
((peers)) && await_peers "$(($(left) / 3))"
bench memory 30 memory --sizes "$( ((${#quick[@]})) && echo 64KiB || echo 1GiB,4GiB)" "${few[@]}"
bench gemm 60 gemm --shapes "$(shapes GEMM)" --dtype bf16 "${few[@]}"
bench symmetric 60 gemm --symmetric --shapes "$(shapes SYMMETRIC)" --dtype bf16 "${few[@]}"
bench newton-schulz 120 newton-schulz --shapes "$(shapes NEWTON_SCHULZ)" --io bf16 \
    --algorithm standard,symmetric,gram --coefficients polar_express --dtype bf16,f16 "${few[@]}"
((peers)) && measure_peers
(cd "$here" && python3 -B summary.py "$out") | tee "$out/summary.txt"
echo "-- all: $SECONDS s; results in $out"
exit $failed
