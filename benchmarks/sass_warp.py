"""What the registers of one warp hold on its way through machine code, as far as that can be said.

Registers and predicates hold integers or are unknown. What decides where a thread goes (sizes, step numbers, flags,
null pointers, its own number) comes from the launch by integer arithmetic, and that is computed (sass_rules.py);
numbers from memory are unknown where the launch does not say them, and so are all floating-point ones, except where an
integer division uses them. The warp is the first of the first block. What all its threads have in common is kept and
computed once.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeAlias

from sass import Instruction, Operand

MASK = 0xFFFFFFFF
LANES = 32
ALL = (1 << LANES) - 1
IN_CLUSTERS = 0x140  # in constant bank 0: where this is 1 a cluster's barrier is one, elsewhere a barrier of the block
# Registers that are written, by modifier; of opcodes that do not begin so, or are in WIDE, four at least.
WIDTHS = {"64": 2, "128": 4, "WIDE": 2, "F64": 2}
NARROW, WIDE = "FHILMPSUV", frozenset("HMMA IMMA LDSM MOVM".split())
PREDICATES_ALONE = frozenset("DSETP FCHK FSETP HSETP2 ISETP PLOP3 PSETP UISETP UPLOP3".split())
# Those that write no register that matters here.
SILENT = frozenset(
    "BAR CCTL CGAERRBAR DEPBAR ENDCOLLECTIVE ERRBAR FENCE LDGSTS MEMBAR NANOSLEEP NOP RED ST STAS STG STL STS "
    "UCGABAR_ARV UCGABAR_WAIT UTMALDG YIELD LDGDEPBAR PREFETCH".split()
)


class Missing(enum.Enum):
    """Why a value is not known."""

    UNKNOWN = "unknown"
    AWAITED = "awaited"  # it hangs on a word that another block writes


Value: TypeAlias = "int | Missing"


@dataclass
class Launch:
    """What a kernel is launched with."""

    constants: bytes  # bank 0
    unset: int = 0  # what lies below this offset is the driver's
    block: tuple[int, int, int] = (1, 1, 1)
    grid: tuple[int, int, int] = (1, 1, 1)
    cluster: int = 1
    memory: tuple[tuple[int, bytes], ...] = ()  # of the GPU: an address, and what is there

    @cached_property
    def drivers(self) -> dict[int, int]:
        """What is known of the driver's part of the bank, by offset, as compute capability 9.0 has it."""
        sizes = {4 * place: size for place, size in enumerate((*self.block, *self.grid))}
        return {**sizes, IN_CLUSTERS: int(self.cluster > 1)}

    def loaded(self, address: int, size: int) -> Value:
        """The bytes from an address on."""
        for first, content in self.memory:
            if first <= address and address + size <= first + len(content):
                return int.from_bytes(content[address - first : address - first + size], "little")
        return Missing.UNKNOWN


def combined(values: list[Value]) -> Missing | None:
    """Why a result of these values is not known; None if it is."""
    missing = {value for value in values if isinstance(value, Missing)}
    if not missing:
        return None
    return Missing.AWAITED if Missing.AWAITED in missing else Missing.UNKNOWN


def signed(value: int, bits: int = 32) -> int:
    """The number in two's complement."""
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def both(a: Value, b: Value, disjunction: bool) -> Value:
    """a and b, or with `disjunction` a or b: known where one of them decides."""
    deciding = int(disjunction)
    if deciding in (a, b):
        return deciding
    missing = combined([a, b])
    return (1 - deciding) if missing is None else missing


def lanes(mask: int) -> Iterator[int]:
    """The numbers of the bits that are set."""
    return (lane for lane in range(LANES) if mask >> lane & 1)


