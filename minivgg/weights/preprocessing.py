"""What images do these weights want? A network fed BGR for RGB, or 0–1 for 0–255, fails without a sound.

What can be told, and how:
- **Oxford's first layer** and what was fine-tuned from it, in any order and scale: its 64 filters ship with minivgg.
  Channel by channel, the scale that fits them best leaves almost nothing in the right order, and half of the filters'
  norm in the wrong one, because some of them weigh blue against red.
- **The scale, with batch norm** after the first convolution: the running variances say how large its outputs were. Held
  against what the filters would make of an image whose neighbouring pixels are alike, they give the spread of the
  pixels that the network was trained on: about 1 if normalised, about 60 for bytes.

What cannot: the colour order of filters that are not Oxford's, since nothing says which way round an unknown filter
is; the scale without batch norm, since weights and biases look much the same at 0–1 and at 0–255 (a network adapts its
later layers, not its first); and which means were taken off. Then nothing is said.
"""

from functools import cache

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import BatchNorm2d, Conv2d, Layer
from minivgg.weights.sources import SOURCES

CAFFE_MEAN = (103.939, 116.779, 123.68)  # blue, green, red
TORCHVISION_MEAN, TORCHVISION_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # red, green, blue
INPUTS = {"torchvision": ("RGB", "0–1"), "caffe": ("BGR", "0–255")}

_KIN, _STRANGER = 0.3, 0.45  # of the filters' norm left over: at most, in the right order; at least, in the wrong one
_ALIKE = 0.95  # the correlation of neighbouring pixels in photographs; of two colours of one pixel, somewhat less
_COLOURS_ALIKE = 0.9


def check(model: Layer, loaded, expected: str) -> list[str]:
    """Notes, with the fix, where the weights among the names `loaded` want other images than `expected`, one of
    `INPUTS`, or "any", which asks nothing. Raises BadInput for another."""
    if expected not in (*INPUTS, "any"):
        raise BadInput(f'no input "{expected}"; there are {", ".join(INPUTS)} and any')
    leaves = [(name, layer) for name, layer in model.walk() if not layer.children()]
    name, first = next(((n, layer) for n, layer in leaves if isinstance(layer, Conv2d)), (None, None))
    if expected == "any" or first is None or f"{name}.weight" not in loaded or first.weight.data.shape[1] != 3:
        return []
    w = np.asarray(first.weight.data, np.float64)
    order, scale, reason = oxford(w)
    after = leaves[[n for n, _ in leaves].index(name) + 1 :][:1]
    if scale is None and after and isinstance(after[0][1], BatchNorm2d) and f"{after[0][0]}.running_var" in loaded:
        scale, reason = _by_batch_norm(w, np.asarray(after[0][1].running_var, np.float64))
    wants = (order or INPUTS[expected][0], scale or INPUTS[expected][1])
    if wants == INPUTS[expected]:
        return []
    return [f"{reason}: these weights take {' '.join(filter(None, (order, scale)))}; {_fix(wants, expected)}"]


def _fix(wants: tuple[str, str], expected: str) -> str:
    if expected == "torchvision":
        options = f"bgr={wants[0] == 'BGR'}, byte_range={wants[1] == '0–255'}"
        caffe = ', or feed it such images and say so by input="caffe"' if wants == INPUTS["caffe"] else ""
        return f"for RGB, 0–1, normalised: minivgg.weights.to_torchvision_input(model, {options}){caffe}"
    return f"feed it such images, not BGR 0–255 minus {CAFFE_MEAN}"


