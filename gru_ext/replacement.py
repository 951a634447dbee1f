"""Swapping the GRUs of a model: ``nn.GRU`` and ``nn.GRUCell`` for ours, and back.

A swap assigns ``module.__class__``. Both sides are plain subclasses of the same base (``nn.RNNBase``,
``nn.RNNCellBase``) and keep the same attributes, so the object itself stays: its Parameters (an optimizer goes on
working), hooks, training flag, device, and every place of the model that refers to it, the root included.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import nn
from torch.nn.utils import parametrize

from gru_ext.modules import GRU, GRUCell

_OURS: dict[type[nn.Module], type[nn.Module]] = {nn.GRU: GRU, nn.GRUCell: GRUCell}
_TORCHS: dict[type[nn.Module], type[nn.Module]] = {ours: torchs for torchs, ours in _OURS.items()}


@dataclass
class Report:
    """What :func:`replace` or :func:`restore` did; printing it tells.

    Attributes:
        swapped: module name -> the class it now has, such as "gru_ext.GRU"; the root's name is ""
        left: module name -> why it was left as it is
    """

    swapped: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        lines = [f"{len(self.swapped)} swapped, {len(self.left)} left"]
        lines += [f"  {name or '(root)'} -> {class_name}" for name, class_name in self.swapped.items()]
        lines += [f"  {name or '(root)'} left: {reason}" for name, reason in self.left.items()]
        if any(name.startswith("gru_ext.") for name in self.swapped.values()):
            lines.append(
                "  not seen by code that quantizes or asks isinstance(module, nn.GRU): call gru_ext.restore first"
            )
        return "\n".join(lines)


def replace(model: nn.Module, *, verbose: bool = False) -> Report:
    """Turns every ``nn.GRU`` and ``nn.GRUCell`` in the model, itself included, into ours, in place.

    Parameters, hooks, training flag and parametrizations stay the very same objects; a module used in two places stays
    shared. Left as they are, with the reason in the report: subclasses (their code may rest on ``nn.GRU``), modules
    whose ``forward`` was overridden on the instance, scripted modules, and those of torchrl's GRUModule.

    Args:
        model: any module
        verbose: whether to print the report

    Returns:
        what was swapped, and what was left and why

    Raises:
        TypeError: model is not a module
    """
    return _swap(model, _OURS, verbose)


def restore(model: nn.Module, *, verbose: bool = False) -> Report:
    """The reverse of :func:`replace`: turns every :class:`GRU` and :class:`GRUCell` in the model into torch's.

    Arguments, result and exceptions are those of :func:`replace`.
    """
    return _swap(model, _TORCHS, verbose)


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]], verbose: bool) -> Report:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    report = Report()
    for name, module, source in list(_candidates(model, classes)):
        target = classes[source]
        reason = reason_to_leave(module, source) or _reason_of_parent(model, name, target)
        if reason is not None:
            report.left[name] = reason
            continue
        module.__class__ = target if type(module) is source else _rebased(type(module), target)
        if isinstance(module, nn.RNNBase):
            module._init_flat_weights()  # the two classes keep different tensors in _flat_weights
        report.swapped[name] = f"{'gru_ext' if target in _TORCHS else 'torch.nn'}.{target.__name__}"
    if verbose:
        print(report)
    return report


def _candidates(
    model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]
) -> Iterator[tuple[str, nn.Module, type[nn.Module]]]:
    """Every module that is, derives from, or was scripted from one of the classes, and that class."""
    for name, module in model.named_modules():
        for source in classes:
            if isinstance(module, source) or getattr(module, "original_name", None) == source.__name__:
                yield name, module, source


def reason_to_leave(module: nn.Module, source: type[nn.Module]) -> str | None:
    """Why a module that is or derives from ``source`` must not become another class; None: it may."""
    cls = type(module)
    if not isinstance(module, source):
        return "scripted by torch.jit"
    if cls is not source and not (parametrize.is_parametrized(module) and cls.__bases__ == (source,)):
        return f"{cls.__module__}.{cls.__qualname__} is a subclass of {source.__name__}, whose own code may rest on it"
    if "forward" in vars(module):
        return "its forward was overridden on the instance"
    return None


def _reason_of_parent(model: nn.Module, name: str, target: type[nn.Module]) -> str | None:
    parent = type(model.get_submodule(name.rpartition(".")[0]))
    if target is GRU and parent.forward.__module__.startswith("torchrl."):  # which asks whether it is an nn.GRU
        return f"{parent.__name__} calls no other; gru_ext.integrations.torchrl.replace(model) swaps both"
    return None


def _rebased(parametrized: type[nn.Module], target: type[nn.Module]) -> type[nn.Module]:
    """The class that ``torch.nn.utils.parametrize`` made for one module, with another base.

    Such a class holds a property for each parametrized weight and is found by its single base when the parametrization
    is removed, so the same members over the new base behave alike.
    """
    members = {key: value for key, value in vars(parametrized).items() if key not in ("__dict__", "__weakref__")}
    return type(parametrized.__name__, (target,), members)
