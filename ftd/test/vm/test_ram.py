"""The guest's RAM as one row of pages."""

from __future__ import annotations

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
from ftd.vm import ram as ram_module
from ftd.vm.discovery import Backend
from ftd.vm.errors import CannotProtect, VmError
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam, Numbers, Pages, Region, Runs, pages_of, runs_of


def numbers(*values: int) -> Numbers:
    return np.array(values, dtype=np.int64)


def runs(*values: tuple[int, int]) -> Runs:
    return np.array(values, dtype=np.int64).reshape(-1, 2)


def contents(count: int, seed: int = 1) -> Pages:
    """Pages of which no word is zero or twice there."""
    return np.arange(count * PAGE_WORDS, dtype=np.uint64).reshape(count, PAGE_WORDS) + np.uint64(1 + seed * 1_000_000)


class RunTests(SynchronousTestCase):
    """`runs_of` and `pages_of`."""

    def test_none(self) -> None:
        self.assertEqual(runs_of(numbers()).shape, (0, 2))
        self.assertEqual(pages_of(runs()).tolist(), [])

    def test_some(self) -> None:
        self.assertEqual(runs_of(numbers(3, 4, 5, 9, 11, 12)).tolist(), [[3, 3], [9, 1], [11, 2]])
        self.assertEqual(pages_of(runs((3, 3), (9, 1), (11, 2))).tolist(), [3, 4, 5, 9, 11, 12])

    def test_pages_of_keeps_the_order(self) -> None:
        self.assertEqual(pages_of(runs((9, 2), (3, 1))).tolist(), [9, 10, 3])

    @examples(100)
    @given(st.sets(st.integers(0, 60)))
    def test_there_and_back(self, pages: set[int]) -> None:
        ordered = sorted(pages)
        found = runs_of(numbers(*ordered))
        self.assertEqual(pages_of(found).tolist(), ordered)
        self.assertTrue((found[:-1, 0] + found[:-1, 1] < found[1:, 0]).all())
        self.assertEqual((found.dtype, pages_of(found).dtype), (np.dtype(np.int64),) * 2)


class RamCase(SynchronousTestCase):
    """Two backends, of 40 and of 600 pages, in which nothing was written."""

    pages = (40, 600)

    def setUp(self) -> None:
        self.directory = Path(self.mktemp()).resolve()
        self.directory.mkdir()
        self.backends = [self.backend(index, count) for index, count in enumerate(self.pages)]
        self.ram = self.opened(writable=True)

    def backend(self, index: int, pages: int) -> Backend:
        path = self.directory / f"ram{index}"
        with open(path, "wb") as file:
            file.truncate(pages * PAGE)
        return Backend(f"ram{index}", pages * PAGE, str(path))

    def opened(self, *, writable: bool) -> GuestRam:
        ram = GuestRam(self.backends, writable=writable)
        self.addCleanup(ram.close)
        return ram

    def taken(self, *pages: int) -> Pages:
        out = np.empty((len(pages), PAGE_WORDS), dtype=np.uint64)
        self.ram.take(numbers(*pages), out)
        return out

    def blocks(self) -> int:
        """Bytes that the files take."""
        return sum(os.stat(backend.path).st_blocks * 512 for backend in self.backends)


