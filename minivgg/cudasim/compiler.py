"""From CUDA C to a shared library, by whatever C++ compiler there is; built once and kept on disk."""

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from minivgg import caches
from minivgg.texts import in_line

HERE = Path(__file__).parent
HEADERS = ("cuda_on_cpu.h", "half.h", "tensor_cores.h", "runtime.h")
RUNTIME = ("runtime.cpp", "watch.cpp", "signals.cpp")

_COMMON = [
    "-std=c++17",
    "-fPIC",
    "-gdwarf-4",  # version 5 numbers its files in a way that addr2line gets wrong
    "-w",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-fno-threadsafe-statics",
    "-fstack-clash-protection",  # see runtime.cpp
    f"-I{HERE}",
]
_MOST_LINES = 20  # of the compiler's errors: the first says most
_QUICK = ["-O2"]
_WATCHED = ["-O1", "-fsanitize=thread"]  # only compiled with it, never linked: the calls end up in watch.cpp


class CompileError(Exception):
    """A kernel that does not compile: the compiler's words, with the kernel's own file and lines."""


def command() -> list[str]:
    """The C++ compiler as a command: $CXX, or the first of c++, g++, clang++. Raises CompileError if there is none."""
    chosen = os.environ.get("CXX")
    found = chosen.split() if chosen else next(([name] for name in ("c++", "g++", "clang++") if shutil.which(name)), [])
    if not found or not shutil.which(found[0]):
        raise CompileError(
            f"cudasim needs a C++ compiler, and there is no {found[0] if found else 'c++, g++ or clang++'}: install "
            "one (Debian, Ubuntu: apt install g++; macOS: xcode-select --install), or name it in CXX"
        )
    return found


def why_not() -> str | None:
    """None if kernels can be compiled here, else the reason."""
    try:
        command()
    except CompileError as error:
        return str(error)
    return None


def cache_folder() -> Path:
    """Where built kernels are kept: $CUDASIM_CACHE, or cudasim/ in the user's cache folder.

    Where that cannot be written to, or belongs to somebody else, a line says so, and a temporary folder takes its
    place. Raises CompileError if there is none.
    """
    try:
        return caches.private(caches.user_folder("cudasim", "CUDASIM_CACHE"))
    except OSError as error:
        caches.say(f"built kernels are not kept: {error}; name a folder of your own in CUDASIM_CACHE", topic="cudasim")
        return _for_now()


@functools.cache
def _for_now() -> Path:
    try:
        folder = tempfile.mkdtemp(prefix="cudasim")
    except OSError as error:
        raise CompileError(f"cudasim needs a folder to write to: name one in TMPDIR ({error.strerror})") from None
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def build(
    source: str, names: tuple[str, ...], options: tuple[str, ...] = (), *, file="kernel.cu", watched=False
) -> Path:
    """The path of a shared library in which each of the kernels `names` can be called.

    `source` is CUDA C whose messages are to name `file`; `options` are compiler options such as -DTILE=16. `watched`
    builds in the calls by which accesses to memory can be followed. Raises CompileError.

    Cost: about a second, once for each source and options.
    """
    exports = "\n".join(f"CUDASIM_EXPORT({name})" for name in names)
    # after the header, whose own names a macro such as T would change
    defines = "\n".join(f"#define {o[2:].replace('=', ' ', 1)}" for o in options if o.startswith("-D"))
    options = tuple(o for o in options if not o.startswith("-D"))
    file = in_line(file).replace("\\", "\\\\").replace('"', '\\"')
    text = f'#include "cuda_on_cpu.h"\n{defines}\n#line 1 "{file}"\n{_shared_memory(source)}\n{exports}\nCUDASIM_END\n'
    flags = [*_COMMON, *(_WATCHED if watched else _QUICK), *options]

    def compile(folder: Path) -> None:
        (folder / "kernel.cpp").write_bytes(_bytes(text))
        runtime = [_runtime(name, folder) for name in RUNTIME]
        ordered = ["-fno-toplevel-reorder"] if _is_gcc() else []  # the gaps stay between the shared arrays
        _run([*command(), *flags, *ordered, "-fno-exceptions", "-c", "kernel.cpp", "-o", "kernel.o"], folder)
        _run([*command(), "-shared", "-o", "it", "kernel.o", *runtime, "-ldl"], folder)

    return _kept(f"{_hash(text, *flags, _runtime_hash(), *command())}.so", compile, _loads)


def _runtime(name: str, folder: Path) -> str:
    """A part of the runtime, compiled, which is the same for every kernel, in `folder`."""

    def compile(folder: Path) -> None:
        _run([*command(), *_COMMON, "-O2", "-U_FORTIFY_SOURCE", "-c", str(HERE / name), "-o", "it"], folder)

    kept = _kept(f"{_hash(name, _runtime_hash(), *command())}.o", compile)
    shutil.copy(kept, folder / f"{name}.o")
    return f"{name}.o"


