"""The clock: modules with the same weights and the same input, timed by turns in one process.

A round times each contestant once, in alternating order, so that a change in the machine's speed meets all. After a
warm-up rounds go on until the budget ends them. The ratio is that of two medians, the spread is given by the quartiles
of the rounds' own ratios.

inference: forward under torch.no_grad(). training: forward, and backward from a random gradient of the output to the
input and to every parameter. recompute: the same, with gru_ext.GRU's recompute=True. CPU times are wall time; CUDA
times are between two events on the current stream, with whatever the L2 cache holds from the call before. Where the
host launches kernels more slowly than the GPU runs them, they are the host's; replays of a CUDA graph are the GPU's
alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext.measure.measurements import quartiles
from gru_ext.measure.workloads import RECOMPUTE, TF32, TORCH_TF32, GRUShape, Workload

TIMING_SECONDS = 0.002  # one timing holds enough calls to last this long, far above the clock's resolution
WARM_UP_SECONDS = 0.05
LEAST_ROUNDS, LEAST_ROUNDS_QUICK, MOST_ROUNDS = 7, 3, 1000
# torch.nn.GRU in bfloat16 takes up to a minute a call where the processor has no bfloat16 instructions.
LONG_CALL_SECONDS = 1.0  # one such is warm-up enough
LONG_SECONDS = 30.0  # a workload that has taken so long ends with LEAST_ROUNDS_QUICK


@dataclass(frozen=True)
class Budget:
    """When a workload has been measured enough.

    Attributes:
        seconds: of rounds, beside the warm-up
        least_rounds: that are made even so; LEAST_ROUNDS_QUICK once they take longer than LONG_SECONDS
        spread: rounds end before the time is up when the quartiles of the ratio are no further apart than this share
            of the lower one; 0 uses all the time
    """

    seconds: float = 4.0
    least_rounds: int = LEAST_ROUNDS
    spread: float = 0.0

    def spent(self, ratios: list[float], taken: float) -> bool:
        """Whether rounds with these ratios, which took so many seconds, are enough."""
        if len(ratios) >= MOST_ROUNDS:
            return True
        if len(ratios) < (self.least_rounds if taken < LONG_SECONDS else LEAST_ROUNDS_QUICK):
            return False
        if taken >= self.seconds:
            return True
        low, _, high = quartiles(ratios)
        return high <= (1 + self.spread) * low and self.spread > 0


def timed(call: Callable[[], object], calls: int, device: torch.device) -> float:
    """Milliseconds for one call, averaged over `calls` calls in a row."""
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / calls
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) * 1e3 / calls


def warm_up(call: Callable[[], object], device: torch.device) -> int:
    """Run until caches and allocator have settled; returns how many calls make one timing."""
    if timed(call, 1, device) > LONG_CALL_SECONDS * 1e3:
        return 1
    deadline = time.perf_counter() + WARM_UP_SECONDS
    fastest = timed(call, 1, device)
    while time.perf_counter() < deadline:
        fastest = min(fastest, timed(call, 1, device))
    return max(1, round(TIMING_SECONDS * 1e3 / max(fastest, 1e-4)))


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """The replay of a CUDA graph of the call."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what libraries do at their first call is not for a graph
        call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def values(result: Any) -> Tensor:
    """The output's tensor of what a GRU, an LSTM or a cell of theirs returned, packed or not."""
    output = result[0] if isinstance(result, tuple) else result
    return output.data if isinstance(output, PackedSequence) else output


def make_call(
    module: nn.Module,
    mode: str,
    data: Tensor | PackedSequence,
    grad_output: Tensor,
    run: Callable[[Any], Any] | None = None,
) -> Callable[[], object]:
    """The function to be timed: a call in the mode, of ``run`` or the module, when training backward from grad_output.

    It returns what ``run`` does, when training the gradients of the input and of the module's parameters.
    """
    run = run or module
    module.train(mode != "inference")  # cuDNN keeps what backward needs in train mode, even under no_grad
    if mode == "inference":

        def inference() -> object:
            with torch.no_grad():
                return run(data)

        return inference

    rows = data.data if isinstance(data, PackedSequence) else data
    inputs = [rows.detach().requires_grad_(), *module.parameters()]
    arguments = data._replace(data=inputs[0]) if isinstance(data, PackedSequence) else inputs[0]

    def training() -> object:
        return torch.autograd.grad(values(run(arguments)), inputs, grad_output)

    return training


