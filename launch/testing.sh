# shellcheck shell=bash
# What the tests of this folder share; sourced. They need a built muster (MUSTER=…), write to a
# temporary directory, and end what they started.

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
launch=$repository/launch
export MUSTER=${MUSTER:-$repository/target/release/muster}
work=$(mktemp -d)
# The tools that tests fetch: kept, so that another run need not.
tools=$repository/target/launch-tools

# skip WHY: this test cannot run here. Where all must (LAUNCH_TESTS=all), that is a failure.
skip() {
    if [[ ${LAUNCH_TESTS:-} == all ]]; then
        echo "FAILED $(basename "$0"): $1" >&2
        exit 1
    fi
    echo "SKIPPED $(basename "$0"): $1"
    exit 0
}

# fail WHY [FILE…]: with the ends of files that tell more.
fail() {
    echo "FAILED $(basename "$0"): $1" >&2
    shift
    local file
    for file; do
        echo "--- $file" >&2
        tail -n 30 "$file" >&2 || true
    done
    exit 1
}

# on_exit COMMAND…: when the test ends, the last first.
undo=("rm -rf $work")
on_exit() { undo=("$*" "${undo[@]}"); }
at_end() {
    local status=$? command
    for command in "${undo[@]}"; do eval "$command" || true; done
    exit "$status"
}
trap at_end EXIT

# as_root: whether this may install packages.
as_root() { [[ $(id -u) == 0 ]] && command -v apt-get >/dev/null; }

# packages NAME…: by apt, quietly.
packages() {
    as_root || return 1
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install -y -qq --no-install-recommends "$@"; } >"$work/apt.log" 2>&1
}

# python_tools NAME…: a virtual environment with these packages; prints its folder.
python_tools() {
    [[ -x $tools/bin/python ]] || python3 -m venv "$tools" >/dev/null
    "$tools/bin/pip" install --quiet --disable-pip-version-check "$@" >"$work/pip.log" 2>&1 &&
        echo "$tools"
}

# a_run NAME STEPS: a small model and a text, in $work/NAME.yaml.
a_run() {
    cat "$repository"/crates/layout/src/*.rs >"$work/text.txt"
    cat >"$work/$1.yaml" <<YAML
name: $1
runs_dir: $work/runs
model: {preset: tiny-moe, layers: 2, d_model: 64, moe: {experts: 4, d_ff: 48}}
data: {tokenizer: byte, files: $work/text.txt}
batch: {leaves: 4, micro_batches: 2, micro_batch: 1, seq_len: 32}
train: {steps: $2, eval_every: 0, eval_samples: 4, sample_tokens: 0}
checkpoint: {every: 0, keep: 2}
ranks: {threads: 1, timeout_ms: 60000}
YAML
}

# digest NAME: of the weights at the end of a run.
digest() {
    sed -n 's/.*"weights_digest":"\([^"]*\)".*/\1/p' "$work/runs/$1/events.jsonl" | tail -n 1
}

# alone NAME STEPS: the same run without a launcher, for its digest.
alone() {
    a_run "$1" "$2"
    "$MUSTER" train "$work/$1.yaml" --launcher none >"$work/$1.out" 2>&1 ||
        fail "a run on this machine alone" "$work/$1.out"
    digest "$1"
}

# same NAME DIGEST: a run has ended with these weights.
same() {
  [[ -n $2 && $(digest "$1") == "$2" ]] || fail "$1 has other weights than a run of one process"
}

# until_true SECONDS COMMAND…
until_true() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

# has_steps NAME COUNT: so many steps are done.
has_steps() {
    [[ $(grep -c '^{"step"' "$work/runs/$1/events.jsonl" 2>/dev/null) -ge $2 ]]
}

# end FILE: ends the process with this number, and returns when it has.
end() {
    local pid
    pid=$(cat "$1") && kill "$pid" && until_true 10 eval "! kill -0 $pid"
}

# a_port: one that nobody listens at.
a_port() {
    python3 -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])'
}
