"""A VM that must not run: its standby has taken over, or it was told to stand down; and the way back."""

from __future__ import annotations

from ftd.config import SecondaryLoss
from ftd.errors import CannotKeep, NotInState
from ftd.status import VmState
from ftd.test.vm.primary_case import DEAD_TIME, PrimaryCase
from ftd.vm.errors import QmpError, QmpRefused
from ftd.vm.netgate import GateState
from ftd.vm.stop_marker import Stopped


class FenceTests(PrimaryCase):
    """A VM that must not run."""

    def fenced(self) -> None:
        """The standby has taken over."""
        vm = self.protected()
        self.next_checkpoint()
        self.frame = self.say()
        self.lose()
        vm.superseded("host-b")
        self.deliver()
        self.assert_fenced("host-b has taken over")

    def assert_fenced(self, why: str) -> None:
        """It does not run, nothing leaves, nothing is dialled."""
        self.assert_state(VmState.FENCED, why)
        self.assertNotEqual(self.qemu.run_state, "running")
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.assertFalse(self.carrier.dials)
        self.guest_stands_still = True

    def test_superseded(self) -> None:
        self.fenced()
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assert_fenced("host-b has taken over")
        self.assertFalse(self.was_seen(self.frame))

    def test_superseded_at_every_step_of_a_capture(self) -> None:
        for command in ("getfd", "stop", "migrate", "cont"):
            vm = self.protected()
            self.qemu.hold(command)
            self.until(lambda command=command: command in self.qemu.held)  # type: ignore[misc]
            self.lose()
            vm.superseded("host-b")
            self.qemu.release_all()
            self.deliver()
            self.assert_fenced("host-b has taken over")
            self._goes_on()

    def _goes_on(self) -> None:
        vm = self.vm
        assert vm is not None
        going_on = vm.promote(force=True)
        self.deliver()
        self.successResultOf(going_on)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()
        self.guest_stands_still = False
        self.end()

    def test_superseded_with_a_commit_in_doubt(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        self.lose()
        vm.superseded("host-b")
        self.deliver()
        self.assert_fenced("host-b has taken over")

    def test_superseded_twice(self) -> None:
        self.fenced()
        assert self.vm is not None
        self.vm.superseded("host-c")
        self.deliver()
        self.assert_fenced("host-b has taken over")

    def test_superseded_without_qmp(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.qemu.is_silent = True
        self.break_qmp()
        self.lose()
        vm.superseded("host-b")
        self.pass_time(0.5)
        self.assertEqual(self.qemu.run_state, "running", "it cannot be reached")
        self.qemu.wake()
        self.pass_time(0.5)
        self.assert_fenced("host-b has taken over")

    def test_superseded_and_stop_is_refused(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.lose()
        self.qemu.replies["stop"] = QmpRefused("stop", "GenericError", "no")
        vm.superseded("host-b")
        self.deliver()
        self.assert_state(VmState.FENCED, "QEMU refused stop")
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.say()
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assertFalse(self.carrier.dials)

    def test_a_fence_that_cannot_be_kept_holds_all_the_same(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        self.lose()
        (self.state / "fenced").mkdir()
        vm.superseded("host-b")
        self.deliver()
        self.assert_fenced("does not outlive ftd")

    def test_the_next_ftd_finds_it(self) -> None:
        self.fenced()
        self.crash()
        vm = self.start()
        self.assert_fenced("host-b has taken over")
        self.assertIsNone(vm.status().dirty_tracking)

    def test_the_next_ftd_finds_it_and_a_guest_that_runs(self) -> None:
        self.fenced()
        self.crash()
        self.qemu._do_cont({})
        self.start()
        self.assert_fenced("host-b has taken over")
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assert_fenced("host-b has taken over")

    def test_the_next_qemu_finds_it(self) -> None:
        self.fenced()
        self.kill_qemu()
        self.pass_time(0.5)
        self.new_qemu(5001)
        self.pass_time(0.5)
        self.assert_fenced("host-b has taken over")

    def test_promote_without_force(self) -> None:
        self.fenced()
        vm = self.vm
        assert vm is not None
        self.assertIn("with force it goes on", self.refusal(NotInState, lambda: vm.promote(force=False)))
        self.assert_fenced("host-b has taken over")

    def test_promote_what_is_not_fenced(self) -> None:
        vm = self.protected()
        self.assertIn("runs here already", self.refusal(NotInState, lambda: vm.promote(force=True)))

    def test_promote_with_force(self) -> None:
        self.fenced()
        vm = self.vm
        assert vm is not None
        going_on = vm.promote(force=True)
        self.deliver()
        self.successResultOf(going_on)
        self.guest_stands_still = False
        self.assertEqual(self.qemu.run_state, "running")
        self.assertTrue(self.carrier.dials)
        self.assertFalse((self.state / "fenced").exists())
        self.assertIs(self.gates.state, GateState.CLOSED, "the standby may still have taken over")
        self.pass_time(DEAD_TIME + 0.1, 0.05)
        self.assertTrue(self.was_seen(self.say()))
        self.connect()
        self.assert_protects()

    def test_promote_with_force_and_the_standby_still_has_taken_over(self) -> None:
        self.fenced()
        vm = self.vm
        assert vm is not None
        vm.promote(force=True)
        self.deliver()
        vm.superseded("host-b")
        self.deliver()
        self.assert_fenced("host-b has taken over")

    def test_promote_with_force_and_cont_is_refused(self) -> None:
        self.fenced()
        vm = self.vm
        assert vm is not None
        self.qemu.replies["cont"] = QmpRefused("cont", "GenericError", "no")
        going_on = vm.promote(force=True)
        self.deliver()
        self.failureResultOf(going_on, QmpError)
        del self.qemu.replies["cont"]
        self.qemu._do_cont({})
        self.guest_stands_still = False
        self.pass_time(6.0, 0.05)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_promote_with_force_without_qemu(self) -> None:
        self.fenced()
        self.kill_qemu()
        vm = self.vm
        assert vm is not None
        self.successResultOf(vm.promote(force=True))
        self.new_qemu(5001)
        self.guest_stands_still = False
        self.until(lambda: self.carrier.dials)
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_a_fence_that_cannot_be_taken_down(self) -> None:
        self.fenced()
        vm = self.vm
        assert vm is not None
        (self.state / "fenced").unlink()
        (self.state / "fenced" / "in the way").mkdir(parents=True)
        going_on = vm.promote(force=True)
        self.failureResultOf(going_on, CannotKeep)
        self.assert_fenced("host-b has taken over")


class DemoteTests(PrimaryCase):
    """The primary gives what it has, and stands down."""

    def demoted(self) -> None:
        """It is told to, and does."""
        vm = self.vm
        assert vm is not None
        demoting = vm.demote()
        self.deliver()
        self.run_threads()
        self.successResultOf(demoting)
        self.assertIs(vm.state, VmState.FENCED)
        self.assertNotEqual(self.qemu.run_state, "running")
        self.assertFalse(self.carrier.dials)
        self.assertTrue((self.state / "fenced").exists())
        self.guest_stands_still = True

    def assert_standby_has_all(self) -> None:
        """What the guest did until it was stopped."""
        self.assertTrue((self.standby.ram == self.guest.ram).all())

    def test_protected(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.write(30)
        frame = self.say()
        self.demoted()
        self.assert_standby_has_all()
        self.assertTrue(self.was_seen(frame), "the standby knows that it was sent")
        self.assert_state(VmState.FENCED, "it was demoted; `promote` with force lets it go on")

    def test_more_is_dirty_than_fits(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.write(*range(20, 60))
        self.demoted()
        self.assert_standby_has_all()

    def test_not_protected_yet(self) -> None:
        self.start(qemu_protect=False)
        self.connect()
        self.demoted()
        self.assert_standby_has_all()

    def test_during_a_capture(self) -> None:
        vm = self.protected()
        for _ in range(2):
            self.write(30)
        self.qemu.hold("migrate")
        self.until(lambda: "migrate" in self.qemu.held)
        demoting = vm.demote()
        self.qemu.release_all()
        self.deliver()
        self.successResultOf(demoting)
        self.assert_standby_has_all()
        self.guest_stands_still = True

    def test_before_an_ack_that_never_comes(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        demoting = vm.demote()
        self.lose()
        self.deliver()
        self.successResultOf(demoting)
        self.assert_state(VmState.FENCED)
        self.guest_stands_still = True

    def test_without_a_session(self) -> None:
        self.start()
        self.demoted()
        self.assertEqual(self.committed(), 0)

    def test_without_qemu(self) -> None:
        vm = self.start()
        self.kill_qemu()
        self.pass_time(0.5)
        self.successResultOf(vm.demote())
        self.new_qemu(5001)
        self.pass_time(0.5)
        self.assertEqual(self.qemu.run_state, "paused")
        self.guest_stands_still = True

    def test_the_last_checkpoint_fails(self) -> None:
        self.protected()
        self.next_checkpoint()
        self.qemu.replies["migrate"] = QmpRefused("migrate", "GenericError", "no")
        frame = self.say()
        self.demoted()
        self.assertFalse(self.was_seen(frame))

    def test_the_last_checkpoint_is_not_acknowledged(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.carrier.acks = False
        demoting = vm.demote()
        self.until(lambda: bool(self.carrier.pending))
        self.assertNotEqual(self.qemu.run_state, "running", "nothing may happen after it")
        self.lose()
        self.pass_time(0.5)
        self.successResultOf(demoting)
        self.assert_state(VmState.FENCED)
        self.assertFalse(self.was_seen(frame))
        self.guest_stands_still = True

    def test_it_is_on_hold(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.lose()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.demoted()
        self.assertIs(self.marker, Stopped.NOT_BY_US, "the fence holds it now")

    def test_twice(self) -> None:
        vm = self.start()
        self.demoted()
        self.assertIn("stopped for good already", self.refusal(NotInState, vm.demote))

    def test_and_back(self) -> None:
        vm = self.protected()
        self.demoted()
        going_on = vm.promote(force=True)
        self.deliver()
        self.successResultOf(going_on)
        self.guest_stands_still = False
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()
