"""A training step as CUDA graphs: recorded once, and then launched as a whole. For `minivgg train --graphs`."""

import warnings
from collections.abc import Callable, Iterable

from minivgg.backends.array import empty_like
from minivgg.backends.graph import Recording
from minivgg.errors import BadInput
from minivgg.layers import Param

WARM_UP = 2  # steps before the recording: the first compiles kernels and makes what is kept, the second nothing new


class RecordedStep:
    """`work(x, labels) -> (loss, correct)`, arrays on a GPU: the same bits, with little for the host to do.

    Once `WARM_UP` batches of one shape have come, one after another, the step is recorded for that shape, and replayed
    for each further batch of it; others are worked on as they would be without. So are all, where recording fails: that
    is said once, with the reason. Nothing has run then, and nothing is lost.

    After a replay, the gradients are in `params`, as always. Memory: that of a step, reserved, and a batch.
    """

    def __init__(self, work: Callable, params: Iterable[Param]):
        self._work, self._params = work, list(params)
        self._shape, self._warm = None, 0
        self._recording: Recording | bool | None = None  # None before it was tried, False where it failed

    def __call__(self, x, labels):
        shape = x.shape, x.dtype, labels.shape, labels.dtype
        if self._recording is None:
            if self._warm == WARM_UP and shape == self._shape:
                self._recording = self._record(x, labels)
            self._warm = self._warm + 1 if shape == self._shape else 1
            self._shape = shape
        if not self._recording or shape != self._shape:
            return self._work(x, labels)
        self._x[...], self._labels[...] = x, labels
        for p, grad in zip(self._params, self._grads, strict=True):
            p.grad = grad
        self._recording.replay()
        return tuple(result.copy() for result in self._recording.result)  # the next replay writes there

    def _record(self, x, labels) -> Recording | bool:
        self._x, self._labels = empty_like(x), empty_like(labels)
        try:
            recording = Recording(lambda: self._work(self._x, self._labels))
        except Exception as error:  # of any kind: the step goes on, and meets what has nothing to do with graphs again
            said = f"the step runs without CUDA graphs, because it could not be recorded: {error}"
            warnings.warn(said, RuntimeWarning, stacklevel=2)
            return False
        self._grads = [p.grad for p in self._params]
        return recording


def check_graphs(graphs: bool, device: str) -> None:
    """Raise BadInput where CUDA graphs are wanted on a device that has none."""
    if graphs and device != "gpu":
        why = {"cpu": "a CPU launches nothing", "sim": "the simulator runs a launch at once, and records none"}
        raise BadInput(f"CUDA graphs need device gpu, got {device}: {why.get(device, 'no such device')}")