class PageTests(RamCase):
    """Pages are copied in and out, of whichever backend."""

    def test_what_there_is(self) -> None:
        self.assertEqual(self.ram.pages, 640)
        self.assertEqual(self.ram.bytes, 640 * PAGE)
        self.assertEqual(self.ram.first_page, (0, 40))

    def test_scattered_pages(self) -> None:
        where, what = numbers(0, 39, 40, 300, 639), contents(5)
        self.ram.put(where, what)
        self.assertTrue(np.array_equal(self.taken(0, 39, 40, 300, 639), what))
        files = [Path(backend.path).read_bytes() for backend in self.backends]
        self.assertEqual(files[0][39 * PAGE :], what[1].tobytes())
        self.assertEqual(files[1][:PAGE], what[2].tobytes())
        self.assertEqual(files[1][599 * PAGE :], what[4].tobytes())

    def test_put_in_any_order_and_the_last_counts(self) -> None:
        what = contents(3)
        self.ram.put(numbers(50, 3, 50), what)
        self.assertTrue(np.array_equal(self.taken(3, 50), what[1:]))

    def test_a_writer_that_is_another_process_is_seen(self) -> None:
        other = self.opened(writable=False)
        self.ram.put(numbers(41), contents(1))
        out = np.empty((1, PAGE_WORDS), dtype=np.uint64)
        other.take(numbers(41), out)
        self.assertTrue(np.array_equal(out, contents(1)))

    def test_a_long_run_over_both_backends(self) -> None:
        self.ram.put(numbers(38, 41, 639), contents(3))
        out = self.taken(*range(20, 640))
        self.assertEqual(np.flatnonzero(out.any(axis=1)).tolist(), [18, 21, 619])
        self.assertTrue(np.array_equal(out[[18, 21, 619]], contents(3)))

    def test_read(self) -> None:
        self.ram.put(numbers(39, 40), contents(2))
        out = np.empty((4, PAGE_WORDS), dtype=np.uint64)
        self.ram.read(38, 4, out)
        self.assertTrue(np.array_equal(out[1:3], contents(2)))
        self.assertFalse(out[[0, 3]].any())

    def test_nothing_is_nothing(self) -> None:
        none = np.empty((0, PAGE_WORDS), dtype=np.uint64)
        self.ram.take(numbers(), none)
        self.ram.put(numbers(), none)
        self.ram.read(640, 0, none)
        self.ram.zero(runs())
        self.assertEqual(self.ram.differing(numbers(), none).tolist(), [])

    def test_pages_that_are_not_there(self) -> None:
        page = contents(1)
        for number in (-1, 640):
            for call in (
                lambda number=number: self.ram.take(numbers(number), page),
                lambda number=number: self.ram.put(numbers(number), page),
                lambda number=number: self.ram.read(number, 1, page),
                lambda number=number: self.ram.zero(runs((number, 1))),
                lambda number=number: self.ram.differing(numbers(number), page),
            ):
                error = self.assertRaises(VmError, call)
                self.assertEqual(str(error), f"pages {number} to {number} are not in this RAM, which has 640 pages")
        self.assertRaises(VmError, self.ram.put, numbers(3, 700, 5), contents(3))
        self.assertRaises(VmError, self.ram.read, 639, 2, contents(2))
        self.assertRaises(VmError, self.ram.zero, runs((639, 2)))

    def test_differing(self) -> None:
        where = np.arange(20, 600, dtype=np.int64)
        what = contents(len(where))
        self.ram.put(where, what)
        self.assertEqual(self.ram.differing(where, what).tolist(), [])
        what[0, 0] += np.uint64(1)
        what[300, 511] += np.uint64(1)
        what[579, 7] = 0
        self.assertEqual(self.ram.differing(where, what).tolist(), [20, 320, 599])

    def test_what_was_opened_for_reading_cannot_be_written(self) -> None:
        reading = self.opened(writable=False)
        self.assertRaises(ValueError, reading.live.__setitem__, 0, 1)


