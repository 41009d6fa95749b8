"""From a picture to the array that a network sees, exactly as the network's weights expect it.

A network knows its training images by their scaling: `TORCHVISION` and `CAFFE` are the two that published VGG weights
were trained with, `fit` makes one from a training set. Both training and evaluation end in `Preprocessing.window`, so
they cannot disagree about scaling, mean or layout. What a mistake here costs: docs/using.md.
"""

import reprlib
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from minivgg.errors import BadInput, check_range
from minivgg.training.config import check_setting
from minivgg.training.datasets import Dataset
from minivgg.training.formats import MAX_PIXELS

MAX_WHOLE = 1 << 22  # a VGG keeps 512 bytes a pixel while its first two convolutions run
STATISTICS_SAMPLE = 2000


class Stored:
    """A dataclass that goes into a run's JSON and comes back equal."""

    def as_dict(self) -> dict:
        """The fields, in types that JSON has (tuples turn into lists on the way)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, stored: dict):
        """The object that `as_dict` described. Raises `BadInput` if fields are missing, unknown or of a wrong type."""
        try:
            return cls(**{key: _tuples(value) for key, value in stored.items()})
        except TypeError as error:
            raise BadInput(f"{cls.__name__}: {error}; it takes {', '.join(cls.__dataclass_fields__)}") from error


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Preprocessing(Stored):
    """Evaluation's pipeline: shorter side to `resize`, centre `size` x `size`, scale to 0-`white`, `(x - mean) / std`.

    `mean` and `std` are per channel (of colour images in the order red, green, blue), on the scale on which white is
    `white`: 1 or 255. With `bgr` the channels leave in the order blue, green, red. `resize=None` leaves the size as it
    is. Where the image is smaller than the crop it gets a border of zeros: with `resize=28` and `size=32` every picture
    ends up 28 pixels high or wide in the middle of 32 x 32. Resizing is Pillow's antialiased bilinear; it and the crop
    round as torchvision's `Resize` and `CenterCrop` do.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None
    white: float = 1.0
    bgr: bool = False

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.channels:
            found = f"{len(self.mean)} means and {len(self.std)} stds"
            raise BadInput(f"Preprocessing: {found} for {self.channels} channels; give one a channel")
        check_setting("channels", self.channels, "Preprocessing: ")
        check_setting("size", self.size, "Preprocessing: ")
        if self.resize is not None:
            check_setting("resize", self.resize, "Preprocessing: ")
        for mean, std in zip(self.mean, self.std, strict=True):
            check_range("Preprocessing: a mean", mean, -1e6, 1e6)
            check_range("Preprocessing: a std", std, 0, 1e6, low_open=True)
        check_range("Preprocessing: white", self.white, 0, 1e6, low_open=True)
        if not isinstance(self.bgr, bool):
            raise BadInput(f"Preprocessing: bgr = {reprlib.repr(self.bgr)}: should be True or False")
        if self.bgr and self.channels != 3:
            raise BadInput(f"Preprocessing: bgr with {self.channels} channels; it takes 3")

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W, C) -> float32 (C, size, size), written into `out` if that is given."""
        if self.resize:
            image = resize_shorter(image, self.resize)
        H, W = image.shape[:2]
        return self.window(image, centre(H, self.size), centre(W, self.size), out)

    def whole(self, image: np.ndarray, resize: int | None = None) -> np.ndarray:
        """uint8 (H, W, C) -> float32 (C, h, w): all of the image, its shorter side at `resize` (unless given, ours).

        A side that is shorter than `size` then gets a border of zeros, so that h and w are at least `size`. Raises
        `BadInput` for more than `MAX_WHOLE` pixels, for which a VGG would want gigabytes.
        """
        if resize or self.resize:
            image = resize_shorter(image, resize or self.resize)
        H, W, C = image.shape
        if H * W > MAX_WHOLE:
            raise BadInput(f"{W}x{H} pixels, after resizing, are more than {MAX_WHOLE}; crop the image first")
        h, w = max(H, self.size), max(W, self.size)
        return self.window(image, centre(H, h), centre(W, w), np.empty((C, h, w), np.float32))

    def window(self, image: np.ndarray, top: int, left: int, out: np.ndarray | None = None, shift=0.0) -> np.ndarray:
        """Rows from `top` and columns from `left` of uint8 (H, W, C), normalised: float32 (C, size, size), or as large
        as `out` is.

        What lies outside the image is zero (black) before it is normalised, so `top` and `left` may be negative.
        `shift` is added to each channel (red, green, blue), on the 0-1 scale. Raises `BadInput` if the image has
        another dtype or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels:
            raise BadInput(f"image is {image.dtype} {image.shape}; it should be uint8 (H, W, {self.channels})")
        if out is None:
            out = np.empty((self.channels, self.size, self.size), np.float32)
        height, width = out.shape[1:]
        part = image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
        h, w, _ = part.shape
        if h < height or w < width:
            out.fill(0)
        row, column = max(-top, 0), max(-left, 0)
        pixels = out[::-1] if self.bgr else out  # red, green, blue, wherever they lie
        pixels[:, row : row + h, column : column + w] = part.transpose(2, 0, 1)
        self.normalise(pixels, shift)
        return out

    def normalise(self, pixels: np.ndarray, shift=0.0) -> np.ndarray:
        """float32 (C, H, W) in 0-255 -> ((pixels / 255 + shift) * white - mean) / std, in place, and returned."""
        scale, mean, std = self._constants
        pixels *= scale
        pixels += ((shift * self.white - mean) / std)[:, None, None]
        return pixels

    def denormalise(self, x: np.ndarray) -> np.ndarray:
        """What the network sees, to be looked at: float32 (C, H, W), normalised -> uint8 (H, W, C), red first."""
        scale, mean, std = self._constants
        pixels = ((x[::-1] if self.bgr else x) + (mean / std)[:, None, None]) / scale
        return pixels.round().clip(0, 255).astype(np.uint8).transpose(1, 2, 0)

    @cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (self.white / (255 * std))[:, None, None], mean, std


