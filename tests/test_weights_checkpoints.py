"""Checkpoints as training scripts leave them: the weights are found, what lies beside is described and never run."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import pathlib
import pickle
import time
import types
import uuid

import numpy as np
import pytest
import weight_files
from hostile_files import COMMAND, MARKER, model
from weight_files import call, integer, legacy_bytes, state_code, tensor, text, write_archive, zip_members

from minivgg import weights
from minivgg.cli.main import main
from minivgg.errors import BadInput

RNG = np.random.default_rng(0)
STATE = {n: RNG.standard_normal(s).astype(np.float32) for n, s in model().state_shapes().items()}
STATE = {n: np.abs(a) + 0.5 if n.endswith("running_var") else a for n, a in STATE.items()}


class Colour(enum.Enum):
    RED = 1


class Custom:
    def __init__(self):
        self.history, self.name = [1.0, 2.0], "x"

    def __reduce_ex__(self, protocol):
        return object.__reduce_ex__(self, protocol)


class Harmful:
    def __reduce__(self):
        return eval, (f"open({str(MARKER)!r}, 'w')",)


class Pair(collections.namedtuple("Pair", "a b")):
    pass


BESIDE = {
    "numpy number": np.float64(3.5),
    "numpy truth": np.bool_(True),
    "numpy text": np.str_("hi"),
    "numpy array": np.arange(5.0),
    "numpy objects": np.array([None, "x"], object),
    "numpy dtype": np.dtype("float32"),
    "numpy generator": np.random.default_rng(0),
    "numpy's old generator": np.random.RandomState(0).get_state(),
    "Namespace": argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/x"), seen={1, 2}),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "path": pathlib.PurePosixPath("runs/a"),
    "set": {1, "x"},
    "frozenset": frozenset([1, 2]),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0]}),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=5),
    "named tuple": Pair(1, 2),
    "datetime": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    "timedelta": datetime.timedelta(1),
    "enum": Colour.RED,
    "dict by enums and tuples": {Colour.RED: 1, (1, (2, 3)): 2, frozenset(): 3},
    "custom class": Custom(),
    "harmful": Harmful(),
    "complex": 3 + 4j,
    "decimal": decimal.Decimal("1.5"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "slice": slice(1, 2),
    "range": range(5),
    "class": dict,
    "function": len,
    "partial": functools.partial(print, 1),
    "bytes": b"x" * 300,
    "bytearray": bytearray(b"yy"),
    "ellipsis": ...,
    "large number": 10**5000,
    "nested": {"a": [{"b": ({"c": Custom()},)}]},
    "lists of losses": [[float(i), i, None, True] for i in range(3000)],
}


def wrapped(pairs):
    """Code of a dict with these (name → code)."""
    return b"}(" + b"".join(text(name) + code for name, code in pairs.items()) + b"u"


def state_of(state, *legacy):
    return state_code({name: tensor(str(i), a, *legacy) for i, (name, a) in enumerate(state.items())})


def fragment(value, protocol):
    """The instructions that build `value`."""
    return pickle.dumps(value, protocol=protocol)[2:-1]


def write(path, code, state=STATE, legacy=False):
    path.write_bytes(legacy_bytes(state, code)) if legacy else write_archive(path, zip_members(state, code))


def assert_loaded(path, **options):
    net = model()
    report = weights.load(net, path, input="any", **options)
    assert not report.problems
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, STATE[name], err_msg=name)
    return report


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_is_described_and_never_run(kind, legacy, protocol, tmp_path):
    MARKER.unlink(missing_ok=True)
    state = state_of(STATE, *([b"N"] if legacy else []))
    write(tmp_path / "a.pth", wrapped({"it": fragment(BESIDE[kind], protocol), "state_dict": state}), legacy=legacy)
    assert_loaded(tmp_path / "a.pth")
    described = weights.read(tmp_path / "a.pth").beside
    assert list(described) == ["it"]
    assert 0 < len(described["it"]) < 120
    assert "\n" not in described["it"]
    assert not MARKER.exists()


def test_inspect_says_what_lies_beside(tmp_path, capsys):
    pairs = {"epoch": b"K\x03", "args": fragment(BESIDE["Namespace"], 2), "state_dict": state_of(STATE)}
    write(tmp_path / "a.pth", wrapped(pairs))
    assert main(["weights", "inspect", str(tmp_path / "a.pth")]) == 0
    printed = capsys.readouterr().out
    assert "beside them  epoch: 3\n" in printed
    assert "beside them  args: argparse.Namespace\n" in printed
    assert "fits A (" in printed


def test_a_tensor_beside_the_state_dict(tmp_path):
    """PyTorch's ImageNet example keeps `best_acc1`, a tensor, beside it."""
    both = {"best_acc1": np.array(71.5, np.float32), "threshold": np.ones(3, np.float32)} | STATE
    codes = {name: tensor(str(i), a) for i, (name, a) in enumerate(both.items())}
    inner = {name: code for name, code in codes.items() if name in STATE}
    for order in (("best_acc1", "threshold", "state_dict"), ("state_dict", "best_acc1", "threshold")):
        every = codes | {"state_dict": state_code(inner)}
        write(tmp_path / "a.pth", wrapped({name: every[name] for name in order}), both)
        assert_loaded(tmp_path / "a.pth")
        assert weights.read(tmp_path / "a.pth").beside["best_acc1"] == "tensor () float32"


