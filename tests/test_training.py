"""What trains a model around its modules: checkpoints, processes, shards, copies. Gradients stay what they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gate
import pytest
import torch
import torch.distributed
from processes import check_python, python
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gru_ext


class Model(nn.Module):
    """A layer before, the GRU, a layer after; and one that is used only when asked for."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.before = nn.Linear(3, 8)
        self.gru = gru_ext.GRU(8, 12, 2, bidirectional=True, recompute=recompute)
        self.after = nn.Linear(24, 1)
        self.spare = nn.Linear(24, 1)

    def forward(self, input: Tensor, way: str = "plain", spare: bool = False) -> Tensor:
        """The output of the last layer, with the GRU checkpointed in one way or another."""
        hidden = self.before(input)
        if way == "plain":
            output, _ = self.gru(hidden)
        else:
            output, _ = checkpoint(self.gru, hidden, use_reentrant=way == "reentrant")
        return (self.spare if spare else self.after)(output)


def gradients(model: Model, input: Tensor, way: str = "plain") -> dict[str, Tensor]:
    """Of the mean square of the output, by every parameter that has one."""
    model.zero_grad()
    model(input, way).pow(2).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("way", ["reentrant", "not reentrant"])
def test_activation_checkpointing(way: str, recompute: bool) -> None:
    """Both kinds, with and without recompute: the same bits."""
    model, input = Model(recompute), torch.randn(7, 4, 3)
    gate.assert_same_bits(gradients(model, input, way), gradients(model, input), way)


