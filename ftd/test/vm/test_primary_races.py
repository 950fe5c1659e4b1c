"""Two things happen at a time, the second of them before the first is over."""

from __future__ import annotations

from ftd.config import SecondaryLoss
from ftd.errors import FtdError
from ftd.status import VmState
from ftd.test.vm.primary_case import CAPACITY, DEAD_TIME, PrimaryCase
from ftd.testing.threads import SteppedThread
from ftd.vm.stop_marker import Stopped


class AttachTests(PrimaryCase):
    """Getting hold of a VM starts its tracker, which forgets what was dirty: it must not happen under a job."""

    def test_the_old_job_ends_while_the_vm_is_looked_at_anew(self) -> None:
        self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        self.thread = SteppedThread()
        trackers = len(self.guest.trackers)
        self.break_qmp()
        self.until(lambda: self.thread is not None and bool(self.thread.waiting))
        self.carrier.acks = True
        self.deliver()
        self.run_threads()
        self.thread = None
        self.pass_time(0.5)
        self.assertEqual(len(self.guest.trackers) - trackers, 1, "it was got hold of twice at a time")
        self.assert_protects()

    def test_qmp_breaks_again_while_the_vm_is_looked_at_in_a_thread(self) -> None:
        self.thread = SteppedThread()
        self.start()
        self.assertEqual(self.thread.waiting, 1)
        self.break_qmp()
        self.pass_time(0.3)
        self.assertEqual(self.thread.waiting, 1, "it is looked at twice at a time")
        self.connect()
        self.run_threads()
        self.thread = None
        self.pass_time(0.3)
        self.assert_protects()


class LinkTests(PrimaryCase):
    """The link breaks while something else goes on."""

    def test_the_first_commit_stays_in_doubt(self) -> None:
        self.start()
        self.carrier.acks = False
        self.connect()
        self.until(lambda: bool(self.carrier.pending))
        frame = self.say()
        self.lose()
        self.pass_time(2 * DEAD_TIME)
        self.assert_state(VmState.UNPROTECTED)
        self.assertTrue(self.was_seen(frame), "held for ever, though the VM is not protected")
        self.carrier.acks = True
        self.connect()
        self.pass_time(0.2)
        self.assert_protects()

    def test_superseded_while_protection_is_turned_off(self) -> None:
        vm = self.protected()
        self.thread = SteppedThread()
        self.until(lambda: self.thread is not None and bool(self.thread.waiting))
        off = vm.set_protection(False, None)
        vm.superseded("b")
        self.run_threads()
        self.pass_time(0.2)
        self.successResultOf(off)
        self.assert_state(VmState.FENCED)
        self.assertEqual(self.qemu.run_state, "paused")
        self.guest_stands_still = True


class FenceTests(PrimaryCase):
    """A fence goes up, and down before all that it takes is done."""

    def test_promoted_with_force_while_it_comes_to_rest(self) -> None:
        vm = self.protected()
        self.thread = SteppedThread()
        self.until(lambda: self.thread is not None and bool(self.thread.waiting))
        vm.superseded("b")
        promoting = vm.promote(True)
        self.deliver()
        self.run_threads()
        self.thread = None
        self.pass_time(0.5)
        self.successResultOf(promoting)
        self.assertEqual(self.qemu.run_state, "running", "it is not fenced, and stands still")
        self.assertTrue(self.carrier.dials)
        self.assertFalse(vm.is_fenced)


class DemoteTests(PrimaryCase):
    """The last checkpoint is a job like any other."""

    def test_qmp_breaks_in_the_last_checkpoint(self) -> None:
        vm = self.protected()
        self.write(*range(1, CAPACITY + 4))
        self.thread = SteppedThread()
        demoting = vm.demote()
        self.deliver()
        self.assertTrue(self.thread.waiting)
        self.break_qmp()
        self.assertFalse(self.tracker.is_closed, "it is in use")
        self.run_threads()
        self.thread = None
        self.pass_time(0.5)
        self.successResultOf(demoting)
        self.assert_state(VmState.FENCED)
        self.assertEqual(self.qemu.run_state, "paused")
        self.guest_stands_still = True

    def test_stopped_in_the_last_checkpoint(self) -> None:
        vm = self.protected()
        self.write(*range(1, CAPACITY + 4))
        self.thread = SteppedThread()
        demoting = vm.demote()
        self.deliver()
        stopping = vm.stop()
        self.run_threads()
        self.thread = None
        self.pass_time(0.5)
        self.assertTrue(demoting.called)
        demoting.addErrback(lambda failure: failure.trap(FtdError))
        self.assert_stopped(stopping)
        self.assertTrue((self.state / "fenced").exists())
        self.guest_stands_still = True


class CaptureTests(PrimaryCase):
    """Somebody else has QEMU's monitor."""

    def test_the_guest_is_let_go_on_while_the_rest_is_sent(self) -> None:
        self.protected(qemu_rounds=1)
        before = self.committed()
        self.carrier.is_frozen = True
        self.write(*range(1, CAPACITY + 4))
        self.until(lambda: self.qemu.run_state == "running" and bool(self.carrier._drained))
        self.write(*range(1, CAPACITY + 4))
        self.carrier.is_frozen = False
        self.carrier.thaw()
        self.carrier.is_frozen = True
        self.until(lambda: self.qemu.run_state != "running" and bool(self.carrier._drained))
        self.qemu._do_cont({})
        self.deliver()
        self.write(CAPACITY + 3)
        self.carrier.thaw()
        self.until(lambda: self.committed() > before)
        self.assert_protects()


class HoldTests(PrimaryCase):
    """What ftd finds that was started with another configuration."""

    def test_why_it_is_not_protected_is_told_when_it_is_let_go_on(self) -> None:
        self.new_qemu(4243, run_state="paused")
        self.marker = Stopped.ON_HOLD
        self.start(on_secondary_loss=SecondaryLoss.CONTINUE, qemu_protect=False)
        self.pass_time(0.2)
        self.assertEqual(self.qemu.run_state, "running")
        self.assert_state(VmState.UNPROTECTED, "protection is off")
