"""Files are written whole or not at all, and a damaged one is one clear line."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from minivgg.backends.array import channels_last
from minivgg.errors import BadInput
from minivgg.files import atomically, write_safetensors
from minivgg.training import checkpoints

ARRAYS = {
    "model.w": channels_last(np.random.default_rng(0).standard_normal((2, 3, 4, 5))),
    "model.b": np.arange(3, dtype=np.float32),
    "state.n": np.array([2**62], np.int64),
}


def test_arrays_and_description_come_back(tmp_path):
    description = {"epoch": 3, "history": [{"loss": 0.1}], "best": float("inf")}
    checkpoints.save(tmp_path / "a.safetensors", ARRAYS, description)
    arrays, found = checkpoints.load(tmp_path / "a.safetensors")
    assert found == description
    assert arrays.keys() == ARRAYS.keys()
    for name, value in ARRAYS.items():
        np.testing.assert_array_equal(arrays[name], value, strict=True)


def test_select_takes_a_prefix_off():
    assert list(checkpoints.select(ARRAYS, "model.")) == ["w", "b"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line_that_names_the_file(tmp_path, data):
    path = tmp_path / "a.safetensors"
    checkpoints.save(path, ARRAYS, {"epoch": 3})
    content = path.read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    if data.draw(st.booleans()):
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:  # a byte of the length or of the header's opening brace
        place = data.draw(st.integers(0, 8))
        path.write_bytes(
            content[:place] + bytes([content[place] ^ data.draw(st.integers(1, 255))]) + content[place + 1 :]
        )
    assert header < len(content)
    with pytest.raises(BadInput) as caught:
        checkpoints.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"minivgg": "not JSON"}])
def test_foreign_safetensors_file(tmp_path, metadata):
    save_file({"w": np.zeros(2)}, tmp_path / "b.safetensors", metadata=metadata)
    with pytest.raises(BadInput, match=r"b\.safetensors: a safetensors file, but not a checkpoint of minivgg's"):
        checkpoints.load(tmp_path / "b.safetensors")


def test_missing_file(tmp_path):
    with pytest.raises(BadInput, match=r"none\.safetensors: no such file"):
        checkpoints.load(tmp_path / "none.safetensors")


def test_failure_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomically(path) as temporary:
        temporary.write_text("new, but")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with atomically(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_are_made(tmp_path):
    with atomically(tmp_path / "a" / "b" / "c.txt") as temporary:
        temporary.write_text("x")
    assert (tmp_path / "a" / "b" / "c.txt").read_text() == "x"


@pytest.mark.parametrize("dtype", ["<f8", ">f4", "<f2", ">i8", "<i4", "<i2", "i1", "<u8", ">u4", "<u2", "u1", "?"])
def test_what_we_write_is_what_safetensors_reads(dtype, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.integers(0, 2, (3, 4)).astype(dtype),
        "empty": np.zeros((0, 3), dtype),
        "transposed": rng.integers(0, 2, (4, 5)).astype(dtype).T,
        "é \"'\n": np.ones(1, dtype),
    }
    write_safetensors(tmp_path / "a.safetensors", arrays, {"key": "välue\n"})
    with safe_open(tmp_path / "a.safetensors", framework="np") as file:
        assert file.metadata() == {"key": "välue\n"}
        assert set(file.keys()) == set(arrays)
        for name, value in arrays.items():
            found = file.get_tensor(name)
            assert found.dtype == value.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, value)
