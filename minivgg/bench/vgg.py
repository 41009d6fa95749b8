"""VGG-16 as a whole: forward passes and training steps, ours beside PyTorch's."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from minivgg.backends.array import channels_last
from minivgg.bench import pytorch
from minivgg.bench.race import Worker, check
from minivgg.bench.record import race, recorded, worker_for
from minivgg.errors import BadInput
from minivgg.insight.ledger import Ledger, ledger
from minivgg.layers import Layer, Sequential
from minivgg.models import build
from minivgg.ops.conv2d import ALGORITHMS
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.progress import tqdm
from minivgg.training.optim import SGD

RATE = 1e-4  # of learning: it only has to move the weights without sending them to infinity


@dataclass(frozen=True)
class Task:
    """What a heat is about: a "forward" or a "step" of training, on `batch` images of size × size pixels."""

    what: str
    size: int
    batch: int
    classes: int = 1000
    width: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.what}-{self.size}-{self.batch}"

    def model(self, **options) -> Sequential:
        """The network: VGG-16, scaled by `width`."""
        hidden = max(1, round(4096 * self.width))
        shape = {"input_size": self.size, "classes": self.classes, "width": self.width, "classifier_width": hidden}
        return build("vgg16", **shape, **options)

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Images (N, 3, size, size), float32, channels last, and their labels (N,): always the same."""
        rng = np.random.default_rng(0)
        images = rng.standard_normal((self.batch, 3, self.size, self.size), np.float32)
        return channels_last(images), rng.integers(self.classes, size=self.batch)


TASKS = (
    Task("forward", 224, 8),
    Task("forward", 224, 1),
    Task("step", 224, 8),
    Task("forward", 32, 1, classes=10),
    Task("step", 32, 128, classes=10),
)
QUICK = (Task("forward", 32, 2, classes=10, width=0.125), Task("step", 32, 2, classes=10, width=0.125))


def ours(task: Task, *, algorithm: str = "auto", frozen: bool = False) -> Callable:
    """Prepare a task of minivgg → scores (N, classes), or the loss before the step."""
    model, (x, labels) = task.model(algorithm=algorithm), task.data()
    if task.what == "forward":
        return partial(model.freeze().forward if frozen else model.forward, x)
    optimizer = SGD(model.named_params())

    def step():
        model.zero_grad()
        loss, cache = softmax_cross_entropy_forward(model.forward(x, train=True), labels)
        model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
        optimizer.step(RATE)
        return float(loss)

    return step


def theirs(task: Task, **options) -> Callable:
    """Prepare a task of PyTorch: the same network, weights and data, the same answer."""
    x, labels = task.data()
    if task.what == "forward":
        return pytorch.inference(task.model(), x, **options)
    return pytorch.training(task.model(), x, labels, RATE, **options)


def contestants(what: str) -> dict[str, Callable]:
    """Name → what prepares a task, for "forward" or "step", as far as this installation has it."""
    entries = {"minivgg": ours}
    if "direct" in ALGORITHMS:
        entries["minivgg direct"] = partial(ours, algorithm="direct")
    if what == "forward" and hasattr(Layer, "freeze"):
        entries["minivgg frozen"] = partial(ours, frozen=True)
    if pytorch.installed():
        entries["PyTorch NCHW"] = partial(theirs, channels_last=False)
        entries["PyTorch channels last"] = partial(theirs, channels_last=True)
        entries["PyTorch compiled"] = partial(theirs, channels_last=True, compiled=True)
    return entries


def run(
    *,
    machine: dict,
    threads: int,
    samples: int = 9,
    turn: float = 1.0,
    seconds: float = 60,
    tasks: tuple[Task, ...] = TASKS,
    progress: bool = True,
) -> dict:
    """Race `contestants` on each of `tasks`; returns the record.

    Each contestant gives `samples` samples, `turn` seconds each, or fewer if those take more than `seconds`. All
    networks of a heat are in memory together: about 3 GB for each contestant of a training step at 224 pixels. Raises
    BadInput for settings that make no race.
    """
    check(samples, seconds, threads)
    settings = {"threads": threads, "samples": samples, "turn": turn, "seconds": seconds}

    def run_heats(limits: dict) -> list[dict]:
        with tqdm(tasks, "racing", disable=not progress, unit="heat") as bar:
            return [
                {"task": task.name, **asdict(task)} | _row(task, limits, settings, _teller(bar, task)) for task in bar
            ]

    return recorded("vgg", machine, settings, run_heats)


def _row(task: Task, limits: dict, settings: dict, tell) -> dict:
    """One heat. Its contestants have processes of their own, so that none inherits the memory of the heat before."""
    book = ledger(task.model(init="zeros"), (task.batch, 3, task.size, task.size))
    threads = settings["threads"]
    with ExitStack() as stack:
        return race(
            {
                name: (stack.enter_context(worker_for(name, threads)), partial(make, task))
                for name, make in contestants(task.what).items()
            },
            stack.enter_context(Worker(threads)),
            **needs(task, book),
            limits=limits,
            reference=scores(task) if task.what == "forward" else None,
            **{name: settings[name] for name in ("samples", "turn", "seconds")},
            progress=tell,
        )


def _teller(bar, task: Task) -> Callable[[str], None]:
    return lambda doing: bar.set_postfix_str(f"{task.name}: {doing}")


def choose(names: list[str], tasks: tuple[Task, ...] = TASKS) -> tuple[Task, ...]:
    """Those of `tasks` that have these names. Raises BadInput for one that is not there."""
    known = {task.name: task for task in tasks}
    for name in names:
        if name not in known:
            raise BadInput(f'no task "{name}"; there are {", ".join(known)}')
    return tuple(known[name] for name in names)


def needs(task: Task, book: Ledger) -> dict[str, int]:
    """FLOP and bytes that a task cannot do without.

    A step has two products for each one of a forward, but the first layer's input has no gradient. Bytes are those of
    the weights alone: a forward reads them once; a step reads them going forward and going back, writes their
    gradients, reads weights, gradients and momenta, and writes weights and momenta: eight times.
    """
    if task.what == "forward":
        return {"flop": 2 * book.macs, "nbytes": 4 * book.parameters}
    first = next(row.macs for row in book.rows if row.macs)
    return {"flop": 2 * (3 * book.macs - first), "nbytes": 8 * 4 * book.parameters}


def scores(task: Task, images: int | None = None) -> np.ndarray:
    """What a forward should compute, in float64, for the first `images` (None: all)."""
    return task.model(algorithm="im2col").astype(np.float64).forward(task.data()[0][:images].astype(np.float64))