def oxford(w: np.ndarray) -> tuple[str | None, str | None, str]:
    """(order, scale, reason) of a first layer w (64, 3, 3, 3) that is Oxford's, or nearly; else (None, None, "")."""
    if w.shape != (64, 3, 3, 3):
        return None, None, ""
    reference = _reference()
    left, scales = zip(*(_fit(w, r) for r in (reference, reference[:, ::-1])), strict=True)
    best = int(np.argmin(left))
    if not (left[best] < _KIN and left[1 - best] > _STRANGER and scales[best].min() > 0):
        return None, None, ""
    size = float(np.exp(np.log(scales[best]).mean()))
    scale = "0–255" if 0.5 < size < 2 else "0–1" if 20 < size < 500 else None
    reason = f"the first layer is Oxford's ({left[best]:.0%} apart, {left[1 - best]:.0%} with colours swapped)"
    return ("BGR", "RGB")[best], scale, reason


def _fit(w: np.ndarray, reference: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of w's norm that the reference, each channel scaled as fits best, leaves; and the scales (C,)."""
    scales = (w * reference).sum((0, 2, 3)) / (reference**2).sum((0, 2, 3))
    rest = w - scales[:, None, None] * reference
    return float(np.linalg.norm(rest) / max(np.linalg.norm(w), 1e-30)), scales


@cache
def _reference() -> np.ndarray:
    with np.load(SOURCES["oxford"].path, allow_pickle=False) as file:
        return file["w0"].astype(np.float64)


def _by_batch_norm(w: np.ndarray, variance: np.ndarray) -> tuple[str | None, str]:
    """The scale of the pixels, from what the first layer's outputs were like: variance (O,)."""
    if np.ptp(variance) == 0 or not np.isfinite(variance).all():  # never trained
        return None, ""
    spread = pixel_spread(w, variance)
    scale = "0–255" if spread > 12 else "0–1" if spread < 5 else None
    return scale, f"the first batch norm has seen pixels that spread by {spread:.2g}"


def pixel_spread(w: np.ndarray, variance: np.ndarray) -> float:
    """The standard deviation of the pixels for which filters w (O, C, KH, KW) give outputs of this variance (O,).

    The pixels' covariance is taken to be σ²·0.95^distance, times 0.9 between colours; the median over the filters is
    within a factor of two of the truth for photographs, and what is to be told apart is a factor of 60.
    """
    C, KH, KW = w.shape[1:]
    c, y, x = (g.ravel() for g in np.meshgrid(range(C), range(KH), range(KW), indexing="ij"))
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    covariance = _ALIKE**distance * np.where(c[:, None] == c, 1, _COLOURS_ALIKE)
    flat = w.reshape(len(w), -1)
    unit = np.einsum("oi,ij,oj->o", flat, covariance, flat)
    return float(np.sqrt(np.median(variance / np.maximum(unit, 1e-30))))


def to_torchvision_input(model: Layer, *, bgr: bool = True, byte_range: bool = True) -> Layer:
    """Change the first convolution in place so that a network made for Caffe's images takes torchvision's; returns it.

    `bgr`: it took blue, green, red; `byte_range`: it took 0–255 minus `CAFFE_MEAN`. Now it takes red, green, blue, 0–1,
    minus `TORCHVISION_MEAN`, over `TORCHVISION_STD`. Since 255·(std·x + mean) is the byte, the filters are scaled by
    255·std and the biases take the difference of the means, up to half a grey level; that difference is not there in
    the border of zeros, so pixels at the image's edge differ by as much.
    """
    first = next((layer for _, layer in model.walk() if isinstance(layer, Conv2d)), None)
    if first is None or first.weight.data.shape[1] != 3:
        raise BadInput("to_torchvision_input: the network's first convolution does not take three colours")
    w = np.array(first.weight.data[:, ::-1] if bgr else first.weight.data, np.float64)
    if byte_range:
        mean, std = np.array(TORCHVISION_MEAN), np.array(TORCHVISION_STD)
        if first.bias:
            first.bias.data[...] += (w.sum((2, 3)) @ (255 * mean - CAFFE_MEAN[::-1])).astype(first.bias.data.dtype)
        w *= 255 * std[:, None, None]
    first.weight.data[...] = w
    return model
