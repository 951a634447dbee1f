"""Measures what is fastest on the GPU at hand, so that later calls use it: :func:`tune`.

On CUDA torch's own kernels run until a measurement has shown others to be faster; which ones depends on the GPU, the
shape and the dtype. A candidate must also be correct: compared with float64, no output or gradient may be off by more
than twice what torch's kernels are in the same dtype. :mod:`gru_ext.cuda.choices` keeps results for other processes.
"""

import copy
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from gru_ext import ops
from gru_ext.cuda import choices, decision, wavefront
from gru_ext.modules import GRU

LIBRARY, STEP, STATIONARY, WAVEFRONT = "library", "step", "stationary", "wavefront"
# Units in the last place of the largest value: torch's kernels may happen to be exact.
_FLOOR = 8.0
# In float64 torch's kernels are themselves the truth. Rounding is far below this fraction of the largest value, a
# mistake is not.
_FLOOR_OF_FLOAT64 = 1e-10


@dataclass(frozen=True)
class Candidate:
    """One way to run the module.

    Attributes:
        kernel: a word of GRU_EXT_CUDA_KERNEL: "library" (torch's own), "step", "stationary" or "wavefront"
        milliseconds: median of a call, with its backward pass when training; None: not timed, the results were wrong
        error: largest error of an output or gradient, in units of the error allowed; above 1 is wrong
    """

    kernel: str
    milliseconds: float | None
    error: float


@dataclass(frozen=True)
class Tuning:
    """The result of :func:`tune`.

    Attributes:
        kernel: the fastest correct one, which runs from now on
        candidates: all that were tried
        training: whether calls with their backward pass were timed
    """

    kernel: str
    candidates: tuple[Candidate, ...]
    training: bool

    @property
    def ratio(self) -> float | None:
        """torch's time over that of the chosen kernel; None where torch's kernels were no candidate."""
        times = {candidate.kernel: candidate.milliseconds for candidate in self.candidates}
        theirs, ours = times.get(LIBRARY), times[self.kernel]
        return theirs / ours if theirs and ours else None

    def __str__(self) -> str:
        mode = "forward and backward" if self.training else "forward"
        lines = [f"{mode}: {self.kernel}"]
        for candidate in self.candidates:
            time = candidate.milliseconds
            result = "wrong results, not used" if time is None else f"{time:.3f} ms"
            lines.append(f"  {candidate.kernel:10}  {result:24}  error {candidate.error:.2f} of what is allowed")
        return "\n".join(lines)


def tune(
    module: GRU,
    input: Tensor | PackedSequence,
    hx: Tensor | None = None,
    *,
    training: bool | None = None,
    rounds: int = 20,
    save: str | os.PathLike[str] | None = None,
) -> Tuning:
    """Measures which kernels run a module fastest on its GPU, and uses them from then on in this process.

    The choice holds for layers of the same dtype, hidden size, number of directions, packed or not, trained or not, for
    batches from half to twice the size, with recompute and without. It replaces one of GRU_EXT_CUDA_CHOICES;
    GRU_EXT_CUDA_KERNEL overrides it. Call it at start-up, for each kind of batch; or once with ``save``, for processes
    that read the file by GRU_EXT_CUDA_CHOICES. Nothing else should use the GPU meanwhile. It calls the module some
    hundred times. Weights, gradients and the state of torch's random numbers stay as they are; dropout is left out.

    Args:
        module: on a GPU
        input, hx: as for calling the module
        training: whether to time forward and backward; None: as the module's mode is
        rounds: how often each candidate is timed, in turns with the others
        save: a file to which the choice is added, in place of an earlier one for the same layers, batch, GPU and
            versions of torch and gru_ext; its other choices stay

    Returns:
        the measurements and the choice

    Raises:
        TypeError: module is not a :class:`gru_ext.GRU`
        ValueError: input is not on a GPU that this build has kernels for, or of a dtype without kernels; rounds below
            1; GRU_EXT_CUDA_KERNEL is set; cuDNN is switched off; save is a file of another kind, or in no folder
        OSError: save cannot be written; the choice is made even so
    """
    if not isinstance(module, GRU):
        raise TypeError(f"module must be a gru_ext.GRU, got {type(module).__name__}")
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}")
    if os.environ.get("GRU_EXT_CUDA_KERNEL"):
        raise ValueError("GRU_EXT_CUDA_KERNEL is set, and decides whatever is measured; expected it not to be")
    if not torch.backends.cudnn.enabled:
        raise ValueError("torch.backends.cudnn.enabled is False, so that torch's own kernels cannot be measured")
    data = input.data if isinstance(input, PackedSequence) else input
    if not ops.on_cuda(data) or data.dtype not in ops.DTYPES:
        raise ValueError(f"expected input on a GPU that gru_ext was built for, got {data.dtype} on {data.device}")
    if save is not None:
        choices.check(Path(save))  # before the time is spent
    training = module.training if training is None else training
    copied = copy.deepcopy(module).eval()
    for parameter in copied.parameters():
        parameter.requires_grad_(True)
    calls = _Calls(copied, input, hx, training)

    plain = copy.deepcopy(copied)
    plain.recompute = False  # which torch's kernels cannot do
    theirs = _Calls(plain, input, hx, training)
    truth = _Calls(copy.deepcopy(plain).double(), _cast(input), None if hx is None else hx.double(), training)
    with theirs.trial(LIBRARY), truth.trial(LIBRARY):
        exact = truth.results()
        allowed = [
            2 * _error(result, value) + _floor(value, data.dtype)
            for result, value in zip(theirs.results(), exact, strict=True)
        ]
    kernels = [STEP] if module.recompute else [LIBRARY, STEP]
    if data.dtype != torch.float64:
        kernels.append(STATIONARY)
        if module.num_layers > 1 and wavefront.fits(calls.seq_len, calls.directions, calls.packed):
            kernels.append(WAVEFRONT)
    errors = {}
    for kernel in kernels:
        with calls.trial(kernel):
            results = calls.results()
        errors[kernel] = max(
            _share(_error(result, value), most) for result, value, most in zip(results, exact, allowed, strict=True)
        )
    correct = [kernel for kernel in kernels if errors[kernel] <= 1]
    times: dict[str, list[float]] = {kernel: [] for kernel in correct}
    for _ in range(rounds):
        for kernel in correct:
            with calls.trial(kernel):
                times[kernel].append(_milliseconds(calls.run, data.device))
    medians = {kernel: statistics.median(values) for kernel, values in times.items()}
    best = min(medians, key=lambda kernel: medians[kernel], default=STEP if module.recompute else LIBRARY)
    candidates = tuple(Candidate(kernel, medians.get(kernel), errors[kernel]) for kernel in kernels)
    tuning = Tuning(best, candidates, training)
    choice = calls.choice(tuning)
    choice.use()
    if save is not None:
        choices.save(Path(save), choice)
    return tuning


