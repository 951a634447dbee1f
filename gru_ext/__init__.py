"""GRU layers for PyTorch with kernels of their own: a drop-in replacement of :class:`torch.nn.GRU`.

- :class:`GRU`, :class:`GRUCell`: modules with the arguments, weights and behaviour of ``nn.GRU`` and ``nn.GRUCell``
- :func:`replace`, :func:`restore`: swap the GRUs inside a model for these, and back
- :func:`freeze`: a copy of a model for inference on the CPU, with weights packed ahead, in 32, 16 or 8 bits
- :func:`explain`: which kernels run a module for an input, and why
- :func:`tune`: measure which kernels are fastest on the GPU at hand, and use them
- :mod:`gru_ext.functional`: the same as functions of tensors
- :mod:`gru_ext.reference`: the same mathematics in plain PyTorch
- :mod:`gru_ext.onnx`: export to ONNX

``python -m gru_ext info`` says what was built and which path each device takes; ``explain`` and ``bench`` answer for
shapes and models of one's own.
"""

__version__ = "0.1.0"

from gru_ext import _build  # first: a missing or foreign build ends here, in one sentence

_build.load()

import gru_ext.flops  # noqa: E402, F401
from gru_ext import functional, onnx, reference  # noqa: E402
from gru_ext.cuda.tuning import Tuning, tune  # noqa: E402
from gru_ext.explanation import Explanation, explain  # noqa: E402
from gru_ext.frozen import FrozenGRU, FrozenGRUCell, freeze  # noqa: E402
from gru_ext.modules import GRU, GRUCell  # noqa: E402
from gru_ext.replacement import Report, replace, restore  # noqa: E402

__all__ = [
    "GRU", "Explanation", "FrozenGRU", "FrozenGRUCell", "GRUCell", "Report", "Tuning", "__version__", "explain",
    "freeze", "functional", "onnx", "reference", "replace", "restore", "tune",
]  # fmt: skip
