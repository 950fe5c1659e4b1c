"""Checkpoints that the cluster manager asks for, how often they are taken by themselves, protection off and on."""

from __future__ import annotations

from twisted.internet.defer import Deferred

from ftd.config import SecondaryLoss
from ftd.errors import LinkDown, NoAck, NotInState, PairFailed
from ftd.status import Commit, VmState
from ftd.test.vm.primary_case import DEAD_TIME, INTERVAL, QEMU_TIME, PrimaryCase
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.netgate import GateState
from ftd.vm.stop_marker import Stopped
from ftd.wire.errors import ErrorCode

#: Seconds that the cluster manager waits for an ACK.
LIMIT = 1.0


class ManualCase(PrimaryCase):
    """With ``interval_ms`` 0."""

    def manual(self, **changes: object) -> None:
        """Protected, and no checkpoint comes by itself."""
        self.protected(qemu_interval=0.0, **changes)

    def begin(self) -> int:
        """Open a transaction."""
        assert self.vm is not None
        id: int = self.successResultOf(self.vm.begin())
        return id

    def commit(self) -> Deferred[Commit]:
        """Ask for the checkpoint."""
        assert self.vm is not None
        return self.vm.commit(LIMIT)

    def assert_works(self) -> None:
        """A whole transaction."""
        frame = self.say()
        self.begin()
        self.commit_of(self.commit())
        self.assertTrue(self.was_seen(frame))
        self.assert_state(VmState.PROTECTED)


class ManualTests(ManualCase):
    """begin, commit, cancel."""

    def test_nothing_is_taken_by_itself(self) -> None:
        self.manual()
        frame = self.say()
        self.pass_time(20 * INTERVAL)
        self.assertEqual(self.committed(), 1)
        self.assertFalse(self.was_seen(frame))

    def test_begin_and_commit(self) -> None:
        self.manual()
        self.write(3)
        frame = self.say()
        id = self.begin()
        self.pass_time(INTERVAL)
        self.assertEqual(self.qemu.run_state, "running", "it is stopped at commit only")
        commit = self.commit_of(self.commit())
        self.assertEqual(commit.id, id)
        self.assertEqual(self.standby.pages_taken[-1], [0, 3])
        self.assertTrue(self.was_seen(frame))
        self.assert_works()

    def test_cancel(self) -> None:
        self.manual()
        self.write(3)
        self.begin()
        assert self.vm is not None
        self.vm.cancel()
        self.assertEqual(self.carrier.cancelled, ["the cluster manager cancelled it"])
        self.assert_works()
        self.assertEqual(self.standby.pages_taken[-1], [0, 3])

    def test_what_may_not_be(self) -> None:
        self.manual()
        vm = self.vm
        assert vm is not None
        self.assertIn("begin one first", self.refusal(NotInState, self.commit))
        self.assertIn("nothing to cancel", self.refusal(NotInState, vm.cancel))
        self.begin()
        self.assertIn("is open already", self.refusal(NotInState, vm.begin()))
        self.assertIn("commit or cancel", self.refusal(NotInState, lambda: vm.set_protection(None, 0.5)))
        self.carrier.acks = False
        committing = self.commit()
        self.deliver()
        self.assertIn("nothing to cancel", self.refusal(NotInState, vm.cancel))
        self.assertIn("begin one first", self.refusal(NotInState, self.commit))
        self.carrier.acks = True
        self.commit_of(committing)
        self.assert_works()

    def test_with_an_interval_they_are_refused(self) -> None:
        vm = self.protected()
        self.assertIn("set interval_ms to 0", self.refusal(NotInState, vm.begin()))
        self.assertIn("set interval_ms to 0", self.refusal(NotInState, lambda: vm.commit(LIMIT)))

    def test_while_it_is_not_protected_they_are_refused(self) -> None:
        vm = self.start(qemu_interval=0.0)
        self.assertIn("has not been reached yet", self.refusal(NotInState, vm.begin()))
        self.carrier.acks = False
        self.connect()
        self.assertIn("in the background", self.refusal(NotInState, vm.begin()))
        self.carrier.acks = True
        self.deliver()
        self.assert_works()

    def test_no_ack_in_time(self) -> None:
        self.manual()
        self.carrier.acks = False
        self.write(3)
        frame = self.say()
        self.begin()
        committing = self.commit()
        self.pass_time(LIMIT + 0.05)
        self.failureResultOf(committing, NoAck)
        self.assertFalse(self.was_seen(frame))
        self.assert_state(VmState.PROTECTED)
        # It comes after all.
        self.carrier.acks = True
        self.until(lambda: self.was_seen(frame))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_works()

    def test_it_is_refused_by_the_standby(self) -> None:
        self.manual()
        self.carrier.acks = False
        self.begin()
        committing = self.commit()
        self.deliver()
        self.carrier.refuse(ErrorCode.FLUSH)
        self.failureResultOf(committing, PairFailed)
        self.carrier.acks = True
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_works()

    def test_the_capture_fails(self) -> None:
        self.manual()
        self.qemu.replies["migrate"] = QmpRefused("migrate", "GenericError", "no")
        self.begin()
        committing = self.commit()
        self.deliver()
        self.failureResultOf(committing, VmError)
        self.assertFalse(self.carrier.is_open)
        del self.qemu.replies["migrate"]
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_works()

    def test_the_link_breaks_before_the_commit(self) -> None:
        self.manual()
        self.begin()
        self.lose()
        self.assertIn("the VM is not ready for a checkpoint", self.refusal(NotInState, self.commit))
        self.connect()
        self.assert_works()

    def test_the_link_breaks_after_the_commit(self) -> None:
        self.manual()
        for has_it in (False, True):
            self.carrier.acks = False
            frame = self.say()
            self.begin()
            committing = self.commit()
            self.deliver()
            self.lose(has_it=has_it)
            self.assertNoResult(committing)
            self.carrier.acks = True
            self.connect()
            if has_it:
                self.successResultOf(committing)
            else:
                self.failureResultOf(committing, LinkDown)
            self.assertTrue(self.was_seen(frame))
            self.assert_works()

    def test_qmp_breaks_between_begin_and_commit(self) -> None:
        self.manual()
        self.begin()
        self.break_qmp()
        self.assertFalse(self.carrier.is_open)
        self.assertIn("QEMU has closed", self.refusal(NotInState, self.commit))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_works()

    def test_somebody_pauses_the_guest_before_the_commit(self) -> None:
        self.manual()
        self.begin()
        self.qemu._do_stop({})
        self.deliver()
        committing = self.commit()
        self.deliver()
        self.failureResultOf(committing)
        self.assertFalse(self.carrier.is_open)
        self.qemu._do_cont({})
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_works()

    def test_protection_is_turned_off_between_begin_and_commit(self) -> None:
        self.manual()
        self.begin()
        assert self.vm is not None
        self.successResultOf(self.vm.set_protection(False, None))
        self.assertFalse(self.carrier.is_open)
        self.assertIn("protection is off", self.refusal(NotInState, self.commit))

    def test_stop_between_begin_and_commit(self) -> None:
        self.manual()
        self.begin()
        self.end()
        self.assertFalse(self.carrier.is_open)


