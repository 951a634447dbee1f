"""A training step of one GRU layer in JAX, in the ways that a user might write it.

plain: lax.scan over one step, the input's product before it, differentiated by JAX.
hand-written: the forward scan keeps r, z, n and the recurrent part of n; the backward scan carries the gradient of the
state and gives those of the gates; the gradients of the weights and of the input are large products after it.

In bfloat16 each is tried with every operation on bfloat16 and, as XLA converts for each product on the CPU, with the
numbers converted to float32 once and the answer converted back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import lax
from peer_problem import WEIGHTS, Prepared, Problem, Results
from torch import Tensor

# Every call is waited for: nothing is gained by computing it in another thread, where a short one takes a third longer.
jax.config.update("jax_cpu_enable_async_dispatch", False)

Layer = Callable[..., Any]  # (data [T,B,I], weight_ih [3H,I], weight_hh [3H,H], bias_ih [3H], bias_hh [3H]) -> [T,B,H]


def plain(data: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
    """The layer as its formula reads."""

    def step(state: Any, projected: Any) -> tuple[Any, Any]:
        recurrent = state @ weight_hh.T + bias_hh
        input_r, input_z, input_n = jnp.split(projected, 3, axis=-1)
        state_r, state_z, state_n = jnp.split(recurrent, 3, axis=-1)
        reset = jax.nn.sigmoid(input_r + state_r)
        update = jax.nn.sigmoid(input_z + state_z)
        new = jnp.tanh(input_n + reset * state_n)
        state = (1 - update) * new + update * state
        return state, state

    start = jnp.zeros((data.shape[1], weight_hh.shape[1]), data.dtype)
    return lax.scan(step, start, data @ weight_ih.T + bias_ih)[1]


def product(left: Any, right: Any) -> Any:
    """left @ right summed in float32, and left so."""
    return jnp.matmul(left, right, preferred_element_type=jnp.float32)


def kept_forward(data: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> tuple[Any, Any]:
    """The output, and what kept_backward needs; the state and all sums are float32."""
    dtype, (seq_len, batch, input_size), hidden = data.dtype, data.shape, weight_hh.shape[1]
    projected = product(data.reshape(-1, input_size), weight_ih.T) + bias_ih.astype(jnp.float32)
    projected = projected.astype(dtype).reshape(seq_len, batch, 3 * hidden)

    def step(state: Any, projected: Any) -> tuple[Any, Any]:
        recurrent = product(state.astype(dtype), weight_hh.T) + bias_hh.astype(jnp.float32)
        gates = jax.nn.sigmoid(projected[:, : 2 * hidden] + recurrent[:, : 2 * hidden])
        reset, update = gates[:, :hidden], gates[:, hidden:]
        state_n = recurrent[:, 2 * hidden :]
        new = jnp.tanh(projected[:, 2 * hidden :] + reset * state_n)
        state = new + update * (state - new)
        return state, tuple(value.astype(dtype) for value in (state, reset, update, new, state_n))

    start = jnp.zeros((batch, hidden), jnp.float32)
    _, (output, *gates) = lax.scan(step, start, projected)
    return output, (data, weight_ih, weight_hh, output, *gates)


def kept_backward(kept: Any, grad_output: Any) -> tuple[Any, ...]:
    """The gradients of kept_forward's arguments."""
    data, weight_ih, weight_hh, output, *gates = kept
    dtype, (_, batch, input_size), hidden = data.dtype, data.shape, weight_hh.shape[1]
    before = jnp.concatenate([jnp.zeros((1, batch, hidden), dtype), output[:-1]])

    def step(grad_state: Any, at: Any) -> tuple[Any, Any]:
        grad, reset, update, new, state_n, state = (value.astype(jnp.float32) for value in at)
        grad_state = grad_state + grad
        grad_n = grad_state * (1 - update) * (1 - new * new)
        grad_z = grad_state * (state - new) * update * (1 - update)
        grad_r = grad_n * state_n * reset * (1 - reset)
        recurrent = jnp.concatenate([grad_r, grad_z, grad_n * reset], axis=-1).astype(dtype)
        return grad_state * update + product(recurrent, weight_hh), (recurrent, grad_n.astype(dtype))

    start = jnp.zeros((batch, hidden), jnp.float32)
    _, (recurrent, grad_n) = lax.scan(step, start, (grad_output, *gates, before), reverse=True)
    recurrent = recurrent.reshape(-1, 3 * hidden)
    projected = jnp.concatenate([recurrent[:, : 2 * hidden], grad_n.reshape(-1, hidden)], axis=-1)
    gradients = (
        product(projected, weight_ih).reshape(data.shape),
        product(projected.T, data.reshape(-1, input_size)),
        product(recurrent.T, before.reshape(-1, hidden)),
        projected.astype(jnp.float32).sum(0),
        recurrent.astype(jnp.float32).sum(0),
    )
    return tuple(gradient.astype(dtype) for gradient in gradients)


@jax.custom_vjp
def hand_written(data: Any, weight_ih: Any, weight_hh: Any, bias_ih: Any, bias_hh: Any) -> Any:
    """The layer with a backward pass of its own."""
    return kept_forward(data, weight_ih, weight_hh, bias_ih, bias_hh)[0]


hand_written.defvjp(kept_forward, kept_backward)


def in_float32(layer: Layer) -> Layer:
    """The layer with its arguments converted to float32 and its output back; its gradients follow."""

    def converted(*arguments: Any) -> Any:
        return layer(*(argument.astype(jnp.float32) for argument in arguments)).astype(arguments[0].dtype)

    return converted


def training_step(layer: Layer) -> Callable[..., Any]:
    """Compiled: (grad_output, *arguments of the layer) -> output and the gradient of each argument."""

    def step(grad_output: Any, *arguments: Any) -> Any:
        output, backward = jax.vjp(layer, *arguments)
        return output, *backward(grad_output)

    return jax.jit(step)


def to_jax(tensor: Tensor) -> Any:
    """The same numbers on JAX's device; bfloat16 by way of float32, which numpy knows."""
    exact = jnp.asarray(tensor.float().numpy())
    return jax.block_until_ready(exact.astype(jnp.bfloat16) if tensor.dtype == torch.bfloat16 else exact)


def to_torch(array: Any) -> Tensor:
    """The same numbers in a float32 tensor."""
    return torch.from_numpy(np.array(array.astype(jnp.float32)))


def prepare(problem: Problem) -> list[Prepared]:
    """Every way to compute the problem, which is one of training."""
    layers: dict[str, Layer] = {"plain": plain, "hand-written": hand_written}
    if problem.dtype == torch.bfloat16:
        layers.update({f"{name} in float32": in_float32(layer) for name, layer in layers.items()})
    tensors = (problem.grad_output, problem.data, *(problem.weights[name] for name in WEIGHTS))
    arguments = [to_jax(tensor) for tensor in tensors]

    def prepared(variant: str, layer: Layer) -> Prepared:
        step = training_step(layer)

        def results(answer: Any) -> Results:
            return dict(zip(problem.truth, map(to_torch, answer), strict=True))

        return Prepared(variant, lambda: jax.block_until_ready(step(*arguments)), results)

    return [prepared(variant, layer) for variant, layer in layers.items()]
