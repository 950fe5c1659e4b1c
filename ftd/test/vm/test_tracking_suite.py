"""What every way of finding dirty pages has to do, done by each: see `ftd.testing.tracker_suite`."""

from __future__ import annotations

from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ftd.test.wire.profile import examples
from ftd.testing.tracker_suite import Guest, TrackerSuite, has_page_scan
from ftd.vm import pagemap
from ftd.vm.ram import GuestRam
from ftd.vm.tracking import DirtyTracker
from ftd.vm.tracking.compare import Compare
from ftd.vm.tracking.soft_dirty import SoftDirty, kernel_has_soft_dirty
from ftd.vm.tracking.write_protect import WriteProtect


class CompareSuiteTests(TrackerSuite, SynchronousTestCase):
    """`Compare`."""

    examples = examples(30, steps=30)

    def make_tracker(self, guest: Guest, ram: GuestRam) -> DirtyTracker:
        del guest
        return Compare(ram)


class WriteProtectSuiteTests(TrackerSuite, SynchronousTestCase):
    """`WriteProtect`, on this kernel, registered by injection."""

    examples = examples(30, steps=30)

    def setUp(self) -> None:
        if not has_page_scan():
            raise SkipTest("the kernel has no PAGEMAP_SCAN")

    def make_tracker(self, guest: Guest, ram: GuestRam) -> DirtyTracker:
        return WriteProtect(guest.pid, guest.spans(ram), ram)


class SmallVectorSuiteTests(WriteProtectSuiteTests):
    """The same with so little room for an answer that every one comes in several parts."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(pagemap, "REGIONS", 1)


class SoftDirtySuiteTests(TrackerSuite, SynchronousTestCase):
    """`SoftDirty`, where the kernel has it; what it reads is tested everywhere, in ``test_tracking_soft_dirty``."""

    examples = examples(30, steps=30)

    def setUp(self) -> None:
        if not kernel_has_soft_dirty():
            raise SkipTest("the kernel has no soft-dirty bits")

    def make_tracker(self, guest: Guest, ram: GuestRam) -> DirtyTracker:
        return SoftDirty(guest.pid, guest.spans(ram), ram)
