"""One argument's gradient, probed in one direction after another: a row of the report."""

import itertools
from dataclasses import replace
from typing import NamedTuple

from minivgg.gradcheck.jacobian import jacobian_probe
from minivgg.gradcheck.kinks import Probe, complex_probe, probe, undeclared_kinks
from minivgg.gradcheck.numeric import Point, choose_step, directions, taylor_order
from minivgg.gradcheck.report import Row


class Plan(NamedTuple):
    probes: int
    full: bool
    complex_step: bool


class Finding(NamedTuple):
    """What was found about one argument, where, and the worst of its probes."""

    point: Point
    row: Row
    worst: Probe


def examine(point: Point, name: str, plan: Plan) -> Finding:
    """Probe one argument's gradient, up to the first probe that fails."""
    choices = list(itertools.islice(directions(point.gradients[name], point.rng), plan.probes))
    h = choose_step(point, name, choices[0][1])
    judge = complex_probe if plan.complex_step else probe
    probes = []
    for where, v in choices:
        probes.append(judge(point, name, where, v, h))
        if not probes[-1].ok:
            break
    if plan.full:
        probes.append(jacobian_probe(point, name, h))
    kinks = max(p.crossings for p in probes)
    if not point.base.branches:
        kinks = max(kinks, undeclared_kinks(point, name, choices[0][1], h))
    worst = max(probes, key=lambda p: (not p.ok, p.error / p.tolerance if p.tolerance else 0))
    row = Row(
        name,
        point.arguments[name].shape,
        worst.where,
        worst.numeric,
        worst.analytic,
        worst.tolerance,
        ok=worst.ok,
        kinks=kinks,
        order=taylor_order(point, name, probes[0].v, h),
        h=h,
    )
    return Finding(point, row, worst)


def worse(at: Finding, near: Finding) -> Finding:
    """The finding at the point, unless only the one beside it is bad."""
    return near._replace(row=replace(near.row, kinks=at.row.kinks)) if at.row.ok and not near.row.ok else at
