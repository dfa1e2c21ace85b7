#!/usr/bin/env bash
# Ways to bring the same bytes to a disk, in turn: through the page cache or past it, by one writer
# or several, by plain writes or a queue of io_uring's. All end with fsync.
#
#   benches/cpu/disk_writes.sh DIRECTORY [MIB] [ROUNDS]
#
# Needs fio and python3. Prints GB/s of each round, first the least, and the median.
set -euo pipefail
mkdir -p "$1"
dir=$(mktemp -d -p "$1") mib=${2:-512} rounds=${3:-5}
trap 'rm -rf "$dir"' EXIT

# A line of the table: name, number of writers, further arguments of fio.
one() {
  rm -rf "${dir:?}"/*
  fio --name=w --directory="$dir" --rw=write --size=$((mib / $2))m --numjobs="$2" --end_fsync=1 \
    --fallocate=none --output-format=json "${@:3}" |
    python3 -c '
import json, sys
name, writers, mib = sys.argv[1:]
ms = max(job["job_runtime"] for job in json.load(sys.stdin)["jobs"])
print(name, writers, int(mib) * 2**20 / ms / 1e6, sep="\t")' "$1" "$2" "$mib" >>"$dir.tsv"
}

for round in $(seq "$rounds"); do
  echo "round $round" >&2
  for writers in 1 2 4; do
    one "page cache, write of 4 MiB" $writers --ioengine=psync --bs=4m
    # As checkpoints are written: the disk begins with each piece at once.
    one "page cache, sync_file_range of each 4 MiB" $writers --ioengine=psync --bs=4m \
      --sync_file_range=write:1
    one "O_DIRECT, write of 4 MiB" $writers --ioengine=psync --bs=4m --direct=1
    one "O_DIRECT, io_uring of 8 × 1 MiB" $writers --ioengine=io_uring --iodepth=8 --bs=1m \
      --direct=1
  done
done
python3 - "$dir.tsv" <<'PY'
import collections, statistics, sys

rates = collections.defaultdict(list)
for line in open(sys.argv[1]):
    name, writers, rate = line.rstrip().split("\t")
    rates[name, writers].append(float(rate))
print("| | writers | GB/s | median |\n|---|---|---|---|")
for (name, writers), of in rates.items():
    print(f"| {name} | {writers} | {', '.join(f'{rate:.2f}' for rate in sorted(of))} "
          f"| {statistics.median(of):.2f} |")
PY
rm -f "$dir.tsv"
