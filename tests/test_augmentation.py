"""Preprocessing and augmentation against slow re-implementations, Pillow, and the formulas of the papers."""

import json
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minivgg.errors import BadInput
from minivgg.training import augmentation
from minivgg.training import preprocessing as preprocess
from minivgg.training.augmentation import Augmentation, colour_basis
from minivgg.training.datasets import Dataset
from minivgg.training.preprocessing import Preprocessing, fit, pixel_moments, resize_shorter

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def preprocessing(size, channels=3, resize=None):
    return Preprocessing(channels, size, MEAN[:channels], STD[:channels], resize)


def slow_window(image, top, left, size):
    """Pixel by pixel, in float64: (C, size, size)."""
    H, W, C = image.shape
    y = np.zeros((C, size, size))
    for c, i, j in np.ndindex(y.shape):
        row, column = top + i, left + j
        pixel = image[row, column, c] if 0 <= row < H and 0 <= column < W else 0
        y[c, i, j] = (pixel / 255 - MEAN[c]) / STD[c]
    return y


def as_set(images):
    return Dataset("noise", images, np.zeros(len(images), int), ("any",), images.shape[3])


# ---- Preprocessing ----


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 7), st.integers(1, 7), st.sampled_from([1, 3])),
    st.integers(1, 6),
    st.integers(-9, 9),
    st.integers(-9, 9),
)
def test_window_is_the_slow_window(shape, size, top, left):
    image = noise(*shape)
    y = preprocessing(size, shape[2]).window(image, top, left)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y, slow_window(image, top, left, size), atol=2e-6)


def test_small_image_is_framed_not_stretched():
    image = noise(28, 28, 1)
    np.testing.assert_allclose(preprocessing(32, 1)(image), slow_window(image, -2, -2, 32), atol=2e-6)


@pytest.mark.parametrize("shape", [(9, 14, 3), (14, 9, 3), (11, 11, 1), (5, 6, 3), (8, 31, 1)])
def test_evaluation_resizes_and_crops_as_torchvision_does(shape):
    image = noise(*shape)
    H, W, C = shape
    side, size = 8, 5
    # torchvision.transforms.functional: _compute_resized_output_size and center_crop
    height, width = (side, int(side * W / H)) if H <= W else (int(side * H / W), side)
    resized = np.asarray(Image.fromarray(image.squeeze()).resize((width, height), Image.BILINEAR))
    top, left = int(round((height - size) / 2.0)), int(round((width - size) / 2.0))
    expected = slow_window(resized.reshape(height, width, C), top, left, size)
    np.testing.assert_allclose(preprocessing(size, C, resize=side)(image), expected, atol=2e-6)


def test_fitting_image_is_not_touched_by_resize():
    image = noise(8, 12, 3)
    assert resize_shorter(image, 8) is image


def test_resize_refuses_to_blow_up_a_thin_strip():
    with pytest.raises(BadInput, match=r"100000x1 .* 22400000 long"):
        resize_shorter(np.zeros((1, 100_000, 1), np.uint8), 224)


def test_writes_into_out_whatever_was_there():
    image, out = noise(4, 4, 3), np.full((3, 6, 6), np.nan, np.float32)
    for call in (
        lambda **out: preprocessing(6)(image, **out),
        lambda **out: Augmentation(pad=2)(image, preprocessing(6), np.random.default_rng(0), **out),
    ):
        out.fill(np.nan)
        assert call(out=out) is out
        np.testing.assert_array_equal(out, call())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"mean": (0.5,)}, "1 means and 3 stds for 3 channels"),
        ({"size": 0}, "size = 0: should be a whole number, at least 1"),
        ({"std": (0.2, 0.0, 0.2)}, "std .* above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "std .* above 0"),
        ({"resize": 0}, "resize = 0: should be a whole number, at least 1"),
    ],
)
def test_preprocessing_refuses(change, words):
    with pytest.raises(BadInput, match=words):
        Preprocessing(**{"channels": 3, "size": 224, "mean": MEAN, "std": STD} | change)


@pytest.mark.parametrize("image", [noise(8, 8), noise(8, 8, 1), noise(3, 8, 8), noise(8, 8, 3) / 255])
def test_image_of_another_kind_is_refused(image):
    with pytest.raises(BadInput, match=r"should be uint8 \(H, W, 3\)"):
        preprocessing(6)(image)


# ---- Augmentation ----


