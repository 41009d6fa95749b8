"""The doctor: one batch through a network that is about to train, forward and back, and what will come of it.

`examine` measures, `diagnose` says what that means and what helps, `try_initialisers` compares starts. What it rests
on: a layer with weights of standard deviation σ multiplies the root mean square (RMS) of what flows through it by about
σ·√(fan-in / 2), the ½ being ReLU's (He et al. 2015, Delving Deep into Rectifiers, §2.2). Thirteen such factors in a row
leave nothing, or leave no number, unless each is close to one. Gradients meet the same factors on their way back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minivgg.errors import BadInput
from minivgg.insight.watching import watched
from minivgg.layers import BatchNorm2d, Conv2d, Dropout, Layer, Linear, ReLU, Sigmoid
from minivgg.models.roles import roles
from minivgg.ops.softmax_cross_entropy import softmax_cross_entropy_backward, softmax_cross_entropy_forward
from minivgg.progress import tqdm

# Shares of a layer's weights that one step of plain gradient descent changes. About 1e-3 is healthy (Karpathy, CS231n,
# Neural Networks 3, "Ratio of weights:updates"). Momentum 0.9 makes ten of each: below TOO_SMALL ten thousand steps
# change a tenth of a weight, above HOPELESS a step leaves nothing of it. TOO_LARGE was measured, on rates that train
# and rates that do not (docs/doctor.md); after a warm-up of an epoch or more a net bears WARM times as much.
TOO_SMALL, TOO_LARGE, WARM, HOPELESS = 1e-6, 2.5e-3, 3.0, 1e-1
# Before a batch norm the length of a filter means nothing: y is the same for 2·w. A step is at right angles to w, so
# that a large one makes w longer, and the next one smaller beside it (van Laarhoven 2017, L2 Regularization versus
# Batch and Weight Normalization, §2). Only a step that is longer than w itself is too much.
TOO_LARGE_BEFORE_A_NORM = 1.0
RATE = "the learning rate is too large"
LOUD = 10.0  # RMS of scores from which softmax has made up its mind before it has seen anything: e¹⁰ = 22,000 to 1
RAW = 10.0  # RMS of an input that nobody has normalised: 0–255 has about 100, normalised images have 1


@dataclass(frozen=True)
class Row:
    """A layer with weights, together with its batch norm and ReLU: what comes out of it, and what comes back.

    `mean`, `spread` (standard deviation), `rms`: of the activations. `zero`: the share of them that is 0; `dead`: the
    share of channels or units that are 0 for the whole batch. `gradient`: RMS of ∂ loss / ∂ activation. `update`: RMS
    of ∂ loss / ∂ weight, times the learning rate, divided by `weight`, the RMS of the weight; `he` is what that would
    be by He's formula. `normalised`: whether a batch norm follows.
    """

    name: str
    layer: str
    mean: float
    spread: float
    rms: float
    zero: float
    dead: float
    gradient: float
    update: float
    weight: float
    he: float
    normalised: bool


@dataclass(frozen=True)
class Checkup:
    """What `examine` measured. `differ`: the standard deviation over images of a class's probability, at most. `lr` and
    `warmup` are the peak learning rate, and the epochs over which it is reached."""

    rows: list[Row]
    input_mean: float
    input_rms: float
    loss: float
    classes: int
    differ: float
    lr: float
    warmup: float = 1.0

    @property
    def hidden(self) -> list[Row]:
        """All rows but the scores' own."""
        return self.rows[:-1]

    @property
    def scores(self) -> float:
        """RMS of the scores."""
        return self.rows[-1].rms

    @property
    def factor(self) -> float:
        """By how much a hidden layer multiplies the RMS, as a geometric mean; 1 if there is no hidden layer."""
        if not self.hidden or self.input_rms == 0:
            return 1.0
        return (self.hidden[-1].rms / self.input_rms) ** (1 / len(self.hidden))

    @property
    def update(self) -> float:
        """The median over layers of the share of its weights that a step changes."""
        return float(np.median([row.update for row in self.rows]))

    def __str__(self) -> str:
        return table(self)


