"""README's list of what works here and not with torch.nn.GRU, and the checks of the pages."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pages
import pytest
import torch
import try_pages
from links import broken_links
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext

Kind = Callable[..., nn.Module]


def compiled_whole(kind: Kind) -> None:
    """A whole graph of torch.compile."""
    torch.compile(kind(4, 8), fullgraph=True, backend="aot_eager")(torch.randn(3, 2, 4))


def compiled_packed(kind: Kind) -> None:
    """The same of packed input."""
    packed = pack_padded_sequence(torch.randn(3, 2, 4), [3, 2])
    torch.compile(kind(4, 8), fullgraph=True, backend="aot_eager")(packed)


def exported_for_any_length(kind: Kind) -> None:
    """torch.export with a dynamic seq_len."""
    dims = ({0: torch.export.Dim("seq_len", min=2, max=64)},)
    program = torch.export.export(kind(4, 8), (torch.randn(5, 2, 4),), dynamic_shapes=dims)
    assert program.module()(torch.randn(9, 2, 4))[0].shape == (9, 2, 8)


def vmapped(kind: Kind) -> None:
    """torch.vmap over inputs."""
    module = kind(4, 8)
    vmap(lambda input: module(input)[0])(torch.randn(5, 3, 2, 4))


def ensemble(kind: Kind) -> None:
    """torch.vmap over the weights of several modules."""
    modules = [kind(4, 8) for _ in range(3)]
    parameters, _ = stack_module_state(modules)
    vmap(lambda weights, input: functional_call(modules[0], weights, (input,))[0])(parameters, torch.randn(3, 5, 2, 4))


def per_sample_gradients(kind: Kind) -> None:
    """Gradients of the weights for each sample, in one call."""
    module = kind(4, 8)

    def loss(weights: dict[str, Tensor], input: Tensor) -> Tensor:
        return functional_call(module, weights, (input,))[0].sum()

    gradients = vmap(grad(loss), (None, 0))(dict(module.named_parameters()), torch.randn(3, 5, 2, 4))
    assert gradients["weight_hh_l0"].shape == (3, 24, 8)


def same_bits_in_any_batch(kind: Kind) -> None:
    """A sequence's results do not depend on the others in its batch."""
    module, input = kind(64, 128), torch.randn(50, 17, 64)
    with torch.no_grad():
        assert torch.equal(module(input)[0][:, 3], module(input[:, 3:4].contiguous())[0][:, 0])


def with_lengths(kind: Kind) -> None:
    """Sequences of several lengths, unsorted, in padded input."""
    output, _ = kind(4, 8)(torch.randn(5, 3, 4), lengths=torch.tensor([2, 5, 0]))
    assert output[1].any() and not output[2:, 0].any()


def with_resets(kind: Kind) -> None:
    """A state that starts anew within a sequence."""
    kind(4, 8)(torch.randn(5, 3, 4), resets=torch.rand(5, 3) < 0.5)


@pytest.mark.parametrize(
    "program, error",
    [
        (with_lengths, "unexpected keyword argument 'lengths'"),
        (with_resets, "unexpected keyword argument 'resets'"),
        (compiled_whole, "wrap RNN, GRU, or LSTM"),
        (compiled_packed, "wrap RNN, GRU, or LSTM"),
        (exported_for_any_length, "Constraints violated"),
        (vmapped, "Batching rule not implemented for aten::gru"),
        (ensemble, "Batching rule not implemented for aten::gru"),
        (per_sample_gradients, "output with shape"),
        (same_bits_in_any_batch, "torch.equal"),
    ],
)
def test_works_here_and_not_with_nn_gru(program: Callable[[Kind], None], error: str) -> None:
    program(gru_ext.GRU)
    torch.compiler.reset()
    with pytest.raises(
        (RuntimeError, AssertionError, TypeError), match=error
    ):  # once it works README must not say so any more
        program(nn.GRU)


def test_readme_is_short() -> None:
    assert len((pages.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_links(tmp_path: Path) -> None:
    assert not list(broken_links(pages.ROOT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# A `title`, with (signs)\n```\n# no title\n```\n")
    links = ["docs/b.md", "docs/b.md#a-title-with-signs", "https://example.org/x", "docs/b.md#no-title", "docs/c.md"]
    (tmp_path / "README.md").write_text("".join(f"[x]({link})\n" for link in links) + "`[x](code.md)`\n")
    assert list(broken_links(tmp_path)) == [
        "README.md: b.md has no heading for #no-title",
        "README.md: docs/c.md is no file",
    ]


def test_old_results_of_this_machine_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = pages.read_csv(pages.RESULTS / "cpu.csv", pages.Measurement)[0].machine
    ages = {"cpu": pages.MOST_COMMITS + 1, "cuda": 0}
    monkeypatch.setattr(pages, "commits_since", lambda commit, device: ages[device])
    old = list(pages.too_old(machine))
    assert [line.split()[0] for line in old][:1] == ["cpu.csv"] and "26 commits to kernels old" in old[0]
    assert not list(pages.too_old("another machine"))
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("h200/compare.csv: commit", "roofline/cpu.csv", "profile/cpu.json"))
    monkeypatch.setattr(pages, "commits_since", lambda commit, device: 0 if commit == "HEAD" else None)
    assert "of a commit that git does not know" in next(pages.too_old(machine))  # such as in a shallow clone


def test_commits_are_counted_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """No count of a commit that git does not know, of none, and without git."""
    assert pages.commits_since("0" * 40, "cpu") is None and pages.commits_since("", "cpu") is None
    count = pages.commits_since("HEAD", "cpu")
    monkeypatch.setenv("PATH", "")
    assert count in (0, None) and pages.commits_since("HEAD", "cpu") is None


def test_commands_of_a_page() -> None:
    """Commands of the blocks without their comments, joined where they go on, then those of the text."""
    page = (
        "Try `make demo` and `nothing`.\n```sh\npip install \\\n    x  # why\n# only why\n```\n```text\nmake no\n```\n"
    )
    assert list(try_pages.commands(page)) == ["pip install x", "make demo"]
    assert try_pages.reason_not_to_run("python -m gru_ext bench --device cuda --graph") == "needs a GPU"
    assert try_pages.reason_not_to_run("python -m gru_ext bench --shapes 8,64,32,64 --memory") is None


@pytest.mark.parametrize("command, right", [("true", True), ("false", False), ("pip install .", True)])
def test_outcome_of_a_command(command: str, right: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What must fail is right when it fails: there is nothing to install in an empty folder."""
    assert try_pages.run(command, tmp_path, dict(os.environ)) is right
    assert ("FAILED" in capsys.readouterr().out) is not right
