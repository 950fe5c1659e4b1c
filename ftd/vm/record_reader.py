"""
Reading the payload of a VM checkpoint as it comes in, in pieces that end anywhere.

The reader always knows the next bytes' number and where they go: a *room* to be filled and what follows when it is
full.  Small things (headers, page numbers, JSON, what is compressed) are collected in memory of its own; pages and
device state that come as they are go straight to the room that its target gives for them, so they are copied once.
Whatever a payload says, no more memory is used than the limits in `ftd.vm.records` and the target allow, and nothing
is reserved for a record before its header has been checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from ftd.sinks.sink import SinkError
from ftd.vm.encoding import Encoding, decompress
from ftd.vm.ram import PAGE
from ftd.vm.records import (
    DEVICE_SIZE,
    END_COUNTS,
    MAX_CHECKPOINT,
    MAX_RECORD_PAGES,
    MAX_RECORD_RUNS,
    PAGES_COUNT,
    RECORD_HEADER,
    RECORD_VERSION,
    RUN_SIZE,
    CheckpointHeader,
    RecordError,
    RecordKind,
    Tally,
)
from ftd.wire.errors import ErrorCode

#: So much of the memory for what is compressed is kept from one record to the next.
_WARM: Final = 4 * 1024 * 1024

#: What every record of these kinds may have as its flags.
ENCODINGS: Final[Mapping[int, tuple[Encoding, ...]]] = {
    RecordKind.CHECKPOINT: (Encoding.RAW,),
    RecordKind.PAGES: (Encoding.RAW, Encoding.ZSTD),
    RecordKind.ZEROS: (Encoding.RAW,),
    RecordKind.DEVICE: (Encoding.RAW, Encoding.ZSTD),
    RecordKind.END: (Encoding.RAW,),
}


class RecordTarget(Protocol):
    """Where a reader puts what it reads.  Each method may raise a `SinkError`, which ends the reading."""

    def room_for_pages(self, numbers: NDArray[np.uint32]) -> memoryview:
        """
        Pages are coming: ascending ``numbers`` that exist, valid during the call.

        :return: 4096 bytes for each, in this order, which the reader fills before it asks for anything else.
        """

    def pages_filled(self) -> None:
        """The newest room for pages holds them now."""

    def take_zeros(self, runs: NDArray[np.uint32]) -> None:
        """Runs of pages that are all zeros, shape (n, 2), ascending and without overlap; valid during the call."""

    def room_for_device(self, size: int) -> memoryview:
        """The device state is coming.  :return: ``size`` bytes for it."""


class RecordReader:
    """
    :param check: gets the first record, and raises a `SinkError` if the rest is of no use.
    :param max_device: the most bytes of device state.
    :ivar header: the checkpoint record, once it is read.
    :ivar tally: of the records that were read.
    :ivar is_complete: whether the end record was read.
    """

    def __init__(self, check: Callable[[CheckpointHeader], None], max_device: int) -> None:
        self._check = check
        self._max_device = max_device
        self._small = memoryview(bytearray(max(MAX_CHECKPOINT, 4 * MAX_RECORD_PAGES, RUN_SIZE * MAX_RECORD_RUNS)))
        self._packed = bytearray()

    def restart(self, target: RecordTarget) -> None:
        """A payload follows, into ``target``; memory is kept."""
        self._target = target
        self.header: CheckpointHeader | None = None
        self.tally = Tally()
        self.is_complete = False
        self._has_device = False
        self._error: SinkError | None = None
        self._length = 0
        self._encoding = Encoding.RAW
        self._target_room = memoryview(b"")
        if len(self._packed) > _WARM:
            self._packed = bytearray()
        self._next_record()

    def feed(self, data: bytes | memoryview) -> None:
        """
        The next bytes, of which no view is kept.

        :raises RecordError: if they cannot belong to a checkpoint; whatever is fed after that raises it again.
        :raises SinkError: as the target does.
        """
        if self._error is not None:
            raise self._error
        view = memoryview(data)
        try:
            while view:
                if self.is_complete:
                    raise _misplaced(f"{len(view)} bytes follow the end record")
                step = min(len(view), len(self._room) - self._filled)
                self._room[self._filled : self._filled + step] = view[:step]
                self._filled += step
                view = view[step:]
                while self._filled == len(self._room) and not self.is_complete:
                    self._then()
        except SinkError as error:
            self._error = error
            raise

    def incomplete(self) -> RecordError | None:
        """Why what was read up to now is no whole checkpoint, ``None`` where it is one."""
        if self.is_complete:
            return None
        if self._then == self._read_header and not self._filled:
            return _damaged(f"the checkpoint ends after {self.tally.records} records, without an end record")
        return _damaged(f"the checkpoint ends inside its record {self.tally.records + 1}")

    def _expect(self, room: memoryview, then: Callable[[], None]) -> None:
        self._room = room
        self._filled = 0
        self._then = then

    def _next_record(self) -> None:
        self._expect(self._small[: RECORD_HEADER.size], self._read_header)

    def _read_header(self) -> None:
        number, version, flags, self._length = RECORD_HEADER.unpack(self._room)
        if version != RECORD_VERSION or flags not in ENCODINGS.get(number, ()):
            raise _damaged(
                f"a record of kind {number}, version {version}, flags {flags:#x} is not known; both sides need the"
                " same ftd"
            )
        kind = RecordKind(number)
        self._encoding = Encoding(flags)
        if (self.header is None) != (kind is RecordKind.CHECKPOINT):
            raise _misplaced(f"{kind.name} stands before CHECKPOINT" if self.header is None else "a second CHECKPOINT")
        self._begin[kind](self)

    def _begin_checkpoint(self) -> None:
        self._check_length(1, MAX_CHECKPOINT)
        self._expect(self._small[: self._length], self._read_checkpoint)

    def _read_checkpoint(self) -> None:
        try:
            document = json.loads(bytes(self._room))
        except (ValueError, RecursionError):
            raise _damaged("the checkpoint record is not JSON") from None
        self.header = CheckpointHeader.from_json(document)
        self.tally.add_checkpoint()
        self._check(self.header)
        self._next_record()

    def _begin_pages(self) -> None:
        self._check_length(PAGES_COUNT.size + 4 + 1, PAGES_COUNT.size + MAX_RECORD_PAGES * (4 + PAGE))
        self._expect(self._small[: PAGES_COUNT.size], self._read_count)

    def _read_count(self) -> None:
        (count,) = PAGES_COUNT.unpack(self._room)
        if not 1 <= count <= MAX_RECORD_PAGES:
            raise _damaged(f"a record of {count} pages; 1 to {MAX_RECORD_PAGES} are allowed")
        self._length -= PAGES_COUNT.size + 4 * count
        self._check_data_length(count * PAGE)
        self._expect(self._small[: 4 * count], self._read_numbers)

    def _read_numbers(self) -> None:
        assert self.header is not None
        numbers = np.frombuffer(self._room, "<u4")
        if int(numbers[-1]) >= self.header.pages or not (numbers[1:] > numbers[:-1]).all():
            raise _damaged(f"a record's page numbers do not ascend, or go over the {self.header.pages} pages of RAM")
        self._target_room = self._target.room_for_pages(numbers)
        self._expect_data(self._pages_filled)

    def _pages_filled(self) -> None:
        self.tally.add_pages(len(self._target_room) // PAGE)
        self._target.pages_filled()
        self._next_record()

    def _begin_zeros(self) -> None:
        self._check_length(RUN_SIZE, RUN_SIZE * MAX_RECORD_RUNS)
        if self._length % RUN_SIZE:
            raise _damaged(f"a zeros record of {self._length} bytes has no whole runs")
        self._expect(self._small[: self._length], self._read_runs)

    def _read_runs(self) -> None:
        assert self.header is not None
        runs = np.frombuffer(self._room, "<u4").reshape(-1, 2)
        firsts = runs[:, 0].astype(np.int64)
        ends = firsts + runs[:, 1]
        if not runs[:, 1].all() or int(ends[-1]) > self.header.pages or not (firsts[1:] >= ends[:-1]).all():
            raise _damaged(f"a record's runs overlap, are empty, or go over the {self.header.pages} pages of RAM")
        self._target.take_zeros(runs)
        self.tally.add_zeros(int((ends - firsts).sum()))
        self._next_record()

    def _begin_device(self) -> None:
        if self._has_device:
            raise _misplaced("a second DEVICE")
        self._has_device = True
        if self._length < DEVICE_SIZE.size:
            raise _damaged(f"a device record of {self._length} bytes")
        self._expect(self._small[: DEVICE_SIZE.size], self._read_device_size)

    def _read_device_size(self) -> None:
        (size,) = DEVICE_SIZE.unpack(self._room)
        if size > self._max_device:
            raise SinkError(
                ErrorCode.REALLOC_BUF,
                f"{size} bytes of device state are more than qemu-device-limit, {self._max_device}; raise it",
            )
        self._length -= DEVICE_SIZE.size
        self._check_data_length(size)
        self._target_room = self._target.room_for_device(size)
        self._expect_data(self._device_filled)

    def _device_filled(self) -> None:
        self.tally.add_device(len(self._target_room))
        self._next_record()

    def _begin_end(self) -> None:
        if not self._has_device:
            raise _misplaced("END stands before DEVICE")
        self._check_length(END_COUNTS.size, END_COUNTS.size)
        self._expect(self._small[: END_COUNTS.size], self._read_end)

    def _read_end(self) -> None:
        told = Tally(*END_COUNTS.unpack(self._room))
        if told != self.tally:
            raise _damaged(f"the end record counts {attrs.asdict(told)}, but there were {attrs.asdict(self.tally)}")
        self.is_complete = True
        self._expect(memoryview(b""), self._next_record)

    def _check_length(self, least: int, most: int) -> None:
        if not least <= self._length <= most:
            raise _damaged(f"a record of {self._length} bytes; {least} to {most} are allowed")

    def _check_data_length(self, size: int) -> None:
        """The rest of the record has to be ``size`` bytes, or fewer where it is compressed."""
        is_right = self._length == size if self._encoding is Encoding.RAW else 0 < self._length < size
        if not is_right:
            raise _damaged(f"{self._length} bytes of {self._encoding.name.lower()} data cannot be {size} bytes")

    def _expect_data(self, then: Callable[[], None]) -> None:
        """Fill the target's room with the rest of the record."""
        if self._encoding is Encoding.RAW:
            self._expect(self._target_room, then)
            return
        if len(self._packed) < self._length:
            self._packed = bytearray(max(self._length, min(2 * self._length, _WARM)))

        def unpack() -> None:
            if not decompress(self._room, self._target_room):
                raise _damaged(f"compressed data is damaged, or does not have {len(self._target_room)} bytes")
            if len(self._packed) > _WARM:
                self._packed = bytearray()
            then()

        self._expect(memoryview(self._packed)[: self._length], unpack)

    _begin: Final = {
        RecordKind.CHECKPOINT: _begin_checkpoint,
        RecordKind.PAGES: _begin_pages,
        RecordKind.ZEROS: _begin_zeros,
        RecordKind.DEVICE: _begin_device,
        RecordKind.END: _begin_end,
    }


def _damaged(detail: str) -> RecordError:
    return RecordError(ErrorCode.RECV_PAYLOAD, detail)


def _misplaced(detail: str) -> RecordError:
    return RecordError(ErrorCode.STATE_INVALID, detail)
