"""Run the commands and programs that README, docs and CONTRIBUTING show, in a clean clone, as a reader would.

    python benchmarks/try_pages.py                       # all pages; some minutes
    python benchmarks/try_pages.py README.md --list      # only print what would run

Blocks marked sh run command by command, and so do commands in the text (`make ...`, `python ...`, `pip ...`,
`benchmarks/...`). The blocks marked python of a page run as one program. The clone has an environment of its own.
Files that the pages call yours (my.csv, shapes.csv, my_package.my_module) lie beside it; ../other is the clone itself.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/profiling.md", "docs/reference.md", "docs/emulator.md", "docs/architecture.md",
         "docs/results.md", "CONTRIBUTING.md")  # fmt: skip
COMMAND = re.compile(r"(make|python|pip|bash|pre-commit|cd) |benchmarks/")
# What does not run, and why. The first that matches counts.
NOT_RUN = {
    r"\.\.\.|FOLDER|CHECKOUT|NAME|B,T,I,H|^benchmarks/[\w./<>-]+$|gru_ext$": "no whole command",
    r"gpu\.sh|--device cuda|tune|algorithms": "needs a GPU",
    r"cuda-build|gpu-kit|compile_report|nvdisasm": "needs nvcc and minutes; .ci/run has its parts",
    r"\.ci/run|make peers|make bench$|--preset standard|random_shapes|make test$|make foreign": "takes many minutes",
    r"pre-commit|make clean": "changes the checkout",
    r'TORCH="torch>=2.11"|gru_ext\[': "fetches several GB, or a released package",
}
MUST_FAIL = ("pip install .",)
YOURS = {
    "my.csv": "temperature\n" + "\n".join(f"{20 + (day % 7) * 0.5 + day * 0.001:.3f}" for day in range(600)) + "\n",
    "shapes.csv": "batch,seq_len,input_size,hidden_size\n4,10,8,16\n",
    "my_package/__init__.py": "",
    "my_package/my_module.py": (
        "import torch\n\n\ndef make_model():\n    return torch.nn.GRU(8, 16, num_layers=2), torch.randn(12, 3, 8)\n"
    ),
}


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def commands(page: str) -> Iterator[str]:
    """Commands of the blocks, without their comments, then those in the text."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            command = re.sub(r"\s+# .*$", "", line).strip()
            if command and not command.startswith("#"):
                yield " ".join(command.split())
    text = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`([^`]+)`", text):
        command = " ".join(span.split())
        if COMMAND.match(command):
            yield command


def reason_not_to_run(command: str) -> str | None:
    """Why this command stays out; None where it runs."""
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command)), None)


def run(command: list[str] | str, where: Path, environment: dict[str, str]) -> bool:
    """Runs it and prints a line, with the end of its output where it fails."""
    begin = time.monotonic()
    shown = command if isinstance(command, str) else "the python blocks"
    words = ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else command
    done = subprocess.run(
        words, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    right = (done.returncode != 0) == (command in MUST_FAIL)
    outcome = "FAILED" if not right else "refused" if done.returncode else "ok"
    print(f"{outcome:8}{time.monotonic() - begin:6.1f} s  {shown}", flush=True)
    if not right:
        print("\n".join(f"    {line}" for line in done.stdout.splitlines()[-15:]))
    return right


def main() -> int:
    """Run all; 1 if a command fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pages", nargs="*", default=PAGES, metavar="PAGE")
    parser.add_argument("--list", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    failed = 0
    seen: set[str] = set()
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "gru_ext"
        environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(Path(folder, "yours"))}
        environment["PATH"] = os.pathsep.join((str(clone / ".venv" / "bin"), os.environ["PATH"]))
        if not arguments.list:
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
            Path(folder, "other").symlink_to(clone)
            failed += not run("make .venv", clone, environment)
            environment["PYTHON"] = str(clone / ".venv" / "bin" / "python")  # or make would use a Python that has torch
            failed += not run("make build", clone, environment)
            failed += not run("pip install numpy matplotlib rich tqdm", clone, environment)
        for name, content in YOURS.items():
            for below in (Path(folder, "yours"), clone):
                (below / name).parent.mkdir(parents=True, exist_ok=True)
                if not arguments.list:
                    (below / name).write_text(content, encoding="utf-8")
        for name in arguments.pages:
            page = ((ROOT if arguments.list else clone) / name).read_text(encoding="utf-8")
            print(f"--- {name}")
            program = "\n".join(blocks(page, "python"))
            if program and not arguments.list:
                failed += not run(["python", "-c", program], clone, environment)
            for command in commands(page):
                why = reason_not_to_run(command)
                if command in seen:
                    continue
                seen.add(command)
                if why or arguments.list:
                    print(f"{'not run' if why else 'runs':8}{'':9} {command}{f'  ({why})' if why else ''}")
                else:
                    failed += not run(command, clone, environment)
    if not arguments.list:
        print(f"{failed} failed" if failed else "all that ran succeeded")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
