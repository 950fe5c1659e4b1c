"""
Ethernet frames on their way: in order, in the very bytes they came in, each held until its epoch may leave.

The framing is that of QEMU's ``-netdev stream``: a length of 4 bytes, big-endian, and the frame.  What is read goes
straight into blocks that are used again, and is sent from there; a frame is moved only where a block ends, so that it
always lies in one piece.  Rejected: an object for each frame, which costs more than the frame's way through the kernel.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from typing import Final

import attrs

from ftd.sinks.blocks import BLOCK_SIZE, BlockPool
from ftd.vm.errors import VmError

#: Bytes of a frame at most: what QEMU's network has buffers for (a packet of 64 KiB, and 4 KiB for what is around it).
LONGEST_FRAME: Final = 68 * 1024

#: What stands before each frame.
FRAME_HEADER: Final = struct.Struct(">I")

#: Blocks that a queue keeps for the next burst.  More go back to the allocator: most of the time a NIC is idle.
_SPARE_BLOCKS = 4

#: The most that the rest of a block has to have room for.
_LARGEST_PIECE = FRAME_HEADER.size + LONGEST_FRAME


class NetGateError(VmError):
    """A network of a VM cannot be used; the text says what to do."""

    kind = "netgate"


class BadFrame(NetGateError):
    """What was received is not in the framing of ``-netdev stream``; nothing after it can be made sense of."""


@attrs.define(eq=False)
class _Run:
    """Whole frames that lie one behind the other in a block; the first may have been sent in part."""

    block: bytearray
    start: int
    end: int
    frames: int
    epoch: int


def frames_in(piece: memoryview) -> Iterator[memoryview]:
    """The frames, without their headers, of a piece that holds whole ones only."""
    at, end = 0, len(piece)
    while at < end:
        start = at + FRAME_HEADER.size
        at = start + int.from_bytes(piece[at:start], "big")
        yield piece[start:at]


class FrameQueue:
    """
    Frames from one side, for the other.

    Frames of epoch 0 wait for nothing.  Epochs only grow, and what is released is the front of the queue, always.

    :ivar frames: how many are in the queue, held or not.
    :ivar bytes: how many they and their headers take.
    :ivar released: the epoch up to which frames may leave.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.bytes = 0
        self.released = 0
        self._pool = BlockPool(_SPARE_BLOCKS)
        self._runs: deque[_Run] = deque()
        # Of the first frame, as it was sent: the next thing to go is the rest of it.
        self._sent = 0
        # Where the next bytes go.  In the block are: runs, from `_whole` a part of a frame, from `_fill` nothing.
        self._block = self._pool.take()
        self._whole = 0
        self._fill = 0

    def room(self) -> memoryview:
        """Where to put what is received next: at least 1 byte, and room for the largest frame where none has begun."""
        if not self._runs:
            self._move_to(self._block)
        elif BLOCK_SIZE - self._whole < _LARGEST_PIECE:
            self._move_to(self._pool.take())
        return memoryview(self._block)[self._fill :]

    def _move_to(self, block: bytearray) -> None:
        begun = self._fill - self._whole
        if block is not self._block or self._whole:
            block[:begun] = self._block[self._whole : self._fill]
        self._block, self._whole, self._fill = block, 0, begun

    def received(self, size: int, epoch: int | None) -> int:
        """
        ``size`` bytes were put into the `room`.

        :param epoch: what the frames belong to that are whole now; ``None`` if nobody wants them.
        :returns: how many those are.
        :raises BadFrame: for a length that no frame has.  The frames before it are in the queue.
        """
        self._fill += size
        block, start, fill = self._block, self._whole, self._fill
        at, frames, length = start, 0, 1
        while fill - at >= FRAME_HEADER.size:
            (length,) = FRAME_HEADER.unpack_from(block, at)
            end = at + FRAME_HEADER.size + length
            if not 0 < length <= LONGEST_FRAME or end > fill:
                break
            at = end
            frames += 1
        self._whole = at
        if frames and epoch is not None:
            self._append(start, at, frames, epoch)
        if not 0 < length <= LONGEST_FRAME:
            raise BadFrame(
                f"a frame of {length} bytes, which has to have 1 to {LONGEST_FRAME}: this is not what"
                " `-netdev stream` sends, see what is at the other end of the socket"
            )
        return frames

    def received_frame(self, size: int, epoch: int | None) -> int:
        """A frame of ``size`` bytes was put into the `room` behind where its header goes; else like `received`."""
        FRAME_HEADER.pack_into(self._block, self._fill, size)
        return self.received(FRAME_HEADER.size + size, epoch)

    def _append(self, start: int, end: int, frames: int, epoch: int) -> None:
        self.frames += frames
        self.bytes += end - start
        if self._runs:
            last = self._runs[-1]
            # No run ends where a block begins, so this is the same block.
            if last.end == start and last.epoch == epoch:
                last.end = end
                last.frames += frames
                return
        self._runs.append(_Run(self._block, start, end, frames, epoch))

    def front(self) -> memoryview | None:
        """What may be sent next, in one piece; ``None`` if nothing may.  Good until the next call of anything."""
        if not self._runs or self._runs[0].epoch > self.released:
            return None
        run = self._runs[0]
        return memoryview(run.block)[run.start + self._sent : run.end]

    def sent(self, size: int) -> int:
        """
        ``size`` bytes of the `front` are gone.

        :returns: how many frames were gone with the last of them.
        """
        run = self._runs[0]
        at = run.start + self._sent + size
        if at == run.end:
            self._sent = 0
            self._drop_first()
            return run.frames
        frames, start = 0, run.start
        while True:
            (length,) = FRAME_HEADER.unpack_from(run.block, start)
            end = start + FRAME_HEADER.size + length
            if end > at:
                break
            start = end
            frames += 1
        self._count_out(frames, start - run.start)
        run.start = start
        run.frames -= frames
        self._sent = at - start
        return frames

    def _count_out(self, frames: int, size: int) -> None:
        self.frames -= frames
        self.bytes -= size

    def _drop_first(self) -> None:
        run = self._runs.popleft()
        self._count_out(run.frames, run.end - run.start)
        if run.block is not self._block and not (self._runs and self._runs[0].block is run.block):
            self._pool.give([run.block])

    def rewind(self) -> None:
        """Who was sent the beginning of a frame is gone: the next one gets all of it."""
        self._sent = 0

    def forget_begun(self) -> None:
        """Who sent the beginning of a frame is gone: the rest will not come."""
        self._fill = self._whole

    def discard(self) -> int:
        """
        Drop all that is in the queue, but for a frame of which the beginning is gone: half a frame is none.

        :returns: how many frames were dropped.
        """
        before = self.frames
        dropped, self._runs = self._runs, deque()
        self.frames = self.bytes = 0
        unused = {id(run.block): run.block for run in dropped}
        unused.pop(id(self._block), None)
        if self._sent:
            first = dropped[0]
            unused.pop(id(first.block), None)
            (length,) = FRAME_HEADER.unpack_from(first.block, first.start)
            self._runs.append(
                _Run(first.block, first.start, first.start + FRAME_HEADER.size + length, frames=1, epoch=0)
            )
            self.frames, self.bytes = 1, FRAME_HEADER.size + length
        self._pool.give(list(unused.values()))
        return before - self.frames
