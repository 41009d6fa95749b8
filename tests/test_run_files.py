"""A run's folder: one process works in it, what is damaged is noticed, a full disk loses nothing, no litter stays."""

import errno
import os
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_runs import npz, stopped, train, undrawn  # noqa: F401 (a fixture)

from minivgg import files
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.training import checkpoints
from minivgg.training.folder import CHECKPOINT, CONFIG, LOG, MODEL, PREVIOUS, begun, occupied

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An .npz and a run on it that nothing has happened to."""
    base = tmp_path_factory.mktemp("whole")
    npz(base / "noise.npz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minivgg.cli.train._draw", lambda session: None)
        assert train("--data", base / "noise.npz", "--run", base / "run") == 0
    return base


@pytest.fixture
def half(whole, tmp_path, monkeypatch):
    """A run that ended in the middle, with a checkpoint after each of its four steps (of six)."""
    stopped(monkeypatch, 4, "--data", whole / "noise.npz", "--run", tmp_path / "run")
    return tmp_path / "run"


def same(folder, whole):
    """Whether a run has come to what the whole one has, and holds nothing else."""
    names, expected = ({path.name for path in place.iterdir()} for place in (folder, whole / "run"))
    assert names == expected == {CONFIG, LOG, CHECKPOINT, MODEL}
    return (folder / MODEL).read_bytes() == (whole / "run" / MODEL).read_bytes()


def one_line(capsys):
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("minivgg: ")
    return error


# Who works where


def test_default_names_of_one_second_differ(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda form: form.partition("-%")[0] + "-now")
    for _ in range(3):
        assert train("--data", whole / "noise.npz") == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == [f"small_googlenet-now{i}" for i in ("", "-2", "-3")]
    for path in Path("runs").iterdir():
        assert same(path, whole)


def test_many_at_once_share_no_folder(tmp_path):
    barrier, found, refused = threading.Barrier(8), [], []

    def begin(named):
        barrier.wait()
        try:
            with begun(tmp_path / ("named" if named else "free"), named=named) as folder:
                found.append(folder)
                barrier.wait()
        except BadInput as error:
            refused.append(str(error))
            barrier.wait()

    for named in (False, True):
        threads = [threading.Thread(target=begin, args=(named,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(set(found)) == len(found) == 9
    assert len(refused) == 7
    assert set(refused) == {
        f"{tmp_path / 'named'}: another process is training this run; wait for it, or name another folder"
    }


def test_a_folder_is_held_while_its_run_lasts_and_no_longer(half, whole, capsys):
    with occupied(half):
        assert train("--resume", half) == 2
        assert "another process is training this run" in one_line(capsys)
        assert main(["evaluate", "--run", str(half), "--quiet"]) == 0  # looking is allowed
        capsys.readouterr()
    assert train("--resume", half) == 0
    assert same(half, whole)
    assert train("--data", whole / "noise.npz", "--run", half) == 2
    assert "holds a run already; go on with it by --resume" in one_line(capsys)


@pytest.mark.skipif(files.fcntl is None, reason="kill -9 is not for this system")
def test_a_killed_process_holds_nothing(tmp_path):
    code = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.held(pathlib.Path(sys.argv[2])) as alone:
    print(alone, flush=True)
    time.sleep(100)
"""
    command = [sys.executable, "-c", code, files.__file__, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        with files.held(tmp_path) as alone:
            assert not alone
        process.send_signal(signal.SIGKILL)
        process.wait()
    with files.held(tmp_path) as alone:
        assert alone
    assert list(tmp_path.iterdir()) == []


# Damage


def test_flipped_bits_are_noticed(half):
    """200 of 200, anywhere in the file: refused, or, in a name that nobody reads, of no consequence."""
    path, rng = half / CHECKPOINT, np.random.default_rng(0)
    content, refused = path.read_bytes(), 0
    arrays, place = checkpoints.load(path)
    for bit in rng.choice(8 * len(content), 200, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            found, where = checkpoints.load(path)
        except BadInput as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            refused += 1
            continue
        assert where == place
        assert all(np.array_equal(found[name], value) for name, value in arrays.items())
    assert refused >= 195


def flip(path, share=0.9):
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:-7]), Path.unlink])
def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_bits(damage, half, whole, capsys):
    damage(half / CHECKPOINT)
    assert train("--resume", half) == 0
    error = capsys.readouterr().err
    if damage is not Path.unlink:
        assert error.startswith(f"minivgg: {half / CHECKPOINT}: damaged")
        assert f"goes on from the one before it, {PREVIOUS}, to the same result\n" in error
        assert error.count("\n") == 1
    assert same(half, whole)


def test_two_damaged_checkpoints_are_one_line(half, capsys):
    before = {path.name for path in half.iterdir()}
    flip(half / CHECKPOINT)
    flip(half / PREVIOUS)
    assert train("--resume", half) == 2
    error = one_line(capsys)
    assert str(half / CHECKPOINT) in error
    assert "begin again in another folder, by --run DIR" in error
    (half / PREVIOUS).unlink()
    assert train("--resume", half) == 2
    assert "there is none before it: begin again" in one_line(capsys)
    (half / CHECKPOINT).unlink()
    assert train("--resume", half) == 2  # the log is there: this is not a run that has only begun
    assert "missing" in one_line(capsys)
    assert {path.name for path in half.iterdir()} == before - {CHECKPOINT, PREVIOUS}


