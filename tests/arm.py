"""The Arm kernels on this machine: arm/worker.cpp, cross-compiled into build/arm when it is stale, under qemu-user.

A ``Worker`` is such a process with one SIMD target in use. It stands in for gru_ext's operators: what csrc/torch does
for a layer on the CPU it does in Python, but for cutting sequences at resets and for ensembles.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import emulated
import torch
from torch import Tensor

from gru_ext import packed_weights
from gru_ext.ops import DTYPES, Arguments, saved_row

COMPILER, QEMU = "aarch64-linux-gnu-g++", "qemu-aarch64"
# Each target on the least processor that qemu has for it: a newer instruction is illegal there.
PROCESSORS = {"neon": "cortex-a53", "neon_bf16": "max"}
WITH_BYTE_DOTS = "neoverse-n1"  # where neon_dot takes neon's weights of bytes

ARM, CPU = emulated.TESTS / "arm", emulated.CSRC / "cpu"
BUILD = emulated.ROOT / "build" / "arm"
KINDS = {dtype: index for index, dtype in enumerate(DTYPES)}  # DataType of csrc/gru.h
FORMATS = (None, *packed_weights.FORMATS.values())  # WeightFormat, by the dtype of what is packed
# -Og: the kernels compile in half the time of -O1.
FLAGS = (
    "-std=c++17", "-Og", "-fopenmp", "-Wall", "-Wextra", "-Werror", f"-I{emulated.CSRC}", f"-include{ARM / 'faults.h'}",
)  # fmt: skip
# Each with its own flags, the slowest to compile first.
SOURCES: dict[str, tuple[Path, tuple[str, ...]]] = {
    **{name: (CPU / f"target_{name}.cpp", ()) for name in ("neon_bf16", "neon", "portable", "neon_dot")},
    **{name: (CPU / f"{name}.cpp", ()) for name in ("phases", "plan", "processor", "threads", "workspace")},
    "worker": (ARM / "worker.cpp", ()),
    "bytes": (ARM / "bytes.cpp", ()),
    "byte_dots": (ARM / "bytes.cpp", ("-march=armv8.2-a+dotprod", "-DGRU_BYTE_DOT")),
}


def missing() -> str:
    """What the worker cannot do without; "" when it is all there."""
    absent = [name for name in (COMPILER, QEMU) if shutil.which(name) is None]
    return f"there is no {' and no '.join(absent)} on PATH (make arm-tools)" if absent else ""


def program() -> Path:
    """The worker, built if it is stale."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [path for folder in (emulated.CSRC, ARM) for path in folder.rglob("*") if path.is_file()]
        everything = b"".join(path.read_bytes() for path in sorted([*files, emulated.TESTS / "guarded.h"]))
        digest = hashlib.sha256(everything).hexdigest()

        def compiled(name: str) -> str:
            source, flags = SOURCES[name]
            return emulated.update(BUILD / f"{name}.o", [COMPILER, *FLAGS, *flags, "-c", str(source)], digest)

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compiled, SOURCES))
        return Path(emulated.update(BUILD / "worker", [COMPILER, "-static", "-fopenmp", *objects], digest))


def command(processor: str, *arguments: object) -> list[str]:
    """A run of the worker on a processor."""
    return [QEMU, "-cpu", processor, str(program()), *map(str, arguments)]


