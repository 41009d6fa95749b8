"""Three thousand damaged files of every kind that is read from outside: one line each, no traceback, no crash, less
than a gigabyte, and seconds. fuzz_files.py makes them from fixed seeds, and says how to run more."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_files
import pytest

EACH = 100
NEEDS_H5PY = ("h5", "Keras", "keras")
GROUPS = {
    "safetensors, npz and PyTorch": [kind for kind in fuzz_files.CASES if kind.startswith("weights")],
    "Keras": [],
    "pictures": [kind for kind in fuzz_files.CASES if kind.startswith("picture")],
    "sets of images": [kind for kind in fuzz_files.CASES if kind.startswith("set")],
}
GROUPS["Keras"] = [kind for kind in GROUPS["safetensors, npz and PyTorch"] if any(word in kind for word in NEEDS_H5PY)]
GROUPS["safetensors, npz and PyTorch"] = [k for k in GROUPS["safetensors, npz and PyTorch"] if k not in GROUPS["Keras"]]


def test_there_are_three_thousand():
    assert EACH * len(fuzz_files.CASES) >= 3000
    assert sum(map(len, GROUPS.values())) == len(fuzz_files.CASES)


@pytest.mark.skipif(sys.platform != "linux", reason="limits and the peak of memory are Linux's")
@pytest.mark.parametrize("group", GROUPS)
def test_every_damaged_file_is_read_or_one_line(group, tmp_path):
    if group == "Keras" and not importlib.util.find_spec("h5py"):
        pytest.skip("h5py is not installed")
    here = Path(__file__).parent
    command = [
        sys.executable,
        "-W",
        "ignore",
        fuzz_files.__file__,
        ";".join(GROUPS[group]),
        "0",
        str(EACH),
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    last = done.stderr.splitlines()[-1:]
    assert done.returncode == 0, (last, done.stderr[-1000:])
    wrong = [json.loads(line) for line in done.stdout.splitlines()]
    assert not wrong, "\n".join(
        f"{kind} {seed}, {seconds} s, {peak} MB: {what}" for kind, seed, what, seconds, peak in wrong
    )
