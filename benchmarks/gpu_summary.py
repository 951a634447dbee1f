"""The end of benchmarks/gpu.sh: a short table of what its stages gave.

python benchmarks/gpu_summary.py FOLDER
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree


def stages(folder: Path) -> Iterator[str]:
    """A line for each stage."""
    with (folder / "stages.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield f"{row['stage']:<12} {row['result']:<14} {row['seconds']:>4} s"


def tests(path: Path) -> Iterator[str]:
    """How many tests there were, and which failed."""
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    counts = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in ("tests", "failures", "errors")}
    skipped = sum(int(suite.get("skipped", 0)) for suite in suites)
    bad = counts["failures"] + counts["errors"]
    yield f"tests: {counts['tests'] - bad - skipped} passed, {bad} failed, {skipped} skipped"
    for suite in suites:
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                yield f"  failed: {case.get('name')}"


def ratios(path: Path) -> Iterator[str]:
    """For each dtype and mode the geometric mean of the ratios and the worst shape."""
    # Here: the summary is made as well when the build failed, and with it gru_ext.
    from gru_ext.measure.measurements import Measurement, by_group, geometric_mean, read_csv

    for (dtype, _, mode), rows in by_group(read_csv(path, Measurement)).items():
        worst = min(rows, key=lambda row: row.ratio)
        mean = geometric_mean([row.ratio for row in rows])
        below = sum(row.ratio < 1 for row in rows)
        yield (
            f"{path.stem:<7} {dtype:<9} {mode:<10} geometric mean {mean:5.2f} over {len(rows)} shapes, "
            f"{below} below 1, worst {worst.ratio:.2f} at {worst.shape}"
        )


def main() -> int:
    """Print what there is; a stage that did not run left nothing."""
    if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "stages.csv").is_file():
        print("usage: gpu_summary.py FOLDER, the folder that gpu.sh wrote", file=sys.stderr)
        return 2
    folder = Path(sys.argv[1])
    lines = list(stages(folder))
    if (folder / "tests.xml").is_file():
        lines += tests(folder / "tests.xml")
    for name in ("padded.csv", "packed.csv"):
        if (folder / name).is_file():
            lines += ratios(folder / name)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
