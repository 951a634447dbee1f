"""Memory of one training step: torch.nn.GRU against gru_ext.GRU, each step in a process of its own, on one thread.

    python benchmarks/memory.py                                          # the shapes of compare.py
    python benchmarks/memory.py --shapes 128,256,128,128 --dtypes float32

peak: the most that is resident during the first forward and backward, to the input and every parameter, beyond what is
resident before it, when everything is imported, module, input and gradient are made, and a tiny module of the same kind
has made a step. It holds the gradients, what autograd keeps, and whatever is needed for a while; for gru_ext also the
scratch memory that its thread keeps for the next call. Peaks below 1 MiB are not compared.

kept: what autograd keeps from forward to backward: the bytes of the storages that it saves, each once, without those of
the module's parameters and of the input, which are there anyway.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import gru_ext
from gru_ext.measure.cells import DTYPES, SHAPES, Shape, parse_shape
from gru_ext.measure.machine import facts
from gru_ext.measure.measurements import Workload, geometric_mean, write_csv

MIB = 2**20
SMALLEST_PEAK_MIB = 1.0  # one below it says more about what the heap had left over than about the step
MODULES = {"nn.GRU": nn.GRU, "gru_ext": gru_ext.GRU}
TINY: Shape = (1, 2, 2, 2)
CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
PEAK_RESET = "5"  # what Linux wants written to clear_refs for the peak to be counted anew


@dataclass(frozen=True)
class MemoryMeasurement(Workload):
    """torch.nn.GRU and gru_ext.GRU in one training step, in MiB; see the module's text."""

    torch_peak_mib: float
    gru_ext_peak_mib: float
    torch_kept_mib: float
    gru_ext_kept_mib: float
    recompute: int  # 1 when gru_ext.GRU was made with recompute=True
    exact: int  # 0 when the system could not count the peak anew for the step
    date: str
    machine: str
    system: str
    python: str
    torch: str
    gru_ext: str
    commit: str


def resident(field: str) -> int:
    """VmRSS, resident now, or VmHWM, its peak since the last reset, in bytes."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def peak_so_far() -> int:
    """The peak since the process started, in bytes, where there is no /proc to ask."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def step(module: nn.RNNBase, data: Tensor, grad_output: Tensor) -> tuple[Tensor, ...]:
    """Forward, and backward to the input and every parameter."""
    output, _ = module(data)
    return torch.autograd.grad(output, [data, *module.parameters()], grad_output)


def tensors(name: str, shape: Shape, dtype: torch.dtype, recompute: bool) -> tuple[nn.RNNBase, Tensor, Tensor]:
    """A module, its input and the gradient of its output."""
    batch, seq_len, input_size, hidden_size = shape
    options = {"recompute": True} if recompute and name == "gru_ext" else {}
    module = MODULES[name](input_size, hidden_size, dtype=dtype, **options)
    data = torch.randn(seq_len, batch, input_size, dtype=dtype, requires_grad=True)
    return module, data, torch.randn(seq_len, batch, hidden_size, dtype=dtype)


