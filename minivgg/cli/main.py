"""`minivgg COMMAND …`: finds the command, and turns bad input into one line and exit status 2."""

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from minivgg import __version__, figures, streams
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
from minivgg.texts import in_line

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
    input, 130 interrupted, 141 nobody reads what is printed any more (`| head`), though all else was done."""
    with streams.made_safe() as out:
        return out.status(_run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    chosen = parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module="PIL")  # what is wrong with a picture for good is an error anyway
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # no place for its cache, a font without a character
    try:
        if getattr(chosen, "picture", None):
            figures.check_path(chosen.picture)
        return chosen.command(chosen) or 0
    except BadInput as error:
        return _complain(error)
    except OSError as error:  # a full disk, a folder that may not be written to
        return _complain(f"{error.filename or 'input/output'}: {error.strerror or error}")
    except MemoryError as error:  # NumPy says for what
        return _complain(f"not enough memory: {error}".rstrip(": "))
    except KeyboardInterrupt:
        return _complain("interrupted", 130)


def _complain(text: object, status: int = 2) -> int:
    print(f"minivgg: {in_line(text)}", file=sys.stderr)
    return status