@pytest.mark.parametrize("ends", [(b"(", b"t"), (b"](", b"e")], ids=["tuple", "list"])
def test_a_state_dict_in_a_row_of_things(ends, tmp_path):
    """Scripts save (state dict, epoch), or [state dict, optimiser's]."""
    write(tmp_path / "a.pth", ends[0] + integer(7) + state_of(STATE) + optimiser() + ends[1])
    assert_loaded(tmp_path / "a.pth")


def optimiser(*legacy):
    """An optimiser's state, whose tensors are stored after the network's."""
    step = {
        "step": tensor("90", np.ones(1, np.float32), *legacy),
        "exp_avg": tensor("91", np.ones(40, np.float32), *legacy),
    }
    return wrapped({"state": b"}K\x00" + wrapped(step) + b"s", "param_groups": b"]"})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_an_optimisers_state_beside(legacy, tmp_path):
    extra = [b"N"] if legacy else []
    code = wrapped({"optimizer": optimiser(*extra), "model": state_of(STATE, *extra), "epoch": b"K\x01"})
    if legacy:
        keys = [*map(str, range(len(STATE))), "90", "91"]
        both = STATE | {"a": np.ones(1, np.float32), "b": np.ones(40, np.float32)}
        (tmp_path / "a.pth").write_bytes(legacy_bytes(both, code, keys=keys))
    else:
        write(tmp_path / "a.pth", code)
    assert_loaded(tmp_path / "a.pth")


def prefixed(prefix):
    return {prefix + name: a for name, a in STATE.items()}


def inside(part):
    """`part` after "features" only: what data parallelism of the features alone leaves (PyTorch's ImageNet example)."""
    return {name.replace("features.", f"features.{part}."): a for name, a in STATE.items()}


WRAPPED = {
    **{prefix: prefixed(prefix) for prefix in (
        "module.", "_orig_mod.", "model.", "net.", "backbone.", "module.module.", "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.", "_orig_mod.model.", "module.model.", "model.module.net.", "vgg.module._orig_mod.",
        "a.b.c.", "student.encoder.",
    )},
    "features.module.": inside("module"),
    "features._orig_mod.": inside("_orig_mod"),
    "module.features.module.": {f"module.{name}": a for name, a in inside("module").items()},
    "AveragedModel": prefixed("module.") | {"n_averaged": np.array(7)},
    "compiled AveragedModel": prefixed("_orig_mod.module.") | {"_orig_mod.n_averaged": np.array(7)},
    "module named module": prefixed("module.module.features."[:14]),
}  # fmt: skip


@pytest.mark.parametrize("state", WRAPPED.values(), ids=WRAPPED)
def test_what_wrappers_put_before_names_comes_off(state, tmp_path):
    weight_files.write_zip(state, tmp_path / "a.pth")
    assert_loaded(tmp_path / "a.pth")
    weight_files.write_npz(state, tmp_path / "a.npz")
    assert_loaded(tmp_path / "a.npz")


