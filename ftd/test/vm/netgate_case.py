"""A gate with nothing real around it: a guest, an outside, and a reactor that says when."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import NetConfig
from ftd.vm.netgate import NetGate, NetGateError
from ftd.vm.netgate_frames import FRAME_HEADER
from ftd.vm.netgate_sockets import IDoor, IEnd, Sockets


def framed(*frames: bytes) -> bytes:
    """Frames as ``-netdev stream`` has them."""
    return b"".join(FRAME_HEADER.pack(len(frame)) + frame for frame in frames)


def numbered(first: int, count: int, size: int = 60) -> list[bytes]:
    """Frames that are told apart by their beginning."""
    return [number.to_bytes(4, "big").ljust(size, b"x") for number in range(first, first + count)]


class GateReactor(Clock):
    """Watches descriptors, and looks after them in `turn`."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self.writers: list[Any] = []

    def addReader(self, reader: Any) -> None:  # noqa: N802 - Twisted's
        """See `IReactorFDSet`."""
        self.readers.append(reader)

    def addWriter(self, writer: Any) -> None:  # noqa: N802 - Twisted's
        """See `IReactorFDSet`."""
        self.writers.append(writer)

    def removeReader(self, reader: Any) -> None:  # noqa: N802 - Twisted's
        """See `IReactorFDSet`."""
        if reader in self.readers:
            self.readers.remove(reader)

    def removeWriter(self, writer: Any) -> None:  # noqa: N802 - Twisted's
        """See `IReactorFDSet`."""
        if writer in self.writers:
            self.writers.remove(writer)

    def watches(self, end: FakeEnd | FakeDoor) -> str:
        """For what an end is watched: some of ``r`` and ``w``."""
        sets = (("r", self.readers), ("w", self.writers))
        return "".join(letter for letter, watched in sets if any(one._end is end for one in watched))

    def turn(self, times: int = 100) -> None:
        """Tell who watches, until there is nothing more to tell."""
        for _ in range(times):
            ready = [(one, one.doRead) for one in self.readers if one._end.is_readable]
            ready += [(one, one.doWrite) for one in self.writers if one._end.is_writable]
            if not ready:
                return
            for one, act in ready:
                if one in self.readers or one in self.writers:
                    act()

    def hang_up(self, end: FakeEnd) -> None:
        """The reactor finds that the other end of it is gone."""
        for watched in (self.readers, self.writers):
            for one in watched:
                if one._end is end:
                    self.removeReader(one)
                    self.removeWriter(one)
                    one.connectionLost(Failure(ConnectionDone()))
                    return


