"""
A proxy between the two halves of a pair, which can cut the link at a chosen byte, hold it there, or be slow.

It follows the frames of both directions, and acts in a frame that a :class:`Plan` names.  Everything before the chosen
byte is on its way to its end of the link when the proxy acts, and nothing after it is.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IListeningPort, IStreamClientEndpoint, IStreamServerEndpoint
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.raw_peer import ACK, COMMIT, CONTINUE, HEADER
from tests.slowness import Slowness, SlowWriter
from tests.waiting import limited, reactor, until


class Then(Enum):
    """What the proxy does at the chosen byte."""

    #: Close both connections.
    CUT = "cut"
    #: Pass on nothing more for now, and keep both connections.
    HOLD = "hold"


@attrs.frozen
class Plan:
    """
    Act in the next CONTINUE, in the next COMMIT of a transaction that is no heartbeat, or in the ACK that answers it.

    :param command: `CONTINUE`, `COMMIT` or `ACK`.
    :param at: how many bytes of the frame are passed on.
    """

    command: int
    at: int
    then: Then


class _Direction:
    """The bytes of one direction of one link, cut into frames."""

    def __init__(self, link: _Link, write: Callable[[bytes], None]) -> None:
        self._link = link
        self._write = write
        self._header = bytearray()
        self._payload_left = 0
        self._passing: int | None = None
        self._held = bytearray()

    def feed(self, data: bytes) -> None:
        """Pass on what may pass, and keep the rest."""
        while data and self._link.is_passing:
            if self._passing is not None:
                data = self._pass_last(data)
            elif self._payload_left:
                piece, data = data[: self._payload_left], data[self._payload_left :]
                self._payload_left -= len(piece)
                self._write(piece)
            else:
                missing = HEADER.size - len(self._header)
                self._header += data[:missing]
                data = data[missing:]
                if len(self._header) == HEADER.size:
                    self._take_header()
        self._held += data

    def release(self) -> None:
        """Pass on what was kept."""
        held = bytes(self._held)
        self._held.clear()
        self.feed(held)

    def _take_header(self) -> None:
        header = bytes(self._header)
        self._header.clear()
        cmd, _id, seq, self._payload_left = HEADER.unpack(header)
        plan = self._link.plan_for(cmd, seq)
        if plan is None:
            self._write(header)
        else:
            self._passing = plan.at
            self._payload_left += len(header) - plan.at
            self._held += self._pass_last(header)

    def _pass_last(self, data: bytes) -> bytes:
        """Pass bytes of the frame in which the proxy acts."""
        assert self._passing is not None
        if data and self._passing:
            piece, data = data[: self._passing], data[self._passing :]
            self._passing -= len(piece)
            self._write(piece)
        if not self._passing:
            self._passing = None
            self._link.act()
        return data


class _Side(Protocol):
    """One of the two connections of a link."""

    def __init__(self, link: _Link) -> None:
        self.link = link
        self.direction: _Direction | None = None
        self.early = bytearray()
        self.has_ended = False

    def dataReceived(self, data: bytes) -> None:
        if self.direction is None:
            self.early += data
        else:
            self.direction.feed(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 (Twisted's signature)
        self.has_ended = True
        self.link.ended()

    def towards(self, other: _Side) -> None:
        """Pass on to ``other`` from here on."""
        transport: Any = other.transport
        self.direction = _Direction(self.link, self.link.writer(transport.write, self.transport))
        self.direction.feed(bytes(self.early))

    def close(self) -> None:
        """Close it once all has gone out."""
        if not self.has_ended and self.transport is not None:
            self.transport.loseConnection()

    async def abort(self) -> None:
        """Close it now; return when it is gone."""
        transport: Any = self.transport
        if not self.has_ended and transport is not None:
            transport.abortConnection()
            await until(lambda: self.has_ended, "the connection is gone")


class _Link:
    """One connection of the sender, and the one to the receiver that was made for it."""

    def __init__(self, proxy: CuttingProxy) -> None:
        self.is_passing = True
        self.sides = [_Side(self)]
        self._proxy = proxy
        self._commit_seen = False
        self._slow: list[SlowWriter] = []

    async def join(self) -> None:
        """Connect to the receiver."""
        factory = Factory.forProtocol(lambda: _Side(self))
        factory.noisy = False
        sender = self.sides[0]
        try:
            receiver = await _dialled(self._proxy.target).connect(factory)
        except Exception:
            sender.close()
            return
        assert isinstance(receiver, _Side)
        self.sides.append(receiver)
        sender.towards(receiver)
        receiver.towards(sender)
        if sender.has_ended:
            self.ended()

    def plan_for(self, cmd: int, seq: int) -> Plan | None:
        """The plan, if it is for the frame with this header."""
        plan = self._proxy.plan
        if cmd == COMMIT:
            self._commit_seen = seq > 0
        if plan is None or cmd != plan.command:
            return None
        return plan if self._commit_seen or cmd == CONTINUE else None

    def writer(self, write: Callable[[bytes], None], source: object) -> Callable[[bytes], None]:
        """What passes bytes on that come from ``source``, as fast as the proxy is."""
        if self._proxy.slowness is None:
            return write
        slow = SlowWriter(self._proxy.slowness, write, source)
        self._slow.append(slow)
        return slow.write

    def act(self) -> None:
        """The chosen byte has been passed on."""
        plan, self._proxy.plan = self._proxy.plan, None
        assert plan is not None
        self.is_passing = False
        if plan.then is Then.CUT:
            self.close()
        if not self._proxy.acted.called:
            self._proxy.acted.callback(None)

    def release(self) -> None:
        """Pass on what was held."""
        self.is_passing = True
        for side in self.sides:
            if side.direction is not None:
                side.direction.release()

    def ended(self) -> None:
        """One side is gone: so is the other."""
        self.is_passing = False
        for slow in self._slow:
            slow.cut()
        self.close()

    def close(self) -> None:
        """Close both sides."""
        for side in self.sides:
            side.close()


def _dialled(address: int | Path) -> IStreamClientEndpoint:
    if isinstance(address, int):
        return TCP4ClientEndpoint(reactor, "127.0.0.1", address)
    return UNIXClientEndpoint(reactor, str(address))


def _listening(address: int | Path) -> IStreamServerEndpoint:
    if isinstance(address, int):
        return TCP4ServerEndpoint(reactor, address, interface="127.0.0.1")
    return UNIXServerEndpoint(reactor, str(address))


class CuttingProxy(Factory):
    """
    :param target: where the receiver listens: a port of the loopback, or the path of a socket.
    :ivar plan: what to do next; ``None`` to pass on everything.
    :ivar acted: fires when that has been done.
    :ivar slowness: of the links that are made from now on; a slow one that is cut loses what is under way.
    """

    noisy = False

    def __init__(self, target: int | Path) -> None:
        self.target = target
        self.plan: Plan | None = None
        self.slowness: Slowness | None = None
        self.acted: Deferred[None] = Deferred()
        self._port: IListeningPort | None = None
        self._links: list[_Link] = []

    async def listen(self, address: int | Path) -> None:
        """Wait for the sender on a port of the loopback, or on a socket."""
        self._port = await _listening(address).listen(self)

    def do(self, command: int, at: int, then: Then) -> Deferred[None]:
        """Act in the next frame of that kind; fires when that has been done."""
        assert command in (CONTINUE, COMMIT, ACK)
        self.plan = Plan(command, at, then)
        self.acted = Deferred()
        return limited(self.acted)

    def cut_now(self) -> None:
        """Close what there is."""
        for link in self._links:
            link.close()

    def release(self) -> None:
        """Pass on what is held."""
        for link in self._links:
            link.release()

    async def stop(self) -> None:
        """Listen no longer, and wait for the end of all connections."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        for link in self._links:
            for side in link.sides:
                await side.abort()

    def buildProtocol(self, _address: object) -> _Side:
        link = _Link(self)
        self._links.append(link)
        reactor.callLater(0, lambda: Deferred.fromCoroutine(link.join()))
        return link.sides[0]
