"""Holding an op to rules: every rule on every trial that it applies to."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from minivgg.testing.arrays import devices as present
from minivgg.testing.arrays import threads
from minivgg.testing.cases import CASES, Case, Op
from minivgg.testing.report import Report, Result
from minivgg.testing.rules import RULES, shapes
from minivgg.testing.trials import Rule, Trial

DTYPES = tuple(map(np.dtype, (np.float32, np.float64, np.float16)))


def check_op(
    op: str | Op | tuple[Callable, Callable],
    *cases: str | Case | tuple,
    oracle: Callable | None = None,
    without: Iterable[str] = (),
    devices: Iterable[str] | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Hold an op to all rules, in every memory order, on every device that it runs on, in every dtype that it takes
    there: float32 and float64, and some ops on a GPU float16.

        check_op("relu")                                        # ours, on its row of CASES
        check_op((my_forward, my_backward), "maxpool2d")        # yours, on the cases of a row and to its formula
        check_op((my_forward, my_backward), (3, 7), (5, 7))     # yours, on two arrays of these shapes
        check_op(pair, Case((2, 3, 8, 8), size=3), oracle=f)    # with options, and another way to the same y

    A pair is `forward(*arrays, **options) -> (y, cache)` with `backward(dy, cache)`, or `-> y` with
    `backward(dy, *arrays)`. `without` leaves out rules by their titles; `devices` are those present unless given, which
    may be ("sim",), too: the simulated GPU.

    Cost: about 60 passes and a gradient check for each case. Raises AssertionError, which says what was expected, what
    was found and what to look at next, unless `raise_on_failure` is False. KeyError for an unknown name.
    """
    if isinstance(op, str):
        op = CASES[op]
    elif not isinstance(op, Op):
        op = _row(*op, cases)
    op = op if oracle is None else replace(op, oracle=oracle)
    return hold(op, RULES, without=without, devices=devices, raise_on_failure=raise_on_failure)


def _row(forward: Callable, backward: Callable, cases: tuple) -> Op:
    """A row for a pair of functions: one of ours with theirs in their place, or a new one."""
    if len(cases) == 1 and isinstance(cases[0], str):
        return replace(CASES[cases[0]], forward=forward, backward=backward, bits=False)
    name = getattr(forward, "__name__", "op").removesuffix("_forward")
    shapes = [case for case in cases if not isinstance(case, Case)]
    given = [case for case in cases if isinstance(case, Case)]
    return Op(name, forward, backward, (*given, *[Case(*shapes)] * bool(shapes)))


def hold(
    op: Op,
    rules: list[Rule],
    *,
    without: Iterable[str] = (),
    devices: Iterable[str] | None = None,
    raise_on_failure: bool = True,
) -> Report:
    """Try every rule on every case of `op`, on each of `devices` and in each of `DTYPES` that it runs on and in: on the
    devices present, unless given.

    Raises AssertionError if a rule is broken, unless `raise_on_failure` is False; ValueError if nothing can be tried,
    or for a title in `without` that no rule has.
    """
    titles = [rule.title for rule in rules]
    if unknown := set(without) - set(titles):
        raise ValueError(f"no rule {', '.join(map(repr, unknown))}; there are {', '.join(map(repr, titles))}")
    results = {rule: Result(rule.title, rule.advice) for rule in rules if rule.title not in without}
    devices = present() if devices is None else tuple(devices)
    tried = itertools.product(devices, op.cases, DTYPES)
    trials = [Trial(op, case, dtype, device) for device, case, dtype in tried if op.runs(case, device, dtype)]
    if not trials:
        raise ValueError(f"{op.name}: nothing to try: it runs on none of {', '.join(devices)}, or there is no case")
    with threads(1):  # waking others costs more than these small cases do; one rule wakes them all
        for trial in trials:
            _try_all(trial, results)
    report = Report(op.name, list(results.values()))
    return report.raise_if_failed() if raise_on_failure else report


def _try_all(trial: Trial, results: dict[Rule, Result]) -> None:
    for rule, result in results.items():
        if rule.applies(trial):
            broken = _broken(rule, trial)
            result.record(str(trial), broken)
            if broken and rule is shapes:  # nothing else would make sense
                break


def _broken(rule: Rule, trial: Trial) -> Exception | None:
    try:
        rule.holds(trial)
    except Exception as error:  # what is under test may raise anything, and is to be told all that is wrong at once
        return error
    return None
