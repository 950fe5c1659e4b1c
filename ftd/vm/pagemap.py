"""
What the kernel says of the pages of another process: ``/proc/PID/pagemap`` and ``PAGEMAP_SCAN``.

Linux, Documentation/admin-guide/mm/pagemap.rst; ``PAGEMAP_SCAN`` since 6.7.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import select
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import attrs
import numpy as np
from numpy.typing import NDArray

from ftd.vm.errors import TrackingUnavailable, VmError
from ftd.vm.ram import PAGE, GuestRam, Numbers

if TYPE_CHECKING:
    from ftd.vm.discovery import MappedRange

#: ``_IOWR('f', 16, struct pm_scan_arg)``.
PAGEMAP_SCAN: Final = 0xC0606610

#: ``struct pm_scan_arg``: size, flags, start, end, walk_end, vec, vec_len, max_pages, and four masks of categories:
#: inverted, all of which, any of which, which of them are told.
SCAN_ARGUMENT: Final = struct.Struct("=12Q")

#: Where ``walk_end`` is in it.
_WALK_END: Final = 32

#: Pages that are found are write-protected again in the same walk.
PM_SCAN_WP_MATCHING: Final = 1
#: The walk fails with EPERM at memory that is not registered for asynchronous write protection.
PM_SCAN_CHECK_WPASYNC: Final = 2
PAGE_IS_WRITTEN: Final = 1 << 1

#: Regions that one call of ``PAGEMAP_SCAN`` can return; 1.5 MiB, allocated once.
REGIONS: Final = 65536

#: Bits of an entry of ``/proc/PID/pagemap``.
SOFT_DIRTY: Final = 1 << 55
SWAPPED: Final = 1 << 62
PRESENT: Final = 1 << 63

#: Entries that are read in one go: 1 MiB of them, for 512 MiB of memory.
_ENTRIES: Final = 128 * 1024


class NotRegistered(VmError):
    """The memory has to be registered first, in the process whose it is."""


@attrs.frozen
class Span:
    """
    Pages of the guest's RAM in another process's memory.

    :ivar start: address of the first.
    :ivar end: the address after the last.
    :ivar first: number of the first.
    """

    start: int
    end: int
    first: int


def spans_of(ram: GuestRam, mappings: Sequence[Sequence[MappedRange]]) -> tuple[Span, ...]:
    """
    Where the RAM is in QEMU's memory.

    :param mappings: of every backend of ``ram``.
    :return: sorted by page numbers.
    :raises TrackingUnavailable: a part of a backend is not mapped there, so writes to it would not be seen.
    """
    spans = []
    for first, backend, ranges in zip(ram.first_page, ram.backends, mappings, strict=True):
        mapped = 0
        for part in sorted(ranges, key=lambda part: part.offset):
            if part.offset > mapped:
                break
            # A mapping may be larger than the backend, where the file is.
            end = min(part.end, part.start + backend.size - part.offset)
            if end > part.start:
                spans.append(Span(part.start, end, first + part.offset // PAGE))
                mapped = max(mapped, part.offset + end - part.start)
        if mapped < backend.size:
            raise TrackingUnavailable(
                f"QEMU has mapped only {mapped} of the {backend.size} bytes of the backend {backend.id}"
                f" ({backend.path}); was the file replaced?"
            )
    return tuple(spans)


def numbers_of(spans: Sequence[Span], found: Sequence[Numbers]) -> Numbers:
    """What was found in the spans as one set: a page may be mapped twice."""
    if len(found) == 1:
        return found[0]
    numbers = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
    apart = all(one.first + (one.end - one.start) // PAGE <= other.first for one, other in itertools.pairwise(spans))
    return numbers if apart else np.unique(numbers)


class Pagemap:
    """
    The pages of one process.

    :param pid: of it.
    :param directory: where that process's files of ``/proc`` are.
    :raises TrackingUnavailable: there is no such process, or no right to look at it.
    """

    def __init__(
        self,
        pid: int,
        directory: str = "",
        ioctl: Callable[[int, int, bytearray], int] = fcntl.ioctl,
    ) -> None:
        self.pid = pid
        self.directory = directory or f"/proc/{pid}"
        self._ioctl = ioctl
        try:
            # Bound to the process that has the pid now, as what is opened after it is.
            self._process = os.pidfd_open(pid)
        except OSError as error:
            raise TrackingUnavailable(f"there is no process {pid}: has QEMU ended?") from error
        try:
            self._file = os.open(f"{self.directory}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            os.close(self._process)
            raise TrackingUnavailable(
                f"{self.directory}/pagemap cannot be opened: {error.strerror}; run ftd as root or as QEMU's user"
            ) from error
        self._ended = select.poll()
        self._ended.register(self._process, select.POLLIN)
        self._regions: NDArray[np.int64] = np.empty((0, 3), dtype=np.int64)
        self._entries: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)

    def close(self) -> None:
        """Nothing can be asked any more."""
        if self._file >= 0:
            os.close(self._file)
            os.close(self._process)
            self._file = self._process = -1

    def check(self) -> None:
        """
        See that the process is still there; the files of one that has ended say that nothing was written.

        :raises VmError: it is not.
        """
        if self._ended.poll(0):
            raise VmError(f"QEMU, process {self.pid}, has ended")

    def written(self, spans: Sequence[Span]) -> Numbers:
        """
        The pages that were written since they were last found here; from now on they are looked for anew.

        :return: sorted.
        :raises NotRegistered: a part of them is not registered.
        :raises TrackingUnavailable: the kernel is too old.
        :raises VmError: the process has ended.
        """
        found = []
        for span in spans:
            parts = []
            start = span.start
            try:
                while start < span.end:
                    count, start = self._scan(start, span.end, PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC)
                    if count:
                        parts.append(self._numbers(span, count))
            except OSError as error:
                self.check()
                if error.errno == errno.EPERM:
                    raise NotRegistered("QEMU's memory is not registered for write protection") from error
                if error.errno in (errno.ENOTTY, errno.EINVAL):
                    raise TrackingUnavailable(
                        "the kernel has no PAGEMAP_SCAN with write protection: it came with Linux 6.7; use a newer one"
                    ) from error
                raise VmError(f"the pages that were written could not be asked for: {error.strerror}") from error
            found.append(parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else _NOTHING)
        self.check()
        return numbers_of(spans, found)

    def entries(self, span: Span, wanted: Callable[[NDArray[np.uint64]], NDArray[np.bool_]]) -> Numbers:
        """
        The pages of ``span`` whose entries in ``pagemap`` are ``wanted``.

        :raises VmError: the process has ended.
        """
        if not len(self._entries):
            self._entries = np.empty(_ENTRIES, dtype=np.uint64)
        found = []
        position, end = span.start // PAGE, span.end // PAGE
        first = span.first
        while position < end:
            got = os.preadv(self._file, [self._entries[: end - position].data.cast("B")], position * 8) // 8
            if not got:
                raise VmError(f"QEMU, process {self.pid}, has ended")
            found.append(np.flatnonzero(wanted(self._entries[:got])) + first)
            position += got
            first += got
        return np.concatenate(found)

    def _scan(self, start: int, end: int, flags: int) -> tuple[int, int]:
        """How many regions there are now in the vector, and the address up to which was looked."""
        if not len(self._regions):
            self._regions = np.empty((REGIONS, 3), dtype=np.int64)
        argument = bytearray(
            SCAN_ARGUMENT.pack(
                SCAN_ARGUMENT.size,
                flags,
                start,
                end,
                0,
                self._regions.ctypes.data,
                len(self._regions),
                0,
                0,
                PAGE_IS_WRITTEN,
                0,
                PAGE_IS_WRITTEN,
            )
        )
        count = self._ioctl(self._file, PAGEMAP_SCAN, argument)
        reached = ctypes.c_uint64.from_buffer(argument, _WALK_END).value
        if reached <= start:
            raise VmError("the kernel did not get on with looking for written pages")
        return count, reached

    def _numbers(self, span: Span, count: int) -> Numbers:
        """The regions in the vector as page numbers, without a step per region in Python."""
        starts, ends = self._regions[:count, 0], self._regions[:count, 1]
        counts = (ends - starts) // PAGE
        total = int(counts.sum())
        if total == count:
            # Single pages all of them, which is usual.
            return (starts - span.start) // PAGE + span.first
        first = (starts - span.start) // PAGE + span.first
        return np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(total, dtype=np.int64)


_NOTHING: Numbers = np.empty(0, dtype=np.int64)
