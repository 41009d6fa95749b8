"""Once a gradient is wrong: in which element, and what kind of wrong."""

from dataclasses import replace

import numpy as np

from minivgg.gradcheck.diagnosis import NO_PATTERN, ONLY_IN, Evidence, diagnose, wrong_shape
from minivgg.gradcheck.examine import Finding
from minivgg.gradcheck.invariants import Case, batch_leak
from minivgg.gradcheck.kinks import Probe, probe
from minivgg.gradcheck.numeric import Point, central, choose_step, elements, scale, single, some_of
from minivgg.gradcheck.report import Row


def inquire(case: Case, found: dict[str, Finding], wrong: list[str], limit: int) -> tuple[dict[str, Row], list[str]]:
    """Rows of the worst elements in place of some of those in `found`, and sentences on what is the matter.

    In a network only the last of the arguments that are `wrong` is looked into: the others are wrong because it is.
    """
    rows, sentences = {}, []
    if wrong and case.target.is_network:
        sentences, wrong = [whereabouts(list(case.arguments), wrong)], wrong[-1:]
    first = next(iter(case.arguments))
    for name in wrong:
        if name in found:
            rows[name], evidence = locate(found[name], limit)
            leak = batch_leak(case) if name == first else None
            sentences.append(stale(found[name], case) or leak or pattern(found[name], case, evidence))
        elif case.gradients[name] is None or case.gradients[name].shape != case.arguments[name].shape:
            sentences.append(wrong_shape(name, case.gradients[name], case.arguments[name].shape))
    return rows, sentences


def pattern(finding: Finding, case: Case, evidence: Evidence) -> str:
    """What `diagnose` says; where that is a place or nothing, how the error goes with the argument may say more."""
    sentence = diagnose(evidence)
    if NO_PATTERN in sentence or ONLY_IN in sentence:
        return against_its_argument(finding, case, whole=NO_PATTERN in sentence) or sentence
    return sentence


def whereabouts(names: list[str], wrong: list[str]) -> str:
    """Between which parameters of a network the gradient goes wrong on its way back."""
    right = names[names.index(wrong[-1]) + 1 :]
    until = f"right from {right[0]} on to the end" if right else "wrong from the very end"
    return f"gradients are {until}; the first wrong one on the way back is that of {wrong[-1]}"


def locate(finding: Finding, limit: int) -> tuple[Row, Evidence]:
    """The row of the worst element of a wrong gradient, and the evidence for a diagnosis.

    Measures every element, or `limit` of them at random; where none of these is wrong, the direction that is wrong is
    halved until one element is left.
    """
    point, row, worst = finding
    name, claimed = row.argument, point.gradients[row.argument]
    some = some_of(claimed.shape, limit, point.rng)
    measured = elements(point, name, row.h, some)
    gap = np.abs(np.nan_to_num(claimed - measured))
    index = np.unravel_index(np.argmax(gap), claimed.shape)
    if len(some) < claimed.size and probe(point, name, index, single(claimed.shape, index), row.h).ok:
        index = halve(point, name, worst.v, row.h)
    alone = probe(point, name, tuple(map(int, index)), single(claimed.shape, index), row.h)
    measured[index] = alone.numeric
    if not alone.ok:  # else the error is too thin for one element, and the direction stays the evidence
        found = {"where": alone.where, "numeric": alone.numeric, "analytic": alone.analytic}
        row = replace(row, **found, tolerance=alone.tolerance)
    known = {**point.arguments, "y": point.base.y, "dy": point.dy}
    return row, Evidence(name, claimed, measured, known, sizes(point.arguments, point.base.y))


