"""Profiles: what adds up to what, what they say of a user's model, and the command from its command line."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import lifted
import pytest
import torch
from processes import python
from torch import nn
from torch.autograd import DeviceType
from torch.nn.utils.rnn import pack_padded_sequence

import gru_ext
from gru_ext.__main__ import main
from gru_ext.commands import profile as command
from gru_ext.measure import memory, nsight, profiling
from gru_ext.measure.floor import Machine
from gru_ext.measure.profiling import MemoryProfile, PassKey, PassProfile, Profile, profile
from gru_ext.measure.tables import profile_parts
from gru_ext.measure.workloads import GRUShape, Workload

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["--batch", "2", "--time", "5", "--input-size", "3", "--hidden-size", "8", "--calls", "2"]
MACHINE = Machine(lambda *_: 1e9, lambda *_: 1e9, lambda *_: 1e-9)  # operations and bytes a second, seconds a call


def quick(module: nn.Module, *inputs: Any, **options: Any) -> Profile:
    """A profile without the parts that take long."""
    return profile(module, *inputs, **{"machine": MACHINE, "calls": 3, "peaks": False, **options})


def test_names_of_ranges() -> None:
    """The parts of a name, packed and not; other names are none of ours."""
    parsed = PassKey.parse("gru_backward_avx512_bf16 bf16 T=7 B=3 I=5 H=9 D=2 rows=20, 2 threads over the batch")
    assert parsed == PassKey("backward", "bfloat16", 7, 20, 5, 9, 2)
    ensemble = PassKey.parse("gru_forward_cluster fp16 T=100 B=8 I=80 H=512 D=1 M=4")
    assert ensemble == PassKey("forward", "float16", 100, 800, 80, 512, 1, 4)
    for other in ("gru_ext::forward", "aten::gru", "gru_forward_avx2", "gru_sideways_avx2 fp32 T=1 B=1 I=1 H=1 D=1"):
        assert PassKey.parse(other) is None


@pytest.mark.parametrize("training", [False, True])
def test_what_adds_up(training: bool) -> None:
    """Shares and rest to one, operations to what explain says, the floor to its formula."""
    module = gru_ext.GRU(6, 9, 2, bidirectional=True)
    result = quick(module, torch.randn(7, 4, 6), training=training)
    expected = ["forward", "forward"] + (["backward", "backward"] if training else [])
    assert [of_pass.name for of_pass in result.passes] == expected and result.calls == 3
    assert all(of_pass.calls == 3 for of_pass in result.passes)
    assert sum(of_pass.share for of_pass in result.passes) + result.rest_ms / result.ms == pytest.approx(1)
    plan = gru_ext.explain(module, (7, 4, 6), training=training)
    operations = sum(of_pass.operations or 0 for of_pass in result.passes)
    assert operations == sum(layer.operations for layer in plan.layers)
    forward = result.passes[0]
    assert forward.operations == 2 * 2 * 28 * 27 * (6 + 9)
    assert forward.floor_ms == pytest.approx(forward.operations * 1e-6)  # at B = 4 arithmetic binds
    assert forward.of_floor == pytest.approx(forward.floor_ms / forward.ms_per_call)
    assert forward.gflops == pytest.approx(forward.operations / forward.ms_per_call * 1e-6)
    assert 0 < (forward.fastest_ms or 0) <= forward.ms_per_call


def test_bytes_by_hand() -> None:
    """W_hh at every step, everything else once; backward reads as much, and writes gradients."""
    module = gru_ext.GRU(6, 9, bias=False)
    forward, backward = quick(module, torch.randn(7, 4, 6)).passes
    weight_ih, weight_hh, rows = 27 * 6, 27 * 9, 28
    saved = rows * 5 * 9
    assert forward.bytes == 4 * (7 * weight_hh + weight_ih + rows * 6 + rows * 9 + saved)
    read = 7 * weight_hh + weight_ih + rows * 6 + rows * 9 + saved  # output's gradient in place of output
    assert backward.bytes == 4 * (read + rows * 6 + weight_ih + weight_hh)


def test_phases_are_of_the_same_calls() -> None:
    """The kernels' own time is nearly that of their ranges, and never more."""
    torch.set_num_threads(1)
    result = quick(gru_ext.GRU(64, 256), torch.randn(100, 8, 64))
    for of_pass in result.phases:
        (ranges,) = (of.ms for of in result.passes if of.name == of_pass.name)
        assert of_pass.calls == 3 and 0.7 * ranges < 1e3 * of_pass.seconds <= ranges


def test_packed_and_cell() -> None:
    """Both are told apart and have their operations."""
    packed = pack_padded_sequence(torch.randn(6, 3, 5), [6, 4, 1])
    (of_pass,) = quick(gru_ext.GRU(5, 7), packed, training=False).passes
    assert "rows=11" in of_pass.range and of_pass.operations == 2 * 11 * 21 * (5 + 7)
    (of_pass,) = quick(gru_ext.GRUCell(5, 7), torch.randn(3, 5), training=False).passes
    assert of_pass.operations == 2 * 3 * 21 * (5 + 7)


