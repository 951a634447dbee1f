"""benchmarks/step_path.py: finding the path of a step, and telling when it has grown."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import compile_report
import pytest
import sass
import step_path
from sass_walk import Walk
from sass_warp import Launch, Warp
from test_sass import listing


@pytest.mark.parametrize("tiles", [1, 2, 3])
def test_a_step_is_that_of_all_tiles_of_sequences(tiles: int) -> None:
    products = ("HMMA.16816.F32.BF16 R8, R4, R6, R8",) * 3
    lines = ("MOV R0, RZ", ".step:", "MOV R1, RZ", ".tile:", *products, "VIADD R1, R1, 0x1")
    ends = (f"ISETP.GE.AND P0, PT, R1, {tiles:#x}, PT", "@!P0 BRA `(.tile)", "VIADD R0, R0, 0x1")
    code = listing(*lines, *ends, "ISETP.GE.AND P0, PT, R0, 0x9, PT", "@!P0 BRA `(.step)", "EXIT")
    before, measured = step_path.steady_steps(Walk(code, Warp(Launch(b""))), 3 * tiles)
    assert len(before) == 6 * tiles + 4 and len(measured) == step_path.MEASURED * len(before)
    assert step_path.span(measured) == 16 * 10  # all but the first and the last instruction
    with pytest.raises(step_path.NotWalked, match="are not alike"):
        step_path.steady_steps(Walk(code, Warp(Launch(b""))), 3 * tiles + 1)
    with pytest.raises(step_path.NotWalked, match=f"ended after {27 * tiles} products"):
        step_path.steady_steps(Walk(code, Warp(Launch(b""))), 9 * tiles)


# ---------------------------------------------------------------------------------------------------------------------
# The table
# ---------------------------------------------------------------------------------------------------------------------


def row(instructions: int, cycles: int, loop_bytes: int = 9000, nvcc: str = "13.0.88") -> tuple[str, ...]:
    return ("solo", "128", "8", "padded", "forward", "training", *map(str, (instructions, cycles, loop_bytes)), nvcc)


def test_growth_beyond_three_percent_is_told_from_what_is_only_stale() -> None:
    committed = [row(1000, 3000)]
    assert step_path.complaints(committed, [row(1000, 3000)]) == []
    assert step_path.grown(committed, [row(1029, 3087)]) == []
    assert step_path.grown(committed, [row(1000, 3093)]) == [
        "the path of solo 128 8 padded forward training has grown: cycles 3000 -> 3093"
    ]
    assert step_path.grown(committed, [row(1031, 3000)]) == [
        "the path of solo 128 8 padded forward training has grown: instructions 1000 -> 1031"
    ]
    assert step_path.grown(committed, [row(1000, 3000, loop_bytes=9280)]) == [
        "the path of solo 128 8 padded forward training has grown: loop_bytes 9000 -> 9280"
    ]
    for other in (row(1029, 3087), row(900, 2900)):
        lines = step_path.complaints(committed, [other])
        assert len(lines) == 3 and "is stale: run" in lines[-1] and "grown" not in "".join(lines)
    assert step_path.complaints(committed, [row(9999, 9999, nvcc="13.1.0")]) == []


def test_the_committed_table_has_every_case() -> None:
    with step_path.TABLE.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == step_path.COLUMNS
    assert [tuple(line[: step_path.KEY]) for line in rows] == [tuple(map(str, case)) for case in step_path.CASES]


def test_every_part_is_a_function_of_the_sources() -> None:
    parts = set()
    for file in (step_path.ROOT / "csrc" / "cuda").glob("stationary*.cu*"):
        parts |= {part for _, _, part in step_path.functions(str(file))}
    assert parts == set(step_path.PARTS)


# ---------------------------------------------------------------------------------------------------------------------
# The kernels
# ---------------------------------------------------------------------------------------------------------------------

LOOP = "for (int s = 0;; ++s) {"
SLOW = LOOP + "\n    if ((s + 1000) / pass.batch == 7) __trap();  // a division at run time, and never 7"


@pytest.fixture(scope="module")
def launched() -> dict[step_path.Case, step_path.Launched]:
    """What the host launches."""
    if step_path.find_compiler() is None:
        pytest.skip("there is no g++")
    return step_path.launches(step_path.CASES)


@pytest.mark.slow
def test_the_launches_are_those_of_the_plan(launched: dict[step_path.Case, step_path.Launched]) -> None:
    for case, launch in launched.items():
        kernel, hidden_size, batch, rows, direction, mode = case
        if kernel == "step":
            assert launch.kernel.startswith(f"{direction}_cell_kernelI13__nv_bfloat16Li4E") and launch.products == 0
            assert (launch.shape["grid"], launch.shape["block"]) == ([batch, 2, 1], [128, 1, 1])
            continue
        count = {"solo": 1, "cluster": (hidden_size + 63) // 64, "grid": 32}[kernel]
        assert launch.kernel.startswith(f"{direction}_stationary_kernelI13__nv_bfloat16Li{launch.k_tiles}E")
        assert launch.tiles == batch // 8
        sizes, at = batch.to_bytes(4, "little"), 0x7F00 + 10 << 32
        assert launch.memory == (((at, sizes * 64),) if rows == "packed" else ())
        assert (at.to_bytes(8, "little") in launch.parameters) == (rows == "packed")
        assert (launch.shape["grid"], launch.shape["block"]) == (
            [count, 1, 1],
            [512 if kernel == "solo" else 256, 1, 1],
        )
        assert launch.shape["cluster"] == (count if kernel == "cluster" else 1)
        assert launch.shape["cooperative"] == (kernel == "grid")
        saved = (0x7F00 + 8 << 32).to_bytes(8, "little")  # where the host has it in forward
        if direction == "forward":
            assert (saved in launch.parameters) == (mode == "training")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Compiles two forward kernels, in clusters, from a copy of the sources in which one text is another."""
    nvcc = compile_report.find_nvcc()
    if nvcc is None:
        pytest.skip("there is no nvcc")
    if missing := step_path.missing_tools():
        pytest.skip(missing)

    @functools.cache
    def compiled(text: str, by: str) -> Path:
        folder = tmp_path_factory.mktemp("path")
        shutil.copytree(step_path.ROOT / "csrc", folder / "csrc")
        head, walk = folder / "csrc/cuda/stationary.cuh", folder / "csrc/cuda/stationary_walk.cuh"
        source = folder / "csrc/cuda/stationary_forward.cu"
        calls = "".join(
            f"function(__nv_bfloat16(), Constant<8>(), Constant<0>(), Constant<{sequences}>());"
            for sequences in (8, 16)
        )
        one_kernel, count = re.subn(
            r"(void dispatch_stationary\([^{]*\{).*?\n\}", rf"\1 {calls} }}", head.read_text(), flags=re.DOTALL
        )
        assert count == 1 and text in walk.read_text()
        head.write_text(one_kernel)
        walk.write_text(walk.read_text().replace(text, by))
        cubin = folder / "forward.cubin"
        assert nvcc is not None
        error, _ = compile_report.compile_one(nvcc, source, step_path.ARCHITECTURE, cubin)
        assert error == ""
        return cubin

    return compiled


