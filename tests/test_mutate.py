"""What `mutate.py` changes, and that it tells what it does not."""

import datetime
import tomllib

import mutate
import numpy as np
import pytest

from minivgg.backends import microkernel


@pytest.fixture
def changes(tmp_path, monkeypatch):
    """A function from source to (function, change) of all its mutants."""
    monkeypatch.setattr(mutate, "OPS", tmp_path)

    def found(source):
        (tmp_path / "op.py").write_text(source)
        return [(mutant.function, mutant.change) for mutant in mutate.mutants("op")]

    return found


def test_one_change_at_a_time(changes):
    source = "def f(x, y=2):\n    '''x − 1'''\n    def g():\n        return x < y\n    return g() + 3"
    assert changes(source) == [
        ("f", "2  →  3"),
        ("f.g", "x < y  →  x <= y"),
        ("f", "g() + 3  →  g() - 3"),
        ("f", "g() + 3  →  g() + 4"),
    ]


def test_messages_and_what_launches_kernels_stay_as_they_are(changes):
    assert changes("def f(x: 1 + 2):\n    raise ValueError(f'{x + 1}')\ndef _relu_on_gpu(x):\n    return x + 1") == []
    assert changes("def f(x):\n    return zip(x, x, strict=True)") == []
    assert changes("def f(x):\n    warn(x, stacklevel=2)") == [("f", "warn(x, stacklevel=2)  →  pass")]
    assert changes("def f(x):\n    return x.reshape(-1)") == [("f", "-1  →  1")]
    assert changes("TILES_ON_GPU = 2 + 2") == []
    assert changes("def f(x):\n    return g(x) if on_gpu(x) else x\n    if on_gpu(x):\n        g(x)") == []
    assert changes("def f(x):\n    if on_gpu(x):\n        g(x)\n    else:\n        h(x)") == [("f", "h(x)  →  pass")]


def test_scores_are_recorded_beside_those_of_other_files(tmp_path, monkeypatch):
    page = tmp_path / "survivors.toml"
    page.write_text("# why\n\n[scores]\n\n[[survivor]]\nfile = 'relu'\n")
    monkeypatch.setattr(mutate, "EXPLAINED", page)
    first, second = datetime.date(2026, 1, 2), datetime.date(2026, 3, 4)
    mutate.record("relu", {"mutants": 8, "noticed": 4, "late": 1, "date": first})
    mutate.record("flatten", {"mutants": 2, "noticed": 2, "late": 0, "date": second})
    table = tomllib.loads(page.read_text())
    assert table["survivor"] == [{"file": "relu"}]
    assert list(table["scores"]) == ["flatten", "relu", "all"]
    assert table["scores"]["all"] == {"mutants": 10, "noticed": 6, "late": 1, "score": 0.6, "date": first}


@pytest.mark.parametrize("add", [0, 1])
def test_the_quick_product_is_the_product(add):
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((2, 5, 7)), rng.standard_normal((2, 9, 40)), rng.standard_normal((6, 50))
    arguments = (a, 1, (35, 7, 2), b, 3, (360, 40)), (5, 50, (2, 3), add)  # of a, every other number of a row
    expected, found = c.copy(), c.copy()
    microkernel.product(4, *arguments[0], expected, *arguments[1])
    mutate._quick_block(4, *arguments[0], found, *arguments[1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert (found != c).sum() == 4 * 32


def test_every_file_of_ops_has_tests():
    files = {path.relative_to(mutate.OPS).with_suffix("").as_posix() for path in mutate.OPS.rglob("*.py")}
    assert files - {"__init__"} == set(mutate.TESTS) | mutate.ON_GPU


def test_every_explanation_is_of_a_mutant():
    known = {(m.file, m.function, m.change) for file in mutate.TESTS for m in mutate.mutants(file)}
    assert mutate.explanations().keys() - known == set()