def test_users_module_is_left_as_it_is() -> None:
    """A model with nn.GRU is profiled with ours, and stays torch's, without gradients."""
    module, input = lifted.tagger()
    result = quick(module, input)
    assert type(module.encoder) is nn.GRU and all(parameter.grad is None for parameter in module.parameters())
    assert [of_pass.calls for of_pass in result.passes if of_pass.name == "forward"] == [3, 3, 12]
    assert result.rest_ms > 0 and all(result.memory[name].kept_bytes for name in ("gru_ext", "nn.GRU"))


def test_saved_bytes_are_what_is_kept() -> None:
    """What explain says is what autograd keeps of a layer, beside its input."""
    for recompute in (False, True):
        module = gru_ext.GRU(8, 64, recompute=recompute)
        ours = quick(module, torch.randn(50, 4, 8)).memory["gru_ext"]
        assert ours.kept_bytes == ours.saved_bytes == 50 * 4 * 64 * 4 * (1 if recompute else 5)
    assert quick(module, torch.randn(5, 4, 8), training=False).memory["gru_ext"].kept_bytes is None


def test_peak_in_a_process_of_its_own() -> None:
    """At least what is kept, and what keeps nothing peaks lower."""
    data = torch.randn(200, 64, 32)
    module = gru_ext.GRU(32, 64)
    training, inference = memory.peak(module, (data,), True), memory.peak(module, (data,), False)
    assert training.bytes > memory.kept_bytes(module, (data,)) > 2**23
    assert inference.bytes < training.bytes / 2
    with pytest.raises(RuntimeError, match="the process that measures the peak failed: .*size"):
        memory.peak(module, (data[..., :3],), False)
    module.extra = lambda: None  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="cannot be handed to another process"):
        memory.peak(module, (data,), False)


def test_trace(tmp_path: Path) -> None:
    """The file is a trace of Chrome's with the very names of the table in it."""
    path = tmp_path / "trace.json"
    result = quick(gru_ext.GRU(3, 8), torch.randn(5, 2, 3), trace=path)
    events = json.loads(path.read_text())["traceEvents"]
    names = {event.get("name") for event in events}
    for of_pass in result.passes:
        assert of_pass.range in names and re.fullmatch(r"gru_\w+ fp32 T=5 B=2 I=3 H=8 D=1, 1 thread.*", of_pass.range)
    assert {event["ph"] for event in events if event.get("name") == result.passes[0].range} == {"X"}


def test_interrupted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was completed is kept, and shown; before the first call there is nothing to keep. The exit code is 130."""

    def interrupt_after(*seconds: float) -> None:
        monkeypatch.setattr(profiling, "_timed", Mock(side_effect=[*seconds, KeyboardInterrupt]))

    interrupt_after(0.5, 0.5)
    result = quick(gru_ext.GRU(3, 8), torch.randn(5, 2, 3), calls=10)
    assert result.interrupted and result.calls == 2 and result.ms == 1000 and not result.memory
    for seconds, said in (([0.5], "interrupted: the figures are those of 1 "), ([], "before anything was measured")):
        interrupt_after(*seconds)
        assert main(["profile", *SMALL]) == 130
        assert said in "".join(capsys.readouterr())


def test_bad_arguments() -> None:
    """A sentence each."""
    with pytest.raises(ValueError, match="Linear has no GRU"):
        quick(nn.Linear(3, 3), torch.randn(2, 3))
    with pytest.raises(ValueError, match="calls must be at least 1, got 0"):
        quick(gru_ext.GRU(3, 8), torch.randn(5, 2, 3), calls=0)
    frozen = gru_ext.GRU(3, 8).requires_grad_(False)
    with pytest.raises(ValueError, match="nothing to train"):
        quick(frozen, torch.randn(5, 2, 3))


@pytest.mark.parametrize("width", [80, 120])
def test_width(width: int) -> None:
    """No line is wider than the terminal; what an old file does not have has no column."""
    result = quick(gru_ext.GRU(3, 8, 2), torch.randn(5, 2, 3))
    name = "gru_backward_avx512_bf16 bf16 T=1024 B=1024 I=1024 H=1024 D=2 rows=1000000, 2 threads over the hidden units"
    of_pass = PassProfile(name, "backward", 100, 123456.0, 0.75, 10**15, 10**13, 1000.0, "arithmetic")
    kept = MemoryProfile(10**11, None, None, True, "it could not be measured")
    old = Profile("cpu", True, 16, 100, 164608.0, (of_pass,), (), {"gru_ext": kept, "nn.GRU": kept})
    for profiled in (result, old):
        for part in profile_parts(profiled):
            for line in [part] if isinstance(part, str) else part.lines(width):
                assert len(line) <= width, line
    heads = [next(table for table in profile_parts(of) if not isinstance(table, str)) for of in (result, old)]
    assert ["fastest" in table.columns for table in heads] == [True, False]


def test_files_of_profiles() -> None:
    """The committed one is read, whatever its age; what is written is read again."""
    (report,) = json.loads((ROOT / "benchmarks" / "results" / "profile" / "cpu.json").read_text(encoding="utf-8"))
    assert Profile.from_dict(report).passes[0].ms > 0
    result = quick(gru_ext.GRU(3, 8), torch.randn(5, 2, 3))
    assert Profile.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_gpu_figures_are_those_of_the_kernels() -> None:
    """On a GPU a range's time is that of the kernels launched in it, not of launching them."""
    name = "gru_forward_cluster bf16 T=7 B=4 I=6 H=9 D=1"

    def event(device: DeviceType, cpu: float, gpu: float) -> SimpleNamespace:
        times = SimpleNamespace(start=0, elapsed_us=lambda: cpu)
        return SimpleNamespace(name=name, device_type=device, time_range=times, device_time_total=gpu)

    events = [event(DeviceType.CPU, 5, 300), event(DeviceType.CPU, 5, 100), event(DeviceType.CUDA, 400, 400)]
    plan = gru_ext.explain(gru_ext.GRU(6, 9, dtype=torch.bfloat16), (7, 4, 6), training=False)
    profiler: Any = SimpleNamespace(events=lambda: events)
    (of_pass,) = profiling._passes(profiler, [plan], 1.0, torch.device("cuda"))
    assert of_pass.calls == 2 and of_pass.ms == of_pass.share == pytest.approx(0.4)
    assert of_pass.fastest_ms == pytest.approx(0.1)
    assert of_pass.operations == 2 * 28 * 27 * 15 and of_pass.floor_ms is None and of_pass.of_floor is None


