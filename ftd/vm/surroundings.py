"""What the parts of a VM need of their daemon, so that tests can put something else in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.defer import Deferred


@attrs.frozen(kw_only=True)
class VmSurroundings:
    """
    :ivar reactor: time, sockets, descriptors.
    :ivar run_in_thread: calls a function in one of the VM's own threads; fires with its result.
    :ivar node: the daemon's name.
    :ivar now: Unix seconds.
    :ivar ticks: seconds of a clock that is good for measuring.
    """

    reactor: Any
    run_in_thread: Callable[..., Deferred[Any]]
    node: str = ""
    now: Callable[[], float] = time.time
    ticks: Callable[[], float] = time.perf_counter
