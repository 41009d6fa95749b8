"""From a picture to the array that the network sees: `Preprocessing` always, `Augmentation` when training.

Both end in `Preprocessing.window`, so training and evaluation cannot disagree about scaling, mean or layout.
"""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from minivgg.errors import BadInput
from minivgg.training.datasets import Dataset
from minivgg.training.formats import MAX_PIXELS

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
    """Evaluation's pipeline: shorter side to `resize`, centre `size` x `size`, scale to 0-1, `(x - mean) / std`.

    `mean` and `std` are per channel, on the 0-1 scale. `resize=None` leaves the size as it is. Where the image is
    smaller than the crop it gets a border of zeros: with `resize=28` and `size=32` every picture ends up 28 pixels high
    or wide in the middle of 32 x 32. Resizing is Pillow's antialiased bilinear; it and the crop round as torchvision's
    `Resize` and `CenterCrop` do.
    """

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: int | None = None

    def __post_init__(self):
        if not len(self.mean) == len(self.std) == self.channels:
            found = f"{len(self.mean)} means and {len(self.std)} stds"
            raise BadInput(f"Preprocessing: {found} for {self.channels} channels; give one a channel")
        if self.size < 1:
            raise BadInput(f"Preprocessing: size {self.size}; it should be 1 or more")
        if not all(std > 0 for std in self.std):
            raise BadInput(f"Preprocessing: std {self.std}; each should be above 0")
        if self.resize is not None and self.resize < 1:
            raise BadInput(f"Preprocessing: resize {self.resize}; it should be 1 or more, or None")

    def __call__(self, image: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (H, W, C) -> float32 (C, size, size), written into `out` if that is given."""
        if self.resize:
            image = resize_shorter(image, self.resize)
        H, W = image.shape[:2]
        return self.window(image, round((H - self.size) / 2), round((W - self.size) / 2), out)

    def window(self, image: np.ndarray, top: int, left: int, out: np.ndarray | None = None, shift=0.0) -> np.ndarray:
        """Rows from `top` and columns from `left` of uint8 (H, W, C), normalised: float32 (C, size, size).

        What lies outside the image is zero (black) before it is normalised, so `top` and `left` may be negative.
        `shift` is added to each channel, on the 0-1 scale. Raises `BadInput` if the image has another dtype or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != self.channels:
            raise BadInput(f"image is {image.dtype} {image.shape}; it should be uint8 (H, W, {self.channels})")
        size = self.size
        if out is None:
            out = np.empty((self.channels, size, size), np.float32)
        part = image[max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)]
        h, w, _ = part.shape
        if h < size or w < size:
            out.fill(0)
        row, column = max(-top, 0), max(-left, 0)
        out[:, row : row + h, column : column + w] = part.transpose(2, 0, 1)
        return self.normalise(out, shift)

    def normalise(self, pixels: np.ndarray, shift=0.0) -> np.ndarray:
        """float32 (C, H, W) in 0-255 -> (pixels / 255 + shift - mean) / std, in place, and returned."""
        scale, mean, std = self._constants
        pixels *= scale
        pixels += ((shift - mean) / std)[:, None, None]
        return pixels

    @cached_property
    def _constants(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return (1 / (255 * std))[:, None, None], mean, std


@dataclass(frozen=True)
class Augmentation(Stored):
    """Random changes that keep the label, drawn anew for each image: the paper's, and a border for small images.

    - `scale=(low, high)`: the shorter side is resized to a whole number drawn from low to high, both included
      (Simonyan & Zisserman 2015, section 3.1: (256, 512)). `None`: to evaluation's `resize`, whatever that is.
    - the crop is drawn from every position inside the image, after `pad` more pixels of black on every side.
    - `flip`: left and right change places, every other time.
    - `colour`: (red, green, blue) += sum_i a_i lambda_i p_i, with a_i drawn from N(0, colour**2) for each image and
      p_i, lambda_i the eigenvectors and eigenvalues of the training pixels' covariance on the 0-1 scale: brightness and
      tint of the light (Krizhevsky, Sutskever & Hinton 2012, section 4.1: 0.1). `basis` is `colour_basis(train)`. With
      one channel only brightness is left.

    The defaults change nothing but the place of the crop.
    """

    scale: tuple[int, int] | None = None
    pad: int = 0
    flip: bool = False
    colour: float = 0.0
    basis: tuple[tuple[float, ...], ...] = ()

    def __post_init__(self):
        if self.scale is not None and not 1 <= self.scale[0] <= self.scale[1]:
            raise BadInput(f"Augmentation: scale {self.scale}; it should be (low, high) with 1 <= low <= high")
        if self.pad < 0:
            raise BadInput(f"Augmentation: pad {self.pad}; it should be 0 or more")
        if self.colour < 0:
            raise BadInput(f"Augmentation: colour {self.colour}; it should be 0 or more")
        if self.colour and not self.basis:
            raise BadInput("Augmentation: colour without a basis; give basis=colour_basis(train)")

    def __call__(
        self, image: np.ndarray, preprocessing: Preprocessing, rng: np.random.Generator, out: np.ndarray | None = None
    ) -> np.ndarray:
        """uint8 (H, W, C), any size -> float32 (C, size, size), written into `out` if that is given.

        Every call takes the same number of draws from `rng`, whatever the size of the image.
        """
        # One call for four uniform numbers: in a set of small images, drawing them singly is most of the work.
        side, y, x, mirror = rng.random(4).tolist()
        shift = self._basis @ rng.standard_normal(preprocessing.channels, np.float32) if self.colour else 0.0
        if self.scale:
            low, high = self.scale
            image = resize_shorter(image, low + int(side * (high - low + 1)))
        elif preprocessing.resize:
            image = resize_shorter(image, preprocessing.resize)
        if self.flip and mirror < 0.5:
            image = image[:, ::-1]
        H, W = image.shape[:2]
        top = _position(y, H, preprocessing.size, self.pad)
        left = _position(x, W, preprocessing.size, self.pad)
        return preprocessing.window(image, top, left, out, shift)

    @cached_property
    def _basis(self) -> np.ndarray:
        return self.colour * np.array(self.basis, np.float32)


def _position(u: float, length: int, size: int, pad: int) -> int:
    """A window's start for u in [0, 1): anywhere in a longer image, centred on a shorter one, `pad` more each way."""
    centre = round((length - size) / 2)
    first, last = min(0, centre) - pad, max(centre, length - size) + pad
    return first + int(u * (last - first + 1))


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


def colour_basis(dataset: Dataset) -> tuple[tuple[float, ...], ...]:
    """C rows of C numbers: column i is lambda_i p_i, for eigenvalue lambda_i (largest first) and unit eigenvector p_i
    of the covariance of `dataset`'s pixels on the 0-1 scale (Krizhevsky, Sutskever & Hinton 2012, section 4.1).

    An eigenvector's sign is arbitrary; here its largest entry is positive, so that one seed gives one result anywhere.
    """
    values, vectors = np.linalg.eigh(pixel_moments(dataset)[1])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    columns = vectors * np.sign(largest) * values
    return tuple(map(tuple, columns[:, ::-1].round(6).tolist()))


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
