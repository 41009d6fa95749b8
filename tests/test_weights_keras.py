"""Keras's files: the layers in the order that the file tells, wherever it tells it, and never in a guessed one."""

import importlib.util
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from keras_files import NAMES, SIZE, WIDTH

from minivgg import BatchNorm2d, Conv2d, Dropout, Flatten, Linear, MaxPool2d, ReLU, Sequential, build, weights
from minivgg.cli.main import main
from minivgg.errors import BadInput

h5py = pytest.importorskip("h5py")

# ---- written by hand: eight convolutions of one shape, called as their author liked ----

OWN = ["conv1", "conv2", "conv3", "conv4", "conv5", "conv_sixth", "conv_seventh", "conv_eighth"]
RNG = np.random.default_rng(0)


def network(count, *heads):
    return Sequential(*(Conv2d(2, 2, 3) for _ in range(count)), *heads)


def kernels(names):
    return {name: RNG.standard_normal((3, 3, 2, 2)).astype(np.float32) for name in names}


def write(path, arrays, order, *, group="", chunks=1, text=str, weight_names=("kernel:0", "bias:0")):
    """A file as Keras 2 writes it: `order` in the attribute, in so many parts, and the arrays (name → kernel)."""
    with h5py.File(path, "w") as file:
        root = file.require_group(group) if group else file
        parts = np.array_split(np.array(order, object), chunks)
        for i, part in enumerate(parts):
            listed = [text(name) for name in part]
            root.attrs["layer_names" if chunks == 1 else f"layer_names{i}"] = listed
        for number, (name, kernel) in enumerate(arrays.items()):
            values = {"kernel:0": kernel, "bias:0": np.full(kernel.shape[-1], number, np.float32)}
            for key in weight_names:
                root[f"{name}/{name}/{key}"] = values[key]
            root[name].attrs["weight_names"] = [text(f"{name}/{key}") for key in weight_names]


def assert_in_order(model, arrays, order):
    layers = [layer for _, layer in model.walk() if isinstance(layer, Conv2d)]
    for layer, name in zip(layers, order, strict=True):
        np.testing.assert_array_equal(layer.weight.data, arrays[name].transpose(3, 2, 0, 1), err_msg=name)


@pytest.mark.parametrize("text", [str, str.encode])
@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize("group", ["", "model_weights"])
def test_the_files_order_is_that_of_layer_names(text, chunks, group, tmp_path):
    arrays = kernels(OWN)
    write(tmp_path / "a.h5", arrays, OWN, group=group, chunks=chunks, text=text)
    model = network(8)
    report = weights.load(model, tmp_path / "a.h5")
    assert len(report.loaded) == 16
    assert_in_order(model, arrays, OWN)
    biases = [layer.bias.data[0] for _, layer in model.walk() if isinstance(layer, Conv2d)]
    assert biases == list(range(8))


NAMINGS = {
    "published names, exchanged": ["block1_conv2", "block1_conv1"],
    "numbers backwards": ["conv2d_10", "conv2d_9", "conv2d_2", "conv2d"],
    "not ASCII": ["第二", "第一", "ζ", "α"],
    "slashes": ["z/conv", "a/conv", "m/b/conv", "m/a/conv"],
    "some published": ["block1_conv1", "mine", "block1_conv2"],
    "like an optimiser": ["optimizer", "conv", "bias"],
    "spaces": ["b 2", "b 10", "a"],
}


@pytest.mark.parametrize("names", NAMINGS.values(), ids=NAMINGS)
def test_the_files_order_is_obeyed_whatever_the_names(names, tmp_path):
    arrays = kernels(sorted(names))
    write(tmp_path / "a.h5", arrays, names)
    model = network(len(names))
    weights.load(model, tmp_path / "a.h5")
    assert_in_order(model, arrays, names)


