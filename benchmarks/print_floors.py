"""Prints the peaks of this machine, and the floor of every shape: gru_ext/measure/floor.py has the formula.

python benchmarks/print_floors.py                  # every shape of compare.py
python benchmarks/print_floors.py --threads 1 --dtypes float64 --shapes 32,128,256,256
"""

from __future__ import annotations

import argparse
import sys

from gru_ext.measure.floor import Machine, floor_lines, peak_lines
from gru_ext.measure.workloads import DTYPES, SHAPES, parse_shape


def main() -> int:
    """Print the peaks and the floors."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else "", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--shapes", nargs="+", type=parse_shape, default=list(SHAPES), metavar="B,T,I,H")
    arguments = parser.parse_args()
    if min(arguments.threads) < 1:
        parser.error(f"argument --threads: expected counts of at least 1, got {min(arguments.threads)}")
    machine = Machine()
    what = (machine, arguments.dtypes, arguments.threads, arguments.shapes)
    print("\n".join([*peak_lines(*what), "", *floor_lines(*what)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
