"""`minivgg compare`: its arithmetic by hand, its table, its picture, and one line for every mistake."""

import json

import numpy as np
import pytest
from PIL import Image

from minivgg.cli.main import main
from minivgg.insight import pictures
from minivgg.insight.compare import compare, depth, describe, measure, milliseconds, table
from minivgg.layers import Auxiliary, Concat, Conv2d, Flatten, Linear, MaxPool2d, ReLU, Sequential
from minivgg.models import build

FACTS = {  # weight layers, windows, parameters, GMAC
    "alexnet": (8, ((11, 11), (5, 5), (3, 3)), 61_100_840, 0.714),
    "vgg11": (11, ((3, 3),), 132_863_336, 7.609),
    "vgg16": (16, ((3, 3),), 138_357_544, 15.470),
    "vgg19": (19, ((3, 3),), 143_667_240, 19.632),
    "C": (16, ((3, 3), (1, 1)), 133_638_952, 11.771),
    "googlenet": (22, ((7, 7), (3, 3), (1, 1)), 6_624_904, 1.498),
    "googlenet_lrn": (22, ((7, 7), (5, 5), (3, 3), (1, 1)), 6_998_552, 1.583),
}


@pytest.mark.parametrize("name", FACTS)
def test_published_numbers(name):
    (entry,) = compare([name], runs=0)
    layers, windows, parameters, gmac = FACTS[name]
    assert (entry.depth, entry.windows, entry.parameters) == (layers, windows, parameters)
    assert round(entry.macs / 1e9, 3) == gmac
    assert entry.seconds is None
    whole = build(name, init="zeros")
    assert entry.parameters + entry.head_parameters == whole.parameter_count()


def branching():
    """x (N, 2, 6, 6): a convolution, two branches with a head before them, a pool, a linear layer."""
    head = Auxiliary(Flatten(), Linear(144, 3))
    branches = Concat(Conv2d(4, 5, 1), Sequential(Conv2d(4, 6, 3, padding=1), ReLU(), Conv2d(6, 3, (1, 5), 1, (0, 2))))
    return Sequential(Conv2d(2, 4, 3, padding=1), head, branches, MaxPool2d(2), Flatten(), Linear(72, 3))


def test_memory_by_hand():
    net = branching()
    entry = describe("net", net, (10, 2, 6, 6))
    main_way = (2 * 4 * 9 + 4) + (4 * 5 + 5) + (4 * 6 * 9 + 6) + (6 * 3 * 5 + 3) + (72 * 3 + 3)
    head = 144 * 3 + 3
    assert (entry.parameters, entry.head_parameters) == (main_way, head)
    pixels = 10 * 36
    # joining the branches: their input of 4 channels, their outputs of 5 and 3, and both once more side by side; more
    # than within the second branch, 5 beside 6 and 6
    assert entry.inference_bytes == 4 * (main_way + pixels * max(4 + 2 * (5 + 3), 5 + 6 + 6))
    outputs = pixels * (4 + 5 + 6 + 6 + 3) + 10 * (8 * 9 * 2 + 3) + 10 * (144 + 3)
    assert entry.training_bytes == 4 * (3 * (main_way + head) + outputs)
    assert entry.depth == 4
    assert entry.windows == ((3, 3), (1, 5), (1, 1))


def test_memory_grows_with_the_batch_and_weights_do_not():
    one, four = (compare(["vgg11"], runs=0, batch_size=n, width=0.25, classifier_width=8)[0] for n in (1, 4))
    weights = 4 * one.parameters
    assert four.inference_bytes - weights == 4 * (one.inference_bytes - weights)
    assert four.training_bytes - 3 * weights == 4 * (one.training_bytes - 3 * weights)
    assert four.macs == 4 * one.macs
    # VGG's largest pair is conv1_1's: 16 channels of 224×224 going into their ReLU and out of it
    assert one.inference_bytes - weights == 4 * 2 * 16 * 224**2


