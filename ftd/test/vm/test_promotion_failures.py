"""What goes wrong in a take-over, and what a later ftd makes of one that was cut short."""

from __future__ import annotations

import json

from ftd.errors import CannotKeep
from ftd.status import VmState

#: What a take-over does to QEMU and the gates, in order.
from ftd.test.vm.promotion_case import TAKE_OVER, PromotionCase, dies, fails, tells
from ftd.test.vm.standby_case import DEVICE, GENERATION, LIMIT, NOW, QMP_PATH
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.standby import FRESH_QEMU_TIME, VmStandby


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
        qemu.on_incoming = dies
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
        qemu.replies["migrate-incoming"] = tells(qemu, "failed")
        self.assertIn("could not load", self.error(standby.promote(), VmError, 2))
        self.check_is_standby(standby)
        self.assertTrue(qemu.is_dead)

    def test_it_is_loaded_and_stays_in_inmigrate(self) -> None:
        standby, qemu = self.holding()
        qemu.replies["migrate-incoming"] = tells(qemu, "completed")
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
        qemu.on_incoming = dies
        self.patch(standby._marker, "remove", fails(OSError(30, "Read-only file system", "/x/promoted")))
        self.assertIn("Read-only", self.error(standby.promote(), VmError))
        self.assertTrue(standby.is_promoted)
        self.assertIn("cannot be taken back", self.reason(standby))

    def test_an_error_of_our_own(self) -> None:
        standby, _ = self.holding()
        self.patch(self.gates, "open", fails(RuntimeError("oops")))
        self.patch(standby._marker, "write", fails(RuntimeError("oops")))
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
        qemu.on_incoming = dies
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
            self.qemu(pid=pid).on_incoming = dies

        self.processes.on_spawn = spawn
        self.processes.words = "qemu: Unknown savevm section\n"
        standby, qemu = self.holding(qemu_command="qemu")
        qemu.on_incoming = dies
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
        qemu.on_incoming = dies
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
        qemu.on_incoming = dies
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
