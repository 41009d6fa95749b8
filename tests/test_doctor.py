"""The doctor: its figures against their definitions, and each diagnosis on a network that has just that illness."""

import math

import numpy as np
import pytest

from minivgg.errors import BadInput
from minivgg.insight import doctor
from minivgg.insight.doctor import diagnose, examine, try_initialisers, verdict
from minivgg.layers import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential, Sigmoid
from minivgg.models import build, initialise
from minivgg.models.roles import copy_roles, roles
from minivgg.training.config import Config
from minivgg.training.run import Run


def batch(count=24, channels=1, size=32, classes=10, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, channels, size, size), np.float32), rng.integers(0, classes, count)


def vgg(name="vgg16", init="he", **options):
    given = {"classes": 10, "channels": 1, "input_size": 32, "width": 0.25, "classifier_width": 128}
    return build(name, **given | options, init=init)


def names(checkup):
    return [finding.name for finding in diagnose(checkup)]


def tiny():
    """conv → BN → ReLU → pool → flatten → linear → ReLU → linear in float64, with random numbers everywhere."""
    layers = [Conv2d(2, 3, 3, padding=1), BatchNorm2d(3), ReLU(), MaxPool2d(2), Flatten(), Linear(12, 5), ReLU()]
    net = Sequential(*layers, Linear(5, 4)).astype(np.float64)
    rng = np.random.default_rng(1)
    for p in net.named_params().values():
        p.data[...] = rng.standard_normal(p.data.shape)
    return net


