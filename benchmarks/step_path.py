"""What a step of the kernels that keep the weights on the chip costs the warp on which all others wait, read off their
machine code: instructions, cycles until the last one is issued, the share of each part, and the bytes from the first
to the last instruction of a step by address: at most so much the instruction cache has to hold of it.

The path is that of a warp that does cells, the first of the first block, from one step to the next, found by walking
the code with the launch's own parameters (sass_walk.py): bfloat16, one group, one direction; of packed rows every step
has all sequences.
A step is that of all sequences of the group, of which 8 at a time are multiplied. Of the step path it is the first warp
of the cell's kernel, from start to end, without the product and the launches. Whatever it waits for (other warps,
other blocks) is there when it first asks, so an exchange costs nothing but its instructions. Where lanes part, both
ways count.

The cycles are those of a model (sass_clock.py). A wait is counted to the part of the instruction that waits: to the
cells, where the inputs have not come from memory.
"""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from sass import INSTRUCTION_BYTES, Instruction, constant_sizes, disassemble, read_listing
from sass_clock import Clock
from sass_walk import Lost, Stride, Walk
from sass_warp import Launch, Warp

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "compile" / "path.csv"
ALLOWED_GROWTH = 0.03
ARCHITECTURE = "sm_90a"


class Case(NamedTuple):
    """What is launched: the first columns of the table, which name a row."""

    kernel: str
    hidden_size: int
    batch: int  # sequences of the group
    rows: str  # padded or packed
    direction: str  # of the pass: forward or backward
    mode: str

    @property
    def source(self) -> str:
        """Of SOURCES the one that has the kernel."""
        return f"step_{self.direction}" if self.kernel == "step" else self.direction


COLUMNS = ("kernel", "hidden_size", "batch", "rows", "pass", "mode", "instructions", "cycles", "loop_bytes", "nvcc")
KEY = len(Case._fields)
TRAINING = (("forward", "training"), ("backward", "training"))
ALL_WAYS = (("forward", "training"), ("forward", "inference"), ("backward", "training"))
CASES: tuple[Case, ...] = tuple(
    Case(kernel, hidden_size, batch, rows, direction, mode)
    for ways, batch, rows, sizes in (
        (ALL_WAYS, 8, "padded", (("solo", 128), ("cluster", 256), ("cluster", 512), ("grid", 1024))),
        (TRAINING, 16, "padded", (("solo", 128), ("cluster", 256), ("cluster", 512), ("grid", 1024))),
        (TRAINING, 32, "padded", (("cluster", 256),)),
        (TRAINING, 8, "packed", (("solo", 128), ("cluster", 256), ("grid", 1024))),
        (TRAINING, 8, "padded", (("solo", 127), ("cluster", 255), ("grid", 1023), ("step", 1024))),
    )
    for kernel, hidden_size in sizes
    for direction, mode in ways
)

# A part of a step: the functions, named as in the sources, whose code and whose callees' code it is. The outermost that
# is named here decides; what belongs to none, such as the kernel's own lines, is the loop's.
PARTS = {
    "steps": ("look_ahead", "advance"),
    "inputs": ("fetch", "take"),
    "wait": ("wait", "finish", "block_sync", "copy_async_wait"),
    "gather": ("gather",),
    "product": ("multiply",),
    "splits": ("share", "give_away"),
    "cells": ("compute",),
    "send": ("keep", "send", "publish"),
    "outputs": ("store", "store_units"),
}
REST = "loop"
SOURCES = {
    "forward": "stationary_forward.cu",
    "backward": "stationary_backward.cu",
    "step_forward": "forward.cu",
    "step_backward": "backward.cu",
}
WARM_UP, MEASURED = 2, 2  # steps
KERNEL_SYMBOL = re.compile(r"^([0-9a-f]+) \w \S+?\d([a-z]+_(?:stationary|cell)_kernel\S+)$", re.MULTILINE)
MOST_INSTRUCTIONS = 200_000  # of a walk: a loop that never ends is noticed


