"""Which rung "auto" takes: the estimates against arithmetic by hand, and the choices that they are made for."""

import json

import pytest

from minivgg.backends.jit import threads
from minivgg.errors import BadInput
from minivgg.ops import conv2d
from minivgg.ops.conv2d import ConvSpec, planning


def vgg(N, C, size, O):
    return ConvSpec(N, C, size, size, O, 3, 3, (1, 1), (1, 1))


@pytest.mark.parametrize(
    "spec, direction, prepared, name",
    [
        (vgg(8, 3, 224, 64), "forward", False, "direct"),  # three channels: nothing to win by transforms
        (vgg(8, 64, 224, 64), "forward", False, "winograd"),
        (vgg(8, 512, 28, 512), "grad_weight", False, "winograd"),
        (vgg(1, 512, 14, 512), "forward", False, "winograd2"),  # few tiles: half as many filters to transform
        (vgg(128, 512, 2, 512), "forward", False, "winograd2"),  # a tile of 4 × 4 would be three quarters empty
        (ConvSpec(8, 3, 224, 224, 96, 11, 11, (4, 4), (2, 2)), "forward", False, "direct"),  # AlexNet
    ],
)
def test_the_plan_knows_its_trade(spec, direction, prepared, name, monkeypatch):
    monkeypatch.setattr(planning, "measurements", lambda threads: {})
    assert conv2d.plan(spec, direction, prepared=prepared).name == name


def test_the_plan_believes_what_was_measured(monkeypatch, tmp_path):
    spec = vgg(8, 64, 224, 64)
    table = {planning.machine(threads()): {planning.key(spec, "forward"): {"naive": 0.0}}}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("MINIVGG_TUNING", str(tmp_path / "table.json"))
    planning.measurements.cache_clear()
    try:
        assert conv2d.plan(spec).name == "naive"
        assert conv2d.plan(spec, "grad_weight").name == "winograd"
    finally:
        planning.measurements.cache_clear()


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_table_of_measurements_is_named(content, monkeypatch, tmp_path):
    (tmp_path / "table.json").write_text(content)
    monkeypatch.setenv("MINIVGG_TUNING", str(tmp_path / "table.json"))
    planning.measurements.cache_clear()
    try:
        with pytest.raises(BadInput, match=r"table\.json: not a table of measurements"):
            conv2d.plan(vgg(1, 3, 8, 4))
    finally:
        planning.measurements.cache_clear()
