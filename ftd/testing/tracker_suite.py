"""
What every way of finding dirty pages has to do, as tests: mix it into a test case that makes the tracker.

::

    class OracleTests(TrackerSuite, SynchronousTestCase):
        def make_tracker(self, guest: Guest, ram: GuestRam) -> DirtyTracker:
            return Oracle(guest.pid, guest.spans(ram), ram)
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ftd.vm.discovery import Backend, MappedRange
from ftd.vm.errors import TrackingUnavailable
from ftd.vm.pagemap import NotRegistered, Pagemap, Span, spans_of
from ftd.vm.ram import PAGE, PAGE_WORDS, GuestRam, Numbers, Pages, pages_of
from ftd.vm.tracking import DirtyTracker, Verifier

#: Maps files and does with them what it is told, a line at a time: what, index of the file, page, word, value.
_PROGRAM = """
import ctypes, mmap, sys

# Whoever may trace this user's processes may trace this one, though it is not its child.
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
memories = []
for path in sys.argv[1:]:
    with open(path, "r+b") as file:
        memories.append(mmap.mmap(file.fileno(), 0))
print(flush=True)
for line in sys.stdin:
    what, *numbers = line.split()
    index, page, word, value = map(int, numbers)
    memory, position = memories[index], page * 4096
    if what == "write":
        memory[position + word * 8 : position + word * 8 + 8] = value.to_bytes(8, "little")
    elif what == "read":
        memory[position]
    elif what == "forget":
        memory.madvise(mmap.MADV_DONTNEED, position, 4096)
    print(flush=True)
