"""The training loop: batches through the network, gradients back, a step of the optimiser, and nothing hidden.

A `Trainer` stands at an exact place (epoch, batch) and can be saved and restored there: the data order, the
augmentation and the dropout masks are functions of that place, so that a resumed run is the run that never stopped,
bit for bit.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from minivgg.backends.array import to, to_cpu, xp_of
from minivgg.backends.graph import between, recording
from minivgg.errors import BadInput, check_range
from minivgg.layers import Dropout, Layer, auxiliary_loss_backward, auxiliary_loss_forward, walk_forward
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.progress import tqdm
from minivgg.training.checkpoints import select
from minivgg.training.config import check_setting
from minivgg.training.graph import RecordedStep, check_graphs
from minivgg.training.loader import Loader
from minivgg.training.optim import Optimizer, clip_gradients
from minivgg.training.schedules import Schedule

ROW = ("epoch", "lr", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds", "images_per_second")
LOOK = 50  # steps between two looks at what a GPU has done


class Diverged(BadInput):
    """The loss stopped being a number. The message says where that began."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, after the run has been saved."""


@dataclass
class Evaluation:
    """How a network does on a set: mean loss, accuracy in [0, 1], scores (N, classes) and labels (N,)."""

    loss: float
    accuracy: float
    scores: np.ndarray
    labels: np.ndarray


def evaluate(model: Layer, loader: Loader, progress: bool = False, device: str = "cpu") -> Evaluation:
    """Run `model`, which is on `device`, over every batch of `loader`, at test time."""
    scores, labels = [], []
    for x, y in tqdm(loader.epoch(0), "testing", len(loader), leave=False, disable=not progress, unit="batch"):
        scores.append(model.forward(to(x, device)))
        labels.append(y)
    scores, labels = np.concatenate([*map(to_cpu, scores)]), np.concatenate(labels)
    loss, _ = softmax_cross_entropy_forward(scores, labels)
    return Evaluation(float(loss), float((scores.argmax(axis=1) == labels).mean()), scores, labels)


