"""The one exception that means "your input is wrong", as opposed to "our code is wrong", and the check of a number."""

import math
import reprlib


class BadInput(ValueError):
    """A file, an option or a name that cannot be used. The message, one line, names it and says what is right.

    The command line prints the message and exits with status 2; every other exception is a bug and keeps its traceback.
    """


def check_range(what: str, value, low, high, *, low_open: bool = False, high_open: bool = False, integer: bool = False):
    """Return `value` if it is a number within `low` … `high`; an open end itself is not, nor is infinity.

    Raises BadInput, with `what` and the range, if it is not: also for NaN, a truth value, a string, or no whole number
    where it should be an `integer`. NumPy's scalars and arrays of no dimension are numbers.
    """
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    if isinstance(number, int if integer else int | float) and not isinstance(number, bool):
        within = (low < number if low_open else low <= number) and (number < high if high_open else number <= high)
        if within and -_LARGEST <= number <= _LARGEST:
            return value
    ends = [f"{'above' if low_open else 'at least'} {low}"] if low != -math.inf else []
    ends += [f"{'below' if high_open else 'at most'} {high}"] if high != math.inf else []
    ends = " and ".join(ends) or "finite"
    raise BadInput(f"{what} = {reprlib.repr(value)}: should be {'a whole number' if integer else 'a number'}, {ends}")


_LARGEST = 1.7976931348623157e308  # of float64: a larger whole number is no rate, and turns into none
