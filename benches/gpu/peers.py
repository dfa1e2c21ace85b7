#!/usr/bin/env python3
"""What others take for the same work on the same GPU: PyTorch's products (cuBLAS), Newton-Schulz
in PyTorch compiled by torch.compile, the Gram form in PyTorch, and gram-newton-schulz with quack.

    peers.py PEER --json FILE [--quick] [--seconds N] [--ready FILE --go FILE]

PEER is one of products, standard, gram, quack. Compiling takes far longer than measuring, so peers
may be prepared beside each other: with --ready, a peer runs each shape once, makes that file, and
waits for the file of --go before it measures.

Every time is the median of runs that each begin with a cold L2, on random data, measured by device
events; Newton-Schulz takes and gives bf16. A peer that cannot run is listed with the reason. Peers
whose source is here follow their published form; the coefficients are Polar Express (arXiv
2505.16932).
"""

import argparse
import contextlib
import fcntl
import json
import pathlib
import statistics
import sys
import tempfile
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
# Elements of a batch that is large beside a GPU's memory.
LARGE = 1 << 29


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


def compiled(function):
    """A maker of the compiled function, whatever the size of the batch."""
    return lambda torch, elements: torch.compile(function(torch), fullgraph=True, dynamic=False)


def quack(torch, elements):
    from gram_newton_schulz import GramNewtonSchulz
    # By default it records a CUDA graph, whose pool does not fit beside the largest batches.
    plain = {"compile_kwargs": {"fullgraph": True, "dynamic": False}}
    return GramNewtonSchulz(ns_coefficients=COEFFICIENTS, **(plain if elements >= LARGE else {}))


# Name in reports, storage, and what makes the peer; making fails where it is not installed.
NEWTON_SCHULZ = {
    "standard": ("torch.compile standard", "bf16",
                 compiled(lambda torch: standard(torch, torch.bfloat16))),
    "gram": ("torch.compile gram", "f16", compiled(lambda torch: gram(torch, torch.float16))),
    "quack": ("gram-newton-schulz, quack", "f16", quack),
}


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

    def guarded(self, labels, work):
        """The result of `work`, or None and a line among what was skipped."""
        if time.monotonic() > self.end:
            self.skipped.append({**labels, "why": "out of time"})
            return None
        try:
            return work()
        except Exception as error:  # Whatever a peer throws, the others go on.
            traceback.print_exc(limit=3)
            text = str(error).strip()
            why = f"{type(error).__name__}: {text.splitlines()[0] if text else ''}"
            self.skipped.append({**labels, "why": why[:300]})
            return None
        finally:
            self.torch.cuda.empty_cache()

    def row(self, labels, measure):
        measured = self.guarded(labels, measure)
        if measured is not None:
            self.rows.append({**labels, **measured})
            print(self.rows[-1], file=sys.stderr, flush=True)


class Products(Session):
    """torch.matmul, which is cuBLAS."""

    def __init__(self, torch, seconds, prefix):
        super().__init__(torch, seconds)
        listed = getattr(shapes, prefix + "GEMM") + getattr(shapes, prefix + "SYMMETRIC")
        self.shapes = list(dict.fromkeys(listed))

    def prepare(self):
        pass

    def measure(self):
        for shape in self.shapes:
            labels = {"peer": "torch.matmul", "benchmark": "gemm", "shape": shape, "dtype": "bf16"}
            self.row(labels, lambda: self.product(shape))

    def product(self, shape):
        torch = self.torch
        count, m, n, k = shapes.product(shape)
        like = {"device": "cuda", "dtype": torch.bfloat16}
        a = torch.randn(count, m, k, **like).squeeze(0)
        b = torch.randn(count, n, k, **like).squeeze(0).mT
        out = torch.empty(count, m, n, **like).squeeze(0)
        timing = self.clock.median_ms(lambda: torch.matmul(a, b, out=out))
        return {**timing, "tflops": 2e-9 * count * m * n * k / timing["median_ms"]}


class NewtonSchulz(Session):
    """One peer on all batches."""

    def __init__(self, torch, seconds, prefix, peer):
        super().__init__(torch, seconds)
        # A shape is a compilation of its own.
        torch._dynamo.config.recompile_limit = 64
        self.peer, self.dtype, self.make = NEWTON_SCHULZ[peer]
        self.shapes = getattr(shapes, prefix + "NEWTON_SCHULZ")
        self.ready = {}

    def labels(self, shape):
        return {"peer": self.peer, "benchmark": "newton-schulz", "shape": shape,
                "dtype": self.dtype}

    def batch(self, shape):
        return self.torch.randn(*shapes.batch(shape), device="cuda", dtype=self.torch.bfloat16)

    def prepare(self):
        for shape in self.shapes:
            self.guarded(self.labels(shape), lambda: self.first_run(shape))

    def first_run(self, shape):
        count, rows, columns = shapes.batch(shape)
        elements = count * rows * columns
        begin = time.monotonic()
        with only_one(elements >= LARGE):
            function, x = self.make(self.torch, elements), self.batch(shape)
            result = function(x)
            self.torch.cuda.synchronize()
            small = min(rows, columns) <= 1024
            self.ready[shape] = function, error_of(self.torch, result, x) if small else None
        print(f"{shape}: ready after {time.monotonic() - begin:.1f} s", file=sys.stderr, flush=True)

    def measure(self):
        for shape in filter(self.ready.get, self.shapes):
            self.row(self.labels(shape), lambda: self.timed(shape))

    def timed(self, shape):
        (function, error), x = self.ready[shape], self.batch(shape)
        return {**self.clock.median_ms(lambda: function(x)), "error": error}


@contextlib.contextmanager
def only_one(alone):
    """Where memory is short, one process at a time."""
    with open(pathlib.Path(tempfile.gettempdir()) / "muster-peers.lock", "w") as lock:
        if alone:
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def wait_for(go, seconds):
    until = time.monotonic() + seconds
    while not go.exists() and time.monotonic() < until:
        time.sleep(0.1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("peer", choices=["products", *NEWTON_SCHULZ])
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny shapes")
    parser.add_argument("--seconds", type=float, default=400, help="no case begins later")
    parser.add_argument("--ready", type=pathlib.Path, help="made when all is compiled")
    parser.add_argument("--go", type=pathlib.Path, help="waited for before measuring")
    options = parser.parse_args()

    def finish(report):
        options.json.write_text(json.dumps(report, indent=1))
        if options.ready:
            options.ready.touch()

    try:
        import torch
    except ImportError as error:
        return finish({"rows": [], "skipped": [{"peer": options.peer, "why": str(error)}]})
    if not torch.cuda.is_available():
        why = f"PyTorch {torch.__version__} finds no GPU"
        return finish({"rows": [], "skipped": [{"peer": options.peer, "why": why}]})

    torch.manual_seed(7)
    prefix = "QUICK_" if options.quick else ""
    if options.peer == "products":
        session = Products(torch, options.seconds, prefix)
    else:
        session = NewtonSchulz(torch, options.seconds, prefix, options.peer)
    session.prepare()
    if options.ready:
        options.ready.touch()
    if options.go:
        wait_for(options.go, session.end - time.monotonic())
    session.measure()
    finish({
        "torch": torch.__version__, "device": torch.cuda.get_device_name(0),
        "rows": session.rows, "skipped": session.skipped,
    })


if __name__ == "__main__":
    main()