# torchvision's and timm's weights. https://docs.pytorch.org/vision/stable/models.html
TORCHVISION = Preprocessing(3, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256)
# The VGG group's own weights, for Caffe, and Keras's, which are the same. "Namely, the following BGR values should be
# subtracted": https://gist.github.com/ksimonyan/211839e770f7b538e2d8
CAFFE = Preprocessing(3, 224, (123.68, 116.779, 103.939), (1.0, 1.0, 1.0), resize=256, white=255.0, bgr=True)

PREPROCESSINGS = {"torchvision": TORCHVISION, "caffe": CAFFE}


def centre(length: int, size: int) -> int:
    """Where a window of `size` begins in the middle of `length` pixels: negative in a shorter image. torchvision's
    rounding: of two middles a crop takes the even one, and a border has its larger half last."""
    return round((length - size) / 2) if length >= size else -((size - length) // 2)


def resize_shorter(image: np.ndarray, side: int) -> np.ndarray:
    """Resize uint8 (H, W, C) so that its shorter side is `side`, the longer in proportion (rounded down).

    Pillow's bilinear filter, which averages when it shrinks. An image that already fits comes back as it is. Raises
    `BadInput` for a strip so thin that the result would pass `MAX_PIXELS`.
    """
    H, W, C = image.shape
    shorter, longer = min(H, W), max(H, W)
    if shorter == side:
        return image
    length = int(side * longer / shorter)
    if side * length > MAX_PIXELS:
        raise BadInput(f"image of {W}x{H} pixels: with its shorter side at {side} it is {length} long; crop it first")
    width, height = (side, length) if W < H else (length, side)
    picture = Image.fromarray(image[..., 0] if C == 1 else image)
    return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR)).reshape(height, width, C)


def fit(dataset: Dataset, size: int, *, resize: int | None = None) -> Preprocessing:
    """The `Preprocessing` to `size` whose mean and std are those of `dataset`'s pixels; give it the training set.

    Raises `BadInput` if a channel is the same everywhere.
    """
    mean, covariance = pixel_moments(dataset)
    # Six decimals are plenty, read well in a run's JSON, and do not depend on the order in which BLAS sums.
    std = np.sqrt(np.maximum(np.diag(covariance), 0)).round(6)
    return Preprocessing(dataset.channels, size, tuple(mean.round(6).tolist()), tuple(std.tolist()), resize)


def pixel_moments(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean (C,) and covariance (C, C) of pixels on the 0-1 scale, float64, every image counting the same.

    Taken from at most 2,000 images, evenly spaced over the set, and at most about 512 rows of each.
    """
    if not len(dataset):
        raise BadInput(f"{dataset.name}: no images, so they have no mean")
    C = dataset.channels
    mean, square = np.zeros(C), np.zeros((C, C))
    sample = np.linspace(0, len(dataset) - 1, min(len(dataset), STATISTICS_SAMPLE)).astype(int)
    for index in sample:
        image = dataset.image(index)
        step = max(1, min(image.shape[:2]) // 256)
        pixels = image[::step, ::step].reshape(-1, C) / 255.0
        mean += pixels.mean(axis=0) / len(sample)
        square += pixels.T @ pixels / (len(pixels) * len(sample))
    return mean, square - np.outer(mean, mean)