def test_checkpoint_keeps_less() -> None:
    """The GRU's gates are gone between forward and backward."""
    model, input = Model(), torch.randn(50, 4, 3)
    kept = {}
    for way in ("plain", "not reentrant"):
        sizes: list[int] = []

        def keep(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(input, way)
        kept[way] = max(sizes)
    assert kept["plain"] == 2 * 200 * 5 * 12 > kept["not reentrant"]


# Run by each of two processes: rank, a file to meet at, and what wraps the model.
WORKER = """
import sys, warnings
import torch, torch.distributed as distributed
from test_training import Model
rank, store, wrap = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method="file://" + store, rank=rank, world_size=2)
torch.manual_seed(0)
model = Model()
data = torch.randn(7, 4, 3)
expected_loss = model(data).pow(2).mean()
expected_loss.backward()
expected = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
model.zero_grad()
if wrap == "fully_shard":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh("cpu", (2,))
    fully_shard(model.gru, mesh=mesh)
    wrapped = fully_shard(model, mesh=mesh)
    inner = model
else:
    find = wrap == "find"
    if not find:
        model.spare.requires_grad_(False)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=find)
    inner = wrapped.module
wrapped(data[:, 2 * rank : 2 * rank + 2]).pow(2).mean().backward()
for name, one in inner.named_parameters():
    if name not in expected:
        continue
    grad = one.grad.full_tensor() if wrap == "fully_shard" else one.grad
    torch.testing.assert_close(grad, expected[name], rtol=1e-5, atol=1e-7, msg=name)
print("equal", len(expected))
distributed.destroy_process_group()
"""


def two_processes(tmp_path: Path, wrap: str, worker: str = WORKER, parameters: int = 20) -> None:
    """Two processes, half of the batch each: together the gradients of the whole batch in one process."""
    store = tmp_path / "store"
    launch = f"""
import subprocess, sys
worker = {worker!r}
started = [subprocess.Popen([sys.executable, "-c", worker, str(rank), {str(store)!r}, {wrap!r}],
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for rank in range(2)]
told = [one.communicate(timeout=110)[0] for one in started]
print(*told, sep="\\n---\\n")
sys.exit(max(one.returncode for one in started))
"""
    report = check_python(launch, GLOO_SOCKET_IFNAME="lo")
    assert report.count(f"equal {parameters}") == 2, report


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")
@pytest.mark.parametrize("wrap", ["find", "all used", "fully_shard"])
def test_two_processes(tmp_path: Path, wrap: str) -> None:
    """DistributedDataParallel, with and without looking for unused parameters, and FSDP2, by gloo on the CPU."""
    two_processes(tmp_path, wrap)


def test_shared_memory() -> None:
    """A child process trains the parent's weights in place (hogwild)."""
    report = check_python(
        """
import torch, torch.multiprocessing as multiprocessing
import gru_ext

def child(module, data):
    torch.set_num_threads(1)
    module(data)[0].pow(2).mean().backward()
    with torch.no_grad():
        for one in module.parameters():
            one -= 0.5 * one.grad

if __name__ == "__main__":
    multiprocessing.set_start_method("fork")
    torch.set_num_threads(1)
    module, data = gru_ext.GRU(3, 8), torch.randn(5, 2, 3)
    module.share_memory()
    before = module(data)[0].pow(2).mean()
    gradients = torch.autograd.grad(before, list(module.parameters()))
    expected = [one - 0.5 * grad for one, grad in zip(module.parameters(), gradients)]
    process = multiprocessing.Process(target=child, args=(module, data))
    process.start()
    process.join(60)
    assert process.exitcode == 0, process.exitcode
    for one, wanted in zip(module.parameters(), expected):
        torch.testing.assert_close(one.detach(), wanted.detach())
    assert module(data)[0].pow(2).mean() < before
    print("trained")
"""
    )
    assert "trained" in report


@pytest.mark.parametrize("way", ["argument", "queue"])
def test_sent_to_a_spawned_process(tmp_path: Path, way: str) -> None:
    """A module, its weights in shared memory, as an argument of a fresh process or through a queue: it trains there."""
    script = tmp_path / "sent.py"
    script.write_text(SENT)
    done = python(str(script), way)
    assert done.returncode == 0 and "trained" in done.stdout, done.stdout + done.stderr


SENT = """
import sys, torch, torch.multiprocessing as multiprocessing
import gru_ext

def child(module, queue, answers, data):
    torch.set_num_threads(1)
    module = queue.get() if module is None else module
    assert all(one.is_shared() for one in module.parameters()), "the weights were copied"
    before = module(data)[0].pow(2).mean()
    before.backward()
    with torch.no_grad():
        for one in module.parameters():
            one -= 0.5 * one.grad
    answers.put((repr(module), before.item()))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    torch.set_num_threads(1)
    module, data = gru_ext.GRU(3, 8, 2, bidirectional=True, recompute=True), torch.randn(5, 2, 3)
    module.share_memory()
    before = module(data)[0].pow(2).mean()
    gradients = torch.autograd.grad(before, list(module.parameters()))
    expected = [one - 0.5 * grad for one, grad in zip(module.parameters(), gradients)]
    queue, answers = context.Queue(), context.Queue()
    by_queue = sys.argv[1] == "queue"
    process = context.Process(target=child, args=(None if by_queue else module, queue, answers, data))
    process.start()
    if by_queue:
        queue.put(module)
    told, loss = answers.get(timeout=90)
    process.join(30)
    assert process.exitcode == 0, process.exitcode
    assert told == repr(module) and loss == before.item()
    for one, wanted in zip(module.parameters(), expected):
        torch.testing.assert_close(one.detach(), wanted.detach())
    print("trained")
"""


def test_copy_of_a_compiled_module() -> None:
    """copy.deepcopy of what torch.compile gave: weights of its own, and the same results."""
    torch._dynamo.reset()
    input: Any = torch.randn(7, 4, 3)
    compiled = torch.compile(gru_ext.GRU(3, 8, 2), backend="aot_eager", fullgraph=True)
    expected = compiled(input)[0]
    copied = copy.deepcopy(compiled)
    torch.testing.assert_close(copied(input)[0], expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert not copied(input)[0].any() and torch.equal(compiled(input)[0], expected)
    torch._dynamo.reset()