def test_more_than_the_networks_weights_is_left_over_under_its_own_name(tmp_path):
    """As in a Lightning module that has a loss with weights."""
    weight_files.write_zip(prefixed("model.") | {"loss.weight": np.ones(3, np.float32)}, tmp_path / "a.ckpt")
    with pytest.raises(BadInput, match=r"does not fit the network: left over loss\.weight$"):
        weights.load(model(), tmp_path / "a.ckpt")
    assert_loaded(tmp_path / "a.ckpt", skip="loss.*")


def test_two_networks_in_one_state_dict_are_never_guessed_between(tmp_path):
    weight_files.write_zip(prefixed("student.") | {f"teacher.{n}": -a for n, a in STATE.items()}, tmp_path / "a.pth")
    for strict in (True, False):
        with pytest.raises(
            BadInput, match=r"several sets of weights fit, whose names begin with 'student\.' and 'teacher\.'"
        ):
            weights.load(model(), tmp_path / "a.pth", strict=strict)


def two_sets(first, second):
    """A checkpoint of STATE under one name, and of its negative under another."""
    both = STATE | {f"{name} ": -a for name, a in STATE.items()}
    codes = {name: tensor(str(i), a) for i, (name, a) in enumerate(both.items())}
    mine = state_code({name: codes[name] for name in STATE})
    other = state_code({name: codes[f"{name} "] for name in STATE})
    return both, wrapped({second: other, first: mine})


@pytest.mark.parametrize("other", ["state_dict_ema", "model_ema", "ema", "averaged"])
@pytest.mark.parametrize("mine", ["state_dict", "model"])
def test_averaged_weights_beside_are_named_and_can_be_taken(mine, other, tmp_path):
    both, code = two_sets(mine, other)
    write(tmp_path / "a.pth", code, both)
    report = assert_loaded(tmp_path / "a.pth")
    assert f"the file also holds {other!r}: part={other!r} takes that" in str(report)
    net = model()
    weights.load(net, tmp_path / "a.pth", part=other, input="any")
    for name, value in net.state_dict().items():
        np.testing.assert_array_equal(value, -STATE[name])
    arguments = ["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.npz"), "--model", "vgg11", "--part", other]
    assert main(["weights", *arguments]) == 0
    with np.load(tmp_path / "b.npz") as found:
        np.testing.assert_array_equal(found["features.0.weight"], -STATE["features.0.weight"])


def test_two_sets_without_a_name_are_asked_about(tmp_path):
    both, code = two_sets("generator", "discriminator")
    write(tmp_path / "a.pth", code, both)
    with pytest.raises(
        BadInput, match=r"several sets of weights.*say which part.*'discriminator' \(22 arrays\), 'generator'"
    ):
        weights.load(model(), tmp_path / "a.pth")
    assert_loaded(tmp_path / "a.pth", part="generator")
    with pytest.raises(BadInput, match=r"no set of weights 'none' in it; there are 'discriminator'"):
        weights.load(model(), tmp_path / "a.pth", part="none")


def test_two_state_dicts_in_two_places_are_asked_about(tmp_path):
    both, _ = two_sets("generator", "discriminator")
    codes = {name: tensor(str(i), a) for i, (name, a) in enumerate(both.items())}
    mine = wrapped({"state_dict": state_code({name: codes[name] for name in STATE})})
    other = wrapped({"state_dict": state_code({name: codes[f"{name} "] for name in STATE})})
    write(tmp_path / "a.pth", wrapped({"generator": other, "discriminator": mine}), both)
    with pytest.raises(BadInput, match=r"several sets .*say which part.*'generator\.state_dict' \(22 arrays\)"):
        weights.load(model(), tmp_path / "a.pth")
    assert_loaded(tmp_path / "a.pth", part="discriminator.state_dict")
    own = state_code({name: codes[name] for name in STATE})
    write(tmp_path / "a.pth", wrapped({"ema": other, "state_dict": own}), both)
    assert_loaded(tmp_path / "a.pth")  # the outer one is meant


