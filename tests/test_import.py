"""What a process loads: import, inference and training do without torch.compile, and a command without the others."""

from __future__ import annotations

import json

import pytest
from processes import check_python

from gru_ext.__main__ import COMMANDS

# torch.compile is these: most of a second, and 70 MiB or, with triton, 130.
COMPILER = ("torch._dynamo", "torch._inductor", "sympy", "triton")
LOADED = """
import json, sys, torch
before = set(sys.modules)
{}
print(json.dumps(sorted(set(sys.modules) - before)))
"""
CALLS = """
import gru_ext
from torch.nn.utils.rnn import pack_sequence
inputs = torch.randn(5, 2, 3), pack_sequence([torch.randn(length, 3) for length in (5, 3)])
for options in ({}, {"num_layers": 2, "bidirectional": True}, {"num_layers": 2, "dropout": 0.5, "recompute": True}):
    module = gru_ext.GRU(3, 4, **options)
    for input in inputs:
        with torch.inference_mode():
            module(input)
        output, h_n = module(input)
        (output if input is inputs[0] else output.data).sum().backward()
cell = gru_ext.GRUCell(3, 4)
with torch.no_grad():
    cell(inputs[0][0])
cell(inputs[0][0]).sum().backward()
"""


def loaded(code: str) -> list[str]:
    """The modules that ``code`` loads beside those of torch."""
    modules: list[str] = json.loads(check_python(LOADED.format(code)).splitlines()[-1])
    return modules


def test_no_compiler() -> None:
    """Import adds the package's own modules and few of others, and calls need no compiler either."""
    modules = loaded("import gru_ext")
    assert len(modules) <= 40 and sum(name.split(".")[0] != "gru_ext" for name in modules) <= 10, modules
    used = loaded(CALLS)
    assert set(modules) <= set(used)
    assert [name for name in used if name.startswith(COMPILER)] == []


@pytest.mark.parametrize("command", ["", "explain"])
def test_help_loads_one_command(command: str) -> None:
    """The list of commands loads none."""
    arguments = [*command.split(), "--help"]
    code = f"from gru_ext.__main__ import main\ntry:\n    main({arguments})\nexcept SystemExit:\n    pass"
    modules = loaded(code)
    assert [name for name in COMMANDS if f"gru_ext.commands.{name}" in modules] == command.split()


@pytest.mark.parametrize("first", ["torch.utils.flop_counter", "gru_ext"])
def test_flops_are_counted(first: str) -> None:
    """Whichever is imported first, and though something looked whether the counter is there."""
    code = f"""
import importlib.util, {first}
assert importlib.util.find_spec("torch.utils.flop_counter")
import torch, gru_ext
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    gru_ext.GRU(3, 4)(torch.randn(5, 2, 3))
print(counter.get_total_flops())
"""
    assert int(check_python(code)) == 2 * 5 * 2 * 12 * (3 + 4)
