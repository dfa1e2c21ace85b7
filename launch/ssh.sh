#!/usr/bin/env bash
# Trains on plain hosts by ssh, one process on each, which starts that host's ranks:
#
#   HOSTS="node1 node2" launch/ssh.sh run.yaml --ranks 16
#
# HOSTS      names or addresses; the first is where all meet, and must be reached by the others
# PORT       where they meet, on the first host
# DIR        the directory on every host, with the config, and on shared storage the run's
# SSH        the program with its options; keys must work without a password
# MUSTER     the program to start there
#
# Ctrl-C or SIGTERM here is passed to the first host as SIGTERM: all hosts finish the step, save and
# end with exit code 75. If this script is killed, they train on.
set -euo pipefail

read -ra hosts <<<"${HOSTS:?names of hosts, such as HOSTS=\"node1 node2\"}"
read -ra ssh <<<"${SSH:-ssh -o BatchMode=yes}"
port=${PORT:-29400} dir=${DIR:-$PWD} muster=${MUSTER:-muster}
count=${#hosts[@]} pids=()

# What a host runs. The shell there becomes muster, and leaves its number where `stop` finds it: for
# this start alone, so that no older number is taken for it.
pid_file=/tmp/muster-$(id -u)-$port-$$-$(date +%s).pid
command_of() {
    local args=("$muster" train "${train[@]}" --backend tcp --nodes "$count" --node-rank "$1"
        --rendezvous "${hosts[0]}:$port" --bind "${BIND:-0.0.0.0}")
    printf 'cd %q && ' "$dir"
    (($1)) || printf 'echo $$ >%q && ' "$pid_file"
    printf 'exec'
    printf ' %q' "${args[@]}"
}

stops=0
stop() {
    stops=$((stops + 1))
    "${ssh[@]}" "${hosts[0]}" "kill -TERM \$(cat $pid_file)" </dev/null || true
}
trap stop INT TERM

train=("$@")
for node in "${!hosts[@]}"; do
    # Not of this terminal's process group: Ctrl-C must not end ssh itself. Nothing to read.
    setsid "${ssh[@]}" "${hosts[node]}" "$(command_of "$node")" </dev/null &
    pids+=($!)
done

# All hosts end alike; should one differ, the first that failed is told. A trap cuts `wait` short.
status=0
for pid in "${pids[@]}"; do
    while :; do
        before=$stops code=0
        wait "$pid" || code=$?
        ((stops > before)) || break
    done
    ((status)) || status=$code
done
"${ssh[@]}" "${hosts[0]}" "rm -f $pid_file" </dev/null || true
exit "$status"
