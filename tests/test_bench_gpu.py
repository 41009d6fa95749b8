"""The races on a GPU, as far as they can be had without one: what is asked of cuDNN, what is timed, and what is said.

The numbers that these tests make are a fake machine's, and stand in no table.
"""

import ctypes
import sys

import fake_gpu
import numpy as np
import pytest
from PIL import Image

from minivgg.backends import cuda, nvrtc
from minivgg.backends.array import to
from minivgg.bench import conv_gpu, cudnn, gpu, pictures, pytorch, vgg, vgg_gpu
from minivgg.bench.tables import tables
from minivgg.cli.main import main
from minivgg.errors import BadInput
from minivgg.insight.pictures import save
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec

SPEC = ConvSpec(3, 4, 7, 6, 20, 3, 3, (1, 1), (1, 1))
SPREAD = ConvSpec(3, 4, 9, 8, 5, 3, 2, (2, 1), (1, 0))
LIMITS = {"fp32_gflops": 10.0, "tf32_gflops": 20.0, "fp16_gflops": 40.0, "read_gbs": 1.0, "copy_gbs": 2.0}


@pytest.fixture
def fake(monkeypatch):
    """A machine with CuPy and one GPU, both fake."""
    module = fake_gpu.cupy()
    fake_gpu.with_addresses(monkeypatch)
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(gpu, "_chain", lambda rounds: None)
    monkeypatch.setattr(gpu, "_rounds_per_second", lambda: 1e9)
    return module


@pytest.fixture
def library(fake, monkeypatch):
    """And a cuDNN."""
    found = fake_gpu.Cudnn()
    monkeypatch.setattr(cudnn, "library", lambda: found)
    cudnn._handle.cache_clear()
    yield found
    cudnn._handle.cache_clear()


# ---- Operands and references


def exact(direction, arrays, spec):
    first, second = {"forward": "xw", "grad_input": "yw", "grad_weight": "yx"}[direction]
    return getattr(ALGORITHMS["naive"], direction)(arrays[first].astype(float), arrays[second].astype(float), spec)


@pytest.mark.parametrize("layout", cudnn.LAYOUTS)
@pytest.mark.parametrize("direction", conv_gpu.DIRECTIONS)
@pytest.mark.parametrize("spec", [SPEC, SPREAD])
def test_the_reference_is_the_seven_loops(spec, direction, layout):
    arrays = conv_gpu.operands(np, spec, direction, "fp32", layout, seed=3)
    right = conv_gpu.reference(np, arrays, spec, direction)
    result = exact(direction, arrays, spec)
    assert conv_gpu.error(np, result, right, direction) < 1e-14
    assert len(right) == {"grad_weight": min(16, spec.O)}.get(direction, 2)
    result[0, 1, 2, 1] += 1
    assert conv_gpu.error(np, result, right, direction) > 1e-4


def test_operands_are_numbers_of_mean_0_and_variance_1():
    first, second = (conv_gpu.numbers(np, (50, 2000), seed) for seed in (0, 1))
    assert first.dtype == np.float32
    assert abs(first.mean()) < 0.02 and first.var() == pytest.approx(1, rel=0.02)  # 3σ: 0.01
    assert abs(first).max() < 3**0.5 + 1e-6
    for other in (second, np.roll(first, 1)):
        assert abs(np.corrcoef(first.ravel(), other.ravel())[0, 1]) < 0.02
    assert len(np.unique(first)) > 0.98 * first.size


def test_operands_lie_as_they_should():
    for layout, contiguous in (("NCHW", lambda a: a), ("NHWC", lambda a: a.transpose(0, 2, 3, 1))):
        arrays = conv_gpu.operands(np, SPEC, "forward", "fp16", layout, 0)
        assert [a.shape for a in arrays.values()] == [SPEC.x_shape, SPEC.w_shape]
        assert all(contiguous(a).flags.c_contiguous and a.dtype == np.float16 for a in arrays.values())


# ---- cuDNN