class HoleTests(RamCase):
    """Pages that nobody has written take no room, and stay so: on tmpfs, where to read them would allocate them."""

    def backend(self, index: int, pages: int) -> Backend:
        descriptor = os.memfd_create(f"ram{index}")
        self.addCleanup(os.close, descriptor)
        os.truncate(descriptor, pages * PAGE)
        return Backend(f"ram{index}", pages * PAGE, f"/proc/self/fd/{descriptor}")

    def test_nothing_was_written(self) -> None:
        self.assertEqual(self.ram.data_runs().shape, (0, 2))

    def test_data_runs(self) -> None:
        self.ram.put(numbers(3, 4, 300, 639), contents(4))
        self.assertEqual(self.ram.data_runs().tolist(), [[3, 2], [300, 1], [639, 1]])

    def test_runs_do_not_end_with_a_backend(self) -> None:
        self.ram.put(numbers(3, 38, 39, 40, 41), contents(5))
        self.assertEqual(self.ram.data_runs().tolist(), [[3, 1], [38, 4]])

    def test_a_backend_without_holes_is_not_searched(self) -> None:
        self.ram.put(np.arange(40, 640, dtype=np.int64), contents(600))
        self.patch(os, "lseek", self.no_seek)
        self.assertRaises(AssertionError, self.ram.data_runs)
        self.ram.put(np.arange(40, dtype=np.int64), contents(40))
        self.assertEqual(self.ram.data_runs().tolist(), [[0, 640]])

    @staticmethod
    def no_seek(_descriptor: int, _position: int, _whence: int) -> int:
        raise AssertionError("searched")

    def test_a_file_system_that_does_not_know(self) -> None:
        def seek(_descriptor: int, _position: int, _whence: int) -> int:
            raise OSError(errno.EINVAL, "Invalid argument")

        self.patch(os, "lseek", seek)
        self.assertEqual(self.ram.data_runs().tolist(), [[0, 640]])

    def test_any_other_error_is_told(self) -> None:
        def seek(_descriptor: int, _position: int, _whence: int) -> int:
            raise OSError(errno.EIO, "Input/output error")

        self.patch(os, "lseek", seek)
        self.assertRaises(OSError, self.ram.data_runs)

    def test_reading_allocates_nothing(self) -> None:
        self.ram.put(numbers(5), contents(1))
        before = self.blocks()
        out = np.empty((640, PAGE_WORDS), dtype=np.uint64)
        self.ram.read(0, 640, out)
        self.ram.take(np.arange(640, dtype=np.int64), out)
        self.assertEqual(self.blocks(), before)
        self.assertTrue(np.array_equal(out[5:6], contents(1)))

    def test_long_runs_of_zeros_are_given_back(self) -> None:
        self.ram.put(np.arange(640, dtype=np.int64), contents(640))
        self.ram.zero(runs((30, 300), (400, 3)))
        self.assertEqual(self.ram.data_runs().tolist(), [[0, 30], [330, 310]])
        self.assertFalse(self.taken(*range(30, 330), 400, 401, 402).any())
        rest = [*range(30), *range(330, 400), *range(403, 640)]
        self.assertTrue(np.array_equal(self.taken(*rest), contents(640)[rest]))

    def test_zeros_that_are_none_are_not_allocated(self) -> None:
        before = self.blocks()
        self.ram.zero(runs((0, 3), (10, 200), (620, 20)))
        self.assertEqual(self.blocks(), before)

    def test_a_page_that_somebody_else_has_written_is_zeroed_too(self) -> None:
        with open(self.backends[0].path, "r+b") as file:
            file.seek(7 * PAGE)
            file.write(b"x")
        self.ram.zero(runs((7, 1)))
        self.assertFalse(self.taken(7).any())

    def test_a_file_system_that_cannot_punch(self) -> None:
        self.ram.put(np.arange(640, dtype=np.int64), contents(640))
        self.patch(ram_module, "_FALLOC_FL_PUNCH_HOLE", 0x80)
        self.ram.zero(runs((30, 300)))
        self.assertFalse(self.taken(*range(30, 330)).any())
        self.assertTrue(self.taken(29, 330).all())

    def test_what_was_given_back_can_be_written_again(self) -> None:
        self.ram.put(np.arange(640, dtype=np.int64), contents(640))
        self.ram.zero(runs((0, 640)))
        reserved: list[tuple[int, int]] = []
        real = os.posix_fallocate

        def reserve(descriptor: int, offset: int, length: int) -> None:
            reserved.append((offset // PAGE, length // PAGE))
            real(descriptor, offset, length)

        self.patch(os, "posix_fallocate", reserve)
        self.ram.put(numbers(39, 40, 41, 50), contents(4))
        self.assertEqual(reserved, [(39, 1), (0, 2), (10, 1)])
        self.ram.put(numbers(39, 40, 41, 50), contents(4, seed=2))
        self.assertEqual(len(reserved), 3)

    def test_a_full_file_system_is_an_error_and_nothing_is_touched(self) -> None:
        def reserve(_descriptor: int, _offset: int, _length: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        self.patch(os, "posix_fallocate", reserve)
        error = self.assertRaises(VmError, self.ram.put, numbers(50), contents(1))
        self.assertEqual(
            str(error),
            f"no room for the RAM of the guest in {self.backends[1].path}: No space left on device; make its file"
            " system larger",
        )
        self.assertEqual(self.blocks(), 0)


class OpeningTests(RamCase):
    """Files that are not what they should be."""

    def refused(self, *backends: Backend, writable: bool = False) -> str:
        return str(self.assertRaises(CannotProtect, GuestRam, backends, writable=writable))

    def test_none(self) -> None:
        self.assertIn("no RAM that is shared", self.refused())

    def test_not_there(self) -> None:
        path = str(self.directory / "other")
        self.assertEqual(
            self.refused(self.backends[0], Backend("x", PAGE, path), writable=True),
            f"the RAM of the backend x, {path}, cannot be opened: No such file or directory; give mem-path a file that"
            " ftd may write",
        )

    def test_a_directory(self) -> None:
        self.assertIn("is not a file; give mem-path a file", self.refused(Backend("x", PAGE, str(self.directory))))

    def test_too_short(self) -> None:
        short = Backend("x", 41 * PAGE, self.backends[0].path)
        self.assertIn(f"has {40 * PAGE} bytes where QEMU says {41 * PAGE}", self.refused(short))

    def test_longer_than_the_backend_is_right(self) -> None:
        ram = GuestRam([Backend("x", 39 * PAGE, self.backends[0].path)], writable=False)
        self.addCleanup(ram.close)
        self.assertEqual(ram.pages, 39)

    def test_a_part_of_a_page(self) -> None:
        self.assertIn("x is no multiple of 4096", self.refused(Backend("x", 100, self.backends[0].path)))

    def test_cannot_be_mapped(self) -> None:
        def show(*_: object, **__: object) -> None:
            raise OSError(errno.EINVAL, "Invalid argument")

        self.patch(Region, "show", show)
        self.assertIn("cannot be mapped: Invalid argument", self.refused(self.backends[0]))

    def test_nothing_stays_open_that_was_refused(self) -> None:
        before = sorted(os.listdir("/proc/self/fd"))
        self.refused(*self.backends, Backend("x", PAGE, str(self.directory / "other")))
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)

    def test_a_file_that_became_shorter(self) -> None:
        os.truncate(self.backends[0].path, 20 * PAGE)
        out = np.empty((40, PAGE_WORDS), dtype=np.uint64)
        error = self.assertRaises(VmError, self.ram.read, 0, 40, out)
        self.assertEqual(str(error), f"{self.backends[0].path} has become shorter; has QEMU ended?")

    def test_no_address_space(self) -> None:
        self.assertRaises(OSError, Region, 1 << 60)


class LifeTests(RamCase):
    """What is given back when."""

    def mapped(self) -> bool:
        return str(self.directory) in Path("/proc/self/maps").read_text(encoding="utf-8")

    def test_the_mapping_goes_with_the_last_array(self) -> None:
        self.ram.put(numbers(3), contents(1))
        live = self.ram.live
        self.ram.close()
        self.assertTrue(np.array_equal(live[3], contents(1)[0]))
        self.assertTrue(self.mapped())
        del live
        self.assertFalse(self.mapped())

    def test_closing_twice(self) -> None:
        self.ram.close()
        self.ram.close()
        self.assertRaises(VmError, self.ram.take, numbers(0), contents(1))

    def test_programs_do_not_inherit_it(self) -> None:
        """A fork of ftd would else copy the page tables of all the memory there is."""
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
        at = smaps.index(str(self.directory))
        flags = smaps[at:].split("VmFlags:", 1)[1].splitlines()[0].split()
        self.assertIn("dc", flags)
        self.assertIn("dd", flags)

    def test_regions_read_as_zeros_and_take_no_room(self) -> None:
        region = Region(1 << 32)
        region.clear()
        pages = region.pages
        self.assertEqual(region.address % (1 << 30), 0)
        pages[1000] = 5
        self.assertEqual(int(pages[1000].sum()), 5 * PAGE_WORDS)
        region.clear()
        self.assertFalse(pages[1000].any())

    def test_an_interpreter_that_ends_gives_nothing_back(self) -> None:
        """Other threads may be at work in it to the end."""
        program = (
            "import atexit, ftd.vm.ram as r\n"
            "atexit.register(lambda: pages.__setitem__(0, 1))\n"
            "region = r.Region(1 << 20); region.clear(); pages = region.pages\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.assertEqual(subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode, 0)
