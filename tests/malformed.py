"""Malformed calls of every compiled function, by name. Run as a script it makes the calls and reports each.

The script prints one JSON line a call, before and after it, so that a crash is known by the name it left open:
``python malformed.py START`` begins with call number START.
"""

from __future__ import annotations

import faulthandler
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gru_ext import _C
from gru_ext.ops import Options

KINDS = ("plain", "both", "first", "packed", "marked", "members_plain", "members_packed", "members_marked")
M = 2  # members of an ensemble
T, B, I, H = 5, 3, 4, 6  # noqa: E741 (the sizes' names everywhere)
SIZES = [3, 3, 2, 1, 1]  # batch_sizes of the packed calls
LENGTHS = [5, 0, 3]


def arguments(kind: str) -> dict[str, Any]:
    """The right arguments of a forward call but the last, save.

    kind: "plain", "both" (bidirectional), "first" (batch_first), "packed" or "marked" (lengths and resets); behind
    "members_" an ensemble of M, each with all of its own.
    """
    layer = kind.removeprefix("members_")
    members = (M,) if layer != kind else ()
    directions = 2 if layer == "both" else 1
    shape = {"packed": (sum(SIZES), I), "first": (B, T, I)}.get(layer, (T, B, I))
    weights = [(3 * H, I), (3 * H, H), (3 * H,), (3 * H,)] * directions
    return {
        "input": torch.randn(*members, *shape),
        "hx": torch.randn(*members, directions, B, H),
        "weights": [torch.randn(*members, *sizes) for sizes in weights],
        "batch_sizes": torch.tensor(SIZES) if layer == "packed" else None,
        "lengths": torch.tensor(LENGTHS).expand(*members, B).contiguous() if layer == "marked" else None,
        "resets": torch.rand(*members, T, B) < 0.5 if layer == "marked" else None,
        "reset_state": torch.randn(*members, directions, T, B, H) if layer == "marked" else None,
        "options": Options(directions, int(layer == "first")),
        "members": M if members else None,
    }


def backward_arguments(kind: str) -> dict[str, Any]:
    """The right arguments of a backward call."""
    layer = arguments(kind)
    output, h_n, saved = _C.forward(*layer.values(), True)
    return {
        "grad_output": torch.randn_like(output),
        "grad_h_n": torch.randn_like(h_n),
        "saved": saved,
        "needs": [True, True, layer["reset_state"] is not None, *[True] * len(layer["weights"])],
        **layer,
    }


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


def allowed(function: str, kind: str, argument: str, fault: str) -> bool:
    """Whether what wrong_tensors makes is right after all.

    T and B of the input are the input's own to choose, B only together with hx. Without a gradient a result counts as
    not used. Without hx it is zeros, but then there is no gradient of it to ask backward for. In an ensemble a tensor
    without the members' dimension is shared by all.
    """
    if fault == "none":
        return argument.startswith("grad_") or (function == "forward" and argument in ("hx", "reset_state"))
    if kind.startswith("members_"):
        if fault == "dim_less":
            return not argument.startswith("grad_")
        return (function, kind, argument) == ("forward", "members_plain", "input") and fault in (
            "longer_1",
            "shorter_1",
        )
    dim = {"plain": 0, "both": 0, "first": 1}.get(kind)
    return function == "forward" and argument == "input" and fault in (f"longer_{dim}", f"shorter_{dim}")


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


def wrong_lengths(right: Tensor) -> dict[str, Any]:
    """Everything that can be wrong with lengths [B], or [M, B]."""
    wrong = {name: value for name, value in wrong_tensors(right).items() if name not in ("int64", "dim_less", "none")}
    for name, length in (("negative", -1), ("beyond", T + 1), ("lowest", -(2**63)), ("endless", 2**62)):
        wrong[name] = right.clone()
        wrong[name].view(-1)[-1] = length
    return wrong


def wrong_resets(right: Tensor) -> dict[str, Any]:
    """Everything that can be wrong with resets [T, B], or [M, T, B]."""
    wrong = {name: value for name, value in wrong_tensors(right).items() if name not in ("bool", "none")}
    return wrong | {"float32": right.float(), "uint8": right.to(torch.uint8)}


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


