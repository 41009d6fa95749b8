"""The conformance suite passes what we ship, and tells one mistake from another, in words that help."""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

import minivgg.layers
import minivgg.ops
from minivgg.backends import workspace
from minivgg.layers import Layer
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, algorithms_on
from minivgg.ops.relu import relu_backward, relu_forward
from minivgg.ops.windows import check_gradient
from minivgg.testing import CASES, GEOMETRIES, LAYERS, Case, Op, check_conv, check_op, devices, oracles
from minivgg.testing.arrays import MEMORY_ORDERS, away_from_zero, laid_out, threads, workspace_of
from minivgg.testing.convolutions import CONV_RULES

# ---- What we ship; the other ops and the layers conform in the tests of their files ----


@pytest.mark.parametrize("algorithm", algorithms_on("cpu"))
def test_every_algorithm_conforms_on_every_geometry(algorithm):
    report = check_conv(algorithm)
    assert len(report.results) == len(CONV_RULES)
    specs = [ConvSpec.of(x, w, stride, padding) for x, w, stride, padding in GEOMETRIES.values()]
    supported = [spec for spec in specs if ALGORITHMS[algorithm].supports(spec, "cpu") is None]
    assert report["memory order does not matter"].trials == 2 * len(supported) > 0


def test_conv2d_conforms_on_every_geometry():
    check_op("conv2d")


def test_every_op_and_every_layer_has_a_row():
    modules = [importlib.import_module(f"minivgg.ops.{m.name}") for m in pkgutil.iter_modules(minivgg.ops.__path__)]
    ops = {f for m in modules for name, f in vars(m).items() if name.endswith("_backward") and not name.startswith("_")}
    assert {op.backward for op in CASES.values()} == ops
    public = (getattr(minivgg.layers, name) for name in minivgg.layers.__all__)
    layers = {kind for kind in public if isinstance(kind, type) and issubclass(kind, Layer)}
    assert {type(make()) for make, _ in LAYERS.values()} == layers - {Layer}


def test_formulas_know_nothing_of_the_ops():
    lines = Path(oracles.__file__).read_text().splitlines()
    assert [line for line in lines if "import" in line] == ["import numpy as np"]


def test_a_report_lists_all_rules():
    report = check_op("sigmoid")
    assert report.ok
    assert str(report).splitlines()[0] == "sigmoid keeps all 18 rules"
    assert "✓ dtype in is dtype out (6 trials)" in str(report)
    assert "✓ gradients are adjoint to forward (does not apply)" in str(report)


def test_learners_need_no_test_tools():
    code = """
import sys
sys.modules |= dict.fromkeys(["pytest", "scipy", "hypothesis"])
from minivgg.testing import check_layer, check_op
check_op("relu")
check_layer("Linear")
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- Mistakes in ops ----


def in_float64(x):
    return np.maximum(x, 0) * np.sqrt(np.float64(1)), x


def on_x(x):
    x[x < 0] = 0
    return x.copy(), x


def on_dy(dy, cache):
    check_gradient("relu", dy, cache.shape, cache.dtype)
    dy[cache <= 0] = 0
    return dy.copy()


def by_dice(x, rng=np.random.default_rng(0)):  # noqa: B008
    keep = rng.random(x.shape) < 0.5
    return x * keep, np.where(keep, 1, 0).astype(x.dtype)


def by_memory(x):
    y = np.maximum(x, 0).ravel(order="K").reshape(x.shape)
    return y, y


def by_threads(x):
    y, cache = relu_forward(x)
    return y * x.dtype.type(1 + 1e-3 * (numba.get_num_threads() > 1)), cache


def in_a_buffer(x, buffers={}):  # noqa: B006
    y = buffers.setdefault((x.shape, x.dtype), np.empty_like(x))
    np.maximum(x, 0, out=y)
    return y, y.copy()


def kept_in_a_buffer(x, buffers={}):  # noqa: B006
    y, _ = relu_forward(x)
    cache = buffers.setdefault((x.shape, x.dtype), np.empty_like(x))
    cache[...] = y
    return y, cache


def in_half_precision(x):
    y = np.maximum(x, 0)
    return y if x.dtype == np.float64 else y.astype(np.float16).astype(x.dtype), y


def leaky(x):
    return np.where(x > 0, x, x / 8), x


def leaky_backward(dy, x):
    check_gradient("leaky", dy, x.shape, x.dtype)
    return np.where(x > 0, dy, dy / 8)


def same(x):
    return x.copy(), x


def same_backward(dy, x):
    check_gradient("same", dy, x.shape, x.dtype)
    return dy


def spoiling(dy, cache):
    dx = relu_backward(dy, cache)
    cache[...] = -1
    return dx


def generous(dy, cache):
    return np.where(cache > 0, dy, 0).astype(cache.dtype)


def grumpy(dy, cache):
    if dy.shape != cache.shape or dy.dtype != cache.dtype:
        raise ValueError("no")
    return generous(dy, cache)


def failing(dy, cache):
    raise ZeroDivisionError("deep inside")


def in_its_own_dtype(x):
    y = np.empty_like(x)  # of integers, if x is
    y[...] = np.maximum(x / 1.5, 0) * x.dtype.type(1.5)
    return y, y


def over_the_batch(x):
    return np.maximum(x, 0) * (len(x) // len(x)), x


def by_a_mask(x):
    return x * (x > 0), x


def changed(change):
    """ReLU's backward, and then something else."""
    return lambda dy, cache: change(relu_backward(dy, cache), dy)


