"""The compiled module: one GRU layer, one or two directions, forward and backward, without autograd.

Sizes: T seq_len, B batch, I input_size, H hidden_size, D directions (1 or 2), rows = T * B, or the sum of batch_sizes
when packed. Dtypes: float32, float64, bfloat16, float16, the same for every tensor but batch_sizes.
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

def forward(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    save: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer forward.

    Args:
        input: [T, B, I]; [B, T, I] when batch_first; packed [rows, I] when batch_sizes is given
        hx: [D, B, H]; None: zeros
        weights: for each direction weight_ih [3H, I], weight_hh [3H, H] and, with biases, bias_ih [3H], bias_hh [3H]
        batch_sizes: [T] int64 on the CPU, never increasing, as in PackedSequence; None: not packed
        save: whether to keep for backward what it needs: gates and states
        recompute: with save, to keep the states alone, from which backward computes the gates again

    Returns:
        output [..., D*H] laid out like input; h_n [D, B, H]; saved [D, rows, *], rows of H with recompute, else
        longer ones (csrc/gru.h), or [0] when not save

    Raises:
        RuntimeError: wrong size, dtype, device or layout; the message names the argument.
    """

def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    """One layer backward: the gradients whose flag in needs is set, in the order (input, hx, *weights).

    grad_output [..., D*H] and grad_h_n [D, B, H] may be None, which means zero. Without hx there is no gradient of it.
    weights may lack the biases, as long as saved is not the states alone; needs has their flags all the same.
    """

