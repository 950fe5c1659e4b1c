"""The link breaks at every point of a checkpoint; the standby comes back, with what it had, with less, with another."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ftd.config import SecondaryLoss
from ftd.errors import CannotKeep
from ftd.status import VmState
from ftd.test.vm.primary_case import DEAD_TIME, INTERVAL, PrimaryCase
from ftd.test.vm.primary_world import Frame
from ftd.testing.threads import SteppedThread
from ftd.vm.netgate import GateState
from ftd.vm.stop_marker import Stopped
from ftd.wire.errors import ErrorCode

OTHER = "99999999-0000-4000-8000-000000000000"


class LinkCase(PrimaryCase):
    """A protected VM; the link breaks, is back, and all that the guest did meanwhile has to be committed."""

    frame: Frame

    def loses(self, *, has_it: bool = False) -> None:
        """The guest writes and says something before and after the loss."""
        self.write(30)
        self.frame = self.say()
        self.lose(has_it=has_it)
        if self.qemu.run_state == "running":
            self.write(31)

    def is_back(self) -> None:
        """Within dead-time, with whatever the standby has."""
        self.pass_time(0.1)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assertEqual(self.standby.ram[30, 0], self.guest.ram[30, 0])
        self.assertTrue(self.was_seen(self.frame))
        self.assert_protects()

    def with_changes_only(self, before: int) -> None:
        """What came after ``before`` checkpoints said changes only."""
        self.assertTrue(all(header.base is not None for header in self.standby.headers[before:]))


class LossTests(LinkCase):
    """At every point."""

    def test_between_two_checkpoints(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.loses()
        before = self.committed()
        self.is_back()
        self.with_changes_only(before)

    def test_in_the_first_checkpoint_while_it_is_sent(self) -> None:
        self.start()
        self.carrier.is_frozen = True
        self.connect()
        self.loses()
        self.assert_state(VmState.UNPROTECTED, "the standby closed the link")
        self.assertTrue(self.was_seen(self.frame), "it was not protected yet")
        self.carrier.is_frozen = False
        self.is_back()

    def test_in_the_first_checkpoint_while_pages_are_read(self) -> None:
        self.start()
        self.thread = SteppedThread()
        self.connect()
        for _ in range(3):
            self.thread.step()
        self.loses()
        self.run_threads()
        self.thread = None
        self.assert_state(VmState.UNPROTECTED)
        self.assertFalse(self.carrier.is_open)
        self.is_back()

    def test_in_the_first_checkpoint_while_the_guest_is_stopped(self) -> None:
        self.start()
        self.qemu.hold("migrate")
        self.connect()
        self.assertEqual(self.qemu.held, ["migrate"])
        self.lose()
        self.qemu.release_all()
        self.deliver()
        self.assert_state(VmState.UNPROTECTED)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertIs(self.gates.state, GateState.OPEN, "it had begun to hold")
        self.loses_nothing()

    def loses_nothing(self) -> None:
        """The guest goes on, and the standby is back."""
        self.write(30)
        self.frame = self.say()
        self.is_back()

    def test_in_the_first_checkpoint_before_its_ack(self) -> None:
        self.start()
        self.carrier.acks = False
        self.connect()
        self.loses()
        self.assertEqual(self.told[-1][0], VmState.UNPROTECTED)
        self.carrier.acks = True
        self.is_back()

    def test_while_the_guest_is_stopped(self) -> None:
        self.protected()
        for command in ("getfd", "stop", "migrate", "cont"):
            before = self.committed()
            self.write(30)
            self.frame = self.say()
            self.qemu.hold(command)
            self.until(lambda command=command: command in self.qemu.held)  # type: ignore[misc]
            self.lose()
            self.qemu.release_all()
            self.deliver()
            self.assertEqual(self.qemu.run_state, "running", command)
            self.assertFalse(self.was_seen(self.frame))
            self.is_back()
            self.with_changes_only(before)

    def test_while_pages_are_sent_that_did_not_fit(self) -> None:
        self.protected()
        self.next_checkpoint()
        before = self.committed()
        self.carrier.is_frozen = True
        self.write(*range(20, 60))
        self.until(lambda: bool(self.carrier._drained))
        self.loses()
        self.carrier.is_frozen = False
        self.assertEqual(self.qemu.run_state, "running")
        self.is_back()
        self.with_changes_only(before)
        self.assertEqual(self.standby.ram[59, 0], self.guest.ram[59, 0])

    def test_before_the_ack_and_it_is_not_committed(self) -> None:
        self.protected()
        self.carrier.acks = False
        before = self.committed()
        self.write(30)
        self.until(lambda: bool(self.carrier.pending))
        self.loses()
        self.carrier.acks = True
        self.assert_state(VmState.PROTECTED, "is held for 2.0 s more")
        self.is_back()
        self.with_changes_only(before)

    def test_before_the_ack_and_it_is_committed(self) -> None:
        self.protected()
        self.carrier.acks = False
        before = self.committed()
        frame = self.say()
        self.until(lambda: bool(self.carrier.pending))
        self.loses(has_it=True)
        self.assertFalse(self.was_seen(frame), "nobody knows yet")
        self.carrier.acks = True
        self.pass_time(0.1)
        self.connect()
        self.assertTrue(self.was_seen(frame))
        self.until(lambda: self.was_seen(self.frame))
        self.with_changes_only(before)
        self.assert_protects()


class SecondaryLossTests(LinkCase):
    """``on-secondary-loss``, and that it does not come too early."""

    def test_what_is_held_stays_so_until_dead_time(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.loses()
        self.pass_time(DEAD_TIME - 0.1, 0.05)
        self.assertFalse(self.was_seen(self.frame))
        self.assert_state(VmState.PROTECTED, "is held")
        self.pass_time(0.2)
        self.assertTrue(self.was_seen(self.frame))
        self.assert_state(VmState.UNPROTECTED, "the standby is lost: the standby closed the link")
        self.assertTrue(self.was_seen(self.say()), "and what it sends from now on leaves at once")

    def test_the_silence_before_the_loss_counts(self) -> None:
        self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.lose("it is silent", silence=DEAD_TIME)
        self.pass_time(0.02)
        self.assertTrue(self.was_seen(frame))
        self.assert_state(VmState.UNPROTECTED)

    def test_it_is_protected_again_by_itself(self) -> None:
        self.protected()
        self.next_checkpoint()
        before = self.committed()
        self.loses()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.is_back()
        self.with_changes_only(before)

    def test_it_is_back_just_in_time(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.loses()
        self.pass_time(DEAD_TIME - 0.05, 0.05)
        self.carrier.acks = False
        self.connect()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertFalse(self.was_seen(self.frame), "the ACK has not come, and the link lives")
        self.carrier.acks = True
        self.until(lambda: self.was_seen(self.frame))
        self.assert_protects()

    def test_a_link_that_comes_and_goes_and_brings_nothing_is_none(self) -> None:
        self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.carrier.acks = False
        for _ in range(4):
            self.loses()
            self.pass_time(DEAD_TIME / 3, 0.05)
            if self.vm is None or self.vm.state is VmState.UNPROTECTED:
                break
            self.connect()
        self.assert_state(VmState.UNPROTECTED)
        self.assertTrue(self.was_seen(frame))

    def test_the_commit_in_doubt_turns_out_committed_after_dead_time(self) -> None:
        self.protected()
        self.carrier.acks = False
        self.say()
        self.until(lambda: bool(self.carrier.pending))
        self.loses(has_it=True)
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assert_state(VmState.UNPROTECTED)
        self.carrier.acks = True
        self.is_back()

    def test_with_hold_the_guest_stands_still(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.loses()
        self.pass_time(DEAD_TIME - 0.1, 0.05)
        self.assertEqual(self.qemu.run_state, "running")
        self.pass_time(0.2)
        self.assertEqual(self.qemu.run_state, "paused")
        self.assertIs(self.marker, Stopped.ON_HOLD)
        self.assert_state(VmState.HOLDING, "until the standby is back or protection is off")
        self.assertFalse(self.was_seen(self.frame))
        self.is_back()
        self.assertIs(self.marker, Stopped.NOT_BY_US)

    def test_with_hold_a_standby_that_has_nothing(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.loses()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.standby.forget()
        self.is_back()

    def test_with_hold_more_is_dirty_than_fits(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.write(*range(20, 60))
        self.loses()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.is_back()

    def test_with_hold_the_link_breaks_again_before_it_goes_on(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.loses()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.carrier.acks = False
        self.connect()
        self.assert_state(VmState.SYNCING)
        self.lose()
        self.assert_state(VmState.HOLDING)
        self.assertEqual(self.qemu.run_state, "postmigrate")
        self.carrier.acks = True
        self.is_back()

    def test_with_hold_somebody_lets_the_guest_go_on(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.loses()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assert_state(VmState.HOLDING)
        self.qemu._do_cont({})
        self.deliver()
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.write(32)
        self.say()
        self.is_back()

    def test_with_hold_dead_time_is_over_during_a_capture(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD, qemu_time=3 * DEAD_TIME)
        self.next_checkpoint()
        for command in ("getfd", "stop", "migrate", "cont"):
            self.qemu.hold(command)
            self.until(lambda command=command: command in self.qemu.held)  # type: ignore[misc]
            self.lose()
            self.pass_time(DEAD_TIME + 0.1, 0.05)
            self.qemu.release_all()
            self.pass_time(0.2)
            self.assert_state(VmState.HOLDING)
            self.assertNotEqual(self.qemu.run_state, "running", f"it is said to be on hold ({command})")
            self.assertIs(self.marker, Stopped.ON_HOLD)
            self.connect()
            self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
            self.assert_protects()

    def test_with_hold_stop_is_refused(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.loses()
        self.qemu.hold("stop")
        self.pass_time(DEAD_TIME + 0.1, 0.05)
        self.assertEqual(self.qemu.held, ["stop"])
        self.break_qmp()
        self.qemu.release_all()
        self.pass_time(0.5)
        self.assertFalse(self.was_seen(self.frame))
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()


class BackTests(LinkCase):
    """What the standby has when it is back decides what it is sent."""

    def test_nothing(self) -> None:
        self.protected()
        self.next_checkpoint()
        before = self.committed()
        generation = self.standby.headers[-1].generation
        self.loses()
        self.standby.forget()
        self.pass_time(0.1)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        header = self.standby.headers[before]
        self.assertEqual((header.base, header.number), (None, 1))
        self.assertNotEqual(header.generation, generation)
        self.assertIn((VmState.UNPROTECTED, "the standby does not have the newest checkpoint any more"), self.told)
        self.assert_protects()

    def test_another_generation(self) -> None:
        self.protected()
        before = self.committed()
        self.loses()
        self.standby_has(OTHER, 7)
        self.is_back()
        self.assertIsNone(self.standby.headers[before].base)

    def test_an_older_checkpoint(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.next_checkpoint()
        before = self.committed()
        self.loses()
        self.standby_has(self.carrier.generation, 1)
        self.is_back()
        self.assertIsNone(self.standby.headers[before].base)

    def test_a_checkpoint_of_before_this_ftd(self) -> None:
        self.standby_has("00000000-0000-4000-8000-000000000000", 7)
        self.protected()
        self.assertIsNone(self.standby.headers[0].base, "which pages are dirty since then nobody knows")

    def test_a_refused_one_is_answered_with_a_full_one(self) -> None:
        self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.standby.forget()
        before = self.committed()
        self.until(lambda: self.committed() > before)
        self.assertIsNone(self.standby.headers[-1].base)
        self.assertTrue(any("is not here" in why for _, why in self.told))
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()

    def test_full_ones_are_refused_again_and_again(self) -> None:
        self.start()
        self.carrier.acks = False
        self.connect()
        for _ in range(5):
            self.until(lambda: bool(self.carrier.pending))
            self.carrier.refuse(ErrorCode.FLUSH)
            self.deliver()
            self.assert_state(VmState.UNPROTECTED, "FLUSH")
            self.assertTrue(self.was_seen(self.say()))
            self.assertEqual(self.qemu.run_state, "running")
        self.carrier.acks = True
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_a_generation_that_cannot_be_kept(self) -> None:
        self.start()
        self.carrier.generation_error = CannotKeep("the disk is full")
        self.connect()
        self.pass_time(0.5)
        self.assert_state(VmState.UNPROTECTED, "the disk is full")
        self.carrier.generation_error = None
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_many_losses_in_a_row(self) -> None:
        self.protected()
        for turn in range(12):
            self.write(20 + turn)
            frame = self.say()
            self.pass_time(0.03 * turn)
            self.lose(has_it=bool(self.carrier.pending) and turn % 2 == 0)
            self.pass_time(0.05 * turn)
            self.connect()
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()
        for turn in range(12):
            self.assertEqual(self.standby.ram[20 + turn, 0], self.guest.ram[20 + turn, 0])


class BackgroundTests(PrimaryCase):
    """One checkpoint in the background, while the guest runs."""

    def test_the_status_shows_how_far_it_is(self) -> None:
        vm = self.start()
        self.carrier.is_frozen = True
        self.connect()
        sync = vm.status().sync
        assert sync is not None
        self.assertEqual((sync.done_bytes, sync.total_bytes), (0, self.guest.backend.size))
        self.carrier.thaw()
        self.deliver()
        self.assertIsNone(vm.status().sync)

    def test_what_is_written_meanwhile_is_sent_too(self) -> None:
        self.start()
        self.carrier.is_frozen = True
        self.connect()
        self.write(3, 12, 40)
        self.carrier.thaw()
        self.deliver()
        self.assert_state(VmState.PROTECTED)
        self.assertEqual(self.standby.ram[40, 0], self.guest.ram[40, 0])
        self.assertEqual(len(self.qemu.named("stop")), 1, "the guest was stopped once")

    def test_a_guest_that_writes_all_the_time(self) -> None:
        self.start()
        drained = self.carrier.drained

        def writes() -> object:
            if self.qemu.run_state == "running":
                self.write(*range(20, 60))
            return drained()

        self.carrier.drained = writes  # type: ignore[method-assign,assignment]
        self.connect()
        self.assert_state(VmState.PROTECTED)
        del self.carrier.drained
        self.assert_protects()

    def test_by_a_tracker_that_needs_the_guest_stopped(self) -> None:
        self.collects = False
        self.protected()
        self.assertGreater(len(self.qemu.named("stop")), 1)
        self.write(3, 5)
        self.next_checkpoint()
        self.assertEqual(self.standby.pages_taken[-1], [3, 5])
        self.lose()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.write(*range(20, 60))
        self.connect()
        self.assert_state(VmState.PROTECTED)
        self.assert_protects()

    def test_the_transaction_waits_for_a_heartbeat(self) -> None:
        self.start()
        opening = self.carrier.opening = Deferred()
        self.connect()
        self.assert_state(VmState.SYNCING)
        self.carrier.opening = None
        opening.callback(None)
        self.deliver()
        self.assert_state(VmState.PROTECTED)

    def test_it_is_retried_less_and_less_often(self) -> None:
        self.start()
        self.carrier.generation_error = CannotKeep("the disk is full")
        self.connect()
        before = len(self.told)
        self.pass_time(60 * INTERVAL, 0.05)
        self.assertLessEqual((len(self.told) - before) // 2, 8)
