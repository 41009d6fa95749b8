"""The named preprocessings against Pillow and float64 arithmetic, pixel by pixel; and pictures of every kind."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from minivgg.errors import BadInput
from minivgg.training import preprocessing
from minivgg.training.formats import read_image
from minivgg.training.preprocessing import CAFFE, PREPROCESSINGS, TORCHVISION, Preprocessing, centre

SIZES = st.tuples(st.integers(1, 60), st.integers(1, 60))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def small(named, size=14, resize=16):
    return replace(named, size=size, resize=resize)


def resized(image, side):
    """torchvision.transforms.Resize: the shorter side becomes `side`, the longer int(side · long / short)."""
    H, W, _ = image.shape
    width, height = (side, int(side * H / W)) if W <= H else (int(side * W / H), side)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def cropped(image, size):
    """torchvision.transforms.CenterCrop: a border of zeros first, where there is too little."""
    for axis in (0, 1):
        missing = max(0, size - image.shape[axis])
        border = [(0, 0)] * 3
        border[axis] = (missing // 2, (missing + 1) // 2)
        image = np.pad(image, border)
        start = int(round((image.shape[axis] - size) / 2.0))
        image = np.take(image, range(start, start + size), axis)
    return image


def normalised(image, name):
    """What the weights' authors wrote, channel by channel, in float64."""
    red, green, blue = np.moveaxis(image.astype(np.float64), 2, 0)
    if name == "torchvision":
        planes = [(red / 255 - 0.485) / 0.229, (green / 255 - 0.456) / 0.224, (blue / 255 - 0.406) / 0.225]
    else:
        planes = [blue - 103.939, green - 116.779, red - 123.68]
    return np.stack(planes)


@pytest.mark.parametrize("name", PREPROCESSINGS)
@given(SIZES)
def test_named_preprocessings_are_their_authors(name, shape):
    image = noise(*shape, 3)
    found = small(PREPROCESSINGS[name])(image)
    expected = normalised(cropped(resized(image, 16), 14), name)
    assert found.dtype == np.float32
    # rounding: float32 knows 7 digits, and the mean is subtracted from numbers up to 255 or 1
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * (255 if name == "caffe" else 4))


def test_full_size_is_256_to_224():
    image = noise(300, 451, 3)
    expected = normalised(cropped(resized(image, 256), 224), "caffe")
    np.testing.assert_allclose(CAFFE(image), expected, rtol=0, atol=3e-5)
    assert TORCHVISION(image).shape == (3, 224, 224)


@given(st.integers(1, 80), st.integers(1, 80))
def test_middle_is_torchvisions(length, size):
    row = np.arange(1, length + 1, dtype=np.uint16).reshape(1, length, 1).repeat(size, axis=0)
    expected = cropped(row, size)[0, :, 0]
    start = centre(length, size)
    found = [i + 1 if 0 <= i < length else 0 for i in range(start, start + size)]
    assert found == expected.tolist()


