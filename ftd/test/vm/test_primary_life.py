"""ftd and QEMU come and go: ftd is killed, QEMU is another one, ftd is stopped at every moment."""

from __future__ import annotations

from collections.abc import Callable

from ftd.config import SecondaryLoss
from ftd.status import VmState
from ftd.test.vm.primary_case import DEAD_TIME, QEMU_TIME, PrimaryCase
from ftd.test.vm.primary_world import ModelGates
from ftd.testing.threads import SteppedThread
from ftd.vm import guest as guest_module
from ftd.vm.errors import QmpRefused, TrackingUnavailable
from ftd.vm.netgate import GateState, NetGateError
from ftd.vm.stop_marker import Stopped
from ftd.wire.hello import LastCheckpoint


class RestartTests(PrimaryCase):
    """ftd is killed, and the next one finds the VM as it was left."""

    def test_between_two_checkpoints(self) -> None:
        self.protected()
        self.next_checkpoint()
        before, generation = self.committed(), self.standby.headers[-1].generation
        self.crash()
        self.assertEqual(self.qemu.run_state, "running")
        self.protected()
        self.assertIsNone(self.standby.headers[before].base)
        self.assertTrue(generation)
        self.assert_protects()

    def test_at_every_step_of_a_capture(self) -> None:
        for command in ("getfd", "stop", "migrate", "cont"):
            self.protected()
            self.qemu.hold(command)
            self.until(lambda command=command: command in self.qemu.held)  # type: ignore[misc]
            self.crash()
            self.qemu.release_all()
            self.start()
            self.assertEqual(self.qemu.run_state, "running", command)
            self.assertIs(self.marker, Stopped.NOT_BY_US)
            self.connect()
            self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
            self.assert_protects()
            self.crash()

    def test_each_marker_with_each_run_state(self) -> None:
        goes_on = {
            (Stopped.FOR_CHECKPOINT, "paused"),
            (Stopped.FOR_CHECKPOINT, "postmigrate"),
            (Stopped.FOR_CHECKPOINT, "finish-migrate"),
            # They were put on hold under another configuration.
            (Stopped.ON_HOLD, "paused"),
            (Stopped.ON_HOLD, "postmigrate"),
            (Stopped.ON_HOLD, "finish-migrate"),
        }
        for marker in Stopped:
            for run_state in ("running", "paused", "postmigrate", "finish-migrate", "shutdown", "internal-error"):
                self.marker = marker
                self.qemu.run_state = run_state
                vm = self.start()
                runs = run_state == "running" or (marker, run_state) in goes_on
                self.assertEqual(self.qemu.run_state == "running", runs, (marker, run_state))
                self.assertIs(vm.state, VmState.UNPROTECTED, (marker, run_state))
                self.crash()

    def test_with_hold_what_was_on_hold_stays_so(self) -> None:
        self.marker = Stopped.ON_HOLD
        self.qemu.run_state = "paused"
        self.start(on_secondary_loss=SecondaryLoss.HOLD)
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertEqual(self.qemu.run_state, "paused")
        self.assert_state(VmState.HOLDING, "on hold, as before")
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assert_protects()

    def test_with_hold_somebody_has_let_it_go_on(self) -> None:
        self.marker = Stopped.ON_HOLD
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.assert_protects()

    def test_on_hold_and_no_longer_to_be(self) -> None:
        self.marker = Stopped.ON_HOLD
        self.qemu.run_state = "paused"
        self.start()
        self.assertEqual(self.qemu.run_state, "running")
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        self.assert_state(VmState.UNPROTECTED)
        self.connect()
        self.assert_protects()

    def test_a_migration_is_under_way(self) -> None:
        self.qemu.migration = {"status": "active"}
        self.start()
        self.assertEqual(len(self.qemu.named("migrate_cancel")), 1)
        self.connect()
        self.assert_protects()

    def test_a_migration_that_does_not_end(self) -> None:
        self.qemu.replies["query-migrate"] = {"status": "active"}
        self.start()
        self.pass_time(QEMU_TIME + 0.5)
        self.assert_state(VmState.UNPROTECTED, "a migration under way that does not end")
        del self.qemu.replies["query-migrate"]
        self.pass_time(6.0, 0.05)
        self.connect()
        self.assert_protects()


