"""
Peers that a test scripts byte by byte.

They share no code with ftd: what the wire is, is written down here a second time, from the protocol's description.
"""

from __future__ import annotations

import json
import struct
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs
import xxhash
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP4ServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.waiting import limited, reactor, until

BEGIN, CONTINUE, COMMIT, CANCEL, ATOMIC, ACK, HELLO, NACK = 1, 2, 3, 4, 5, 6, 7, 0xFFFF

#: cmd, id, seq, payload_len.
HEADER = struct.Struct("<HHII")

ALL_FEATURES = ("atomic", "digest", "nack")


@attrs.frozen
class Frame:
    """A header, and the payload that came with it."""

    cmd: int
    id: int
    seq: int
    payload: bytes = b""


class PeerClosed(Exception):
    """The other side closed the connection."""


def header(cmd: int, id: int = 0, seq: int = 0, length: int = 0) -> bytes:
    """The 12 bytes."""
    return HEADER.pack(cmd, id, seq, length)


def frame(cmd: int, id: int = 0, seq: int = 0, payload: bytes = b"") -> bytes:
    """A header and its payload."""
    return header(cmd, id, seq, len(payload)) + payload


def hello(pair: str, **changes: Any) -> bytes:
    """A HELLO as both sides say it; ``changes`` to its keys."""
    body = {
        "version": 1,
        "pair": pair,
        "node": "raw peer",
        "generation": None,
        "last": None,
        "features": list(ALL_FEATURES),
        "max_payload": 64 * 1024 * 1024,
        "state": "standby",
        **changes,
    }
    return frame(HELLO, payload=json.dumps(body).encode())


def digest(state: bytes) -> bytes:
    """What a COMMIT carries where the digest is agreed."""
    return xxhash.xxh3_64_intdigest(state).to_bytes(8, "little")


class RawPeer(Protocol):
    """One end of a connection.  It reads, writes and closes when it is told to, and not otherwise."""

    def __init__(self) -> None:
        self.has_ended = False
        self._received = bytearray()
        self._waiting: Deferred[None] | None = None

    # Reading

    async def read(self, size: int) -> bytes:
        """Exactly so many bytes.  :raises PeerClosed: if the connection ends before."""
        while len(self._received) < size:
            await self._more()
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def frame(self) -> Frame:
        """One frame."""
        cmd, id, seq, length = HEADER.unpack(await self.read(HEADER.size))
        return Frame(cmd, id, seq, await self.read(length))

    async def hello(self) -> dict[str, Any]:
        """One frame, which has to be a HELLO; what it says."""
        found = await self.frame()
        assert (found.cmd, found.id, found.seq) == (HELLO, 0, 0), found
        said: dict[str, Any] = json.loads(found.payload)
        return said

    async def until_closed(self) -> bytes:
        """Wait until the other side has closed the connection; all that it still said."""
        try:
            while True:
                await self._more()
        except PeerClosed:
            return bytes(self._received)

    def stop_reading(self) -> None:
        """Leave what comes in the buffers of the kernel, until they are full."""
        self._transport().pauseProducing()

    def go_on_reading(self) -> None:
        """Read again."""
        self._transport().resumeProducing()

    # Writing

    def send(self, data: bytes) -> None:
        """Bytes, whatever they are."""
        self._transport().write(data)

    def close(self) -> None:
        """Close the connection once all has gone out."""
        if not self.has_ended:
            self._transport().loseConnection()

    async def abort(self) -> None:
        """Break the connection, whatever is still on its way; return when it is gone."""
        if not self.has_ended:
            self._transport().abortConnection()
            await until(lambda: self.has_ended, "the connection is gone")

    def _transport(self) -> Any:
        assert self.transport is not None, "it was never connected"
        return self.transport

    async def _more(self) -> None:
        if self.has_ended:
            raise PeerClosed(f"after {bytes(self._received)!r:.200}")
        assert self._waiting is None, "two wait for one peer"
        self._waiting = Deferred()
        try:
            await limited(self._waiting)
        finally:
            self._waiting = None

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)

    # What Twisted calls

    def connectionMade(self) -> None:
        self._transport().setTcpNoDelay(True)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        self._wake()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 (Twisted's signature)
        self.has_ended = True
        self._wake()


class RawSender(RawPeer):
    """A sender that speaks the protocol, as far as it is told to."""

    async def greet(self, pair: str, **changes: Any) -> int:
        """HELLO in both directions and the opening ACK; the id that the receiver expects."""
        await self.hello()
        self.send(hello(pair, **{"state": "primary", **changes}))
        opening = await self.frame()
        assert (opening.cmd, opening.seq, opening.payload) == (ACK, 0, b""), opening
        return opening.id

    async def transaction(self, id: int, *payloads: bytes, sum: bytes | None = None) -> Frame:
        """A whole transaction and the answer to it; ``sum`` in place of the right digest."""
        self.send(frame(BEGIN, id))
        for seq, payload in enumerate(payloads):
            self.send(frame(CONTINUE, id, seq, payload))
        self.send(frame(COMMIT, id, len(payloads), digest(b"".join(payloads)) if sum is None else sum))
        return await self.frame()


async def connect(port: int) -> RawSender:
    """A connection to a port of the loopback."""
    factory = Factory.forProtocol(RawSender)
    factory.noisy = False
    peer = await limited(TCP4ClientEndpoint(reactor, "127.0.0.1", port).connect(factory))
    assert isinstance(peer, RawSender)
    return peer


class RawReceiver(RawPeer):
    """
    A receiver that speaks the protocol, as far as it is told to.

    :param connected: told when the connection is made.
    """

    def __init__(self, connected: Callable[[RawReceiver], None]) -> None:
        super().__init__()
        self._connected = connected

    def connectionMade(self) -> None:
        super().connectionMade()
        self._connected(self)

    async def greet(self, pair: str, id: int = 0, **changes: Any) -> dict[str, Any]:
        """HELLO in both directions and the opening ACK; what the sender said."""
        self.send(hello(pair, **changes))
        said = await self.hello()
        self.send(frame(ACK, id))
        return said

    async def skip_heartbeats(self) -> Frame:
        """Acknowledge empty transactions until a frame with something in it comes, which is given back."""
        while True:
            begin = await self.frame()
            assert begin.cmd == BEGIN, begin
            following = await self.frame()
            if following.cmd != COMMIT:
                return following
            self.send(frame(ACK, following.id, following.seq))


class RawStandby(Factory):
    """Listens on a port of the loopback and hands over each connection that is made to it."""

    noisy = False

    def __init__(self) -> None:
        self._port: IListeningPort | None = None
        self._connections: deque[RawReceiver] = deque()
        self._all: list[RawReceiver] = []
        self._waiting: Deferred[None] | None = None

    async def listen(self, port: int) -> None:
        """Begin to."""
        self._port = await TCP4ServerEndpoint(reactor, port, interface="127.0.0.1").listen(self)

    async def accept(self) -> RawReceiver:
        """The next connection."""
        while not self._connections:
            self._waiting = Deferred()
            await limited(self._waiting)
        return self._connections.popleft()

    async def stop(self) -> None:
        """Listen no longer, and close all connections."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        for connection in self._all:
            await connection.abort()

    def buildProtocol(self, _address: object) -> RawReceiver:
        return RawReceiver(self._connected)

    def _connected(self, receiver: RawReceiver) -> None:
        self._all.append(receiver)
        self._connections.append(receiver)
        if self._waiting is not None and not self._waiting.called:
            self._waiting.callback(None)
