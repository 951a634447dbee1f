"""What is run: cases of a GRU (sizes, dtype, options), how one is evaluated, and how a set of them is drawn."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import gate
import pieces
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

# One beside each tile edge: vectors of 4, 8, 16 and 32 elements, and blocks of 48, 64 and 128 units.
HIDDEN_SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 11, 15, 16, 17, 23, 31, 32, 33, 47, 48, 49, 63, 64, 65, 127, 129)
BATCHES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 33)
SEQ_LENS = (1, 2, 3, 5, 7, 11)
INPUT_SIZES = (1, 2, 3, 5, 8, 13, 16, 17, 33)

REDRAWS = 12  # draws on which a small tensor is judged, see gate.py

LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
NEEDS = ("all", "no_input", "no_hx", "only_input", "only_hx", "weights", "biases", "frozen_ih", "frozen_hh", "one")
USED = ("both", "output", "h_n")
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)  # that lengths have by turns


@dataclass(frozen=True)
class Case:
    """One GRU and one call of it.

    Sizes are PyTorch's: seq_len T, batch B, input_size I, hidden_size H. ``packed`` is "", "sorted" or "unsorted";
    ``used`` says which results the loss sees; ``needs`` which leaves want a gradient (see ``wants``); ``layout`` how
    the memory of input, hx and the weights lies; ``gain`` multiplies the usual weights, ``scale`` the input;
    ``special`` puts numbers beyond the usual into the input (see ``put_special``).

    ``lengths`` is "", "random" (0, 1 and T among them), "equal" (T - 1) or "long" (one of T, the others short);
    ``resets`` "", "none", "all" (at every step), "first" (at step 0 alone) or "random"; ``reset_state`` "", "full"
    [L*D, T, B, H], "batch" [L*D, B, H] or "shared" [L*D, H]. nn.GRU takes such cases by ``pieces.run``. Where nobody
    is to read, in padding and in a full reset_state, all others find NaN.
    """

    seq_len: int = 3
    batch: int = 2
    input_size: int = 3
    hidden_size: int = 5
    dtype: torch.dtype = torch.float32
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    hx: bool = True
    packed: str = ""
    unbatched: bool = False
    layout: str = "contiguous"
    used: str = "both"
    needs: str = "all"
    gain: float = 1.0
    scale: float = 1.0
    special: str = ""
    lengths: str = ""
    resets: str = ""
    reset_state: str = ""
    seed: int = 0

    def __str__(self) -> str:
        """A short name for test ids: sizes, dtype, then whatever is not the default."""
        words = [f"T{self.seq_len}B{self.batch}I{self.input_size}H{self.hidden_size}", str(self.dtype).split(".")[1]]
        words += [f"L{self.layers}"] if self.layers > 1 else []
        words += [name for name in ("bidirectional", "batch_first", "unbatched") if getattr(self, name)]
        words += [f"no_{name}" for name in ("bias", "hx") if not getattr(self, name)]
        words += [self.packed] if self.packed else []
        words += [self.layout] if self.layout != "contiguous" else []
        words += [f"used_{self.used}"] if self.used != "both" else []
        words += [f"needs_{self.needs}"] if self.needs != "all" else []
        words += [f"gain{self.gain:g}"] if self.gain != 1 else []
        words += [f"scale{self.scale:g}"] if self.scale != 1 else []
        words += [self.special] if self.special else []
        for name in ("lengths", "resets", "reset_state"):
            words += [f"{getattr(self, name)}_{name}"] if getattr(self, name) else []
        return "-".join([*words, f"s{self.seed}"])


def wants(needs: str, name: str) -> bool:
    """Whether the leaf ``name`` (input, hx or the name of a parameter) wants a gradient under ``needs``."""
    if needs in ("all", "nothing"):
        return needs == "all"
    if needs in ("no_input", "no_hx"):
        return name != needs[3:]
    if needs in ("only_input", "only_hx"):
        return name == needs[5:]
    if needs in ("weights", "biases"):
        return name.startswith({"weights": "weight", "biases": "bias"}[needs])
    if needs in ("frozen_ih", "frozen_hh"):
        return needs[-3:] + "_" not in name + "_"
    return name == "weight_hh_l0"  # "one"


@dataclass(frozen=True)
class Numbers:
    """The float64 numbers of a case, each representable in the case's dtype."""

    parameters: dict[str, Tensor]
    input: Tensor
    hx: Tensor
    grad_output: Tensor
    grad_h_n: Tensor
    lengths: list[int]
    resets: Tensor | None = None
    reset_state: Tensor | None = None
    padding: Tensor | None = None  # of input without its last dimension; None: no lengths
    unread: Tensor | None = None  # of a full reset_state without its last dimension


