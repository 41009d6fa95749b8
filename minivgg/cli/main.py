"""`minivgg COMMAND …`: finds the command, and turns bad input into one line and exit status 2."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from minivgg import __version__
from minivgg.cli import (
    bench,
    bugs,
    check,
    compare,
    doctor,
    evaluate,
    gradcheck,
    info,
    predict,
    see,
    summary,
    train,
    weights,
)
from minivgg.errors import BadInput

COMMANDS = (train, predict, evaluate, see, doctor, summary, compare, weights, gradcheck, bugs, check, bench, info)


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="minivgg",
        description="Convolutional networks written from scratch, to be read, learnt from, and raced.",
        epilog="minivgg COMMAND --help says more. Start with: minivgg train",
    )
    top.add_argument("--version", action="version", version=f"minivgg {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return top


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 a gradient, an exercise or a contestant is wrong, 2 bad
    input, 130 interrupted."""
    chosen = parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture for good is an error anyway
    try:
        status = chosen.command(chosen) or 0
        sys.stdout.flush()
        return status
    except BadInput as error:
        print(f"minivgg: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever reads us, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # a full disk, a folder that may not be written to
        print(f"minivgg: {error.filename or 'input/output'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("minivgg: interrupted", file=sys.stderr)
        return 130
