"""1,200 damaged runs, with fixed seeds: each is gone on with, or refused in one line; no traceback, little memory."""

import copy
import json
import os
import random
import shutil
import time

import pytest
from small_runs import NETWORK, npz, stopped, undrawn  # noqa: F401 (a fixture)

from minivgg.cli.main import main
from minivgg.training import checkpoints
from minivgg.training.folder import CHECKPOINT, CONFIG, LOG, MODEL, PREVIOUS

pytestmark = pytest.mark.usefixtures("undrawn")

VALUES = [None, True, False, -1, 0, 1, 2, 7, 2.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"), 10**10, 10**25]
VALUES += ["", "x", "1", "\x1b[31m", "\0", "a" * 10_000, "é", "../..", [], [1], ["a"], [[]], [None] * 1000]
VALUES += [{}, {"a": 1}, {"": {}}, [1, 2, 3], [8, 9], [-1, 5], json.loads("[" * 50 + "]" * 50)]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A run that has ended in the middle, with all that a run can have."""
    base = tmp_path_factory.mktemp("template")
    npz(base / "noise.npz")
    options = ["--data", base / "noise.npz", "--run", base / "run", "--colour", "0.1", "--dropout", "0.5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minivgg.cli.train._draw", lambda session: None)
        stopped(patch, 4, *options, "--schedule", "plateau")
    assert {path.name for path in (base / "run").iterdir()} == {CONFIG, CHECKPOINT, PREVIOUS, LOG, MODEL}
    return base / "run"


def places(value, path=()):
    """Where something stands in a JSON value: the path of each entry, of a list the first and the last."""
    if path:
        yield path
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        if isinstance(value, dict) or key in (0, len(value) - 1):
            yield from places(inner, (*path, key))


def changed(value, rng):
    """A copy with an entry changed, removed, or put where none should be; and what was done, in words."""
    value = copy.deepcopy(value)
    *path, last = rng.choice([*places(value)])
    inner = value
    for key in path:
        inner = inner[key]
    kind = rng.choice(["value"] * 8 + ["removed", "added"])
    if kind == "removed":
        del inner[last]
    elif kind == "added" and isinstance(inner, dict):
        inner[rng.choice(["", "x", "lr", "classes", "epoch", "é"])] = rng.choice(VALUES)
    else:
        inner[last] = rng.choice(VALUES)
    return value, f"{[*path, last]} {kind}: {str(inner)[:80]!r}"


def settings(folder, rng):
    path = folder / CONFIG
    value, what = changed(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(value))
    return what


def description(name):
    def change(folder, rng):
        arrays, value = checkpoints.load(folder / name)
        value, what = changed(value, rng)
        (folder / PREVIOUS).unlink()  # which would do, too
        checkpoints.save(folder / name, arrays, value)
        return f"{name} {what}"

    return change


def arrays(folder, rng):
    """An array of another type, shape or name, or none."""
    name = rng.choice([CHECKPOINT, MODEL])
    values, place = checkpoints.load(folder / name)
    key = rng.choice([*values])
    (folder / PREVIOUS).unlink()
    match rng.randrange(5):
        case 0:
            del values[key]
        case 1:
            values[key] = values[key].astype(rng.choice(["float64", "float16", "int64", "uint8", "bool"]))
        case 2:
            values[key] = values[key].reshape(-1)[:-1]
        case 3:
            values[rng.choice(["x", "model.x", "optimizer.x", "\ud7ff"])] = values[key]
        case 4:
            values[key] = values[key][None]
    checkpoints.save(folder / name, values, place)
    return f"{name}: {key}"


def content(folder, rng):
    """Bytes flipped, cut off, put in, or all of them others."""
    path = folder / rng.choice([CONFIG, CHECKPOINT, PREVIOUS, MODEL, LOG])
    data = bytearray(path.read_bytes())
    match kind := rng.randrange(5):
        case 0:
            for _ in range(rng.randint(1, 3)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            data[rng.randrange(len(data)) :] = rng.randbytes(rng.randrange(200))
        case 3:
            data[:8] = rng.choice([b"\xff" * 8, bytes(8), (1 << 40).to_bytes(8, "little"), b'{"a": [[', b"[" * 9])
        case 4:
            data = rng.choice([b"", b"null", b"[]", b"[" * 200_000, b"9" * 5000, b'"', b"\xff\xfe", b"{}", b"1e999"])
    path.write_bytes(data)
    return f"{path.name}: bytes, {kind}"


def kinds(folder, rng):
    """No file where there should be one."""
    path = folder / rng.choice([CONFIG, CHECKPOINT, PREVIOUS, MODEL, LOG])
    path.unlink()
    match kind := rng.randrange(6):
        case 0:
            pass
        case 1:
            path.mkdir()
        case 2:
            path.symlink_to(path)
        case 3:
            path.symlink_to(folder / "gone")
        case 4:
            os.mkfifo(path)
        case 5:
            path.symlink_to("/dev/zero")
    return f"{path.name}: kind {kind}"


FUZZ = {settings: 450, description(MODEL): 250, description(CHECKPOINT): 250, arrays: 50, content: 150, kinds: 50}
assert sum(FUZZ.values()) == 1200


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("change", FUZZ, ids=["settings", "weights", "checkpoint", "arrays", "content", "kinds"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of numbers that are not finite
def test_damaged_runs_are_gone_on_with_or_one_line(change, template, tmp_path, capsys, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.chdir(tmp_path)
    before, statuses = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    number = [*FUZZ].index(change)
    for case in range(FUZZ[change]):
        rng = random.Random(1000 * number + case)
        folder = tmp_path / "run"
        shutil.copytree(template, folder)
        what = f"case {case}: {change(folder, rng)}"
        reads_weights = change in (arrays, content, kinds) or number == 1
        commands = [["evaluate", "--quiet", "--run", str(folder)]] if reads_weights else []
        commands += [["train", "--quiet", "--resume", str(folder)]] if number != 1 else []
        for command in commands:
            began = time.monotonic()
            try:
                status = main(command)
            except BaseException as error:
                raise AssertionError(f"{what}: {command[0]}: {error!r}") from error
            said = capsys.readouterr().err
            assert status in (0, 2), what
            assert all(line.startswith("minivgg: ") for line in said.splitlines()), f"{what}: {said}"
            assert said.count("\n") <= 2 and len(said) < 30_000, f"{what}: {said}"
            assert status == 0 or said, what
            assert time.monotonic() - began < 20, what
            statuses.append(status)
        assert not [path.name for path in folder.iterdir() if ".tmp" in path.name], what
        shutil.rmtree(folder)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 1000, f"{grown} MB"
    assert 0 in statuses  # some damage is harmless
    assert statuses.count(2) > len(statuses) / 4


OPTIONS = {  # of the command line
    "--dropout": ["2", "-1", "nan", "inf", "x"],
    "--width": ["inf", "1e9", "nan", "0", "-1", "1e-400"],
    "--classifier-width": ["0", "-3", "99999999999", "1.5"],
    "--size": ["100000", "0", "-5", "4096", "1e3"],
    "--resize": ["0", "-1", "1000000000"],
    "--pad": ["-1", "100000000"],
    "--colour": ["-1", "nan", "inf", "1e300"],
    "--lr": ["nan", "-1", "inf", "1e300"],
    "--momentum": ["5", "1", "-0.5", "nan"],
    "--weight-decay": ["-1", "nan", "inf"],
    "--warmup": ["-1", "nan", "inf"],
    "--label-smoothing": ["-0.1", "1.5", "nan"],
    "--clip-norm": ["-1", "0", "nan", "inf"],
    "--epochs": ["-1", "0", "99999999999999", "1.5"],
    "--batch-size": ["0", "-1", "99999999999999"],
    "--seed": ["-1", "x"],
    "--save-minutes": ["nan", "-1"],
    "--optimizer": ["", "lion"],
    "--schedule": ["", "x"],
    "--init": ["", "normal:-1", "normal:nan", "normal:x"],
    "--model": ["", "vgg12", "\x1b"],
    "--algorithm": ["", "fft"],
    "--device": ["", "tpu"],
    "--init-from": ["", "nowhere"],
    "--data": ["", "nowhere", "\x1b", "~nosuchuser/x", "a" * 5000],
}


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in OPTIONS.items() for v in values])
def test_values_at_the_command_line(option, value, template, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--quiet", "--data", str(template.parent / "noise.npz"), *NETWORK, "--batch-size", "8"]
    try:
        status = main([*arguments, f"{option}={value}"])
    except SystemExit as end:  # argparse: not even a number
        status = end.code
    error = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert option.strip("-").replace("-", "_") in last.replace("-", "_") or repr(value)[1:-1] in last or value in last
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--model", "vgg16", "--width", "64", "--classifier-width", "1000000", "--size", "32"],
        ["--model", "alexnet", "--width", "60", "--size", "2048"],
        ["--model", "small_googlenet", "--batch-size", "24", "--size", "2048", "--width", "64"],
    ],
)
def test_what_does_not_fit_into_memory_is_not_tried(options, template, tmp_path, monkeypatch, capsys):
    """A machine of 2 GB: it says so, whatever the real one has, and before anything is filled."""
    resource = pytest.importorskip("resource")
    pages = 2 * 10**9 // os.sysconf("SC_PAGE_SIZE")
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: pages if name == "SC_PHYS_PAGES" else sysconf(name))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = ["--data", str(template.parent / "noise.npz"), "--run", str(tmp_path / "run")]
    assert main(["train", "--quiet", *data, "--batch-size", "8", *options]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "memory" in error or "Unable to allocate" in error
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 500
    assert not (tmp_path / "run").exists()
