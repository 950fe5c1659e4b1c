"""Which way of finding dirty pages is taken, and what is particular to each."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import numpy as np
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import Dirty
from ftd.vm.discovery import Backend, Vm
from ftd.vm.errors import CannotProtect, TrackingUnavailable, VmError
from ftd.vm.pagemap import NotRegistered, Pagemap, Span
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam, Numbers, Pages
from ftd.vm.tracking import DirtyTracker, Verifier, choose, shadow
from ftd.vm.tracking.choice import MAKERS
from ftd.vm.tracking.compare import Compare
from ftd.vm.tracking.shadow import BLOCK, PART
from ftd.vm.tracking.write_protect import WriteProtect


def numbers(*values: int) -> Numbers:
    return np.array(values, dtype=np.int64)


def filled(count: int, value: int) -> Pages:
    return np.full((count, PAGE_WORDS), value, dtype=np.uint64)


class RamCase(SynchronousTestCase):
    """RAM of two and a half blocks, to which this process writes."""

    pages = 2 * BLOCK + BLOCK // 2

    def setUp(self) -> None:
        # On tmpfs, where to look at a page that nobody has written allocates it.
        descriptor = os.memfd_create("ram0")
        self.addCleanup(os.close, descriptor)
        os.truncate(descriptor, self.pages * PAGE)
        self.backend = Backend("ram0", self.pages * PAGE, f"/proc/self/fd/{descriptor}")
        self.guest = GuestRam([self.backend], writable=True)
        self.ram = GuestRam([self.backend], writable=False)
        self.addCleanup(self.guest.close)
        self.addCleanup(self.ram.close)

    def write(self, page: int, value: int, word: int = 0) -> None:
        content = np.empty((1, PAGE_WORDS), dtype=np.uint64)
        self.ram.read(page, 1, content)
        content[0, word] = value
        self.guest.put(numbers(page), content)

    def allocated(self) -> int:
        return os.stat(self.backend.path).st_blocks


class FakeTracker:
    """
    :ivar calls: of it, in order.
    """

    collects_while_running = True

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.why_not = ""
        self.calls: list[str] = []
        self._error = error

    def start(self) -> None:
        self.calls.append("start")
        if self._error is not None:
            raise self._error

    def collect(self) -> Numbers:
        return numbers()

    def take(self, numbers: Numbers, out: Pages) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.calls.append("close")


class ChoiceTests(RamCase):
    """`choose`."""

    def setUp(self) -> None:
        super().setUp()
        self.vm = Vm(
            pid=1,
            uuid="",
            version="7.2.22",
            machine="pc",
            cpus=1,
            backends=(self.backend,),
            devices=(),
            run_state="running",
        )

    def chosen(self, kind: Dirty, *trackers: FakeTracker) -> DirtyTracker:
        makers = {Dirty(tracker.name): lambda _vm, _ram, tracker=tracker: tracker for tracker in trackers}
        return choose(kind, self.vm, self.ram, makers)

    def test_the_best_comes_first(self) -> None:
        self.assertEqual(list(MAKERS), [Dirty.WRITE_PROTECT, Dirty.SOFT_DIRTY, Dirty.COMPARE])

    def test_the_best_works(self) -> None:
        best, other = FakeTracker("write-protect"), FakeTracker("compare")
        with capturedLogs() as logged:
            self.assertIs(self.chosen(Dirty.AUTO, best, other), best)
        self.assertEqual((best.calls, other.calls, best.why_not, list(logged)), (["start"], [], "", []))

    def test_the_best_does_not_work(self) -> None:
        best = FakeTracker("write-protect", TrackingUnavailable("no right"))
        second = FakeTracker("soft-dirty", OSError("broken"))
        last = FakeTracker("compare")
        with capturedLogs() as logged:
            self.assertIs(self.chosen(Dirty.AUTO, best, second, last), last)
        self.assertEqual(last.why_not, "write-protect: no right; soft-dirty: broken")
        self.assertEqual((best.calls, second.calls, last.calls), (["start", "close"], ["start", "close"], ["start"]))
        (event,) = logged
        self.assertEqual((event["name"], event["why_not"]), ("compare", last.why_not))

    def test_one_that_cannot_even_be_made(self) -> None:
        def maker(_vm: Vm, _ram: GuestRam) -> DirtyTracker:
            raise CannotProtect("not mapped")

        last = FakeTracker("compare")
        makers = {Dirty.WRITE_PROTECT: maker, Dirty.COMPARE: lambda _vm, _ram: last}
        self.assertIs(choose(Dirty.AUTO, self.vm, self.ram, makers), last)
        self.assertEqual(last.why_not, "write-protect: not mapped")

    def test_the_one_that_is_asked_for(self) -> None:
        best, other = FakeTracker("write-protect"), FakeTracker("compare")
        self.assertIs(self.chosen(Dirty.COMPARE, best, other), other)
        self.assertEqual((best.calls, other.why_not), ([], ""))

    def test_the_one_that_is_asked_for_does_not_work(self) -> None:
        best, other = FakeTracker("write-protect", TrackingUnavailable("no right")), FakeTracker("compare")
        error = self.assertRaises(TrackingUnavailable, self.chosen, Dirty.WRITE_PROTECT, best, other)
        self.assertEqual(str(error), "dirty pages cannot be found: write-protect: no right")
        self.assertEqual((best.calls, other.calls), (["start", "close"], []))

    def test_none_works(self) -> None:
        trackers = [FakeTracker(name, TrackingUnavailable(f"no {name}")) for name in ("soft-dirty", "compare")]
        error = self.assertRaises(TrackingUnavailable, self.chosen, Dirty.AUTO, *trackers)
        self.assertEqual(str(error), "dirty pages cannot be found: soft-dirty: no soft-dirty; compare: no compare")

    def test_the_real_ones(self) -> None:
        """A process that has nothing of the RAM in its memory, if it can be seen at all: only the comparison works."""
        tracker = choose(Dirty.AUTO, self.vm, self.ram)
        self.addCleanup(tracker.close)
        self.assertEqual(tracker.name, "compare")
        self.assertTrue(tracker.why_not.startswith("write-protect: "), tracker.why_not)
        self.assertIn("; soft-dirty: ", tracker.why_not)


class FakePagemap(Pagemap):
    """
    :ivar is_registered: what `written` says.
    :ivar asked: how often.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(os.getpid())
        self.asked_pid = pid
        self.is_registered = False
        self.asked = 0

    def written(self, _spans: Sequence[Span]) -> Numbers:
        self.asked += 1
        if not self.is_registered:
            raise NotRegistered("not registered")
        return numbers(self.asked)


