"""What kind of mistake is it? Each pattern compares the gradient that backward claims with the one measured.

A pattern is a hypothesis of how the claim came from the truth: "7 times that", "that, with the filter rotated". It is
believed if it explains 99 % of the error (in norm); the first one believed is reported. Patterns are pure functions.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

_AXES = {4: ("sample", "channel", "row", "column"), 2: ("sample", "feature"), 1: ("element",)}
_FILTER_AXES = {4: ("output channel", "input channel", "filter row", "filter column"), 2: ("output", "input")}
NO_PATTERN = "none of the known patterns"
ONLY_IN = "wrong only in"
_FILTERS = "w", "weight", "weights", "kernel", "filters"


@dataclass(frozen=True)
class Evidence:
    """A wrong gradient. `measured` is nan where nothing was measured. What a pattern may find in the error: arrays
    (`known`, such as y, dy and the arguments) and numbers that the shapes offer (`sizes`, such as N or OH·OW)."""

    argument: str
    claimed: np.ndarray
    measured: np.ndarray
    known: dict[str, np.ndarray]
    sizes: dict[str, float]

    @property
    def seen(self) -> np.ndarray:
        return np.isfinite(self.measured)

    @property
    def error(self) -> np.ndarray:
        return self.claimed - self.measured

    @property
    def wrong(self) -> np.ndarray:
        """Where the error is not small beside the largest."""
        size = np.abs(self.error)
        return size > 1e-3 * np.nanmax(size, initial=0)

    @property
    def axes(self) -> tuple[str, ...]:
        return axes_of(self.argument, self.claimed.ndim)

    def explained_by(self, prediction) -> bool:
        """Whether the claim is `prediction`, up to 1 % of the error; judged where both are known."""
        prediction = np.broadcast_to(prediction, self.claimed.shape)
        both = self.seen & np.isfinite(prediction)
        unexplained = np.linalg.norm((self.claimed - prediction)[both])
        return bool((both & self.wrong).any() and unexplained <= 0.01 * np.linalg.norm(self.error[both]))


def axes_of(argument: str, ndim: int) -> tuple[str, ...]:
    """What the dimensions of an argument are called, as far as its name and their number tell."""
    names = _AXES | (_FILTER_AXES if argument.rpartition(".")[2].lower() in _FILTERS else {})
    return names.get(ndim, tuple(f"place along axis {i}" for i in range(ndim)))


def diagnose(evidence: Evidence) -> str:
    """One sentence on the error in one argument's gradient."""
    sentences = (pattern(evidence) for pattern in PATTERNS)
    share = np.mean(evidence.wrong[evidence.seen]) if evidence.seen.any() else 1
    unknown = f"{NO_PATTERN}; {share:.0%} of the elements measured are wrong"
    return f"{evidence.argument}: {next(filter(None, sentences), unknown)}"


def all_zeros(e: Evidence) -> str | None:
    return None if e.claimed[e.seen].any() else "the gradient is all zeros"


def constant_factor(e: Evidence) -> str | None:
    a, g = e.claimed[e.seen], e.measured[e.seen]
    k = float(np.vdot(a, g) / (np.vdot(g, g) or np.inf))
    if k == 0 or not e.explained_by(k * e.measured):
        return None
    if math.isclose(k, -1, rel_tol=1e-3):
        return "the sign is wrong"
    sign = "the sign is wrong, and it is " if k < 0 else ""
    large = abs(k) > 1
    times = abs(k) if large else 1 / abs(k)
    return f"{sign}a constant factor, {times:.6g} times too {'large' if large else 'small'}" + _meaning(times, large, e)


def _meaning(k: float, large: bool, e: Evidence) -> str:
    """What a factor k > 1 may stand for: "" if the shapes offer no such number."""
    same = " or ".join(name for name, size in e.sizes.items() if size > 1 and math.isclose(k, size, rel_tol=1e-3))
    if same:
        return f", which is {same}: " + ("its inverse is missing" if large else "divided by it once too often")
    for name, size in e.sizes.items():
        if size > 2 and math.isclose(k, size / (size - 1), rel_tol=1e-3 / size):
            return f", which is {name} / ({name} − 1)"
    return ""


def rearranged(e: Evidence) -> str | None:
    """The right numbers, flipped, transposed or shifted."""
    g, axes = e.measured, e.axes
    candidates = {}
    if g.ndim >= 2:
        candidates["rotated by 180° (a filter unflipped, or flipped once too often)"] = g[..., ::-1, ::-1]
        candidates["upside down"] = g[..., ::-1, :]
        candidates["mirrored left to right"] = g[..., ::-1]
        if g.ndim == 4 and g.shape[2] == g.shape[3]:
            candidates[f"transposed: {axes[2]} and {axes[3]} swapped"] = g.swapaxes(2, 3)
        candidates[f"transposed: {axes[0]} and {axes[1]} swapped"] = g.swapaxes(0, 1).reshape(g.shape)
    for axis, by in itertools.product(range(g.ndim), (1, -1)):
        candidates[f"shifted by {by:+} along its {axes[axis]}s"] = _shifted(g, axis, by)
    return next((f"the gradient is {what}" for what, p in candidates.items() if e.explained_by(p)), None)


