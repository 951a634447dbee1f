"""Walks the machine code of a kernel as one of its warps would, and so finds the branches it takes.

A branch that hangs on something unknown is an error, with two exceptions. What a thread waits for is there when it
first asks: a barrier in shared memory answers yes, and a backward branch that hangs on a word that another block writes
(a load at the scope of the GPU) is not taken. And numbers are ordinary ones: a branch past the call of a function that
the compiler has for others, such as denormal ones, is taken.

Where lanes part, those that do not jump go first, until they come to the barrier at which the lanes meet again; then
the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sass import Instruction, Listing
from sass_rules import execute, forget, forget_awaited
from sass_warp import ALL, Missing, Value, Warp, both, lanes

LEAVES = frozenset("BRX BRXU JMP JMX BPT KILL RTT".split())
SLOW_PATH = "slowpath"  # how the names of such functions end
JUMPS = frozenset("BRA BREAK BSSY BSYNC CALL EXIT RET WARPSYNC".split()) | LEAVES


class Lost(Exception):
    """The walk came to a place from which it cannot be said where the thread goes."""

    def __init__(self, instruction: Instruction, why: str) -> None:
        super().__init__(f"{why}: {instruction.address:#x} {instruction.text}")


@dataclass(frozen=True)
class Stride:
    """One instruction that was issued."""

    instruction: Instruction
    done: bool  # false: its predicate was, in all lanes
    jumped: bool


@dataclass
class Meeting:
    """A barrier of lanes: who has to come, who has, and where they go on together."""

    place: int
    members: int
    arrived: int = 0


@dataclass
class Walk:
    """A warp on its way through `listing`. Iterating over it goes on until the threads end, or raises Lost."""

    listing: Listing
    warp: Warp
    living: int = ALL
    ready: list[tuple[int, int]] = field(default_factory=lambda: [(0, ALL)])  # place and lanes, the next one last
    meetings: dict[str, list[Meeting]] = field(default_factory=dict)  # by barrier register

    def __iter__(self) -> Iterator[Stride]:
        while self.ready:
            place, mask = self.ready.pop()
            if place >= len(self.listing.instructions):
                raise Lost(self.listing.instructions[-1], "the walk left the code")
            instruction = self.listing.instructions[place]
            active = self.active(instruction, place, mask)
            if instruction.opcode in JUMPS:
                self.jump(instruction, place, mask, active)
            else:
                if active:
                    execute(self.warp, instruction, active)
                self.ready.append((place + 1, mask))
            yield Stride(instruction, active != 0, bool(self.ready) and self.ready[-1][0] != place + 1)
        if self.living:
            raise Lost(self.listing.instructions[-1], "lanes wait for one another")

    def active(self, instruction: Instruction, place: int, mask: int) -> int:
        """The lanes for which an instruction's predicates are true. What it writes where they are unknown is so too."""
        predicates = [instruction.guard] if instruction.guard else []
        if instruction.opcode == "BRA" and "DIV" not in instruction.modifiers:
            predicates += instruction.operands[:-1]
        if not predicates:
            return mask
        values: dict[int, Value] = dict.fromkeys(lanes(mask), 1)
        for predicate in predicates:
            values_of = self.warp.each(predicate, mask)
            values = {lane: both(values[lane], values_of[lane], disjunction=False) for lane in values_of}
        if Missing.UNKNOWN in values.values() and self.avoids_slow_path(instruction, place):
            values = {lane: 1 if value is Missing.UNKNOWN else value for lane, value in values.items()}
        unknown = sum(1 << lane for lane, value in values.items() if value is Missing.UNKNOWN)
        awaited = sum(1 << lane for lane, value in values.items() if value is Missing.AWAITED)
        if instruction.opcode in JUMPS:
            polls = instruction.opcode == "BRA" and self.target(instruction) <= place
            if unknown or (awaited and not polls):
                raise Lost(instruction, f"hangs on something {'unknown' if unknown else 'awaited'}")
        else:
            for lacking, rule in ((unknown, forget), (awaited, forget_awaited)):
                if lacking:
                    self.warp.apply(rule, instruction, lacking)
        return sum(1 << lane for lane, value in values.items() if value == 1)

    def avoids_slow_path(self, instruction: Instruction, place: int) -> bool:
        """Whether it is a branch past nothing but the call of a function for numbers that are not ordinary."""
        if instruction.opcode != "BRA":
            return False
        skipped = self.listing.instructions[place + 1 : self.target(instruction)]
        jumps = [other for other in skipped if other.opcode in JUMPS]
        calls = [other.operands[-1].name.endswith(SLOW_PATH) for other in jumps[:1] if other.opcode == "CALL"]
        return calls == [True] and all(other.opcode == "BRA" and other is skipped[-1] for other in jumps[1:])

    def target(self, instruction: Instruction) -> int:
        """Index of what an instruction's label stands before."""
        operand = instruction.operands[-1] if instruction.operands else None
        if operand is None or operand.kind != "target" or operand.name not in self.listing.labels:
            raise Lost(instruction, "leads outside the kernel")
        return self.listing.labels[operand.name]

    def jump(self, instruction: Instruction, place: int, mask: int, active: int) -> None:
        """Sends the lanes `active` of those in `mask` where the instruction leads, the others on."""
        opcode, modifiers = instruction.opcode, instruction.modifiers
        if opcode in LEAVES or (opcode == "CALL" and "REL" not in modifiers):
            raise Lost(instruction, "where this leads is not followed")
        if (opcode == "BRA" and "DIV" in modifiers) or opcode == "WARPSYNC":
            if "COLLECTIVE" in modifiers or (active and mask != self.living and opcode == "BRA"):
                raise Lost(instruction, "only lanes that have parted come here")
            self.gather(instruction, place, mask, active)
            return
        rest = mask & ~active
        if opcode == "BRA":
            if active:
                self.ready.append((self.target(instruction), active))
            if rest:
                self.ready.append((place + 1, rest))
            return
        if opcode == "EXIT":
            self.living &= ~active
            self.meet()
            if rest:
                self.ready.append((place + 1, rest))
            return
        if opcode == "BREAK":
            for meeting in self.meetings.get(instruction.operands[-1].name, []):
                meeting.members &= ~active
            self.meet()
            self.ready.append((place + 1, mask))
            return
        if rest:
            raise Lost(instruction, "not all lanes do this")
        name = instruction.operands[0].name
        if opcode == "BSSY":
            for meeting in self.meetings.setdefault(name, []):
                meeting.members &= ~mask
            self.meetings[name].append(Meeting(self.target(instruction), mask))
            self.ready.append((place + 1, mask))
        elif opcode == "BSYNC":
            arranged = [meeting for meeting in self.meetings.get(name, []) if meeting.members & mask]
            if not arranged:
                raise Lost(instruction, "no meeting was arranged")
            arranged[0].arrived |= mask
            self.meet()
        elif opcode == "CALL":
            self.ready.append((self.target(instruction), mask))
        else:
            addresses = set(self.warp.each(instruction.operands[0], mask).values())
            address = addresses.pop()
            if addresses or isinstance(address, Missing):
                raise Lost(instruction, "returns to somewhere unknown")
            self.ready.append((self.listing.at(address), mask))

    def gather(self, instruction: Instruction, place: int, mask: int, active: int) -> None:
        """All lanes that live come together."""
        if not active:
            self.ready.append((place + 1, mask))
            return
        if active != mask:
            raise Lost(instruction, "not all lanes do this")
        name = f"{instruction.address}"
        if not self.meetings.get(name):
            self.meetings[name] = [Meeting(place + 1, self.living)]
        self.meetings[name][0].arrived |= mask
        self.meet()

    def meet(self) -> None:
        """Lets those go on who are complete."""
        for name, meetings in self.meetings.items():
            for meeting in meetings:
                members = meeting.members & self.living
                if members and meeting.arrived & members == members:
                    self.ready.append((meeting.place, members))
                    meeting.members = 0
            self.meetings[name] = [meeting for meeting in meetings if meeting.members & self.living]
