"""A direction of a link that is as slow as a long, thin line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
from twisted.internet.interfaces import IDelayedCall

from tests.waiting import reactor


@attrs.frozen
class Slowness:
    """
    :ivar delay: seconds from one end to the other.
    :ivar rate: bytes a second.
    """

    delay: float
    rate: float


class SlowWriter:
    """
    Passes on what it is given, later and no faster than the line is.

    As little is under way as on a real line: whoever sends more is paused.

    :param write: takes the bytes at the far end.
    :param source: the transport that they come from.
    """

    #: Seconds of the line's rate that may wait for it beside what is on it.
    _QUEUE = 0.1

    def __init__(self, slowness: Slowness, write: Callable[[bytes], None], source: Any) -> None:
        self._slowness = slowness
        self._write = write
        self._source = source
        self._queue: deque[tuple[float, bytes]] = deque()
        self._waiting = 0
        self._free_at = 0.0
        self._is_paused = False
        self._timer: IDelayedCall | None = None
        self._most = (slowness.delay + self._QUEUE) * slowness.rate

    def write(self, data: bytes) -> None:
        """Put bytes on the line."""
        self._free_at = max(reactor.seconds(), self._free_at) + len(data) / self._slowness.rate
        self._queue.append((self._free_at + self._slowness.delay, data))
        self._waiting += len(data)
        if len(self._queue) == 1:
            self._wait()
        if self._waiting > self._most and not self._is_paused:
            self._is_paused = True
            self._source.pauseProducing()

    def cut(self) -> None:
        """The line is cut: what is under way is lost."""
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._timer = reactor.callLater(max(0.0, self._queue[0][0] - reactor.seconds()), self._arrive)

    def _arrive(self) -> None:
        self._timer = None
        now = reactor.seconds()
        while self._queue and self._queue[0][0] <= now:
            _due, data = self._queue.popleft()
            self._waiting -= len(data)
            self._write(data)
        if self._queue:
            self._wait()
        if self._is_paused and self._waiting <= self._most:
            self._is_paused = False
            self._source.resumeProducing()
