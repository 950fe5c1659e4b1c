"""
How requests get to a daemon: over TCP or a unix socket, also when it answers before the request is through.

A daemon refuses an upload as soon as it knows that it has to (409, 413, 503), which may be gigabytes before the end of
the body.  Twisted's HTTP client is not made for that: it leaves the connection paused after the answer's headers until
the whole request has been sent, and the rest of the answer, and with it the reason, is lost when the daemon hangs up.
So a thin layer stands between it and its transport (:class:`_EarlyAnswerConnection`).  Rejected: ``Expect:
100-continue``, which does nothing for an answer in the midst of the body, and private parts of Twisted's client.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, UNIXClientEndpoint
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint, ITransport
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.web.client import URI, Agent, HTTPConnectionPool
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

DEFAULT_URL = "http://127.0.0.1:8440"

#: Seconds after which an idle connection is not used again; less than the 60 s after which a daemon closes it.
IDLE_TIME = 15


@attrs.frozen
class Address:
    """
    Where a daemon's API is.

    :ivar url: as it was given.
    :ivar base: what the paths of requests are appended to.
    :ivar socket: the path of a unix socket, ``None`` for TCP.
    """

    url: str
    base: str
    socket: str | None = None

    @classmethod
    def parse(cls, url: str) -> Address:
        """
        Read ``http://host:port`` or ``unix:/path/to/socket``.

        :raises ValueError: for anything else; the text says what is wrong.
        """
        if url.startswith("unix:"):
            path = url.removeprefix("unix:")
            if not path:
                raise ValueError(f"{url!r} lacks the path of the socket: unix:/path/to/socket")
            return cls(url, "http://localhost", path)
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is neither http://host:port nor unix:/path/to/socket")
        _ = parts.port  # raises the ValueError that tells of a port out of range
        return cls(url, url.rstrip("/"))


@implementer(IAgentEndpointFactory)
@attrs.frozen
class Endpoints:
    """
    Makes the endpoints for an agent that speaks to one daemon.

    :ivar connect_time: seconds that connecting may take.
    """

    reactor: Any
    address: Address
    connect_time: float

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802 (Twisted's name)
        """Where to connect for a request to ``uri``."""
        if self.address.socket is not None:
            return _EarlyAnswerEndpoint(
                UNIXClientEndpoint(self.reactor, self.address.socket, timeout=self.connect_time)
            )
        return _EarlyAnswerEndpoint(HostnameEndpoint(self.reactor, uri.host, uri.port, timeout=self.connect_time))


def make_agent(reactor: Any, address: Address, connect_time: float) -> tuple[Agent, HTTPConnectionPool]:
    """An agent for one daemon, and the pool in which it keeps its idle connections."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.cachedConnectionTimeout = IDLE_TIME
    return Agent.usingEndpointFactory(reactor, Endpoints(reactor, address, connect_time), pool), pool


@implementer(IStreamClientEndpoint)
@attrs.frozen
class _EarlyAnswerEndpoint:
    """An endpoint whose connections are :class:`_EarlyAnswerConnection`."""

    endpoint: IStreamClientEndpoint

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        """Connect, and return the factory's own protocol."""
        wrapping = WrappingFactory(factory)
        wrapping.protocol = _EarlyAnswerConnection
        wrapping.noisy = False
        connected: Deferred[Any] = self.endpoint.connect(wrapping)
        return connected.addCallback(lambda wrapper: wrapper.wrappedProtocol)


class _EarlyAnswerConnection(ProtocolWrapper):
    """
    Reads on while a request's body is still being sent, and hangs up at once when the answer is complete by then.

    A body is being sent for as long as a producer is registered.  What is read in that time is an answer to an upload:
    a small JSON document.
    """

    transport: Any  # of a stream endpoint: an ITransport that also pauses and aborts
    _is_sending = False

    def makeConnection(self, transport: ITransport) -> None:
        """Have an answer that has already arrived read before the transport gives a broken connection up."""
        write_some: Callable[[bytes], int | BaseException] | None = getattr(transport, "writeSomeData", None)
        if write_some is not None:

            def write_or_read(data: bytes) -> int | BaseException:
                written = write_some(data)
                if isinstance(written, BaseException):
                    # The daemon answered and closed between the reactor's poll and this write.
                    transport.doRead()  # type: ignore[attr-defined]
                return written

            transport.writeSomeData = write_or_read  # type: ignore[attr-defined]
        super().makeConnection(transport)

    def registerProducer(self, producer: object, streaming: bool) -> None:
        """The body begins."""
        self._is_sending = True
        super().registerProducer(producer, streaming)

    def unregisterProducer(self) -> None:
        """The body is through."""
        self._is_sending = False
        super().unregisterProducer()

    def pauseProducing(self) -> None:
        """The HTTP client asks for this after the answer's headers, and resumes when the body is through."""
        if not self._is_sending:
            self.transport.pauseProducing()

    def loseConnection(self) -> None:
        """Closing in good order would wait for the producer."""
        if self._is_sending:
            self.transport.abortConnection()
        else:
            super().loseConnection()