@dataclass
class Warp:
    """The registers of a warp. A tuple has a value for each lane; those not written yet are unknown.

    A rule reads and writes for one lane, or for all at once where they have in common what it reads.
    """

    launch: Launch
    registers: dict[str, Value | tuple[Value, ...]] = field(default_factory=dict)
    lane: int = 0  # whose values are read
    written: dict[str, Value] = field(default_factory=dict)  # by the rule that is at work

    def apply(self, rule: Rule, instruction: Instruction, mask: int) -> None:
        """Does what a rule says for the lanes of a mask."""
        registers = self.registers
        contents = (registers.get(name) for name in instruction.names)
        varying = [value for value in contents if isinstance(value, tuple)]
        if not varying and not instruction.of_lane:
            self.written = {}
            rule(self, instruction)
            for name, value in self.written.items():
                registers[name] = value if mask == ALL else self.blended(name, dict.fromkeys(lanes(mask), value))
            return
        results: dict[str, dict[int, Value]] = {}
        known: dict[object, dict[str, Value]] = {}  # by what is read
        for lane in lanes(mask):
            read = lane if instruction.of_lane else tuple(value[lane] for value in varying)
            if read not in known:
                self.lane, self.written = lane, {}
                rule(self, instruction)
                known[read] = self.written
            for name, value in known[read].items():
                results.setdefault(name, {})[lane] = value
        for name, by_lane in results.items():
            registers[name] = self.blended(name, by_lane)

    def blended(self, name: str, by_lane: dict[int, Value]) -> Value | tuple[Value, ...]:
        """What a register holds when these lanes have written it."""
        if name[0] == "U":  # of the whole warp
            values = list(by_lane.values())
            return values[0] if len(set(values)) == 1 else combined(values) or Missing.UNKNOWN
        old = self.registers.get(name, Missing.UNKNOWN)
        before = old if isinstance(old, tuple) else (old,) * LANES
        after = tuple(by_lane.get(lane, before[lane]) for lane in range(LANES))
        return after[0] if after.count(after[0]) == LANES else after

    def each(self, operand: Operand, mask: int) -> dict[int, Value]:
        """What an operand is in each lane."""
        values: dict[int, Value] = {}
        for lane in lanes(mask):
            self.lane = lane
            values[lane] = self.read(operand)
        return values

    def raw(self, name: str, high: bool = False) -> Value:
        """What is in a register, or with `high` in the one that follows it."""
        if name in ("RZ", "URZ", "SRZ"):
            return 0
        if name in ("PT", "UPT"):
            return 1
        if high:
            prefix = name.rstrip("0123456789")
            name = f"{prefix}{int(name[len(prefix) :]) + 1}"
        value = self.registers.get(name, Missing.UNKNOWN)
        return value[self.lane] if isinstance(value, tuple) else value

    def constant(self, operand: Operand, size: int = 4, sign: bool = False) -> Value:
        """A number in a constant bank."""
        base: Value = self.raw(operand.name) if operand.name else 0
        if isinstance(base, Missing) or operand.bank != 0:
            return base if isinstance(base, Missing) else Missing.UNKNOWN
        offset = (base + operand.number) & MASK
        if size == 4 and offset in self.launch.drivers:
            return self.launch.drivers[offset]
        if offset < self.launch.unset or offset + size > len(self.launch.constants):
            return Missing.UNKNOWN
        return int.from_bytes(self.launch.constants[offset : offset + size], "little", signed=sign) & (2**64 - 1)

    def read(self, operand: Operand, high: bool = False) -> Value:
        """An operand with its signs; 32 bits, or more where a negated 0 carries. `high`: the upper half of 64 bits."""
        if operand.kind == "integer":
            return (operand.number >> (32 if high else 0)) & MASK
        if operand.kind == "constant":
            upper = Operand("constant", "", operand.name, operand.number + 4, operand.bank)
            value = self.constant(upper if high else operand)
        elif operand.kind == "register":
            value = self.raw(operand.name, high)
        else:
            return Missing.UNKNOWN
        if isinstance(value, Missing):
            return value
        if "!" in operand.signs:
            return 1 - value
        if "|" in operand.signs:
            value = abs(signed(value))
        if "~" in operand.signs:
            value = ~value & MASK
        return (1 << 32) - value if "-" in operand.signs else value

    def wide(self, operand: Operand) -> Value:
        """An operand of 64 bits."""
        plain = replace(operand, signs="")
        low, high = self.read(plain), self.read(plain, high=True)
        if isinstance(low, Missing) or isinstance(high, Missing):
            return combined([low, high]) or Missing.UNKNOWN
        value = high << 32 | low
        return -value if "-" in operand.signs else ~value if "~" in operand.signs else value

    def write(self, name: str, value: Value, width: int = 1) -> None:
        """To a register, or to `width` registers from it on."""
        if name in ("RZ", "URZ", "PT", "UPT"):
            return
        prefix = name.rstrip("0123456789")
        first = int(name[len(prefix) :])
        for place in range(width):
            part = value if isinstance(value, Missing) else value >> 32 * place & MASK
            self.written[f"{prefix}{first + place}"] = part

    def forget(self, instruction: Instruction, why: Missing) -> None:
        """Whatever the instruction writes is not known any more; rather a register too many than one too few."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode in SILENT or not operands:
            return
        if operands[0].name == "PR":
            self.written.update({f"P{bit}": why for bit in range(7)})
        width = max((WIDTHS.get(modifier, 1) for modifier in instruction.modifiers), default=1)
        registers = 0 if opcode in PREDICATES_ALONE else 1
        for operand in operands:
            if operand.predicate:
                self.write(operand.name, why)
            elif registers and operand.kind == "register" and operand.name.lstrip("U").startswith("R"):
                self.write(operand.name, why, width if opcode[0] in NARROW and opcode not in WIDE else 4)
                registers = 0
            else:
                break


Rule: TypeAlias = "Callable[[Warp, Instruction], None]"
