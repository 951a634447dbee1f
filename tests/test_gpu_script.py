"""benchmarks/gpu.sh without a GPU: parts fail one by one with their sentence, the gate closes, limits and files hold.

Where everything must go well, what needs a GPU is a stub: a kit, a Python and NVIDIA's tools that say what they were
called with.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import algorithms
import gpu_summary
import pytest
import torch
import tune_cuda
from processes import PACKAGE

from gru_ext.measure import measurements

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "benchmarks" / "gpu.sh"
PYTHON_STUB = f"""#!/bin/sh
case "$*" in *gpu_summary*) exec {sys.executable} "$@" ;; *is_available*) echo True; exit ;; esac
echo "called: $*"
"""
KIT_STUB = '#!/bin/sh\necho "called: $(basename $0) $*"\n'


def run(root: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script of a checkout with this Python, unless PYTHON says otherwise."""
    return subprocess.run(
        ["bash", str(root / "benchmarks" / "gpu.sh"), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def results(folder: Path) -> dict[str, str]:
    """What became of each part."""
    with next(folder.glob("parts-*.csv")).open(newline="", encoding="utf-8") as file:
        return {row["part"]: row["result"] for row in csv.DictReader(file)}


def log_of(folder: Path) -> str:
    """What the parts printed."""
    return next(folder.glob("log-*.txt")).read_text(encoding="utf-8")


def write_program(path: Path, text: str) -> Path:
    """A script that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def write_junit(path: Path, results: dict[str, str]) -> None:
    """What pytest reports of these tests of test_cuda."""
    cases = (f'<testcase classname="tests.test_cuda" name="{name}">{of}</testcase>' for name, of in results.items())
    path.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", encoding="utf-8")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the sources without git, with a kit of stubs that fits them."""
    root = tmp_path / "checkout"
    for name in ("benchmarks", "csrc", "gru_ext", "tests"):
        ignored = shutil.ignore_patterns("results", "__pycache__", "*.so", "_C*.json")
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("checks", "latencies", "steps"):
        write_program(root / "build" / "gpu-kit" / name, KIT_STUB)
    kit = str(root / "benchmarks" / "gpu_kit.sh")
    digest = subprocess.run(["bash", kit, "digest"], capture_output=True, text=True, check=True).stdout
    (root / "build" / "gpu-kit" / "record").write_text(f"digest {digest}", encoding="utf-8")
    (root / "build" / "gpu-kit" / "spin").mkdir()
    (root / "build" / "gpu-kit" / "plain").symlink_to(PACKAGE.parent)
    return root


@pytest.fixture
def gpu(tmp_path: Path) -> dict[str, str]:
    """The environment in which a GPU seems to be there."""
    for name in ("nvidia-smi", "compute-sanitizer"):
        write_program(tmp_path / "bin" / name, KIT_STUB)
    export = 'while [ $# -gt 0 ]; do [ "$1" = --export ] && echo "a report" > "$2.ncu-rep"; shift; done\n'
    write_program(tmp_path / "bin" / "ncu", KIT_STUB + export)
    python = write_program(tmp_path / "bin" / "python", PYTHON_STUB)
    return {"PYTHON": str(python), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def listed(name: str) -> list[str]:
    """The words of an array of the script."""
    array = re.search(rf"^{name}=\((.*?)\)", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert array
    return array[1].split()


def test_limits() -> None:
    """A call takes ten minutes at most: ended from outside, it would lose what its last part has not written yet.

    What has a limit within a part ends before the part, whose end would not reach it: it is a process group of its own.
    """
    limits = {part: int(n) for part, n in re.findall(r"\[(\w+)\]=(\d+)", " ".join(listed("declare -A LIMIT")))}
    for call in ("FIRST", "SECOND", "THIRD"):
        assert sum(limits[part] for part in listed(call)) <= 600
    text = SCRIPT.read_text(encoding="utf-8")
    times = {"primitives": (1, 10, 1), "steps": (4,), "ncu": (3,), "sanitizer": (2, 2)}  # how often each is started
    for part, counts in times.items():
        body = text[text.index(f"part_{part}() {{") :].split("\n}\n")[0]
        inner = [int(seconds) for seconds in re.findall(r"timeout -k \d (\d+)", body)]
        assert len(inner) == len(counts) and sum(map(int.__mul__, counts, inner)) <= limits[part], part


@pytest.mark.parametrize("call", ["first", "second", "third"])
def test_a_call_goes_through_all_its_parts(checkout: Path, gpu: dict[str, str], tmp_path: Path, call: str) -> None:
    """With eight files at most, in one folder; the kit at hand is used, and not made again."""
    done = run(checkout, call, "--output", tmp_path / "out", **gpu)
    assert done.returncode == 0, done.stdout + done.stderr
    assert results(tmp_path / "out") == dict.fromkeys(listed(call.upper()), "passed")
    assert len(list((tmp_path / "out").iterdir())) <= 8 and not list((tmp_path / "out").glob("*/"))
    log = log_of(tmp_path / "out")
    assert "gpu-kit-sources" not in log and not (checkout / "build" / "gpu-kit-sources").exists()
    expected = {
        "first": (
            *("called: checks all", "called: steps", "-m not alone", "-m alone"),
            *("gru_ext bench --preset", "regex:forward_sta"),
        ),
        "second": ("-m not alone", "--shapes 8,256,256,256 64,256,256,256", "--layout packed", "--bidirectional"),
        "third": ("--graph --layout packed", "--device cuda --quick --dtype float32-vs-tf32", "--tool racecheck"),
    }
    assert all(words in log for words in expected[call]), log


def test_wrong_primitives_end_the_first_call(checkout: Path, gpu: dict[str, str], tmp_path: Path) -> None:
    """Each of them runs alone once more, and nothing is measured."""
    write_program(checkout / "build" / "gpu-kit" / "checks", KIT_STUB + '[ "$1" != all ]\n')
    done = run(checkout, "first", "--output", tmp_path / "out", **gpu)
    assert done.returncode == 1
    assert results(tmp_path / "out") == {"kit": "passed", "device": "passed", "primitives": "failed"}
    log = log_of(tmp_path / "out")
    assert "called: checks ring 0 12" in log and "no kernel is worth a measurement" in log
    assert "called: steps" not in log and "=== summary" in done.stdout


def test_a_kit_for_other_sources_is_not_used(checkout: Path, gpu: dict[str, str], tmp_path: Path) -> None:
    """One line of a kernel is enough; the kit is then made anew, which fails here for want of a torch with CUDA."""
    with (checkout / "csrc" / "cuda" / "stationary.h").open("a", encoding="utf-8") as file:
        file.write("// changed\n")
    write_program(tmp_path / "bin" / "python", '#!/bin/sh\necho "no torch with CUDA" >&2\nexit 1\n')
    done = run(checkout, "kit", "--output", tmp_path / "out", **gpu)
    assert done.returncode == 1 and results(tmp_path / "out") == {"kit": "failed"}
    assert "the kit is one for other sources" in done.stdout and "no torch with CUDA" in done.stdout


def test_failed_runs_what_failed(checkout: Path, gpu: dict[str, str], tmp_path: Path) -> None:
    """The tests that the last summary has listed, or those that are named; each under memcheck, with the spin limit."""
    folder = tmp_path / "out"
    done = run(checkout, "failed", "--output", folder, **gpu)
    assert done.returncode == 1 and "no test is known to have failed" in done.stdout
    write_junit(folder / "tests-parts.xml", {"test_shapes[a-b]": "<failure/>"})
    run(checkout, "device", "--output", folder, **gpu)
    done = run(checkout, "failed", "--output", folder, **gpu)
    assert "--- tests/test_cuda.py::test_shapes[a-b]" in done.stdout
    assert re.search(r"compute-sanitizer --tool memcheck .* tests/test_cuda\.py::test_shapes\[a-b\]", done.stdout)
    done = run(checkout, "failed", "--output", folder, "tests/test_cuda.py::test_tune", **gpu)
    assert re.findall(r"--- (\S+)", done.stdout) == ["tests/test_cuda.py::test_tune"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the parts would succeed")
def test_a_failed_part_does_not_stop_the_next(checkout: Path, tmp_path: Path) -> None:
    """Each that needs a GPU ends with its sentence."""
    parts = ("device", "steps", "compare", "tune")
    done = run(checkout, *parts, "--output", tmp_path / "out")
    assert done.returncode == 1
    assert results(tmp_path / "out") == dict.fromkeys(parts, "failed")
    log = log_of(tmp_path / "out")
    assert log.count("sees no GPU") >= len(parts) - 1 and "=== summary" in done.stdout


def test_a_part_ends_at_its_limit(checkout: Path, tmp_path: Path) -> None:
    """Its own processes too: here a Python that sleeps for ten minutes."""
    sleeper = write_program(tmp_path / "python", PYTHON_STUB + "exec sleep 600\n")
    done = run(checkout, "algorithms", "--output", tmp_path / "out", PYTHON=str(sleeper), GPU_PART_SECONDS="3")
    assert done.returncode == 1
    assert results(tmp_path / "out") == {"algorithms": "out of time"}


@pytest.mark.parametrize("arguments", [("nonsense",), ("first",), ()])
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...]) -> None:
    """And exit code 2, before anything runs."""
    done = run(ROOT, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("gpu.sh: ") and len(done.stderr.splitlines()) == 1


def test_help_names_the_calls() -> None:
    """The head of the script."""
    done = run(ROOT, "--help")
    assert done.returncode == 0 and "gpu.sh first  --output FOLDER" in done.stdout


def test_summary_of_measurements(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ratios for each dtype, layout and mode; failed tests by name, and in a file; kernels that were wrong."""
    first = measurements.read_csv(ROOT / "benchmarks" / "results" / "cpu.csv", measurements.Measurement)[0]
    rows = [
        replace(first, device="cuda", dtype="tf32", mode="inference", batch=batch, ratio=ratio)
        for batch, ratio in ((1, 4.0), (8, 0.25))
    ]
    measurements.write_csv(tmp_path / "compare.csv", rows)
    (tmp_path / "parts-first.csv").write_text("part,result,seconds\ncompare,passed,12\n", encoding="utf-8")
    write_junit(tmp_path / "tests-first.xml", {"test_a": "", "test_b[1]": "<failure/>", "test_c": "<skipped/>"})
    (tmp_path / "steps.csv").write_text(
        "kernel,pass,mode,dtype,hidden_size,batch,microseconds,cycles,megahertz,note\n"
        "grid,forward,training,tf32,200,5,,,,output[3] is 1 and should be 2\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(
        sys, "argv", ["gpu_summary.py", str(tmp_path), "first", "--failed", str(tmp_path / "failed.txt")]
    )
    assert gpu_summary.main() == 0
    printed = capsys.readouterr().out
    assert "tests-first.xml: 1 passed, 1 failed, 1 skipped" in printed and "failed: test_b[1]" in printed
    assert "geometric mean  1.00 over 2 shapes, 1 below 1" in printed and f"worst 0.25 at {rows[1].shape}" in printed
    assert "steps: grid tf32 H=200 B=5 forward training: output[3] is 1 and should be 2" in printed
    assert (tmp_path / "failed.txt").read_text(encoding="utf-8") == "tests/test_cuda.py::test_b[1]\n"


@pytest.mark.parametrize("program", [algorithms, tune_cuda])
def test_a_file_that_cannot_be_written_ends_a_program_at_once(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--csv", str(tmp_path / "missing" / "rows.csv")])
    with pytest.raises(SystemExit, match="2"):
        program.main()
    assert "argument --csv: there is no folder" in capsys.readouterr().err
