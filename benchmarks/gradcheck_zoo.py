"""The zoo of planted bugs through our gradient check, and through five rules that other checkers use, for the README.

    python benchmarks/gradcheck_zoo.py [--seeds 20] [--right-seeds 200] [--others-seeds 50]

Catching bugs is half of it: a rule that accuses everybody catches everything. So each rule also judges what is right,
on ordinary numbers and on hard ones: kinks, ties, zeros, 10⁸, 10⁻⁸. A rule that crashes on a bug, or gets a gradient
of the wrong shape, has caught it. Writes `benchmarks/results/gradcheck_zoo.json` and the README's table.
"""

import argparse
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numba
import numpy as np
from readme import fill, table
from tqdm import tqdm

from minivgg.cli.info import describe
from minivgg.gradcheck.targets import Target
from minivgg.gradcheck.zoo import EVERYDAY, RIGHT, ZOO, Case

RESULTS = Path(__file__).parent / "results" / "gradcheck_zoo.json"
ORDINARY = "normal", "float32", "channels last"


# ---- Five rules. Each takes a target, the name of an argument and a generator, and says whether its gradient is right


def gradient(target: Target, arguments: dict, name: str, dy) -> np.ndarray:
    """What backward claims. Raises ValueError unless it has the argument's shape."""
    g = target.run(arguments, dy)[name]
    if np.shape(g) != arguments[name].shape:
        raise ValueError(f"the gradient of {name} is {np.shape(g)}, not {arguments[name].shape}")
    return g


def change(target: Target, arguments: dict, name: str, step: np.ndarray) -> np.ndarray:
    """y(a + step) − y(a − step)."""
    ahead, behind = (target.forward(arguments | {name: arguments[name] + s}).y for s in (step, -step))
    return ahead - behind


def unit(a: np.ndarray, index: tuple) -> np.ndarray:
    """One at `index`, else zero."""
    e = np.zeros_like(a)
    e[index] = 1
    return e


def all_ones(target, name, rng) -> bool:
    """dy = 1, every element, h = 10⁻⁵, np.allclose as it comes."""
    arguments, h = target.arguments, 1e-5
    a = arguments[name]
    steps = (h * unit(a, index) for index in np.ndindex(a.shape))
    numeric = [change(target, arguments, name, step).sum() / (2 * h) for step in steps]
    y = target.forward(arguments).y
    return np.allclose(gradient(target, arguments, name, np.ones_like(y)).ravel(), numeric)


def one_index(target, name, rng) -> bool:
    """dy random and signed, one element at random, h = 10⁻⁵, 1 % of relative error."""
    arguments, h = target.arguments, 1e-5
    index = tuple(rng.integers(arguments[name].shape))
    dy = rng.standard_normal(target.forward(arguments).y.shape)
    numeric = np.sum(dy * change(target, arguments, name, h * unit(arguments[name], index))) / (2 * h)
    analytic = gradient(target, arguments, name, dy)[index]
    return abs(analytic - numeric) <= 1e-2 * max(abs(analytic), abs(numeric))


def non_negative(target, name, rng) -> bool:
    """One direction and one dy, both of unit length and without a negative entry, h = 10⁻⁶, rtol 10⁻³, atol 10⁻⁵."""
    arguments, h = target.arguments, 1e-6
    v, dy = rng.uniform(size=arguments[name].shape), rng.uniform(size=target.forward(arguments).y.shape)
    v, dy = v / np.linalg.norm(v), dy / np.linalg.norm(dy)
    numeric = np.sum(dy * change(target, arguments, name, h * v)) / (2 * h)
    return np.allclose(np.sum(gradient(target, arguments, name, dy) * v), numeric, rtol=1e-3, atol=1e-5)


def float32(target, name, rng) -> bool:
    """Everything in float32, every element, h = 10⁻², an error of 1 % or 0.01, whichever is more."""
    arguments, h = {k: a.astype(np.float32) for k, a in target.arguments.items()}, np.float32(1e-2)
    a = arguments[name]
    dy = np.asarray(rng.standard_normal(target.forward(arguments).y.shape), np.float32)
    steps = (h * unit(a, index) for index in np.ndindex(a.shape))
    numeric = np.array([np.sum(dy * change(target, arguments, name, step)) / (2 * h) for step in steps])
    analytic = gradient(target, arguments, name, dy).ravel()
    scale = np.maximum(1, np.maximum(np.abs(analytic), np.abs(numeric)))
    return bool(np.all(np.abs(analytic - numeric) <= 1e-2 * scale))


