"""Where time and memory go: passes and phases of a shape or of your model, beside the machine's floor and nn.GRU.

examples:
  python -m gru_ext profile --batch 8 --time 100 --input-size 80 --hidden-size 256 --training
  python -m gru_ext profile --model my_package.my_module:make_model --trace trace.json --plot profile.svg

Open a trace in https://ui.perfetto.dev or chrome://tracing.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext.commands import options
from gru_ext.measure import BadInput, nsight
from gru_ext.measure.calls import call
from gru_ext.measure.floor import Machine
from gru_ext.measure.machine import facts
from gru_ext.measure.models import load
from gru_ext.measure.profiling import CALLS, Profile, profile
from gru_ext.measure.tables import profile_heading, profile_parts
from gru_ext.measure.timing import make_module
from gru_ext.measure.workloads import TF32, Workload
from gru_ext.text import as_json, hint, show, width

INTERRUPTED = 130


class Task(NamedTuple):
    """One profile to be made: what it is for people, how it runs, and a call of it."""

    title: str
    workload: Workload
    module: nn.Module
    inputs: tuple[Any, ...]

    @property
    def training(self) -> bool:
        """Whether a call goes backward."""
        return self.workload.mode != "inference"

    @property
    def device(self) -> torch.device:
        """Of the weights."""
        return next(self.module.parameters()).device


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and what to do with the profile."""
    options.add_arguments(parser)
    out = parser.add_argument_group("the profile")
    out.add_argument("--calls", type=options.positive, default=CALLS, metavar="N", help=f"profiled (default: {CALLS})")
    out.add_argument("--recompute", dest="keeps_states", action="store_true", help="gru_ext.GRU with recompute=True")
    out.add_argument(
        "--trace", type=options.output_file, metavar="FILE.json", help="write a trace for Perfetto or chrome://tracing"
    )
    out.add_argument("--plot", type=options.picture_file, metavar="FILE", help="write bars, as .png, .svg or .pdf")
    out.add_argument("--no-memory", action="store_true", help="do not measure the peak of memory")
    out.add_argument("--nvtx", action="store_true", help="only run the calls, with NVTX ranges, for NVIDIA's profilers")


def run(arguments: argparse.Namespace) -> int:
    """Profiles each task, prints, and writes what was asked for. 130 when interrupted, after what was measured."""
    tasks = tasks_of(arguments)
    for option in ("trace", "plot"):
        if getattr(arguments, option) and len(tasks) > 1:
            raise BadInput(f"--{option} takes one profile, got {len(tasks)}: give one shape, dtype and mode")
    hint(["rich"], "tables that fit the terminal")
    if all(task.device.type == "cpu" for task in tasks):
        # torch 2.13's kineto prints a line where a profile starts and stops; its warnings of a GPU are worth reading.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    if arguments.nvtx:
        return run_with_ranges(tasks, arguments.calls)
    machine, reports = Machine(), []
    interrupted = False
    for task in tasks:
        try:
            result = profiled(task, arguments, machine)
        except KeyboardInterrupt:  # before a call of this one was completed
            interrupted = True
            break
        reports.append({"title": task.title, **facts(task.device), **result.to_dict()})
        if not arguments.json:
            show_profile(task, result)
        if arguments.plot:
            from gru_ext.measure.plots import profile_figure, save  # here: an optional package

            save(profile_figure(result), arguments.plot)
        if result.interrupted:
            interrupted = True
            break
    if arguments.json:
        print(as_json(reports))
    elif any(task.device.type == "cuda" for task in tasks):
        show("", *nsight.lines(repeated(sys.argv)))
    for path in (arguments.trace, arguments.plot):
        if path and path.is_file() and not arguments.json:
            show("", f"written: {path}")
    if not reports:
        print("interrupted before anything was measured", file=sys.stderr)
    return INTERRUPTED if interrupted else 0


