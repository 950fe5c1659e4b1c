"""
One of the two places in which a standby keeps a checkpoint: three files that are mapped into memory.

*Pages* has the contents of pages in the order in which they came, *index* what they are, *device* the device state.
The index is a run of segments of 32-bit words: kind of record, count, then that many page numbers (pages) or pairs of
first page and number of pages (zeros); a pages segment's contents are the next ones in *pages*.  Applied one after the
other, the segments give each page the value that was said last.

A file is as long as it may ever become and has holes where nothing was needed yet, so it is mapped once and never
moves.  Memory is reserved with ``posix_fallocate`` before it is touched: a full file system is an error then, and not
a SIGBUS.  What was reserved stays, as the first touch of fresh memory costs twenty times as much as a copy.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs
import numpy as np
import xxhash
from attrs.validators import ge
from numpy.typing import NDArray

from ftd.sinks.sink import SinkError, cannot_store
from ftd.vm.ram import PAGE, PAGE_WORDS
from ftd.vm.records import RecordKind
from ftd.wire.errors import ErrorCode

#: Memory is reserved in steps of so many bytes.
_STEP: Final = 1024 * 1024

#: Bytes of pages that a slot keeps for the next checkpoint, at least.
WARM: Final = 16 * 1024 * 1024

#: How much of the largest checkpoint seen is still expected after each that is smaller.
_FADES: Final = 0.98


@attrs.frozen
class Extent:
    """
    What a file has in it.

    :ivar size: bytes, from the beginning of the file.
    :ivar xxh3: of these, as a number.
    """

    size: int = attrs.field(validator=ge(0))
    xxh3: int


class Area:
    """
    A file with holes, mapped whole.

    :param limit: the most bytes of it that can be used.
    :param what: the name of that limit, for people.
    :raises SinkError: if it cannot be made.
    """

    def __init__(self, path: Path, limit: int, what: str) -> None:
        self.used = 0
        self._path = path
        self._what = what
        self._limit = -(-limit // mmap.PAGESIZE) * mmap.PAGESIZE
        self._reserved = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise cannot_store(f"cannot open {path}", error) from None
        try:
            if os.fstat(self._descriptor).st_size != self._limit:
                os.ftruncate(self._descriptor, self._limit)
            self.view = memoryview(mmap.mmap(self._descriptor, self._limit))
        except OSError as error:
            os.close(self._descriptor)
            raise cannot_store(f"cannot map {self._limit} bytes of {path}", error) from None

    @property
    def reserved(self) -> int:
        """Bytes that may be touched."""
        return self._reserved

    @property
    def content(self) -> memoryview:
        """What is used."""
        return self.view[: self.used]

    def take(self, size: int) -> memoryview:
        """
        The next ``size`` bytes, with anything in them.

        :raises SinkError: REALLOC_BUF over the limit, FLUSH where there is no memory for them.
        """
        start, end = self.used, self.used + size
        if end > self._reserved:
            self._reserve(end)
        self.used = end
        return self.view[start:end]

    def _reserve(self, end: int) -> None:
        if end > self._limit:
            raise SinkError(ErrorCode.REALLOC_BUF, f"the checkpoint needs more than {self._what}, {self._limit} bytes")
        new = min(-(-end // _STEP) * _STEP, self._limit)
        try:
            os.posix_fallocate(self._descriptor, self._reserved, new - self._reserved)
        except OSError as error:
            raise cannot_store(f"there is no room for {new} bytes in {self._path}", error) from None
        self._reserved = new

    def adopt(self, extent: Extent) -> bool:
        """
        What another process left is to be used.

        :return: whether the file has it; nothing else of the file may be read.
        """
        # Neither reading a hole of a full file system nor reading a file that somebody cut is survived.
        if extent.size > self._limit or not self._has_no_hole(extent.size):
            return False
        self._reserved = self.used = extent.size
        return xxhash.xxh3_64_intdigest(self.content) == extent.xxh3

    def _has_no_hole(self, size: int) -> bool:
        try:
            return not size or os.lseek(self._descriptor, 0, os.SEEK_HOLE) >= size
        except OSError:
            return False

    def shrink(self, keep: int) -> None:
        """Give back the memory beyond ``keep`` bytes, which nobody may look at any more."""
        keep = -(-keep // mmap.PAGESIZE) * mmap.PAGESIZE
        if keep < self._reserved:
            self._cut(keep)

    def release(self) -> None:
        """Give back all memory, also what another process had reserved."""
        self.used = 0
        self._cut(0)

    def _cut(self, keep: int) -> None:
        os.ftruncate(self._descriptor, keep)
        os.ftruncate(self._descriptor, self._limit)
        self._reserved = keep

    def close(self) -> None:
        """The mapping goes when the last view of it does."""
        os.close(self._descriptor)
        self.view = memoryview(b"")


class Slot:
    """
    :param name: the files are ``NAME.pages``, ``NAME.index`` and ``NAME.device``.
    :param limit: bytes of pages.
    :param device_limit: bytes of device state.
    :raises SinkError: if the files cannot be made.
    """

    def __init__(self, directory: Path, name: str, limit: int, device_limit: int) -> None:
        self.pages = Area(directory / f"{name}.pages", limit, "the limit for its pages")
        # A page needs 4 bytes, and no two runs of zeros touch: 8 bytes for every other page, and as much again.
        self.index = Area(directory / f"{name}.index", limit // 256 + _STEP, "the limit for its page numbers")
        self.device = Area(directory / f"{name}.device", device_limit, "qemu-device-limit")
        self._digest = xxhash.xxh3_64()
        self._room = memoryview(b"")
        self._expected = 0.0

    def restart(self) -> None:
        """Empty it; its memory stays."""
        for area in (self.pages, self.index, self.device):
            area.used = 0
        self._digest.reset()

    def room_for_pages(self, numbers: NDArray[np.uint32]) -> memoryview:
        """See `ftd.vm.record_reader.RecordTarget`."""
        self._note(RecordKind.PAGES, numbers)
        self._room = self.pages.take(len(numbers) * PAGE)
        return self._room

    def pages_filled(self) -> None:
        """See `ftd.vm.record_reader.RecordTarget`."""
        self._digest.update(self._room)

    def take_zeros(self, runs: NDArray[np.uint32]) -> None:
        """See `ftd.vm.record_reader.RecordTarget`."""
        self._note(RecordKind.ZEROS, runs)

    def room_for_device(self, size: int) -> memoryview:
        """See `ftd.vm.record_reader.RecordTarget`."""
        return self.device.take(size)

    def _note(self, kind: RecordKind, entries: NDArray[np.uint32]) -> None:
        words = np.frombuffer(self.index.take(8 + 4 * entries.size), np.uint32)
        words[0] = kind
        words[1] = len(entries)
        words[2:] = entries.reshape(-1)

    def extents(self) -> tuple[Extent, Extent, Extent]:
        """Of pages, index and device state, as `adopt` wants them."""
        return (
            Extent(self.pages.used, self._digest.intdigest()),
            Extent(self.index.used, xxhash.xxh3_64_intdigest(self.index.content)),
            Extent(self.device.used, xxhash.xxh3_64_intdigest(self.device.content)),
        )

    def adopt(self, extents: tuple[Extent, Extent, Extent], *, is_applied: bool) -> bool:
        """
        Take over what another process left.

        :param is_applied: only the device state is still needed.
        :return: whether it is there and undamaged.
        """
        pages, index, device = extents
        if not self.device.adopt(device):
            return False
        if is_applied:
            self.pages.release()
            self.index.release()
            return True
        return self.pages.adopt(pages) and self.index.adopt(index)

    def release(self) -> None:
        """Nothing that another process left is needed."""
        for area in (self.pages, self.index, self.device):
            area.release()

    def segments(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64] | None]]:
        """
        What it says, in order: page numbers, shape n, and their contents, shape (n, 512), which are views; or runs of
        zeros, shape (n, 2), and ``None``.
        """
        words = np.frombuffer(self.index.content, np.uint32)
        pages = np.frombuffer(self.pages.content, np.uint64).reshape(-1, PAGE_WORDS)
        at = done = 0
        while at < len(words):
            kind, count = int(words[at]), int(words[at + 1])
            at += 2
            if kind == RecordKind.PAGES:
                yield words[at : at + count].astype(np.int64), pages[done : done + count]
                at += count
                done += count
            else:
                yield words[at : at + 2 * count].astype(np.int64).reshape(-1, 2), None
                at += 2 * count

    def trim(self, *, is_typical: bool) -> None:
        """
        The pages are not needed any more: give back memory that the next checkpoint will not need.

        :param is_typical: whether the next one may well be as large as this.
        """
        self._expected *= _FADES
        if is_typical:
            self._expected = max(self._expected, self.pages.used)
        keep = max(WARM, int(self._expected))
        if self.pages.reserved > 2 * keep or not is_typical:
            self.pages.shrink(keep)
        self.pages.used = self.index.used = 0

    def close(self) -> None:
        """The files stay."""
        for area in (self.pages, self.index, self.device):
            area.close()