@dataclass(frozen=True)
class Finding:
    """One diagnosis: its name, whether training fails by it (`fatal`), what was seen and why, and what helps."""

    name: str
    fatal: bool
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def examine(model: Layer, x: np.ndarray, labels: np.ndarray, lr: float = 0.01, warmup: float = 1.0) -> Checkup:
    """One training step on the batch x (N, C, H, W), labels (N,), without the step: `model` is left as it was.

    `lr` is the learning rate that training would have after a warm-up of `warmup` epochs, of which `minivgg train` has
    one. Cost: a forward and a backward, layer by layer. Raises BadInput if the network has no layer with weights, gives
    no scores (N, classes), or a label has no class.
    """
    groups = _groups(model)
    ends = {id(group[-1]): role for role, group in groups.items()}
    measured, gradients = {}, {}

    def see(_, layer, y):
        if id(layer) in ends:
            measured[ends[id(layer)]] = _activation(y)

    def reach(_, layer, dy):
        if id(layer) in ends:
            gradients[ends[id(layer)]] = _moments(dy)[1]

    buffers = [(getattr(layer, key), getattr(layer, key).copy()) for _, layer in model.walk() for key in layer.buffers]
    calls = [(layer, layer.calls) for _, layer in model.walk() if isinstance(layer, Dropout)]
    try:
        with np.errstate(all="ignore"), watched(model, see, reach):
            scores = model.forward(x, train=True)
            if scores.ndim != 2:
                raise BadInput(f"the doctor needs a network that gives scores (N, classes), not {scores.shape}")
            if labels.shape != (len(x),) or labels.min() < 0 or labels.max() >= scores.shape[1]:
                raise BadInput(f"labels must be {len(x)} numbers from 0 to {scores.shape[1] - 1}")
            loss, cache = softmax_cross_entropy_forward(scores, labels)
            model.backward(softmax_cross_entropy_backward(1, cache), need_dx=False)
            differ = float(cache.probabilities.std(axis=0, dtype=np.float64).max())
            rows = [
                Row(role, repr(group[0]), *measured[role], gradients[role], *_weights(group[0], lr), _normalised(group))
                for role, group in groups.items()
            ]
            mean, rms = _moments(x)
    finally:
        for buffer, value in buffers:
            buffer[...] = value
        for layer, count in calls:
            layer.calls = count
    return Checkup(rows, mean, rms, float(loss), scores.shape[1], differ, lr, warmup)


def diagnose(checkup: Checkup) -> list[Finding]:
    """What is wrong, the cause before its consequences; nothing if nothing is."""
    found = []
    for rule in (_overflow, _raw_input, _shrinking, _exploding, _dead, _constant, _step_too_long):
        explained = rule is _constant and found  # that all answers are the same is news only if nothing above says why
        finding = None if explained else rule(checkup)
        found += [finding] if finding else []
    return found


def verdict(findings: list[Finding]) -> str:
    """All findings in a few words."""
    fatal = [finding.name for finding in findings if finding.fatal]
    if fatal:
        return f"will not train: {fatal[0]}"
    return f"may train: {findings[0].name}" if findings else "should train"


def try_initialisers(
    starts: dict[str, Callable[[], Layer]],
    x: np.ndarray,
    labels: np.ndarray,
    lr: float = 0.01,
    warmup: float = 1.0,
    progress: bool = False,
) -> dict[str, Checkup]:
    """`examine` for networks that differ in how they start: name → a function that builds one, one at a time."""
    bar = tqdm(starts.items(), "initialisers", leave=False, disable=not progress)
    return {name: examine(build(), x, labels, lr, warmup) for name, build in bar}


def _overflow(c: Checkup) -> Finding | None:
    bad = next((row for row in c.rows if not math.isfinite(row.rms)), None)
    if bad is None and math.isfinite(c.loss):
        return None
    where = f"the activations of {bad.name} are not finite" if bad else f"the loss is {c.loss}"
    return Finding("overflow", True, where, "start with smaller weights (He), or put batch norm after each layer")


