"""
Payload is read to where it stays.

What a sender of large transactions writes is frame after frame of the same length, so where the next headers and
payloads lie in the stream is known before they are there.  Two things are made of that:

- A *plan* is a list of places for one ``recvmsg``: the rest of the payload that is under way, a slot for a header,
  room for a payload, a slot, room …; after the read all headers are checked together.  From the first one that is not
  what was expected, the bytes are taken out of the places again and go the ordinary way, as if they had been read
  there; what they have overwritten is room that nothing is in yet.
- A *run* is frames that have been read in one piece already: their headers are checked together, and their payloads
  are copied to their place with one strided copy.  Below some kilobytes a frame that costs less than places do.

Rejected: to take ``payload_len`` from a header as it is read, and to read each payload with a call of its own: one
system call a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs
import numpy as np
import numpy.typing as npt

from ftd.wire.constants import HEADER_SIZE, ByteOrder, Command
from ftd.wire.events import Payload
from ftd.wire.framing import encode_header

#: The most places of a plan; Linux takes 1,024 in one call.
MOST_PLACES: Final = 1000

#: Bytes of a plan: twice as many as the last read brought, within these.
LEAST_PLAN: Final = 64 * 1024
MOST_PLAN: Final = 1024 * 1024

#: A rest of a payload that is shorter is not worth a system call of its own.
LEAST_REST: Final = 32 * 1024

#: Frames that are shorter are not predicted in a plan.
LEAST_PREDICTED: Final = 4 * 1024

#: Bytes a transaction has before frames of it are predicted in a plan: the end of a short one would be mispredicted
#: all the time.
PREDICTED_FROM: Final = 256 * 1024

#: Frames from which on a run is worth it.
LEAST_RUN: Final = 4

#: Headers of a run that are looked at first, and how many times more after each look at which all were good.
FIRST_LOOK: Final = 256
FURTHER_LOOK: Final = 16

#: Headers up to which looking at each costs less than looking at all together.
FEW: Final = 8

#: Behind a payload whose successor is not predicted there is place for a COMMIT with its digest, BEGIN and CONTINUE.
SLACK: Final = 64

#: Writable memory for up to so many payload bytes, see `ftd.interfaces.IInPlaceSink.room`.
Room = Callable[[int], Sequence[memoryview]]

_Words = npt.NDArray[np.uint32]

_WORD: dict[ByteOrder, np.dtype[np.uint32]] = {"little": np.dtype("<u4"), "big": np.dtype(">u4")}


class _Slots:
    """
    Where the headers of a plan are read to.  All links share them: a read is told of before the next one is made, and
    what is of use later does not stay here.
    """

    def __init__(self) -> None:
        memory = memoryview(bytearray(HEADER_SIZE * MOST_PLACES))
        self.views = [memory[at : at + HEADER_SIZE] for at in range(0, len(memory), HEADER_SIZE)]
        self.words = {order: np.frombuffer(memory, dtype).reshape(-1, 3) for order, dtype in _WORD.items()}
        self.slack = memoryview(bytearray(SLACK))


_SLOTS = _Slots()


@attrs.frozen
class Placed(Payload):
    """
    Receiver: payload that is in the sink's room already.

    :ivar frames: how many frames it came in.
    """

    frames: int


class Placement:
    """
    What one receiver expects, and the plan it has made of that.

    :ivar predicted: the length that the frames to come are expected to have: that of two frames in a row; 0 while it is
        not known.
    """

    __slots__ = (
        "_byte_order",
        "_first",
        "_last_length",
        "_left",
        "_partial",
        "_places",
        "_room",
        "_size",
        "_want",
        "predicted",
    )

    def __init__(self, byte_order: ByteOrder) -> None:
        self.predicted = 0
        self._byte_order: ByteOrder = byte_order
        self._last_length = 0
        self._want = LEAST_PLAN
        # The plan: its places, the room in them, payload bytes that were missing, how many of them are in front of the
        # first slot or the slack, bytes of the first slot's header that have been read already, and the length of the
        # frames behind it.
        self._places: list[memoryview] = []
        self._room: Sequence[memoryview] = ()
        self._left = 0
        self._first = 0
        self._partial = 0
        self._size = 0

    def note(self, length: int) -> None:
        """A frame of ``length`` bytes was announced by a header that nobody had predicted."""
        self.predicted = length if length == self._last_length else 0
        self._last_length = length

    def plan(self, room: Room, left: int, partial: bytearray, most: int) -> list[memoryview]:
        """
        Places for the next bytes of the stream; none if there is no room.

        :param left: payload bytes of the frame that is under way.
        :param partial: the bytes of the header that is under way.
        :param most: how many frames of the predicted length may follow; 0 for no prediction.
        """
        size = self.predicted if most else 0
        views = self._room = room(min(left + most * size, max(self._want, min(left, MOST_PLAN))))
        if len(views) >= MOST_PLACES:
            views = self._room = views[: MOST_PLACES - 1]
        self._left = left
        self._size = size
        self._partial = len(partial)
        if size:
            if partial:
                _SLOTS.views[0][: len(partial)] = partial
            self._first = left
            self._places = self._lay(views, left, size, len(partial))
        else:
            given = sum(map(len, views))
            self._first = given
            self._places = [*views, _SLOTS.slack] if given == left else list(views)
        return self._places

    def sort(self, size: int, id: int, seq: int) -> tuple[int, int, int, bytes, bytes]:
        """
        What ``size`` bytes in the places are.

        :param id: of the open transaction.
        :param seq: the number of its next frame.
        :return: the number of headers that are as predicted; the payload bytes, which lie in the room from its start;
            the payload bytes that are missing in the last frame; the start of a header; and the bytes that have to go
            the ordinary way behind all of that.
        """
        self._want = min(max(2 * size, LEAST_PLAN), MOST_PLAN)
        if size <= self._first:
            return 0, size, self._left - size, b"", b""
        if not self._size:
            return 0, self._first, 0, b"", self._gathered(self._first, size)
        behind = size - self._first
        missing = HEADER_SIZE - self._partial
        if behind < missing:
            started = self._partial + behind
            return 0, self._first, 0, bytes(_SLOTS.views[0][:started]), b""
        full, tail = divmod(behind - missing, self._size + HEADER_SIZE)
        headers = full + 1
        if headers <= FEW:
            good = self._leading_few(headers, id, seq)
        else:
            good = self._leading(_SLOTS.words[self._byte_order][:headers], id, seq)
        if good < headers:
            payload = self._first + good * self._size
            start = payload + (missing + (good - 1) * HEADER_SIZE if good else 0)
            return good, payload, 0, b"", self._gathered(start, size)
        if tail <= self._size:
            return headers, self._first + full * self._size + tail, self._size - tail, b"", b""
        return headers, self._first + headers * self._size, 0, bytes(_SLOTS.views[headers][: tail - self._size]), b""

    def filled(self, size: int) -> list[memoryview]:
        """The first ``size`` bytes of the room of the plan, in as few pieces as they lie in; the plan is done with."""
        pieces = []
        for view in self._room:
            if size <= 0:
                break
            pieces.append(view[:size] if size < len(view) else view)
            size -= len(view)
        self.forget()
        return pieces

    def forget(self) -> None:
        """Nothing will be read into the places of the plan."""
        self._room = ()
        self._places = []

    def run(self, view: memoryview, at: int, most: int, id: int, seq: int) -> int:
        """
        How many frames of the predicted length, one behind the other and at most ``most``, lie in ``view`` from ``at``
        on; 0 for fewer than would be worth it.
        """
        stride = HEADER_SIZE + self.predicted
        count = min((len(view) - at) // stride, most)
        if count < LEAST_RUN:
            return 0
        last = at + (LEAST_RUN - 1) * stride
        header = encode_header(self._byte_order, Command.CONTINUE, id, seq + LEAST_RUN - 1, self.predicted)
        if view[last : last + HEADER_SIZE] != header:
            return 0
        words: _Words = np.ndarray((count, 3), _WORD[self._byte_order], view, at, (stride, 4))
        # A run that ends soon must not cost what a long one does: it may be followed by another one like it.
        leading, upto = 0, FIRST_LOOK
        while leading < count:
            part = words[leading:upto]
            good = self._leading(part, id, seq + leading)
            leading += good
            if good < len(part):
                break
            upto *= FURTHER_LOOK
        return leading if leading >= LEAST_RUN else 0

    def copy_run(self, view: memoryview, at: int, count: int, to: memoryview) -> None:
        """Copy the payloads of ``count`` frames of the predicted length, whose headers start at ``at``, to ``to``."""
        length = self.predicted
        source: npt.NDArray[np.uint8] = np.ndarray(
            (count, length), np.uint8, view, at + HEADER_SIZE, (HEADER_SIZE + length, 1)
        )
        np.copyto(np.frombuffer(to, np.uint8, count * length).reshape(count, length), source)

    def _lay(self, views: Sequence[memoryview], left: int, size: int, partial: int) -> list[memoryview]:
        """``left`` bytes of room, then slots and ``size`` bytes of room in turns, to the end of the room."""
        places: list[memoryview] = []
        slots = _SLOTS.views
        used = 0
        missing = left
        for view in views:
            at = 0
            end = len(view)
            while at < end:
                if missing:
                    upto = min(at + missing, end)
                    places.append(view[at:upto])
                    missing -= upto - at
                    at = upto
                    continue
                whole = (end - at) // size
                if whole:
                    upto = at + whole * size
                    frames: list[memoryview] = [view] * (2 * whole)
                    frames[::2] = slots[used : used + whole]
                    frames[1::2] = [view[start : start + size] for start in range(at, upto, size)]
                    places += frames
                    used += whole
                    at = upto
                else:
                    places.append(slots[used])
                    used += 1
                    missing = size
            if len(places) >= MOST_PLACES:
                break
        if partial and places:
            # Nothing of a payload is missing in front of it.
            places[0] = slots[0][partial:]
        return places[:MOST_PLACES]

    def _leading_few(self, count: int, id: int, seq: int) -> int:
        """The same as `_leading` for the first ``count`` slots."""
        for at in range(count):
            if _SLOTS.views[at] != encode_header(self._byte_order, Command.CONTINUE, id, seq + at, self.predicted):
                return at
        return count

    def _leading(self, words: _Words, id: int, seq: int) -> int:
        """How many headers there are before the first one that is not of the predicted length and next in order."""
        count = len(words)
        expected = np.frombuffer(
            encode_header(self._byte_order, Command.CONTINUE, id, seq, self.predicted), _WORD[self._byte_order]
        )
        as_expected = words[:, 1] == np.arange(seq, seq + count, dtype=np.uint32)
        as_expected &= words[:, 0] == expected[0]
        as_expected &= words[:, 2] == expected[2]
        return count if as_expected.all() else int(as_expected.argmin())

    def _gathered(self, start: int, end: int) -> bytes:
        """The bytes ``start`` to ``end`` of what was read into the places."""
        pieces = []
        at = 0
        for place in self._places:
            if at >= end:
                break
            if at + len(place) > start:
                pieces.append(place[max(0, start - at) : end - at])
            at += len(place)
        return b"".join(pieces)
