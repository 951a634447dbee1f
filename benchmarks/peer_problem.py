"""What every framework is given in peers.py, and how far its answer may be from the truth.

The weights, the input and the gradient of the output are drawn once and rounded to the dtype under test; each framework
gets those numbers. The truth is torch.nn.GRU in float64 of the same numbers. An answer is judged tensor by tensor by
its relative error, |answer - truth| / |truth| in the Euclidean norm, and the bound is measure.sequences.tolerance. Over
workloads.SHAPES that is 1e-6 to 2e-5 in float32, 4 to 14 percent in bfloat16. A gate mistaken for another or a bias
left out is wrong by more, and products in a narrower type than asked for are wrong by a hundred times the float32
bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gru_ext.measure.sequences import draw_resets, split, tolerance

WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
GRADIENTS = ("dX", "dW_ih", "dW_hh", "db_ih", "db_hh")

Results = Mapping[str, Tensor]


class Absent(Exception):
    """A framework that cannot be imported; the message is one sentence for the user."""


class Wrong(Exception):
    """An answer further from the truth than its dtype explains; the message is one sentence for the user."""


@dataclass(frozen=True)
class Problem:
    """One layer, its input and the gradient of its output, of one dtype."""

    mode: str  # inference or training
    data: Tensor  # [T, B, I]
    weights: dict[str, Tensor]  # by the names of WEIGHTS: [3H, I], [3H, H], [3H], [3H], gates in the order r, z, n
    grad_output: Tensor  # [T, B, H]
    truth: dict[str, Tensor] = field(repr=False)  # float64
    resets: Tensor | None = None  # bool [T, B], where a sequence begins anew, from zero

    @property
    def dtype(self) -> torch.dtype:
        """Of every number given."""
        return self.data.dtype

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, T, I, H)"""
        seq_len, batch, input_size = self.data.shape
        return batch, seq_len, input_size, self.grad_output.shape[2]

    def module(self, kind: Callable[..., nn.RNNBase]) -> nn.RNNBase:
        """A torch module of this kind with these weights."""
        module = kind(*self.shape[2:], dtype=self.dtype)
        module.load_state_dict(self.weights)
        return module.train(self.mode == "training")


@dataclass(frozen=True)
class Prepared:
    """A way to compute the problem, ready to be timed.

    call makes the whole call as a user makes it, and returns when the answer is there. results turns what call returned
    into tensors by name: output [T, B, H] and h_n [1, B, H] in inference, output and GRADIENTS in training.
    """

    variant: str  # "" for a peer that has but one
    call: Callable[[], Any]
    results: Callable[[Any], Results]


class Peer(Protocol):
    """A framework, or rather the way to ask it for one GRU layer."""

    name: str
    takes_resets: bool  # measured with resets alone, or without alone

    def version(self) -> str:
        """Names and versions of its packages. Raises Absent."""

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Whether it is measured in this mode and dtype."""

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """Each way to ask it for the answer; the fastest one counts."""


def make_problem(shape: tuple[int, int, int, int], dtype: torch.dtype, mode: str, seed: int, every: int = 0) -> Problem:
    """Draw the numbers for (B, T, I, H) and compute the truth; every: 0, or as sequences.draw_resets has it."""
    batch, seq_len, input_size, hidden_size = shape
    torch.manual_seed(seed)
    weights = {
        name: weight.detach() for name, weight in nn.GRU(input_size, hidden_size, dtype=dtype).named_parameters()
    }
    data = torch.randn(seq_len, batch, input_size, dtype=dtype)
    grad_output = torch.randn(seq_len, batch, hidden_size, dtype=dtype)

    double = nn.GRU(input_size, hidden_size, dtype=torch.float64)
    double.load_state_dict(weights)
    exact = data.double().requires_grad_()
    resets = draw_resets((seq_len, batch), every, seed) if every else None
    with torch.set_grad_enabled(mode == "training"):
        output = double(exact)[0] if resets is None else split(double, resets, False, exact)
    truth = {"output": output.detach(), "h_n": output[-1:].detach()}
    if mode == "training":
        gradients = torch.autograd.grad(output, [exact, *double.parameters()], grad_output.double())
        truth = {"output": truth["output"], **dict(zip(GRADIENTS, gradients, strict=True))}
    return Problem(mode, data, weights, grad_output, truth, resets)


def check(problem: Problem, results: Results) -> float:
    """The largest relative error among the results. Raises Wrong where it is beyond the tolerance."""
    if set(results) != set(problem.truth):
        raise Wrong(f"gave {', '.join(results)} where {', '.join(problem.truth)} were expected")
    bound = tolerance(problem.dtype, problem.shape)
    largest = 0.0
    for name, truth in problem.truth.items():
        result = results[name].double()
        if result.shape != truth.shape:
            raise Wrong(f"{name} has the shape {tuple(result.shape)} where {tuple(truth.shape)} was expected")
        norm = truth.norm().item()
        # dW_hh of a single step is zero, and only zero is near to it.
        error = (result - truth).norm().item() / (norm or torch.finfo(torch.float64).tiny)
        if not error <= bound:
            raise Wrong(f"{name} has a relative error of {error:.1e} where {bound:.1e} is allowed")
        largest = max(largest, error)
    return largest
