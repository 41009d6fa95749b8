"""Oxford's real filters: those that ship, what they want to be fed, and pool5 against a computation of its own."""

from pathlib import Path

import numpy as np
import pytest
import weight_files
from scipy.signal import correlate

from minivgg import Conv2d, MaxPool2d, build, weights
from minivgg.weights import preprocessing
from minivgg.weights.sources import ASSETS, SOURCES

ALL_13 = Path(__file__).parents[1].parent / "shared" / "data" / "vgg16_oxford_conv.npz"
needs_all_13 = pytest.mark.skipif(not ALL_13.exists(), reason=f"{ALL_13} is not there")
CAFFE_MEAN = np.array([103.939, 116.779, 123.68])


def oxford_model(**options):
    model = build("vgg16", classifier_width=4, classes=2, input_size=32, init="zeros", **options)
    return model, weights.load(model, "oxford")


def photographs(count, size, seed=0):
    """Synthetic photographs, bytes RGB (count, size, size, 3): spectra that fall as 1/f, edges, colours that vary less
    than brightness does."""
    rng = np.random.default_rng(seed)
    f = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size))
    f[0, 0] = 1
    images = []
    for _ in range(count):
        spectra = np.fft.fft2(rng.standard_normal((4, size, size))) / f
        brightness, *colours = np.fft.ifft2(spectra).real / np.abs(np.fft.ifft2(spectra).real).std()
        image = np.stack([brightness + 0.3 * c for c in colours], axis=-1)
        y, x = rng.integers(0, size // 2, 2)
        image[y : y + size // 3, x : x + size // 4] += rng.standard_normal(3)
        images.append(np.clip(118 + 55 * image, 0, 255).round())
    return np.stack(images).astype(np.uint8)


def caffe_input(images):
    return np.ascontiguousarray((images[..., ::-1] - CAFFE_MEAN).transpose(0, 3, 1, 2)).astype(np.float32)


def torchvision_input(images):
    x = (images / 255 - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)).astype(np.float32)


def convolution_by_definition(x, w, b):
    """x (C, H, W), w (O, C, 3, 3) → (O, H, W): nine shifted images, each weighed, summed in float64."""
    (_, H, W), padded = x.shape, np.pad(x, ((0, 0), (1, 1), (1, 1)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    return b[:, None, None] + sum(np.tensordot(w[:, :, i, j], padded[:, i : i + H, j : j + W], 1) for i, j in shifts)


def pool5_by_definition(x, arrays):
    """x (C, H, W) float64 → (512, H/32, W/32): convolutions, ReLUs, and maxima over reshaped windows."""
    for i in range(13):
        w, b = arrays[f"w{i}"].astype(np.float64), arrays[f"b{i}"].astype(np.float64)
        x = np.maximum(convolution_by_definition(x, w, b), 0)
        if i in (1, 3, 6, 9, 12):
            C, H, W = x.shape
            x = x.reshape(C, H // 2, 2, W // 2, 2).max(axis=(2, 4))
    return x


def test_the_oracles_convolution_is_scipys():
    rng = np.random.default_rng(0)
    x, w, b = rng.standard_normal((5, 7, 6)), rng.standard_normal((4, 5, 3, 3)), rng.standard_normal(4)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    expected = np.stack([correlate(padded, kernel, mode="valid")[0] for kernel in w]) + b[:, None, None]
    np.testing.assert_allclose(convolution_by_definition(x, w, b), expected, atol=1e-12)


@needs_all_13
def test_pool5_equals_an_independent_computation():
    model = build("vgg16", classifier_width=4, classes=2, input_size=32, init="zeros")
    weights.load(model, ALL_13, only="features.*", input="caffe")
    x = caffe_input(photographs(3, 64))
    with np.load(ALL_13) as arrays:
        expected = np.stack([pool5_by_definition(image.astype(np.float64), arrays) for image in x])
    assert expected.max() > 1
    found = model.features.forward(x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    for image, right in zip(found, expected, strict=True):
        assert np.linalg.norm(image - right) < 1e-4 * np.linalg.norm(right)


@needs_all_13
def test_what_ships_is_oxfords_rounded_once():
    with np.load(ALL_13) as whole, np.load(SOURCES["oxford"].path) as shipped:
        assert sorted(shipped) == sorted(f"{kind}{i}" for kind in "wb" for i in range(7))
        for name in shipped:
            rounded = whole[name].astype(np.float16) if name.startswith("w") else whole[name]
            np.testing.assert_array_equal(shipped[name], rounded, strict=True)


def test_attribution_lies_beside_the_shipped_layers():
    assert SOURCES["oxford"].path.parent == ASSETS
    assert SOURCES["oxford"].path.stat().st_size < 3.4e6
    notice = (ASSETS / "LICENSE.vgg16_oxford").read_text()
    for words in ("Simonyan", "Zisserman", "University of Oxford", "CC BY 4.0", "Changes:", "vgg16_oxford_conv7.npz"):
        assert words in notice


def test_loading_what_ships():
    model, report = oxford_model()
    convolutions = [layer for layer in model.features if isinstance(layer, Conv2d)]
    assert [bool(layer.weight.data.any()) for layer in convolutions] == [True] * 7 + [False] * 6
    assert (len(report.loaded), report.left_over, report.warnings) == (14, (), ())
    assert "features.17.weight" in report.missing
    np.testing.assert_allclose(model.features[0].bias.data[:4], [0.7343, 0.0934, 0.0678, 0.8863], atol=1e-4)
    with np.load(SOURCES["oxford"].path) as shipped:
        np.testing.assert_array_equal(model.features[14].weight.data, shipped["w6"].astype(np.float32))


def first_layer(w, b=None, batch_norm=False):
    """A VGG-16 with these filters in its first layer, as a file would bring them, and the other shipped ones."""
    model, _ = oxford_model(batch_norm=batch_norm)
    model.features[0].weight.data[...] = w
    if b is not None:
        model.features[0].bias.data[...] = b
    return model


def shipped():
    with np.load(SOURCES["oxford"].path) as file:
        return file["w0"].astype(np.float64)


VARIANTS = {  # order and scale → what becomes of Oxford's filters
    ("BGR", "0–255"): lambda w: w,
    ("RGB", "0–255"): lambda w: w[:, ::-1],
    ("BGR", "0–1"): lambda w: w * 255 * np.array([0.225, 0.224, 0.229])[:, None, None],
    ("RGB", "0–1"): lambda w: w[:, ::-1] * 255 * np.array([0.229, 0.224, 0.225])[:, None, None],
}


@pytest.mark.parametrize(("wants", "change"), VARIANTS.items(), ids=["-".join(v) for v in VARIANTS])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_oxfords_filters_are_known_in_any_order_and_scale(wants, change, noise):
    """Also when fine-tuning has moved them by a fifth of their size."""
    w = change(shipped())
    w = w + noise * w.std() * np.random.default_rng(0).standard_normal(w.shape)
    assert preprocessing.oxford(w)[:2] == wants
    model = first_layer(w)
    for expected, feeds in preprocessing.INPUTS.items():
        notes = preprocessing.check(model, {"features.0.weight"}, expected)
        assert bool(notes) == (wants != feeds)
        assert all(f"take {' '.join(wants)}" in note for note in notes)
    assert preprocessing.check(model, {"features.0.weight"}, "any") == []
    assert preprocessing.check(model, {"features.2.weight"}, "torchvision") == []


@pytest.mark.parametrize("seed", range(20))
def test_filters_of_strangers_are_not_judged(seed):
    rng = np.random.default_rng(seed)
    assert preprocessing.oxford(0.2 * rng.standard_normal((64, 3, 3, 3)))[0] is None
    grey = np.repeat(shipped().mean(axis=1, keepdims=True), 3, axis=1)  # alike in any order
    assert preprocessing.oxford(grey)[0] is None
    assert preprocessing.oxford(shipped()[rng.permutation(64)])[0] is None
    assert preprocessing.oxford(np.zeros((64, 3, 3, 3)))[0] is None


def test_a_warning_and_its_fix(tmp_path):
    """Oxford's weights in a file, for a network that will be fed torchvision's images."""
    model, _ = oxford_model()
    weights.save(model, tmp_path / "oxford.safetensors")
    other = build("vgg16", classifier_width=4, classes=2, input_size=32, init="zeros")
    with pytest.warns(UserWarning, match="first layer is Oxford's .* these weights take BGR 0–255") as caught:
        report = weights.load(other, tmp_path / "oxford.safetensors")
    fix = "minivgg.weights.to_torchvision_input(model, bgr=True, byte_range=True)"
    assert fix in str(caught[0].message)
    assert fix in str(report)
    assert weights.load(other, tmp_path / "oxford.safetensors", input="caffe").warnings == ()
    weights.to_torchvision_input(other, bgr=True, byte_range=True)
    assert preprocessing.check(other, {"features.0.weight"}, "torchvision") == []

    images = photographs(2, 32)
    right = model.features[0].forward(caffe_input(images))
    fixed = other.features[0].forward(torchvision_input(images))
    inside = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # the border of zeros means another grey
    np.testing.assert_allclose(fixed[inside], right[inside], rtol=0, atol=1e-5 * np.abs(right).max())
    assert np.abs(fixed - right).max() < 4  # of some hundreds: half a grey level under the border's filters


@pytest.mark.parametrize(("wants", "change"), VARIANTS.items(), ids=["-".join(v) for v in VARIANTS])
def test_every_fix_that_is_offered_mends(wants, change):
    model = first_layer(change(shipped()))
    for note in preprocessing.check(model, {"features.0.weight"}, "torchvision"):
        call = note.split("minivgg.weights.")[1].split("), or")[0].rstrip(")") + ")"
        eval(call, {"to_torchvision_input": weights.to_torchvision_input, "model": model})
    images, reference = photographs(1, 32), first_layer(shipped())
    fixed = model.features[0].forward(torchvision_input(images))
    right = reference.features[0].forward(caffe_input(images))
    cosine = (fixed * right).sum() / np.linalg.norm(fixed) / np.linalg.norm(right)
    assert cosine > 0.999
    assert preprocessing.check(model, {"features.0.weight"}, "torchvision") == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("expected", "prepare"), [("caffe", caffe_input), ("torchvision", torchvision_input)])
def test_batch_norm_tells_the_scale(expected, prepare, seed):
    """Random filters, running variances as photographs of either kind leave them."""
    rng = np.random.default_rng(seed)
    model = build("vgg16_bn", width=0.25, classes=2, classifier_width=4, input_size=32, seed=seed)
    convolution, norm = model.features[0], model.features[1]
    convolution.weight.data[...] *= rng.uniform(0.2, 5)
    names = {"features.0.weight", "features.1.running_var"}
    assert preprocessing.check(model, names, "torchvision") == []  # never trained: nothing to tell
    norm.running_var[...] = convolution.forward(prepare(photographs(4, 64, seed))).var(axis=(0, 2, 3))
    assert preprocessing.check(model, names, expected) == []
    other = {"caffe": "torchvision", "torchvision": "caffe"}[expected]
    assert f"take {preprocessing.INPUTS[expected][1]}; " in preprocessing.check(model, names, other)[0]
    assert preprocessing.check(model, {"features.0.weight"}, other) == []


def test_unknown_input_and_grey_networks(tmp_path):
    model, _ = oxford_model()
    with pytest.raises(weights.loading.BadInput, match='no input "rgb"; there are torchvision, caffe and any'):
        weights.load(model, "oxford", input="rgb")
    grey = build("vgg11", channels=1, width=0.0625, classifier_width=4, classes=2, input_size=32)
    weight_files.write_npz(grey.state_dict(), tmp_path / "a.npz")
    assert weights.load(grey, tmp_path / "a.npz").warnings == ()
    with pytest.raises(weights.loading.BadInput, match="does not take three colours"):
        weights.to_torchvision_input(grey)


def test_pools_are_where_the_oracle_has_them():
    model = build("vgg16", width=0.0625, classifier_width=4, classes=2, input_size=32, init="zeros")
    kinds = [layer for layer in model.features if isinstance(layer, (Conv2d, MaxPool2d))]
    before = np.cumsum([isinstance(layer, Conv2d) for layer in kinds]) - 1
    assert [i for i, layer in zip(before, kinds, strict=True) if isinstance(layer, MaxPool2d)] == [1, 3, 6, 9, 12]
