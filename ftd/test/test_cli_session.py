"""The reactor around a command, and the signals that end it."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.cli.session import run


class FakeReactor:
    """
    Runs what it is given, in order, until it is stopped.

    :ivar calls: what is to be run.
    """

    def __init__(self) -> None:
        self.calls: deque[Callable[[], object]] = deque()
        self.is_running = False
        self.runs = 0

    def callWhenRunning(self, call: Callable[[], object]) -> None:
        """See `IReactorCore`."""
        self.calls.append(call)

    def callFromThread(self, call: Callable[[], object]) -> None:
        """See `IReactorFromThreads`."""
        self.calls.append(call)

    def run(self, *, installSignalHandlers: bool) -> None:  # noqa: N803 (Twisted's name)
        """See `IReactorCore`."""
        assert not installSignalHandlers, "ftdctl has its own"
        self.is_running = True
        self.runs += 1
        while self.is_running:
            self.calls.popleft()()

    def stop(self) -> None:
        """See `IReactorCore`."""
        assert self.is_running
        self.is_running = False


class RunTests(SynchronousTestCase):
    """One command, one run of the reactor."""

    def setUp(self) -> None:
        self.reactor = FakeReactor()
        self.handlers = self.signal_handlers()

    def tearDown(self) -> None:
        self.assertEqual(self.signal_handlers(), self.handlers)
        self.assertEqual(self.reactor.runs, 1)

    def signal_handlers(self) -> list[Any]:
        """What is in force for the signals that end a command."""
        return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    def test_at_once(self) -> None:
        """The exit code is the command's."""

        async def operation() -> int:
            self.assertTrue(self.reactor.is_running)
            return 3

        self.assertEqual(run(self.reactor, operation), 3)

    def test_later(self) -> None:
        """The reactor runs until then."""
        waiting: Deferred[int] = Deferred()

        async def operation() -> int:
            self.reactor.calls.append(lambda: waiting.callback(1))
            return await waiting

        self.assertEqual(run(self.reactor, operation), 1)

    def test_signals(self) -> None:
        """Cancel the command, which may clean up; the exit code tells which it was."""
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            cleaned: list[int] = []

            async def operation(number: int = number, cleaned: list[int] = cleaned) -> int:
                self.reactor.calls.append(lambda: signal.raise_signal(number))
                try:
                    await Deferred()
                finally:
                    cleaned.append(number)
                return 0

            self.reactor.runs = 0
            self.assertEqual(run(self.reactor, operation), code)
            self.assertEqual(cleaned, [number])

    def test_fault(self) -> None:
        """An exception that nobody expected comes out, with its traceback."""

        async def operation() -> int:
            raise ZeroDivisionError

        self.assertRaises(ZeroDivisionError, run, self.reactor, operation)
