"""What of `environments.py` needs no namespace; the gate runs the whole of it."""

import environments
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("environment", [environments.closed_streams, environments.after_a_fork])
def test_environment(environment):
    try:
        environment()
    except environments.Skipped as reason:
        pytest.skip(str(reason))
