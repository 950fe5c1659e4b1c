"""A primary whose VM is protected, step by step; and what is always true of it."""

from __future__ import annotations

from ftd.config import SecondaryLoss
from ftd.status import VmState
from ftd.test.vm.primary_case import DEAD_TIME, INTERVAL, PrimaryCase
from ftd.vm.netgate import GateState
from ftd.vm.stop_marker import Stopped


class ProtectedTests(PrimaryCase):
    """From nothing to checkpoints."""

    def test_no_qemu_yet(self) -> None:
        self.reactor.qemus.clear()
        vm = self.new_primary()
        self.pass_time(0.5)
        self.assert_state(VmState.UNPROTECTED, "there is no socket /run/vm.qmp; start QEMU")
        self.assertEqual(vm.status().run_state, None)
        self.assertFalse(self.carrier.dials, "there is no VM to protect")

    def test_found_without_a_standby(self) -> None:
        vm = self.start()
        self.assert_state(VmState.UNPROTECTED, "the standby has not been reached yet")
        status = vm.status()
        self.assertEqual((status.run_state, status.dirty_tracking, status.qemu_version), ("running", "told", "7.2.22"))
        self.assertEqual(status.ram_bytes, self.guest.backend.size)
        self.assertTrue(self.carrier.dials)

    def test_a_full_checkpoint_then_deltas(self) -> None:
        vm = self.protected()
        self.assertIn((VmState.SYNCING, "a full checkpoint is being sent in the background"), self.told)
        self.assertEqual([header.base for header in self.standby.headers], [None])
        self.write(3, 5)
        self.next_checkpoint()
        self.assertEqual(self.standby.headers[-1].base, 1)
        self.assertEqual(self.standby.pages_taken[-1], [3, 5])
        self.assertEqual((vm.status().checkpoint, vm.status().dirty_pages), (2, 2))
        self.assert_protects()

    def test_a_frame_is_seen_when_its_checkpoint_is_committed(self) -> None:
        self.protected()
        self.carrier.acks = False
        first = self.say()
        self.until(lambda: bool(self.carrier.pending))
        second = self.say()
        self.assertEqual(self.gates.seen, [])
        self.carrier.answer()
        self.assertTrue(self.was_seen(first))
        self.assertFalse(self.was_seen(second))
        self.carrier.acks = True
        self.next_checkpoint()
        self.assertTrue(self.was_seen(second))

    def test_the_interval_is_kept(self) -> None:
        self.protected()
        self.next_checkpoint()
        before = self.committed()
        self.pass_time(10 * INTERVAL)
        self.assertEqual(self.committed() - before, 10)

    def test_checkpoints_do_not_pile_up_behind_a_slow_standby(self) -> None:
        self.protected()
        self.carrier.acks = False
        self.pass_time(5 * INTERVAL)
        self.assertEqual(len(self.carrier.pending), 1)
        self.carrier.acks = True
        before = self.committed()
        # The one that waits, the one that is overdue, and the next.
        self.pass_time(INTERVAL)
        self.assertEqual(self.committed() - before, 3)

    def test_the_status_shows_the_lag_as_it_grows(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.carrier.acks = False
        self.assertEqual(vm.status().lag_ms, 0)
        self.pass_time(0.5)
        self.assertEqual(vm.status().lag_ms, 500)

    def test_the_status_counts_what_is_held(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.say(3)
        self.assertEqual((vm.status().held_frames, vm.status().held_bytes), (3, 300))

    def test_zero_pages_are_sent_as_such(self) -> None:
        self.protected()
        self.guest.write(5, 0)
        self.next_checkpoint()
        self.assertEqual(self.standby.pages_taken[-1], [5])


class StartUpTests(PrimaryCase):
    """The gates are closed until the standby was heard, or has not been for dead-time: it may have taken over."""

    def test_closed_at_first(self) -> None:
        self.start()
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.pass_time(DEAD_TIME - 0.1, 0.05)
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.pass_time(0.1)
        self.assertIs(self.gates.state, GateState.OPEN)
        self.assertTrue(self.was_seen(self.say()))

    def test_open_at_contact(self) -> None:
        self.start(qemu_protect=False)
        self.connect()
        self.assertIs(self.gates.state, GateState.OPEN)

    def test_while_the_first_checkpoint_is_sent_the_guest_is_heard(self) -> None:
        self.start()
        self.carrier.is_frozen = True
        self.connect()
        self.assert_state(VmState.SYNCING)
        self.assertTrue(self.was_seen(self.say()))
        self.carrier.thaw()
        self.deliver()
        self.assert_state(VmState.PROTECTED)
        self.assert_protects()

    def test_a_standby_that_has_taken_over_is_heard_first(self) -> None:
        vm = self.start()
        frame = self.say()
        vm.superseded("host-b")
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assertFalse(self.was_seen(frame))
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.assertEqual(self.qemu.run_state, "paused")
        self.assert_state(VmState.FENCED, "host-b has taken over")
        self.guest_stands_still = True

    def test_with_hold_nothing_is_seen_before_there_is_a_standby(self) -> None:
        self.start(on_secondary_loss=SecondaryLoss.HOLD)
        self.pass_time(2 * DEAD_TIME, 0.05)
        frame = self.say()
        self.assertIs(self.gates.state, GateState.HOLDING)
        self.connect()
        self.pass_time(0.1)
        self.assertTrue(self.was_seen(frame))


class MarkerTests(PrimaryCase):
    """Why the guest stands still is on disk whenever it does."""

    def test_during_a_checkpoint(self) -> None:
        self.protected()
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.qemu.hold("migrate")
        self.until(lambda: "migrate" in self.qemu.held)
        self.assertIs(self.marker, Stopped.FOR_CHECKPOINT)
        self.qemu.release_all()
        self.deliver()
        self.assertIs(self.marker, Stopped.NOT_BY_US)