@pytest.mark.parametrize("name", PREPROCESSINGS)
@given(SIZES)
def test_whole_image_is_resized_and_not_cropped(name, shape):
    image, pre = noise(*shape, 3), small(PREPROCESSINGS[name])
    for side in (None, 20):
        expected = normalised(resized(image, side or 16), name)
        np.testing.assert_allclose(pre.whole(image, side), expected, rtol=0, atol=3e-4)
        assert pre.whole(image, side).shape == expected.shape
    framed = small(PREPROCESSINGS[name], size=24, resize=16)  # smaller than the network's input: a border
    expected = resized(image, 16)
    height, width = (max(24, length) for length in expected.shape[:2])
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = ((max(24, length) - length) // 2 for length in expected.shape[:2])
    canvas[top : top + expected.shape[0], left : left + expected.shape[1]] = expected
    np.testing.assert_allclose(framed.whole(image), normalised(canvas, name), rtol=0, atol=3e-4)


def test_whole_image_is_refused_where_the_network_would_take_gigabytes(monkeypatch):
    monkeypatch.setattr(preprocessing, "MAX_WHOLE", 16 * 40)
    pre = small(TORCHVISION)
    assert pre.whole(noise(10, 25, 3)).shape == (3, 16, 40)
    with pytest.raises(BadInput, match="41x16 pixels, after resizing, are more than 640"):
        pre.whole(noise(16, 41, 3))


@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_denormalise_gives_the_pixels_back(name):
    image = noise(14, 14, 3)
    pre = small(PREPROCESSINGS[name], resize=None)
    np.testing.assert_array_equal(pre.denormalise(pre(image)), image)


def test_a_shift_of_colour_is_red_green_blue_in_any_order_of_channels():
    image, shift = noise(14, 14, 3), np.array([0.1, -0.2, 0.3], np.float32)
    rgb, bgr = (small(named, resize=None).window(image, 0, 0, shift=shift) for named in (TORCHVISION, CAFFE))
    moved = image / 255 + shift
    np.testing.assert_allclose(rgb, normalised(moved * 255, "torchvision"), rtol=0, atol=4e-6)
    np.testing.assert_allclose(bgr, normalised(moved * 255, "caffe"), rtol=0, atol=1e-4)


def test_stored_and_read_again_also_from_before_there_was_caffe():
    for named in PREPROCESSINGS.values():
        assert Preprocessing.from_dict(json.loads(json.dumps(named.as_dict()))) == named
    old = TORCHVISION.as_dict()
    del old["white"], old["bgr"]
    assert Preprocessing.from_dict(old) == TORCHVISION


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"white": 0}, "white = 0: should be a number, above 0"),
        ({"channels": 1, "mean": (0,), "std": (1,), "bgr": True}, "bgr with 1 channels"),
    ],
)
def test_refusals(change, words):
    with pytest.raises(BadInput, match=words):
        replace(TORCHVISION, **change)


# ---- pictures of every kind ----


def test_transparent_is_white(tmp_path):
    rgba = noise(6, 5, 4)
    rgba[0, :, 3], rgba[1, :, 3] = 0, 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png", 3)
    alpha = rgba[..., 3:] / 255.0
    np.testing.assert_allclose(found, rgba[..., :3] * alpha + 255 * (1 - alpha), rtol=0, atol=1)
    assert (found[0] == 255).all()
    np.testing.assert_array_equal(found[1], rgba[1, :, :3])
    assert (read_image(tmp_path / "a.png", 1)[0] == 255).all()


def test_transparent_palette_and_grey(tmp_path):
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    picture.save(tmp_path / "a.gif", transparency=0)
    picture.save(tmp_path / "a.png", transparency=b"\x00\xff")
    for name in ("a.gif", "a.png"):
        found = read_image(tmp_path / name, 3)
        assert found[0, :2].tolist() == [[255, 255, 255], [200, 100, 50]], name
    Image.fromarray(np.array([[7, 99]], np.uint8)).save(tmp_path / "b.png", transparency=7)
    assert read_image(tmp_path / "b.png", 1).ravel().tolist() == [255, 99]


def test_sixteen_bits_of_colour_keep_their_high_byte(tmp_path):
    # Pillow writes no such file, so this is a PPM of two pixels by hand
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + bytes([0, 9, 128, 9, 255, 255, 1, 0, 2, 0, 3, 0]))
    assert read_image(tmp_path / "a.ppm", 3).tolist() == [[[0, 128, 255], [1, 2, 3]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_ordinary_mode_becomes_rgb_and_grey(mode, tmp_path):
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    Image.new("RGB", (5, 3), "white").convert(mode).save(path)
    for channels in (1, 3):
        found = read_image(path, channels)
        assert found.shape == (3, 5, channels)
        assert (found >= 254).all()


@pytest.mark.parametrize("shape", [(1, 300, 3), (300, 1, 3), (1, 1, 3), (2, 3, 1)])
def test_one_pixel_high_is_still_a_picture(shape, tmp_path):
    image = noise(*shape)
    Image.fromarray(image.squeeze(axis=2) if shape[2] == 1 else image).save(tmp_path / "a.png")
    x = TORCHVISION(read_image(tmp_path / "a.png", 3))
    assert x.shape == (3, 224, 224)
    assert np.isfinite(x).all()


def test_folder_and_pipe_are_no_pictures(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for path in (tmp_path, tmp_path / "pipe.jpg"):
        with pytest.raises(BadInput, match="not a file"):
            read_image(path, 3)
    with pytest.raises(BadInput, match=r"gone.png: .*: No such file or directory$"):
        read_image(tmp_path / "gone.png", 3)