@pytest.mark.parametrize("H, size, pad, starts", [(5, 3, 0, [0, 1, 2]), (3, 5, 0, [-1]), (3, 5, 1, [-2, -1, 0])])
def test_every_crop_and_its_mirror_is_drawn_and_nothing_else(H, size, pad, starts):
    image = noise(H, H, 3)
    possible = {
        slow_window(view, top, left, size).astype(np.float32).round(3).tobytes()
        for top, left, view in product(starts, starts, (image, image[:, ::-1]))
    }
    rng, pre = np.random.default_rng(1), preprocessing(size)
    augment = Augmentation(pad=pad, flip=True)
    drawn = [augment(image, pre, rng).round(3).tobytes() for _ in range(60 * len(possible))]
    counts = {window: drawn.count(window) for window in set(drawn)}
    assert counts.keys() == possible
    assert 25 < min(counts.values()) <= max(counts.values()) < 110  # 60 expected, standard deviation below 8


def test_defaults_move_the_crop_and_change_nothing_else():
    image, pre = noise(28, 28, 1), preprocessing(32, 1)
    np.testing.assert_array_equal(Augmentation()(image, pre, np.random.default_rng(0)), pre(image))


def test_scale_is_drawn_from_low_to_high(monkeypatch):
    sides = []

    def spy(image, side):
        sides.append(side)
        return resize_shorter(image, side)

    monkeypatch.setattr(augmentation, "resize_shorter", spy)
    rng, image = np.random.default_rng(0), noise(9, 12, 3)
    for _ in range(200):
        assert Augmentation(scale=(6, 10))(image, preprocessing(6), rng).shape == (3, 6, 6)
    assert set(sides) == {6, 7, 8, 9, 10}
    sides.clear()
    Augmentation()(image, preprocessing(6, resize=8), rng)
    assert sides == [8]


def test_scaled_crop_is_one_of_the_resized_image():
    image = noise(9, 13, 3)
    resized = np.asarray(Image.fromarray(image).resize((10, 7), Image.BILINEAR))
    y = Augmentation(scale=(7, 7))(image, preprocessing(6), np.random.default_rng(3))
    windows = [slow_window(resized, top, left, 6) for top, left in product(range(2), range(5))]
    assert min(np.abs(y - window).max() for window in windows) < 2e-6


def test_colour_shift_has_the_covariance_of_the_paper():
    """sum_i a_i lambda_i p_i with a ~ N(0, s^2) has mean 0 and covariance s^2 sum lambda_i^2 p_i p_i' = s^2 Cov^2."""
    rng = np.random.default_rng(0)
    mixture = np.array([[40, 30, 20], [0, 25, -20], [5, 0, 10]])
    images = (128 + rng.standard_normal((50, 6, 6, 3)) @ mixture).clip(0, 255).astype(np.uint8)
    covariance = np.cov(images.reshape(-1, 3) / 255, rowvar=False, bias=True)
    augment = Augmentation(colour=0.5, basis=colour_basis(as_set(images)))
    pre, image = preprocessing(6), images[0]
    std = np.array(STD)[:, None, None]
    changes = [(augment(image, pre, rng) - pre(image)) * std for _ in range(4000)]
    shifts = np.array([change.mean(axis=(1, 2)) for change in changes])
    np.testing.assert_allclose(changes, np.broadcast_to(shifts[..., None, None], np.shape(changes)), atol=1e-6)
    expected = 0.25 * covariance @ covariance
    np.testing.assert_allclose(np.cov(shifts, rowvar=False), expected, atol=0.08 * expected.max())
    assert np.all(np.abs(shifts.mean(axis=0)) < 5 * np.sqrt(np.diag(expected) / 4000))


def test_one_channel_gets_brighter_or_darker():
    images = noise(20, 4, 4, 1)
    basis = colour_basis(as_set(images))
    assert basis == ((pytest.approx((images / 255).var(), abs=1e-6),),)
    pre, rng = preprocessing(4, 1), np.random.default_rng(0)
    change = [Augmentation(colour=0.1, basis=basis)(images[0], pre, rng) - pre(images[0]) for _ in range(2000)]
    assert np.std(change) * STD[0] == pytest.approx(0.1 * basis[0][0], rel=0.08)


