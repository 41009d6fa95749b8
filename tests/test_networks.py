"""AlexNet and GoogLeNet against published numbers; heads beside the way."""

import numpy as np
import pytest

from minivgg.errors import BadInput
from minivgg.gradcheck import check
from minivgg.insight.ledger import ledger
from minivgg.layers import (
    Auxiliary,
    BatchNorm2d,
    Concat,
    Conv2d,
    Flatten,
    Linear,
    ReLU,
    Sequential,
    Sigmoid,
    auxiliary_loss_backward,
    auxiliary_loss_forward,
    walk_forward,
)
from minivgg.models import MODELS, build, initialise, smallest_input
from minivgg.models.googlenet import INCEPTIONS, inception
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.testing.arrays import threads
from minivgg.training.config import Config
from minivgg.training.run import Run

IMAGE = (1, 3, 224, 224)
SMALL = {"classes": 4, "width": 1 / 16, "classifier_width": 8}

# Published: torchvision's table of weights; Caffe's bvlc_googlenet; and for the AlexNet of 2012 in one piece the
# 60,965,224 of Caffe's two columns, with the other half of the channels in convolutions 2, 4 and 5.
UNGROUPED = 60_965_224 + 48 * 256 * 25 + 192 * 384 * 9 + 192 * 256 * 9
PARAMETERS = {
    "alexnet": ({}, 61_100_840),
    "alexnet_lrn": ({}, UNGROUPED),
    "googlenet": ({}, 13_004_888),
    "googlenet for inference": ({"aux_logits": False}, 6_624_904),
    "googlenet_lrn": ({}, 13_378_280),
    "googlenet_lrn for inference": ({"aux_logits": False}, 6_998_552),
}


def empty(name, **options):
    return build(name, init="zeros", **options)


def small(name, **options):
    """(a network, a batch of images for it)"""
    size = smallest_input(name)
    net = build(name, input_size=size, channels=3, **SMALL | options)
    return net, np.random.default_rng(0).standard_normal((2, 3, size, size), np.float32)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name):
    options, count = PARAMETERS[name]
    net = empty(name.split()[0], **options)
    assert net.parameter_count() == count
    assert ledger(net, IMAGE).parameters == count


def test_macs_of_alexnet_by_hand():
    convolutions = 55**2 * 64 * 3 * 121 + 27**2 * 192 * 64 * 25 + 13**2 * 9 * (384 * 192 + 256 * 384 + 256 * 256)
    linear = 4096 * 256 * 36 + 4096 * 4096 + 1000 * 4096
    assert ledger(empty("alexnet"), IMAGE).macs == convolutions + linear  # 0.714 G, torchvision's 0.71


# Szegedy et al. 2014, table 1: pixels of the map, millions of operations. (For 5a it has 54 where its own numbers of
# filters make 51, and its parameters of 4a and 4c go with other filters too.)
TABLE = {
    "inception3a": (28, 128),
    "inception3b": (28, 304),
    "inception4a": (14, 73),
    "inception4b": (14, 88),
    "inception4c": (14, 100),
    "inception4d": (14, 119),
    "inception4e": (14, 170),
    "inception5b": (7, 71),
}


def test_inceptions_are_those_of_the_papers_table():
    rows = ledger(empty("googlenet_lrn"), IMAGE).rows
    for name, (pixels, operations) in TABLE.items():
        mine = [row for row in rows if row.name.startswith(f"{name}.")]
        assert {row.output[2:] for row in mine} == {(pixels, pixels)}
        macs = sum(row.macs for row in mine)
        assert macs / 1e6 == pytest.approx(operations, abs=1)
        assert macs // pixels**2 == sum(row.parameters - row.output[1] for row in mine if row.parameters)  # less biases


@pytest.mark.parametrize(
    ("name", "gmac", "sees"),
    [
        ("alexnet", 0.714, 195),  # Araujo, Norris, Sim 2019: 195
        ("alexnet_lrn", 1.135, 195),
        ("googlenet", 1.498, 571),  # torchvision: 1.498
        ("googlenet_lrn", 1.583, 907),
    ],
)
def test_arithmetic_and_field(name, gmac, sees):
    book = ledger(empty(name), IMAGE)
    assert round((book.macs - book.heads.macs) / 1e9, 3) == gmac
    assert book.receptive_field == sees
    if "googlenet" in name:
        without = ledger(empty(name, aux_logits=False), IMAGE)
        assert without.macs == book.macs - book.heads.macs
        assert without.parameters == book.parameters - book.heads.parameters
        assert not without.heads.rows
        assert {row.name.split(".")[0] for row in book.heads.rows} == {"aux1", "aux2"}
        assert f"of these {13_378_280 - 6_998_552 if 'lrn' in name else 13_004_888 - 6_624_904:,}" in str(book)


