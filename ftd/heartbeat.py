"""The sign of life of a sender that has nothing to say."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime


class Heartbeat:
    """
    Calls ``beat`` whenever nothing was said for ``interval`` seconds.

    What is said only notes the time; the timer looks at that when it is due, rather than being moved by every frame.
    """

    def __init__(self, clock: IReactorTime, interval: float, beat: Callable[[], None]) -> None:
        self._clock = clock
        self._interval = interval
        self._beat = beat
        self._said_at = clock.seconds()
        self._timer: IDelayedCall | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._timer = self._clock.callLater(self._interval, self._look)

    def said(self) -> None:
        """Something was said."""
        self._said_at = self._clock.seconds()

    def stop(self) -> None:
        """No more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        # The moment rather than the time left: that is never so short that the clock does not notice it.
        now, due = self._clock.seconds(), self._said_at + self._interval
        self._timer = self._clock.callLater(due - now if now < due else self._interval, self._look)
        if now >= due:
            self._beat()
