#!/usr/bin/env python3
"""Collectives of Gloo through PyTorch on CPUs, timed as `muster bench collectives` times its own.

    python3 collectives_gloo.py --ranks 2 [--min BYTES] [--max BYTES] [--seconds S] [--ops OP,…]

Starts its own processes, which meet on loopback. Prints a line per case: operation, bytes as
nccl-tests counts them, median in microseconds. Gloo has no reduce_scatter of its own everywhere;
what it refuses is left out.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as processes


def cases(size, rank, ranks):
    whole = size // 4
    part = whole // ranks
    a, b = torch.ones(max(whole, 1)), torch.zeros(max(whole, 1))
    yield "all_reduce", whole * 4, lambda: dist.all_reduce(a[:whole])
    if part:
        total = part * ranks * 4
        yield "reduce_scatter", total, lambda: dist.reduce_scatter_tensor(
            b[:part], a[: part * ranks]
        )
        yield "all_gather", total, lambda: dist.all_gather_into_tensor(
            b[: part * ranks], a[rank * part : (rank + 1) * part]
        )
        # The root has all, and gives a part to itself, too.
        every = list(a[: part * ranks].chunk(ranks)) if rank == 0 else None
        yield "gather", total, lambda: dist.gather(b[:part], every, dst=0)
        yield "scatter", total, lambda: dist.scatter(b[:part], every, src=0)
    yield "broadcast", whole * 4, lambda: dist.broadcast(a[:whole], 0)
    yield "reduce", whole * 4, lambda: dist.reduce(a[:whole], 0)


def median_us(operation, seconds):
    stamps, until = [], None
    while True:
        for _ in range(8):
            dist.barrier()
            arrived = time.perf_counter_ns()
            operation()
            stamps.append((arrived, time.perf_counter_ns()))
        if until is None:
            stamps, until = [], time.monotonic() + seconds
        over = torch.tensor([int(time.monotonic() > until and len(stamps) >= 16)])
        dist.broadcast(over, 0)
        if over.item():
            break
    mine = torch.tensor(stamps)
    every = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    every = torch.stack(every)
    took = every[:, :, 1].max(dim=0).values - every[:, :, 0].max(dim=0).values
    return took.double().median().item() / 1e3


def work(rank, ranks, args):
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(args.port))
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    size = args.min
    while size <= args.max:
        for name, counted, operation in cases(size, rank, ranks):
            if args.ops and name not in args.ops:
                continue
            try:
                us = median_us(operation, args.seconds)
            except RuntimeError as error:
                if "not support" not in str(error):
                    raise
                continue
            if rank == 0:
                print(name, counted, f"{us:.3f}", flush=True)
        size *= 2
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--min", type=int, default=8)
    parser.add_argument("--ops", type=lambda text: text.split(","))
    parser.add_argument("--max", type=int, default=64 << 20)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--port", type=int, default=29533)
    args = parser.parse_args()
    processes.spawn(work, (args.ranks, args), args.ranks)
