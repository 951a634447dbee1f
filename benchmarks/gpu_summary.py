"""The end of benchmarks/gpu.sh: a table of one screen, from what its parts have written.

python benchmarks/gpu_summary.py FOLDER CALL [--failed FILE]

CALL (first, second, ...) is in the names of what each call writes anew: parts-CALL.csv, tests-CALL.xml. FILE gets the
tests that failed, one a line, as pytest names them.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent
PATHS = ROOT / "benchmarks" / "results" / "compile" / "path.csv"
MOST_NAMES = 12  # of failed tests, and of wrong kernels


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none where there is no such file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parts(path: Path) -> Iterator[str]:
    """What became of each part."""
    for row in read(path):
        yield f"{row['part']:<12} {row['result']:<14} {row['seconds']:>4} s"


def tests(path: Path, failed: list[str]) -> Iterator[str]:
    """How many tests there were; those that failed are added to ``failed``."""
    try:
        suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError) as error:
        yield f"{path.name}: not read ({error})"
        return
    cases = [case for suite in suites for case in suite.iter("testcase")]
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    yield f"{path.name}: {len(cases) - len(bad) - skipped} passed, {len(bad)} failed, {skipped} skipped"
    for case in bad:
        file = (case.get("classname") or "tests.test_cuda").replace(".", "/")
        failed.append(f"{file}.py::{case.get('name')}")
        if len(failed) <= MOST_NAMES:
            yield f"  failed: {case.get('name')}"


def steps(path: Path) -> Iterator[str]:
    """Kernels that were wrong, and of the others the cycles a step beside those that their machine code was counted to.

    The count (benchmarks/compile_report.py --path) is of bfloat16; of those measured here only 8 sequences are surely
    one group.
    """
    counted = {
        (row["kernel"], row["hidden_size"], row["pass"], row["mode"]): row["cycles"]
        for row in read(PATHS)
        if (row["batch"], row["rows"]) == ("8", "padded")
    }
    notes = 0
    for row in read(path):
        name = f"{row['kernel']} {row['dtype']} H={row['hidden_size']} B={row['batch']} {row['pass']} {row['mode']}"
        if row["note"]:
            notes += 1
            if notes <= MOST_NAMES:
                yield f"steps: {name}: {row['note']}"
        elif row["dtype"] == "bfloat16" and row["batch"] == "8" and row["mode"] == "training":
            count = counted.get((row["kernel"], row["hidden_size"], row["pass"], row["mode"]))
            if count is not None:
                yield f"steps: {name}: {row['microseconds']} us, {row['cycles']} cycles, {count} counted"


def ratios(path: Path) -> Iterator[str]:
    """For each dtype, layout and mode the geometric mean of the ratios and the worst shape."""
    # Here: the summary is made as well when the build failed, and with it gru_ext.
    from gru_ext.measure.measurements import Measurement, by_group, geometric_mean, read_csv

    try:
        measurements = read_csv(path, Measurement)
    except (KeyError, TypeError, ValueError) as error:  # cut short while it was written
        yield f"{path.name}: not read ({error})"
        return
    for layout in dict.fromkeys(row.layout for row in measurements):
        for (dtype, _, mode), rows in by_group([row for row in measurements if row.layout == layout]).items():
            worst = min(rows, key=lambda row: row.ratio)
            mean = geometric_mean([row.ratio for row in rows])
            below = sum(row.ratio < 1 for row in rows)
            yield (
                f"{layout:<10} {dtype:<9} {mode:<10} geometric mean {mean:5.2f} over {len(rows)} shapes, "
                f"{below} below 1, worst {worst.ratio:.2f} at {worst.shape}"
            )


def main() -> int:
    """Print what there is; a part that did not run left nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="that gpu.sh wrote")
    parser.add_argument("call", metavar="CALL", help="which of its calls")
    parser.add_argument("--failed", type=Path, metavar="FILE", help="where to list the tests that failed")
    arguments = parser.parse_args()
    folder: Path = arguments.folder
    about = folder / f"parts-{arguments.call}.csv"
    if not about.is_file():
        print(f"gpu_summary: there is no {about}, which gpu.sh writes", file=sys.stderr)
        return 2
    print("\n".join(parts(about)))
    failed: list[str] = []
    files = [path for path in (folder / f"tests-{arguments.call}.xml", folder / "alone.xml") if path.is_file()]
    for path in files:
        print("\n".join(tests(path, failed)))
    if arguments.failed and files:
        arguments.failed.write_text("".join(f"{test}\n" for test in failed), encoding="utf-8")
    for line in steps(folder / "steps.csv"):
        print(line)
    for path in sorted(folder.glob("compare*.csv")):
        for line in ratios(path):
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
