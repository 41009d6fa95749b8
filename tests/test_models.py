"""The VGG family against the published facts: parameters, names, shapes, and how weights start."""

import subprocess
import sys

import numpy as np
import pytest

from minivgg.errors import BadInput
from minivgg.layers import Conv2d, Dropout, Linear, Sequential, walk_forward
from minivgg.models import MODELS, build, initialise, smallest_input, vgg
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_forward

# configuration → (parameters, with batch norm, GMAC, receptive field), for 3×224×224 and 1000 classes
FACTS = {
    "A": (132_863_336, 132_868_840, 7.609, 150),
    "A-LRN": (132_863_336, None, 7.609, 150),
    "B": (133_047_848, 133_053_736, 11.308, 156),
    "C": (133_638_952, 133_647_400, 11.771, 156),
    "D": (138_357_544, 138_365_992, 15.470, 212),
    "E": (143_667_240, 143_678_248, 19.632, 268),
}
LETTERS = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}


def empty(name, **options):
    return build(name, init="zeros", **options)


@pytest.mark.parametrize("letter", FACTS)
def test_parameter_counts(letter):
    plain, with_bn, _, _ = FACTS[letter]
    assert empty(letter).parameter_count() == plain
    if with_bn:
        assert empty(letter, batch_norm=True).parameter_count() == with_bn


@pytest.mark.parametrize(("name", "letter"), LETTERS.items())
def test_torchvision_names_are_the_letters(name, letter):
    assert repr(empty(name)) == repr(empty(letter))
    assert repr(empty(f"{name}_bn")) == repr(empty(letter, batch_norm=True))


def test_parameter_names_are_torchvisions():
    convs = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    names = [f"features.{i}" for i in convs] + [f"classifier.{i}" for i in (0, 3, 6)]
    assert list(empty("vgg16").state_dict()) == [f"{name}.{key}" for name in names for key in ("weight", "bias")]
    with_bn = empty("vgg16_bn")
    convs = [0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40]
    found = [int(name.split(".")[1]) for name, layer in with_bn.walk() if isinstance(layer, Conv2d)]
    assert found == convs
    norm = {"weight", "bias", "running_mean", "running_var"}
    assert {f"features.{i + 1}.{key}" for i in convs for key in norm} <= with_bn.state_dict().keys()


def test_vgg16_takes_an_image_to_a_thousand_scores():
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), dtype=np.float32)
    y = vgg.vgg16()(x)
    assert y.shape == (1, 1000)
    assert y.dtype == np.float32
    assert 0.1 < y.std() < 10  # He's weights keep the signal's size through sixteen layers


def test_keras_vgg11_block_shapes():
    net = empty("keras_vgg11")
    shape, shapes = (1, 1, 224, 224), []
    for name, layer in net.children().items():
        shape = layer.output_shape(shape)
        shapes.append((name, shape))
    assert shapes[:5] == [
        ("block1", (1, 64, 112, 112)),
        ("block2", (1, 128, 56, 56)),
        ("block3", (1, 256, 28, 28)),
        ("block4", (1, 512, 14, 14)),
        ("block5", (1, 512, 7, 7)),
    ]
    assert shape == (1, 10)


def test_block_vgg_is_configuration_b_with_named_blocks():
    net = empty("block_vgg")
    assert net.output_shape((1, 3, 224, 224)) == (1, 1000)
    assert [len(net[f"block{i}"]) for i in range(1, 6)] == [5] * 5
    assert net.parameter_count() == FACTS["B"][0]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_runs_small_forward_and_back(name):
    size = smallest_input(name)
    net = build(name, classes=7, channels=2, input_size=size, width=0.05, classifier_width=9)
    x = np.random.default_rng(0).standard_normal((3, 2, size, size), dtype=np.float32)
    y = net.forward(x, train=True)
    assert y.shape == (3, 7)
    assert net.backward(np.ones_like(y)).shape == x.shape
    assert all(p.grad.shape == p.data.shape for p in net.named_params().values())


@pytest.mark.parametrize("size", [32, 50, 64, 97])
def test_any_input_size(size):
    net = build("vgg11", classes=3, input_size=32, width=0.05, classifier_width=8)
    assert net(np.zeros((1, 3, size, size), np.float32)).shape == (1, 3)


def test_same_seed_same_bits():
    one, two, other = (build("vgg11", input_size=32, width=0.1, classifier_width=16, seed=s) for s in (1, 1, 2))
    same = [np.array_equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)]
    assert all(same)
    assert not np.array_equal(one.features[0].weight.data, other.features[0].weight.data)


def test_dropouts_of_one_network_draw_different_masks():
    net = build("vgg11", input_size=32, width=0.1, classifier_width=16)
    seeds = [layer.seed for _, layer in net.walk() if isinstance(layer, Dropout)]
    assert len(set(seeds)) == 2


