"""`minivgg see` and `minivgg doctor`: what they print and draw, and one line for every mistake."""

import numpy as np
import pytest
from PIL import Image
from test_loop import stripes

from minivgg.cli.main import main

SMALL = ["--width", "0.1", "--classifier-width", "16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run on stripes, and one of them as a PNG beside its files."""
    folder = tmp_path_factory.mktemp("data")
    train, test = stripes(40, 0), stripes(10, 1)
    arrays = {"train_images": train.images, "train_labels": train.labels, "test_images": test.images}
    np.savez(folder / "stripes.npz", **arrays, test_labels=test.labels, classes=np.array(train.classes))
    options = ["--data", str(folder / "stripes.npz"), "--epochs", "1", "--batch-size", "10", "--quiet", *SMALL]
    assert main(["train", *options, "--run", str(folder / "run")]) == 0
    Image.fromarray(test.images[0, ..., 0]).save(folder / "run" / "stripes.png")
    return folder / "run"


LOOKS = {
    "filters": ["filters"],
    "maps": ["maps", "{run}/stripes.png", "--layer", "features.4"],
    "maps of a bundled image": ["maps"],
    "saliency": ["saliency", "{run}/stripes.png", "--label", "vertical"],
    "guided": ["saliency", "{run}/stripes.png", "--guided", "--label", "0"],
    "Grad-CAM": ["grad-cam", "{run}/stripes.png", "{run}/stripes.png"],
    "Grad-CAM of a layer": ["grad-cam", "{run}/stripes.png", "--layer", "features.4"],
    "occlusion": ["occlusion", "{run}/stripes.png", "--stride", "8", "--size", "8"],
}


@pytest.mark.parametrize("arguments", LOOKS.values(), ids=LOOKS)
def test_see_draws(arguments, run, tmp_path, capsys):
    picture = tmp_path / "seen.png"
    assert main(["see", *(a.format(run=run) for a in arguments), "--run", str(run), "--picture", str(picture)]) == 0
    assert f"drawn to {picture}" in capsys.readouterr().out
    with Image.open(picture) as image:
        image.load()
        assert np.asarray(image.convert("L")).std() > 5


def test_neighbours_are_found(run, tmp_path, monkeypatch):
    from minivgg.training import datasets

    few = [part.subset(slice(0, 60)) for part in datasets.load()]
    monkeypatch.setattr(datasets, "load", lambda *_: few)
    picture = tmp_path / "alike.png"
    chosen = ["--count", "3", "--run", str(run), "--picture", str(picture)]
    assert main(["see", "neighbours", str(run / "stripes.png"), *chosen]) == 0
    assert picture.exists()


def test_doctor_says_why_and_what_helps(tmp_path, capsys):
    options = ["--init", "normal:0.01", *SMALL, "--batch-size", "8", "--picture", str(tmp_path / "d.png")]
    assert main(["doctor", "vgg16", *options]) == 0
    printed = capsys.readouterr().out
    assert "conv5_3" in printed
    assert "loss 2.303; log(10) = 2.303" in printed
    assert "will not train: activations shrink\n- activations shrink by 0." in printed
    assert "use He, batch norm, or start from A as the paper did" in printed
    for start in ("he", "xavier", "normal:0.01", "normal:0.1", "he + BN", "normal:0.1 + BN"):
        assert f"\n{start}  " in printed
    assert (tmp_path / "d.png").exists()


def test_doctor_examines_a_run_with_its_own_images(run, capsys):
    assert main(["doctor", "--run", str(run), "--batch-size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "run, trained: " in printed
    assert "log(2) = 0.6931" in printed
    assert "normal:0.01" not in printed


def test_doctor_of_raw_pixels(capsys):
    assert main(["doctor", "vgg11", "--raw", "--no-compare", "--batch-size", "8", *SMALL]) == 0
    assert "- the input has mean" in capsys.readouterr().out


MISTAKES = {
    "no such class": (
        ["see", "saliency", "--label", "cat", "--run", "{run}"],
        "--label cat: no such class",
    ),
    "class past the last": (["see", "grad-cam", "--label", "2", "--run", "{run}"], "--label 2: no such class"),
    "no such layer": (["see", "maps", "--layer", "conv9", "--run", "{run}"], 'no layer "conv9"'),
    "no maps": (["see", "grad-cam", "--layer", "classifier.0", "--run", "{run}"], "needs feature maps; classifier.0"),
    "no image": (["see", "occlusion", "nowhere.png", "--run", "{run}"], "nowhere.png"),
    "no square": (
        ["see", "occlusion", "--size", "-1", "--run", "{run}"],
        "--size = -1: should be a whole number, at least 1",
    ),
    "too many neighbours": (
        ["see", "neighbours", "--count", "0", "--run", "{run}"],
        "--count = 0: should be a whole number, at least 1",
    ),
    "no run": (["see", "filters", "--run", "{run}/none"], "none: no such file"),
    "nobody to examine": (["doctor"], "name a model, such as vgg16, or a run"),
    "two to examine": (["doctor", "vgg16", "--run", "{run}"], "and not both"),
    "unknown model": (["doctor", "vgg12"], 'no model "vgg12"'),
    "unknown start": (["doctor", "vgg11", "--init", "normal:zero", *SMALL], 'initialiser "normal:zero"'),
    "small batch": (["doctor", "vgg11", "--batch-size", "1"], "--batch-size must be at least 2"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_and_status_2(arguments, message, run, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([a.format(run=run) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert error.rstrip().rpartition("\n")[2].startswith("minivgg: ")
