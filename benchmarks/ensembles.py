"""torch.func.vmap with weights, or gradients of weights, of each member's own: the kernels, member by member, against
the reference, which takes all members at once. What the rule in gru_ext/transforms.py rests on.

One table: for each shape the milliseconds of both, best of several turns, and which of them the rule picks.
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


def calls(members: int, seq_len: int, batch: int, size: int) -> dict[str, Callable[[], object]]:
    """An ensemble forward, its gradients, and the gradients of one module for each of many samples."""
    models = [gru_ext.GRU(size, size) for _ in range(members)]
    stacked, _ = stack_module_state(models)
    stacked = {name: one.detach() for name, one in stacked.items()}
    shared = {name: one[0] for name, one in stacked.items()}
    samples = torch.randn(members, seq_len, batch, size)

    def output(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        result: Tensor = functional_call(models[0], parameters, (input,))[0]
        return result

    def loss(parameters: dict[str, Tensor], input: Tensor) -> Tensor:
        return output(parameters, input).pow(2).sum()

    return {
        "ensemble": lambda: vmap(output)(stacked, samples),
        "ensemble, gradients": lambda: vmap(grad(loss))(stacked, samples),
        "per-sample gradients": lambda: vmap(grad(loss), (None, 0))(shared, samples),
    }


def milliseconds(call: Callable[[], object], kernels: bool | None) -> float:
    """By the kernels, by the reference, or by whichever the rule picks (None)."""
    rule, transforms._many_and_small = transforms._many_and_small, lambda *_: not kernels
    if kernels is None:
        transforms._many_and_small = rule
    try:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    finally:
        transforms._many_and_small = rule


def main() -> None:
    """Measure every shape and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    described = facts(torch.device("cpu"))
    print(", ".join(str(described[name]) for name in ("machine", "torch", "gru_ext", "commit", "date")))
    print(f"{arguments.threads} threads, float32, no outer gradient; milliseconds, best of {TURNS} turns")
    print(f"{'(E,T,B,H)':18} {'call':22} {'kernels':>9} {'reference':>9} {'by rule':>9}")
    for shape in SHAPES:
        for name, call in calls(*shape).items():
            best: dict[bool | None, float] = {}
            for _ in range(TURNS):
                for way in (True, False, None):
                    best[way] = min(best.get(way, float("inf")), milliseconds(call, way))
            told = str(shape).replace(" ", "")
            print(f"{told:18} {name:22} {best[True]:9.2f} {best[False]:9.2f} {best[None]:9.2f}", flush=True)


if __name__ == "__main__":
    main()
