"""A library of reinforcement learning before and after: the recurrent PPO of rsl-rl, rewritten to resets=.

    pip install rsl-rl-lib
    python benchmarks/rollouts.py --envs 64 --steps 128 --hidden-size 256 --every 32
    python benchmarks/rollouts.py --device cuda --envs 4096 --steps 24

rsl-rl cuts every rollout at the ends of its episodes, pads the pieces to the whole rollout's length, runs them as a
batch and puts the outputs together again. WholeRollouts and Recurrent leave that out. One table: the milliseconds of an
update of actor and critic as it is, with gru_ext.replace alone, and rewritten; and how far the losses are apart. The
environments are random numbers, and each step of one ends an episode with the probability 1 / EVERY.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import gru_ext
from gru_ext.commands.options import positive
from gru_ext.measure.machine import facts
from gru_ext.text import Table, duration, show

try:
    from rsl_rl.algorithms import PPO
    from rsl_rl.models import RNNModel
    from rsl_rl.modules import RNN
    from rsl_rl.storage import RolloutStorage
    from tensordict import TensorDict
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install rsl-rl-lib") from None

OBSERVATIONS, ACTIONS = 48, 12
VARIANTS = ("as it is", "gru_ext.replace", "resets")


class WholeRollouts(RolloutStorage):
    """Mini-batches of whole rollouts; masks are true at the first steps of episodes."""

    def recurrent_mini_batch_generator(self, num_mini_batches: int, num_epochs: int = 8) -> Iterator[Any]:
        resets = self.dones.squeeze(-1).bool().roll(1, 0)
        resets[0] = False  # there the state that was stored goes on
        begin = [
            None if saved is None else saved[0][0] for saved in (self.saved_hidden_state_a, self.saved_hidden_state_c)
        ]
        size = self.num_envs // num_mini_batches
        for number in list(range(num_mini_batches)) * num_epochs:
            envs = slice(number * size, (number + 1) * size)
            yield self.Batch(
                observations=self.observations[:, envs],
                actions=self.actions[:, envs],
                values=self.values[:, envs],
                advantages=self.advantages[:, envs],
                returns=self.returns[:, envs],
                old_actions_log_prob=self.actions_log_prob[:, envs],
                old_distribution_params=tuple(of_step[:, envs] for of_step in self.distribution_params),
                # Cloned: the stored ones were made in inference mode.
                hidden_states=tuple(None if state is None else state[:, envs].clone() for state in begin),
                masks=resets[:, envs],
            )


class Recurrent(RNN):
    """One call for all episodes of a rollout."""

    def forward(self, input: Tensor, masks: Tensor | None = None, hidden_state: Tensor | None = None) -> Tensor:
        if masks is None:
            return super().forward(input)
        output, _ = self.rnn(input, hidden_state, resets=masks)
        return output


def learner(variant: str, envs: int, steps: int, hidden_size: int, device: str = "cpu", **options: Any) -> Any:
    """A PPO of one of VARIANTS, always with the same parameters; options are its own."""
    torch.manual_seed(0)
    seen = TensorDict({"policy": torch.randn(envs, OBSERVATIONS)}, [envs], device=device)
    groups = {"actor": ["policy"], "critic": ["policy"]}
    gru: dict[str, Any] = {"rnn_type": "gru", "rnn_hidden_dim": hidden_size}
    actor = RNNModel(seen, groups, "actor", ACTIONS, distribution_cfg={"class_name": "GaussianDistribution"}, **gru)
    critic = RNNModel(seen, groups, "critic", 1, **gru)
    storage: Any = RolloutStorage("rl", envs, steps, seen, [ACTIONS], device)
    if variant != VARIANTS[0]:
        gru_ext.replace(actor)
        gru_ext.replace(critic)
    if variant == VARIANTS[2]:
        storage.__class__ = WholeRollouts
        actor.rnn.__class__ = critic.rnn.__class__ = Recurrent
    return PPO(actor, critic, storage, device=device, **options)


def roll_out(ppo: Any, every: int, seed: int) -> None:
    """Fills the storage by acting in random environments, the same for every learner."""
    numbers, storage = torch.Generator().manual_seed(seed), ppo.storage
    torch.manual_seed(seed)  # of which the actions are drawn

    def observed() -> Any:
        values = torch.randn(storage.num_envs, OBSERVATIONS, generator=numbers)
        return TensorDict({"policy": values}, [storage.num_envs]).to(ppo.device)

    with torch.inference_mode():
        seen = observed()
        for _ in range(storage.num_transitions_per_env):
            ppo.act(seen)
            rewards, ends = (torch.rand(storage.num_envs, generator=numbers) for _ in range(2))
            seen = observed()
            ppo.process_env_step(seen, rewards.to(ppo.device), (ends < 1 / every).to(ppo.device), {})
        ppo.compute_returns(seen)


def milliseconds(ppo: Any) -> float:
    """Of an update."""
    begin = time.perf_counter()
    ppo.update()  # which reads its losses, and so waits for a GPU
    return (time.perf_counter() - begin) * 1e3


def main() -> int:
    """Measure by turns and print the table; 1 if the losses are not the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in (
        ("envs", 64),
        ("steps", 128),
        ("hidden-size", 256),
        ("every", 32),
        ("turns", 5),
        ("threads", 2),
    ):
        parser.add_argument(f"--{name}", type=positive, default=default)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sizes = arguments.envs, arguments.steps, arguments.hidden_size
    learners = {variant: learner(variant, *sizes, arguments.device, schedule="fixed") for variant in VARIANTS}
    losses = []
    for ppo in learners.values():
        roll_out(ppo, arguments.every, 1)
        losses.append(ppo.update())  # and the first call, which is not timed
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    for turn in range(arguments.turns):
        for variant in VARIANTS if turn % 2 == 0 else VARIANTS[::-1]:
            times[variant].append(milliseconds(learners[variant]))
    described = facts(torch.device(arguments.device))
    title = ", ".join(str(described[name]) for name in ("machine", "torch", "gru_ext", "commit", "date"))
    first = statistics.median(times[VARIANTS[0]])
    rows = []
    for variant, of_variant in times.items():
        median = statistics.median(of_variant)
        rows.append((variant, duration(median), f"{first / median:.2f}"))
    apart = max(
        abs(of_one[name] - losses[0][name]) / max(1, abs(losses[0][name])) for of_one in losses for name in of_one
    )
    about = f"{sizes[0]} environments, {sizes[1]} steps, hidden_size {sizes[2]}, {arguments.device}"
    note = f"{about}; median of {arguments.turns}. The losses of the first update differ by {apart:.1e} at most."
    show(Table(("rsl-rl", "update", "times as fast"), rows, title, [note]))
    return int(not apart < 1e-3)


if __name__ == "__main__":
    sys.exit(main())
