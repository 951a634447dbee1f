"""Malformed arguments to the compiled functions raise and name the argument; none ends the process.

The calls are in malformed.py and are made in a process of their own: one that crashes is found out by name, the rest
is made in the next process.
"""

from __future__ import annotations

import json
from typing import Any

import malformed
import pytest
import torch
from processes import TESTS, python

from gru_ext import _C
from gru_ext.ops import Options

NAMES = list(malformed.calls())
MAX_CRASHES = 20


@pytest.fixture(scope="module")
def reports() -> dict[str, dict[str, Any]]:
    """What came of every call, by name; a crash is reported as one."""
    outcomes: dict[str, dict[str, Any]] = {}
    start = crashes = 0
    while True:
        done = python(str(TESTS / "malformed.py"), str(start), timeout=300)
        begun: dict[str, Any] | None = None
        for line in done.stdout.splitlines():
            report = json.loads(line)
            if "begin" in report:
                begun = report
            else:
                outcomes[report["name"]], begun = report, None
        if done.returncode == 0:
            return outcomes
        assert begun is not None, f"exit status {done.returncode} between two calls\n{done.stderr}"
        crashes += 1
        outcomes[begun["begin"]] = {"crash": f"exit status {done.returncode}\n{done.stderr[-2000:]}"}
        assert crashes < MAX_CRASHES, f"{crashes} crashes, the last in {begun['begin']!r}\n{done.stderr[-2000:]}"
        start = begun["number"] + 1


GROUPS = [f"{function} {kind}" for function in ("forward", "backward") for kind in malformed.KINDS]
OTHERS = ["set_cpu_target", "cpu_plan", "cpu_operations_per_second", "cpu_bytes_per_second"]
NOTHING = ["forward nothing", "backward nothing"]


@pytest.mark.parametrize("group", [*GROUPS, *NOTHING, *OTHERS])
def test_malformed_calls_raise(reports: dict[str, dict[str, Any]], group: str) -> None:
    """Each raises an exception of the usual kinds with the argument's name; nothing is accepted, nothing crashes."""
    chosen = [name for name in NAMES if name.startswith(group + " ")]
    assert chosen
    failures = [problem for name in chosen if (problem := judge(name, reports.get(name)))]
    assert not failures, f"{len(failures)} of {len(chosen)}:\n" + "\n".join(failures[:40])


def judge(name: str, report: dict[str, Any] | None) -> str:
    """What is wrong with the outcome of a malformed call; "" when it is right."""
    if report is None:
        return f"{name}: no report"
    if "crash" in report:
        return f"{name}: crashed: {report['crash']}"
    if "result" in report:
        return f"{name}: accepted, gave {report['result']}"
    if report["error"] in ("TypeError", "OverflowError"):
        return ""  # from the argument parser, before our code: it prints the signature with every argument's name
    if report["error"] not in ("RuntimeError", "ValueError", "IndexError", "NotImplementedError"):
        return f"{name}: {report['error']}: {report['message']}"
    if name.endswith("nested") or "endless" in name and "can't allocate" in report["message"]:
        return ""  # torch's own refusal: of the sizes of a nested tensor, of memory for 2^40 steps
    function, kind, argument = name.split()[:3]
    wanted = {kind} if function in OTHERS else {argument}
    if function == "set_cpu_target":
        wanted = {"portable"}  # it lists what there is
    if argument == "options":
        fault = name.split()[3]
        wanted |= {"weights", "saved", "hx", *(option for option in Options._fields if fault.startswith(option))}
    if argument == "batch_sizes":
        wanted |= {"input", "hx"}  # which of them disagree is a matter of taste
    if argument == "input":
        wanted |= {"hx", "weights", "batch_sizes", "saved", "resets", "sequence length"}
    if argument == "hx":
        wanted |= {"weights", "output", "input", "saved"}
    if not any(word in report["message"] for word in wanted):
        return f"{name}: the message names none of {sorted(wanted)}: {report['message'][:300]}"
    return ""


def test_a_right_call_afterwards_works(reports: dict[str, dict[str, Any]]) -> None:
    """None of the calls left anything broken behind; and there were many."""
    assert "(5, 3, 6)" in reports["a right call afterwards"]["result"]
    assert len(NAMES) > 1000


@pytest.mark.parametrize("kind", malformed.KINDS)
def test_right_calls_are_accepted(kind: str) -> None:
    """The control: without the fault the same calls work, so it is the fault that was refused."""
    output, h_n, saved = _C.forward(*malformed.arguments(kind).values(), True)
    directions = 2 if kind == "both" else 1
    assert h_n.shape[-3:] == (directions, malformed.B, malformed.H) and output.shape[-1] == directions * malformed.H
    operands = malformed.backward_arguments(kind)
    gradients = _C.backward(*operands.values())
    leaves = (operands["input"], operands["hx"], operands["reset_state"], *operands["weights"])
    shapes = [tensor.shape for tensor in leaves if tensor is not None]
    assert [gradient.shape for gradient in gradients] == shapes
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("kind", malformed.KINDS)
def test_backward_without_incoming_gradients(kind: str) -> None:
    """No gradient of either result is a gradient of zero; nothing asked for is an empty list."""
    operands = malformed.backward_arguments(kind)
    zero = _C.backward(*{**operands, "grad_output": None, "grad_h_n": None}.values())
    assert len(zero) == sum(operands["needs"]) and not any(gradient.any() for gradient in zero)
    assert _C.backward(*{**operands, "needs": [False] * len(operands["needs"])}.values()) == []


SHARED = ("input", "hx", "weights", "lengths", "resets", "reset_state", "saved")


@pytest.mark.parametrize("kind", ["members_plain", "members_packed", "members_marked"])
def test_members_may_share_all_but_the_incoming_gradients(kind: str) -> None:
    """Their gradients are each member's own all the same."""
    operands = malformed.backward_arguments(kind)
    alone = malformed.backward_arguments(kind.removeprefix("members_"))
    shared = {**operands, **{name: alone[name] for name in SHARED}}
    expected = [gradient.shape for gradient in _C.backward(*operands.values())]
    assert [gradient.shape for gradient in _C.backward(*shared.values())] == expected


def test_sizes_near_the_largest_are_planned_for() -> None:
    """Nothing overflows where sizes are those of 64 bits: as many threads as for any large layer."""
    most = 2**63 - 1
    threads = _C.cpu_plan(torch.float32, 100, 10**6, 512, 512, 1)["threads"]
    for seq_len, rows in ((2, most), (1000, most), (most, most), (most - 1, most)):
        plan = _C.cpu_plan(torch.float32, seq_len, rows, 512, 512, 1)
        assert plan["threads"] == threads
    assert _C.cpu_plan(torch.float32, 1, 1, most, most, 2)["split"] == ("hidden units" if threads > 1 else "none")
    assert _C.cpu_plan(torch.float32, most, most, most, most, 2, most)["threads"] == threads


@pytest.mark.parametrize("kind", ["both", "marked"])
def test_each_need_alone_gives_the_same_bits(kind: str) -> None:
    """A gradient does not depend on which others are asked for."""
    operands = malformed.backward_arguments(kind)
    everything = _C.backward(*operands.values())
    wanted = [index for index, needed in enumerate(operands["needs"]) if needed]
    for index, expected in zip(wanted, everything, strict=True):
        alone = [position == index for position in range(len(operands["needs"]))]
        (gradient,) = _C.backward(*{**operands, "needs": alone}.values())
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-6)
