"""Whole Jacobians, for small cases: every output by every element of an argument, measured and claimed."""

import numpy as np

from minivgg.gradcheck.kinks import Probe, bends
from minivgg.gradcheck.numeric import Point, Slope, central, single

LIMIT = 2**20  # entries: 8 MiB each for what is measured and what is claimed


def jacobian_probe(point: Point, name: str, h: float) -> Probe:
    """The worst entry of one argument's Jacobian. Four forwards an element, and a backward for each output.

    Columns that meet a kink are left out. Raises ValueError if there are more than `LIMIT` entries.
    """
    entries = point.dy.size * point.arguments[name].size
    if entries > LIMIT:
        raise ValueError(f"full=True is for small cases: the Jacobian of {name} has {entries} entries, limit {LIMIT}")
    claimed, probes = point.jacobians[name], []
    for column, index in enumerate(np.ndindex(point.arguments[name].shape)):
        v = single(point.arguments[name].shape, index)
        wide = central(point, name, v, h)
        if wide.crossed:
            continue
        numeric, tolerance = _by_output(point, wide)
        wrong = np.abs(numeric - claimed[:, column]) > tolerance
        if wrong.any():  # at one step; see kinks.probe for what a second may say
            narrow = central(point, name, v, h / 32)
            nearer, blur = _by_output(point, narrow)
            wrong &= (np.abs(nearer - claimed[:, column]) > blur) | (np.abs(nearer - numeric) <= blur)
            kinks = bends(point, wide, narrow)
            wrong &= ~kinks[0].ravel() if kinks else True
        error = np.abs(numeric - claimed[:, column])
        j = int(np.argmax(np.where(wrong, error, 0) if wrong.any() else error))
        output = np.unravel_index(j, point.dy.shape)
        where = f"∂y[{', '.join(map(str, output))}] / ∂[{', '.join(map(str, index))}]"
        numbers = map(float, (numeric[j], claimed[j, column], tolerance[j]))
        probes.append(Probe(where, v, *numbers, ok=not wrong.any()))
    return max(probes, key=lambda p: (not p.ok, p.error), default=Probe("nowhere", None, 0, 0, 0, True))


def _by_output(point: Point, slope: Slope) -> tuple[np.ndarray, np.ndarray]:
    """The slope of each output, and its tolerance, as `numeric.central` has them for ⟨dy, y⟩."""
    y_2, y_1, y1, y2 = map(np.ravel, slope.ys)
    near, far = (y1 - y_1) / (2 * slope.h), (y2 - y_2) / (4 * slope.h)
    return (4 * near - far) / 3, np.abs(near - far) / 3 + 1.5 * np.ravel(point.y_noise) / slope.h