def _shifted(g: np.ndarray, axis: int, by: int) -> np.ndarray:
    """g moved by one along an axis; nan where nothing came from."""
    shifted = np.roll(g, by, axis)
    np.moveaxis(shifted, axis, 0)[0 if by > 0 else -1] = np.nan
    return shifted


def masked(e: Evidence) -> str | None:
    """Zeros in the wrong places: of ReLU, dropout or max-pool."""
    a, g = e.claimed[e.seen], e.measured[e.seen]
    a_on, g_on = a != 0, np.abs(g) > 1e-6 * np.max(np.abs(g), initial=0)
    if g_on.all() or not g_on.any():
        return None
    if np.array_equal(a_on, ~g_on):
        return "the mask is inverted: the gradient is zero exactly where it should not be"
    both = a_on & g_on
    if not both.any() or not np.allclose(a[both], g[both], rtol=1e-3):
        return None
    if a_on.all():
        return "the mask is missing: right where it should not be zero, but not zero where it should be"
    return f"another mask: {np.sum(a_on & ~g_on)} elements too many, {np.sum(g_on & ~a_on)} too few, the others right"


def confined(e: Evidence) -> str | None:
    """Wrong in one part only; then what kind of wrong it is there."""
    for name, region in _regions(e):
        if e.wrong.any() and not (e.wrong & ~region).any():
            inside = replace(e, measured=np.where(region, e.measured, np.nan))
            kind = all_zeros(inside) or constant_factor(inside)
            return f"{ONLY_IN} {name}" + (f", and there {kind}" if kind else "")
    return None


def _regions(e: Evidence) -> Iterator[tuple[str, np.ndarray]]:
    """(name, mask) of the smallest box that holds all errors, unless it is everything, and of the border of images."""
    shape, names = e.claimed.shape, []
    box = np.ones(shape, bool)
    for axis, (name, size) in enumerate(zip(e.axes, shape, strict=True)):
        hit = np.flatnonzero(e.wrong.any(axis=tuple(i for i in range(len(shape)) if i != axis)))
        if len(hit) == 0 or hit[-1] - hit[0] + 1 == size:
            continue
        first, last = hit[[0, -1]]
        end = "the last " if last == size - 1 else "the first " if first == 0 else ""
        names.append(f"{end}{name} ({first} of 0 to {size - 1})" if first == last else (
            f"{end}{name}s ({first} to {last} of 0 to {size - 1})"
        ))  # fmt: skip
        box &= (np.arange(size) >= first).reshape(-1, *(1,) * (len(shape) - axis - 1))
        box &= (np.arange(size) <= last).reshape(-1, *(1,) * (len(shape) - axis - 1))
    if names:
        yield ", ".join(names), box
    if len(shape) == 4 and min(shape[2:]) > 2:
        border = np.ones(shape, bool)
        border[:, :, 1:-1, 1:-1] = False
        yield "the border", border


def missing_terms(e: Evidence) -> str | None:
    """The error is a multiple of what a normalisation subtracts: a mean (1) or a projection (on x̂, or softmax's y).

    Batch norm's dx is dy − ⟨dy⟩ − x̂·⟨dy·x̂⟩, channel by channel; softmax's is y·dy − y·Σ dy·y, sample by sample.
    """
    if e.claimed.ndim < 2 or not e.seen.all():
        return None
    x, y = e.known.get(e.argument), e.known.get("y")
    by_channel = np.moveaxis(e.error, 1, 0).reshape(e.claimed.shape[1], -1)
    if x is not None and by_channel.shape[1] > 3:
        rows = np.moveaxis(x, 1, 0).reshape(by_channel.shape)
        centred = rows - rows.mean(axis=1, keepdims=True)
        mean, variance = (_projection(by_channel, basis) for basis in (np.ones_like(rows), centred))
        for name, part in {"mean": mean, "variance": variance, "mean and variance": mean + variance}.items():
            if np.linalg.norm(by_channel - part) <= 0.01 * np.linalg.norm(by_channel):
                return f"what goes through the {name} of each channel is missing, or wrong"
    if y is not None and y.shape == e.claimed.shape and e.claimed.ndim == 2 and y.shape[1] > 2:
        part = _projection(e.error, y)
        if np.linalg.norm(e.error - part) <= 0.01 * np.linalg.norm(e.error):
            return "the term y·Σ dy·y, summed over each sample, is missing, or wrong"
    return None