class WriteProtectTests(RamCase):
    """`WriteProtect`, with a kernel of our own; with the real one it is in ``test_tracking_suite``."""

    span = Span(0x1000, 0x5000, 0)

    def setUp(self) -> None:
        super().setUp()
        self.pagemaps: list[FakePagemap] = []
        self.registered: list[tuple[int, list[tuple[int, int]]]] = []
        self.is_registered = False
        self.tracker = WriteProtect(77, [self.span], self.ram, register=self.register, pagemap=self.open)
        self.addCleanup(self.tracker.close)

    def open(self, pid: int) -> Pagemap:
        pagemap = FakePagemap(pid)
        pagemap.is_registered = self.is_registered
        self.pagemaps.append(pagemap)
        return pagemap

    def register(self, pid: int, ranges: Sequence[tuple[int, int]]) -> None:
        self.registered.append((pid, list(ranges)))
        self.pagemaps[-1].is_registered = True

    def test_registered_when_it_is_not(self) -> None:
        self.tracker.start()
        self.assertEqual(self.registered, [(77, [(0x1000, 0x5000)])])
        self.assertEqual(self.pagemaps[0].asked_pid, 77)
        # What was written before is asked for, so that what is asked next is what was written since.
        self.assertEqual(self.tracker.collect().tolist(), [3])

    def test_not_registered_again(self) -> None:
        self.is_registered = True
        self.tracker.start()
        self.assertEqual(self.registered, [])
        self.tracker.start()
        self.assertEqual(self.registered, [])
        self.assertEqual(len(self.pagemaps), 1)
        self.assertEqual(self.tracker.collect().tolist(), [3])

    def test_the_registration_is_lost(self) -> None:
        """Memory that was mapped anew: an error, not "nothing was written"; starting over sees to it."""
        self.tracker.start()
        self.pagemaps[0].is_registered = False
        self.assertRaises(VmError, self.tracker.collect)
        self.tracker.start()
        self.assertEqual(len(self.registered), 2)

    def test_it_cannot_be_registered(self) -> None:
        def register(_pid: int, _ranges: Sequence[tuple[int, int]]) -> None:
            raise TrackingUnavailable("no right")

        self.tracker = WriteProtect(77, [self.span], self.ram, register=register, pagemap=self.open)
        self.assertRaises(TrackingUnavailable, self.tracker.start)
        self.tracker.close()
        self.assertEqual(self.pagemaps[0]._file, -1)