@pytest.mark.parametrize(
    ("net", "layers"),
    [
        (Conv2d(1, 1, 1), 1),
        (ReLU(), 0),
        (Sequential(Conv2d(1, 1, 1), ReLU(), Linear(1, 1)), 2),
        (Concat(Sequential(Conv2d(1, 1, 1), Conv2d(1, 1, 1)), Conv2d(1, 1, 1)), 2),
        (Sequential(Auxiliary(Linear(1, 1)), Linear(1, 1)), 1),
    ],
)
def test_depth(net, layers):
    assert depth(net) == layers


def test_time_is_the_median_of_the_runs(monkeypatch):
    ticks = iter([0, 1, 10, 13, 20, 22])  # runs of 1, 3 and 2 seconds
    calls = []
    net = Sequential(Conv2d(2, 3, 1))
    monkeypatch.setattr("minivgg.insight.compare.time.perf_counter", lambda: next(ticks))
    monkeypatch.setattr(Sequential, "forward", lambda self, x: calls.append(x.shape))
    assert measure(net, (5, 2, 4, 4), runs=3) == 2
    assert calls == [(5, 2, 4, 4)] * 4  # one to warm up


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0000123, "0.01 ms"), (0.0045678, "4.57 ms"), (0.0123, "12.3 ms"), (1.2345, "1234 ms")]
)
def test_milliseconds(seconds, text):
    assert milliseconds(seconds) == text


SMALL = ["--input-size", "64", "--width", "0.125", "--classes", "4", "--runs", "1"]


def test_table_json_and_picture(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "alexnet", "vgg11", "googlenet", *SMALL, "--picture"]) == 0
    printed = capsys.readouterr().out
    head, rule, *rows = printed.split("\n\n")[0].splitlines()
    assert [row.split()[0] for row in rows] == ["alexnet", "vgg11", "googlenet"]
    assert head.endswith("forward")
    assert all(row.endswith(" ms") and len(row) == len(rule) for row in rows)
    assert "For 1 image of 64×64 pixels" in printed
    assert "googlenet has" in printed and "vgg11 has" not in printed
    with Image.open(tmp_path / "compare.png") as image:
        image.load()
        assert image.size[0] > 1000

    assert main(["compare", "vgg11", "alexnet", *SMALL, "--no-time", "--json", "--picture", "other.png"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["name"], first["seconds"], first["windows"]) == ("vgg11", None, [[3, 3]])
    assert second["input"] == [1, 3, 64, 64]
    assert (tmp_path / "other.png").exists()


def test_without_time_nothing_is_said_of_it():
    entries = compare(["vgg11", "keras_vgg11"], runs=0, input_size=32, width=0.125, classifier_width=8)
    assert "forward" not in table(entries).lower()
    assert entries[1].input == (1, 1, 32, 32)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_picture_has_a_bar_for_every_number(count):
    entries = compare(["vgg11"] * count, runs=0, input_size=32, width=0.125, classifier_width=8)
    figure = pictures.comparison(entries)
    assert [len(axes.patches) for axes in figure.axes] == [count, count, count, 2 * count, count]
    assert all(axes.get_xlabel() and axes.get_title() for axes in figure.axes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vgg17"], 'no model "vgg17"; there are'),
        (["alexnet", "vgg11", "--input-size", "48"], "input_size of at least 63, got 48"),
        (["vgg11", "--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["vgg11", "--runs", "0"], "--runs must be at least 1, got 0"),
        (["vgg11", "--classes", "0"], "classes = 0: should be a whole number, at least 1"),
    ],
)
def test_one_line_for_a_mistake(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_measuring_does_not_change_the_network():
    net = build("vgg11_bn", input_size=32, width=0.0625, classifier_width=8, classes=3)
    before = {name: value.copy() for name, value in net.state_dict().items()}
    assert measure(net, (1, 3, 32, 32), runs=1) > 0
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
