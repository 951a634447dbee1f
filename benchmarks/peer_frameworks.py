"""gru_ext and its peers in peers.py: ONNX Runtime, OpenVINO and torchrl here, JAX in peer_jax.py.

Each imports its framework when it is first asked for, so that any of them may be missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from peer_problem import WEIGHTS, Absent, Peer, Prepared, Problem, Results
from torch import Tensor, nn

ONNX_OPSET, ONNX_IR = 22, 10  # of 2024: what the runtimes read is older than what onnx writes
MEND = "make peers installs it"


def require(*packages: str) -> str:
    """Import these packages and name their versions. Raises Absent."""
    for package in packages:
        try:
            importlib.import_module(package)
        except ImportError as error:
            installed = importlib.util.find_spec(package) is not None
            reason = f"does not import here ({error})" if installed else "is not installed here"
            raise Absent(f"{package} {reason}; {MEND}") from None
    return ", ".join(f"{package} {version(package)}" for package in packages)


class GruExt:
    """This package: the contestant that every peer is compared with."""

    name = "gru_ext"
    takes_resets = True

    def version(self) -> str:
        """Its own version."""
        import gru_ext

        return f"gru_ext {gru_ext.__version__}"

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Everything."""
        return True

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """The module's call; in training with the gradients of the input and of every parameter."""
        import gru_ext

        torch.set_num_threads(threads)
        return [torch_call(problem.module(gru_ext.GRU), problem)]


def torch_call(module: nn.RNNBase, problem: Problem) -> Prepared:
    """How a torch module is called, one of gru_ext's where there are resets."""
    run = module if problem.resets is None else partial(module, resets=problem.resets)
    if problem.mode == "inference":
        module.requires_grad_(False)  # as a server does once, instead of no_grad() at every call

        def inference() -> Any:
            return run(problem.data)

        return Prepared("", inference, lambda answer: dict(zip(("output", "h_n"), answer, strict=True)))

    inputs = [problem.data.clone().requires_grad_(), *(module.get_parameter(name) for name in WEIGHTS)]

    def training() -> Any:
        output, _ = run(inputs[0])
        return output, *torch.autograd.grad(output, inputs, problem.grad_output)

    return Prepared("", training, lambda answer: dict(zip(problem.truth, (a.detach() for a in answer), strict=True)))


def onnx_model(problem: Problem) -> bytes:
    """One ONNX GRU operator with these weights, float32, fixed sizes: X [T, B, I] -> Y [T, 1, B, H], Y_h [1, B, H]."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def z_first(weight: Tensor) -> Tensor:
        reset, update, new = weight.float().chunk(3)
        return torch.cat([update, reset, new])

    weight_ih, weight_hh, bias_ih, bias_hh = (z_first(problem.weights[name]) for name in WEIGHTS)
    constants = {"W": weight_ih, "R": weight_hh, "B": torch.cat([bias_ih, bias_hh])}
    batch, seq_len, input_size, hidden_size = problem.shape

    def value(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    # linear_before_reset=1 is torch's GRU: the reset gate multiplies the product with its bias, not the state.
    node = helper.make_node("GRU", ["X", *constants], ["Y", "Y_h"], hidden_size=hidden_size, linear_before_reset=1)
    graph = helper.make_graph(
        [node],
        "gru",
        [value("X", seq_len, batch, input_size)],
        [value("Y", seq_len, 1, batch, hidden_size), value("Y_h", 1, batch, hidden_size)],
        [numpy_helper.from_array(constant[None].numpy(), name) for name, constant in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=ONNX_IR)
    checker.check_model(model)
    return bytes(model.SerializeToString())


def inference_results(output: Any, h_n: Any) -> Results:
    """The arrays Y [T, 1, B, H] and Y_h [1, B, H] as tensors by name."""
    return {"output": torch.from_numpy(output.copy())[:, 0], "h_n": torch.from_numpy(h_n.copy())}


class OnnxRuntime:
    """ONNX Runtime on the CPU, whose GRU operator knows float32 only.

    Input and outputs are bound once, so that a call neither copies nor allocates them.
    """

    name = "onnxruntime"
    takes_resets = False

    def version(self) -> str:
        """onnxruntime, and the onnx that made the model."""
        return require("onnxruntime", "onnx")

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Inference in float32."""
        return mode == "inference" and dtype == torch.float32

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """A session of its own with this many threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])

        def on_device(tensor: Tensor) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.float().numpy())

        # Held by call: the binding does not keep them alive.
        data = on_device(problem.data)
        output = on_device(torch.zeros_like(problem.grad_output)[:, None])
        h_n = on_device(torch.zeros_like(problem.grad_output[:1]))
        binding = session.io_binding()
        binding.bind_ortvalue_input("X", data)
        binding.bind_ortvalue_output("Y", output)
        binding.bind_ortvalue_output("Y_h", h_n)

        def call() -> Any:
            session.run_with_iobinding(binding)
            return data, output, h_n

        return [Prepared("", call, lambda answer: inference_results(*(value.numpy() for value in answer[1:])))]


class OpenVino:
    """OpenVINO on the CPU. Its inputs and outputs are float32, whatever precision it is told to compute in."""

    name = "openvino"
    takes_resets = False
    precisions = {torch.float32: "f32", torch.bfloat16: "bf16"}

    def version(self) -> str:
        """openvino, and the onnx that made the model."""
        return require("openvino", "onnx")

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Inference in float32 and bfloat16."""
        return mode == "inference" and dtype in self.precisions

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """One request, its input set once: a call does not copy it."""
        import openvino

        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(model=onnx_model(problem)),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": self.precisions[problem.dtype],
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        request = compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(problem.data.float().numpy()))

        def call() -> Any:
            request.infer()
            return request

        def results(answer: Any) -> Results:
            return inference_results(answer.get_output_tensor(0).data, answer.get_output_tensor(1).data)

        return [Prepared("", call, results)]


