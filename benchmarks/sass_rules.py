"""What instructions of machine code compute: the rules by which each changes a warp's registers (sass_warp.py).

The integer ones are here, by opcode, as far as the kernels use them to find their way. The result of any other is not
known.
"""

from __future__ import annotations

import re
import struct

from sass import Instruction
from sass_warp import MASK, Missing, Rule, Value, Warp, both, combined, signed

COMPARISONS = ("LT", "EQ", "LE", "GT", "NE", "GE")
NUMBER = re.compile(r"-?[0-9.]+(e-?[0-9]+)?$")
MODES = {"GE": lambda a, b: a >= b, "GT": lambda a, b: a > b, "LE": lambda a, b: a <= b,
         "LT": lambda a, b: a < b, "EQ": lambda a, b: a == b, "NE": lambda a, b: a != b}  # fmt: skip


def execute(warp: Warp, instruction: Instruction, mask: int) -> None:
    """What the instruction writes in the lanes of a mask; it is no branch."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    if opcode in ("VOTE", "VOTEU"):
        vote(warp, instruction, mask)
    elif opcode == "SYNCS" and "TRYWAIT" in modifiers:
        warp.apply(arrived, instruction, mask)
    elif opcode in ("LD", "LDG", "ATOM", "ATOMG") and "STRONG" in modifiers:
        warp.apply(forget_awaited, instruction, mask)
    else:
        warp.apply(RULES.get(opcode) or RULES.get(opcode.removeprefix("U")) or forget, instruction, mask)


def forget(warp: Warp, instruction: Instruction) -> None:
    """Of an instruction without a rule, and of one whose predicate is unknown."""
    warp.forget(instruction, Missing.UNKNOWN)


def forget_awaited(warp: Warp, instruction: Instruction) -> None:
    """Of a load of what another block writes, and of one whose predicate hangs on that."""
    warp.forget(instruction, Missing.AWAITED)


def arrived(warp: Warp, instruction: Instruction) -> None:
    """What is waited for is there at once."""
    warp.write(instruction.operands[0].name, 1)


def vote(warp: Warp, instruction: Instruction, mask: int) -> None:
    """VOTE: whether all or any of the active lanes say so, and which do."""
    operands = instruction.operands
    votes = warp.each(operands[-1], mask)
    disjunction = "ANY" in instruction.modifiers
    verdict: Value = int(not disjunction)
    for value in votes.values():
        verdict = both(verdict, value, disjunction)
    missing = combined(list(votes.values()))
    ballot: Value = sum(known([value])[0] << lane for lane, value in votes.items()) if missing is None else missing
    results = [verdict] if operands[0].predicate else [ballot, verdict]

    def rule(warp: Warp, instruction: Instruction) -> None:
        for operand, result in zip(operands, results, strict=False):
            warp.write(operand.name, result if "ALL" in instruction.modifiers or disjunction else Missing.UNKNOWN)

    warp.apply(rule, instruction, mask)


def table(lut: int, inputs: list[int]) -> int:
    """LOP3's result for three words: bit a * 4 + b * 2 + c of `lut` for each bit."""
    result = 0
    for row in range(8):
        if lut >> row & 1:
            term = MASK
            for place, word in zip((2, 1, 0), inputs, strict=True):
                term &= word if row >> place & 1 else ~word
            result |= term
    return result & MASK


def float_bits(value: float) -> int:
    """As float32, rounded to nearest."""
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def bits_float(bits: int) -> float:
    """The float32 that has these bits."""
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def rounded_up(number: int) -> int:
    """The bits of the smallest float32 that is not below a number that is not negative."""
    bits = float_bits(float(number))
    return bits if bits_float(bits) >= number else bits + 1


def permuted(a: int, selector: int, b: int) -> int:
    """PRMT: four bytes out of eight, each by four bits of the selector, of which the highest replicates the sign."""
    source, result = a | b << 32, 0
    for place in range(4):
        chosen = selector >> 4 * place & 15
        byte = source >> 8 * (chosen & 7) & 255
        if chosen & 8:
            byte = 255 if byte & 128 else 0
        result |= byte << 8 * place
    return result


# ---------------------------------------------------------------------------------------------------------------------
# Instructions, by opcode; those for the uniform registers have a U before it
# ---------------------------------------------------------------------------------------------------------------------


