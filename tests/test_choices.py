"""Choices of tune() in a file: what is kept, what is read again and when, and what is refused. On the emulated GPU."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from test_decision import DEFAULT, KEY, chosen, decided

import gru_ext
from gru_ext import ops
from gru_ext.cuda import choices, library, tuning
from gru_ext.cuda.choices import Choice

pytestmark = pytest.mark.usefixtures("gpu")

CHOICE = Choice(
    "emulated H100", "9.0", torch.__version__, gru_ext.__version__, "bfloat16", 256, 32, 1, False, True, False,
    "stationary", 1.5, "2026-11-27",
)  # fmt: skip


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the environment says that the choices are; nothing is there."""
    monkeypatch.setenv(choices.VARIABLE, str(tmp_path / "choices.json"))
    return tmp_path / "choices.json"


def test_saved_and_read_again(file: Path, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What tune has found runs in the next process too, with its date and ratio; what the file held beside stays."""
    others = [
        replace(CHOICE, gpu="another"),
        replace(CHOICE, torch="1.0"),
        replace(CHOICE, gru_ext="0.0"),
        replace(CHOICE, batch=64),
        CHOICE,
    ]
    for choice in others:
        choices.save(file, choice)
    monkeypatch.delenv(choices.VARIABLE)
    times = iter([3.0, 2.0, 1.0] * 2)
    monkeypatch.setattr(tuning, "_milliseconds", lambda *_: next(times))
    module, input = gru_ext.GRU(3, 256, dtype=torch.bfloat16), torch.randn(1, 32, 3, dtype=torch.bfloat16)
    tuned = gru_ext.tune(module, input, rounds=2, save=file)
    assert (tuned.kernel, tuned.ratio) == ("stationary", 3.0)
    kept = choices.read(file)
    assert kept[:-1] == others[:-1] and [path.name for path in file.parent.iterdir()] == [file.name]
    assert kept[-1] == replace(CHOICE, ratio=3.0, date=kept[-1].date) and re.fullmatch(r"[\d-]{10}", kept[-1].date)

    gpu.forget_cuda_choices()
    monkeypatch.setenv(choices.VARIABLE, str(file))
    choices.load()
    assert chosen() == "stationary"
    assert decided().source == (
        f"gru_ext.tune on {kept[-1].date}, with batch 32: 3.00 times as fast as torch's kernels"
    )
    gpu.choose_cuda_kernel("step", *KEY)
    assert chosen() == "step"


def test_every_decision_goes_by_them(file: Path, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of a layer or a cell, an operator of a compiled graph, explain."""
    monkeypatch.setattr(library, "gru", lambda *_, **__: pytest.fail("torch's kernels ran"))
    monkeypatch.setattr(library, "gru_cell", lambda *_, **__: pytest.fail("torch's kernels ran"))
    input, hx = torch.randn(1, 2, 3), torch.zeros(1, 2, 4)
    module, cell = gru_ext.GRU(3, 4).requires_grad_(False), gru_ext.GRUCell(3, 4).requires_grad_(False)
    choices.save(file, replace(CHOICE, dtype="float32", hidden_size=4, batch=2, training=False, kernel="stationary"))
    choices.load()
    module(input)
    cell(input[0])
    gpu.forward(*ops.Arguments(input, hx, [*module.parameters()]), False)
    assert gpu.cuda_passes(torch.float32, 1, 2, 3, 4, 1, False, False)[0]["kernel"] == "stationary"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read: No such file"),
        ("", "is damaged"),
        ("[]", "is damaged"),
        ("{}", "it has no 'choices'"),
        ('{"choices": 3}', "is damaged"),
        ('{"choices": [{"gpu": "emulated H100"}]}', "it has no 'compute_capability'"),
        ({"batch": "32"}, "batch is '32'"),
        ({"batch": True}, "batch is True"),
        ({"batch": -1}, "batch is -1"),
        ({"hidden_size": 0}, "hidden_size of at least 1"),
        ({"hidden_size": 2**31}, "hidden_size is 2147483648"),
        ({"directions": 3}, "directions 1 or 2"),
        ({"packed": 0}, "packed is 0"),
        ({"dtype": "int8"}, "dtype is int8; expected one of float32"),
        ({"kernel": "fast"}, "the kernel is fast; expected library, wavefront"),
    ],
)
def test_bad_file(file: Path, content: Any, said: str) -> None:
    """One sentence that names the variable and the file."""
    if isinstance(content, dict):
        choices.save(file, replace(CHOICE, **content))
    elif content is not None:
        file.write_text(content, encoding="utf-8")
    with pytest.raises(ImportError, match=re.escape(f"GRU_EXT_CUDA_CHOICES is {file}: ") + f".*{said}"):
        choices.load()
    assert chosen() == "library"


@pytest.mark.parametrize("other", [{"torch": "1"}, {"gru_ext": "0"}])
def test_nothing_for_these_versions(file: Path, other: dict[str, Any]) -> None:
    """Is left out, with a warning; where another entry fits, without."""
    choices.save(file, replace(CHOICE, **other))
    with pytest.warns(UserWarning, match="of its 1 choices none was made with torch"):
        choices.load()
    assert chosen() == "library"
    choices.save(file, CHOICE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choices.load()
    assert chosen() == "stationary"


@pytest.mark.parametrize("other", [{"gpu": "another"}, {"compute_capability": "8.0"}])
def test_nothing_for_this_gpu(file: Path, other: dict[str, Any]) -> None:
    """Is left out, without a word: the file may serve several machines."""
    choices.save(file, replace(CHOICE, **other))
    choices.load()
    assert decided().source == DEFAULT


def test_without_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GRU_EXT_CUDA_KERNEL goes before it; an empty variable is as if unset."""
    choices.save(file, replace(CHOICE, kernel="wavefront"))
    choices.load()
    monkeypatch.setenv("GRU_EXT_CUDA_KERNEL", "step")
    assert decided() == ("kernels", "step", "GRU_EXT_CUDA_KERNEL")
    monkeypatch.setenv(choices.VARIABLE, "")
    file.unlink()
    choices.load()


def test_tune_refuses_a_bad_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it measures: a folder that is not there, a file of another kind, which is left as it is."""
    monkeypatch.setattr(tuning, "_milliseconds", lambda *_: pytest.fail("measured"))
    module, input = gru_ext.GRU(3, 5), torch.randn(4, 2, 3)
    with pytest.raises(ValueError, match="save is .*choices.json: there is no folder"):
        gru_ext.tune(module, input, save=tmp_path / "no" / "choices.json")
    (tmp_path / "notes").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="save is .*notes: it is damaged, or no file of gru_ext.tune's"):
        gru_ext.tune(module, input, save=str(tmp_path / "notes"))
    assert (tmp_path / "notes").read_text(encoding="utf-8") == "mine"


def test_trials_leave_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted tune changes no choice, and a finished one those of its own dtype alone."""

    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    module, input = gru_ext.GRU(3, 5), torch.randn(4, 2, 3)
    kinds: list[Any] = [(dtype, 2, 5, 1, False, True) for dtype in (torch.float32, torch.float64)]
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tuning, "_milliseconds", interrupted)
        gru_ext.tune(module, input)
    assert {decided(layers).source for layers in kinds} == {DEFAULT}
    times = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(tuning, "_milliseconds", lambda *_: next(times))
    gru_ext.tune(module, input, rounds=1)
    assert decided(kinds[0]).source.endswith("with batch 2: torch's kernels were the fastest")
    assert decided(kinds[1]).source == DEFAULT
