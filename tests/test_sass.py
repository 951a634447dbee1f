"""benchmarks/sass*.py: reading machine code, walking it, and the cycles that a walk takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import compile_report
import pytest
import sass
import step_path
from sass_clock import Clock
from sass_walk import Lost, Stride, Walk
from sass_warp import Launch, Missing, Warp

PRINTED = """
.text.kernel:
.L_x_1:
        //## File "b.cuh", line 7 inlined at "a.cu", line 3
        //## File "a.cu", line 3
        /*0000*/              @!P0 IMAD.WIDE R2, R5.reuse, 0x4, R6 ;     /* 0x0000000405027825 */
                                                                         /* 0x004fe200078e0206 */
        //## File "a.cu", line 9
        /*0010*/                   LDC.64 R4, c[0x0][R2+0x228] ;         /* 0x00008a0002047b82 */
                                                                         /* 0x000e2e0000000a00 */
"""


def listing(*lines: str) -> sass.Listing:
    """Of instructions, and of labels, which end in a colon."""
    made = sass.Listing()
    for line in lines:
        if line.endswith(":"):
            made.labels[line[:-1]] = len(made.instructions)
        else:
            place = len(made.instructions)
            made.instructions.append(sass.read_instruction(16 * place, line, sass.NO_SCOREBOARD * 0b1001 << 46))
    return made


def walk(*lines: str, constants: bytes = b"", memory: tuple[tuple[int, bytes], ...] = ()) -> tuple[list[Stride], Warp]:
    """What is issued, and the warp at the end."""
    warp = Warp(Launch(bytes(0x210) + constants, unset=0x210, block=(256, 1, 1), memory=memory))
    return list(Walk(listing(*lines), warp)), warp


def value(*lines: str, register: str = "R0") -> object:
    """What a register holds at the end."""
    return walk(*lines, "EXIT")[1].raw(register)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


def test_reads_instructions_control_words_and_source_lines() -> None:
    made = sass.read_listing(PRINTED)
    wide, load = made.instructions
    assert made.labels == {".text.kernel": 0, ".L_x_1": 0}
    assert (wide.opcode, wide.modifiers, wide.stall, wide.waits) == ("IMAD", ("WIDE",), 1, (2,))
    assert wide.guard is not None and (wide.guard.name, wide.guard.signs) == ("P0", "!")
    assert [operand.name for operand in wide.operands] == ["R2", "R5", "", "R6"]
    assert wide.source == (("b.cuh", 7), ("a.cu", 3))
    assert load.sets == 0 and load.reads == sass.NO_SCOREBOARD and load.source == (("a.cu", 9),)
    assert (load.operands[1].name, load.operands[1].number) == ("R2", 0x228)


# ---------------------------------------------------------------------------------------------------------------------
# Walking
# ---------------------------------------------------------------------------------------------------------------------


def test_a_loop_is_walked_as_often_as_the_parameters_say() -> None:
    strides, warp = walk(
        "MOV R0, RZ",
        ".loop:",
        "VIADD R0, R0, 0x1",
        "ISETP.GE.AND P0, PT, R0, c[0x0][0x210], PT",
        "@!P0 BRA `(.loop)",
        "EXIT",
        constants=(5).to_bytes(4, "little"),
    )
    assert warp.raw("R0") == 5
    assert len(strides) == 1 + 5 * 3 + 1 and sum(stride.jumped for stride in strides) == 4


def test_what_is_waited_for_is_there_at_the_first_poll() -> None:
    strides, _ = walk(
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R36+URZ], R37",
        "@!P0 BRA `(.slow)",
        ".poll:",
        "LDG.E.64.STRONG.GPU R4, desc[UR4][R2.64]",
        "ISETP.NE.AND P1, PT, R5, 0x3, PT",
        "@P1 BRA `(.poll)",
        "EXIT",
        ".slow:",
        "BRA `(.slow)",
    )
    assert [stride.jumped for stride in strides] == [False] * 6


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        (("LDS R4, [R2]", "ISETP.NE.AND P1, PT, R4, RZ, PT", "@P1 BRA `(.top)"), "something unknown"),
        (("LDG.E.STRONG.GPU R4, desc[UR4][R2.64]", "ISETP.NE.AND P1, PT, R4, RZ, PT", "@P1 EXIT"), "awaited"),
        (("@P3 EXIT",), "something unknown"),
        (("BRX R4 -0x10",), "where this leads"),
        (("CALL.REL.NOINC `(elsewhere)",), "outside"),
        (("NEWOP R0, R1", "RET.REL.NODEC R0 `(kernel)"), "returns to somewhere unknown"),
    ],
)
def test_no_branch_is_guessed(lines: tuple[str, ...], why: str) -> None:
    with pytest.raises(Lost, match=why):
        walk(".top:", *lines, "EXIT")


def test_calls_return_and_barriers_lead_where_the_warp_meets() -> None:
    strides, warp = walk(
        "MOV R20, 0x30",
        "CALL.REL.NOINC `($twice)",
        "MOV R0, 0x7",  # jumped over
        "BSSY B0, `(.met)",
        "BSYNC B0",
        "MOV R0, 0x8",  # jumped over
        ".met:",
        "EXIT",
        "$twice:",
        "IMAD.SHL.U32 R1, R20, 0x2, RZ",
        "RET.REL.NODEC R20 `(kernel)",
    )
    assert (warp.raw("R0"), warp.raw("R1"), len(strides)) == (Missing.UNKNOWN, 0x60, 7)


def test_numbers_are_ordinary_ones() -> None:
    start = ("LDS R4, [R2]", "ISETP.GT.U32.AND P1, PT, R4, 0x1ffffff, PT", "@P1 BRA `(.usual)")
    call, end = "CALL.REL.NOINC `($__rcp_slowpath)", (".usual:", "MOV R0, 0x1", "EXIT")
    function = ("$__rcp_slowpath:", "EXIT")
    assert value(*start, "MOV R20, 0x60", call, "BRA `(.usual)", *end, *function) == 1
    for skipped in (("@P2 BRA `(.usual)", call), (call.replace("_slowpath", ""),), ("MOV R0, RZ",), (call, "EXIT")):
        with pytest.raises(Lost, match="something unknown"):
            walk(*start, *skipped, *end, *function, "$__rcp:", "EXIT")


def test_lanes_that_part_meet_again() -> None:
    strides, warp = walk(
        "S2R R1, SR_TID.X",
        "BSSY B0, `(.met)",
        ".loop:",  # as often as a lane's number says, and once at least
        "VIADD R0, R1, 0xffffffff",
        "ISETP.GE.AND P0, PT, R0, 0x1, PT",
        "MOV R1, R0",
        "@P0 BRA `(.loop)",
        "BSYNC B0",
        ".met:",
        "VOTEU.ANY UP0, P0",
        "VOTE.ANY R2, PT, !P0",
        "LDS R3, [R9]",
        "EXIT",
    )
    issued = [stride.instruction.opcode for stride in strides]
    # Lanes 0 and 1 leave the loop together; then every lane comes to the meeting by itself.
    assert issued.count("MOV") == 31 and issued.count("BSYNC") == 31 and issued[-4:].count("EXIT") == 1
    assert [warp.registers[name] for name in ("UP0", "R2", "R3")] == [0, 0xFFFFFFFF, Missing.UNKNOWN]
    assert issued[-3:] == ["VOTE", "LDS", "EXIT"]


@pytest.mark.parametrize(
    "lines",
    [
        ("@P0 BRA `(.end)", "WARPSYNC.ALL", ".end:", "EXIT"),
        ("@P0 BRA `(.end)", "BRA.DIV UR4, `(.end)", "EXIT", ".end:", "EXIT"),
        ("BSYNC B4", "EXIT"),
    ],
)
def test_what_needs_the_whole_warp_is_not_passed_by_a_part(lines: tuple[str, ...]) -> None:
    walked = ("S2R R1, SR_LANEID", "ISETP.GE.AND P0, PT, R1, 0x10, PT", *lines)
    if "WARPSYNC.ALL" in lines:  # the others end, and it is whole
        assert len(walk(*walked)[0]) == 6
        return
    with pytest.raises(Lost):
        walk(*walked)


def test_integer_instructions() -> None:
    assert value("MOV R1, 0xfffffff9", "SHF.R.S32.HI R0, RZ, 0x1, R1") == 0xFFFFFFFC
    assert value("MOV R1, 0xfffffff9", "SHF.R.S32.HI R2, RZ, 0x1f, R1", "LEA.HI R0, R2, R1, RZ, 0x3") == 0
    assert value("MOV R1, 0xffffffff", "IADD3 R2, P0, R1, 0x1, RZ", "IADD3.X R0, RZ, RZ, RZ, P0, !PT") == 1
    assert value("MOV R1, 0x80000000", "LEA R2, P1, R1, RZ, 0x1", "IMAD.X R0, RZ, RZ, R2, P1") == 0
    assert value("MOV R4, 0xfffffffe", "IMAD.WIDE R0, R4, 0x3, RZ", register="R1") == 0xFFFFFFFF
    assert value("MOV R4, 0xfffffffe", "IMAD.WIDE.U32 R0, R4, 0x3, RZ", register="R1") == 2
    assert value("MOV R1, 0xabcd", "PRMT R0, R1, 0x9910, RZ") == 0xFFFFABCD
    assert value("MOV R1, 0xf0", "LOP3.LUT R0, R1, 0x3c, RZ, 0x3c, !PT") == 0xCC
    assert value("LOP3.LUT R0, R9, 0x3c, RZ, 0xcc, !PT") == 0x3C  # the first input does not matter
    assert value("LDS R0, [R9]", "@P6 MOV R0, 0x1") is Missing.UNKNOWN
    assert value("ISETP.NE.AND P0, PT, R9, RZ, !PT", "SEL R0, RZ, 0x1, P0") == 1  # false, whatever R9 is
    assert value("HFMA2.MMA R0, -RZ, RZ, 1.875, 5.9604644775390625e-08") == 0x3F800001
    assert value("HFMA2.MMA R0, -RZ, R9, 1.875, 0") is Missing.UNKNOWN
    assert value("HFMA2 R0, -RZ, RZ, +INF, 0") is Missing.UNKNOWN
    assert value("HFMA2.BF16_V2 R0, RZ, RZ, R9.H0_H0, R9.H0_H0") is Missing.UNKNOWN
    assert value("S2R R0, SR_CTAID.X", "LDC R0, c[0x0][R0]") == 256


def test_loads_of_what_memory_is_said_to_hold() -> None:
    sizes = b"".join(size.to_bytes(4, "little") for size in (8, 7, 6, 5))
    load = "LDG.E R4, desc[UR4][R2.64+0x4]"

    def loaded(*lines: str, first: int = 0x7F0A00000000) -> list[object]:
        start = ("MOV R2, 0x0", "MOV R3, 0x7f0a", "S2R R1, SR_TID.X", *lines, "EXIT")
        warp = walk(*start, memory=((first, sizes),))[1]
        return [warp.raw(f"R{number}") for number in (4, 5)]

    unknown = Missing.UNKNOWN
    assert loaded(load) == [7, unknown]
    assert loaded("MOV R2, 0xc", load.replace("0x4]", "-0x8]")) == [7, unknown]
    assert loaded("LDG.E.64.CONSTANT R4, desc[UR4][R2.64+0x8]") == [6, 5]
    # Beyond the end, before the beginning, at an address that is not known, part of a word, what another block writes.
    assert loaded(load.replace("0x4]", "0x10]")) == [unknown] * 2
    assert loaded(load.replace("0x4]", "0xc]").replace(".E ", ".E.64 ")) == [unknown] * 2
    assert loaded(load, first=0x7F0A00000008) == [unknown] * 2
    assert loaded("MOV R4, 0x1", "MOV R3, R9", load) == [unknown] * 2
    assert loaded("MOV R4, 0x1", load.replace(".E ", ".E.U16 ")) == [unknown] * 2
    assert loaded(load.replace(".E ", ".E.STRONG.GPU ")) == [Missing.AWAITED, unknown]
    # Each lane its own word; those that do not load keep what they have.
    lines = ("LOP3.LUT R1, R1, 0x3, RZ, 0xc0, !PT", "IMAD.WIDE.U32 R2, R1, 0x4, R2", "ISETP.NE.AND P0, PT, R1, RZ, PT")
    warp = walk(
        *("MOV R2, 0x0", "MOV R3, 0x7f0a", "S2R R1, SR_TID.X", *lines, "MOV R4, 0x9", f"@P0 {load[:-5]}]", "EXIT"),
        memory=((0x7F0A00000000, sizes),),
    )[1]
    assert warp.registers["R4"] == (9, 7, 6, 5) * 8


@pytest.mark.parametrize(("dividend", "divisor"), [(1000, 7), (6, 7), (2**31 - 1, 3), (518, 37)])
def test_the_compilers_division(dividend: int, divisor: int) -> None:
    quotient = value(
        f"MOV R1, {dividend:#x}",
        f"MOV R2, {divisor:#x}",
        "I2F.RP R3, R2",
        "MUFU.RCP R3, R3",
        "VIADD R4, R3, 0xffffffe",
        "F2I.FTZ.U32.TRUNC.NTZ R5, R4",
        "IMAD.MOV.U32 R4, RZ, RZ, RZ",
        "IMAD.MOV R6, RZ, RZ, -R5",
        "IMAD R6, R6, R2, RZ",
        "IMAD.HI.U32 R5, R5, R6, R4",
        "IMAD.HI.U32 R0, R5, R1, RZ",
        "IMAD.MOV R6, RZ, RZ, -R0",
        "IMAD R6, R2, R6, R1",
        "ISETP.GT.U32.AND P0, PT, R2, R6, PT",
        "@!P0 IMAD.IADD R6, R6, 0x1, -R2",
        "@!P0 VIADD R0, R0, 0x1",
        "ISETP.GE.U32.AND P0, PT, R6, R2, PT",
        "@P0 VIADD R0, R0, 0x1",
    )
    assert quotient == dividend // divisor


# ---------------------------------------------------------------------------------------------------------------------
# Cycles
# ---------------------------------------------------------------------------------------------------------------------


def starts(*lines: str, done: tuple[bool, ...] = ()) -> list[float]:
    """The cycles in which instructions are issued, of which each stalls for one; every LDGDEPBAR sets scoreboard 0."""
    clock, cycles = Clock(), []
    for number, instruction in enumerate(listing(*lines).instructions):
        commits = instruction.opcode == "LDGDEPBAR"
        made = dataclasses.replace(instruction, sets=0 if commits else sass.NO_SCOREBOARD, waits=())
        clock.issue(Stride(made, done[number] if done else True, jumped=False))
        cycles.append(clock.now - 1)
    return cycles


def test_groups_of_copies_are_waited_for_in_their_order() -> None:
    copy, commit = "LDGSTS.E.BYPASS.128 [R7+0x1000], desc[UR8][R24.64], P1", "LDGDEPBAR"

    def wait(most: int) -> str:
        return f"DEPBAR.LE SB0, {most:#x}"

    # Copies at 0, 1 and 3, in two groups.
    two = (copy, copy, commit, copy, commit)
    assert starts(*two, wait(2), wait(1), wait(0), wait(0))[5:] == [5, 601, 603, 604]
    assert starts(*two, wait(0))[-1] == 603
    # A group without copies is there with those before it; what is not in a group is not waited for.
    assert starts(*two, commit, wait(1), wait(0))[-2:] == [603, 604]
    assert starts(copy, wait(0))[-1] == 1 and starts(commit, wait(0))[-1] == 1
    assert starts(copy, commit, wait(0), done=(False, True, True))[-1] == 2
    assert starts("DEPBAR.LE SB1, 0x0", copy, commit, "DEPBAR.LE SB1, 0x0")[-1] == 3
    with pytest.raises(Lost, match="waits for is not known"):
        starts("DEPBAR {3,2}")


COPIES = """
#include "cuda/primitives.h"
template <int kPending>
__global__ void copies(const float* from, float* to, int count, int valid) {
  float* const shared = reinterpret_cast<float*>(gru::cuda::shared_memory());
  for (int i = 0; i < count; ++i) {
    gru::cuda::copy_async<4>(shared + threadIdx.x, from + i, valid);
    gru::cuda::copy_async<16>(shared + 256 + 4 * threadIdx.x, from + 4 * i);
    gru::cuda::copy_async_commit();
    gru::cuda::copy_async_wait<kPending>();
    to[i] = shared[threadIdx.x];
  }
}
template __global__ void copies<0>(const float*, float*, int, int);
template __global__ void copies<1>(const float*, float*, int, int);
template __global__ void copies<3>(const float*, float*, int, int);
"""


@pytest.mark.slow
def test_copies_are_waited_for_as_the_compiler_has_it(tmp_path: Path) -> None:
    nvcc, nvdisasm = compile_report.find_nvcc(), step_path.find_nvdisasm()
    if nvcc is None or nvdisasm is None:
        pytest.skip("there is no nvcc, or no nvdisasm")
    source, cubin, count = tmp_path / "copies.cu", tmp_path / "copies.cubin", 40
    source.write_text(COPIES)
    assert compile_report.compile_one(nvcc, source, step_path.ARCHITECTURE, cubin)[0] == ""
    sizes, cycles = sass.constant_sizes(cubin), {}
    for name, text in sass.disassemble(nvdisasm, cubin).items():
        head = sizes[name] - 24
        constants = bytes(head + 16) + count.to_bytes(4, "little") + bytes(4)
        clock = Clock()
        for stride in Walk(sass.read_listing(text), Warp(Launch(constants, unset=head, block=(32, 1, 1)))):
            clock.issue(stride)
        cycles[int(name[len("_Z6copiesILi")])] = clock.now / count
    # Of pending + 1 groups the oldest is waited for: so many share the time from memory.
    assert set(cycles) == {0, 1, 3}
    assert 600 < cycles[0] < 760 and 300 < cycles[1] < 380 and 150 < cycles[3] < 190
