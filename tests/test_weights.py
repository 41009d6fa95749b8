"""Weights in, weights out: every format, every naming, whole and in part, and the report of what was done."""

import importlib.util

import numpy as np
import pytest
import weight_files
from safetensors.numpy import load_file
from weight_files import KERAS, WRITERS, bfloat16, keras_state, layers_of, timm_state

from minivgg import build, weights
from minivgg.errors import BadInput

needs_h5py = pytest.mark.skipif(not importlib.util.find_spec("h5py"), reason="h5py is not installed")
SMALL = {"width": 0.0625, "classes": 7, "classifier_width": 12, "input_size": 64}


def random_state(model, seed=0):
    """Signed random values of each shape; variances positive."""
    rng = np.random.default_rng(seed)
    state = {n: rng.standard_normal(s).astype(np.float32) for n, s in model.state_shapes().items()}
    return {name: np.abs(a) + 0.5 if name.endswith("running_var") else a for name, a in state.items()}


def model_of(name="vgg16"):
    return build(name, **SMALL, init="zeros")


def assert_state(model, state, only=lambda name: True):
    """The model has `state` where `only`, and zeros (ones: batch norm) elsewhere."""
    fresh = {name: a.copy() for name, a in model.state_dict().items()}
    for name, value in state.items():
        if only(name):
            np.testing.assert_array_equal(fresh[name], value, err_msg=name)
        else:
            assert np.ptp(fresh[name]) == 0, name


@pytest.fixture(params=["vgg16", "vgg16_bn"])
def name(request):
    return request.param


@pytest.mark.parametrize("form", WRITERS)
def test_every_format_gives_the_same_bits(form, name, tmp_path):
    model, path = model_of(name), tmp_path / "weights"  # no suffix: the first bytes tell
    state = random_state(model)
    tracked = {n.replace("running_var", "num_batches_tracked"): np.array(5) for n in state if n.endswith("running_var")}
    WRITERS[form](state | tracked, path)
    report = weights.load(model, path)
    assert_state(model, state)
    assert report.format == form.split(", comp")[0]
    assert report.convention == "torchvision"
    assert (set(report.loaded), report.missing, report.left_over) == (set(state), (), ())
    assert report.values == sum(a.size for a in state.values())


@needs_h5py
@pytest.mark.parametrize("generation", KERAS)
def test_keras_layouts(generation, name, tmp_path):
    model = model_of(name)
    state = random_state(model)
    weight_files.write_h5(keras_state(state, layers_of(model), **KERAS[generation]), tmp_path / "a.h5")
    report = weights.load(model, str(tmp_path / "a.h5"))
    assert_state(model, state)
    assert report.convention == "Keras"


@needs_h5py
def test_keras_without_its_top_and_with_its_optimizer(tmp_path):
    model = model_of()
    state = random_state(model)
    keras = keras_state(state, layers_of(model))
    notop = {name: array for name, array in keras.items() if name.startswith("block")}
    weight_files.write_h5(notop | {"optimizer_weights/Adam/iterations:0": np.array(3)}, tmp_path / "a.h5")
    with pytest.raises(BadInput, match=r"missing classifier\.0\.weight"):
        weights.load(model, tmp_path / "a.h5")
    report = weights.load(model, tmp_path / "a.h5", only="features.*")
    assert_state(model, state, lambda n: n.startswith("features."))
    assert len(report.loaded) == 26


@needs_h5py
def test_without_h5py_one_line_says_what_to_install(tmp_path, monkeypatch):
    weight_files.write_h5({"a/kernel:0": np.ones(3)}, tmp_path / "a.h5")
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    with pytest.raises(BadInput, match=r"a\.h5: reading HDF5 needs h5py: pip install 'minivgg\[weights\]'$"):
        weights.read(tmp_path / "a.h5")


@pytest.mark.parametrize("form", ["safetensors", "PyTorch, zip"])
def test_timm(form, tmp_path):
    model = model_of()
    state = random_state(model)
    WRITERS[form](timm_state(state, channels=32), tmp_path / "a")
    assert weights.load(model, tmp_path / "a").convention == "timm"
    assert_state(model, state)


