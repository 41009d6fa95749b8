"""Random changes to training images, drawn anew each time. What evaluation does to an image is `preprocessing`."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from minivgg.errors import BadInput
from minivgg.training.config import check_scale, check_setting
from minivgg.training.datasets import Dataset
from minivgg.training.preprocessing import Preprocessing, Stored, centre, pixel_moments, resize_shorter


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
        if self.scale is not None:
            check_scale(self.scale, "Augmentation: ")
        check_setting("pad", self.pad, "Augmentation: ")
        check_setting("colour", self.colour, "Augmentation: ")
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
    middle = centre(length, size)
    first, last = min(0, middle) - pad, max(middle, length - size) + pad
    return first + int(u * (last - first + 1))


def colour_basis(dataset: Dataset) -> tuple[tuple[float, ...], ...]:
    """C rows of C numbers: column i is lambda_i p_i, for eigenvalue lambda_i (largest first) and unit eigenvector p_i
    of the covariance of `dataset`'s pixels on the 0-1 scale (Krizhevsky, Sutskever & Hinton 2012, section 4.1).

    An eigenvector's sign is arbitrary; here its largest entry is positive, so that one seed gives one result anywhere.
    """
    values, vectors = np.linalg.eigh(pixel_moments(dataset)[1])
    largest = np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0)
    columns = vectors * np.sign(largest) * values
    return tuple(map(tuple, columns[:, ::-1].round(6).tolist()))