def test_rows_by_hand():
    """Each number of the table, from the layers run one by one and differences of the loss."""
    net, rng = tiny(), np.random.default_rng(2)
    x, labels = rng.standard_normal((6, 2, 4, 4)), rng.integers(0, 4, 6)

    def loss_of(net, x, start=0, nudge=None):
        """Loss, and the outputs on the way, of the layers from `start`; `nudge` is added to the output of one layer."""
        outputs = {}
        for i in range(start, len(net)):
            x = net[i].forward(x, train=True)
            if nudge and nudge[0] == i:
                x = x + nudge[1]
            outputs[i] = x
        p = np.exp(x - x.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return -np.log(p[np.arange(6), labels]).mean(), outputs, p

    loss, outputs, p = loss_of(net, x)
    found = examine(net, x, labels, lr=0.5)
    assert found.loss == pytest.approx(loss)
    assert found.differ == pytest.approx(p.std(axis=0).max())
    assert (found.input_mean, found.input_rms) == pytest.approx((x.mean(), math.sqrt((x**2).mean())))
    assert [row.name for row in found.rows] == ["conv1_1", "fc2", "fc3"]
    for row, first, last in zip(found.rows, (0, 5, 7), (2, 6, 7), strict=True):
        y, w = outputs[last], net[first].weight.data
        assert (row.mean, row.spread, row.rms) == pytest.approx((y.mean(), y.std(), math.sqrt((y**2).mean())))
        assert row.zero == pytest.approx((y == 0).mean())
        units = y.transpose(1, 0, *range(2, y.ndim)).reshape(y.shape[1], -1)
        assert row.dead == pytest.approx(np.mean([not unit.any() for unit in units]))
        assert row.weight == pytest.approx(math.sqrt((w**2).mean()))
        assert row.he == pytest.approx(math.sqrt(2 / (w.size / len(w))))
        # RMS of a gradient g from slopes along random directions d of unit variance: E (g·d)² = Σ g².
        h, squares = 1e-6, []
        for place in np.ndindex(y.shape):
            d = np.zeros_like(y)
            d[place] = h
            up, down = (loss_of(net, x, nudge=(last, sign * d))[0] for sign in (1, -1))
            squares.append(((up - down) / (2 * h)) ** 2)
        assert row.gradient == pytest.approx(math.sqrt(np.mean(squares)), rel=1e-5)
        squares = []
        for place in np.ndindex(w.shape):
            kept = w[place]
            losses = []
            for value in (kept + h, kept - h):
                w[place] = value
                losses.append(loss_of(net, x)[0])
            w[place] = kept
            squares.append(((losses[0] - losses[1]) / (2 * h)) ** 2)
        assert row.update == pytest.approx(0.5 * math.sqrt(np.mean(squares)) / row.weight, rel=1e-5)


def test_he_s_formula_is_what_is_measured():
    """σ·√(fan-in / 2) a layer, on noise through wide layers without pools: to some 1/√width."""
    for std in (0.02, 0.05):
        layers = [layer for _ in range(6) for layer in (Linear(400, 400), ReLU())]
        net = initialise(Sequential(Flatten(), *layers, Linear(400, 10)), f"normal:{std}")
        x, labels = batch(50, 1, 20)
        assert examine(net, x, labels).factor == pytest.approx(std * math.sqrt(200), rel=0.1)


def test_the_three_starts_of_vgg16_get_their_diagnoses():
    x, labels = batch()
    starts = {init: lambda init=init: vgg(init=init, width=0.5) for init in ("he", "normal:0.01", "normal:0.1")}
    found = try_initialisers(starts, x, labels)
    assert names(found["he"]) == []
    assert verdict(diagnose(found["he"])) == "should train"
    assert found["he"].loss == pytest.approx(math.log(10), abs=0.3)
    assert 0.9 < found["he"].factor < 1.1

    assert names(found["normal:0.01"]) == ["activations shrink"]
    finding = diagnose(found["normal:0.01"])[0]
    assert finding.fatal
    assert "with weights of standard deviation 0.0" in str(finding)
    assert "will not train" in str(finding)
    assert "use He, batch norm, or start from A" in str(finding)
    assert found["normal:0.01"].loss == pytest.approx(math.log(10), abs=1e-5)

    assert names(found["normal:0.1"])[0] == "scores explode"
    assert diagnose(found["normal:0.1"])[0].fatal
    assert found["normal:0.1"].loss > 100
    assert verdict(diagnose(found["normal:0.1"])) == "will not train: scores explode"


def test_batch_norm_cures_small_weights():
    x, labels = batch()
    assert verdict(diagnose(examine(vgg("vgg16_bn", "normal:0.01"), x, labels, lr=0.001))) == "should train"


def test_pixels_that_nobody_normalised():
    x, labels = batch()
    raw = 127 + 60 * x
    assert names(examine(vgg("vgg11"), raw, labels))[0] == "the input is not normalised"
    assert "the input has mean 12" in str(diagnose(examine(vgg("vgg11"), raw, labels))[0])
    assert names(examine(vgg("vgg11"), x, labels)) == []


def test_dead_relus():
    x, labels = batch()
    net = vgg("vgg11")
    net.features[3].bias.data[...] = -100  # all of conv2_1
    found = examine(net, x, labels)
    assert {row.name: row.dead for row in found.rows}["conv2_1"] == 1
    dead = next(finding for finding in diagnose(found) if finding.name == "dead ReLUs")
    assert dead.fatal
    assert "100% of the units of conv2_1" in str(dead)

    net = vgg("vgg11")
    net.features[3].bias.data[: len(net.features[3].bias.data) * 2 // 3] = -100
    dead = next(finding for finding in diagnose(examine(net, x, labels)) if finding.name == "dead ReLUs")
    assert not dead.fatal


def test_one_answer_for_all():
    """The same image again and again: everything flows, and nothing differs."""
    x, labels = batch()
    net = initialise(Sequential(Flatten(), Linear(1024, 64), Sigmoid(), Linear(64, 10)))
    assert names(examine(net, np.repeat(x[:1], len(x), axis=0), labels)) == ["every image gets the same answer"]
    assert names(examine(net, x, labels)) == []


def test_a_learning_rate_that_is_too_large():
    x, labels = batch()
    assert names(examine(vgg(), x, labels, lr=3)) == ["the learning rate is too large"]
    assert names(examine(vgg(), x, labels, lr=0.01)) == []


def test_the_defaults_of_training_are_no_illness(tmp_path):
    """They reach 90.6%: a rate that is large for layers without a norm, and is reached by a warm-up."""
    run = Run(Config(), tmp_path)
    for epoch, size in ((0, 64), (1, 32), (2, 16)):
        x, labels = next(run.trainer.train.epoch(epoch))
        found = examine(run.trainer.model, x[:size], labels[:size], run.config.lr, run.config.warmup)
        assert verdict(diagnose(found)) == "should train"
        assert found.rows[0].normalised and not found.rows[-1].normalised


def test_a_norm_bears_large_steps_and_a_warm_up_helps_the_others():
    """Measured, in docs/doctor.md: what trains and what does not."""
    x, labels = batch(64)

    def largest(net, kind):
        return max(row.update for row in examine(net, x, labels, lr=1.0).hidden if row.normalised is kind)

    normalised, plain = vgg("vgg11_bn"), vgg("vgg11")
    for layer in normalised.features:
        if isinstance(layer, Conv2d):
            layer.weight.data *= 0.1  # the same network, and a hundred times the share
    before_a_norm, others = largest(normalised, True), largest(normalised, False)
    assert before_a_norm > 20 * others
    lr = 0.002 / others  # the layers before a norm take steps of more than 4%, the others of 0.2%
    assert names(examine(normalised, x, labels, lr, warmup=0)) == []
    assert names(examine(normalised, x, labels, 1.1 / before_a_norm, warmup=1)) == [doctor.RATE]
    lr = 0.004 / largest(plain, False)
    assert names(examine(plain, x, labels, lr, warmup=1)) == []
    (finding,) = diagnose(examine(plain, x, labels, lr, warmup=0))
    assert finding.name == doctor.RATE
    assert "or a warm-up of an epoch" in str(finding)
    (finding,) = diagnose(examine(plain, x, labels, 2 * lr, warmup=1))
    assert "changes 0.8% of" in str(finding) and "0.75% too much" in str(finding)
    assert "warm-up" not in str(finding)


def test_sigmoids_let_gradients_vanish_while_activations_stay():
    layers = [layer for _ in range(14) for layer in (Linear(64, 64), Sigmoid())]
    x, labels = batch(size=8)
    found = examine(initialise(Sequential(Flatten(), *layers, Linear(64, 10)), "normal:0.01"), x, labels)
    assert names(found)[0] == "gradients vanish"


def test_numbers_that_overflow():
    x, labels = batch()
    found = examine(vgg(init="normal:1000"), x, labels)
    assert names(found)[0] == "overflow"
    assert verdict(diagnose(found)) == "will not train: overflow"
    assert str(found)  # the table can be printed


def test_examining_changes_nothing():
    x, labels = batch(12)
    net = vgg("vgg11_bn")
    before = {name: value.copy() for name, value in net.state_dict().items()}
    first = examine(net, x, labels)
    assert examine(net, x, labels) == first
    assert {layer.calls for _, layer in net.walk() if isinstance(layer, Dropout)} == {0}
    assert all(p.grad is None for p in net.named_params().values())
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


def test_tables_are_aligned():
    x, labels = batch(12)
    found = examine(vgg("vgg11"), x, labels)
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(roles(vgg("vgg11")))
    assert len({len(line) for line in lines}) == 1
    lines = doctor.trials_table({"he": found}).splitlines()
    assert lines[2].split()[0] == "he"
    assert lines[2].endswith("should train")


@pytest.mark.parametrize(
    ("net", "labels", "message"),
    [
        (Sequential(ReLU()), [0, 1], "this network has none"),
        (Sequential(Conv2d(1, 2, 3)), [0, 1], r"gives scores \(N, classes\), not \(2, 2, 30, 30\)"),
        (Sequential(Flatten(), Linear(1024, 3)), [0, 3], "2 numbers from 0 to 2"),
        (Sequential(Flatten(), Linear(1024, 3)), [0], "2 numbers from 0 to 2"),
    ],
)
def test_mistakes_are_named(net, labels, message):
    with pytest.raises(BadInput, match=message):
        examine(net, batch(2)[0], np.array(labels))


def test_normal_initialiser():
    net = vgg("vgg11", "normal:0.03")
    for layer in roles(net).values():
        assert layer.weight.data.std() == pytest.approx(0.03, rel=0.25)
        assert not layer.bias.data.any()
    twin, other = vgg("vgg11", "paper"), vgg("vgg11", "normal:0.1")
    np.testing.assert_array_equal(twin.features[0].weight.data, other.features[0].weight.data)
    for wrong in ("normal", "normal:", "normal:x", "normal:0", "normal:-1", "normal:inf", "normal:nan"):
        with pytest.raises(BadInput, match="comes a standard deviation above 0"):
            vgg("vgg11", wrong)


ROLES_OF_D = [f"conv{stage}_{i}" for stage, count in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, count + 1)]


@pytest.mark.parametrize("name", ["D", "vgg16", "vgg16_bn"])
@pytest.mark.parametrize("named_blocks", [False, True])
def test_roles_are_the_literature_s_names(name, named_blocks):
    net = vgg(name, named_blocks=named_blocks, init="zeros")
    found = roles(net)
    assert [role for role in found if not role.startswith("bn")] == [*ROLES_OF_D, "fc6", "fc7", "fc8"]
    if not named_blocks:
        assert found["conv3_2"] is net.features[{"vgg16_bn": 17}.get(name, 12)]
        assert found["fc7"] is net.classifier[3]
    if name == "vgg16_bn":
        assert [role for role in found if role.startswith("bn")] == [r.replace("conv", "bn") for r in ROLES_OF_D]


@pytest.mark.parametrize("kind", ["", "_bn"])
def test_d_starts_from_a_as_in_the_paper(kind):
    a, d, untouched = vgg(f"vgg11{kind}", seed=1), vgg(f"vgg16{kind}", seed=2), vgg(f"vgg16{kind}", seed=2)
    for layer in roles(a).values():
        if isinstance(layer, BatchNorm2d):
            layer.running_mean += 3
    did = copy_roles(d, a)
    convs = ["conv1_1", "conv2_1", "conv3_1", "conv3_2"]
    copied = {*convs, "fc6", "fc7", "fc8", *([c.replace("conv", "bn") for c in convs] if kind else [])}
    assert set(did.copied) == copied
    assert {*did.copied, *did.left} == roles(d).keys()
    for role, layer in roles(d).items():
        source = roles(a)[role] if role in copied else roles(untouched)[role]
        for name, value in layer.state_dict().items():
            np.testing.assert_array_equal(value, source.state_dict()[name])
            assert not np.shares_memory(value, source.state_dict()[name])
    assert did.values == sum(roles(d)[role].parameter_count() for role in copied)
    assert "fc8 (" in str(did)
    assert "; as initialised: conv1_2" in str(did)


@pytest.mark.parametrize(
    ("target", "source", "message"),
    [
        ({"name": "D", "width": 0.5}, {"name": "A"}, r"conv1_1 is \(16, 1, 3, 3\), the new net's \(32, 1, 3, 3\)"),
        ({"name": "D", "classes": 9}, {"name": "A"}, r"fc8 is \(10, 128\), the new net's \(9, 128\)"),
        ({"name": "D", "classifier_width": 64}, {"name": "A"}, r"fc6 is \(128, 128\), the new net's \(64, 128\)"),
        ({"name": "A"}, {"name": "D"}, "the new net has no conv1_2; start a deeper net from a shallower"),
        ({"name": "vgg16_bn"}, {"name": "A"}, "only the new one has batch norms"),
        ({"name": "D"}, {"name": "vgg11_bn"}, "only the old one has batch norms"),
    ],
)
def test_nets_that_do_not_fit_are_refused_whole(target, source, message):
    d, a = vgg(**target, seed=1), vgg(**source, seed=2)
    before = {name: value.copy() for name, value in d.state_dict().items()}
    with pytest.raises(BadInput, match=message):
        copy_roles(d, a)
    for name, value in d.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
