"""The memory of a store: taken when it is needed, kept while it will be, given back after; and a real RAM."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import xxhash
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.sink import SinkError
from ftd.test.vm.records_case import FULL, PAGES, delta
from ftd.test.vm.store_case import Said, StoreTestCase, after, payload
from ftd.vm import standby_slot
from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam
from ftd.vm.standby_slot import Area, Extent, Slot
from ftd.wire.errors import ErrorCode

_STEP = 1024 * 1024


class AreaTests(SynchronousTestCase):
    """One file."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.area = self.made()

    def made(self, limit: int = 8 * _STEP) -> Area:
        area = Area(self.path, limit, "the limit")
        self.addCleanup(area.close)
        return area

    def allocated(self) -> int:
        """Bytes of the file system."""
        return self.path.stat().st_blocks * 512

    def test_nothing_is_taken_before_it_is_needed(self) -> None:
        self.assertEqual((self.area.reserved, self.allocated()), (0, 0))
        self.assertEqual(self.path.stat().st_size, 8 * _STEP)

    def test_rooms_follow_one_another(self) -> None:
        self.area.take(3)[:] = b"abc"
        self.area.take(0)
        self.area.take(2)[:] = b"de"
        self.assertEqual(bytes(self.area.content), b"abcde")
        self.assertEqual(self.path.read_bytes()[:5], b"abcde")

    def test_memory_is_reserved_before_it_is_given(self) -> None:
        self.area.take(1)
        self.assertEqual(self.allocated(), _STEP)
        self.area.take(_STEP)
        self.assertEqual(self.allocated(), 2 * _STEP)

    def test_up_to_the_limit(self) -> None:
        self.area.take(8 * _STEP - 1)
        self.area.take(1)
        error = self.assertRaises(SinkError, self.area.take, 1)
        self.assertIs(error.code, ErrorCode.REALLOC_BUF)
        self.assertEqual(self.area.used, 8 * _STEP)

    def test_a_limit_that_is_no_whole_page(self) -> None:
        area = Area(Path(self.mktemp()), 5000, "the limit")
        self.addCleanup(area.close)
        area.take(8192)
        self.assertRaises(SinkError, area.take, 1)

    def test_a_full_file_system(self) -> None:
        self.area.take(1)

        def full(*_arguments: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "posix_fallocate", full)
        self.area.take(_STEP - 1)
        error = self.assertRaises(SinkError, self.area.take, 1)
        self.assertIs(error.code, ErrorCode.FLUSH)
        self.assertIn("No space left on device", error.detail)
        self.assertEqual((self.area.used, self.area.reserved), (_STEP, _STEP))

    def test_what_is_reserved_is_used_again(self) -> None:
        self.area.take(3 * _STEP)
        self.area.used = 0
        self.patch(os, "posix_fallocate", None)
        self.area.take(3 * _STEP)

    def test_shrinking(self) -> None:
        view = self.area.view
        self.area.take(3 * _STEP)[:] = b"x" * (3 * _STEP)
        self.area.used = 0
        self.area.shrink(5000)
        self.assertEqual((self.area.reserved, self.allocated()), (8192, 8192))
        self.area.shrink(1 << 30)
        self.assertEqual(self.area.reserved, 8192)
        self.area.take(2 * _STEP)
        self.assertEqual(bytes(view[8190:8194]), b"xx\0\0")

    def test_adopting(self) -> None:
        self.area.take(5000)[:] = b"x" * 5000
        digest = xxhash.xxh3_64_intdigest(b"x" * 5000)
        other = self.made()
        self.assertTrue(other.adopt(Extent(5000, digest)))
        self.assertEqual((other.used, bytes(other.content)), (5000, b"x" * 5000))
        self.assertFalse(other.adopt(Extent(5000, digest + 1)))
        self.assertFalse(other.adopt(Extent(9 * _STEP, digest)))
        self.assertTrue(other.adopt(Extent(0, xxhash.xxh3_64_intdigest(b""))))

    def test_adopting_what_has_holes(self) -> None:
        """A hole may have no memory to be read from, and a good digest does not make it whole."""
        digest = xxhash.xxh3_64_intdigest(bytes(5000))
        self.assertFalse(self.area.adopt(Extent(5000, digest)))
        self.area.take(4096)[:] = bytes(4096)
        self.assertFalse(self.made().adopt(Extent(2 * _STEP, 0)))

    def test_a_file_that_cannot_be_mapped(self) -> None:
        self.assertRaises(SinkError, Area, self.path, 1 << 62, "the limit")


