"""What a checkpoint says of itself, how pages are cut into portions, and that the background gives way."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import Encoding as ConfiguredEncoding
from ftd.status import VmState
from ftd.test.vm.primary_case import CAPACITY, PORTION, PrimaryCase
from ftd.test.wire.profile import examples
from ftd.testing.threads import SteppedThread
from ftd.vm import replication
from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE, pages_of
from ftd.vm.replication import encoding_choice


class PortionTests(SynchronousTestCase):
    """No page is left out, and no portion is larger than one."""

    @examples(100)
    @given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 5000)), max_size=20))
    def test_runs(self, gaps: list[tuple[int, int]]) -> None:
        runs, at = [], 0
        for gap, count in gaps:
            runs.append((at + gap, count))
            at += gap + count
        array = np.array(runs, dtype=np.int64).reshape(-1, 2)
        portions = list(replication._cut(array))
        self.assertTrue(all(0 < len(portion) <= replication._PORTION for portion in portions))
        self.assertTrue(all(len(portion) == replication._PORTION for portion in portions[:-1]))
        found = np.concatenate([np.empty(0, np.int64), *portions])
        np.testing.assert_array_equal(found, pages_of(array))

    def test_numbers(self) -> None:
        for count in (0, 1, 1023, 1024, 1025, 5000):
            numbers = np.arange(count, dtype=np.int64)
            portions = list(replication._portions(numbers))
            self.assertEqual(len(portions), -(-count // replication._PORTION))
            np.testing.assert_array_equal(np.concatenate([np.empty(0, np.int64), *portions]), numbers)


class EncodingTests(PrimaryCase):
    """``qemu-encoding``."""

    def test_what_is_configured(self) -> None:
        for configured, encoding in ((ConfiguredEncoding.RAW, Encoding.RAW), (ConfiguredEncoding.ZSTD, Encoding.ZSTD)):
            self.assertIs(encoding_choice(self._config({"qemu_encoding": configured})).encoding, encoding)

    def test_each_of_them_works(self) -> None:
        for configured in ConfiguredEncoding:
            self.protected(qemu_encoding=configured)
            self.write(3, 30)
            self.assert_protects()
            self.write(*range(20, 60))
            self.assert_protects()
            self.end()
            self.standby.forget()


class HeaderTests(PrimaryCase):
    """What the first record says."""

    def test_a_full_one_and_those_after_it(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.next_checkpoint()
        full, first, second = self.standby.headers[:3]
        self.assertEqual([each.number for each in (full, first, second)], [1, 2, 3])
        self.assertEqual([each.base for each in (full, first, second)], [None, 1, 2])
        self.assertEqual({each.generation for each in (full, first, second)}, {self.carrier.generation})
        self.assertEqual(full.ram, (("ram0", self.guest.backend.size),))
        self.assertEqual((full.machine, full.qemu_version), ("pc-i440fx-7.2", "7.2.22"))
        self.assertTrue(full.time < second.time <= self.now())


class BackgroundTests(PrimaryCase):
    """A checkpoint in the background."""

    def test_holes_are_not_sent(self) -> None:
        self.protected()
        sent = len(self.standby.pages_taken[0])
        self.assertGreaterEqual(sent, 20)
        self.assertLessEqual(self.carrier.frames, 20, "64 pages of which 44 were never touched")

    def test_it_goes_out_in_portions(self) -> None:
        self.start()
        self.thread = SteppedThread()
        self.connect()
        asked = 0
        while self.thread.waiting:
            self.thread.step()
            self.deliver()
            asked += 1
        self.thread = None
        # To begin with, what there is, then each portion, the rounds, and the last look.
        self.assertGreaterEqual(asked, 20 // PORTION + 3)

    def test_how_far_it_is(self) -> None:
        vm = self.start()
        self.thread = SteppedThread()
        self.connect()
        seen = []
        while self.thread.waiting:
            self.thread.step()
            self.deliver()
            sync = vm.status().sync
            if sync is not None:
                seen.append(sync.done_bytes)
                self.assertLessEqual(sync.done_bytes, sync.total_bytes)
        self.thread = None
        self.assertEqual(seen, sorted(seen))
        self.assertIn(PORTION * PAGE, seen)

    def test_only_so_many_rounds(self) -> None:
        self.start(qemu_rounds=3)
        drained = self.carrier.drained

        def writes() -> object:
            if self.qemu.run_state == "running":
                self.write(*range(20, 20 + 2 * CAPACITY))
            return drained()

        self.carrier.drained = writes  # type: ignore[method-assign,assignment]
        self.connect()
        self.assert_state(VmState.PROTECTED)
        # The attempts to have the rest fit, and the last one, which keeps it stopped.
        self.assertLessEqual(len(self.qemu.named("stop")), 4)
        del self.carrier.drained

    def test_few_pages_are_left_to_the_end(self) -> None:
        self.start()
        self.carrier.is_frozen = True
        self.connect()
        self.write(40, 41)
        self.carrier.thaw()
        self.deliver()
        self.assert_state(VmState.PROTECTED)
        assert self.vm is not None
        self.assertEqual(self.vm.status().dirty_pages, 2)

    def test_an_error_says_that_it_gave_way(self) -> None:
        vm = self.start()
        self.carrier.is_frozen = True
        self.connect()
        vm.set_protection(False, None)
        self.carrier.thaw()
        self.deliver()
        self.assertTrue(any("was given up" in why for _, why in self.told))
        self.assertFalse(self.carrier.is_open)
