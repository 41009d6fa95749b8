"""The ledger against the published totals, and against what really happens in a forward."""

import json

import numpy as np
import pytest
from test_models import FACTS, empty

from minivgg.cli.main import main
from minivgg.insight.ledger import human, ledger
from minivgg.layers import (
    AdaptiveAvgPool2d,
    AvgPool2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    walk_forward,
)

IMAGE = (1, 3, 224, 224)


@pytest.mark.parametrize("letter", FACTS)
def test_totals_are_the_published_ones(letter):
    parameters, with_bn, gmac, sees = FACTS[letter]
    book = ledger(empty(letter), IMAGE)
    assert (book.parameters, round(book.macs / 1e9, 3), book.receptive_field) == (parameters, gmac, sees)
    if with_bn:
        book = ledger(empty(letter, batch_norm=True), IMAGE)
        assert (book.parameters, round(book.macs / 1e9, 3), book.receptive_field) == (with_bn, gmac, sees)


@pytest.mark.parametrize("letter", FACTS)
def test_summary_json_says_the_same(letter, capsys):
    assert main(["summary", letter, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    parameters, _, gmac, sees = FACTS[letter]
    assert (printed["parameters"], printed["gmac"], printed["receptive_field"]) == (parameters, gmac, sees)
    assert sum(row["macs"] for row in printed["layers"]) == printed["macs"]


def test_largest_column_matrix_is_conv1_2_of_vgg16():
    book = ledger(empty("D"), IMAGE)
    assert book.largest_column_bytes / 2**20 == pytest.approx(110.25)
    assert max(book.rows, key=lambda row: row.column_bytes).name == "features.2"


def test_shapes_and_bytes_are_those_of_a_forward():
    net = Sequential(
        Conv2d(2, 6, (3, 5), stride=2, padding=1),
        ReLU(),
        Concat(Conv2d(6, 4, 1), Sequential(AvgPool2d(3, 1, 1), Conv2d(6, 3, 3, padding=1))),
        MaxPool2d(3, 2),
        AdaptiveAvgPool2d(2),
        Flatten(),
        Linear(28, 5),
    )
    x = np.zeros((2, 2, 19, 23), np.float32)
    rows = {row.name: row for row in ledger(net, x.shape).rows}
    for name, layer, inputs in walk_forward(net, x):
        y = layer.forward(inputs)
        assert rows[name].output == y.shape
        assert rows[name].activation_bytes == y.nbytes
        if isinstance(layer, Conv2d):
            assert rows[name].macs == y.size * layer.weight.data[0].size
    assert rows["6"].macs == 2 * 28 * 5
    assert rows["2.0"].column_bytes == 0  # a pointwise convolution gathers nothing


@pytest.mark.parametrize(
    ("layers", "sees"),
    [
        ([Conv2d(1, 1, 3, padding=1) for _ in range(2)], 5),
        ([Conv2d(1, 1, 3, padding=1) for _ in range(3)], 7),
        ([Conv2d(1, 1, 3, stride=2), Conv2d(1, 1, 3)], 7),
        ([MaxPool2d(2), Conv2d(1, 1, (1, 3)), ReLU()], 6),
        ([Concat(Conv2d(1, 1, 1), Conv2d(1, 1, 5, padding=2)), Conv2d(2, 1, 3)], 7),
        ([AdaptiveAvgPool2d(4)], 4),
    ],
)
def test_receptive_field_is_where_the_gradient_reaches(layers, sees):
    net = Sequential(*layers).astype(np.float64)
    assert ledger(net, (1, 1, 16, 16)).receptive_field == sees
    for p in net.named_params().values():
        p.data[...] = 1
    x = np.random.default_rng(0).standard_normal((1, 1, 16, 16))
    if not any(isinstance(layer, MaxPool2d) for layer in layers):  # whose gradient reaches one pixel of its window
        dy = np.zeros_like(net.forward(x, keep=True))
        dy[0, 0, dy.shape[2] // 2, dy.shape[3] // 2] = 1
        reached = np.flatnonzero(net.backward(dy)[0, 0].any(axis=0))
        assert reached[-1] - reached[0] + 1 == sees


def test_table_has_a_line_a_layer_and_the_totals():
    net = empty("vgg11")
    lines = str(ledger(net, IMAGE)).splitlines()
    assert len({line.index("parameters") for line in lines if "parameters" in line and line.startswith("layer")}) == 1
    assert sum(line.startswith(("features.", "classifier.")) for line in lines) == 28
    assert any(line.startswith("total") and "132,863,336" in line and "150 px" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "text"),
    [((0,), ""), ((999,), "999"), ((12_345_678,), "12.3 M"), ((1536, 1024, "B"), "1.5 KiB"), ((12, 1024, "B"), "12 B")],
)
def test_human_numbers(args, text):
    assert human(*args) == text
