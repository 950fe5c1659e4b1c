"""A reader of the event stream: HTTP and Server-Sent Events, each as far as it takes to read what a daemon sends."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs

from tests.raw_peer import PeerClosed, RawPeer


@attrs.frozen
class Event:
    """One message of the stream."""

    kind: str
    id: int | None
    data: dict[str, Any]


class EventReader:
    """
    :param peer: a connection on which nothing has been said yet.
    """

    def __init__(self, peer: RawPeer) -> None:
        self.peer = peer
        self.head = b""
        self._text = bytearray()

    def ask(self, path: str, **headers: str) -> None:
        """Send the request."""
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        self.peer.send("\r\n".join([*lines, "", ""]).encode())

    async def open(self, path: str, **headers: str) -> EventReader:
        """Send the request and read the head of the answer, which has to be well."""
        self.ask(path, **headers)
        await self.read_head()
        return self

    async def read_head(self) -> None:
        """Read what comes before the events."""
        while not self.head.endswith(b"\r\n\r\n"):
            self.head += await self.peer.read(1)
        assert b" 200 OK" in self.head, self.head
        assert b"Content-Type: text/event-stream" in self.head, self.head

    async def next(self) -> Event:
        """The next message; comments are passed over."""
        while True:
            while b"\n\n" not in self._text:
                self._text += await self._chunk()
            message, _, rest = bytes(self._text).partition(b"\n\n")
            self._text[:] = rest
            fields = dict(line.split(": ", 1) for line in message.decode().split("\n") if not line.startswith(":"))
            if fields:
                id = int(fields["id"]) if "id" in fields else None
                return Event(fields["event"], id, json.loads(fields["data"]))

    async def until(self, wanted: Callable[[Event], bool]) -> list[Event]:
        """All messages up to and with the first that is wanted."""
        read = []
        while True:
            read.append(await self.next())
            if wanted(read[-1]):
                return read

    async def snapshot(self) -> list[Event]:
        """What comes before the event that ends a snapshot."""
        return (await self.until(lambda event: event.kind == "sync"))[:-1]

    async def _chunk(self) -> bytes:
        """One chunk of a chunked answer."""
        size = bytearray()
        while not size.endswith(b"\r\n"):
            size += await self.peer.read(1)
        length = int(size, 16)
        if not length:
            raise PeerClosed("the stream has ended")
        chunk = await self.peer.read(length)
        await self.peer.read(2)
        return chunk
