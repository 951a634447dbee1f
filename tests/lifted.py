"""Models for --model, as a user's module has them: factories without arguments."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gru_ext


class Tagger(nn.Module):
    """A bidirectional GRU over packed data, and a cell that is called in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(5, 6, 2, bidirectional=True)
        self.decoder = gru_ext.GRUCell(12, 4)

    def forward(self, input: Tensor) -> Tensor:
        packed: PackedSequence = pack_padded_sequence(input, [7, 5, 2])
        self.encoder(packed)
        state = torch.zeros(3, 4)
        for _ in range(4):
            state = self.decoder(torch.zeros(3, 12), state)
        return state


class BatchFirst(nn.Module):
    """A GRU of gru_ext's own, batch first, without bias, called by keyword, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = gru_ext.GRU(3, 8, batch_first=True, bias=False, dtype=torch.float64)
        self.unused = nn.GRU(3, 8)

    def forward(self) -> Tensor:
        output: Tensor = self.gru(input=torch.zeros(2, 9, 3, dtype=torch.float64))[0]
        return output


class Idle(nn.Module):
    """A GRU that is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 8)

    def forward(self, input: Tensor) -> Tensor:
        return input


def tagger() -> tuple[nn.Module, Tensor]:
    """A model and its input; it prints, as some do."""
    print("loading")
    return Tagger(), torch.randn(7, 3, 5)


def batch_first() -> nn.Module:
    """A model that takes no input."""
    return BatchFirst()


def bare_gru() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    """The model is itself a GRU, and the input the tuple of its arguments."""
    return nn.GRU(3, 4), (torch.randn(5, 2, 3), torch.zeros(1, 2, 4))


def without_input() -> nn.Module:
    """A model that needs an input, and comes without."""
    return Tagger()


def wrong_input() -> tuple[nn.Module, Tensor]:
    """An input that the model cannot take."""
    return Tagger(), torch.randn(7, 3, 50)


def no_gru() -> tuple[nn.Module, Tensor]:
    """No GRU."""
    return nn.Linear(2, 3), torch.zeros(2)


def idle() -> tuple[nn.Module, Tensor]:
    """A GRU that is not called."""
    return Idle(), torch.zeros(2)


def broken() -> nn.Module:
    """A factory that fails."""
    raise OSError("no such checkpoint")


def number() -> int:
    """No model at all."""
    return 3


constant = 3
