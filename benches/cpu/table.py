#!/usr/bin/env python3
"""One table per case of what run.sh measured: rates by round, medians, ratios to the best peer.

    python3 benches/cpu/table.py MEASURED

MEASURED has a line per measurement, four fields between tabs: case, `muster` or `peer`, what ran,
tokens per second. A peer of another type (its name ends in `bf16`) is shown, and is not the best.
"""

import statistics
import sys


def tables(lines):
    """Tables as Markdown, in the order in which cases and rows first came."""
    cases = {}
    for line in lines:
        case, side, name, rate = line.rstrip("\n").split("\t")
        cases.setdefault(case, {}).setdefault((side, name), []).append(float(rate))
    return "\n\n".join(table(case, rows) for case, rows in cases.items())


def table(case, rows):
    medians = {key: statistics.median(rates) for key, rates in rows.items()}
    peers = [key for key in rows if key[0] == "peer" and not key[1].endswith("bf16")]
    best = max(peers, key=medians.get, default=None)
    out = [f"{case}:", "", "| what | tok/s by round | median | over the best peer |"]
    out.append("|---|---|---|---|")
    for key, rates in rows.items():
        by_round = ", ".join(f"{rate:.1f}" for rate in rates)
        ratio = "" if best is None else f"{medians[key] / medians[best]:.2f}"
        mark = ", the best peer" if key == best else ""
        out.append(f"| {key[1]}{mark} | {by_round} | {medians[key]:.1f} | {ratio} |")
    return "\n".join(out)


if __name__ == "__main__":
    with open(sys.argv[1]) as measured:
        print(tables(measured))
