"""Trying again what has failed, less and less often."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ftd.vm.background import cancel

#: Seconds after the first failure; doubled each time.
_FIRST = 0.05


class Retry:
    """
    :param again: called when it is time to try again.
    """

    def __init__(self, clock: IReactorTime, again: Callable[[], None]) -> None:
        self._clock = clock
        self._again = again
        self._wait = _FIRST
        self._since: float | None = None
        self._timer: IDelayedCall | None = None

    @property
    def is_failing(self) -> bool:
        """Whether nothing has succeeded since the last failure."""
        return self._since is not None

    @property
    def failing_for(self) -> float:
        """Seconds since the first failure after the last success; 0 if there was none."""
        return self._clock.seconds() - self._since if self._since is not None else 0.0

    def failed(self, most: float) -> None:
        """It has failed; ``most``: seconds to wait at most."""
        if self._since is None:
            self._since = self._clock.seconds()
        cancel(self._timer)
        self._timer = self._clock.callLater(min(self._wait, most), self._again)
        self._wait = min(2 * self._wait, most)

    def succeeded(self) -> None:
        """It works."""
        self._since = None
        self._wait = _FIRST

    def stop(self) -> None:
        """Do not try again."""
        cancel(self._timer)