@dataclass
class Cost:
    """Of one step, or of a part of it."""

    instructions: float = 0.0
    cycles: float = 0.0


@dataclass
class StepPath:
    """The path of one step, and of it each part."""

    case: Case
    loop_bytes: int  # from the first to the last instruction that steps issue, with what lies between
    step: Cost = field(default_factory=Cost)
    parts: dict[str, Cost] = field(default_factory=lambda: {part: Cost() for part in (*PARTS, REST)})


@dataclass
class Launched:
    """What the host launches for a case."""

    kernel: str  # its mangled name, from its own name on: what is before that depends on the compiler
    k_tiles: int  # 0 of a cell
    tiles: int  # of 8 sequences, of a group
    shape: dict[str, Any]
    parameters: bytes
    memory: tuple[tuple[int, bytes], ...]  # what the kernel finds in the GPU's: an address, and what is there

    @property
    def products(self) -> int:
        """Of a warp in a step, on the tensor cores: three for each of its tiles and each 8 sequences; of a cell 0."""
        return 3 * self.k_tiles * self.tiles


# ---------------------------------------------------------------------------------------------------------------------
# Tools
# ---------------------------------------------------------------------------------------------------------------------


def find_nvdisasm() -> str | None:
    """nvdisasm of the running Python's environment (the package nvidia-cuda-nvdisasm), else the one on PATH."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    return next((str(tool) for tool in sorted(packages.glob("*/bin/nvdisasm"))), None) or shutil.which("nvdisasm")


def find_compiler() -> str | None:
    """The C++ compiler for the host's part: CXX, else g++."""
    return os.environ.get("CXX") or shutil.which("g++")


def missing_tools() -> str:
    """What is not there of what a walk needs beside nvcc; "" when all is."""
    if find_nvdisasm() is None:
        return "there is no nvdisasm (package nvidia-cuda-nvdisasm; make nvdisasm)"
    return "" if find_compiler() else "there is no g++, which says what the kernels are launched with"


def launches(cases: Sequence[Case]) -> dict[Case, Launched]:
    """Builds csrc/cuda's launchers on the emulated GPU and asks them."""
    emulator, cuda = ROOT / "tests" / "emulator", ROOT / "csrc" / "cuda"
    sources = [
        *(cuda / name for name in (*SOURCES.values(), "device.cu", "decision.cpp", "plan.cpp")),
        *(emulator / name for name in ("emulator.cpp", "scheduler.cpp", "fibers.cpp")),
        ROOT / "benchmarks" / "cuda" / "step_launches.cpp",
    ]
    includes = [f"-I{folder}" for folder in (emulator / "include", ROOT / "tests", ROOT / "csrc")]
    tool = [*str(find_compiler()).split(), "-std=c++17", "-fopenmp"]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:

        def build(source: Path) -> str:
            made = f"{folder}/{source.name}.o"
            flags = ["-O0", "-w", "-DGRU_CUDA_EMULATOR", *includes, "-x", "c++", "-c", str(source), "-o", made]
            subprocess.run([*tool, *flags], check=True)
            return made

        program = f"{folder}/step_launches"
        subprocess.run([*tool, "-no-pie", *pool.map(build, sources), "-o", program], check=True)
        symbols = subprocess.run(["nm", program], stdout=subprocess.PIPE, text=True, check=True).stdout
        kernels = {int(match[1], 16): match[2] for match in KERNEL_SYMBOL.finditer(symbols)}
        return {case: launched(program, case, Path(folder) / "launch", kernels) for case in cases}


