"""What csrc/cuda/plan.cpp decides on the emulated GPU, an H100, and for GPUs that are described. Nothing runs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from cases import Case
from emulated import choose
from emulated import passes as plan

import gru_ext

pytestmark = pytest.mark.usefixtures("emulated_gpu")

SHARED = 227 << 10  # bytes that a block of an H100 may have
H100 = (9, 0, 132, SHARED)
A100 = (8, 0, 108, 163 << 10)


def path_of(division: dict[str, Any]) -> str:
    """ "step", or how the blocks of a stationary kernel exchange."""
    path: str = division.get("exchange", division["kernel"])
    return path


def forward_plan(
    extension: ModuleType,
    device: int | tuple[int, int, int, int],
    batch: int,
    hidden_size: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Any:
    """The forward pass on a described GPU, or on the emulated one."""
    return extension.cuda_passes(dtype, 64, batch, 32, hidden_size, 1, False, False, device)[0]


@pytest.mark.usefixtures("tf32")
def test_plan_in_tf32_reaches_further(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to hidden size 1024 both passes fit on the chip, and bfloat16 is none the wiser."""
    choose(monkeypatch, "stationary")
    for hidden_size, path in ((1024, "grid"), (1025, "step")):
        passes = plan(extension, Case(3, 70, 5, hidden_size, torch.float32))
        assert [path_of(division) for division in passes] == [path, path], passes
    assert "TF32" not in plan(extension, Case(3, 70, 5, 256, torch.bfloat16))[0]["reason"]


@pytest.mark.parametrize(
    ("requested", "dtype", "hidden_size", "said"),
    [
        ("stationary", torch.float64, 256, "no kernel keeps float64 weights"),
        ("stationary", torch.float32, 1025, "hidden_size is above 1024"),
        ("wavefront", torch.bfloat16, 2100, "hidden_size is above 2048"),
        ("cluster", torch.bfloat16, 1024, "asks for a cluster, and the shape is one for a grid"),
        ("grid", torch.bfloat16, 2100, "hidden_size is above 2048"),
        ("step", torch.bfloat16, 256, "asked for"),
        ("library", torch.bfloat16, 256, "where torch's own kernels, which were chosen, cannot"),
        (None, torch.bfloat16, 256, "where torch's own kernels, which were chosen, cannot"),
    ],
)
def test_plan_says_why_the_step_path_runs(
    extension: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    requested: str | None,
    dtype: torch.dtype,
    hidden_size: int,
    said: str,
) -> None:
    """A kernel that cannot run the shape is not an error, and the reason names what was asked for."""
    if requested is not None:
        choose(monkeypatch, requested)
    extension.use_measured([])  # whatever this GPU's rows say
    forward = plan(extension, Case(3, 4, 5, hidden_size, dtype))[0]
    assert forward["kernel"] == "step" and said in forward["reason"]
    assert requested in (None, "library", "step") or "stationary was asked for" in forward["reason"]


