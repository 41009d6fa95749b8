"""`minivgg predict` and `minivgg evaluate`, with networks whose answers are known because they were built in."""

import re
import sys
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import minivgg as mv
from minivgg import models
from minivgg.cli import predict
from minivgg.cli.main import main
from minivgg.insight import pictures
from minivgg.models.vgg import vgg
from minivgg.training import checkpoints
from minivgg.training.datasets import imagenet_classes
from minivgg.training.preprocessing import PREPROCESSINGS, TORCHVISION

NAMES = tuple(imagenet_classes().values())
# A thousand colours, ten steps of red, green and blue: one for each of ImageNet's classes.
COLOURS = np.array([(25 * (k // 100), 25 * (k // 10 % 10), 25 * (k % 10)) for k in range(1000)], np.uint8) + 10
SMALL = {name: replace(named, size=64, resize=72) for name, named in PREPROCESSINGS.items()}


def colours(classes, init):
    """A network that says which of so many colours an image has on average."""
    fc = mv.Linear(3, classes)
    return mv.Sequential({"avgpool": mv.AdaptiveAvgPool2d(1), "flatten": mv.Flatten(), "classifier": fc})


def answer(preprocessing):
    """A stand-in for `minivgg.weights.load`: the weights with which `colours` finds the nearest of COLOURS."""
    module = ModuleType("minivgg.weights")
    module.asked = []
    module.SOURCES = {
        "colours": SimpleNamespace(model="colours", input="torchvision", partial=False),
        "by caffe": SimpleNamespace(model="colours", input="caffe", partial=False),
        "tiny": SimpleNamespace(model="tiny", input="torchvision", partial=False),
        "oxford": SimpleNamespace(model="vgg16", input="caffe", partial=True),
    }

    def load(model, source, *, input):
        module.asked.append((source, input))
        if "classifier" in model.children() and isinstance(model.classifier, mv.Linear):
            where = np.array([preprocessing(np.full((72, 72, 3), c, np.uint8))[:, 0, 0] for c in COLOURS])
            scale = 1000 / np.ptp(where) ** 2  # |x − c|² = |x|² − 2 c·x + |c|², and the first is the same for all
            model.classifier.weight.data[...] = 2 * scale * where
            model.classifier.bias.data[...] = -scale * (where**2).sum(axis=1)
        return SimpleNamespace(warnings=() if preprocessing == SMALL[input] else ("these weights take others",))

    module.load = load
    return module


@pytest.fixture
def weights(monkeypatch):
    """Networks for small images, "colours" and "tiny" (a VGG), their weights, and a Grad-CAM that notes questions."""
    monkeypatch.setitem(models.MODELS, "colours", colours)
    monkeypatch.setitem(models.MODELS, "tiny", partial(vgg, "A", width=0.05, classifier_width=8, input_size=64))
    for name, named in SMALL.items():
        monkeypatch.setitem(PREPROCESSINGS, name, named)
    module = answer(SMALL["torchvision"])
    monkeypatch.setitem(sys.modules, "minivgg.weights", module)
    seeing = ModuleType("minivgg.insight.seeing")
    seeing.asked = []

    def grad_cam(model, x, label):
        seeing.asked.append((x, label))
        return np.tri(64, dtype=np.float32)

    seeing.grad_cam = grad_cam
    monkeypatch.setitem(sys.modules, "minivgg.insight.seeing", seeing)
    module.seeing = seeing
    return module


def photo(path, k, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, tuple(COLOURS[k].tolist())).save(path)
    return path


def first_class(printed, path):
    """The most probable class that was printed below a path, and its line."""
    line = printed.split(f"{path}\n")[1].splitlines()[0]
    return re.split(r"\s{2,}", line.strip())[0], line


# ---- predict ----


def test_predict_names_explains_and_draws(weights, tmp_path, capsys):
    paths = [photo(tmp_path / f"{k}.png", k, size) for k, size in ((285, (40, 30)), (7, (30, 40)), (999, (8, 8)))]
    picture = tmp_path / "out.png"
    assert main(["predict", *map(str, paths), "--weights", "colours", "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    for path in paths:
        name, line = first_class(printed, path)
        assert name == NAMES[int(path.stem)]
        assert "█" in line
    assert len([line for line in printed.splitlines() if line.startswith("  ")]) == 3 * 5
    assert weights.asked == [("colours", "torchvision")]
    assert [label for _, label in weights.seeing.asked] == [285, 7, 999]
    assert all(x.shape == (3, 64, 64) for x, _ in weights.seeing.asked)
    with Image.open(picture) as image:
        assert image.width > 1200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ([], "torchvision"),
        (["--preprocessing", "caffe"], "caffe"),
        (["--weights", "w.h5"], "caffe"),
        (["--weights", "by caffe"], "caffe"),
    ],
)
def test_predict_from_a_file_with_its_preprocessing(options, named, weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(weights, "load", answer(SMALL[named]).load)
    path = photo(tmp_path / "a.png", 123)
    options = ["--weights", "w.safetensors", "--model", "colours", *options]
    assert main(["predict", str(path), *options, "--picture", str(tmp_path / "p.png")]) == 0
    captured = capsys.readouterr()
    name, line = first_class(captured.out, path)
    assert captured.err == ""
    assert name == NAMES[123]
    assert float(re.search(r"([\d.]+)%", line)[1]) > 60  # with the other preprocessing it is another class


def test_predict_draws_the_first_few(weights, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "MOST_DRAWN", 2)
    path = photo(tmp_path / "a.png", 5)
    assert main(["predict", *[str(path)] * 21, "--weights", "colours", "--picture", str(tmp_path / "p.png")]) == 0
    printed = capsys.readouterr().out
    assert printed.count(NAMES[5]) == 21
    assert "the first 2 drawn to" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--weights", "w.pth"], "say what network .* such as --model vgg16; .* a name: colours, by caffe, tiny$"),
        (["--weights", "oxford"], "oxford: some of a network's layers, and no classifier"),
        (["--weights", "colours", "--run", "x"], "--run beside --weights"),
        (["--model", "vgg16"], "--model without --weights"),
        (["--preprocessing", "caffe"], "--preprocessing without --weights"),
        (["--weights", "colours", "--preprocessing", "tf"], 'no preprocessing "tf"; there are torchvision, caffe'),
        (["--weights", "w.pth", "--model", "vgg61"], 'no model "vgg61".*did you mean'),
    ],
)
def test_options_that_do_not_go_together(arguments, words, weights, tmp_path, capsys):
    assert main(["predict", str(photo(tmp_path / "a.png", 5)), *arguments]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error, re.MULTILINE)
    assert error.count("\n") == 1


def test_weights_that_want_other_images_are_warned_of(weights, tmp_path, capsys):
    options = ["--weights", "colours", "--preprocessing", "caffe", "--picture", str(tmp_path / "p.png")]
    assert main(["predict", str(photo(tmp_path / "a.png", 5)), *options]) == 0
    assert capsys.readouterr().err == "minivgg: colours: these weights take others\n"


def test_damaged_weights_are_an_error(weights, tmp_path, capsys, monkeypatch):
    def damage(model, source, *, input):
        model.classifier.weight.data[...] = np.nan
        return SimpleNamespace(warnings=())

    monkeypatch.setattr(weights, "load", damage)
    assert main(["predict", str(photo(tmp_path / "a.png", 5)), "--weights", "colours"]) == 2
    assert "not finite" in capsys.readouterr().err


def test_a_run_for_photographs_is_explained_too(tmp_path, weights, capsys):
    """A run's network of 64 pixels has its Grad-CAM; one of 32 has maps of a single pixel, and has none."""
    for size, asked in ((64, 1), (32, 0)):
        options = {"classes": 3, "channels": 3, "input_size": size, "width": 0.05, "classifier_width": 4}
        description = {
            "model": "vgg11_bn",
            "options": options,
            "classes": list("abc"),
            "preprocessing": TORCHVISION.as_dict() | {"size": size, "resize": size},
        }
        checkpoints.save(tmp_path / "model.safetensors", mv.build("vgg11_bn", **options).state_dict(), description)
        weights.seeing.asked.clear()
        path = photo(tmp_path / "a.png", 5)
        arguments = ["predict", str(path), "--run", str(tmp_path), "--picture", str(tmp_path / "p.png")]
        assert main(arguments) == 0
        assert len(weights.seeing.asked) == asked
        assert first_class(capsys.readouterr().out, path)[0] in "abc"


def test_the_real_grad_cam(weights, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "minivgg.insight.seeing")
    pytest.importorskip("minivgg.insight.seeing", reason="no Grad-CAM in this version")
    path = photo(tmp_path / "a.png", 5)
    assert main(["predict", str(path), "--weights", "tiny", "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").exists()


def test_thumbnail_averages_whole_blocks():
    image = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    assert pictures.thumbnail(image, 11) is not image
    np.testing.assert_array_equal(pictures.thumbnail(image, 11), image)
    small = pictures.thumbnail(image[:, :32], 10)
    expected = image[:, :32].reshape(10, 2, 16, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, expected, rtol=0, atol=0.51)
    assert pictures.thumbnail(image[..., :1], 5).shape == (5, 9, 1)


# ---- evaluate ----


@pytest.fixture
def folder(tmp_path):
    """Ten pictures in folders of classes, seven of them where they belong; one is of the second nearest colour."""
    right = [(NAMES[0], 0), (NAMES[0], 0), ("n02123045", 281), ("tabby", 281), ("Egyptian_cat", 285)]
    right += [("n15075141", 999), ("n15075141", 999)]
    wrong = [("goldfish", 700), ("goldfish", 0), ("goldfish", 999)]  # 0 and 1 are neighbours: within the first five
    for i, (name, k) in enumerate(right + wrong):
        photo(tmp_path / "val" / name / f"{i}.png", k, (100 + 10 * i, 80))
    return tmp_path / "val"


@pytest.mark.parametrize("options", [[], ["--flip", "--scales", "72,90"], ["--dense", "--crops"]])
def test_evaluate_prints_the_errors_that_were_built_in(options, weights, folder, capsys):
    assert main(["evaluate", str(folder), "--weights", "colours", "--quiet", *options]) == 0
    captured = capsys.readouterr()
    head, _, columns, *rows = captured.out.splitlines()
    assert head == "10 images of 5 of the network's 1,000 classes"
    assert columns.split() == ["scale", "looks", "top-1", "error", "top-5", "error"]
    assert all(row.endswith("30.00%       20.00%") for row in rows)
    assert len({len(row) for row in [columns, *rows]}) == 1  # aligned
    starts = {0: ["centre"], 3: ["centre"] * 3, 2: ["dense", "crops", "dense + crops"]}[len(options)]
    assert [re.split(r"\s{2,}", row)[0] for row in rows] == starts
    assert captured.err == ""


def test_evaluate_shows_progress_on_stderr(weights, folder, capsys):
    assert main(["evaluate", str(folder), "--weights", "colours"]) == 0
    captured = capsys.readouterr()
    assert "evaluating" in captured.err
    assert "evaluating" not in captured.out


def test_evaluate_a_run_on_its_own_test_set(tmp_path, capsys):
    run = ["--run", str(tmp_path / "run")]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32), dtype=np.uint8)
    labels = rng.integers(0, 3, 30)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(tmp_path / "noise.npz", **arrays, classes=np.array(["a", "b", "c"]))
    small = ["--width", "0.05", "--classifier-width", "4", "--batch-size", "10", "--epochs", "1", "--quiet"]
    assert main(["train", "--data", str(tmp_path / "noise.npz"), *small, *run]) == 0
    accuracy = float(re.search(r"test accuracy ([\d.]+)%", capsys.readouterr().out)[1])
    assert main(["evaluate", *run, "--quiet", "--dense"]) == 0
    *_, row = capsys.readouterr().out.splitlines()
    assert row.split()[0] == "dense"
    assert 100 - float(row.split()[-1].rstrip("%")) == pytest.approx(accuracy, abs=0.02)  # on 32×32 dense is ordinary


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{folder}/gone", "--weights", "colours"], "gone: no such folder"),
        (["{folder}/tabby", "--weights", "colours"], "tabby: no folders"),
        ([], "name a folder of pictures, DIR/CLASS/PICTURE"),
        (["{folder}", "--weights", "colours", "--scales", "63"], "scale 63 is below the network's input of 64"),
        (
            ["{folder}", "--weights", "colours", "--batch-size", "0"],
            "batch_size = 0: should be a whole number, at least 1",
        ),
        (["{folder}/..", "--weights", "colours"], "val: no|val/.*: not an image"),
    ],
)
def test_mistakes_with_evaluate(arguments, words, weights, folder, capsys):
    assert main(["evaluate", *[a.format(folder=folder) for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert re.search(words, error, re.MULTILINE)
    assert error.count("\n") == 1


@pytest.mark.parametrize("scales", ["256,", "a", "256;384", "0", "-5,256"])
def test_scales_are_whole_numbers(scales, folder, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(folder), f"--scales={scales}"])
    assert end.value.code == 2
    assert "--scales" in capsys.readouterr().err


def test_an_unreadable_picture_stops_an_evaluation_in_one_line(weights, folder, capsys):
    (folder / "tabby" / "zz.jpg").write_bytes(b"\xff\xd8\xff\xe0" + b"\0" * 64)
    assert main(["evaluate", str(folder), "--weights", "colours", "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "tabby/zz.jpg: cannot be read as an image" in error
    assert error.count("\n") == 1
