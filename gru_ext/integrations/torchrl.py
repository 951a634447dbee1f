"""torchrl's GRUModule on the kernels of gru_ext: an episode may begin at any step, and nothing is split or padded.

Importing this module needs torchrl: ``pip install torchrl``.
"""

from __future__ import annotations

try:
    import torchrl.modules
    from tensordict import TensorDictBase
    from tensordict.nn import dispatch
except ImportError as error:
    raise ImportError(f"gru_ext.integrations.torchrl needs torchrl ({error}): pip install torchrl") from error

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gru_ext import functional, replacement


class GRUModule(torchrl.modules.GRUModule):
    """A :class:`torchrl.modules.GRUModule`, arguments and keys included, whose ``recurrent_backend`` has no effect.

    In recurrent mode the last dimension of the tensordict is time, the state at step 0 and at each step of ``is_init``
    is the stored one, and the state after an episode is stored at its last step, zeros at the others. Otherwise each
    element is one step, and ``is_init`` takes the stored state for zero.

    Its ``gru`` becomes a :class:`gru_ext.GRU`, whose ``recompute`` counts.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        replacement.replace(self)

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Reads ``in_keys`` and ``is_init``, sets ``out_keys``.

        Raises:
            ValueError: in recurrent mode the tensordict has no dimension
            KeyError: it has no input or no ``is_init``
        """
        gru, shape, recurrent = self.gru, tensordict.shape, self.recurrent_mode
        if recurrent and not shape:
            raise ValueError("tensordict must have a dimension of time in recurrent mode, got none")
        steps = shape[-1] if recurrent else 1
        sizes = (shape.numel() // max(steps, 1), steps)  # B, T
        value, state = tensordict.get(self.in_keys[0]), tensordict.get(self.in_keys[1], None)
        if value is None:
            raise KeyError(f"tensordict has no {self.in_keys[0]!r}")
        value, resets = value.reshape(*sizes, gru.input_size), tensordict["is_init"].reshape(sizes)
        directions = 2 if gru.bidirectional else 1
        starts = _starts(resets) if directions == 2 else None
        if state is not None:
            state = state.reshape(*sizes, gru.num_layers, directions, gru.hidden_size)
            if starts is not None and recurrent:  # where the reverse direction, which comes from behind, meets a reset
                state = _at(state, starts.roll(1, 1))
            elif starts is not None:  # behind the only step it meets none
                state = torch.where(resets[..., None, None, None], 0, state)
            state = state.movedim((2, 3), (0, 1))  # [L, D, B, T, H]
        states = []
        for number in range(gru.num_layers):
            hx = None if state is None else state[number, :, :, 0]
            value, _ = functional.gru(
                value,
                hx,
                [weight for of_one in gru.all_weights[number * directions :][:directions] for weight in of_one],
                bias=gru.bias,
                bidirectional=gru.bidirectional,
                batch_first=True,
                resets=resets,
                reset_state=state[number] if recurrent and state is not None else None,
                recompute=getattr(gru, "recompute", False),
            )
            states.append(value.unflatten(-1, (directions, gru.hidden_size)))
            if gru.dropout and number < gru.num_layers - 1:
                value = F.dropout(value, gru.dropout, gru.training)
        after = torch.stack(states, 2)  # [B, T, L, D, H]
        if starts is not None:
            after = _at(after, starts)  # the reverse direction ends at an episode's first step
        if steps > 1:
            ends = torch.cat([resets[:, 1:], torch.ones_like(resets[:, :1])], 1)
            after = torch.where(ends[..., None, None, None], after, 0)
        tensordict.set(self.out_keys[0], value.reshape(*shape, value.size(-1)))
        tensordict.set(self.out_keys[1], after.reshape(*shape, gru.num_layers * directions, gru.hidden_size))
        return tensordict


def replace(model: nn.Module) -> nn.Module:
    """Turns every :class:`torchrl.modules.GRUModule` in the model, itself included, into ours, in place.

    Parameters, keys and hooks stay as they are.
    """
    for module in model.modules():
        if type(module) is torchrl.modules.GRUModule:
            module.__class__ = GRUModule
            replacement.replace(module)
    return model


def _starts(resets: Tensor) -> Tensor:
    """Of each step [B, T] the first one of its episode."""
    steps = torch.arange(resets.size(1), device=resets.device)
    return torch.where(resets, steps, 0).cummax(1).values


def _at(states: Tensor, steps: Tensor) -> Tensor:
    """States [B, T, L, 2, H], of the reverse direction those at steps [B, T]."""
    forward, reverse = states.unbind(-2)
    return torch.stack([forward, reverse.gather(1, steps[..., None, None].expand_as(reverse))], -2)
