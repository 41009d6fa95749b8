"""800 damaged caches: whatever lies in Numba's cache, or in the simulator's, a kernel still gives the right answer.

Each case damages files of a warm cache in one of many ways, and loads a kernel as a fresh process would. The compilers
are replaced by what they made before, so that a case costs milliseconds; that they are called again is the point.
"""

import os
import pickle
import random
import shutil
import time
from pathlib import Path

import numba
import numpy as np
import pytest

from minivgg import caches, cudasim
from minivgg.backends import jit_cache
from minivgg.cudasim import compiler
from minivgg.cudasim import kernel as simulated

CASES = 400  # of each cache
SOURCE = 'extern "C" __global__ void answer(int* y) { y[threadIdx.x] = 42; }'


def _cut(path, dice):
    path.write_bytes(path.read_bytes()[: dice.randrange(path.stat().st_size)])


def _flip(path, dice):
    content = bytearray(path.read_bytes())
    for _ in range(dice.choice((1, 1, 1, 2, 50))):
        content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
    path.write_bytes(content)


def _overwrite(path, dice):
    content = bytearray(path.read_bytes())
    at = dice.randrange(len(content))
    piece = dice.randbytes(dice.randrange(1, 4096))
    content[at : at + len(piece)] = piece
    path.write_bytes(content)


def _put(make):
    def damage(path, dice):
        path.unlink()
        make(path, dice)

    return damage


def _others(path, dice):
    path.write_bytes(dice.choice([p for p in sorted(path.parent.iterdir()) if p.is_file()]).read_bytes())


FOREIGN = [
    b"",
    b"cnowhere\nnothing\n.",
    *map(pickle.dumps, (None, (1, 2), ((1, 2), {}), "text")),
    b"\x7fELF" + bytes(999),
]
DAMAGE = [
    _cut,
    _flip,
    _overwrite,
    lambda path, dice: path.write_bytes(b""),
    lambda path, dice: path.write_bytes(dice.randbytes(dice.randrange(1, 10000))),
    lambda path, dice: path.write_bytes(path.read_bytes() + dice.randbytes(dice.randrange(1, 100))),
    lambda path, dice: path.write_bytes(path.read_bytes()[:-32]),  # as Numba, or an older minivgg, would have left it
    _put(lambda path, dice: None),
    _put(lambda path, dice: path.mkdir()),
    _put(lambda path, dice: (path.mkdir(), (path / "inside").touch())),
    _put(lambda path, dice: path.symlink_to(path)),
    _put(lambda path, dice: path.symlink_to("nowhere")),
    _put(lambda path, dice: path.symlink_to("/dev/zero")),
    _put(lambda path, dice: path.symlink_to("/")),
    _put(lambda path, dice: os.mkfifo(path)),
    _others,
    lambda path, dice: caches.store(path, dice.choice(FOREIGN)),
]
pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="other systems have no pipes among files")


def _damage(folder, kinds, number):
    """Between one and all files of `folder` that are of `kinds`."""
    dice = random.Random(number)
    files = sorted(path for path in folder.rglob("*") if path.suffix in kinds)
    for path in dice.sample(files, dice.choice((1, 1, len(files)))):
        DAMAGE[number % len(DAMAGE)](path, dice)


@pytest.fixture
def said(monkeypatch):
    """The lines of stderr; each may be said again."""
    lines = []
    monkeypatch.setattr(caches, "say", lambda text, *, topic="": lines.append(text))
    return lines


def _function(x):
    return x * np.float32(2) + np.float32(1)


def _fresh(cached=True):
    dispatcher = numba.njit(_function)
    if cached:
        dispatcher._cache = jit_cache.Cache(_function)
    return dispatcher


def test_numbas_cache(tmp_path, monkeypatch, said):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "warm"))
    assert _fresh()(np.float32(3)) == 7
    warm = _fresh()
    assert warm(np.float64(3)) == 7  # another signature: two entries in the index
    assert warm(np.float32(3)) == 7
    assert sum(warm.stats.cache_hits.values()) == 1
    compiled = {sig: _fresh(cached=False) for sig in (np.float32, np.float64)}
    results = {type_: (dispatcher(type_(3)), dispatcher)[1] for type_, dispatcher in compiled.items()}
    rebuilt, slowest = 0, 0.0
    for number in range(CASES):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "warm", folder)
        _damage(folder, {".nbi", ".nbc"}, number)
        monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
        start = time.perf_counter()
        type_ = (np.float32, np.float64)[number % 2]
        again = _fresh()
        monkeypatch.setattr(again._compiler, "compile", _already(results[type_]))
        assert again(type_(3)) == 7, number
        rebuilt += sum(again.stats.cache_misses.values())
        once_more = _fresh()
        monkeypatch.setattr(once_more._compiler, "compile", _already(results[type_]))
        assert once_more(type_(3)) == 7, number
        slowest = max(slowest, time.perf_counter() - start)
        shutil.rmtree(folder)
    assert CASES / 4 < rebuilt < CASES
    assert slowest < 20
    assert any("is damaged" in line for line in said)


def _already(dispatcher):
    """In place of Numba's compiler: what it made of the same function before."""
    return lambda args, return_type: dispatcher.overloads[args]._replace(metadata={})


def test_the_simulators_cache(tmp_path, monkeypatch, said):
    if reason := cudasim.why_not():
        pytest.skip(reason)
    monkeypatch.setenv("CUDASIM_CACHE", str(tmp_path / "warm"))
    path = compiler.build(SOURCE, ("answer",))
    compiler.build(SOURCE, ("answer",), watched=True)
    made = {path.name: caches.fetch(path) for path in sorted((tmp_path / "warm").iterdir())}
    assert sorted(Path(name).suffix for name in made) == [".o"] * len(compiler.RUNTIME) + [".so"] * 2
    calls = []

    def compile_again(command, folder):  # the one kernel, and the parts of the runtime
        part = next((part for part in compiler.RUNTIME if str(compiler.HERE / part) in command), None)
        name = path.name if part is None else f"{compiler._hash(part, compiler._runtime_hash(), *compiler.command())}.o"
        (folder / "it").write_bytes(made[name])
        calls.append(name)

    monkeypatch.setattr(compiler, "_run", compile_again)
    monkeypatch.setattr(compiler, "shared_arrays", lambda path: ())  # asks `nm`, each time
    slowest = 0.0
    for number in range(CASES):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "warm", folder)
        _damage(folder, {".so", ".o"} if number % 3 else {".so"}, number)
        monkeypatch.setenv("CUDASIM_CACHE", str(folder))
        start = time.perf_counter()
        for _ in range(2):
            compiler.load.cache_clear(), simulated._library.cache_clear()
            y = np.zeros(1, np.int32)
            with cudasim.checking(orders=("forward",)):
                cudasim.RawKernel(SOURCE, "answer")(1, 1, (y,))
            assert y[0] == 42, number
        slowest = max(slowest, time.perf_counter() - start)
        shutil.rmtree(folder)
    assert len(calls) > CASES / 4
    assert slowest < 20
    assert any("is damaged" in line for line in said)
