"""How the tests of the wire use hypothesis."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

# Its caches go to where a test runs, trial's temporary directory; by default they go to where trial was started.
set_hypothesis_home_dir(Path(".hypothesis"))


def examples(count: int, steps: int = 50) -> settings:
    """
    Settings for a property that is cheap enough for ``count`` examples, of up to ``steps`` steps in a state machine.

    No deadline: a machine that does other work too is no failure.  No database: the tests leave nothing behind; what
    hypothesis finds it prints with the blob that reproduces it.  In CI the examples are always the same.
    Some test cases run once more on another transport; that these could not share a database is no matter.
    """
    return settings(
        max_examples=count,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        derandomize="CI" in os.environ,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.differing_executors],
    )
