#!/usr/bin/env python3
"""What others take for the same work on the same GPU: PyTorch's products (cuBLAS), Newton-Schulz
in PyTorch compiled by torch.compile, the Gram form in PyTorch, and gram-newton-schulz with quack.

    peers.py --json FILE [--quick] [--seconds N]

Every time is the median of runs that each begin with a cold L2, on random data, measured by device
events; Newton-Schulz takes and gives bf16. A peer that cannot run is listed with the reason. Peers whose
source is here follow their published form; the coefficients are Polar Express (arXiv 2505.16932).
"""

import argparse
import json
import pathlib
import statistics
import sys
import time
import traceback

import shapes

RAW = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]
COEFFICIENTS = [(a / 1.05, b / 1.05**3, c / 1.05**5) for a, b, c in RAW]
# Gram matrix taken anew before this step, as gram-newton-schulz does by default.
RESTART = 2
MIN_RUNS, MAX_RUNS, RUN_SECONDS = 5, 30, 0.6


class Clock:
    """Times calls on a GPU whose L2 is overwritten before each."""

    def __init__(self, torch):
        self.torch = torch
        self.flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")

    def median_ms(self, call):
        for _ in range(3):
            call()
        self.torch.cuda.synchronize()
        times, until = [], time.monotonic() + RUN_SECONDS
        while len(times) < MIN_RUNS or (len(times) < MAX_RUNS and time.monotonic() < until):
            begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
            self.flush.zero_()
            begin.record()
            call()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
        return {"median_ms": statistics.median(times), "least_ms": min(times),
                "most_ms": max(times), "iterations": len(times)}


def standard(torch, dtype):
    """Three products a step; bf16 is how most code bases run it."""

    def orthogonalize(x):
        x = x.to(dtype)
        tall = x.size(-2) > x.size(-1)
        x = x.mT if tall else x
        x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
        for a, b, c in COEFFICIENTS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.mT if tall else x

    return orthogonalize


def gram(torch, dtype):
    """Steps on the small Gram matrix, with one restart; f16 after an f32 norm."""

    def orthogonalize(x):
        given = x.dtype
        tall = x.size(-2) > x.size(-1)
        x = x.mT.float() if tall else x.float()
        x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype)
        r, q = x @ x.mT, None
        eye = torch.eye(x.size(-2), device=x.device, dtype=dtype)
        for i, (a, b, c) in enumerate(COEFFICIENTS):
            if i == RESTART:
                x = q @ x
                r, q = x @ x.mT, None
            z = torch.baddbmm(r, r, r, beta=b, alpha=c)
            q = z + a * eye if q is None else torch.baddbmm(q, q, z, beta=a)
            if i + 1 not in (RESTART, len(COEFFICIENTS)):
                rz = torch.baddbmm(r, r, z, beta=a)
                r = torch.baddbmm(rz, z, rz, beta=a)
        x = (q @ x).to(given)
        return x.mT if tall else x

    return orthogonalize


def peers_of_newton_schulz(torch):
    """Name, storage and a function that makes the peer; making may fail where it is not installed."""
    plain = {"fullgraph": True, "dynamic": False}

    def compiled(function):
        return lambda elements: torch.compile(function, **plain)

    def quack(elements):
        from gram_newton_schulz import GramNewtonSchulz
        # By default it records a CUDA graph, whose pool does not fit beside the largest batches.
        options = {} if elements < 1 << 29 else {"compile_kwargs": plain}
        return GramNewtonSchulz(ns_coefficients=COEFFICIENTS, **options)

    return [
        ("torch.compile standard", "bf16", compiled(standard(torch, torch.bfloat16))),
        ("torch.compile gram", "f16", compiled(gram(torch, torch.float16))),
        ("gram-newton-schulz, quack", "f16", quack),
    ]


def error_of(torch, result, x):
    """Relative difference from the same five steps in f64, of one matrix of the batch."""
    x, result = x[0].double().cpu(), result.reshape(x.shape)[0].double().cpu()
    want = x.mT if x.size(0) > x.size(1) else x
    want = want / want.norm()
    for a, b, c in COEFFICIENTS:
        product = want @ want.mT
        want = a * want + (b * product + c * product @ product) @ want
    want = want.mT if x.size(0) > x.size(1) else want
    return float((result - want).norm() / want.norm())


class Session:
    """Cases one after another until the time is over; what fails or comes late is listed."""

    def __init__(self, torch, seconds):
        self.torch, self.clock = torch, Clock(torch)
        self.end = time.monotonic() + seconds
        self.rows, self.skipped = [], []

    def run(self, peer, case, measure):
        labels = {"peer": peer, **case}
        if time.monotonic() > self.end:
            self.skipped.append({**labels, "why": "out of time"})
            return
        try:
            self.rows.append({**labels, **measure()})
        except Exception as error:  # Whatever a peer throws, the others go on.
            traceback.print_exc(limit=3)
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            self.skipped.append({**labels, "why": why[:300]})
        finally:
            self.torch.cuda.empty_cache()
        print(self.rows[-1] if self.rows else self.skipped[-1], file=sys.stderr, flush=True)

    def gemm(self, shape, dtype):
        torch = self.torch
        count, m, n, k = shapes.product(shape)
        kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]

        def measure():
            a = torch.randn(count, m, k, device="cuda", dtype=kind).squeeze(0)
            b = torch.randn(count, n, k, device="cuda", dtype=kind).squeeze(0).mT
            out = torch.empty(count, m, n, device="cuda", dtype=kind).squeeze(0)
            timing = self.clock.median_ms(lambda: torch.matmul(a, b, out=out))
            return {**timing, "tflops": 2e-9 * count * m * n * k / timing["median_ms"]}

        self.run("torch.matmul", {"benchmark": "gemm", "shape": shape, "dtype": dtype}, measure)

    def newton_schulz(self, peer, dtype, make, shape):
        torch = self.torch
        count, rows, columns = shapes.batch(shape)

        def measure():
            x = torch.randn(count, rows, columns, device="cuda", dtype=torch.bfloat16)
            function = make(count * rows * columns)
            small = min(rows, columns) <= 1024
            error = error_of(torch, function(x), x) if small else None
            return {**self.clock.median_ms(lambda: function(x)), "error": error}

        case = {"benchmark": "newton-schulz", "shape": shape, "dtype": dtype}
        self.run(peer, case, measure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=float, default=200, help="no case begins later")
    options = parser.parse_args()

    def finish(report):
        options.json.write_text(json.dumps(report, indent=1))

    try:
        import torch
    except ImportError as error:
        return finish({"rows": [], "skipped": [{"peer": "all", "why": str(error)}]})
    if not torch.cuda.is_available():
        why = f"PyTorch {torch.__version__} finds no GPU"
        return finish({"rows": [], "skipped": [{"peer": "all", "why": why}]})

    torch.manual_seed(7)
    session = Session(torch, options.seconds)
    prefix = "QUICK_" if options.quick else ""
    symmetric = getattr(shapes, prefix + "SYMMETRIC")
    for shape in dict.fromkeys(getattr(shapes, prefix + "GEMM") + symmetric):
        session.gemm(shape, "bf16")
    # All shapes of one peer before the next, so that a budget that ends early cuts whole peers last.
    for peer, dtype, make in peers_of_newton_schulz(torch):
        for shape in getattr(shapes, prefix + "NEWTON_SCHULZ"):
            torch.compiler.reset()
            session.newton_schulz(peer, dtype, make, shape)
    finish({
        "torch": torch.__version__, "device": torch.cuda.get_device_name(0),
        "rows": session.rows, "skipped": session.skipped,
    })


if __name__ == "__main__":
    main()
