"""The rungs of the GPU's ladder, in the simulator: right on every geometry, without races, and each asking less of
memory than the one below it."""

import functools

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.backends.array import SimulatedArray, to
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, conv2d_backward, conv2d_forward, direct, im2col, naive
from minivgg.testing import GEOMETRIES, check_conv
from minivgg.testing.arrays import integers, workspace_of

RUNGS = "im2col", "coalesced", "tiled", "direct"
PASSES = "forward", "grad_input", "grad_weight"
# tiles, filters, runs of filters, and parts of a filter's gradient
SEVERAL_BLOCKS = (
    ((1, 15, 17, 10), (70, 15, 3, 3), 1, 1),
    ((3, 2, 19, 9), (3, 2, 2, 3), 2, 3),
    ((1, 2, 9, 9), (9, 2, 8, 8), 1, 4),
)
TINY = {  # x, w, stride, padding: a tile and its border, several chunks of channels, every kind of stride
    "border": ((2, 3, 5, 6), (5, 3, 3, 3), 1, 1),
    "stride": ((1, 5, 7, 6), (3, 5, 3, 2), (2, 1), (1, 0)),
    "channels": ((1, 9, 3, 2), (34, 9, 3, 3), 1, 1),
    "pointwise": ((1, 4, 3, 3), (4, 4, 1, 1), 2, 0),
}


def drawn(x_shape, w_shape, stride=1, padding=0, dtype="float32"):
    """(spec, the arguments of each pass by its name): integers, whose sums are exact in whatever order."""
    spec, rng = ConvSpec.of(x_shape, w_shape, stride, padding), np.random.default_rng(0)
    x, w, dy = (to(integers(rng, shape, dtype), "sim") for shape in (x_shape, w_shape, spec.y_shape))
    return spec, {"forward": (x, w), "grad_input": (dy, w), "grad_weight": (dy, x)}


def on_cpu(name, spec, arguments):
    return getattr(naive, name)(*(to(a, "cpu").astype(np.float64) for a in arguments), spec)


def agree(algorithm, spec, passes):
    for name, arguments in passes.items():
        result = getattr(algorithm, name)(*arguments, spec)
        assert isinstance(result, SimulatedArray)
        np.testing.assert_array_equal(result, on_cpu(name, spec, arguments))


@pytest.mark.parametrize("rung", RUNGS)
def test_conforms(rung):
    check_conv(rung, "even window", devices=("sim",))


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_geometry_in_any_order(rung, dtype):
    for geometry in (*GEOMETRIES.values(), *SEVERAL_BLOCKS):
        spec, passes = drawn(*geometry, dtype=dtype)
        with cudasim.checking(orders=("forward", "reverse", 1)):
            agree(ALGORITHMS[rung], spec, passes)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("shapes", TINY)
def test_no_races_and_nothing_out_of_bounds(rung, shapes):
    spec, passes = drawn(*TINY[shapes])
    with cudasim.checking(racecheck=True, memcheck=True, orders=("forward", "reverse", 1, 2)):
        agree(ALGORITHMS[rung], spec, passes)


# ---- What a learner comes to see ----


def sectors(rung, name, spec, passes):
    """Sectors that a pass reads from global memory in its one kernel that multiplies, and requests for them."""
    with cudasim.checking(traffic=True) as launches:
        getattr(ALGORITHMS[rung], name)(*passes[name], spec)
    launch = max(launches, key=lambda launch: sum(t.requests for t in launch.traffic))
    reads = [t for t in launch.traffic if (t.memory, t.access) == ("global", "read")]
    return sum(t.transactions for t in reads), sum(t.requests for t in reads)


@pytest.mark.parametrize("name", PASSES)
def test_each_rung_asks_less_of_global_memory(name):
    spec, passes = drawn((1, 16, 14, 14), (32, 16, 3, 3), 1, 1)
    read = {rung: sectors(rung, name, spec, passes) for rung in ("naive", "coalesced", "tiled", "direct")}
    assert read["coalesced"][0] < read["naive"][0]
    assert read["tiled"][0] < read["coalesced"][0] / 4
    assert read["direct"][0] < read["tiled"][0]


def test_no_bank_conflicts():
    spec, passes = drawn((1, 8, 16, 8), (64, 8, 3, 3), 1, 1)
    for rung in ("tiled", "direct"):
        for name in PASSES:
            with cudasim.checking(traffic=True) as launches:
                getattr(ALGORITHMS[rung], name)(*passes[name], spec)
            shared = [t for launch in launches for t in launch.traffic if t.memory == "shared"]
            assert shared
            assert max(t.waste for t in shared) == 1


# ---- Too little memory ----


@pytest.fixture
def short(monkeypatch):
    """A GPU with room for so many numbers at once: a function that sets how many, and gives the shapes taken."""
    taken, room, take = [], [0], im2col._take_on_gpu

    def short_of_memory(like, shape):
        if np.prod(shape) > room[0]:
            raise MemoryError("Out of memory")  # CuPy's OutOfMemoryError is one
        taken.append(shape)
        return take(like, shape)

    def has_room_for(numbers):
        room[0] = numbers
        return taken

    monkeypatch.setattr(im2col, "_take_on_gpu", short_of_memory)
    im2col._say_that_memory_is_short_on_gpu.cache_clear()
    yield has_room_for
    im2col._say_that_memory_is_short_on_gpu.cache_clear()


