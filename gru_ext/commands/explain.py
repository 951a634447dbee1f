"""Which kernels run a layer or a model's GRUs, how they divide the work, and what it costs; nothing is run.

    python -m gru_ext explain --batch 32 --time 100 --input-size 64 --hidden-size 128 --bidirectional
    python -m gru_ext explain --model my_package.my_module:make_model --inference --json
    python -m gru_ext explain --batch 1 --time 512 --floor

A factory of --model takes no arguments and returns the model and its example input; the model is run once, to see what
its GRUs are called with. --floor measures what this machine can do at most, and tells each pass on the CPU with the
least time that allows, and what the limit is: arithmetic, a cache, memory, or the latency of its steps.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext.commands import options
from gru_ext.measure import text
from gru_ext.measure.cells import TF32, Cell, Layer
from gru_ext.measure.floor import Machine
from gru_ext.measure.timing import make_module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The shared options, and --floor."""
    options.add_arguments(parser)
    parser.add_argument("--floor", action="store_true", help="measure the machine's peaks, and tell the floor")


def run(arguments: argparse.Namespace) -> int:
    """Explain each layer asked for; training unless --inference is given."""
    cells = options.cells(arguments, modes=("training",))
    peaks = Machine() if arguments.floor else None
    told = [(cell, explained(cell, peaks)) for cell in cells]
    if arguments.json:
        print(text.as_json([{**described(cell), **one.to_dict()} for cell, one in told]))
        return 0
    for number, (cell, one) in enumerate(told):
        head = heading(cell)
        text.show(*([""] if number else []), *([head] if head else []), one)
    text.hint(["rich"], "tables in colour")
    return 0


def explained(cell: Cell, peaks: Machine | None = None) -> gru_ext.Explanation:
    """gru_ext.explain of a module and an input of the cell's sizes."""
    torch.set_num_threads(cell.threads)
    torch.backends.cuda.matmul.allow_tf32 = cell.dtype == TF32
    kind = gru_ext.GRUCell if cell.layer.cell else gru_ext.GRU
    module: Any = make_module(kind, cell.layer, cell.device, cell.torch_dtype)
    return gru_ext.explain(module, example(cell.layer), training=cell.mode == "training", peaks=peaks)


def example(layer: Layer) -> Tensor | PackedSequence:
    """An input of the layer's sizes, of which only the sizes are looked at."""
    if layer.lengths is not None:
        steps = torch.arange(layer.seq_len)[:, None]
        sizes = (torch.tensor(layer.lengths)[None] > steps).sum(dim=1)
        return PackedSequence(torch.empty(layer.rows, layer.input_size, device="meta"), sizes)
    outer = (layer.batch,) if layer.cell else (layer.seq_len, layer.batch)
    return torch.empty(*(outer[::-1] if layer.batch_first else outer), layer.input_size, device="meta")


def described(cell: Cell) -> dict[str, Any]:
    """What an explanation does not tell itself."""
    return {
        "name": cell.layer.name,
        "calls": cell.layer.calls,
        "mode": cell.mode,
        "threads": cell.threads,
        "cell": cell.layer.cell,
    }


def heading(cell: Cell) -> str:
    """Of a model's GRU: its name, and how often it is called so."""
    if not cell.layer.name:
        return ""
    calls = f"{cell.layer.calls} calls" if cell.layer.calls > 1 else "one call"
    return f"{cell.layer.name}: {'GRUCell' if cell.layer.cell else 'GRU'}, {calls}"
