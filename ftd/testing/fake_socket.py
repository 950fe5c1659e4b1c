"""
Sockets in memory, under Twisted's own connections, for tests of what reads and writes sockets itself.

A `SocketLink` has the interface of `ftd.testing.transport.Link`, and a `SocketNetwork` that of its ``Network``: what
one end writes waits, in its `FakeSocket`, until the test delivers it.  In between stand real `Connection` objects and
the dispatching of Twisted's own poll reactors, so that a protocol gets the transport that it has in real life.  What
differs from ``Link`` is what differs from it there too: who closes is told so when everything is with the kernel, and
not when the peer has it; and who was full goes on when the rest is with the kernel.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocol, IReadDescriptor, IReadWriteDescriptor
from twisted.internet.main import CONNECTION_LOST
from twisted.internet.posixbase import _DisconnectSelectableMixin, _PollLikeMixin
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection

from ftd.testing.transport import CLIENT_ADDRESS, SERVER_ADDRESS, TWISTED_BUFFER, Network
from ftd.transport.socket_transport import SocketTransport

_DESCRIPTORS = itertools.count(1000)

#: What the kernel does not say of a connection that the peer has closed, and what it does.
_STANDS, _ENDED, _RESET = range(3)


class FakeSocket:
    """
    One end of a connection, as the kernel has it.

    :param capacity: bytes that it takes before it says EAGAIN; it is writable again when all of them have arrived.
    :ivar incoming: what has arrived and was not read.
    :ivar outgoing: what was sent and has not arrived.
    :ivar most_at_once: the most bytes of the next system call that moves some.
    :ivar calls: the names of the system calls that moved bytes or tried to.
    :ivar options: what was set.
    """

    def __init__(self, capacity: int = TWISTED_BUFFER) -> None:
        self.incoming = bytearray()
        self.outgoing = bytearray()
        self.capacity = capacity
        self.most_at_once: Callable[[], int] = lambda: 1 << 40
        self.calls: list[str] = []
        self.options: dict[tuple[int, int], object] = {}
        self.is_closed = False
        self.was_reset = False
        self.sending: Callable[[], object] = lambda: None
        self._descriptor = next(_DESCRIPTORS)
        self._peer = _STANDS

    # What tests and links do

    def peer_has_gone(self, *, clean: bool) -> None:
        """The end of the stream, or a reset, has arrived."""
        self._peer = _ENDED if clean else _RESET

    @property
    def peer_is_gone(self) -> bool:
        """Whether that is to be noticed by a call."""
        return self._peer != _STANDS

    @property
    def is_writable(self) -> bool:
        """What poll says."""
        return not self.outgoing or self.peer_is_gone

    # What connections do

    def fileno(self) -> int:
        """Any number that is no other's."""
        return -1 if self.is_closed else self._descriptor

    def setblocking(self, blocks: bool) -> None:
        """Never."""
        assert not blocks

    def setsockopt(self, level: int, option: int, value: object) -> None:
        """Noted only; but that a closing is to be a reset is obeyed."""
        self.options[level, option] = value
        self.was_reset |= option == socket.SO_LINGER

    def shutdown(self, how: int) -> None:
        """`close` follows."""

    def close(self) -> None:
        """What was sent still arrives, unless it is a reset."""
        self.is_closed = True
        self.incoming.clear()
        if self.was_reset:
            self.outgoing.clear()

    def recv(self, size: int) -> bytes:
        """See `socket.socket`."""
        block = bytearray(size)
        return bytes(block[: self.recv_into(block)])

    def recv_into(self, block: bytearray | memoryview) -> int:
        """See `socket.socket`."""
        return self.recvmsg_into([block])[0]

    def recvmsg_into(self, blocks: Sequence[bytearray | memoryview]) -> tuple[int, list[object], int, None]:
        """See `socket.socket`."""
        self.calls.append("recv")
        self._must_be_open()
        if not self.incoming:
            if self._peer == _STANDS:
                raise _error(errno.EAGAIN)
            if self._peer == _RESET:
                raise _error(errno.ECONNRESET)
            return 0, [], 0, None
        left = self.most_at_once()
        size = 0
        for block in blocks:
            part = self.incoming[: min(len(block), left)]
            memoryview(block)[: len(part)] = part
            del self.incoming[: len(part)]
            left -= len(part)
            size += len(part)
        return size, [], 0, None

    def send(self, data: bytes | memoryview) -> int:
        """See `socket.socket`."""
        return self.sendmsg([data])

    def sendmsg(self, pieces: Iterable[bytes | memoryview]) -> int:
        """See `socket.socket`."""
        self.calls.append("send")
        self._must_be_open()
        assert len(list(pieces)) <= 1024, "EMSGSIZE"
        self.sending()
        if self.peer_is_gone:
            raise _error(errno.EPIPE if self._peer == _ENDED else errno.ECONNRESET)
        data = b"".join(pieces)
        room = max(0, self.capacity - len(self.outgoing))
        if data and not room:
            raise _error(errno.EAGAIN)
        data = data[: min(room, self.most_at_once())]
        self.outgoing += data
        return len(data)

    def _must_be_open(self) -> None:
        if self.is_closed:
            raise _error(errno.EBADF)


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class SocketReactor(_PollLikeMixin, _DisconnectSelectableMixin, Clock):
    """What a connection asks of a reactor; what is ready is for the test, or the link, to say."""

    _POLL_IN, _POLL_OUT, _POLL_DISCONNECTED = 1, 2, 4

    def __init__(self) -> None:
        super().__init__()
        self._reads: dict[int, IReadDescriptor] = {}
        self._writes: dict[int, object] = {}

    def addReader(self, reader: IReadDescriptor) -> None:  # noqa: N802
        """See `IReactorFDSet`."""
        self._reads[reader.fileno()] = reader

    def removeReader(self, reader: object) -> None:  # noqa: N802
        """See `IReactorFDSet`."""
        self._reads = {number: each for number, each in self._reads.items() if each is not reader}

    def addWriter(self, writer: Any) -> None:  # noqa: N802
        """See `IReactorFDSet`."""
        self._writes[writer.fileno()] = writer

    def removeWriter(self, writer: object) -> None:  # noqa: N802
        """See `IReactorFDSet`."""
        self._writes = {number: each for number, each in self._writes.items() if each is not writer}

    def reads(self, connection: object) -> bool:
        """Whether it is waited for ``connection`` to be readable."""
        return connection in self._reads.values()

    def writes(self, connection: object) -> bool:
        """Whether it is waited for ``connection`` to be writable."""
        return connection in self._writes.values()

    def readable(self, connection: IReadWriteDescriptor) -> None:
        """Poll says so."""
        self._doReadOrWrite(connection, connection.fileno(), self._POLL_IN)

    def writable(self, connection: IReadWriteDescriptor) -> None:
        """Poll says so."""
        self._doReadOrWrite(connection, connection.fileno(), self._POLL_OUT)

    def turn(self) -> bool:
        """Make the calls that are due, and not those that they lead to; whether there were any."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for call in due:
            if call.active():
                self.calls.remove(call)
                call.called = 1
                call.func(*call.args, **call.kw)
        return bool(due)


class SocketEnd(Connection):
    """
    One end of a `SocketLink`: Twisted's connection, and what tests want to know of it.

    :ivar most_unsent: the highest that `unsent` was when something was sent.
    """

    def __init__(self, handle: Any, protocol: IProtocol, reactor: Any, host: IPv4Address, peer: IPv4Address) -> None:
        super().__init__(handle, protocol, reactor)
        self.handle: FakeSocket = handle
        self.most_unsent = 0
        self.is_aborted = False
        self._reactor: SocketReactor = reactor
        self._user = protocol
        self._addresses = (host, peer)
        self.connected = 1
        handle.sending = self._sending
        self.startReading()

    @property
    def link(self) -> SocketTransport | None:
        """The link's transport of a protocol that has one."""
        link = getattr(self._user, "link", None)
        return link if isinstance(link, SocketTransport) else None

    @property
    def unsent(self) -> int:
        """Bytes that were written and have not arrived."""
        waiting = self.link.unsent if self.link is not None else 0
        return len(self.handle.outgoing) + waiting + len(self.dataBuffer) - self.offset + self._tempDataLen

    @property
    def _unsent(self) -> bytearray:
        return self.handle.outgoing

    @property
    def is_reading(self) -> bool:
        """Whether the protocol takes bytes."""
        return self._reactor.reads(self) and (self.link is None or not self.link._is_paused)

    def getHost(self) -> IPv4Address:
        """The address of this end."""
        return self._addresses[0]

    def getPeer(self) -> IPv4Address:
        """The address of the other end."""
        return self._addresses[1]

    def abortConnection(self) -> None:
        """See `Connection`."""
        self.is_aborted = True
        super().abortConnection()

    def _sending(self) -> None:
        self.most_unsent = max(self.most_unsent, self.unsent)

    # What the link does

    def _work(self) -> bool:
        """The timers, and writing if the socket takes something; whether there was anything to do."""
        worked = self._reactor.turn()
        if self._reactor.writes(self) and self.handle.is_writable:
            self._reactor.writable(self)
            return True
        return worked


