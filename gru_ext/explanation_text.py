"""An explanation in words: lines of plain text, or tables by rich."""

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gru_ext.explanation import Explanation, PassPlan

INDENT = 12
BLOCKS = {"blocks": "blocks", "groups": "groups of them", "warps": "warps each", "shared_bytes": "shared bytes each"}


def lines(told: "Explanation", width: int) -> Iterator[str]:
    """A few lines for each layer, none longer than ``width``."""
    yield from textwrap.wrap(title(told), width, subsequent_indent="  ")
    for number, layer in enumerate(told.layers):
        yield from textwrap.wrap(layer_title(told, number), width)
        for one in layer.passes:
            known = dict(facts(one))
            said = [f"{known.pop('kernel')}: {known.pop('why')}", *(f"{name} {of}" for name, of in known.items())]
            for index, line in enumerate(said):
                first = f"  {one.name if index == 0 else '':{INDENT - 2}}"
                yield from textwrap.wrap(first + line, width, subsequent_indent=" " * INDENT)
        yield from textwrap.wrap("  " + layer_bytes(told, number), width, subsequent_indent="  ")


def rich_tables(told: "Explanation") -> Any:
    """A table for each layer, a column for each pass. Needs rich."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = [Text(title(told), style="bold")]
    for number, layer in enumerate(told.layers):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("")
        known = [dict(facts(one)) for one in layer.passes]
        for one in layer.passes:
            table.add_column(one.name, overflow="fold")
        for name in dict.fromkeys(name for facts in known for name in facts):
            table.add_row(name, *(Text(facts.get(name, "")) for facts in known))
        parts += [Text(layer_title(told, number)), table, Text(layer_bytes(told, number)), Text("")]
    return Group(*parts[:-1])


def title(told: "Explanation") -> str:
    """What is called, in a line."""
    packed = f" packed into {told.rows} rows" if told.packed else ""
    return (
        f"{told.device} {told.dtype}: seq_len {told.seq_len}, batch {told.batch}{packed}, "
        f"hidden_size {told.hidden_size}, {'training' if told.training else 'no gradient'}"
    )


def layer_title(told: "Explanation", number: int) -> str:
    """Which layer it is, in a line."""
    directions = ", both directions" if told.directions == 2 else ""
    return f"layer {number}, input_size {told.layers[number].input_size}{directions}"


def layer_bytes(told: "Explanation", number: int) -> str:
    """Sizes of a layer's tensors, in a line."""
    layer = told.layers[number]
    saved = "what torch's kernels need" if layer.saved_bytes is None else _bytes(layer.saved_bytes)
    return (
        f"weights {_bytes(layer.weight_bytes)}, input {_bytes(layer.input_bytes)}, "
        f"output {_bytes(layer.output_bytes)}" + (f", kept for backward {saved}" if told.training else "")
    )


def facts(one: "PassPlan") -> Iterator[tuple[str, str]]:
    """What there is to say about a pass: name and words of each fact."""
    yield "kernel", one.kernel
    yield "why", one.reason
    if one.source:
        yield "chosen by", one.source
    divided = [f"{one.division[name]} {words}" for name, words in BLOCKS.items() if name in one.division]
    if divided:
        yield "divided", ", ".join(divided)
    yield "products", "; ".join(f"{m:,}x{k:,} @ {k:,}x{n:,} {_times(times)}" for m, n, k, times in one.products)
    yield "operations", _count(one.operations)
    if one.read_bytes is not None and one.written_bytes is not None:
        yield "bytes", f"{_bytes(one.read_bytes)} read, {_bytes(one.written_bytes)} written"
    if one.limits is not None:
        latency = f"; the smallest layer of as many steps takes {_time(one.limits.latency_us)}"
        cause = one.limits.cause
        yield "floor", f"{_time(one.limits.floor_us)}, limited by {cause}" + latency * (cause == "latency")


def _times(count: int) -> str:
    return "once" if count == 1 else "twice" if count == 2 else f"{count:,} times"


def _count(operations: float) -> str:
    if operations >= 1e6:
        return f"{operations / 1e6:,.{1 if operations < 1e9 else 0}f} million"
    return f"{operations:,.0f}"


def _time(microseconds: float) -> str:
    return f"{microseconds:.3g} us" if microseconds < 1e3 else f"{microseconds / 1e3:,.4g} ms"


def _bytes(count: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} GiB"
