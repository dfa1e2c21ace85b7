#!/usr/bin/env python3
"""Reads compiled kernels for what a compiler does not call an error, and a GPU would pay for.

    scripts/check_kernels.py [DIR]        DIR: the images of a build (default target/kernels)

Prints a line per kernel and fails, naming kernel and finding, on
  - registers that spill, or any other use of local memory;
  - more static shared memory than the chip has for a block;
  - a kernel gemm_* without the matrix instruction of its architecture;
  - a fused multiply-add in a kernel whose bits are to be the host's;
  - remarks of ptxas about wgmma that it serializes or register limits that it ignores;
  - an image whose code is for another architecture than its name says; no image at all.
Dynamic shared memory is not in an image: it belongs to the launch, whose table tests compare.
"""

import argparse
import collections
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Shared memory of a block at most, in bytes.
SHARED_MAX = {
    "sm_80": 163 * 1024, "sm_90a": 227 * 1024, "sm_100a": 227 * 1024,
    "gfx90a": 64 * 1024, "gfx942": 64 * 1024, "gfx950": 160 * 1024,
}
MATRIX = {
    "sm_80": "HMMA", "sm_90a": "HGMMA", "sm_100a": "HMMA", "ptx_80": "mma.sync",
    "gfx90a": "v_mfma", "gfx942": "v_mfma", "gfx950": "v_mfma",
}
# Of single and double precision; where a kernel divides, integers too, or takes roots, those are
# made of them.
FUSED = {"cuda": ("FFMA", "DFMA"), "hip": ("v_fma", "v_pk_fma")}
UNFUSED = re.compile(r"optimizer_(momentum|apply|adopt|publish|cast)|ordered_sum_b?f\d+")
CUDA_ARCHS = ("sm_80", "sm_90a", "sm_100a", "ptx_80")
# Of the remarks of ptxas those that cost speed: wgmma serialized, setmaxnreg ignored.
REMARK = re.compile(r"\(C75\d\d\)|setmaxnreg.*ignored|wgmma.*serializ")

Kernel = collections.namedtuple("Kernel", "image arch name registers shared spills matrix fused")


def tool(variable, program):
    """A program that the environment names, the script's installation, or PATH has."""
    if os.environ.get(variable):
        return os.environ[variable]
    env = pathlib.Path(os.environ.get("MUSTER_TOOLCHAIN", ROOT / "target/toolchain")) / "env"
    installed = env.read_text().splitlines() if env.exists() else []
    found = [line.partition("=")[2] for line in installed if line.startswith(variable + "=")]
    found = found or [shutil.which(program)]
    if not found[0]:
        sys.exit(f"no {program}: scripts/toolchain.sh installs it, or {variable} names it")
    return found[0]


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def count_by(text, header, *instructions):
    """How often each section that `header` begins mentions an instruction; the longest name of a
    section wins, as functions end where the next begins."""
    counts, name = collections.Counter(), None
    wanted = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, instructions)) + ")")
    for line in text.splitlines():
        match = header.search(line)
        if match:
            name = match.group(1)
            counts[name] += 0
        elif name and wanted.search(line):
            counts[name] += 1
    return counts


def cuda_kernels(path):
    """Kernels of a fatbin: machine code of each architecture, and PTX."""
    cuobjdump = tool("MUSTER_CUOBJDUMP", "cuobjdump")
    usage = output(cuobjdump, "-res-usage", str(path))
    function = re.compile(r"Function ?: ?(\S+)")
    kernels, arch = [], None
    lines = iter(usage.splitlines())
    for line in lines:
        if line.startswith("arch ="):
            arch = line.split()[-1]
        elif match := re.match(r"\s*Function (\S+):", line):
            values = dict(re.findall(r"([A-Z]+):(\d+)", next(lines)))
            local = int(values["STACK"]) + int(values["LOCAL"])
            name = match.group(1)
            kernels.append(Kernel(path.name, arch, name, int(values["REG"]),
                                  int(values["SHARED"]), f"{local} B" if local else "", 0, 0))
    counts, fused = {}, {}
    for arch in sorted({kernel.arch for kernel in kernels}):
        sass = output(cuobjdump, "-sass", "-arch", arch, str(path))
        counts[arch] = count_by(sass, function, MATRIX.get(arch, "HMMA"))
        fused[arch] = count_by(sass, function, *FUSED["cuda"])
    kernels = [kernel._replace(matrix=counts[kernel.arch][kernel.name],
                               fused=fused[kernel.arch][kernel.name]) for kernel in kernels]
    text, entry = output(cuobjdump, "-ptx", str(path)), re.compile(r"\.entry (\w+)")
    ptx, fused = count_by(text, entry, "mma.sync"), count_by(text, entry, "fma.rn")
    return kernels + [Kernel(path.name, "ptx_80", name, "", "", "", count, fused[name])
                      for name, count in ptx.items()]