def test_same_generator_same_bits_and_same_number_of_draws():
    basis = ((0.2, 0.0, 0.0), (0.0, 0.1, 0.0), (0.0, 0.0, 0.1))
    augment = Augmentation(scale=(6, 9), pad=1, flip=True, colour=0.1, basis=basis)
    pre, one, other = preprocessing(6), np.random.default_rng(5), np.random.default_rng(5)
    np.testing.assert_array_equal(augment(noise(9, 9, 3), pre, one), augment(noise(9, 9, 3), pre, other))
    augment(noise(5, 30, 3), pre, one)
    augment(noise(12, 7, 3), pre, other)
    assert one.random() == other.random()


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"scale": (9, 8)}, "low <= high"),
        ({"scale": (0, 8)}, "scale = 0: should be a whole number, at least 1"),
        ({"pad": -1}, "pad = -1: should be"),
        ({"colour": -0.1}, "colour = -0.1: should be"),
        ({"colour": 0.1}, "colour_basis"),
    ],
)
def test_augmentation_refuses(fields, words):
    with pytest.raises(BadInput, match=words):
        Augmentation(**fields)


# ---- what is measured on the training set ----


def test_fit_measures_mean_and_std():
    images = noise(30, 5, 6, 3) // np.array([1, 2, 4], np.uint8)
    pre = fit(as_set(images), 4, resize=8)
    np.testing.assert_allclose(pre.mean, (images / 255).mean(axis=(0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(pre.std, (images / 255).std(axis=(0, 1, 2)), atol=1e-6)
    assert (pre.channels, pre.size, pre.resize) == (3, 4, 8)


def test_every_image_counts_the_same(tmp_path):
    for name, size, value in (("a", (40, 30), 0), ("b", (2, 3), 255)):
        Image.new("L", size, value).save(tmp_path / f"{name}.png")
    pair = Dataset("pair", (tmp_path / "a.png", tmp_path / "b.png"), np.array([0, 0]), ("any",), 1)
    assert fit(pair, 2).mean == (0.5,) and fit(pair, 2).std == (0.5,)


def test_sample_spans_a_large_set(monkeypatch):
    monkeypatch.setattr(preprocess, "STATISTICS_SAMPLE", 11)
    images = np.repeat(np.arange(101, dtype=np.uint8), 4).reshape(101, 2, 2, 1)  # a set sorted by brightness
    assert pixel_moments(as_set(images))[0] == pytest.approx(50 / 255)


def test_basis_is_the_covariance_taken_apart():
    images = noise(40, 5, 6, 3) // np.array([1, 2, 4], np.uint8)
    columns = np.array(colour_basis(as_set(images))).T
    covariance = np.cov(images.reshape(-1, 3) / 255, rowvar=False, bias=True)
    sizes = np.linalg.norm(columns, axis=1)
    assert sizes.tolist() == sorted(sizes, reverse=True)
    for column, size in zip(columns, sizes, strict=True):
        np.testing.assert_allclose(covariance @ column, size * column, atol=1e-6)
        assert column[np.abs(column).argmax()] > 0


def test_nothing_to_measure():
    with pytest.raises(BadInput, match=r"a std = 0\.0: should be a number, above 0"):
        fit(as_set(np.full((9, 4, 4, 1), 77, np.uint8)), 4)
    with pytest.raises(BadInput, match="noise: no images"):
        fit(as_set(np.zeros((0, 4, 4, 1), np.uint8)), 4)


def test_both_survive_a_file():
    pre = preprocessing(224, resize=256)
    augment = Augmentation(scale=(256, 512), flip=True, colour=0.1, basis=colour_basis(as_set(noise(9, 4, 4, 3))))
    for thing in (pre, augment):
        assert type(thing).from_dict(json.loads(json.dumps(thing.as_dict()))) == thing
    with pytest.raises(BadInput, match=r"Preprocessing: size = '224': should be a whole number"):
        Preprocessing.from_dict(pre.as_dict() | {"size": "224"})
    for change in ({"sise": 3}, {"mean": 0.5}):
        with pytest.raises(BadInput, match=r"Preprocessing: .*channels, size, mean, std, resize"):
            Preprocessing.from_dict(pre.as_dict() | change)


def test_resize_below_size_leaves_a_border():
    image = np.random.default_rng(0).integers(1, 256, (60, 90, 1), np.uint8)
    pixels = preprocessing(12, 1, resize=8)(image)
    expected = slow_window(
        np.asarray(Image.fromarray(image.squeeze()).resize((12, 8), Image.BILINEAR))[..., None], -2, 0, 12
    )
    np.testing.assert_allclose(pixels, expected, atol=2e-6)
