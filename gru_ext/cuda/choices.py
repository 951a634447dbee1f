"""Choices of :func:`gru_ext.tune` in a file, which ``save`` writes and the environment names.

The file holds JSON: ``{"choices": [...]}``, each a :class:`Choice`. It serves several GPUs and versions: an entry is
used only on a GPU of its name and compute capability, with its versions of torch and gru_ext. The file that
``GRU_EXT_CUDA_CHOICES`` names is read when gru_ext is imported, before the first decision. Reading it needs no GPU:
decisions compare the GPU.
"""

import json
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import torch

from gru_ext import __version__, ops
from gru_ext.cuda import decision

VARIABLE = "GRU_EXT_CUDA_CHOICES"
LIST = "choices"


@dataclass(frozen=True)
class Choice:
    """What runs some layers, and where it was measured.

    Attributes:
        gpu, compute_capability: such as "NVIDIA H100 80GB HBM3" and "9.0"
        torch, gru_ext: versions
        dtype: such as "bfloat16"
        batch: the measured one; the choice holds from half to twice of it
        directions: 1 or 2
        tf32: of float32, whether products might round to TF32
        kernel: a word of GRU_EXT_CUDA_KERNEL
        ratio: torch's time over the kernel's; None: torch's kernels could not be timed
        date: of the measurement, such as "2026-11-27"
    """

    gpu: str
    compute_capability: str
    torch: str
    gru_ext: str
    dtype: str
    hidden_size: int
    batch: int
    directions: int
    packed: bool
    training: bool
    tf32: bool
    kernel: str
    ratio: float | None
    date: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What the choice is for."""
        return tuple(value for name, value in asdict(self).items() if name not in ("kernel", "ratio", "date"))

    def use(self) -> None:
        """Makes the choice, in this process. Raises ValueError for an invalid field."""
        dtypes = {str(dtype).removeprefix("torch."): dtype for dtype in ops.DTYPES}
        if self.dtype not in dtypes:
            raise ValueError(f"dtype is {self.dtype}; expected one of {', '.join(dtypes)}")
        major, minor = map(int, self.compute_capability.split("."))
        layers = (dtypes[self.dtype], self.batch, self.hidden_size, self.directions, self.packed, self.training)
        decision.native.choose_cuda_kernel(
            self.kernel, *layers, self.tf32, (self.gpu, major, minor), self.ratio, self.date
        )


def here(device: int) -> dict[str, str]:
    """The fields of a choice that say where and when it was measured: now, on the GPU of this number."""
    name, major, minor = decision.native.cuda_gpu(device)
    versions = {"torch": torch.__version__, "gru_ext": __version__}
    date = time.strftime("%Y-%m-%d", time.gmtime())
    return {"gpu": name, "compute_capability": f"{major}.{minor}", **versions, "date": date}


def read(path: Path) -> list[Choice]:
    """The choices in a file.

    Raises:
        ValueError: the file is missing, cannot be read or is damaged; the caller adds its name to the message
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))[LIST]
        return [_choice(entry) for entry in entries]
    except OSError as error:
        raise ValueError(f"it cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"it is damaged, or no file of gru_ext.tune's: {reason}") from None


def check(path: Path) -> None:
    """Raises ValueError where nothing can be saved: the folder is missing, or the file is of another kind."""
    if not path.absolute().parent.is_dir():
        raise ValueError(f"save is {path}: there is no folder {path.parent}")
    if path.exists():
        try:
            read(path)
        except ValueError as error:
            raise ValueError(f"save is {path}: {error}") from None


def save(path: Path, choice: Choice) -> None:
    """Adds a choice to a file, atomically, in place of an earlier one for the same.

    Processes that save into the same file must take turns.

    Raises:
        ValueError: the file is of another kind
        OSError: the file cannot be written
    """
    kept = [other for other in (read(path) if path.exists() else []) if other.key != choice.key]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text(_text([*kept, choice]), encoding="utf-8")
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def load() -> None:
    """Makes the choices in the file that the environment names; warns if none is for these versions.

    Raises:
        ImportError: the file is missing, cannot be read or is damaged
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return
    try:
        choices = read(Path(path))
        fitting = [choice for choice in choices if (choice.torch, choice.gru_ext) == (torch.__version__, __version__)]
        for choice in fitting:
            choice.use()
    except ValueError as error:
        raise ImportError(f"{VARIABLE} is {path}: {error}") from None
    if not fitting:
        warnings.warn(
            f"{VARIABLE} is {path}: of its {len(choices)} choices none was made with torch {torch.__version__} and "
            f"gru_ext {__version__}; gru_ext.tune makes new ones",
            stacklevel=2,
        )


def _choice(entry: Any) -> Choice:
    """An entry of the file. Raises KeyError, TypeError or ValueError for an invalid one."""
    for field in fields(Choice):
        value, kind = entry[field.name], cast(Any, field.type)
        right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)  # True is an int
        if not right or (kind is int and not 0 <= value < 2**31):
            raise ValueError(f"{field.name} is {value!r}")
    return Choice(**{field.name: entry[field.name] for field in fields(Choice)})


def _text(choices: Sequence[Choice]) -> str:
    """JSON with a line for each choice."""
    entries = ",\n".join(f"  {json.dumps(asdict(choice))}" for choice in choices)
    return f'{{"{LIST}": [\n{entries}\n]}}\n'


if "cuda" in ops.DEVICE_TYPES:
    load()