@lru_cache(maxsize=8)
def numbers(case: Case) -> Numbers:
    """Draw the numbers of a case; the same case gives the same numbers."""
    generator = torch.Generator().manual_seed(case.seed)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(case.dtype).double()

    directions = 2 if case.bidirectional else 1
    batch, hidden = case.batch, case.hidden_size
    shapes = nn.GRU(
        case.input_size, hidden, case.layers, case.bias, bidirectional=case.bidirectional, device="meta"
    ).named_parameters()
    # The standard deviation of torch's own uniform(-1/sqrt(H), 1/sqrt(H)).
    parameters = {name: draw(*p.shape, scale=case.gain * (3 * hidden) ** -0.5) for name, p in shapes}
    leading = (batch, case.seq_len) if case.batch_first else (case.seq_len, batch)
    data = draw(*leading, case.input_size, scale=case.scale)
    put_special(case, data)
    lengths = [case.seq_len] * batch
    rows = case.seq_len * batch
    if case.packed:
        draws = random.Random(case.seed)
        lengths = [draws.randint(1, case.seq_len) for _ in range(batch)]
        lengths[draws.randrange(batch)] = case.seq_len
        if case.packed == "sorted":
            lengths.sort(reverse=True)
        rows = sum(lengths)
    state = draw(case.layers * directions, batch, hidden, scale=0.5)
    width = directions * hidden
    grad_output = draw(rows, width) if case.packed else draw(*leading, width)
    grad_h_n = draw(*state.shape)
    resets = reset_state = padding = unread = None
    if case.lengths or case.resets:
        if case.lengths:
            lengths = drawn_lengths(case)
        behind = torch.arange(case.seq_len).unsqueeze(1) >= torch.tensor(lengths)
        if case.resets:
            resets = drawn_resets(case, generator)
        if case.reset_state:
            of_form = {"full": (case.seq_len, batch), "batch": (batch,), "shared": ()}[case.reset_state]
            reset_state = draw(case.layers * directions, *of_form, hidden, scale=0.5)
        if case.reset_state == "full":
            read = (resets & ~behind).expand(case.layers, directions, -1, -1).clone()
            read[:, 1:, 0] = False  # what a reset at step 0 would begin in reverse is no piece
            unread = ~read.flatten(0, 1)
        padding = behind if case.lengths else None
        if case.batch_first:
            resets, padding = (None if flags is None else flags.t() for flags in (resets, padding))
            if case.reset_state == "full":
                reset_state, unread = reset_state.transpose(1, 2), unread.transpose(1, 2)
    if case.unbatched:
        batch_dim = 0 if case.batch_first else 1
        data, grad_output = data.squeeze(batch_dim), grad_output.squeeze(batch_dim)
        state, grad_h_n = state.squeeze(1), grad_h_n.squeeze(1)
        resets, padding = (None if flags is None else flags.squeeze(batch_dim) for flags in (resets, padding))
        if case.reset_state == "full":
            reset_state, unread = reset_state.squeeze(1 + batch_dim), unread.squeeze(1 + batch_dim)
    return Numbers(parameters, data, state, grad_output, grad_h_n, lengths, resets, reset_state, padding, unread)


