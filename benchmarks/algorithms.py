"""Which kernels torch.nn.GRU runs on this GPU, by size: the profiler's names, in a CSV.

    python benchmarks/algorithms.py [--dtypes bfloat16 float32] [--hidden-sizes 256 512] [--csv FILE]

A kernel that runs once or a few times for the whole sequence keeps the weights on the chip ("persist" is in its name);
one that runs for every step reads them all again each time. One row a kernel: dtype, hidden_size, layout, pass, name,
how often it ran and its time. The dtype is that of the output, which says what autocast really gave.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from gru_ext.commands.options import output_file
from gru_ext.measure.machine import facts

HIDDEN_SIZES = (128, 160, 192, 256, 512, 1024)
SEQ_LEN, BATCH = 64, 32
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
AUTOCAST = "bfloat16 autocast"
COLUMNS = ("dtype", "output_dtype", "hidden_size", "layout", "pass", "kernel", "calls", "microseconds")


def kernels(profile: torch.profiler.profile) -> Iterator[tuple[str, int, float]]:
    """Name, calls and microseconds of each kernel, the longest first."""
    events = [event for event in profile.key_averages() if event.device_type == torch.profiler.DeviceType.CUDA]
    for event in sorted(events, key=lambda event: -event.self_device_time_total):
        yield event.key, event.count, event.self_device_time_total


def rows(dtype: str, hidden_size: int, layout: str) -> Iterator[dict[str, Any]]:
    """What forward and backward of one GRU ran."""
    stored = DTYPES.get(dtype, torch.float32)
    module = nn.GRU(hidden_size, hidden_size, device="cuda", dtype=stored)
    data = torch.randn(SEQ_LEN, BATCH, hidden_size, device="cuda", dtype=stored, requires_grad=True)
    lengths = [SEQ_LEN - index // 2 for index in range(BATCH)]
    autocast = torch.autocast("cuda", torch.bfloat16, enabled=dtype == AUTOCAST)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    for _ in range(2):  # the first time libraries initialise themselves
        passes = {}
        with torch.profiler.profile(activities=activities) as passes["forward"], autocast:
            layout_data = pack_padded_sequence(data, lengths) if layout == "packed" else data
            output = module(layout_data)[0]
            values = output.data if layout == "packed" else output
            torch.cuda.synchronize()
        gradient = torch.randn_like(values)
        with torch.profiler.profile(activities=activities) as passes["backward"]:
            values.backward(gradient)
            torch.cuda.synchronize()
    common = {"dtype": dtype, "output_dtype": str(values.dtype).removeprefix("torch."), "hidden_size": hidden_size}
    for name, profile in passes.items():
        for kernel, calls, time in kernels(profile):
            yield {**common, "layout": layout, "pass": name, "kernel": kernel, "calls": calls, "microseconds": time}


def main() -> int:
    """Profile every size, print the kernel that takes longest in each pass, write the CSV."""
    parser = argparse.ArgumentParser(description="Which kernels torch.nn.GRU runs on this GPU, by size.")
    parser.add_argument("--dtypes", nargs="+", choices=[*DTYPES, AUTOCAST], default=[*DTYPES, AUTOCAST])
    parser.add_argument("--hidden-sizes", nargs="+", type=int, default=list(HIDDEN_SIZES), metavar="H")
    parser.add_argument("--csv", type=output_file, metavar="FILE", help="write every kernel here, once it is known")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("algorithms: torch sees no GPU", file=sys.stderr)
        return 2
    print(", ".join(f"{name} {value}" for name, value in facts(torch.device("cuda")).items()))
    print(f"seq_len {SEQ_LEN}, batch {BATCH}; the kernel that takes longest in each pass")
    all_rows: list[dict[str, Any]] = []
    for hidden_size in arguments.hidden_sizes:
        for dtype in arguments.dtypes:
            for layout in ("padded", "packed"):
                here = list(rows(dtype, hidden_size, layout))
                all_rows += here
                for name in ("forward", "backward"):
                    longest = next((row for row in here if row["pass"] == name), None)
                    if longest is not None:
                        words = f"{dtype} -> {longest['output_dtype']}, H={hidden_size}, {layout}, {name}:"
                        print(f"{words} {longest['calls']} x {longest['kernel'][:100]}", flush=True)
                if arguments.csv:
                    with arguments.csv.open("w", newline="", encoding="utf-8") as file:
                        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                        writer.writeheader()
                        writer.writerows(all_rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
