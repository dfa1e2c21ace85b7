#!/usr/bin/env bash
# slurm.sbatch under a real Slurm of this one machine: munged, slurmctld and slurmd with a config of
# their own, started and ended here. A job with two tasks, one that is warned, requeued and goes on
# by itself, and one that is cancelled. Needs root, since slurmd does.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/testing.sh"

export PATH=$PATH:/usr/sbin
[[ $(id -u) == 0 ]] || skip "slurmd needs root"
if ! command -v slurmctld slurmd munged srun >/dev/null; then
    packages slurm-wlm munge || skip "no Slurm here, and it cannot be installed"
fi

# Everything of this Slurm lies below one folder, sockets included; nothing else of the machine's.
slurm=$work/slurm
mkdir -p "$slurm/state" "$slurm/spool"
chmod 755 "$work" "$slurm"
export SLURM_CONF=$slurm/slurm.conf
node=$(hostname -s) cores=$(nproc)
dd if=/dev/urandom of="$slurm/munge.key" bs=1024 count=1 status=none
chmod 600 "$slurm/munge.key"
cat >"$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(a_port)
SlurmdPort=$(a_port)
SlurmUser=root
AuthType=auth/munge
# A node takes a requeued job once the credential of its first start has expired.
AuthInfo=socket=$slurm/munge.socket,cred_expire=3
CredType=cred/munge
StateSaveLocation=$slurm/state
SlurmdSpoolDir=$slurm/spool
SlurmctldPidFile=$slurm/slurmctld.pid
SlurmdPidFile=$slurm/slurmd.pid
SlurmctldLogFile=$slurm/slurmctld.log
SlurmdLogFile=$slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$cores State=UNKNOWN
PartitionName=all Nodes=$node Default=YES State=UP OverSubscribe=YES
CONF

munged --force --key-file="$slurm/munge.key" --socket="$slurm/munge.socket" \
    --pid-file="$slurm/munge.pid" --log-file="$slurm/munge.log" --seed-file="$slurm/munge.seed" ||
    skip "munged does not start here"
on_exit "end $slurm/munge.pid"
slurmctld || skip "slurmctld does not start here"
on_exit "end $slurm/slurmctld.pid"
slurmd || skip "slurmd does not start here: $(tail -n 1 "$slurm/slurmd.log")"
on_exit "end $slurm/slurmd.pid"
is_up() { [[ $(sinfo -h -o %t 2>/dev/null) == idle ]]; }
until_true 30 is_up || fail "the node does not come up" "$slurm/slurmctld.log" "$slurm/slurmd.log"

cd "$work"
export LAUNCH=$launch
expected=$(alone one 6)
submit() { sbatch --parsable --nodes=1 --ntasks-per-node=2 --output="$work/$1.out" "${@:2}" \
    "$launch/slurm.sbatch" "$work/$1.yaml" --ranks 4; }
# Of a job that has ended; squeue knows it for a while.
state_is() { [[ $(scontrol show job "$1" | grep -oE 'JobState=[A-Z]+') == "JobState=$2" ]]; }
logs() { printf '%s\n' "$work/$1.out" "$slurm/slurmctld.log"; }

# Two tasks on one node, two ranks each.
a_run two 6
job=$(submit two)
until_true 60 state_is "$job" COMPLETED || fail "a job of two tasks" $(logs two)
same two "$expected"
grep -q "started by Slurm as task 1 of 2, all on this machine (SLURM_PROCID=1," "$work/two.out" ||
    fail "no line of what was found" "$work/two.out"

# As before a time limit: the tasks are warned and save, the script puts the job back into the
# queue, and what starts again goes on to the end, with the weights of an undisturbed run.
expected=$(alone undisturbed 120)
a_run warned 120
job=$(submit warned)
until_true 60 has_steps warned 3 || fail "no steps" $(logs warned)
scancel --signal=USR1 "$job"
until_true 60 state_is "$job" PENDING || fail "it is not in the queue" $(logs warned)
# Slurm lets two minutes pass before a requeued job starts, unless it is told.
scontrol update JobId="$job" StartTime=now+5
until_true 60 state_is "$job" COMPLETED || fail "a job that was warned" $(logs warned)
scontrol show job "$job" | grep -q ' Restarts=1 ' || fail "it was not requeued" $(logs warned)
same warned "$expected"
[[ $(grep -c '^{"header"' runs/warned/events.jsonl) == 2 ]] || fail "not two starts" $(logs warned)

# Who cancels a job has it saved, and not put back.
a_run cancelled 4000
job=$(submit cancelled)
until_true 60 has_steps cancelled 3 || fail "no steps" $(logs cancelled)
scancel "$job"
until_true 60 state_is "$job" CANCELLED || fail "a job that was cancelled" $(logs cancelled)
until_true 30 compgen -G "$work/runs/cancelled/checkpoints/step-*/COMMIT" ||
    fail "nothing was saved" $(logs cancelled)
sleep 5
state_is "$job" CANCELLED || fail "it was put back" $(logs cancelled)

# A mistake ends the job with its exit code.
job=$(sbatch --parsable --nodes=1 --output="$work/none.out" "$launch/slurm.sbatch" none.yaml)
until_true 60 state_is "$job" FAILED || fail "a config that is not there" $(logs none)
scontrol show job "$job" | grep -q ' ExitCode=2:0' || fail "another exit code" $(logs none)
echo "slurm.sbatch: tasks, a requeue, a cancellation and a mistake are as they should be"
