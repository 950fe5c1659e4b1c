"""
Connections in memory, for tests of protocols: they carry bytes only when the test says so, and they fill up.

Two protocols stand at the ends of a `Link`.  What one writes waits in its `BoundedTransport` until the test delivers
it, in pieces of the size the test chooses, or cuts the link instead.  In what a protocol can notice, the transport
does as Twisted's own do: it asks a streaming producer to pause at *every* write while more than ``capacity`` bytes
wait and to go on when none do; it gives nothing to a protocol that has paused its reading, not even the news that
the peer has closed; ``abortConnection`` tells the protocol in a later turn of the reactor, which is the next `pump`.
There is no kernel in between: a peer that does not read leaves every byte where it was written.

A test of two protocols::

    link = Link(client, server, capacity=1000)
    link.pump()                        # until nothing moves any more
    link.to_server.is_stalled = True   # the server reads nothing from here on
    client.say_a_lot()
    link.pump()
    assert client.is_paused

A test of things that dial and listen gives them the endpoints of a `Network`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectionAborted,
    ConnectionDone,
    ConnectionLost,
    ConnectionRefusedError,
)
from twisted.internet.interfaces import (
    IConsumer,
    IListeningPort,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    ITransport,
)
from twisted.internet.protocol import Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

#: Unsent bytes above which Twisted's transports pause their producer, and the most that they read at a time.
TWISTED_BUFFER = 64 * 1024

#: Where the two ends of every link are.
CLIENT_ADDRESS = IPv4Address("TCP", "192.0.2.1", 50000)
SERVER_ADDRESS = IPv4Address("TCP", "192.0.2.2", 8441)


@implementer(ITransport, IConsumer, IPushProducer)
class BoundedTransport:
    """
    One end of a `Link`.

    :param capacity: unsent bytes above which a streaming producer is asked to pause.
    :ivar connected: until the protocol has been told that the connection is lost.
    :ivar disconnecting: ``loseConnection`` was called.
    :ivar is_aborted: ``abortConnection`` was called.
    :ivar is_reading: the protocol takes bytes.
    :ivar producer: the registered producer.
    :ivar most_unsent: the highest that `unsent` has been.
    """

    def __init__(self, protocol: IProtocol, host: IPv4Address, peer: IPv4Address, capacity: int) -> None:
        self.connected = True
        self.disconnecting = False
        self.is_aborted = False
        self.is_reading = True
        self.producer: IPushProducer | None = None
        self.most_unsent = 0
        self._protocol = protocol
        self._host = host
        self._peer = peer
        self._capacity = capacity
        self._unsent = bytearray()
        self._producer_is_paused = False
        # Whether there is something to do when everything is sent (Twisted's startWriting and stopWriting).
        self._is_writing = False
        # Why the connection is gone, from when it is gone until the protocol is told.
        self._gone: Failure | None = None
        # What there is to be noticed of the peer, by reading or by writing.
        self._peer_gone: Failure | None = None

    @property
    def unsent(self) -> int:
        """Bytes that were written and not delivered."""
        return len(self._unsent)

    # What the protocol calls

    def write(self, data: bytes) -> None:
        """Like Twisted's transports it takes nothing but ``bytes``, and drops what comes after the end."""
        if not isinstance(data, bytes):
            raise TypeError(f"a transport takes bytes, not {type(data).__name__}")
        if not data or not self._is_usable():
            return
        self._is_writing = True
        self._unsent += data
        self.most_unsent = max(self.most_unsent, len(self._unsent))
        if self.producer is not None and len(self._unsent) > self._capacity:
            self._producer_is_paused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """The same, in parts."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """
        Close when everything is delivered; a producer that was paused, and may write more, has to be unregistered too.
        """
        if self.connected and not self.disconnecting:
            self._is_writing = True
            self.is_reading = False
            self.disconnecting = True

    def abortConnection(self) -> None:
        """Break the connection; nothing that waits is delivered any more."""
        if self._is_usable():
            self.is_aborted = True
            self.is_reading = False
            self._unsent.clear()
            self._gone = Failure(ConnectionAborted())

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """Push producers only."""
        if self.producer is not None:
            raise RuntimeError(f"{self.producer!r} was never unregistered")
        assert streaming, "pull producers are not supported"
        if not self.connected:
            producer.stopProducing()
            return
        assert IPushProducer.providedBy(producer)
        self.producer = producer

    def unregisterProducer(self) -> None:
        """No complaint if there is none."""
        self.producer = None
        self._is_writing |= self.disconnecting

    def pauseProducing(self) -> None:
        """Read no more."""
        self.is_reading = False

    def resumeProducing(self) -> None:
        """Read on, with the next delivery."""
        if self._is_usable() and not self.disconnecting:
            self.is_reading = True

    def stopProducing(self) -> None:
        """The same as ``loseConnection``."""
        self.loseConnection()

    def getHost(self) -> IPv4Address:
        """The address of this end."""
        return self._host

    def getPeer(self) -> IPv4Address:
        """The address of the other end."""
        return self._peer

    # What the link does

    def _is_usable(self) -> bool:
        return self.connected and self._gone is None

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unsent[:size])
        del self._unsent[:size]
        return taken

    def _write_ready(self) -> bool:
        """Do what Twisted's ``doWrite`` does when there is nothing left to send; whether that was anything."""
        if self._unsent or not self._is_writing or not self._is_usable():
            return False
        self._is_writing = False
        if self.producer is not None and self._producer_is_paused:
            self._producer_is_paused = False
            self.producer.resumeProducing()
            return True
        if self.disconnecting:
            self._gone = Failure(ConnectionDone())
            return True
        return False

    def _notice_peer(self) -> None:
        """The end of the stream is found by reading only; who writes to a peer that is gone gets a reset for it."""
        if self._peer_gone is None or not self._is_usable():
            return
        if self.is_reading:
            self._gone = self._peer_gone
        elif self._unsent:
            self._gone = Failure(ConnectionLost())

    def _end(self, reason: Failure) -> None:
        """The connection is gone: tell the producer and the protocol."""
        self.connected = False
        self.is_reading = False
        self._unsent.clear()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        self._protocol.connectionLost(reason)


