"""Running Python in a process of its own, for what may crash, hang, or needs a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import gru_ext

PACKAGE = Path(gru_ext.__file__).resolve().parent
TESTS = Path(__file__).resolve().parent


def environment(path: Path | None = None, **variables: str) -> dict[str, str]:
    """This process's environment with the package found in ``path`` (where it is now, if not given)."""
    search = [str(path or PACKAGE.parent), str(TESTS)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(search), **variables}


def python(
    *arguments: str, path: Path | None = None, timeout: float = 120, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with ``arguments``; ``variables`` are added to the environment.

    The process runs in ``cwd`` (the tests' directory when not given), so that no package is found by accident there.
    """
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment(path, **variables),
        cwd=cwd or TESTS,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def check_python(code: str, **options: object) -> str:
    """Run a script that must succeed and return what it printed."""
    done = python("-c", code, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
