"""The command line: ``python -m gru_ext info``."""

import argparse
import sys
from typing import NoReturn

from gru_ext import info


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage: one sentence, exit code 2."""
        self.exit(2, f"{self.prog}: {message}; the command is `{self.prog} info`.\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives its exit code; bad usage exits with 2."""
    parser = _Parser(prog="python -m gru_ext", description="GRU kernels for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("info", help="versions, what was built, and the path each device takes")
    parser.parse_args(arguments)
    for line in info.lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