def _kept(name: str, compile: Callable[[Path], None], good: Callable[[Path], bool] = Path.is_file) -> Path:
    """The file `name` of the cache: if it is not there, whole and `good`, `compile` makes "it" in a scratch folder."""
    cache = cache_folder()
    path = cache / name
    if caches.fetch(path) is not None and good(path):
        return path
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        compile(Path(folder))
        content = (Path(folder) / "it").read_bytes()
    try:
        caches.store(path, content)
    except OSError as error:
        if cache == _for_now():
            raise CompileError(f"cudasim: {error}") from None
        caches.say(f"a built kernel cannot be kept in {cache}: {error.strerror}", topic="cudasim")
        caches.store(path := _for_now() / name, content)
    return path


def _loads(path: Path) -> bool:
    try:
        return bool(load(path))
    except OSError:  # whole, but of another system
        return False


@functools.cache
def _runtime_hash() -> str:
    return _hash(*[(HERE / name).read_text(encoding="utf-8") for name in (*HEADERS, *RUNTIME)])


@functools.cache
def _is_gcc() -> bool:
    return "Free Software" in _ask([*command(), "--version"]).stdout


def _hash(*texts: str) -> str:
    return hashlib.sha256(_bytes("\0".join(texts))).hexdigest()[:32]


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")  # a source may hold what is no text, in a comment


def _ask(command: list[str], folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run a command; what it says is English."""
    said = {"encoding": "utf-8", "errors": "backslashreplace", "env": os.environ | {"LC_ALL": "C"}}
    return subprocess.run(command, cwd=folder, capture_output=True, **said)


def _run(command: list[str], folder: Path) -> None:
    done = _ask(command, folder)
    if done.returncode:
        errors = done.stderr.strip().splitlines() or [f"{command[0]} failed with status {done.returncode}"]
        more = [f"… and {len(errors) - _MOST_LINES} lines more"] if len(errors) > _MOST_LINES else []
        raise CompileError("\n".join(errors[:_MOST_LINES] + more))


_ALIGN = r"(?:__align__\s*\(\s*\d+\s*\)\s+)?"
_DYNAMIC = re.compile(rf"extern\s+__shared__\s+{_ALIGN}([\w ]+?)\s+(\w+)\s*\[\s*\]\s*;")
_SEVERAL = re.compile(rf"__shared__\s+({_ALIGN}[\w ]+?)\s+(\w+\s*\[[^;,()]*\]\s*(?:,\s*\w+\s*\[[^;,()]*\]\s*)+);")


def _shared_memory(source: str) -> str:
    """What the preprocessor cannot do: `extern __shared__ float tile[];` → a pointer to the memory that the launch asks
    for; `__shared__ float a[8], b[8];` → two declarations, so that there is a gap between the arrays."""
    source = _DYNAMIC.sub(r"\1* const \2 = static_cast<\1*>(cudasim::cudasim_dynamic_shared());", source)
    return _SEVERAL.sub(lambda it: " ".join(f"__shared__ {it[1]} {array};" for array in it[2].split(",")), source)


# ---- What a library says of itself ----


@functools.lru_cache(256)
def load(path: Path) -> ctypes.CDLL:
    """The library, which stays loaded. Raises OSError."""
    return ctypes.CDLL(str(path))


class SharedArray(NamedTuple):
    """A static __shared__ array: the function and the name it has there, its address within the library, its bytes."""

    function: str
    name: str
    address: int
    nbytes: int


@functools.lru_cache(256)
def shared_arrays(path: Path) -> tuple[SharedArray, ...]:
    """Every static __shared__ array of a library, by `nm`: none without that."""
    if not shutil.which("nm"):
        return ()
    listing = _ask(["nm", "-S", "--defined-only", str(path)]).stdout
    rows = [line.split() for line in listing.splitlines()]
    ends = [int(row[0], 16) for row in rows if row[-1] in ("__start_cudasim_shared", "__stop_cudasim_shared")]
    found = []
    for row in rows:
        if len(row) == 4 and ends and min(ends) <= int(row[0], 16) < max(ends):
            mangled = re.match(r"_ZZ(\d+)(\w+)E(\d+)([A-Za-z_]\w*)", row[3])  # _ZZ7reverseE4tile: `tile` of `reverse`
            function, name = (mangled[2][: int(mangled[1])], mangled[4][: int(mangled[3])]) if mangled else ("", row[3])
            if "cudasim_gap" not in row[3]:
                found.append(SharedArray(function, name, int(row[0], 16), int(row[1], 16)))
    return tuple(found)


@functools.lru_cache(1024)
def line_of(path: Path, address: int) -> str:
    """ "file:line" of an instruction, by `addr2line`: the innermost line that is not the simulator's own."""
    if not shutil.which("addr2line"):
        return f"address {address:#x} (addr2line, of binutils, would say which line)"
    command = ["addr2line", "-i", "-e", str(path), f"{address:#x}"]
    lines = _ask(command).stdout.split("\n")
    lines = [re.sub(r" \(discriminator \d+\)$", "", line) for line in lines if line]
    own = [line for line in lines if Path(line.rpartition(":")[0]).name not in (*HEADERS, *RUNTIME)]
    file, _, number = (own or lines or ["??:0"])[0].rpartition(":")
    return f"{Path(file).name}:{number}"
