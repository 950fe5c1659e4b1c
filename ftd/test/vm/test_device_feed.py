"""A device state on its way into QEMU."""

from __future__ import annotations

import os
from functools import partial
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.testing.fake_qmp import FakeQemu
from ftd.vm.device_feed import DeviceFeed, announce, load_device_state
from ftd.vm.errors import QmpClosed, QmpError, QmpRefused, QmpTimeout

#: More than a pipe holds, and no multiple of anything.
STATE = bytes(range(251)) * 20_011


class Writers(Clock):
    """A reactor that knows who wants to write."""

    def __init__(self) -> None:
        super().__init__()
        self.writers: list[Any] = []

    def addWriter(self, writer: Any) -> None:  # noqa: N802 - Twisted's name
        """See `IReactorFDSet`."""
        self.writers.append(writer)

    def removeWriter(self, writer: Any) -> None:  # noqa: N802 - Twisted's name
        """See `IReactorFDSet`."""
        if writer in self.writers:
            self.writers.remove(writer)


class Ends(list[int]):
    """The ends of pipes that QEMU has been passed."""

    def take(self, end: int) -> None:
        """As passing it over QMP does."""
        self.append(os.dup(end))

    def close(self) -> None:
        """All of them."""
        while self:
            os.close(self.pop())


class FeedTests(SynchronousTestCase):
    """The pipe."""

    def setUp(self) -> None:
        self.reactor = Writers()
        self.feed = DeviceFeed(cast(IReactorFDSet, self.reactor), memoryview(STATE))
        self.ends = Ends()
        self.feed.hand_over(self.ends.take)
        self.addCleanup(self.ends.close)

    def read(self, size: int = 1 << 20) -> bytes:
        return os.read(self.ends[0], size)

    def test_all_of_it_arrives_and_then_the_end(self) -> None:
        self.feed.start()
        found = b""
        while self.reactor.writers:
            self.assertFalse(self.feed.is_written)
            found += self.read(100_000)
            self.feed.doWrite()
        self.assertTrue(self.feed.is_written)
        while piece := self.read():
            found += piece
        self.assertTrue(found == STATE)

    def test_an_empty_one(self) -> None:
        feed = DeviceFeed(cast(IReactorFDSet, self.reactor), memoryview(b""))
        feed.start()
        self.assertTrue(feed.is_written)
        self.assertEqual(self.reactor.writers, [])

    def test_qemu_closes_its_end(self) -> None:
        self.feed.start()
        self.ends.close()
        self.feed.doWrite()
        self.assertEqual((self.reactor.writers, self.feed.is_written), ([], False))
        self.feed.close()

    def test_the_reactor_finds_that_qemu_has_closed_its_end(self) -> None:
        self.feed.start()
        self.feed.connectionLost(None)
        self.assertEqual((self.reactor.writers, self.feed.is_written), ([], False))

    def test_closed_before_it_was_started(self) -> None:
        self.feed.close()
        self.feed.close()
        self.assertEqual(self.read(), b"")


class LoadTests(SynchronousTestCase):
    """With QMP."""

    def setUp(self) -> None:
        self.reactor = Writers()
        self.qemu = FakeQemu(self.reactor, run_state="inmigrate")
        self.qemu.replies["getfd"] = {}
        self.qemu.capabilities["events"] = True
        self.qmp = self.qemu.connect()
        self.ends = Ends()
        self.patch(self.qmp, "pass_descriptor", self.ends.take)
        self.addCleanup(self.ends.close)
        self.open_files = len(os.listdir("/proc/self/fd"))

    def load(self, state: bytes = b"state") -> Deferred[None]:
        loading = Deferred.fromCoroutine(load_device_state(self.qmp, memoryview(state), self.reactor, 5.0))
        self.qemu.pump()
        return loading

    def check_clean(self) -> None:
        """No descriptor, timer or writer is left."""
        self.assertEqual(len(os.listdir("/proc/self/fd")), self.open_files + len(self.ends))
        self.assertEqual((self.reactor.writers, self.reactor.getDelayedCalls()), ([], []))

    def test_it_is_loaded(self) -> None:
        read: list[bytes] = []
        self.qemu.on_incoming = lambda _: None
        self.successResultOf(self.load())
        read.append(os.read(self.ends[0], 100))
        self.assertEqual(read, [b"state"])
        self.assertEqual(
            self.qemu.commands,
            [
                ("getfd", {"fdname": "ftd-incoming-state"}),
                ("migrate-incoming", {"uri": "fd:ftd-incoming-state"}),
                ("query-status", {}),
            ],
        )
        self.check_clean()

    def test_each_command_is_refused(self) -> None:
        for command in ("getfd", "migrate-incoming", "query-status"):
            self.setUp()
            self.qemu.replies[command] = QmpRefused(command, "GenericError", "no")
            self.assertEqual(self.failureResultOf(self.load(), QmpRefused).value.command, command)
            self.check_clean()

    def test_qemu_dies_at_each_command(self) -> None:
        for command in ("getfd", "migrate-incoming", "query-status"):
            self.setUp()
            self.qemu.hold(command)
            loading = self.load()
            self.qemu.die()
            self.qemu.pump()
            self.failureResultOf(loading, QmpClosed)
            self.check_clean()

    def test_qemu_hangs_at_each_command(self) -> None:
        for command in ("getfd", "migrate-incoming", "query-status"):
            self.setUp()
            self.qemu.hold(command)
            loading = self.load()
            self.reactor.advance(5.1)
            self.failureResultOf(loading, QmpError)
            self.check_clean()

    def test_it_never_ends(self) -> None:
        never: Deferred[None] = Deferred()
        self.qemu.on_incoming = lambda _: never
        loading = self.load()
        self.reactor.advance(5.1)
        self.failureResultOf(loading, QmpTimeout)
        self.check_clean()

    def test_the_run_state_comes_a_little_later(self) -> None:
        states = iter(("inmigrate", "inmigrate", "paused"))
        self.qemu.replies["query-status"] = lambda _: {"status": next(states)}
        loading = self.load()
        for _ in range(2):
            self.assertNoResult(loading)
            self.reactor.advance(0.001)
            self.qemu.pump()
        self.successResultOf(loading)
        self.check_clean()

    def test_a_connection_that_cannot_carry_files(self) -> None:
        self.patch(self.qmp, "pass_descriptor", partial(type(self.qmp).pass_descriptor, self.qmp))
        self.assertIn("unix socket", self.failureResultOf(self.load(), QmpError).getErrorMessage())
        self.check_clean()

    def test_announcing(self) -> None:
        self.qemu.run_state = "running"
        announcing = Deferred.fromCoroutine(announce(self.qmp))
        self.qemu.pump()
        self.successResultOf(announcing)
        self.assertEqual([name for name, _ in self.qemu.commands], ["announce-self"])