ONE_EACH = "there is one gradient for each argument, in its shape"
ALONE = "arguments and dy are left alone"
REFUSED = "a foreign dy is refused"
# name → (forward, backward, the rule that it breaks, what the message says). The formula is ReLU's.
MISTAKES = {
    "float64 out": (in_float64, relu_backward, "dtype in is dtype out", "y in float64"),
    "float64 gradient": (relu_forward, changed(lambda dx, dy: dx * np.float64(1)), "dtype in is dtype out", "dx in"),
    "writes to x": (on_x, relu_backward, ALONE, "x as it was before the call"),
    "writes to dy": (relu_forward, on_dy, ALONE, "dy as it was before the call"),
    "throws dice": (by_dice, relu_backward, "twice the same gives the same bits", "the same in a second run"),
    "spoils its cache": (relu_forward, spoiling, "twice the same gives the same bits", "with the same cache"),
    "reads memory": (by_memory, relu_backward, "memory order does not matter", "channels last"),
    "keeps one cache": (kept_in_a_buffer, relu_backward, "a cache belongs to its forward", "after a forward of"),
    "reuses a buffer": (in_a_buffer, relu_backward, "answers stay when others are computed", "y as it was"),
    "returns dy": (same, same_backward, "answers share no memory", "dx shares memory with dy"),
    "depends on threads": (by_threads, relu_backward, "any number of threads gives the same bits", "threads what"),
    "clips dy": (relu_forward, changed(np.minimum), "backward is linear in dy", "dx of −4·dy"),
    "adds a constant": (relu_forward, changed(lambda dx, dy: dx + dx.dtype.type(1)), "dy = 0 gives 0", "zero where dy"),
    "takes any dy": (relu_forward, generous, REFUSED, "dy of another shape that broadcasts: (3, 4, 5, 1) float32"),
    "does not say what it refuses": (relu_forward, grumpy, REFUSED, "“no”"),
    "rounds integers": (
        in_its_own_dtype,
        relu_backward,
        "integers and foreign bytes are refused, or taken for what they are",
        "x of dtype int64",
    ),
    "divides by N": (over_the_batch, relu_backward, "no images give none, or are refused", "ZeroDivisionError"),
    "multiplies infinities by 0": (
        by_a_mask,
        relu_backward,
        "what is not finite stays where the formula puts it",
        "an x of -inf",
    ),
    "is another function": (leaky, leaky_backward, "forward computes what the formula says", "y by the formula"),
    "loses digits": (in_half_precision, relu_backward, "float32 gives what float64 gives", "rounding explains"),
    "is half": (
        relu_forward,
        changed(lambda dx, dy: dx / 2),
        "gradients are the slopes of forward",
        "2 times too small",
    ),
    "wrong shape": (relu_forward, changed(lambda dx, dy: dx[..., 1:]), ONE_EACH, "dx (3, 4, 5, 5)"),
    "too many gradients": (relu_forward, changed(lambda dx, dy: (dx, dy)), ONE_EACH, "2 gradients"),
    "no gradient": (relu_forward, lambda dy, cache: None, ONE_EACH, "no dx: None"),
    "fails": (relu_forward, failing, ONE_EACH, "ZeroDivisionError: deep inside"),
}
CASE = Case((3, 4, 5, 6), draw=away_from_zero)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_ops(name):
    forward, backward, title, words = MISTAKES[name]
    with pytest.raises(AssertionError) as caught:
        check_op((forward, backward), CASE, oracle=oracles.relu)
    told = next(part for part in str(caught.value).split("✗ ") if part.startswith(title))
    for part in ("(3, 4, 5, 6), float", ", cpu", "    expected ", "    found    ", "    next     ", words):
        assert part in told
    report = check_op((forward, backward), CASE, oracle=oracles.relu, without=[title], raise_on_failure=False)
    assert title not in [result.rule for result in report.results]


def test_what_is_right_is_not_blamed():
    for forward, backward, oracle in (
        (relu_forward, relu_backward, oracles.relu),
        (relu_forward, changed(lambda dx, dy: dx), oracles.relu),
        (leaky, leaky_backward, None),
        (np.sin, lambda dy, x: check_gradient("sine", dy, x.shape, x.dtype) or dy * np.cos(x), np.sin),
    ):
        check_op((forward, backward), CASE, Case((2, 3), draw=away_from_zero), oracle=oracle)


