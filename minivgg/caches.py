"""Where compiled kernels and downloads are kept between two runs, and how what was damaged is told from what is whole.

A cache is never needed: without one, what it would hold is made again, and one line says so. Folders of compiled code
belong to their user alone (0700), or whoever else may write there could run code in our name. A file has the SHA-256 of
its name and content as its last 32 bytes: code that was cut short or flipped would not be refused by who loads it, it
would crash.
"""

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

from minivgg.files import atomically

_NOWHERE = Path(os.devnull)  # a folder in it is never there, and cannot be made


def user_folder(name: str, variable: str) -> Path:
    """The folder that the environment's `variable` names, or the folder `name` in the user's cache folder.

    That is XDG_CACHE_HOME, LOCALAPPDATA on Windows, or the usual place in the home folder. Variables that are empty are
    as good as unset, and so are those of the system that are relative, or name what we may not enter. It may not exist;
    without a home it cannot.
    """
    if chosen := os.environ.get(variable):
        return Path(os.path.expanduser(chosen)).absolute()  # noqa: PTH111 Path's raises where there is no home
    if base := _absolute("XDG_CACHE_HOME") or _absolute("LOCALAPPDATA"):
        return base / name
    home = _absolute("HOME") or _absolute("USERPROFILE") or _home_by_passwd()
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / name if home else _NOWHERE / name


def _absolute(variable: str) -> Path | None:
    return _usable(Path(os.environ.get(variable) or "."))


def _usable(path: Path) -> Path | None:
    try:
        path.joinpath("x").exists()
    except PermissionError:  # after `su` without `-`, the home is still somebody else's
        return None
    return path if path.is_absolute() else None


def _home_by_passwd() -> Path | None:
    try:
        import pwd

        return _usable(Path(pwd.getpwuid(os.getuid()).pw_dir))
    except (ImportError, KeyError):  # Windows; a user whom the system does not know
        return None


def private(folder: Path, *, tighten: bool = True) -> Path:
    """Make sure that `folder` is there, that it is ours alone, and that we can write to it; returns it.

    With `tighten` others lose their access to it. Raises OSError, with the reason in a few words.
    """
    if folder.is_relative_to(_NOWHERE):
        raise FileNotFoundError("there is no home folder")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700 if tighten else 0o777)
        if hasattr(os, "getuid"):
            _refuse_strangers(folder, tighten)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise PermissionError(f"{folder}: {error.strerror or error}") from None
    return folder


def _refuse_strangers(folder: Path, tighten: bool) -> None:
    about, above = folder.stat(), folder.parent.stat()
    for owner, allowed in (about.st_uid, {os.getuid()}), (above.st_uid, {os.getuid(), 0}):
        if owner not in allowed:
            raise PermissionError(f"belongs to another user (uid {owner})")
    if about.st_mode & stat.S_ISVTX or (not tighten and about.st_mode & 0o022):  # such as /tmp
        raise PermissionError("is open to other users")
    if tighten and about.st_mode & 0o077:
        folder.chmod(0o700)


def store(path: Path, content: bytes) -> None:
    """Write `content` and its hash, whole or not at all. Raises OSError."""
    if path.is_symlink():  # whose target is not ours to write to
        path.unlink()
    with atomically(path) as temporary:
        temporary.write_bytes(content + _digest(path, content))


def fetch(path: Path) -> bytes | None:
    """What `store` wrote; None where nothing is, and, after a line that says so, where that is not what is there."""
    content = None
    with contextlib.suppress(OSError):
        if not os.path.lexists(path):
            return None
        if path.is_file():  # a pipe would never end
            content = path.read_bytes()
    if content is None or content[-32:] != _digest(path, content[:-32]):
        say(f"the cache in {path.parent} is damaged ({path.name}); what is needed of it is built again")
        return None
    return content[:-32]


def _digest(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(os.fsencode(path.name) + content).digest()


_said = set()


def say(text: str, *, topic: str = "") -> None:
    """Print a line to stderr, if there is one: no line twice, and one for each `topic`."""
    if (topic or text) not in _said and sys.stderr is not None:
        _said.add(topic or text)
        with contextlib.suppress(OSError, ValueError):  # closed
            print(f"minivgg: {text}", file=sys.stderr)
