"""A run knows its data: what has changed is named, what has moved is found, what an old run did not note is said."""

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from small_runs import npz, photos, stopped, train, undrawn  # noqa: F401 (a fixture)

from minivgg.cli.main import main
from minivgg.training import fingerprint
from minivgg.training.datasets import load
from minivgg.training.folder import read_settings

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A trained run on a folder of photos, and the photos."""
    base = tmp_path_factory.mktemp("run")
    photos(base / "photos")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minivgg.cli.train._draw", lambda session: None)
        assert train("--data", base / "photos", "--run", base / "run") == 0
    return base


@pytest.fixture
def base(run, tmp_path):
    """A copy of it: the data has moved, and the run says where to."""
    shutil.copytree(run / "photos", tmp_path / "photos")
    shutil.copytree(run / "run", tmp_path / "run")
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(settings | {"data": str(tmp_path / "photos")}))
    return tmp_path


def rename_class(photos):
    (photos / "apple").rename(photos / "zebra")


def add_class(photos):
    shutil.copytree(photos / "pear", photos / "banana")


def remove_class(photos):
    shutil.rmtree(photos / "plum")


def exchange_classes(photos):
    (photos / "apple").rename(photos / "x")
    (photos / "pear").rename(photos / "apple")
    (photos / "x").rename(photos / "pear")


def add_pictures(photos):
    for i in range(2):
        shutil.copy(photos / "pear" / "0.bmp", photos / "pear" / f"new{i}.bmp")


def remove_picture(photos):
    (photos / "pear" / "9.bmp").unlink()


def exchange_pictures(photos):
    """Of one size, so that only their contents tell; 4 and 9 are the test set's."""
    for i in (3, 4):
        one, other = photos / "pear" / f"{i}.bmp", photos / "plum" / f"{i}.bmp"
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)


def change_a_pixel(photos):
    path = photos / "plum" / "4.bmp"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def another_split(photos):
    """Two more pictures, two fewer: the counts are the same."""
    (photos / "pear" / "0.bmp").rename(photos / "pear" / "9b.bmp")