def test_results_are_laid_out_as_in_the_header():
    """sizeof and offsetof of cudnnConvolutionFwdAlgoPerf_t, by a C compiler and the headers of cuDNN 9.28."""
    names = [name for name, _ in cudnn.Performance._fields_]
    offsets = [getattr(cudnn.Performance, name).offset for name in names]
    assert dict(zip(names, offsets, strict=True)) == {
        "algo": 0,
        "status": 4,
        "time": 8,
        "memory": 16,
        "determinism": 24,
        "mathType": 28,
        "reserved": 32,
    }
    assert ctypes.sizeof(cudnn.Performance) == 48
    assert [len(each.algorithms) for each in cudnn.PASSES.values()] == [8, 6, 7]  # CUDNN_CONVOLUTION_…_ALGO_COUNT


@pytest.mark.skipif(cudnn.why_not() is not None, reason="cuDNN is not here; its descriptors need no GPU")
def test_cudnn_takes_our_descriptions():
    assert cudnn.version().startswith("9.")
    for layout, strides in (("NCHW", (168, 42, 6, 1)), ("NHWC", (168, 1, 24, 4))):
        made = cudnn.descriptors(SPEC, "float16", layout)
        told = [ctypes.c_int() for _ in range(9)]
        cudnn._call("cudnnGetTensor4dDescriptor", made["x"], *map(ctypes.byref, told))
        assert [number.value for number in told] == [2, *SPEC.x_shape, *strides]
        shape = [ctypes.c_int() for _ in range(4)]
        cudnn._call(
            "cudnnGetConvolution2dForwardOutputDim", made["conv"], made["x"], made["w"], *map(ctypes.byref, shape)
        )
        assert tuple(number.value for number in shape) == SPEC.y_shape


@pytest.mark.parametrize("layout", cudnn.LAYOUTS)
@pytest.mark.parametrize("direction", conv_gpu.DIRECTIONS)
@pytest.mark.parametrize("spec", [SPEC, SPREAD])
def test_cudnn_gets_its_arguments_in_order(spec, direction, layout, library):
    task = conv_gpu.by_cudnn(spec, direction, "fp32", layout=layout)
    task.run(0)
    verdict = task.verdict()
    assert verdict["error"] < 1e-6
    assert {a["name"] for a in verdict["algorithms"]} == {cudnn.PASSES[direction].algorithms[i] for i in (5, 1)}
    assert {a["math"] for a in verdict["algorithms"]} == {"FMA"}
    assert all(a["seconds"] > 0 and a["workspace"] == 64 and a["deterministic"] for a in verdict["algorithms"])
    assert {name for name, _ in library.ran} == {direction}


def test_an_algorithm_that_is_wrong_is_not_chosen(library):
    library.wrong = (5,)
    verdict = conv_gpu.by_cudnn(SPEC, "grad_input", "fp32", layout="NCHW").verdict()
    assert verdict["chosen"] == "ALGO_1" and verdict["error"] < 1e-6
    assert {a["name"]: a["error"] > 0.5 for a in verdict["algorithms"]} == {"ALGO_1": False, "WINOGRAD_NONFUSED": True}


@pytest.mark.parametrize(("precision", "math", "dtype"), [("fp32", 3, 0), ("tf32", 0, 0), ("fp16", 1, 2)])
def test_cudnn_is_told_which_arithmetic(precision, math, dtype, library):
    assert conv_gpu.by_cudnn(SPEC, "forward", precision, layout="NHWC").verdict()["error"] < 1e-3
    (described,) = [told for told in library.descriptors.values() if "math" in told]
    assert described["math"] == math and described["kind"] == 0  # sums in float32
    assert {told["kind"] for told in library.descriptors.values() if "shape" in told} == {dtype}


def test_what_cudnn_refuses_is_told(library):
    library.__dict__["cudnnFindConvolutionForwardAlgorithmEx"] = lambda *arguments: 3000
    with pytest.raises(cudnn.CudnnError, match="AlgorithmEx: CUDNN_STATUS_NOT_SUPPORTED"):
        conv_gpu.by_cudnn(SPEC, "forward", "fp32", layout="NCHW")


# ---- Time, memory and limits


