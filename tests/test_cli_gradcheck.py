"""`minivgg gradcheck`: its table, its exit status, what it says of what is wrong, and one line for every mistake."""

import re
import sys
from dataclasses import replace

import pytest

from minivgg.cli.main import main
from minivgg.models import MODELS
from minivgg.ops.conv2d import ALGORITHMS, Algorithm, algorithms_on, naive
from minivgg.ops.relu import relu_backward
from minivgg.testing import CASES, LAYERS


@pytest.fixture
def few(monkeypatch):
    """Tables of a few rows."""
    monkeypatch.setattr("minivgg.testing.cases.CASES", {name: CASES[name] for name in ("relu", "softmax")})
    monkeypatch.setattr("minivgg.testing.cases.LAYERS", {name: LAYERS[name] for name in ("Conv2d", "ReLU")})


def rows(printed):
    """what → the other cells"""
    lines = printed.split("\n\n")[0].splitlines()[2:]
    cells = (re.split(r"\s{2,}", line) for line in lines if not line.startswith(" "))
    return {what: others for what, *others in cells}


def test_every_op_and_layer(capsys):
    assert main(["gradcheck"]) == 0
    printed = capsys.readouterr().out
    table = rows(printed)
    assert list(table) == ["conv2d, auto", *(name for name in CASES if name != "conv2d"), *LAYERS]
    assert {cells[-1] for cells in table.values()} == {"ok"}
    assert table["linear"][:2] == ["x w b", "4"]
    assert table["Sequential"][:2] == ["x and 5 parameters", "1"]
    assert 0 < float(table["linear"][2]) < 1  # the worst error, as a share of its tolerance
    assert re.fullmatch(r"\d+ cases in \d+\.\d s, seed 0: all gradients are right", printed.splitlines()[-1])