def finish(warp: Warp, instruction: Instruction, inputs: list[Value], total: int, width: int = 1) -> None:
    """Writes a sum and its carry, or that they are not known."""
    carries = instruction.arithmetic[0]
    missing = combined(inputs)
    warp.write(instruction.operands[0].name, total if missing is None else missing, width)
    for place, operand in enumerate(carries):
        carry = int(total >> 32 > place) if width == 1 else total >> 64 & 1
        warp.write(operand.name, carry if missing is None else missing)


def known(values: list[Value]) -> list[int]:
    """0 for what is not known: for sums that are then thrown away."""
    return [0 if isinstance(value, Missing) else value for value in values]


def brought_in(warp: Warp, instruction: Instruction) -> list[Value]:
    """The carries that an instruction adds, which without X are none."""
    return [warp.read(operand) for operand in instruction.arithmetic[2]] if "X" in instruction.modifiers else []


def multiply_add(warp: Warp, instruction: Instruction) -> None:
    """IMAD: WIDE adds 64 bits to a product of 64, HI takes the upper half of that."""
    sources = instruction.arithmetic[1]
    a, b = warp.read(sources[0]), warp.read(sources[1])
    unsigned = "U32" in instruction.modifiers
    long = "WIDE" in instruction.modifiers or "HI" in instruction.modifiers
    c = warp.wide(sources[2]) if long else warp.read(sources[2])
    inputs = [a, b, c, *brought_in(warp, instruction)]
    x, y, z, *carries = known(inputs)
    if long:
        x, y = (word & MASK if unsigned else signed(word & MASK) for word in (x, y))
    total = x * y + z + sum(carries)
    if "HI" in instruction.modifiers:
        finish(warp, instruction, inputs, total >> 32 & MASK)
    else:
        finish(warp, instruction, inputs, total, width=2 if long else 1)


def add(warp: Warp, instruction: Instruction) -> None:
    """IADD3 and VIADD."""
    inputs = [warp.read(operand) for operand in instruction.arithmetic[1]] + brought_in(warp, instruction)
    finish(warp, instruction, inputs, sum(known(inputs)))


def shift_add(warp: Warp, instruction: Instruction) -> None:
    """LEA: one source, shifted, plus another; HI takes the upper word of the shifted one."""
    sources = instruction.arithmetic[1]
    modifiers = instruction.modifiers
    low, addend = warp.read(sources[0]), warp.read(sources[1])
    upper: Value = 0
    if "HI" in modifiers and "SX32" in modifiers:
        upper = low if isinstance(low, Missing) else (MASK if low >> 31 & 1 else 0)
    elif "HI" in modifiers:
        upper = warp.read(sources[2])
    inputs = [low, addend, upper, warp.read(sources[-1]), *brought_in(warp, instruction)]
    a, b, c, shift, *carries = known(inputs)
    if "HI" in modifiers:
        shifted = ((c & MASK) << 32 | a & MASK) << (shift & 31) >> 32 & MASK
    else:
        shifted = a << (shift & 31) & MASK
    finish(warp, instruction, inputs, shifted + b + sum(carries))


def logic(warp: Warp, instruction: Instruction) -> None:
    """LOP3: a predicate, if it has one, says whether the result is not 0."""
    operands = list(instruction.operands)
    tests = [operands.pop(0)] if operands[0].predicate else []
    lut = operands[4].number
    inputs = [warp.read(operand) for operand in operands[1:4]]
    used = [value for place, value in enumerate(inputs) if depends(lut, 2 - place)]
    missing = combined(used)
    result: Value = missing if missing is not None else table(lut, known(inputs))
    warp.write(operands[0].name, result)
    for test in tests:
        differs: Value = result if isinstance(result, Missing) else int(result != 0)
        warp.write(test.name, both(differs, warp.read(operands[5]), disjunction="PAND" not in instruction.modifiers))


def depends(lut: int, place: int) -> bool:
    """Whether a table of three inputs depends on the one at a place."""
    return any((lut >> row ^ lut >> (row ^ 1 << place)) & 1 for row in range(8))


def predicate_logic(warp: Warp, instruction: Instruction) -> None:
    """PLOP3: two tables of three predicates."""
    operands = instruction.operands
    inputs = [warp.read(operand) for operand in operands[2:5]]
    for target, lut in zip(operands[:2], operands[5:7], strict=True):
        results = {
            lut.number >> row & 1
            for row in range(8)
            if all(isinstance(value, Missing) or value == row >> 2 - place & 1 for place, value in enumerate(inputs))
        }
        missing = combined(inputs) or Missing.UNKNOWN
        warp.write(target.name, results.pop() if len(results) == 1 else missing)


