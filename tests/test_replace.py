"""replace and restore: swapping the GRUs of a model in place."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gru_ext


class Model(nn.Module):
    """GRUs at several depths: a nested one, a shared one, a cell, and what must not be touched."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.ModuleDict({"inner": nn.GRU(4, 5, 2, bidirectional=True)}))
        self.shared = nn.GRU(10, 10, batch_first=True)
        self.again = self.shared
        self.cell = nn.GRUCell(10, 6)
        self.lstm = nn.LSTM(6, 6)

    def forward(self, input: Tensor) -> Tensor:
        """[T, B, 3] -> [B, 6]."""
        output, _ = self.encoder[1]["inner"](self.encoder[0](input))
        output, _ = self.shared(output)
        output, _ = self.again(output)
        return self.cell(output[-1])


def test_replace_swaps_every_gru_and_nothing_else() -> None:
    """Nested, shared and cells; other modules stay; the report names each."""
    model = Model()
    report = gru_ext.replace(model)
    assert type(model.encoder[1]["inner"]) is gru_ext.GRU
    assert type(model.shared) is gru_ext.GRU and model.again is model.shared
    assert type(model.cell) is gru_ext.GRUCell
    assert type(model.lstm) is nn.LSTM and type(model.encoder[0]) is nn.Linear
    assert report.swapped == {
        "encoder.1.inner": "gru_ext.GRU",
        "shared": "gru_ext.GRU",
        "cell": "gru_ext.GRUCell",
    }
    assert report.left == {}
    for word in ("encoder.1.inner", "shared", "cell", "3 swapped"):
        assert word in repr(report)


def test_same_results_and_back() -> None:
    """The swapped model computes the same; restore gives torch's classes and the same bits as before."""
    model = Model()
    input = torch.randn(4, 3, 3)
    before = model(input)
    names = list(dict(model.named_parameters()))
    gru_ext.replace(model)
    torch.testing.assert_close(model(input), before, rtol=1e-5, atol=1e-6)
    assert list(dict(model.named_parameters())) == names
    report = gru_ext.restore(model)
    assert report.swapped["shared"] == "torch.nn.GRU" and len(report.swapped) == 3
    assert type(model.shared) is nn.GRU and type(model.cell) is nn.GRUCell
    assert torch.equal(model(input), before)