class SlotTests(SynchronousTestCase):
    """Three files, and what the pages in them are."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.slot = self.made()

    def made(self) -> Slot:
        slot = Slot(self.directory, "s", 1 << 30, _STEP)
        self.addCleanup(slot.close)
        return slot

    def fill(self, count: int) -> None:
        self.slot.restart()
        for first in range(0, count, 1000):
            room = self.slot.room_for_pages(np.arange(first, min(first + 1000, count), dtype=np.uint32))
            room[:] = bytes(len(room))
            self.slot.pages_filled()

    def allocated(self) -> int:
        return (self.directory / "s.pages").stat().st_blocks * 512

    def test_segments(self) -> None:
        self.slot.room_for_pages(np.array([3, 9], np.uint32))[:] = b"a" * 2 * PAGE
        self.slot.pages_filled()
        self.slot.take_zeros(np.array([[1, 2], [5, 1]], np.uint32))
        self.slot.room_for_pages(np.array([4], np.uint32))[:] = b"b" * PAGE
        self.slot.pages_filled()
        found = [
            (entries.tolist(), None if pages is None else (pages.shape, bytes(pages.data.cast("B")[:1])))
            for entries, pages in self.slot.segments()
        ]
        self.assertEqual(found, [([3, 9], ((2, 512), b"a")), ([[1, 2], [5, 1]], None), ([4], ((1, 512), b"b"))])

    def test_another_one_takes_it_over(self) -> None:
        self.fill(10)
        self.slot.room_for_device(3)[:] = b"dev"
        extents = self.slot.extents()
        other = self.made()
        self.assertTrue(other.adopt(extents, is_applied=False))
        self.assertEqual(bytes(other.device.content), b"dev")
        ((numbers, pages),) = other.segments()
        assert pages is not None
        self.assertEqual((numbers.tolist(), pages.shape), (list(range(10)), (10, PAGE_WORDS)))

    def test_a_slot_that_is_restarted_has_no_old_digest(self) -> None:
        self.fill(10)
        self.fill(5)
        self.assertTrue(self.made().adopt(self.slot.extents(), is_applied=False))

    def test_a_full_checkpoint_gives_its_memory_back(self) -> None:
        self.patch(standby_slot, "WARM", 2 * _STEP)
        self.fill(5000)
        self.assertGreater(self.allocated(), 5000 * PAGE - 1)
        self.slot.trim(is_typical=False)
        self.assertEqual(self.allocated(), 2 * _STEP)
        self.assertEqual(list(self.slot.segments()), [])

    def test_equal_deltas_keep_it(self) -> None:
        self.patch(standby_slot, "WARM", 2 * _STEP)
        for count in (5000, 4900, 5000, 4800):
            self.fill(count)
            self.slot.trim(is_typical=True)
            self.assertGreater(self.allocated(), 5000 * PAGE - 1)

    def test_a_large_delta_is_forgotten_in_time(self) -> None:
        self.patch(standby_slot, "WARM", 2 * _STEP)
        self.fill(5000)
        self.slot.trim(is_typical=True)
        for _ in range(20):
            self.fill(100)
            self.slot.trim(is_typical=True)
        self.assertGreater(self.allocated(), 5000 * PAGE - 1)
        for _ in range(200):
            self.fill(100)
            self.slot.trim(is_typical=True)
        self.assertLess(self.allocated(), 5 * _STEP)


class StoreMemoryTests(StoreTestCase):
    """All of it together."""

    def allocated(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.directory.iterdir())

    def test_nothing_grows(self) -> None:
        every = Said(pages=tuple(range(PAGES)))
        self.take(payload(FULL, every, Said(zeros=((0, 5),)), device=bytes(60000)))
        self.take(payload(delta(2), every, device=bytes(60000)))
        seen = set()
        for number in range(3, 60):
            self.take(payload(delta(number), every, device=bytes(60000)))
            seen.add(self.allocated())
        self.assertEqual(len(seen), 1)

    def test_the_two_slots_take_turns(self) -> None:
        self.take(payload(FULL))
        slots = []
        for number in range(2, 6):
            self.take(payload(delta(number)))
            assert self.store.checkpoint is not None
            slots.append(self.store.checkpoint.slot)
        self.assertEqual(slots, [1, 0, 1, 0])

    def test_forgetting_gives_memory_back(self) -> None:
        self.patch(standby_slot, "WARM", 4096)
        every = Said(pages=tuple(range(PAGES)))
        self.store.close()
        self.store = self.loaded(limit=1 << 30)
        self.commit(payload(FULL, *[every] * 20))
        before = self.allocated()
        self.store.forget()
        self.assertLess(self.allocated(), before - 20 * PAGES * PAGE + _STEP)


class RealRamTests(StoreTestCase):
    """With the files of a VM instead of an array."""

    def test_checkpoints(self) -> None:
        for backend in self.backends:
            Path(backend.path).write_bytes(b"\xa5" * backend.size)
        ram = GuestRam(self.backends, writable=True)
        self.addCleanup(ram.close)
        first = (Said(pages=(0, 63, 64, 95)), Said(zeros=((10, 1), (60, 4))), Said(pages=(61,), seed=1))
        second = (Said(pages=(10, 63, 65), seed=2), Said(zeros=((64, 1), (90, 6))))
        self.commit(payload(FULL, *first))
        self.store.apply(ram)
        expected = after(None, *first)
        self.assertTrue(self.content() == expected.tobytes())
        self.commit(payload(delta(2), *second, encoding=Encoding.ZSTD))
        self.store.apply(ram)
        self.assertTrue(self.content() == after(expected, *second).tobytes())

    def content(self) -> bytes:
        return b"".join(Path(backend.path).read_bytes() for backend in self.backends)
