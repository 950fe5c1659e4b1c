"""A client in memory, connected to the real API of a daemon in memory, or to a server that a test speaks for."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone, ConnectionRefusedError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol, ServerFactory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.web.server import Site

from ftd.client import Client
from ftd.test.api_case import NOW, ApiTestCase
from ftd.testing.http_client import Connection, SocketLikeTransport

_Value = TypeVar("_Value")

URL = "unix:/run/ftd.sock"


class ScriptedServer(Protocol):
    """
    Notes what it is sent.

    :ivar received: all of it.
    """

    transport: SocketLikeTransport

    def __init__(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        self.received += data

    def answer(self, head: str, body: bytes = b"", *, close: bool = False) -> None:
        """
        Send an answer.

        :param head: status line and headers, by lines, without the length, which is added if there is a body.
        """
        lines = [f"HTTP/1.1 {head}", *([f"Content-Length: {len(body)}"] if body else []), "", ""]
        self.transport.write("\r\n".join(lines).encode() + body)
        if close:
            self.transport.loseConnection()


class ScriptedServers(ServerFactory[ScriptedServer]):
    """:ivar connections: the server's ends of all connections."""

    def __init__(self) -> None:
        self.connections: list[ScriptedServer] = []

    def buildProtocol(self, addr: IAddress | None) -> ScriptedServer:  # noqa: ARG002 (Twisted's signature)
        """See `IProtocolFactory`."""
        server = ScriptedServer()
        self.connections.append(server)
        return server


class ClientTransport(SocketLikeTransport):
    """
    The client's end.  As with a socket, closing waits for a producer, and nobody is told of an abort before the next
    turn of the reactor.
    """

    def _close_if_asked(self) -> None:
        if self.producer is None:
            super()._close_if_asked()

    def abortConnection(self) -> None:
        """Break the connection."""
        self.was_aborted = True

    def end_abort(self) -> None:
        """The next turn of the reactor."""
        if self.was_aborted:
            super().abortConnection()


class Link:
    """
    One connection: two ends, and what carries the bytes between them.

    :ivar sent: all that the client sent.
    """

    def __init__(self, server: Connection, client: Protocol) -> None:
        self.sent = b""
        self.server = server
        self.transport = ClientTransport(64 * 1024)
        self.transport.protocol = client
        client.makeConnection(self.transport)

    def carry(self) -> bool:
        """Whether there was anything to carry."""
        were_closed = self._closed_ends()
        self.transport.end_abort()
        up = _taken(self.transport, self.server.transport)
        self.sent += up
        if up and not self.server.transport.is_closed:
            self.server.send(up)
        down = _taken(self.server.transport, self.transport)
        if down and not self.transport.is_closed:
            self.transport.deliver(down)
        if self.transport.is_closed:
            self.server.disconnect()
        elif self.server.transport.is_closed and not self.transport.incoming:
            self.transport.close(Failure(ConnectionDone()))
        return bool(up or down) or self._closed_ends() != were_closed

    def _closed_ends(self) -> tuple[bool, bool]:
        return self.transport.is_closed, self.server.transport.is_closed


def _taken(writer: SocketLikeTransport, reader: SocketLikeTransport) -> bytes:
    """What goes from one end to the other now: nothing while the reader has not read what it was sent before."""
    if reader.incoming or not (writer.value() or writer.disconnecting):
        return b""
    return writer.take()


class ClientTestCase(ApiTestCase):
    """
    :ivar client: of the API, until `script` puts something else in its place.
    :ivar links: all connections that there were.
    """

    def setUp(self) -> None:
        super().setUp()
        self.reactor = MemoryReactorClock()
        self.reactor.rightNow = NOW
        self.client = Client.for_url(URL, self.reactor)
        self.links: list[Link] = []
        self._server: Any = self.site
        self._is_refusing = False

    def script(self) -> ScriptedServers:
        """From here on the client connects to a server of the test's own."""
        servers = ScriptedServers()
        self._server = servers
        return servers

    def stop_server(self) -> None:
        """The daemon goes: connections break, and new ones are refused until `start_server`."""
        self._is_refusing = True
        for link in self.links:
            if not link.transport.is_closed:
                link.server.disconnect()
        self.pump()

    def start_server(self) -> None:
        """The daemon is there again."""
        self._is_refusing = False

    def pump(self, seconds: float = 0.0) -> None:
        """Let so much time pass, and after it everything happen that can happen."""
        for clock in (self.clock, self.reactor):
            clock.advance(seconds)
        idle_rounds = 0
        while idle_rounds < 5:  # some things take a few turns of the reactor before they show
            has_moved = self._connect_waiting()
            for link in self.links:
                has_moved |= link.carry()
            for clock in (self.clock, self.reactor):
                clock.advance(0)
            idle_rounds = 0 if has_moved else idle_rounds + 1

    def start(self, call: Coroutine[Deferred[Any], Any, _Value]) -> Deferred[_Value]:
        """Begin a call and let happen what can happen."""
        result = Deferred.fromCoroutine(call)
        self.pump()
        return result

    def result(self, call: Coroutine[Deferred[Any], Any, _Value]) -> _Value:
        """What a call returns."""
        return self.successResultOf(self.start(call))

    def error(self, call: Coroutine[Deferred[Any], Any, Any], kind: type[_Value]) -> _Value:
        """The exception, of class ``kind``, that a call raises."""
        return cast(_Value, self.failureResultOf(self.start(call), cast(Any, kind)).value)

    def _connect_waiting(self) -> bool:
        waiting, self.reactor.unixClients = self.reactor.unixClients, []
        for path, factory, _, _ in waiting:
            self.assertEqual(f"unix:{path}", URL)
            if self._is_refusing:
                factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))
            else:
                self.links.append(Link(Connection(cast(Site, self._server)), factory.buildProtocol(None)))
        return bool(waiting)