@pytest.mark.slow
def test_a_planted_slow_line_turns_the_check_red(
    compiled: Callable[[str, str], Path],
    launched: dict[step_path.Case, step_path.Launched],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case = step_path.Case("cluster", 256, 8, "padded", "forward", "training")
    monkeypatch.setattr(step_path, "CASES", (case,))
    monkeypatch.setattr(step_path, "launches", lambda _: launched)

    def status(cubin: Path, **options: bool) -> int:
        wanted = argparse.Namespace(**{"path": False, "table": False, "check": False, "allow_growth": False, **options})
        return compile_report.check_paths({"forward": cubin}, "13.0.88", wanted)

    as_it_is, slow = compiled(LOOP, LOOP), compiled(LOOP, SLOW)
    monkeypatch.setattr(step_path, "ROOT", tmp_path)
    monkeypatch.setattr(step_path, "TABLE", tmp_path / "path.csv")
    assert status(as_it_is, table=True) == 0
    assert status(as_it_is, check=True) == 0
    capsys.readouterr()
    assert status(slow, check=True) == 1
    assert "the path of cluster 256 8 padded forward training has grown: cycles" in capsys.readouterr().out
    assert status(slow, table=True) == 1  # and is not made the new measure without a word
    assert status(as_it_is, check=True) == 0
    assert status(slow, table=True, allow_growth=True) == 0 and status(slow, check=True) == 0


@pytest.mark.slow
def test_packed_rows_are_walked_by_what_memory_holds(
    compiled: Callable[[str, str], Path], launched: dict[step_path.Case, step_path.Launched]
) -> None:
    nvdisasm, cubin = step_path.find_nvdisasm(), compiled(LOOP, LOOP)
    assert nvdisasm is not None
    code = sass.disassemble(nvdisasm, cubin), sass.constant_sizes(cubin)
    packed = step_path.Case("cluster", 256, 8, "packed", "forward", "training")
    paths = {
        case: step_path.step_path(case, launched[case], *code)
        for case in (packed, packed._replace(rows="padded"), packed._replace(rows="padded", batch=16))
    }
    padded, wider = list(paths)[1:]
    assert paths[packed].step.instructions > paths[padded].step.instructions
    products = {case: path.parts["product"].instructions for case, path in paths.items()}
    assert products[packed] == products[padded]
    assert products[wider] == pytest.approx(2 * products[padded], rel=0.1)
    with pytest.raises(step_path.NotWalked, match="cluster 256 8 packed forward training: hangs on something unknown"):
        step_path.step_path(packed, dataclasses.replace(launched[packed], memory=()), *code)
