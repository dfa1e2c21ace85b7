#!/bin/sh
# Where the memory of ranks lies on a host of several NUMA nodes, bound (--cpus auto) and not: the
# CPUs that each rank may use, and by node the pages of each window that it maps, its own and those
# of its peers, and of its private memory. Times are `muster bench collectives` with either.
#
#   benches/cpu/numa.sh MUSTER [RANKS]        the binary; 2 ranks
set -eu
muster=$(realpath "$1") ranks=${2:-2}
dir=$(mktemp -d)
job=
trap '[ -z "$job" ] || kill -9 "$job"; rm -rf "$dir"' EXIT
cd "$dir"

yes 'a text that is long enough for some windows of a tiny model' | head -n 1000 >text.txt
cat >run.yaml <<END
model: {preset: tiny-moe, layers: 2, d_model: 128, moe: {experts: 4, d_ff: 128}}
data: {tokenizer: byte, files: text.txt}
batch: {leaves: $ranks, micro_batches: 1, micro_batch: 1, seq_len: 32}
train: {steps: 1000000, eval_every: 0, sample_tokens: 0}
checkpoint: {every: 0}
ranks: {count: $ranks, threads: 1, timeout_ms: 600000}
END

# Pages by node of lines of numa_maps(5): of each line, or of `all` together.
pages() {
    awk -v what="$1" '
        function tell() { for (n = 0; n < 64; n++) if (n in of) line = line " N" n " " of[n]
                          if (sum > 16) print "   ", what line
                          split("", of); line = ""; sum = 0 }
        { for (i = 1; i <= NF; i++) if ($i ~ /^N[0-9]+=/) {
              split(substr($i, 2), part, "="); of[part[1]] += part[2]; sum += part[2] }
          if (what == "window") tell() }
        END { tell() }'
}

for cpus in auto any; do
    "$muster" train run.yaml --name "$cpus" --cpus "$cpus" >"$cpus.out" 2>&1 &
    job=$!
    until grep -q '"step"' "runs/$cpus/events.jsonl" 2>/dev/null; do
        kill -0 "$job" 2>/dev/null || { cat "$cpus.out"; exit 1; }
        sleep 1
    done
    echo "--cpus $cpus: $(sed -n 's/^  cpus  *//p' "$cpus.out")"
    for process in /proc/[0-9]*; do
        words=$(tr '\0' ' ' <"$process/cmdline" 2>/dev/null) || continue
        case $words in *" worker --plan runs/$cpus/"*) ;; *) continue ;; esac
        grep -q "^PPid:[[:space:]]*$job\$" "$process/status" || continue
        allowed=$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' "$process/status")
        echo "  rank ${words##*--rank } on CPUs $allowed"
        grep memfd "$process/numa_maps" | pages window
        grep anon= "$process/numa_maps" | grep -v file= | pages private
    done
    kill -9 "$job"
    wait "$job" 2>/dev/null || true
    job=
done
