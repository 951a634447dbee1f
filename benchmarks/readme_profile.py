"""Generate the README's worked example of a profile from the committed run, and its roofline plots.

    python benchmarks/readme_profile.py --measure    # run the example on this machine, which should be idle; then write
    python benchmarks/readme_profile.py              # rewrite the README between its two markers
    python benchmarks/readme_profile.py --check      # exit code 1 when the README says something else

The run is benchmarks/results/profile/cpu.json, what the command that the README shows prints with --json; the plots are
benchmarks/results/roofline/*.svg, by ``python -m gru_ext roofline --output``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator

from readme_part import ROOT, rewrite

from gru_ext.measure.profiling import Profile
from gru_ext.measure.tables import profile_heading, profile_parts

README = ROOT / "README.md"
RESULT = ROOT / "benchmarks" / "results" / "profile" / "cpu.json"
ROOFLINES = ROOT / "benchmarks" / "results" / "roofline"
BEGIN, END = "<!-- profile:begin -->", "<!-- profile:end -->"
EXAMPLE = "profile --batch 8 --time 100 --input-size 80 --hidden-size 256 --training --threads 2"
WIDTH = 80


def measure() -> None:
    """Runs the example and keeps what it prints."""
    command = [sys.executable, "-m", "gru_ext", *EXAMPLE.split(), "--json"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(done.stdout, encoding="utf-8")


def printed() -> Iterator[str]:
    """What the example printed, line by line."""
    (report,) = json.loads(RESULT.read_text(encoding="utf-8"))
    yield from profile_heading(report["title"], report, WIDTH)
    yield ""
    for part in profile_parts(Profile.from_dict(report)):
        yield from [part] if isinstance(part, str) else part.lines(WIDTH)


def example() -> Iterator[str]:
    """The README's lines between the markers."""
    yield "```sh"
    yield f"python -m gru_ext {EXAMPLE}"
    yield "```"
    yield ""
    if RESULT.exists():
        yield "```text"
        yield from printed()
        yield "```"
    else:
        yield "(No run of it is committed yet: `python benchmarks/readme_profile.py --measure` makes one.)"
    for path in sorted(ROOFLINES.glob("*.svg")):
        figures = path.with_suffix(".csv").relative_to(ROOT).as_posix()
        yield ""
        yield f"![Roofline {path.stem}]({path.relative_to(ROOT).as_posix()})"
        yield ""
        yield f"[Its figures]({figures})"


def main() -> int:
    """Rewrite or check the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--measure", action="store_true", help="run the example anew first")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 when the README is stale")
    arguments = parser.parse_args()
    if arguments.measure:
        measure()
    return rewrite(README, (BEGIN, END), "\n".join(example()), arguments.check, RESULT.parent)


if __name__ == "__main__":
    sys.exit(main())
