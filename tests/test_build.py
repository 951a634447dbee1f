"""The build as a user meets it: the info command, an absent or foreign build, and the source distribution."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from processes import PACKAGE, python

import gru_ext
from gru_ext import _C

ROOT = PACKAGE.parent


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package that may be damaged; returns the directory to import it from."""
    shutil.copytree(PACKAGE, tmp_path / "gru_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def refused(path: Path, *words: str) -> str:
    """Import the package in ``path``, which must fail with one sentence; returns the sentence."""
    done = python("-c", "import gru_ext", path=path, cwd=path)
    assert done.returncode == 1, done.stdout + done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: "), done.stderr
    for word in ("gru_ext", "pip install --no-build-isolation", *words):
        assert word in last, f"{word!r} is not in: {last}"
    return last


def test_copy_works(copied: Path) -> None:
    """The control: undamaged, the copy imports from where it is."""
    done = python("-c", "import gru_ext; print(gru_ext.__file__)", path=copied, cwd=copied)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == copied / "gru_ext"


def test_missing_build(copied: Path) -> None:
    """Sources only, as in a fresh clone."""
    for library in (copied / "gru_ext").glob("_C*.so"):
        library.unlink()
    refused(copied)
    (copied / "gru_ext" / "_build_config.json").unlink()
    refused(copied)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("torch_version", "1.13.1", ("1.13.1", torch.__version__)),
        ("torch_version", "99.0.0+cu999", ("99.0.0", torch.__version__)),
        ("python_version", "3.6.1", ("3.6",)),
    ],
)
def test_build_for_another(copied: Path, field: str, value: str, words: tuple[str, ...]) -> None:
    """A build for another torch or Python is refused before the library is touched."""
    path = copied / "gru_ext" / "_build_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, field: value}))
    refused(copied, *words)


def test_build_for_another_cuda(copied: Path) -> None:
    """A CUDA build under a torch for another CUDA, or for none."""
    path = copied / "gru_ext" / "_build_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "with_cuda": True, "cuda_version": "9.2"}))
    refused(copied, "9.2")


def test_another_patch_version_is_accepted(copied: Path) -> None:
    """One build serves one minor version: 2.13.0 and 2.13.9 alike."""
    path = copied / "gru_ext" / "_build_config.json"
    config = json.loads(path.read_text())
    major, minor = torch.__version__.split(".")[:2]
    path.write_text(json.dumps({**config, "torch_version": f"{major}.{minor}.9"}))
    done = python("-c", "import gru_ext", path=copied, cwd=copied)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}"])
def test_damaged_metadata(copied: Path, content: str) -> None:
    """Metadata that cannot be read is one sentence as well."""
    (copied / "gru_ext" / "_build_config.json").write_text(content)
    refused(copied)


def test_damaged_library(copied: Path) -> None:
    """A library that does not load is one sentence that says why."""
    for library in (copied / "gru_ext").glob("_C*.so"):
        library.write_bytes(b"not a library")
    refused(copied)


def test_info() -> None:
    """``python -m gru_ext info`` prints versions, build, SIMD target, GPUs and paths; another word is a usage error."""
    done = python("-m", "gru_ext", "info")
    assert done.returncode == 0 and done.stderr == "", done.stderr
    build = _C.build_info()
    wanted = [
        gru_ext.__version__,
        torch.__version__,
        str(build["compiler"]),
        *_C.cpu_targets(),
        "CUDA",
        "GPU",
        "float32",
    ]
    for word in wanted:
        assert word in done.stdout, f"{word!r} is not in:\n{done.stdout}"
    for arguments in (("infos",), ()):
        wrong = python("-m", "gru_ext", *arguments)
        assert wrong.returncode == 2 and "info" in wrong.stderr and "Traceback" not in wrong.stderr


def test_info_says_what_is_in_use() -> None:
    """The SIMD target forced by the environment is the one named as in use."""
    done = python("-m", "gru_ext", "info", GRU_EXT_SIMD="portable")
    (line,) = [line for line in done.stdout.splitlines() if "in use" in line]
    assert "portable" in line and "GRU_EXT_SIMD" in line


def test_build_info_is_that_of_this_torch() -> None:
    """What the library says of itself agrees with the file beside it and with the running torch."""
    build = _C.build_info()
    config = json.loads((PACKAGE / "_build_config.json").read_text())
    assert set(build) == set(config)
    assert build["with_cuda"] == config["with_cuda"]
    for version in (build["torch_version"], config["torch_version"]):
        assert str(version).split(".")[:2] == torch.__version__.split(".")[:2]


def test_which_devices_have_kernels() -> None:
    """The CPU in any build; none that nobody wrote kernels for."""
    assert gru_ext.ops.has_kernel("cpu", torch.float32) and not gru_ext.ops.has_kernel("mps", torch.float32)


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="gru_ext is installed, its sources are elsewhere")
@pytest.mark.parametrize("value", ["soon", "0"])
def test_a_wrong_spin_limit_ends_the_build(value: str) -> None:
    """With one sentence, before anything is compiled."""
    done = python(str(ROOT / "setup.py"), "--version", cwd=ROOT, GRU_EXT_SPIN_LIMIT=value)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"GRU_EXT_SPIN_LIMIT must be a whole number of at least 1, got '{value}'" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="gru_ext is installed, its sources are elsewhere")
def test_source_distribution(tmp_path: Path) -> None:
    """The sdist holds every source that the build needs, and nothing that was built here."""
    sources = tmp_path / "sources"
    ignored = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "__pycache__", ".venv*", ".*_cache")
    shutil.copytree(ROOT, sources, ignore=ignored)
    done = python("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "dist"), cwd=sources, timeout=120)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
    expected = {
        path.relative_to(sources).as_posix()
        for folder in ("csrc", "tests", "gru_ext")
        for path in (sources / folder).rglob("*")
        if path.suffix in (".cpp", ".h", ".cu", ".cuh", ".py", ".pyi", ".typed")
    }
    expected |= {"setup.py", "pyproject.toml", "gru_ext/py.typed"}
    assert len([name for name in expected if name.startswith("csrc/")]) > 10
    assert expected <= names, f"not in the sdist: {sorted(expected - names)}"
    built = {name for name in names if name.endswith((".so", ".o", ".pyc", "_build_config.json"))}
    assert not built, f"built files in the sdist: {sorted(built)}"


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="gru_ext is installed, its sources are elsewhere")
def test_every_package_is_installed() -> None:
    """What pyproject.toml lists is what there is: a folder that is not listed would be missing from the wheel."""
    listed = re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gru_ext").rglob("__init__.py")}
    assert set(re.findall(r'"([^"]+)"', listed[1])) == there