def halve(point: Point, name: str, v: np.ndarray, h: float) -> tuple:
    """The index of an element in whose direction, alone, the gradient is wrong: v is wrong, so one of its halves is."""
    support = np.flatnonzero(v)
    while len(support) > 1:
        half = np.zeros(v.size)
        half[support[: len(support) // 2]] = v.ravel()[support[: len(support) // 2]]
        first_is_right = probe(point, name, "", half.reshape(v.shape), h).ok
        support = support[len(support) // 2 :] if first_is_right else support[: len(support) // 2]
    return np.unravel_index(support[0], v.shape)


def sizes(arguments: dict[str, np.ndarray], y: np.ndarray) -> dict[str, float]:
    """The numbers that a wrong factor may be, by what they are called: of the first argument, the filters, and y."""
    x, *others = (a.shape for a in arguments.values())
    found = dict(zip("NCHW" if len(x) == 4 else "NF", x, strict=False))
    if len(x) == 4:
        found |= {"H·W": x[2] * x[3], "N·H·W": x[0] * x[2] * x[3], "C·H·W": x[1] * x[2] * x[3]}
    if y.ndim == 4:
        OH, OW = y.shape[2:]
        found |= {"O": y.shape[1], "OH·OW": OH * OW, "N·OH·OW": y.shape[0] * OH * OW}
        found |= {"KH·KW": x[2] * x[3] / (OH * OW)} if len(x) == 4 and not others else {}  # of a pool
    if y.ndim == 2:
        found |= {"K": y.shape[1]}
    for w in (shape for shape in others if len(shape) == 4):
        found |= {"KH·KW": w[2] * w[3], "C·KH·KW": w[1] * w[2] * w[3]}
    return found


def stale(finding: Finding, case: Case) -> str | None:
    """Whether the gradient, wrong here, is right where an earlier call was made."""
    name = finding.row.argument
    earlier = Point(case.target, case.other, case.dy, case.rng)
    earlier.gradients = finding.point.gradients
    slope = central(earlier, name, finding.worst.v, finding.row.h)
    if abs(slope.error) > slope.tolerance:
        return None
    return f"{name}: a stale cache: this is the gradient for the arguments of an earlier call"


def against_its_argument(finding: Finding, case: Case, *, whole: bool) -> str | None:
    """Of a y that is a function of each element alone: by how much its derivative is wrong, from negative arguments to
    positive ones, and what is wrong if it is so on one side only, or everywhere but at zero. Without `whole`, None
    unless it is right on one side."""
    name = finding.row.argument
    a = case.arguments[name]
    if a.size < 2 or a.shape != case.y.shape or not _element_by_element(case, name):
        return None
    values = scale(a) * np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    probes = [_derivative(case, name, value) for value in values]
    wrong = [not p.ok for p in probes]
    below, zero, above = any(wrong[:2]), wrong[2], any(wrong[3:])
    if not (below or zero or above):
        return None
    errors = ", ".join(
        f"{p.analytic - p.numeric if bad else 0:+.3g} at {value:+.3g}".replace("+0 at +0", "0 at 0")
        for value, p, bad in zip(values, probes, wrong, strict=True)
    )
    table = f"the error in dy/d{name}, a function of each {name} alone, is {errors}"
    if below != above:
        return f"{name}: right for {name} {'>' if below else '<'} 0, wrong on the other side: {table}"
    if not whole:
        return None
    if not zero and abs(probes[2].numeric) > probes[2].tolerance:
        return f"{name}: a term with a factor {name} is wrong, the rest is right: {table}"
    return f"{name}: {table}"


def _element_by_element(case: Case, name: str) -> bool:
    """Whether each y depends on its own element of the argument only: some elements are moved, and the y of the others
    stay. In eight draws, one of two elements is moved without the other but for one time in 256."""
    a = case.arguments[name]
    for _ in range(8):
        moved = case.rng.random(a.shape) < 0.5
        y = case.target.forward(case.arguments | {name: np.where(moved, a + scale(a), a)}).y
        if not np.array_equal(y[~moved], case.y[~moved]):
            return False
    return True


def _derivative(case: Case, name: str, value: float) -> Probe:
    """The derivative of y's first element where its argument has this value, measured and claimed."""
    first = single(case.y.shape, (0,) * case.y.ndim)
    a = np.where(first, value, case.arguments[name])
    point = Point(case.target, case.arguments | {name: a}, first, case.rng)
    return probe(point, name, "", first, choose_step(point, name, first))
