"""`weights.save` and `minivgg weights convert`: the format that the file's name asks for, or a refusal beforehand."""

import numpy as np
import pytest
import weight_files
from hostile_files import model

from minivgg import BatchNorm2d, build, weights
from minivgg.cli.main import main
from minivgg.errors import BadInput

OPTIONS = {"width": 0.0625, "classes": 7, "classifier_width": 12, "input_size": 32}
FORMATS = {
    "a.safetensors": "safetensors",
    "a.npz": "npz",
    "a.pth": "PyTorch, zip",
    "a.pt": "PyTorch, zip",
    "A.PTH": "PyTorch, zip",
    "with.dots.npz": "npz",
}


@pytest.fixture
def net():
    """A network with batch norm whose arrays are all different."""
    net, rng = build("vgg11_bn", **OPTIONS), np.random.default_rng(0)
    net.load_state_dict({n: rng.uniform(0.5, 1, s).astype(np.float32) for n, s in net.state_shapes().items()})
    return net


@pytest.mark.parametrize("name", FORMATS)
def test_the_suffix_is_the_format(name, net, tmp_path):
    weights.save(net, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert weights.read(tmp_path / name).format == FORMATS[name]
    twin = build("vgg11_bn", **OPTIONS, init="zeros")
    assert not weights.load(twin, tmp_path / name, input="any").problems
    for key, value in twin.state_dict().items():
        np.testing.assert_array_equal(value, net.state_dict()[key], err_msg=key)


@pytest.mark.parametrize(
    "name", ["a.h5", "a.weights.h5", "a.keras", "a.onnx", "a.bin", "a", ".npz", "a.safetensors.tmp"]
)
def test_another_suffix_is_refused_before_anything_is_written(name, net, tmp_path, capsys):
    with pytest.raises(BadInput, match=r"weights are written as \.safetensors, \.npz, \.pth, \.pt; not as"):
        weights.save(net, tmp_path / "new folder" / name)
    weight_files.write_npz(net.state_dict(), tmp_path / "in.npz")
    assert main(["weights", "convert", str(tmp_path / "in.npz"), str(tmp_path / name), "--model", "vgg11_bn"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minivgg: {tmp_path / name}: weights are written as")
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["in.npz"]


def test_npz_is_numpys(net, tmp_path):
    weights.save(net, tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == set(net.state_shapes())


@pytest.mark.parametrize("name", ["a.pth", "a.pt"])
def test_torch_reads_its_own_format_without_unpickling_freely(name, net, tmp_path):
    torch = pytest.importorskip("torch")
    weights.save(net, tmp_path / name)
    for options in ({}, {"mmap": True}):
        found = torch.load(tmp_path / name, weights_only=True, **options)
        assert list(found) == list(net.state_dict())
        for key, value in net.state_dict().items():
            np.testing.assert_array_equal(found[key].numpy(), value, strict=True)


@pytest.mark.parametrize("out", ["b.safetensors", "b.npz", "b.pth"])
def test_convert_writes_the_format_of_the_name(out, tmp_path):
    state = model().state_dict()
    weight_files.write_npz(state, tmp_path / "a.npz")
    assert main(["weights", "convert", str(tmp_path / "a.npz"), str(tmp_path / out), "--model", "vgg11"]) == 0
    found = weights.read(tmp_path / out)
    assert found.format == FORMATS[out.replace("b", "a", 1)]
    assert found.entries.keys() == state.keys()


def test_converting_kerass_batch_norm_gives_the_same_scores_with_torchvisions_epsilon(net, tmp_path):
    """Keras's description has its epsilon, 0.1; the file written has none, and whoever reads it takes 1e-5."""
    h5py = pytest.importorskip("h5py")
    import json

    layers, keras = weight_files.layers_of(net), {}
    keras = weight_files.keras_state(net.state_dict(), layers, by_number=True)
    names = list(dict.fromkeys(path.split("/")[0] for path in keras))
    kinds = {"batch": "BatchNormalization", "conv2": "Conv2D", "dense": "Dense"}
    about = [{"class_name": kinds[n[:5]], "config": {"name": n, "epsilon": 0.1}} for n in names]
    weight_files.write_h5(keras, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": {"layers": about}})
    assert main(["weights", "convert", str(tmp_path / "a.h5"), str(tmp_path / "b.pth"), "--model", "vgg11_bn"]) == 0
    twin, x = build("vgg11_bn", **OPTIONS), np.random.default_rng(1).standard_normal((1, 3, 32, 32)).astype(np.float32)
    weights.load(twin, tmp_path / "b.pth", input="any")
    found = twin.forward(x)
    for _, layer in net.walk():
        if isinstance(layer, BatchNorm2d):
            layer.eps = 0.1
    np.testing.assert_allclose(found, net.forward(x), rtol=1e-4)
