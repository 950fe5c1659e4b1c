"""The stop marker, the fence, the pauses, and the account of dirty pages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import CannotKeep
from ftd.vm.dirty_pages import NONE, DirtyPages, union
from ftd.vm.fence import Fence
from ftd.vm.pauses import REMEMBERED, Pause, Pauses
from ftd.vm.ram import Numbers, Pages
from ftd.vm.stop_marker import StopMarker, Stopped


class StopMarkerTests(SynchronousTestCase):
    """Why the VM is stopped, over the death of ftd."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "deep" / "stopped"

    def test_at_first_ftd_has_not_stopped_it(self) -> None:
        self.assertIs(StopMarker(self.path).value, Stopped.NOT_BY_US)

    def test_the_next_ftd_finds_what_was_set(self) -> None:
        for value in (Stopped.FOR_CHECKPOINT, Stopped.ON_HOLD, Stopped.NOT_BY_US):
            marker = StopMarker(self.path)
            marker.value = value
            # Not closed: it has died.
            self.assertIs(StopMarker(self.path).value, value)
            marker.close()

    def test_a_damaged_file_says_nothing(self) -> None:
        self.path.parent.mkdir(parents=True)
        self.path.write_bytes(b"?")
        self.assertIs(StopMarker(self.path).value, Stopped.NOT_BY_US)

    def test_the_file_is_nobody_elses_business(self) -> None:
        StopMarker(self.path)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)


class FenceTests(SynchronousTestCase):
    """A VM that must not run."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp()) / "fenced"

    def test_it_is_down_at_first(self) -> None:
        self.assertEqual(Fence(self.path).reason, "")

    def test_it_outlives_ftd(self) -> None:
        Fence(self.path).put_up("host-b has taken over")
        self.assertEqual(Fence(self.path).reason, "host-b has taken over")

    def test_a_damaged_file_is_a_fence_all_the_same(self) -> None:
        self.path.parent.mkdir(parents=True)
        for damaged in (b"", b"\xff\xfe"):
            self.path.write_bytes(damaged)
            self.assertTrue(Fence(self.path).reason)

    def test_it_is_taken_down_for_good(self) -> None:
        fence = Fence(self.path)
        fence.put_up("demoted")
        fence.take_down()
        self.assertEqual((fence.reason, Fence(self.path).reason), ("", ""))

    def test_it_holds_though_it_cannot_be_kept(self) -> None:
        self.path.parent.write_text("no directory")
        fence = Fence(self.path)
        self.assertIn("does not outlive", str(self.assertRaises(CannotKeep, fence.put_up, "demoted")))
        self.assertEqual(fence.reason, "demoted")

    def test_it_stays_up_where_it_cannot_be_taken_down(self) -> None:
        fence = Fence(self.path)
        fence.put_up("demoted")
        self.path.unlink()
        (self.path / "in the way").mkdir(parents=True)
        self.assertRaises(CannotKeep, fence.take_down)
        self.assertEqual(fence.reason, "demoted")


class PausesTests(SynchronousTestCase):
    """What is shown of how long the guest was stopped."""

    def test_none_yet(self) -> None:
        self.assertIsNone(Pauses().status())

    def test_milliseconds_of_the_newest(self) -> None:
        pauses = Pauses()
        pauses.add(Pause(1.0, 1.0, 1.0, 1.0, 1.0))
        pauses.add(Pause(total=0.0101, stop=0.001, device=0.005, dirty=0.0025, cont=0.0041))
        status = pauses.status()
        assert status is not None
        self.assertEqual(
            (status.last, status.stop, status.device, status.dirty, status.cont), (10.1, 1.0, 5.0, 2.5, 4.1)
        )

    def test_median_and_99th_percentile_of_those_remembered(self) -> None:
        pauses = Pauses()
        for number in range(2 * REMEMBERED):
            total = (number - REMEMBERED) / 1000 if number >= REMEMBERED else 1e9
            pauses.add(Pause(total, 0.0, 0.0, 0.0, 0.0))
        status = pauses.status()
        assert status is not None
        self.assertEqual((status.p50, status.p99), (512, 1013))


class FakeTracker:
    """Says that these pages were written."""

    name = "fake"
    why_not = ""
    collects_while_running = True

    def __init__(self) -> None:
        self.written: list[int] = []

    def start(self) -> None:
        """See `DirtyTracker`."""
        self.written = []

    def collect(self) -> Numbers:
        """See `DirtyTracker`."""
        found = np.array(sorted(set(self.written)), dtype=np.int64)
        self.written = []
        return found

    def take(self, numbers: Numbers, out: Pages) -> None:
        """See `DirtyTracker`."""

    def close(self) -> None:
        """See `DirtyTracker`."""


class DirtyPagesTests(SynchronousTestCase):
    """No page is forgotten, whatever becomes of the transaction it is in."""

    def setUp(self) -> None:
        self.tracker = FakeTracker()
        self.dirty = DirtyPages(self.tracker)

    def find(self, *written: int) -> list[int]:
        """Pages are written and looked for."""
        self.tracker.written += written
        self.dirty.find()
        return [int(number) for number in self.dirty.unsent]

    def test_found_pages_add_up_until_they_are_taken(self) -> None:
        self.assertEqual(self.find(3, 1), [1, 3])
        self.assertEqual(self.find(2, 3), [1, 2, 3])
        self.dirty.taken()
        self.assertEqual(self.find(), [])

    def test_what_was_committed_is_done_with(self) -> None:
        self.find(1)
        self.dirty.taken()
        self.dirty.committed()
        self.dirty.failed()
        self.assertEqual(self.find(7), [7])

    def test_what_failed_is_to_be_sent_again(self) -> None:
        self.find(1, 2)
        self.dirty.taken()
        self.find(2, 3)
        self.dirty.taken()
        self.find(9)
        self.dirty.failed()
        self.assertEqual(self.dirty.unsent.tolist(), [1, 2, 3, 9])
        self.dirty.failed()
        self.assertEqual(self.dirty.unsent.tolist(), [1, 2, 3, 9])

    def test_starting_over_forgets_all(self) -> None:
        self.find(1)
        self.dirty.taken()
        self.find(2)
        self.tracker.written = [3]
        self.dirty.start_over()
        self.dirty.failed()
        self.assertEqual(self.find(), [])

    def test_union_copies_nothing_where_there_is_nothing(self) -> None:
        some = np.array([1, 5], dtype=np.int64)
        self.assertIs(union(NONE, some), some)
        self.assertIs(union(some, NONE), some)
        self.assertEqual(union(some, np.array([0, 5], dtype=np.int64)).tolist(), [0, 1, 5])