class _Calls:
    """Calls of a module with one input, and the choices that concern them."""

    def __init__(self, module: GRU, input: Tensor | PackedSequence, hx: Tensor | None, training: bool) -> None:
        self.module, self.training = module, training
        self.packed = isinstance(input, PackedSequence)
        self.data = (input.data if isinstance(input, PackedSequence) else input).detach().requires_grad_(training)
        self.input = input._replace(data=self.data) if isinstance(input, PackedSequence) else self.data
        self.hx = hx
        self.directions = 2 if module.bidirectional else 1
        if isinstance(input, PackedSequence):
            self.batch, self.seq_len = int(input.batch_sizes[0]), input.batch_sizes.numel()
        elif input.dim() == 2:
            self.batch, self.seq_len = 1, input.size(0)
        else:
            self.batch, self.seq_len = input.shape[:2] if module.batch_first else input.shape[1::-1]

    def run(self) -> list[Tensor]:
        """One call, and its gradients when training."""
        with torch.set_grad_enabled(self.training):
            output, h_n = self.module(self.input, self.hx)
            outputs = [output.data if self.packed else output, h_n]
            if not self.training:
                return outputs
            leaves = [self.data, *self.module.parameters()]
            return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones_like(tensor) for tensor in outputs])]

    def results(self) -> list[Tensor]:
        return [tensor.detach().double() for tensor in self.run()]

    @contextmanager
    def trial(self, kernel: str) -> Iterator[None]:
        """Runs these calls by one kernel; afterwards by what was chosen before."""
        layers = (self.data.dtype, self.batch, self.module.hidden_size, self.directions, self.packed, self.training)
        decision.native.begin_cuda_trial(kernel, *layers)
        try:
            yield
        finally:
            decision.native.end_cuda_trial()

    def choice(self, tuning: Tuning) -> choices.Choice:
        """The choice for all calls like these."""
        return choices.Choice(
            **choices.here(self.data.get_device()),
            dtype=str(self.data.dtype).removeprefix("torch."),
            hidden_size=self.module.hidden_size,
            batch=self.batch,
            directions=self.directions,
            packed=self.packed,
            training=self.training,
            tf32=self.data.dtype == torch.float32 and decision.native.cuda_tf32(),
            kernel=tuning.kernel,
            ratio=tuning.ratio,
        )


def _cast(input: Tensor | PackedSequence) -> Tensor | PackedSequence:
    return input._replace(data=input.data.double()) if isinstance(input, PackedSequence) else input.double()


def _error(result: Tensor, exact: Tensor) -> float:
    """Largest distance; inf and NaN count as 0 where both have them, else as inf."""
    same = (result == exact) | (result.isnan() & exact.isnan())
    distance = torch.where(same, 0.0, (result - exact).abs()).nan_to_num(nan=torch.inf)
    return distance.max().item() if distance.numel() else 0.0


def _floor(exact: Tensor, dtype: torch.dtype) -> float:
    largest = exact.abs().nan_to_num(posinf=0.0).max().item() if exact.numel() else 0.0
    return largest * (_FLOOR_OF_FLOAT64 if dtype == torch.float64 else _FLOOR * torch.finfo(dtype).eps)


def _share(error: float, allowed: float) -> float:
    """The error in units of the error allowed."""
    if error == 0 or allowed == math.inf:
        return 0.0
    return error / allowed if allowed else math.inf


def _milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, until the GPU is done."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e3
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with torch.cuda.device(device):  # events are recorded on its stream
        torch.cuda.synchronize(device)
        first.record()
        call()
        last.record()
        last.synchronize()
    return float(first.elapsed_time(last))