@dataclass
class Trainer:
    """A network in training, on `device`. `lr` is the peak rate, which `schedule` scales; `history` has a row an epoch.

    With `graphs`, a step on a GPU is recorded, and then launched as a whole: see `training.graph`.

    A GPU is given its work ahead of time. Asking it for a number means to wait until it has done all of that, so the
    loss is looked at every `LOOK` steps only (on the CPU: each step), and may have been no number since the last time.
    """

    model: Layer
    train: Loader
    test: Loader
    optimizer: Optimizer
    schedule: Schedule
    lr: float
    epochs: int
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    device: str = "cpu"
    graphs: bool = False
    epoch: int = 0
    batch: int = 0
    history: list[dict] = field(default_factory=list)
    _sums: dict[str, float] = field(default_factory=lambda: {"loss": 0.0, "correct": 0, "images": 0, "seconds": 0.0})

    def __post_init__(self):
        for name in ("lr", "epochs", "label_smoothing", *(["clip_norm"] if self.clip_norm is not None else [])):
            check_setting(name, getattr(self, name))
        check_graphs(self.graphs, self.device)
        self._step = RecordedStep(self._work, self.optimizer.params.values()) if self.graphs else self._work

    def step(self, x, labels) -> tuple[float, int]:
        """One step on a batch: forward, loss, backward, update. Returns (loss, how many were right), on a GPU as arrays
        there of one number.

        The losses of auxiliary heads, where the network has some, are followed too, but not in the loss returned, which
        is to be compared with that of a test. Raises Diverged if the loss is not finite: on the CPU before the update.
        """
        loss, correct = self._step(to(x, self.device), to(labels, self.device))
        return (float(loss), int(correct)) if self.device == "cpu" else (loss, correct)

    def _work(self, x, labels):
        """What a step does where the data is. It can be recorded: whatever the host has to say is said `between`."""
        with np.errstate(all="ignore"):  # numbers that are not finite are looked for, not warned about
            scores = self.model.forward(x, train=True)
            loss, cache = softmax_cross_entropy_forward(scores, labels, self.label_smoothing)
            heads_loss, heads_cache = auxiliary_loss_forward(self.model, labels, self.label_smoothing)
        between(self._look, loss, heads_loss, x)
        self.model.zero_grad()
        auxiliary_loss_backward(1, heads_cache)
        self.model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
        if self.clip_norm is not None:
            norm = clip_gradients(self.optimizer.params, self.clip_norm)
            if isinstance(norm, float) and not math.isfinite(norm):  # on a GPU the next loss says so
                raise Diverged(f"a gradient is not finite {self._where()}: that of {first_bad_gradient(self.model)}")
        self.optimizer.step(self._rate if recording() else self._rate())
        return loss.astype(np.float64), (scores.argmax(axis=1) == labels).sum()

    def _rate(self) -> float:
        return self.lr * self.schedule(self.epoch + (self.batch + 1) / len(self.train))

    def _look(self, loss, heads_loss, x) -> None:
        if self._looks() and not math.isfinite(total := float(loss + heads_loss)):
            raise Diverged(
                f"the loss is {total} {self._where()}: {first_bad(self.model, x)}; "
                f"try a learning rate below {self.lr}, a warm-up or gradient clipping"
            )

    def _where(self) -> str:
        return f"at epoch {self.epoch + 1}, batch {self.batch + 1}"

    def _looks(self) -> bool:
        """Whether this step may wait for its loss."""
        return self.device == "cpu" or self.batch % LOOK == 0 or self.batch + 1 == len(self.train)

    def fit(self, save: Callable[[], None] = lambda: None, *, save_minutes: float = 5, progress: bool = True) -> None:
        """Train up to the last epoch. `save()` is called after every epoch, and within one every `save_minutes`.

        Ctrl-C ends it after the step in hand: `save()` is called and Stopped raised. A second Ctrl-C does not wait.
        """
        check_range("save_minutes", save_minutes, 0, math.inf)
        with _interruptible() as interrupted:
            while self.epoch < self.epochs:
                last_save = time.monotonic()
                with _progress_bar(self, progress) as bar:
                    for x, labels in self.train.epoch(self.epoch, start=self.batch):
                        looks = self._looks()
                        self._count(x, labels)
                        if looks:
                            bar.set_postfix_str(self._summary(), refresh=False)
                        bar.update()
                        if interrupted.is_set() and self.batch < len(self.train):
                            save()
                            raise Stopped
                        if time.monotonic() - last_save > 60 * save_minutes:
                            save()
                            last_save = time.monotonic()
                    self._end_epoch(bar, progress)
                save()
                if interrupted.is_set():
                    raise Stopped

    def _count(self, x, labels) -> None:
        began = time.perf_counter()
        loss, correct = self.step(x, labels)
        self.batch += 1
        elapsed = time.perf_counter() - began
        for name, value in {"loss": loss * len(x), "correct": correct, "images": len(x), "seconds": elapsed}.items():
            self._sums[name] += value

    def _end_epoch(self, bar: tqdm, progress: bool) -> None:
        for name, p in self.model.named_params().items():  # what the last step has done, no loss has seen
            if not xp_of(p.data).isfinite(p.data).all():
                advice = f"try a learning rate below {self.lr}"
                raise Diverged(f"{name} holds values that are not finite after epoch {self.epoch + 1}; {advice}")
        result = evaluate(self.model, self.test, progress, self.device)
        sums = self._numbers()
        n, seconds = sums["images"], sums["seconds"]
        rate, train = self.lr * self.schedule(self.epoch + 1), (sums["loss"] / n, sums["correct"] / n)
        speed = round(seconds, 3), round(n / seconds, 1)
        row = self.epoch + 1, rate, *train, result.loss, result.accuracy, *speed
        self.history.append(dict(zip(ROW, row, strict=True)))
        bar.set_postfix_str(f"{self._summary()}, test loss {result.loss:.3f}, test accuracy {result.accuracy:.2%}")
        self.schedule.observe(1 - result.accuracy)
        self.epoch, self.batch = self.epoch + 1, 0
        self._sums = dict.fromkeys(self._sums, 0)

    def _numbers(self) -> dict[str, float]:
        """The sums of this epoch as numbers, waiting for those that a GPU has still to add up."""
        return {name: value.item() if hasattr(value, "item") else value for name, value in self._sums.items()}

    def _summary(self) -> str:
        sums = self._numbers()
        n, speed = sums["images"], sums["images"] / max(sums["seconds"], 1e-9)
        return f"loss {sums['loss'] / n:.3f}, accuracy {sums['correct'] / n:.2%}, {speed:,.0f} images/s"

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything that a checkpoint must hold as arrays: the network's and the optimiser's."""
        model = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return model | {f"optimizer.{name}": to_cpu(value) for name, value in self.optimizer.state.items()}

    def place(self) -> dict:
        """Everything else that a checkpoint must hold, as JSON-able values."""
        calls = {name: layer.calls for name, layer in self.model.walk() if isinstance(layer, Dropout)}
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "optimizer_steps": self.optimizer.steps,
            "dropout_calls": calls,
            "schedule": self.schedule.state(),
            "sums": self._numbers(),
            "history": self.history,
        }

    def restore(self, arrays: dict[str, np.ndarray], place: dict) -> None:
        """Stand where `arrays()` and `place()` were taken. Raises BadInput where they belong to another training:
        then this one is not to be used."""
        dropouts = {name: layer for name, layer in self.model.walk() if isinstance(layer, Dropout)}
        try:
            epoch, batch, steps, sums = (place[name] for name in ("epoch", "batch", "optimizer_steps", "sums"))
            calls, history = place["dropout_calls"], place["history"]
            check_range("epoch", epoch, 0, self.epochs, integer=True)
            check_range("batch", batch, 0, len(self.train) if epoch < self.epochs else 0, integer=True)
            for name, count in {"optimizer_steps": steps, **{name: calls[name] for name in dropouts}}.items():
                check_range(name, count, 0, 2**63, integer=True)
            _check_numbers("sums", sums, self._sums)
            if sums["images"] != batch * self.train.batch_size or len(history) != epoch:
                raise BadInput(f"its sums or history are not those of epoch {epoch + 1}, batch {batch + 1}")
            for row in history:
                _check_numbers("history", row, ROW)
            dtypes = {p.data.dtype for p in self.model.named_params().values()}
            if foreign := [name for name, value in arrays.items() if value.dtype not in dtypes]:
                raise BadInput(f"{foreign[0]} is of {arrays[foreign[0]].dtype}, the network of {min(dtypes, key=str)}")
            self.model.load_state_dict(select(arrays, "model."))
            self.optimizer.load_state(select(arrays, "optimizer."), steps)
            self.schedule.restore(place["schedule"])
        except KeyError as error:
            raise BadInput(f"the checkpoint lacks {error}: it belongs to another network") from None
        except (AttributeError, TypeError, ValueError) as error:
            raise BadInput(f"the checkpoint does not fit: {error}") from None
        for name, layer in dropouts.items():
            layer.calls = calls[name]
        self.epoch, self.batch, self._sums, self.history = epoch, batch, dict(sums), list(history)


def _check_numbers(what: str, found: dict, names) -> None:
    """Raise BadInput unless `found` holds a number for each of `names`, NaN being one, and nothing else."""
    numbers = {name for name, value in found.items() if type(value) in (int, float)}
    if not numbers == set(names) == set(found):
        raise BadInput(f"its {what} should be numbers called {', '.join(names)}")


def first_bad(model: Layer, x) -> str:
    """Where a forward of `x` (a training batch) first meets a number that is not finite, in words."""
    if not xp_of(x).isfinite(x).all():
        return "the input already holds values that are not finite"
    previous = ("the input", None)
    for name, layer, inputs in walk_forward(model, x, train=True):
        if not xp_of(inputs).isfinite(inputs).all():
            break
        weights = [key for key, p in layer.named_params().items() if not xp_of(p.data).isfinite(p.data).all()]
        if weights:
            return f"{name}.{weights[0]} ({layer}) holds values that are not finite"
        previous = (name, layer)
    return f"the first output that is not finite is that of {previous[0]} ({previous[1]})"


def first_bad_gradient(model: Layer) -> str:
    """The first parameter, as the backward went, whose gradient holds numbers that are not finite."""
    bad = [name for name, p in model.named_params().items() if p.grad is not None and not np.isfinite(p.grad).all()]
    return bad[-1] if bad else "all together"


def _progress_bar(trainer: Trainer, progress: bool) -> tqdm:
    digits = len(str(trainer.epochs))
    return tqdm(
        desc=f"epoch {trainer.epoch + 1:{digits}}/{trainer.epochs}",
        total=len(trainer.train),
        initial=trainer.batch,
        disable=not progress,
        unit="batch",
        bar_format="{desc} {percentage:3.0f}% |{bar:20}| {elapsed}<{remaining}{postfix}",
    )


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets instead of raising in the middle of a step; a second Ctrl-C raises as usual."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def note(signum, frame):
        interrupted.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
