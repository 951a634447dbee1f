"""Malformed calls of every compiled function, by name. Run as a script it makes the calls and reports each.

The script prints one JSON line a call, before and after it, so that a crash is known by the name it left open:
``python malformed.py START`` begins with call number START.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gru_ext import _C

M = 2  # members of an ensemble
T, B, I, H = 5, 3, 4, 6  # noqa: E741 (the sizes' names everywhere)
SIZES = [3, 3, 2, 1, 1]  # batch_sizes of the packed calls

# argument -> what is wrong with it -> the value. "name" in the keys is what the message must contain.
Bad = dict[str, dict[str, Any]]


def arguments(kind: str) -> dict[str, Any]:
    """The right arguments of a forward call: "plain", "both" (bidirectional), "first" (batch_first) or "packed"."""
    directions = 2 if kind == "both" else 1
    weights = [torch.randn(3 * H, I), torch.randn(3 * H, H), torch.randn(3 * H), torch.randn(3 * H)] * directions
    shape = {"packed": (sum(SIZES), I), "first": (B, T, I)}.get(kind, (T, B, I))
    return {
        "input": torch.randn(shape),
        "hx": torch.randn(directions, B, H),
        "weights": weights,
        "batch_sizes": torch.tensor(SIZES) if kind == "packed" else None,
        "batch_first": kind == "first",
    }


def backward_arguments(kind: str) -> dict[str, Any]:
    """The right arguments of a backward call."""
    given = arguments(kind)
    output, h_n, saved = _C.forward(*given.values(), True)
    needs = [True] * (2 + len(given["weights"]))
    batch_sizes, batch_first = given.pop("batch_sizes"), given.pop("batch_first")
    return {
        "grad_output": torch.randn_like(output),
        "grad_h_n": torch.randn_like(h_n),
        **given,
        "saved": saved,
        "batch_sizes": batch_sizes,
        "batch_first": batch_first,
        "needs": needs,
    }


def members_arguments(function: str, kind: str) -> dict[str, Any]:
    """The right arguments of the same call for an ensemble of M members, each with all of its own."""
    given = {
        name: torch.stack([value] * M) if isinstance(value, Tensor) and name != "batch_sizes" else value
        for name, value in (arguments if function == "forward" else backward_arguments)(kind).items()
    }
    given["weights"] = [torch.stack([weight] * M) for weight in given["weights"]]
    needs = {"needs": given.pop("needs")} if function == "backward" else {}
    return {**given, "members": M, **needs}


def wrong_tensors(right: Tensor) -> dict[str, Any]:
    """Everything that can be wrong with one tensor of the right shape and dtype."""
    wrong: dict[str, Any] = {
        "none": None,
        "number": 1.0,
        "list": [1.0],
        "text": "tensor",
        "float64": right.double(),
        "bfloat16": right.bfloat16(),
        "int64": right.long(),
        "bool": right.bool(),
        "complex": right.to(torch.complex64),
        "meta": right.to("meta"),
        "sparse": right.to_sparse(),
        "scalar": torch.tensor(1.0),
        "empty": torch.empty(0),
        "extra_dim": right.unsqueeze(0),
        "nested": torch.nested.nested_tensor([right]),
    }
    if right.dim() == 2:
        wrong["sparse_csr"] = right.to_sparse_csr()
    if right.dim() > 1:
        wrong["dim_less"] = right[0]
    for dim in range(right.dim()):
        wrong[f"longer_{dim}"] = torch.cat([right, right.narrow(dim, 0, 1)], dim)
        wrong[f"shorter_{dim}"] = right.narrow(dim, 0, right.size(dim) - 1)
        wrong[f"nothing_{dim}"] = right.narrow(dim, 0, 0)
        wrong[f"endless_{dim}"] = right.narrow(dim, 0, 1).expand(
            *(2**40 if d == dim else n for d, n in enumerate(right.shape))
        )
    return wrong


# What is not malformed although wrong_tensors makes it: T and B of the input are the input's own to choose, B only
# together with hx; a batch of 0 is allowed. Without a gradient (None) a result counts as not used. Without hx it is
# zeros, but then there is no gradient of it to ask backward for.
ALLOWED = {
    "plain": {"input longer_0", "input shorter_0", "hx none"},
    "both": {"input longer_0", "input shorter_0", "hx none"},
    "first": {"input longer_1", "input shorter_1", "hx none"},
    "packed": {"hx none"},
}

BATCH_SIZES: dict[str, Any] = {
    "increasing": torch.tensor([1, 2, 2, 2, 3]),
    "unsorted": torch.tensor([3, 1, 3, 2, 1]),
    "sum_short": torch.tensor([3, 3, 2, 1]),
    "sum_long": torch.tensor([3, 3, 2, 1, 1, 1]),
    "zero_inside": torch.tensor([3, 3, 0, 3, 1]),
    "zero_last": torch.tensor([3, 3, 2, 2, 0]),
    "zero_first": torch.tensor([0, 0, 0, 0, 0]),
    "negative": torch.tensor([3, 3, 3, 3, -2]),
    "negative_first": torch.tensor([-3, -3, -2, -1, -1]),
    "overflow": torch.tensor([2**62, 2**62, 2**62, 2**62, 10]),
    "batch_unlike_hx": torch.tensor([4, 3, 1, 1, 1]),
    "int32": torch.tensor(SIZES, dtype=torch.int32),
    "float": torch.tensor(SIZES, dtype=torch.float32),
    "bool": torch.tensor([True] * 5),
    "two_dims": torch.tensor([SIZES]),
    "scalar": torch.tensor(10),
    "empty": torch.empty(0, dtype=torch.int64),
    "meta": torch.tensor(SIZES, device="meta"),
    "sparse": torch.tensor(SIZES).to_sparse(),
    "list": SIZES,
    "absent": None,
}


def wrong_weights(right: list[Tensor]) -> dict[str, Any]:
    """Everything that can be wrong with the list of weights as a whole."""
    return {
        "none": None,
        "tensor": right[0],
        "empty": [],
        "one": right[:1],
        "three": right[:3],
        "five": [*right, right[0]],
        "doubled": right * 2,
        "hole": [right[0], None, *right[2:]],
        "swapped": [right[1], right[0], *right[2:]],
        "text": ["weight"] * len(right),
        "numbers": [1.0] * len(right),
    }


def calls() -> dict[str, Callable[[], Any]]:
    """Every malformed call: "function kind argument fault" -> the call."""
    made: dict[str, Callable[[], Any]] = {}
    for kind in ("plain", "both", "first", "packed"):
        for function, right in (("forward", arguments(kind)), ("backward", backward_arguments(kind))):

            def add(
                argument: str, fault: str, value: Any, function: str = function, right: Any = right, kind: str = kind
            ) -> None:
                given = {**right, argument: value}
                if function == "forward":
                    made[f"forward {kind} {argument} {fault}"] = lambda: _C.forward(*given.values(), True)
                else:
                    made[f"backward {kind} {argument} {fault}"] = lambda: _C.backward(*given.values())

            for argument, value in right.items():
                if not isinstance(value, Tensor) or argument == "batch_sizes":
                    continue
                for fault, wrong in wrong_tensors(value).items():
                    allowed = function == "forward" and f"{argument} {fault}" in ALLOWED[kind]
                    if not allowed and not (fault == "none" and argument.startswith("grad_")):
                        add(argument, fault, wrong)
            for index, weight in enumerate(right["weights"]):
                for fault, wrong in wrong_tensors(weight).items():
                    changed = list(right["weights"])
                    changed[index] = wrong
                    add("weights", f"{index}_{fault}", changed)
            for fault, wrong in wrong_weights(right["weights"]).items():
                if not (kind == "both" and fault in ("five",)) and not (fault == "swapped" and I == H):
                    add("weights", fault, wrong)
            if kind == "packed":
                for fault, wrong in BATCH_SIZES.items():
                    add("batch_sizes", fault, wrong)
            else:
                add("batch_sizes", "for_padded_input", torch.tensor(SIZES))
            three = torch.randn(3, B, H)
            add("hx", "three_directions", three)
            add("hx", "no_directions", three[:0])
            add("batch_first", "tensor", torch.ones(2))
            if function == "backward":
                add("saved", "not_kept", torch.empty(0))
                needs = right["needs"]
                for fault, wrong in {
                    "short": needs[:-1],
                    "long": [*needs, True],
                    "empty": [],
                    "none": None,
                    "text": ["yes"] * len(needs),
                    "tensor": torch.ones(2, 2),
                }.items():
                    add("needs", fault, wrong)
    made |= members_calls()
    names: list[Any] = ["", "sse9", "AVX2", "portable\0", "x" * 1000, None, 3]
    for index, name in enumerate(names):
        made[f"set_cpu_target name {index}"] = lambda name=name: _C.set_cpu_target(name)
    for index in range(4):
        for size in (-1, -(2**62), "1", 1.5, None, 2**70):
            sizes: list[Any] = [5, 3, 4, 6]
            sizes[index] = size
            made[f"plan {('seq_len', 'batch', 'input_size', 'hidden_size')[index]} {size}"] = lambda sizes=sizes: (
                _C.plan("cpu", torch.float32, *sizes, True)
            )
    for index, name in enumerate(("seq_len", "rows", "input_size", "hidden_size", "packed", "directions", "members")):
        for bad in (-1, -(2**63), 2**70, "1", 1.5):
            if name != "packed":
                shape: list[Any] = [5, 15, 4, 6, False, 1, 2]
                shape[index] = bad
                made[f"cpu_plan {name} {bad}"] = lambda shape=shape: _C.cpu_plan(*shape)
    for bad in (-(2**62), -1, 0, 4095, 2**31 + 1, 2**62, 2**70, 4096.5, "4096", None):
        made[f"cpu_bytes_per_second bytes {bad}"] = lambda bad=bad: _C.cpu_bytes_per_second(bad, 1)
    for bad in (-(2**62), -1, 0, 1025, 2**31 + 1, 2**62, 2**70, 1.5, "1", None):
        made[f"cpu_bytes_per_second threads {bad}"] = lambda bad=bad: _C.cpu_bytes_per_second(4096, bad)
        made[f"cpu_operations_per_second threads {bad}"] = lambda bad=bad: _C.cpu_operations_per_second(
            torch.float32, bad
        )
    for bad in (-(2**62), -1, 0, 10001, 2**31 + 1, 2**62, 2**70, 1.5, "1", None):
        made[f"cpu_bytes_per_second milliseconds {bad}"] = lambda bad=bad: _C.cpu_bytes_per_second(4096, 1, bad)
        made[f"cpu_operations_per_second milliseconds {bad}"] = lambda bad=bad: _C.cpu_operations_per_second(
            torch.float32, 1, bad
        )
    for bad in (torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32", 6, None):
        made[f"cpu_operations_per_second dtype {bad}"] = lambda bad=bad: _C.cpu_operations_per_second(bad, 1)
    made["plan dtype text"] = lambda: _C.plan("cpu", "float32", 5, 3, 4, 6, True)
    made["plan device_type none"] = lambda: _C.plan(None, torch.float32, 5, 3, 4, 6, True)
    made["forward nothing at all"] = lambda: _C.forward()
    made["backward nothing at all"] = lambda: _C.backward()
    return made


MEMBERS: dict[str, Any] = {
    "less": M - 1,
    "more": M + 1,
    "none": None,
    "negative": -1,
    "endless": 2**62,
    "huge": 2**70,
    "zero": 0,
    "text": "2",
    "half": 1.5,
}


def right_for_members(function: str, kind: str, argument: str, fault: str) -> bool:
    """What wrong_tensors makes and an ensemble takes: without the members' dimension a tensor is shared by all."""
    if fault == "dim_less":
        return not argument.startswith("grad_")
    if fault == "none":
        return argument.startswith("grad_")
    return (function, kind, argument) == ("forward", "plain", "input") and fault in ("longer_1", "shorter_1")