def test_shapes_of_googlenet():
    net, shape, shapes = empty("googlenet"), IMAGE, {}
    for name, layer in net.children().items():
        shapes[name] = shape = layer.output_shape(shape)
    assert shapes["maxpool1"] == (1, 64, 56, 56)
    assert shapes["inception3b"] == (1, 480, 28, 28)
    assert shapes["inception4e"] == (1, 832, 14, 14)
    assert shapes["inception5b"] == (1, 1024, 7, 7)
    assert shape == (1, 1000)


def test_names_are_torchvisions():
    names = set(empty("googlenet").state_dict())
    norm = {"weight", "bias", "running_mean", "running_var"}
    assert {"conv1.conv.weight", "inception3a.branch1.conv.weight", "inception5b.branch2.1.conv.weight"} <= names
    assert {f"inception4c.branch4.1.bn.{key}" for key in norm} <= names
    assert {"aux1.conv.conv.weight", "aux2.fc1.weight", "aux2.fc2.bias", "fc.weight", "fc.bias"} <= names
    assert "conv1.conv.bias" not in names
    convs, linears = [0, 3, 6, 8, 10], [1, 4, 6]
    places = [f"features.{i}" for i in convs] + [f"classifier.{i}" for i in linears]
    assert list(empty("alexnet").state_dict()) == [f"{place}.{key}" for place in places for key in ("weight", "bias")]


def test_the_articles_small_googlenet():
    net = empty("small_googlenet")
    module = sum((64, 64, 96, 32))
    assert module == 256

    def parameters(c):
        return (c * 64 + 64) + (c * 48 + 48) + (48 * 64 * 9 + 64) + (c * 64 + 64) + (64 * 96 * 25 + 96) + (c * 32 + 32)

    first, last = 3 * 192 * 9 + 192, 256 * 10 + 10
    assert net.parameter_count() == first + parameters(192) + parameters(256) + last
    for size in (5, 32, 224):
        assert net.output_shape((2, 3, size, size)) == (2, 10)
    assert inception(7, (64, 48, 64, 64, 96, 32)).output_shape((1, 7, 9, 8)) == (1, 256, 9, 8)


def test_filters_of_googlenets_modules_add_up():
    outputs = {name: f[0] + f[2] + f[4] + f[5] for name, f in INCEPTIONS.items()}
    assert list(outputs.values()) == [256, 480, 512, 512, 512, 528, 832, 832, 1024]


@pytest.mark.parametrize("name", [name for name in MODELS if "net" in name])
def test_a_forward_has_the_ledgers_shapes(name):
    net, x = small(name)
    rows = {row.name: row for row in ledger(net, x.shape).rows}
    outputs = {path: layer.forward(inputs).shape for path, layer, inputs in walk_forward(net, x)}
    assert {path: row.output for path, row in rows.items()} == outputs


@pytest.mark.parametrize("name", ["alexnet", "googlenet", "googlenet_lrn", "small_googlenet"])
def test_frozen_networks(name):
    net, x = small(name, dropout=0.3)
    for _ in range(2):
        net.forward(x + 1, train=True)
    expected = net.forward(x)
    frozen = net.freeze()
    assert not any(layer.only_in_training or isinstance(layer, BatchNorm2d) for _, layer in frozen.walk())
    # up to 60 roundings in a row, each relative to the largest score or what led to it
    np.testing.assert_allclose(frozen.forward(x), expected, rtol=0, atol=3e-5 * abs(expected).max())


def test_alexnet_and_its_loss_by_gradient_check():
    net, x = small("alexnet")
    with threads(1):  # the arrays are so small that waking a second one takes longer than the work
        report = check(net, x, labels=np.array([1, 3]), evaluations=0)
    assert report.ok, report


# ---- Heads beside the way ----


def headed():
    """A small network with a head, its weights drawn."""
    head = Auxiliary({"flatten": Flatten(), "fc1": Linear(24, 5), "relu": ReLU(), "fc2": Linear(5, 3)}, share=0.3)
    branches = Concat(Conv2d(2, 1, 1), Sequential(Conv2d(2, 1, 3, padding=1), Sigmoid()))
    layers = {"stem": Conv2d(1, 2, 2), "aux": head, "module": branches, "flatten": Flatten(), "fc": Linear(24, 3)}
    return initialise(Sequential(layers), seed=3)


X, LABELS = np.random.default_rng(5).standard_normal((4, 1, 4, 5)), np.array([0, 2, 1, 1])


@pytest.mark.parametrize("train", [True, False])
def test_head_and_its_loss_by_gradient_check(train):
    report = check(headed(), X, labels=LABELS, train=train)
    assert report.ok, report
    assert {"aux.fc1.weight", "aux.fc2.bias", "stem.weight"} <= {row.argument for row in report.rows}


@pytest.mark.parametrize("broken", ["x", "share"])
def test_gradient_check_sees_a_wrong_head(broken, monkeypatch):
    if broken == "x":
        monkeypatch.setattr(Auxiliary, "backward", lambda self, dy, need_dx=True: dy + 0 * right(self, dy))
    else:
        monkeypatch.setattr(
            "minivgg.gradcheck.targets.auxiliary_loss_backward",
            lambda dloss, cache: auxiliary_loss_backward(dloss / 0.3, cache),
        )
    assert not check(headed(), X, labels=LABELS, evaluations=0).ok


