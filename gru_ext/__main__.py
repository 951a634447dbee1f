"""The command line: ``python -m gru_ext COMMAND``."""

import argparse
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import torch

import gru_ext
from gru_ext.measure import BadInput

PROGRAM = "python -m gru_ext"
INTERRUPTED = 130
COMMANDS = ("info", "explain", "bench", "tune", "profile", "roofline")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage: one sentence, exit code 2."""
        known = f"the commands are {', '.join(COMMANDS)}" if self.prog == PROGRAM else f"`{self.prog} --help` says more"
        self.exit(2, f"{self.prog}: {message}; {known}.\n")


def _first_line(command: str) -> str:
    """The first line of a command's module, which is imported only when it is called."""
    with Path(__file__).parent.joinpath("commands", f"{command}.py").open(encoding="utf-8") as source:
        return source.readline().strip('".\n')


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives its exit code: 2 for bad usage and bad input, 130 when interrupted."""
    parser = _Parser(prog=PROGRAM, description="GRU kernels for PyTorch.")
    versions = f"gru_ext {gru_ext.__version__}, torch {torch.__version__}"
    parser.add_argument("--version", action="version", version=versions)
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    words = sys.argv[1:] if arguments is None else arguments
    called = next((word for word in words if not word.startswith("-")), "")
    for name in COMMANDS:
        help, formatter = _first_line(name), argparse.RawDescriptionHelpFormatter
        of_command = commands.add_parser(name, help=help, formatter_class=formatter)
        if name == called:
            module = importlib.import_module(f"gru_ext.commands.{name}")
            of_command.description = module.__doc__
            module.add_arguments(of_command)
    parsed, unknown = parser.parse_known_args(words)
    if unknown:  # parse_args would blame the program, and name the commands
        commands.choices[parsed.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        return int(module.run(parsed))
    except BadInput as error:
        print(f"{PROGRAM} {parsed.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM} {parsed.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # such as by `| head`; what is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