class SocketFlow:
    """See `ftd.testing.transport.Flow`."""

    def __init__(self, link: SocketLink, source: SocketEnd, target: SocketEnd) -> None:
        self.is_stalled = False
        self.delivered = bytearray()
        self._link = link
        self._source = source
        self._target = target
        self._cut_at: int | None = None
        self._is_clean_cut = True
        self._end_is_told = False

    @property
    def waiting(self) -> int:
        """Bytes that were written and have not arrived."""
        return self._source.unsent

    def cut(self, at: int, *, clean: bool) -> None:
        """See `ftd.testing.transport.Flow`."""
        assert at >= len(self.delivered), "these bytes have arrived already"
        self._cut_at = at
        self._is_clean_cut = clean

    def deliver(self, size: int = TWISTED_BUFFER) -> int:
        """See `ftd.testing.transport.Flow`; what a read has left is read first."""
        self._cut_if_due()
        source, target = self._source, self._target
        if source.connected:
            source._work()
        if self.is_stalled or self._link.is_cut or not target.is_reading:
            return 0
        arrived = target.handle.incoming
        if not arrived:
            self._carry(size)
        before = len(arrived)
        if before:
            target._reactor.readable(target)
            self._cut_if_due()
        return before - len(arrived)

    def _carry(self, size: int) -> None:
        """Up to ``size`` bytes arrive of those that wait now, and the source's transport follows up with the rest."""
        size = min(size, self._source.unsent)
        if self._cut_at is not None:
            size = min(size, self._cut_at - len(self.delivered))
        source = self._source
        while size and source.handle.outgoing:
            fresh = source.handle.outgoing[:size]
            del source.handle.outgoing[: len(fresh)]
            size -= len(fresh)
            self.delivered += fresh
            self._target.handle.incoming += fresh
            if source.connected:
                source._work()

    def bring_end(self) -> bool:
        """Let the target know that the source has closed, once everything has arrived; whether that was news."""
        source, target = self._source, self._target
        if not target.connected:
            return False
        if source.handle.is_closed and not self.is_stalled and not target.handle.peer_is_gone:
            is_late = not target.is_reading and target.unsent
            if source.handle.was_reset or is_late:
                target.handle.peer_has_gone(clean=False)
            elif not source.handle.outgoing:
                target.handle.peer_has_gone(clean=True)
        if not target.handle.peer_is_gone:
            return False
        if target.is_reading:
            target._reactor.readable(target)
            return True
        if target.unsent and not self._end_is_told:
            # Poll says that it hung up.
            self._end_is_told = True
            target._reactor._disconnectSelectable(target, CONNECTION_LOST, False)
            return True
        return False

    def _cut_if_due(self) -> None:
        if self._cut_at == len(self.delivered) and not self._link.is_cut:
            self._link.cut(clean=self._is_clean_cut)


