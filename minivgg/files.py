"""Files are written whole or not at all, and a folder is worked in by one process at a time."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.\w+)?")  # what `atomically` calls its files


@contextmanager
def atomically(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Write to the path that this yields, in the same folder; it takes the place of `path` when the block ends well.

    Whatever happens in between, a crash or a full disk, `path` holds either the old content or the new, never a part.
    What it held before stays as `keep`, if that is given: `path` may then be missing for a moment, and `keep` is whole.
    A link is followed, a device written to as it is. The file's mode stays, or is as the umask says. Raises OSError,
    naming `path`.
    """
    path = Path(os.path.realpath(path))
    try:
        old = path.stat().st_mode if path.exists() else None
        if old is not None and stat.S_ISDIR(old):
            raise IsADirectoryError(errno.EISDIR, "is a folder, and should be a file")
        if old is not None and not stat.S_ISREG(old):
            yield path
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
        try:
            temporary.touch()
            mode = temporary.stat().st_mode if old is None else old
            yield temporary
            if temporary.stat().st_mode != mode:  # some libraries make a file of their own, that nobody else may read
                temporary.chmod(stat.S_IMODE(mode))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # the content reaches the disk before the name does
            if keep and old is not None:
                path.replace(keep)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        error.filename, error.filename2 = str(path), None  # write() does not know it, and nobody knows the temporary
        raise


def sweep(folder: Path) -> None:
    """Remove what `atomically` has left in `folder` where a process was killed. Only for who holds the folder."""
    for path in folder.iterdir():
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def held(folder: Path) -> Iterator[bool]:
    """Hold `folder`, which exists, against other processes; yields whether that was possible.

    Nothing is left in it: the lock is on the folder itself, and the system takes it away with the process, however that
    ends. (On Windows it is on a file `.lock`. Where a file system knows no locks, nobody is kept out.)
    """
    place = folder if fcntl else folder / ".lock"
    descriptor = os.open(place, os.O_RDONLY if fcntl else os.O_RDWR | os.O_CREAT)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
    return True


def _sync_folder(folder: Path) -> None:
    """Have the new name reach the disk, where the system can do so for a folder."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