def test_every_kind_of_layer_has_the_files_order(tmp_path):
    """Convolutions, batch norms and dense layers, whose alphabetical order is the reverse; weight_names in no order."""
    model = Sequential(
        *(layer for _ in range(3) for layer in (Conv2d(2, 2, 3), BatchNorm2d(2))), Linear(4, 4), Linear(4, 4)
    )
    state = {n: RNG.uniform(0.5, 1, s).astype(np.float32) for n, s in model.state_shapes().items()}
    roles = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        order = [f"layer_{9 - i}" for i in range(8)]
        file.attrs["layer_names"] = order
        for i, name in enumerate(order):
            values = {n.split(".")[1]: a for n, a in state.items() if n.startswith(f"{i}.")}
            if "running_var" in values:
                values = {roles[role]: a for role, a in values.items()}
            else:
                w = values["weight"]
                values = {"bias": values["bias"], "kernel": w.T if w.ndim == 2 else w.transpose(2, 3, 1, 0)}
            for role, array in values.items():
                file[f"{name}/{name}/{role}:0"] = array
            file[name].attrs["weight_names"] = [f"{name}/{role}:0" for role in values]
    weights.load(model, tmp_path / "a.h5")
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_hdf5s_own_note_of_the_order_counts(tmp_path):
    arrays = kernels(OWN)
    with h5py.File(tmp_path / "a.h5", "w", track_order=True) as file:
        for name in reversed(OWN):
            file.create_group(name)["kernel"] = arrays[name]
    model = network(8)
    weights.load(model, tmp_path / "a.h5", only="*.weight")
    assert_in_order(model, arrays, OWN[::-1])


def test_without_any_order_numbers_count_and_names_are_refused(tmp_path):
    for names in (OWN, [f"layers/conv2d{f'_{i}' if i else ''}/vars" for i in range(12)], ["c9", "c10", "c11"]):
        arrays = kernels(names)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            for name in names:
                file[f"{name}/{'0' if 'vars' in name else 'kernel'}"] = arrays[name]
        model = network(len(names))
        if names is OWN:
            for strict in (True, False):
                with pytest.raises(BadInput, match=r"a\.h5: the file does not tell in which order .*conv1.*\.keras"):
                    weights.load(model, tmp_path / "a.h5", only="*.weight", strict=strict)
            assert all(not p.data.any() for name, p in model.named_params().items() if "bias" in name)
        else:
            weights.load(model, tmp_path / "a.h5", only="*.weight")
            assert_in_order(model, arrays, names)


def test_without_any_order_different_shapes_are_enough(tmp_path):
    widths = {"zeta": (3, 4), "alpha": (4, 5), "mid": (5, 4)}
    model = Sequential(*(Conv2d(C, O, 3) for C, O in widths.values()))
    arrays = {name: RNG.standard_normal((3, 3, *pair)).astype(np.float32) for name, pair in widths.items()}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name in sorted(arrays):
            file[f"{name}/kernel"] = arrays[name]
    weights.load(model, tmp_path / "a.h5", only="*.weight")
    assert_in_order(model, arrays, arrays)


def test_inspect_says_that_the_order_is_not_told(tmp_path, capsys):
    net = build("vgg11", width=1 / 64, classes=2, classifier_width=4, input_size=32)
    layers = [layer for _, layer in net.walk() if isinstance(layer, (Conv2d, Linear))]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, layer in zip("zyxwvutsrqp", layers, strict=True):
            file[f"{name}/kernel"], file[f"{name}/bias"] = layer.weight.data.T, layer.bias.data
    for arguments in (["inspect"], ["convert", "--model", "vgg11"]):
        out = [str(tmp_path / "b.npz")] if "convert" in arguments else []
        assert main(["weights", arguments[0], str(tmp_path / "a.h5"), *out, *arguments[1:]]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"minivgg: {tmp_path / 'a.h5'}: the file does not tell in which order")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "b.npz").exists()


def test_layers_of_one_name_in_two_models_stay_two(tmp_path):
    """Both are called conv2d: neither may take the other's place."""
    arrays = kernels(["layers/sequential/layers/conv2d", "layers/sequential_1/layers/conv2d"])
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        for name, kernel in arrays.items():
            file[f"{name}/vars/0"] = kernel
    model = network(2)
    weights.load(model, tmp_path / "a.weights.h5", only="*.weight")
    assert_in_order(model, arrays, arrays)


