"""Everything that QMP and QEMU can do wrong while a checkpoint is taken: the guest runs on, and no page is lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftd.config import SecondaryLoss
from ftd.status import VmState
from ftd.test.vm.primary_case import DEAD_TIME, QEMU_TIME, PrimaryCase
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.netgate import GateState
from ftd.vm.ram import PAGE
from ftd.vm.stop_marker import Stopped

#: What a capture asks QEMU, in this order.
COMMANDS = ("getfd", "stop", "migrate", "cont")


def refuse(command: str, text: str = "no") -> QmpRefused:
    """An answer to ``command``."""
    return QmpRefused(command, "GenericError", text)


class CaptureCase(PrimaryCase):
    """A protected VM, of which the next checkpoint goes wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.protected()
        self.next_checkpoint()
        self.write(3, 5)
        self.frame = self.say()

    def assert_recovers(self) -> None:
        """It is protected again, and the standby has what was written before and since."""
        self.until(lambda: self.was_seen(self.frame))
        self.assertEqual(self.standby.ram[3, 0], self.guest.ram[3, 0])
        self.assert_protects()
        self.assertEqual(len(self.qemu.named("migrate-set-capabilities")), 1 + self._attached_again)

    _attached_again = 0


class RefusedTests(CaptureCase):
    """QEMU says no."""

    def _refuses(self, command: str, reply: object = None) -> None:
        before = self.committed()
        self.qemu.replies[command] = reply or refuse(command)
        self.until(lambda: self.vm is not None and bool(self.vm.reason))
        self.assert_state(VmState.PROTECTED, command)
        self.assertEqual(self.committed(), before)
        self.assertFalse(self.was_seen(self.frame))
        self.assertFalse(self.carrier.is_open, "a transaction is left open")
        self.assertEqual(self.reactor.readers, [], "nobody waits for the device state any more")

    def _refused(self, command: str) -> None:
        self._refuses(command)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertIs(self.marker, Stopped.NOT_BY_US)
        del self.qemu.replies[command]
        self.assert_recovers()
        self.assertTrue(all(header.base is not None for header in self.standby.headers[1:]), "no full one was needed")

    def test_getfd(self) -> None:
        self._refused("getfd")

    def test_stop(self) -> None:
        self._refused("stop")

    def test_migrate(self) -> None:
        self._refused("migrate")

    def test_cont_for_good_and_then_not(self) -> None:
        self._refuses("cont")
        self.assertIn(self.qemu.run_state, ("postmigrate", "paused"))
        self.assertIs(self.marker, Stopped.FOR_CHECKPOINT, "the next ftd lets it go on")
        del self.qemu.replies["cont"]
        self.assert_recovers()

    def test_cont_until_the_migration_is_finalized(self) -> None:
        self.qemu.not_finalized = 3
        self.assert_recovers()
        self.assertGreaterEqual(len(self.qemu.named("cont")), 4)

    def test_cont_not_finalized_for_longer_than_qemu_time(self) -> None:
        self.qemu.not_finalized = 10**9
        self.pass_time(QEMU_TIME + 0.5)
        self.assertIn("not finalized", self.told[-1][1])
        self.qemu.not_finalized = 0
        self.assert_recovers()

    def test_while_it_fails_the_attempts_become_fewer(self) -> None:
        self._refuses("migrate")
        before = len(self.qemu.named("stop"))
        self.pass_time(DEAD_TIME - 0.5)
        self.assertLessEqual(len(self.qemu.named("stop")) - before, 5)
        del self.qemu.replies["migrate"]
        self.assert_recovers()

    def test_when_it_has_failed_for_dead_time_protection_is_given_up(self) -> None:
        self._refuses("migrate")
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assertTrue(self.was_seen(self.frame))
        self.assertIs(self.gates.state, GateState.OPEN)
        assert self.vm is not None
        self.assertIs(self.vm.state, VmState.UNPROTECTED)
        self.assertIn("migrate", self.vm.reason)
        del self.qemu.replies["migrate"]
        self.until(lambda: self.told[-1][0] is VmState.PROTECTED)
        self.assert_recovers()


class HoldTests(PrimaryCase):
    """The same where the guest is to stand still rather than to be seen unprotected."""

    def test_when_it_has_failed_for_dead_time_the_guest_stands_still(self) -> None:
        self.protected(on_secondary_loss=SecondaryLoss.HOLD)
        self.qemu.replies["migrate"] = refuse("migrate")
        frame = self.say()
        self.pass_time(2 * DEAD_TIME, 0.05)
        self.assert_state(VmState.HOLDING)
        self.assertEqual(self.qemu.run_state, "paused")
        self.assertIs(self.marker, Stopped.ON_HOLD)
        self.assertFalse(self.was_seen(frame))
        del self.qemu.replies["migrate"]
        self.until(lambda: self.was_seen(frame))
        self.assert_protects()


