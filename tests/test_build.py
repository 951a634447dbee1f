"""The build as a user meets it: what it refuses, its metadata, an absent or foreign build, and the info command."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from processes import PACKAGE, python

import gru_ext
from gru_ext import _C, _build

ROOT = PACKAGE.parent
SETUP = ROOT / "setup.py"
needs_sources = pytest.mark.skipif(not SETUP.is_file(), reason="gru_ext is installed, its sources are elsewhere")


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the package that may be damaged; returns the directory to import it from."""
    shutil.copytree(PACKAGE, tmp_path / "gru_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the checkout with its build, but without what builds leave outside the package."""
    ignored = shutil.ignore_patterns(".git", "build", "dist", "*.egg-info", "__pycache__", ".venv*", ".*_cache")
    shutil.copytree(ROOT, tmp_path / "sources", ignore=ignored)
    return tmp_path / "sources"


def config_of(copied: Path, **changed: object) -> Path:
    """The record beside the library, in which fields may be replaced by others."""
    path = copied / "gru_ext" / Path(_C.__file__).with_suffix(".json").name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return path


def run_setup(*arguments: str, cwd: Path, before: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run setup.py in ``cwd``, after statements that make Python another than it is."""
    script = f"import runpy, sys\n{before}\nsys.argv[0] = 'setup.py'\nrunpy.run_path('setup.py', run_name='__main__')"
    return python("-c", script, *arguments, cwd=cwd, **variables)


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
    """Sources only, as in a fresh clone; a library of another Python is none; and one without its record."""
    config = config_of(copied)
    (library,) = (copied / "gru_ext").glob("_C*.so")
    library.rename(library.with_name("_C.cpython-399-x86_64-linux-gnu.so"))
    refused(copied, "not been built for Python", str(copied))
    (copied / "setup.py").touch()
    refused(copied, f"`pip install --no-build-isolation -e {copied}`")
    library.with_name("_C.cpython-399-x86_64-linux-gnu.so").rename(library)
    config.unlink()
    refused(copied, config.name)


@pytest.mark.parametrize("version", ["1.13.1", "99.0.0+cu999"])
def test_build_for_another(copied: Path, version: str) -> None:
    """A build for another torch is refused before the library is touched."""
    config_of(copied, torch_version=version)
    refused(copied, version, torch.__version__)


def test_build_for_another_cuda(copied: Path) -> None:
    """A CUDA build under a torch for another CUDA, or for none."""
    config_of(copied, with_cuda=True, cuda_version="9.2")
    refused(copied, "9.2")


def test_another_patch_version_is_accepted(copied: Path) -> None:
    """One build serves one minor version: 2.13.0 and 2.13.9 alike."""
    major, minor = torch.__version__.split(".")[:2]
    config_of(copied, torch_version=f"{major}.{minor}.9")
    done = python("-c", "import gru_ext", path=copied, cwd=copied)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "{}"])
def test_damaged_metadata(copied: Path, content: str) -> None:
    """Metadata that cannot be read is one sentence as well."""
    config_of(copied).write_text(content)
    refused(copied)


ANEW = "install --no-build-isolation --no-cache-dir --force-reinstall --no-deps"


@pytest.mark.parametrize(
    ("origin", "installer", "command"),
    [
        ({"url": "file://HERE", "dir_info": {"editable": True}}, "pip", f"`pip {ANEW} -e 'HERE'`"),
        ({"url": "file://HERE", "dir_info": {}}, "pip", f"`pip {ANEW} 'HERE'`"),
        ({"url": "file://HERE", "dir_info": {}}, "uv", f"`uv pip {ANEW} 'HERE'`"),
        ({"url": "file://HERE/gone", "dir_info": {}}, "pip", f"`pip {ANEW} .` in its source directory"),
        (
            {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "12ab", "requested_revision": "main"}},
            "pip",
            f"`pip {ANEW} git+https://a.b/c@12ab`",
        ),
        ({"url": "https://a.b/c-1.tar.gz", "archive_info": {}}, "pip", f"`pip {ANEW} https://a.b/c-1.tar.gz`"),
        ({"url": "https://a.b/c-1.whl", "archive_info": {}}, "pip", f"`pip {ANEW} .` in its source directory"),
        (["damaged"], "pip", f"`pip {ANEW} .` in its source directory"),
    ],
)
def test_the_mending_command_is_that_of_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: object, installer: str, command: str
) -> None:
    """The command names where this copy came from, and leaves pip no wheel that it has built before."""
    here = tmp_path / "a place"
    record = here / "gru_ext-0.1.0.dist-info"
    for folder in (here / "gru_ext", record):
        folder.mkdir(parents=True)
    (record / "METADATA").write_text("Metadata-Version: 2.4\nName: gru_ext\nVersion: 0.1.0\n")
    (record / "INSTALLER").write_text(f"{installer}\n")
    (record / "direct_url.json").write_text(json.dumps(origin).replace("HERE", here.as_posix().replace(" ", "%20")))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setattr(_build, "PACKAGE", here / "gru_ext")
    assert _build.mend() == f"run {command.replace('HERE', str(here))}"


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


def test_info_says_why_cuda_was_not_built(copied: Path) -> None:
    """With the reason that setup.py gave when it left the kernels out."""
    if _C.build_info()["with_cuda"]:
        assert json.loads(config_of(copied).read_text())["without_cuda"] == ""
        return
    config_of(copied, without_cuda="no toolkit that day")
    assert "CUDA           not built: no toolkit that day\n" in python("-m", "gru_ext", "info", path=copied).stdout


def test_build_info_is_that_of_this_torch() -> None:
    """What the library says of itself agrees with the file beside it and with the running torch."""
    build = _C.build_info()
    config = json.loads(Path(_C.__file__).with_suffix(".json").read_text())
    assert {*build, "without_cuda"} == set(config)
    assert build["with_cuda"] == config["with_cuda"]
    for version in (build["torch_version"], config["torch_version"]):
        assert str(version).split(".")[:2] == torch.__version__.split(".")[:2]


def test_the_library_names_no_folder_of_the_machine_that_built_it() -> None:
    """torch's assertions hold the names of their source files."""
    library = Path(_C.__file__).read_bytes()
    assert b"csrc/torch/" in library
    folders = set(re.findall(rb"/[\w./-]*(?=/csrc/torch/|/torch/include/|/site-packages/)", library))
    assert not folders, sorted(folders)


def test_which_devices_have_kernels() -> None:
    """The CPU in any build; none that nobody wrote kernels for."""
    assert gru_ext.ops.has_kernel("cpu", torch.float32) and not gru_ext.ops.has_kernel("mps", torch.float32)


@needs_sources
@pytest.mark.parametrize(
    ("before", "variables", "message"),
    [
        ("sys.version_info = (3, 9, 1)", {}, "needs Python 3.10 or newer, this is "),
        ("import setuptools; setuptools.__version__ = '65.5.0'", {}, 'run `pip install "setuptools>=77"`'),
        ("sys.modules['torch'] = None", {}, "then run `pip install --no-build-isolation .`"),
        (
            "import torch; torch.__version__ = '2.10.2+cpu'",
            {},
            'torch 2.10.2+cpu is not supported: run `pip install "to',
        ),
        ("torch.__version__ = '3.0.0'", {}, 'not supported: run `pip install "torch>=2.11,<3.0"`'),
        ("import sysconfig; sysconfig.get_path = lambda name: '/nowhere'", {}, "Python.h is not in /nowhere: install"),
        ("", {"CXX": "no-such-compiler"}, "the C++ compiler `no-such-compiler` does not run: install"),
        ("import shutil; shutil.which = lambda *_, **__: None", {"PATH": "/nowhere"}, "run `pip install ninja`"),
        ("", {"GRU_EXT_SPIN_LIMIT": "soon"}, "GRU_EXT_SPIN_LIMIT must be a whole number of at least 1, got 'soon'"),
        ("", {"GRU_EXT_SPIN_LIMIT": "0"}, "GRU_EXT_SPIN_LIMIT must be a whole number of at least 1, got '0'"),
        ("", {"GRU_EXT_CPU_ONLY": "maybe"}, "GRU_EXT_CPU_ONLY must be 1 or 0, got 'maybe'"),
    ],
)
def test_what_cannot_build_says_so_at_once(
    tmp_path: Path, before: str, variables: dict[str, str], message: str
) -> None:
    """In one sentence, and before anything is compiled."""
    stub = "import types; torch = sys.modules['torch'] = types.ModuleType('torch'); torch.__version__ = '2.13.0'; "
    if "PATH" in variables:
        variables = {**variables, "CXX": str(shutil.which("c++"))}
    done = run_setup("dist_info", "--output-dir", str(tmp_path), cwd=ROOT, before=stub + before, **variables)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("gru_ext: ") and message in line


@needs_sources
def test_the_oldest_python_that_is_refused_can_read_setup() -> None:
    """A syntax error would be no advice."""
    ast.parse(SETUP.read_text(encoding="utf-8"), feature_version=(3, 9))


@pytest.mark.slow
@needs_sources
def test_source_distribution(sources: Path, tmp_path: Path) -> None:
    """The sdist, made without torch, holds every source that the build needs, and nothing that was built here."""
    without = "sys.modules['torch'] = None"
    done = run_setup("--quiet", "sdist", "--dist-dir", str(tmp_path / "dist"), cwd=sources, before=without)
    assert done.returncode == 0, done.stderr
    (archive,) = (tmp_path / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.split("/", 1)[1] for name in opened.getnames() if "/" in name}
        (metadata,) = (
            opened.extractfile(name) for name in opened.getnames() if name.count("/") == 1 and "PKG-" in name
        )
        assert metadata and b"Requires-Dist: torch<3.0,>=2.11\n" in metadata.read()
    expected = {
        path.relative_to(sources).as_posix()
        for folder in ("csrc", "tests", "gru_ext")
        for path in (sources / folder).rglob("*")
        if path.suffix in (".cpp", ".h", ".cu", ".cuh", ".py", ".pyi", ".typed")
    }
    expected |= {"setup.py", "pyproject.toml", "gru_ext/py.typed"}
    assert len([name for name in expected if name.startswith("csrc/")]) > 10
    assert expected <= names, f"not in the sdist: {sorted(expected - names)}"
    built = {name for name in names if re.search(r"\.so$|\.o$|\.pyc$|/_C.*\.json$", name)}
    assert not built, f"built files in the sdist: {sorted(built)}"


@pytest.mark.slow
@needs_sources
def test_what_is_built_is_for_this_torch_and_of_these_sources(sources: Path, tmp_path: Path) -> None:
    """The wheel requires the minor version of torch that it serves, and holds no module of an earlier build."""
    deleted = tmp_path / "lib" / "gru_ext" / "deleted.py"
    deleted.parent.mkdir(parents=True)
    deleted.touch()
    metadata, lib = ("dist_info", "--output-dir", str(tmp_path)), ("build_py", "--build-lib", str(tmp_path / "lib"))
    done = run_setup("--quiet", *metadata, *lib, cwd=sources)
    assert done.returncode == 0, done.stderr
    assert not deleted.exists() and (deleted.parent / "modules.py").is_file()
    (distribution,) = importlib.metadata.distributions(name="gru_ext", path=[str(tmp_path)])
    release = ".".join(torch.__version__.split(".")[:2])
    assert f"torch=={release}.*" in (distribution.requires or [])


@needs_sources
def test_a_build_in_place_that_cannot_be_written_ends_at_once(sources: Path) -> None:
    """Before compiling; nobody, not even root, writes to /proc."""
    shutil.rmtree(sources / "gru_ext")
    (sources / "gru_ext").symlink_to("/proc/self", target_is_directory=True)
    done = run_setup("--quiet", "build_ext", "--inplace", cwd=sources, CXX="echo")
    assert done.returncode == 1 and done.stderr.startswith("gru_ext: cannot write to /proc/"), done.stderr
    assert not (sources / "build").exists()


@needs_sources
def test_an_editable_install_is_an_entry_of_the_path(tmp_path: Path) -> None:
    """A finder would lose to a checkout called gru_ext beside which Python runs, and the package would be empty."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    for package in sorted(path.parent for path in PACKAGE.rglob("__init__.py")):
        folder = tmp_path / package.relative_to(ROOT)
        folder.mkdir()
        (folder / "__init__.py").touch()
    done = python("-c", "from setuptools import build_meta; build_meta.build_editable('.')", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        (path,) = [name for name in files.namelist() if ".dist-info/" not in name]
        assert path.endswith(".pth") and files.read(path).decode().strip() == str(tmp_path)


@needs_sources
def test_every_package_is_installed() -> None:
    """What pyproject.toml lists is what there is: a folder that is not listed would be missing from the wheel."""
    listed = re.search(r"^packages = \[(.*)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "gru_ext").rglob("__init__.py")}
    assert set(re.findall(r'"([^"]+)"', listed[1])) == there
