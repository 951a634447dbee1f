"""The clock within the CPU kernels: its phases are all of a pass's time, and it changes no result."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import gate
import pytest
import torch

import gru_ext
from gru_ext import _C
from gru_ext.measure.calls import call
from gru_ext.measure.phases import REST, PassPhases, phase_clock, phase_times

# B, T, I, H; which reach a pass over units and over the batch, several stretches, few rows, a single step.
SHAPES = [(1, 100, 80, 256), (40, 30, 20, 65), (3, 3, 10, 70), (2, 1, 16, 64)]


@pytest.fixture(autouse=True)
def clock_off() -> Iterator[None]:
    """Off before and after, and nothing counted."""
    with phase_clock():
        pass
    yield
    _C.set_phase_clock(False)


def layer(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float32, recompute: bool = False
) -> tuple[gru_ext.GRU, torch.Tensor]:
    """A module and its input, which wants a gradient."""
    batch, seq_len, input_size, hidden_size = shape
    module = gru_ext.GRU(input_size, hidden_size, dtype=dtype, recompute=recompute)
    return module, torch.randn(seq_len, batch, input_size).to(dtype).requires_grad_()


def results(module: gru_ext.GRU, data: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output and every gradient of a training step."""
    output, h_n = module(data)
    wanted = {"input": data, **dict(module.named_parameters())}
    gradients = torch.autograd.grad(output.float().sum() + h_n.float().sum(), list(wanted.values()))
    return {"output": output.detach(), **dict(zip(wanted, gradients, strict=True))}


def phases_of(kernel: PassPhases) -> dict[str, float]:
    """Seconds by phase."""
    return {phase.phase: phase.seconds for phase in kernel.phases}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_phases_sum_to_the_passes_time(shape: tuple[int, int, int, int], threads: int) -> None:
    """Every nanosecond of the threads is in a phase or in the rest; the passes' time is within what the caller saw.

    Where there is much work, the rest is small, and the passes' time is most of the caller's.
    """
    torch.set_num_threads(threads)
    module, data = layer(shape)
    call(module, (data,), True)
    with phase_clock():
        begin = time.perf_counter()
        for _ in range(20):
            call(module, (data,), True)
        seen = time.perf_counter() - begin
    passes = phase_times()
    much_work = shape == SHAPES[0] and threads == 1
    assert 0.7 * seen * much_work < sum(kernel.seconds for kernel in passes) < seen
    assert [kernel.name for kernel in passes] == ["forward", "backward"]
    for kernel in passes:
        assert kernel.calls == 20 and 1 <= kernel.threads <= threads
        assert sum(phase.seconds for phase in kernel.phases) == pytest.approx(kernel.thread_seconds, rel=0.02)
        assert sum(phase.share for phase in kernel.phases) == pytest.approx(1, rel=0.02)
        # no step comes before the first, whose gradient the product would carry
        step = {"gates"} if kernel.name == "backward" and shape[1] == 1 else {"gates", "product"}
        assert step <= set(phases_of(kernel)) and kernel.phases[-1].phase == REST
        for phase in kernel.phases[:-1]:
            assert 0 < phase.slowest_seconds <= phase.seconds <= kernel.thread_seconds
    assert not much_work or all(phases_of(kernel)[REST] < 0.2 * kernel.thread_seconds for kernel in passes)


@pytest.mark.alone  # beside other processes fewer threads may come, and then nobody waits
@pytest.mark.parametrize(
    ("shape", "recompute", "threads", "expected", "absent"),
    [
        ((1, 100, 80, 256), False, 1, {"packing", "projection", "gradients"}, {"waiting", "recompute"}),
        ((1, 100, 80, 256), True, 1, {"recompute"}, {"waiting"}),
        ((1, 300, 256, 512), False, 2, {"waiting"}, {"recompute"}),
    ],
)
def test_phases_are_told_apart(
    shape: tuple[int, int, int, int], recompute: bool, threads: int, expected: set[str], absent: set[str]
) -> None:
    """Waiting where threads meet, recompute where the gates were not kept."""
    torch.set_num_threads(threads)
    module, data = layer(shape, recompute=recompute)
    with phase_clock():
        call(module, (data,), True)
    passes = phase_times()
    if threads > 1 and max(kernel.threads for kernel in passes) == 1:
        pytest.skip("this machine has but one core")
    forward, backward = (phases_of(kernel) for kernel in passes)
    both = set(forward) | set(backward)
    assert expected <= both and not absent & both, both
    assert "gradients" not in forward and "projection" not in backward


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_clock_changes_no_bit(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    """On or off, on every target."""
    module, data = layer(shape, dtype)
    for target in _C.cpu_targets():
        _C.set_cpu_target(target)
        expected = results(module, data)
        with phase_clock():
            clocked = results(module, data)
        gate.assert_same_bits(clocked, expected, target)
        assert sum(kernel.calls for kernel in phase_times()) == 2


def test_off_counts_nothing() -> None:
    """Off is how it begins, and what it counted while on stays as it was."""
    module, data = layer(SHAPES[0])
    results(module, data)
    assert phase_times() == ()
    with phase_clock():
        results(module, data)
    before = _C.phase_times()
    results(module, data)
    assert _C.phase_times() == before and before["forward"]["calls"] == 1


def test_threads_of_the_caller() -> None:
    """Passes of several Python threads at once are all counted, also of threads that have ended."""
    torch.set_num_threads(1)
    module, data = layer(SHAPES[1])
    results(module, data)

    def work(_: int) -> None:
        for _ in range(10):
            results(module, data.detach().requires_grad_())

    with phase_clock():
        for _ in range(2):  # the second pair takes over what the first has left
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(work, range(2)))
    forward, backward = phase_times()
    assert forward.calls == backward.calls == 40
    assert sum(phase.seconds for phase in forward.phases) == pytest.approx(forward.thread_seconds, rel=0.02)


def test_directions_at_the_same_time() -> None:
    """Each direction is a call of the kernel, on a thread of its own."""
    torch.set_num_threads(2)
    module = gru_ext.GRU(20, 37, bidirectional=True)
    with phase_clock(), torch.no_grad():
        module(torch.randn(60, 3, 20))
    (forward,) = phase_times()
    assert forward.calls == 2 and forward.thread_seconds == pytest.approx(forward.seconds)
