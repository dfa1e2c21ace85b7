#!/usr/bin/env bash
# Collectives where something is short, as tables of `muster bench collectives`; MUSTER names the
# program.
#
#   benches/cpu/transports_limits.sh memory      two ranks, 64 MiB, in percent of the memory's bound
#   benches/cpu/transports_limits.sh crowded     four ranks over tcp on whatever cores there are
#   benches/cpu/transports_limits.sh hosts       two "hosts" of two ranks on loopback, both ways
set -euo pipefail
muster=${MUSTER:-target/release/muster}
short=(--no-check --place in --within 0.001)

hosts() {
    local port within=$1
    port=$(python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')
    local job=(--backend tcp --within-host "$within" --ranks 4 --nodes 2)
    job+=(--rendezvous "127.0.0.1:$port")
    job+=(--min 2MiB --max 16MiB --factor 8 --seconds 0.5 "${short[@]}")
    export MUSTER_SECRET=of_a_measurement_alone
    "$muster" bench collectives "${job[@]}" --node-rank 1 >/dev/null 2>&1 &
    echo "== ranks of a host connected by $within"
    "$muster" bench collectives "${job[@]}" --node-rank 0 2>/dev/null
    wait
}

case ${1-} in
memory)
    "$muster" bench collectives --ranks 2 --min 16MiB --max 64MiB --factor 4 --seconds 1 \
        "${short[@]}"
    ;;
crowded)
    for op in all_reduce all_gather broadcast reduce_scatter; do
        "$muster" bench collectives "$op" --ranks 4 --backend tcp --min 64 --max 1MiB --factor 16 \
            --seconds 0.1 "${short[@]}"
    done
    ;;
hosts)
    for round in 1 2 3; do
        echo "== round $round"
        hosts tcp
        hosts shm
    done
    ;;
*)
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
