"""A standby takes over, or fails to at any step; an ftd that comes after one that died on the way; and back again."""

from __future__ import annotations

import json
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import CannotKeep, NotInState
from ftd.sinks.sink import SinkError
from ftd.status import VmState

#: What a take-over does to QEMU and the gates, in order.
from ftd.test.vm.promotion_case import TAKE_OVER, PromotionCase, fails
from ftd.test.vm.standby_case import DEVICE, GENERATION, LIMIT, NOW
from ftd.testing.fake_qmp import FakeQemu
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.fence import FENCE, Fence
from ftd.vm.promotion import Promoted, PromotionMarker, Steps, become_primary
from ftd.vm.standby import VmStandby


class TakeOverTests(PromotionCase):
    """All goes well, or it is refused at once."""

    def test_the_steps(self) -> None:
        standby, qemu = self.holding()
        self.result(standby.promote())
        self.assertEqual(self.events(), TAKE_OVER)
        self.assertTrue(self.loaded == [DEVICE])
        self.assertEqual(qemu.named("announce-self"), [{"initial": 50, "max": 550, "rounds": 5, "step": 100}])
        self.check_is_promoted(standby)
        self.assertEqual(list(standby.promotion_ms), ["marker", "apply", "load", "cont", "total"])

    def test_the_marker_comes_before_qemu_hears_of_it(self) -> None:
        standby, qemu = self.holding()
        found: list[object] = []
        qemu.on_incoming = lambda _: found.append(json.loads(self.marker.read_text()))
        self.result(standby.promote())
        self.assertEqual(found, [{"time": NOW, "generation": GENERATION, "checkpoint": 5}])

    def test_the_note_comes_before_the_guest_runs(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        doing = standby.promote()
        self.pass_time()
        self.assertTrue((self.state / "guest-started").exists())
        self.assertTrue(self.gates.is_open)
        self.assertNoResult(doing)
        qemu.release_all()
        self.result(doing)

    def test_what_is_promoted(self) -> None:
        standby, _ = self.holding()
        self.result(standby.promote())
        self.assertEqual(list(standby.checkpoints()), [])
        status = standby.vm_status()
        self.assertEqual((status.generation, status.checkpoint, status.lag_ms), (GENERATION, 5, None))
        self.assertIn("has been promoted", standby.refusal())
        self.failureResultOf(self.send(standby, self.payload(6, 5)), SinkError)
        self.assertEqual(self.ram(), [1, 11])

    def test_there_is_nothing_to_take_over(self) -> None:
        standby, _ = self.ready()
        self.assertIn("no checkpoint", self.error(standby.promote(), NotInState))
        self.assertEqual(self.events(), [])

    def test_qemu_is_not_there(self) -> None:
        standby, qemu = self.holding()
        qemu.die()
        self.pass_time(0.05)
        self.assertIn("not ready", self.error(standby.promote(), NotInState))
        self.check_is_standby(standby)

    def test_the_checkpoint_does_not_fit(self) -> None:
        standby, qemu = self.holding()
        qemu.die()
        self.qemu().replies["query-uuid"] = {"UUID": "another one"}
        self.pass_time(1)
        self.assertIn("differs", self.error(standby.promote(), NotInState))
        self.check_is_standby(standby)

    def test_twice(self) -> None:
        standby, _ = self.holding()
        doing = standby.promote()
        self.assertIn("promoting", self.error(standby.promote(), NotInState, 0))
        self.result(doing)
        self.assertIn("promoted", self.error(standby.promote(), NotInState))
        self.assertEqual(self.events(), TAKE_OVER)

    def test_stopped(self) -> None:
        standby, _ = self.holding()
        self.result(standby.stop())
        self.assertEqual(self.failureResultOf(standby.promote(), NotInState).value.state, "stopped")

    def test_while_a_checkpoint_is_applied(self) -> None:
        standby, _ = self.holding()
        self.thread = SteppedThread()
        self.send(standby, self.payload(6, 5, pages={2: 22}))
        doing = standby.promote()
        self.pass_time()
        self.assertNoResult(doing)
        # The marker waits in the thread as well.
        self.thread.run()
        self.pass_time()
        self.thread.run()
        self.result(doing)
        self.assertEqual((self.ram(), standby.vm_status().checkpoint), ([1, 11, 2, 22], 6))
        self.assertEqual(self.events(), TAKE_OVER)

    def test_nothing_is_loaded_before_all_is_applied(self) -> None:
        standby, _ = self.holding()
        self.thread = SteppedThread()
        self.send(standby, self.payload(6, 5))
        standby.promote()
        marker = self.thread._waiting.pop()
        marker()
        self.pass_time()
        self.assertTrue(self.marker.exists())
        self.assertEqual(self.events(), [])

    def test_an_open_transaction_is_dropped(self) -> None:
        standby, _ = self.holding()
        standby.begin()
        standby.write(memoryview(self.payload(6, 5)))
        doing = standby.promote()
        self.failureResultOf(standby.commit(6, "", ""), SinkError)
        self.result(doing)
        self.assertEqual(standby.vm_status().checkpoint, 5)

    def test_stopping_waits_for_it(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        doing = standby.promote()
        self.pass_time()
        stopping = standby.stop()
        self.pass_time()
        self.assertNoResult(stopping)
        qemu.release_all()
        self.result(doing)
        self.result(stopping)
        self.assertEqual((qemu.run_state, qemu.is_dead), ("running", False))

    def test_announcing_does_not_matter(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["announce-self"] = QmpRefused("announce-self", "GenericError", "no NIC")
        self.result(standby.promote())
        self.check_is_promoted(standby)

    def test_what_the_guest_does_after_that(self) -> None:
        standby, qemu = self.holding()
        self.result(standby.promote())
        qemu.run_state = "shutdown"
        qemu.emit("SHUTDOWN")
        self.pass_time()
        self.assertIn("its state is shutdown", self.reason(standby))
        qemu.run_state = "running"
        qemu.emit("RESUME")
        self.pass_time()
        self.check_is_promoted(standby)
        qemu.die()
        self.pass_time()
        self.assertIn("does not answer", self.reason(standby))
        self.assertEqual(standby.vm_status().status, VmState.PROMOTED)

    def test_its_qemu_is_not_started_again(self) -> None:
        self.spawns()
        standby, qemu = self.holding(qemu_command="qemu")
        self.result(standby.promote())
        qemu.die()
        self.pass_time(5)
        self.assertEqual(self.processes.spawned, [])


class DemoteTests(PromotionCase):
    """And back again."""

    def promoted(self, qemu_command: str = "") -> tuple[VmStandby, FakeQemu]:
        """One whose guest runs."""
        standby, qemu = self.holding(qemu_command)
        self.result(standby.promote())
        self.log.clear()
        return standby, qemu

    def test_its_vm_is_ended(self) -> None:
        standby, qemu = self.promoted()
        self.result(standby.demote())
        self.assertEqual(self.events(), ["gates close", "quit"])
        self.assertTrue(qemu.is_dead)
        self.assertFalse(standby.is_promoted or self.marker.exists())
        self.assertEqual(list(standby.checkpoints()), [])
        self.assertIn("nobody listens", standby.refusal())

    def test_a_fresh_one_stands_by(self) -> None:
        self.spawns()
        standby, _ = self.promoted(qemu_command="qemu")
        self.result(standby.demote(), 2)
        self.assertEqual((standby.refusal(), len(self.processes.spawned)), ("", 1))
        self.commit(standby, 1, pages={7: 77})
        self.assertEqual(self.ram(), [7, 77])
        self.result(standby.promote())
        self.check_is_promoted(standby)

    def test_one_that_somebody_else_starts_at_once(self) -> None:
        standby, qemu = self.promoted()
        qemu.hold("quit")
        doing = standby.demote()
        self.pass_time(0.1)
        qemu.die()
        self.qemu(pid=43)
        self.result(doing, 2)
        self.assertEqual(standby.refusal(), "")
        self.commit(standby)

    def test_it_is_not_promoted(self) -> None:
        standby, qemu = self.holding()
        self.assertIn("cannot be demoted", self.error(standby.demote(), NotInState))
        self.check_is_standby(standby)
        self.assertFalse(qemu.is_dead)

    def test_while_it_is_promoted(self) -> None:
        standby, _ = self.holding()
        doing = standby.promote()
        self.assertIn("promoting", self.error(standby.demote(), NotInState, 0))
        self.result(doing)

    def test_twice(self) -> None:
        standby, _ = self.promoted()
        doing = standby.demote()
        self.assertIn("demoting", self.error(standby.demote(), NotInState, 0))
        self.assertIn("demoting", self.error(standby.promote(), NotInState, 0))
        self.result(doing)

    def test_its_qemu_is_dead_already(self) -> None:
        standby, qemu = self.promoted()
        qemu.die()
        self.pass_time(0.1)
        self.result(standby.demote())
        self.assertFalse(standby.is_promoted)

    def test_its_qemu_does_not_end(self) -> None:
        standby, qemu = self.promoted()
        qemu.replies["quit"] = {}
        error = self.error(standby.demote(), VmError, 4 * LIMIT)
        self.assertIn("process 42, does not end; kill it", error)
        self.check_is_promoted(standby)

    def test_its_qemu_hangs(self) -> None:
        standby, qemu = self.promoted()
        qemu.is_silent = True
        self.error(standby.demote(), VmError, 5 * LIMIT)
        self.assertTrue(standby.is_promoted and self.gates.is_open)
        self.assertTrue(self.marker.exists())

    def test_its_process_is_not_known_and_it_hangs(self) -> None:
        # It is in another PID namespace, which the kernel tells as process 0.
        qemu = self.qemu(pid=0)
        standby = self.standby()
        self.commit(standby)
        self.result(standby.promote())
        qemu.is_silent = True
        self.assertIn("kill it", self.error(standby.demote(), VmError, 30))
        self.assertTrue(standby.is_promoted and self.gates.is_open and self.marker.exists())

    def test_its_process_is_not_known(self) -> None:
        qemu = self.qemu(pid=0)
        standby = self.standby()
        self.commit(standby)
        self.result(standby.promote())
        self.result(standby.demote(), 30)
        self.assertTrue(qemu.is_dead)

    def test_quit_takes_too_long_and_qmp_is_there_again(self) -> None:
        standby, qemu = self.promoted()
        qemu.hold("quit")
        self.error(standby.demote(), VmError, 4 * LIMIT)
        self.check_is_promoted(standby)

    def test_what_a_guest_may_have_run_from_is_dropped(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        standby.promote().addErrback(lambda _: None)
        self.pass_time(0.1)
        qemu.die()
        self.pass_time(0.1)
        self.assertEqual(len(standby.checkpoints()), 1)
        self.result(standby.demote())
        self.assertEqual((list(standby.checkpoints()), standby.is_promoted), ([], False))

    def test_its_qemu_does_not_end_and_ftd_may_kill_it(self) -> None:
        self.spawns()
        standby, qemu = self.promoted(qemu_command="qemu")
        qemu.replies["quit"] = {}
        self.result(standby.demote(), 5 * LIMIT)
        self.assertEqual(self.processes.killed[0], 42)
        self.assertTrue(qemu.is_dead)
        self.assertEqual(standby.refusal(), "")

    def test_ftd_was_restarted_and_its_qemu_hangs(self) -> None:
        _, qemu = self.promoted()
        qemu.is_silent = True
        self.dies()
        standby = self.standby()
        self.assertIn("whether its guest runs is not known", self.error(standby.demote(), VmError, 2))
        self.assertTrue(standby.is_promoted)

    def test_the_marker_cannot_be_removed(self) -> None:
        standby, _ = self.promoted()
        self.patch(standby._marker, "remove", fails(OSError(30, "Read-only file system", "/x/promoted")))
        self.assertIn("Read-only", self.error(standby.demote(), CannotKeep))
        self.assertTrue(standby.is_promoted)
        self.assertFalse(self.gates.is_open)


class MarkerTests(SynchronousTestCase):
    """The files."""

    def setUp(self) -> None:
        self.marker = PromotionMarker(Path(self.mktemp()))

    def test_what_is_written_is_found(self) -> None:
        self.assertIsNone(self.marker.load())
        promoted = Promoted(time=1.5, generation=GENERATION, checkpoint=7)
        self.marker.write(promoted)
        self.assertEqual(self.marker.load(), promoted)
        self.marker.remove()
        self.assertIsNone(self.marker.load())

    def test_a_note_belongs_to_its_marker(self) -> None:
        self.marker.write(Promoted())
        self.assertFalse(self.marker.guest_started)
        self.marker.guest_started = True
        self.assertTrue(self.marker.guest_started)
        self.marker.remove()
        self.assertFalse(self.marker.guest_started)
        self.marker.write(Promoted())
        self.marker.guest_started = True
        self.marker.write(Promoted())
        self.assertFalse(self.marker.guest_started)

    def test_what_took_over_becomes_the_primary(self) -> None:
        directory = Path(self.mktemp())
        fence = Fence(directory / FENCE)
        fence.put_up("host-b has taken over")
        become_primary(directory)
        self.assertNotEqual(Fence(directory / FENCE).reason, "")
        marker = PromotionMarker(directory)
        marker.write(Promoted())
        marker.guest_started = True
        become_primary(directory)
        self.assertEqual(Fence(directory / FENCE).reason, "")
        self.assertIsNone(marker.load())
        self.assertFalse(marker.guest_started)

    def test_steps(self) -> None:
        times = iter((10.0, 10.001, 10.003, 10.004))
        steps = Steps(lambda: next(times))
        for step in ("a", "b", "a"):
            steps.done(step)
        found = {step: round(milliseconds, 6) for step, milliseconds in steps.milliseconds.items()}
        self.assertEqual(found, {"a": 2.0, "b": 2.0, "total": 4.0})
        self.assertEqual(str(steps), "a 2.0 ms, b 2.0 ms, total 4.0 ms")
