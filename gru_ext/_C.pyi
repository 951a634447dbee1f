"""The compiled module: one GRU layer, one or two directions, forward and backward, without autograd.

Sizes: T seq_len, B batch, I input_size, H hidden_size, D directions (1 or 2), rows = T * B, or the sum of batch_sizes
when packed. Dtypes: float32, float64, bfloat16, float16, the same for every tensor but batch_sizes, lengths and resets.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

import torch
from torch import Tensor

def forward(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Tensor | None,
    options: Sequence[int],
    members: int | None,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """One layer forward, or an ensemble of layers: the operator ``gru_ext::forward``.

    Args:
        save: whether to keep for backward what it needs; the others are those of :class:`gru_ext.ops.Arguments`

    Returns:
        output [..., D*H] laid out like input; h_n [D, B, H]; saved [D, ..., *], between them the dimensions of input
        but its last, rows of H with recompute, else longer ones (csrc/gru.h), or [0] when not save. Of an ensemble all
        but [0] have the members as their first dimension: what a call for each gives, stacked; on the CPU the same bits

    Raises:
        RuntimeError: wrong size, dtype, device or layout; the message names the argument.
    """

def backward(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    saved: Tensor,
    needs: Sequence[bool],
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Tensor | None,
    options: Sequence[int],
    members: int | None,
) -> list[Tensor]:
    """One layer backward: the gradients whose flag in needs is set, in the order (input, hx, reset_state,
    *weights).

    grad_output and grad_h_n, like output and h_n of :func:`forward`, may be None, which means zero. Of an hx or
    reset_state that is absent there is no gradient. weights may lack the biases, unless recompute; needs has their
    flags all the same. Of an ensemble each gradient is every member's own, also of what all share; saved may be shared.
    """

def layer_direct(
    input: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reset_state: Tensor | None,
    options: Sequence[int],
    num_layers: int = 1,
) -> tuple[Tensor, Tensor] | None:
    """One layer with its autograd, past torch's dispatcher. Positional arguments only, as those of :func:`forward`.

    Or a stack of layers, with the hx, reset_state, weights and h_n [L*D, B, H] of all. On the CPU they may overlap when
    nothing is recorded, each on a thread of its own.

    None whenever the call is not one for it: a tensor that is a subclass or not plain and dense, arguments that do not
    fit together, a dtype or device without kernels, autocast for the device, or an active dispatch or function mode,
    ``torch.func`` transform, tracer or profiler. It does not see torch.compile and forward-mode differentiation: those
    are for the caller to ask about.

    Args:
        weights: a list or a tuple
        options: a tuple

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
    reset: Tensor | None,
    scale_ih: Tensor | None = None,
    scale_hh: Tensor | None = None,
    hidden_size: int = 0,
    input_size: int = 0,
) -> Tensor | None:
    """One step on the CPU: h_t [B, H] from input [B, I] and hx [B, H], or None, as :func:`layer_direct`.

    reset: bool [B], true where hx is taken for zero; hidden_size, input_size: H and I where weights are
    packed, int8 ones with scales
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
    """torch_version, cuda_version, compiler, cuda_arch_list, with_cuda, spin_limit, python_version at build time."""

def cpu_targets() -> list[str]:
    """The SIMD targets that this machine can run, best first.

    Of "avx512_amx", "avx512_bf16", "avx512" (before "avx512_bf16" on Intel's processors) and "avx2", or of "neon_bf16"
    and "neon"; then "portable".
    """

def cpu_lanes() -> int:
    """Floats in a vector of the target in use, for which weights are packed."""

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
        dtype: float32, float64; bfloat16, by the SIMD target's tiles or dot product where it has them, else as
            float32; float16, by tiles or as float32
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

def cpu_plan(
    dtype: torch.dtype,
    seq_len: int,
    rows: int,
    input_size: int,
    hidden_size: int,
    directions: int,
    members: int | None = None,
    layers: int = 1,
    longest_piece: int | None = None,
    weights: str = "",
) -> dict[str, str | int | bool]:
    """How a pass would be divided on the CPU.

    Args:
        rows: T * B, or the sum of batch_sizes when packed
        directions: that may run at the same time, 1 or 2
        members: of an ensemble of such layers; None: a single layer
        layers: of a stack, in a forward pass that keeps nothing; input_size is then that of the first
        longest_piece: of the sequences of a stack that may be cut instead, in steps; None: they may not
        weights: "float32", "bfloat16" or "int8" where they are packed ahead, for a forward pass; "": they are not

    Returns:
        simd (target, of int8 maybe "avx512_vnni", "avx2_vnni" or "neon_dot"), threads, split ("none", "batch", "hidden
        units", "directions", "members" or "layers"), few_rows (the weights are read as they lie, by forward),
        narrow_weights (those of 16 bits are kept as such, by targets that can)

    Raises:
        ValueError: a size out of range
        TypeError: a dtype without kernels
    """

def cpu_worth_cutting(seq_len: int, batch: int, hidden_size: int, pieces: int, longest: int) -> bool:
    """Whether sequences with resets are cut there into so many pieces, the longest of so many steps."""

# The rest only in a build with CUDA.

def cuda_decide(
    dtype: torch.dtype,
    seq_len: int,
    batch: int,
    hidden_size: int,
    directions: int,
    packed: bool,
    training: bool,
    device: int = -1,
) -> tuple[str, str, str]:
    """Strategy, kernel and source; documented at :func:`gru_ext.cuda.decision.decide`."""

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
    kernel: str | None = None,
) -> list[dict[str, str | int | bool]]:
    """How our kernels would run a layer on a GPU: forward and, when training, backward.

    Args:
        seq_len: 0 for a cell
        directions: 1 or 2
        device: number of the GPU, negative for the current one; or a described one: compute capability (major, minor),
            multiprocessors and bytes of shared memory a block
        kernel: "step" or "stationary"; None: the one that :func:`cuda_decide` names

    Returns:
        for each pass kernel ("step" or "stationary") and reason; of "stationary" also exchange ("solo", "cluster" or
        "grid"), blocks (of a group, which together hold W_hh), groups, group_batch (sequences of a group), tile
        (sequences that a warp takes at a time), warps (of a block), units (of a block), shared_bytes (of a block),
        directions_together (in one launch)

    Raises:
        ValueError: a size out of range; invalid kernel, GRU_EXT_CUDA_KERNEL or GRU_EXT_CUDA_TUNING
    """

def cuda_tiles(dtype: torch.dtype) -> list[tuple[int, int, bool]]:
    """The divisions for which there is a stationary kernel, for benchmarks/tune_cuda.py.

    Returns:
        each number of tiles of 16 columns that a warp may hold (k_tiles), the most warps of a block with it, and
        whether two warps, no more, must share the columns of a unit
    """

def cuda_gpu(device: int = -1) -> tuple[str, int, int]:
    """Name and compute capability (major, minor) of a GPU; device as for :func:`cuda_decide`."""

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
        kernel: a word of GRU_EXT_CUDA_KERNEL
        tf32: of float32, whether products may round to TF32; None: as :func:`cuda_tf32`
        gpu: name and compute capability of the GPUs that it is for; None: the current one's
        ratio, date: torch's time over the kernel's and when it was measured, for the source of the decision

    Raises:
        ValueError: invalid kernel
    """

def forget_cuda_choices() -> None:
    """Takes back every choice."""

def begin_cuda_trial(
    kernel: str, dtype: torch.dtype, batch: int, hidden_size: int, directions: int, packed: bool, training: bool
) -> None:
    """Until the trial ends, this runs layers of exactly this batch, whatever was chosen. ValueError: invalid kernel."""

def end_cuda_trial() -> None:
    """Ends the latest trial."""
