"""The README's examples run, and its commands are those that CI runs."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minivgg import cudasim
from minivgg.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_examples_run(capsys):
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(block, scope)
    printed = capsys.readouterr().out
    assert re.match(r"loss \d\.\d\d, first layer's gradient \(16, 1, 3, 3\)\n\['naive', 'im2col'", printed)
    said = re.search(r"diagnosis\[0\]\[:54\]\)  # (.*)", README)[1]
    assert printed.count(said) == 2  # as promised beside the line that prints it, and in the report
    assert scope["dx"].shape == (8, 1, 32, 32)
    assert abs(scope["loss"] - np.log(10)) < 1


def test_every_command_is_listed():
    assert re.findall(r"^minivgg (\w+)   ", README, re.MULTILINE) == [c.__name__.rsplit(".", 1)[1] for c in COMMANDS]


def test_every_link_and_picture_exists():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_ci_runs_the_test_command_of_the_readme():
    assert "\npip install -e '.[dev]' && pytest\n" in README
    assert 'grep -m1 "&& pytest" README.md' in (ROOT / ".ci" / "run").read_text()


@pytest.mark.skipif(cudasim.why_not() is not None, reason="needs a C++ compiler")
@pytest.mark.skipif(not shutil.which("addr2line"), reason="needs addr2line for lines")
def test_the_simulators_command_does_what_is_said_of_it(tmp_path):
    kernel = re.search(r"```c\n(.*?)```", README, re.DOTALL)[1]
    command = re.search(r"^python (-m minivgg\.cudasim reverse\.cu .*)$", README, re.MULTILINE)[1].split()
    (tmp_path / "reverse.cu").write_text(kernel)

    def run():
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout, done.stderr

    status, printed, said = run()
    assert (status, printed) == (1, "")
    assert re.search(r"race .*shared tile.*at reverse.cu:5.*at reverse.cu:4, and nothing orders them", said)
    (tmp_path / "reverse.cu").write_text(kernel.replace("    y[", "    __syncthreads();\n    y["))
    status, printed, said = run()
    assert (status, said) == (0, "")
    assert "racecheck: nothing found" in printed
    assert re.search(r"reverse.cu:6 +shared +read", printed)
