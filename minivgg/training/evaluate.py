"""The paper's evaluation: several looks at each image, and the mean of what the network thinks of them.

    paper = Protocol(dense=True, flip=True, scales=(256, 384, 512))
    errors = evaluate(Evaluator(model, TORCHVISION, paper), dataset)

Simonyan & Zisserman 2015, §3.2 and §4. A *way* of looking is `centre`, one crop; `dense`, the network slid over all of
the image as convolutions, its map of scores averaged; or `crops`, 5 × 5 of them spread over the image and their mirror
images. A look ends in the softmax's probabilities (posteriors), and it is these that are averaged over mirror images,
crops, scales and, last, ways.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from minivgg.errors import BadInput
from minivgg.layers import Sequential
from minivgg.ops.softmax_cross_entropy import softmax_forward
from minivgg.progress import tqdm
from minivgg.training.config import check_setting
from minivgg.training.datasets import Dataset
from minivgg.training.preprocessing import Preprocessing, centre

GRID = 5

Row = tuple[str, tuple[int, ...]]  # way or ways, scales
Look = tuple[Row, np.ndarray]


@dataclass(frozen=True)
class Protocol:
    """Which looks are taken: `dense` ones, `crops` (50 a scale), both, or else one at the centre.

    `flip` adds mirror images to the centre and to dense ones; crops have theirs anyway. `scales` are the lengths that
    the shorter side is resized to; none means the preprocessing's own.
    """

    dense: bool = False
    crops: bool = False
    flip: bool = False
    scales: tuple[int, ...] = ()

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways of looking, by name."""
        return tuple(way for way in ("dense", "crops") if getattr(self, way)) or ("centre",)

    def looks(self, way: str) -> int:
        """How many looks a way takes at each image and scale."""
        return 2 * GRID**2 if way == "crops" else 1 + self.flip


