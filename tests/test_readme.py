"""README's list of what works here and not with torch.nn.GRU, and the checks of the pages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pages
import pytest
import torch
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


@pytest.mark.parametrize(
    "program",
    [
        compiled_whole,
        compiled_packed,
        exported_for_any_length,
        vmapped,
        ensemble,
        per_sample_gradients,
        same_bits_in_any_batch,
    ],
)
def test_works_here_and_not_with_nn_gru(program: Callable[[Kind], None]) -> None:
    program(gru_ext.GRU)
    torch.compiler.reset()
    with pytest.raises((RuntimeError, AssertionError)):  # the day that it works README must not say so any more
        program(nn.GRU)


def test_readme_is_short() -> None:
    assert len((pages.ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_links(tmp_path: Path) -> None:
    assert not list(pages.broken_links(pages.ROOT))
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "b.md").write_text("# A `title`, with (signs)\n```\n# no title\n```\n")
    links = ["docs/b.md", "docs/b.md#a-title-with-signs", "https://example.org/x", "docs/b.md#no-title", "docs/c.md"]
    (tmp_path / "README.md").write_text("".join(f"[x]({link})\n" for link in links) + "`[x](code.md)`\n")
    assert list(pages.broken_links(tmp_path)) == [
        "README.md: b.md has no heading for #no-title",
        "README.md: docs/c.md is no file",
    ]


def test_old_results_of_this_machine_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = pages.read_csv(pages.RESULTS / "cpu.csv", pages.Measurement)[0].machine
    monkeypatch.setattr(pages, "commits_since", lambda commit, device: pages.MOST_COMMITS + (device == "cpu"))
    assert any(line.startswith("cpu.csv is 26 commits") for line in pages.too_old(machine))
    assert not list(pages.too_old("another machine"))
    assert "h200/compare.csv: commit" in capsys.readouterr().out


def test_commits_are_counted_by_device() -> None:
    """Of a commit that git does not know, as in a shallow clone, there is no count."""
    assert pages.commits_since("0" * 40, "cpu") is None
    if pages.commits_since("HEAD", "cpu") is None:
        pytest.skip("git does not know this checkout")
    assert pages.commits_since("HEAD", "cpu") == 0
