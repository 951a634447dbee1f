"""gru_ext.GRU against torch.nn.GRU, interleaved in one process.

    python benchmarks/compare.py                         # the default table, on the CPU
    python benchmarks/compare.py --quick                 # the same cells, a short look at each
    python benchmarks/compare.py --device cuda --dtypes float32 bfloat16 float16
    python benchmarks/compare.py --shapes 32,128,256,256 --modes training --threads 1 --seconds 30

Two modules with the same weights get the same random input. A round times each of them once, in alternating order, so
that a change in the machine's speed meets both; after a warm-up, rounds go on until the cell's time budget is spent.
The ratio is that of the two medians, the spread is given by the quartiles of the rounds' own ratios.

inference: forward under torch.no_grad(). training: forward, and backward from a random gradient of the output to the
input and to every parameter. CPU times are wall time; CUDA times are between two events on the current stream, with
whatever the L2 cache holds from the call before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from machine import facts
from measurements import Measurement, by_group, geometric_mean, quartiles, write_csv
from torch import Tensor, nn

try:
    from tqdm import tqdm
except ImportError:  # optional: without it there is no progress bar
    tqdm = None

Shape = tuple[int, int, int, int]  # B, T, I, H
SHAPES: tuple[Shape, ...] = (
    (1, 1, 64, 64),
    (1, 100, 80, 256),
    (1, 512, 256, 512),
    (1, 100, 1024, 1024),
    (8, 128, 128, 128),
    (16, 64, 512, 512),
    (32, 100, 10, 64),
    (32, 128, 256, 256),
    (64, 50, 512, 1024),
    (128, 256, 128, 128),
    (64, 784, 1, 128),
)
DTYPES = {str(d).removeprefix("torch."): d for d in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
MODES = ("inference", "training")
TIMING_SECONDS = 0.002  # one timing holds enough calls to last this long, far above the clock's resolution
WARM_UP_SECONDS = 0.05
NOISY = 1.5  # quartiles further apart than this factor say more about the machine than about the code
LEAST_ROUNDS, LEAST_ROUNDS_QUICK, MOST_ROUNDS = 7, 3, 1000


@dataclass(frozen=True)
class Cell:
    """One row to measure."""

    dtype: str
    threads: int
    mode: str
    shape: Shape


def timed(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Milliseconds for one call, averaged over `calls` calls in a row."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) * 1e3 / calls


def warm_up(call: Callable[[], object], device: torch.device) -> int:
    """Run until caches and allocator have settled; returns how many calls make one timing."""
    timed(call, 1, device)
    deadline = time.perf_counter() + WARM_UP_SECONDS
    fastest = timed(call, 1, device)
    while time.perf_counter() < deadline:
        fastest = min(fastest, timed(call, 1, device))
    return max(1, round(TIMING_SECONDS * 1e3 / max(fastest, 1e-4)))


def make_call(module: nn.RNNBase, mode: str, data: Tensor, grad_output: Tensor) -> Callable[[], object]:
    """The function to be timed."""
    module.train(mode == "training")  # cuDNN keeps what backward needs in train mode, even under no_grad
    if mode == "inference":

        def inference() -> object:
            with torch.no_grad():
                return module(data)

        return inference

    inputs = [data.detach().requires_grad_(), *module.parameters()]

    def training() -> object:
        output, _ = module(inputs[0])
        return torch.autograd.grad(output, inputs, grad_output)

    return training


def measure(
    cell: Cell,
    gru: Callable[..., nn.RNNBase],
    device: torch.device,
    layout: str,
    seconds: float,
    least_rounds: int,
    seed: int,
) -> dict[str, Any]:
    """Time both modules in one cell; returns Measurement's fields that are measured."""
    batch, seq_len, input_size, hidden_size = cell.shape
    dtype = DTYPES[cell.dtype]
    torch.manual_seed(seed)
    torch.set_num_threads(cell.threads)
    batch_first = layout == "batch-first"
    theirs = nn.GRU(input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype)
    ours = gru(input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    rows = (batch, seq_len) if batch_first else (seq_len, batch)
    data = torch.randn(*rows, input_size, device=device, dtype=dtype)
    grad_output = torch.randn(*rows, hidden_size, device=device, dtype=dtype)
    with torch.no_grad():  # a fast wrong answer is no result
        difference = (theirs(data)[0].double() - ours(data)[0].double()).abs().max().item()

    calls_of = [make_call(module, cell.mode, data, grad_output) for module in (theirs, ours)]
    calls = max(warm_up(call, device) for call in calls_of)
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < MOST_ROUNDS:
        for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            times[which].append(timed(calls_of[which], calls, device))
        if len(times[0]) >= least_rounds and time.perf_counter() - begin >= seconds:
            break

    torch_q1, torch_median, torch_q3 = quartiles(times[0])
    ours_q1, ours_median, ours_q3 = quartiles(times[1])
    ratio_q1, _, ratio_q3 = quartiles([a / b for a, b in zip(*times, strict=True)])
    return {
        "rounds": len(times[0]),
        "calls": calls,
        "torch_ms": torch_median,
        "torch_ms_q1": torch_q1,
        "torch_ms_q3": torch_q3,
        "gru_ext_ms": ours_median,
        "gru_ext_ms_q1": ours_q1,
        "gru_ext_ms_q3": ours_q3,
        "ratio": torch_median / ours_median,
        "ratio_q1": ratio_q1,
        "ratio_q3": ratio_q3,
        "largest_difference": difference,
    }


def milliseconds(value: float) -> str:
    """Three significant digits in the unit that keeps them readable: 8.31 us, 12.4 ms, 1.82 s."""
    scaled, unit = (value * 1e3, "us") if value < 1 else (value, "ms") if value < 1e3 else (value / 1e3, "s ")
    digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f} {unit}"


