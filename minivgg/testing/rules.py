"""What must hold of any op: rules, each a function of a `Trial` that raises `Broken` where it does not."""

import re

import numba
import numpy as np

from minivgg.backends.array import to_cpu, xp_of
from minivgg.testing.arrays import MEMORY_ORDERS, put, threads
from minivgg.testing.report import Broken
from minivgg.testing.trials import agree, copies, quiet, rule


@rule(
    "there is one gradient for each argument, in its shape",
    "Sum over every dimension along which forward repeated the argument (a bias: over all but the channels), and look "
    "at each transpose and reshape. What backward returns is in the order of forward's arguments.",
)
def shapes(trial):
    answers = trial.raw()
    for name, a in zip(trial.names[1:], trial.arguments(), strict=True):
        if getattr(answers[name], "shape", None) != a.shape:
            found = f"{name} {np.shape(answers[name])}" if answers[name] is not None else f"no {name}: None"
            raise Broken(f"{name} {a.shape}", found)


@rule(
    "dtype in is dtype out",
    "Make new arrays like old ones (np.zeros_like, or dtype=x.dtype). np.zeros(n), rng.standard_normal(n) and "
    "array scalars such as np.sqrt(2.0) are float64, and turn what they touch into float64.",
)
def dtypes(trial):
    for name, a in trial.raw().items():
        if getattr(a, "dtype", type(a)) != trial.dtype:
            raise Broken(f"{name} in {trial.dtype}, as the arguments are", f"{name} in {getattr(a, 'dtype', type(a))}")


@rule(
    "arguments and dy are left alone",
    "Some line writes to what it was given: +=, *=, out=, x[mask] = 0, a sort or a shuffle. Through a view (reshape, "
    "transpose, a slice) one writes to the original as well. Copy first.",
)
def leaves_arguments_alone(trial):
    named = (*trial.op.arguments(trial.case), "dy")
    for order in MEMORY_ORDERS:
        arrays, dy = trial.arguments(order=order), trial.upstream(order=order)
        trial.raw(arrays, dy)
        before = copies(dict(zip(named, (*trial.arguments(), trial.upstream()), strict=True)))
        after = copies(dict(zip(named, (*arrays, dy), strict=True)))
        agree(after, before, "as it was before the call", where=order)


@rule(
    "twice the same gives the same bits",
    "Look for a random generator that goes on instead of starting at its seed, uninitialised memory (np.empty), and a "
    "backward that changes the cache it was given.",
)
def same_bits_twice(trial):
    arrays, dy = trial.arguments(), trial.upstream()
    y, backward = trial.op.call(arrays, trial.options)
    first = copies(dict(zip(trial.names, (y, *backward(dy)), strict=True)))
    again = copies(dict(zip(trial.names, (first["y"], *backward(dy)), strict=True)))
    agree(again, first, "the same when backward is called again with the same cache")
    agree(trial.run(), first, "the same in a second run")


@rule(
    "a cache belongs to its forward",
    "Another forward in between must not matter: keep what backward needs in the cache, not in a global variable, an "
    "attribute, or memory that the next forward writes to.",
)
def no_stale_cache(trial):
    expected = trial.run()
    _, backward = trial.op.call(trial.arguments(), trial.options)
    trial.op.call(trial.arguments(seed=5), trial.options)
    answers = copies(dict(zip(trial.names[1:], backward(trial.upstream()), strict=True)))
    agree(answers, {name: expected[name] for name in answers}, "the same after a forward of something else")


@rule(
    "answers stay when others are computed",
    "An answer must be memory of its own: here it is a buffer that the next call fills with something else.",
)
def answers_stay(trial):
    answers = trial.raw()
    kept = copies(answers)
    trial.raw(trial.arguments(seed=5), trial.upstream(seed=6))
    agree(copies(answers), kept, "as it was before a call with other arguments")


@rule(
    "answers share no memory",
    "Return a copy, or write into a new array. Whoever adds to a gradient later, as two passes do to a parameter's, "
    "would change the array that it is a view of.",
)
def owns_answers(trial):
    arrays, dy = trial.arguments(), trial.upstream()
    answers = trial.raw(arrays, dy)
    given = dict(zip((*trial.op.arguments(trial.case), "dy"), (*arrays, dy), strict=True))
    allowed = {("y", trial.names[1][1:]), (trial.names[1], "dy")} if trial.op.views else set()
    names = list(answers)
    pairs = [(a, b) for i, a in enumerate(names) for b in (*names[:i], *given)]
    for a, b in pairs:
        one, two = answers[a], given[b] if b in given else answers[b]
        if (a, b) not in allowed and np.ndim(one) and np.ndim(two) and xp_of(one).shares_memory(one, two):
            raise Broken(f"{a} in memory of its own", f"{a} shares memory with {b}")


