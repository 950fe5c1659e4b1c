"""Something that takes a while, one at a time, and whose end can be waited for."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred


class OneTask:
    """
    At most one task is under way.

    :ivar is_busy: one is.
    """

    def __init__(self) -> None:
        self.is_busy = False
        self._waiting: list[Deferred[None]] = []

    @property
    def is_awaited(self) -> bool:
        """Whether somebody waits for the end of the one that is under way."""
        return bool(self._waiting)

    def begin(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Begin it; there must be none under way.  Fires with what becomes of it."""
        assert not self.is_busy, "there is one under way"
        self.is_busy = True
        return Deferred.fromCoroutine(work).addBoth(self._end)

    def done(self) -> Deferred[None]:
        """Fires when nothing is under way; it has no result."""
        waiting: Deferred[None] = Deferred()
        if self.is_busy:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def _end(self, result: Any) -> Any:
        self.is_busy = False
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)
        return result