class MigrationTests(CaptureCase):
    """``migrate`` is accepted, and then something is wrong."""

    def _goes_wrong(self, on_migrate: Callable[[str], object]) -> str:
        normal = self.qemu.on_migrate
        self.qemu.on_migrate = on_migrate
        before = self.committed()
        self.until(lambda: self.vm is not None and bool(self.vm.reason))
        why = self.told[-1][1]
        self.qemu.on_migrate = normal
        self.assertEqual(self.committed(), before)
        self.assertFalse(self.was_seen(self.frame))
        self.assertEqual(self.qemu.run_state, "running")
        return why

    def test_it_fails(self) -> None:
        def fails(_: str) -> None:
            raise ValueError("a device cannot be saved")

        self.assertIn("a device cannot be saved", self._goes_wrong(fails))
        self.assert_recovers()

    def test_it_writes_a_part_and_fails(self) -> None:
        def fails(uri: str) -> None:
            self.qemu._write_state(uri)
            raise ValueError("the disk is full")

        self.assertIn("the disk is full", self._goes_wrong(fails))
        self.assert_recovers()

    def test_nothing_is_heard_of_it(self) -> None:
        normal = self.qemu._after
        self.qemu._after = lambda *_: None  # type: ignore[method-assign]
        self.until(lambda: self.vm is not None and "within qemu-time" in self.vm.reason)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertEqual(len(self.qemu.named("migrate_cancel")), 1, "it would be in the way of the next")
        self.qemu._after = normal  # type: ignore[method-assign]
        self.assert_recovers()

    def test_it_completes_and_the_state_does_not_end(self) -> None:
        self.qemu.writes_end = False
        self.until(lambda: self.vm is not None and "within qemu-time" in self.vm.reason)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertFalse(self.was_seen(self.frame))
        self.assert_state(VmState.PROTECTED)
        self.qemu.writes_end = True
        self.assert_recovers()

    def test_the_state_is_larger_than_the_limit(self) -> None:
        self._restart(qemu_device_limit=1000)
        self.until(lambda: "qemu-device-limit" in self.told[-1][1])
        self.assertEqual(self.qemu.run_state, "running")

    def _restart(self, **changes: Any) -> None:
        self.end()
        self.standby.forget()
        self.start(**changes)
        self.connect()

    def test_the_tracker_fails(self) -> None:
        self.tracker.error = VmError("the pages cannot be found")
        self.until(lambda: "the pages cannot be found" in self.told[-1][1])
        self.assertEqual(self.qemu.run_state, "running")
        self.tracker.error = None
        self.assert_recovers()

    def test_the_tracker_has_a_bug(self) -> None:
        self.tracker.error = ZeroDivisionError()
        self.until(lambda: "the log says which" in self.told[-1][1])
        self.assertEqual(self.qemu.run_state, "running")
        self.tracker.error = None
        self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))
        self.assert_recovers()


class HangingTests(CaptureCase):
    """QEMU does not answer: its connection is given up, and another one is made."""

    def _hangs(self, command: str) -> None:
        before = self.committed()
        self.qemu.hold(command)
        self.until(lambda: command in self.qemu.held)
        self.pass_time(QEMU_TIME - 0.2)
        self.assertEqual(self.committed(), before)
        self.assertFalse(self.was_seen(self.frame))
        self.qemu._holding.clear()
        self.until(lambda: self.told[-1][0] is not VmState.PROTECTED)
        self.assertTrue(any(f"did not answer {command}" in why for _, why in self.told))
        # What was done with what is held is told before: `PrimaryCase` sees to that.
        self._attached_again = 1
        self.until(lambda: self.told[-1][0] is VmState.PROTECTED)
        self.assert_recovers()
        self.assertIsNone(self.standby.headers[before].base, "which pages are dirty is not known any more")

    def test_getfd(self) -> None:
        self._hangs("getfd")

    def test_stop(self) -> None:
        self._hangs("stop")

    def test_migrate(self) -> None:
        self._hangs("migrate")

    def test_cont(self) -> None:
        self._hangs("cont")

    def test_the_whole_of_it(self) -> None:
        self.qemu.is_silent = True
        self.pass_time(3 * QEMU_TIME)
        self.assert_state(VmState.UNPROTECTED, "QEMU")
        self.assertFalse(self.was_seen(self.frame), "nobody knows whether the guest lives")
        self.qemu.wake()
        self._attached_again = 1
        self.until(lambda: self.told[-1][0] is VmState.PROTECTED)
        self.assert_recovers()


