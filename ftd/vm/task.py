"""Something that takes a while, one at a time, and whose end can be waited for."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from twisted.internet.defer import Deferred


class OneTask:
    """At most one task is under way."""

    def __init__(self) -> None:
        self._is_busy = False
        self._waiting: list[Deferred[None]] = []

    def begin(self, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Begin it; there must be none under way.  Fires with what becomes of it."""
        assert not self._is_busy, "there is one under way"
        self._is_busy = True
        return Deferred.fromCoroutine(work).addBoth(self._end)

    def done(self) -> Deferred[None]:
        """Fires when nothing is under way; it has no result."""
        waiting: Deferred[None] = Deferred()
        if self._is_busy:
            self._waiting.append(waiting)
        else:
            waiting.callback(None)
        return waiting

    def _end(self, result: Any) -> Any:
        self._is_busy = False
        waiting, self._waiting = self._waiting, []
        for deferred in waiting:
            deferred.callback(None)
        return result
