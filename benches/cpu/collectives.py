#!/usr/bin/env python3
"""Collectives of Muster beside Open MPI's and Gloo's, in rounds; a table of medians and ratios.

    MPI=VENV/bin TORCH_PYTHON=VENV/bin/python \\
        benches/cpu/collectives.py [--ranks N] [--rounds N] [--min BYTES] [--max BYTES] \\
        [--seconds S] [--ops OP,…] [--over shm,tcp] [--beside N]

MPI is a folder with `mpirun` and a `python` that has mpi4py, TORCH_PYTHON an interpreter with
PyTorch; a peer that is not named is left out. Each figure is the median of a process's launches, in
a row the median over the rounds; a ratio is the peer's time over Muster's, so above 1 Muster is
ahead. Nobody's buffers are filled anew between launches, hence Muster's are not checked here: what
was just written comes from the other core's cache, which takes longer. With --beside N, N other
processes do nothing but compute meanwhile, as on a machine that is shared. The last lines sum up:
the geometric mean, and the cells that are behind by more than 5 %.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
OPS = ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "reduce", "gather", "scatter"]
# What each peer is compared with.
PAIRS = {"Open MPI shm": "Muster shm", "Open MPI tcp": "Muster tcp", "Gloo tcp": "Muster tcp"}


def lines(command, env=None):
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    rows = [line.split() for line in done.stdout.splitlines()]
    return {(op, int(size)): float(us) for op, size, us in (r for r in rows if len(r) == 3)}


def muster(args, backend):
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [args.muster, "bench", "collectives", *args.ops, "--backend", backend]
        command += ["--ranks", args.ranks, "--threads", 1, "--min", args.min, "--max", args.max]
        command += ["--seconds", args.seconds, "--within", 0.001, "--no-check", "--json", report]
        subprocess.run([str(part) for part in command], check=True, capture_output=True)
        rows = json.loads(report.read_text())["rows"]
    best = {}
    for row in rows:
        key, us = (row["key"]["op"], row["key"]["bytes"]), row["times"]["p50_us"]
        # In place as the peers, but where they have it out of place alone. Gloo gathers out of
        # place: it copies a part more.
        if key[0] != "reduce_scatter" or not row["key"]["in_place"]:
            best[key] = us
    return best


def mpi(args, extra):
    folder = Path(os.environ["MPI"])
    command = [folder / "mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]
    peer = HERE.parent / "peers/collectives_mpi.py"
    command += [*extra, "-n", args.ranks, folder / "python", peer]
    command += ["--min", args.min, "--max", args.max, "--seconds", args.seconds]
    command += ["--ops", ",".join(args.ops)]
    return lines([str(part) for part in command])


def gloo(args):
    command = [os.environ["TORCH_PYTHON"], HERE.parent / "peers/collectives_gloo.py"]
    command += ["--ranks", args.ranks, "--min", args.min, "--max", args.max]
    command += ["--seconds", args.seconds, "--ops", ",".join(args.ops)]
    return lines([str(part) for part in command])


def measure(args):
    """What ran, by round: times by operation and size."""
    runs = {"Muster shm": lambda: muster(args, "shm"), "Muster tcp": lambda: muster(args, "tcp")}
    if "MPI" in os.environ:
        runs["Open MPI shm"] = lambda: mpi(args, [])
        over_tcp = ["--mca", "pml", "ob1", "--mca", "btl", "self,tcp"]
        runs["Open MPI tcp"] = lambda: mpi(args, over_tcp)
    runs = {name: run for name, run in runs.items() if name.split()[-1] in args.over}
    if "TORCH_PYTHON" in os.environ and "tcp" in args.over:
        runs["Gloo tcp"] = lambda: gloo(args)
    rounds = []
    for index in range(args.rounds):
        print(f"round {index + 1}", file=sys.stderr)
        rounds.append({name: run() for name, run in runs.items()})
    return rounds


def table(rounds):
    names = list(rounds[0])
    middle = {name: {} for name in names}
    for name in names:
        for key in rounds[0][name]:
            middle[name][key] = statistics.median(r[name][key] for r in rounds if key in r[name])
    peers = [name for name in names if name in PAIRS]
    head = ["operation", "bytes", *(f"{name}, µs" for name in names)]
    head += [f"{peer} over {PAIRS[peer]}" for peer in peers]
    out = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    ratios = {peer: {} for peer in peers}
    for key in sorted(middle[names[0]], key=lambda key: (OPS.index(key[0]), key[1])):
        cells = [key[0], str(key[1])]
        cells += [f"{middle[name][key]:.2f}" if key in middle[name] else "" for name in names]
        for peer in peers:
            ours, theirs = middle[PAIRS[peer]].get(key), middle[peer].get(key)
            ratio = theirs / ours if ours and theirs else None
            cells.append("" if ratio is None else f"{ratio:.2f}")
            if ratio:
                ratios[peer][key] = ratio
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out + [""] + [text for peer in peers for text in summary(peer, ratios[peer])])


def summary(peer, ratios):
    for op in OPS:
        mine = {key[1]: ratio for key, ratio in ratios.items() if key[0] == op}
        if not mine:
            continue
        mean = math.exp(statistics.fmean(math.log(ratio) for ratio in mine.values()))
        behind = [size for size, ratio in mine.items() if ratio < 1 / 1.05]
        large = [ratio for size, ratio in mine.items() if size >= 1 << 20]
        large = f", from 1 MiB at least {min(large):.2f}" if large else ""
        yield (
            f"- {peer}, {op}: geometric mean {mean:.2f}{large}; behind by more than 5 % in"
            f" {len(behind)} of {len(mine)} sizes{f' ({behind})' if behind else ''}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--muster", default="target/release/muster")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--min", type=int, default=8)
    parser.add_argument("--max", type=int, default=64 << 20)
    parser.add_argument("--seconds", type=float, default=0.3)
    parser.add_argument("--over", type=lambda text: text.split(","), default=["shm", "tcp"])
    parser.add_argument("--ops", type=lambda text: text.split(","), default=OPS)
    parser.add_argument("--beside", type=int, default=0)
    args = parser.parse_args()
    compute = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(compute) for _ in range(args.beside)]
    try:
        print(table(measure(args)))
    finally:
        for process in busy:
            process.kill()