def compare(warp: Warp, instruction: Instruction) -> None:
    """ISETP. With EX the upper half of a comparison of 64 bits: the last predicate is the lower half's."""
    modifiers, operands = instruction.modifiers, instruction.operands
    mode = next(modifier for modifier in modifiers if modifier in COMPARISONS)
    a, b = warp.read(operands[2]), warp.read(operands[3])
    result = combined([a, b])
    outcome: Value
    if result is not None:
        outcome = result
    else:
        x, y = (value & MASK for value in known([a, b]))
        if "U32" not in modifiers:
            x, y = signed(x), signed(y)
        outcome = warp.read(operands[5]) if "EX" in modifiers and x == y else int(MODES[mode](x, y))
    opposite: Value = outcome if isinstance(outcome, Missing) else 1 - outcome
    for target, value in ((operands[0], outcome), (operands[1], opposite)):
        if "XOR" in modifiers:
            other = warp.read(operands[4])
            missing = combined([value, other])
            warp.write(target.name, known([value])[0] ^ known([other])[0] if missing is None else missing)
        else:
            warp.write(target.name, both(value, warp.read(operands[4]), disjunction="OR" in modifiers))


def shift(warp: Warp, instruction: Instruction) -> None:
    """SHF: a funnel of two words. HI: the upper one of the result."""
    modifiers = instruction.modifiers
    inputs = [warp.read(operand) for operand in instruction.operands[1:4]]
    low, amount, high = known(inputs)
    by = amount & 31 if "W" in modifiers else min(amount, 64 if "U64" in modifiers or "S64" in modifiers else 32)
    pair = high << 32 | low
    if "L" in modifiers:
        result = pair << by
    else:
        result = signed(pair, 64) >> by if "S32" in modifiers or "S64" in modifiers else pair >> by
    if "HI" in modifiers:
        result >>= 32
    finish(warp, instruction, inputs, result & MASK)


def select(warp: Warp, instruction: Instruction) -> None:
    """SEL, or with MNMX in its name the lesser or the greater of two."""
    target, a, b, predicate = instruction.operands
    first = warp.read(predicate)
    if isinstance(first, Missing):
        warp.write(target.name, first)
        return
    if "MNMX" not in instruction.opcode:
        warp.write(target.name, warp.read(a if first else b))
        return
    inputs = [warp.read(a), warp.read(b)]
    order = (lambda value: value) if "U32" in instruction.modifiers else signed
    finish(warp, instruction, inputs, (min if first else max)(known(inputs), key=order))


def permute(warp: Warp, instruction: Instruction) -> None:
    """PRMT, known where the bytes that are taken are."""
    inputs = [warp.read(operand) for operand in instruction.operands[1:4]]
    selector = inputs[1]
    if not isinstance(selector, Missing):
        chosen = {selector >> 4 * place & 7 for place in range(4)}
        used = [inputs[place] for place, first in ((0, 0), (2, 4)) if chosen & set(range(first, first + 4))]
        if combined(used) is None:
            warp.write(instruction.operands[0].name, permuted(*known(inputs)))
            return
        inputs = used
    warp.write(instruction.operands[0].name, combined(inputs) or Missing.UNKNOWN)


def move(warp: Warp, instruction: Instruction) -> None:
    """MOV, and to the uniform registers R2UR."""
    if instruction.operands[0].predicate:
        warp.forget(instruction, Missing.UNKNOWN)
        return
    warp.write(instruction.operands[0].name, warp.read(instruction.operands[1]))


def move_halves(warp: Warp, instruction: Instruction) -> None:
    """HFMA2, where the compiler makes a constant with it: 0 times 0 and two of float16, the upper one first."""
    _, a, b, *halves = instruction.operands
    if (a.name, b.name) != ("RZ", "RZ") or not all(NUMBER.match(half.text) for half in halves):
        warp.forget(instruction, Missing.UNKNOWN)
        return
    high, low = (int.from_bytes(struct.pack("<e", float(half.text)), "little") for half in halves)
    warp.write(instruction.operands[0].name, high << 16 | low)