class Jax:
    """JAX, compiled by XLA for the CPU: see peer_jax.py for the ways in which it is asked."""

    name = "jax"
    takes_resets = False

    def version(self) -> str:
        """jax and jaxlib."""
        return require("jax", "jaxlib")

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Training in float32 and bfloat16."""
        return mode == "training" and dtype in (torch.float32, torch.bfloat16)

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """Each way; the threads are those of the processors that the process may use."""
        import peer_jax

        return peer_jax.prepare(problem)


class TorchRl:
    """torchrl's GRUModule, given whole rollouts [B, T, ...], in which an episode may begin at any step.

    Its backend "pad" splits them, pads and packs the pieces for nn.GRU; "scan" goes step by step.
    """

    name = "torchrl"
    takes_resets = True

    def version(self) -> str:
        """torchrl, and the tensordict that holds its data."""
        return require("torchrl", "tensordict")

    def supports(self, mode: str, dtype: torch.dtype) -> bool:
        """Both modes in float32, as its own benchmark runs it."""
        return dtype == torch.float32

    def prepare(self, problem: Problem, threads: int) -> list[Prepared]:
        """A module for each backend, called as torchrl's own benchmark does."""
        torch.set_num_threads(threads)
        return [self._prepared(problem, backend) for backend in ("pad", "scan")]

    def _prepared(self, problem: Problem, backend: str) -> Prepared:
        from tensordict import TensorDict
        from torchrl.modules import GRUModule

        assert problem.resets is not None
        batch, seq_len, input_size, hidden_size = problem.shape
        gru = nn.GRU(input_size, hidden_size, batch_first=True)
        gru.load_state_dict(problem.weights)
        module = GRUModule(
            gru=gru,
            in_keys=["data", "hidden"],
            out_keys=["output", ("next", "hidden")],
            recurrent_backend=backend,
            default_recurrent_mode=True,
        ).train(problem.mode == "training")
        inputs = [problem.data.transpose(0, 1).contiguous(), *(gru.get_parameter(name) for name in WEIGHTS)]
        for tensor in inputs:
            tensor.requires_grad_(problem.mode == "training")
        grad_output = problem.grad_output.transpose(0, 1).contiguous()
        others = {"hidden": torch.zeros(batch, seq_len, 1, hidden_size), "is_init": problem.resets.t()[..., None]}

        def call() -> Any:
            rollout = module(TensorDict({"data": inputs[0], **others}, [batch, seq_len]))
            output = rollout["output"]
            if problem.mode == "inference":
                return output, rollout["next", "hidden"]
            return output, *torch.autograd.grad(output, inputs, grad_output)

        def results(answer: Any) -> Results:
            output, second = (tensor.detach().transpose(0, 1) for tensor in answer[:2])
            if problem.mode == "inference":
                return {"output": output, "h_n": second[-1].transpose(0, 1)}
            return dict(zip(problem.truth, (output, second, *answer[2:]), strict=True))

        return Prepared(backend, call, results)


PEERS: tuple[Peer, ...] = (OnnxRuntime(), OpenVino(), Jax(), TorchRl())
