"""Memory of a call: what autograd keeps of it, and its peak, on the CPU in a process of its own.

kept: the bytes of the storages that autograd saves from forward to backward, each once, without those of the module's
parameters and buffers and of the inputs, which are there anyway.

peak: on the CPU the most that is resident during one call beyond what is resident before it, when everything is
imported, module and inputs are made, and a tiny GRU of the same kind has run; it holds the gradients, what autograd
keeps, and whatever is needed for a while; for gru_ext also the scratch memory that its threads keep for the next call.
On CUDA the most that torch's allocator has handed out during the call beyond what it had before.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gru_ext
from gru_ext.measure.calls import call, tensors_in
from gru_ext.measure.timing import contestants
from gru_ext.measure.workloads import Workload

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
PEAK_RESET = "5"  # what Linux wants written to clear_refs for the peak to be counted anew
MIB = 2**20
TINY = 2  # every size of the GRU that runs first


@dataclass(frozen=True)
class Peak:
    """The peak of one call.

    Attributes:
        bytes: beyond what was there before
        exact: False where the system cannot count the peak anew for the call, as Linux can: then it is the rise of the
            process's own peak, which is too small where importing and making the inputs needed more for a while
    """

    bytes: int
    exact: bool


def kept_bytes(module: nn.Module, inputs: tuple[Any, ...]) -> int:
    """What autograd keeps of one forward pass."""
    there_anyway = {
        tensor.untyped_storage().data_ptr()
        for tensor in (*module.parameters(), *module.buffers(), *tensors_in(inputs))
        if tensor.layout == torch.strided
    }
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.layout == torch.strided:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = module(*inputs)
    kept = sum(size for address, size in storages.items() if address not in there_anyway)
    del output  # what is saved has lived until here, so that no two storages had the same address
    return kept


def peak(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> Peak:
    """The peak of one call, on the CPU in a fresh process with as many threads as here.

    Raises:
        RuntimeError: that process failed, or module and inputs cannot be handed to it; the message says why.
    """
    devices = {tensor.device for tensor in (*module.parameters(), *tensors_in(inputs))}
    if any(device.type == "cuda" for device in devices):
        return Peak(_cuda_peak(module, inputs, training, devices), True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "call.pt"
        try:
            torch.save((module, inputs, training, torch.get_num_threads()), path)
        except Exception as error:  # whatever pickle meets in a user's module
            raise RuntimeError(f"the module cannot be handed to another process: {error}") from error
        program = "import sys; sys.path[:0] = eval(sys.argv[1]); from gru_ext.measure import memory; memory.main()"
        done = subprocess.run(
            [sys.executable, "-c", program, repr(sys.path), str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise RuntimeError(f"the process that measures the peak failed: {last}")
    return Peak(**json.loads(done.stdout.splitlines()[-1]))


def compared(workload: Workload, seed: int = 0) -> dict[str, Any]:
    """What torch.nn.GRU and gru_ext.GRU take in a training step, by MemoryMeasurement's columns.

    Raises:
        RuntimeError: as :func:`peak`
    """
    modules, data = contestants(workload, seed)
    (data.data if isinstance(data, PackedSequence) else data).requires_grad_()
    columns: dict[str, Any] = {"exact": 1}
    for name, module in zip(("torch", "gru_ext"), modules, strict=True):
        measured = peak(module, (data,), True)
        columns |= {f"{name}_peak_mib": measured.bytes / MIB, f"{name}_kept_mib": kept_bytes(module, (data,)) / MIB}
        columns["exact"] &= int(measured.exact)
    return columns


def main() -> None:
    """The other process: reads the call from the file that the last argument names, and prints the peak."""
    # The file is our own, written a moment ago.
    module, inputs, training, threads = torch.load(sys.argv[-1], weights_only=False)
    torch.set_num_threads(threads)
    for kind in (nn.GRU, gru_ext.GRU):
        call(kind(TINY, TINY), (torch.ones(TINY, TINY, TINY),), True)
    print(json.dumps(vars(_resident_peak(module, inputs, training))))


def _resident_peak(module: nn.Module, inputs: tuple[Any, ...], training: bool) -> Peak:
    try:
        CLEAR_REFS.write_text(PEAK_RESET, encoding="ascii")
        before = resident("VmRSS")
        call(module, inputs, training)
        return Peak(resident("VmHWM") - before, True)
    except OSError:
        before = peak_so_far()
        call(module, inputs, training)
        return Peak(peak_so_far() - before, False)


def _cuda_peak(module: nn.Module, inputs: tuple[Any, ...], training: bool, devices: Iterable[torch.device]) -> int:
    call(module, inputs, training)  # cuDNN's and our own first calls take what later ones keep
    among = [device for device in devices if device.type == "cuda"]
    for device in among:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    before = sum(torch.cuda.memory_allocated(device) for device in among)
    call(module, inputs, training)
    return sum(torch.cuda.max_memory_allocated(device) for device in among) - before


def resident(field: str) -> int:
    """VmRSS, resident now, or VmHWM, its peak since the last reset, in bytes. Raises OSError where Linux is not."""
    for line in STATUS.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{STATUS} has no {field}")


def peak_so_far() -> int:
    """The peak since the process started, in bytes, where there is no /proc to ask."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
