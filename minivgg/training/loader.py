"""Batches, prepared in the background, that can be resumed anywhere.

The order of an epoch is a pure function of (seed, epoch), and what happens to batch i is a pure function of (seed,
epoch, i): no random state is carried along. So a run that stops after any batch and goes on with
`epoch(same epoch, start=next batch)` sees, bit for bit, what a run that never stopped would have seen.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minivgg.errors import BadInput, check_range
from minivgg.training.augmentation import Augmentation
from minivgg.training.config import check_setting
from minivgg.training.datasets import Dataset
from minivgg.training.preprocessing import Preprocessing


class Loader:
    """`for x, labels in loader.epoch(0)`: x float32 (N, C, size, size), labels int64 (N,).

    With `shuffle` (training), the last batch is left out when it is incomplete: batch norm and the gradient's scale
    would feel its size, and another shuffle picks other images to leave out. Without (evaluation), every image is seen.

    While the caller works on a batch, one thread makes the next `prefetch`: Pillow lets go of the interpreter for its
    heavy parts, and forked processes would not survive the threads of OpenMP. Memory: (prefetch + 1) batches of
    4 N C size**2 bytes; each is a fresh array, the caller's to keep.

    Raises `BadInput` if the parts do not fit one another.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        shuffle: bool = False,
        seed: int = 0,
        prefetch: int = 4,
    ):
        if dataset.channels != preprocessing.channels:
            found = f"{dataset.channels} channels, and preprocessing is for {preprocessing.channels}"
            raise BadInput(f"{dataset.name}: images have {found}; fit one to the other")
        if augmentation and augmentation.scale and augmentation.scale[0] < preprocessing.size:
            raise BadInput(f"scale {augmentation.scale} begins below the crop's size {preprocessing.size}; raise it")
        if augmentation and augmentation.colour and np.shape(augmentation.basis) != (dataset.channels,) * 2:
            raise BadInput(f"{dataset.name}: a colour basis of another number of channels than {dataset.channels}")
        check_setting("batch_size", batch_size, "Loader: ")
        check_setting("seed", seed, "Loader: ")
        check_range("Loader: prefetch", prefetch, 1, 1000, integer=True)
        if len(dataset) < (batch_size if shuffle else 1):
            raise BadInput(f"{dataset.name}: {len(dataset)} images do not fill a batch of {batch_size}; take fewer")
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.shuffle = shuffle
        self.seed = seed
        self.prefetch = prefetch

    def __len__(self) -> int:
        """Batches an epoch."""
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole if self.shuffle or not rest else whole + 1

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the images in the order of `epoch`: (len(dataset),) int64, a function of (seed, epoch) only."""
        if not self.shuffle:
            return np.arange(len(self.dataset))
        return self._rng(epoch).permutation(len(self.dataset))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Batches `start`, `start` + 1, ... of `epoch`. An error in the thread is raised here, at its batch.

        The thread ends with the iterator: when it is exhausted, closed or dropped (`break`, an exception).
        """
        if not 0 <= start <= len(self):
            raise BadInput(f"start {start}: {self.dataset.name} has batches 0 to {len(self) - 1} of {self.batch_size}")
        return self._batches(epoch, start)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        order = self.order(epoch)
        pending = deque()
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="minivgg-loader")
        try:
            for index in range(start, len(self)):
                pending.append(thread.submit(self._batch, order, epoch, index))
                if len(pending) > self.prefetch:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            thread.shutdown(cancel_futures=True)

    def _batch(self, order: np.ndarray, epoch: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
        size = self.preprocessing.size
        x = np.empty((len(chosen), self.preprocessing.channels, size, size), np.float32)
        rng = self._rng(epoch, index)
        for image, out in zip(chosen.tolist(), x, strict=True):
            if self.augmentation:
                self.augmentation(self.dataset.image(image), self.preprocessing, rng, out)
            else:
                self.preprocessing(self.dataset.image(image), out)
        return x, self.dataset.labels[chosen]

    def _rng(self, *place: int) -> np.random.Generator:
        """The generator that belongs to an epoch, or to a batch of one: streams of different places do not meet."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=place))