def _projection(rows: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Each row projected on the same row of `basis`."""
    squares = np.sum(basis * basis, axis=1, keepdims=True)
    return basis * (np.sum(rows * basis, axis=1, keepdims=True) / np.where(squares > 0, squares, 1))


def missing_factor(e: Evidence) -> str | None:
    """A factor that is one of the known arrays: y, 1 − y, x, or batch norm's weight a channel; or one for another."""
    factors = {}
    for name, a in e.known.items():
        channels = (1, -1) + (1,) * (e.claimed.ndim - 2)
        if e.claimed.ndim > 1 and a.shape == (e.claimed.shape[1],):
            factors[name] = a.reshape(channels)
        elif a.shape == e.claimed.shape:
            factors |= {name: a, f"1 − {name}": 1 - a}
    for name, a in factors.items():
        if e.explained_by(e.measured * a):
            return f"a factor {name} too many"
        if a.all() and e.explained_by(e.measured / a):
            return f"a missing factor {name}"
    for (name, a), (other, b) in itertools.permutations(factors.items(), 2):
        if b.all() and e.explained_by(e.measured * a / b):
            return f"a factor {name} where {other} should be"
    return None


def passed_on(e: Evidence) -> str | None:
    dy = e.known.get("dy")
    same = dy is not None and dy.shape == e.claimed.shape and np.array_equal(dy, e.claimed)
    return "backward hands on dy as it is" if same else None


def slice_factor(e: Evidence) -> str | None:
    """A factor that is the same within each channel, or each sample, but not for all."""
    for axis in range(e.claimed.ndim if e.claimed.ndim > 1 else 0):
        pair = (np.moveaxis(np.where(e.seen, v, 0), axis, 0) for v in (e.claimed, e.measured))
        a, g = (v.reshape(len(v), -1) for v in pair)
        if a.shape[1] < 2:
            continue
        prediction = _projection(a, g)
        if np.linalg.norm(a - prediction) <= 0.01 * np.linalg.norm(a - g):
            factors = np.sum(a * g, axis=1) / np.maximum(np.sum(g * g, axis=1), np.finfo(float).tiny)
            return f"a factor for each {e.axes[axis]}, from {factors.min():.4g} to {factors.max():.4g}"
    return None


def offset(e: Evidence) -> str | None:
    constant = np.mean(e.error[e.seen]) if e.seen.any() else 0
    return f"{constant:+.4g} has been added everywhere" if e.explained_by(e.measured + constant) else None


def misplaced(e: Evidence) -> str | None:
    """The same numbers in other places, such as a max-pool tie that went to the wrong one."""
    a, g = np.sort(e.claimed[e.seen]), np.sort(e.measured[e.seen])
    if e.seen.all() and np.linalg.norm(a - g) <= 0.01 * np.linalg.norm(e.error):
        return "the right numbers in the wrong places"
    return None


def float32(e: Evidence) -> str | None:
    """Relative errors as float32 makes them, 2⁻²⁴ = 6·10⁻⁸ each: from a thousandth of that to ten times as much."""
    g, error = np.abs(e.measured[e.seen]), np.abs(e.error[e.seen])
    usual = g > 1e-3 * g.max(initial=0)
    relative = error[usual] / g[usual]
    if len(relative) and np.median(relative) > 6e-11 and relative.max() < 6e-7 * math.sqrt(e.claimed.size):
        return f"relative errors of {np.median(relative):.1e}: a float32 intermediate"
    return None


def wrong_shape(argument: str, claimed: np.ndarray | None, shape: tuple) -> str:
    """One sentence on a gradient that is not there or has another shape than its argument."""
    if claimed is None:
        return f"{argument}: backward leaves no gradient"
    for count in range(1, claimed.ndim + 1):
        for axes in itertools.combinations(range(claimed.ndim), count):
            if np.empty(claimed.shape).sum(axis=axes).shape == shape:
                return f"{argument}: not summed over {'dimensions' if count > 1 else 'dimension'} " + (
                    f"{', '.join(map(str, axes))}: the gradient is {claimed.shape}, the argument {shape}"
                )
    transposed = " (transposed)" if claimed.shape == shape[::-1] else ""
    return f"{argument}: wrong shape: the gradient is {claimed.shape}{transposed}, the argument {shape}"


PATTERNS = (
    all_zeros,
    constant_factor,
    passed_on,
    rearranged,
    masked,
    confined,
    missing_factor,
    offset,
    missing_terms,
    slice_factor,
    misplaced,
    float32,
)
