"""A guest that is stopped, looked at and let go on: in which order, and what is known when."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred

from ftd.test.vm.primary_case import CAPACITY, QEMU_TIME, PrimaryCase
from ftd.testing.threads import SteppedThread
from ftd.vm import guest as guest_module
from ftd.vm.errors import CannotProtect, QmpClosed, QmpError, QmpRefused, TrackingUnavailable, VmError
from ftd.vm.guest import Captured, Guest, attach, put_right
from ftd.vm.qmp import Qmp
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings


class GuestCase(PrimaryCase):
    """
    A guest that was got hold of, by nobody.

    :ivar log: commands, and when the gates were sealed.
    """

    guest_of_ftd: Guest

    def setUp(self) -> None:
        super().setUp()
        self.stop_marker = StopMarker(self.state / "stopped")
        self.qmp: Qmp = self.qemu.connect()
        self.log: list[str] = []
        original = self.qemu._do

        def log(client: Any, message: Any) -> None:
            self.log.append(message["execute"])
            original(client, message)

        self.qemu._do = log  # type: ignore[method-assign]

    def tearDown(self) -> None:
        held = getattr(self, "guest_of_ftd", None)
        if held is not None:
            held.close()
        self.stop_marker.close()
        self.qmp.hang_up()
        self.deliver()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.assertEqual(self.reactor.readers, [])
        super().tearDown()

    def attach(self, **changes: Any) -> Guest:
        """Get hold of it."""
        attaching = self._attach(**changes)
        self.run_threads()
        self.deliver()
        self.guest_of_ftd = self.successResultOf(attaching)
        self.log.clear()
        return self.guest_of_ftd

    def _attach(self, **changes: Any) -> Deferred[Guest]:
        around = VmSurroundings(
            reactor=self.reactor, run_in_thread=self._in_thread, now=self.now, ticks=self.reactor.seconds
        )
        attaching = Deferred.fromCoroutine(attach(self.qmp, self._config(changes), around, self.stop_marker))
        self.deliver()
        return attaching

    def put_right(self) -> str:
        """What a new ftd does first."""
        doing = Deferred.fromCoroutine(put_right(self.qmp, self.stop_marker, self.reactor, QEMU_TIME))
        self.pass_time(0.1)
        state: str = self.successResultOf(doing)
        return state

    def capture(self, *, resume: bool = True) -> Deferred[Captured]:
        """Take its state."""

        def seal() -> tuple[int, ...]:
            self.assertNotEqual(self.qemu.run_state, "running")
            self.log.append("seal")
            return (42,)

        capturing = Deferred.fromCoroutine(self.guest_of_ftd.capture(seal, resume=resume))
        self.deliver()
        return capturing

    def captured(self, *, resume: bool = True) -> Captured:
        """The same, which has to work."""
        return self.successResultOf(self.capture(resume=resume))


class AttachTests(GuestCase):
    """Getting hold of it."""

    def test_qemu_is_set_up(self) -> None:
        guest = self.attach()
        self.assertTrue(self.qemu.capabilities["x-ignore-shared"] and self.qemu.capabilities["events"])
        self.assertGreater(self.qemu.named("migrate-set-parameters")[0]["max-bandwidth"], 1 << 33)
        self.assertEqual((guest.is_running, guest.is_on_hold, guest.is_left_stopped), (True, False, False))

    def test_it_cannot_be_protected(self) -> None:
        self.qemu.backends[0]["share"] = False
        self.failureResultOf(self._attach(), CannotProtect)

    def test_no_tracker(self) -> None:
        def choose(*_: object) -> object:
            raise TrackingUnavailable("no")

        self.patch(guest_module, "choose", choose)
        # `PrimaryCase` sees that the RAM's file is closed.
        self.failureResultOf(self._attach(), TrackingUnavailable)

    def test_no_such_capability(self) -> None:
        del self.qemu.capabilities["x-ignore-shared"]
        self.assertIn("x-ignore-shared", str(self.failureResultOf(self._attach(), VmError).value))

    def test_everything_that_blocks_is_in_a_thread(self) -> None:
        self.thread = SteppedThread()
        attaching = self._attach()
        steps = 0
        while self.thread.waiting:
            self.thread.step()
            steps += 1
        self.assertEqual(steps, 3, "the RAM is mapped, the tracker begins, the staging memory is touched")
        self.guest_of_ftd = self.successResultOf(attaching)


class PutRightTests(GuestCase):
    """What an ftd before has left."""

    def test_stopped_for_a_checkpoint(self) -> None:
        for run_state in ("paused", "postmigrate", "finish-migrate"):
            self.stop_marker.value = Stopped.FOR_CHECKPOINT
            self.qemu.run_state = run_state
            self.assertEqual(self.put_right(), "running")
            self.assertEqual(self.qemu.run_state, "running")
            self.assertIs(self.stop_marker.value, Stopped.NOT_BY_US)

    def test_stopped_by_somebody_else(self) -> None:
        self.qemu.run_state = "paused"
        self.assertEqual(self.put_right(), "paused")

    def test_on_hold(self) -> None:
        self.stop_marker.value = Stopped.ON_HOLD
        self.qemu.run_state = "paused"
        self.assertEqual(self.put_right(), "paused")
        self.assertIs(self.stop_marker.value, Stopped.ON_HOLD)

    def test_on_hold_and_let_go_on_by_somebody(self) -> None:
        self.stop_marker.value = Stopped.ON_HOLD
        self.assertEqual(self.put_right(), "running")
        self.assertIs(self.stop_marker.value, Stopped.NOT_BY_US)

    def test_a_migration_is_ended_before(self) -> None:
        self.stop_marker.value = Stopped.FOR_CHECKPOINT
        self.qemu.migration = {"status": "active"}
        self.qemu.run_state = "finish-migrate"
        self.assertEqual(self.put_right(), "running")
        self.assertLess(self.log.index("migrate_cancel"), self.log.index("cont"))


class CaptureTests(GuestCase):
    """Stop, look, go on."""

    def test_in_order_and_what_can_be_before_it_is_stopped_is(self) -> None:
        self.attach()
        self.captured()
        self.assertEqual(self.log, ["getfd", "stop", "seal", "migrate", "cont"])

    def test_what_is_captured(self) -> None:
        self.attach()
        self.guest_of_ftd.dirty.start_over()
        self.write(3, 9)
        self.reactor.advance(2)
        captured = self.captured()
        self.assertEqual(captured.numbers.tolist(), [3, 9])
        assert captured.pages is not None
        self.assertEqual(captured.pages[:, 0].tolist(), [self.guest.ram[3, 0], self.guest.ram[9, 0]])
        self.assertIn(bytes(captured.device), self.moments)
        self.assertEqual(captured.epochs, (42,))
        self.assertEqual(captured.at, self.now())
        self.assertEqual(self.guest_of_ftd.dirty.unsent.tolist(), [3, 9], "until they are taken")

    def test_pages_are_found_while_the_device_state_is_written(self) -> None:
        self.attach()
        self.thread = SteppedThread()
        self.qemu.hold("migrate")
        capturing = self.capture()
        self.assertEqual((self.qemu.held, self.thread.waiting), (["migrate"], 1))
        self.thread.run()
        self.assertNoResult(capturing)
        self.qemu.release_all()
        self.deliver()
        self.successResultOf(capturing)

    def test_the_pause_and_its_steps(self) -> None:
        self.attach()
        self.qemu.hold("getfd", "stop", "migrate", "cont")
        capturing = self.capture()
        for seconds in (0.001, 0.002, 0.004, 0.008):
            self.reactor.advance(seconds)
            self.qemu.release()
            self.deliver()
        pause = self.successResultOf(capturing).pause
        for found, wanted in zip(
            (pause.total, pause.stop, pause.device, pause.cont), (0.014, 0.002, 0.004, 0.008), strict=True
        ):
            self.assertAlmostEqual(found, wanted)

    def test_more_than_fits(self) -> None:
        self.attach()
        self.guest_of_ftd.dirty.start_over()
        self.write(*range(20, 20 + CAPACITY))
        self.assertIsNotNone(self.captured().pages)
        self.write(50)
        captured = self.captured()
        self.assertIsNone(captured.pages)
        self.assertEqual(len(captured.numbers), CAPACITY + 1)

    def test_it_is_not_to_go_on(self) -> None:
        self.attach()
        self.captured(resume=False)
        self.assertEqual(self.qemu.run_state, "postmigrate")
        self.assertIs(self.stop_marker.value, Stopped.FOR_CHECKPOINT)
        self.assertTrue(self.guest_of_ftd.is_left_stopped)

    def test_one_on_hold_is_not_stopped(self) -> None:
        self.attach()
        Deferred.fromCoroutine(self.guest_of_ftd.stop(Stopped.ON_HOLD))
        self.deliver()
        self.log.clear()
        self.captured(resume=False)
        self.assertEqual(self.log, ["getfd", "seal", "migrate"])
        self.assertTrue(self.guest_of_ftd.is_on_hold)

    def test_one_on_hold_stays_so_when_it_fails(self) -> None:
        self.attach()
        Deferred.fromCoroutine(self.guest_of_ftd.stop(Stopped.ON_HOLD))
        self.deliver()
        self.qemu.replies["migrate"] = QmpRefused("migrate", "GenericError", "no")
        self.failureResultOf(self.capture(), QmpRefused)
        self.assertTrue(self.guest_of_ftd.is_on_hold)

    def test_one_that_somebody_has_paused(self) -> None:
        self.attach()
        self.qemu._do_stop({})
        self.deliver()
        self.assertIn("is not running but paused", str(self.failureResultOf(self.capture(), VmError).value))
        self.assertEqual(self.log, [])

    def test_the_thread_is_waited_for_when_qmp_breaks(self) -> None:
        self.attach()
        self.thread = SteppedThread()
        self.qemu.hold("migrate")
        capturing = self.capture()
        self.break_qmp()
        self.assertNoResult(capturing)
        self.thread.run()
        self.failureResultOf(capturing, QmpClosed)

    def test_a_connection_that_carries_no_files(self) -> None:
        self.attach()
        del vars(self.qemu.links[-1].client)["sendFileDescriptor"]
        self.assertIn("has to be a unix socket", str(self.failureResultOf(self.capture(), QmpError).value))
        self.assertEqual(self.log, [])

    def test_a_tracker_that_needs_it_stopped(self) -> None:
        self.collects = False
        guest = self.attach()
        self.write(4)
        finding = Deferred.fromCoroutine(guest.find_dirty())
        self.deliver()
        self.successResultOf(finding)
        self.assertEqual(self.log, ["stop", "cont"])
        self.assertIn(4, guest.dirty.unsent.tolist())

    def test_one_that_does_not(self) -> None:
        guest = self.attach()
        self.successResultOf(Deferred.fromCoroutine(guest.find_dirty()))
        self.assertEqual(self.log, [])


class EventTests(GuestCase):
    """What QEMU tells."""

    def test_the_run_state(self) -> None:
        guest = self.attach()
        ran: list[str] = []
        guest.on_running(lambda: ran.append(guest.run_state))
        for event, state in (
            ("STOP", "paused"),
            ("RESUME", "running"),
            ("SHUTDOWN", "shutdown"),
            ("GUEST_PANICKED", "guest-panicked"),
            ("RTC_CHANGE", "guest-panicked"),
        ):
            self.qemu.emit(event)
            self.deliver()
            self.assertEqual(guest.run_state, state)
        self.assertEqual(ran, ["running"])

    def test_not_after_it_was_let_go_of(self) -> None:
        guest = self.attach()
        guest.close()
        del self.guest_of_ftd
        self.qemu.emit("STOP")
        self.deliver()
        self.assertEqual(guest.run_state, "running")
