"""Which kernels run a layer or a model's GRUs, how they divide the work, and what it costs; nothing is run.

    python -m gru_ext explain --batch 32 --time 100 --input-size 64 --hidden-size 128 --bidirectional
    python -m gru_ext explain --model my_package.my_module:make_model --inference --json
    python -m gru_ext explain --batch 1 --time 512 --floor

A factory of --model takes no arguments and returns the model and its example input; the model is run once, to see what
its GRUs are called with. --floor measures the peak rates of this machine, and adds to each pass on the CPU the least
time that they allow and what limits it: arithmetic, a cache, memory, or the latency of its steps. The peaks come first.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch

import gru_ext
from gru_ext import text
from gru_ext.commands import options
from gru_ext.measure.floor import Machine, peak_lines
from gru_ext.measure.timing import make_module
from gru_ext.measure.workloads import HALF_LENGTHS, LAYOUTS, LENGTHS, TF32, Workload


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and --floor."""
    options.add_arguments(parser, layouts=[*LAYOUTS, LENGTHS, HALF_LENGTHS])
    parser.add_argument("--floor", action="store_true", help="measure the machine's peak rates, and print the floor")


def run(arguments: argparse.Namespace) -> int:
    """Explain each layer asked for; training unless --inference is given."""
    workloads = options.workloads(arguments, modes=("training",))
    peaks = Machine() if arguments.floor and workloads[0].device.type == "cpu" else None
    if peaks and not arguments.json:
        text.show(*peak_lines(peaks, workloads), "")
    plans = [(workload, explained(workload, peaks)) for workload in workloads]
    if arguments.json:
        print(text.as_json([{**described(workload), **plan.to_dict()} for workload, plan in plans]))
        return 0
    for number, (workload, plan) in enumerate(plans):
        head = heading(workload)
        text.show(*([""] if number else []), *([head] if head else []), plan)
    text.hint(["rich"], "tables in colour")
    return 0


def explained(workload: Workload, peaks: Machine | None = None) -> gru_ext.Explanation:
    """gru_ext.explain of a module and an input of the workload's sizes."""
    torch.set_num_threads(workload.threads)
    torch.backends.cuda.matmul.allow_tf32 = workload.dtype == TF32
    kind = gru_ext.GRUCell if workload.gru.cell else gru_ext.GRU
    module: Any = make_module(kind, workload.gru, workload.device, workload.torch_dtype)
    gru = workload.gru
    input = gru.input(torch.empty(*gru.outer_sizes, gru.input_size, device="meta"))
    named = {"lengths": gru.padded_lengths} if gru.padded_lengths else {}
    return gru_ext.explain(module, input, training=workload.mode != "inference", peaks=peaks, **named)


def described(workload: Workload) -> dict[str, Any]:
    """What an explanation does not have."""
    gru = workload.gru
    return {"name": gru.name, "calls": gru.calls, "mode": workload.mode, "threads": workload.threads, "cell": gru.cell}


def heading(workload: Workload) -> str:
    """Of a model's GRU: its name, and how often it is called so."""
    if not workload.gru.name:
        return ""
    calls = f"{workload.gru.calls} calls" if workload.gru.calls > 1 else "one call"
    return f"{workload.gru.name}: {'GRUCell' if workload.gru.cell else 'GRU'}, {calls}"