@rule(
    "any number of threads gives the same bits",
    "Two threads add to the same place, or each thread's share of a sum depends on how many there are. Give every "
    "output to one thread, and cut sums into blocks of fixed size.",
    lambda trial: trial.device == "cpu" and numba.config.NUMBA_NUM_THREADS > 1,
)
def any_number_of_threads(trial):
    with threads(1):
        alone = trial.run()
    with threads(numba.config.NUMBA_NUM_THREADS):
        for _ in range(3):  # threads that race do not lose every time
            agree(trial.run(), alone, f"on {numba.config.NUMBA_NUM_THREADS} threads what it is on one")


@rule(
    "memory order does not matter",
    "Walk memory by strides (index as x[n, c, h, w]), or ask for the order first: np.ascontiguousarray(x), or "
    "minivgg.backends.array.nhwc(x). A pointer, a view by as_strided and ravel(order='K') all see memory, not values.",
)
def any_memory_order(trial):
    expected, tolerance = trial.run(), None if trial.op.bits else trial.rounding
    for order in list(MEMORY_ORDERS)[1:]:
        found = trial.run(trial.arguments(order=order), trial.upstream(order=order))
        agree(found, expected, "what it is in C order", tolerance=tolerance, where=order)


@rule(
    "backward is linear in dy",
    "Backward multiplies dy by something that only forward's arguments decide. Look for dy where y or the cache is "
    "meant, a constant added, a threshold on dy, a cache that backward changes.",
)
def linear_in_dy(trial):
    _, backward = trial.op.call(trial.arguments(), trial.options)
    one, two = trial.upstream(seed=1), trial.upstream(seed=2)

    def of(dy):
        return copies(dict(zip(trial.names[1:], backward(dy), strict=True)))

    of_one, of_two = of(one), of(two)
    power = {name: -4 * g for name, g in of_one.items()}
    agree(of(-4 * one), power, "of −4·dy, −4 times that of dy: no digit is lost")
    # two tolerances for one gradient and one for the other, whose dy is as large
    allowed = {name: 3 * tolerance for name, tolerance in trial.rounding.items()}
    total = {name: g + of_two[name] for name, g in of_one.items()}
    agree(of(one + two), total, "of dy + dy′, the sum of those of dy and dy′", tolerance=allowed)


@rule(
    "dy = 0 gives 0",
    "Some term of backward does not have dy as a factor.",
)
def zero_gives_zero(trial):
    _, *gradients = trial.run(dy=0 * trial.upstream()).items()
    agree(dict(gradients), {name: 0 * g for name, g in gradients}, "zero where dy is")


@rule(
    "a foreign dy is refused",
    "Begin backward with minivgg.ops.windows.check_gradient(name, dy, y.shape, x.dtype), or raise a ValueError that "
    "gives both shapes. NumPy broadcasts what does not fit, and the mistake shows far away.",
)
def refuses_foreign_dy(trial):
    dy = trial.upstream()
    if np.ndim(dy):
        foreign = {"shape": dy[..., :-1], "shape that broadcasts": dy[..., :1], "dtype": dy.astype(np.float16)}
    else:
        foreign = {"shape": xp_of(dy).ones(3, trial.dtype)}
    for what, wrong in foreign.items():
        if (wrong.shape, wrong.dtype) == (trial.y_shape, trial.dtype):
            continue
        _, backward = trial.op.call(trial.arguments(), trial.options)
        given = f"dy of another {what}: {wrong.shape} {wrong.dtype}"
        try:
            backward(wrong)
        except ValueError as error:
            if not re.search("float16" if what == "dtype" else r"\(\d*,?", str(error)):
                raise Broken("a ValueError that says what was given", f"“{error}”", where=given) from error
        except Exception as error:
            raise Broken("a ValueError", f"{type(error).__name__}: {error}", where=given) from error
        else:
            raise Broken("a ValueError", "an answer", where=given)


@rule(
    "forward computes what the formula says",
    "Work one small case by hand, on paper, and print both. If only the border is wrong look at padding, if only one "
    "channel at broadcasting, if only float32 at a sum that loses digits.",
    lambda trial: trial.op.oracle is not None,
)
def matches_oracle(trial):
    arrays = [to_cpu(a).astype(np.float64) for a in trial.arguments()]
    expected = {"y": np.asarray(trial.op.oracle(*arrays, **trial.case.options))}
    agree(trial.run(), expected, "by the formula", tolerance=trial.rounding)


@rule(
    "float32 gives what float64 gives",
    "The float32 path is another one, or loses digits: a sum over many small numbers, a difference of large ones.",
    lambda trial: trial.dtype != np.float64,
)
def like_float64(trial):
    agree(trial.run(), trial.in_float64(), "what float64 makes of it", tolerance=trial.rounding)


