"""`SoftDirty`, on files of our own in place of the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from ftd.vm.discovery import Backend
from ftd.vm.errors import TrackingUnavailable, VmError
from ftd.vm.pagemap import PRESENT, SOFT_DIRTY, Pagemap, Span
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam
from ftd.vm.tracking import soft_dirty
from ftd.vm.tracking.soft_dirty import HUGETLBFS_MAGIC, TMPFS_MAGIC, SoftDirty

#: Where the RAM is supposed to be.
BASE = 0x1_0000_0000

#: Of every file that is asked about.
EXT4_MAGIC = 0xEF53


class SoftDirtyTests(SynchronousTestCase):
    """Ten pages."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        path = self.directory / "ram"
        with open(path, "wb") as file:
            file.truncate(10 * PAGE)
        self.backend = Backend("ram0", 10 * PAGE, str(path))
        self.ram = GuestRam([self.backend], writable=True)
        self.addCleanup(self.ram.close)
        (self.directory / "clear_refs").touch()
        self.has_it, self.swapping, self.magic = True, False, TMPFS_MAGIC
        self.tracker = SoftDirty(
            os.getpid(),
            [Span(BASE, BASE + 10 * PAGE, 0)],
            self.ram,
            works=lambda: self.has_it,
            swaps=lambda: self.swapping,
            file_system=lambda path: self.magic if path == self.backend.path else 0,
            pagemap=lambda pid: Pagemap(pid, str(self.directory)),
        )
        self.addCleanup(self.tracker.close)
        self.entries([PRESENT] * 10)

    def entries(self, entries: list[int]) -> None:
        with open(self.directory / "pagemap", "r+b" if (self.directory / "pagemap").exists() else "wb") as file:
            file.seek(BASE // PAGE * 8)
            file.write(np.array(entries, dtype=np.uint64).tobytes())

    def cleared(self) -> bool:
        """Whether the bits were cleared since this was asked last."""
        path = self.directory / "clear_refs"
        written = path.read_bytes()
        path.write_bytes(b"")
        return written == b"4"

    def test_starting_clears(self) -> None:
        self.tracker.start()
        self.assertTrue(self.cleared())

    def test_what_was_written(self) -> None:
        self.tracker.start()
        self.cleared()
        self.entries([0, PRESENT, PRESENT | SOFT_DIRTY, 0, SOFT_DIRTY, PRESENT, PRESENT, PRESENT, 0, SOFT_DIRTY | 1])
        self.assertEqual(self.tracker.collect().tolist(), [2, 4, 9])
        self.assertTrue(self.cleared())

    def test_only_while_the_guest_is_stopped(self) -> None:
        self.assertFalse(self.tracker.collects_while_running)

    def pages_that_the_page_table_has_not(self) -> list[int]:
        self.ram.put(np.array([3, 5], dtype=np.int64), np.ones((2, PAGE_WORDS), dtype=np.uint64))
        self.tracker.start()
        self.entries([0, PRESENT, PRESENT | SOFT_DIRTY, 0, 0, 0, PRESENT, PRESENT, PRESENT, PRESENT])
        return list(self.tracker.collect())

    def test_without_swap_the_page_table_loses_nothing(self) -> None:
        self.assertEqual(self.pages_that_the_page_table_has_not(), [2])

    def test_with_swap_pages_that_the_page_table_has_not_may_have_been_written(self) -> None:
        self.swapping = True
        self.assertEqual(self.pages_that_the_page_table_has_not(), [2, 3, 5])

    def test_and_so_they_may_on_a_disk(self) -> None:
        self.magic = EXT4_MAGIC
        self.assertEqual(self.pages_that_the_page_table_has_not(), [2, 3, 5])

    def test_huge_pages_have_no_bits(self) -> None:
        self.magic = HUGETLBFS_MAGIC
        self.assertIn("hugetlbfs", str(self.assertRaises(TrackingUnavailable, self.tracker.start)))

    def test_a_kernel_without_it(self) -> None:
        self.has_it = False
        error = self.assertRaises(TrackingUnavailable, self.tracker.start)
        self.assertEqual(str(error), "the kernel was built without CONFIG_MEM_SOFT_DIRTY; use another one")
        self.assertFalse(self.cleared())

    def test_no_right_to_clear(self) -> None:
        (self.directory / "clear_refs").unlink()
        error = self.assertRaises(TrackingUnavailable, self.tracker.start)
        self.assertIn("run ftd as root or as QEMU's user", str(error))

    def test_a_process_that_has_ended(self) -> None:
        self.tracker.start()
        (self.directory / "clear_refs").unlink()
        self.assertRaises(VmError, self.tracker.collect)

    def test_taking(self) -> None:
        self.ram.put(np.array([5], dtype=np.int64), np.full((1, PAGE_WORDS), 7, dtype=np.uint64))
        self.tracker.start()
        out = np.empty((1, PAGE_WORDS), dtype=np.uint64)
        self.tracker.take(np.array([5], dtype=np.int64), out)
        self.assertTrue((out == 7).all())


class MachineTests(SynchronousTestCase):
    """What is asked of this machine."""

    def test_a_kernel_that_takes_it_silently(self) -> None:
        """Neither always set nor never: only bits that follow what is done are believed."""
        for answers in ([True] * 4, [False] * 4, [True, False, False, False]):
            given = iter(answers)
            self.patch(soft_dirty, "_is_soft_dirty", lambda _file, _position, given=given: next(given))
            self.assertFalse(soft_dirty.kernel_has_soft_dirty())

    def test_one_that_has_it(self) -> None:
        given = iter([True, False, True, False])
        self.patch(soft_dirty, "_is_soft_dirty", lambda _file, _position: next(given))
        self.assertTrue(soft_dirty.kernel_has_soft_dirty())

    def test_the_bit_that_is_looked_at(self) -> None:
        path = Path(self.mktemp())
        path.write_bytes((SOFT_DIRTY | 3).to_bytes(8, "little") + (~SOFT_DIRTY % (1 << 64)).to_bytes(8, "little"))
        with open(path, "rb") as file:
            self.assertTrue(soft_dirty._is_soft_dirty(file.fileno(), 0))
            self.assertFalse(soft_dirty._is_soft_dirty(file.fileno(), 8))

    def test_file_systems(self) -> None:
        self.assertEqual(soft_dirty.file_system("/proc/self/status"), 0x9FA0)
        self.assertRaises(TrackingUnavailable, soft_dirty.file_system, "/proc/nowhere")

    def test_swap(self) -> None:
        self.assertEqual(soft_dirty.swaps(), Path("/proc/swaps").read_text(encoding="utf-8").count("\n") > 1)
