"""What is printed arrives, whatever stands at the other end: an old encoding, a terminal, a closed pipe, nothing."""

import codecs
import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from minivgg.texts import in_line

_PLAIN = {"█": "#", "─": "-", "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "•": "*", "…": "...", "→": "->"} | {
    "✗": "x", "✓": "ok", "⟨": "<", "⟩": ">", "≤": "<=", "≥": ">=", "≈": "~", "‖": "||", "’": "'", "“": '"', "”": '"'
}  # fmt: skip


def _substitute(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    bad = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c) or in_line(c).encode("ascii", "backslashreplace").decode() for c in bad), error.end


codecs.register_error("minivgg", _substitute)


class _Stream:
    """A stream of text that takes all that is written to it, and goes on in silence when nobody takes it any more.

    Control characters are escaped, but for those that progress bars are made of, where there are any.
    """

    def __init__(self, stream, bars: bool):
        self._stream, self._bars = stream, bars
        self.broken: OSError | None = None

    def write(self, text: str) -> int:
        lead = ""
        if self._bars:
            lead = re.match(r"(\x1b\[A)+$|\r?", text)[0]
        self._attempt(lambda: self._stream.write(lead + in_line(text[len(lead) :], keep="\n\t")))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def status(self, status: int) -> int:
        """The exit status of a program that would end with `status`.

        It is 141, as usual, if its reader went away, and 2 if there was no place for what it printed.
        """
        self.flush()
        if self.broken and not isinstance(self.broken, BrokenPipeError):
            print(f"output: {self.broken.strerror}", file=sys.stderr)
        return status or (0 if not self.broken else 141 if isinstance(self.broken, BrokenPipeError) else 2)

    def _attempt(self, action) -> None:
        if self.broken:
            return
        try:
            action()
        except OSError as error:
            self.broken = error
            with contextlib.suppress(OSError, ValueError):  # what is left in its buffer, and comes, goes nowhere
                descriptor = os.open(os.devnull, os.O_WRONLY)
                os.dup2(descriptor, self._stream.fileno())
                os.close(descriptor)

    def __getattr__(self, name: str):
        return getattr(self._stream, name)


@contextlib.contextmanager
def made_safe() -> Iterator[_Stream]:
    """Inside, sys.stdout (which it yields) and sys.stderr take any text; `broken` says whether they ceased to."""
    _occupy_standard_descriptors()
    before = sys.stdout, sys.stderr
    errors = [getattr(stream, "errors", None) for stream in before]
    nothing = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 closed below
    sys.stdout, sys.stderr = (
        _Stream(_ready(s) or nothing, bars) for s, bars in zip(before, (False, True), strict=True)
    )
    try:
        yield sys.stdout
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        sys.stdout, sys.stderr = before
        nothing.close()
        for stream, handler in zip(before, errors, strict=True):
            if isinstance(_ready(stream), io.TextIOWrapper):
                stream.reconfigure(errors=handler)


def _occupy_standard_descriptors() -> None:
    """The next file that is opened should not become what the system takes for our output."""
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)


def _ready(stream):
    """The stream, where it takes what is in no encoding; None where there is none."""
    if stream is None or stream.closed:
        return None
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="minivgg")
    return stream
