"""The check of a number: what is in the range comes back, everything else is one line that names it and the range."""

import math

import numpy as np
import pytest

from minivgg.errors import BadInput, check_range


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1), np.array(0.25)])
def test_a_number_in_the_range_comes_back(value):
    assert check_range("p", value, 0, 1) is value


@pytest.mark.parametrize(
    "value",
    [
        -0.001,
        1.001,
        math.nan,
        math.inf,
        -math.inf,
        True,
        np.True_,
        "0.5",
        b"1",
        None,
        [0.5],
        {},
        1j,
        np.zeros(1),
        10**400,
    ],
)
def test_anything_else_is_one_line(value):
    for high in (1, math.inf):
        if high == math.inf and value == 1.001:
            continue
        with pytest.raises(BadInput, match=r"^Dropout: p = .*: should be a number, at least 0") as caught:
            check_range("Dropout: p", value, 0, high)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("value", [1.0, 0.5, np.float64(2), math.nan, 0, 9])
def test_whole_numbers(value):
    with pytest.raises(BadInput, match=r"should be a whole number, at least 1 and at most 8$"):
        check_range("kernel_size", value, 1, 8, integer=True)
    assert check_range("kernel_size", 8, 1, 8, integer=True) == 8


def test_open_ends():
    assert check_range("eps", 1e-300, 0, math.inf, low_open=True) == 1e-300
    with pytest.raises(BadInput, match=r"^eps = 0: should be a number, above 0 and below 1$"):
        check_range("eps", 0, 0, 1, low_open=True, high_open=True)
    with pytest.raises(BadInput, match=r"^beta = 1\.0: should be a number, at least 0 and below 1$"):
        check_range("beta", 1.0, 0, 1, high_open=True)
    with pytest.raises(BadInput, match=r"^x = nan: should be a number, finite$"):
        check_range("x", math.nan, -math.inf, math.inf)
