"""Which algorithm takes which dtype on which device, what the others say, and what "auto" chooses. No kernel runs."""

import re

import numpy as np
import pytest

from minivgg.backends.array import to
from minivgg.ops.conv2d import ALGORITHMS, ConvSpec, algorithms_on, conv2d_forward, explain, plan

TAKE_HALVES = ["naive", "im2col", "coalesced", "tiled", "direct", "implicit_gemm", "fp16"]
VGG = ConvSpec.of((1, 3, 5, 6), (4, 3, 3, 3), 1, 1)


def refuses(device, dtype, algorithm, why):
    """`conv2d_forward` does, and names the algorithm, or what to write where none takes that dtype."""
    x, w = (to(np.ones(shape, dtype), device) for shape in (VGG.x_shape, VGG.w_shape))
    said = why if why.startswith("x is") else f'algorithm "{algorithm}" cannot do {VGG}: {why}'
    with pytest.raises(ValueError, match=re.escape(f"conv2d: {said}")):
        conv2d_forward(x, w, padding=1, algorithm=algorithm)


TAKEN = "not float32 or float64, or float16 on a GPU: write x.astype(np.float32)"


def test_who_takes_float16():
    assert algorithms_on("sim", np.float16) == algorithms_on("gpu", np.float16) == TAKE_HALVES
    assert algorithms_on("cpu", np.float16) == []
    assert "fp16" not in algorithms_on("gpu") + algorithms_on("gpu", np.float64)
    for name, row in ALGORITHMS.items():
        assert (row.why_not(VGG, "gpu", np.float16) is None) == (name in TAKE_HALVES)


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in TAKE_HALVES])
def test_who_does_not_take_it_says_so(algorithm):
    refuses("sim", np.float16, algorithm, "on a GPU its arrays are float32 or float64, not float16")


@pytest.mark.parametrize("algorithm", ["auto", *algorithms_on("cpu")])
def test_a_cpu_refuses_it(algorithm):
    refuses("cpu", np.float16, algorithm, f"x is of dtype float16, {TAKEN}")


def test_tensor_cores_for_float16_take_nothing_else():
    for dtype in (np.float32, np.float64):
        refuses("sim", dtype, "fp16", f"on a GPU its arrays are float16, not {np.dtype(dtype)}")
    for dtype in (np.float32, np.float64):
        refuses("cpu", dtype, "fp16", "it runs on a GPU's tensor cores, which a CPU does not have")


def test_integers_are_refused():
    refuses("sim", np.int64, "naive", f"x is of dtype int64, {TAKEN}")
    refuses("cpu", np.int64, "auto", f"x is of dtype int64, {TAKEN}")


@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
def test_auto_takes_tensor_cores_for_float16_alone(direction):
    chosen = {
        dtype: (plan(VGG, direction, device="gpu", dtype=dtype), explain(VGG, direction, device="gpu", dtype=dtype))
        for dtype in (np.float16, np.float32, np.float64)
    }
    assert [row.name for row, _ in chosen.values()] == ["fp16", "implicit_gemm", "im2col"]
    assert [said for _, said in chosen.values()] == [
        "fp16: tensor cores, for float16: sums in float32 (by a rule for GPUs; not measured yet)",
        f"implicit_gemm: {ALGORITHMS['implicit_gemm'].reason} (by a rule for GPUs; not measured yet)",
        f"im2col: {ALGORITHMS['im2col'].reason}",
    ]