def test_damaged_weights_are_noticed(half, capsys):
    flip(half / MODEL)
    assert main(["evaluate", "--run", str(half), "--quiet"]) == 2
    assert f"{half / MODEL}: damaged: its contents do not have the checksum" in one_line(capsys)


def test_checkpoints_without_a_checksum_are_read(half, whole):
    for name in (CHECKPOINT, MODEL):
        arrays, description = checkpoints.load(half / name)
        save_file(arrays, half / name, metadata={"minivgg": checkpoints.json.dumps(description)})
    assert main(["evaluate", "--run", str(half), "--quiet"]) == 0
    assert train("--resume", half) == 0
    assert same(half, whole)


# A full disk


def after_a_failure(folder, whole, capsys):
    """What a failure has left can be gone on with, or begun again, to the same end."""
    error = one_line(capsys)
    assert re.match(rf"minivgg: ({re.escape(str(folder))}\S*|input/output): \S", error)
    assert not [path.name for path in folder.iterdir() if ".tmp" in path.name]
    if (folder / CONFIG).exists():
        assert train("--resume", folder) == 0
    else:
        assert train("--data", whole / "noise.npz", "--run", folder) == 0
    assert same(folder, whole)
    capsys.readouterr()
    return error


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_disk_that_fills_up_at_any_moment(name, whole, tmp_path, monkeypatch, capsys):
    original, statuses = getattr(os, name), set()
    for number in range(1, 30):
        seen = []

        def full(*arguments, number=number, seen=seen):
            seen.append(None)
            if len(seen) == number and not (name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)):
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*arguments)

        folder = tmp_path / str(number)
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            status = train("--data", whole / "noise.npz", "--run", folder)
        statuses.add(status)
        if status == 2:
            after_a_failure(folder, whole, capsys)
        elif len(seen) < number:
            break
    else:
        pytest.fail("never came to an end")
    assert statuses == {0, 2}


def test_a_file_that_may_not_grow(whole, tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="no such limits on this system")
    before, statuses = resource.getrlimit(resource.RLIMIT_FSIZE), []
    for limit in (0, 100, 1000, 2000, 4000, 6000, 8000, 10**6):
        folder = tmp_path / str(limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            statuses.append(train("--data", whole / "noise.npz", "--run", folder))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        if statuses[-1]:
            after_a_failure(folder, whole, capsys)
    assert statuses[0] == statuses[1] == 2
    assert statuses[-1] == 0


@pytest.mark.parametrize("kilobytes", [4, 8, 16, 24, 32])
def test_a_small_disk(kilobytes, whole, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    if os.name != "posix" or os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may make a small disk")
    try:
        status = train("--data", whole / "noise.npz", "--run", disk / "run")
        assert status == 2
        subprocess.run(["mount", "-o", "remount,size=10m", str(disk)], check=True)
        assert "No space left on device" in after_a_failure(disk / "run", whole, capsys)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_log_that_cannot_be_written(half, capsys):
    (half / LOG).unlink()
    (half / LOG).symlink_to("/dev/full")
    assert train("--resume", half) == 2
    assert one_line(capsys) == "minivgg: /dev/full: No space left on device\n"
    assert Path("/dev/full").is_char_device()


# Files


def test_what_a_killed_process_left_is_swept(half, whole):
    ours = [
        ".model.safetensors.123.tmp.safetensors",
        ".config.json.99.tmp.json",
        ".log.csv.7.tmp.csv",
        ".LICENSE.1.tmp",
    ]
    theirs = [".hidden", "notes.tmp", "a.1.tmp.txt", ".x.tmp", ".vimrc.swp"]
    for name in ours + theirs:
        (half / name).write_text("x")
    assert train("--resume", half) == 0
    assert [name for name in ours if (half / name).exists()] == []
    for name in theirs:
        (half / name).unlink()
    assert same(half, whole)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_obey_the_umask_and_keep_their_mode(umask, tmp_path):
    before = os.umask(umask)
    try:
        checkpoints.save(tmp_path / "a.safetensors", {"x": np.zeros(3)}, {})
        with files.atomically(tmp_path / "b.safetensors") as path:
            save_file({"x": np.zeros(3)}, path)  # which makes a file of its own, 0600
        for name in ("a.safetensors", "b.safetensors"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~umask
        (tmp_path / "a.safetensors").chmod(0o640)
        checkpoints.save(tmp_path / "a.safetensors", {"x": np.zeros(3)}, {})
        assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640
    finally:
        os.umask(before)


def test_content_and_names_reach_the_disk_in_order(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("name"), replace(*names)))
    with files.atomically(tmp_path / "a.txt") as path:
        path.write_text("x")
    assert calls == ["file", "name", "folder"]


def test_a_link_is_followed_a_device_written_to_and_a_folder_refused(tmp_path):
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with files.atomically(tmp_path / "link") as path:
        path.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "new"
    with pytest.raises(FileExistsError, match="is a folder"), files.atomically(tmp_path):
        pass
    with files.atomically(Path(os.devnull)) as path:
        path.write_text("gone")
    assert not Path(os.devnull).is_file()
