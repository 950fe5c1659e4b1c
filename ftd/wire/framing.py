"""
Bytes to headers and payload views, and headers to bytes.

Framing is a stream: a header is decoded where it lies (copied only when it is split over two reads), a payload is
passed on in views of whatever was read.  Nothing here ever holds a frame, so nothing here has to be bounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from ftd.wire.constants import HEADER_SIZE, ByteOrder, Command


class Header(NamedTuple):
    """A decoded header; ``cmd`` is any 16-bit number until the state machine has looked at it."""

    cmd: int
    id: int
    seq: int
    payload_len: int


_STRUCTS: dict[ByteOrder, Struct] = {"little": Struct("<HHII"), "big": Struct(">HHII")}


def encode_header(byte_order: ByteOrder, cmd: Command, id: int, seq: int, payload_len: int) -> bytes:
    """The 12 bytes of a header."""
    return _STRUCTS[byte_order].pack(cmd, id, seq, payload_len)


class Deframer:
    """
    Cuts a byte stream into headers and payload views.

    After a `Header` with a payload the views of that payload follow, in as many pieces as the reads made of it;
    `payload_left` is 0 with its last piece.  The caller must have judged a header before it takes the next piece: the
    generator is lazy, so a header that is refused costs nothing.
    """

    __slots__ = ("partial", "payload_left", "unpack")

    def __init__(self, byte_order: ByteOrder) -> None:
        #: Four numbers out of a buffer, at an offset.
        self.unpack = _STRUCTS[byte_order].unpack_from
        #: The start of a header whose rest is still to come.
        self.partial = bytearray()
        #: Payload bytes of the current frame that are still to come.
        self.payload_left = 0

    @property
    def inside_header(self) -> bool:
        """Whether the stream stands in the middle of a header."""
        return bool(self.partial)

    def feed(self, data: bytes | memoryview) -> Iterator[Header | memoryview]:
        """Cut ``data``, the next bytes of the stream; a view is good for as long as ``data`` is."""
        view = memoryview(data)
        size = len(view)
        at = 0
        unpack = self.unpack
        while at < size:
            if self.payload_left:
                end = min(size, at + self.payload_left)
                self.payload_left -= end - at
                yield view[at:end]
                at = end
                continue
            if self.partial or size - at < HEADER_SIZE:
                end = min(size, at + HEADER_SIZE - len(self.partial))
                self.partial += view[at:end]
                at = end
                if len(self.partial) < HEADER_SIZE:
                    return
                header = Header._make(unpack(self.partial))
                self.partial.clear()
            else:
                header = Header._make(unpack(view, at))
                at += HEADER_SIZE
            self.payload_left = header.payload_len
            yield header
