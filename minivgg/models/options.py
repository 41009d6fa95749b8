"""What every network checks of its options before it is built, and of its size before its weights are drawn."""

import math
import os

from minivgg.errors import BadInput, check_range

_COUNT = {"low": 1, "high": 1_000_000, "integer": True}
RANGES = {  # of `errors.check_range`
    "classes": _COUNT,
    "channels": _COUNT,
    "input_size": {"low": 1, "high": 8192, "integer": True},  # whose square is the largest picture that is read
    "width": {"low": 0, "high": 64, "low_open": True},
    "classifier_width": _COUNT,
    "dropout": {"low": 0, "high": 1},
    "dropout_aux": {"low": 0, "high": 1},
    "seed": {"low": 0, "high": math.inf, "integer": True},
}


def check_options(**options) -> None:
    """Raise BadInput, naming it and its range, where one of a network's `options` is out of `RANGES`."""
    for name, value in options.items():
        check_range(name, value, **RANGES[name])


def check_memory(what: str, size: int) -> None:
    """Raise BadInput where `size` bytes, which `what` takes, are more than this machine's memory."""
    try:
        here = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return  # a system that does not say
    if size > here:
        raise BadInput(f"{what} take {size / 1e9:,.1f} GB, and this machine has {here / 1e9:,.1f} GB of memory")