def test_plan_takes_a_kernel_that_was_decided(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """And decides by itself without one."""
    sizes = (torch.bfloat16, 3, 4, 5, 256, 1, False, True)
    for requested, decided in (("step", "step"), ("stationary", "stationary"), ("library", "step")):
        choose(monkeypatch, requested)
        assert {division["kernel"] for division in extension.cuda_passes(*sizes)} == {decided}
        for kernel in ("step", "stationary"):
            divisions = extension.cuda_passes(*sizes, kernel=kernel)
            assert [division["kernel"] for division in divisions] == [kernel, kernel]
    with pytest.raises(ValueError, match="kernel is library; expected step or stationary"):
        extension.cuda_passes(*sizes, kernel="library")


@pytest.mark.parametrize(
    "tuning",
    ["", "8", "8,2,8,9", "7,2,8", "8,3,8", "8,2,16", "8,0,8", "8,1,8", "24,1,8", "4,4,8", "a,b,c", "8,2,8,"]
    + ["solo", "8,2,8,solo", ",grid", "grid,8,2,8", "8,2,8,grid,cluster", "8,2,8,9,grid", "7,2,8,cluster"],
)
def test_plan_refuses_bad_tunings(extension: ModuleType, monkeypatch: pytest.MonkeyPatch, tuning: str) -> None:
    """What is no division, or none that holds the weights, raises and names the variable. Empty is as if unset."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", tuning)
    module = gru_ext.GRU(3, 200, dtype=torch.bfloat16)
    if not tuning:
        assert module(torch.randn(2, 1, 3, dtype=torch.bfloat16))[0].isfinite().all()
        return
    with pytest.raises(ValueError, match=f"GRU_EXT_CUDA_TUNING is {tuning}; expected .* cluster or grid"):
        module(torch.randn(2, 1, 3, dtype=torch.bfloat16))


@pytest.mark.parametrize(
    ("tuning", "hidden_size", "exchange", "group_batch", "warps"),
    [
        ("", 256, "cluster", 8, 8),
        ("cluster", 256, "cluster", 8, 8),
        ("grid", 256, "grid", 8, 8),
        ("grid", 128, "solo", 8, 16),  # one block holds the weights, and has nobody to exchange with
        ("cluster", 128, "solo", 8, 16),
        ("8,2,4", 256, "cluster", 8, 4),
        ("8,2,4,cluster", 256, "cluster", 8, 4),
        ("8,2,4,grid", 256, "grid", 8, 4),
        ("8,2,4,48,grid", 256, "grid", 48, 4),
        ("8,2,4,48", 256, "cluster", 48, 4),
    ],
)
def test_tuning_forces_the_exchange(
    extension: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tuning: str,
    hidden_size: int,
    exchange: str,
    group_batch: int,
    warps: int,
) -> None:
    """With the table's division or another, forward and backward."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", tuning)
    for division in plan(extension, Case(3, 4, 5, hidden_size, torch.bfloat16)):
        numbers = (division["group_batch"], division["warps"])
        assert (division["kernel"], division["exchange"], *numbers) == ("stationary", exchange, group_batch, warps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_division_there_is_a_kernel_for_may_be_asked_for(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """And the message names each where another is asked for."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    tiles = extension.cuda_tiles(dtype)
    for k_tiles, most_warps, two_splits in tiles:
        warps = most_warps if k_tiles < tiles[-1][0] else 4  # 8 of the largest take more than a block's shared memory
        monkeypatch.setenv("GRU_EXT_CUDA_TUNING", f"{k_tiles},2,{warps}")
        forward, backward = plan(extension, Case(2, 1, 3, 30, dtype))
        assert {forward["warps"], backward["warps"]} == {warps} and two_splits == (most_warps == 16)
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", "5,2,8")
    with pytest.raises(ValueError, match=f"k_tiles among {', '.join(str(k_tiles) for k_tiles, _, _ in tiles)}, "):
        plan(extension, Case(2, 1, 3, 30, dtype))


@pytest.mark.parametrize(
    ("kernel", "hidden_size", "batch", "dtype", "tiles"),
    [
        ("cluster", 256, 8, torch.bfloat16, {8}),  # one tile of 8 is no slower
        ("cluster", 256, 400, torch.bfloat16, {16}),
        ("cluster", 256, 400, torch.float32, {8}),  # no registers
        ("solo", 128, 1600, torch.bfloat16, {8}),
        ("grid", 1024, 40, torch.float16, {16}),
        ("grid", 2048, 16, torch.bfloat16, {8, 16}),  # no shared memory for three gradients of 16 in backward
    ],
)
def test_tiles_of_sequences(
    extension: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    kernel: str,
    hidden_size: int,
    batch: int,
    dtype: torch.dtype,
    tiles: set[int],
) -> None:
    """A group of more than 8 sequences takes 16 at a time where there is room for what that needs."""
    choose(monkeypatch, kernel)
    passes = plan(extension, Case(3, batch, 4, hidden_size, dtype))
    assert [path_of(division) for division in passes] == [kernel, kernel]
    assert {division["tile"] for division in passes} == tiles
    for division in passes:
        assert division["group_batch"] % division["tile"] == 0
        assert division["groups"] * division["group_batch"] >= batch


@pytest.mark.parametrize(("seq_len", "kernel"), [(2**31 // 64 - 2, "cluster"), (2**31 // 64, "step"), (2**62, "step")])
def test_plan_counts_rows_in_32_bits(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch, seq_len: int, kernel: str
) -> None:
    """What has more goes step by step."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    forward = plan(extension, Case(seq_len, 64, 5, 256, torch.bfloat16))[0]
    assert path_of(forward) == kernel and (kernel != "step" or "rows are counted in 32 bits" in forward["reason"])


@pytest.mark.parametrize("device", [-1, H100], ids=["asked", "described"])
@pytest.mark.parametrize(
    ("batch", "hidden_size", "kernel", "blocks"),
    [(8, 128, "solo", 1), (8, 512, "cluster", 8), (8, 513, "cluster", 11), (56, 768, "cluster", 16)]
    + [(8, 769, "grid", 25), (500, 768, "grid", 24)],
)
def test_plan_takes_clusters_as_large_as_there_are(
    extension: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    device: int | tuple[int, int, int, int],
    batch: int,
    hidden_size: int,
    kernel: str,
    blocks: int,
) -> None:
    """Up to 16 blocks and hidden size 768; with more sequences than such clusters can hold at the same time, a grid."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    division = forward_plan(extension, device, batch, hidden_size)
    assert (path_of(division), division["blocks"]) == (kernel, blocks), division


def test_plan_without_clusters_is_a_grid(extension: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before compute capability 9.0 blocks exchange through the L2 cache; before 8.0 not at all."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    for hidden_size, blocks in ((256, 4), (512, 8), (768, 24)):
        division = forward_plan(extension, A100, 8, hidden_size)
        assert (path_of(division), division["blocks"]) == ("grid", blocks), division
    monkeypatch.setenv("GRU_EXT_CUDA_TUNING", "cluster")
    refused = forward_plan(extension, A100, 8, 256)
    assert refused["kernel"] == "step" and "asks for a cluster" in refused["reason"]
    old = forward_plan(extension, (7, 5, 40, 64 << 10), 8, 256)
    assert old["kernel"] == "step" and "compute capability 8.0" in old["reason"]


def test_plan_divides_further_where_a_block_has_less_shared_memory(
    extension: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line of the table for the hidden size may need more than the GPU's blocks have; the next one less."""
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "stationary")
    much, little = (forward_plan(extension, device, 8, 384, torch.float32) for device in (H100, A100))
    assert much["shared_bytes"] > A100[-1] >= little["shared_bytes"]
    assert little["blocks"] > much["blocks"]