def test_parameters_are_the_very_same_objects() -> None:
    """Optimizers, tied weights and hooks hold Parameter objects: they must survive."""
    model = Model()
    before = dict(model.named_parameters())
    gru_ext.replace(model)
    after = dict(model.named_parameters())
    assert before.keys() == after.keys() and all(before[name] is after[name] for name in before)
    gru_ext.restore(model)
    assert all(before[name] is parameter for name, parameter in model.named_parameters())


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_optimizer_made_before_still_trains(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Steps after the swap follow those of the model that was left alone."""
    model = Model()
    twin = copy.deepcopy(model)
    optimizers = [optimizer_class(trained.parameters(), lr=1e-2) for trained in (model, twin)]
    input, target = torch.randn(4, 3, 3), torch.randn(3, 6)
    losses: list[list[float]] = [[], []]
    for step in range(6):
        if step == 2:
            gru_ext.replace(model)
        if step == 4:
            gru_ext.restore(model)
        for index, (trained, optimizer) in enumerate(zip((model, twin), optimizers, strict=True)):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(trained(input), target)
            loss.backward()
            optimizer.step()
            losses[index].append(loss.item())
    assert losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_root_state_and_hooks_survive() -> None:
    """The model may be the GRU itself; training flag, dtype, hooks and options are those it had."""
    model = nn.GRU(3, 4, 2, bias=False, batch_first=True, dropout=0.25, bidirectional=True).double().eval()
    seen: list[int] = []
    model.register_forward_hook(lambda *_: seen.append(1))
    text = repr(model)
    report = gru_ext.replace(model)
    assert list(report.swapped) == [""]
    assert type(model) is gru_ext.GRU and not model.training and repr(model) == text
    output, h_n = model(torch.randn(2, 5, 3, dtype=torch.float64))
    assert output.shape == (2, 5, 8) and h_n.shape == (4, 2, 4) and output.dtype == torch.float64
    assert seen == [1]
    cell = nn.GRUCell(3, 4)
    assert list(gru_ext.replace(cell).swapped.values()) == ["gru_ext.GRUCell"] and type(cell) is gru_ext.GRUCell


def test_twice_and_nothing_to_do() -> None:
    """A second replace swaps nothing; so does one of a model without a GRU; a wrong argument is an error."""
    model = Model()
    gru_ext.replace(model)
    assert gru_ext.replace(model).swapped == {}
    assert gru_ext.replace(nn.Linear(2, 2)).swapped == {}
    assert gru_ext.restore(nn.GRU(2, 2)).swapped == {}
    with pytest.raises(TypeError, match="model"):
        gru_ext.replace([model])  # type: ignore[arg-type]


def test_verbose_says_what_was_swapped(capsys: pytest.CaptureFixture[str]) -> None:
    """Silent unless asked."""
    gru_ext.replace(Model())
    assert capsys.readouterr().out == ""
    gru_ext.replace(Model(), verbose=True)
    assert "encoder.1.inner" in capsys.readouterr().out


def test_what_is_left_is_said() -> None:
    """Subclasses and overridden forwards stay, with a reason: their code may rest on nn.GRU."""

    class Doubled(nn.GRU):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
            output, h_n = super().forward(input, hx)
            return 2 * output, h_n

    model = nn.ModuleList([Doubled(3, 4), nn.GRU(3, 4)])
    model[1].forward = lambda input: input
    report = gru_ext.replace(model)
    assert report.swapped == {} and set(report.left) == {"0", "1"}
    assert "Doubled" in report.left["0"] and "forward" in report.left["1"]
    assert type(model[0]) is Doubled and type(model[1]) is nn.GRU


def test_parametrized_module() -> None:
    """weight_norm put on before the swap goes on working after it, trains, and can be removed."""
    model = nn.Sequential(nn.GRU(3, 4))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    input = torch.randn(5, 2, 3)
    expected = model(input)[0]
    names = list(dict(model.named_parameters()))
    report = gru_ext.replace(model)
    assert list(report.swapped) == ["0"] and isinstance(model[0], gru_ext.GRU)
    output = model(input)[0]
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
    output.sum().backward()
    assert list(dict(model.named_parameters())) == names
    assert all(parameter.grad is not None for parameter in model.parameters())
    gru_ext.restore(model)
    torch.testing.assert_close(model(input)[0], expected, rtol=1e-6, atol=1e-7)
    gru_ext.replace(model)
    parametrize.remove_parametrizations(model[0], "weight_hh_l0")
    assert type(model[0]) is gru_ext.GRU
    torch.testing.assert_close(model(input)[0], expected, rtol=1e-5, atol=1e-6)


def test_weights_changed_while_ours_reach_torchs() -> None:
    """A weight replaced while the module was ours is used by nn.GRU after restore."""
    model = nn.GRU(3, 4)
    gru_ext.replace(model)
    model.weight_hh_l0 = nn.Parameter(torch.zeros(12, 4))
    input = torch.randn(5, 2, 3)
    expected = model(input)[0]
    gru_ext.restore(model)
    torch.testing.assert_close(model(input)[0], expected, rtol=1e-5, atol=1e-6)


def test_state_dict_and_copy_of_a_swapped_model() -> None:
    """A swapped model saves, loads and copies like the original."""
    model = Model()
    twin = Model()
    gru_ext.replace(model)
    twin.load_state_dict(model.state_dict(), strict=True)
    input = torch.randn(4, 3, 3)
    torch.testing.assert_close(twin(input), model(input), rtol=1e-5, atol=1e-6)
    assert torch.equal(copy.deepcopy(model)(input), model(input))


class Packing(nn.Module):
    """What lengths are written for without lengths=: packs, runs a bidirectional GRU, pads again."""

    def __init__(self, enforce_sorted: bool) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 5, 2, batch_first=True, bidirectional=True)
        self.enforce_sorted = enforce_sorted

    def forward(self, input: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        packed = pack_padded_sequence(input, lengths, True, self.enforce_sorted)
        output, h_n = self.gru(packed)
        return *pad_packed_sequence(output, True, total_length=input.size(1)), h_n


@pytest.mark.parametrize("lengths", [[7, 4, 4, 1], [2, 7, 1, 5]])
def test_model_that_packs(lengths: list[int]) -> None:
    """It works as before, with the same results and gradients, and so does lengths= in its place."""
    model = Packing(lengths == sorted(lengths, reverse=True)).double()
    input = torch.randn(4, 7, 3, dtype=torch.float64, requires_grad=True)
    expected, expected_lengths, expected_h_n = model(input, torch.tensor(lengths))
    wanted = (expected.pow(2).sum() + expected_h_n.sum(), (input, *model.parameters()))
    gradients = torch.autograd.grad(*wanted)
    assert list(gru_ext.replace(model).swapped) == ["gru"]
    output, same_lengths, h_n = model(input, torch.tensor(lengths))
    assert torch.equal(same_lengths, expected_lengths)
    for results in ((output, h_n), model.gru(input, lengths=torch.tensor(lengths))):
        torch.testing.assert_close(results, (expected, expected_h_n), rtol=1e-10, atol=1e-12)
        ours = torch.autograd.grad(results[0].pow(2).sum() + results[1].sum(), wanted[1])
        torch.testing.assert_close(ours, gradients, rtol=1e-10, atol=1e-12)
    ((name, _, plan),) = gru_ext.explain(model, input, torch.tensor(lengths)).calls
    assert name == "gru" and "lengths= would take the padded input, 7 steps of 4 sequences" in str(plan)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
def test_quantization_is_told() -> None:
    """torch.ao.quantization leaves ours in float: it says so, and the report says what does not see ours."""
    model = nn.Sequential(nn.Linear(3, 3), nn.GRU(3, 4), nn.GRUCell(4, 4))
    assert "isinstance(module, nn.GRU)" in repr(gru_ext.replace(model))
    assert not hasattr(model[1], "qconfig")
    with pytest.warns(UserWarning, match=r"gru_ext\.GRU and leaves it") as caught:
        quantized = torch.ao.quantization.quantize_dynamic(model)
    assert any("gru_ext.GRUCell" in str(warning.message) for warning in caught)
    assert type(copy.deepcopy(quantized)[1]) is gru_ext.GRU
    assert "isinstance" not in repr(gru_ext.restore(model))
    assert "Quantized" in repr(torch.ao.quantization.quantize_dynamic(model)[1])
