#!/usr/bin/env python3
"""Joins what Muster and its peers measured into ratios, and holds them against the bars.

    summary.py DIR        reads DIR/*.json, writes DIR/summary.json, prints it as text

A bar is passed, missed, or not measured; the last with the reason. Nothing that a simulator gave is
taken for a measurement.
"""

import json
import math
import pathlib
import sys

import shapes

# ms at 790 TFLOP/s for the Gram form of the largest set, and how far from it is allowed.
LARGEST, LARGEST_LIMIT_MS = "216x2048x7168", 95.9


def load(directory, name):
    path = directory / name
    return json.loads(path.read_text()) if path.exists() and path.stat().st_size else None


class Measured:
    """Rows of all reports by benchmark, as plain dictionaries."""

    def __init__(self, directory):
        self.reports = {name: load(directory, name + ".json")
                        for name in ("memory", "gemm", "symmetric", "newton-schulz")}
        reports = [load(directory, path.name) for path in sorted(directory.glob("peer-*.json"))]
        reports = [report for report in reports if report]
        self.peers = {key: [entry for report in reports for entry in report[key]]
                      for key in ("rows", "skipped")}
        there = [report for report in self.reports.values() if report]
        self.simulated = any(report["environment"]["simulated"] for report in there)

    def rows(self, name):
        """Rows with a time."""
        report = self.reports[name]
        rows = report["rows"] if report and not self.simulated else []
        return [row for row in rows if (row.get("time") or {}).get("median_ms")]

    def peer_ms(self, benchmark, shape, peer=None):
        """The fastest time of a peer, or of all peers."""
        times = [row["median_ms"] for row in self.peers["rows"]
                 if row["benchmark"] == benchmark and row["shape"] == shape
                 and peer in (None, row["peer"])]
        return min(times, default=None)

    def best(self, name, shape):
        """The row of a shape that took least."""
        rows = [row for row in self.rows(name) if row["shape"] == shape]
        return min(rows, key=lambda row: row["time"]["median_ms"], default=None)

    def ms(self, name, shape):
        row = self.best(name, shape)
        return row["time"]["median_ms"] if row else None

    def why_not(self):
        return "SIMULATED" if self.simulated else "not in the results of this run"


def bar(text, needed, value, why, smaller=False):
    """One line of the verdict; `value` is None where something is missing."""
    if value is None:
        return {"bar": text, "needed": needed, "value": None, "verdict": "not measured", "why": why}
    passed = value <= needed if smaller else value >= needed
    return {"bar": text, "needed": needed, "value": value, "verdict": "pass" if passed else "miss"}


def ratio(numerator, denominator):
    return numerator / denominator if numerator and denominator else None


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def gemm_bars(measured):
    """Large ones against cuBLAS, all others against their own bound of tiles and waves."""
    for name, listed in ("gemm", shapes.GEMM), ("symmetric", shapes.SYMMETRIC):
        for shape in listed:
            count, n = shapes.product(shape)[:2]
            mine, why = measured.best(name, shape), measured.why_not()
            over_cublas = ratio(measured.peer_ms("gemm", shape), measured.ms(name, shape))
            if name == "gemm" and shape in ("4096x4096x4096", "8192x8192x8192"):
                yield bar(f"product {shape} over cuBLAS", 0.95, over_cublas, why)
            elif name == "symmetric" and (n >= 8192 or (count >= 8 and n >= 2048)):
                yield bar(f"symmetric {shape} over cuBLAS's full product", 1.75, over_cublas, why)
            else:
                percent = mine and mine["percent_of_limit"]
                yield bar(f"{name} {shape} over its wave-quantized bound", 0.90,
                          percent and percent / 100, why)


def newton_schulz_bars(measured):
    why = measured.why_not()
    for shape in shapes.NEWTON_SCHULZ:
        count, rows, columns = shapes.batch(shape)
        small, large = min(rows, columns), max(rows, columns)
        mine = measured.best("newton-schulz", shape)
        if count > 1 and small >= 4096:
            yield bar(f"Newton-Schulz {shape}: useful FLOP/s over the measured ceiling", 0.70,
                      mine and mine["percent_of_ceiling"] and mine["percent_of_ceiling"] / 100, why)
        compiled = measured.peer_ms("newton-schulz", shape, "torch.compile standard")
        needed = 1.4 if small == large else 2.0 if large >= 3 * small else None
        if needed:
            value = ratio(compiled, measured.ms("newton-schulz", shape))
            yield bar(f"Newton-Schulz {shape} over torch.compile'd NS5", needed, value, why)
        if shape in ("24x768x3072", "64x1024x2816"):
            # Beside the iterations there are the norm and the cast.
            value = mine and mine["launches"] and (mine["launches"] - 2) / mine["steps"]
            yield bar(f"Newton-Schulz {shape}: launches per iteration", 3, value, why, smaller=True)
    yield bar(f"Newton-Schulz {LARGEST} over its limit of {LARGEST_LIMIT_MS} ms", 1.4,
              ratio(measured.ms("newton-schulz", LARGEST), LARGEST_LIMIT_MS), why, smaller=True)
    pairs = [ratio(measured.peer_ms("newton-schulz", shape), measured.ms("newton-schulz", shape))
             for shape in shapes.NEWTON_SCHULZ]
    pairs = [pair for pair in pairs if pair]
    yield bar(f"Newton-Schulz over the best peer that ran, geometric mean of {len(pairs)} shapes",
              1.1, geometric_mean(pairs), why)


def tests_bar(directory):
    tests = load(directory, "tests.json")
    if not tests:
        return bar("tests on the device that failed", 0, None, "no tests ran", smaller=True)
    failed = sum(test["exit"] != 0 for test in tests)
    return bar(f"tests on the device that failed, of {len(tests)} programs", 0, failed, "", True)


def collectives_bars(directory, simulated):
    """Ranks that share the GPU: every element of every operation is right."""
    for ranks in (1, 2, 4):
        report = load(directory, f"collectives-{ranks}.json")
        transport = report["transport"] if report else "the vendor's library"
        text = f"collectives over {transport}, {ranks} ranks on one GPU: wrong elements"
        wrong, why = None, "SIMULATED" if simulated else f"see collectives-{ranks}.log"
        if report and report["complete"] and not simulated:
            wrong = sum(row["check"]["wrong"] for row in report["rows"] if row.get("check"))
        yield bar(text, 0, wrong, why, smaller=True)


def main():
    directory = pathlib.Path(sys.argv[1])
    measured = Measured(directory)
    bars = [tests_bar(directory), *collectives_bars(directory, measured.simulated),
            *gemm_bars(measured), *newton_schulz_bars(measured)]
    environment = load(directory, "environment.json") or {}
    skipped = measured.peers["skipped"]
    summary = {"environment": environment, "simulated": measured.simulated, "bars": bars,
               "peers_skipped": skipped}
    (directory / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")

    print("SIMULATED: no figure here is a measurement" if measured.simulated else
          environment.get("gpu", "device unknown"))
    for entry in bars:
        value = "–" if entry["value"] is None else f"{entry['value']:.3g}"
        why = f"  ({entry['why']})" if entry.get("why") and entry["value"] is None else ""
        print(f"{entry['verdict']:>12}  {value:>7} of {entry['needed']:<4}  {entry['bar']}{why}")
    for entry in skipped:
        print(f"{'peer skipped':>12}  {entry['peer']} {entry.get('shape', '')}: {entry['why']}")


if __name__ == "__main__":
    main()
