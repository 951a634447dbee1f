"""Models of other packages, unmodified: trained some steps through gru_ext.replace, their losses stay the same; frozen,
their outputs do.

``make foreign`` runs this file in an environment that has the packages; elsewhere the tests are skipped.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable

import gate
import pytest
import torch
from torch import Tensor, nn

import gru_ext

Loss = Callable[[nn.Module], Tensor]
STEPS = 10  # and small ones: a step that is not lets rounding grow until it hides everything


def attentive_fingerprint() -> tuple[nn.Module, Loss]:
    """A graph network for molecules (Xiong et al., 2020): its GRUCells update atoms and molecules."""
    from torch_geometric.nn import AttentiveFP

    model = AttentiveFP(8, 32, 1, edge_dim=4, num_layers=3, num_timesteps=2)
    nodes, edges = torch.randn(40, 8), torch.randint(0, 40, (2, 120))
    attributes, graph = torch.randn(120, 4), torch.arange(40) // 10
    target = torch.randn(4, 1)

    def loss(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        predicted = model(nodes.to(dtype), edges, attributes.to(dtype), graph)
        return (predicted - target.to(dtype)).pow(2).mean()

    return model, loss


def gated_graph() -> tuple[nn.Module, Loss]:
    """A gated graph network (Li et al., 2016): one GRUCell for all its layers."""
    from torch_geometric.nn import GatedGraphConv

    model = GatedGraphConv(24, num_layers=4)
    nodes, edges, target = torch.randn(30, 24), torch.randint(0, 30, (2, 90)), torch.randn(30, 24)

    def loss(model: nn.Module) -> Tensor:
        dtype = next(model.parameters()).dtype
        return (model(nodes.to(dtype), edges) - target.to(dtype)).pow(2).mean()

    return model, loss


def session_recommender() -> tuple[nn.Module, Loss]:
    """GRU4Rec (Hidasi et al., 2016) with negative samples: an nn.GRU of two layers without biases."""
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import GRU4Rec

    users = [SparseFeature("user", vocab_size=20, embed_dim=8)]
    items = [SparseFeature("item", vocab_size=50, embed_dim=16)]
    history = [SequenceFeature("history", vocab_size=50, embed_dim=16, pooling="concat", shared_with="item")]
    negatives = [SequenceFeature("negatives", vocab_size=50, embed_dim=16, pooling="concat", shared_with="item")]
    model = GRU4Rec(users, history, items, negatives, {"dims": [32, 16]}, temperature=0.1)
    for embedding in model.embedding.parameters():
        nn.init.normal_(embedding)  # its own are so small that the GRU would see zeros
    batch = {
        "user": torch.randint(20, (12,)),
        "item": torch.randint(50, (12,)),
        "history": torch.randint(50, (12, 9)),
        "negatives": torch.randint(50, (12, 3)),
    }

    def loss(model: nn.Module) -> Tensor:
        return -model(batch)[:, :1].mean()

    return model, loss


def series_classifier() -> tuple[nn.Module, Loss]:
    """sktime's GRU for the classification of time series, two bidirectional layers."""
    from sktime.networks.gru import GRU

    model = GRU(5, 24, 2, batch_first=True, num_classes=3, bidirectional=True)
    series, labels = torch.randn(16, 40, 5), torch.randint(3, (16,))

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(series.to(next(model.parameters()).dtype)), labels)

    return model, loss


MODELS = {
    "torch_geometric AttentiveFP": attentive_fingerprint,
    "torch_geometric GatedGraphConv": gated_graph,
    "torch_rechub GRU4Rec": session_recommender,
    "sktime GRU": series_classifier,
}


