"""In place of threads: what would block runs at once, or when the test says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from twisted.internet.defer import Deferred, execute

_T = TypeVar("_T")


def run_at_once(act: Callable[[], _T], /) -> Deferred[_T]:
    """A thread that is done before the caller goes on."""
    return execute(act)


class SteppedThread:
    """A thread that does one thing at a time, each when it is told to."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], object]] = deque()

    def __call__(self, act: Callable[[], _T], /) -> Deferred[_T]:
        """Have ``act`` wait its turn."""
        done: Deferred[_T] = Deferred()
        self._waiting.append(lambda: execute(act).chainDeferred(done))
        return done

    @property
    def waiting(self) -> int:
        """How many things were given to it and are not done."""
        return len(self._waiting)

    def step(self) -> None:
        """Do the next thing."""
        self._waiting.popleft()()

    def run(self) -> None:
        """Do everything there is, and what comes of it."""
        while self._waiting:
            self.step()