def _raw_input(c: Checkup) -> Finding | None:
    if c.input_rms <= RAW:
        return None
    return Finding(
        "the input is not normalised",
        c.update > HOPELESS,
        f"the input has mean {c.input_mean:.3g} and RMS {c.input_rms:.3g}, so everything after it, and every "
        f"gradient of a first-layer weight, is some {c.input_rms:.0f} times too large",
        "divide pixels by 255, subtract the training set's mean and divide by its standard deviation",
    )


def _shrinking(c: Checkup) -> Finding | None:
    if not c.update < TOO_SMALL:
        return None
    if c.factor < 0.9:
        total = f"{c.factor ** len(c.hidden):.0e} over {len(c.hidden)} layers"
        what = f"activations shrink by {c.factor:.2f} a layer, {total}, and gradients with them"
    else:
        what = "gradients shrink on their way back, though activations do not on theirs"
    return Finding(
        "activations shrink" if c.factor < 0.9 else "gradients vanish",
        True,
        f"{what}: with {_deviations(c)} a step at learning rate {c.lr:g} changes "
        f"{c.update:.0e} of a weight, so this net will not train, and its loss will stay near "
        f"log({c.classes}) = {math.log(c.classes):.2f}",
        "use He, batch norm, or start from A as the paper did (minivgg train --init-from RUN)",
    )


def _exploding(c: Checkup) -> Finding | None:
    if not c.scores > LOUD:
        return None
    hopeless = c.update > HOPELESS
    future = (
        "the first steps will throw the weights away" if hopeless else "the first epochs will go by in unlearning it"
    )
    return Finding(
        "scores explode",
        hopeless,
        f"activations are multiplied by {c.factor:.2f} a layer, and scores come out with an RMS of {c.scores:.2g}, "
        f"with {_deviations(c)}: softmax is certain of what it cannot know, the first loss is {c.loss:.3g} where "
        f"log({c.classes}) = {math.log(c.classes):.2f} would be right, and {future}",
        "use He (with a last layer ten times smaller, as --init he has it) or batch norm",
    )


def _dead(c: Checkup) -> Finding | None:
    worst = max(c.hidden, key=lambda row: row.dead, default=None)
    if worst is None or worst.dead <= 0.5:
        return None
    return Finding(
        "dead ReLUs",
        worst.dead == 1,
        f"{worst.dead:.0%} of the units of {worst.name} give zero for all images of the batch, and pass no gradient on",
        "lower the learning rate or warm it up and start again (He, biases 0); batch norm revives units",
    )


def _constant(c: Checkup) -> Finding | None:
    if not c.differ < 1e-5:
        return None
    return Finding(
        "every image gets the same answer",
        True,
        f"probabilities differ by {c.differ:.0e} from image to image: what the images hold does not reach the scores",
        "look in the table for the layer where the spread goes to nothing",
    )


def _step_too_long(c: Checkup) -> Finding | None:
    plain = TOO_LARGE * (1 + (WARM - 1) * min(c.warmup, 1))
    limits = {row: TOO_LARGE_BEFORE_A_NORM if row.normalised else plain for row in c.hidden or c.rows}
    worst = max(limits, key=lambda row: row.update / limits[row])  # the last layer may start small, and grow at once
    limit = limits[worst]
    if not worst.update > limit:
        return None
    return Finding(
        RATE,
        False,
        f"a step at learning rate {c.lr:g} changes {worst.update:.1%} of {worst.name}'s weights, where 0.1% is healthy "
        f"and {limit:.2%} too much",
        f"try {c.lr * limit / 2 / worst.update:.0e}" + ("" if c.warmup >= 1 else ", or a warm-up of an epoch"),
    )


