"""The modules :class:`GRU` and :class:`GRUCell`: what ``nn.GRU`` and ``nn.GRUCell`` are, run by :mod:`gru_ext`."""

import warnings
import weakref
from collections.abc import Sequence
from operator import itemgetter
from typing import Any, overload

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gru_ext import checks, functional
from gru_ext.marks import untraced

if torch.__version__ < "2.13":  # whose compiler fails within it, in a model that packs and pads; later it breaks there
    untraced(pad_packed_sequence)


def _current(module: nn.Module, names: Sequence[str]) -> tuple[Any, ...]:
    """The weights of these names as they stand now.

    A parametrized weight is computed by a property, a pruned one is a plain attribute; only the usual case, Parameters
    alone, is looked up directly, past ``nn.Module.__getattr__`` and its cost.
    """
    try:
        return itemgetter(*names)(module._parameters)
    except KeyError:
        return tuple(getattr(module, name) for name in names)


_PROXY: Any = torch.fx.Proxy  # what a tensor is while torch.fx traces; to a type checker nothing can be both


def _leaf(module: nn.Module, input: Any, hx: Any, **named: Any) -> Any:
    """The module as one node of a graph that torch.fx traces; by itself it takes only those of torch.nn for such."""
    tracer: Any = input.tracer if isinstance(input, _PROXY) else hx.tracer
    arguments = (input,) if hx is None else (input, hx)
    present = {name: value for name, value in named.items() if value is not None}
    return tracer.create_proxy("call_module", tracer.path_of_module(module), arguments, present)


