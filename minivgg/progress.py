"""The progress bar of all that takes long: tqdm's, and none where there is nothing to draw it on."""

import sys

import tqdm as _tqdm


class tqdm(_tqdm.tqdm):  # noqa: N801 its name
    """tqdm's, disabled where stderr is closed, or was never there, as in a program without a console."""

    def __init__(self, *args, disable: bool | None = False, **options):
        gone = sys.stderr is None or getattr(sys.stderr, "closed", False)
        super().__init__(*args, disable=True if gone else disable, **options)