@pytest.mark.usefixtures("few")
def test_all_has_every_algorithm_and_each_network_once(capsys, monkeypatch):
    monkeypatch.setattr("minivgg.testing.cases.CASES", {name: CASES[name] for name in ("conv2d", "relu")})
    monkeypatch.setattr("minivgg.models.MODELS", {name: MODELS[name] for name in ("A", "vgg11", "keras_vgg11")})
    assert main(["gradcheck", "--all", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    convolutions = [f"conv2d, {name}" for name in algorithms_on("cpu")]
    assert list(rows(printed)) == [*convolutions, "relu", "Conv2d", "ReLU", "A = vgg11", "keras_vgg11"]


@pytest.mark.parametrize("way", ["--train", "--test"])
def test_a_network_and_its_loss(way, capsys):
    assert main(["gradcheck", "vgg11_bn", way, "--algorithm", "im2col"]) == 0
    printed = capsys.readouterr().out
    assert list(rows(printed)) == ["vgg11_bn"]
    assert rows(printed)["vgg11_bn"][0] == "x and 38 parameters"


@pytest.mark.usefixtures("few")
def test_the_seed_draws_everything(capsys):
    printed = []
    for seed in ("1", "1", "2"):
        assert main(["gradcheck", "--seed", seed]) == 0
        printed.append({what: cells[2] for what, cells in rows(capsys.readouterr().out).items()})
    assert printed[0] == printed[1] != printed[2]


@pytest.mark.usefixtures("few")
def test_a_wrong_op_is_named_and_diagnosed(capsys, monkeypatch):
    wrong = replace(CASES["relu"], backward=lambda dy, cache: 7 * relu_backward(dy, cache))
    monkeypatch.setitem(sys.modules["minivgg.testing.cases"].CASES, "relu", wrong)
    assert main(["gradcheck"]) == 1
    printed = capsys.readouterr().out
    assert rows(printed)["relu"][-1] == "WRONG in 4"
    assert rows(printed)["softmax"][-1] == "ok"
    below = printed.split("\nrelu ")[1].split("\nsoftmax ")[0]
    assert "✗ (3, 4, 5, 6)" in below
    assert below.count("• x: a constant factor, 7 times too large") == 4
    assert printed.endswith(": WRONG: relu\n")


def test_a_wrong_layer_is_found_inside_a_network(capsys, monkeypatch):
    monkeypatch.setattr("minivgg.layers.standard.relu_backward", lambda dy, cache: 1.001 * relu_backward(dy, cache))
    assert main(["gradcheck", "A"]) == 1
    printed = capsys.readouterr().out
    assert "✗ x (2, 3, 32, 32) and its loss" in printed
    assert "features.0.weight" in printed
    assert printed.endswith(": WRONG: A\n")


def test_a_wrong_algorithm_is_found(capsys, monkeypatch):
    def shifted(dy, x, spec):
        return naive.grad_weight(dy, x, spec)[..., ::-1]

    mine = Algorithm("mine", "to see", naive.forward, naive.grad_input, shifted, lambda spec, device: None)
    picky = replace(mine, name="picky", supports=lambda spec, device: None if spec.KH == spec.KW == 1 else "1×1 only")
    monkeypatch.setitem(ALGORITHMS, "mine", mine)
    monkeypatch.setitem(ALGORITHMS, "picky", picky)
    monkeypatch.setattr("minivgg.testing.cases.CASES", {"conv2d": CASES["conv2d"]})
    monkeypatch.setattr("minivgg.testing.cases.LAYERS", {"Conv2d": LAYERS["Conv2d"]})
    assert main(["gradcheck", "--algorithm", "mine"]) == 1
    printed = capsys.readouterr().out
    assert "w: the gradient is mirrored left to right" in printed
    assert printed.endswith(": WRONG: conv2d, mine, Conv2d\n")
    monkeypatch.setattr("minivgg.testing.cases.LAYERS", {})
    assert main(["gradcheck", "--algorithm", "picky"]) == 0  # a filter of one pixel has nothing to mirror
    assert rows(capsys.readouterr().out)["conv2d, picky"][1] == "4"


@pytest.mark.usefixtures("few")
def test_an_exception_is_a_row_and_stops_nothing(capsys, monkeypatch):
    def failing(dy, cache):
        raise ZeroDivisionError("deep inside")

    broken = replace(CASES["relu"], backward=failing)
    monkeypatch.setitem(sys.modules["minivgg.testing.cases"].CASES, "relu", broken)
    assert main(["gradcheck"]) == 1
    printed = capsys.readouterr().out
    assert "• raised ZeroDivisionError: deep inside" in printed
    assert rows(printed)["ReLU"][-1] == "ok"


def test_several_processes_answer_as_one_does(capsys):
    assert main(["gradcheck", "A", "--jobs", "1"]) == 0
    one = rows(capsys.readouterr().out)
    assert main(["gradcheck", "A", "--jobs", "2"]) == 0
    two = rows(capsys.readouterr().out)
    seconds = -2
    for cells in (*one.values(), *two.values()):
        cells[seconds] = "…"
    assert one == two


MISTAKES = {
    "unknown model": (["vgg12"], 'no model "vgg12"'),
    "unknown algorithm": (["--algorithm", "fft"], 'conv2d: no algorithm "fft"; there are "auto", "naive"'),
    "unknown algorithm of a model": (["A", "--algorithm", "fft"], 'conv2d: no algorithm "fft"'),
    "two wishes": (["A", "--all"], "--all checks every network: leave out MODEL"),
    "no process": (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    "seed": (["--seed", "-1"], "--seed must be at least 0, got -1"),
    "no GPU": (["--device", "gpu"], "device gpu: CuPy is not installed"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_one_line(arguments, message, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert main(["gradcheck", *arguments]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(f"minivgg: {message}")
    assert error.count("\n") == 1


def test_unknown_device(capsys):
    with pytest.raises(SystemExit) as end:
        main(["gradcheck", "--device", "tpu"])
    assert end.value.code == 2
    assert "invalid choice: 'tpu'" in capsys.readouterr().err