def test_numbered_and_blocks_and_wrapped(tmp_path):
    model, blocks = model_of("vgg13"), model_of("block_vgg")
    state = random_state(model)
    weight_files.write_npz({f"module.{name}": a for name, a in state.items()}, tmp_path / "wrapped.npz")
    weights.load(blocks, tmp_path / "wrapped.npz")  # torchvision's features.17 is block4.2
    np.testing.assert_array_equal(blocks.state_dict()["block4.2.weight"], state["features.17.weight"])
    weights.save(blocks, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys()
    convolutions = [name for name in state if name.startswith("features") and name.endswith("weight")]
    numbered = {f"w{i}": state[name] for i, name in enumerate(convolutions)}
    weight_files.write_npz(numbered, tmp_path / "numbered.npz")
    report = weights.load(model, tmp_path / "numbered.npz", only="features.*.weight")
    assert report.loaded == tuple(convolutions)
    assert_state(model, state, lambda n: n in convolutions)


@pytest.mark.parametrize("form", ["safetensors", "PyTorch, zip", "PyTorch, legacy"])
@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_other_precisions(form, dtype, tmp_path):
    model = model_of()
    exact = random_state(model)
    state = {name: bfloat16(a) if dtype == "bfloat16" else a.astype(dtype) for name, a in exact.items()}
    WRITERS[form](state, tmp_path / "a")
    report = weights.load(model, tmp_path / "a")
    assert report.dtypes == (dtype,)
    for name, value in model.state_dict().items():
        assert value.dtype == np.float32
        if dtype == "bfloat16":  # the upper half of float32, to the bit, and so within half of its last place
            np.testing.assert_array_equal(value.view(np.uint32), state[name].astype(np.uint32) << 16)
            np.testing.assert_allclose(value, exact[name], rtol=2**-8)
        else:
            np.testing.assert_array_equal(value, state[name].astype(np.float32))


def test_big_endian_files_say_so_and_are_read(tmp_path):
    model = model_of()
    state = random_state(model)
    weight_files.write_archive(tmp_path / "a.pth", weight_files.zip_members(state, order="big"))
    weights.load(model, tmp_path / "a.pth")
    assert_state(model, state)
    weight_files.write_npz({n: a.astype(">f4") for n, a in random_state(model, 1).items()}, tmp_path / "a.npz")
    weights.load(model, tmp_path / "a.npz")
    assert_state(model, random_state(model, 1))


def test_views_and_shared_storages_and_checkpoints(tmp_path):
    """A tensor that is the transposed middle of another's storage, inside a training script's checkpoint."""
    base = np.arange(24, dtype=np.float32)
    code = weight_files.state_code(
        {
            "a": weight_files.tensor("0", base),
            "b": weight_files.tensor("0", base, offset=4, shape=(3, 2), strides=(1, 6)),
        }
    )
    wrapped = b"}(" + weight_files.text("epoch") + b"K\x03" + weight_files.text("state_dict") + code + b"u"
    weight_files.write_archive(tmp_path / "a.pth", weight_files.zip_members({"a": base}, wrapped))
    entries = weights.read(tmp_path / "a.pth").entries
    np.testing.assert_array_equal(entries["a"].read(), base)
    np.testing.assert_array_equal(entries["b"].read(), [[4, 10], [5, 11], [6, 12]])


def test_strict_changes_nothing(tmp_path):
    model, other = model_of(), build("vgg16", **SMALL | {"classes": 9}, init="zeros")
    state = random_state(other)
    weight_files.write_safetensors(state | {"extra.weight": np.ones(2, np.float32)}, tmp_path / "a.safetensors")
    with pytest.raises(BadInput) as caught:
        weights.load(model, tmp_path / "a.safetensors")
    message = str(caught.value)
    assert "left over extra.weight; classifier.6.weight is (9, 12), the network needs (7, 12)" in message
    assert "\n" not in message
    assert all(np.ptp(a) == 0 for a in model.state_dict().values())

    report = weights.load(model, tmp_path / "a.safetensors", skip=("classifier.6.*", "extra*"))
    assert len(report.loaded) == 30
    assert_state(model, state, lambda n: not n.startswith("classifier.6."))

    model = model_of()
    report = weights.load(model, tmp_path / "a.safetensors", strict=False)
    assert report.left_over == ("extra.weight",)
    assert list(report.mismatched) == ["classifier.6.weight", "classifier.6.bias"]
    assert_state(model, state, lambda n: not n.startswith("classifier.6."))
    assert "loaded     30 of 32 arrays" in str(report)
    assert "misfit     classifier.6.bias is (9,), the network needs (7,)" in str(report)
    with pytest.raises(BadInput, match="nothing in it fits the network: left over extra"):
        weights.load(model, tmp_path / "a.safetensors", only="extra*", strict=False)


def test_damage_found_while_reading_changes_nothing(tmp_path):
    model = model_of()
    weight_files.write_zip(random_state(model), tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[len(content) * 3 // 4] ^= 1  # inside a late storage: earlier ones are read well
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(BadInput, match=r"a\.pth: [a-z0-9.]+ cannot be read: Bad CRC-32"):
        weights.load(model, tmp_path / "a.pth")
    assert all(np.ptp(a) == 0 for a in model.state_dict().values())


def test_whole_numbers_are_no_weights(tmp_path):
    model = model_of()
    state = random_state(model)
    state["features.0.bias"] = np.ones(4, np.int64)
    weight_files.write_safetensors(state, tmp_path / "a")
    with pytest.raises(BadInput, match=r"features\.0\.bias is int64; weights are float16"):
        weights.load(model, tmp_path / "a")


@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "infinite or none"), (np.inf, "infinite or none"), (3e37, "up to 3e.37: its bytes may be in the wrong")],
)
def test_odd_values_are_warned_of(value, message, tmp_path):
    model = model_of()
    state = random_state(model)
    state["features.2.weight"][1, 2, 0, 1] = value
    weight_files.write_safetensors(state, tmp_path / "a")
    with pytest.warns(UserWarning, match=f"features.2.weight holds .*{message}"):
        report = weights.load(model, tmp_path / "a")
    assert len(report.warnings) == 1
    assert "warning    features.2.weight holds" in str(report)


