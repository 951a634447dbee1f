"""What ``torch.utils.flop_counter.FlopCounterMode`` counts of the operators: their products, as of ``nn.GRU``.

That module is not imported here, for it imports triton, if it can: the formulas are registered when others import it.
"""

import math
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

import torch
from torch import Tensor

from gru_ext import cost
from gru_ext.ops import Arguments


def _rows(arguments: Arguments) -> int:
    """Steps of all sequences together, and of all members."""
    rows = math.prod(arguments.input.shape[-arguments.dims_of_layer()[0] : -1])
    return rows if arguments.members is None else rows * arguments.members


def _forward(*values: Any, **_: Any) -> int:
    arguments = Arguments(*values[:-1])
    sizes = (_rows(arguments), arguments.input.shape[-1], arguments.weights[1].shape[-1])
    return arguments.directions * cost.forward_operations(*sizes)


def _backward(
    grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Tensor, needs: Sequence[bool], *values: Any, **_: Any
) -> int:
    arguments = Arguments(*values)
    roles = (len(needs) - 3) // arguments.directions
    sizes = (_rows(arguments), arguments.input.shape[-1], arguments.weights[1].shape[-1])
    flops = 0
    for direction in range(arguments.directions):
        if arguments.batch_sizes is None:
            first = arguments.input.shape[-3 if arguments.batch_first else -2]
        else:
            first = int(arguments.batch_sizes[-direction])  # the reverse direction begins at the last step
        weight_ih, weight_hh = needs[3 + direction * roles : 5 + direction * roles]
        flops += cost.backward_operations(
            *sizes,
            input=needs[0],
            weight_ih=weight_ih,
            weight_hh=weight_hh,
            first_rows=0 if needs[1] else first * (1 if arguments.members is None else arguments.members),
        )
        flops += arguments.recompute * cost.forward_operations(*sizes)
    return flops


def _register(module: Any) -> None:
    """Adds the formulas to those of ``torch.utils.flop_counter``."""
    module.register_flop_formula(torch.ops.gru_ext.forward, get_raw=True)(_forward)
    module.register_flop_formula(torch.ops.gru_ext.backward, get_raw=True)(_backward)


class _Finder(MetaPathFinder):
    """Finds that module where it would be found anyway, and lets its execution end with the registration."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname == _COUNTER else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


_COUNTER = "torch.utils.flop_counter"
if _COUNTER in sys.modules:
    _register(sys.modules[_COUNTER])
else:
    sys.meta_path.insert(0, _Finder())