def test_a_sample_is_the_mean_of_as_many_runs_as_fill_a_turn(fake, monkeypatch):
    asked = []

    def timed(run, runs, delay=0.0):
        asked.append((runs, delay))
        return 0.002, 0.0001

    monkeypatch.setattr(gpu, "timed", timed)
    contestant = gpu.Contestant()
    contestant.prepare(lambda: gpu.Task(lambda i: None, lambda: {"error": 0.0}))
    contestant.warm_up()
    assert contestant.sample(0.02) == 0.002
    assert asked == [(2, 0.0), (3, 0.0), (5, 0.0), (10, pytest.approx(1.5 * 10 * 0.0001))][: len(asked)]
    contestant.sample(1e9)
    assert asked[-1][0] == 64  # no more than the GPU's queue holds
    assert contestant.finish(True) == (1000, {"error": 0.0})
    assert fake.get_default_memory_pool().given_back >= 2


def test_time_is_between_the_events(fake, monkeypatch):
    waited, ran = [], []
    monkeypatch.setattr(gpu, "_chain", waited.append)
    monkeypatch.setattr(fake.cuda, "get_elapsed_time", lambda start, end: 12.0)  # milliseconds
    seconds, asking = gpu.timed(ran.append, 4, delay=0.001)
    assert seconds == 0.003 and ran == [0, 1, 2, 3] and asking > 0
    assert waited == [1_000_000]
    gpu.timed(ran.append, 1, delay=1e9)
    assert waited[-1] == int(0.02 * 1e9)  # never longer


def test_operands_are_more_than_the_cache_holds(fake):
    cache = 1 << 14
    assert [gpu.sets_beyond_cache(n) for n in (8 * cache, 4 * cache, cache, 1)] == [1, 1, 4, 16]
    sets = conv_gpu.several_sets(SPEC, "forward", "fp32", "NCHW")
    assert sum(a.nbytes for arrays in sets for a in arrays.values()) >= 4 * cache
    assert not np.array_equal(sets[0]["x"], sets[1]["x"])


def test_the_kernels_that_measure_limits_do_what_is_counted():
    """Three rounds. Multiply-adds: v → v/2 + ½, from i/2 for i < 8. Products of ones (and of 1.875 and 0 in turns, as
    float16 reads the bits of a float's 1) over k: eight sums of four numbers."""
    launch = lambda name, *arguments: cuda.kernel("bench/limits.cu", name)(2, 32, *arguments)  # noqa: E731
    numbers, a, b, sums = (
        to(n.astype(np.float32), "sim") for n in (np.full(66, 0.5), *map(np.arange, (1000, 1000, 64)))
    )
    launch("fma_chains", numbers, 3)
    assert (numbers[2:] == sum(1 - (1 - i / 2) / 8 for i in range(8))).all()
    numbers[0] = 1
    launch("mma_tf32_chains", numbers, 3)
    assert (numbers[2:] == 3 * 8 * 4 * 8).all()
    launch("mma_f16_chains", numbers, 3)
    assert (numbers[2:] == 3 * 8 * 4 * 8 * 1.875**2).all()
    b[:] = 0
    launch("copy_all", a, b, np.int64(250))
    launch("read_all", a, sums, np.int64(250))
    assert np.array_equal(a, b) and sums.sum() == a.sum()


def test_limits_count_flop_and_bytes(fake, monkeypatch):
    """With each kernel taking a second: 2048 threads, 20,000 rounds of 8 chains."""
    monkeypatch.setattr(gpu, "_ARRAY", 1 << 10)
    monkeypatch.setattr(gpu, "kernel", lambda file, name: lambda *arguments: None)
    monkeypatch.setattr(gpu, "timed", lambda run, runs: (1.0, 0.0))
    rounds = 2048 * 20_000 * 8 / 1e9
    assert gpu.limits() == pytest.approx(
        {
            "fp32_gflops": 2 * rounds,
            "tf32_gflops": 2 * 16 * 8 * 8 / 32 * rounds / 2,
            "fp16_gflops": 2 * 16 * 8 * 16 / 32 * rounds / 2,
            "read_gbs": 2**10 / 1e9,
            "copy_gbs": 2**11 / 1e9,
        }
    )
    assert gpu.least_seconds(40e9, 1, LIMITS, "tf32") == 2.0
    assert gpu.least_seconds(40e9, 10e9, LIMITS, "fp16") == 5.0


# ---- The race as a whole, on the fake machine; ours in the simulator


