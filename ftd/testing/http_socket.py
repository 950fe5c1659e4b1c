"""
An HTTP connection as in :mod:`ftd.testing.http_client`, with Twisted's own transport on the server's side of it, on top
of a socket in memory: for what reads and writes a socket past its transport.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from errno import EWOULDBLOCK
from typing import Any, cast

from twisted.internet import main
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IReactorFDSet
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection as TcpConnection
from twisted.python.failure import Failure
from twisted.web.server import Site

from ftd.testing.http_client import Connection

_PEER = IPv4Address("TCP", "192.0.2.1", 50000)
_HOST = IPv4Address("TCP", "192.0.2.2", 8440)


class MemorySocket:
    """
    The server's socket.

    :param capacity: bytes that may wait for the client.
    :ivar incoming: what the client sent and was not read.
    :ivar outgoing: what waits for the client.
    :ivar most_taken: bytes that a call takes or gives at most.
    :ivar is_at_end: the client has closed.
    :ivar error: raised by the next call.
    """

    def __init__(self, capacity: int) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.most_taken = 1 << 30
        self.is_at_end = False
        self.error: OSError | None = None
        self._capacity = capacity

    @property
    def room(self) -> int:
        """Bytes that it would take."""
        return max(0, self._capacity - len(self.outgoing))

    @property
    def is_readable(self) -> bool:
        """Whether there is something to be had by reading."""
        return bool(self.incoming) or self.is_at_end or self.error is not None

    def recv(self, size: int) -> bytes:
        """As a socket does."""
        self._fail_if_told()
        data = bytes(self.incoming[: min(size, self.most_taken)])
        if not data and not self.is_at_end:
            raise BlockingIOError(EWOULDBLOCK, "nothing there")
        del self.incoming[: len(data)]
        return data

    def recv_into(self, place: memoryview) -> int:
        """As a socket does."""
        data = self.recv(len(place))
        place[: len(data)] = data
        return len(data)

    def send(self, data: bytes | memoryview) -> int:
        """As a socket does."""
        self._fail_if_told()
        taken = min(self.room, self.most_taken)
        if len(data) and not taken:
            raise BlockingIOError(EWOULDBLOCK, "full")
        self.outgoing += data[:taken]
        return min(len(data), taken)

    def sendmsg(self, pieces: Iterable[bytes | memoryview]) -> int:
        """As a socket does."""
        return self.send(b"".join(pieces))

    def fileno(self) -> int:
        """It has none that anybody could use."""
        return 2**20

    def setblocking(self, blocking: bool) -> None:
        """It never blocks."""

    def setsockopt(self, *_: Any) -> None:
        """Whatever."""

    def shutdown(self, how: int) -> None:
        """Nothing has to be told to the client, who sees what there is."""

    def close(self) -> None:
        """See `shutdown`."""

    def _fail_if_told(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class _Reactor(Clock):
    """
    For one connection.

    :ivar look: called when it reads again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: set[TcpConnection] = set()
        self.writers: set[TcpConnection] = set()
        self.look: Callable[[], None] = lambda: None

    def addReader(self, reader: TcpConnection) -> None:  # noqa: N802 (Twisted's name)
        self.readers.add(reader)
        self.look()

    def addWriter(self, writer: TcpConnection) -> None:  # noqa: N802 (Twisted's name)
        # Twisted's transports are in the middle of something when they say so.
        self.writers.add(writer)

    def removeReader(self, reader: TcpConnection) -> None:  # noqa: N802 (Twisted's name)
        self.readers.discard(reader)

    def removeWriter(self, writer: TcpConnection) -> None:  # noqa: N802 (Twisted's name)
        self.writers.discard(writer)


class _ServerConnection(TcpConnection):
    """As the reactor's listening port makes them."""

    def getPeer(self) -> IPv4Address:
        return _PEER

    def getHost(self) -> IPv4Address:
        return _HOST


class SocketEnd:
    """
    What the client sees of the connection; as `ftd.testing.http_client.SocketLikeTransport`.

    :ivar connection: Twisted's.
    """

    def __init__(self, site: Site, capacity: int) -> None:
        self.socket = MemorySocket(capacity)
        self.was_aborted = False
        self._reactor = _Reactor()
        self._is_pumping = False
        protocol = cast(Protocol, site.buildProtocol(_PEER))
        self.connection = _ServerConnection(
            cast(socket.socket, self.socket), protocol, cast(IReactorFDSet, self._reactor)
        )
        self.connection.connected = 1
        self._reactor.look = self.pump
        self._abort = self.connection.abortConnection
        self.connection.abortConnection = self._note_abort  # type: ignore[method-assign]
        protocol.makeConnection(self.connection)
        self.connection.startReading()

    @property
    def producer(self) -> Any:
        """What is paused by a client that does not read."""
        return self.connection.producer

    @property
    def producerState(self) -> str:  # noqa: N802 (Twisted's name)
        """Whether the server reads."""
        return "producing" if self.connection in self._reactor.readers else "paused"

    @property
    def disconnecting(self) -> bool:
        """Whether the server has closed the connection, or will when it has sent everything."""
        return bool(self.connection.disconnecting or self.is_closed)

    @property
    def is_closed(self) -> bool:
        """Whether the connection is gone."""
        return bool(self.connection.disconnected)

    def deliver(self, data: bytes) -> None:
        """Bytes from the client."""
        self.socket.incoming += data
        self.pump()

    def take(self) -> bytes:
        """The client reads what there is."""
        self.pump()
        data = bytes(self.socket.outgoing)
        self.socket.outgoing.clear()
        self.pump()
        return data

    def close(self, reason: Failure) -> None:
        """The connection is gone."""
        self.connection.connectionLost(reason)

    def pump(self) -> None:
        """Let the connection read and write until it has nothing to do, or cannot."""
        if self._is_pumping:
            return
        self._is_pumping = True
        try:
            while self._step():
                pass
        finally:
            self._is_pumping = False

    def _step(self) -> bool:
        connection = self.connection
        self._reactor.advance(0)
        if connection in self._reactor.writers and self.socket.room:
            self._end_if(connection.doWrite(), is_read=False)
        elif connection in self._reactor.readers and self.socket.is_readable:
            self._end_if(connection.doRead(), is_read=True)
        else:
            return False
        return True

    def _end_if(self, why: BaseException | int | None, is_read: bool) -> None:
        """As the reactor does with what it is told."""
        if why is main.CONNECTION_DONE and is_read:
            self.connection.readConnectionLost(Failure(main.CONNECTION_DONE))
        elif why:
            self.connection.connectionLost(Failure(cast(BaseException, why)))

    def _note_abort(self) -> None:
        self.was_aborted = True
        self._abort()


class SocketConnection(Connection):
    """A client's connection to ``site``."""

    def __init__(self, site: Site, capacity: int = 64 * 1024) -> None:
        self.transport = SocketEnd(site, capacity)  # type: ignore[assignment]
        self.received = b""

    @property
    def end(self) -> SocketEnd:
        """What is behind it."""
        return cast(SocketEnd, self.transport)