def kept_bytes(module: nn.RNNBase, data: Tensor) -> int:
    """What autograd keeps of one forward."""
    there_anyway = {tensor.untyped_storage().data_ptr() for tensor in (data, *module.parameters())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output, _ = module(data)
    assert output.requires_grad  # what is saved lives until here, so that no two storages had the same address
    return sum(size for address, size in storages.items() if address not in there_anyway)


def measure_here(name: str, shape: Shape, dtype: str, recompute: bool) -> dict[str, int]:
    """Measure in this process, which has made no step before: bytes of peak and kept, and whether peak is exact."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    module, data, grad_output = tensors(name, shape, DTYPES[dtype], recompute)
    step(*tensors(name, TINY, DTYPES[dtype], recompute))
    try:
        CLEAR_REFS.write_text(PEAK_RESET, encoding="ascii")
        before, exact = resident("VmRSS"), 1
        step(module, data, grad_output)
        peak = resident("VmHWM") - before
    except OSError:
        before, exact = peak_so_far(), 0
        step(module, data, grad_output)
        peak = peak_so_far() - before
    return {"peak": peak, "kept": kept_bytes(module, data), "exact": exact}


def measure(name: str, shape: Shape, dtype: str, recompute: bool) -> dict[str, int]:
    """The same in a fresh process. Raises RuntimeError when it fails."""
    task = json.dumps([name, shape, dtype, recompute])
    done = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or "no message").splitlines()[-1]
        raise RuntimeError(f"{name}, {dtype}, {shape}: exit status {done.returncode}: {last}")
    return dict(json.loads(done.stdout))


def table(measurements: list[MemoryMeasurement]) -> Iterator[str]:
    """The printed table, at most 80 columns wide."""
    for dtype in dict.fromkeys(m.dtype for m in measurements):
        rows = [m for m in measurements if m.dtype == dtype]
        yield f"{dtype + ', MiB':22}{'-- peak of the step --':>27} {'-- kept by autograd --':>27}"
        yield f"  {'(B,T,I,H)':20}" + " ".join(2 * [f"{'nn.GRU':>9}{'gru_ext':>10}{'ratio':>8}"])
        for row in rows:
            peak = f"{row.torch_peak_mib:9.2f}{row.gru_ext_peak_mib:10.2f}{peak_ratio([row]):>8}"
            kept = f"{row.torch_kept_mib:9.2f}{row.gru_ext_kept_mib:10.2f}{kept_ratio([row]):>8}"
            yield f"  {row.shape:20}{peak} {kept}"
        yield f"  {'geometric mean':39}{peak_ratio(rows):>8}{kept_ratio(rows):>28}"
        yield ""


def peak_ratio(rows: list[MemoryMeasurement]) -> str:
    """Geometric mean of torch's peak to gru_ext's, where both are large enough to compare."""
    pairs = [(row.torch_peak_mib, row.gru_ext_peak_mib) for row in rows]
    ratios = [theirs / ours for theirs, ours in pairs if min(theirs, ours) >= SMALLEST_PEAK_MIB]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def kept_ratio(rows: list[MemoryMeasurement]) -> str:
    """Geometric mean of what torch keeps to what gru_ext does; recomputing, it may keep nothing."""
    ratios = [row.torch_kept_mib / row.gru_ext_kept_mib for row in rows if row.gru_ext_kept_mib > 0]
    return f"{geometric_mean(ratios):.2f}" if ratios else "-"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--recompute", action="store_true", help="make gru_ext.GRU with recompute=True")
    add("--csv", type=Path, metavar="FILE", help="write the measurements here")
    add("--task", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.csv and not parsed.csv.parent.is_dir():
        parser.error(f"argument --csv: there is no folder {parsed.csv.parent}")
    return parsed


def main() -> int:
    """Measure every shape, print the table, write the CSV."""
    parsed = parse_arguments()
    if parsed.task:
        name, shape, dtype, recompute = json.loads(parsed.task)
        print(json.dumps(measure_here(name, tuple(shape), dtype, recompute)))
        return 0
    described = facts(torch.device("cpu"))
    print(f"{described['machine']}, {described['system']}")
    print(", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date")))
    measurements: list[MemoryMeasurement] = []
    for dtype in parsed.dtypes:
        for shape in parsed.shapes:
            try:
                theirs, ours = (measure(name, shape, dtype, parsed.recompute) for name in MODULES)
            except RuntimeError as error:
                print(error, file=sys.stderr)
                return 1
            batch, seq_len, input_size, hidden_size = shape
            fields: dict[str, Any] = described
            measurements.append(
                MemoryMeasurement(
                    device="cpu",
                    dtype=dtype,
                    threads=1,
                    mode="training",
                    batch=batch,
                    seq_len=seq_len,
                    input_size=input_size,
                    hidden_size=hidden_size,
                    layout="time-first",
                    torch_peak_mib=theirs["peak"] / MIB,
                    gru_ext_peak_mib=ours["peak"] / MIB,
                    torch_kept_mib=theirs["kept"] / MIB,
                    gru_ext_kept_mib=ours["kept"] / MIB,
                    recompute=int(parsed.recompute),
                    exact=min(theirs["exact"], ours["exact"]),
                    **fields,
                )
            )
    print("\n".join(["", *table(measurements)]))
    if not all(m.exact for m in measurements):
        print(
            "This system cannot count the peak anew for the step, as Linux can: peak is the rise of the process's own\n"
            "peak, which is too small where importing and making the input needed more for a while."
        )
    if parsed.csv:
        write_csv(parsed.csv, measurements)
        print(f"written: {parsed.csv}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