def members_calls() -> dict[str, Callable[[], Any]]:
    """Malformed calls for ensembles."""
    made: dict[str, Callable[[], Any]] = {}
    for function, kind in [(function, kind) for function in ("forward", "backward") for kind in ("plain", "packed")]:
        right = members_arguments(function, kind)
        bad: list[tuple[str, str, Any]] = [("members", fault, wrong) for fault, wrong in MEMBERS.items()]
        bad += [("weights", fault, wrong) for fault, wrong in wrong_weights(right["weights"]).items()]
        if kind == "packed":
            bad += [("batch_sizes", fault, wrong) for fault, wrong in BATCH_SIZES.items()]
        for argument, value in right.items():
            if isinstance(value, Tensor) and argument != "batch_sizes":
                faults = wrong_tensors(value).items()
                bad += [
                    (argument, *each) for each in faults if not right_for_members(function, kind, argument, each[0])
                ]
        for index, weight in enumerate(right["weights"]):
            for fault, wrong in wrong_tensors(weight).items():
                if not right_for_members(function, kind, "weights", fault):
                    changed = [wrong if position == index else one for position, one in enumerate(right["weights"])]
                    bad.append(("weights", f"{index}_{fault}", changed))
        if function == "backward":
            bad += [("needs", "short", right["needs"][:-1]), ("needs", "empty", []), ("needs", "none", None)]
            bad.append(("saved", "not_kept", torch.empty(0)))
        call = getattr(_C, f"{function}_members")
        last = (True,) if function == "forward" else ()
        for argument, fault, wrong in bad:
            given = (*{**right, argument: wrong}.values(), *last)
            made[f"{function}_members {kind} {argument} {fault}"] = lambda call=call, given=given: call(*given)
    made["forward_members nothing at all"] = lambda: _C.forward_members()
    made["backward_members nothing at all"] = lambda: _C.backward_members()
    return made


def main(start: int) -> None:
    """Make the calls from number ``start`` on and report each: name, then what came of it."""
    faulthandler.enable()
    torch.manual_seed(0)
    for number, (name, call) in enumerate(calls().items()):
        if number < start:
            continue
        print(json.dumps({"begin": name, "number": number}), flush=True)
        report: dict[str, Any] = {"name": name}
        try:
            report["result"] = str(type(call()))
        except Exception as error:
            report |= {"error": type(error).__name__, "message": str(error)[:2000]}
        print(json.dumps(report), flush=True)
    right = _C.forward(*arguments("plain").values(), True)
    print(json.dumps({"name": "a right call afterwards", "result": str(tuple(right[0].shape))}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