"""


class Guest:
    """
    A process that writes to RAM which it shares, in place of a QEMU.

    :param directory: where the files are made.
    :param pages: of every backend.
    """

    def __init__(self, directory: Path, pages: tuple[int, ...]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.backends = tuple(
            Backend(f"ram{index}", count * PAGE, str(directory.resolve() / f"ram{index}"))
            for index, count in enumerate(pages)
        )
        for backend in self.backends:
            with open(backend.path, "wb") as file:
                file.truncate(backend.size)
        self._ends = np.cumsum(pages)
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *(backend.path for backend in self.backends)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self.process.pid

    def ranges(self) -> tuple[tuple[MappedRange, ...], ...]:
        """Where the backends are in its memory."""
        found = []
        with open(f"/proc/{self.pid}/maps", encoding="utf-8") as file:
            lines = [line.split(maxsplit=5) for line in file]
        for backend in self.backends:
            mapped = [line for line in lines if line[-1].rstrip("\n") == backend.path]
            addresses = [(*(int(part, 16) for part in line[0].split("-")), int(line[2], 16)) for line in mapped]
            found.append(tuple(MappedRange(*address) for address in addresses))
        return tuple(found)

    def spans(self, ram: GuestRam) -> tuple[Span, ...]:
        """The same for a tracker."""
        return spans_of(ram, self.ranges())

    def write(self, page: int, value: int, word: int = 0) -> None:
        """Write a word; pages are numbered as in `GuestRam`."""
        self._tell("write", page, word, value)

    def read(self, page: int) -> None:
        """Look at a page."""
        self._tell("read", page)

    def forget(self, page: int) -> None:
        """Have a page taken out of the page table, as the kernel may do at any time."""
        self._tell("forget", page)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        for backend in self.backends:
            os.unlink(backend.path)

    def _tell(self, what: str, page: int, word: int = 0, value: int = 0) -> None:
        index = int(np.searchsorted(self._ends, page, "right"))
        first = 0 if index == 0 else int(self._ends[index - 1])
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what} {index} {page - first} {word} {value}\n")
        self.process.stdin.flush()
        self._answer()

    def _answer(self) -> None:
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            raise AssertionError(f"the guest has ended with {self.process.wait()}")


class Standby:
    """
    What a standby would have by now.

    :ivar unsent: pages that the tracker has found and that were not sent yet.
    """

    def __init__(self, ram: GuestRam, tracker: DirtyTracker) -> None:
        self.pages: Pages = np.zeros((ram.pages, PAGE_WORDS), dtype=np.uint64)
        self.unsent: Numbers = np.empty(0, dtype=np.int64)
        self._ram = ram
        self._tracker = tracker

    def start(self) -> None:
        """A full checkpoint."""
        self._tracker.start()
        self.unsent = pages_of(self._ram.data_runs())
        self.send()

    def find(self) -> Numbers:
        """Ask the tracker."""
        found = self._tracker.collect()
        self.unsent = np.union1d(self.unsent, found)
        return found

    def send(self) -> None:
        """Take what is unsent."""
        out = np.empty((len(self.unsent), PAGE_WORDS), dtype=np.uint64)
        self._tracker.take(self.unsent, out)
        self.pages[self.unsent] = out
        self.unsent = np.empty(0, dtype=np.int64)

    def lacks(self) -> Numbers:
        """Pages that are others in the RAM than here."""
        here = np.empty_like(self.pages)
        self._ram.read(0, self._ram.pages, here)
        return np.flatnonzero((here != self.pages).any(axis=1))


class TrackerSuite:
    """
    The tests.

    :cvar examples: hypothesis' settings for the state machine.
    :cvar backends: pages of the guest's backends.
    """

    examples = settings(
        max_examples=30,
        stateful_step_count=30,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    backends: tuple[int, ...] = (40, 300)

    # What the test case brings.
    assertEqual: Any
    assertTrue: Any
    addCleanup: Any
    mktemp: Any

    def make_tracker(self, guest: Guest, ram: GuestRam) -> DirtyTracker:
        """A tracker of the guest's writes, not started."""
        raise NotImplementedError

    def started(self) -> tuple[Guest, GuestRam, DirtyTracker, Standby]:
        """A guest that has written a little, which was sent."""
        guest = Guest(Path(self.mktemp()), self.backends)
        self.addCleanup(guest.close)
        guest.write(1, 11)
        guest.write(50, 12)
        ram = GuestRam(guest.backends, writable=False)
        self.addCleanup(ram.close)
        tracker = self.make_tracker(guest, ram)
        self.addCleanup(tracker.close)
        standby = Standby(ram, tracker)
        standby.start()
        self.assertEqual(standby.lacks().tolist(), [])
        # What comes in the first answer beside what was written is the tracker's affair.
        standby.find()
        standby.send()
        return guest, ram, tracker, standby

    def test_nothing_was_written(self) -> None:
        _guest, _ram, tracker, _standby = self.started()
        self.assertEqual(tracker.collect().tolist(), [])
        self.assertEqual(tracker.collect().dtype, np.dtype(np.int64))

    def test_what_was_written_is_found_once(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        for page in (0, 39, 40, 41, 42, 339, 50):
            guest.write(page, 99)
        self.assertEqual(standby.find().tolist(), [0, 39, 40, 41, 42, 50, 339])
        standby.send()
        self.assertEqual(standby.lacks().tolist(), [])
        self.assertEqual(standby.find().tolist(), [])

    def test_the_last_word_of_a_page(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        guest.write(77, 1 << 63, word=PAGE_WORDS - 1)
        self.assertEqual(standby.find().tolist(), [77])

    def test_a_page_that_is_written_again_is_found_again(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        for value in range(1, 4):
            guest.write(60, value)
            self.assertEqual(standby.find().tolist(), [60])
            standby.send()
        self.assertEqual(standby.lacks().tolist(), [])

    def test_a_page_that_leaves_the_page_table_after_it_was_written(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        guest.write(61, 5)
        guest.forget(61)
        self.assertTrue(61 in standby.find())

    def test_a_page_that_leaves_the_page_table_before_it_is_written(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        guest.write(50, 5)
        standby.find()
        standby.send()
        guest.forget(50)
        guest.write(50, 6)
        self.assertTrue(50 in standby.find())

    def test_starting_over(self) -> None:
        guest, _ram, _tracker, standby = self.started()
        guest.write(62, 5)
        standby.start()
        self.assertEqual(standby.lacks().tolist(), [])
        standby.find()
        standby.send()
        guest.write(63, 5)
        self.assertEqual(standby.find().tolist(), [63])

    def test_many_pages(self) -> None:
        guest, ram, _tracker, standby = self.started()
        for page in range(ram.pages):
            guest.write(page, 7)
        self.assertEqual(standby.find().tolist(), list(range(ram.pages)))

    def test_no_page_is_missed(self) -> None:
        """Whatever the guest does, and however often the tracker is asked before what it says is sent."""
        guest, ram, tracker, _standby = self.started()

        class Machine(RuleBasedStateMachine):
            @initialize()
            def start(self) -> None:
                self.standby = Standby(ram, tracker)
                self.verifier = Verifier(ram)
                self.standby.start()
                self.note(pages_of(ram.data_runs()))

            def note(self, numbers: Numbers) -> None:
                self.verifier.sent(numbers, self.standby.pages[numbers])

            def teardown(self) -> None:
                self.verifier.close()

            @rule(
                page=st.integers(0, ram.pages - 1),
                value=st.integers(0, 3),
                word=st.sampled_from([0, 1, PAGE_WORDS - 1]),
            )
            def write(self, page: int, value: int, word: int) -> None:
                guest.write(page, value, word)

            @rule(page=st.integers(0, ram.pages - 1), count=st.integers(1, 20), value=st.integers(0, 3))
            def write_many(self, page: int, count: int, value: int) -> None:
                for each in range(page, min(page + count, ram.pages)):
                    guest.write(each, value)

            @rule(page=st.integers(0, ram.pages - 1))
            def read(self, page: int) -> None:
                guest.read(page)

            @rule(page=st.integers(0, ram.pages - 1))
            def forget(self, page: int) -> None:
                guest.forget(page)

            @rule()
            def find(self) -> None:
                self.standby.find()
                missed = np.setdiff1d(self.standby.lacks(), self.standby.unsent)
                assert not len(missed), f"missed {missed}"
                assert not len(self.verifier.check(self.standby.unsent))

            @rule()
            def send(self) -> None:
                numbers = self.standby.unsent
                self.standby.send()
                self.note(numbers)

            @invariant()
            def the_guest_lives(self) -> None:
                assert guest.process.poll() is None

        run_state_machine_as_test(Machine, settings=self.examples)

    def test_closing_twice(self) -> None:
        _guest, _ram, tracker, _standby = self.started()
        tracker.close()
        tracker.close()


def has_page_scan() -> bool:
    """Whether the kernel has ``PAGEMAP_SCAN``, tried on our own memory."""
    memory = (ctypes.c_char * (2 * PAGE))()
    start = -(-ctypes.addressof(memory) // PAGE) * PAGE
    pagemap = Pagemap(os.getpid())
    try:
        pagemap.written([Span(start, start + PAGE, 0)])
    except NotRegistered:
        return True
    except TrackingUnavailable:
        return False
    finally:
        pagemap.close()
    return True
