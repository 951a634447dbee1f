"""The gate: how far a result may be from the truth.

Three results are compared for every tensor that a GRU gives (output, h_n and each gradient):

* **truth**: ``torch.nn.GRU`` in float64 on the CPU,
* **reference**: ``torch.nn.GRU`` in the dtype and on the device under test,
* **candidate**: what is being tested, in the same dtype on the same device.

All three start from the same numbers: weights, inputs and incoming gradients are rounded to the dtype under test
first. With error = max abs(result - truth) the gate is

    error(candidate) <= FACTOR * error(reference) + floor

so no tolerance is chosen by hand: whoever computes in bfloat16 is held to what bfloat16 gives torch. Positions of inf
and NaN must be those of the truth rounded to the dtype under test (a value that overflows float16 is an inf there).

The floor exists because error(reference) is itself a random number: for a tensor of one element it may be 0 by luck.
It is a few units in the last place at the scale of the tensor (eps * max abs(truth)) plus as many smallest
subnormals. In 16 bits it is 2 units: the gates kept for backward, the gradient of the gates, h and the result are each
stored once, half a unit each. In float32 and float64 it is 8 units (1e-6 of the largest element in float32): there
every one of the dozen roundings from the input to a gradient counts alike, and a short sum whose terms cancel leaves
a result smaller than its terms. All planted faults of test_faults.py are larger by orders of magnitude.

A tensor of at most ``SMALL`` elements that fails is judged once more, on several draws of the same case: the largest
error of the candidate over them against the largest of the reference. One element's error is luck, the
largest of a dozen is not; a wrong computation is wrong in every draw.

float64 needs one more step, for there the reference is the truth and its error would be 0. The rounding error of the
same computation is taken from float32 instead, where it can be measured, and scaled by eps(float64) / eps(float32).
The truth carries that error as well, so it is counted once more for its own part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FLOOR_ULPS = {torch.bfloat16: 2.0, torch.float16: 2.0, torch.float32: 8.0, torch.float64: 8.0}
SMALL = 64

Results = Mapping[str, Tensor]


class GateError(AssertionError):
    """A candidate that is further from the truth than the gate allows, or is not comparable with it at all."""


@dataclass(frozen=True)
class Measure:
    """How one tensor fared: its error, what the gate allowed, the reference's own error, and where it is worst."""

    name: str
    error: float
    bound: float
    reference_error: float
    floor: float
    count: int
    message: str

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound."""
        return self.error <= self.bound

    @property
    def small(self) -> bool:
        """Whether the tensor has so few elements that one draw says little (see the module's text)."""
        return self.count <= SMALL


def floor(truth: Tensor, dtype: torch.dtype) -> float:
    """The absolute floor for a tensor whose true values are ``truth`` (float64) in ``dtype``."""
    finfo = torch.finfo(dtype)
    return FLOOR_ULPS[dtype] * (finfo.eps * max_abs(truth) + finfo.tiny * finfo.eps)


def max_abs(tensor: Tensor) -> float:
    """Largest finite absolute value; 0 when there is none."""
    finite = tensor[torch.isfinite(tensor)]
    return finite.abs().max().item() if finite.numel() else 0.0


def max_error(result: Tensor, truth: Tensor) -> float:
    """Largest abs(result - truth) over the positions where both are finite; 0 when there are none."""
    difference = (result.double() - truth).abs()[torch.isfinite(truth) & torch.isfinite(result)]
    return difference.max().item() if difference.numel() else 0.0


def coordinate(flat_index: int, shape: torch.Size) -> tuple[int, ...]:
    """The coordinate of a position in the flattened tensor."""
    place: list[int] = []
    for size in reversed(shape):
        place.append(flat_index % size)
        flat_index //= size
    return tuple(reversed(place))


def _three_values(position: int, candidate: Tensor, reference: Tensor, truth: Tensor) -> str:
    values = [tensor.reshape(-1)[position].double().item() for tensor in (candidate, reference, truth)]
    return (
        f"at {coordinate(position, truth.shape)} of {tuple(truth.shape)}: "
        f"candidate {values[0]:.9g}, reference {values[1]:.9g}, truth {values[2]:.9g}"
    )


def compare(
    name: str, candidate: Tensor, reference: Tensor, truth: Tensor, reference_error: float | None = None
) -> Measure:
    """Measure one tensor; whether it passed is for the caller to ask.

    Args:
        name: what the tensor is, for the message.
        candidate: the tensor under test; its dtype is the dtype under test.
        reference: torch's tensor in the same dtype.
        truth: torch's tensor in float64.
        reference_error: takes the place of the measured error of ``reference`` (float64 only, see the module's text).

    Raises:
        GateError: shape, dtype, or positions of inf and NaN are not as they must be.
    """
    if candidate.shape != truth.shape:
        raise GateError(f"{name}: shape {tuple(candidate.shape)}, expected {tuple(truth.shape)}")
    if candidate.dtype != reference.dtype:
        raise GateError(f"{name}: dtype {candidate.dtype}, expected {reference.dtype}")
    dtype = candidate.dtype
    candidate, reference, truth = (tensor.detach().cpu() for tensor in (candidate, reference, truth))
    rounded = truth.to(dtype)
    for kind, predicate in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = predicate(candidate) != predicate(rounded)
        if wrong.any():
            position = int(wrong.reshape(-1).nonzero()[0])
            raise GateError(
                f"{name}: {int(wrong.sum())} positions of {kind} differ, the first "
                + _three_values(position, candidate, reference, truth)
            )
    # Where the truth overflows the dtype only the position of the inf can be compared.
    truth = torch.where(torch.isfinite(rounded), truth, rounded.double())
    if reference_error is None:
        reference_error = max_error(reference, truth)
    bound = FACTOR * reference_error + floor(truth, dtype)
    error = max_error(candidate, truth)
    message = ""
    if error > bound:
        difference = torch.nan_to_num((candidate.double() - truth).abs(), nan=0.0, posinf=0.0).reshape(-1)
        message = (
            f"{name} ({dtype}): error {error:.3e} > allowed {bound:.3e} (reference's own error {reference_error:.3e}), "
            f"{int((difference > bound).sum())} of {truth.numel()} positions, the worst "
            + _three_values(int(difference.argmax()), candidate, reference, truth)
        )
    return Measure(name, error, bound, reference_error, floor(truth, dtype), truth.numel(), message)


def measure(
    candidate: Results, reference: Results, truth: Results, reference_errors: Mapping[str, float] | None = None
) -> list[Measure]:
    """Measure every tensor of a result.

    The three mappings must have the same names: a gradient that is missing, or there without being asked for, is a
    failure of its own.
    """
    missing = sorted(set(truth) - set(candidate))
    unexpected = sorted(set(candidate) - set(truth))
    if missing or unexpected:
        raise GateError(f"missing: {missing}; unexpected: {unexpected}")
    known: Mapping[str, float] = reference_errors or {}
    return [compare(name, candidate[name], reference[name], value, known.get(name)) for name, value in truth.items()]


def check(candidate: Results, reference: Results, truth: Results) -> list[Measure]:
    """Hold every tensor of a result to the gate; GateError names all that failed."""
    measures = measure(candidate, reference, truth)
    raise_failures(measures)
    return measures


def raise_failures(measures: Iterable[Measure]) -> None:
    """Raise GateError when any measure failed."""
    messages = [entry.message for entry in measures if not entry.passed]
    if messages:
        raise GateError("\n".join(messages))


def exact_zeros(name: str, values: Tensor) -> None:
    """Raise GateError unless all are zero, as padding must be, to the bit but for the sign."""
    wrong = values != 0
    if wrong.any():
        raise GateError(f"{name}: {int(wrong.sum())} of {wrong.numel()} values that must be zero are not")


def pool(name: str, draws: Sequence[Measure]) -> Measure:
    """One measure of a small tensor from several draws of the same case: the largest error against the largest."""
    error = max(draw.error for draw in draws)
    reference_error = max(draw.reference_error for draw in draws)
    bound = FACTOR * reference_error + max(draw.floor for draw in draws)
    message = (
        f"{draws[0].message or name}; over {len(draws)} draws: error {error:.3e} > allowed {bound:.3e} "
        f"(reference's own error {reference_error:.3e})"
    )
    return Measure(name, error, bound, reference_error, 0.0, draws[0].count, message)


def float64_errors(float32: Results, truth_of_float32: Results) -> dict[str, float]:
    """Stand-in for the reference's error in float64: that of float32, scaled, plus the truth's own half share."""
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    share = (FACTOR + 1.0) / FACTOR
    return {name: share * ratio * max_error(float32[name], value) for name, value in truth_of_float32.items()}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same bit by bit (so NaN equals NaN, and 0 is not -0)."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    return torch.equal(first.detach().contiguous().view(integer), second.detach().contiguous().view(integer))


def assert_same_bits(first: Results, second: Results, what: str) -> None:
    """Assert that two results are bitwise the same, naming the worst tensor otherwise."""
    assert set(first) == set(second), f"{what}: {sorted(set(first) ^ set(second))} are in one result only"
    for name, value in first.items():
        if not same_bits(value, second[name]):
            difference = (value.double() - second[name].double()).abs().max().item()
            raise AssertionError(f"{what}: {name} differs by up to {difference:.3e}, expected the same bits")
