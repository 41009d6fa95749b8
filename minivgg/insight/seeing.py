"""Seeing what a network sees: each function takes a trained network and images, and returns arrays.

Images are what the network takes, normalised: x (N, C, H, W), or one image (C, H, W). Labels are class indices; where
none is given, it is the network's own answer. All run at test time (no dropout, batch norms by their averages), and
leave the network as it was. `insight.pictures` draws what they return.
"""

import itertools

import numpy as np
from PIL import Image

from minivgg.errors import BadInput
from minivgg.insight.watching import layer_called, watched
from minivgg.layers import BatchNorm2d, Conv2d, Layer, Linear, MaxPool2d, ReLU
from minivgg.ops.softmax_cross_entropy import softmax_forward
from minivgg.progress import tqdm


def first_filters(model: Layer) -> np.ndarray:
    """The filters of the first convolution, (O, C, KH, KW). Raises BadInput if there is none."""
    return _convolutions(model, "first-layer filters")[0][1].weight.data


def feature_maps(model: Layer, x: np.ndarray, layer: str | None = None) -> np.ndarray:
    """What `layer`, a dotted name such as `features.2`, gives for x (N, C, H, W): (N, channels, height, width).

    Default: the first convolution, with its batch norm and ReLU. Raises BadInput where the layer has no maps.
    """
    layer = layer or _activated(model, _convolutions(model, "feature maps")[0][0])
    y = _outputs(model, _batch(x), {layer})[layer]
    if y.ndim != 4:
        raise BadInput(f"{layer} ({layer_called(model, layer)}) has no feature maps: its output is {y.shape}")
    return y


def image_gradient(model: Layer, x: np.ndarray, label: int | None = None, *, guided: bool = False) -> np.ndarray:
    """∂ score of `label` / ∂ x for one image: (C, H, W), x's dtype. Cost: a forward and a backward.

    The score is that of before the softmax. `guided` lets through each ReLU only what is positive both ways, which
    makes sharper pictures and is no gradient any more (Springenberg et al. 2015, Striving for Simplicity, §3.4).
    """
    x = _one(x)

    def positive(_, layer, dy):
        return np.maximum(dy, 0) if isinstance(layer, ReLU) else None

    with watched(model, gradient=positive if guided else None):
        dx = model.backward(_one_hot(model.forward(x, keep=True), label))
    return dx[0]


def saliency(model: Layer, x: np.ndarray, label: int | None = None, *, guided: bool = False) -> np.ndarray:
    """How much each pixel of one image matters for the score of `label`: (H, W), not negative.

    The largest |∂ score / ∂ x| of the pixel's channels. Simonyan, Vedaldi & Zisserman 2013, Deep Inside Convolutional
    Networks, §3.1.
    """
    return np.abs(image_gradient(model, x, label, guided=guided)).max(axis=0)


def grad_cam(model: Layer, x: np.ndarray, label: int | None = None, layer: str | None = None) -> np.ndarray:
    """Where in one image the network sees `label`: (H, W) float32 in 0…1, largest value 1 unless all is zero.

    With maps A_k of `layer` and α_k the mean over pixels of ∂ score / ∂ A_k: max(0, Σ_k α_k A_k), scaled to 1 and
    enlarged to the image's size by bilinear interpolation. Selvaraju et al. 2017, Grad-CAM, eq. 1 and 2. Default
    layer: the last convolution, with its batch norm and ReLU. Raises BadInput where the layer has no maps.
    """
    return scaled(grad_cam_maps(model, x, label, [layer or default_layer(model)])[0], x.shape[-2:])


def grad_cam_maps(model: Layer, x: np.ndarray, label: int | None, layers: list[str]) -> list[np.ndarray]:
    """max(0, Σ_k α_k A_k) at each of `layers`, at the layer's own resolution and scale. One forward and backward."""
    for name in layers:
        layer_called(model, name)
    maps, gradients = {}, {}

    def see(name, _, y):
        if name in layers:
            maps[name] = y

    def reach(name, _, dy):
        if name in layers:
            gradients[name] = dy.copy()

    with watched(model, see, reach):
        model.backward(_one_hot(model.forward(_one(x), keep=True), label))
    result = []
    for name in layers:
        if maps[name].ndim != 4:
            raise BadInput(f"Grad-CAM needs feature maps; {name} ({layer_called(model, name)}) has none")
        alpha = gradients[name][0].mean(axis=(1, 2))
        result.append(np.maximum(np.tensordot(alpha, maps[name][0], axes=1), 0))
    return result


def default_layer(model: Layer) -> str:
    """The name of the last convolution, or of the batch norm or ReLU that follows it. BadInput if there is none."""
    return _activated(model, _convolutions(model, "Grad-CAM")[-1][0])


def stage_layers(model: Layer) -> list[str]:
    """The name of the last activation of each stage: what each max-pool sees, and `default_layer`."""
    last, found = default_layer(model), []
    names = [(name, layer) for name, layer in model.walk() if not layer.children()]
    for (before, _), (_, layer) in itertools.pairwise(names):
        if isinstance(layer, MaxPool2d):
            found.append(before)
    return found if last in found else [*found, last]