def test_nsight_commands() -> None:
    """The regular expression selects every kernel that we launch and none of torch's; arguments come back as given."""
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels = set(re.findall(r"__global__ void .*?(\w+_kernel)\(", sources, flags=re.DOTALL))
    kernels.remove("filling_kernel")  # only asked about
    assert len(kernels) == 7 and all(re.search(nsight.KERNELS, name) for name in kernels)
    for other in ("gemm_kernel", "vectorized_elementwise_kernel", "backward_cell_kernel_of_theirs"):
        assert not re.search(nsight.KERNELS, other)
    lines = nsight.commands(["--model", "a b:make", "--device", "cuda"])
    assert set(lines) == {"Nsight Systems", "Nsight Compute"}
    for line in lines.values():
        assert line.endswith("-m gru_ext profile --model 'a b:make' --device cuda --nvtx")
    assert "-lineinfo" in (ROOT / "setup.py").read_text()
    hints = "\n".join(nsight.lines([]))
    assert "hardware counters" in hints and max(len(line) for line in hints.splitlines() if " -m " not in line) <= 80
    argv = ["x", "profile", "--plot", "a.png", "--training", "--trace=b.json", "--json", "--batch", "3"]
    assert command.repeated(argv) == ["--training", "--batch", "3"]


def test_run_with_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under NVIDIA's tools: capture on, NVTX ranges, the calls, capture off; nothing of torch's profiler."""
    tools = Mock()
    tools.ranges.return_value = nullcontext()
    monkeypatch.setattr(command.Task, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "profiler", tools)
    monkeypatch.setattr(torch.autograd.profiler, "emit_nvtx", tools.ranges)
    monkeypatch.setattr(command, "call", tools.call)
    workload = Workload("float32", 1, "training", GRUShape(2, 2, 3, 4))
    task = command.Task("", workload, gru_ext.GRU(3, 4), (torch.randn(2, 2, 3),))
    assert command.run_with_ranges([task], 2) == 0
    assert [name for name, *_ in tools.mock_calls] == ["call", "start", "ranges", "call", "call", "stop"]


def test_command(tmp_path: Path) -> None:
    """Tables, trace and plot of a shape, in a process of its own."""
    trace, plot = tmp_path / "trace.json", tmp_path / "bars.svg"
    pytest.importorskip("matplotlib")
    files = ["--trace", str(trace), "--plot", str(plot)]
    done = python("-m", "gru_ext", "profile", *SMALL, "--training", "--no-memory", *files)
    assert done.returncode == 0 and "profiler_st" not in done.stderr, done.stderr
    shown = ("gru_forward_", "gru_backward_", "fastest", "floor", "slowest thread", "kept for backward", "written")
    assert all(words in done.stdout for words in shown), done.stdout
    assert "gru_forward_" in trace.read_text() and "<svg" in plot.read_text()
    assert max(len(line) for line in done.stdout.splitlines() if "written" not in line) <= 80


def test_command_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A user's model, inference and training, for programs; what the model prints is not among it."""
    arguments = ["--model", "lifted:tagger", "--calls", "2", "--inference", "--training", "--no-memory", "--json"]
    assert main(["profile", *arguments]) == 0
    inference, training = json.loads(capsys.readouterr().out)
    names = ["forward", "forward", "forward"]
    assert [of_pass["name"] for of_pass in inference["passes"]] == names
    assert [of_pass["name"] for of_pass in training["passes"]] == [*names, "backward"]
    assert training["memory"]["nn.GRU"]["kept_bytes"] > 0 and training["memory"]["nn.GRU"]["peak_bytes"] is None
    assert {"commit", "machine", "torch", "rest_ms", "phases"} <= set(training)
