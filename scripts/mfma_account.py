#!/usr/bin/env python3
"""Counts what the main loops of AMD kernels cost, from their disassembly.

    scripts/mfma_account.py [--check] [--json] gemm.gfx942.hsaco …

For each kernel with matrix instructions it finds the steady-state loop and prints cycles of the
matrix unit against everything else that is issued, bytes through LDS and from memory against the
chip's rates, and the bound on the use of the matrix unit that follows. It is a count, not a
measurement: latencies, bank conflicts and clocks are not in it.

--check fails (exit code 1) with the kernel's name on register spills, scratch memory, more LDS than
a work group can have, a gemm_* kernel without v_mfma, or flat memory instructions in its loop.

The steady-state loop is the shortest cycle of the control-flow graph through all blocks that hold
matrix instructions. What the figures mean is explained in kernels/gemm/cdna.md.
"""

import argparse
import heapq
import json
import re
import shutil
import subprocess
import sys

# Cycles that an instruction holds its SIMD's matrix unit: passes of four cycles (CDNA3 ISA, "Matrix
# Arithmetic Instructions"; LLVM's scheduling model for the same figures: llvm-mca, RThroughput).
PASSES = {
    "gfx90a": {"16x16x16": 8, "32x32x8": 16},
    "gfx942": {"16x16x16": 4, "32x32x8": 8},
    "gfx950": {"16x16x16": 4, "32x32x8": 8, "16x16x32": 4, "32x32x16": 8},
}
ISSUE_CYCLES = 4  # a SIMD's turn to issue comes every four cycles
SIMDS = 4
LANES = 64
# Bytes a cycle and compute unit: LDS reads, LDS writes, first-level cache; LDS of a work group.
CHIPS = {
    "gfx90a": {"lds_read": 128, "lds_write": 128, "l1": 64, "lds": 65536},
    "gfx942": {"lds_read": 128, "lds_write": 128, "l1": 64, "lds": 65536},
    "gfx950": {"lds_read": 256, "lds_write": 128, "l1": 64, "lds": 163840},
}
# Vector registers of a SIMD's lane, for all its waves.
REGISTERS = 512
# Dynamic LDS of the product's kernels by class and chip, as in gemm.hip; code objects do not say.
DYNAMIC_LDS = {
    "gfx90a": {"256": 65536, "128": 32768},
    "gfx942": {"256": 65536, "128": 32768},
    "gfx950": {"256": 163840, "128": 81920},
}
WIDTH = {
    "b32": 4, "b64": 8, "b96": 12, "b128": 16,
    "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16,
}
INSTRUCTION = re.compile(
    r"^\t(\S+)\s*(.*?)\s*// ([0-9A-F]{12}):.*?(?:<(\S+?)(?:\+0x([0-9a-f]+))?>)?$")
LABEL = re.compile(r"^([0-9a-f]{16}) <(\S+)>:$")


def tool(name):
    for candidate in (f"{name}-22", name):
        if shutil.which(candidate):
            return candidate
    sys.exit(f"{name}-22 is not on the PATH; scripts/toolchain.sh installs it")