def drawn_lengths(case: Case) -> list[int]:
    """Those of the case's sequences; 0, 1 and T where random ones have room for them."""
    draws = random.Random(case.seed)
    if case.lengths == "equal":
        return [max(1, case.seq_len - 1)] * case.batch
    if case.lengths == "long":
        lengths = [draws.randint(1, max(1, case.seq_len // 4)) for _ in range(case.batch)]
        lengths[draws.randrange(case.batch)] = case.seq_len
        return lengths
    lengths = [draws.randint(0, case.seq_len) for _ in range(case.batch)]
    for index, length in zip(draws.sample(range(case.batch), min(3, case.batch)), (case.seq_len, 0, 1), strict=False):
        lengths[index] = length
    return lengths


def drawn_resets(case: Case, generator: torch.Generator) -> Tensor:
    """[T, B]."""
    if case.resets == "random":
        return torch.rand(case.seq_len, case.batch, generator=generator) < 0.3
    resets = torch.full((case.seq_len, case.batch), case.resets == "all")
    resets[0] |= case.resets == "first"
    return resets


def put_special(case: Case, data: Tensor) -> None:
    """Write the case's special numbers into its input [T, B, I], in place."""
    if not case.special:
        return
    largest = torch.finfo(case.dtype).max
    data[0, 0] = 0.0
    if case.special == "inf":
        data[1, 0, 0] = float("inf")
        data[2, 1, 1] = float("-inf")
    elif case.special == "nan":
        data[1, 0, 0] = float("nan")
    elif case.special == "opposed":  # inf - inf inside a product
        data[1, 0, 0], data[1, 0, 1] = float("inf"), float("-inf")
        data[2, 2, 0], data[2, 2, 1] = float("inf"), float("inf")
    elif case.special == "huge":  # every gate saturated, products near the end of the dtype's range
        data[1] = data[1].sign() * min(largest, 1e30) / 64
    elif case.special == "tiny":  # subnormal in the dtype
        data[1] = data[1].sign() * torch.finfo(case.dtype).tiny / 4
    elif case.special == "zero":
        data.zero_()
    else:
        raise ValueError(f"special is {case.special!r}")


def lay_out(tensor: Tensor, layout: str) -> Tensor:
    """The same values in other memory: last dimension not contiguous, or a stride larger than the row."""
    if layout == "contiguous" or tensor.numel() == 0:
        return tensor.clone(memory_format=torch.contiguous_format)
    if layout == "transposed":
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    padded = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1] + 1), float("nan"))
    padded[..., 1::2] = tensor
    return padded[..., 1::2]