def table(measurements: list[Measurement]) -> Iterator[str]:
    """The printed table, at most 80 columns wide."""
    for (dtype, threads, mode), rows in by_group(measurements).items():
        where = f"{threads} thread{'s' * (threads > 1)}" if rows[0].device == "cpu" else rows[0].device
        title = f"{dtype}, {where}, {mode}"
        yield f"{title:34}{'nn.GRU':>10}{'gru_ext':>10}{'ratio':>8}  {'quartiles':11}{'rounds':>5}"
        for row in rows:
            times = f"{milliseconds(row.torch_ms):>10}{milliseconds(row.gru_ext_ms):>10}"
            noisy = row.ratio_q3 > NOISY * row.ratio_q1
            spread = f"{row.ratio_q1:.2f}-{row.ratio_q3:.2f}{'?' * noisy}"
            yield f"  {row.shape:32}{times}{row.ratio:8.2f}  {spread:11}{row.rounds:>5}"
        worst = min(rows, key=lambda row: row.ratio)
        mean = geometric_mean([row.ratio for row in rows])
        yield f"  {'geometric mean':52}{mean:8.2f}   worst {worst.ratio:.2f}"
        difference = max(row.largest_difference for row in rows)
        yield f"  worst at {worst.shape}; outputs differ by {difference:.1e} at most"
        yield ""


def verdict(measurements: list[Measurement]) -> str:
    """The closing lines: in which cells gru_ext is slower."""
    slower = sorted((m for m in measurements if m.ratio < 1.0), key=lambda m: m.ratio)
    first = f"slower than torch.nn.GRU (ratio below 1): {len(slower) or 'none'} of {len(measurements)} cells"
    return "\n".join([first, *(f"  {m.ratio:.3f}  {m.dtype}, {m.threads}t, {m.mode}, {m.shape}" for m in slower)])