def losses(model: nn.Module, loss: Loss) -> Tensor:
    """Of so many steps of Adam."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    seen = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        optimizer.step()
        seen.append(value.detach())
    return torch.stack(seen)


@pytest.mark.parametrize("name", MODELS)
def test_losses(name: str) -> None:
    """Held to float64 like everything else: no further off than twice the unmodified model is."""
    package = name.split()[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (make foreign)")
    torch.manual_seed(0)
    model, loss = MODELS[name]()
    theirs, ours, exact = model, copy.deepcopy(model), copy.deepcopy(model).double()
    report = gru_ext.replace(ours)
    assert any(isinstance(module, (gru_ext.GRU, gru_ext.GRUCell)) for module in ours.modules()), report
    truth, reference, candidate = (losses(network, loss) for network in (exact, theirs, ours))
    assert truth[-1] < truth[0] and candidate.dtype == torch.float32  # it did train
    measured = gate.compare(name, candidate, reference, truth)
    errors = f"error {measured.error:.1e}, nn.GRU's {measured.reference_error:.1e}"
    print(f"{name}: {truth[0]:.3f} to {truth[-1]:.3f}, {errors}")
    gate.raise_failures([measured])


@pytest.mark.parametrize("every", [3, 8])
def test_rewritten_to_resets(every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recurrent PPO of rsl-rl, which splits and pads rollouts, with resets= in their place: the same parameters."""
    if importlib.util.find_spec("rsl_rl") is None:
        pytest.skip("rsl_rl is not installed (make foreign)")
    import rollouts

    torch.set_default_dtype(torch.float64)  # in which its storage is, too

    def trained(variant: str) -> Tensor:
        ppo = rollouts.learner(variant, 8, 16, 24, num_mini_batches=2, num_learning_epochs=2)
        losses = []
        for seed in range(3):  # from the second on a rollout begins within episodes
            rollouts.roll_out(ppo, every, seed)
            losses += ppo.update().values()
        parameters = [
            parameter.detach().flatten() for model in (ppo.actor, ppo.critic) for parameter in model.parameters()
        ]
        return torch.cat([torch.tensor(losses), *parameters])

    expected, *others = (trained(variant) for variant in rollouts.VARIANTS)
    for results in others:
        torch.testing.assert_close(results, expected, rtol=1e-8, atol=1e-8)
    recurrent = rollouts.Recurrent.forward
    monkeypatch.setattr(
        rollouts.Recurrent,
        "forward",
        lambda module, input, masks=None, state=None: recurrent(
            module, input, None if masks is None else torch.zeros_like(masks), state
        ),
    )
    assert (trained("resets") - expected).abs().max() > 1e-4  # episodes that run into one another are noticed


@pytest.mark.parametrize(
    ("weights", "bound", "of_grus"), [("float32", 0, 0), ("bfloat16", 1e-5, 4e-3), ("int8", 5e-5, 2e-2)]
)
def test_frozen(weights: str, bound: float, of_grus: float) -> None:
    """DeepFilterNet3 of the published sizes, frozen: its spectrum, and the outputs of its GRUs, beside float64.

    float32 is held to the gate, the others to relative errors, by Euclidean norms.
    """
    if any(importlib.util.find_spec(package) is None for package in ("df", "libdf", "loguru")):
        pytest.skip("deepfilternet is not installed (make foreign; for Python up to 3.11)")
    import frozen_foreign as foreign

    model, spectra = foreign.enhancer()
    noisy = foreign.df_features(foreign.voices(1, 0.5)[1], spectra, foreign.BINS)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # its statistics are those of the next call: without any, the GRUs would see zeros
    with torch.no_grad():
        model.train()(*noisy)
    model.eval()
    frozen = gru_ext.freeze(model, weights)
    assert [type(gru) for gru in foreign.grus(frozen)] == [gru_ext.FrozenGRU] * 3
    assert [type(gru) for gru in foreign.grus(model)] == [nn.GRU] * 3
    truth, _, truths = foreign.observed(copy.deepcopy(model).double(), [part.double() for part in noisy])
    reference, _, references = foreign.observed(model, noisy)
    candidate, _, candidates = foreign.observed(frozen, noisy)
    error, worst = foreign.apart(candidate, truth), max(map(foreign.apart, candidates, truths))
    print(f"DeepFilterNet3, {weights}: error {error:.1e}, its GRUs' {worst:.1e}")
    if weights == "float32":
        results = zip([candidate, *candidates], [reference, *references], [truth, *truths], strict=True)
        gate.raise_failures([gate.compare("DeepFilterNet3", *of) for of in results])
    else:
        assert 1e-7 < error < bound and 1e-4 < worst < of_grus
