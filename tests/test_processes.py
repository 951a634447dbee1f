"""Threads, forks and time: concurrent use, use after fork, and memory over many iterations."""

from __future__ import annotations

import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import gate
import pytest
import torch
from processes import check_python
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext

CALLS = 25


def step(module: nn.Module, input: Tensor, lengths: list[int] | None) -> dict[str, Tensor]:
    """One forward and backward; gradients are returned, not accumulated, so that threads may share the module."""
    sequences = input if lengths is None else pack_padded_sequence(input, lengths)
    output, h_n = module(sequences)
    data = output if lengths is None else output.data
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(data.sum() + h_n.pow(2).sum(), list(parameters.values()))
    return {"output": data.detach(), "h_n": h_n.detach(), **dict(zip(parameters, gradients, strict=True))}


def test_eight_threads_at_once() -> None:
    """8 threads, each with sizes of its own and one module shared by all, get the bits that one thread gets."""
    shared = gru_ext.GRU(5, 33, 2, bidirectional=True)
    work = []
    for index in range(8):
        own = gru_ext.GRU(3 + index, 16 + 9 * index, dtype=(torch.float32, torch.bfloat16)[index % 2])
        lengths = [6, 4, 4, 1] if index % 3 == 0 else None
        dtype = own.weight_ih_l0.dtype
        work.append(
            [
                (own, torch.randn(6, 4, 3 + index).to(dtype), lengths),
                (shared, torch.randn(4, 3 + index, 5), None),
            ]
        )
    expected = [[step(*call) for call in calls] for calls in work]
    start = threading.Barrier(8)

    def repeat(index: int) -> list[list[dict[str, Tensor]]]:
        start.wait()
        return [[step(*call) for call in work[index]] for _ in range(CALLS)]

    with ThreadPoolExecutor(8) as pool:
        everything = list(pool.map(repeat, range(8)))
    for index, rounds in enumerate(everything):
        assert len(rounds) == CALLS
        for results in rounds:
            for result, wanted in zip(results, expected[index], strict=True):
                gate.assert_same_bits(result, wanted, f"thread {index}")


def test_the_interpreter_is_free_while_a_kernel_runs() -> None:
    """Another Python thread goes on during a long call: the kernels do not hold the interpreter lock."""
    module = gru_ext.GRU(64, 128)
    input = torch.randn(3000, 8, 64)
    ticks, done = 0, threading.Event()

    def call() -> None:
        with torch.no_grad():
            module(input)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks >= 3, f"only {ticks} ticks of the other thread"


FORK = """
import os, signal, sys, warnings
import torch, gru_ext
warnings.simplefilter("ignore")
threads_in_child, backward, (seq_len, batch, input_size, hidden_size) = {threads}, {backward}, {size}
torch.set_num_threads(2)
module = gru_ext.GRU(input_size, hidden_size)
input = torch.randn(seq_len, batch, input_size)

def compute():
    module.zero_grad()
    output, h_n = module(input)
    if backward:
        (output.sum() + h_n.sum()).backward()
    results = [output.detach(), h_n.detach()] + [p.grad for p in module.parameters() if p.grad is not None]
    return b"".join(result.numpy().tobytes() for result in results)

compute()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    signal.alarm(30)  # a hang ends here, with a status that the parent sees
    if threads_in_child:
        torch.set_num_threads(threads_in_child)
    os.write(writer, compute())
    os._exit(0)
os.close(writer)
got = b""
while chunk := os.read(reader, 1 << 20):
    got += chunk
status = os.waitpid(child, 0)[1]
if status:
    sys.exit(f"the child ended with status {{status}} (14: it hung)")
wanted = compute()
print("same" if got == wanted else "different")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forking a process with threads is tested on Linux only")
@pytest.mark.parametrize(
    ("threads", "backward", "size"),
    [
        pytest.param(1, True, (20, 16, 64, 128), id="one_thread"),
        pytest.param(0, False, (20, 16, 64, 128), id="threads_as_they_are"),
        pytest.param(0, True, (20, 8, 64, 128), id="threads_as_they_are_with_backward"),
    ],
)
def test_use_after_fork(threads: int, backward: bool, size: tuple[int, ...]) -> None:
    """A child forked after its parent used 2 threads computes the same bits and does not hang.

    torch's own operators hang in such a child from some 32,768 elements on, unless it is told to use one thread (as
    DataLoader's workers are): the OpenMP runtime does not survive a fork. Ours do survive it. So with the threads as
    they are, the output is kept small enough for the sum that torch computes of it.
    """
    printed = check_python(FORK.format(threads=threads, backward=backward, size=size), timeout=100)
    assert printed.strip() == "same"


MEMORY = """
import torch, gru_ext
from torch.nn.utils.rnn import pack_padded_sequence
torch.set_num_threads(2)
module = gru_ext.GRU(16, 64, 2, bidirectional=True)
small = gru_ext.GRU(16, 64).bfloat16()

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

def iterate(count):
    for index in range(count):
        batch = 1 + index % 7
        input = torch.randn(10, batch, 16, requires_grad=True)
        given = pack_padded_sequence(input, list(range(10, 10 - batch, -1))) if index % 2 else input
        output, h_n = module(given)
        h_n.sum().backward()
        with torch.no_grad():
            module(input)
        small(input.detach().bfloat16())[0].sum().backward()

iterate(100)
before = resident()
iterate(500)
print(resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/statm")
def test_memory_does_not_grow() -> None:
    """500 iterations after a warm-up of 100: less than 8 MB more (one leaked tensor a call would be 100 MB)."""
    grown = int(check_python(MEMORY, timeout=200))
    assert grown < 8 * 2**20, f"grew by {grown / 2**20:.1f} MB"


def test_results_do_not_keep_their_inputs_alive() -> None:
    """Without a graph nothing holds on to the arguments; with one, freeing the result frees what was kept."""
    module = gru_ext.GRU(3, 4)
    input = torch.randn(5, 2, 3)
    watched = weakref.ref(input)
    with torch.no_grad():
        output, _ = module(input)
    del input
    assert watched() is None
    input = torch.randn(5, 2, 3)
    watched = weakref.ref(input)
    output, h_n = module(input)
    output.sum().backward()
    del input, output, h_n
    assert watched() is None