def test_swapped_bytes_are_warned_of(tmp_path):
    model = model_of()
    state = {name: a.byteswap() for name, a in random_state(model).items()}
    weight_files.write_safetensors(state, tmp_path / "a")
    with pytest.warns(UserWarning, match="wrong order|infinite or none") as caught:
        weights.load(model, tmp_path / "a")
    assert len(caught) > 20


def test_save_is_atomic_and_torchvisions(name, tmp_path, monkeypatch):
    model = model_of(name)
    model.load_state_dict(random_state(model))
    path = tmp_path / "deep" / "a.safetensors"
    weights.save(model, path)
    saved = load_file(path)
    assert saved.keys() == model.state_shapes().keys()
    for key, value in random_state(model).items():
        np.testing.assert_array_equal(saved[key], value)
    twin = model_of(name)
    weights.load(twin, path)
    assert_state(twin, random_state(model))

    def full(file, arrays, metadata):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("minivgg.weights.loading.write_safetensors", full)
    with pytest.raises(OSError, match="No space"):
        weights.save(model_of(name), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_fully_connected_layers_serve_as_convolutions_and_back(tmp_path):
    """The weights of a 2×2 convolution over a 2×2 map are those of a fully connected layer."""
    from minivgg import Conv2d, Linear, Sequential

    w = np.random.default_rng(0).standard_normal((5, 12)).astype(np.float32)
    flat = {"0.weight": w, "0.bias": np.ones(5, np.float32)}
    weight_files.write_npz(flat, tmp_path / "flat.npz")
    weight_files.write_npz(flat | {"0.weight": w.reshape(5, 3, 2, 2)}, tmp_path / "conv.npz")
    conv, linear = Sequential(Conv2d(3, 5, 2)), Sequential(Linear(12, 5))
    weights.load(conv, tmp_path / "flat.npz")
    weights.load(linear, tmp_path / "conv.npz")
    np.testing.assert_array_equal(conv[0].weight.data, w.reshape(5, 3, 2, 2))
    np.testing.assert_array_equal(linear[0].weight.data, w)


def test_a_header_whose_length_begins_like_a_pickle(tmp_path):
    state = {"a" * count: np.ones(3, np.float32) for count in range(1, 60)}
    weight_files.write_safetensors(state, tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    padded = size + (0x80 - size) % 256
    header = raw[8 : 8 + size].ljust(padded)
    (tmp_path / "a").write_bytes(padded.to_bytes(8, "little") + header + raw[8 + size :])
    assert (tmp_path / "a").read_bytes()[:1] == b"\x80"
    assert weights.read(tmp_path / "a").format == "safetensors"


@pytest.mark.parametrize("source", ["nothing.pth", "."])
def test_no_file(source):
    with pytest.raises(BadInput, match=r"(no such file|is a folder), nor a name of weights, which are oxford, vgg11"):
        weights.load(model_of(), source)


@pytest.mark.parametrize("form", WRITERS)
def test_inspecting_finds_the_network(form, tmp_path):
    options = {"width": 0.125, "classes": 7, "classifier_width": 24, "input_size": 96, "channels": 1}
    for name in ("vgg11_bn", "vgg19"):
        WRITERS[form](random_state(build(name, **options, init="zeros")), tmp_path / "a")
        found = weights.fitting(weights.read(tmp_path / "a"))
        assert found[name] == options
        assert all(other.startswith(name) or other in "ABDE" for other in found)