class Evaluator:
    """A network, ready to look at images as `protocol` says.

    Raises BadInput for scales below the network's input size, or a network that cannot be evaluated densely.
    """

    def __init__(self, model: Sequential, preprocessing: Preprocessing, protocol: Protocol, batch_size: int = 16):
        self.preprocessing, self.protocol, self.batch_size = preprocessing, protocol, batch_size
        self.scales = protocol.scales or (preprocessing.resize or preprocessing.size,)
        least = min(preprocessing.size, preprocessing.resize or preprocessing.size)
        if min(self.scales) < least:
            raise BadInput(f"scale {min(self.scales)} is below the network's input of {least} pixels; take {least} up")
        if len(set(self.scales)) < len(self.scales):
            raise BadInput(f"scales {', '.join(map(str, self.scales))}: one is there twice")
        check_setting("batch_size", batch_size)
        # on images of its own size the dense network says the same, but the ordinary one says it faster
        self._networks = {"centre": model.freeze()}
        if protocol.dense:
            self._networks["dense"] = model.fully_convolutional().freeze()

    @property
    def rows(self) -> list[Row]:
        """What is reported: each way at each scale, each way at all scales, all ways together."""
        ways, scales = self.protocol.ways, self.scales
        rows = [(way, (scale,)) for way in ways for scale in scales]
        rows += [(way, scales) for way in ways if len(scales) > 1]
        return rows + ([(" + ".join(ways), scales)] if len(ways) > 1 else [])

    def looks(self, row: Row) -> int:
        """How many looks at an image a row is the mean of."""
        return sum(self.protocol.looks(way) for way in row[0].split(" + ")) * len(row[1])

    def views(self, image: np.ndarray) -> Iterator[Look]:
        """Every look at an image, uint8 (H, W, C): (way, (scale,)) and what the network sees, float32 (C, h, w)."""
        size = self.preprocessing.size
        for scale in self.scales:
            whole = self.preprocessing.whole(image, scale)
            _, h, w = whole.shape
            for way in self.protocol.ways:
                if way == "dense":
                    seen = [whole]
                else:
                    tops, lefts = (_spread(h, size), _spread(w, size)) if way == "crops" else _middle(h, w, size)
                    seen = [whole[:, y : y + size, x : x + size] for y in tops for x in lefts]
                if self.protocol.flip or way == "crops":
                    seen += [view[:, :, ::-1] for view in seen]
                yield from (((way, (scale,)), view) for view in seen)

    def posteriors(self, images: list[np.ndarray]) -> list[dict[Row, np.ndarray]]:
        """For each image (uint8 (H, W, C)) and each of `rows`, the mean of its looks' probabilities: float64 (K,)."""
        return self.average([list(self.views(image)) for image in images])

    def average(self, looks: list[list[Look]]) -> list[dict[Row, np.ndarray]]:
        """`posteriors` of images whose `views` have been taken already."""
        sums = [dict.fromkeys((row for row, _ in views), 0) for views in looks]
        flat = [(row, view, i) for i, views in enumerate(looks) for row, view in views]

        def alike(look):
            (way, _), view, _ = look
            return way == "dense", view.shape

        for (dense, shape), group in itertools.groupby(sorted(flat, key=alike), key=alike):
            # A large image is worth several of the network's own size, in memory as in time.
            at_once = max(1, self.batch_size * self.preprocessing.size**2 // (shape[1] * shape[2]))
            for rows, views, owners in _batches(group, at_once):
                scores = self._networks["dense" if dense else "centre"].forward(np.stack(views))
                scores = scores.mean(axis=(2, 3), dtype=np.float64) if dense else scores.astype(np.float64)
                if not np.isfinite(scores).all():
                    raise BadInput("the network's scores are not finite numbers: its weights are damaged")
                for row, i, p in zip(rows, owners, softmax_forward(scores)[0], strict=True):
                    sums[i][row] = sums[i][row] + p
        return [self._combined(parts) for parts in sums]

    def _combined(self, sums: dict[Row, np.ndarray]) -> dict[Row, np.ndarray]:
        """Means for all `rows`, from the sums of the looks of each way at each scale."""
        means = {row: p / self.protocol.looks(row[0]) for row, p in sums.items()}
        return {
            (ways, scales): np.mean([means[way, (s,)] for way in ways.split(" + ") for s in scales], axis=0)
            for ways, scales in self.rows
        }


def _spread(length: int, size: int) -> list[int]:
    """Where GRID windows of `size` begin, the first and the last at the ends of `length` pixels."""
    return [round(i * (length - size) / (GRID - 1)) for i in range(GRID)]


def _middle(h: int, w: int, size: int) -> tuple[list[int], list[int]]:
    return [centre(h, size)], [centre(w, size)]


def _batches(looks, size: int):
    """(rows, views, owners) of up to `size` looks at a time."""
    looks = iter(looks)
    while batch := list(itertools.islice(looks, size)):
        yield tuple(zip(*batch, strict=True))


@dataclass(frozen=True)
class Errors:
    """How often a network is wrong. For each row, `ranks` (N,) says how many classes came before the true one."""

    ranks: dict[Row, np.ndarray]

    def top(self, k: int, row: Row) -> float:
        """The share of images whose true class is not among the `k` most probable."""
        return float((self.ranks[row] >= k).mean())


def rank(probabilities: np.ndarray, label: int) -> int:
    """How many of the probabilities (K,) come before `label`'s; of equal ones, the first class comes first."""
    p = probabilities[label]
    return int((probabilities > p).sum() + (probabilities[:label] == p).sum())


def evaluate(evaluator: Evaluator, dataset: Dataset, *, progress: bool = False) -> Errors:
    """Show every image of `dataset` to the network, a few at a time; while it looks, a thread reads the next ones.

    Raises BadInput, naming the image, for one that cannot be read or is too long and thin to be looked at whole.
    """
    looks = sum(evaluator.looks((way, evaluator.scales)) for way in evaluator.protocol.ways)
    chunk = max(1, evaluator.batch_size // looks)
    starts = range(0, len(dataset), chunk)
    ranks = {row: np.zeros(len(dataset), int) for row in evaluator.rows}

    def read(start: int) -> list[list[Look]]:
        return [_views(evaluator, dataset, i) for i in range(start, min(start + chunk, len(dataset)))]

    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minivgg-evaluate")
    bar = tqdm(total=len(dataset), desc="evaluating", unit="image", disable=not progress, leave=False)
    try:
        coming = thread.submit(read, 0)
        for start in starts:
            views = coming.result()
            coming = thread.submit(read, start + chunk)
            for i, posteriors in enumerate(evaluator.average(views), start):
                for row, p in posteriors.items():
                    ranks[row][i] = rank(p, dataset.labels[i])
            bar.update(len(views))
    finally:
        thread.shutdown(cancel_futures=True)
        bar.close()
    return Errors(ranks)


def _views(evaluator: Evaluator, dataset: Dataset, index: int) -> list[Look]:
    image = dataset.image(index)
    try:
        return list(evaluator.views(image))
    except BadInput as error:
        name = f"image {index}" if isinstance(dataset.images, np.ndarray) else dataset.images[index]
        raise BadInput(f"{name}: {error}") from error
