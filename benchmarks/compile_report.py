"""Compiles every CUDA kernel with nvcc and tables what each one takes of the GPU: registers, memory, spills.

    python benchmarks/compile_report.py [--arch sm_80 --arch sm_90a] [--jobs 2] [--table | --check] [FILE.cu ...]
    python benchmarks/compile_report.py --path

--table writes benchmarks/results/compile/kernels.csv, the committed table of the kernels in csrc/cuda, and path.csv,
which says how long the path of a step through their machine code is (step_path.py); --check says where they are stale.
--path prints that path by its parts. Needs nvcc, for the path nvdisasm and g++ as well, neither torch nor a GPU.

Exits with 1 when a kernel does not compile, spills registers or uses a stack frame (memory of a thread that lives
outside its registers), when a committed table is stale, and when --table would commit a path that has grown by more
than 3 %, unless --allow-growth lets it. Exits with 0, saying so, where there is no nvcc; without nvdisasm or g++ the
path is left out, and it says that.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import step_path

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "benchmarks" / "results" / "compile" / "kernels.csv"
COLUMNS = ("kernel", "arch", "registers", "shared", "stack", "spills", "nvcc")
ALWAYS = ("sm_80", "sm_90a")
# The flags of setup.py that change the code; C++17 is the oldest standard that a supported torch asks for.
FLAGS = ("-O3", "-lineinfo", "--expt-relaxed-constexpr", "-std=c++17", "-Werror=all-warnings")
INCLUDES = (f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}")  # for the programs of tests/emulator and benchmarks/cuda

ENTRY = re.compile(r"Compiling entry function '(?P<kernel>[^']+)' for '(?P<arch>[^']+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


@dataclass
class Usage:
    """What ptxas says of one kernel on one architecture. Sizes in bytes, registers and memory for each thread."""

    kernel: str
    arch: str
    registers: int = 0
    shared: int = 0  # static shared memory of a block
    stack: int = 0
    spills: int = 0  # stores and loads together

    @property
    def fails(self) -> bool:
        return self.stack > 0 or self.spills > 0


def find_nvcc() -> str | None:
    """The nvcc of CUDA_HOME or CUDA_PATH, else the one on PATH, else that of /usr/local/cuda."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH")]
    named = [str(Path(home) / "bin" / "nvcc") for home in homes if home]
    for candidate in (*named, "nvcc", "/usr/local/cuda/bin/nvcc"):
        path = shutil.which(candidate)
        if path is not None:
            return path
    return None


def newest_architecture(nvcc: str) -> str:
    """The newest architecture nvcc can compile for, such as sm_121."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
    return "sm_" + max(re.findall(r"compute_(\d+)", listed), key=int)


def read_usage(log: str) -> list[Usage]:
    """The kernels in the output of `ptxas -v`, in its order."""
    usages: list[Usage] = []
    for line in log.splitlines():
        if entry := ENTRY.search(line):
            usages.append(Usage(entry["kernel"], entry["arch"]))
        elif not usages:
            continue
        elif memory := MEMORY.search(line):
            stack, stores, loads = (int(number) for number in memory.groups())
            usages[-1].stack, usages[-1].spills = stack, stores + loads
        elif used := USED.search(line):
            usages[-1].registers = int(used[1])
            shared = SHARED.search(line)
            usages[-1].shared = int(shared[1]) if shared else 0
    return usages


def compile_one(nvcc: str, source: Path, arch: str, cubin: Path | None = None) -> tuple[str, list[Usage]]:
    """Compiles `source` for `arch`: what went wrong (empty when nothing did) and what its kernels use.

    With `cubin` the device's code alone, kept there.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            nvcc,
            *FLAGS,
            *INCLUDES,
            f"-arch={arch}",
            "-Xptxas",
            "-v",
            "-c" if cubin is None else "-cubin",
            str(source),
            "-o",
            f"{folder}/object.o" if cubin is None else str(cubin),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        return f"{source.name} does not compile for {arch}:\n{done.stdout}", []
    usages = read_usage(done.stdout)
    return ("" if usages else f"{source.name} for {arch}: no kernel in the output of ptxas\n{done.stdout}"), usages


def demangle(nvcc: str, names: list[str]) -> dict[str, str]:
    """Readable names without namespaces and parameter lists; names as they are where no demangler is found."""
    tool = shutil.which(str(Path(nvcc).parent / "cu++filt")) or shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return {name: name for name in names}
    done = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True)
    readable = {}
    for name, line in zip(names, done.stdout.splitlines(), strict=True):
        line = re.sub(r"\(anonymous namespace\)::|\b_GLOBAL__N_\w*::|<unnamed>::", "", line)
        line = re.sub(r"\bgru::(cuda::)?|^void |\(int\)", "", line)
        readable[name] = line.split("(")[0].replace(" ", "")
    return readable


def nvcc_release(nvcc: str) -> str:
    """Such as 13.0.88: another release may use other registers."""
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V(\d+\.\d+\.\d+)", said)
    return version[1] if version else "unknown"


def as_rows(usages: list[Usage], names: dict[str, str], release: str) -> list[tuple[str, ...]]:
    """The table's rows, in COLUMNS."""
    return [
        (names[u.kernel], u.arch, str(u.registers), str(u.shared), str(u.stack), str(u.spills), release) for u in usages
    ]