def hip_kernels(path):
    """Kernels of a code object, by its notes and its disassembly."""
    notes = output(tool("MUSTER_LLVM_READELF", "llvm-readelf-22"), "--notes", str(path))
    target = re.search(r"amdhsa\.target:\s+\S*--(gfx\w+)", notes)
    arch = target.group(1) if target else "unknown"
    code = output(tool("MUSTER_LLVM_OBJDUMP", "llvm-objdump-22"), "-d", str(path))
    function = re.compile(r"^[0-9a-f]+ <(\w+)>:")
    counts, fused = count_by(code, function, "v_mfma"), count_by(code, function, *FUSED["hip"])
    kernels = []
    for entry in re.split(r"^  - ", notes, flags=re.MULTILINE)[1:]:
        # Not what the arguments say of themselves, which is indented further.
        text = dict(re.findall(r"^(?: {4})?\.(\w+):\s+(\S+)$", entry, flags=re.MULTILINE))
        if "name" not in text:
            continue
        value = {key: int(text.get(key, 0)) for key in (
            "vgpr_count", "agpr_count", "group_segment_fixed_size", "private_segment_fixed_size",
            "vgpr_spill_count", "sgpr_spill_count")}
        spills = [f"{value[key]} {unit}" for key, unit in (
            ("vgpr_spill_count", "VGPRs"), ("sgpr_spill_count", "SGPRs"),
            ("private_segment_fixed_size", "B")) if value[key]]
        # Of gfx90a and later `vgpr_count` counts both files.
        kernels.append(Kernel(path.name, arch, text["name"], value["vgpr_count"],
                              value["group_segment_fixed_size"], ", ".join(spills),
                              counts[text["name"]], fused[text["name"]]))
    return kernels


def findings(kernel):
    """What is wrong with a kernel, in words."""
    limit, instruction = SHARED_MAX.get(kernel.arch), MATRIX.get(kernel.arch)
    if kernel.spills:
        yield f"spills or uses local memory: {kernel.spills}"
    if limit and kernel.shared > limit:
        yield f"{kernel.shared} B of shared memory, a block of {kernel.arch} has {limit}"
    if kernel.name.startswith("gemm_") and not kernel.matrix:
        yield f"no {instruction or 'matrix'} instruction"
    if kernel.fused and UNFUSED.fullmatch(kernel.name):
        yield f"{kernel.fused} fused multiply-adds: its bits are not those of the host"


def check_image(path):
    """The kernels of an image and what is wrong: pairs of a kernel's name and a sentence."""
    kernels = cuda_kernels(path) if path.suffix == ".fatbin" else hip_kernels(path)
    wrong = [(kernel.arch + " " + kernel.name, text)
             for kernel in kernels for text in findings(kernel)]
    there = {kernel.arch for kernel in kernels}
    needed = set(CUDA_ARCHS) if path.suffix == ".fatbin" else {path.name.split(".")[-2]}
    if there != needed:
        wrong.append((path.name, f"has code for {', '.join(sorted(there)) or 'nothing'}, "
                                 f"not for {', '.join(sorted(needed))}"))
    log = path.with_name(path.name + ".log")
    remarks = log.read_text().splitlines() if log.exists() else []
    wrong += [(path.name, line.strip()) for line in remarks if REMARK.search(line)]
    return kernels, wrong


def table(kernels):
    head = Kernel("image", "target", "kernel", "registers", "shared", "spills", "matrix", "fused")
    rows = [head] + sorted(kernels, key=lambda kernel: (kernel.image, kernel.arch, kernel.name))
    columns = [[str(row[i]) for row in rows] for i in range(1, len(head))]
    widths = [max(map(len, column)) for column in columns]
    for row in zip(*columns):
        print("  ".join(text.ljust(width) for text, width in zip(row, widths)).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("dir", nargs="?", type=pathlib.Path, default=ROOT / "target/kernels")
    directory = parser.parse_args().dir
    images = sorted(directory.glob("*.fatbin")) + sorted(directory.glob("*.hsaco"))
    if not images:
        sys.exit(f"{directory} has no images: build with MUSTER_KERNELS=all")
    kernels, wrong = [], []
    for path in images:
        more_kernels, more_wrong = check_image(path)
        kernels += more_kernels
        wrong += more_wrong
    table(kernels)
    for name, text in wrong:
        print(f"{name}: {text}", file=sys.stderr)
    print(f"{len(kernels)} kernels in {len(images)} images, {len(wrong)} findings")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
