"""The GRUs inside a user's model, and what each was called with: recorded by running the model once."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext.frozen import Frozen
from gru_ext.measure import BadInput
from gru_ext.measure.workloads import LAYOUTS, MODES, GRUShape, Workload

LAYERS = (nn.GRU, gru_ext.GRU)
CELLS = (nn.GRUCell, gru_ext.GRUCell)
Inputs = tuple[Any, ...]


def load(spec: str) -> tuple[nn.Module, Inputs | None]:
    """The model that a factory makes, and what to call it with.

    Args:
        spec: ``package.module:factory``. The factory takes no arguments and returns a module, or a module and its
            example input: a tensor, a PackedSequence, or a tuple of the arguments. It may also be a module itself

    Returns:
        the model, and the arguments of a call, or None where the factory gave none

    Raises:
        BadInput: no such module or factory, it fails, or it gives no module
    """
    module_name, _, factory_name = spec.partition(":")
    if not module_name or not factory_name:
        raise BadInput(f"a model is named as package.module:factory, got {spec!r}")
    try:
        loaded: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise BadInput(f"there is no module {error.name} (of {spec}) on Python's path") from None
        raise BadInput(f"importing {module_name} failed: {error}") from error
    except Exception as error:  # the user's code
        raise BadInput(f"importing {module_name} failed: {_first_line(error)}") from error
    for name in factory_name.split("."):
        if not hasattr(loaded, name):
            raise BadInput(f"module {module_name} has no {factory_name}")
        loaded = getattr(loaded, name)
    if not isinstance(loaded, nn.Module):
        if not callable(loaded):
            raise BadInput(f"{spec} is no function that makes a model, but {type(loaded).__name__}")
        try:
            loaded = loaded()
        except Exception as error:  # the user's code
            raise BadInput(f"{spec} failed: {_first_line(error)}") from error
    inputs: Inputs | None = None
    if isinstance(loaded, tuple) and len(loaded) == 2:
        loaded, example = loaded
        inputs = example if isinstance(example, tuple) and not isinstance(example, PackedSequence) else (example,)
    if not isinstance(loaded, nn.Module):
        raise BadInput(f"{spec} must give a module, or a module and its input, got {type(loaded).__name__}")
    return loaded, inputs


def recorded_grus(model: nn.Module, inputs: Inputs | None = None) -> list[Workload]:
    """What each GRU and GRUCell in the model is called with, for inference: runs it once, without gradients.

    Those of torch.nn and of gru_ext alike, in the order of their first calls; calls with the same sizes are counted,
    not repeated.

    Args:
        inputs: arguments for calling the model; None for a model that takes none

    Raises:
        BadInput: no GRU in it, none that is called, it cannot be called with these inputs, or an input is empty
    """
    if not any(isinstance(module, (*LAYERS, *CELLS)) for module in model.modules()):
        raise BadInput(f"the model {type(model).__name__} has no GRU")
    if inputs is None:
        try:
            inspect.signature(model.forward).bind()
        except TypeError:
            raise BadInput(
                f"the model {type(model).__name__} cannot be run without an example input: let the factory return "
                "(model, input)"
            ) from None
    counts: dict[Workload, int] = {}
    with _hooks(model, counts), torch.no_grad():
        try:
            model(*(inputs or ()))
        except BadInput:
            raise
        except Exception as error:  # the user's code
            raise BadInput(f"running the model {type(model).__name__} failed: {_first_line(error)}") from error
    if not counts:
        raise BadInput(f"the model {type(model).__name__} has GRUs, but running it calls none of them")
    return [replace(call, gru=replace(call.gru, calls=calls)) for call, calls in counts.items()]


@contextmanager
def _hooks(model: nn.Module, counts: dict[Workload, int]) -> Iterator[None]:
    """Within it every call of a GRU of the model is counted in ``counts``."""
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (*LAYERS, *CELLS)):

            def hook(module: Any, args: Any, kwargs: Any, name: str = name or type(module).__name__) -> None:
                call = _recorded(name, module, args[0] if args else kwargs["input"])
                counts[call] = counts.get(call, 0) + 1

            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorded(name: str, module: Any, input: Tensor | PackedSequence) -> Workload:
    """What this call is."""
    if isinstance(module, Frozen):
        raise BadInput(f"{name} is frozen: name the model that it was frozen from (bench --frozen freezes its layers)")
    cell = isinstance(module, CELLS)
    lengths: tuple[int, ...] | None = None
    if isinstance(input, PackedSequence):
        batch, seq_len = int(input.batch_sizes[0]), input.batch_sizes.numel()
        lengths = tuple((input.batch_sizes[None] > torch.arange(batch)[:, None]).sum(dim=1).tolist())
    elif cell:
        batch, seq_len = (1 if input.dim() == 1 else input.size(0)), 1
    else:
        batch = 1 if input.dim() == 2 else input.size(0 if module.batch_first else 1)
        seq_len = input.size(1 if module.batch_first and input.dim() == 3 else 0)
    if batch < 1 or seq_len < 1:
        raise BadInput(f"{name} was called with empty input: batch {batch}, seq_len {seq_len}")
    weight = module.weight_ih if cell else module.weight_ih_l0
    gru = GRUShape(
        batch,
        seq_len,
        module.input_size,
        module.hidden_size,
        num_layers=1 if cell else module.num_layers,
        bidirectional=not cell and module.bidirectional,
        layout=LAYOUTS[2] if lengths else LAYOUTS[1] if not cell and module.batch_first else LAYOUTS[0],
        bias=bool(module.bias),
        lengths=lengths,
        cell=cell,
        name=name,
    )
    return Workload(str(weight.dtype).removeprefix("torch."), torch.get_num_threads(), MODES[0], gru, weight.device)


def _first_line(error: Exception) -> str:
    """The kind of error, and what it says, in one line."""
    said = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {said}"
