"""The Arm targets beyond the gate (test_backends.py): detection, frozen GRUs, bits, and planted faults."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import arm
import cases
import gate
import pytest
import test_frozen
import torch
from backends import use_operators
from cases import Case

import gru_ext
from gru_ext import _C

pytestmark = pytest.mark.skipif(bool(arm.missing()), reason=arm.missing() or "all is there")


def run(processor: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What became of the worker there."""
    return subprocess.run(arm.command(processor, *arguments), capture_output=True, text=True, timeout=60, check=False)


# What takes weights of bytes on each processor.
OF_BYTES = {"cortex-a53": "neon", arm.WITH_BYTE_DOTS: "neon_dot", "max": "neon_bf16"}


@pytest.mark.parametrize(("processor", "of_bytes"), OF_BYTES.items())
def test_each_processor_has_its_targets(processor: str, of_bytes: str) -> None:
    """Best first, then that of bytes; and no other is to be had."""
    here = ["neon_bf16", "neon", "portable"] if processor == "max" else ["neon", "portable"]
    assert run(processor, "targets").stdout.split() == [*here, of_bytes]
    for absent in {"neon_bf16", "neon_dot"} - set(here):
        assert f"'{absent}' is not available" in run(processor, absent).stderr


@pytest.mark.parametrize("processor", OF_BYTES)
def test_products_of_bytes(processor: str) -> None:
    """Exact, by the instruction for them and without it; and each notices a byte that is left out."""
    done = run(processor, "bytes")
    assert done.returncode == 0, done.stderr
    assert run(processor, "bytes", 5).returncode == (1 if processor == "cortex-a53" else 2)


# Number and words of arm/faults.h, who has it, and a case that must show it.
FAULTS = [
    (1, "sums are rounded to 16 bits", "neon", Case(4, 4, 5, 16)),
    (2, "lanes are mixed when weights are rearranged", "neon", Case(4, 4, 5, 17)),
    (3, "sums of few rows change places", "neon", Case(1, 1, 5, 16, torch.float16)),
    (4, "the odd halves of words are left out", "neon_bf16", Case(4, 4, 5, 16, torch.bfloat16)),
]


@pytest.mark.parametrize(("fault", "what", "target", "case"), FAULTS)
def test_planted_faults_are_noticed(
    monkeypatch: pytest.MonkeyPatch, fault: int, what: str, target: str, case: Case
) -> None:
    """The gate that the targets pass notices each."""
    worker = arm.Worker(target, fault=fault)
    use_operators(monkeypatch, worker)
    with pytest.raises(gate.GateError):
        cases.check(gru_ext.GRU, case)
    assert worker.close() == 0, what


def test_a_read_beyond_an_operand_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page behind it may not be touched."""
    worker = arm.Worker("neon", fault=6)
    use_operators(monkeypatch, worker)
    with pytest.raises(AssertionError, match="the worker ended with exit code"):
        cases.check(gru_ext.GRU, Case(4, 4, 5, 17))
    worker.close()


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_bits_depend_neither_on_processor_nor_on_threads(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """neon on an old processor and on a new one; on one thread and on two, which the case is large enough for."""
    case, results = Case(2, 18, 70, 90, dtype), []
    for processor, threads in (("cortex-a53", 2), ("max", 2), ("max", 1)):
        torch.set_num_threads(threads)
        worker = arm.Worker("neon", processor)
        use_operators(monkeypatch, worker)
        results.append(cases.evaluate(gru_ext.GRU, case))
        worker.close()
    gate.assert_same_bits(results[0], results[1], "another processor")
    forward = [{name: result[name] for name in ("output", "h_n")} for result in results]
    gate.assert_same_bits(forward[1], forward[2], "one thread")


def run_frozen(monkeypatch: pytest.MonkeyPatch, processor: str, fault: int = 0) -> arm.Worker:
    """What is frozen from now on runs on that processor, by its best target."""
    worker = arm.Worker("neon_bf16" if processor == "max" else "neon", processor, fault)
    use_operators(monkeypatch, worker)
    monkeypatch.setattr(_C, "cpu_lanes", lambda: 4)
    return worker


@pytest.fixture(params=OF_BYTES)
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where frozen GRUs run."""
    worker = run_frozen(monkeypatch, request.param)
    yield request.param
    assert worker.close() == 0


@pytest.mark.parametrize("sizes", [*test_frozen.SIZES, (90, 130, 3, 20)], ids=str)
def test_int8_is_its_simulation(sizes: tuple[int, int, int, int], processor: str) -> None:
    """The last is large enough for two threads."""
    test_frozen.test_int8_is_its_simulation(sizes, 2, processor)


def test_int8_of_values_that_are_not_finite_small_or_large(processor: str) -> None:
    """They become NaN, and nothing overflows on the way to bytes."""
    for special in (float("nan"), float("inf"), float("-inf")):
        test_frozen.test_values_that_are_not_finite("int8", special, processor)
    for value in (0.0, 1e-40, 1e-30, 1e30):
        test_frozen.test_int8_of_small_and_large_rows(value, processor)


@pytest.mark.parametrize(("fault", "what"), [(5, "a byte is left out"), (7, "bytes are cut off, not rounded")])
@pytest.mark.parametrize("on", OF_BYTES)
def test_faults_in_bytes_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: int, what: str, on: str) -> None:
    """By the simulation."""
    worker = run_frozen(monkeypatch, on, fault)
    with pytest.raises(gate.GateError):
        test_frozen.test_int8_is_its_simulation((17, 15, 4, 1), 1, on)
    assert worker.close() == 0, what


@pytest.mark.parametrize("sizes", [*test_frozen.SIZES, (33, 64, 40, 1)], ids=str)
def test_bfloat16_is_float32_with_rounded_weights(sizes: tuple[int, int, int, int], processor: str) -> None:
    """To the bit."""
    test_frozen.test_bfloat16_is_float32_with_rounded_weights(sizes, processor)


@pytest.mark.parametrize("case", test_frozen.drawn_cases()[::3], ids=str)
def test_float32_is_within_the_gate(case: Case, processor: str) -> None:
    """nn.GRU's results, to the gate that the unfrozen module is held to."""
    test_frozen.test_float32_is_within_the_gate(case, processor)
