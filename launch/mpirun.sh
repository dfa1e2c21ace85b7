#!/usr/bin/env bash
# Trains with Open MPI's mpirun, on this machine or on those of a host file:
#
#   launch/mpirun.sh run.yaml --ranks 16                     one task here, with 16 ranks
#   HOSTFILE=hosts launch/mpirun.sh run.yaml --ranks 16      one task on each host of the file
#   HOSTFILE=hosts TASKS=8 launch/mpirun.sh run.yaml         eight tasks on each, a rank each
#
# HOSTFILE   a host a line, `HOST slots=N`, as mpirun reads it; task 0 runs on the first
# TASKS      tasks on each host: 1, or as many as there are ranks there
# PORT       where they meet, on the first host
# MPIRUN     the program, with what else it needs
#
# The run's directory must be on storage that all hosts share. To save and end, send USR1 to mpirun:
# it passes that on; a SIGTERM makes it end the tasks within seconds.
set -euo pipefail

. "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
tasks=${TASKS:-1} port=${PORT:-29400} muster=${MUSTER:-muster}
read -ra mpirun <<<"${MPIRUN:-mpirun}"

if [[ -n ${HOSTFILE:-} ]]; then
    # The first word of the first line that is no comment; each host counts once.
    mapfile -t hosts < <(sed 's/#.*//' "$HOSTFILE" | awk 'NF && !seen[$1]++ { print $1 }')
    ((${#hosts[@]})) || { echo "mpirun.sh: no host in $HOSTFILE" >&2; exit 2; }
    count=${#hosts[@]} first=${hosts[0]}
    mpirun+=(--hostfile "$HOSTFILE")
else
    count=1 first=127.0.0.1
fi

options=(
    -n $((count * tasks))
    --map-by "ppr:$tasks:node"       # as many tasks on every host
    --bind-to none                   # the cores of a host are for all of its ranks
)
# Only variables that begin so go to other hosts.
for name in $(compgen -e | grep -E '^(NCCL|RCCL|HSA|HIP|NET|MUSTER|OMP)_' || true); do
    options+=(-x "$name")
done

# A single task has nobody to meet. Which task this is, Open MPI says in the environment.
meet=()
if ((count * tasks > 1)); then
    meet=(--backend tcp --rendezvous "$first:$port")
fi
exec "${mpirun[@]}" "${options[@]}" "$muster" train "$@" "${meet[@]}"
