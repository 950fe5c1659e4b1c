"""Two ends of a TLS link in memory, with certificates of a CA of their own, as the tests of TLS need them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ftd.config_tls import TlsFiles
from ftd.testing.certificates import Authority, Identity
from ftd.testing.transport import Link
from ftd.transport.base import LinkEnd
from ftd.transport.stock import StockTransport
from ftd.transport.tls_identity import TlsIdentity
from ftd.transport.tls_transport import TlsTransport
from ftd.wire.errors import WireError

KIB = 1024


class End(Protocol):
    """
    Reads what comes, to places where it has some, and keeps what it is told.

    :param identity: ``None`` for an end without TLS.
    :ivar rooms: the sizes of the places for what comes next; without any, what comes is just received.
    :ivar placed_sizes: what came to such places, read by read.
    :ivar answer: what is said to each read.
    :ivar error: what the link failed with.
    :ivar lost_with: what Twisted says of the end of the connection.
    """

    def __init__(self, clock: IReactorTime, identity: TlsIdentity | None) -> None:
        self.clock = clock
        self.received = bytearray()
        self.rooms: list[int] = []
        self.placed_sizes: list[int] = []
        self.error: WireError | None = None
        self.lost_with: Failure | None = None
        self.pauses_after: int | None = None
        self.answer = b""
        self._identity = identity
        self._places: list[memoryview] = []

    def connectionMade(self) -> None:
        """Set up the link."""

        def carry(end: LinkEnd) -> StockTransport:
            # Twisted's transports bring what comes to their protocol.
            self.dataReceived = end.dataReceived  # type: ignore[method-assign, assignment]
            return StockTransport(self.transport)

        self.link = (
            StockTransport(self.transport) if self._identity is None else TlsTransport(self, self._identity, carry)
        )

    def places(self) -> Sequence[memoryview]:
        """See `LinkEnd`."""
        self._places = [memoryview(bytearray(room)) for room in self.rooms]
        return self._places

    def placed(self, size: int) -> None:
        """See `LinkEnd`."""
        assert 0 < size <= sum(self.rooms)
        self.placed_sizes.append(size)
        self._take(b"".join(self._places)[:size])

    def dataReceived(self, data: bytes | memoryview) -> None:
        """See `LinkEnd`."""
        assert not self.rooms, "there was a place for it"
        self._take(data)

    def _take(self, data: bytes | memoryview) -> None:
        self.received += data
        if self.answer:
            self.link.gather((self.answer,))
            self.link.flush()
        if self.pauses_after is not None and len(self.received) >= self.pauses_after:
            self.pauses_after = None
            self.link.pause_reading()

    def fail(self, error: WireError) -> None:
        """See `TlsEnd`."""
        if self.error is None:
            self.error = error
            self.link.abort_connection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `Protocol`."""
        self.lost_with = reason
        self.link.closed()


class TlsCase(SynchronousTestCase):
    """Two ends, `client` and `server`, once they are connected."""

    def setUp(self) -> None:
        """A CA and what it has signed."""
        self.clock = Clock()
        self.directory = Path(self.mktemp())
        self.authority = Authority(self.directory)
        self.signed = {
            False: self.authority.sign("client", ["host-a", "192.0.2.1"]),
            True: self.authority.sign("server", ["host-b", "fd00::2"]),
        }

    def identity(self, *, is_server: bool, signed: Identity | None = None, peer_name: str | None = None) -> TlsIdentity:
        """An end's, with all that is not given as it should be."""
        own = signed or self.signed[is_server]
        return TlsIdentity(
            TlsFiles(
                section="a",
                is_server=is_server,
                certificate=own.certificate,
                key=own.key,
                ca=self.authority.ca,
                peer_name=("host-a" if is_server else "host-b") if peer_name is None else peer_name,
            )
        )

    def connect(
        self, client: TlsIdentity | None = None, server: TlsIdentity | None = None, *, capacity: int = 64 * KIB
    ) -> None:
        """Connect the two."""
        self.join(
            End(self.clock, client or self.identity(is_server=False)),
            End(self.clock, server or self.identity(is_server=True)),
            capacity,
        )
        self.pump()

    def join(self, client: End, server: End, capacity: int = 64 * KIB) -> None:
        """Put these on a wire."""
        self.client = client
        self.server = server
        self.wire = Link(client, server, capacity=capacity)

    def pump(self, chunk: int = 64 * KIB) -> None:
        """Let the reactor turn until nothing moves any more."""
        for _ in range(3):
            self.wire.pump(chunk)
            self.clock.advance(0)
            self.wire.pump(chunk)

    def assert_ended(self, client: str, server: str) -> None:
        """Both have failed, for these reasons (empty: none), and the connection is gone."""
        self.pump()
        for end, reason in ((self.client, client), (self.server, server)):
            said = end.error.detail if end.error is not None else ""
            self.assertIn(reason, said)
            self.assertEqual(bool(reason), bool(said), said)
            self.assertIsNotNone(end.lost_with)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((bytes(self.client.received), bytes(self.server.received)), (b"", b""))
