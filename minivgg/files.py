"""Files are written whole or not at all, and a folder is worked in by one process at a time."""

import errno
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bool": "BOOL"} | {  # safetensors' names
    f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.\w+)?")  # what `atomically` calls its files


@contextmanager
def atomically(path: Path, *, keep: Path | None = None) -> Iterator[Path]:
    """Write to the path that this yields, in the same folder; it takes the place of `path` when the block ends well.

    Whatever happens in between, a crash or a full disk, `path` holds either the old content or the new, never a part.
    What it held before stays as `keep`, if that is given: where a file system has no hard links, `path` is then missing
    for a moment, and `keep` is there. A link is followed, a device written to as it is. The file's mode stays, or is as
    the umask says. Raises OSError, naming `path`.
    """
    path = Path(os.path.realpath(path))
    if not path.name:
        raise FileExistsError(errno.EEXIST, "is a folder, and should be a file", str(path))
    temporary = _temporary(path)
    try:
        old = path.stat().st_mode if path.exists() else None
        if old is not None and stat.S_ISCHR(old):
            yield path
            return
        if old is not None and not stat.S_ISREG(old):
            raise FileExistsError(errno.EEXIST, "is a folder or a pipe, and should be a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode if old is None else old
            yield temporary
            if temporary.stat().st_mode != mode:  # some libraries make a file of their own, that nobody else may read
                temporary.chmod(stat.S_IMODE(mode))
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())  # the content reaches the disk before the name does
            if keep and old is not None:
                _also(path, keep)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        nameless = str(error.filename) in ("None", str(temporary))  # write() knows no name, and nobody else this one
        if error.errno and nameless:
            error.filename, error.filename2 = str(path), None
        raise


def write_safetensors(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write NumPy arrays to a safetensors file (https://github.com/huggingface/safetensors, "Format"), as they come.

    Not by safetensors' own function: of a full disk it says what is no OSError, and what it leaves when it is killed
    has names of its own.
    """
    header, end = {"__metadata__": metadata}, 0
    for name, value in arrays.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype.name], "shape": value.shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with Path(path).open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for value in arrays.values():
            file.write(little_endian(value))


def little_endian(value: np.ndarray) -> np.ndarray:
    """An array's bytes in C order, as a file has them; a view, where that is how they are."""
    value = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
    return value.reshape(-1).view(np.uint8)


def _also(path: Path, keep: Path) -> None:
    """Have `path` be called `keep`, too; or only that, where nothing can have two names."""
    second = _temporary(keep)
    try:
        os.link(path, second)
    except OSError:
        path.replace(keep)
        return
    try:
        second.replace(keep)
    finally:
        second.unlink(missing_ok=True)  # still there where `keep` was the same file already: a rename then does nothing


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")


def absolute(path: str | Path) -> str:
    """`path` as it is found from any folder: whole, and without `~` where there is a home."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (which follows links, or fails)


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
