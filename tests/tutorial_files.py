"""`tutorials/build.py`, for tests."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the tutorials are built with pip install -e '.[tutorials]'")
TUTORIALS = Path(__file__).parents[1] / "tutorials"
_spec = importlib.util.spec_from_file_location("tutorials_build", TUTORIALS / "build.py")
build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build)