def _deviations(c: Checkup) -> str:
    """The standard deviations of the hidden weights, beside He's, in words."""
    mine, he = ([getattr(row, key) for row in c.hidden or c.rows] for key in ("weight", "he"))
    return f"weights of standard deviation {_range(mine)} (He's: {_range(he)})"


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2g}", f"{max(values):.2g}"
    return low if low == high else f"{low} to {high}"


def _groups(model: Layer) -> dict[str, list[Layer]]:
    """Role → a layer with weights, and the batch norm and ReLU that follow it."""
    names = {id(layer): role for role, layer in roles(model).items() if isinstance(layer, Conv2d | Linear)}
    groups, current = {}, None
    for _, layer in model.walk():
        if id(layer) in names:
            current = groups.setdefault(names[id(layer)], [])
            current.append(layer)
        elif current is not None and isinstance(layer, BatchNorm2d | ReLU | Sigmoid):
            current.append(layer)
        else:
            current = None
    if not groups:
        raise BadInput("the doctor examines layers with weights, and this network has none")
    return groups


def _normalised(group: list[Layer]) -> bool:
    return any(isinstance(layer, BatchNorm2d) for layer in group)


def _activation(y: np.ndarray) -> tuple[float, float, float, float, float]:
    """mean, spread, RMS, share of zeros, share of channels that are zero throughout."""
    mean, rms = _moments(y)
    alive = (y != 0).reshape(*y.shape[:2], -1)
    spread = math.sqrt(max(rms**2 - mean**2, 0)) if math.isfinite(rms) else math.nan
    return mean, spread, rms, 1 - float(alive.mean()), 1 - float(alive.any(axis=(0, 2)).mean())


def _weights(layer: Layer, lr: float) -> tuple[float, float, float]:
    """The share of the weights that a step of `lr` changes, their RMS, and He's."""
    weight, rms = layer.weight, _moments(layer.weight.data)[1]
    change = _moments(weight.grad)[1] if weight.grad is not None else 0.0
    return lr * change / rms if rms else 0.0, rms, math.sqrt(2 / math.prod(weight.data.shape[1:]))


def _moments(a: np.ndarray) -> tuple[float, float]:
    """Mean and RMS, summed in float64, a slice of the first axis at a time."""
    total = sum(float(part.sum(dtype=np.float64)) for part in a)
    square = sum(float(np.square(part, dtype=np.float64).sum()) for part in a)
    return total / a.size, math.sqrt(square / a.size)


def table(checkup: Checkup) -> str:
    """The rows of a checkup, aligned."""
    head = ("layer", "", "mean", "spread", "zero", "dead", "gradient", "weight σ", "He's σ", "step/weight")
    lines = [
        (
            row.name,
            row.layer,
            f"{row.mean:.2g}",
            f"{row.spread:.2g}",
            f"{row.zero:.0%}",
            f"{row.dead:.0%}",
            f"{row.gradient:.1e}",
            f"{row.weight:.3f}",
            f"{row.he:.3f}",
            f"{row.update:.1e}",
        )
        for row in checkup.rows
    ]
    return aligned(head, lines)


def trials_table(trials: dict[str, Checkup]) -> str:
    """A line for each start that was tried, aligned."""
    head = ("start", "× a layer", "scores' RMS", "first loss", "differ by", "step/weight", "verdict")
    lines = [
        (
            name,
            f"{c.factor:.2f}",
            f"{c.scores:.1e}",
            f"{c.loss:.4g}",
            f"{c.differ:.0e}",
            f"{c.update:.0e}",
            verdict(diagnose(c)),
        )
        for name, c in trials.items()
    ]
    return aligned(head, lines, left=(0, 6))


def aligned(head: tuple[str, ...], lines: list[tuple[str, ...]], left: tuple[int, ...] = (0, 1)) -> str:
    """A text table; the columns `left` are flushed left, the others right."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]

    def text(line):
        cells = (f"{v:{'<' if i in left else '>'}{w}}" for i, (v, w) in enumerate(zip(line, widths, strict=True)))
        return "  ".join(cells).rstrip()

    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([text(head), rule, *map(text, lines)])