class Flow:
    """
    The bytes in one direction of a `Link`.

    :ivar is_stalled: nothing is delivered while it is true: the peer does not read, or the network is stuck.
    :ivar delivered: everything that has arrived.
    """

    def __init__(self, link: Link, source: BoundedTransport, target: BoundedTransport) -> None:
        self.is_stalled = False
        self.delivered = bytearray()
        self._link = link
        self._source = source
        self._target = target
        self._cut_at: int | None = None
        self._is_clean_cut = True

    @property
    def waiting(self) -> int:
        """Bytes that were written and have not arrived."""
        return self._source.unsent

    def cut(self, at: int, *, clean: bool) -> None:
        """
        Have the link end as soon as ``at`` bytes have arrived in this direction, counted from its first.

        :param clean: both ends see an end of the stream (FIN); otherwise both see a reset.
        """
        assert at >= len(self.delivered), "these bytes have arrived already"
        self._cut_at = at
        self._is_clean_cut = clean

    def deliver(self, size: int = TWISTED_BUFFER) -> int:
        """
        Let up to ``size`` of the bytes that wait arrive, as one read.

        :return: how many did.
        """
        self._cut_if_due()
        if self.is_stalled or self._link.is_cut or not self._target.is_reading:
            return 0
        if self._cut_at is not None:
            size = min(size, self._cut_at - len(self.delivered))
        data = self._source._take(size)
        if data:
            self.delivered += data
            self._source._write_ready()
            self._target._protocol.dataReceived(data)
            self._cut_if_due()
        return len(data)

    def _cut_if_due(self) -> None:
        if self._cut_at == len(self.delivered) and not self._link.is_cut:
            self._link.cut(clean=self._is_clean_cut)


