"""Running a coroutine as a program that cleans up however it is ended, Ctrl-C and SIGTERM too."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from tests.waiting import reactor

T = TypeVar("T")

#: Seconds after which what goes on although it was interrupted is interrupted again.
_AGAIN = 0.2

# How many of what is under way is not to be interrupted.
_shields = 0


class Interrupted(Exception):
    """
    A signal has ended it, and everything is cleaned up.

    :ivar status: for `sys.exit`, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


@contextmanager
def shielded() -> Iterator[None]:
    """What is cleaned up in here is cleaned up to the end."""
    global _shields
    _shields += 1
    try:
        yield
    finally:
        _shields -= 1


def run(work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
    """
    Run the reactor until ``work`` is done; what it returns, or raises.

    A signal cancels what it waits for, again and again, as some of that takes a cancelled request for one that was not
    answered.  What is `shielded` is waited for.

    :raises Interrupted: if there was a signal.
    """
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    outcome: list[T | Failure] = []
    signals: list[int] = []

    def begin() -> None:
        def interrupt(number: int) -> None:
            if not signals:
                signals.append(number)
                cancel()

        def cancel() -> None:
            if outcome:
                return
            if not _shields:
                working.cancel()
            reactor.callLater(_AGAIN, cancel)

        for number in (signal.SIGINT, signal.SIGTERM):
            # The reactor has its own in place by now.
            signal.signal(number, lambda number, _frame: reactor.callFromThread(interrupt, number))
        working = Deferred.fromCoroutine(work())
        working.addBoth(outcome.append)
        working.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if signals:
        # Whatever its cancelled parts have made of that.
        raise Interrupted(signals[0])
    if not outcome:
        raise RuntimeError("the reactor was stopped by somebody else")
    result = outcome[0]
    if isinstance(result, Failure):
        result.raiseException()
        raise AssertionError("not reached")
    return result
