"""Bad input: the exception a user of nn.GRU knows, with a message that names the argument."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext

Call = Callable[[nn.Module], Any]


def packed(features: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    """Three sequences of 5, 4 and 2 steps."""
    return pack_padded_sequence(torch.randn(5, 3, features, dtype=dtype), [5, 4, 2])


def with_weight(name: str, value: Tensor) -> Call:
    """A call after one weight was replaced by ``value``."""

    def call(module: nn.Module) -> Any:
        setattr(module, name, nn.Parameter(value))
        return module(torch.randn(3, 3, 3)) if hasattr(module, "num_layers") else module(torch.randn(3, 3))

    return call


# What is called on GRU(3, 4), and words that its message must have.
GRU_ERRORS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "input_1d": (lambda m: m(torch.randn(3)), ("input", "1D")),
    "input_4d": (lambda m: m(torch.randn(3, 3, 3, 3)), ("input", "4D")),
    "input_size": (lambda m: m(torch.randn(3, 3, 5)), ("input", "3", "5")),
    "input_size_unbatched": (lambda m: m(torch.randn(3, 5)), ("input", "3", "5")),
    "input_dtype": (lambda m: m(torch.randn(3, 3, 3).double()), ("input", "float64", "float32")),
    "input_integer": (lambda m: m(torch.ones(3, 3, 3, dtype=torch.long)), ("input", "int64")),
    "input_sparse": (lambda m: m(torch.randn(3, 3, 3).to_sparse()), ()),
    "input_meta": (lambda m: m(torch.randn(3, 3, 3, device="meta")), ("Input", "meta", "cpu")),
    "input_none": (lambda m: m(None), ()),
    "input_list": (lambda m: m([1.0, 2.0]), ()),
    "no_steps": (lambda m: m(torch.randn(0, 2, 3)), ("sequence length",)),
    "no_steps_unbatched": (lambda m: m(torch.randn(0, 3)), ("sequence length",)),
    "hx_2d_for_3d": (lambda m: m(torch.randn(3, 3, 3), torch.randn(3, 4)), ("hx", "2-D")),
    "hx_3d_for_2d": (lambda m: m(torch.randn(3, 3), torch.randn(1, 1, 4)), ("hx", "3-D")),
    "hx_batch": (lambda m: m(torch.randn(3, 3, 3), torch.randn(1, 2, 4)), ("hidden", "(1, 3, 4)", "[1, 2, 4]")),
    "hx_layers": (lambda m: m(torch.randn(3, 3, 3), torch.randn(2, 3, 4)), ("hidden", "(1, 3, 4)", "[2, 3, 4]")),
    "hx_hidden_size": (lambda m: m(torch.randn(3, 3, 3), torch.randn(1, 3, 5)), ("hidden", "[1, 3, 5]")),
    "hx_unbatched": (lambda m: m(torch.randn(3, 3), torch.randn(2, 4)), ("hidden",)),
    "hx_dtype": (lambda m: m(torch.randn(3, 3, 3), torch.randn(1, 3, 4).double()), ("dtype",)),
    "hx_meta": (lambda m: m(torch.randn(3, 3, 3), torch.randn(1, 3, 4, device="meta")), ("hidden", "meta")),
    "hx_list": (lambda m: m(torch.randn(3, 3, 3), [1.0]), ()),
    "hx_lstm_tuple": (lambda m: m(torch.randn(3, 3, 3), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))), ()),
    "packed_hx_batch": (lambda m: m(packed(), torch.randn(1, 2, 4)), ("hidden", "(1, 3, 4)", "[1, 2, 4]")),
    "packed_hx_2d": (lambda m: m(packed(), torch.randn(3, 4)), ("hidden",)),
    "packed_hx_too_many": (lambda m: m(packed(), torch.randn(1, 4, 4)), ("hidden",)),
    "packed_input_size": (lambda m: m(packed(7)), ("input", "3", "7")),
    "packed_dtype": (lambda m: m(packed(3, torch.float64)), ("input", "float64")),
    "weight_hh_columns": (with_weight("weight_hh_l0", torch.randn(12, 5)), ()),
    "weight_hh_rows": (with_weight("weight_hh_l0", torch.randn(11, 4)), ("weight_hh",)),
    "weight_ih_columns": (with_weight("weight_ih_l0", torch.randn(12, 4)), ()),
    "weight_ih_rows": (with_weight("weight_ih_l0", torch.randn(9, 3)), ("weight_ih",)),
    "bias_hh": (with_weight("bias_hh_l0", torch.randn(11)), ("bias_hh",)),
    "weight_dtype": (with_weight("weight_hh_l0", torch.randn(12, 4).double()), ("weight_hh", "dtype")),
    "weight_meta": (with_weight("weight_hh_l0", torch.randn(12, 4, device="meta")), ()),
}

# Where torch says what its products tripped over, and we which argument it was.
OWN_WORDS = {
    "input_sparse", "input_none", "input_list", "hx_list", "hx_lstm_tuple", "weight_hh", "weight_hh_columns",
    "weight_hh_rows", "weight_ih_columns", "weight_ih_rows", "bias_hh", "weight_dtype",
}  # fmt: skip

# The same for GRUCell(3, 4).
CELL_ERRORS: dict[str, tuple[Call, tuple[str, ...]]] = {
    "input_3d": (lambda m: m(torch.randn(3, 3, 3)), ("input", "3D")),
    "input_0d": (lambda m: m(torch.randn(())), ("input", "0D")),
    "input_size": (lambda m: m(torch.randn(3, 5)), ("input", "3", "5")),
    "input_size_unbatched": (lambda m: m(torch.randn(5)), ("input", "3", "5")),
    "input_dtype": (lambda m: m(torch.randn(3, 3).double()), ("dtype",)),
    "input_none": (lambda m: m(None), ()),
    "hx_batch": (lambda m: m(torch.randn(3, 3), torch.randn(2, 4)), ("batch size", "3", "2")),
    "hx_hidden_size": (lambda m: m(torch.randn(3, 3), torch.randn(3, 5)), ("hidden_size", "4", "5")),
    "hx_3d": (lambda m: m(torch.randn(3, 3), torch.randn(1, 3, 4)), ("hidden", "3D")),
    "hx_1d": (lambda m: m(torch.randn(3, 3), torch.randn(4)), ()),
    "hx_2d_for_1d": (lambda m: m(torch.randn(3), torch.randn(1, 4)), ()),
    "hx_dtype": (lambda m: m(torch.randn(3, 3), torch.randn(3, 4).double()), ("dtype",)),
    "weight_hh": (with_weight("weight_hh", torch.randn(12, 5)), ()),
    "bias_hh": (with_weight("bias_hh", torch.randn(11)), ()),
}

CONSTRUCTOR_ERRORS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((3,), {}),
    ((0, 4), {}),
    ((3, 0), {}),
    ((-1, 4), {}),
    ((3, -1), {}),
    ((3.0, 4), {}),
    ((3, 4.0), {}),
    ((3, 4), {"num_layers": 0}),
    ((3, 4), {"num_layers": -1}),
    ((3, 4), {"num_layers": 1.5}),
    ((3, 4), {"bias": 1}),
    ((3, 4), {"batch_first": 1}),
    ((3, 4), {"dropout": 2}),
    ((3, 4), {"dropout": -0.1}),
    ((3, 4), {"dropout": True}),
    ((3, 4), {"dropout": "a"}),
    ((3, 4), {"proj_size": 2}),
    ((3, 4), {"nonsense": 1}),
    ((3, 4), {"dtype": torch.int64}),
    ((3, 4), {"device": "nowhere"}),
]


def raised_by(call: Callable[[], Any]) -> Exception | None:
    """The exception that a call raises, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