@pytest.fixture
def raced(library, monkeypatch):
    monkeypatch.setattr(gpu, "worker_for", fake_gpu.Here)
    monkeypatch.setattr(gpu, "measure_limits", lambda: LIMITS)
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    tiny = {"conv1_1": ConvSpec(1, 3, 6, 6, 4, 3, 3, (1, 1), (1, 1)), "conv1_2": SPREAD, "conv1_3": SPREAD}
    monkeypatch.setattr(conv_gpu, "chosen_layers", lambda batch, size, only: tiny)
    settings = {"samples": 2, "turn": 1e-6, "algorithms": ("naive",), "progress": False}
    return lambda **others: conv_gpu.run(machine=gpu.machine() | {"PyTorch": "none"}, **settings | others)


def test_a_race_from_end_to_end(raced, tmp_path):
    record = raced(batches=(1,), precisions=("fp32", "tf32"))
    assert record["contestants"] == ["minivgg naive", "cuDNN NCHW", "cuDNN NHWC"]
    assert record["lacks"] == ["PyTorch is not installed"]
    assert [(row["precision"], row["layers"], row["pass"]) for row in record["rows"][:4]] == [
        ("fp32", ["conv1_1"], "forward"),
        ("fp32", ["conv1_1"], "grad_input"),
        ("fp32", ["conv1_1"], "grad_weight"),
        ("fp32", ["conv1_2", "conv1_3"], "forward"),
    ]
    for row in record["rows"]:
        for result in row["results"].values():
            assert result["error"] < 1e-6 and result["samples"] == 2 and result["seconds"] > 0
    shown = [str(table) for table in tables(record)]
    assert "fp32, batch 1" in shown[0] and "Fake GPU" in shown[0] and "Not in it: PyTorch is not installed." in shown[0]
    assert "× cuDNN without Winograd" in shown[1]
    assert "WINOGRAD_NONFUSED" in shown[2]
    save(pictures.picture(record), tmp_path / "race.png")
    with Image.open(tmp_path / "race.png") as image:
        image.load()


def test_the_baseline_is_cudnn_alone(raced):
    assert raced(batches=(1,), precisions=("fp32",), baseline=True)["contestants"] == ["cuDNN NCHW", "cuDNN NHWC"]


def test_float16_is_raced_by_those_who_take_it(raced, monkeypatch):
    """Operands that are 11 bits long, and a result that is rounded to as many: off by 2⁻¹¹/√3 = 3e-4 or less."""
    monkeypatch.setattr(conv_gpu, "chosen_layers", lambda batch, size, only: {"conv1_1": SPEC})
    algorithms = ("auto", "fp16", "implicit_gemm", "winograd", "tf32")
    for row in raced(batches=(1,), precisions=("fp16",), algorithms=algorithms)["rows"]:
        results = row["results"]
        assert results["minivgg auto"]["chosen"] == "fp16"
        assert all(1e-5 < results[f"minivgg {name}"]["error"] < 3e-4 for name in ("auto", "fp16", "implicit_gemm"))
        for name in ("winograd", "tf32"):
            why = "on a GPU its arrays are float32 or float64, not float16"
            assert results[f"minivgg {name}"] == {"unsupported": why}
    (row, *_) = raced(batches=(1,), precisions=("fp32",), algorithms=("fp16",))["rows"]
    assert row["results"]["minivgg fp16"] == {"unsupported": "on a GPU its arrays are float16, not float32"}


