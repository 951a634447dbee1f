"""What is recorded of a user's model, and the one sentence where it cannot be."""

from __future__ import annotations

import pytest
import torch

from gru_ext.measure import BadInput
from gru_ext.measure.models import load, recorded_grus
from gru_ext.measure.workloads import GRUShape


def test_packed_bidirectional_and_cell() -> None:
    """Sizes, lengths of the packed input, and a loop over a cell as one entry with its count."""
    encoder, decoder = recorded_grus(*load("lifted:tagger"))
    assert encoder.gru == GRUShape(3, 7, 5, 6, 2, True, "packed", lengths=(7, 5, 2), name="encoder")
    assert (encoder.gru.packed, encoder.gru.rows) == ((7, 5, 2), 14)
    assert decoder.gru == GRUShape(3, 1, 12, 4, cell=True, name="decoder", calls=4)
    assert encoder.dtype == "float32" and encoder.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("factory", "gru", "dtype"),
    [
        ("batch_first", GRUShape(2, 9, 3, 8, layout="batch-first", bias=False, name="gru"), "float64"),
        ("bare_gru", GRUShape(2, 5, 3, 4, name="GRU"), "float32"),
    ],
)
def test_one_gru(factory: str, gru: GRUShape, dtype: str) -> None:
    """Called by keyword, beside a GRU that is not called; a model that is a GRU is named after its class."""
    (only,) = recorded_grus(*load(f"lifted:{factory}"))
    assert (only.gru, only.dtype) == (gru, dtype)


def test_model_is_left_as_it_was() -> None:
    """No hook stays behind, not even after a failure."""
    for factory in ("tagger", "wrong_input"):
        model, inputs = load(f"lifted:{factory}")
        try:
            recorded_grus(model, inputs)
        except BadInput:
            assert factory == "wrong_input"
        assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("lifted", "named as package.module:factory, got 'lifted'"),
        ("nowhere.at_all:make", "there is no module nowhere"),
        ("lifted:nothing", "module lifted has no nothing"),
        ("lifted:constant", "no function that makes a model, but int"),
        ("lifted:broken", "lifted:broken failed: OSError: no such checkpoint"),
        ("lifted:number", "must give a module, or a module and its input, got int"),
        ("lifted:no_gru", "the model Linear has no GRU"),
        ("lifted:idle", "has GRUs, but running it calls none"),
        ("lifted:without_input", "cannot be run without an example input"),
        ("lifted:wrong_input", "running the model Tagger failed: RuntimeError: input.size"),
    ],
)
def test_one_sentence(spec: str, said: str) -> None:
    """What is wrong, by name."""
    with pytest.raises(BadInput, match=said) as caught:
        recorded_grus(*load(spec))
    assert "\n" not in str(caught.value)
