"""Numba's cache of compiled kernels, made sure of: looked for when it is needed, ours alone, and whole.

Numba's own is looked for while a module is imported, which fails where nothing can be written, and what it holds is
taken as it is: half an index ends every later run, a flipped bit of machine code is executed. So here its files carry a
hash (see `caches`, 0.1 ms a kernel), and whatever is wrong with them, the kernel is compiled again.
"""

import contextlib
import functools
import pickle
from collections.abc import Iterator
from pathlib import Path

from numba import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, InTreeCacheLocator, NullCache

from minivgg import caches

_NEEDS = "name a folder of your own in NUMBA_CACHE_DIR"


class Cache(NullCache):
    """What Numba asks for a kernel before it compiles it, and is told afterwards: never raises."""

    def __init__(self, function):
        self._function = function

    @functools.cached_property
    def _on_disk(self):
        try:
            return _FunctionCache(self._function)
        except (RuntimeError, OSError) as error:  # no folder, or no source file
            caches.say(f"compiled kernels cannot be kept, so each run compiles anew: {error}", topic="kept")
            return NullCache()

    @property
    def cache_path(self):
        return self._on_disk.cache_path

    def load_overload(self, sig, target_context):
        try:
            return self._on_disk.load_overload(sig, target_context)
        except Exception as error:  # it is whole, and LLVM or Numba still does not take it
            caches.say(f"the cache in {self.cache_path} cannot be read ({type(error).__name__}); compiling again")
            return None

    def save_overload(self, sig, data):
        try:
            self._on_disk.save_overload(sig, data)
        except (OSError, pickle.PickleError) as error:
            caches.say(f"compiled kernels cannot be kept in {self.cache_path}: {error}; {_NEEDS}", topic="kept")


@functools.lru_cache
def _private(folder: Path, tighten: bool) -> Path:  # a folder holds the kernels of a dozen files
    return caches.private(folder, tighten=tighten)


class _Locator(InTreeCacheLocator):
    """The first folder that will do: NUMBA_CACHE_DIR, or __pycache__ beside the source, or the user's cache folder."""

    @classmethod
    def from_function(cls, py_func, py_file):
        locator, refusals = cls(py_func, py_file), []
        for folder, tighten in cls._folders(py_file):
            try:
                locator._cache_path = str(_private(folder, tighten))
                return locator
            except OSError as error:
                refusals.append(str(error))
        raise RuntimeError(f"{'; '.join(refusals)}; {_NEEDS}")

    @classmethod
    def _folders(cls, py_file: str) -> Iterator[tuple[Path, bool]]:
        if config.CACHE_DIR:
            root = Path(config.CACHE_DIR).absolute()
        else:
            yield Path(py_file).parent / "__pycache__", False
            root = caches.user_folder("minivgg", "MINIVGG_CACHE") / "numba"
        yield root / cls.get_suitable_cache_subpath(py_file), True

    def ensure_cache_path(self):
        Path(self._cache_path).mkdir(parents=True, exist_ok=True, mode=0o700)


class _Impl(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _FunctionCache(FunctionCache):
    _impl_class = _Impl

    def __init__(self, py_func):
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _Files(self._cache_path, self._impl.filename_base, stamp)


# What is there is whole, but nobody knows what an older Numba, or one beside another NumPy, has written.
_UNREADABLE = (pickle.UnpicklingError, AttributeError, ImportError, LookupError, TypeError, ValueError, EOFError)


def _unpickled(path: Path):
    content = caches.fetch(path)
    if content is None:
        raise EOFError
    return pickle.loads(content)


class _Files(IndexDataCacheFile):
    """The index of a function's compiled versions, and their data."""

    def _load_index(self):
        with contextlib.suppress(*_UNREADABLE):
            whose, overloads = _unpickled(Path(self._index_path))
            if whose == (self._version, self._source_stamp):
                return overloads
        return {}

    def _save_index(self, overloads):
        caches.store(Path(self._index_path), self._dump(((self._version, self._source_stamp), overloads)))

    def _load_data(self, name):
        try:
            return _unpickled(Path(self._data_path(name)))
        except _UNREADABLE:
            raise FileNotFoundError(name) from None  # which Numba takes for "not there"

    def _save_data(self, name, data):
        caches.store(Path(self._data_path(name)), self._dump(data))