CHANGES = {
    rename_class: "class 'apple' is called 'zebra' now",
    add_class: "class 'banana' is new",
    remove_class: "class 'plum' is gone",
    exchange_classes: "the .* pictures of class 'apple' are others",
    add_pictures: "class 'pear' has 10 training pictures, and had 8|the test pictures of class 'pear' are others",
    remove_picture: "class 'pear' has 1 test pictures, and had 2|the training",
    exchange_pictures: "the .* pictures of class 'pear' are others",
    change_a_pixel: "the test pictures of class 'plum' are others",
    another_split: "the .* pictures of class 'pear' are others, or in another order",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_other_data_is_named_and_refused(change, base, capsys):
    change(base / "photos")
    before = {path.name: path.read_bytes() for path in (base / "run").iterdir()}
    commands = [["train", "--resume", base / "run"], ["evaluate", "--run", base / "run", "--quiet"]]
    if change is add_pictures:  # the test set, every fifth, is what it was, and a network's errors on it, too
        assert main([*map(str, commands.pop())]) == 0
        capsys.readouterr()
    for command in commands:
        assert main([*map(str, command)]) == 2
        out, error = capsys.readouterr()
        assert (out, error.count("\n")) == ("", 1)
        assert error.startswith(f"minivgg: {base / 'photos'}: not what {base / 'run'} was trained on: ")
        assert re.search(CHANGES[change], error)
    assert {path.name: path.read_bytes() for path in (base / "run").iterdir()} == before


def test_the_same_data_is_evaluated_and_resumed(base, capsys):
    assert main(["evaluate", "--run", str(base / "run"), "--quiet"]) == 0
    assert "6 images of 3 of the network's 3 classes" in capsys.readouterr().out
    assert main(["train", "--quiet", "--resume", str(base / "run")]) == 0
    assert capsys.readouterr().err == ""
    (base / "photos" / "pear" / "0.bmp").rename(base / "photos" / "pear" / "00.bmp")  # in its place in the order
    assert main(["evaluate", "--run", str(base / "run"), "--quiet"]) == 0


@pytest.mark.parametrize("command", ["resume", "evaluate"])
def test_data_that_has_moved_is_said_once(command, base, capsys):
    (base / "photos").rename(base / "moved")
    options = {"resume": ["train", "--quiet", "--resume"], "evaluate": ["evaluate", "--quiet", "--run"]}[command]
    assert main([*options, str(base / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "if it has moved, say where by --data" in error
    photos(base / "others", seed=1)
    assert main([*options, str(base / "run"), "--data", str(base / "others")]) == 2
    assert "not what" in capsys.readouterr().err
    assert main([*options, str(base / "run"), "--data", str(base / "moved")]) == 0
    assert main([*options, str(base / "run")]) == 0
    assert read_settings(base / "run")[0].data == str(base / "moved")


def test_the_path_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    (tmp_path / "there").mkdir()
    (tmp_path / "home").mkdir()
    npz(tmp_path / "home" / "noise.npz")
    (tmp_path / "link.npz").symlink_to(tmp_path / "home" / "noise.npz")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for number, data in enumerate(("home/noise.npz", "~/noise.npz", "link.npz")):
        monkeypatch.chdir(tmp_path)
        run = tmp_path / f"run{number}"
        assert train("--data", data, "--run", run) == 0
        monkeypatch.chdir(tmp_path / "there")
        assert main(["evaluate", "--run", str(run), "--quiet"]) == 0
        assert train("--resume", run) == 0
    assert read_settings(tmp_path / "run2")[0].data == str(tmp_path / "link.npz")  # where the link points to may change


@pytest.mark.parametrize("change", ["reversed", "permuted", "renamed", "pictures", "order"])
def test_resume_notices_labels_of_an_npz(change, tmp_path, monkeypatch, capsys):
    data = npz(tmp_path / "noise.npz")
    stopped(monkeypatch, 2, "--data", data, "--run", tmp_path / "run")
    arrays = dict(np.load(data))
    match change:
        case "reversed":
            arrays["train_labels"] = 1 - arrays["train_labels"]
        case "permuted":
            arrays["train_labels"] = np.random.default_rng(0).permutation(arrays["train_labels"])
        case "renamed":
            arrays["classes"] = np.array(["b", "a"])
        case "pictures":
            arrays["test_images"][3, 0, 0] ^= 1
        case "order":
            order = np.argsort(arrays["train_labels"], kind="stable")  # in each class the same one
            arrays |= {name: arrays[name][order] for name in ("train_labels", "train_images")}
    np.savez(data, **arrays)
    capsys.readouterr()
    assert train("--resume", tmp_path / "run") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "not what" in error
    npz(tmp_path / "noise.npz")
    assert train("--resume", tmp_path / "run") == 0


def test_preprocessing_and_colours_come_from_the_run(base, monkeypatch, capsys):
    data = base / "photos"
    stopped(monkeypatch, 2, "--data", data, "--run", base / "new", "--colour", "0.1")
    for name in ("run.fit", "run.colour_basis"):
        monkeypatch.setattr(f"minivgg.training.{name}", lambda *_, **__: pytest.fail("looked at the data again"))
    assert train("--resume", base / "new") == 0


def test_a_run_of_an_earlier_version_goes_on_and_says_so(base, capsys):
    path = base / "run" / "config.json"
    settings = json.loads(path.read_text())
    for name in ("dataset", "preprocessing", "colour_basis"):
        del settings[name]
    path.write_text(json.dumps(settings))
    assert main(["evaluate", "--run", str(base / "run"), "--quiet"]) == 0
    said = f"minivgg: {base / 'run'}: of an earlier version: only the classes of its data can be checked\n"
    assert capsys.readouterr().err == said
    add_class(base / "photos")
    for command in (["evaluate", "--quiet", "--run"], ["train", "--quiet", "--resume"]):
        assert main([*command, str(base / "run")]) == 2
        assert "trained on: class 'banana' is new; put it back" in capsys.readouterr().err
    shutil.rmtree(base / "photos" / "banana")
    assert train("--resume", base / "run") == 0
    assert capsys.readouterr().err == said
    assert train("--resume", base / "run") == 0
    assert capsys.readouterr().err == ""


def test_large_sets_are_known_by_their_beginnings(tmp_path, monkeypatch):
    photos(tmp_path / "photos")
    whole = fingerprint.fingerprint(load(tmp_path / "photos")[0])
    monkeypatch.setattr(fingerprint, "READ_WHOLE", 100)
    monkeypatch.setattr(fingerprint, "_BEGINNING", 200)
    found = [fingerprint.fingerprint(load(tmp_path / "photos")[0]) for _ in range(2)]
    assert found[0] == found[1] != whole
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "pear" / "3.bmp")
    changed = fingerprint.fingerprint(load(tmp_path / "photos")[0])
    assert fingerprint.difference(found[0], changed, "training") == (
        "the training pictures of class 'pear' are others, or in another order"
    )