@pytest.mark.parametrize(
    ("method", "deviation"), [("he", (2 / 576) ** 0.5), ("xavier", (2 / (576 + 1152)) ** 0.5), ("paper", 0.1)]
)
def test_normal_initialisers_have_their_deviation(method, deviation):
    layer = initialise(Conv2d(64, 128, 3), method, seed=5)
    w = layer.weight.data
    # a sample deviation of n normal numbers is off by deviation / √(2n), one time in three; five of those is never
    assert abs(w.std() - deviation) < 5 * deviation / (2 * w.size) ** 0.5
    assert abs(w.mean()) < 5 * deviation / w.size**0.5


def test_initialising_again_zeroes_biases():
    layer = Linear(4, 3)
    layer.bias.data[...] = 5
    assert not initialise(layer).bias.data.any()


@pytest.mark.parametrize("shape", [(8, 3), (40, 3)])
def test_lsuv_starts_from_orthonormal_filters(shape):
    outputs, inputs = shape
    x = np.random.default_rng(0).standard_normal((50, inputs, 8, 8), dtype=np.float32)
    w = initialise(Conv2d(inputs, outputs, 3, padding=1), "lsuv", x=x).weight.data.reshape(outputs, -1)
    gram = w @ w.T if outputs <= w.shape[1] else w.T @ w
    np.testing.assert_allclose(gram / gram[0, 0], np.eye(len(gram)), atol=1e-5)


def test_lsuv_gives_every_layer_unit_variance():
    net = build("vgg11", channels=1, classes=10, input_size=32, width=0.2, classifier_width=32, init="zeros")
    x = 3 * np.random.default_rng(0).standard_normal((32, 1, 32, 32), dtype=np.float32)
    initialise(net, "lsuv", x=x)
    outputs = [layer(inputs).var() for _, layer, inputs in walk_forward(net, x) if isinstance(layer, Conv2d | Linear)]
    assert len(outputs) == 11
    np.testing.assert_allclose(outputs, 1, atol=0.03)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("vgg17"), r'no model "vgg17"; there are A, .*; did you mean "vgg1\d"'),
        (lambda: build("vgg11", depth=3), "vgg11: .*'depth'"),
        (lambda: vgg.vgg("F"), 'no VGG configuration "F"'),
        (lambda: build("vgg11", input_size=31), "at least 32, got 31"),
        (lambda: build("vgg11", classes=0), "classes = 0: should be a whole number, at least 1"),
        (lambda: build("vgg11", width=0), "width = 0: should be a number, above 0"),
        (lambda: build("vgg11", input_size=64.5), "input_size = 64.5: should be a whole number"),
        (lambda: build("alexnet", input_size=float("nan")), "input_size = nan: should be a whole number"),
        (lambda: build("googlenet", input_size="big"), "input_size = 'big': should be a whole number"),
        (lambda: build("vgg11", classes=2.5), "classes = 2.5: should be a whole number"),
        (lambda: build("vgg11", width=float("inf")), "width = inf: should be a number"),
        (lambda: build("vgg11", dropout=2), "dropout = 2: should be a number, at least 0 and at most 1"),
        (lambda: build("vgg11", seed=-1, width=0.1), "seed = -1: should be a whole number, at least 0"),
        (lambda: initialise(Sequential(), "kaiming"), 'no initialiser "kaiming"; there are he, xavier, paper, lsuv'),
        (lambda: initialise(Sequential(), "lsuv"), "needs a batch of images"),
    ],
)
def test_unknown_names_and_sizes(call, message):
    with pytest.raises(BadInput, match=message):
        call()


@pytest.mark.skipif(sys.platform != "linux", reason="reads peak memory as Linux counts it")
def test_vgg16_inference_at_batch_8_stays_under_1500_mb():
    # VmHWM is this program's own peak; getrusage's would be that of the process it was forked from, if larger
    script = (
        "import numpy as np; from minivgg.models import vgg; vgg.vgg16()(np.zeros((8, 3, 224, 224), np.float32)); "
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    peak = 1024 * int(done.stdout)
    assert 553e6 < peak < 1.5e9  # 553 MB are the weights


@pytest.mark.parametrize("method", ["he", "xavier"])
def test_untrained_loss_is_log_of_classes(method):
    net = build("vgg11_bn", classes=10, input_size=32, width=0.2, classifier_width=64, init=method)
    x = np.random.default_rng(0).standard_normal((64, 3, 32, 32), dtype=np.float32)
    loss, _ = softmax_cross_entropy_forward(net.forward(x, train=True), np.arange(64) % 10)
    assert abs(loss - np.log(10)) < 0.2