MEMBERS = {"less": M - 1, "more": M + 1, "zero": 0, "endless": 2**62, "negative": -1, "text": "2", "half": 1.5}
NUMBERS = {"none": None, "less": -2, "more": 3, "huge": 2**62, "endless": 2**70, "text": "1", "half": 1.5}


def bad_arguments(function: str, kind: str, right: dict[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Argument, fault and value of every malformed call of one kind."""
    for argument, value in right.items():
        if isinstance(value, Tensor) and argument != "batch_sizes":
            wrong_values = {"lengths": wrong_lengths, "resets": wrong_resets}.get(argument, wrong_tensors)
            for fault, wrong in wrong_values(value).items():
                if not allowed(function, kind, argument, fault):
                    yield argument, fault, wrong
    for index, weight in enumerate(right["weights"]):
        for fault, wrong in wrong_tensors(weight).items():
            if fault == "none" or not allowed(function, kind, "weights", fault):
                yield "weights", f"{index}_{fault}", [*right["weights"][:index], wrong, *right["weights"][index + 1 :]]
    yield from (("weights", *fault) for fault in wrong_weights(right["weights"]).items())
    if right["batch_sizes"] is not None:
        yield from (("batch_sizes", *fault) for fault in BATCH_SIZES.items())
    else:
        yield "batch_sizes", "for_padded_input", torch.tensor(SIZES)
    if right["resets"] is None:
        yield "lengths", "not_for_this_input", torch.tensor([1, 1] if right["batch_sizes"] is None else [1, 1, 1])
        yield "reset_state", "without_resets", torch.randn(1, T, B, H)
        resets = torch.ones(sum(SIZES), dtype=torch.bool) if right["batch_sizes"] is not None else torch.ones(T, B)
        yield "resets", "not_for_this_input", resets
    else:
        yield "resets", "absent", None
    for fault, wrong in MEMBERS.items():  # of what has no members' dimension any number may share
        if right["members"] or not isinstance(wrong, int) or wrong < 0:
            yield "members", fault, wrong
    yield from (("options", *fault) for fault in {"none": None, "number": 1, "empty": (), "text": "1"}.items())
    for index, name in enumerate(Options._fields):
        for fault, wrong in NUMBERS.items():
            yield "options", f"{name}_{fault}", (*right["options"][:index], wrong, *right["options"][index + 1 :])
    yield "options", "short", right["options"][:-1]
    yield "options", "long", (*right["options"], 0)
    yield "hx", "three_directions", torch.randn(3, B, H)
    yield "hx", "no_directions", torch.randn(0, B, H)
    if function == "backward":
        needs = right["needs"]
        yield "saved", "not_kept", torch.empty(0)
        yield "options", "recompute_unlike_forward", right["options"]._replace(recompute=1)
        yield "needs", "short", needs[:-1]
        yield "needs", "long", [*needs, True]
        yield "needs", "empty", []
        yield "needs", "none", None
        yield "needs", "text", ["yes"] * len(needs)
        yield "needs", "tensor", torch.ones(2, 2)


def calls() -> dict[str, Callable[[], Any]]:
    """Every malformed call: "function kind argument fault" -> the call."""
    made: dict[str, Callable[[], Any]] = {}
    for kind in KINDS:
        for function, right in (("forward", arguments(kind)), ("backward", backward_arguments(kind))):
            last = (True,) if function == "forward" else ()
            for argument, fault, wrong in bad_arguments(function, kind, right):
                values = (*{**right, argument: wrong}.values(), *last)
                made[f"{function} {kind} {argument} {fault}"] = partial(getattr(_C, function), *values)
    names: list[Any] = ["", "sse9", "AVX2", "portable\0", "x" * 1000, None, 3]
    for index, name in enumerate(names):
        made[f"set_cpu_target name {index}"] = lambda name=name: _C.set_cpu_target(name)
    fields = (
        "dtype",
        "seq_len",
        "rows",
        "input_size",
        "hidden_size",
        "directions",
        "members",
        "layers",
        "longest_piece",
    )
    for index, name in enumerate(fields):
        for bad in (-1, -(2**63), 2**70, "1", 1.5, torch.int64):
            shape: list[Any] = [torch.float32, 5, 15, 4, 6, 1, 2 if name == "members" else None, 1, None]
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
    made["forward nothing at all"] = lambda: _C.forward()
    made["backward nothing at all"] = lambda: _C.backward()
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