class SocketLink:
    """See `ftd.testing.transport.Link`."""

    def __init__(self, client: IProtocol, server: IProtocol, *, capacity: int = TWISTED_BUFFER) -> None:
        self.reactor = SocketReactor()
        self.client = SocketEnd(FakeSocket(capacity), client, self.reactor, CLIENT_ADDRESS, SERVER_ADDRESS)
        self.server = SocketEnd(FakeSocket(capacity), server, self.reactor, SERVER_ADDRESS, CLIENT_ADDRESS)
        self.to_server = SocketFlow(self, self.client, self.server)
        self.to_client = SocketFlow(self, self.server, self.client)
        self.is_cut = False
        server.makeConnection(self.server)
        client.makeConnection(self.client)

    @property
    def is_over(self) -> bool:
        """Whether both protocols have been told that the connection is lost."""
        return not self.client.connected and not self.server.connected

    def pump(self, chunk: int | Callable[[], int] = TWISTED_BUFFER) -> None:
        """See `ftd.testing.transport.Link`."""
        while self.step(chunk if isinstance(chunk, int) else chunk()):
            pass

    def step(self, chunk: int = TWISTED_BUFFER) -> bool:
        """See `ftd.testing.transport.Link`."""
        moved = self.to_server.deliver(chunk) + self.to_client.deliver(chunk)
        worked = [end._work() for end in (self.client, self.server) if end.connected]
        ended = [flow.bring_end() for flow in (self.to_client, self.to_server)]
        return bool(moved) or any(worked) or any(ended)

    def cut(self, *, clean: bool) -> None:
        """See `ftd.testing.transport.Link`."""
        self.is_cut = True
        self.to_server.is_stalled = self.to_client.is_stalled = False
        for end in (self.client, self.server):
            end.handle.incoming.clear()
            end.handle.peer_has_gone(clean=clean)


class SocketNetwork(Network):
    """A network whose connections are `SocketLink` objects."""

    link_type = SocketLink
