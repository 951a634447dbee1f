"""torch.func.vmap with weights, or gradients of weights, of each member's own: all members in one call of the kernels,
against the reference, which takes all of them at once too, and against a call for each, one after the other.

One table: for each shape the milliseconds of the three, best of several turns. What gru_ext/transforms.py rests on.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, stack_module_state, vmap

import gru_ext
from gru_ext import transforms
from gru_ext.measure.machine import facts

# members, T, B, I = H
SHAPES = (
    (1024, 10, 1, 8), (64, 10, 1, 16), (64, 50, 16, 16), (8, 50, 16, 64), (256, 20, 1, 64), (256, 50, 1, 64),
    (32, 5, 1, 32), (16, 5, 1, 128), (8, 2, 1, 256),
)  # fmt: skip
TURNS = 5


def calls(members: int, seq_len: int, batch: int, size: int) -> dict[str, tuple[Callable[[], object], ...]]:
    """An ensemble forward, its gradients, and the gradients of one module for each of many samples.

    Of each the vmap, and the same as a call for each member.
    """
    models = [gru_ext.GRU(size, size) for _ in range(members)]
    stacked, _ = stack_module_state(models)
    stacked = {name: tensor.detach() for name, tensor in stacked.items()}
    shared = {name: tensor[0] for name, tensor in stacked.items()}
    samples = torch.randn(members, seq_len, batch, size)

    def output(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        result: Tensor = functional_call(models[0], parameters, (input,))[0]
        return result

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return output(parameters, input).pow(2).sum()

    def forward_in_turn() -> Tensor:
        with torch.no_grad():
            return torch.stack([model(input)[0] for model, input in zip(models, samples, strict=True)])

    def gradients_in_turn(modules: list[gru_ext.GRU]) -> list[Tensor]:
        every = [
            torch.autograd.grad(module(input)[0].pow(2).sum(), list(module.parameters()))
            for module, input in zip(modules, samples, strict=True)
        ]
        return [torch.stack(tensors) for tensors in zip(*every, strict=True)]

    return {
        "ensemble": (lambda: vmap(output)(stacked, samples), forward_in_turn),
        "ensemble, gradients": (lambda: vmap(grad(loss))(stacked, samples), lambda: gradients_in_turn(models)),
        "per-sample gradients": (
            lambda: vmap(grad(loss), (None, 0))(shared, samples),
            lambda: gradients_in_turn([models[0]] * members),
        ),
    }


def milliseconds(call: Callable[[], object], clock: Callable[[], float], kernels: bool = True) -> float:
    """By the kernels or, under a transform, by the reference."""
    serve, transforms.serve = transforms.serve, transforms.serve if kernels else lambda: False
    try:
        start = clock()
        call()
        return (clock() - start) * 1e3
    finally:
        transforms.serve = serve


def main() -> None:
    """Measure every shape and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="of all threads, for a machine with other things to do; --threads 1",
    )
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    described = facts(torch.device("cpu"))
    print(", ".join(str(described[name]) for name in ("machine", "torch", "gru_ext", "commit", "date")))
    unit = "milliseconds of processor time" if arguments.processor_time else "milliseconds"
    print(f"{arguments.threads} threads, float32, no outer gradient; {unit}, best of {TURNS} turns")
    print(f"{'(E,T,B,H)':18} {'call':22} {'one call':>9} {'reference':>9} {'in turn':>9}")
    for shape in SHAPES:
        for name, (call, in_turn) in calls(*shape).items():
            best = [float("inf")] * 3
            for _ in range(TURNS):
                taken = [milliseconds(call, clock), milliseconds(call, clock, False), milliseconds(in_turn, clock)]
                best = [min(pair) for pair in zip(best, taken, strict=True)]
            size = str(shape).replace(" ", "")
            print(f"{size:18} {name:22} " + " ".join(f"{value:9.2f}" for value in best), flush=True)


if __name__ == "__main__":
    main()
