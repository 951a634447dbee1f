"""Whether a change costs time: the bare passes of two built checkouts, by turns, each in processes of its own.

    python benchmarks/before_after.py ../before ../after                  # small shapes, where an overhead shows
    python benchmarks/before_after.py ../before . --shapes 32,128,256,256 --threads 1 2 --rounds 40

A round runs both, in alternating order, so that a change in the machine's speed meets both; a process takes the
fastest of many short timings, for whatever else the machine does makes a timing longer, never shorter. Printed are the
fastest of all rounds and the quartiles of the rounds' own ratios, after over before: 1.00 is no difference. Two
processes of the same checkout differ by a per cent or two, for memory lies elsewhere: compare one with itself first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

# No module of gru_ext beside the operators: the other checkout may be older than they.
SHAPES = ["1,1,64,64", "1,100,80,256", "32,100,10,64"]  # B,T,I,H
DTYPES = ("float32", "float64", "bfloat16", "float16")
TIMING_SECONDS = 0.002


def fastest(shape: str, dtype: str, threads: int, seconds: float) -> dict[str, float]:
    """Microseconds of inference, forward and backward in this process, with the gru_ext that it finds."""
    import torch

    import gru_ext

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    batch, seq_len, input_size, hidden_size = map(int, shape.split(","))
    gru = gru_ext.GRU(input_size, hidden_size, dtype=getattr(torch, dtype))
    weights = [weight.detach() for weight in gru.parameters()]
    input = torch.randn(seq_len, batch, input_size).to(weights[0].dtype)
    hx = torch.zeros(1, batch, hidden_size, dtype=input.dtype)
    forward, backward = torch.ops.gru_ext.forward, torch.ops.gru_ext.backward
    output, _, saved = forward(input, hx, weights, None, False, True, False)
    needs = [True] * (2 + len(weights))
    passes = {
        "inference": lambda: forward(input, hx, weights, None, False, False, False),
        "forward": lambda: forward(input, hx, weights, None, False, True, False),
        "backward": lambda: backward(output, None, input, hx, weights, saved, None, False, needs),
    }
    found = {}
    for name, run in passes.items():
        run()
        begin = time.perf_counter()
        run()
        calls = max(1, int(TIMING_SECONDS / (time.perf_counter() - begin)))
        times: list[float] = []
        deadline = time.perf_counter() + seconds
        while not times or time.perf_counter() < deadline:
            begin = time.perf_counter()
            for _ in range(calls):
                run()
            times.append((time.perf_counter() - begin) / calls)
        found[name] = 1e6 * min(times)
    return found


def in_checkout(checkout: Path, task: list[object]) -> dict[str, float]:
    """The same with the gru_ext of a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve())}
    command = [sys.executable, __file__, "--task", json.dumps(task)]
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> int:
    """Measure and print, a line a pass."""
    if sys.argv[1:2] == ["--task"]:
        print(json.dumps(fastest(*json.loads(sys.argv[2]))))
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
    arguments = parser.parse_args()
    checkouts = {"before": arguments.before, "after": arguments.after}
    for name, checkout in checkouts.items():
        if not (checkout / "gru_ext" / "_build_config.json").is_file():
            parser.error(f"{name}: {checkout} is no checkout with a build in place")
    print(f"{'microseconds':38}{'before':>10}{'after':>10}   after/before, quartiles")
    for threads in arguments.threads:
        for shape in arguments.shapes:
            rounds: dict[str, list[dict[str, float]]] = {"before": [], "after": []}
            for number in range(arguments.rounds):
                for name in list(checkouts)[:: -1 if number % 2 else 1]:
                    task = [shape, arguments.dtype, threads, arguments.seconds]
                    rounds[name].append(in_checkout(checkouts[name], task))
            for which in rounds["before"][0]:
                before, after = ([one[which] for one in rounds[name]] for name in checkouts)
                ratios = [two / one for one, two in zip(before, after, strict=True)]
                quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
                title = f"({shape}) {which}, {threads} thread{'s' * (threads > 1)}"
                spread = " ".join(f"{value:.3f}" for value in quartiles)
                print(f"{title:38}{min(before):10.2f}{min(after):10.2f}   {spread}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
