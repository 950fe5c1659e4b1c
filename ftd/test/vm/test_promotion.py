"""A standby takes over, or fails to at any step; an ftd that comes after one that died on the way; and back again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import CannotKeep, NotInState
from ftd.sinks.sink import SinkError
from ftd.status import VmState
from ftd.test.vm.standby_case import DEVICE, GENERATION, LIMIT, NOW, QMP_PATH, StandbyCase
from ftd.testing.fake_qmp import FakeQemu
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.fence import FENCE, Fence
from ftd.vm.promotion import Promoted, PromotionMarker, Steps, become_primary
from ftd.vm.standby import FRESH_QEMU_TIME, VmStandby

#: What a take-over does to QEMU and the gates, in order.
TAKE_OVER = ["migrate-incoming", "gates open", "cont", "announce-self"]


class PromotionCase(StandbyCase):
    """A standby that holds a checkpoint."""

    def holding(self, qemu_command: str = "") -> tuple[VmStandby, FakeQemu]:
        """Ready, with checkpoint 5 in RAM."""
        standby, qemu = self.ready(qemu_command=qemu_command)
        self.commit(standby, 5, pages={1: 11})
        return standby, qemu

    def check_is_standby(self, standby: VmStandby) -> None:
        """Nothing of a take-over is left, and what was committed is still there."""
        self.assertFalse(standby.is_promoted)
        self.assertFalse(self.marker.exists())
        self.assertFalse(self.gates.is_open)
        self.assertEqual([checkpoint.number for checkpoint in standby.checkpoints()], [5])

    def check_is_promoted(self, standby: VmStandby) -> None:
        """It is, and its guest runs."""
        self.assertTrue(standby.is_promoted)
        self.assertTrue(self.marker.exists())
        self.assertTrue(self.gates.is_open)
        status = standby.vm_status()
        self.assertEqual((status.status, status.reason, status.run_state), (VmState.PROMOTED, "", "running"))


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


class FailureTests(PromotionCase):
    """Something fails on the way; ftd may not start another QEMU."""

    def test_the_marker_cannot_be_written(self) -> None:
        standby, _ = self.holding()
        (self.state / "promoted.partial").mkdir()
        self.assertIn("promoted.partial", self.error(standby.promote(), CannotKeep))
        self.check_is_standby(standby)
        self.assertEqual(self.events(), ["gates close"])
        self.assertEqual(standby.refusal(), "")

    def test_qemu_cannot_load_it(self) -> None:
        standby, qemu = self.holding()
        qemu.on_incoming = _dies
        self.assertIn("has not loaded the checkpoint", self.error(standby.promote(), VmError))
        self.check_is_standby(standby)
        self.assertEqual(self.events(), ["migrate-incoming", "gates close"])
        # With a QEMU that can, it is done again.
        self.qemu()
        self.pass_time(1)
        self.result(standby.promote())
        self.check_is_promoted(standby)

    def test_qemu_dies_before_each_step(self) -> None:
        for number, command in enumerate(("migrate-incoming", "query-status")):
            standby, qemu = self.holding()
            qemu.hold(command)
            doing = standby.promote()
            self.pass_time(0.1)
            self.assertEqual(qemu.held, [command], number)
            qemu.die()
            self.error(doing, VmError)
            self.check_is_standby(standby)
            self.result(standby.stop())
            self.dies()

    def test_qemu_is_gone_when_the_marker_is_written(self) -> None:
        standby, qemu = self.holding()
        self.thread = SteppedThread()
        doing = standby.promote()
        qemu.die()
        self.pass_time(0.1)
        self.thread.run()
        self.thread = None
        self.pass_time(0.1)
        self.assertIn("it is not there", self.error(doing, VmError))
        self.check_is_standby(standby)

    def test_qemu_hangs_and_cannot_be_ended(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("migrate-incoming")
        doing = standby.promote()
        self.pass_time(0.1)
        qemu.is_silent = True
        error = self.error(doing, VmError, 4 * LIMIT)
        # Nobody knows what it will do: better nobody runs the guest.
        self.assertIn("cannot be taken back", error)
        self.assertTrue(standby.is_promoted)
        self.assertTrue(self.marker.exists())
        self.assertFalse(self.gates.is_open)
        self.assertEqual(standby.vm_status().status, VmState.PROMOTED)
        self.assertIn("kill it", self.reason(standby))
        # Somebody does, and starts another: then it is finished.
        qemu.die()
        self.qemu(pid=43)
        self.pass_time(2)
        self.check_is_promoted(standby)

    def test_the_load_fails_and_qemu_lives(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["migrate-incoming"] = _tells(qemu, "failed")
        self.assertIn("could not load", self.error(standby.promote(), VmError, 2))
        self.check_is_standby(standby)
        self.assertTrue(qemu.is_dead)

    def test_it_is_loaded_and_stays_in_inmigrate(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["migrate-incoming"] = _tells(qemu, "completed")
        self.assertIn("stays in inmigrate", self.error(standby.promote(), VmError, LIMIT + 1))
        self.check_is_standby(standby)

    def test_the_load_never_ends(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["migrate-incoming"] = {}
        self.assertIn("within qemu-time", self.error(standby.promote(), VmError, LIMIT + 2))
        self.check_is_standby(standby)
        self.assertTrue(qemu.is_dead)

    def test_cont_is_refused(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["cont"] = QmpRefused("cont", "GenericError", "no")
        self.assertIn("this is a standby still", self.error(standby.promote(), VmError))
        self.check_is_standby(standby)
        self.assertEqual(self.events(), ["migrate-incoming", "gates open", "gates close", "quit"])
        self.assertFalse((self.state / "guest-started").exists())

    def test_qemu_dies_at_cont(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        doing = standby.promote()
        self.pass_time(0.1)
        qemu.die()
        self.assertIn("not known whether its guest ran", self.error(doing, VmError))
        self.assertTrue(standby.is_promoted and self.marker.exists())
        self.assertIn("not known", self.reason(standby))
        # Its RAM may be ahead of what is held: no other QEMU gets that.
        self.qemu()
        self.pass_time(2)
        self.assertIn("its guest has ended", self.reason(standby))
        self.assertTrue(self.loaded == [DEVICE])

    def test_cont_takes_too_long_and_is_done(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        doing = standby.promote()
        self.pass_time(0.1)
        qemu.run_state = "running"
        qemu._holding.clear()
        self.error(doing, VmError, LIMIT + 2)
        self.check_is_promoted(standby)

    def test_the_marker_cannot_be_removed(self) -> None:
        standby, qemu = self.holding()
        qemu.on_incoming = _dies
        self.patch(standby._marker, "remove", _fails(OSError(30, "Read-only file system", "/x/promoted")))
        self.assertIn("Read-only", self.error(standby.promote(), VmError))
        self.assertTrue(standby.is_promoted)
        self.assertIn("cannot be taken back", self.reason(standby))

    def test_an_error_of_our_own(self) -> None:
        standby, _ = self.holding()
        self.patch(self.gates, "open", _fails(RuntimeError("oops")))
        self.patch(standby._marker, "write", _fails(RuntimeError("oops")))
        self.error(standby.promote(), VmError)
        self.check_is_standby(standby)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class FreshQemuTests(PromotionCase):
    """QEMU fails on the way, and ftd may start another one."""

    def setUp(self) -> None:
        super().setUp()
        self.spawns()

    def test_a_fresh_one_loads_it(self) -> None:
        standby, qemu = self.holding(qemu_command="qemu")
        qemu.on_incoming = _dies
        self.result(standby.promote(), 2)
        self.check_is_promoted(standby)
        self.assertTrue(self.loaded == [DEVICE])
        self.assertEqual(self.events(), ["migrate-incoming", *TAKE_OVER])
        self.assertEqual(len(self.processes.spawned), 1)
        self.assertEqual(self.reactor.qemus[QMP_PATH].run_state, "running")

    def test_one_that_hangs_is_killed(self) -> None:
        standby, qemu = self.holding(qemu_command="qemu")
        qemu.hold("migrate-incoming")
        doing = standby.promote()
        self.pass_time(0.1)
        qemu.is_silent = True
        # As soon as it is clear that it hangs.
        self.result(doing, LIMIT + 2)
        self.assertEqual(self.processes.killed, [42])
        self.check_is_promoted(standby)

    def test_the_fresh_one_cannot_load_it_either(self) -> None:
        def spawn(pid: int) -> None:
            self.qemu(pid=pid).on_incoming = _dies

        self.processes.on_spawn = spawn
        self.processes.words = "qemu: Unknown savevm section\n"
        standby, qemu = self.holding(qemu_command="qemu")
        qemu.on_incoming = _dies
        self.assertIn("this is a standby still", self.error(standby.promote(), VmError, 2))
        self.check_is_standby(standby)
        self.pass_time(2)
        # There is one again, for another try.
        self.assertEqual(standby.refusal(), "")
        self.assertEqual(len(self.processes.spawned), 2)

    def test_there_is_no_fresh_one(self) -> None:
        self.processes.on_spawn = lambda pid: self.processes.living.pop(pid)
        self.processes.words = "qemu: cannot open the disk\n"
        standby, qemu = self.holding(qemu_command="qemu")
        qemu.on_incoming = _dies
        error = self.error(standby.promote(), VmError, FRESH_QEMU_TIME + 2)
        self.assertIn("no fresh QEMU", error)
        self.assertIn("cannot open the disk", error)
        self.check_is_standby(standby)


class RestartTests(PromotionCase):
    """An ftd dies at a step of the take-over, and another one comes."""

    def restarted(self, qemu_command: str = "") -> VmStandby:
        """ftd dies, another one comes."""
        self.dies()
        self.loaded.clear()
        return self.standby(qemu_command=qemu_command)

    def test_promoted(self) -> None:
        standby, _ = self.holding()
        self.result(standby.promote())
        self.dies()
        standby = self.standby(is_started=False)
        self.assertTrue(standby.is_promoted)
        standby.start()
        # Before QEMU answers: the guest may have been running all the time.
        self.assertTrue(self.gates.is_open)
        self.pass_time()
        self.check_is_promoted(standby)
        self.assertEqual(self.events(), ["gates open"])
        status = standby.vm_status()
        self.assertEqual((status.generation, status.checkpoint), (GENERATION, 5))

    def test_when_the_marker_was_written(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("migrate-incoming")
        standby.promote().addErrback(lambda _: None)
        self.pass_time(0.1)
        qemu.release_all()
        qemu._incoming_started = False
        qemu.run_state, qemu.migration = "inmigrate", {}
        standby = self.restarted()
        self.pass_time()
        self.check_is_promoted(standby)
        self.assertEqual(self.events(), TAKE_OVER)
        self.assertTrue(self.loaded == [DEVICE])

    def test_when_the_marker_was_written_and_qemu_has_gone(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("migrate-incoming")
        standby.promote().addErrback(lambda _: None)
        self.pass_time(0.1)
        qemu.die()
        self.spawns()
        standby = self.restarted(qemu_command="qemu")
        self.pass_time(1)
        self.check_is_promoted(standby)
        self.assertEqual(len(self.processes.spawned), 1)

    def test_when_it_was_loaded(self) -> None:
        _, qemu = self.holding()
        self.marker.write_text(json.dumps({"time": NOW, "generation": GENERATION, "checkpoint": 5}))
        qemu.run_state = "paused"
        standby = self.restarted()
        self.check_is_promoted(standby)
        self.assertEqual(self.events(), ["gates open", "cont", "announce-self"])

    def test_before_the_guest_was_let_run(self) -> None:
        standby, qemu = self.holding()
        qemu.hold("cont")
        standby.promote().addErrback(lambda _: None)
        self.pass_time(0.1)
        qemu._holding.clear()
        standby = self.restarted()
        self.check_is_promoted(standby)
        self.assertEqual(self.events(), ["gates open", "gates open", "cont", "announce-self"])

    def test_cont_is_refused_then(self) -> None:
        _, qemu = self.holding()
        self.marker.write_text("{}")
        qemu.run_state = "paused"
        qemu.replies["cont"] = QmpRefused("cont", "GenericError", "no")
        standby = self.restarted()
        self.assertTrue(standby.is_promoted)
        self.assertIn("cannot be let run", self.reason(standby))

    def test_it_cannot_be_finished(self) -> None:
        _, qemu = self.holding()
        self.marker.write_text("{}")
        qemu.on_incoming = _dies
        standby = self.restarted()
        self.pass_time(1)
        self.check_is_standby(standby)

    def test_somebody_pauses_a_promoted_guest(self) -> None:
        standby, qemu = self.holding()
        self.result(standby.promote())
        self.log.clear()
        qemu.run_state = "paused"
        qemu.emit("STOP")
        for link in qemu.links:
            if not link.is_over:
                link.cut(clean=True)
        self.pass_time(2)
        # That is not for ftd to undo.
        self.assertEqual(self.events(), [])
        self.assertIn("its state is paused", self.reason(standby))

    def test_the_host_was_restarted(self) -> None:
        standby, qemu = self.holding()
        self.result(standby.promote())
        qemu.die()
        (self.state / "guest-started").unlink()
        self.spawns()
        standby = self.restarted(qemu_command="qemu")
        self.pass_time(2)
        self.assertEqual(self.processes.spawned, [])
        self.assertEqual(standby.vm_status().status, VmState.PROMOTED)
        self.assertIn("nobody listens", self.reason(standby))

    def test_a_damaged_marker_is_a_marker(self) -> None:
        standby, qemu = self.holding()
        self.result(standby.promote())
        for text in ("", "[]", "{", "\x00" * 30, '{"time": "x", "generation": 1, "checkpoint": []}'):
            self.marker.write_text(text)
            standby = self.restarted()
            self.check_is_promoted(standby)
            self.assertIsNone(standby.vm_status().generation)
        self.assertFalse(qemu.is_dead)


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
        self.patch(standby._marker, "remove", _fails(OSError(30, "Read-only file system", "/x/promoted")))
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


def _dies(_: str) -> None:
    raise RuntimeError("QEMU cannot load this")


def _tells(qemu: FakeQemu, status: str) -> Callable[[object], object]:
    """A ``migrate-incoming`` of which nothing comes but an event."""

    def act(_: object) -> object:
        qemu.emit("MIGRATION", {"status": status})
        return {}

    return act


def _fails(error: Exception) -> object:
    def act(*_: object) -> None:
        raise error

    return act