def test_who_is_not_strict_is_not_in_the_strict_race(raced, monkeypatch):
    """float32 rounded to TF32's ten bits on the way: an error of 3e-4 or so."""

    def rounded(x, w, spec):
        bits = (np.asarray(x).view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        return ALGORITHMS["im2col"].forward(bits.view(np.float32), np.asarray(w), spec)

    row, one = ALGORITHMS["naive"], {"conv1_1": SPREAD}
    monkeypatch.setattr(conv_gpu, "chosen_layers", lambda batch, size, only: one)
    monkeypatch.setattr(conv_gpu, "DIRECTIONS", ("forward",))
    monkeypatch.setitem(ALGORITHMS, "naive", type(row)("naive", "", rounded, row.grad_input, row.grad_weight))
    strict, loose = (
        row["results"]["minivgg naive"] for row in raced(batches=(1,), precisions=("fp32", "tf32"))["rows"]
    )
    assert "not strict float32: its error is" in strict["unsupported"]
    assert 1e-5 < loose["error"] < 1e-3


def test_who_fails_gets_a_fresh_process(raced, monkeypatch):
    workers = {}
    monkeypatch.setattr(gpu, "worker_for", lambda name: workers.setdefault(name, fake_gpu.Here()))
    row = ALGORITHMS["naive"]

    def illegal(x, w, spec):
        raise RuntimeError("CUDA error: an illegal access" if spec == SPREAD else "no float16")

    broken = type(row)("naive", "", illegal, row.grad_input, row.grad_weight)
    monkeypatch.setitem(ALGORITHMS, "naive", broken)
    record = raced(batches=(1,), precisions=("fp32",))
    assert record["rows"][0]["results"]["minivgg naive"] == {"failure": "RuntimeError: no float16"}
    assert "seconds" in record["rows"][1]["results"]["minivgg naive"]
    assert {name: worker.closed for name, worker in workers.items()} == {
        "minivgg naive": 1,  # after the illegal access alone
        "cuDNN NCHW": 0,
        "cuDNN NHWC": 0,
    }
    assert "minivgg naive: RuntimeError" in str(tables(record)[1])


# ---- What a machine lacks, and what it is told


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    for race in ("conv", "vgg"):
        assert main(["bench", race, "--device", "gpu", "--quick"]) == 2
        said = capsys.readouterr().err
        assert (
            "no race on a GPU: CuPy is not installed: pip install 'minivgg[cuda12]'" in said and said.count("\n") == 1
        )


@pytest.mark.parametrize("race", [conv_gpu, vgg_gpu])
def test_a_precision_that_is_none_is_told(race, fake):
    with pytest.raises(BadInput, match='no precision "bf16"'):
        race.run(machine={}, precisions=("bf16",), progress=False)


def test_the_network_is_raced_as_far_as_there_are_rivals(fake, monkeypatch):
    monkeypatch.setattr(pytorch, "installed", lambda: False)
    assert list(vgg_gpu.contestants("forward")[0]) == ["minivgg", "minivgg frozen"]
    assert list(map(list, vgg_gpu.contestants("step"))) == [["minivgg", "minivgg graphs"], ["PyTorch is not installed"]]


def test_scores_are_held_to_float64_on_one_image():
    task = vgg.QUICK[0]
    right = vgg.scores(task, images=1)
    assert right.shape == (1, 10) and np.allclose(right, vgg.scores(task)[:1], rtol=1e-12, atol=0)
    assert vgg_gpu._verdict(task, lambda: right) == {"error": 0.0}
    assert vgg_gpu._verdict(task, lambda: 1.01 * right)["error"] == pytest.approx(0.01)


def test_nvidias_wheels_are_looked_for_where_they_lie(tmp_path, monkeypatch):
    for folder in ("cuda_nvrtc/lib", "cu12/lib", "cu13/lib"):
        (tmp_path / folder).mkdir(parents=True)
    found = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda name: found)
    assert [path.name for path in nvrtc.wheel_folders("cu[0-9]*", "cuda_nvrtc", "cudnn")] == [
        "cu13",
        "cu12",
        "cuda_nvrtc",
    ]


@pytest.mark.parametrize("layout", cudnn.LAYOUTS)
@pytest.mark.parametrize("direction", conv_gpu.DIRECTIONS)
def test_pytorch_computes_the_same(direction, layout, fake, monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(pytorch, "set_precision", lambda precision: None)
    task = conv_gpu.by_pytorch(SPREAD, direction, "fp32", layout=layout)
    assert task.verdict()["error"] < 1e-6
    assert isinstance(task.run(1), torch.Tensor)


@pytest.mark.parametrize(("precision", "kind"), [("fp32", "ieee"), ("tf32", "tf32")])
def test_pytorch_is_told_which_arithmetic(precision, kind):
    torch = pytest.importorskip("torch")
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    try:
        pytorch.set_precision(precision)
        assert torch.backends.cudnn.conv.fp32_precision == torch.backends.cuda.matmul.fp32_precision == kind
    finally:
        torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before
        torch.backends.cudnn.benchmark = False
