"""Whether a change costs time or changes a bit: two built checkouts by turns, each in processes of its own.

    python benchmarks/before_after.py ../before ../after                  # small shapes, where an overhead shows
    python benchmarks/before_after.py ../before . --shapes 32,128,256,256 --threads 1 2 --rounds 40
    python benchmarks/before_after.py ../before . --bits portable avx2 --threads 1 2   # outputs and gradients, no times

A round runs both, in alternating order, so that a change in the machine's speed meets both; a process takes the
fastest of many short timings, for whatever else the machine does makes a timing longer, never shorter. Printed are the
fastest of all rounds and the quartiles of the rounds' own ratios, after over before: 1.00 is no difference. Two
processes of the same checkout differ by a per cent or two, for memory lies elsewhere: compare one with itself first.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

# The modules alone, which every checkout has: operators and all else may be of another version.
SHAPES = ["1,1,64,64", "1,100,80,256", "32,100,10,64"]  # B,T,I,H
DTYPES = ("float32", "float64", "bfloat16", "float16")
TIMING_SECONDS = 0.002


def calls(shape: str, dtype: str) -> dict[str, Callable[[], Any]]:
    """Calls of the modules with the gru_ext that this process finds: inference, recorded forward, training."""
    import torch

    import gru_ext

    torch.manual_seed(0)
    batch, seq_len, input_size, hidden_size = map(int, shape.split(","))
    cell_like = seq_len == 1
    modules: dict[str, torch.nn.Module] = {"GRU": gru_ext.GRU(input_size, hidden_size, dtype=getattr(torch, dtype))}
    if cell_like:
        modules["GRUCell"] = gru_ext.GRUCell(input_size, hidden_size, dtype=getattr(torch, dtype))
    passes: dict[str, Callable[[], Any]] = {}

    def train(run: Any, tensors: Any, gradient: Any) -> Any:
        return torch.autograd.grad(run(True), tensors, gradient)

    for name, module in modules.items():
        sizes = (batch,) if name == "GRUCell" else (seq_len, batch)
        input = torch.randn(*sizes, input_size).to(next(module.parameters()).dtype).requires_grad_()
        tensors = [input, *module.parameters()]

        def run(record: bool, module: Any = module, input: Any = input) -> Any:
            with torch.set_grad_enabled(record):
                results = module(input)
            return results[0] if isinstance(results, tuple) else results

        gradient = torch.ones_like(run(False))
        passes[f"{name} inference"] = partial(run, False)
        passes[f"{name} forward"] = partial(run, True)
        passes[f"{name} training"] = partial(train, run, tensors, gradient)
    return passes


def fastest(shape: str, dtype: str, threads: int, seconds: float) -> dict[str, float]:
    """Microseconds of each of :func:`calls` in this process."""
    import torch

    torch.set_num_threads(threads)
    times: dict[str, float] = {}
    for name, run in calls(shape, dtype).items():
        run()
        begin = time.perf_counter()
        run()
        repeats = max(1, int(TIMING_SECONDS / (time.perf_counter() - begin)))
        timings: list[float] = []
        deadline = time.perf_counter() + seconds
        while not timings or time.perf_counter() < deadline:
            begin = time.perf_counter()
            for _ in range(repeats):
                run()
            timings.append((time.perf_counter() - begin) / repeats)
        times[name] = 1e6 * min(timings)
    return times


def digests(target: str, threads: int) -> dict[str, str]:
    """A digest of every output and gradient of many modules, by SIMD target and number of threads."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    import gru_ext

    gru_ext._C.set_cpu_target(target)
    torch.set_num_threads(threads)
    results: dict[str, str] = {}
    options: list[dict[str, Any]] = [
        {},
        {"bidirectional": True, "num_layers": 2},
        {"batch_first": True, "bias": False},
        {"recompute": True},
    ]
    sizes = ((1, 1, 3, 5), (3, 7, 5, 33), (17, 12, 40, 64), (33, 4, 9, 130), (2, 40, 16, 200))
    for dtype, shape, option in product(DTYPES, sizes, options):
        torch.manual_seed(0)
        batch, seq_len, input_size, hidden_size = shape
        module = gru_ext.GRU(input_size, hidden_size, dtype=getattr(torch, dtype), **option)
        rows = (batch, seq_len) if module.batch_first else (seq_len, batch)
        padded = torch.randn(*rows, input_size).to(next(module.parameters()).dtype).requires_grad_()
        lengths = [1 + (5 * index) % seq_len for index in range(batch)]
        packed = pack_padded_sequence(padded, lengths, module.batch_first, enforce_sorted=False)
        cell = gru_ext.GRUCell(input_size, hidden_size, dtype=padded.dtype)
        step = padded[0] if not module.batch_first else padded[:, 0]
        for name, output in {
            "padded": module(padded)[0], "packed": module(packed)[0].data, "cell": cell(step)
        }.items():  # fmt: skip
            leaves = [padded, *(cell if name == "cell" else module).parameters()]
            gradients = torch.autograd.grad(output.float().pow(2).sum(), leaves)
            digest = hashlib.sha256()
            for tensor in (output, *gradients):
                digest.update(tensor.detach().contiguous().view(torch.uint8).numpy().tobytes())
            results[f"{target}, {threads} threads, {dtype} {shape} {option} {name}"] = digest.hexdigest()
    return results