def test_what_is_no_layer_of_ours_is_left_over(tmp_path):
    with h5py.File(tmp_path / "a.weights.h5", "w") as file:
        file["layers/conv2d/vars/0"] = np.ones((3, 3, 2, 2), np.float32)
        file["layers/conv2d_transpose/vars/0"] = np.ones((3, 3, 2, 2), np.float32)
        file["layers/p_re_lu/vars/0"] = np.ones((8, 8, 2), np.float32)
        for i in range(3):  # a scale or a centre is missing, and which is not told
            file[f"layers/batch_normalization/vars/{i}"] = np.ones(2, np.float32)
    model = Sequential(Conv2d(2, 2, 3, bias=False), BatchNorm2d(2), Conv2d(2, 2, 3, bias=False))
    report = weights.plan(model, weights.read(tmp_path / "a.weights.h5"))
    assert report.loaded == ("0.weight",)
    assert len(report.left_over) == 5


def test_groups_called_like_other_layers(tmp_path):
    """Keras numbers a .weights.h5's groups anew: the group conv2d_1 may be the layer conv2d_9, and conv2d the layer
    conv2d_1. Also under the groups' name of Keras 2.12."""
    names = ["conv2d_1", "conv2d_9", "conv2d"]
    about = [{"class_name": "Conv2D", "config": {"name": name}} for name in names]
    config = json.dumps({"class_name": "Sequential", "config": {"layers": about}})
    for parent in ("layers", "_layer_checkpoint_dependencies"):
        arrays = kernels([f"{parent}/conv2d", f"{parent}/conv2d_1", f"{parent}/conv2d_2"])
        with h5py.File(tmp_path / "model.weights.h5", "w") as file:
            for name, kernel in arrays.items():
                file[f"{name}/vars/0"] = kernel
        with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
            archive.writestr("config.json", config)
            archive.write(tmp_path / "model.weights.h5", "model.weights.h5")
        model = network(3)
        weights.load(model, tmp_path / "a.keras", only="*.weight")
        assert_in_order(model, arrays, arrays)


def test_archives_of_an_older_keras_and_without_weights(tmp_path):
    arrays = kernels(["layers/conv2d"])
    with h5py.File(tmp_path / "variables.h5", "w") as file:
        file["layers/conv2d/vars/0"] = arrays["layers/conv2d"]
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("config.json", "{}")
    with pytest.raises(BadInput, match=r"a Keras archive without model\.weights\.h5"):
        weights.read(tmp_path / "a.keras")
    with zipfile.ZipFile(tmp_path / "a.keras", "a") as archive:
        archive.write(tmp_path / "variables.h5", "variables.h5")
    weights.load(model := network(1), tmp_path / "a.keras", only="*.weight")
    assert_in_order(model, arrays, arrays)


def test_what_is_no_weight_is_not_left_over(tmp_path):
    """Optimisers of Keras 2 and 3, metrics, and the seeds of layers that draw lots."""
    for name in (
        "optimizer_weights/training/Adam/conv1/kernel/m:0",
        "optimizer_weights/Adam/iterations:0",
        "optimizer/vars/3",
        "optimizer/inner_optimizer/vars/1",
        "layers/dropout/seed_generator/vars/0",
        "layers/random_flip/generator/vars/0",
        "_compile_metrics/_metrics/mean/vars/0",
    ):
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["layers/conv2d/vars/0"] = np.ones((3, 3, 2, 2), np.float32)
            file[name] = np.ones(2, np.int64)
        assert not weights.load(Sequential(Conv2d(2, 2, 3, bias=False)), tmp_path / "a.h5").problems


# ---- written by Keras ----

