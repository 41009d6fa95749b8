"""The command line as people use it: what it prints, what it leaves, and one line for every mistake."""

import json
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_loop import stripes

from minivgg import __version__
from minivgg.cli.main import main
from minivgg.training import checkpoints

SMALL = ["--width", "0.1", "--classifier-width", "16", "--batch-size", "10", "--quiet"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An .npz of striped images, and two of its test images as PNGs beside it."""
    folder = tmp_path_factory.mktemp("data")
    train, test = stripes(200, 0), stripes(40, 1)
    arrays = {"train_images": train.images, "train_labels": train.labels}
    arrays |= {"test_images": test.images, "test_labels": test.labels, "classes": np.array(train.classes)}
    np.savez(folder / "stripes.npz", **arrays)
    for i in range(2):
        Image.fromarray(test.images[i, ..., 0]).save(folder / f"{test.classes[test.labels[i]]}{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(data):
    """A short run on the stripes."""
    folder = data / "run"
    assert main(["train", "--data", str(data / "stripes.npz"), "--epochs", "6", "--run", str(folder), *SMALL]) == 0
    return folder


def test_train_leaves_weights_log_and_pictures(run):
    names = {path.name for path in run.iterdir()}
    pictures = {"curves.png", "confusion.png", "filters.png", "mistakes.png"}
    assert names == {"config.json", "log.csv", "checkpoint.safetensors", "model.safetensors"} | pictures
    for picture in pictures:
        with Image.open(run / picture) as image:
            image.load()
    lines = (run / "log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,lr,train_loss,train_accuracy,test_loss,test_accuracy")
    assert len(lines) == 7
    assert json.loads((run / "config.json").read_text())["epochs"] == 6


def test_predict_prints_bars_and_draws(run, data, tmp_path, capsys):
    images = sorted(data.glob("*.png"))
    picture = tmp_path / "out.png"
    assert main(["predict", *map(str, images), "--run", str(run), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("█") > 20
    for path in images:  # the file's name is the right answer
        first = printed.split(f"{path}\n")[1].splitlines()[0]
        assert first.split()[0] == path.stem[:-1]
    with Image.open(picture) as image:
        image.load()


def test_predict_takes_the_newest_run(run, data, monkeypatch, capsys):
    image = next(data.glob("*.png"))
    monkeypatch.chdir(data)
    assert main(["predict", str(image)]) == 2
    assert "no trained network in runs/" in capsys.readouterr().err
    (data / "runs").mkdir()
    (data / "runs" / "one").symlink_to(run)
    assert main(["predict", str(image), "--top", "1"]) == 0
    assert (data / "predictions.png").exists()


def test_kill_9_in_the_middle_of_an_epoch_then_resume_gives_the_same_bits(data, tmp_path):
    options = ["--data", str(data / "stripes.npz"), "--epochs", "12", "--dropout", "0.5", "--save-minutes", "0.001"]
    command = [sys.executable, "-m", "minivgg", "train", *options, *SMALL, "--run"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)

    process = subprocess.Popen([*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    checkpoint, deadline = tmp_path / "killed" / "checkpoint.safetensors", time.monotonic() + 100
    while time.monotonic() < deadline and process.poll() is None:
        if checkpoint.exists():
            _, place = checkpoints.load(checkpoint)
            if place["epoch"] >= 1 and place["batch"] > 0:
                break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    _, place = checkpoints.load(checkpoint)
    assert 1 <= place["epoch"] < 12

    resume = [sys.executable, "-m", "minivgg", "train", "--quiet", "--resume", str(tmp_path / "killed")]
    printed = subprocess.run(resume, check=True, capture_output=True, text=True).stdout
    assert f"from epoch {place['epoch'] + 1}" in printed
    whole, _ = checkpoints.load(tmp_path / "whole" / "model.safetensors")
    resumed, _ = checkpoints.load(tmp_path / "killed" / "model.safetensors")
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(resumed[name], value, strict=True)


def test_ctrl_c_says_how_to_resume(data, tmp_path):
    options = ["--data", str(data / "stripes.npz"), "--epochs", "1000", *SMALL, "--run", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "minivgg", "train", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    log, deadline = tmp_path / "run" / "log.csv", time.monotonic() + 100
    while time.monotonic() < deadline and not (log.exists() and len(log.read_text().splitlines()) > 1):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped and saved; go on with: minivgg train --resume {tmp_path / 'run'}" in error
    assert "Traceback" not in error
    assert (tmp_path / "run" / "curves.png").exists()


def test_resume_of_a_finished_run_draws_again(run, capsys):
    (run / "curves.png").unlink()
    assert main(["train", "--resume", str(run), "--quiet"]) == 0
    assert (run / "curves.png").exists()
    assert "test accuracy" in capsys.readouterr().out


def test_lsuv_and_adam_train(data, tmp_path):
    options = [
        "--init",
        "lsuv",
        "--optimizer",
        "adam",
        "--lr",
        "0.001",
        "--epochs",
        "1",
        "--model",
        "vgg11",
        "--no-flip",
    ]
    assert main(["train", "--data", str(data / "stripes.npz"), *SMALL, *options, "--run", str(tmp_path / "run")]) == 0


def test_colour_photographs_in_folders(tmp_path):
    rng = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(20):
            H, W = rng.integers(40, 90, 2)
            pixels = rng.integers(128 * k, 128 * k + 128, (H, W, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    options = ["--data", str(tmp_path / "photos"), "--size", "32", "--scale", "36", "48", "--colour", "0.1"]
    folder = tmp_path / "run"
    assert main(["train", *options, *SMALL, "--epochs", "1", "--run", str(folder)]) == 0
    photo = str(tmp_path / "photos" / "dark" / "0.png")
    assert main(["predict", photo, "--run", str(folder), "--picture", str(tmp_path / "p.png")]) == 0


def test_loss_that_diverges_is_one_line(data, tmp_path, capsys):
    options = ["--lr", "1e30", "--epochs", "2", "--run", str(tmp_path / "run")]
    assert main(["train", "--data", str(data / "stripes.npz"), *SMALL, *options]) == 2
    assert re.fullmatch(r"minivgg: the loss is .*; try a learning rate below .*\n", capsys.readouterr().err)


MISTAKES = {
    "no such file": (["predict", "nowhere.png", "--run", "{run}"], r"nowhere\.png"),
    "not an image": (["predict", "{run}/log.csv", "--run", "{run}"], r"log\.csv.*image"),
    "no such run": (["predict", "{data}/stripes.npz", "--run", "{data}/none"], r"none: no such file"),
    "weights that are none": (["predict", "x.png", "--run", "{run}/log.csv"], r"log\.csv: damaged or not a checkpoint"),
    "checkpoint for weights": (
        ["predict", "x.png", "--run", "{run}/checkpoint.safetensors"],
        r"checkpoint\.safetensors: holds no 'model'",
    ),
    "top of nothing": (["predict", "x.png", "--top", "0"], "--top must be at least 1, got 0"),
    "unknown model": (["train", "--model", "vgg12", "--run", "{data}/x"], 'no model "vgg12"'),
    "unknown model in summary": (["summary", "resnet"], 'no model "resnet"'),
    "unknown data": (["train", "--data", "imagenet"], "imagenet: neither a folder"),
    "unknown schedule": (["train", "--schedule", "linear"], 'no schedule "linear"'),
    "unknown optimizer": (["train", "--optimizer", "lion"], 'no optimizer "lion"; there are sgd, adam'),
    "unknown initialiser": (["train", "--init", "best"], 'no initialiser "best"'),
    "unknown algorithm": (["train", "--algorithm", "fft", "--quiet", "--run", "{data}/y"], 'no algorithm "fft"'),
    "no epochs": (["train", "--epochs", "0"], "epochs = 0: should be a whole number, at least 1"),
    "too small": (["summary", "vgg16", "--input-size", "16"], "at least 32, got 16"),
    "no batch": (["summary", "vgg16", "--batch-size", "0"], "--batch-size must be at least 1"),
    "nothing to resume": (["train", "--resume", "{data}"], "no run to resume here"),
    "resume with settings": (["train", "--resume", "{run}", "--lr", "1"], "leave out --lr"),
    "run that exists": (["train", "--run", "{run}"], "holds a run already; go on with it by --resume"),
    "batch larger than the data": (
        ["train", "--data", "{data}/stripes.npz", "--batch-size", "999"],
        "do not fill a batch",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(arguments, message, run, data, capsys):
    assert main([a.format(run=run, data=data) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert error.startswith("minivgg: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize("damage", ["cut", "settings", "other network", "label"])
def test_damaged_run_is_one_line(damage, run, data, tmp_path, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "checkpoint.safetensors"):
        (folder / name).write_bytes((run / name).read_bytes())
    checkpoint, config = folder / "checkpoint.safetensors", folder / "config.json"
    if damage == "cut":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-1000])
    elif damage == "settings":
        config.write_text(config.read_text()[:-10])
    elif damage == "other network":
        config.write_text(config.read_text().replace('"vgg11_bn"', '"vgg13_bn"'))
    else:
        arrays = dict(np.load(data / "stripes.npz"))
        arrays["train_labels"][7] = 2
        np.savez(tmp_path / "bad.npz", **arrays)
        config.write_text(config.read_text().replace(str(data / "stripes.npz"), str(tmp_path / "bad.npz")))
    assert main(["train", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    names = {
        "cut": str(checkpoint),
        "settings": str(config),
        "other network": str(checkpoint),
        "label": "label 2 of image 7",
    }
    assert names[damage] in error


@pytest.mark.parametrize("command", ["train", "predict", "evaluate", "summary", "gradcheck", "bench", "info"])
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: minivgg {command}" in capsys.readouterr().out


def test_version_and_missing_command(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"minivgg {__version__}\n"
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def test_summary_prints_a_table(capsys):
    assert main(["summary", "vgg16"]) == 0
    assert "138,357,544" in capsys.readouterr().out


def test_info_names_versions_blas_threads_and_gpu(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for word in ("minivgg", "NumPy", "Numba", "BLAS", "threads", "GPU", "GPU simulator", "NVRTC"):
        assert re.search(rf"^{word}", printed, re.MULTILINE)


def test_a_full_disk_is_one_line(data, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "runs/x/checkpoint.safetensors")

    monkeypatch.setattr("minivgg.training.checkpoints.save", full)
    assert main(["train", "--data", str(data / "stripes.npz"), "--epochs", "1", *SMALL, "--run", str(data / "z")]) == 2
    assert capsys.readouterr().err == "minivgg: runs/x/checkpoint.safetensors: No space left on device\n"


def test_a_reader_that_stops_reading_is_told_as_usual():
    command = f"'{sys.executable}' -m minivgg bugs | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 141)  # 0 where all was written before the reader went away
    assert done.stderr == ""
    assert done.stdout.startswith("NAME")