def print_rows(rows: list[tuple[str, ...]]) -> None:
    """Aligned, without the last column, which is the same in all."""
    lines = [line[:-1] for line in (COLUMNS, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        left = (line[column].ljust(widths[column]) for column in (0, 1))
        right = (line[column].rjust(widths[column]) for column in range(2, len(widths)))
        print("  ".join((*left, *right)).rstrip())


def write_table(rows: list[tuple[str, ...]]) -> None:
    """Replaces the committed table."""
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(f"written: {TABLE.relative_to(ROOT)}")


def table_is_stale(rows: list[tuple[str, ...]]) -> bool:
    """Whether the committed table says something else, which is compared only where the same nvcc made it."""
    with TABLE.open(newline="", encoding="utf-8") as file:
        committed = [tuple(line) for line in csv.reader(file)][1:]
    made_with = {line[-1] for line in committed}
    if made_with != {rows[0][-1]}:
        print(f"the committed table is not compared: nvcc {', '.join(made_with)} made it, this is {rows[0][-1]}")
        return False
    if committed == rows:
        print(f"{TABLE.relative_to(ROOT)} agrees")
        return False
    for line in sorted(set(rows) ^ set(committed)):
        print(f"{'only committed' if line in committed else 'only found'}: {', '.join(line)}")
    print(f"{TABLE.relative_to(ROOT)} is stale: run python benchmarks/compile_report.py --table")
    return True


def report(
    nvcc: str, results: list[tuple[str, list[Usage]]], architectures: list[str], arguments: argparse.Namespace
) -> int:
    """Prints what was compiled, writes or compares the table of registers, as was asked; the exit status."""
    errors = [error for error, _ in results if error]
    usages = [usage for _, of_source in results for usage in of_source]
    names = demangle(nvcc, sorted({usage.kernel for usage in usages}))
    usages.sort(key=lambda usage: (names[usage.kernel], architectures.index(usage.arch)))
    rows = as_rows(usages, names, nvcc_release(nvcc))
    if not arguments.path:
        print_rows(rows)
    for error in errors:
        print(error, file=sys.stderr)
    failing = [usage for usage in usages if usage.fails]
    for usage in failing:
        print(f"{names[usage.kernel]} on {usage.arch}: {usage.stack} bytes of stack, {usage.spills} of spills")
    print(f"{len(usages)} kernels compiled, {len(failing)} with a spill or a stack frame, {len(errors)} failures")
    if failing or errors:
        return 1
    if arguments.table:
        write_table(rows)
    return 1 if arguments.check and table_is_stale(rows) else 0


def check_paths(cubins: dict[str, Path], release: str, arguments: argparse.Namespace) -> int:
    """Prints, writes or compares the paths of a step, as was asked; the exit status."""
    if missing := step_path.missing_tools():
        print(f"the path of a step is not walked: {missing}")
        return 0
    try:
        paths = step_path.step_paths(cubins, step_path.CASES)
    except step_path.NotWalked as error:
        print(f"compile_report: {error}", file=sys.stderr)
        return 1
    step_path.print_parts(paths)
    rows = step_path.as_rows(paths, release)
    committed = step_path.read_table()
    if arguments.path:
        return 0
    if not step_path.comparable(committed, rows):
        print(f"path.csv is not compared: another nvcc than {release} made it")
    elif arguments.check:
        lines = step_path.complaints(committed, rows)
        print("\n".join(lines or ["benchmarks/results/compile/path.csv agrees"]))
        return 1 if lines else 0
    elif (grown := step_path.grown(committed, rows)) and not arguments.allow_growth:
        print("\n".join([*grown, "path.csv is not written: --allow-growth does"]))
        return 1
    if arguments.table:
        step_path.write_table(rows)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sources", nargs="*", type=Path, help="files to compile (default: csrc/cuda/*.cu)")
    parser.add_argument("--arch", action="append", help="an architecture, such as sm_90a; may be given more than once")
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--table", action="store_true", help="write the committed table")
    table.add_argument("--check", action="store_true", help="compare with the committed table")
    table.add_argument("--path", action="store_true", help="print what each part of a step costs, and no registers")
    parser.add_argument("--allow-growth", action="store_true", help="with --table: of a path by more than 3 %%")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="compilations at once")
    arguments = parser.parse_args()
    fixed = arguments.table or arguments.check or arguments.path
    if fixed and (arguments.sources or arguments.arch):
        parser.error("the committed tables are of every kernel and the usual architectures")

    nvcc = find_nvcc()
    if nvcc is None:
        print("compile_report: no nvcc found (CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda): nothing was compiled")
        return 0
    sources = arguments.sources or sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    if not sources:
        print("compile_report: no .cu file found", file=sys.stderr)
        return 1
    architectures = arguments.arch or list(dict.fromkeys((*ALWAYS, newest_architecture(nvcc))))
    work = [(source, arch) for source in sources for arch in architectures]
    with tempfile.TemporaryDirectory() as folder:
        cubin_of = {(source, arch): Path(folder) / f"{source.stem}-{arch}.cubin" for source, arch in work if fixed}
        walked = {
            name: (ROOT / "csrc" / "cuda" / file, step_path.ARCHITECTURE) for name, file in step_path.SOURCES.items()
        }
        cubins = {name: cubin_of[pair] for name, pair in walked.items() if fixed}
        if arguments.path:
            work = list(walked.values())
        with ThreadPoolExecutor(max_workers=max(1, arguments.jobs)) as pool:
            results = list(pool.map(lambda pair: compile_one(nvcc, pair[0], pair[1], cubin_of.get(pair)), work))
        status = report(nvcc, results, architectures, arguments)
        compiled = fixed and all(cubin.is_file() for cubin in cubins.values())
        if compiled and not (arguments.table and status):
            status = max(status, check_paths(cubins, nvcc_release(nvcc), arguments))
    return status


if __name__ == "__main__":
    sys.exit(main())