class CompareTests(RamCase):
    """`Compare`."""

    def setUp(self) -> None:
        super().setUp()
        self.tracker = Compare(self.ram)
        self.tracker.start()
        self.addCleanup(self.tracker.close)

    def send(self, *pages: int) -> Pages:
        out = np.empty((len(pages), PAGE_WORDS), dtype=np.uint64)
        self.tracker.take(numbers(*pages), out)
        return out

    def found(self) -> list[int]:
        return list(self.tracker.collect())

    def test_at_the_edges_of_blocks_and_parts(self) -> None:
        edges = sorted({0, PART - 1, PART, BLOCK - 1, BLOCK, BLOCK + PART, 2 * BLOCK - 1, 2 * BLOCK, self.pages - 1})
        for page in edges:
            self.write(page, page + 1, word=PAGE_WORDS - 1)
        self.assertEqual(self.found(), edges)
        self.send(*edges)
        self.assertEqual(self.found(), [])

    def test_all_of_it(self) -> None:
        self.guest.put(np.arange(self.pages, dtype=np.int64), filled(self.pages, 5))
        self.assertEqual(self.found(), list(range(self.pages)))
        self.send(*range(self.pages))
        self.assertEqual(self.found(), [])
        for page in (3, 300, 301, 639):
            self.write(page, 6)
        self.assertEqual(self.found(), [3, 300, 301, 639])

    def test_what_is_not_taken_is_found_again(self) -> None:
        self.write(3, 1)
        self.assertEqual(self.found(), [3])
        self.assertEqual(self.found(), [3])

    def test_a_page_that_was_written_back_needs_not_be_sent(self) -> None:
        self.write(3, 1)
        self.send(3)
        self.write(3, 2)
        self.write(3, 1)
        self.assertEqual(self.found(), [])

    def test_a_page_that_was_torn_when_it_was_sent(self) -> None:
        """
        A page is 1; it is being written to be 2 when it is copied out, so that something else is sent; then it is 1
        again.  Who compared with what was there when it was last looked at would find nothing.
        """
        self.write(3, 1)
        self.send(3)
        self.write(3, 2)
        self.assertEqual(self.found(), [3])
        sent = self.send(3)
        self.assertEqual(int(sent[0, 0]), 2)
        self.write(3, 1)
        self.assertEqual(self.found(), [3])

    def test_what_counts_is_what_was_given_out(self) -> None:
        """Not what is in the RAM by the time that it is noted."""
        self.write(3, 1)
        real, written = self.ram.take, threading.Event()

        def take(pages: Numbers, out: Pages) -> None:
            real(pages, out)
            self.write(3, 2)
            written.set()

        self.patch(self.ram, "take", take)
        self.assertEqual(int(self.send(3)[0, 0]), 1)
        self.assertTrue(written.is_set())
        self.assertEqual(self.found(), [3])

    def test_what_nobody_has_written_is_not_allocated(self) -> None:
        self.write(3, 1)
        before = self.allocated()
        self.found()
        self.assertEqual(self.allocated(), before)

    def test_pages_that_were_given_back(self) -> None:
        """As by a balloon: they read as zeros, and to look at them would allocate them again."""
        for page in (3, 20, 21, 400):
            self.write(page, 1)
        self.write(21, 0)
        self.send(3, 20, 21, 400)
        self.guest.zero(np.array([[10, 300]], dtype=np.int64))
        before = self.allocated()
        self.assertEqual(self.found(), [20])
        self.assertEqual(self.allocated(), before)
        self.assertFalse(self.send(20).any())
        self.assertEqual(self.found(), [])

    def test_starting_over(self) -> None:
        self.write(3, 1)
        self.send(3)
        self.tracker.start()
        self.assertEqual(self.found(), [3])

    def test_its_threads_end_with_it(self) -> None:
        self.found()
        self.assertTrue(any(thread.name.startswith("compare") for thread in threading.enumerate()))
        self.tracker.close()
        self.assertFalse(any(thread.name.startswith("compare") for thread in threading.enumerate()))

    def test_an_error_in_a_thread_is_told(self) -> None:
        self.write(0, 1)
        self.patch(shadow, "_memcmp", self.broken)
        self.assertRaises(ZeroDivisionError, self.tracker.collect)

    @staticmethod
    def broken(_one: int, _other: int, _size: int) -> int:
        raise ZeroDivisionError


class VerifierTests(RamCase):
    """`Verifier`."""

    def setUp(self) -> None:
        super().setUp()
        self.verifier = Verifier(self.ram)
        self.addCleanup(self.verifier.close)
        self.write(3, 1)
        self.write(400, 1)
        self.send(3, 400)

    def send(self, *pages: int) -> None:
        out = np.empty((len(pages), PAGE_WORDS), dtype=np.uint64)
        self.ram.take(numbers(*pages), out)
        self.verifier.sent(numbers(*pages), out)

    def missed(self, *found: int) -> list[int]:
        return list(self.verifier.check(numbers(*found)))

    def test_nothing_was_written(self) -> None:
        self.assertEqual(self.missed(), [])

    def test_what_was_found(self) -> None:
        self.write(3, 2)
        self.write(300, 2)
        self.assertEqual(self.missed(3, 77, 300), [])

    def test_what_was_missed(self) -> None:
        self.write(3, 2)
        self.write(300, 2)
        self.assertEqual(self.missed(77, 300), [3])
        self.assertEqual(self.missed(), [3, 300])
        self.send(3)
        self.assertEqual(self.missed(), [300])

    def test_a_full_checkpoint_comes(self) -> None:
        self.verifier.start()
        self.assertEqual(self.missed(), [3, 400])

    def test_closing_twice(self) -> None:
        self.verifier.close()
        self.verifier.close()
