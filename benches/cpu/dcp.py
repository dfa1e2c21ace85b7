"""PyTorch's distributed checkpoint beside Muster's on the same disk: save with fsync, and load.

    python benches/cpu/dcp.py DIRECTORY target/release/examples/throughput [MIB] [ROUNDS]

needs torch (2.15.0 was measured). The same bytes in as many tensors of 8 MiB, in turn: DCP's
FileSystemWriter (sync_files, its default) with 1 and with all cores' threads, the faster counts;
`crates/checkpoint/examples/throughput`, whose lines beside plain writes and reads it prints too.
Files are dropped from the page cache before each load, then loaded once more from it.
"""

import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

import torch
import torch.distributed.checkpoint as dcp

TENSOR_BYTES = 8 << 20


def forget(path):
    for file in path.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def timed(action, size):
    start = time.perf_counter()
    action()
    return size / (time.perf_counter() - start) / 1e9


def with_dcp(root, state, size):
    rates = {"save": 0.0, "load": 0.0, "load, cached": 0.0}
    for threads in {1, os.cpu_count()}:
        path = root / "dcp"
        shutil.rmtree(path, ignore_errors=True)
        writer = dcp.FileSystemWriter(path, thread_count=threads)
        rates["save"] = max(
            rates["save"], timed(lambda: dcp.save(state, storage_writer=writer), size)
        )
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    for name in ("load", "load, cached"):
        if name == "load":
            forget(path)
        rates[name] = timed(lambda: dcp.load(into, checkpoint_id=path), size)
    assert all(torch.equal(into[name], tensor) for name, tensor in state.items())
    shutil.rmtree(path)
    return rates


def with_muster(root, throughput, mib):
    """Medians of the example's rounds."""
    out = subprocess.run([throughput, root, str(mib)], capture_output=True, text=True, check=True)
    rates = {}
    for line in out.stdout.splitlines():
        found = re.match(r"\s*(.+?): ([0-9.]+) GB/s", line)
        if found:
            rates.setdefault(found[1], []).append(float(found[2]))
    return {name: statistics.median(values) for name, values in rates.items()}


def main():
    root, throughput = pathlib.Path(sys.argv[1]) / "muster-dcp", sys.argv[2]
    mib = int(sys.argv[3]) if len(sys.argv) > 3 else 512
    rounds = int(sys.argv[4]) if len(sys.argv) > 4 else 5
    root.mkdir(parents=True, exist_ok=True)
    size = mib << 20
    number = size // TENSOR_BYTES
    state = {f"t{i}": torch.rand(TENSOR_BYTES // 4) for i in range(number)}
    print(f"torch {torch.__version__}, {number} tensors of 8 MiB, {os.cpu_count()} cores")
    theirs, ours = [], []
    for _ in range(rounds):
        theirs.append(with_dcp(root, state, size))
        ours.append(with_muster(root, throughput, mib))
    shutil.rmtree(root)
    for name in theirs[0]:
        print(f"DCP {name:14} {statistics.median(t[name] for t in theirs):.3f} GB/s")
    for name in ours[0]:
        print(f"Muster's example: {name:22} {statistics.median(o[name] for o in ours):.3f} GB/s")
    pairs = {"save": "save + commit", "load": "load", "load, cached": "load, cached"}
    for name, own in pairs.items():
        each = [o[own] / t[name] for o, t in zip(ours, theirs) if own in o]
        told = ", ".join(f"{ratio:.2f}" for ratio in each)
        print(f"{name}: Muster over DCP {statistics.median(each):.2f} of {told}")


main()