def bytes_of(tensor: Tensor) -> memoryview:
    """A contiguous tensor's own memory; a copy of another's."""
    return memoryview(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


class Worker:
    """A process that runs the passes of one target; ``fault`` is a number of arm/faults.h."""

    def __init__(self, target: str, processor: str = "", fault: int = 0) -> None:
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command(processor or PROCESSORS[target], target, fault),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def close(self) -> int:
        """Ends the process; returns its exit code."""
        self.process.communicate()
        self.errors.close()
        return self.process.returncode

    def run(self, numbers: Sequence[int], tensors: Sequence[Tensor | None], results: Sequence[Tensor | None]) -> None:
        """One request of arm/worker.cpp; results, which are contiguous, are sent as they are and then written."""
        assert self.process.stdin is not None and self.process.stdout is not None
        views = [None if tensor is None else bytes_of(tensor) for tensor in (*tensors, *results)]
        try:
            self.process.stdin.write(torch.tensor(numbers).numpy())
            for view in views:
                self.process.stdin.write((-1 if view is None else len(view)).to_bytes(8, "little", signed=True))
                if view is not None:
                    self.process.stdin.write(view)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # said below
        for view in views[len(tensors) :]:
            if view is not None and self.process.stdout.readinto(view) != len(view):
                code = self.process.wait()
                self.errors.seek(0)
                raise AssertionError(f"the worker ended with exit code {code}: {self.errors.read().decode()}")

    def forward(self, *values: Any) -> tuple[Tensor, Tensor, Tensor]:
        """As the operator: :class:`Arguments`, then whether to save."""
        *fields, save = values
        layer = Layer(Arguments(*fields))
        a, hidden_size, directions = layer.arguments, layer.hidden_size, layer.arguments.directions
        steps, row = a.input.shape[:-1], saved_row(hidden_size, a.input.dtype, "cpu", a.recompute)
        output, h_n = layer.memory(*steps, directions * hidden_size), layer.memory(*layer.hx.shape)
        saved = layer.memory(directions, *steps, row) if save else a.input.new_empty(0)
        for d in layer.passes():
            results = [output, h_n[d], saved[d] if save else None]
            self.run(*layer.request(0, d, [layer.hx[d]]), results)
        layer.hand_on(layer.hx, h_n)
        return output, h_n, saved

    def backward(
        self, grad_output: Tensor | None, grad_h_n: Tensor | None, saved: Tensor, needs: Sequence[bool], *values: Any
    ) -> list[Tensor]:
        """As the operator."""
        layer = Layer(Arguments(*values))
        a, hidden_size, directions = layer.arguments, layer.hidden_size, layer.arguments.directions
        each = (len(needs) - 3) // directions
        shapes = [a.input.shape, layer.hx.shape, (directions, *a.input.shape[:-1], hidden_size)]
        for first in range(0, len(a.weights), len(a.weights) // directions):
            matrices = [weight.shape for weight in a.weights[first : first + 2]]
            shapes += [*matrices, *([(3 * hidden_size,)] * (each - 2))]
        gradients = [layer.memory(*shape) if needed else None for shape, needed in zip(shapes, needs, strict=True)]
        if gradients[2] is not None:
            gradients[2].zero_()  # the passes write it at resets alone
        grad_h_n = None if grad_h_n is None else grad_h_n.contiguous()
        for d in layer.passes():
            states = [None if tensor is None else tensor[d] for tensor in (saved, grad_h_n, *gradients[1:3])]
            of_weights = gradients[3 + d * each : 3 + (d + 1) * each] + [None] * (4 - each)
            results = [*states[2:], gradients[0], *of_weights]
            if any(tensor is not None for tensor in results):
                self.run(*layer.request(1, d, [states[0], grad_output, states[1]]), results)
        layer.hand_on(grad_h_n, gradients[1])
        return [tensor for tensor in gradients if tensor is not None]


class Layer:
    """What Layer and Sequences of csrc/torch know of a layer."""

    def __init__(self, arguments: Arguments) -> None:
        assert arguments.members is None, "no ensembles"
        self.arguments = a = arguments
        self.hidden_size = int(a.hidden_size)
        self.format = FORMATS.index(a.weights[0].dtype) if a.weights[0].dim() == 5 else 0
        self.offsets = self.batch_sizes = self.sequences = None
        if a.batch_sizes is not None:
            self.batch_sizes = a.batch_sizes
            self.offsets = a.batch_sizes.cumsum(0) - a.batch_sizes
            self.seq_len, self.batch = len(a.batch_sizes), int(a.batch_sizes[0])
        else:
            self.batch, self.seq_len = a.input.shape[:2] if a.batch_first else reversed(a.input.shape[:2])
        shape = (a.directions, self.batch, self.hidden_size)
        self.hx = a.input.new_zeros(shape) if a.hx is None else a.hx.contiguous()
        self.strides = (1, self.seq_len) if a.batch_first else (self.batch, 1)
        if a.lengths is not None:
            lengths = a.lengths.long()
            self.seq_len = int(lengths.max())
            self.batch_sizes = (lengths > torch.arange(self.seq_len).unsqueeze(1)).sum(1)
            self.batch = int((lengths > 0).sum())
            self.sequences = lengths.argsort(descending=True, stable=True)[: self.batch].clone()

    def memory(self, *shape: int) -> Tensor:
        """NaN, or zeros where not all of it is to be written."""
        return self.arguments.input.new_full(shape, float("nan") if self.arguments.lengths is None else 0.0)

    def passes(self) -> range:
        """The directions, where there is a step."""
        return range(self.arguments.directions if self.seq_len > 0 else 0)

    def request(self, number: int, d: int, tensors: list[Tensor | None]) -> tuple[list[int], list[Tensor | None]]:
        """Numbers and tensors of pass ``number`` in direction d; ``tensors`` are its own."""
        a = self.arguments
        each = len(a.weights) // a.directions
        own = a.weights[d * each : (d + 1) * each]
        roles = each - (2 if own[0].dtype == torch.int8 else 0)
        weights, scales = [*own[:roles], *([None] * (4 - roles))], [*own[roles:], None, None][:2]
        reset_state, reset_strides = None, [0, 0]
        if a.reset_state is not None:
            reset_state = a.reset_state[d].contiguous()
            reset_strides = [stride * self.hidden_size for stride in self.strides]
        numbers = [number, KINDS[a.input.dtype], torch.get_num_threads(), self.seq_len, self.batch, *self.strides]
        numbers += [a.input.shape[-1], self.hidden_size, d, a.directions, int(a.recompute), *reset_strides, self.format]
        rows = [self.offsets, self.batch_sizes, self.sequences, a.resets]
        return numbers, [*rows, a.input, *weights, reset_state, *scales, *tensors]

    def hand_on(self, states: Tensor | None, to: Tensor | None) -> None:
        """Of sequences without a step."""
        if self.arguments.lengths is not None and states is not None and to is not None:
            empty = self.arguments.lengths == 0
            to[:, empty] = states[:, empty]
