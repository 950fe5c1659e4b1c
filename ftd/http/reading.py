"""
Large bodies, read straight from the socket to where the pair sends them from.

Twisted's transports make a new ``bytes`` of every read.  While a large body streams in, a `BodyReader` reads in their
place, into blocks that are used again: the pair gets views of them, and says by `IUpload.unsent` how much of what it
got is still needed.  Where everything has gone on its way by the next read, which is the rule, that read goes to the
same memory, which the processor still has in its cache.

A block that is needed longer stays where it is, and another one takes its place; how many there may be is the pair's
affair, which pauses the body when it has enough.  What bounds the blocks here is how many are *kept* for later.

A chunked body goes Twisted's way: its decoder moves what it has left of every read, so that larger reads cost more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, TypeGuard

from twisted.internet import main
from twisted.internet.tcp import Connection

from ftd.interfaces import IUpload

#: Bytes of a block.
BLOCK: Final = 1024 * 1024

#: Bytes that are read at a time: few enough that they are in the processor's cache still when the pair looks at them.
READ: Final = 512 * 1024

#: Reads after which the reactor's other connections have their turn.
READS_A_TURN: Final = 4

#: Blocks that are kept for the next bodies, whosever they are.
SPARE_BLOCKS: Final = 8

#: Bytes of a block's end that are not worth a read.
_LEAST_ROOM: Final = 64 * 1024

#: Bytes of a body that is worth a block.
LARGE_BODY: Final = 256 * 1024


def is_plain(transport: object) -> TypeGuard[Connection]:
    """Whether a transport is a TCP or unix socket on which the bytes are those that the protocol gets."""
    return isinstance(transport, Connection) and not transport.TLS


class ReadBlocks:
    """Blocks that nobody uses at the moment."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def __len__(self) -> int:
        return len(self._spare)

    def take(self) -> memoryview:
        """A block with anything in it."""
        # The one that was given back last is the most likely to be in a cache.
        return self._spare.pop() if self._spare else memoryview(bytearray(BLOCK))

    def give(self, block: memoryview) -> None:
        """Take back a block of which nobody uses a byte any more."""
        if len(self._spare) < SPARE_BLOCKS:
            self._spare.append(block)


class BodyReader:
    """
    Reads a body in the place of its connection, from when it is made until `stop`.

    :param deliver: takes the bytes that were read, which do not change until ``upload`` says that they may, and says
        whether more are wanted at once; calls `stop` with the last of the body, at the latest.
    :param left: how many bytes of the body are to come.
    :param written: how many bytes ``upload`` has been given, by whatever way.
    """

    def __init__(
        self,
        transport: Connection,
        blocks: ReadBlocks,
        upload: IUpload,
        deliver: Callable[[memoryview], bool],
        left: Callable[[], int],
        written: Callable[[], int],
    ) -> None:
        self._transport = transport
        self._blocks = blocks
        self._upload = upload
        self._deliver = deliver
        self._left = left
        self._written = written
        self._block: memoryview | None = None
        self._at = 0
        self._is_delivering = False
        # Blocks that are full, and what had been written when they were.
        self._full: deque[tuple[int, memoryview]] = deque()
        self._own_read = self._read
        transport.doRead = self._own_read  # type: ignore[method-assign, assignment]

    def stop(self) -> None:
        """What comes from here on is the connection's own; no complaint if it is already."""
        if self._is_in_place():
            del self._transport.doRead

    def give_back(self) -> None:
        """
        Nothing is written to the upload any more.  Blocks of which something is on its way still are left to those who
        send it.
        """
        self.stop()
        self._reclaim()
        # Who is being given some of the block at this moment may not be through with it, whatever it says.
        if self._block is not None and not self._upload.unsent and not self._is_delivering:
            self._blocks.give(self._block)
        self._block = None
        self._full.clear()

    def _is_in_place(self) -> bool:
        """Whether it reads still; a connection that is being aborted has got something else for that."""
        return vars(self._transport).get("doRead") is self._own_read

    def _read(self) -> BaseException | None:
        """`IReadDescriptor.doRead`: what there is of the body, and nothing of what comes after it."""
        for _ in range(READS_A_TURN):
            room = self._room()
            try:
                size = self._transport.socket.recv_into(room)
            except BlockingIOError:
                return None
            except OSError:
                return main.CONNECTION_LOST
            if not size:
                return main.CONNECTION_DONE
            self._at += size
            self._is_delivering = True
            is_wanted = self._deliver(room[:size])
            self._is_delivering = False
            if not is_wanted or size < len(room) or not self._is_in_place():
                break
        return None

    def _room(self) -> memoryview:
        """Where the next bytes go."""
        if not self._upload.unsent:
            self._reclaim()
            self._at = 0
        elif BLOCK - self._at < _LEAST_ROOM and self._block is not None:
            self._full.append((self._written(), self._block))
            self._block = None
            self._reclaim()
        if self._block is None:
            self._block, self._at = self._blocks.take(), 0
        return self._block[self._at : self._at + min(READ, self._left())]

    def _reclaim(self) -> None:
        """Give back the blocks that have been sent as a whole."""
        if self._full:
            sent = self._written() - self._upload.unsent
            while self._full and self._full[0][0] <= sent:
                self._blocks.give(self._full.popleft()[1])