def jacobian(target, name, rng) -> bool:
    """Every output by every element, h = 10⁻⁶, rtol 10⁻³, atol 10⁻⁵."""
    arguments, h = target.arguments, 1e-6
    a, y = arguments[name], target.forward(arguments).y
    numeric = [change(target, arguments, name, h * unit(a, i)).ravel() / (2 * h) for i in np.ndindex(a.shape)]
    analytic = [gradient(target, arguments, name, unit(y, j)).ravel() for j in np.ndindex(y.shape)]
    return np.allclose(np.array(analytic), np.array(numeric).T, rtol=1e-3, atol=1e-5)


OURS = "minivgg.gradcheck"
RULES: dict[str, Callable | None] = {
    OURS: None,
    "upstream gradient of ones, np.allclose": all_ones,
    "one random index, 1 % tolerance": one_index,
    "non-negative unit directions": non_negative,
    "differences in float32": float32,
    "full Jacobian, fixed tolerance": jacobian,
}


# ---- Who accuses whom


def accuses(rule: Callable | None, case: Case, seed: int) -> bool:
    """Whether a rule says that a case's gradients are wrong."""
    if rule is None:
        return not case.check(seed).ok
    target, rng = case.target(seed), np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        return not all(rule(target, name, rng) for name in target.arguments)


def accuses_or_crashes(rule: Callable | None, case: Case, seed: int) -> bool:
    """The same where something is wrong: a crash is a way to say so."""
    try:
        return accuses(rule, case, seed)
    except (ValueError, TypeError, ArithmeticError):
        return True


def catches(seeds: int) -> dict[str, dict[str, int]]:
    """Bug → rule → on how many seeds it was caught."""
    caught = {}
    for bug in tqdm([bug for bug in ZOO.values() if not bug.rule], desc="planted bugs", unit="bug"):
        with bug.plant():
            caught[bug.name] = {
                name: sum(accuses_or_crashes(rule, bug.case, seed) for seed in range(seeds))
                for name, rule in RULES.items()
            }
    return caught


def false_alarms(seeds: dict[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """Right case → rule → kind of numbers → on how many of so many seeds it was accused."""
    alarms = {}
    for case_name, case in tqdm(RIGHT.items(), desc="right code", unit="case"):
        alarms[case_name] = {name: Counter() for name in RULES}
        for name, rule in RULES.items():
            for seed in range(seeds[name]):
                kind = EVERYDAY[seed % len(EVERYDAY)]
                alarms[case_name][name][kind] += accuses(rule, dataclasses.replace(case, draw=kind), seed)
    return alarms


# ---- What the README says


def row(name: str, caught: dict, alarms: dict, seeds: int, right_seeds: int) -> list[str]:
    """One line of the table: a rule, what it catches, and whom it accuses wrongly."""
    counts = [by_rule[name] for by_rule in caught.values()]
    always = sum(count == seeds for count in counts)
    cells = [f"{always}/{len(counts)}", f"{sum(counts) / (seeds * len(counts)):.1%}"]
    for kinds in ORDINARY, [kind for kind in EVERYDAY if kind not in ORDINARY]:
        wrong = sum(by_rule[name][kind] for by_rule in alarms.values() for kind in kinds)
        runs = len(alarms) * sum(EVERYDAY[seed % len(EVERYDAY)] in kinds for seed in range(right_seeds))
        cells.append(f"{wrong:,}/{runs:,} ({wrong / runs:.1%})")
    return [name, *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="for each planted bug")
    parser.add_argument("--right-seeds", type=int, default=200, help="for each right case, of our check")
    parser.add_argument("--others-seeds", type=int, default=50, help="for each right case, of the other rules")
    arguments = parser.parse_args()
    seeds = arguments.seeds
    right_seeds = {name: arguments.right_seeds if name == OURS else arguments.others_seeds for name in RULES}
    numba.set_num_threads(1)  # the arrays are small
    began = time.perf_counter()
    caught, alarms = catches(seeds), false_alarms(right_seeds)
    seconds = round(time.perf_counter() - began)
    record = {
        "machine": describe(),
        "seconds": seconds,
        "seeds": seeds,
        "right_seeds": right_seeds,
        "caught": caught,
        "false_alarms": alarms,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    head = ["rule", "bugs caught on every seed", "runs caught", "false alarms, ordinary x", "false alarms, hard x"]
    rows = [row(name, caught, alarms, seeds, right_seeds[name]) for name in RULES]
    hard = ", ".join(kind for kind in EVERYDAY if kind not in ORDINARY)
    said = (
        f"{len(caught)} bugs on {seeds} seeds each; {len(alarms)} right cases on {arguments.right_seeds} seeds each, "
        f"{arguments.others_seeds} for the other rules. Hard x: {hard}. In {len(ZOO) - len(caught)} more bugs of the "
        "zoo forward and backward are wrong alike: no gradient shows those, and a comparison with a definition does."
    )
    fill("gradcheck_zoo", f"{table(head, rows)}\n\n{said}")


if __name__ == "__main__":
    main()