def run(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def metadata(path):
    """(architecture, {kernel: {key: value}}) from the code object's notes."""
    kernels, current, arch = {}, {}, None
    for line in run(tool("llvm-readelf"), "--notes", path).splitlines():
        if line.startswith("  - ."):
            current = {}
        found = re.match(r"^  [ -] \.(\w+):\s+(\S+)$", line)
        if found:
            current[found[1]] = found[2]
            if found[1] == "name":
                kernels[found[2]] = current
        target = re.match(r"^amdhsa\.target:\s+\S*?(gfx\w+)", line)
        if target:
            arch = target[1]
    return arch, kernels


def disassembly(path):
    """{kernel: [(address, mnemonic, operands, target address or None)]}"""
    functions, starts, current = {}, {}, None
    for line in run(tool("llvm-objdump"), "-d", path).splitlines():
        label = LABEL.match(line)
        if label:
            current = functions.setdefault(label[2], [])
            starts[label[2]] = int(label[1], 16)
            continue
        found = INSTRUCTION.match(line)
        if found and current is not None:
            target = None
            if found[1].startswith(("s_branch", "s_cbranch")) and found[4]:
                target = starts.get(found[4], 0) + int(found[5] or "0", 16)
            current.append((int(found[3], 16), found[1], found[2], target))
    return functions


def blocks_of(code):
    """Basic blocks as lists of instructions, with their successors by index."""
    leaders = {code[0][0]} | {target for *_, target in code if target is not None}
    for (_, name, *_), following in zip(code, code[1:]):
        if name.startswith(("s_branch", "s_cbranch", "s_endpgm", "s_setpc")):
            leaders.add(following[0])
    blocks = []
    for instruction in code:
        if instruction[0] in leaders:
            blocks.append([])
        blocks[-1].append(instruction)
    index = {block[0][0]: i for i, block in enumerate(blocks)}
    successors = []
    for i, block in enumerate(blocks):
        _, name, _, target = block[-1]
        after = [index[target]] if target in index else []
        if not name.startswith(("s_branch", "s_endpgm", "s_setpc")) and i + 1 < len(blocks):
            after.append(i + 1)
        successors.append(after)
    return blocks, successors


def shortest(blocks, successors, start, goals):
    """The blocks after `start` on the shortest way to one of `goals`, that one included."""
    queue, seen = [(0, start, [])], set()
    while queue:
        cost, at, way = heapq.heappop(queue)
        if way and at in goals:
            return way
        if at in seen and way:
            continue
        seen.add(at)
        for next_block in successors[at]:
            heapq.heappush(queue, (cost + len(blocks[next_block]), next_block, way + [next_block]))
    return None


def steady_loop(code):
    """The instructions of the steady-state loop, in the order of execution."""
    blocks, successors = blocks_of(code)
    busy = {i for i, block in enumerate(blocks) if any(c[1].startswith("v_mfma") for c in block)}
    if not busy:
        return None
    start = at = min(busy)
    left, way = busy - {start}, []
    while left:
        part = shortest(blocks, successors, at, left)
        if part is None:
            return None
        way += part
        at = part[-1]
        left.discard(at)
    back = shortest(blocks, successors, at, {start})
    return None if back is None else [c for i in [start, *way, *back][:-1] for c in blocks[i]]


def kind(name):
    if name.startswith("v_mfma"):
        return "mfma"
    if name.startswith("ds_"):
        return "lds"
    if name.startswith(("global_", "buffer_", "flat_")):
        return "memory"
    if name.startswith("v_"):
        return "valu"
    if name.startswith(("s_waitcnt", "s_barrier", "s_setprio", "s_nop", "s_sleep")):
        return "control"
    return "scalar"


def bytes_of(name):
    return LANES * next((WIDTH[part] for part in reversed(name.split("_")) if part in WIDTH), 4)


def account(name, code, facts, arch):
    loop = steady_loop(code)
    if loop is None:
        return None
    chip = CHIPS[arch]
    count = dict.fromkeys(("mfma", "valu", "lds", "memory", "scalar", "control"), 0)
    matrix, flop, lds_read, lds_write, memory = 0, 0, 0, 0, 0
    for _, mnemonic, _, _ in loop:
        which = kind(mnemonic)
        count[which] += 1
        if which == "mfma":
            shape = re.search(r"\d+x\d+x\d+", mnemonic)[0]
            matrix += PASSES[arch][shape] * 4
            m, n, k = map(int, shape.split("x"))
            flop += 2 * m * n * k
        elif which == "lds":
            if "write" in mnemonic:
                lds_write += bytes_of(mnemonic)
            elif "read" in mnemonic:
                lds_read += bytes_of(mnemonic)
        elif which == "memory":
            memory += bytes_of(mnemonic)
            if "lds" in mnemonic:
                lds_write += bytes_of(mnemonic)
    threads = int(facts["max_flat_workgroup_size"])
    registers = int(facts["vgpr_count"])
    dynamic = DYNAMIC_LDS[arch].get(name.rsplit("_", 1)[-1], int(facts["group_segment_fixed_size"]))
    groups_by_lds = chip["lds"] // max(dynamic, 1)
    waves_by_registers = REGISTERS // (-(-registers // 8) * 8)
    groups = max(1, min(groups_by_lds, waves_by_registers * SIMDS * LANES // threads))
    issue = sum(count.values()) * ISSUE_CYCLES
    beside = beside_cycles(loop, chip)

    def cycles(waves):
        """Of one turn of the loop in `waves` waves of a compute unit, by what they share."""
        return {
            "matrix": matrix * waves / SIMDS,
            "vector issue": (count["mfma"] + count["valu"]) * ISSUE_CYCLES * waves / SIMDS,
            "lds": (lds_read / chip["lds_read"] + lds_write / chip["lds_write"]) * waves,
            "memory": memory / chip["l1"] * waves,
            "issue of a wave": issue,
        }

    waves = groups * threads // LANES
    shared, alone = cycles(waves), cycles(threads // LANES)
    return {
        "kernel": name, "arch": arch, "registers": registers, "waves_per_simd": waves / SIMDS,
        "instructions": count, "flop_per_wave": flop, "matrix_cycles_per_wave": matrix,
        "other_issue_cycles_per_wave": issue - count["mfma"] * ISSUE_CYCLES,
        "beside_cycles_per_wave": beside, "barriers": sum(c[1] == "s_barrier" for c in loop),
        "lds_read_bytes": lds_read * waves, "lds_write_bytes": lds_write * waves,
        "memory_bytes": memory * waves, "cycles_per_compute_unit": shared,
        "bound": shared["matrix"] / max(shared.values()),
        "bound_of_one_block": alone["matrix"] / max(alone.values()),
        "bound_without_overlap": min(1.0, waves / SIMDS * matrix / (matrix + beside)),
    }


def beside_cycles(loop, chip):
    """What a wave spends beside its products if it overlaps nothing with them: issue, or the LDS
    and memory traffic of the four waves (one a SIMD) that do the same at the same time."""
    total = 0.0
    for _, mnemonic, _, _ in loop:
        traffic, cost = bytes_of(mnemonic) * SIMDS, ISSUE_CYCLES
        if kind(mnemonic) == "lds":
            cost = max(cost, traffic / chip["lds_write" if "write" in mnemonic else "lds_read"])
        elif kind(mnemonic) == "memory":
            cost = max(cost, traffic / chip["l1"])
        total += 0 if kind(mnemonic) == "mfma" else cost
    return total


def findings(name, facts, code, arch):
    found = []
    for key in ("vgpr_spill_count", "sgpr_spill_count", "private_segment_fixed_size"):
        if int(facts.get(key, 0)) != 0:
            found.append(f"{key} is {facts[key]}")
    lds = int(facts["group_segment_fixed_size"])
    if name.startswith("gemm_"):
        lds = max(lds, DYNAMIC_LDS[arch][name.rsplit("_", 1)[-1]])
        if not any(c[1].startswith("v_mfma") for c in code):
            found.append("no v_mfma")
        elif any(c[1].startswith("flat_") for c in steady_loop(code) or ()):
            found.append("flat memory instructions in the main loop")
    if lds > CHIPS[arch]["lds"]:
        found.append(f"{lds} bytes of LDS, the limit is {CHIPS[arch]['lds']}")
    return found


COLUMNS = ("kernel", "registers", "waves / SIMD", "mfma", "VALU", "LDS", "memory", "scalar",
           "control",
           "matrix cycles", "other issue", "beside", "CU: matrix", "CU: vector issue", "CU: LDS",
           "CU: memory", "bound", "one block", "no overlap")


def table(accounts):
    yield f"| {' | '.join(COLUMNS)} |"
    yield "|---|" + "--:|" * (len(COLUMNS) - 1)
    for a in accounts:
        counts, cycles = a["instructions"], a["cycles_per_compute_unit"]
        cells = [a["kernel"], a["registers"], f"{a['waves_per_simd']:g}"]
        cells += [counts[which] for which in ("mfma", "valu", "lds", "memory", "scalar", "control")]
        cells += [a["matrix_cycles_per_wave"], a["other_issue_cycles_per_wave"]]
        cells += [f"{a['beside_cycles_per_wave']:.0f}"]
        cells += [f"{cycles[what]:.0f}" for what in ("matrix", "vector issue", "lds", "memory")]
        bounds = (a["bound"], a["bound_of_one_block"], a["bound_without_overlap"])
        cells += [f"{100 * bound:.0f} %" for bound in bounds]
        yield f"| {' | '.join(map(str, cells))} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="fail on what is wrong with a kernel")
    parser.add_argument("--json", action="store_true", help="print accounts as JSON")
    parser.add_argument("objects", nargs="+")
    options = parser.parse_args()
    failed, everything = False, []
    for path in options.objects:
        arch, kernels = metadata(path)
        if arch not in CHIPS:
            sys.exit(f"{path}: no account for the architecture {arch}")
        functions = disassembly(path)
        accounts = []
        for name, facts in kernels.items():
            for finding in findings(name, facts, functions[name], arch):
                failed = True
                print(f"{path}: {name}: {finding}", file=sys.stderr)
            accounts.append(account(name, functions[name], facts, arch))
        accounts = [a for a in accounts if a]
        everything += accounts
        if accounts and not options.json:
            print(f"{arch}, one turn of the steady-state loop\n")
            print("\n".join(table(accounts)) + "\n")
    if options.json:
        json.dump(everything, sys.stdout, indent=2)
        print()
    return 1 if options.check and failed else 0


if __name__ == "__main__":
    sys.exit(main())
