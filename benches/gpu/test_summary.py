#!/usr/bin/env python3
"""Verdicts follow from figures: on results made up so that each bar's outcome is known."""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).resolve().parent


def report(rows, simulated=False):
    return {"environment": {"simulated": simulated}, "rows": rows}


def product(shape, ms):
    return {"shape": shape, "dtype": "bf16", "time": {"median_ms": ms}, "percent_of_limit": 80.0}


def orthogonalized(shape, ms, launches=17):
    return {"shape": shape, "time": {"median_ms": ms}, "steps": 5, "launches": launches,
            "percent_of_ceiling": 71.0}


def peer(name, benchmark, shape, ms):
    return {"peer": name, "benchmark": benchmark, "shape": shape, "median_ms": ms}


def collectives(*wrong, complete=True):
    rows = [{"key": {"op": "all_reduce"}, "check": {"wrong": count}} for count in wrong]
    return {"transport": "nccl", "complete": complete, "rows": rows}


RESULTS = {
    "collectives-1": collectives(0, 0),
    "collectives-2": collectives(0, 3),
    "collectives-4": collectives(0, complete=False),
    "gemm": report([product("4096x4096x4096", 1.0), product("8192x8192x8192", 1.0),
                    product("16x2048x2048x2048", 1.0)]),
    "symmetric": report([product("8x2048x2048x2048", 1.0)]),
    "newton-schulz": report([
        orthogonalized("24x768x3072", 9.0), orthogonalized("24x768x3072", 1.0),
        orthogonalized("4x4096x4096", 1.0, launches=30), orthogonalized("216x2048x7168", 150.0)]),
    "peer-products": {"skipped": [], "rows": [
        peer("torch.matmul", "gemm", "4096x4096x4096", 0.96),
        peer("torch.matmul", "gemm", "8192x8192x8192", 0.94),
        peer("torch.matmul", "gemm", "8x2048x2048x2048", 1.8)]},
    "peer-standard": {"skipped": [], "rows": [
        peer("torch.compile standard", "newton-schulz", "24x768x3072", 1.9),
        peer("quack", "newton-schulz", "24x768x3072", 1.3),
        peer("torch.compile standard", "newton-schulz", "4x4096x4096", 1.5)]},
}


class Summary(unittest.TestCase):
    def summary(self, results):
        with tempfile.TemporaryDirectory() as directory:
            for name, value in results.items():
                (pathlib.Path(directory) / f"{name}.json").write_text(json.dumps(value))
            subprocess.run([sys.executable, HERE / "summary.py", directory], check=True,
                           capture_output=True, cwd=HERE)
            return json.loads((pathlib.Path(directory) / "summary.json").read_text())

    def test_each_bar_is_judged(self):
        bars = {entry["bar"]: entry for entry in self.summary(RESULTS)["bars"]}

        def expect(text, verdict, value=None):
            entry = next(bars[name] for name in bars if text in name)
            self.assertEqual(entry["verdict"], verdict, entry)
            if value:
                self.assertAlmostEqual(entry["value"], value)

        expect("collectives over nccl, 1 ranks", "pass")
        expect("collectives over nccl, 2 ranks", "miss", 3)
        expect("collectives over nccl, 4 ranks", "not measured")
        expect("product 4096x4096x4096", "pass", 0.96)
        expect("product 8192x8192x8192", "miss", 0.94)
        expect("gemm 16x2048x2048x2048 over its wave", "miss", 0.8)
        expect("symmetric 8x2048x2048x2048", "pass", 1.8)
        expect("symmetric 8192x8192x8192", "not measured")
        expect("24x768x3072 over torch.compile", "miss", 1.9)
        expect("24x768x3072: launches", "pass", 3.0)
        expect("4x4096x4096 over torch.compile", "pass", 1.5)
        expect("4x4096x4096: useful", "pass", 0.71)
        expect("216x2048x7168 over its limit", "miss", 150 / 95.9)
        expect("geometric mean of 2 shapes", "pass", (1.3 * 1.5) ** 0.5)

    def test_a_simulation_measures_nothing(self):
        simulated = {**RESULTS, "gemm": report(RESULTS["gemm"]["rows"], simulated=True)}
        verdicts = {entry["verdict"] for entry in self.summary(simulated)["bars"]}
        self.assertEqual(verdicts, {"not measured"})


if __name__ == "__main__":
    unittest.main()