def compare(theirs: Callable[[], Any], ours: Callable[[], Any], words: tuple[str, ...], same_text: bool) -> None:
    """Both raise, an ``except`` for torch's catches ours, and ours has the words, or all of torch's."""
    expected, error = raised_by(theirs), raised_by(ours)
    assert expected is not None, "torch accepts this: the table is wrong"
    assert error is not None, f"accepted, where torch raises {type(expected).__name__}: {expected}"
    assert isinstance(error, type(expected)), (
        f"{type(error).__name__}: {error}\nwhere torch raises {type(expected).__name__}: {expected}"
    )
    assert str(error), "an exception without a message"
    if same_text:
        assert str(error) == str(expected)
    for word in words:
        assert word.lower() in str(error).lower(), f"{word!r} is not in the message: {error}"


@pytest.mark.parametrize("name", GRU_ERRORS)
@pytest.mark.parametrize("training", [True, False], ids=["grad", "no_grad"])
def test_gru(name: str, training: bool) -> None:
    """Every mistake in a call of GRU, with and without a graph."""
    call, words = GRU_ERRORS[name]
    with torch.set_grad_enabled(training):
        compare(lambda: call(nn.GRU(3, 4)), lambda: call(gru_ext.GRU(3, 4)), words, name not in OWN_WORDS)


