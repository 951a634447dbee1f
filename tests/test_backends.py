"""The gate on every backend (``backends.ALL``): shapes, options, special values, lengths and resets, recompute, and the
same bits again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import cases
import emulated
import gate
import torch
from backends import Backend, over
from cases import DTYPES, LAYOUTS, NEEDS, USED, Case
from torch import Tensor

import gru_ext

HALF = (torch.bfloat16, torch.float16)
STATIONARY_DTYPES = (torch.float32, *HALF)
SPECIAL = ("inf", "nan", "huge")

# For the kernels that keep the weights on the chip: beside each edge of a tile of units, of columns, of a block.
SIZES = (1, 2, 15, 17, 64, 65, 100, 128, 129, 192, 255, 256)
FEW_SIZES = (17, 65, 129)  # with AddressSanitizer, which is slow, and of float16, whose elements lie as bfloat16's do
# Weights beyond the registers, which stay in shared memory; up to 25 blocks that exchange.
LARGE = {
    "cluster": {torch.bfloat16: (300, 512, 520, 768), torch.float32: (300,)},
    "grid": {torch.bfloat16: (512, 520, 800), torch.float32: (300, 512, 600)},
}

# lengths, resets, reset_state: each of its own, and both.
SEQUENCES = (
    ("random", "", ""), ("equal", "", ""), ("long", "", ""), ("", "none", "full"), ("", "all", "full"),
    ("", "first", "batch"), ("", "random", ""), ("", "random", "full"), ("", "all", "shared"), ("random", "random", ""),
    ("random", "random", "full"), ("long", "all", "batch"), ("equal", "first", "full"), ("random", "all", "full"),
)  # fmt: skip


def largest_solo(dtype: torch.dtype) -> int:
    """The largest hidden size whose weights fit into one block."""
    return 64 if dtype == torch.float32 else 128


def stationary_shapes(kernel: str, sanitized: bool) -> list[Case]:
    """One group of sequences, and two of each direction with packed input of odd lengths; large sizes once."""
    drawn = []
    for dtype in STATIONARY_DTYPES:
        for size in FEW_SIZES if sanitized or dtype == torch.float16 else SIZES:
            if (kernel == "solo") == (size <= largest_solo(dtype)):
                drawn.append(Case(5, 3, 4, size, dtype, seed=size))
                drawn.append(Case(4, 9, 3, size, dtype, bidirectional=True, packed="unsorted", seed=size + 1))
        if not sanitized:
            drawn += [Case(3, 5, 4, size, dtype, seed=size) for size in LARGE.get(kernel, {}).get(dtype, ())]
    return drawn


def shapes(backend: Backend, sanitized: bool = emulated.SANITIZED) -> list[Case]:
    """One beside each tile edge, in every dtype."""
    if backend.kind == "emulated" and backend.kernel != "step":
        return stationary_shapes(backend.kernel, sanitized)
    if backend.kind == "cuda" and backend.kernel in ("cluster", "grid"):
        return [
            Case(7, batch, 16, size, dtype, bidirectional=True, packed="unsorted", seed=size)
            for size in (129, 255, 256, 300, 384, 512, 520, 800, 1024, 2048)
            for dtype in STATIONARY_DTYPES
            for batch in (3, 70)  # groups of one and of several tiles of sequences
        ]
    # The elements of float16 lie as those of bfloat16 do: there is nothing new to read out of bounds.
    return [case for case in cases.shapes() if not (sanitized and case.dtype == torch.float16)]


def options(backend: Backend, sanitized: bool = emulated.SANITIZED) -> list[Case]:
    """Layers, directions, biases, layouts, packed and unbatched input, partial gradients."""
    if backend.kind in ("cpu", "arm") or (backend.kind == "cuda" and backend.kernel in ("step", "stationary")):
        return cases.options(180)
    if backend.kind == "cuda":
        return []
    if backend.kernel == "step":
        return cases.options(40 if sanitized else 120)
    return [] if sanitized else stationary_options(backend.kernel)


def stationary_options(kernel: str) -> list[Case]:
    """Those that this kernel takes as they are; a fourth is made larger, for clusters and grids by turns."""
    drawn = []
    for index, case in enumerate(case for case in cases.options(160) if case.dtype != torch.float64):
        its_kernel = "solo" if case.hidden_size <= largest_solo(case.dtype) else "cluster"
        if index % 4 == 3:
            its_kernel = ("cluster", "grid")[index // 4 % 2]
            case = replace(
                case,
                hidden_size=129 + index,
                batch=min(case.batch, 9),
                layers=min(case.layers, 2),
                seq_len=min(case.seq_len, 5),
            )
        if kernel == its_kernel:
            drawn.append(case)
    return drawn


def special_values(backend: Backend, sanitized: bool = emulated.SANITIZED) -> list[Case]:
    """inf, NaN, and what saturates; on the CPU also inf - inf in a product, subnormal numbers and zeros."""
    if backend.kind in ("cpu", "arm"):
        return [
            Case(5, 4, 3, hidden_size, dtype, bidirectional=hidden_size == 17, special=special, seed=hidden_size)
            for dtype in DTYPES
            for special in (*SPECIAL, "opposed", "tiny", "zero")
            for hidden_size in (3, 17, 33)
        ]
    stationary = backend.kind == "emulated" and backend.kernel != "step"
    if (stationary and sanitized) or (backend.kind == "cuda" and backend.kernel in ("cluster", "grid")):
        return []
    hidden_size = 130 if backend.kernel in ("cluster", "grid") else 17
    dtypes = HALF if stationary else DTYPES
    return [Case(5, 4, 3, hidden_size, dtype, special=special, seed=4) for dtype in dtypes for special in SPECIAL]


def sequences(backend: Backend, sanitized: bool = emulated.SANITIZED) -> list[Case]:
    """Lengths and resets, in every dtype, with sizes and options by turns; few rows and many."""
    sizes, dtypes = [4, 8, 16, 17, 31, 33, 48, 63, 65, 129, 5, 1], DTYPES
    if backend.kind == "emulated" and backend.kernel != "step":
        dtypes = STATIONARY_DTYPES
        sizes = {"solo": [17, 64, 33, 5], "cluster": [129, 192, 255], "grid": [130, 256, 300]}[backend.kernel]
        sizes = sizes[:1] if sanitized else sizes
    elif backend.kind == "cuda" and backend.kernel in ("cluster", "grid"):
        dtypes, sizes = STATIONARY_DTYPES, [129, 256, 300, 520, 800]
    elif backend.kind == "cuda":
        sizes = [*sizes, 256, 512]
    dtypes = [dtype for dtype in dtypes if not (sanitized and dtype == torch.float16)]  # as of shapes
    drawn = []
    for index, (dtype, (lengths, resets, reset_state)) in enumerate(product(dtypes, SEQUENCES)):
        if backend.kind == "emulated" and index % (4 if sanitized else 1 if backend.kernel == "step" else 2) > 0:
            continue
        unbatched = index % 9 == 5 and reset_state != "batch"
        drawn.append(
            Case(
                seq_len=(5, 7, 2, 4, 1)[index % 5] if lengths != "long" else 9,
                batch=1 if unbatched else (5, 3, 9, 4, 17, 2)[index % 6],
                input_size=(3, 5, 16, 1)[index % 4],
                hidden_size=sizes[index % len(sizes)],
                dtype=dtype,
                layers=2 if index % 4 == 1 else 1,
                bidirectional=index % 3 > 0,
                bias=index % 8 > 0,
                batch_first=index // 2 % 2 == 1,
                hx=index % 7 > 0,
                unbatched=unbatched,
                layout=LAYOUTS[index % 5 % 4],
                used=USED[index % 5] if index % 5 < 3 else "both",
                needs=NEEDS[index // 3 % len(NEEDS)] if index % 3 == 0 else "all",
                lengths=lengths,
                resets=resets,
                reset_state=reset_state,
                seed=index,
            )
        )
    if backend.kind == "cpu":
        marks = {"lengths": "random", "resets": "random", "reset_state": "full", "bidirectional": True}
        for index, (dtype, size) in enumerate(product(DTYPES, ((2, 3, 3, 129), (1, 9, 3, 129), (12, 40, 16, 64)))):
            drawn.append(Case(*size, dtype, batch_first=index % 2 == 0, seed=index, **marks))
        # A single sequence, and a few of many units, are cut at their resets (csrc/torch/layer_cpu_sequences.h).
        for index, (dtype, (lengths, resets, reset_state)) in enumerate(product(DTYPES, SEQUENCES)):
            if resets:
                drawn.append(
                    Case(
                        *((41, 1, 3, 17) if index % 3 else (12, 3, 2, 512)),
                        dtype,
                        layers=1 + index % 2,
                        bidirectional=index % 4 > 0,
                        batch_first=index // 2 % 2 == 0,
                        used=USED[index % 5] if index % 5 < 3 else "both",
                        needs=NEEDS[index % len(NEEDS)] if index % 3 == 0 else "all",
                        lengths=lengths,
                        resets=resets,
                        reset_state=reset_state,
                        seed=index,
                    )
                )
    return drawn


def recomputed(backend: Backend) -> list[Case]:
    """Two layers, both directions, packed, and with lengths and resets."""
    hidden_size = 33 if backend.kernel in ("step", "solo") and backend.kind == "emulated" else 150
    size = (9, 17, 33) if backend.kind == "cuda" else (6, 5, 7)
    if backend.kernel in ("cluster", "grid") and backend.kind != "emulated":
        return []
    kinds = {"packed": "unsorted"}, {"lengths": "random", "resets": "random", "reset_state": "full"}
    return [
        Case(*size, hidden_size, dtype, layers=2, bidirectional=True, seed=8, **kind)
        for dtype, kind in product(DTYPES, kinds)
    ]


def repeated(backend: Backend) -> list[Case]:
    """Packed and not; how often, see the test. Of the CPU test_cpu_targets.py asks more."""
    if backend.kind == "emulated":
        size = 33 if backend.kernel in ("step", "solo") else 150
        dtypes = DTYPES if backend.kernel == "step" else (torch.float16,)
        return [Case(4, 9, 5, size, dtype, bidirectional=True, packed="unsorted", seed=7) for dtype in dtypes]
    if backend.kind in ("cpu", "arm") or backend.kernel in ("cluster", "grid"):
        return []
    return [
        Case(9, 17, 33, size, dtype, layers=2, bidirectional=True, packed=packed, seed=7)
        for dtype in (torch.float32, torch.bfloat16)
        for size in (129, 520)
        for packed in ("", "unsorted")
    ]


@over(shapes)
def test_shapes(backend: Backend, case: Case) -> None:
    """One beside each tile edge, in every dtype."""
    backend.check(case)


@over(options)
def test_options(backend: Backend, case: Case) -> None:
    """Layers, directions, biases, layouts, packed and unbatched input, partial gradients."""
    backend.check(case)


@over(special_values)
def test_special_values(backend: Backend, case: Case) -> None:
    """inf and NaN where torch has them and nowhere else; saturated and vanishing gates stay right."""
    backend.check(case)


@over(sequences)
def test_sequences(backend: Backend, case: Case) -> None:
    """Lengths and resets: what nn.GRU gives piece by piece, whatever stands in the padding, which stays zero."""
    backend.check(case)


@over(recomputed)
def test_recompute(backend: Backend, case: Case) -> None:
    """With recompute the states alone are kept, and the gate holds all the same."""
    widths: set[int] = set()

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == (3 if case.packed else 4):  # what is saved has a dimension more than input
            widths.add(tensor.shape[-1])  # and hx (of packed input) or reset_state are as wide
        return tensor

    class Recomputing(gru_ext.GRU):
        """Notes how wide the rows are that forward keeps."""

        def forward(self, *arguments: Any, **named: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                return super().forward(*arguments, **named)

    backend.check(case, partial(Recomputing, recompute=True))
    assert widths == {case.hidden_size}


@over(repeated)
def test_the_same_call_gives_the_same_bits(backend: Backend, case: Case) -> None:
    """Forward and backward, 100 times on a GPU, under six orders of the threads on the emulated one."""
    if backend.extension is not None:
        backend.extension.set_seed(0)
    first = cases.evaluate(gru_ext.GRU, case, device=backend.device)
    for seed in range(1, 7 if backend.extension is not None else 101):
        if backend.extension is not None:
            backend.extension.set_seed(seed)
        again = cases.evaluate(gru_ext.GRU, case, device=backend.device)
        gate.assert_same_bits(again, first, f"call or seed {seed}")
