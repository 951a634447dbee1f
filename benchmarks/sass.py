"""Reads the machine code (SASS) of a kernel from what nvdisasm prints: instructions, control words, source lines.

Nothing of the encoding is documented; what is read of a control word (128-bit instructions, compute capability 7.0 on)
is what those who took it apart agree on: cycles to stall, the scoreboards that an instruction sets when its result is
there and when its operands have been read, and those that it waits for.
"""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

NO_SCOREBOARD = 7
INSTRUCTION_BYTES = 16
SECTION = re.compile(r"^//-+ \.text\.(\S+)", re.MULTILINE)
LABEL = re.compile(r"^(\S+):$")
LINE = re.compile(r'^//## File "([^"]+)", line (\d+)')
CODE = re.compile(r"^/\*([0-9a-f]{4,6})\*/\s+(.*?)\s*;\s*/\* 0x([0-9a-f]{16}) \*/$")
SECOND_WORD = re.compile(r"^/\* 0x([0-9a-f]{16}) \*/$")
GUARD = re.compile(r"^@(!?)(U?P\w+)\s+")
REGISTER = re.compile(r"^([-~!|]*)(U?R\d+|U?RZ|U?P\d+|U?PT|PR|SRZ|B\d+|SR_[\w.]+)\|?(\.\w+)*$")
CONSTANT = re.compile(r"^([-~|]*)c\[0x([0-9a-f]+)\]\[(?:(U?R\w+)\+?)?(?:\+?(-?0x[0-9a-f]+))?\]\|?$")
MEMORY = re.compile(r"^(?:desc\[UR\d+\])?\[(U?R\w+)\.64(?:\+(-?0x[0-9a-f]+))?\]$")
INTEGER = re.compile(r"^-?(0x[0-9a-f]+|\d+)$")
SEPARATOR = re.compile(r",|\s(?=`\()")
TARGET = re.compile(r"^`\((.+)\)$")


@dataclass(frozen=True)
class Operand:
    """One operand. `kind`: register (also uniform ones and predicates), constant, memory, integer, target, or other."""

    kind: str
    text: str
    name: str = ""  # of a register; of the one that an offset is added to; the label of a target
    number: int = 0  # of an integer; the offset in a constant bank, or from an address in global memory
    bank: int = 0
    signs: str = ""  # - negated, ~ inverted, ! not, | absolute

    @cached_property
    def predicate(self) -> bool:
        return self.kind == "register" and self.name.lstrip("U").startswith("P") and self.name != "PR"


