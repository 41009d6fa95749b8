"""What every network checks of its options before it is built."""

from minivgg.errors import BadInput


def check_positive(**options: float) -> None:
    """Raise BadInput, naming them all, unless every one of `options` is a positive number; counts must be 1 or more."""
    if any(not value > 0 or (isinstance(value, int) and value < 1) for value in options.values()):
        *names, last = options
        *values, final = map(str, options.values())
        raise BadInput(f"{', '.join(names)} and {last} must be positive, got {', '.join(values)} and {final}")
