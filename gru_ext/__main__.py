"""The command line: ``python -m gru_ext COMMAND``."""

import argparse
import os
import sys
from types import ModuleType
from typing import NoReturn

from gru_ext.commands import bench, explain, info, profile, roofline, tune
from gru_ext.measure import BadInput

PROGRAM = "python -m gru_ext"
INTERRUPTED = 130
# Each has the line of its help first in its text, add_arguments and run.
COMMANDS: dict[str, ModuleType] = {
    "info": info,
    "explain": explain,
    "bench": bench,
    "tune": tune,
    "profile": profile,
    "roofline": roofline,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Bad usage: one sentence, exit code 2."""
        known = f"the commands are {', '.join(COMMANDS)}" if self.prog == PROGRAM else f"`{self.prog} --help` says more"
        self.exit(2, f"{self.prog}: {message}; {known}.\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line and gives its exit code: 2 for bad usage and bad input, 130 when interrupted."""
    parser = _Parser(prog=PROGRAM, description="GRU kernels for PyTorch.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, module in COMMANDS.items():
        text = module.__doc__ or ""
        help = text.splitlines()[0].rstrip(".") if text else ""
        formatter = argparse.RawDescriptionHelpFormatter
        module.add_arguments(commands.add_parser(name, help=help, description=text, formatter_class=formatter))
    parsed = parser.parse_args(arguments)
    try:
        return int(COMMANDS[parsed.command].run(parsed))
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