@dataclass(frozen=True)
class Instruction:
    """One instruction with its control word."""

    address: int
    text: str
    guard: Operand | None
    opcode: str  # without modifiers
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    stall: int
    sets: int  # the scoreboard set when the result is there, or NO_SCOREBOARD
    reads: int  # the one set when the operands have been read, or NO_SCOREBOARD
    waits: tuple[int, ...]
    source: tuple[tuple[str, int], ...]  # file and line, from the innermost inlined function to the kernel itself

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every register that it may read, of pairs both."""
        names = []
        for operand in self.operands:
            if operand.kind in ("register", "constant", "memory") and operand.name[-1:].isdigit():
                prefix = operand.name.rstrip("0123456789")
                number = int(operand.name[len(prefix) :])
                names += [operand.name, *([f"{prefix}{number + 1}"] if prefix == "R" else [])]
        if any(operand.name == "PR" for operand in self.operands):
            names += [f"P{bit}" for bit in range(7)]
        return tuple(dict.fromkeys(names))

    @cached_property
    def of_lane(self) -> bool:
        """Whether it reads what differs between the threads of a warp."""
        return any(operand.name in ("SR_TID.X", "SR_LANEID") for operand in self.operands)

    @cached_property
    def arithmetic(self) -> tuple[list[Operand], list[Operand], list[Operand]]:
        """Its operands, as arithmetic has them: predicates that take the carry, sources, predicates that bring it."""
        rest = list(self.operands[1:])
        carries: list[Operand] = []
        while rest and rest[0].predicate:
            carries.append(rest.pop(0))
        brought: list[Operand] = []
        while rest and rest[-1].predicate:
            brought.insert(0, rest.pop())
        return carries, rest, brought


@dataclass
class Listing:
    """The code of one kernel, in order."""

    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # index of the instruction behind it

    def at(self, address: int) -> int:
        """Index of the instruction at an address."""
        index, rest = divmod(address, INSTRUCTION_BYTES)
        if rest or index >= len(self.instructions) or self.instructions[index].address != address:
            raise ValueError(f"no instruction at {address:#x}")
        return index


def read_operand(text: str) -> Operand:
    """Such as R5.reuse, -R7, !P0, c[0x0][R2+0x228], -0x1, `(.L_x_3) or desc[UR4][R2.64]."""
    if match := REGISTER.match(text):
        return Operand("register", text, name=match[2], signs=match[1])
    if match := CONSTANT.match(text):
        offset = int(match[4], 16) if match[4] else 0
        return Operand("constant", text, name=match[3] or "", number=offset, bank=int(match[2], 16), signs=match[1])
    if match := MEMORY.match(text):
        return Operand("memory", text, name=match[1], number=int(match[2] or "0", 16))
    if INTEGER.match(text):
        return Operand("integer", text, number=int(text, 0))
    if match := TARGET.match(text):
        return Operand("target", text, name=match[1])
    return Operand("other", text)


def read_instruction(address: int, text: str, control: int, source: tuple[tuple[str, int], ...] = ()) -> Instruction:
    """From its text and the upper 64 bits of its encoding."""
    text = " ".join(text.split())
    guard = GUARD.match(text)
    opcode, _, rest = text[guard.end() if guard else 0 :].partition(" ")
    name, *modifiers = opcode.split(".")
    bits = control >> 41
    return Instruction(
        address=address,
        text=text,
        guard=Operand("register", guard[0], name=guard[2], signs=guard[1]) if guard else None,
        opcode=name,
        modifiers=tuple(modifiers),
        operands=tuple(read_operand(word.strip()) for word in SEPARATOR.split(rest) if word.strip()),
        stall=bits & 15,
        sets=bits >> 5 & 7,
        reads=bits >> 8 & 7,
        waits=tuple(board for board in range(6) if bits >> 11 + board & 1),
        source=source,
    )


def read_listing(text: str) -> Listing:
    """The part of nvdisasm's output (-c -hex -gi) that belongs to one kernel."""
    listing = Listing()
    source: list[tuple[str, int]] = []
    fresh = True  # whether a line of source begins a new chain
    code: re.Match[str] | None = None
    for line in map(str.strip, text.splitlines()):
        if match := LINE.match(line):
            source = [(match[1], int(match[2]))] if fresh else [*source, (match[1], int(match[2]))]
            fresh = "inlined at" not in line
        elif match := LABEL.match(line):
            listing.labels[match[1]] = len(listing.instructions)
        elif match := CODE.match(line):
            code, fresh = match, True
        elif code is not None and (match := SECOND_WORD.match(line)):
            listing.instructions.append(read_instruction(int(code[1], 16), code[2], int(match[1], 16), tuple(source)))
            code = None
    return listing


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, str]:
    """nvdisasm's text for each kernel of a cubin, by the kernel's mangled name."""
    command = [nvdisasm, "-c", "-hex", "-gi", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = SECTION.split(text)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def constant_sizes(cubin: Path) -> dict[str, int]:
    """Bytes of constant bank 0 of each kernel: what the driver keeps there, then the parameters, which end it."""
    data = cubin.read_bytes()
    table, (entry, count, names) = struct.unpack_from("<Q", data, 40)[0], struct.unpack_from("<3H", data, 58)
    sections = [struct.unpack_from("<2I4Q", data, table + number * entry) for number in range(count)]
    strings, sizes, prefix = sections[names][4], {}, ".nv.constant0."
    for section in sections:
        start = strings + section[0]
        name = data[start : data.index(b"\0", start)].decode()
        if name.startswith(prefix):
            sizes[name.removeprefix(prefix)] = section[5]
    return sizes
