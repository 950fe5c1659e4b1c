"""Both halves of a pair, on a network, a clock and disks that do as the test says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ftd.bus import EventBus
from ftd.config import Ack, PairConfig, Role
from ftd.errors import FtdError
from ftd.feed import Upload
from ftd.interfaces import ICheckpointStore, IStoringSink
from ftd.pair import Surroundings
from ftd.primary import PrimaryPair
from ftd.secondary import SecondaryPair
from ftd.sinks import DirectorySink, MemorySink
from ftd.sinks.directory import RunInThread
from ftd.status import Commit, LinkState
from ftd.testing.threads import run_at_once
from ftd.testing.transport import Link, Network

#: Unix seconds at which every test begins.
EPOCH = 1_700_000_000.0

#: How the halves are set up where a test does not say otherwise.
PRIMARY = PairConfig(section="demo", role=Role.PRIMARY, link="tcp:192.0.2.2:8441", frame_size=1024)
SECONDARY = PairConfig(section="standby", name="demo", role=Role.SECONDARY, link="tcp:8441", ack=Ack.APPLIED)


@implementer(IPushProducer)
class Body:
    """
    The body of a request, which writes nothing by itself.

    :ivar is_paused: whether the last word was to pause.
    """

    def __init__(self) -> None:
        self.is_paused = False

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.is_paused = True

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.is_paused = False

    def stopProducing(self) -> None:
        """See `IPushProducer`."""


class PairTestCase(SynchronousTestCase):
    """
    Each test has a primary that dials and a secondary that listens on one network; `start` makes both.

    :ivar primary: the sending half, from `start_primary` on.
    :ivar secondary: the receiving half, from `start_secondary` on.
    """

    primary: PrimaryPair
    secondary: SecondaryPair

    def setUp(self) -> None:
        self.clock = Clock()
        self.network = Network()
        self.bus = EventBus(self.now)
        self.directory = Path(self.mktemp())
        self._seen = self.bus.last_id
        # Durability has its own tests: these do not wait for the disk.
        self.patch(os, "fsync", lambda _descriptor: None)

    def now(self) -> float:
        """Unix seconds."""
        return EPOCH + self.clock.seconds()

    # Putting them together

    def around(self, node: str) -> Surroundings:
        """What a daemon gives to its pairs."""
        return Surroundings(clock=self.clock, bus=self.bus, node=node, now=self.now)

    def new_primary(self, directory: str = "primary", **changes: Any) -> PrimaryPair:
        """A primary that has not been started; its generation is kept in ``directory``."""
        return PrimaryPair(
            attrs.evolve(PRIMARY, **changes),
            self.around("host-a"),
            endpoint=self.network.client_endpoint(),
            directory=self.directory / directory,
        )

    def memory_sink(self, keep: int = 8, limit: int = 1 << 30) -> MemorySink:
        """A sink that a restart empties."""
        return MemorySink(keep, limit, self.now)

    def directory_sink(self, keep: int = 8, run_in_thread: RunInThread = run_at_once) -> DirectorySink:
        """A sink that finds after a restart what it held before."""
        sink = DirectorySink(self.directory / "checkpoints", keep, run_in_thread, self.now)
        sink.recover()
        return sink

    def new_secondary(self, sink: IStoringSink | None = None, **changes: Any) -> SecondaryPair:
        """A secondary that has not been started."""
        return SecondaryPair(
            attrs.evolve(SECONDARY, **changes),
            self.around("host-b"),
            endpoint=self.network.server_endpoint(),
            sink=sink if sink is not None else self.memory_sink(),
        )

    def start_primary(self, **changes: Any) -> PrimaryPair:
        """Start a primary; what it does first has not been delivered."""
        self.primary = self.new_primary(**changes)
        self.successResultOf(self.primary.start())
        return self.primary

    def start_secondary(self, sink: IStoringSink | None = None, **changes: Any) -> SecondaryPair:
        """Start a secondary."""
        self.secondary = self.new_secondary(sink, **changes)
        self.successResultOf(self.secondary.start())
        return self.secondary

    def start(self, sink: IStoringSink | None = None, **changes: Any) -> None:
        """Start both and open the session; ``changes`` are for both."""
        self.start_secondary(sink, **changes)
        self.start_primary(**changes)
        self.network.pump()
        assert self.primary.link_state is LinkState.UP, self.primary.link_detail

    def restart_secondary(self, sink: IStoringSink | None = None, **changes: Any) -> None:
        """Kill the secondary, so that its links are reset, and start another one in its place."""
        self.kill_secondary()
        self.start_secondary(sink, **changes)

    def kill_secondary(self) -> None:
        """The process of the secondary is gone; nobody listens."""
        for link in self.network.links:
            if not link.is_over:
                link.cut(clean=False)
        assert self.secondary._port is not None
        self.successResultOf(maybeDeferred(self.secondary._port.stopListening))
        self.network.pump()

    # Letting things happen

    @property
    def link(self) -> Link:
        """The newest link."""
        return self.network.links[-1]

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass while what is said is delivered."""
        self.network.pump()
        for _ in range(round(seconds / step)):
            self.clock.advance(step)
            self.network.pump()

    def reconnect(self, most: float = 60.0) -> None:
        """Let time pass until the session is open again."""
        for _ in range(round(most / 0.05)):
            if self.primary.link_state is LinkState.UP:
                return
            self.pass_time(0.05)
        raise AssertionError(f"no session after {most} s: {self.primary.link_detail}")

    # Transactions

    def begin(self) -> int:
        """Open a transaction."""
        id: int = self.successResultOf(self.primary.begin())
        return id

    def upload(self, data: bytes) -> Deferred[object]:
        """Append ``data`` to the open transaction."""
        upload = self.primary.append(Body())
        upload.write(data)
        upload.finish()
        return upload.done

    def append(self, data: bytes) -> None:
        """The same, which has to work at once."""
        self.assertEqual(self.successResultOf(self.upload(data)), len(data))

    def push(self, data: bytes) -> Upload:
        """A whole transaction, the body of which is there at once."""
        upload = self.primary.checkpoint(Body())
        upload.write(data)
        upload.finish()
        return upload

    def committed(self, data: bytes) -> Commit:
        """The same, which has to work."""
        upload = self.push(data)
        self.network.pump()
        commit = self.successResultOf(upload.done)
        assert isinstance(commit, Commit)
        return commit

    # What is to be seen

    def store(self) -> ICheckpointStore:
        """The checkpoints of the secondary."""
        return self.secondary.store()

    def held(self) -> list[bytes]:
        """The bytes of all that the secondary holds, oldest first."""
        held = []
        for checkpoint in self.store().checkpoints():
            with self.store().open(checkpoint.number) as file:
                held.append(file.read())
        return held

    def events(self, kind: str, pair: str) -> list[dict[str, Any]]:
        """What was published since this was asked last."""
        _, fresh = self.bus.since(self._seen)
        found = []
        for event in fresh:
            if (event.kind, event.pair) == (kind, pair):
                body = event.body() if callable(event.body) else event.body
                found.append(dict(body))
        self._seen = self.bus.last_id
        return found

    def upload_refusal(self, error: type[FtdError], upload: Upload) -> Any:
        """The error that ``upload`` fails with."""
        return self.failureResultOf(upload.done, error).value

    def refusal(self, error: type[FtdError], act: Callable[[], object]) -> Any:
        """The error that ``act`` raises, or that its Deferred or its upload fails with."""
        try:
            result = act()
        except FtdError as raised:
            self.assertIsInstance(raised, error)
            return raised
        return self.failureResultOf(result.done if isinstance(result, Upload) else result, error).value