def launched(program: str, case: Case, file: Path, kernels: dict[int, str]) -> Launched:
    """What one run of the program launches; `kernels` has names by address."""
    file.unlink(missing_ok=True)
    environment = {**os.environ, "GRU_EMULATOR_LAUNCHES": str(file)}
    done = subprocess.run([program, *map(str, case)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    shape = json.loads(file.read_text())
    said = json.loads(done.stdout)
    words = ((address, b"".join(word.to_bytes(4, "little") for word in content)) for address, content in said["memory"])
    parameters = bytes.fromhex(shape["parameters"])
    return Launched(kernels[shape["kernel"]], said["k_tiles"], said["tiles"], shape, parameters, tuple(words))


# ---------------------------------------------------------------------------------------------------------------------
# Parts
# ---------------------------------------------------------------------------------------------------------------------


def closing(text: str, start: int) -> int:
    """Index behind the bracket that closes the one at `start`."""
    opening = text[start]
    closes, depth = {"(": ")", "{": "}"}[opening], 0
    for place in range(start, len(text)):
        depth += (text[place] == opening) - (text[place] == closes)
        if depth == 0:
            return place + 1
    return len(text)


@cache
def functions(file: str) -> tuple[tuple[int, int, str], ...]:
    """First line, last line and part of every function of PARTS that a file defines."""
    text = Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
    ranges = []
    for part, names in PARTS.items():
        for match in re.finditer(rf"\b(?:{'|'.join(names)})\(", text):
            body = re.compile(r"\s*(?:const\s*)?\{").match(text, closing(text, match.end() - 1))
            if body is None:
                continue  # a call
            end = closing(text, body.end() - 1)
            ranges.append((text.count("\n", 0, match.start()) + 1, text.count("\n", 0, end) + 1, part))
    return tuple(ranges)


def part_of(instruction: Instruction) -> str:
    """The part of a step that an instruction belongs to, by the functions it was inlined from."""
    for file, line in reversed(instruction.source):
        for first, last, part in functions(file):
            if first <= line <= last:
                return part
    return REST


# ---------------------------------------------------------------------------------------------------------------------
# The path
# ---------------------------------------------------------------------------------------------------------------------


class NotWalked(Exception):
    """A path that could not be found; says of which kernel and where."""


def not_endless(strides: Iterable[Stride]) -> Iterator[Stride]:
    """The strides of a walk, as long as they are not too many."""
    for number, stride in enumerate(strides):
        if number == MOST_INSTRUCTIONS:
            raise NotWalked(f"no end after {MOST_INSTRUCTIONS} instructions, at {stride.instruction.text}")
        yield stride


def steady_steps(strides: Iterable[Stride], products: int) -> tuple[list[Stride], list[Stride]]:
    """The walk from the second step's first product on: until steps are alike, then MEASURED of them.

    `products` are those of a step: its first one may be executed again for each tile of sequences.
    """
    walked: list[Stride] = []
    marks: list[int] = []
    multiplied = 0
    for stride in strides:
        if stride.instruction.opcode == "HMMA":
            if multiplied % products == 0:
                marks.append(len(walked))
                if len(marks) > WARM_UP + MEASURED:
                    break
            multiplied += 1
        walked.append(stride)
    else:
        raise NotWalked(f"the kernel ended after {multiplied} products, {products} a step")
    before, measured = walked[marks[1] : marks[WARM_UP]], walked[marks[WARM_UP] :]
    if stride.instruction is not measured[0].instruction:
        raise NotWalked(f"steps of {products} products are not alike: the next begins with {stride.instruction.text}")
    return before, measured


def span(strides: Iterable[Stride]) -> int:
    """Bytes of code from the first to the last instruction, by address, of those issued."""
    addresses = [stride.instruction.address for stride in strides]
    return max(addresses) - min(addresses) + INSTRUCTION_BYTES


def step_path(case: Case, launch: Launched, texts: dict[str, str], sizes: dict[str, int]) -> StepPath:
    """Walks the kernel that a case launches; `texts` and `sizes` are those of its cubin."""
    name = next(name for name in texts if name.endswith(launch.kernel))
    head = sizes[name] - len(launch.parameters)
    warp = Warp(
        Launch(
            constants=bytes(head) + launch.parameters,
            unset=head,
            block=tuple(launch.shape["block"]),
            grid=tuple(launch.shape["grid"]),
            cluster=launch.shape["cluster"],
            memory=launch.memory,
        )
    )
    try:
        strides = not_endless(Walk(read_listing(texts[name]), warp))
        before, measured = steady_steps(strides, launch.products) if launch.products else ([], list(strides))
        clock = Clock()
        for stride in before:
            clock.issue(stride)
        times = [clock.issue(stride) for stride in measured]
    except (Lost, NotWalked) as error:
        raise NotWalked(f"{' '.join(map(str, case))}: {error}") from error
    path, steps = StepPath(case, span(measured)), MEASURED if launch.products else 1
    for stride, cycles in zip(measured, times, strict=True):
        for cost in (path.step, path.parts[part_of(stride.instruction)]):
            cost.instructions += 1 / steps
            cost.cycles += cycles / steps
    return path


def step_paths(cubins: dict[str, Path], cases: Sequence[Case] = CASES) -> list[StepPath]:
    """The paths of the cases; `cubins` are by the names in SOURCES."""
    nvdisasm = find_nvdisasm()
    if nvdisasm is None:
        raise FileNotFoundError("nvdisasm")
    listings = {name: (disassemble(nvdisasm, cubin), constant_sizes(cubin)) for name, cubin in cubins.items()}
    launched_for = launches(cases)
    return [step_path(case, launched_for[case], *listings[case.source]) for case in cases]


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def as_rows(paths: Iterable[StepPath], release: str) -> list[tuple[str, ...]]:
    """The table's rows, in COLUMNS."""
    return [
        (*map(str, (*path.case, round(path.step.instructions), round(path.step.cycles), path.loop_bytes)), release)
        for path in paths
    ]


def print_parts(paths: Iterable[StepPath]) -> None:
    """A line for each case: the size of its loop, what a step costs, then each part, as instructions/cycles."""
    lines = [[*COLUMNS[:KEY], "loop_bytes", "step", *PARTS, REST]]
    for path in paths:
        costs = (path.step, *path.parts.values())
        cells = (f"{round(cost.instructions)}/{round(cost.cycles)}" if cost.instructions else "" for cost in costs)
        lines.append([*map(str, (*path.case, path.loop_bytes)), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(word.rjust(width) for word, width in zip(line, widths, strict=True)))
    print("A step is a warp's that does cells, as instructions/cycles, by a model (benchmarks/sass_clock.py).")


def read_table() -> list[tuple[str, ...]]:
    """The committed rows; none where the file is missing."""
    if not TABLE.is_file():
        return []
    with TABLE.open(newline="", encoding="utf-8") as file:
        return [tuple(line) for line in csv.reader(file)][1:]


def write_table(rows: Sequence[tuple[str, ...]]) -> None:
    """Replaces the committed table."""
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"written: {TABLE.relative_to(ROOT)}")


def comparable(committed: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]]) -> bool:
    """Whether the same nvcc made both, or none of them is committed."""
    return not committed or {row[-1] for row in committed} == {row[-1] for row in rows}


def grown(committed: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """A line for each number that has grown by more than is allowed."""
    before = {row[:KEY]: row for row in committed}
    lines = []
    for row in rows:
        for column in range(KEY, len(COLUMNS) - 1):
            old, new = int(before.get(row[:KEY], row)[column]), int(row[column])
            if new > old * (1 + ALLOWED_GROWTH):
                lines.append(f"the path of {' '.join(row[:KEY])} has grown: {COLUMNS[column]} {old} -> {new}")
    return lines


def complaints(committed: Sequence[tuple[str, ...]], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """What is wrong with the committed table or with the paths, by line; nothing where another nvcc made the table."""
    if not comparable(committed, rows):
        return []
    lines = grown(committed, rows)
    for row in sorted(set(rows) ^ set(committed)):
        lines.append(f"{'only committed' if row in committed else 'only found'}: {', '.join(row)}")
    if lines:
        lines.append(f"{TABLE.relative_to(ROOT)} is stale: run python benchmarks/compile_report.py --table")
    return lines