def make_module(kind: type[nn.Module], gru: GRUShape, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A GRU, LSTM or cell of these sizes, on the device."""
    options: dict[str, Any] = {"bias": gru.bias, "device": device, "dtype": dtype}
    if not gru.cell:
        options |= {"num_layers": gru.num_layers, "bidirectional": gru.bidirectional}
        options["batch_first"] = gru.layout == "batch-first"
    return kind(gru.input_size, gru.hidden_size, **options)


def contestants(workload: Workload, seed: int = 0) -> tuple[list[nn.Module], Tensor | PackedSequence]:
    """torch.nn.GRU and gru_ext.GRU of equal weights, or their cells, and the input; torch is set as the workload is."""
    gru, device, dtype = workload.gru, workload.device, workload.torch_dtype
    torch.backends.cuda.matmul.allow_tf32 = workload.dtype == TF32
    torch.backends.cudnn.allow_tf32 = workload.dtype in (TF32, TORCH_TF32)
    torch.manual_seed(seed)
    torch.set_num_threads(workload.threads)
    kinds: list[type[nn.Module]]
    kinds = [nn.GRUCell, gru_ext.GRUCell] if gru.cell else [nn.GRU, gru_ext.GRU]
    modules = [make_module(kind, gru, device, dtype) for kind in kinds]
    modules[1].load_state_dict(modules[0].state_dict())
    if workload.mode == RECOMPUTE and not gru.cell:
        modules[1].recompute = True  # type: ignore[assignment]
    return modules, gru.random_input(device, dtype)


def measure(workload: Workload, budget: Budget, lstm: bool = False, seed: int = 0) -> dict[str, Any]:
    """Time torch.nn.GRU, gru_ext.GRU and, when asked, torch.nn.LSTM by turns in one workload.

    Of a GRUCell they are torch.nn.GRUCell, gru_ext.GRUCell and torch.nn.LSTMCell.

    Returns:
        those fields of a Measurement that are measured

    Raises:
        RuntimeError: what torch raises, such as for want of memory
    """
    gru, device = workload.gru, workload.device
    modules, data = contestants(workload, seed)
    with torch.no_grad():  # a fast wrong answer is no result
        outputs = [values(module(data)) for module in modules]
    difference = (outputs[0].double() - outputs[1].double()).abs().max().item()
    grad_output = torch.randn_like(outputs[0])
    if lstm:
        modules.append(make_module(nn.LSTMCell if gru.cell else nn.LSTM, gru, device, workload.torch_dtype))

    calls_of = [make_call(module, workload.mode, data, grad_output) for module in modules]
    if workload.graph:
        calls_of = [captured(call) for call in calls_of]
    calls, times = by_turns(calls_of, budget, device)
    fields: dict[str, Any] = {"rounds": len(times[0]), "calls": calls, "largest_difference": difference}
    for name, of in zip(("torch", "gru_ext", "lstm"), times, strict=False):
        fields |= time_columns(name, of)
    return fields | ratio_columns("ratio", times[0], times[1])


def by_turns(
    calls_of: Sequence[Callable[[], object]], budget: Budget, device: torch.device
) -> tuple[int, list[list[float]]]:
    """How many calls make one timing, and the milliseconds of each call by rounds, until the budget ends them.

    The budget sees the ratios of the first to the second.
    """
    calls = max(warm_up(call, device) for call in calls_of)
    times: list[list[float]] = [[] for _ in calls_of]
    ratios: list[float] = []
    begin = time.perf_counter()
    while not budget.spent(ratios, time.perf_counter() - begin):
        for which in range(len(calls_of)) if len(ratios) % 2 == 0 else reversed(range(len(calls_of))):
            times[which].append(timed(calls_of[which], calls, device))
        ratios.append(times[0][-1] / times[1][-1])
    return calls, times


def time_columns(name: str, times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = quartiles(times)
    return {f"{name}_ms_q1": low, f"{name}_ms": median, f"{name}_ms_q3": high}


def ratio_columns(name: str, over: Sequence[float], under: Sequence[float]) -> dict[str, float]:
    """The ratio of the medians, and the quartiles of the rounds' own ratios."""
    low, _, high = quartiles(a / b for a, b in zip(over, under, strict=True))
    return {f"{name}_q1": low, name: quartiles(over)[1] / quartiles(under)[1], f"{name}_q3": high}