@pytest.mark.parametrize("name", CELL_ERRORS)
def test_cell(name: str) -> None:
    """Every mistake in a call of GRUCell."""
    call, words = CELL_ERRORS[name]
    compare(lambda: call(nn.GRUCell(3, 4)), lambda: call(gru_ext.GRUCell(3, 4)), words, name not in OWN_WORDS)


@pytest.mark.parametrize(("arguments", "options"), CONSTRUCTOR_ERRORS)
def test_constructor(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Every mistake in the constructor: the same type, and the argument's name where torch gives it."""
    error = raised_by(lambda: nn.GRU(*arguments, **options))
    words = tuple(name for name in ("input_size", "hidden_size", *options) if name in str(error))
    compare(lambda: nn.GRU(*arguments, **options), lambda: gru_ext.GRU(*arguments, **options), words, False)


def test_dropout_without_a_second_layer_warns() -> None:
    """As torch does, at the caller's line or at least once."""
    for module_class in (nn.GRU, gru_ext.GRU):
        with pytest.warns(UserWarning, match="dropout"):
            module_class(3, 4, dropout=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gru_ext.GRU(3, 4, 2, dropout=0.5)


def test_module_works_after_an_error() -> None:
    """A refused call leaves nothing behind."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(3, 3, 3)
    expected = module(input)[0]
    for call, _ in list(GRU_ERRORS.values())[:20]:
        assert raised_by(lambda call=call: call(module)) is not None
    assert torch.equal(module(input)[0], expected)


@pytest.mark.parametrize("count", [0, 1, 3, 5, 8])
def test_functional_counts_the_weights(count: int) -> None:
    """functional.gru with too few or too many weights."""
    weights = [torch.randn(12, 3), torch.randn(12, 4), torch.randn(12), torch.randn(12)]
    weights = (weights * 2)[:count]
    with pytest.raises((ValueError, RuntimeError), match="weights"):
        gru_ext.functional.gru(torch.randn(2, 2, 3), None, weights)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", ["GRU", "GRUCell"])
def test_order_of_checks(kind: str, autocast: bool) -> None:
    """Two and three mistakes at once: the one that torch names is named, in its words."""
    cell = kind == "GRUCell"
    inputs = [(2, 3), (2, 5), (5,), (2, 2, 3)] if cell else [(5, 2, 3), (5, 2, 7), (0, 2, 3), (5, 7), (3,)]
    states = [None, (2, 4), (2, 6), (1, 4), (4,)] if cell else [None, (1, 2, 4), (1, 2, 6), (9, 2, 4), (1, 4), (4,)]
    dtypes = [torch.float32, torch.float64, torch.int64]
    for of_input, of_hx, dtype, hx_dtype in itertools.product(inputs, states, dtypes, dtypes):
        if autocast and of_input[0] == 0:
            continue  # there nn.GRU multiplies nothing by something, and trips over that
        input = torch.zeros(of_input, dtype=dtype)
        hx = None if of_hx is None else torch.zeros(of_hx, dtype=hx_dtype)
        errors = []
        for package in (nn, gru_ext):
            module = getattr(package, kind)(3, 4)
            with torch.autocast("cpu", enabled=autocast):
                errors.append(raised_by(lambda module=module, input=input, hx=hx: module(input, hx)))
        theirs, ours = ((type(error), str(error)) for error in errors)
        assert ours == theirs, (of_input, of_hx, dtype, hx_dtype)