def forward_members(
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    save: bool,
    recompute: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The layers of an ensemble forward, side by side: members many, M, of the same sizes.

    Args:
        input, hx, weights: as for :func:`forward` with M before the other dimensions, [M, T, B, I], [M, D, B, H],
            [M, 3H, I] and so on; a tensor that lacks that dimension is shared by all. hx tells D and is needed
        batch_sizes, batch_first, save, recompute: the same for all

    Returns:
        output [M, ..., D*H], h_n [M, D, B, H] and saved [M, D, rows, *] or [0]: what a call of
        :func:`forward` for each member gives, stacked; on the CPU the same bits

    Raises:
        RuntimeError: as forward; M of a tensor other than members
    """

def backward_members(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    input: Tensor,
    hx: Tensor,
    weights: Sequence[Tensor],
    saved: Tensor,
    batch_sizes: Tensor | None,
    batch_first: bool,
    members: int,
    needs: Sequence[bool],
) -> list[Tensor]:
    """The layers of an ensemble backward: the gradients whose flag in needs is set, in the order (input, hx, *weights).

    Each is [M, ...], every member's own, also of what all share. grad_output [M, ..., D*H] and grad_h_n [M, D, B, H]
    may be None, which means zero; saved may be shared, [D, rows, *].
    """

def layer_direct(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    batch_first: bool,
    bidirectional: bool,
    recompute: bool,
) -> tuple[Tensor, Tensor] | None:
    """One layer with its autograd, past torch's dispatcher. Positional arguments only, as those of :func:`forward`.

    None whenever the call is not one for it: a tensor that is a subclass or not plain and dense, arguments that do not
    fit together, a dtype or device without kernels, autocast for the device, or an active dispatch or function mode,
    ``torch.func`` transform, tracer or profiler. It does not see torch.compile and forward-mode differentiation: those
    are for the caller to ask about.

    Args:
        hx: [D, B, H]; None: zeros
        weights: a list or a tuple

    Returns:
        output [..., D*H] laid out like input, and h_n [D, B, H]; or None
    """

def cell_direct(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Tensor | None:
    """One step on the CPU: h_t [B, H] from input [B, I] and hx [B, H], or None, as :func:`layer_direct`."""

def set_general_backward(function: Callable[..., Sequence[Tensor | None]]) -> None:
    """Sets what runs those backward passes of direct calls that cannot be direct, such as with create_graph=True.

    It is called with the arguments of :func:`backward`, but hx may be None, and of a cell input and hx are as they were
    given; it returns what :func:`backward` does, with None for zero.
    """

def set_unseeing_mode(mode: type) -> None:
    """The class of those modes of torch's functions that leave a call direct: they would not look at it."""

def kept_casts(weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Under autocast: each weight in the autocast dtype, cast once within the outermost autocast block.

    None for a weight that is for the caller to cast: one that is no plain float32 leaf that requires grad, one that
    changed since it was cast, or any when a mode or transform is active or autocast keeps no casts. A cast is
    differentiable even when it was made without grad.
    """

def build_info() -> dict[str, str | bool | int]:
    """torch_version, cuda_version, compiler, cuda_arch_list, with_cuda, python_version at build time."""

def cpu_targets() -> list[str]:
    """The SIMD targets that this machine can run, best first.

    Of "avx512_bf16", "avx512_amx" (only when asked for), "avx512", "avx2", "portable".
    """

def cpu_target() -> str:
    """The SIMD target in use."""

def set_cpu_target(name: str) -> None:
    """Uses another SIMD target from now on.

    Raises:
        ValueError: when this machine cannot run it.
    """

def cpu_operations_per_second(dtype: torch.dtype, threads: int, milliseconds: int = 20) -> float:
    """What this machine can compute at most: operations a second, of multiply-adds (two each) on registers alone.

    Args:
        dtype: float32, float64; bfloat16, by the SIMD target's dot product where it has one, else as float32; float16,
            as float32, in which it is computed
        threads: 1 to 1024; counts together what so many do at the same time, or as many as there are processors
        milliseconds: how long to measure, 1 to 10000; the best of many short repeats is returned

    Raises:
        TypeError: a dtype without kernels.
        ValueError: a number out of range; the message names the argument.
    """

def cpu_bytes_per_second(bytes: int, threads: int, milliseconds: int = 20) -> float:
    """What this machine can read at most: bytes a second, from the nearest cache that holds so many.

    Args:
        bytes: size of what is read over and over, 4096 to 2**31, in equal parts by the threads
        threads: as for cpu_operations_per_second
        milliseconds: the same; three times over a large buffer may take longer

    Raises:
        MemoryError: there are not so many bytes.
        ValueError: a number out of range; the message names the argument.
    """

def set_phase_clock(on: bool) -> None:
    """Switches the clock of the CPU kernels' phases, in every thread, for passes that begin from now on.

    Switched on it begins at zero. It changes no result; off, as it is at first, it costs nothing measurable.
    """

class PassTimes(TypedDict):
    """What the phase clock has counted of all forward or all backward passes on the CPU.

    Attributes:
        calls: of the kernel, one for each direction of each layer
        seconds: all calls from begin to end, as the thread that made each sees it
        thread_seconds: the same, each call's seconds times the threads planned for it
        threads: seconds of each thread that took part, by phase: "packing" (rearranging weights), "projection" (the
            inputs' product with W_ih), "product" (with W_hh, step by step), "gates" (of a step, and its state),
            "waiting" (for other threads), "gradients" (backward's large products), "recompute" (gates that forward has
            not kept). What is left of thread_seconds went into waking and joining threads and into memory.
    """

    calls: int
    seconds: float
    thread_seconds: float
    threads: list[dict[str, float]]

def phase_times() -> dict[Literal["forward", "backward"], PassTimes]:
    """What the phase clock has counted since it was switched on, of passes that have ended; all zero before."""

def plan(
    device_type: str,
    dtype: torch.dtype,
    seq_len: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    training: bool,
) -> str:
    """Which kernel would run for this shape, and why, in words."""

def cpu_plan(
    seq_len: int,
    rows: int,
    input_size: int,
    hidden_size: int,
    packed: bool,
    directions: int,
    members: int | None = None,
) -> dict[str, str | int | bool]:
    """How a pass would be divided on the CPU.

    Args:
        rows: T * B, or the sum of batch_sizes when packed
        directions: that may run at the same time, 1 or 2
        members: of an ensemble of such layers; None: a single layer

    Returns:
        simd (target), threads, split ("none", "batch", "hidden units", "directions" or "members"), few_steps (the
        weights are read as they lie, by forward), narrow_weights (those of 16 bits are kept as such, by targets that
        can)

    Raises:
        ValueError: a size out of range
    """

# The rest only in a build with CUDA.

def cuda_tiles(dtype: torch.dtype) -> list[tuple[int, int, bool]]:
    """The divisions that kernels with stationary weights are compiled for, for benchmarks/tune_cuda.py.

    Returns:
        each number of tiles of 16 columns that a warp may hold (k_tiles), the most warps of a block with it, and
        whether two warps, no more, must share the columns of a unit
    """

def cuda_passes(
    dtype: torch.dtype,
    seq_len: int,
    batch: int,
    input_size: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    device: int | tuple[int, int, int, int] = -1,
) -> list[dict[str, str | int | bool]]:
    """How our kernels would run a layer on a GPU: forward and, when training, backward.

    Args:
        directions: 1 or 2
        device: number of the GPU, negative for the current one; or one that is not there: compute capability (major,
            minor), multiprocessors and bytes of shared memory a block

    Returns:
        for each pass kernel ("step", "solo", "cluster", "grid") and reason; of all but "step" also blocks (of a group,
        which together hold W_hh), groups, group_batch (sequences of a group), tile (sequences that a warp takes at a
        time), warps (of a block), units (of a block), shared_bytes (of a block), directions_together (in one launch)

    Raises:
        ValueError: a size out of range; GRU_EXT_CUDA_KERNEL or GRU_EXT_CUDA_TUNING is not what it may be
    """

def cuda_chosen(
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    device: int = -1,
    seq_len: int = 1,
) -> str:
    """What runs such layers, in the words of GRU_EXT_CUDA_KERNEL: "library" (torch's own kernels), "step", ...

    Args:
        device: number of the GPU, negative for the current one
        seq_len: 0 for a cell

    Raises:
        ValueError: GRU_EXT_CUDA_KERNEL is none of them
    """

def cuda_source(
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    device: int = -1,
    seq_len: int = 1,
) -> str:
    """Who chose that, to stand behind "chosen by"; arguments and errors as for :func:`cuda_chosen`."""

def cuda_gpu(device: int = -1) -> tuple[str, int, int]:
    """Name and compute capability (major, minor) of a GPU; device as for :func:`cuda_chosen`."""

def cuda_tf32() -> bool:
    """Whether products of float32 may round to TF32."""

def choose_cuda_kernel(
    kernel: str,
    dtype: torch.dtype,
    batch: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    tf32: bool | None = None,
    gpu: tuple[str, int, int] | None = None,
    ratio: float | None = None,
    date: str = "",
) -> None:
    """Chooses what runs such layers from now on, for batches from half to twice the size.

    Args:
        tf32: of float32, whether products may round to TF32; None: as :func:`cuda_tf32`
        gpu: on GPUs of this name and compute capability; None: of the current one's
        ratio, date: torch's time over the kernel's and when it was measured, for :func:`cuda_source`

    Raises:
        ValueError: no such kernel
    """

def forget_cuda_choices() -> None:
    """Takes back every choice."""

def begin_cuda_trial(
    kernel: str, dtype: torch.dtype, batch: int, hidden_size: int, directions: int, packed: bool, training: bool
) -> None:
    """Until the trial ends, layers of exactly this batch run so, whatever was chosen. ValueError: no such kernel."""

def end_cuda_trial() -> None:
    """Ends the latest trial."""