def test_short_of_memory_it_works_in_smaller_chunks_and_says_so_once(short):
    spec, passes = drawn(*GEOMETRIES["VGG"])  # 16 rows of outputs
    taken = short(5 * spec.OW * spec.columns)
    with pytest.warns(RuntimeWarning, match="smaller chunks; set MINIVGG_WORKSPACE to fewer MiB") as said:
        agree(im2col.ALGORITHM, spec, passes)
    assert len(said) == 1
    assert [shape[0] for shape in taken] == [4, 4, 4]  # 16, 8, 4: once a pass, for all of its chunks


def test_with_room_for_less_than_a_row_it_is_an_error(short):
    spec, passes = drawn(*GEOMETRIES["VGG"])
    assert short(spec.OW * spec.columns - 1) == []
    with pytest.warns(RuntimeWarning), pytest.raises(MemoryError):
        im2col.forward(*passes["forward"], spec)


def test_with_room_for_what_is_asked_for_nothing_is_said(short):
    spec, passes = drawn(*GEOMETRIES["VGG"])
    row = spec.OW * spec.columns
    taken = short(3 * row)
    with workspace_of(3 * 4 * row):
        agree(im2col.ALGORITHM, spec, passes)
    assert [shape[0] for shape in taken] == [3, 3, 3]


# ---- What conv2d does with them ----


@pytest.mark.parametrize("rung", RUNGS)
def test_bias_relu_and_mask(rung):
    spec, passes = drawn((2, 3, 6, 8), (5, 3, 3, 3), 1, 1)
    (x, w), (dy, _) = passes["forward"], passes["grad_input"]
    b = to(integers(np.random.default_rng(1), 5, "float32"), "sim")
    sums = on_cpu("forward", spec, (x, w)) + to(b, "cpu")[:, None, None]
    forward = functools.partial(conv2d_forward, x, w, b, padding=1, algorithm=rung)
    np.testing.assert_array_equal(forward()[0], sums)
    prepared = {}
    for _ in range(2):  # the second time with what the first has prepared
        y, cache = forward(relu=True, prepared=prepared)
        np.testing.assert_array_equal(y, np.maximum(sums, 0))
    assert list(prepared) == ["direct"] * (rung == "direct")
    dx, dw, _ = conv2d_backward(dy, cache, after_relu=True)
    np.testing.assert_array_equal(dx, np.where(x > 0, on_cpu("grad_input", spec, (dy, w)), 0))
    np.testing.assert_array_equal(dw, on_cpu("grad_weight", spec, (dy, x)))


def test_a_nan_is_not_hidden_by_a_relu():
    spec, passes = drawn((1, 1, 3, 3), (1, 1, 1, 1))
    x, w = passes["forward"]
    x[0, 0, 1, 1] = np.nan
    assert np.isnan(direct.forward(x, w, spec, relu=True)[0, 0, 1, 1])


def test_a_tile_that_shared_memory_cannot_hold_is_refused():
    spec = ConvSpec.of((1, 1, 300, 300), (1, 1, 200, 200))
    for rung in ("tiled", "direct"):
        assert "KiB of shared memory, and a block has 96 KiB" in ALGORITHMS[rung].supports(spec, "gpu")
    assert ALGORITHMS["coalesced"].supports(spec, "gpu") is None


@pytest.mark.parametrize("rung", ["tiled", "direct"])
def test_the_largest_windows_that_are_accepted_do_run(rung):
    specs = [ConvSpec.of((1, 1, 500, 2), (1, 1, k, 1), 3) for k in range(1, 500)]
    *_, spec = (spec for spec in specs if ALGORITHMS[rung].supports(spec, "gpu") is None)
    assert spec.KH < 499
    for dtype in ("float32", "float64"):
        _, passes = drawn(spec.x_shape, spec.w_shape, 3, 0, dtype)
        with cudasim.checking(orders=("forward",)) as launches:
            agree(ALGORITHMS[rung], spec, passes)
        assert 64 << 10 < max(launch.shared_mem for launch in launches) <= 96 << 10


@pytest.mark.parametrize(("rows_of_dw", "parts"), [(1000, 5), (2, 2), (0.1, 1)])
def test_parts_of_a_filters_gradient_fit_the_workspace(rows_of_dw, parts):
    spec, passes = drawn((2, 3, 24, 24), (4, 3, 3, 3), 1, 1)
    with workspace_of(rows_of_dw * 4 * spec.O * spec.columns), cudasim.checking() as launches:
        agree(ALGORITHMS["direct"], spec, {"grad_weight": passes["grad_weight"]})
    assert [launch.grid[2] for launch in launches if launch.kernel == "blocked_dw"] == [parts]
    assert [launch.kernel for launch in launches].count("sum_parts") == (parts > 1)
