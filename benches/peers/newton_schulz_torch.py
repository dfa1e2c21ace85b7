"""Newton–Schulz in f32 with PyTorch on the CPU: a peer of benches/peers/newton_schulz_candle.rs.

    python benches/peers/newton_schulz_torch.py --threads 1

The usual five steps with all products in full, eager. Prints a line per shape with the
median in ms.
"""

import argparse
import statistics
import time

import torch

# Polar Express (arXiv 2505.16932) with the safety factor 1.01.
TABLE = [
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
]
STEPS = [(a / 1.01, b / 1.01**3, c / 1.01**5) for a, b, c in TABLE]
SHAPES = [(256, 1024), (768, 768), (768, 3072), (3072, 768), (1024, 2816)]
ROUNDS = 7


def newton_schulz(x):
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm()
    for a, b, c in STEPS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T.contiguous() if tall else x


def median_ms(x):
    newton_schulz(x)
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        newton_schulz(x)
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    with torch.no_grad():
        for rows, cols in SHAPES:
            ms = median_ms(torch.randn(rows, cols))
            print(f"{rows}×{cols}: torch {torch.__version__} {ms:.1f} ms, {threads} threads")


if __name__ == "__main__":
    main()
