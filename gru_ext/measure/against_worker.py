"""The process that against.py runs for a checkout, by path: it knows nothing but the modules of the gru_ext it finds.

Every checkout has those, however old; operators and all else may be of another version. The argument is a task in JSON,
the name of a function and its arguments; the last line printed is what it returns.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

DTYPES = ("float32", "float64", "bfloat16", "float16")
TIMING_SECONDS = 0.002


def calls(shape: Sequence[int], dtype: str) -> dict[str, Callable[[], Any]]:
    """Calls of the modules with the gru_ext that this process finds: inference, recorded forward, training."""
    import torch

    import gru_ext

    torch.manual_seed(0)
    batch, seq_len, input_size, hidden_size = shape
    modules: dict[str, torch.nn.Module] = {"GRU": gru_ext.GRU(input_size, hidden_size, dtype=getattr(torch, dtype))}
    if seq_len == 1:
        modules["GRUCell"] = gru_ext.GRUCell(input_size, hidden_size, dtype=getattr(torch, dtype))
    passes: dict[str, Callable[[], Any]] = {}

    def run(record: bool, module: Any, input: Any) -> Any:
        with torch.set_grad_enabled(record):
            results = module(input)
        return results[0] if isinstance(results, tuple) else results

    def train(module: Any, input: Any, gradient: Any) -> Any:
        return torch.autograd.grad(run(True, module, input), [input, *module.parameters()], gradient)

    for name, module in modules.items():
        sizes = (batch,) if name == "GRUCell" else (seq_len, batch)
        input = torch.randn(*sizes, input_size).to(getattr(torch, dtype)).requires_grad_()
        passes[f"{name} inference"] = partial(run, False, module, input)
        passes[f"{name} forward"] = partial(run, True, module, input)
        passes[f"{name} training"] = partial(train, module, input, torch.ones_like(run(False, module, input)))
    return passes


def fastest(shape: Sequence[int], dtype: str, threads: int, seconds: float) -> dict[str, float]:
    """Milliseconds of each of :func:`calls` in this process."""
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
        times[name] = 1e3 * min(timings)
    return times


def digests(target: str, threads: int) -> dict[str, str]:
    """A digest of every output and gradient of many modules, by SIMD target and number of threads."""
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence

    import gru_ext

    gru_ext._C.set_cpu_target(target)
    torch.set_num_threads(threads)
    results: dict[str, str] = {}
    options: list[dict[str, Any]] = [{}, {"bidirectional": True, "num_layers": 2}]
    options += [{"batch_first": True, "bias": False}, {"recompute": True}]
    sizes = ((1, 1, 3, 5), (3, 7, 5, 33), (17, 12, 40, 64), (33, 4, 9, 130), (2, 40, 16, 200))
    for dtype, shape, option in product(DTYPES, sizes, options):
        torch.manual_seed(0)
        batch, seq_len, input_size, hidden_size = shape
        module = gru_ext.GRU(input_size, hidden_size, dtype=getattr(torch, dtype), **option)
        rows = (batch, seq_len) if module.batch_first else (seq_len, batch)
        padded = torch.randn(*rows, input_size).to(getattr(torch, dtype)).requires_grad_()
        lengths = [1 + (5 * index) % seq_len for index in range(batch)]
        packed = pack_padded_sequence(padded, lengths, module.batch_first, enforce_sorted=False)
        cell = gru_ext.GRUCell(input_size, hidden_size, dtype=padded.dtype)
        step = padded[0] if not module.batch_first else padded[:, 0]
        outputs = {"padded": module(padded)[0], "packed": module(packed)[0].data, "cell": cell(step)}
        for name, output in outputs.items():
            leaves = [padded, *(cell if name == "cell" else module).parameters()]
            gradients = torch.autograd.grad(output.float().pow(2).sum(), leaves)
            digest = hashlib.sha256()
            for tensor in (output, *gradients):
                tensor = tensor.detach().contiguous()
                digest.update(ctypes.string_at(tensor.data_ptr(), tensor.nbytes))  # without numpy, which may be missing
            results[f"{dtype} {shape} {option} {name}"] = digest.hexdigest()
    return results


if __name__ == "__main__":
    folder = Path(__file__).resolve().parent  # Python puts it first, where its modules would hide those of other names
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != folder]
    name, *arguments = json.loads(sys.argv[1])
    print(json.dumps(fastest(*arguments) if name == "fastest" else digests(*arguments)))
