"""The cycles of a walk through machine code (sass_walk.py): when each instruction of the warp is issued.

A model that has never been held against a GPU: good for "before and after", not as times. From the machine code: the
stalls of each instruction, and which results it waits for. Assumed: LATENCIES below, of results whose time the compiler
does not know; 12 cycles until an instruction has read its operands; 2 more for a branch that is taken; a product on the
tensor cores every 6.4 cycles and its sum after 25; a special function every 8. Nothing else is in anyone's way: no
other warp on the quarter, no bank conflict, no miss of the instruction cache.

A scoreboard counts what is not there yet, and an instruction waits for 0. Copies that run on their own (cp.async) are
counted by groups: LDGSTS starts one, LDGDEPBAR counts those since the last LDGDEPBAR as one thing, which is there when
they and all before them are, and DEPBAR.LE waits until no more than so many are missing.
"""

from __future__ import annotations

import re

from sass import NO_SCOREBOARD, Instruction
from sass_walk import Lost, Stride

# Cycles until a result is there, by opcode. LDG from memory, but what another block has written from the L2 cache.
LATENCIES = {"LDS": 30, "LDSM": 33, "MUFU": 22, "LDC": 38, "ULDC": 38, "S2R": 30, "LDG": 600, "LDGSTS": 600,
             "SYNCS": 30, "POPC": 12, "I2F": 14, "F2I": 14, "SHFL": 25, "R2UR": 12}  # fmt: skip
OTHER_LATENCY, L2_LATENCY, READ_LATENCY, JUMP = 20, 350, 12, 2
PRODUCT_EVERY, PRODUCT_LATENCY, FUNCTION_EVERY = 6.4, 25, 8
SOME_LEFT = re.compile(r"DEPBAR\.LE SB([0-5]), (0x[0-9a-f]+)$")  # a scoreboard, and how many it may still count


class Clock:
    """The cycle in which each instruction of one warp is issued, as the module's head says."""

    def __init__(self) -> None:
        self.now = 0.0
        self.scoreboards: list[list[float]] = [[] for _ in range(6)]  # when each thing that they count is there
        self.copied = 0.0  # when all copies are that were started
        self.ready: dict[str, float] = {}  # sums on their way from the tensor cores, by register
        self.next_product = self.next_function = 0.0

    def issue(self, stride: Stride) -> float:
        """Cycles that an instruction takes after the one before it: what it waits for, and its stall."""
        before, instruction = self.now, stride.instruction
        start = max([before, *(there for board in instruction.waits for there in self.scoreboards[board])])
        if self.ready:
            names = [operand.name for operand in instruction.operands if operand.kind == "register"]
            start = max([start, *(self.ready.get(name, 0.0) for name in names)])
        if instruction.opcode == "DEPBAR" and stride.done:
            start = max(start, self.few_left(instruction))
        if instruction.opcode == "MUFU":
            start = max(start, self.next_function)
            self.next_function = start + FUNCTION_EVERY
        if instruction.opcode == "HMMA":
            start = max(start, self.next_product)
            self.next_product = start + PRODUCT_EVERY
            first = int(instruction.operands[0].name[1:])
            self.ready.update({f"R{first + place}": start + PRODUCT_LATENCY for place in range(4)})
        if stride.done:
            there = start + latency(instruction)
            if instruction.opcode == "LDGSTS":
                self.copied = max(self.copied, there)
            elif instruction.opcode == "LDGDEPBAR":
                there = max(start, self.copied)
            self.count(instruction.sets, start, there)
            self.count(instruction.reads, start, start + READ_LATENCY)
        self.now = start + max(1, instruction.stall) + (JUMP if stride.jumped else 0)
        return self.now - before

    def count(self, board: int, now: float, there: float) -> None:
        """Adds to a scoreboard's what will be there at a time."""
        if board != NO_SCOREBOARD:
            self.scoreboards[board] = [*(time for time in self.scoreboards[board] if time > now), there]

    def few_left(self, instruction: Instruction) -> float:
        """When a scoreboard counts no more than DEPBAR.LE allows."""
        match = SOME_LEFT.search(instruction.text)
        if match is None:
            raise Lost(instruction, "what this waits for is not known")
        times, most = sorted(self.scoreboards[int(match[1])]), int(match[2], 16)
        return times[-1 - most] if most < len(times) else 0.0


def latency(instruction: Instruction) -> int:
    """Cycles until the result of an instruction is there whose time the compiler does not know."""
    if instruction.opcode == "LDG" and "STRONG" in instruction.modifiers:
        return L2_LATENCY
    return LATENCIES.get(instruction.opcode, OTHER_LATENCY)
