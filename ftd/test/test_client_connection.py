"""How the client connects, and what it makes of an answer that comes before its request is through."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from twisted.web.client import URI
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

from ftd.client import ApiError, Client, Unreachable
from ftd.client.connection import Address, Endpoints
from ftd.status import Commit
from ftd.test.client_case import URL, ClientTestCase, ClientTransport, ScriptedServer

PROBLEM = b'{"type":"urn:ftd:problem:pair-failed","status":409,"detail":"The standby refused it."}'


class AddressTests(SynchronousTestCase):
    """The forms of URL."""

    def test_good(self) -> None:
        """TCP by name and number, with a path in front, and unix sockets."""
        for url, base, socket in (
            ("http://127.0.0.1:8440", "http://127.0.0.1:8440", None),
            ("http://[::1]:8440/", "http://[::1]:8440", None),
            ("http://host-b", "http://host-b", None),
            ("http://proxy/ftd/", "http://proxy/ftd", None),
            ("unix:/run/ftd.sock", "http://localhost", "/run/ftd.sock"),
            ("unix:api.sock", "http://localhost", "api.sock"),
        ):
            self.assertEqual(Address.parse(url), Address(url, base, socket))

    def test_bad(self) -> None:
        """The text says what is wrong."""
        for url, why in (
            ("", "neither http"),
            ("host:8440", "neither http"),
            ("https://host", "neither http"),
            ("http://", "neither http"),
            ("http://host/?a=b", "neither http"),
            ("http://host:99999", "out of range"),
            ("unix:", "lacks the path"),
        ):
            self.assertIn(why, str(self.assertRaises(ValueError, Address.parse, url)), url)


class EndpointTests(SynchronousTestCase):
    """Where a request goes."""

    def endpoint(self, url: str) -> Any:
        """The endpoint under the layer that sees to early answers."""
        uri = URI.fromBytes(b"http://host-b:8440/v1")
        layer: Any = Endpoints(MemoryReactorClock(), Address.parse(url), 7.0).endpointForURI(uri)
        return layer.endpoint

    def test_tcp(self) -> None:
        """By name, with both families of addresses; the time limit is the one that was set."""
        endpoint = self.endpoint("http://host-b:8440")
        self.assertIsInstance(endpoint, HostnameEndpoint)
        self.assertEqual((endpoint._hostText, endpoint._port, endpoint._timeout), ("host-b", 8440, 7.0))

    def test_unix(self) -> None:
        """Whatever host the request names."""
        endpoint = self.endpoint("unix:/run/ftd.sock")
        self.assertIsInstance(endpoint, UNIXClientEndpoint)
        self.assertEqual((endpoint._path, endpoint._timeout), ("/run/ftd.sock", 7.0))


@implementer(IBodyProducer)
class StallingBody:
    """
    A body of which the end never comes.

    :ivar is_stopped: whether it was told that nobody wants more.
    """

    length: int | str

    def __init__(self, length: int | None) -> None:
        self.length = UNKNOWN_LENGTH if length is None else length
        self.is_stopped = False

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """See `IBodyProducer`."""
        consumer.write(b"the first of it")
        return Deferred()

    def pauseProducing(self) -> None:
        """See `IBodyProducer`."""

    def resumeProducing(self) -> None:
        """See `IBodyProducer`."""

    def stopProducing(self) -> None:
        """See `IBodyProducer`."""
        self.is_stopped = True


class EarlyAnswerTests(ClientTestCase):
    """The daemon answers an upload whose body is still on its way; each with a length that is known and with none."""

    def each_kind(self) -> list[StallingBody]:
        """Both kinds of body."""
        return [StallingBody(1_000_000), StallingBody(None)]

    def upload_to_script(self, body: StallingBody) -> tuple[Deferred[Commit], ScriptedServer]:
        """An upload, and the server's end of it."""
        servers = self.script()
        waiting = self.start(self.client.push("demo", body))
        (server,) = servers.connections
        self.assertIn(b"the first of it", server.received)
        self.assertNoResult(waiting)
        return waiting, server

    def assert_refused(self, waiting: Deferred[Commit], body: StallingBody) -> None:
        """The call ends with the problem, and the sending with it."""
        refused = self.failureResultOf(waiting, ApiError).value
        self.assertEqual((refused.status, str(refused)), (409, "The standby refused it."))
        self.assertTrue(body.is_stopped)
        self.assertTrue(self.links[-1].transport.is_closed)

    def test_refused_at_once(self) -> None:
        """The pair has a transaction open already."""
        self.result(self.client.begin("demo"))
        for body in self.each_kind():
            refused = self.error(self.client.push("demo", body), ApiError)
            self.assertEqual((refused.status, refused.problem["state"]), (409, "BEGIN"))
            self.assertTrue(body.is_stopped)

    def test_link_lost(self) -> None:
        """In the midst of the body."""
        for body in self.each_kind():
            waiting = self.start(self.client.push("demo", body))
            self.assertEqual(self.primary.uploads[-1].data, b"the first of it")
            self.primary.lose_link()
            self.pump()
            refused = self.failureResultOf(waiting, ApiError).value
            self.assertEqual((refused.status, refused.kind, refused.retry_after), (503, "link-down", 3.0))
            self.assertTrue(body.is_stopped)
            self.primary.show(link_state=self.secondary.shown.link_state)

    def test_answer_in_one_piece(self) -> None:
        """The server leaves the connection open; the client closes it."""
        for body in self.each_kind():
            waiting, server = self.upload_to_script(body)
            server.answer("409 Conflict", PROBLEM)
            self.pump()
            self.assert_refused(waiting, body)

    def test_answer_in_pieces(self) -> None:
        """The headers first, which is where Twisted's client would stop reading until the body is through."""
        for body in self.each_kind():
            waiting, server = self.upload_to_script(body)
            head = f"HTTP/1.1 409 Conflict\r\nContent-Length: {len(PROBLEM)}\r\n\r\n".encode()
            for piece in (head, PROBLEM[:10], PROBLEM[10:]):
                self.assertNoResult(waiting)
                server.transport.write(piece)
                self.pump()
            self.assert_refused(waiting, body)

    def test_answer_and_close(self) -> None:
        """The server hangs up right behind the answer."""
        for body in self.each_kind():
            waiting, server = self.upload_to_script(body)
            server.answer("409 Conflict", PROBLEM, close=True)
            self.pump()
            self.assert_refused(waiting, body)

    def test_broken_connection(self) -> None:
        """No answer came."""
        for body in self.each_kind():
            waiting, server = self.upload_to_script(body)
            server.transport.loseConnection()
            self.pump()
            error = self.failureResultOf(waiting, Unreachable).value
            self.assertEqual(error.why, "the connection broke while the request was being sent")
            self.assertTrue(body.is_stopped)

    def test_cancelled(self) -> None:
        """The connection is closed, so the daemon cancels the transaction."""
        for body in self.each_kind():
            waiting = self.start(self.client.push("demo", body))
            waiting.cancel()
            self.pump()
            self.failureResultOf(waiting, CancelledError)
            self.assertIn("closed the connection", self.primary.uploads[-1].ending)
            self.assertIsNone(self.primary.shown.transaction)

    def test_answer_that_waits_behind_a_failing_write(self) -> None:
        """The server has answered and closed when the client writes on: the answer is read before the break counts."""
        for body in self.each_kind():
            client = Client.for_url(URL, self.reactor)
            waiting = Deferred.fromCoroutine(client.push("demo", body))
            ((_, factory, _, _),) = self.reactor.unixClients
            self.reactor.unixClients = []
            protocol = factory.buildProtocol(None)
            transport = ResetTransport(
                b"HTTP/1.1 409 Conflict\r\nContent-Length: %d\r\n\r\n%s" % (len(PROBLEM), PROBLEM)
            )
            transport.protocol = protocol
            protocol.makeConnection(transport)
            self.assertIsInstance(transport.writeSomeData(b"more"), ConnectionLost)
            refused = self.failureResultOf(waiting, ApiError).value
            self.assertEqual(str(refused), "The standby refused it.")
            transport.close(Failure(ConnectionLost()))

    def test_writes_that_succeed_read_nothing(self) -> None:
        """Reading is the reactor's business then."""
        client = Client.for_url(URL, self.reactor)
        waiting = Deferred.fromCoroutine(client.push("demo", StallingBody(None)))
        ((_, factory, _, _),) = self.reactor.unixClients
        protocol = factory.buildProtocol(None)
        transport = ResetTransport(b"HTTP/1.1 409 Conflict\r\nContent-Length: 1\r\n\r\n.")
        transport.written = 4
        transport.protocol = protocol
        protocol.makeConnection(transport)
        self.assertEqual(transport.writeSomeData(b"more"), 4)
        self.assertNoResult(waiting)
        transport.close(Failure(ConnectionDone()))
        self.failureResultOf(waiting, Unreachable)


class ResetTransport(ClientTransport):
    """
    A socket that the other side has reset, with bytes in it that have not been read.

    :ivar written: what writing comes to.
    """

    def __init__(self, unread: bytes) -> None:
        super().__init__(64 * 1024)
        self.unread = unread
        self.written: int | Exception = ConnectionLost()

    def writeSomeData(self, data: bytes) -> int | Exception:  # noqa: ARG002, N802 (Twisted's)
        """See `twisted.internet.abstract.FileDescriptor`."""
        return self.written

    def doRead(self) -> None:
        """See `IReadDescriptor`."""
        self.deliver(self.unread)