class Link:
    """
    A connection between two protocols, from its first byte to its last.

    :param capacity: of both transports, see `BoundedTransport`.
    :ivar to_server: the bytes from the client to the server.
    :ivar to_client: the bytes from the server to the client.
    :ivar client: the client's transport.
    :ivar server: the server's transport.
    :ivar is_cut: the link was cut; the ends may not have noticed it yet.
    """

    def __init__(self, client: IProtocol, server: IProtocol, *, capacity: int = TWISTED_BUFFER) -> None:
        self.client = BoundedTransport(client, CLIENT_ADDRESS, SERVER_ADDRESS, capacity)
        self.server = BoundedTransport(server, SERVER_ADDRESS, CLIENT_ADDRESS, capacity)
        self.to_server = Flow(self, self.client, self.server)
        self.to_client = Flow(self, self.server, self.client)
        self.is_cut = False
        server.makeConnection(self.server)
        client.makeConnection(self.client)

    @property
    def is_over(self) -> bool:
        """Whether both protocols have been told that the connection is lost."""
        return not self.client.connected and not self.server.connected

    def pump(self, chunk: int | Callable[[], int] = TWISTED_BUFFER) -> None:
        """
        Deliver, drain and close, until nothing moves any more.

        :param chunk: the most bytes of one read, or what says that for every read.
        """
        while self.step(chunk if isinstance(chunk, int) else chunk()):
            pass

    def step(self, chunk: int = TWISTED_BUFFER) -> bool:
        """One read in each direction, and what follows from it.  Whether anything happened."""
        moved = self.to_server.deliver(chunk) + self.to_client.deliver(chunk)
        drained = [end._write_ready() for end in (self.client, self.server)]
        ended = [self._end_if_gone(self.client, self.to_client), self._end_if_gone(self.server, self.to_server)]
        return bool(moved) or any(drained) or any(ended)

    def cut(self, *, clean: bool) -> None:
        """
        Break the link now; what waits is lost, and no stall holds up the news.  A protocol hears of it in a `step`, as
        soon as it reads or has something to send.

        :param clean: both ends see an end of the stream (FIN); otherwise both see a reset.
        """
        self.is_cut = True
        self.to_server.is_stalled = self.to_client.is_stalled = False
        for end in (self.client, self.server):
            end._peer_gone = Failure(ConnectionDone() if clean else ConnectionLost())

    def _end_if_gone(self, end: BoundedTransport, incoming: Flow) -> bool:
        if not incoming.is_stalled:
            end._notice_peer()
        reason = end._gone
        if reason is None or not end.connected:
            return False
        end._end(reason)
        other = self.server if end is self.client else self.client
        if other._peer_gone is None:
            is_clean = reason.check(ConnectionDone) is not None
            other._peer_gone = Failure(ConnectionDone() if is_clean else ConnectionLost())
        return True


class Network:
    """
    Endpoints whose connections are `Link` objects.

    :param capacity: of all transports, see `BoundedTransport`.
    :ivar links: every link that there was, oldest first.
    :ivar is_silent: nobody answers: attempts to connect neither succeed nor fail.
    :cvar link_type: what makes a connection.
    """

    link_type: Callable[..., Any] = Link

    def __init__(self, *, capacity: int = TWISTED_BUFFER) -> None:
        self.links: list[Link] = []
        self.is_silent = False
        self._capacity = capacity
        self._listening: IProtocolFactory | None = None

    def client_endpoint(self) -> IStreamClientEndpoint:
        """Connects to what listens at that moment, or is refused."""
        return _ClientEndpoint(self)

    def server_endpoint(self) -> IStreamServerEndpoint:
        """Of those that listen there is one at a time."""
        return _ServerEndpoint(self)

    def pump(self, chunk: int | Callable[[], int] = TWISTED_BUFFER) -> None:
        """Pump all links until nothing moves on any of them; see `Link.pump`."""
        while any(link.step(chunk if isinstance(chunk, int) else chunk()) for link in self.links):
            pass

    def _connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        if self.is_silent:
            return Deferred()
        if self._listening is None:
            return fail(ConnectionRefusedError())
        server = self._listening.buildProtocol(CLIENT_ADDRESS)
        client = factory.buildProtocol(SERVER_ADDRESS)
        assert client is not None
        link = self.link_type(client, server if server is not None else Protocol(), capacity=self._capacity)
        self.links.append(link)
        if server is None:
            link.server.loseConnection()
        return succeed(client)

    def _listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        if self._listening is not None:
            return fail(CannotListenError(SERVER_ADDRESS.host, SERVER_ADDRESS.port, OSError("it is in use")))
        self._listening = factory
        return succeed(_Port(self))

    def _stop_listening(self) -> None:
        self._listening = None


@implementer(IStreamClientEndpoint)
class _ClientEndpoint:
    def __init__(self, network: Network) -> None:
        self._network = network

    def connect(self, factory: IProtocolFactory) -> Deferred[IProtocol]:
        return self._network._connect(factory)


@implementer(IStreamServerEndpoint)
class _ServerEndpoint:
    def __init__(self, network: Network) -> None:
        self._network = network

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        return self._network._listen(factory)


@implementer(IListeningPort)
class _Port:
    def __init__(self, network: Network) -> None:
        self._network = network

    def startListening(self) -> None:
        """It listens from the start."""

    def stopListening(self) -> Deferred[None]:
        self._network._stop_listening()
        return succeed(None)

    def getHost(self) -> IPv4Address:
        return SERVER_ADDRESS