@rule(
    "gradients are adjoint to forward",
    "⟨y(a) − y(0), dy⟩ = ⟨a, da⟩ for whatever y is linear in: the gradient goes every way that forward went, but back. "
    "Look for a window, a stride, a padding or a flip that the two do not share.",
    lambda trial: bool(trial.op.affine_in),
)
def adjoint(trial):
    names, arrays, dy = trial.op.arguments(trial.case), trial.arguments(), to_cpu(trial.upstream()).astype(np.float64)
    answers, rounding = trial.run(arrays), trial.rounding
    for i, (name, a) in enumerate(zip(names, arrays, strict=True)):
        if name in trial.op.affine_in:
            without = trial.run((*arrays[:i], 0 * a, *arrays[i + 1 :]))["y"].astype(np.float64)
            a = to_cpu(a).astype(np.float64)
            left, right = np.vdot(answers["y"] - without, dy), np.vdot(a, answers[f"d{name}"])
            allowed = 2 * rounding["y"] * np.abs(dy).sum() + rounding[f"d{name}"] * np.abs(a).sum()
            if not abs(left - right) <= allowed:
                raise Broken(
                    f"⟨y − y({name} = 0), dy⟩ = ⟨{name}, d{name}⟩",
                    f"{left:.9g} ≠ {right:.9g}, a ratio of {right / left if left else np.inf:.6g}; rounding explains "
                    f"a difference of {allowed:.2g}",
                )


@rule(
    "gradients are the slopes of forward",
    "Read the diagnosis above; report.failures[-1].gradient.plot() shows where the gradient is wrong.",
    lambda trial: trial.dtype == np.float64,
)
def slopes(trial):
    report = trial.op.check_gradient(trial.case, trial.device)
    if not all(row.ok for row in report.rows):  # its invariants are rules here, each by itself
        raise Broken("backward that agrees with differences of forward", str(report), gradient=report)


# ---- Edges ----


@rule(
    "integers and foreign bytes are refused, or taken for what they are",
    "Begin forward with minivgg.ops.windows.check_array(name, 'x', x), or raise a ValueError that says what to write. "
    "np.empty_like(x) of integers rounds what is written to it, and compiled code may read foreign bytes as its own.",
    lambda trial: trial.dtype == np.float32 and trial.device == "cpu",
)
def refuses_foreign_numbers(trial):
    arrays = tuple(np.round(4 * abs(a)) for a in trial.arguments())
    expected = {"y": trial.in_float64_on(arrays)}
    allowed = {"y": 256 * trial.rounding["y"]}  # numbers are 4 times as large, and products of up to four of them
    for i, name in enumerate(trial.op.arguments(trial.case)):
        for kind in ("int64", "uint8", ">f4"):
            foreign = (*arrays[:i], arrays[i].astype(kind), *arrays[i + 1 :])
            try:
                y, _ = trial.op.call(foreign, trial.options)
            except ValueError:
                continue
            agree({"y": y}, expected, "what floats give", tolerance=allowed, where=f"{name} of dtype {kind}")


@rule(
    "no images give none, or are refused",
    "With N = 0 y has no rows, the gradient of x is as empty as x, and a sum over the batch is zero. Where there is no "
    "right answer (a mean over the batch), raise a ValueError. Look for a division by N, and for reshape(N, -1).",
)
@quiet()
def takes_an_empty_batch(trial):
    x, *others = trial.arguments()
    try:
        y, backward = trial.op.call((x[:0], *others), trial.options)
    except ValueError:
        return
    if np.shape(y)[:1] != (0,):
        raise Broken("y without rows", f"y {np.shape(y)}")
    gradients = copies(dict(zip(trial.names[1:], backward(xp_of(x).zeros(y.shape, y.dtype)), strict=True)))
    agree(gradients, {name: 0 * to_cpu(a) for name, a in zip(gradients, (x[:0], *others), strict=True)}, "of nothing")


@rule(
    "what is not finite stays where the formula puts it",
    "0 · ∞ and ∞ − ∞ are NaN: look for a multiplication by a mask, and for sums of what the formula keeps apart.",
    lambda trial: trial.op.oracle is not None and trial.y_shape != (),
)
def contains_what_is_not_finite(trial):
    for value in (np.inf, -np.inf, np.nan):
        arrays = [np.array(to_cpu(a)) for a in trial.arguments()]
        arrays[0].reshape(-1)[arrays[0].size // 2] = value
        with quiet():
            y = trial.op.oracle(*(a.astype(np.float64) for a in arrays), **trial.case.options)
            found = to_cpu(trial.op.call(tuple(put(a, trial.device) for a in arrays), trial.options)[0])
        agree({"y": found}, {"y": np.asarray(y)}, "by the formula", tolerance=trial.rounding, where=f"an x of {value}")


# What a good op does besides; a learner's ten lines need not.
POLITE = [refuses_foreign_dy, refuses_foreign_numbers, takes_an_empty_batch, contains_what_is_not_finite]

RULES = [
    shapes,
    dtypes,
    leaves_arguments_alone,
    same_bits_twice,
    no_stale_cache,
    answers_stay,
    owns_answers,
    any_number_of_threads,
    any_memory_order,
    linear_in_dy,
    zero_gives_zero,
    refuses_foreign_dy,
    matches_oracle,
    like_float64,
    adjoint,
    slopes,
    refuses_foreign_numbers,
    takes_an_empty_batch,
    contains_what_is_not_finite,
]