class LostTests(CaptureCase):
    """The QMP connection breaks, or QEMU dies, at every command."""

    def _breaks(self, command: str) -> None:
        self.qemu.hold(command)
        self.until(lambda: command in self.qemu.held)
        held = len(self.qemu.held)
        self.assertEqual(held, 1)
        self.qemu._holding.clear()
        self.break_qmp()
        self.assert_state(VmState.UNPROTECTED, "QEMU has closed its QMP connection")
        self._attached_again = 1
        self.until(lambda: self.told[-1][0] is VmState.PROTECTED)
        self.assert_recovers()

    def _dies(self, command: str) -> None:
        before = self.committed()
        self.qemu.hold(command)
        self.until(lambda: command in self.qemu.held)
        self.kill_qemu()
        self.pass_time(1.0)
        self.assert_state(VmState.UNPROTECTED, "QEMU has ended; the standby has checkpoint")
        self.assertFalse(self.was_seen(self.frame))
        self.assertEqual(self.committed(), before)
        self.assertFalse(self.carrier.dials, "its standby may take over")
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assertFalse(self.was_seen(self.frame))

    def test_breaks_at_getfd(self) -> None:
        self._breaks("getfd")

    def test_breaks_at_stop(self) -> None:
        self._breaks("stop")

    def test_breaks_at_migrate(self) -> None:
        self._breaks("migrate")

    def test_breaks_at_cont(self) -> None:
        self._breaks("cont")

    def test_dies_at_getfd(self) -> None:
        self._dies("getfd")

    def test_dies_at_stop(self) -> None:
        self._dies("stop")

    def test_dies_at_migrate(self) -> None:
        self._dies("migrate")

    def test_dies_at_cont(self) -> None:
        self._dies("cont")

    def test_dies_between_two_checkpoints(self) -> None:
        self.kill_qemu()
        self.pass_time(3 * DEAD_TIME, 0.05)
        self.assertFalse(self.was_seen(self.frame))
        self.assert_state(VmState.UNPROTECTED, "QEMU has ended")

    def test_dies_while_its_pages_are_copied(self) -> None:
        self.thread = SteppedThread()
        self.until(lambda: self.thread is not None and bool(self.thread.waiting))
        self.kill_qemu()
        self.run_threads()
        self.pass_time(1.0)
        self.run_threads()
        self.assert_state(VmState.UNPROTECTED, "QEMU has ended")

    def test_another_qemu_is_started_in_its_place(self) -> None:
        self.kill_qemu()
        self.pass_time(1.0)
        self.assertEqual(self.gates.held_frames, 1)
        self.new_qemu(4343)
        self.until(lambda: self.carrier.dials)
        self.assertEqual(self.gates.held_frames, 0, "no standby knows of what the one before has said")
        self.assertFalse(self.was_seen(self.frame))
        self.pass_time(0.1)
        if not self.carrier.is_up:
            self.connect()
        self.until(lambda: self.told[-1][0] is VmState.PROTECTED)
        self.assertIsNone(self.standby.headers[-1].base if len(self.standby.headers) == 1 else None)
        self.assert_protects()


class MemoryTests(CaptureCase):
    """Dirty pages that do not fit into the staging memory."""

    def test_what_does_not_fit_is_sent_in_portions_while_the_guest_runs(self) -> None:
        self.write(*range(20, 60))
        self.assert_recovers()
        self.assertGreaterEqual(
            set(self.standby.pages_taken[1]) | set(self.standby.pages_taken[2]), {3, *range(20, 60)}
        )

    def test_a_guest_that_writes_faster_than_it_is_sent_is_kept_stopped(self) -> None:
        normal = self.qemu._do_cont

        def goes_on_writing(arguments: dict[str, Any]) -> Any:
            result = normal(arguments)
            for page in range(20, 60):
                self.guest.write(page, int(self.guest.ram[page, 0]) + 1)
            return result

        self.qemu._do_cont = goes_on_writing  # type: ignore[method-assign]
        self.write(*range(20, 60))
        before = self.committed()
        self.until(lambda: self.committed() > before + 2)
        self.assertEqual(self.qemu.run_state, "running")
        self.assertTrue(self.was_seen(self.frame))
        self.qemu._do_cont = normal  # type: ignore[method-assign]
        self.assert_recovers()

    def test_one_page_more_than_fits(self) -> None:
        assert self.vm is not None
        self.assertEqual(self.config.qemu_staging_limit, 16 * PAGE)
        for count in (15, 16, 17):
            self.write(*range(20, 20 + count))
            self.next_checkpoint()
            self.assertEqual(self.qemu.run_state, "running")
        self.assert_recovers()
