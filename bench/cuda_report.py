"""What the CUDA kernels take of a multiprocessor: the table of docs/gpu.md. Needs nvcc, no GPU.

    python -m bench.cuda_report [--arch sm_80 sm_90 sm_100 sm_120] [--sass cuobjdump]

Registers of a thread, bytes of stack and spills, and how many threads a multiprocessor of 65,536
registers then holds. With cuobjdump (of the CUDA toolkit, or of Triton) also the streaming loads
and stores by bytes, the bytes that a thread has under way before it uses any (for each place of the
code that loads vectors), and contracted multiply-adds, which must be none.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avops.kernels.many.cuda_code import mask
from avops.kernels.many.cuda_plan import KERNELS

SOURCE = Path(__file__).parent.parent / "csrc" / "combine.cu"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
REGISTERS, MOST_THREADS = 65536, 2048


@dataclass
class Usage:
    """One kernel on one architecture. loads and what follows: None: not disassembled."""

    registers: int
    stack: int
    spills: int
    loads: str | None = None
    stores: str | None = None
    ahead: list[int] | None = None
    fused: int | None = None


def compile_for(
    arch: str, directory: Path, kernels: Iterable[str] = KERNELS
) -> tuple[Path, dict[str, Usage]]:
    """The cubin, and what ptxas says of each of the kernels."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise SystemExit("no nvcc on PATH; it comes with the CUDA toolkit")
    cubin = directory / f"{arch}.cubin"
    command = [nvcc, "-cubin", f"-arch={arch}", "-std=c++17", "-O3", "--fmad=false"]
    command.append(f"-DAVOPS_KERNELS={mask(kernels)}")
    done = subprocess.run(
        [*command, "--resource-usage", "-o", str(cubin), str(SOURCE)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    usage = parse(done.stdout + done.stderr)
    return cubin, {name: usage[name] for name in kernels}


def parse(text: str) -> dict[str, Usage]:
    """Kernels by name, from ptxas' report."""
    found = {}
    for block in text.split("Compiling entry function '")[1:]:
        name = block.partition("'")[0].removeprefix("avops_")
        stack, stores, loads = (
            int(number)
            for number in re.findall(
                r"(\d+) bytes (?:stack frame|spill stores|spill loads)", block
            )[:3]
        )
        registers = re.search(r"Used (\d+) registers", block)
        assert registers is not None, f"ptxas says nothing of the registers of {name}"
        found[name] = Usage(int(registers[1]), stack, stores + loads)
    return found


def disassemble(cubin: Path, cuobjdump: str, usage: dict[str, Usage]) -> None:
    """Add what the machine code tells."""
    done = subprocess.run(
        [cuobjdump, "-sass", str(cubin)], check=True, capture_output=True, text=True
    )
    for block in done.stdout.split("Function : avops_")[1:]:
        kernel = usage.get(block.split(None, 1)[0])
        if kernel is None:
            continue
        kernel.loads = widths(block, "LDG")
        kernel.stores = widths(block, "STG")
        kernel.ahead = sorted(together(block))
        kernel.fused = len(re.findall(r"\bFFMA\b", block))


def disassembler() -> str | None:
    """Where cuobjdump is: on PATH, or in Triton's package."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("triton")
    if found is None and spec is not None and spec.origin is not None:
        there = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(there) if there.exists() else None
    return found


def together(text: str) -> list[int]:
    """Bytes of the streaming loads of vectors that come before the first use of any of them."""
    found: list[int] = []
    waiting: set[str] = set()
    total = 0
    for line in re.findall(r"/\*[0-9a-f]{4,6}\*/\s+(?:@!?U?P\w+ )?([^;]*);", text):
        name, _, operands = line.partition(" ")
        first, _, others = operands.partition(",")
        read = operands if name.startswith(("ST", "RED", "ATOM")) else others
        if not waiting.isdisjoint(re.findall(r"\bR\d+", read)):
            found.append(total)
            waiting, total = set(), 0
        load = re.match(r"LDG\.E\.EF\.(64|128)", name)
        if load:
            place, nbytes = int(first.strip().lstrip("R")), int(load[1]) // 8
            waiting |= {f"R{place + word}" for word in range(nbytes // 4)}
            total += nbytes
    return found


def widths(text: str, instruction: str) -> str:
    """Streaming accesses by bytes: `16: 31, 4: 2`."""
    found = re.findall(rf"\b{instruction}\.E\.EF\b((?:\.\w+)*)", text)
    sizes = [
        16 if ".128" in tail else 8 if ".64" in tail else 2 if "U16" in tail else 4
        for tail in found
    ]
    return ", ".join(f"{size}: {sizes.count(size)}" for size in sorted(set(sizes), reverse=True))


def resident(registers: int, threads: int) -> int:
    """Threads on one multiprocessor; registers are given to warps in steps of 8 a thread."""
    blocks = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(blocks * threads, MOST_THREADS)


def print_markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for row in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(row)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=ARCHITECTURES)
    parser.add_argument("--sass", default=disassembler(), metavar="CUOBJDUMP")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for arch in args.arch:
            cubin, usage = compile_for(arch, Path(directory))
            if args.sass:
                disassemble(cubin, args.sass, usage)
            for name, threads in KERNELS.items():
                one = usage[name]
                cells = (one.registers, one.stack, one.spills, resident(one.registers, threads))
                ahead = one.ahead and ", ".join(map(str, one.ahead))
                found = (one.loads, one.stores, ahead or None, one.fused)
                rows.append(
                    [arch, name, *(str(cell) for cell in cells)]
                    + ["-" if cell is None else str(cell) for cell in found]
                )
    columns = ("GPU", "kernel", "registers", "stack", "spilled", "threads per SM")
    print_markdown((*columns, "loads by bytes", "stores by bytes", "under way", "FFMA"), rows)


if __name__ == "__main__":
    main()
