"""Sixty trainings killed (kill −9) at random moments and twenty at what they write, every second one twice."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLED = -9


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_eighty_kills_resume_to_the_same_bits_and_leave_nothing(tmp_path):
    tests = Path(__file__).parent
    paths = os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"NUMBA_THREADING_LAYER": "workqueue", "NUMBA_NUM_THREADS": "1", "PYTHONPATH": paths}
    environment |= {"OPENBLAS_NUM_THREADS": "1"}
    environment.pop("MINIVGG_NUM_THREADS", None)
    command = [sys.executable, str(tests / "kills.py"), str(tmp_path), "60", "20"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    results = found["results"]
    assert len(results) == 80
    assert [result for result in results if result[4] != 0 or result[6] is not None] == []
    assert not any("traceback" in result[5] for result in results)
    at_boundary = [killed for kind, _, killed, *_ in results if kind == "boundary"]
    at_random = [killed for kind, _, killed, *_ in results if kind == "random"]
    assert at_boundary == [KILLED] * 20
    assert at_random.count(KILLED) >= 30  # others had come to their end
    assert found["changes"] > 100