class _InFloat:
    """What torch.ao.quantization gives the modules that it looks at; ours it leaves as they are, in silence."""

    @property
    def qconfig(self) -> Any:
        """How the module is to be quantized; AttributeError until it has been set."""
        try:
            return self.__dict__["qconfig"]
        except KeyError:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'qconfig'") from None

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        self.__dict__["qconfig"] = value
        warnings.warn(
            f"torch.ao.quantization does not know gru_ext.{type(self).__name__} and leaves it in floating point; "
            "gru_ext.restore(model) first turns it into torch's own, which it quantizes",
            stacklevel=2,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        self.__dict__.pop("qconfig", None)


class GRU(_InFloat, nn.RNNBase):
    """A multi-layer gated recurrent unit: :class:`torch.nn.GRU` in all but the kernels.

    Arguments, attributes, weights, ``state_dict`` and exceptions are those of :class:`torch.nn.GRU`; weights that were
    tied, pruned, parametrized or replaced are used as they stand at each call.

    Args:
        input_size: I, features of the input
        hidden_size: H, features of the state
        num_layers: L, layers stacked on one another
        bias: whether there are biases b_ih and b_hh
        batch_first: whether input and output are [B, T, ...] instead of [T, B, ...]; hx and h_n are not affected
        dropout: probability of zeroing an output of every layer but the last, in training mode
        bidirectional: whether a second direction runs from the last step to the first (D = 2, else 1)
        device, dtype: of the weights
        recompute: whether training keeps only the states between forward and backward, a fifth of the memory, and
            computes the gates again in backward. Not of ``nn.GRU``; an attribute that may be changed at any time

    Inputs: input, hx, and, not of ``nn.GRU``, by name alone, lengths, resets, reset_state
        - **input**: [T, I] unbatched, [T, B, I], [B, T, I] when batch_first, or a ``PackedSequence``
        - **hx**: [L*D, B, H], or [L*D, H] unbatched; zeros when absent
        - **lengths**: [B], integers from 0 to T in any order: how many steps each sequence has. What comes out is what
          packing, ``nn.GRU`` and padding again give, and what is behind a sequence's end is never read; output is zero
          there. On a GPU lengths stay there: the host never reads them, and one below 0 or beyond T counts as 0 or T
        - **resets**: bool [T, B], [B, T] when batch_first, or [T] unbatched: where true the state before that step is
          zero, such as at the beginning of an episode. The reverse direction sees the same segments. What comes out is
          what splitting at the resets and running ``nn.GRU`` piece by piece gives, with hx for the first piece (in
          reverse, the last)
        - **reset_state**: [L*D, H], [L*D, B, H], or [L*D, T, B, H] ([L*D, B, T, H] when batch_first, [L*D, T, H]
          unbatched): the state that the other pieces begin with instead of zero, read at the resets alone

    Outputs: output, h_n
        - **output**: [T, D*H], [T, B, D*H], [B, T, D*H] or a ``PackedSequence``, as the input
        - **h_n**: [L*D, B, H], or [L*D, H] unbatched

    Raises:
        ValueError: input neither 2-D nor 3-D, or of another dtype than the weights
        RuntimeError: sizes, device or dtype of input, hx, lengths, resets or reset_state do not fit; an input of no
            steps; a length on the CPU that is not from 0 to T; any of the three with a ``PackedSequence``

    Examples::

        >>> gru = gru_ext.GRU(10, 20, num_layers=2)
        >>> output, h_n = gru(torch.randn(5, 3, 10), torch.randn(2, 3, 20))
        >>> output, h_n = gru(torch.randn(5, 3, 10), lengths=torch.tensor([2, 5, 0]))
    """

    recompute: bool = False  # also of modules that were pickled before there was such a thing

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        recompute: bool = False,
        **unknown: Any,
    ) -> None:
        if "proj_size" in unknown:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        if unknown:
            raise TypeError(f"GRU.__init__() got an unexpected keyword argument {next(iter(unknown))!r}")
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            device=device,
            dtype=dtype,
        )

        self.recompute = recompute

    def extra_repr(self) -> str:
        """The arguments that are not the default."""
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def flatten_parameters(self) -> None:
        """Lets the weights lie in one piece of memory, on CUDA, as cuDNN wants them; our kernels take them anywhere."""
        if any(weight is not None and weight.is_cuda for weight in self._flat_weights):
            super().flatten_parameters()

    def _init_flat_weights(self) -> None:
        """Called by ``nn.RNNBase`` whenever the weights may be other tensors than before.

        Only Parameters are listed: the value of a parametrized weight is no leaf, and would forbid a deep copy.
        """
        self._flat_weights = [self._parameters.get(name) for name in self._flat_weights_names]
        self._flat_weight_refs = [None if weight is None else weakref.ref(weight) for weight in self._flat_weights]
        self.flatten_parameters()

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor | PackedSequence, Tensor]:
        """Runs the layers; see the class for shapes and exceptions."""
        if not isinstance(input, Tensor) or isinstance(hx, _PROXY):
            if isinstance(input, _PROXY) or isinstance(hx, _PROXY):
                return _leaf(self, input, hx, lengths=lengths, resets=resets, reset_state=reset_state)
            if isinstance(input, PackedSequence):
                if lengths is not None or resets is not None or reset_state is not None:
                    raise RuntimeError("lengths, resets and reset_state are for padded input, got a PackedSequence")
                return self._forward_packed(input, hx)
        dim = input.dim()
        if dim == 3:
            if hx is not None and hx.dim() != 3:
                raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {hx.dim()}-D tensor")
            return self._run(input, hx, None, lengths, resets, reset_state)
        if dim != 2:
            raise ValueError(f"GRU: Expected input to be 2D or 3D, got {dim}D instead")
        if hx is not None:
            if hx.dim() != 2:
                raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {hx.dim()}-D tensor")
            hx = hx.unsqueeze(1)
        batch_dim = 0 if self.batch_first else 1
        checks.are_tensors(lengths=lengths, resets=resets, reset_state=reset_state)
        lengths = lengths.unsqueeze(0) if lengths is not None and lengths.dim() == 0 else lengths
        resets = None if resets is None else resets.unsqueeze(batch_dim)
        if reset_state is not None and reset_state.dim() == 3:
            reset_state = reset_state.unsqueeze(1 + batch_dim)
        output, h_n = self._run(input.unsqueeze(batch_dim), hx, None, lengths, resets, reset_state)
        return output.squeeze(batch_dim), h_n.squeeze(1)

    def _forward_packed(self, input: PackedSequence, hx: Tensor | None) -> tuple[PackedSequence, Tensor]:
        data, batch_sizes, sorted_indices, unsorted_indices = input
        if hx is not None and sorted_indices is not None:
            expected = (len(self._all_weights), sorted_indices.numel(), self.hidden_size)
            # Before the permutation, which would cut a batch too large to the right size.
            checks.hidden_size(hx, expected)
            hx = self.permute_hidden(hx, sorted_indices)
        elif hx is None and sorted_indices is not None and torch.compiler.is_compiling():
            # While a graph is made this is the batch whose size is known; what batch_sizes hold is not.
            hx = checks.zero_hx(data, (len(self._all_weights), sorted_indices.numel(), self.hidden_size))
        output, h_n = self._run(data, hx, batch_sizes)
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
        return packed, self.permute_hidden(h_n, unsorted_indices)

    def _run(
        self,
        input: Tensor,
        hx: Tensor | None,
        batch_sizes: Tensor | None,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return functional.gru(
            input,
            hx,
            # not _flat_weights, which goes stale where functional_call swaps a weight
            _current(self, self._flat_weights_names),
            num_layers=self.num_layers,
            bias=self.bias,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            batch_sizes=batch_sizes,
            lengths=lengths,
            resets=resets,
            reset_state=reset_state,
            recompute=self.recompute,
        )


class GRUCell(_InFloat, nn.RNNCellBase):
    """One step of a GRU: :class:`torch.nn.GRUCell` in all but the kernels.

    Args:
        input_size: I, features of the input
        hidden_size: H, features of the state
        bias: whether there are biases b_ih and b_hh
        device, dtype: of the weights

    Inputs: input, hx, and, not of ``nn.GRUCell``, by name alone, reset
        - **input**: [B, I], or [I] unbatched
        - **hx**: [B, H], or [H] unbatched; zeros when absent
        - **reset**: bool [B], or [] unbatched: where true hx is taken for zero

    Outputs: h', [B, H] or [H]

    Raises:
        ValueError: input or hx neither 1-D nor 2-D
        RuntimeError: sizes, device or dtype of input, hx or reset do not fit

    Examples::

        >>> cell = gru_ext.GRUCell(10, 20)
        >>> hx = cell(torch.randn(3, 10), torch.randn(3, 20))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None, *, reset: Tensor | None = None) -> Tensor:
        """One step; see the class for shapes and exceptions."""
        if isinstance(input, _PROXY) or isinstance(hx, _PROXY):
            return _leaf(self, input, hx, reset=reset)
        dim = input.dim()
        if dim not in (1, 2):
            raise ValueError(f"GRUCell: Expected input to be 1D or 2D, got {dim}D instead")
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"GRUCell: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
        unbatched = dim == 1
        if unbatched:
            input = input.unsqueeze(0)
            hx = None if hx is None else hx.unsqueeze(0)
            checks.are_tensors(reset=reset)
            reset = reset.unsqueeze(0) if reset is not None and reset.dim() == 0 else reset
        hidden = self._step(input, hx, reset)
        return hidden.squeeze(0) if unbatched else hidden

    def _step(self, input: Tensor, hx: Tensor | None, reset: Tensor | None) -> Tensor:
        weights = _current(self, ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return functional.gru_cell(input, hx, *weights, reset=reset)
