"""Marks for torch.compile on functions: what ``torch.compiler``'s decorators set.

Those import the compiler when they decorate, most of a second and 70 MiB for a program that compiles nothing.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch._C._dynamo import eval_frame

_Function = TypeVar("_Function", bound=Callable[..., Any])
_SKIP = eval_frame._FrameAction.SKIP


def untraced(function: _Function) -> _Function:
    """``torch.compiler.disable``: a graph breaks at a call; the function and what it calls run as they are."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    eval_frame.set_code_exec_strategy(function.__code__, eval_frame._FrameExecStrategy(_SKIP, _SKIP))
    return function


def constant(function: _Function) -> _Function:
    """``torch.compiler.assume_constant_result``: a graph holds what a call gives while it is traced."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
