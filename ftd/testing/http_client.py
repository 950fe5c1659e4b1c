"""
An HTTP connection in memory: what a client sends goes straight into a site's channel, what that answers is read here.

The transport behaves as a socket does where that matters to a server: it holds what comes in while reading is paused,
asks a producer to pause when the client does not read, and gives what was written to the client before it closes.
"""

from __future__ import annotations

import json
from typing import Any

import attrs
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.web.http_headers import Headers
from twisted.web.server import Site


@attrs.frozen
class Response:
    """An answer; ``body`` is without its chunked coding."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The last header of that name."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None

    def json(self) -> Any:
        """The body, which has to be one line of JSON."""
        assert self.body.endswith(b"\n"), self.body
        return json.loads(self.body)


class SocketLikeTransport(StringTransport):
    """
    :param capacity: bytes that may wait for the client before the producer is paused; that many again are what a socket
        would take at a time.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.incoming: list[bytes] = []
        self.is_closed = False
        self.was_aborted = False
        self.protocol: IProtocol

    def write(self, data: bytes) -> None:
        """Bytes for the client."""
        if self.is_closed:
            return
        super().write(data)
        if self.io.tell() > self.capacity and self.producer is not None:
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        """The same, in parts."""
        self.write(b"".join(data))

    def deliver(self, data: bytes) -> None:
        """Bytes from the client: now, or when the server reads again."""
        self.incoming.append(data)
        self._deliver_waiting()

    def resumeProducing(self) -> None:
        """The server reads again."""
        if not self.disconnecting:
            super().resumeProducing()
            self._deliver_waiting()

    def pauseProducing(self) -> None:
        """The server reads no more."""
        if not self.disconnecting:
            super().pauseProducing()

    def unregisterProducer(self) -> None:
        """As a socket does it: no complaint if there is none."""
        if self.producer is not None:
            super().unregisterProducer()

    def take(self) -> bytes:
        """The client reads everything that there is, and so the producer may go on."""
        data = bytes(self.value())
        self.clear()
        if self.producer is not None:
            self.producer.resumeProducing()
        self._close_if_asked()
        return data

    def abortConnection(self) -> None:
        """Break the connection; what was not read is lost."""
        self.was_aborted = True
        self.close(Failure(ConnectionAborted()))

    def close(self, reason: Failure) -> None:
        """The connection is gone."""
        if not self.is_closed:
            self.is_closed = True
            self.disconnecting = True
            producer, self.producer = self.producer, None
            if producer is not None:
                producer.stopProducing()
            self.protocol.connectionLost(reason)

    def _deliver_waiting(self) -> None:
        while self.incoming and self.producerState == "producing" and not self.is_closed:
            self.protocol.dataReceived(self.incoming.pop(0))

    def _close_if_asked(self) -> None:
        if self.disconnecting and not self.value():
            self.close(connectionDone)


class Connection:
    """
    A client's connection to ``site``.

    :param capacity: see `SocketLikeTransport`.
    :ivar received: what was read and not yet taken as an answer.
    """

    def __init__(self, site: Site, capacity: int = 64 * 1024) -> None:
        self.transport = SocketLikeTransport(capacity)
        protocol = site.buildProtocol(self.transport.getPeer())
        assert protocol is not None
        self.transport.protocol = protocol
        protocol.makeConnection(self.transport)
        self.received = b""

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the connection and all that it wrote has been read."""
        self.read()
        return self.transport.is_closed

    @property
    def is_read(self) -> bool:
        """Whether the server reads what the client sends."""
        return self.transport.producerState == "producing"

    def send(self, data: bytes) -> None:
        """Bytes on their way to the server."""
        self.transport.deliver(data)

    def send_head(self, method: str, path: str, headers: dict[str, str] | None = None) -> None:
        """A request line and headers, and the end of them."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def read(self) -> bytes:
        """All that there is to read, those bytes before that are still in `received` included."""
        while True:
            data = self.transport.take()
            if not data:
                return self.received
            self.received += data

    def disconnect(self) -> None:
        """The client goes away."""
        self.transport.close(Failure(ConnectionLost()))

    def response(self, method: str = "GET") -> Response:
        """
        The next answer.

        :param method: of the request, which decides whether there is a body.
        :raises AssertionError: if it is not there whole.
        """
        found = self.response_if_any(method)
        assert found is not None, f"no whole answer in {self.received!r}"
        return found

    def response_if_any(self, method: str = "GET") -> Response | None:
        """The next answer, ``None`` while it is not there whole."""
        head, blank, rest = self.read().partition(b"\r\n\r\n")
        if not blank:
            return None
        status_line, *lines = head.split(b"\r\n")
        headers = Headers()
        for line in lines:
            name, _, value = line.partition(b": ")
            headers.addRawHeader(name, value)
        status = int(status_line.split()[1])
        if method == "HEAD" or status in (100, 204, 304):
            body: tuple[bytes, bytes] | None = (b"", rest)
        elif headers.hasHeader("Transfer-Encoding"):
            body = unchunked(rest)
        else:
            body = _cut_at(rest, int((headers.getRawHeaders("Content-Length") or ["0"])[0]))
        if body is None:
            return None
        self.received = body[1]
        return Response(status, headers, body[0])


def _cut_at(data: bytes, length: int) -> tuple[bytes, bytes] | None:
    return (data[:length], data[length:]) if len(data) >= length else None


def unchunked(data: bytes) -> tuple[bytes, bytes] | None:
    """A chunked body that is complete, and what comes after it; else ``None``."""
    body = b""
    while True:
        size_line, found, rest = data.partition(b"\r\n")
        if not found:
            return None
        size = int(size_line, 16)
        if len(rest) < size + 2:
            return None
        if size == 0:
            return body, rest[2:]
        body += rest[:size]
        data = rest[size + 2 :]
