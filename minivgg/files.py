"""Files are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """Write to the path that this yields, in the same folder; it takes the place of `path` when the block ends well.

    Whatever happens in between, a crash or a full disk, `path` holds either the old content or the new, never a part.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())  # the content reaches the disk before the name does
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
