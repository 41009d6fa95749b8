"""The zoo of planted bugs: each is caught and named, each leaves no trace, and what is right is left in peace."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest

import minivgg
from minivgg.cli.main import main
from minivgg.gradcheck.zoo import EVERYDAY, RIGHT, ZOO
from minivgg.gradcheck.zoo.cases import HOMES
from minivgg.layers import standard
from minivgg.ops.conv2d import ALGORITHMS, algorithms_on

SEEDS = range(20)
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "gradcheck_zoo.json"


@pytest.fixture(autouse=True)
def one_thread():
    """Arrays are so small that handing them to a second thread costs more than it gains."""
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", ZOO)
def test_caught_on_every_seed_and_named(name):
    for seed in SEEDS:
        seen = ZOO[name].seen(seed)
        assert seen, f"{name} got away on seed {seed}"
        assert ZOO[name].shows in seen, f"seed {seed}:\n{seen}"


@pytest.mark.parametrize("name", RIGHT)
def test_no_false_alarm(name):
    for seed in SEEDS:
        case = replace(RIGHT[name], draw=EVERYDAY[seed % len(EVERYDAY)])
        report = case.check(seed)
        assert report.ok, f"{case.draw}, seed {seed}:\n{report}"


def test_sums_at_a_kink_are_rounded_too():
    """A max-pool of zeros, seed 164: the bounds of a fair gradient and the claim, equal but for their last bit."""
    report = replace(RIGHT["MaxPool2d"], draw="zeros").check(164)
    assert report.kinks
    assert report.ok, str(report)


def test_rules_are_kept_by_what_is_right():
    rules = {bug.rule for bug in ZOO.values() if bug.rule}
    assert {rule: rule(np.random.default_rng(seed)) for rule in rules for seed in SEEDS} == dict.fromkeys(rules, "")


def test_every_bug_is_explained():
    assert len(ZOO) >= 64
    for name, bug in ZOO.items():
        assert name == bug.name
        assert name.replace("-", "").isalnum()
        assert len(bug.says) > 10
        assert "\n" not in bug.says
        assert bug.says.endswith(".")
        assert bug.shows
    assert len({bug.says for bug in ZOO.values()}) == len(ZOO)


def test_every_operation_has_bugs():
    layers = {"Concat", "Conv2d", "Dropout", "Linear", "Sequential", "BatchNorm2d", "network and loss"}
    assert {bug.op for bug in ZOO.values()} == set(HOMES) | layers
    victims = {bug.victim for bug in ZOO.values()}
    for name in algorithms_on("cpu"):
        assert victims >= {ALGORITHMS[name].grad_input, ALGORITHMS[name].grad_weight}


def held():
    """Every function that minivgg holds, by where."""
    assert minivgg.conv2d_backward and minivgg.softmax_cross_entropy_forward  # once used, the package keeps them too
    modules = {name: module for name, module in sys.modules.items() if name.startswith("minivgg")}
    places = {(name, key): value for name, module in modules.items() for key, value in vars(module).items()}
    classes = {value for value in places.values() if isinstance(value, type) and "minivgg" in value.__module__}
    places |= {(c, key): value for c in classes for key, value in vars(c).items()}
    places |= {("row", name): row for name, row in ALGORITHMS.items()}
    return {place: value for place, value in places.items() if callable(value) or place[0] == "row"}


@pytest.mark.parametrize("name", ZOO)
def test_planted_and_pulled_out_again(name):
    bug, before = ZOO[name], held()
    with pytest.raises(KeyboardInterrupt), bug.plant():
        changed = {place for place, value in held().items() if value is not before.get(place)}
        assert changed, "nothing was swapped"
        outside = [place for place, value in held().items() if value is bug.victim and "zoo" not in str(place[0])]
        assert outside == [], "the real function is still held"
        raise KeyboardInterrupt
    after = held()
    assert after.keys() == before.keys()
    assert all(after[place] is before[place] for place in before)


def test_what_is_imported_under_a_bug_is_healed_too():
    """A module that is first imported while a bug is planted must not keep it."""
    bug = ZOO["relu-mask-inverted"]
    spec = importlib.util.spec_from_file_location("minivgg.late", standard.__file__)
    with bug.plant():
        late = sys.modules["minivgg.late"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(late)
        assert late.relu_backward is bug.culprit
    del sys.modules["minivgg.late"]
    assert late.relu_backward is bug.victim


def test_a_bug_reaches_whole_networks():
    network = RIGHT["network and loss"]
    assert network.check().ok
    with ZOO["relu-mask-missing"].plant():
        assert not network.check().ok
    assert network.check().ok


@pytest.fixture(scope="module")
def measured():
    return json.loads(RESULTS.read_text())


def test_the_measured_zoo_is_this_one(measured):
    assert measured["seeds"] >= 20
    assert measured["caught"].keys() == {name for name, bug in ZOO.items() if not bug.rule}
    assert measured["false_alarms"].keys() == RIGHT.keys()
    ours = "minivgg.gradcheck"
    assert measured["right_seeds"][ours] >= 200
    assert {by_rule[ours] for by_rule in measured["caught"].values()} == {measured["seeds"]}
    for by_rule in measured["false_alarms"].values():
        assert by_rule[ours].keys() == set(EVERYDAY)
        assert sum(by_rule[ours].values()) == 0


# ---- minivgg bugs ----


def test_list(capsys):
    assert main(["bugs"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    column = head.index("WHAT IS WRONG")
    assert [line.split()[0] for line in lines[: len(ZOO)]] == list(ZOO)
    assert [line[column:] for line in lines[: len(ZOO)]] == [bug.says for bug in ZOO.values()]


def test_show_prints_the_report_and_draws(tmp_path, capsys):
    assert main(["bugs", "show", "conv2d-dw-rotated", "--seed", "3", "--picture", str(tmp_path / "a.png")]) == 0
    assert "rotated by 180°" in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_show_of_what_no_gradient_shows(tmp_path, capsys):
    assert main(["bugs", "show", "batchnorm-running-average-reversed"]) == 0
    assert "running averages approach the batch: running averages are" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relu-mask-invertd"], 'no bug "relu-mask-invertd"; did you mean relu-mask-inverted'),
        (["§"], "`minivgg bugs` lists them"),
        (["relu-leaks", "--seed", "-1"], "--seed must not be negative"),
        (["softmax-not-shifted", "--picture", "a.png"], "there is no picture of this one"),
    ],
)
def test_show_of_what_is_not_there(arguments, words, capsys):
    assert main(["bugs", "show", *arguments]) == 2
    assert words in capsys.readouterr().err
