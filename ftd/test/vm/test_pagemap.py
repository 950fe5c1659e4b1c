"""What the kernel says of another process's pages, with a kernel of our own."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.vm import pagemap as pagemap_module
from ftd.vm.discovery import Backend, MappedRange
from ftd.vm.errors import TrackingUnavailable, VmError
from ftd.vm.pagemap import (
    PAGE_IS_WRITTEN,
    PAGEMAP_SCAN,
    PRESENT,
    SCAN_ARGUMENT,
    SOFT_DIRTY,
    SWAPPED,
    NotRegistered,
    Pagemap,
    Span,
    numbers_of,
    spans_of,
)
from ftd.vm.ram import PAGE, GuestRam
from ftd.vm.tracking.soft_dirty import is_absent, is_written

#: Where the guest's RAM is supposed to be.
BASE = 0x7F00_0000_0000


class Kernel:
    """
    ``PAGEMAP_SCAN``.

    :ivar written: addresses of pages.
    :ivar calls: ranges that were asked for.
    :ivar error: that the next call gives.
    """

    def __init__(self) -> None:
        self.written: set[int] = set()
        self.calls: list[tuple[int, int]] = []
        self.error = 0
        self.is_stuck = False

    def ioctl(self, _descriptor: int, request: int, argument: bytearray) -> int:
        assert request == PAGEMAP_SCAN
        size, flags, start, end, walk_end, vec, vec_len, max_pages, *masks = SCAN_ARGUMENT.unpack(argument)
        assert (size, flags, walk_end, max_pages) == (96, 3, 0, 0)
        assert masks == [0, PAGE_IS_WRITTEN, 0, PAGE_IS_WRITTEN]
        self.calls.append((start, end))
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        if self.is_stuck:
            argument[32:40] = start.to_bytes(8, "little")
            return 0
        vector = (ctypes.c_uint64 * (3 * vec_len)).from_address(vec)
        count, reached = 0, end
        for page in sorted(page for page in self.written if start <= page < end):
            if count and vector[3 * count - 2] == page:
                vector[3 * count - 2] = page + PAGE
            elif count == vec_len:
                reached = page
                break
            else:
                vector[3 * count : 3 * count + 3] = [page, page + PAGE, PAGE_IS_WRITTEN]
                count += 1
            self.written.discard(page)
        argument[32:40] = reached.to_bytes(8, "little")
        return count


class ScanCase(SynchronousTestCase):
    """The pages of this process, as the kernel above sees them."""

    def setUp(self) -> None:
        self.kernel = Kernel()
        self.pagemap = Pagemap(os.getpid(), ioctl=self.kernel.ioctl)
        self.addCleanup(self.pagemap.close)

    def write(self, *pages: int, base: int = BASE) -> None:
        self.kernel.written.update(base + page * PAGE for page in pages)


class ScanTests(ScanCase):
    """`Pagemap.written`."""

    span = Span(BASE, BASE + 1000 * PAGE, 0)

    def test_nothing(self) -> None:
        found = self.pagemap.written([self.span])
        self.assertEqual((found.tolist(), found.dtype), ([], np.dtype(np.int64)))

    def test_single_pages(self) -> None:
        self.write(0, 2, 999)
        self.assertEqual(self.pagemap.written([self.span]).tolist(), [0, 2, 999])
        self.assertEqual(self.pagemap.written([self.span]).tolist(), [])

    def test_regions(self) -> None:
        self.write(0, 1, 2, 7, 10, 11)
        found = self.pagemap.written([self.span])
        self.assertEqual((found.tolist(), found.dtype), ([0, 1, 2, 7, 10, 11], np.dtype(np.int64)))

    def test_the_answer_is_not_overwritten_by_the_next(self) -> None:
        self.write(1, 3)
        first = self.pagemap.written([self.span])
        self.write(500)
        self.pagemap.written([self.span])
        self.assertEqual(first.tolist(), [1, 3])

    def test_an_answer_in_parts(self) -> None:
        self.patch(pagemap_module, "REGIONS", 2)
        pages = [0, 1, 5, 9, 10, 500, 998]
        self.write(*pages)
        self.assertEqual(self.pagemap.written([self.span]).tolist(), pages)
        self.assertEqual([start for start, _ in self.kernel.calls], [BASE, BASE + 9 * PAGE, BASE + 998 * PAGE])

    def test_several_spans(self) -> None:
        other = BASE - 5000 * PAGE
        self.write(0, 3)
        self.write(0, 1, 9, base=other)
        spans = [self.span, Span(other, other + 10 * PAGE, 1000)]
        self.assertEqual(self.pagemap.written(spans).tolist(), [0, 3, 1000, 1001, 1009])

    def test_a_page_that_is_mapped_twice(self) -> None:
        other = BASE + 5000 * PAGE
        self.write(3, 7)
        self.write(1, 3, base=other)
        spans = [self.span, Span(other, other + 10 * PAGE, 0)]
        self.assertEqual(self.pagemap.written(spans).tolist(), [1, 3, 7])

    @examples(60)
    @given(st.sets(st.integers(0, 40)), st.integers(1, 6))
    def test_any_pages(self, pages: set[int], regions: int) -> None:
        self.pagemap._regions = np.empty((regions, 3), dtype=np.int64)
        self.write(*pages)
        span = Span(BASE, BASE + 41 * PAGE, 7)
        self.assertEqual(self.pagemap.written([span]).tolist(), [page + 7 for page in sorted(pages)])


class ErrorTests(ScanCase):
    """What goes wrong is told, never taken for "nothing was written"."""

    span = Span(BASE, BASE + PAGE, 0)

    def test_not_registered(self) -> None:
        self.kernel.error = errno.EPERM
        self.assertRaises(NotRegistered, self.pagemap.written, [self.span])

    def test_an_old_kernel(self) -> None:
        for number in (errno.ENOTTY, errno.EINVAL):
            self.kernel.error = number
            error = self.assertRaises(TrackingUnavailable, self.pagemap.written, [self.span])
            self.assertIn("it came with Linux 6.7", str(error))

    def test_any_other_error(self) -> None:
        self.kernel.error = errno.ENOMEM
        error = self.assertRaises(VmError, self.pagemap.written, [self.span])
        self.assertEqual(str(error), "the pages that were written could not be asked for: Cannot allocate memory")

    def test_a_kernel_that_does_not_get_on(self) -> None:
        self.kernel.is_stuck = True
        self.assertRaises(VmError, self.pagemap.written, [self.span])

    def test_a_process_that_has_ended(self) -> None:
        process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        pagemap = Pagemap(process.pid, ioctl=self.kernel.ioctl)
        self.addCleanup(pagemap.close)
        self.assertEqual(pagemap.written([self.span]).tolist(), [])
        process.communicate()
        error = self.assertRaises(VmError, pagemap.written, [self.span])
        self.assertEqual(str(error), f"QEMU, process {process.pid}, has ended")
        self.assertRaises(VmError, pagemap.entries, self.span, is_written)
        self.assertIn("has QEMU ended?", str(self.assertRaises(TrackingUnavailable, Pagemap, process.pid)))

    def test_no_right(self) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        error = self.assertRaises(TrackingUnavailable, Pagemap, os.getpid(), self.mktemp())
        self.assertIn("run ftd as root or as QEMU's user", str(error))
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)

    def test_closing_twice(self) -> None:
        self.pagemap.close()
        self.pagemap.close()


class EntryTests(SynchronousTestCase):
    """The entries of a ``pagemap`` that is a file of our own."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.base = 0x1_0000_0000
        entries = np.zeros(10, dtype=np.uint64)
        entries[[1, 4]] = SOFT_DIRTY | PRESENT
        entries[[2, 3]] = PRESENT | 77
        entries[5] = SWAPPED | 5
        entries[6] = SWAPPED | SOFT_DIRTY
        with open(self.directory / "pagemap", "wb") as file:
            file.seek(self.base // PAGE * 8)
            file.write(entries.tobytes())
        self.span = Span(self.base, self.base + 10 * PAGE, 100)

    def found(self) -> tuple[list[int], list[int]]:
        pagemap = Pagemap(os.getpid(), str(self.directory))
        self.addCleanup(pagemap.close)
        return tuple(pagemap.entries(self.span, wanted).tolist() for wanted in (is_written, is_absent))

    def test_entries(self) -> None:
        self.assertEqual(self.found(), ([101, 104, 106], [100, 107, 108, 109]))

    def test_in_parts(self) -> None:
        self.patch(pagemap_module, "_ENTRIES", 3)
        self.assertEqual(self.found(), ([101, 104, 106], [100, 107, 108, 109]))

    def test_the_file_ends(self) -> None:
        self.span = Span(self.base, self.base + 11 * PAGE, 100)
        self.assertRaises(VmError, self.found)


class SpanTests(SynchronousTestCase):
    """`spans_of` and `numbers_of`."""

    def setUp(self) -> None:
        directory = Path(self.mktemp()).resolve()
        directory.mkdir()
        backends = [Backend(name, 10 * PAGE, str(directory / name)) for name in ("a", "b")]
        for backend in backends:
            Path(backend.path).write_bytes(bytes(backend.size))
        self.ram = GuestRam(backends, writable=False)
        self.addCleanup(self.ram.close)

    def spans(self, *ranges: tuple[MappedRange, ...]) -> list[tuple[int, int, int]]:
        return [(span.start, span.end, span.first) for span in spans_of(self.ram, ranges)]

    def test_whole(self) -> None:
        b = MappedRange(100 * PAGE, 110 * PAGE, 0)
        a = MappedRange(200 * PAGE, 210 * PAGE, 0)
        self.assertEqual(self.spans((a,), (b,)), [(200 * PAGE, 210 * PAGE, 0), (100 * PAGE, 110 * PAGE, 10)])

    def test_in_parts_and_out_of_order(self) -> None:
        a = (MappedRange(300 * PAGE, 304 * PAGE, 6 * PAGE), MappedRange(200 * PAGE, 206 * PAGE, 0))
        b = (MappedRange(100 * PAGE, 110 * PAGE, 0),)
        self.assertEqual(
            self.spans(a, b),
            [(200 * PAGE, 206 * PAGE, 0), (300 * PAGE, 304 * PAGE, 6), (100 * PAGE, 110 * PAGE, 10)],
        )

    def test_longer_than_the_backend(self) -> None:
        long = (MappedRange(100 * PAGE, 130 * PAGE, 0),)
        self.assertEqual(self.spans(long, long), [(100 * PAGE, 110 * PAGE, 0), (100 * PAGE, 110 * PAGE, 10)])

    def test_not_whole(self) -> None:
        whole = (MappedRange(100 * PAGE, 110 * PAGE, 0),)
        for part in (
            (),
            (MappedRange(100 * PAGE, 109 * PAGE, 0),),
            (MappedRange(100 * PAGE, 109 * PAGE, PAGE),),
            (MappedRange(100 * PAGE, 104 * PAGE, 0), MappedRange(200 * PAGE, 205 * PAGE, 5 * PAGE)),
        ):
            error = self.assertRaises(TrackingUnavailable, spans_of, self.ram, (whole, part))
            self.assertIn(f"of the {10 * PAGE} bytes of the backend b", str(error))

    def test_nothing_at_all(self) -> None:
        self.assertEqual(numbers_of([], []).tolist(), [])