right = Auxiliary.backward


def test_loss_of_heads_is_weighted():
    net = headed().astype(np.float64)
    scores = net.forward(X, train=True)
    side = net.aux.scores
    assert scores.shape == side.shape == (4, 3)
    np.testing.assert_allclose(side, Sequential(net.aux.children()).forward(net.stem.forward(X)), rtol=1e-12)
    loss, cache = auxiliary_loss_forward(net, LABELS, 0.1)
    own, own_cache = softmax_cross_entropy_forward(side, LABELS, 0.1)
    assert loss == pytest.approx(0.3 * own)
    auxiliary_loss_backward(2.0, cache)
    np.testing.assert_allclose(net.aux.dscores, 0.6 * softmax_cross_entropy_backward(1.0, own_cache), rtol=1e-12)


def test_head_does_nothing_at_test_time():
    net = headed()
    x = X.astype(np.float32)
    expected = net.forward(x, train=True)
    np.testing.assert_array_equal(net.forward(x), expected)
    assert net.aux.scores is None
    assert auxiliary_loss_forward(net, LABELS) == (0.0, [])
    with pytest.raises(RuntimeError, match="first call forward"):
        net.aux.backward(net.stem.forward(x))
    assert "aux" not in net.freeze().children()


def test_without_its_loss_a_head_gets_no_gradient_and_gives_none():
    net, alone = headed(), headed()
    x = X.astype(np.float32)
    alone = Sequential({name: layer for name, layer in alone.children().items() if name != "aux"})
    y = net.forward(x, train=True)
    dy = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    alone.forward(x, train=True)
    np.testing.assert_array_equal(net.backward(dy), alone.backward(dy))
    assert not any(p.grad.any() for p in net.aux.named_params().values())


def test_googlenet_trains_its_heads(tmp_path):
    run = Run(Config(model="googlenet", width=0.05, classifier_width=8, batch_size=16, lr=0.1, warmup=0), tmp_path)
    trainer, net = run.trainer, run.trainer.model
    x, labels = next(trainer.train.epoch(0))
    before = {name: p.data.copy() for name, p in net.named_params().items()}
    loss, _ = trainer.step(x, labels)
    assert abs(loss - np.log(10)) < 0.5  # that of the scores alone, so that it compares with a test's
    moved = {name for name, p in net.named_params().items() if not np.array_equal(p.data, before[name])}
    assert {"aux1.fc2.weight", "aux1.fc1.weight", "aux2.conv.conv.weight", "conv1.conv.weight", "fc.weight"} <= moved


def test_untrained_heads_have_no_opinion():
    net, x = small("googlenet", width=0.25, classifier_width=64)
    net.forward(x, train=True)
    loss, cache = auxiliary_loss_forward(net, np.array([0, 1]))
    assert len(cache) == 2
    assert loss == pytest.approx(2 * 0.3 * np.log(4), abs=0.3)


@pytest.mark.parametrize(("model", "size", "resize"), [("alexnet", 64, 56), ("vgg11", 32, 28)])
def test_training_chooses_a_size_that_the_network_takes(model, size, resize, tmp_path):
    run = Run(Config(model=model, width=0.05, classifier_width=8, batch_size=8), tmp_path)
    assert (run.preprocessing.size, run.preprocessing.resize) == (size, resize)
    x, labels = next(run.trainer.train.epoch(0))
    assert np.isfinite(run.trainer.step(x, labels)[0])


# ---- Mistakes ----


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("alexnet", {"input_size": 62}, "at least 63, got 62"),
        ("alexnet", {"configuration": "2013"}, 'no AlexNet "2013"; there are one column, 2012'),
        (
            "alexnet",
            {"classes": 0},
            "classes = 0: should be a whole number, at least 1",
        ),
        ("alexnet", {"algorithm": "fft"}, 'no algorithm "fft"'),
        ("googlenet", {"input_size": 31}, "at least 32, got 31"),
        ("googlenet", {"width": 0}, "width = 0: should be a number, above 0"),
        ("googlenet", {"transform_input": True, "channels": 1}, "three channels, red, green and blue; got 1"),
        ("googlenet", {"algorithm": "fft"}, 'no algorithm "fft"'),
        ("small_googlenet", {"classes": -1}, "classes = -1: should be a whole number, at least 1"),
        ("small_googlenet", {"algorithm": "fft"}, 'no algorithm "fft"'),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(BadInput, match=message):
        build(name, **options)


def test_smallest_input_is_the_smallest():
    net = empty("alexnet", **SMALL, input_size=63)
    assert net.output_shape((1, 3, 63, 63)) == (1, 4)
    with pytest.raises(ValueError, match="does not fit"):
        net.output_shape((1, 3, 62, 62))