def in_checkout(checkout: Path, task: list[object]) -> dict[str, Any]:
    """A task, which is the arguments of :func:`fastest` or of :func:`digests`, with the gru_ext of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def same_bits(checkouts: dict[str, Path], tasks: list[list[object]]) -> int:
    """Compares the results of two checkouts; 1 where one differs."""
    different = 0
    for task in tasks:
        before, after = (in_checkout(checkout, task) for checkout in checkouts.values())
        names = [name for name in before if before[name] != after.get(name)]
        print("\n".join([f"{len(before) - len(names)} results of {task} are the same", *map("  not {}".format, names)]))
        different += len(names)
    return int(different > 0)


def main() -> int:
    """Measure and print, a line a pass."""
    if sys.argv[1:2] == ["--task"]:
        task = json.loads(sys.argv[2])
        print(json.dumps(digests(*task) if len(task) == 2 else fastest(*task)))
        return 0
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("before", type=Path, help="a checkout with its build in place")
    add("after", type=Path, help="another")
    add("--shapes", nargs="+", default=SHAPES, metavar="B,T,I,H")
    add("--dtype", choices=DTYPES, default="float32")
    add("--threads", nargs="+", type=int, default=[1], metavar="N")
    add("--rounds", type=int, default=20)
    add("--seconds", type=float, default=0.5, help="for each pass in a round")
    add("--bits", nargs="+", metavar="TARGET", help="compare every bit of results by these SIMD targets, and no times")
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before, "after": arguments.after}
    for name, checkout in checkouts.items():
        if not (checkout / "gru_ext" / "_build_config.json").is_file():
            parser.error(f"{name}: {checkout} is no checkout with a build in place")
    if arguments.bits:
        return same_bits(checkouts, [[target, threads] for target in arguments.bits for threads in arguments.threads])
    print(f"{'microseconds':38}{'before':>10}{'after':>10}   after/before, quartiles")
    for threads in arguments.threads:
        for shape in arguments.shapes:
            rounds: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
            for number in range(arguments.rounds):
                for name in list(checkouts)[:: -1 if number % 2 else 1]:
                    task = [shape, arguments.dtype, threads, arguments.seconds]
                    rounds[name].append(in_checkout(checkouts[name], task))
            for which in rounds["before"][0]:
                before, after = ([times[which] for times in rounds[name]] for name in checkouts)
                ratios = [new / old for old, new in zip(before, after, strict=True)]
                quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                title = f"({shape}) {which}, {threads} thread{'s' * (threads > 1)}"
                spread = " ".join(f"{value:.3f}" for value in quartiles)
                print(f"{title:38}{min(before):10.2f}{min(after):10.2f}   {spread}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
