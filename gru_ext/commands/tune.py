"""Which kernels are fastest on this GPU, on shapes or a model of your own; kept in a file for your programs.

    python -m gru_ext tune --batch 8 32 --hidden-size 256 512 --dtype bfloat16 --save choices.json
    python -m gru_ext tune --model my_package.my_module:make_model --training --save choices.json
    GRU_EXT_CUDA_CHOICES=choices.json python my_program.py

Each layer is tuned by gru_ext.tune: torch's own kernels and ours by turns, in inference and in training, and of those
whose results are right the fastest is chosen. --save adds the choices to a file, each as soon as it is made. --file is
read as by bench. --dtype tf32 is float32 with torch.backends.cuda.matmul.allow_tf32; cuDNN's own switch stays as torch
has it. Nothing else should use the GPU meanwhile. Ctrl-C ends a run and keeps what it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import gru_ext
from gru_ext import text
from gru_ext.commands import options
from gru_ext.measure import BadInput, harness
from gru_ext.measure.machine import facts
from gru_ext.measure.timing import make_module
from gru_ext.measure.workloads import TF32, Workload

ROUNDS = 20
Tuned = tuple[Workload, gru_ext.Tuning]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and those of tuning."""
    options.add_arguments(parser)
    parser.set_defaults(device="cuda")
    parser.add_argument(
        "--rounds", type=options.positive, default=ROUNDS, metavar="N", help=f"timings of each (default: {ROUNDS})"
    )
    parser.add_argument("--save", type=options.output_file, metavar="FILE", help="add the choices to this JSON file")


def run(arguments: argparse.Namespace) -> int:
    """Tune, show. 130 when interrupted, 1 when a workload could not be tuned."""
    requested = options.workloads(arguments)
    if requested[0].device.type != "cuda":
        raise BadInput("--device is cpu: there plan decides, and only on a GPU is there a choice to measure")
    workloads = [workload for workload in requested if not workload.gru.cell]
    left_out = list(dict.fromkeys(workload.gru.title for workload in requested if workload.gru.cell))
    if not workloads:
        raise BadInput(f"gru_ext.tune is for GRUs, and there are only GRUCells: {', '.join(left_out)}")
    done: list[Tuned] = []
    failures: list[str] = []
    complete = harness.each(
        workloads,
        lambda workload: done.append((workload, tuned(workload, arguments.rounds, arguments.save))),
        failures,
        "tuned",
    )
    notes = [f"left out, a GRUCell: {title}; gru_ext.tune is for GRUs" for title in left_out]
    about = facts(workloads[0].device)
    if arguments.json:
        report = {"facts": about, "complete": complete, "failures": failures, "left_out": left_out}
        print(text.as_json({**report, "choices": [described(workload, tuning) for workload, tuning in done]}))
    else:
        if done:
            text.show(table(done, about["machine"]), "", *closing_lines(done, arguments.save))
        text.show(*notes, *(f"failed: {failure}" for failure in failures))
    return 130 if not complete else 1 if failures else 0


def tuned(workload: Workload, rounds: int, save: Path | None) -> gru_ext.Tuning:
    """gru_ext.tune of a module and an input of the workload's sizes. Raises BadInput for what it refuses."""
    torch.backends.cuda.matmul.allow_tf32 = workload.dtype == TF32
    torch.manual_seed(0)
    module: Any = make_module(gru_ext.GRU, workload.gru, workload.device, workload.torch_dtype)
    input = workload.gru.random_input(workload.device, workload.torch_dtype)
    try:
        return gru_ext.tune(module, input, training=workload.mode == "training", rounds=rounds, save=save)
    except ValueError as error:
        raise BadInput(str(error)) from None
    except OSError as error:
        raise BadInput(f"--save: {save} cannot be written: {error.strerror}") from None


def table(done: list[Tuned], machine: str) -> text.Table:
    """A row for each workload: what was chosen, and by how much."""
    columns = ("(B,T,I,H)", "dtype", "mode", "chosen", "its time", "torch's", "ratio")
    rows = []
    for workload, tuning in done:
        of = {candidate.kernel: candidate.milliseconds for candidate in tuning.candidates}
        times = (text.known(of[kernel], text.duration) for kernel in (tuning.kernel, "library"))
        what = (workload.gru.title, workload.dtype, workload.mode, tuning.kernel)
        rows.append((*what, *times, text.three_digits(tuning.ratio or 1.0)))
    return text.Table(columns, rows, machine, words=4)


def closing_lines(done: list[Tuned], save: Path | None) -> Iterator[str]:
    """What the columns mean, what was wrong, and where the choices are."""
    yield "ratio: torch's time over that of what was chosen; library: torch's own kernels"
    for workload, tuning in done:
        wrong = [candidate.kernel for candidate in tuning.candidates if candidate.milliseconds is None]
        if wrong:
            yield f"wrong results, not used: {', '.join(wrong)} in {workload.title}"
    if save:
        yield f"written: {save}; programs use it by GRU_EXT_CUDA_CHOICES={save}"
    else:
        yield "not kept: give --save FILE, for GRU_EXT_CUDA_CHOICES=FILE"


def described(workload: Workload, tuning: gru_ext.Tuning) -> dict[str, Any]:
    """A workload and what was found, for JSON."""
    what = {name: value for name, value in workload.columns().items() if name not in ("device", "threads", "cell")}
    about = {"directions": workload.gru.directions, "kernel": tuning.kernel, "ratio": tuning.ratio}
    return {**what, **about, "candidates": tuning.candidates}
