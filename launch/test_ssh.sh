#!/usr/bin/env bash
# ssh.sh against an sshd of its own, with its own keys, on a high port of this machine; the two
# hosts are 127.0.0.1 twice.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/testing.sh"

export PATH=$PATH:/usr/sbin
if ! command -v sshd >/dev/null || ! command -v ssh >/dev/null; then
    packages openssh-server openssh-client || skip "no sshd here, and it cannot be installed"
fi

port=$(a_port)
ssh-keygen -q -t ed25519 -N '' -f "$work/host_key"
ssh-keygen -q -t ed25519 -N '' -f "$work/key"
cp "$work/key.pub" "$work/authorized_keys"
cat >"$work/sshd_config" <<CONF
ListenAddress 127.0.0.1:$port
HostKey $work/host_key
AuthorizedKeysFile $work/authorized_keys
PidFile $work/sshd.pid
StrictModes no
UsePAM no
PasswordAuthentication no
CONF
# Where sshd separates privileges: of Debian's package, but gone after a restart of a container.
[[ $(id -u) != 0 ]] || mkdir -p /run/sshd
"$(command -v sshd)" -f "$work/sshd_config" -E "$work/sshd.log" || skip "sshd does not start here"
on_exit "kill \$(cat $work/sshd.pid)"
export SSH="ssh -p $port -i $work/key -o BatchMode=yes -o UserKnownHostsFile=$work/known \
-o StrictHostKeyChecking=accept-new -o LogLevel=ERROR"
# shellcheck disable=SC2086
until_true 20 $SSH 127.0.0.1 true || skip "no login by ssh: $(tail -n 1 "$work/sshd.log")"

export HOSTS="127.0.0.1 127.0.0.1" DIR=$work
expected=$(alone one 6)

a_run two 6
PORT=$(a_port) "$launch/ssh.sh" two.yaml --ranks 4 >"$work/two.out" 2>&1 ||
    fail "two hosts" "$work/two.out"
same two "$expected"

# SIGTERM to the script ends both hosts, saved, with 75; the same command goes on.
a_run stopped 400
PORT=$(a_port) "$launch/ssh.sh" stopped.yaml --ranks 2 >"$work/stopped.out" 2>&1 &
script=$!
until_true 60 has_steps stopped 3 || fail "no steps" "$work/stopped.out"
kill -TERM $script
status=0
wait $script || status=$?
((status == 75)) || fail "exit code $status after SIGTERM" "$work/stopped.out"
[[ -z $(compgen -G "/tmp/muster-$(id -u)-*.pid") ]] || fail "it left the number of a process"
[[ -n $(compgen -G "$work/runs/stopped/checkpoints/step-*/COMMIT") ]] || fail "nothing was saved"

# A mistake is one, and both hosts end.
status=0
PORT=$(a_port) "$launch/ssh.sh" none.yaml >"$work/none.out" 2>&1 || status=$?
((status == 2)) || fail "exit code $status of a config that is not there" "$work/none.out"
echo "ssh.sh: two hosts, a stop and a mistake are as they should be"