def test_modules_without_end_take_no_time(tmp_path):
    """Ten thousand modules that all have the same ten thousand inside."""

    def module(*inner):
        state = b"}" + text("_modules") + b"}(" + b"".join(inner) + b"us"
        return b"cx\nM\n)\x81" + state + b"b"

    leaves = module(*(text(str(i)) + module() for i in range(9000)))
    tops = b"".join(text(f"m{i}") + module(text("a") + b"h\x07") for i in range(9000))
    write(tmp_path / "a.pth", leaves + b"q\x070}(" + tops + b"u")
    start = time.process_time()
    with pytest.raises(BadInput, match="no state dict"):
        weights.read(tmp_path / "a.pth")
    assert time.process_time() - start < 10


def test_a_part_of_what_has_no_parts_is_refused(tmp_path):
    weight_files.write_npz(STATE, tmp_path / "a.npz")
    with pytest.raises(BadInput, match=r"a\.npz: no part 'x': only checkpoints of PyTorch's hold several"):
        weights.load(model(), tmp_path / "a.npz", part="x")


def test_lightning(tmp_path):
    names = prefixed("model.")
    hyper = call("pytorch_lightning.utilities.parsing", "AttributeDict") + b"(" + text("lr") + fragment(0.1, 2) + b"u"
    pairs = {
        "epoch": b"K\x03",
        "pytorch-lightning_version": text("2.0"),
        "state_dict": state_of(names),
        "loops": wrapped({"fit_loop": wrapped({"state_dict": b"}"})}),
        "callbacks": wrapped(
            {"ModelCheckpoint": wrapped({"best_model_score": tensor("0", W := STATE["features.0.weight"])})}
        ),
        "optimizer_states": b"]" + optimiser() + b"a",
        "hparams_name": text("kwargs"),
        "hyper_parameters": hyper,
    }
    assert W.size
    write(tmp_path / "a.ckpt", wrapped(pairs), names)
    assert_loaded(tmp_path / "a.ckpt")


def test_a_state_dict_whose_array_is_something_else_is_refused(tmp_path):
    codes = {name: tensor(str(i), a) for i, (name, a) in enumerate(STATE.items())}
    for name, harm in (("os", "system"), ("torch._utils", "_rebuild_qtensor")):
        write(tmp_path / "a.pth", state_code(codes | {"features.0.weight": call(name, harm, text(COMMAND))}))
        with pytest.raises(
            BadInput, match=rf"features\.0\.weight is what {name}\.{harm} would give, no plain tensor; nothing was run"
        ):
            weights.load(model(), tmp_path / "a.pth", strict=False)
    write(tmp_path / "a.pth", state_code(codes | {"features._extra_state": call("io", "BytesIO", text("x"))}))
    assert_loaded(tmp_path / "a.pth")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_whole_module_and_torchs_own_objects(legacy, tmp_path):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    def layered(count, kind, *sizes):
        return nn.Sequential(*(kind(*sizes) for _ in range(count)))

    net = nn.Sequential(layered(3, nn.Conv2d, 2, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    optimizer = torch.optim.Adam(net.parameters())
    net[0](torch.ones(1, 2, 9, 9)).sum().backward()
    optimizer.step()
    beside = {
        "optimizer": optimizer.state_dict(),
        "device": torch.device("cuda:0"),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "rng": torch.get_rng_state(),
        "loss": nn.CrossEntropyLoss(),
        "sparse": torch.eye(3).to_sparse(),
        "complex": torch.ones(2, dtype=torch.complex64),
        "uint16": torch.ones(2, dtype=torch.uint16),
        "parameter": nn.Parameter(torch.ones(2)),
        "version": torch.__version__,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1).state_dict(),
    }
    states = {name: value.numpy() for name, value in net.state_dict().items()}
    for thing in ({"model": net, **beside}, {"state_dict": net.state_dict(), **beside}, net):
        torch.save(thing, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        found = weights.read(tmp_path / "a.pth").entries
        assert found.keys() == states.keys()
        for name, value in states.items():
            np.testing.assert_array_equal(found[name].read(), value, err_msg=name)
