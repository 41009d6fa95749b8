"""Matplotlib figures as files, in the format that the file's name asks for."""

import os
import warnings
from pathlib import Path

from minivgg.errors import BadInput
from minivgg.files import atomically

FORMATS = ("png", "pdf", "svg", "jpg", "jpeg", "webp", "tif", "tiff", "eps", "ps")


def check_path(path: str | Path) -> Path:
    """The path itself, if a figure could be written to it. Raises BadInput, before any work is done, if not."""
    path = Path(path)
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise BadInput(f"{path}: a picture's name must end in one of .{', .'.join(FORMATS)}")
    if path.is_dir():
        raise BadInput(f"{path}: is a folder; name a picture in it")
    folder = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir():
        raise BadInput(f"{path}: {folder} is not a folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise BadInput(f"{path}: nothing may be written to the folder {folder}")
    return path


def save(figure, path: str | Path, dpi: int = 120) -> Path:
    """Write `figure` to `path`, in the format of its suffix (`FORMATS`), whole or not at all; returns the path.

    Raises BadInput for a path that no figure can be written to, OSError where writing fails.
    """
    path = check_path(path)
    with atomically(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a box stands for a character without one
        figure.savefig(temporary, dpi=dpi, format=path.suffix[1:].lower())
    return path
