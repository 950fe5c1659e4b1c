"""One checkpoint on its way into a transaction: records, cut into frames."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from twisted.internet.defer import Deferred

from ftd.vm.carrier import Carrier
from ftd.vm.encoding import Encoding, EncodingChoice
from ftd.vm.ram import PAGE, Numbers, Pages, runs_of
from ftd.vm.records import (
    CheckpointHeader,
    Piece,
    Tally,
    checkpoint_record,
    device_record,
    end_record,
    pages_records,
    split_zero,
    zeros_records,
)

#: Bytes after which a frame is sent; larger ones gain nothing.
_FRAME = 1 << 20

#: Pages up to which looking for zeros costs less than a change of threads.
_FEW = 1024


class CheckpointWriter:
    """
    Writes one checkpoint.  Page data is sent from where it lies: it must not change before `Carrier.drained` fires, or
    the transaction has ended.

    :param choice: of the encoding; told how well it went.
    :param run_in_thread: calls a function there.
    :ivar size: bytes so far, what is still to be flushed among them.
    """

    def __init__(
        self, carrier: Carrier, choice: EncodingChoice, run_in_thread: Callable[..., Deferred[list[Piece]]]
    ) -> None:
        self.size = 0
        self._carrier = carrier
        self._choice = choice
        self._encoding = choice.encoding
        self._run_in_thread = run_in_thread
        self._tally = Tally()
        self._pieces: list[Piece] = []
        self._waiting = 0

    def start(self, header: CheckpointHeader) -> None:
        """The first record."""
        self._put((checkpoint_record(header),))
        self._tally.add_checkpoint()

    async def pages(self, numbers: Numbers, pages: Pages) -> None:
        """Pages and what is in them."""
        if len(numbers):
            self._put(await self._made(len(numbers), self._page_records, numbers, pages))

    async def device(self, state: memoryview) -> None:
        """The device state."""
        self._tally.add_device(len(state))
        self._put(await self._made(0, self._device_pieces, state))

    def end(self) -> None:
        """The last record, and send what has not been sent."""
        self._put((end_record(self._tally),))
        self.flush()

    def flush(self) -> None:
        """Send what there is."""
        if self._pieces:
            pieces, self._pieces, self._waiting = tuple(self._pieces), [], 0
            self._carrier.send(pieces)

    async def _made(self, count: int, make: Callable[..., list[Piece]], *arguments: object) -> list[Piece]:
        if self._encoding is Encoding.RAW and count <= _FEW and not self._choice.is_sample_due:
            return make(*arguments)
        return await self._run_in_thread(make, *arguments)

    def _page_records(self, numbers: Numbers, pages: Pages) -> list[Piece]:
        is_zero = split_zero(pages)
        records: list[Piece] = []
        if is_zero.any():
            records += zeros_records(runs_of(numbers[is_zero]), self._tally)
            numbers, pages = numbers[~is_zero], pages[~is_zero]
        if self._choice.is_sample_due and len(pages):
            self._choice.sample(pages.reshape(-1).view(np.uint8).data)
        return records + self._measured(len(pages) * PAGE, pages_records(numbers, pages, self._encoding, self._tally))

    def _device_pieces(self, state: memoryview) -> list[Piece]:
        return self._measured(len(state), device_record(state, self._encoding))

    def _measured(self, before: int, making: Iterable[Piece]) -> list[Piece]:
        """What ``making`` gives, and how long compressing it took."""
        started = time.perf_counter()
        pieces = list(making)
        if self._encoding is not Encoding.RAW:
            self._choice.compressed(before, sum(map(len, pieces)), time.perf_counter() - started)
        return pieces

    def _put(self, pieces: Iterable[Piece]) -> None:
        frame = min(_FRAME, self._carrier.max_frame)
        for piece in pieces:
            self.size += len(piece)
            for part in _portions(piece, frame - self._waiting, frame):
                self._pieces.append(part)
                self._waiting += len(part)
                if self._waiting >= frame:
                    self.flush()


def _portions(piece: Piece, first: int, size: int) -> Iterator[Piece]:
    """``piece`` in portions, the first of which fills up a frame, the others one each."""
    if len(piece) <= first:
        yield piece
        return
    view = memoryview(piece)
    yield view[:first]
    for at in range(first, len(view), size):
        yield view[at : at + size]
