"""Caches: where they are, whose they are, and that whatever is wrong with them is said in a line and mended."""

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minivgg import caches
from minivgg.ops.conv2d import planning
from minivgg.training import datasets
from minivgg.weights import sources

ROOT = Path(__file__).parents[1]
RELU = "from minivgg.ops.relu import relu_forward; import numpy as np; print(relu_forward(np.float32([-1, 2]))[0])"
KERNEL = 'extern "C" __global__ void answer(int* y) { y[threadIdx.x] = 42; }'
SIMULATE = (
    "from minivgg import cudasim; import numpy as np; y = np.zeros(2, np.int32); "
    f"cudasim.RawKernel({KERNEL!r}, 'answer')(1, 2, (y,)); print(y)"
)
AS_ROOT = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away")


def python(code, **environment):
    """What a fresh process prints and says; it must not fail, nor show a traceback."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={key: value for key, value in (os.environ | environment).items() if value is not None},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.strip(), done.stderr


# ---- Where ----


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"HOME": "/h"}, "/h/.cache"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x"),
        ({"HOME": "/h", "XDG_CACHE_HOME": ""}, "/h/.cache"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "relative/x"}, "/h/.cache"),
        ({"XDG_CACHE_HOME": "/x"}, "/x"),
        ({}, "/passwd/.cache"),
        ({"HOME": ""}, "/passwd/.cache"),
        ({"HOME": "relative"}, "/passwd/.cache"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="these are the places of Linux")
def test_one_rule_says_where_all_caches_are(environment, expected, monkeypatch):
    pwd = pytest.importorskip("pwd")
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE", "MINIVGG_CACHE", "CUDASIM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("u", "x", uid, 0, "", "/passwd", "")))
    assert str(caches.user_folder("cudasim", "CUDASIM_CACHE")) == f"{expected}/cudasim"
    assert str(sources.cache()) == str(datasets.cache_dir()) == f"{expected}/minivgg"
    assert str(planning.table_path()) == f"{expected}/minivgg/conv_cpu.json"
    monkeypatch.setenv("MINIVGG_CACHE", "/mine")
    assert str(sources.cache()) == str(datasets.cache_dir()) == "/mine"


def test_without_a_home_there_is_no_cache_and_nothing_fails(monkeypatch):
    pwd = pytest.importorskip("pwd")
    for name in ("HOME", "XDG_CACHE_HOME", "LOCALAPPDATA", "USERPROFILE", "MINIVGG_CACHE", "MINIVGG_TUNING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: {}[uid])
    assert not sources.SOURCES["vgg16"].path.is_file()
    assert not datasets.cache_dir().exists()
    assert planning.read_table(planning.table_path()) == {}
    with pytest.raises(FileNotFoundError, match="there is no home folder"):
        caches.private(caches.user_folder("minivgg", "MINIVGG_CACHE"))


# ---- Whose ----


def test_a_folder_of_code_is_for_its_user_alone(tmp_path):
    folder = caches.private(tmp_path / "new" / "cache")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o777)
    assert caches.private(folder).stat().st_mode & 0o777 == 0o700


def test_what_everybody_may_write_to_is_refused_or_closed(tmp_path):
    tmp_path.chmod(0o1777)  # as /tmp is
    with pytest.raises(PermissionError, match="open to other users"):
        caches.private(tmp_path)
    tmp_path.chmod(0o775)
    with pytest.raises(PermissionError, match="open to other users"):
        caches.private(tmp_path, tighten=False)


@AS_ROOT
@pytest.mark.parametrize("inside", ["", "below"])
def test_a_folder_of_somebody_else_is_not_used(tmp_path, inside):
    other = tmp_path / "other"
    other.mkdir(mode=0o777)
    os.chown(other, 65534, 65534)
    folder = str(other / inside)
    printed, said = python(SIMULATE, CUDASIM_CACHE=folder)
    assert (printed, said.count("\n")) == ("[42 42]", 1)
    assert "belongs to another user (uid 65534); name a folder of your own in CUDASIM_CACHE" in said
    printed, said = python(RELU, NUMBA_CACHE_DIR=str(other))
    assert (printed, said.count("\n")) == ("[0. 2.]", 1)
    assert "belongs to another user (uid 65534); name a folder of your own in NUMBA_CACHE_DIR" in said
    assert not [path for path in other.rglob("*") if path.is_file()]


@pytest.mark.parametrize("variable", ["CUDASIM_CACHE", "NUMBA_CACHE_DIR"])
@pytest.mark.parametrize("place", ["/dev/null/x", "a file"])
def test_without_a_cache_all_works_and_one_line_says_so(variable, place, tmp_path):
    (tmp_path / "a file").touch()
    code = SIMULATE if variable == "CUDASIM_CACHE" else RELU
    printed, said = python(code, **{variable: str(tmp_path / place)})
    assert printed in ("[42 42]", "[0. 2.]")
    assert said.count("\n") == 1
    assert f"name a folder of your own in {variable}" in said


# ---- Whole ----


def test_what_is_stored_is_fetched(tmp_path):
    caches.store(tmp_path / "x", b"content")
    assert caches.fetch(tmp_path / "x") == b"content"
    assert caches.fetch(tmp_path / "y") is None
    (tmp_path / "x").rename(tmp_path / "y")
    assert caches.fetch(tmp_path / "y") is None, "another one's content is damage, too"


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes())),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


def flipped(content):
    """Sixteen bits of `content` the other way round."""
    content = bytearray(content)
    for at in random.Random(0).sample(range(len(content)), min(16, len(content))):
        content[at] ^= 1
    return bytes(content)


@pytest.fixture(scope="module")
def warm(tmp_path_factory):
    """A simulator's cache and Numba's, with a kernel in each."""
    folder = tmp_path_factory.mktemp("warm")
    python(SIMULATE, CUDASIM_CACHE=str(folder / "cudasim"))
    python(RELU, NUMBA_CACHE_DIR=str(folder / "numba"))
    return folder


@pytest.mark.parametrize(  # test_caches_fuzz.py does the same within this process
    ("kind", "how"),
    [("so", "cut"), ("so", "a folder"), ("o", "flipped"), ("nbi", "empty"), ("nbi", "a folder"), ("nbc", "flipped")],
)
def test_a_damaged_cache_is_built_again(kind, how, warm, tmp_path):
    shutil.copytree(warm, tmp_path / "c")
    damaged = list((tmp_path / "c").rglob(f"*.{kind}"))
    assert damaged
    for path in damaged:
        DAMAGE[how](path)
    if kind == "o":  # which is only looked at when a kernel is built
        for path in (tmp_path / "c").rglob("*.so"):
            path.unlink()
    variable, folder, code = {"s": ("CUDASIM_CACHE", "cudasim", SIMULATE), "n": ("NUMBA_CACHE_DIR", "numba", RELU)}[
        "n" if kind[0] == "n" else "s"
    ]
    environment = {variable: str(tmp_path / "c" / folder)}
    printed, said = python(code, **environment)
    assert printed in ("[42 42]", "[0. 2.]")
    assert str(tmp_path / "c" / folder) in said, "the line names the folder"
    if how != "a folder":  # which stays in the way: it might be somebody's
        assert python(code, **environment) == (printed, ""), "mended"
