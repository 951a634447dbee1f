"""gru_ext.GRU against torch.nn.GRU, interleaved in one process.

    python benchmarks/compare.py                         # the default table, on the CPU
    python benchmarks/compare.py --quick                 # the same cells, a short look at each
    python benchmarks/compare.py --device cuda --dtypes float32 tf32 bfloat16 float16 --layout packed
    python benchmarks/compare.py --shapes 32,128,256,256 --modes training --threads 1 --seconds 30

Two modules with the same weights get the same random input. A round times each of them once, in alternating order, so
that a change in the machine's speed meets both; after a warm-up, rounds go on until the cell's time budget is spent,
for at least 7 rounds, or 3 where these take longer than half a minute.
The ratio is that of the two medians, the spread is given by the quartiles of the rounds' own ratios.

inference: forward under torch.no_grad(). training: forward, and backward from a random gradient of the output to the
input and to every parameter. recompute (--modes recompute): the same, with gru_ext.GRU's recompute=True. CPU times are
wall time; CUDA times are between two events on the current stream, with whatever the L2 cache holds from the call
before. dtype tf32 is float32 with TF32 allowed in CUDA's matrix products, for both; float32 is without. layout packed
is a PackedSequence, half of whose sequences are shorter, down to half of seq_len.

The column "floor" is gru_ext's time over the least that the machine allows for the shape (floor.py), by peaks measured
at the start of the same run; in brackets where that is so little that the price of a call as such counts beside it.
There is none on CUDA.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cells import DTYPES, MODES, RECOMPUTE, SHAPES, TF32, Cell, parse_shape
from floor import Machine, floor_ms, peak_lines, weight_bytes
from machine import facts
from measurements import SMALL_FLOOR_MS, Measurement, quartiles, write_csv
from tables import NOISY, noisy, table, verdict
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

try:
    from tqdm import tqdm
except ImportError:  # optional: without it there is no progress bar
    tqdm = None

TIMING_SECONDS = 0.002  # one timing holds enough calls to last this long, far above the clock's resolution
WARM_UP_SECONDS = 0.05
LAYOUTS = ("time-first", "batch-first", "packed")
LEAST_ROUNDS, LEAST_ROUNDS_QUICK, MOST_ROUNDS = 7, 3, 1000
# torch.nn.GRU in bfloat16 takes up to a minute a call where the processor has no bfloat16 instructions.
LONG_CALL_SECONDS = 1.0  # one such is warm-up enough
LONG_CELL_SECONDS = 30.0  # a cell that has taken so long ends with LEAST_ROUNDS_QUICK


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
    if timed(call, 1, device) > LONG_CALL_SECONDS * 1e3:
        return 1
    deadline = time.perf_counter() + WARM_UP_SECONDS
    fastest = timed(call, 1, device)
    while time.perf_counter() < deadline:
        fastest = min(fastest, timed(call, 1, device))
    return max(1, round(TIMING_SECONDS * 1e3 / max(fastest, 1e-4)))


def packed_lengths(batch: int, seq_len: int) -> list[int]:
    """Half of the sequences are whole, the others ever shorter, the last with half of the steps."""
    return [seq_len - max(0, 2 * index - batch) * seq_len // (2 * batch) for index in range(batch)]


def make_call(
    module: nn.RNNBase, mode: str, data: Tensor | PackedSequence, grad_output: Tensor
) -> Callable[[], object]:
    """The function to be timed."""
    module.train(mode != "inference")  # cuDNN keeps what backward needs in train mode, even under no_grad
    if mode == "inference":

        def inference() -> object:
            with torch.no_grad():
                return module(data)

        return inference

    rows = data.data if isinstance(data, PackedSequence) else data
    inputs = [rows.detach().requires_grad_(), *module.parameters()]
    given = data._replace(data=inputs[0]) if isinstance(data, PackedSequence) else inputs[0]

    def training() -> object:
        output, _ = module(given)
        output = output.data if isinstance(output, PackedSequence) else output
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
    dtype = DTYPES.get(cell.dtype, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cell.dtype == TF32
    torch.manual_seed(seed)
    torch.set_num_threads(cell.threads)
    batch_first = layout == "batch-first"
    theirs = nn.GRU(input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype)
    ours = gru(input_size, hidden_size, batch_first=batch_first, device=device, dtype=dtype)
    ours.load_state_dict(theirs.state_dict())
    if cell.mode == RECOMPUTE:
        ours.recompute = True
    rows = (batch, seq_len) if batch_first else (seq_len, batch)
    data: Any = torch.randn(*rows, input_size, device=device, dtype=dtype)
    if layout == "packed":
        data = pack_padded_sequence(data, packed_lengths(batch, seq_len))
    with torch.no_grad():  # a fast wrong answer is no result
        outputs = [module(data)[0] for module in (theirs, ours)]
    values = [output.data if layout == "packed" else output for output in outputs]
    difference = (values[0].double() - values[1].double()).abs().max().item()
    grad_output = torch.randn_like(values[0])

    calls_of = [make_call(module, cell.mode, data, grad_output) for module in (theirs, ours)]
    calls = max(warm_up(call, device) for call in calls_of)
    times: tuple[list[float], list[float]] = ([], [])
    begin = time.perf_counter()
    while len(times[0]) < MOST_ROUNDS:
        for which in (0, 1) if len(times[0]) % 2 == 0 else (1, 0):
            times[which].append(timed(calls_of[which], calls, device))
        taken = time.perf_counter() - begin
        if len(times[0]) >= (least_rounds if taken < LONG_CELL_SECONDS else LEAST_ROUNDS_QUICK) and taken >= seconds:
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


def floor_fields(cell: Cell, machine: Machine) -> dict[str, Any]:
    """Measurement's fields that are computed from the machine's peaks."""
    floor, cause = floor_ms(cell.shape, cell.dtype, cell.mode, machine, cell.threads)
    size = weight_bytes(cell.shape[3], cell.dtype)
    return {
        "floor_ms": floor,
        "floor_cause": cause,
        "operations_per_second": machine.operations_per_second(cell.dtype, cell.threads),
        "bytes_per_second": machine.bytes_per_second(size, cell.threads),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--device", default="cpu", help="cpu, cuda or cuda:N")
    add("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="CPU thread counts")
    add("--dtypes", nargs="+", choices=[*DTYPES, TF32], default=["float32", "bfloat16"])
    add("--modes", nargs="+", choices=[*MODES, RECOMPUTE], default=list(MODES))
    add("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    add("--layout", choices=LAYOUTS, default=LAYOUTS[0], help="order of the input's dimensions, or packed")
    add("--seconds", type=float, default=4.0, help="time budget of a cell, beside the warm-up")
    add("--quick", action="store_true", help="at most 0.2 seconds and at least 3 rounds for a cell")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, metavar="FILE", help="write the measurements here")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    if arguments.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error(f"argument --device: {arguments.device} was asked for, and torch sees no GPU")
    if TF32 in arguments.dtypes and not arguments.device.startswith("cuda"):
        parser.error("argument --dtypes: tf32 is for CUDA")
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
    timing = f"events, warm L2, kernel {os.environ.get('GRU_EXT_CUDA_KERNEL') or 'by plan'}" if on_cuda else "wall"
    threads = [torch.get_num_threads()] if on_cuda else arguments.threads
    seconds = min(arguments.seconds, 0.2) if arguments.quick else arguments.seconds
    least_rounds = LEAST_ROUNDS_QUICK if arguments.quick else LEAST_ROUNDS
    described = facts(device)
    simd = "" if on_cuda else _C.cpu_target()
    print(f"{described['machine']}, {described['system']}" + (f", SIMD target {simd}" if simd else ""))
    print(", ".join(f"{name} {described[name]}" for name in ("torch", "gru_ext", "commit", "python", "date")))
    print(f"timing: {timing}; {arguments.layout} input")
    machine = None if on_cuda else Machine()
    if machine is not None:  # before the cells, and all of them: a peak measured between two cells would disturb them
        print("\n".join(peak_lines(machine, arguments.dtypes, threads, arguments.shapes)))

    cells = [
        Cell(dtype, count, mode, shape)
        for dtype in arguments.dtypes
        for count in threads
        for mode in arguments.modes
        for shape in arguments.shapes
    ]
    if on_cuda:  # shape by shape: a run that is cut short has every dtype and mode of the shapes that it came to
        cells.sort(key=lambda cell: arguments.shapes.index(cell.shape))
    measurements: list[Measurement] = []
    bar = tqdm(total=len(cells), unit="cell", disable=None) if tqdm else None
    try:
        for cell in cells:
            if bar is not None:
                shape = ",".join(map(str, cell.shape))
                bar.set_description(f"{cell.dtype} {cell.threads}t {cell.mode} ({shape})")
            measured = measure(cell, GRU, device, arguments.layout, seconds, least_rounds, arguments.seed)
            batch, seq_len, input_size, hidden_size = cell.shape
            floor = floor_fields(cell, machine) if machine is not None else {}
            fields: dict[str, Any] = {**measured, **described, **floor}
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
            if arguments.csv:  # with each cell, so that a run that is cut short leaves what it measured
                write_csv(arguments.csv, measurements)
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        print(f"interrupted: {len(measurements)} of {len(cells)} cells measured", file=sys.stderr)
    finally:
        if bar is not None:
            bar.close()

    print("\n".join(["", *table(measurements)]))
    if machine is not None:
        print(f"floor: time over what the machine allows; in brackets where that is below {SMALL_FLOOR_MS} ms")
    disturbed = sum(map(noisy, measurements))
    if disturbed:
        print(f"{disturbed} of {len(measurements)} cells marked ?: quartiles {NOISY} times apart, machine not idle?")
    complete = len(measurements) == len(cells)
    if measurements and arguments.csv:
        print(f"written: {arguments.csv}")
    if measurements:
        print(verdict(measurements))
    return 0 if complete else 130


if __name__ == "__main__":
    sys.exit(main())