needs_keras = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("keras", "torch"))), reason="Keras, or PyTorch to run it, is not installed"
)
NETWORKS = ("own names", "automatic names", "sequential", "epsilon", "nested", "nested, frozen", "nested, plain")
UNTOLD = {  # of models in models, and of attributes, weights alone do not have the order
    *((name, "weights.h5") for name in ("nested", "nested, frozen", "nested, plain", "subclassed")),
    ("subclassed", "keras"),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Keras's files, and how its networks answer. Keras runs in a process of its own, with PyTorch as its backend."""
    folder = tmp_path_factory.mktemp("keras")
    script = Path(__file__).with_name("keras_files.py")
    command = [sys.executable, "-W", "ignore", str(script), str(folder)]
    subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return folder


def twin(normalise=True):
    """Our network of the same layers."""
    blocks = [[Conv2d(WIDTH, WIDTH, 3, padding=1), *[BatchNorm2d(WIDTH)] * normalise, ReLU()] for _ in NAMES]
    layers = [layer for block in blocks for layer in block]
    inputs = WIDTH * (SIZE // 2) ** 2
    heads = [Linear(inputs, 6), ReLU(), Dropout(0.5), Linear(6, 6), ReLU(), Linear(6, 6)]
    return Sequential(*layers, MaxPool2d(2), Flatten(), *heads)


def scores(model, folder, name):
    """Ours and Keras's, for the images it was asked about."""
    with np.load(folder / f"{name}.npz") as file:
        return model.forward(np.ascontiguousarray(file["x"].transpose(0, 3, 1, 2))), file["scores"]


@needs_keras
@pytest.mark.parametrize("suffix", ["weights.h5", "h5", "keras"])
@pytest.mark.parametrize("name", [*NETWORKS, "subclassed"])
def test_kerass_own_files_give_kerass_scores(name, suffix, written):
    if (name, suffix) == ("subclassed", "h5"):
        pytest.skip("Keras writes no .h5 of such a model")
    model, path = twin(normalise="plain" not in name), written / f"{name}.{suffix}"
    if (name, suffix) in UNTOLD:
        with pytest.raises(BadInput, match="the file does not tell in which order its layers come"):
            weights.load(model, path)
        return
    report = weights.load(model, path)  # all of it, and the optimiser's state is no reason to refuse it
    assert not report.problems
    epsilon = 0.5 if name == "epsilon" else 0.001
    norms = [layer for _, layer in model.walk() if isinstance(layer, BatchNorm2d)]
    if suffix == "weights.h5":
        assert "does not have batch norm's epsilon, Keras's is 0.001" in str(report)
        for layer in norms:
            layer.eps = epsilon
    elif norms:
        assert f"batch norm's eps is {epsilon:g} now, as in the file; it was 1e-05" in str(report)
        assert {layer.eps for layer in norms} == {epsilon}
    ours, theirs = scores(model, written, name)
    assert np.abs(theirs).max() > 0.01
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())


@needs_keras
@pytest.mark.parametrize("name", ["own names", "nested", "nested, plain", "nested, frozen"])
def test_weights_alone_as_keras_2_wrote_them(name, written, tmp_path):
    """`save_weights("x.h5")`: what `model.save` puts into model_weights, and no description. Of a model in a model,
    frozen layers are listed last: then their order is not told."""
    with h5py.File(written / f"{name}.h5") as whole, h5py.File(tmp_path / "a.h5", "w") as file:
        for layer in whole["model_weights"]:
            whole.copy(f"model_weights/{layer}", file)
        file.attrs.update(whole["model_weights"].attrs)
    model = twin(normalise="plain" not in name)
    if "frozen" in name:
        with pytest.raises(BadInput, match="does not tell in which order"):
            weights.load(model, tmp_path / "a.h5")
        return
    report = weights.load(model, tmp_path / "a.h5")
    for _, layer in model.walk():
        if isinstance(layer, BatchNorm2d):
            layer.eps = 0.001
    ours, theirs = scores(model, written, name)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * np.abs(theirs).max())
    assert len(report.loaded) == len(model.state_shapes())


@needs_keras
def test_an_archive_packed_again_says_what_to_do(written, tmp_path):
    with zipfile.ZipFile(written / "sequential.keras") as old:
        old.extractall(tmp_path / "unzipped")
        with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    with pytest.raises(BadInput, match=r"model\.weights\.h5 is compressed, which Keras never does; unzip it"):
        weights.load(twin(), tmp_path / "a.keras")
    shutil.copy(written / "sequential.keras", tmp_path / "b.zip")  # the first bytes tell, not the name
    assert weights.read(tmp_path / "b.zip").format == "Keras archive"