def parse_shape(text: str) -> Shape:
    """B,T,I,H as four positive integers."""
    try:
        batch, seq_len, input_size, hidden_size = (int(part) for part in text.strip("()").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected B,T,I,H such as 32,128,256,256, got {text!r}") from None
    shape = (batch, seq_len, input_size, hidden_size)
    if min(shape) < 1:
        raise argparse.ArgumentTypeError(f"expected sizes of at least 1, got {text!r}")
    return shape


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="CPU thread counts")
    add("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add("--modes", nargs="+", choices=MODES, default=list(MODES))
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--layout", choices=("time-first", "batch-first"), default="time-first", help="order of the input's dimensions")
    add("--seconds", type=float, default=4.0, help="time budget of a cell, beside the warm-up")
    add("--quick", action="store_true", help="at most 0.2 seconds and at least 3 rounds for a cell")
    add("--allow-tf32", action=argparse.BooleanOptionalAction, default=False, help="TF32 in CUDA float32 products")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, metavar="FILE", help="write the measurements here")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    if arguments.csv and not arguments.csv.parent.is_dir():
        parser.error(f"argument --csv: there is no folder {arguments.csv.parent}")
    return arguments


def main() -> int:
    """Measure every cell, print the table, write the CSV."""
    arguments = parse_arguments()
    from gru_ext import _C, GRU  # here, so that --help needs no build

    device = torch.device(arguments.device)
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(device if device.index is not None else 0)  # events are recorded on the current device
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = arguments.allow_tf32
    timing = f"events, warm L2, allow_tf32={arguments.allow_tf32}" if on_cuda else "wall"
    threads = [torch.get_num_threads()] if on_cuda else arguments.threads
    seconds = min(arguments.seconds, 0.2) if arguments.quick else arguments.seconds
    least_rounds = LEAST_ROUNDS_QUICK if arguments.quick else LEAST_ROUNDS
    described = facts(device)
    simd = "" if on_cuda else _C.cpu_target()
    print(f"{described['machine']}, {described['system']}" + (f", SIMD target {simd}" if simd else ""))
    print(", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date")))
    print(f"timing: {timing}; {arguments.layout} input")

    cells = [
        Cell(dtype, count, mode, shape)
        for dtype in arguments.dtypes
        for count in threads
        for mode in arguments.modes
        for shape in arguments.shapes
    ]
    measurements: list[Measurement] = []
    bar = tqdm(total=len(cells), unit="cell", disable=None) if tqdm else None
    try:
        for cell in cells:
            if bar is not None:
                shape = ",".join(map(str, cell.shape))
                bar.set_description(f"{cell.dtype} {cell.threads}t {cell.mode} ({shape})")
            measured = measure(cell, GRU, device, arguments.layout, seconds, least_rounds, arguments.seed)
            batch, seq_len, input_size, hidden_size = cell.shape
            fields: dict[str, Any] = {**measured, **described}
            measurements.append(
                Measurement(
                    device=device.type,
                    dtype=cell.dtype,
                    threads=cell.threads,
                    mode=cell.mode,
                    batch=batch,
                    seq_len=seq_len,
                    input_size=input_size,
                    hidden_size=hidden_size,
                    layout=arguments.layout,
                    simd=simd,
                    timing=timing,
                    **fields,
                )
            )
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        print(f"interrupted: {len(measurements)} of {len(cells)} cells measured, no CSV written", file=sys.stderr)
    finally:
        if bar is not None:
            bar.close()

    print("\n".join(["", *table(measurements)]))
    noisy = sum(m.ratio_q3 > NOISY * m.ratio_q1 for m in measurements)
    if noisy:
        print(
            f"{noisy} of {len(measurements)} cells marked ?: quartiles more than {NOISY} times apart, machine not idle?"
        )
    complete = len(measurements) == len(cells)
    if complete and arguments.csv:
        write_csv(arguments.csv, measurements)
        print(f"written: {arguments.csv}")
    if measurements:
        print(verdict(measurements))
    return 0 if complete else 130


if __name__ == "__main__":
    sys.exit(main())
