"""Versions, what was built, SIMD targets, GPUs, and the path each device takes."""

import argparse
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

import gru_ext
from gru_ext import _C, _build

# An example: T, B, I, H.
EXAMPLE = (128, 32, 256, 256)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(arguments: argparse.Namespace) -> int:
    """Prints the report."""
    for line in lines():
        print(line)
    return 0


def lines() -> Iterator[str]:
    """The report, line by line."""
    build = _C.build_info()
    yield f"gru_ext        {gru_ext.__version__}"
    yield f"torch          {torch.__version__} (built for {build['torch_version']})"
    yield f"Python         {platform.python_version()} (built for {build['python_version']})"
    yield f"compiler       {build['compiler']}"
    yield f"SIMD targets   {', '.join(_C.cpu_targets())}"
    forced = os.environ.get("GRU_EXT_SIMD")
    yield f"SIMD in use    {_C.cpu_target()}" + (f" (GRU_EXT_SIMD={forced})" if forced else "")
    yield f"threads        {torch.get_num_threads()}"
    if build["with_cuda"]:
        limit = f", spin limit {build['spin_limit']}" if build["spin_limit"] else ""
        yield f"CUDA           built for {build['cuda_version']}, architectures {build['cuda_arch_list']}{limit}"
    else:
        config = _build.read_config(Path(_C.__file__).with_suffix(".json"))
        yield f"CUDA           not built: {config['without_cuda']}"
    yield from _gpus()
    yield from _paths()


def _gpus() -> Iterator[str]:
    count = torch.cuda.device_count()
    if count == 0:
        yield "GPUs           none visible to torch"
    for index in range(count):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        yield f"GPU {index}          {properties.name}, sm_{properties.major}{properties.minor}, {memory:.0f} GiB"


def _paths() -> Iterator[str]:
    seq_len, batch, input_size, hidden_size = EXAMPLE
    yield f"paths for seq_len {seq_len}, batch {batch}, input_size {input_size}, hidden_size {hidden_size}:"
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    for device_type in devices:
        for dtype in (torch.float32, torch.bfloat16):
            module = gru_ext.GRU(input_size, hidden_size, device=device_type, dtype=dtype)
            name = str(dtype).removeprefix("torch.")
            for training in (False, True):
                plan = gru_ext.explain(module, (seq_len, batch, input_size), training=training)
                for of_pass in plan.layers[0].passes:
                    mode = "training" if training else "no grad"
                    source = f", chosen by {of_pass.source}" if of_pass.source else ""
                    runs = f"{of_pass.kernel}: {of_pass.reason}{source}"
                    yield f"  {device_type:4} {name:8} {mode:8} {of_pass.name:8}  {runs}"