def load_constant(warp: Warp, instruction: Instruction) -> None:
    """LDC and ULDC."""
    modifiers = instruction.modifiers
    size = next((int(name[1:]) // 8 for name in modifiers if name[0] in "US" and name[1:].isdigit()), 4)
    size = 8 if "64" in modifiers else size
    source = instruction.operands[1]
    value = warp.constant(source, size, sign=any(name in ("S8", "S16") for name in modifiers))
    warp.write(instruction.operands[0].name, value, width=2 if size == 8 else 1)


def load_global(warp: Warp, instruction: Instruction) -> None:
    """LDG of whole words, from where the launch says what the GPU's memory holds."""
    warp.forget(instruction, Missing.UNKNOWN)
    modifiers = instruction.modifiers
    target, source = (operand for operand in instruction.operands if not operand.predicate)
    if source.kind != "memory" or {"U8", "S8", "U16", "S16"} & set(modifiers):
        return
    low, high = warp.raw(source.name), warp.raw(source.name, high=True)
    if not isinstance(low, Missing) and not isinstance(high, Missing):
        words = 4 if "128" in modifiers else 2 if "64" in modifiers else 1
        value = warp.launch.loaded((high << 32 | low) + source.number, 4 * words)
        warp.write(target.name, value, words)


def special(warp: Warp, instruction: Instruction) -> None:
    """S2R and CS2R: the warp is the first of the first block; clocks and the like are unknown."""
    name = instruction.operands[1].name
    first = name.startswith(("SR_TID.", "SR_CTAID.", "SR_CgaCtaId", "SRZ"))
    value: Value = warp.lane if instruction.of_lane else 0 if first else Missing.UNKNOWN
    wide = instruction.opcode == "CS2R" and "32" not in instruction.modifiers
    warp.write(instruction.operands[0].name, value, width=2 if wide else 1)


def pack_predicates(warp: Warp, instruction: Instruction) -> None:
    """P2R."""
    target, _, base, mask = instruction.operands
    predicates = {bit: warp.raw(f"P{bit}") for bit in range(7) if mask.number >> bit & 1}
    inputs = [warp.read(base), *predicates.values()]
    packed = sum(known([value])[0] << bit for bit, value in predicates.items())
    finish(warp, instruction, inputs, known(inputs)[0] & ~mask.number | packed)


def unpack_predicates(warp: Warp, instruction: Instruction) -> None:
    """R2P."""
    _, source, mask = instruction.operands
    value = warp.read(source)
    for bit in range(7):
        if mask.number >> bit & 1:
            warp.write(f"P{bit}", value if isinstance(value, Missing) else value >> bit & 1)


def exchange(warp: Warp, instruction: Instruction) -> None:
    """SHFL: known where each lane gets its own value, which a kernel so holds in a register, or all have the same."""
    _, target, source, distance, _ = instruction.operands
    own = "BFLY" in instruction.modifiers and warp.read(distance) == 0
    if own or not isinstance(warp.registers.get(source.name), tuple):
        warp.write(target.name, warp.read(source))
    else:
        warp.forget(instruction, Missing.UNKNOWN)


def convert(warp: Warp, instruction: Instruction) -> None:
    """Of one word; of floating point what a division of integers needs: I2F.RP, MUFU.RCP, F2I.TRUNC."""
    opcode, modifiers = instruction.opcode, instruction.modifiers
    source = instruction.operands[-1]
    value = warp.read(source)
    result: Value = Missing.UNKNOWN
    if isinstance(value, Missing):
        result = value
    elif source.signs or "64" in modifiers or "F64" in modifiers:
        warp.forget(instruction, Missing.UNKNOWN)
        return
    elif opcode == "IABS":
        result = abs(signed(value & MASK))
    elif opcode in ("POPC", "UPOPC"):
        result = bin(value & MASK).count("1")
    elif opcode == "I2F" and "RP" in modifiers and value < 1 << 31:
        result = rounded_up(value)
    elif opcode == "MUFU" and "RCP" in modifiers and bits_float(value) != 0:
        result = float_bits(1.0 / bits_float(value))
    elif opcode == "F2I" and "TRUNC" in modifiers and 0 <= bits_float(value) < 1 << 32:
        result = int(bits_float(value))
    warp.write(instruction.operands[0].name, result)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("IADD3", "VIADD", "IADD"), add),
    **dict.fromkeys(("SEL", "IMNMX", "VIMNMX"), select),
    **dict.fromkeys(("MOV", "R2UR"), move),
    **dict.fromkeys(("S2R", "S2UR", "CS2R"), special),
    **dict.fromkeys(("IABS", "POPC", "I2F", "MUFU", "F2I"), convert),
    "IMAD": multiply_add,
    "LEA": shift_add,
    "LOP3": logic,
    "PLOP3": predicate_logic,
    "ISETP": compare,
    "SHF": shift,
    "SHFL": exchange,
    "PRMT": permute,
    "HFMA2": move_halves,
    "LDC": load_constant,
    "LDG": load_global,
    "P2R": pack_predicates,
    "R2P": unpack_predicates,
}