def occlusion(
    model: Layer,
    x: np.ndarray,
    label: int | None = None,
    *,
    size: int,
    stride: int = 1,
    fill: float = 0.0,
    batch_size: int = 64,
    progress: bool = False,
) -> tuple[float, np.ndarray]:
    """The probability of `label` for one image, and while a square hides a part of it: (⌈H/stride⌉, ⌈W/stride⌉).

    Entry (i, j) is with a square of `size` pixels around the middle of the pixels [i·stride, (i + 1)·stride) ×
    [j·stride, (j + 1)·stride), cut at the border; so the map lies on the image as it is. The square has the value
    `fill`, of the normalised image: 0 is the mean colour. Zeiler & Fergus 2014, Visualizing and Understanding
    Convolutional Networks, §4.2. Cost: a forward for each entry, `batch_size` at once.
    """
    if size < 1 or stride < 1 or batch_size < 1:
        raise BadInput(f"occlusion: size {size}, stride {stride} and batch_size {batch_size} must be at least 1")
    x = _one(x)
    _, _, H, W = x.shape
    scores = model.forward(x)
    label = _label(scores, label)
    corners = [[(i * stride + stride // 2) - size // 2 for i in range(-(-length // stride))] for length in (H, W)]
    places = [(top, left) for top in corners[0] for left in corners[1]]
    found = []
    with tqdm(total=len(places), desc="occlusion", unit="image", leave=False, disable=not progress) as bar:
        for start in range(0, len(places), batch_size):
            chosen = places[start : start + batch_size]
            batch = np.repeat(x, len(chosen), axis=0)
            for image, (top, left) in zip(batch, chosen, strict=True):
                image[:, max(top, 0) : top + size, max(left, 0) : left + size] = fill
            found.append(softmax_forward(model.forward(batch))[0][:, label])
            bar.update(len(chosen))
    whole = float(softmax_forward(scores)[0][0, label])
    return whole, np.concatenate(found).reshape(len(corners[0]), len(corners[1]))


def features(
    model: Layer, x: np.ndarray, layer: str | None = None, *, batch_size: int = 64, progress: bool = False
) -> np.ndarray:
    """What `layer` gives for x (N, C, H, W), flattened: (N, F). Default: what the last linear layer sees (VGG's fc7).

    Raises BadInput if no layer is named and there is no linear layer.
    """
    named = [(name, leaf) for name, leaf in model.walk() if not leaf.children()]
    last = next((i for i in reversed(range(len(named))) if isinstance(named[i][1], Linear)), None)
    if layer is None and last in (None, 0):
        raise BadInput("features: this network has no layers before a linear one; name the layer to take")
    layer = layer or named[last - 1][0]
    layer_called(model, layer)
    x, found = _batch(x), []
    for start in tqdm(range(0, len(x), batch_size), "features", unit="batch", leave=False, disable=not progress):
        y = _outputs(model, x[start : start + batch_size], {layer})[layer]
        found.append(y.reshape(len(y), -1).copy())
    return np.concatenate(found)


def neighbours(queries: np.ndarray, gallery: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `gallery` (N, F) most like each of `queries` (M, F): indices and cosines, both (M, count).

    Best first; of two alike the earlier. A row of zeros is like nothing: cosine 0. Cost: M·N·F multiply-adds. Raises
    BadInput where the lengths differ or there are fewer than `count` rows.
    """
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise BadInput(f"neighbours: queries {queries.shape} and gallery {gallery.shape} must be (M, F) and (N, F)")
    if not 1 <= count <= len(gallery):
        raise BadInput(f"neighbours: count {count}; there are {len(gallery)} to choose from")
    cosines = _unit(queries) @ _unit(gallery).T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(cosines, order, axis=1)


def scaled(coarse: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) that is not negative at `size` (H, W), float32, by Pillow's bilinear interpolation, in 0…1.

    The largest value is 1 afterwards, unless all are zero.
    """
    image = Image.fromarray(np.ascontiguousarray(coarse / (coarse.max() or 1), np.float32))
    fine = np.array(image.resize(size[::-1], Image.Resampling.BILINEAR))
    return fine / (fine.max() or 1)


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one, in float64; zeros stay zeros."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def _batch(x: np.ndarray) -> np.ndarray:
    x = x[None] if x.ndim == 3 else x
    if x.ndim != 4:
        raise BadInput(f"images are (N, C, H, W) or (C, H, W), got {x.shape}")
    return x


def _one(x: np.ndarray) -> np.ndarray:
    x = _batch(x)
    if len(x) != 1:
        raise BadInput(f"one image at a time: (C, H, W) or (1, C, H, W), got {x.shape}")
    return x


def _label(scores: np.ndarray, label: int | None) -> int:
    if scores.ndim != 2:
        raise BadInput(f"this needs a network that gives scores (N, classes); its output is {scores.shape}")
    if label is not None and not 0 <= label < scores.shape[1]:
        raise BadInput(f"label {label}: classes are 0 to {scores.shape[1] - 1}")
    return int(scores[0].argmax()) if label is None else label


def _one_hot(scores: np.ndarray, label: int | None) -> np.ndarray:
    """The upstream gradient that picks the score of `label`."""
    dy = np.zeros_like(scores)
    dy[0, _label(scores, label)] = 1
    return dy


def _outputs(model: Layer, x: np.ndarray, names: set[str]) -> dict[str, np.ndarray]:
    """What the layers of these names give for x."""
    for name in names:
        layer_called(model, name)
    found = {}

    def see(name, _, y):
        if name in names:
            found[name] = y

    with watched(model, see):
        model.forward(x)
    return found


def _convolutions(model: Layer, what: str) -> list[tuple[str, Conv2d]]:
    found = [(name, layer) for name, layer in model.walk() if isinstance(layer, Conv2d)]
    if not found:
        raise BadInput(f"{what}: this network has no convolutions")
    return found


def _activated(model: Layer, name: str) -> str:
    """The last of the batch norms and ReLUs that follow the layer `name`, or itself."""
    names = [(key, layer) for key, layer in model.walk() if not layer.children()]
    place = [key for key, _ in names].index(name)
    while place + 1 < len(names) and isinstance(names[place + 1][1], BatchNorm2d | ReLU):
        place += 1
    return names[place][0]