class QemuTests(PrimaryCase):
    """QEMU comes, is not as it should be, goes."""

    def test_it_cannot_be_protected_and_then_it_can(self) -> None:
        self.qemu.backends[0]["share"] = False
        self.start()
        self.assert_state(VmState.UNPROTECTED, "share=on")
        self.pass_time(DEAD_TIME, 0.05)
        self.assertTrue(self.was_seen(self.say()), "it runs, unprotected")
        self.qemu.backends[0]["share"] = True
        self.pass_time(6.0, 0.05)
        self.connect()
        self.assert_protects()

    def test_no_way_of_finding_dirty_pages(self) -> None:
        def choose(*_: object) -> object:
            raise TrackingUnavailable("write-protect: no")

        refusing = self.patch(guest_module, "choose", choose)
        self.start()
        self.assert_state(VmState.UNPROTECTED, "write-protect: no")
        refusing.restore()
        self.pass_time(6.0, 0.05)
        self.connect()
        self.assert_protects()

    def test_qmp_breaks_while_the_vm_is_looked_at(self) -> None:
        for command in ("query-status", "query-memdev", "migrate-set-capabilities", "migrate-set-parameters"):
            self.qemu.hold(command)
            self.start()
            self.assertEqual(self.qemu.held, [command])
            self.qemu._holding.clear()
            self.break_qmp()
            self.pass_time(0.5)
            self.connect()
            self.assert_protects()
            self.end()

    def test_it_dies_while_the_vm_is_looked_at_in_a_thread(self) -> None:
        self.thread = SteppedThread()
        self.start()
        self.assertEqual(self.thread.waiting, 1)
        self.kill_qemu()
        self.run_threads()
        self.pass_time(0.5)
        self.run_threads()
        self.assert_state(VmState.UNPROTECTED, "QEMU has ended; to go on start QEMU again")

    def test_the_fourth_one(self) -> None:
        self.protected()
        for pid in (5001, 5002, 5003):
            self.say()
            self.kill_qemu()
            self.pass_time(0.5)
            self.new_qemu(pid)
            self.until(lambda: self.carrier.dials)
            self.connect()
            self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
            self.assert_protects()
            self.assertEqual(self.standby.ram[0, 1], pid)

    def test_another_one_before_it_is_seen_that_the_one_before_has_ended(self) -> None:
        self.protected()
        self.next_checkpoint()
        frame = self.say()
        # A process that ends is there for a little while.
        self.processes.living[4242] = None
        self.kill_qemu()
        self.new_qemu(5001)
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assertFalse(self.was_seen(frame), "no standby knows of it, and nobody else any more")
        self.assert_protects()

    def test_another_one_is_not_heard_before_the_standby(self) -> None:
        self.start()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertTrue(self.was_seen(self.say()))
        self.kill_qemu()
        self.pass_time(0.5)
        self.new_qemu(5001)
        self.until(lambda: self.carrier.dials)
        self.assertIs(self.gates.state, GateState.CLOSED, "the standby may have taken over meanwhile")
        self.pass_time(DEAD_TIME - 0.2, 0.05)
        self.assertIs(self.gates.state, GateState.CLOSED)
        self.pass_time(0.5)
        self.assertIs(self.gates.state, GateState.OPEN)

    def test_nothing_is_let_out_while_nobody_knows_whether_it_lives(self) -> None:
        vm = self.protected()
        self.next_checkpoint()
        frame = self.say()
        self.qemu.is_silent = True
        self.break_qmp()
        self.lose()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertFalse(self.was_seen(frame))
        vm.set_protection(False, None)
        self.deliver()
        self.assertFalse(self.was_seen(frame))
        self.qemu.wake()
        self.pass_time(0.5)
        self.assertTrue(self.was_seen(frame))

    def test_another_one_while_an_ack_is_awaited(self) -> None:
        self.protected()
        self.carrier.acks = False
        frame = self.say()
        self.until(lambda: bool(self.carrier.pending))
        self.kill_qemu()
        self.pass_time(0.3)
        self.new_qemu(5001)
        self.until(lambda: self.carrier.dials)
        self.carrier.acks = True
        self.connect()
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""))
        self.assertFalse(self.was_seen(frame))
        self.assert_protects()

    def test_a_gate_that_cannot_be_set_up(self) -> None:
        def start() -> None:
            raise NetGateError("tap vm0 is busy")

        self.patch(ModelGates, "start", lambda _: start())
        self.assertIn("busy", str(self.assertRaises(NetGateError, self.new_primary)))