def test_only_what_is_wrong_is_told():
    """A gradient that is half of what it should be is right in all other ways."""
    report = check_op(MISTAKES["is half"][:2], "relu", raise_on_failure=False)
    assert [result.rule for result in report.failures] == ["gradients are the slopes of forward"]
    (result,) = report.failures
    assert (result.trials, result.failures) == (4, 4)
    assert "and 3 more of 4 trials" in str(result)
    assert not result.gradient.ok  # its picture shows where
    assert result.error is None
    assert str(report).startswith("relu breaks 1 of 18 rules\n✓ there is one gradient")


def test_an_exception_keeps_its_traceback():
    with pytest.raises(AssertionError) as caught:
        check_op((relu_forward, failing), "relu")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_adjoints_find_a_padding_that_backward_forgets():
    """In float32, and on each argument by itself: x is right, w is not, b is right."""
    op = CASES["conv2d"]

    def backward(dy, cache):
        dx, dw, db = op.backward(dy, cache)
        return dx, np.roll(dw, 1, axis=3), db

    report = check_op(
        (op.forward, backward), "conv2d", raise_on_failure=False, without=["gradients are the slopes of forward"]
    )
    (result,) = report.failures
    assert result.rule == "gradients are adjoint to forward"
    assert "float32" in result.on
    assert result.expected == "⟨y − y(w = 0), dy⟩ = ⟨w, dw⟩"


def test_several_arrays_by_their_shapes():
    def forward(x, w):
        return x @ w, (x, w)

    def backward(dy, cache):
        x, w = cache
        check_gradient("product", dy, (len(x), w.shape[1]), x.dtype)
        return dy @ w.T, x.T @ dy

    check_op((forward, backward), (3, 7), (7, 5))
    report = check_op((forward, lambda *a: backward(*a)[::-1]), (3, 7), (7, 5), raise_on_failure=False)
    assert "dx (3, 7)" in str(report["there is one gradient for each argument, in its shape"])
    assert report["dtype in is dtype out"].trials == 0  # what comes after makes no sense


def test_bad_calls():
    with pytest.raises(ValueError, match="no rule 'dtypes'; there are 'there is one gradient"):
        check_op("relu", without=["dtypes"])
    with pytest.raises(ValueError, match="relu: nothing to try"):
        check_op((relu_forward, relu_backward))
    with pytest.raises(KeyError, match="rely"):
        check_op("rely")


# ---- What the suite works with ----


@pytest.mark.parametrize("order", MEMORY_ORDERS)
@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (2, 3, 4, 5)])
def test_memory_orders_keep_values(shape, order):
    a = np.random.default_rng(0).standard_normal(shape)
    b = laid_out(a, order)
    np.testing.assert_array_equal(b, a)
    assert len(shape) == 1 or b.flags.c_contiguous == (order == "C order")


def test_threads_and_workspace_are_put_back():
    before = numba.get_num_threads(), workspace.limit()
    with pytest.raises(KeyError), threads(1), workspace_of(100):
        assert (numba.get_num_threads(), workspace.limit()) == (1, 100)
        raise KeyError
    assert (numba.get_num_threads(), workspace.limit()) == before


class Array(np.ndarray):
    """A CuPy of our own, on the CPU."""

    __module__ = "cupy"

    def get(self):
        return np.asarray(self).view(np.ndarray)


class FakeCuPy:
    """NumPy's functions, which return arrays of that kind."""

    class cuda:  # noqa: N801
        @staticmethod
        def is_available():
            return True

    def __getattr__(self, name):
        def function(*arguments, **options):
            result = getattr(np, name)(*arguments, **options)
            return result.view(Array) if isinstance(result, np.ndarray) else result

        return function


def test_every_device_present_is_tried(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert devices() == ("cpu",)
    monkeypatch.setitem(sys.modules, "cupy", FakeCuPy())
    assert devices() == ("cpu", "gpu")
    seen = []

    def forward(x):
        seen.append(type(x))
        return np.sin(x), x

    def backward(dy, x):
        check_gradient("sine", dy, x.shape, x.dtype)
        return dy * np.cos(x) * (2 if isinstance(x, Array) else 1)

    report = check_op(Op("sine", forward, backward, (CASE,), devices=("cpu", "gpu")), raise_on_failure=False)
    assert set(seen) == {np.ndarray, Array}
    (result,) = report.failures
    assert result.rule == "gradients are the slopes of forward"
    assert result.on == "x (3, 4, 5, 6), float64, gpu"
    assert (result.trials, result.failures) == (2, 1)
    seen.clear()
    check_op(Op("sine", forward, backward, (CASE,)))  # says that it runs on the CPU only
    assert set(seen) == {np.ndarray}
