"""An ensemble for the operators that take all its members at once, and the same computed member by member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gru_ext import ops
from gru_ext.ops import Options

SIZES = [3, 3, 2, 1]  # batch_sizes of packed input


@dataclass(frozen=True)
class Ensemble:
    """M members of one layer; ``shared`` names what is one tensor for all: "input", "hx", "weights" or "biases"."""

    members: int = 5
    seq_len: int = 6
    batch: int = 3
    input_size: int = 4
    hidden_size: int = 7
    dtype: torch.dtype = torch.float32
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    packed: bool = False
    recompute: bool = False
    shared: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A short name for test ids."""
        words = [f"M{self.members}T{self.seq_len}B{self.batch}I{self.input_size}H{self.hidden_size}"]
        words.append(str(self.dtype).split(".")[1])
        words += [name for name in ("bidirectional", "batch_first", "packed") if getattr(self, name)]
        return "-".join([*words, *([] if self.bias else ["no_bias"]), *(f"shared_{name}" for name in self.shared)])


VARIANTS = [
    Ensemble(),
    Ensemble(bidirectional=True, batch_first=True),
    Ensemble(bidirectional=True, bias=False, shared=("input",)),
    Ensemble(packed=True, bidirectional=True, shared=("hx",)),
    Ensemble(packed=True, shared=("weights", "biases")),
    Ensemble(batch_first=True, shared=("weights",)),
    Ensemble(shared=("biases", "input", "hx")),
    Ensemble(members=1, bias=False),
    Ensemble(seq_len=1, batch=1),
    Ensemble(seq_len=9, batch=17, hidden_size=33, input_size=17, members=3, bidirectional=True),
]


def arguments(case: Ensemble, device: str = "cpu") -> dict[str, Any]:
    """The arguments of ``forward`` but the last, save."""
    generator = torch.Generator().manual_seed(7)

    def draw(name: str, *shape: int, scale: float = 1.0) -> Tensor:
        own = shape if name in case.shared else (case.members, *shape)
        return (torch.randn(own, generator=generator, dtype=torch.float64) * scale).to(device, case.dtype)

    directions, gates = 1 + case.bidirectional, 3 * case.hidden_size
    scale = gates**-0.5
    weights = []
    for _ in range(directions):
        for width in (case.input_size, case.hidden_size):
            weights.append(draw("weights", gates, width, scale=scale))
        weights += [draw("biases", gates, scale=scale) for _ in range(2 if case.bias else 0)]
    batch = SIZES[0] if case.packed else case.batch
    steps = (case.batch, case.seq_len) if case.batch_first else (case.seq_len, case.batch)
    return {
        "input": draw("input", *((sum(SIZES),) if case.packed else steps), case.input_size),
        "hx": draw("hx", directions, batch, case.hidden_size),
        "weights": weights,
        "batch_sizes": torch.tensor(SIZES) if case.packed else None,
        "lengths": None,
        "resets": None,
        "reset_state": None,
        "options": Options(directions, int(case.batch_first), int(case.recompute)),
        "members": case.members,
    }


def incoming(case: Ensemble, output: Tensor, h_n: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the results: the same for the same case, all members together or one after the other."""
    generator = torch.Generator().manual_seed(8)
    drawn = [torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for tensor in (output, h_n)]
    return drawn[0].to(output.device, case.dtype), drawn[1].to(output.device, case.dtype)


def together(case: Ensemble, device: str = "cpu") -> dict[str, Tensor]:
    """Results, what is saved and every gradient, of all members in one call each way."""
    return both_ways(arguments(case, device), lambda output, h_n: incoming(case, output, h_n))


def needs(operands: dict[str, Any]) -> list[bool]:
    """The flags of backward that ask for every gradient that there is."""
    return [True, True, operands["reset_state"] is not None, *[True] * len(operands["weights"])]


def both_ways(
    operands: dict[str, Any], incoming: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Results, what is saved and every gradient of one call each way, by name, for the gate."""
    output, h_n, saved = ops.forward(*operands.values(), True)
    gradients = ops.backward(*incoming(output, h_n), saved, needs(operands), *operands.values())
    of_tensors = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
    return {"output": output, "h_n": h_n, "saved": saved, **of_tensors}


def member(case: Ensemble, operands: dict[str, Any], index: int) -> dict[str, Any]:
    """The arguments of one member's own call."""

    def of(name: str, tensor: Tensor) -> Tensor:
        return tensor if name in case.shared else tensor[index]

    names = ["weights", "weights", *(["biases"] * 2 if case.bias else [])] * 2
    weights = [of(name, weight) for name, weight in zip(names, operands["weights"], strict=False)]
    input, hx = of("input", operands["input"]), of("hx", operands["hx"])
    return {**operands, "input": input, "hx": hx, "weights": weights, "members": None}


def in_turn(
    case: Ensemble, compute: Callable[[dict[str, Any], Tensor, Tensor], dict[str, Tensor]], device: str = "cpu"
) -> dict[str, Tensor]:
    """The same, stacked, where compute(arguments, grad_output, grad_h_n) computes a member."""
    operands = arguments(case, device)
    directions, batch, hidden_size = operands["hx"].shape[-3:]
    output = torch.empty(
        case.members, *operands["input"].shape[-3 + case.packed : -1], directions * hidden_size, device=device
    )
    grads = incoming(case, output, torch.empty(case.members, directions, batch, hidden_size, device=device))
    every = [compute(member(case, operands, index), grads[0][index], grads[1][index]) for index in range(case.members)]
    return {name: torch.stack([results[name] for results in every]) for name in every[0]}


def by_operator(operands: dict[str, Any], *grads: Tensor) -> dict[str, Tensor]:
    """A member by the operators of a single layer."""
    return both_ways(operands, lambda *_: (grads[0], grads[1]))


def by_torch(dtype: torch.dtype) -> Callable[[dict[str, Any], Tensor, Tensor], dict[str, Tensor]]:
    """A member by nn.GRU in this dtype."""

    def compute(operands: dict[str, Any], grad_output: Tensor, grad_h_n: Tensor) -> dict[str, Tensor]:
        layer = ops.Arguments(**operands)
        roles = len(layer.weights) // layer.directions
        module = nn.GRU(
            layer.input.shape[-1],
            layer.weights[1].shape[-1],
            bias=roles == 4,
            bidirectional=layer.directions == 2,
            batch_first=layer.batch_first,
            dtype=dtype,
        )
        with torch.no_grad():
            for weight, value in zip(module.parameters(), layer.weights, strict=True):
                weight.copy_(value)
        input, hx = (operands[name].to(dtype).requires_grad_() for name in ("input", "hx"))
        packed = layer.batch_sizes is not None
        output, h_n = module(PackedSequence(input, layer.batch_sizes) if packed else input, hx)
        rows = output.data if packed else output
        gradients = torch.autograd.grad(
            [rows, h_n], [input, hx, *module.parameters()], [grad_output.to(dtype), grad_h_n.to(dtype)]
        )
        of_tensors = {f"gradient {i}": gradient for i, gradient in enumerate(gradients)}
        return {"output": rows.detach(), "h_n": h_n.detach(), **of_tensors}

    return compute