def evaluate(
    gru: type[nn.Module], case: Case, dtype: torch.dtype | None = None, device: str = "cpu"
) -> dict[str, Tensor]:
    """Build ``gru`` for the case, run it forward and backward, and return its results by name.

    Args:
        gru: a class with nn.GRU's constructor, state_dict and call.
        case: what to run.
        dtype: the dtype to compute in; the case's own when not given.
        device: where to compute; results come back on the CPU.

    Returns:
        "output" (packed: its data), "h_n", and "grad NAME" for each leaf that has a gradient afterwards.
    """
    dtype = dtype or case.dtype
    drawn = numbers(case)

    def converted(tensor: Tensor) -> Tensor:
        return tensor.to(device=device, dtype=dtype)

    def placed(tensor: Tensor) -> Tensor:
        laid_out = lay_out(tensor, case.layout)
        # cuDNN, by which nn.GRU runs on CUDA, refuses weights and hx in any other layout.
        return laid_out.contiguous() if gru is nn.GRU and device != "cpu" else laid_out

    module = gru(
        case.input_size,
        case.hidden_size,
        case.layers,
        bias=case.bias,
        batch_first=case.batch_first,
        bidirectional=case.bidirectional,
        device=device,
        dtype=dtype,
    )
    module.load_state_dict({name: converted(value) for name, value in drawn.parameters.items()}, strict=True)
    if case.layout != "contiguous":
        for name, parameter in list(module.named_parameters()):
            setattr(module, name, nn.Parameter(placed(parameter.detach())))
    leaves: dict[str, Tensor] = dict(module.named_parameters())
    ours = gru is not nn.GRU
    own_padding = None if case.layout == "expanded" else drawn.padding
    data = leaves["input"] = placed(converted(hidden_from(ours, drawn.input, own_padding)))
    if case.layout == "expanded" and not case.unbatched:
        # Every sequence of the batch is the first one, without a copy of it: stride 0.
        batch_dim = 0 if case.batch_first else 1
        data = leaves["input"] = data.narrow(batch_dim, 0, 1).contiguous()
    state = None
    if case.hx:
        state = leaves["hx"] = placed(converted(drawn.hx))
    named: dict[str, Tensor] = {}
    if case.lengths:
        of_case = torch.tensor(drawn.lengths, dtype=INTEGERS[case.seed % len(INTEGERS)], device=device)
        named["lengths"] = of_case[0] if case.unbatched else of_case
    if drawn.resets is not None:
        named["resets"] = lay_out(drawn.resets, case.layout).to(device)
    if drawn.reset_state is not None:
        leaves["reset_state"] = placed(converted(hidden_from(ours, drawn.reset_state, drawn.unread)))
        named["reset_state"] = leaves["reset_state"]
    for name, leaf in leaves.items():
        leaf.requires_grad_(wants(case.needs, name))

    shaped: Any = data
    if case.layout == "expanded" and not case.unbatched:
        shaped = data.expand(*drawn.input.shape)
    if case.packed:
        shaped = pack_padded_sequence(
            shaped, torch.tensor(drawn.lengths), case.batch_first, enforce_sorted=case.packed == "sorted"
        )
    if named and not ours:
        output, h_n = pieces.run(module, shaped, state, **named)
    else:
        output, h_n = module(shaped, state, **named) if case.hx else module(shaped, **named)
    if case.packed:
        assert isinstance(output, PackedSequence), f"packed input gave {type(output).__name__}"
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            expected, got = getattr(shaped, field), getattr(output, field)
            same = expected is got if expected is None or got is None else torch.equal(expected, got)
            assert same, f"{field} of the packed output: {got}, expected {expected}"
        output = output.data
    results = {"output": output, "h_n": h_n}
    grads = {"output": hidden_from(ours, drawn.grad_output, drawn.padding), "h_n": drawn.grad_h_n}
    chosen = [name for name in results if case.used in ("both", name) and results[name].requires_grad]
    if chosen:
        torch.autograd.backward([results[name] for name in chosen], [converted(grads[name]) for name in chosen])
    results |= {f"grad {name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    results = {name: value.detach().cpu() for name, value in results.items()}
    for name, flags in (("output", drawn.padding), ("grad input", drawn.padding), ("grad reset_state", drawn.unread)):
        if flags is not None and name in results and results[name].shape[:-1] == flags.shape:
            gate.exact_zeros(name, results[name][flags])
    return results


def hidden_from(ours: bool, tensor: Tensor, flags: Tensor | None) -> Tensor:
    """NaN where no one but nn.GRU, which is not shown them, may look."""
    return tensor if flags is None or not ours else tensor.masked_fill(flags.unsqueeze(-1), float("nan"))


def measure(gru: type[nn.Module], case: Case, device: str = "cpu") -> list[gate.Measure]:
    """Measure ``gru`` on one case."""
    truth = evaluate(nn.GRU, case, torch.float64)
    candidate = evaluate(gru, case, device=device)
    if case.dtype != torch.float64:
        return gate.measure(candidate, evaluate(nn.GRU, case, device=device), truth)
    single = replace(case, dtype=torch.float32)
    errors = gate.float64_errors(evaluate(nn.GRU, single), evaluate(nn.GRU, single, torch.float64))
    return gate.measure(candidate, truth, truth, errors)


def check(gru: type[nn.Module], case: Case, device: str = "cpu") -> list[gate.Measure]:
    """Hold ``gru`` to the gate for one case. Raises gate.GateError; returns what was measured."""
    measures = measure(gru, case, device)
    failed = [entry.name for entry in measures if not entry.passed and entry.small]
    if failed and len(failed) == sum(not entry.passed for entry in measures):
        redraws = [measure(gru, replace(case, seed=case.seed + 100_003 * draw), device) for draw in range(1, REDRAWS)]
        by_name = [{entry.name: entry for entry in draw} for draw in (measures, *redraws)]
        pooled = {name: gate.pool(name, [draw[name] for draw in by_name]) for name in failed}
        measures = [pooled.get(entry.name, entry) for entry in measures]
    gate.raise_failures(measures)
    return measures


def twins(gru: type[nn.Module], *arguments: Any, **options: Any) -> tuple[nn.Module, nn.Module]:
    """torch's module and one of class ``gru`` with the same arguments and equal weights."""
    theirs = getattr(nn, gru.__name__)(*arguments, **options)
    ours = gru(*arguments, **options)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def shapes() -> list[Case]:
    """Every hidden size and every batch at least once in each dtype, sequence length and input size drawn."""
    draws = random.Random(20240607)
    drawn: list[Case] = []
    for dtype in DTYPES:
        for index, hidden in enumerate(HIDDEN_SIZES):
            drawn.append(
                Case(
                    seq_len=draws.choice(SEQ_LENS),
                    batch=BATCHES[index % len(BATCHES)],
                    input_size=draws.choice(INPUT_SIZES),
                    hidden_size=hidden,
                    dtype=dtype,
                    seed=len(drawn),
                )
            )
        drawn.append(Case(1, 1, 1, 1, dtype, seed=1000))
        drawn.append(Case(5, 33, 13, 256, dtype, seed=1001))
        drawn.append(Case(40, 2, 3, 17, dtype, gain=1.5, seed=1002))
        drawn.append(Case(9, 19, 83, 3, dtype, bidirectional=True, packed="unsorted", seed=1003))  # most lanes empty
        for hidden in (64, 65, 129):  # larger than those of ``options``
            drawn.append(Case(4, 9, 5, hidden, dtype, bidirectional=True, packed="unsorted", seed=hidden))
    return drawn


def options(count: int) -> list[Case]:
    """``count`` cases with every option drawn at random (fixed seed), and each option's value certain to occur."""
    draws = random.Random(20240608)
    drawn: list[Case] = []
    for index in range(count):
        packed = ("", "", "sorted", "unsorted")[index % 4]
        unbatched = not packed and index % 5 == 0
        layout = LAYOUTS[index // 4 % 4]
        hx = draws.random() < 0.7
        needs = NEEDS[index % len(NEEDS)]
        bias = draws.random() < 0.7 or needs == "biases"
        drawn.append(
            Case(
                seq_len=draws.choice(SEQ_LENS),
                batch=1 if unbatched else draws.choice(BATCHES),
                input_size=draws.choice(INPUT_SIZES),
                hidden_size=draws.choice(HIDDEN_SIZES[:-4]),
                dtype=DTYPES[index // 4 % 4] if index % 3 else torch.float32,
                layers=draws.choice((1, 1, 2, 3)),
                bidirectional=draws.random() < 0.5,
                bias=bias,
                batch_first=draws.random() < 0.5,
                hx=hx or needs == "only_hx",
                packed=packed,
                unbatched=unbatched,
                layout=layout,
                used=draws.choice(USED),
                needs=needs,
                gain=draws.choice((0.5, 1.0, 2.0)),
                seed=2000 + index,
            )
        )
    return drawn
