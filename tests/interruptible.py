"""Running a coroutine as a program that cleans up however it is ended, Ctrl-C and SIGTERM too."""

from __future__ import annotations

import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure

from tests.waiting import reactor

T = TypeVar("T")


class Interrupted(Exception):
    """
    A signal has ended it, and everything is cleaned up.

    :ivar status: for `sys.exit`, as a shell has it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


def run(work: Callable[[], Coroutine[Deferred[Any], Any, T]]) -> T:
    """
    Run the reactor until ``work`` is done; what it returns, or raises.

    A signal cancels what it waits for, so its ``finally`` and its contexts are gone through, as long as that may take;
    further signals change nothing.

    :raises Interrupted: if it was a signal that has ended it.
    """
    globalLogBeginner.beginLoggingTo([], redirectStandardIO=False, discardBuffer=True)
    outcome: list[T | Failure] = []
    signals: list[int] = []

    def begin() -> None:
        working = Deferred.fromCoroutine(work())

        def interrupt(number: int) -> None:
            if not signals:
                signals.append(number)
                working.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            # The reactor has had its own in place before it called this.
            signal.signal(number, lambda number, _frame: reactor.callFromThread(interrupt, number))
        working.addBoth(outcome.append)
        working.addBoth(lambda _: reactor.stop())

    reactor.callWhenRunning(begin)
    reactor.run()
    if not outcome:
        raise RuntimeError("the reactor was stopped by somebody else")
    result = outcome[0]
    if not isinstance(result, Failure):
        return result
    if signals and result.check(CancelledError):
        raise Interrupted(signals[0])
    result.raiseException()
    raise AssertionError("not reached")