class FakeEnd:
    """
    ftd's end of a connection.

    :ivar incoming: what the other side has sent.
    :ivar outgoing: what the other side has got.
    :ivar window: bytes that it takes before it is full.
    :ivar has_ended: the other side says no more.
    :ivar error: what every read and write raises.
    """

    def __init__(self) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.window = 1 << 30
        self.has_ended = False
        self.is_closed = False
        self.error: OSError | None = None

    @property
    def is_readable(self) -> bool:
        """Whether the reactor would say so."""
        return bool(self.incoming) or self.has_ended or self.error is not None

    @property
    def is_writable(self) -> bool:
        """Whether the reactor would say so."""
        return self.window > 0 or self.error is not None

    def fileno(self) -> int:
        """See `IEnd`."""
        return 3

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `IEnd`."""
        self._check()
        if not self.incoming:
            if self.has_ended:
                return 0
            raise BlockingIOError
        size = min(len(buffer), len(self.incoming))
        buffer[:size] = self.incoming[:size]
        del self.incoming[:size]
        return size

    def send(self, data: memoryview, /) -> int:
        """See `IEnd`."""
        self._check()
        if not self.window:
            raise BlockingIOError
        size = min(len(data), self.window)
        self.outgoing += data[:size]
        self.window -= size
        return size

    def _check(self) -> None:
        assert not self.is_closed, "it was closed"
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """See `IEnd`."""
        self.is_closed = True

    def frames(self) -> list[bytes]:
        """The whole frames that the other side has got, all of them."""
        found, at = [], 0
        while at < len(self.outgoing):
            (size,) = FRAME_HEADER.unpack_from(self.outgoing, at)
            at += FRAME_HEADER.size
            assert at + size <= len(self.outgoing), "half a frame"
            found.append(bytes(self.outgoing[at : at + size]))
            at += size
        return found


class FakeTap:
    """
    A tap.

    :ivar incoming: frames that the network has sent.
    :ivar written: frames that it has got.
    :ivar window: frames that it takes before it is full.
    """

    def __init__(self) -> None:
        self.incoming: list[bytes] = []
        self.written: list[bytes] = []
        self.window = 1 << 30
        self.enabled = True
        self.error: OSError | None = None
        self.is_closed = False

    @property
    def is_readable(self) -> bool:
        """Whether the reactor would say so."""
        return bool(self.incoming)

    @property
    def is_writable(self) -> bool:
        """Whether the reactor would say so."""
        return self.window > 0

    def is_enabled(self) -> bool:
        """See `ITap`."""
        return self.enabled

    def fileno(self) -> int:
        """See `IEnd`."""
        return 4

    def recv_into(self, buffer: memoryview, /) -> int:
        """See `IEnd`."""
        if self.error is not None:
            raise self.error
        if not self.incoming:
            raise BlockingIOError
        frame = self.incoming.pop(0)
        buffer[: len(frame)] = frame
        return len(frame)

    def send(self, data: memoryview, /) -> int:
        """See `IEnd`."""
        if self.error is not None:
            raise self.error
        if not self.enabled:
            raise OSError(errno.EIO, "Input/output error")
        if len(data) < 14:
            raise OSError(errno.EINVAL, "Invalid argument")
        if not self.window:
            raise BlockingIOError
        self.window -= 1
        self.written.append(bytes(data))
        return len(data)

    def close(self) -> None:
        """See `IEnd`."""
        self.is_closed = True


class FakeDoor:
    """A listening socket; who calls waits in ``callers``."""

    def __init__(self) -> None:
        self.callers: list[FakeEnd] = []
        self.is_closed = False
        self.error: OSError | None = None

    @property
    def is_readable(self) -> bool:
        """Whether the reactor would say so."""
        return bool(self.callers)

    def fileno(self) -> int:
        """See `IDoor`."""
        return 5

    def accept(self) -> IEnd:
        """See `IDoor`."""
        if self.error is not None:
            raise self.error
        if not self.callers:
            raise BlockingIOError
        return self.callers.pop(0)

    def close(self) -> None:
        """See `IDoor`."""
        self.is_closed = True


class FakeSockets(Sockets):
    """
    Sockets by path.

    :ivar doors: where ftd listens.
    :ivar answering: who takes ftd's calls; each takes one.
    :ivar peers: what becomes of the attempts to make the other end non-blocking; they work where there is nothing.
    """

    def __init__(self) -> None:
        self.doors: dict[str, FakeDoor] = {}
        self.answering: dict[str, list[FakeEnd]] = {}
        self.refusal: NetGateError | None = None
        self.dialled = 0
        self.peers: list[bool | OSError] = []

    def unblock_peer(self, end: Any) -> bool:
        """See `Sockets`."""
        assert not end.is_closed
        found = self.peers.pop(0) if self.peers else True
        if isinstance(found, OSError):
            raise found
        return found

    def listen(self, path: str) -> IDoor:
        """See `Sockets`."""
        if self.refusal is not None:
            raise self.refusal
        self.doors[path] = FakeDoor()
        return self.doors[path]

    def dial(self, path: str) -> IEnd:
        """See `Sockets`."""
        self.dialled += 1
        if not self.answering.get(path):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        return self.answering[path].pop(0)

    def remove(self, path: str) -> None:
        """See `Sockets`."""
        del self.doors[path]


class GateCase(SynchronousTestCase):
    """A gate, started, with a guest connected and an uplink of either kind."""

    limit = 100_000

    def setUp(self) -> None:
        self.reactor = GateReactor()
        self.sockets = FakeSockets()
        self.guest = FakeEnd()
        self.outside = FakeEnd()
        self.tap = FakeTap()
        self.taps: list[FakeTap] = []
        self.tap_refusal: NetGateError | None = None
        self.changes = 0

    def build(self, uplink: str = "unix:/up", connect: bool = False) -> NetGate:
        """A gate that is not started."""
        kind, _, where = uplink.partition(":")
        config = NetConfig(id="n0", socket="/n0", connect=connect, uplink_kind=kind, uplink=where)  # type: ignore[arg-type]
        return NetGate(
            self.reactor,
            config,
            held_limit=self.limit,
            name="vm",
            changed=self.count_change,
            sockets=self.sockets,
            open_tap=self.open_tap,
        )

    def count_change(self) -> None:
        """What the gate calls."""
        self.changes += 1

    def open_tap(self, name: str) -> FakeTap:
        """What the gate opens."""
        if self.tap_refusal is not None:
            raise self.tap_refusal
        self.assertEqual(name, "tap0")
        self.taps.append(self.tap)
        return self.tap

    def started(self, uplink: str = "unix:/up", act: Callable[[NetGate], None] = NetGate.hold) -> NetGate:
        """A gate with both sides connected."""
        self.sockets.answering["/up"] = [self.outside]
        gate = self.build(uplink)
        gate.start()
        self.sockets.doors["/n0"].callers.append(self.guest)
        self.reactor.turn()
        self.assertTrue(gate.guest_up and gate.uplink_up)
        act(gate)
        return gate

    def says(self, *frames: bytes) -> None:
        """The guest sends, and it is read."""
        self.guest.incoming += framed(*frames)
        self.reactor.turn()
