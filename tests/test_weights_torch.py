"""Against PyTorch itself: networks built in torch from their published definitions, saved in each format, load into
ours and give the same scores; and what we save loads strictly into torch's.

To add a network: a function that builds it in torch under torchvision's names, and a row of NETWORKS.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import weight_files
from safetensors.numpy import load_file

from minivgg import build, weights

torch = pytest.importorskip("torch")
from test_torch_networks import TorchAlexNet, TorchGoogLeNet  # noqa: E402 (it needs torch)

nn = torch.nn

TOLERANCE = 1e-4  # of the largest score


def torch_vgg(plan, *, batch_norm=False, width=1.0, classes=1000, classifier_width=4096, input_size=224, dropout=0.5):
    """Simonyan & Zisserman 2015, table 1, as torchvision lays it out (models/vgg.py): `plan` is filters, M a pool."""
    layers, channels = [], 3
    for token in plan.split():
        if token == "M":
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        out = round(int(token) * width)
        layers.append(nn.Conv2d(channels, out, kernel_size=3, padding=1))
        layers += [nn.BatchNorm2d(out)] if batch_norm else []
        layers.append(nn.ReLU(inplace=True))
        channels = out
    pixels = min(7, input_size // 32)
    classifier = nn.Sequential(
        nn.Linear(channels * pixels**2, classifier_width),
        nn.ReLU(True),
        nn.Dropout(dropout),
        nn.Linear(classifier_width, classifier_width),
        nn.ReLU(True),
        nn.Dropout(dropout),
        nn.Linear(classifier_width, classes),
    )

    class VGG(nn.Module):
        def __init__(self):
            super().__init__()
            self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(pixels)
            self.classifier = classifier

        def forward(self, x):
            return self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))

    return VGG()


D = "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M"


class Network(NamedTuple):
    """One network, small: torch's, ours, an image for it, and what its names are called elsewhere.

    `elsewhere` maps a naming to a function that translates a state dict of arrays into it; its files are written by
    `weight_files`.
    """

    theirs: Callable
    ours: Callable
    image: tuple[int, ...]
    elsewhere: dict[str, Callable] = {}  # noqa: RUF012 (never changed)


def vgg(name, plan, **options):
    small = {"width": 0.125, "classes": 10, "classifier_width": 32, "input_size": 64}
    ours = partial(build, name, **small)
    layers = weight_files.layers_of(ours(init="zeros"))
    keras = {
        key: partial(weight_files.keras_state, model_layers=layers, **how) for key, how in weight_files.KERAS.items()
    }
    timm = {} if options.get("batch_norm") else {"timm": partial(weight_files.timm_state, channels=64)}
    return Network(partial(torch_vgg, plan, **options, **small), ours, (2, 3, 64, 64), keras | timm)


NETWORKS = {
    "vgg16": vgg("vgg16", D),
    "vgg16_bn": vgg("vgg16_bn", D, batch_norm=True),
    "alexnet": Network(TorchAlexNet, partial(build, "alexnet"), (1, 3, 224, 224)),
    "googlenet": Network(TorchGoogLeNet, partial(build, "googlenet"), (1, 3, 96, 96)),
}


def save_in(form, module, path, elsewhere):
    """Write torch's state dict in a format, by torch itself where it is torch's own."""
    state = module.state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    if form == "PyTorch, zip":
        torch.save(state, path)
    elif form == "PyTorch, zip, bare dict in a checkpoint":
        torch.save({"epoch": 3, "state_dict": dict(state), "optimizer": {"state": {}, "lr": 0.1}}, path)
    elif form == "PyTorch, legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif form in elsewhere:
        write = weight_files.write_safetensors if form == "timm" else weight_files.write_h5
        write(elsewhere[form](arrays), path)
    else:
        weight_files.WRITERS[form](arrays, path)


FORMS = [
    *("safetensors", "npz", "PyTorch, zip", "PyTorch, zip, bare dict in a checkpoint", "PyTorch, legacy"),
    *(["timm", *weight_files.KERAS]),
]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """(Network, torch's module with random weights, an image, torch's scores of it)."""
    chosen = NETWORKS[request.param]
    return chosen, *torch_side(chosen)


def torch_side(network, seed=0):
    torch.manual_seed(seed)
    module = network.theirs().eval()
    with torch.no_grad():
        for name, value in (*module.named_parameters(), *module.named_buffers()):
            if value.ndim > 1:
                nn.init.kaiming_normal_(value)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.is_floating_point():
                value.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)  # a batch norm's weight is about one
        x = torch.randn(network.image)
        return module, x, module(x).numpy()


@pytest.mark.parametrize("form", FORMS)
def test_torchs_weights_give_torchs_scores(form, network, tmp_path):
    chosen, module, x, scores = network
    if form not in weight_files.WRITERS and not form.startswith("PyTorch") and form not in chosen.elsewhere:
        pytest.skip(f"there is no such network in {form}'s names")
    if form in weight_files.KERAS:
        pytest.importorskip("h5py")
    save_in(form, module, tmp_path / "weights", chosen.elsewhere)
    model = chosen.ours(seed=1)
    report = weights.load(model, tmp_path / "weights")
    assert not report.problems
    assert np.abs(scores).max() > 0.1
    np.testing.assert_allclose(model.forward(x.numpy()), scores, rtol=0, atol=TOLERANCE * np.abs(scores).max())


def test_our_weights_give_our_scores_in_torch(network, tmp_path):
    chosen, _, x, _ = network
    model = chosen.ours(seed=2)
    state = model.state_dict()
    rng = np.random.default_rng(3)
    for name, value in state.items():  # also the biases and running averages, which start at zeros and ones
        if value.ndim == 1:
            state[name] = (value + rng.uniform(-0.2, 0.2, value.shape)).astype(value.dtype)
    model.load_state_dict(state)
    scores = model.forward(x.numpy())
    weights.save(model, tmp_path / "ours.safetensors")
    module = chosen.theirs().eval()
    saved = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / "ours.safetensors").items()}
    module.load_state_dict(saved, strict=True)
    with torch.no_grad():
        theirs = module(x).numpy()
    np.testing.assert_allclose(theirs, scores, rtol=0, atol=TOLERANCE * np.abs(scores).max())


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_torchs_own_tensors_of_every_kind(legacy, tmp_path):
    """Every dtype, a transposed view, a slice, a scalar, an empty tensor, a parameter, one storage for two."""
    base = torch.randn(6, 8)
    tensors = {
        "float64": base.double(),
        "float16": base.half(),
        "transposed": base.T,
        "slice": base[1:5:2, 3],
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "again": base,
        "int64": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(base * 2),
    }
    torch.save(tensors | {"bfloat16": base.bfloat16()}, tmp_path / "a", _use_new_zipfile_serialization=not legacy)
    entries = weights.read(tmp_path / "a").entries
    for name, value in tensors.items():
        np.testing.assert_array_equal(entries[name].read(), value.detach().numpy(), err_msg=name, strict=True)
    np.testing.assert_array_equal(entries["bfloat16"].read(), base.bfloat16().float().numpy())
    assert entries["bfloat16"].dtype == "bfloat16"


def test_our_writers_are_torchs(tmp_path):
    """The files that other tests write by hand, PyTorch can read: so those tests are about PyTorch's formats."""
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    for form in ("PyTorch, zip", "PyTorch, legacy"):
        weight_files.WRITERS[form](state, tmp_path / "a.pth")
        read = torch.load(tmp_path / "a.pth", weights_only=True)
        assert read.keys() == state.keys()
        for name, value in read.items():
            np.testing.assert_array_equal(value.numpy(), state[name], strict=True)