def profiled(task: Task, arguments: argparse.Namespace, machine: Machine) -> Profile:
    """The task's profile. Raises BadInput where the module cannot run so, such as for want of memory."""

    def say(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text} ...", file=sys.stderr)

    before = torch.get_num_threads()
    torch.set_num_threads(task.workload.threads)
    torch.backends.cuda.matmul.allow_tf32 = task.workload.dtype == TF32
    try:
        with redirect_stdout(sys.stderr):  # what the model prints is not among the results
            return profile(
                task.module,
                *task.inputs,
                training=task.training,
                calls=arguments.calls,
                machine=machine,
                trace=arguments.trace,
                peaks=not arguments.no_memory,
                progress=say,
            )
    except (RuntimeError, MemoryError) as error:
        raise BadInput(f"{task.title}: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    finally:
        torch.set_num_threads(before)


def show_profile(task: Task, result: Profile) -> None:
    """Everything, under a line that says what and where."""
    show(*profile_heading(task.title, facts(task.device), width()), "")
    show(*profile_parts(result))


def tasks_of(arguments: argparse.Namespace) -> list[Task]:
    """What was asked for: each shape, or the model as a whole, in each mode, dtype and thread count."""
    workloads = options.workloads(arguments, modes=("training",))
    if not arguments.model:
        return [gru_task(workload, arguments.keeps_states) for workload in workloads]
    # The GRUs of a model are profiled together.
    first = {(arguments.dtype and of.dtype, of.threads, of.mode): of for of in reversed(workloads)}
    tasks = []
    for workload in reversed(first.values()):
        with redirect_stdout(sys.stderr):
            model, inputs = load(arguments.model)
        device = workload.device if arguments.device else None
        kind = workload.torch_dtype if arguments.dtype else None
        moved = tuple(moved_to(tensor, device, kind) for tensor in inputs or ())
        title = f"{arguments.model}, {workload.dtype}" if arguments.dtype else str(arguments.model)
        tasks.append(Task(title, workload, model.to(device=device, dtype=kind), moved))
    return tasks


def gru_task(workload: Workload, recompute: bool) -> Task:
    """A GRU by its sizes, in training with an input that wants a gradient."""
    gru = workload.gru
    module = make_module(gru_ext.GRU, gru, workload.device, workload.torch_dtype)
    assert isinstance(module, gru_ext.GRU)
    module.recompute = recompute
    data = gru.random_input(workload.device, workload.torch_dtype)
    (data.data if isinstance(data, PackedSequence) else data).requires_grad_(workload.mode != "inference")
    many = f", {gru.num_layers} layers" if gru.num_layers > 1 else ""
    title = (
        f"GRU, {workload.dtype}: batch {gru.batch}, seq_len {gru.seq_len}, input_size {gru.input_size}, "
        f"hidden_size {gru.hidden_size}{many}{', bidirectional' if gru.bidirectional else ''}, {gru.layout}"
    )
    return Task(title, workload, module, (data,))


def moved_to(tree: Any, device: torch.device | None, dtype: torch.dtype | None) -> Any:
    """The tensors in it on the device, those of floating point as this dtype; None: as they are."""
    if isinstance(tree, PackedSequence):
        return tree._replace(data=moved_to(tree.data, device, dtype))
    if isinstance(tree, torch.Tensor):
        moved = tree.detach().to(device=device, dtype=dtype if tree.is_floating_point() else None)
        return moved.requires_grad_(tree.requires_grad)
    if isinstance(tree, dict):
        return {key: moved_to(branch, device, dtype) for key, branch in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(moved_to(branch, device, dtype) for branch in tree)
    return tree


def run_with_ranges(tasks: list[Task], calls: int) -> int:
    """The calls alone, between cudaProfilerStart and cudaProfilerStop, with a NVTX range for each operator and pass."""
    if any(task.device.type != "cuda" for task in tasks):
        raise BadInput("--nvtx is for NVIDIA's profilers: give --device cuda")
    for task in tasks:
        torch.backends.cuda.matmul.allow_tf32 = task.workload.dtype == TF32
        call(task.module, task.inputs, task.training)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        with torch.autograd.profiler.emit_nvtx():
            for _ in range(calls):
                call(task.module, task.inputs, task.training)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()
    return 0


def repeated(argv: list[str]) -> list[str]:
    """The arguments of this very command, without the files that it writes, for another run."""
    kept: list[str] = []
    words = iter(argv[argv.index("profile") + 1 :] if "profile" in argv else [])
    for word in words:
        if word in ("--trace", "--plot"):
            next(words, None)
        elif word != "--json" and not word.startswith(("--trace=", "--plot=")):
            kept.append(word)
    return kept