class IntervalTests(ManualCase):
    """How often."""

    def test_shorter(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.successResultOf(vm.set_protection(None, INTERVAL / 5))
        self.assertEqual(vm.status().interval_ms, 20)
        self.next_checkpoint()
        before = self.committed()
        self.pass_time(10 * INTERVAL)
        self.assertEqual(self.committed() - before, 50)

    def test_longer(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.successResultOf(vm.set_protection(None, 1.0))
        before = self.committed()
        self.pass_time(5.05)
        self.assertEqual(self.committed() - before, 5)

    def test_from_none_to_one_and_back(self) -> None:
        self.manual()
        vm = self.vm
        assert vm is not None
        self.successResultOf(vm.set_protection(None, INTERVAL))
        self.assert_protects()
        self.successResultOf(vm.set_protection(None, 0.0))
        self.deliver()
        before = self.committed()
        self.pass_time(1.0)
        self.assertEqual(self.committed(), before)
        self.assert_works()

    def test_during_a_checkpoint(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        self.successResultOf(vm.set_protection(None, 0.5))
        self.carrier.acks = True
        self.deliver()
        before = self.committed()
        self.pass_time(5.05)
        self.assertIn(self.committed() - before, (10, 11))


class ProtectionTests(PrimaryCase):
    """Off and on."""

    def test_off_from_the_start(self) -> None:
        vm = self.start(qemu_protect=False)
        self.connect()
        self.pass_time(1.0)
        self.assert_state(VmState.UNPROTECTED, "protection is off")
        self.assertEqual(vm.status().protection, False)
        self.assertEqual(self.committed(), 0)
        self.successResultOf(vm.set_protection(True, None))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_off_between_two_checkpoints(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        frame = self.say()
        before = self.committed()
        self.successResultOf(vm.set_protection(False, None))
        self.assertTrue(self.was_seen(frame))
        self.assert_state(VmState.UNPROTECTED, "protection is off")
        self.pass_time(1.0)
        self.assertEqual(self.committed(), before)
        self.write(40)
        self.successResultOf(vm.set_protection(True, None))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assertIsNotNone(self.standby.headers[-1].base, "what has changed meanwhile is known")
        self.assert_protects()

    def test_off_before_an_ack(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        frame = self.say()
        off = vm.set_protection(False, None)
        self.assertFalse(self.was_seen(frame))
        self.carrier.acks = True
        self.deliver()
        self.successResultOf(off)
        self.assertTrue(self.was_seen(frame))

    def test_off_before_an_ack_that_never_comes(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        off = vm.set_protection(False, None)
        self.lose()
        self.successResultOf(off)
        self.assert_state(VmState.UNPROTECTED, "protection is off")
        self.assertIs(self.gates.state, GateState.OPEN)

    def test_off_and_on_before_an_ack(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        off, on = vm.set_protection(False, None), vm.set_protection(True, None)
        self.carrier.acks = True
        self.deliver()
        self.successResultOf(off)
        self.successResultOf(on)
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.write(*range(20, 60))
        self.assert_protects()

    def test_off_at_every_step_of_a_capture(self) -> None:
        vm = self.protected()
        for command in ("getfd", "stop", "migrate", "cont"):
            self.qemu.hold(command)
            self.until(lambda command=command: command in self.qemu.held)  # type: ignore[misc]
            off = vm.set_protection(False, None)
            self.qemu.release_all()
            self.deliver()
            self.successResultOf(off)
            self.assertEqual(self.qemu.run_state, "running")
            self.assertTrue(self.was_seen(self.say()))
            self.successResultOf(vm.set_protection(True, None))
            self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
            self.assert_protects()

    def test_off_in_the_background(self) -> None:
        vm = self.start()
        self.thread = SteppedThread()
        self.connect()
        self.thread.step()
        self.thread.step()
        off = vm.set_protection(False, None)
        self.run_threads()
        self.thread = None
        self.deliver()
        self.successResultOf(off)
        self.assertEqual(self.committed(), 0, "it does not go on for the whole of the RAM")
        self.assert_state(VmState.UNPROTECTED, "protection is off")
        self.successResultOf(vm.set_protection(True, None))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_off_lets_go_on_what_is_on_hold(self) -> None:
        vm = self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        frame = self.say()
        self.lose()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertEqual(self.qemu.run_state, "paused")
        off = vm.set_protection(False, None)
        self.deliver()
        self.successResultOf(off)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertTrue(self.was_seen(frame))
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.assert_state(VmState.UNPROTECTED, "protection is off")

    def test_off_while_it_is_put_on_hold(self) -> None:
        vm = self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.next_checkpoint()
        self.lose()
        self.qemu.hold("stop")
        self.pass_time(DEAD_TIME + 0.1, 0.05)
        self.assertEqual(self.qemu.held, ["stop"])
        off = vm.set_protection(False, None)
        self.qemu.release_all()
        self.deliver()
        self.successResultOf(off)
        self.assertEqual(self.qemu.run_state, "running")

    def test_off_while_the_link_is_lost(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.lose()
        self.successResultOf(vm.set_protection(False, None))
        self.assertTrue(self.was_seen(frame))
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assert_state(VmState.UNPROTECTED, "protection is off")

    def test_on_or_off_again_changes_nothing(self) -> None:
        vm = self.protected()
        self.successResultOf(vm.set_protection(True, None))
        self.assert_protects()
        self.successResultOf(vm.set_protection(False, None))
        self.successResultOf(vm.set_protection(False, 0.5))
        self.assertEqual(vm.status().interval_ms, 500)

    def test_without_qemu(self) -> None:
        self.reactor.qemus.clear()
        vm = self.new_primary()
        self.pass_time(0.2)
        self.successResultOf(vm.set_protection(False, None))
        self.successResultOf(vm.set_protection(True, None))
        self.reactor.qemus["/run/vm.qmp"] = self.qemu
        self.pass_time(1.0)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()


class PausedTests(PrimaryCase):
    """Somebody pauses the guest in QEMU's monitor, and lets it go on."""

    def test_between_two_checkpoints(self) -> None:
        self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.qemu._do_stop({})
        before = self.committed()
        self.pass_time(1.0)
        self.assertLessEqual(self.committed(), before + 1)
        self.assertEqual(self.qemu.run_state, "paused", "it is none of our business")
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.assert_state(VmState.PROTECTED, "the guest is paused; `cont` in QEMU's monitor lets it go on")
        self.qemu._do_cont({})
        self.until(lambda: self.was_seen(frame))
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_before_there_is_a_standby(self) -> None:
        self.start()
        self.qemu._do_stop({})
        self.deliver()
        self.connect()
        self.pass_time(1.0)
        self.assert_state(VmState.UNPROTECTED, "the guest is paused")
        self.qemu._do_cont({})
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_it_is_let_go_on_during_a_capture(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.thread = SteppedThread()
        self.until(lambda: self.thread is not None and bool(self.thread.waiting))
        self.qemu._do_cont({})
        self.deliver()
        self.write(33)
        frame = self.say()
        self.thread.run()
        self.thread = None
        self.until(lambda: self.was_seen(frame))
        self.assertTrue(any("somebody has let the guest go on" in why for _, why in self.told))
        self.assert_protects()

    def test_it_shuts_down(self) -> None:
        self.protected()
        self.qemu.run_state = "shutdown"
        self.qemu.emit("SHUTDOWN", {"guest": True, "reason": "guest-shutdown"})
        self.pass_time(3 * QEMU_TIME, 0.05)
        assert self.vm is not None
        self.assertIn("the guest is shutdown", self.vm.reason)
        self.guest_stands_still = True