class StopTests(PrimaryCase):
    """ftd is stopped at every moment: `PrimaryCase` sees to it that the guest runs on and nothing is left."""

    def test_before_anything(self) -> None:
        self.new_primary()

    def test_without_qemu(self) -> None:
        self.reactor.qemus.clear()
        self.new_primary()
        self.pass_time(1.0)

    def test_while_the_gates_are_closed(self) -> None:
        self.start()

    def test_unprotected(self) -> None:
        self.start()
        self.pass_time(2 * DEAD_TIME, 0.05)

    def test_protected(self) -> None:
        self.protected()

    def test_while_the_vm_is_looked_at(self) -> None:
        for command in ("query-migrate", "query-status", "query-memdev", "migrate-set-parameters"):
            self.qemu.hold(command)
            self.start()
            self.assertEqual(self.qemu.held, [command])
            self.end()
            self.qemu.release_all()

    def test_while_the_vm_is_looked_at_in_a_thread(self) -> None:
        self.thread = SteppedThread()
        self.start()
        self.assertEqual(self.thread.waiting, 1)
        self.end()

    def test_while_it_turns_out_that_it_cannot_be_protected(self) -> None:
        def choose(*_: object) -> object:
            raise TrackingUnavailable("write-protect: no")

        self.patch(guest_module, "choose", choose)
        self.thread = SteppedThread()
        self.start()
        self.thread.step()
        self.assertEqual(self.thread.waiting, 1)
        self.end()

    def test_at_every_step_of_a_capture(self) -> None:
        for command in ("getfd", "stop", "migrate", "cont"):
            self._stops_at(lambda command=command: self._hold(command))  # type: ignore[misc]

    def _hold(self, command: str) -> None:
        self.qemu.hold(command)
        self.until(lambda: command in self.qemu.held)

    def _stops_at(self, moment: Callable[[], None]) -> None:
        vm = self.protected()
        self.next_checkpoint()
        moment()
        stopping = vm.stop()
        self.qemu.release_all()
        self.run_threads()
        self.pass_time(0.2)
        self.assert_stopped(stopping)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertIs(self.marker, Stopped.NOT_BY_US)

    def test_while_pages_are_copied(self) -> None:
        def copying() -> None:
            self.thread = SteppedThread()
            self.until(lambda: self.thread is not None and bool(self.thread.waiting))

        self._stops_at(copying)

    def test_before_an_ack(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        frame = self.say()
        self.until(lambda: bool(self.carrier.pending))
        stopping = vm.stop()
        self.pass_time(0.5)
        self.assertNoResult(stopping)
        self.carrier.acks = True
        self.deliver()
        self.assert_stopped(stopping)
        self.assertTrue(self.was_seen(frame))

    def test_before_an_ack_that_never_comes(self) -> None:
        vm = self.protected()
        self.carrier.acks = False
        self.until(lambda: bool(self.carrier.pending))
        stopping = vm.stop()
        self.lose()
        self.deliver()
        self.assert_stopped(stopping)

    def test_in_the_background(self) -> None:
        vm = self.start()
        self.carrier.is_frozen = True
        self.connect()
        stopping = vm.stop()
        self.carrier.thaw()
        self.deliver()
        self.assert_stopped(stopping)
        self.assertEqual(self.committed(), 0)

    def test_in_the_background_and_the_link_breaks(self) -> None:
        vm = self.start()
        self.carrier.is_frozen = True
        self.connect()
        stopping = vm.stop()
        self.lose()
        self.assert_stopped(stopping)

    def test_while_the_standby_is_lost(self) -> None:
        self.protected()
        self.lose()

    def test_while_checkpoints_fail(self) -> None:
        self.protected()
        self.qemu.replies["migrate"] = QmpRefused("migrate", "GenericError", "no")
        self.pass_time(0.5)

    def test_while_cont_is_refused(self) -> None:
        self.protected()
        self.qemu.replies["cont"] = QmpRefused("cont", "GenericError", "no")
        self.pass_time(0.5)
        self.guest_stands_still = True
        self.end()
        self.assertIs(self.marker, Stopped.FOR_CHECKPOINT, "the next ftd lets it go on")

    def test_while_it_is_on_hold(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.lose()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.guest_stands_still = True
        self.end()
        self.assertIs(self.marker, Stopped.ON_HOLD)

    def test_qemu_is_dead(self) -> None:
        self.protected()
        self.kill_qemu()

    def test_qemu_hangs(self) -> None:
        self.protected()
        self.qemu.is_silent = True
        self.pass_time(0.15)
        self.end()

    def test_what_the_standby_has_is_not_forgotten(self) -> None:
        vm = self.protected()
        self.assertEqual(self.standby.last, LastCheckpoint(self.carrier.generation, self.carrier.number))
        self.end()
        self.assertEqual(vm.status().checkpoint, self.carrier.number)
