"""A standby that stands by: its QEMU comes, goes and is not what it should be; checkpoints come in meanwhile."""

from __future__ import annotations

from pathlib import Path

from zope.interface.verify import verifyObject

from ftd.errors import ConfigError
from ftd.interfaces import IStoringSink
from ftd.sinks.sink import SinkError
from ftd.status import VmState
from ftd.test.vm.standby_case import GENERATION, LIMIT, NOW, PAGES, StandbyCase
from ftd.testing.sink_suite import CountingProducer
from ftd.testing.threads import SteppedThread
from ftd.vm.errors import CannotProtect, VmError
from ftd.vm.ram import PAGE
from ftd.wire.errors import ErrorCode


class QemuTests(StandbyCase):
    """What the standby makes of the QEMU that is there."""

    def test_there_is_none(self) -> None:
        standby = self.standby()
        status = standby.vm_status()
        self.assertEqual(status.status, VmState.UNPROTECTED)
        self.assertIn("there is no socket /run/vm.qmp; start QEMU", status.reason)
        self.assertIn("start QEMU", standby.refusal())
        self.assertEqual((status.run_state, status.qemu_version), (None, None))
        self.assertTrue(self.changes)

    def test_it_is_made_ready(self) -> None:
        standby, qemu = self.ready()
        self.assertTrue(qemu.capabilities["x-ignore-shared"] and qemu.capabilities["events"])
        status = standby.vm_status()
        self.assertEqual((status.run_state, status.qemu_version), ("inmigrate", "7.2.22"))
        self.assertEqual(status.ram_bytes, PAGES * PAGE)
        self.assertEqual((status.status, status.lag_ms), (VmState.UNPROTECTED, None))
        self.assertIn("no checkpoint", status.reason)
        self.assertEqual(self.events(), [])

    def test_it_comes_later_and_goes_and_comes_again(self) -> None:
        standby = self.standby()
        for pid in (1, 2, 3):
            qemu = self.qemu(pid=pid)
            self.pass_time(1)
            self.assertEqual(standby.refusal(), "")
            before = self.changes
            qemu.die()
            self.pass_time(0.05)
            self.assertIn("not ready", standby.refusal())
            self.assertGreater(self.changes, before)

    def test_it_runs_a_guest(self) -> None:
        for state in ("running", "paused", "prelaunch", "postmigrate"):
            self.qemu(state)
            standby = self.standby()
            self.assertIn(f"its state is {state}", self.reason(standby))
            self.assertIn("-incoming defer", standby.refusal())
            # Nothing is done to what is not ours.
            self.assertEqual(self.events(), [])
            self.result(standby.stop())

    def test_it_waits_for_somebody_else(self) -> None:
        qemu = self.qemu()
        qemu.migration = {"socket-address": [{"type": "inet", "host": "0.0.0.0", "port": "4444"}]}
        self.assertIn("somebody else's migration", self.reason(self.standby()))

    def test_it_says_nothing(self) -> None:
        qemu = self.qemu()
        qemu.is_silent = True
        standby = self.standby()
        self.pass_time(LIMIT + 1)
        self.assertIn("has not greeted", standby.refusal())
        qemu.wake()
        self.pass_time()
        self.assertEqual(standby.refusal(), "")

    def test_it_hangs_at_every_question(self) -> None:
        questions = ("query-status", "query-migrate", "migrate-set-capabilities", "query-uuid")
        for question in questions:
            qemu = self.qemu()
            qemu.hold(question)
            standby = self.standby()
            self.assertIn("being prepared", standby.refusal())
            self.pass_time(LIMIT)
            self.assertNotEqual(standby.refusal(), "")
            qemu.release_all()
            self.pass_time(2)
            self.assertEqual(standby.refusal(), "", question)
            self.result(standby.stop())
            self.dies()

    def test_it_dies_at_every_question(self) -> None:
        for question in ("query-status", "query-migrate", "migrate-set-capabilities", "query-uuid"):
            qemu = self.qemu()
            qemu.hold(question)
            standby = self.standby()
            qemu.die()
            self.pass_time()
            self.assertIn("nobody listens", standby.refusal(), question)
            self.qemu()
            self.pass_time(1)
            self.assertEqual(standby.refusal(), "")
            self.result(standby.stop())
            self.dies()

    def test_it_cannot_be_protected(self) -> None:
        self.qemu()
        self.discovery_error = CannotProtect("its RAM is not shared; do share it")
        self.assertEqual(self.reason(self.standby()), "its RAM is not shared; do share it")

    def test_its_ram_is_not_there(self) -> None:
        self.qemu()
        Path(self.backends[0].path).unlink()
        self.assertIn("cannot be opened", self.reason(self.standby()))

    def test_an_error_of_our_own_is_logged_and_shown(self) -> None:
        self.qemu()
        self.discovery_error = RuntimeError("oops")
        self.assertEqual(self.reason(self.standby()), "oops")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_it_stays_when_ftd_stops(self) -> None:
        standby, qemu = self.ready()
        self.result(standby.stop())
        self.assertFalse(qemu.is_dead)
        self.assertEqual(self.events(), [])
        self.assertFalse(self.gates.is_started)
        self.assertIn("stopped", standby.refusal())
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_another_one_comes_while_it_is_being_prepared(self) -> None:
        qemu = self.qemu()
        self.thread = SteppedThread()
        standby = self.standby()
        self.assertEqual(self.thread.waiting, 1)
        qemu.die()
        self.make_ram_file()
        self.qemu(pid=43)
        self.pass_time(1)
        # The threads are not done in the order of the QEMUs.
        self.thread._waiting.rotate()
        self.thread.run()
        self.pass_time()
        self.thread = None
        self.commit(standby, pages={8: 88})
        self.assertEqual(self.ram(), [8, 88])
        self.result(standby.promote())

    def test_stopped_while_it_is_being_prepared(self) -> None:
        qemu = self.qemu()
        self.thread = SteppedThread()
        standby = self.standby()
        stopping = standby.stop()
        self.pass_time()
        self.thread.run()
        self.result(stopping)
        self.assertIn("stopped", standby.refusal())
        self.assertFalse(qemu.is_dead)

    def test_a_gate_that_cannot_be_set_up(self) -> None:
        self.gates.error = VmError("the tap is busy")
        standby = self.standby(is_started=False)
        self.assertRaises(VmError, standby.start)

    def test_a_directory_that_cannot_be_used(self) -> None:
        (self.root / "staging").write_text("a file")
        error = self.assertRaises(ConfigError, self.standby)
        self.assertEqual((error.section, error.key), ("pair vm", "qemu-staging-dir"))


class CheckpointTests(StandbyCase):
    """What comes in while it is ready, and while it is not."""

    def test_the_interface(self) -> None:
        self.assertTrue(verifyObject(IStoringSink, self.standby()))

    def test_a_full_one_and_deltas(self) -> None:
        standby, _ = self.ready()
        self.commit(standby, 1, pages={1: 10, 2: 20, 60: 600})
        self.assertEqual(self.ram(), [1, 10, 2, 20, 60, 600])
        self.commit(standby, 2, 1, pages={2: 21})
        checkpoint = self.commit(standby, 3, 2, pages={1: 11, 5: 50})
        self.assertEqual(self.ram(), [1, 11, 2, 21, 5, 50, 60, 600])
        self.assertEqual((checkpoint.number, checkpoint.id, checkpoint.generation), (3, 3, GENERATION))
        self.assertEqual((checkpoint.xxh3, checkpoint.committed_at), ("00000000000000aa", NOW))
        self.assertEqual(list(standby.checkpoints()), [checkpoint])
        self.assertRaises(KeyError, standby.open, 3)

    def test_a_full_one_leaves_nothing_of_before(self) -> None:
        standby, _ = self.ready()
        self.commit(standby, 1, pages={1: 10, 2: 20})
        self.commit(standby, 2, pages={2: 22})
        self.assertEqual(self.ram(), [2, 22])

    def test_the_status(self) -> None:
        standby, _ = self.ready()
        self.commit(standby, 7)
        self.now += 0.25
        status = standby.vm_status()
        self.assertEqual((status.status, status.reason), (VmState.PROTECTED, ""))
        self.assertEqual((status.generation, status.checkpoint), (GENERATION, 7))
        self.assertEqual(status.lag_ms, 250.0)
        self.assertEqual(status.checkpoint_bytes, len(self.payload(7)))
        self.assertFalse(standby.is_promoted)

    def refused(self, standby: object, payload: bytes) -> SinkError:
        failure = self.failureResultOf(self.send(standby, payload), SinkError)  # type: ignore[arg-type]
        assert isinstance(failure.value, SinkError)
        return failure.value

    def test_a_wrong_base_is_refused_and_changes_nothing(self) -> None:
        standby, _ = self.ready()
        held = self.commit(standby, 1)
        before = self.ram()
        self.assertIn("based on 4", self.refused(standby, self.payload(5, 4)).detail)
        self.assertEqual(list(standby.checkpoints()), [held])
        self.assertEqual(self.ram(), before)
        self.commit(standby, 2, 1)

    def test_another_vm_is_refused(self) -> None:
        standby, _ = self.ready()
        self.assertIn("differs", self.refused(standby, self.payload(fingerprint="0123456789abcdef")).detail)

    def test_half_a_checkpoint_is_refused(self) -> None:
        standby, _ = self.ready()
        payload = self.payload()
        for cut in (0, 10, len(payload) // 2, len(payload) - 1):
            self.refused(standby, payload[:cut])
        self.assertEqual((list(standby.checkpoints()), self.ram()), ([], []))

    def test_what_is_aborted_leaves_nothing(self) -> None:
        standby, _ = self.ready()
        standby.begin()
        standby.write(memoryview(self.payload()))
        self.assertIsNone(standby.failure())
        standby.abort()
        self.assertEqual((list(standby.checkpoints()), self.ram()), ([], []))

    def test_without_qemu(self) -> None:
        standby = self.standby()
        error = self.refused(standby, self.payload())
        self.assertEqual(error.code, ErrorCode.FLUSH)
        self.assertIn("there is no socket", error.detail)

    def test_qemu_dies_inside_of_a_transaction(self) -> None:
        standby, qemu = self.ready()
        held = self.commit(standby, 1)
        before = self.ram()
        standby.begin()
        standby.write(memoryview(self.payload(2, 1)))
        qemu.die()
        self.pass_time(0.05)
        self.assertIsNotNone(standby.failure())
        self.failureResultOf(standby.commit(2, "", ""), SinkError)
        self.assertEqual((list(standby.checkpoints()), self.ram()), ([held], before))
        # And what was committed is as good as ever for the next QEMU.
        self.qemu()
        self.pass_time(1)
        self.commit(standby, 2, 1, pages={9: 90})
        self.assertEqual(self.ram(), [3, 1, 9, 90])

    def test_it_stays_refused_when_qemu_is_back_before_its_end(self) -> None:
        standby = self.standby()
        standby.begin()
        standby.write(memoryview(self.payload()))
        self.qemu()
        self.pass_time(1)
        self.assertEqual(standby.refusal(), "")
        self.failureResultOf(standby.commit(1, "", ""), SinkError)
        self.commit(standby)

    def test_the_store_has_no_room(self) -> None:
        standby, _ = self.ready()
        self.patch(standby._store, "commit", _raise(OSError(28, "No space left on device")))
        self.assertIn("No space left", self.refused(standby, self.payload()).detail)


class ApplyTests(StandbyCase):
    """While a checkpoint is being brought into RAM, and where it cannot be."""

    def setUp(self) -> None:
        super().setUp()
        self.producer = CountingProducer()

    def started(self, ack: str) -> tuple[object, SteppedThread]:
        self.vm, self.qemu_there = self.ready(ack=ack)
        self.vm.registerProducer(self.producer, True)
        self.thread = SteppedThread()
        return self.vm, self.thread

    def test_received_is_done_at_once(self) -> None:
        _, thread = self.started("received")
        done = self.send(self.vm, self.payload())
        self.assertEqual(self.successResultOf(done).number, 1)
        self.assertEqual((self.producer.calls, self.ram()), (["pause"], []))
        thread.run()
        self.assertEqual((self.producer.calls, self.ram()), (["pause", "resume"], [3, 1]))

    def test_applied_is_done_when_it_is_in_ram(self) -> None:
        _, thread = self.started("applied")
        done = self.send(self.vm, self.payload())
        self.assertNoResult(done)
        self.assertEqual(self.producer.calls, ["pause"])
        thread.run()
        self.assertEqual(self.successResultOf(done).number, 1)
        self.assertEqual(self.producer.calls, ["pause", "resume"])

    def test_a_new_receiver_is_paused_too(self) -> None:
        _, thread = self.started("received")
        self.send(self.vm, self.payload())
        self.vm.unregisterProducer()
        second = CountingProducer()
        self.vm.registerProducer(second, True)
        self.assertEqual(second.calls, ["pause"])
        thread.run()
        self.assertEqual((second.calls, self.producer.calls), (["pause", "resume"], ["pause"]))

    def test_qemu_dies_meanwhile(self) -> None:
        _, thread = self.started("applied")
        done = self.send(self.vm, self.payload())
        self.qemu_there.die()
        self.pass_time(0.05)
        self.assertNoResult(done)
        thread.run()
        # The file is still there, and has it.
        self.assertEqual(self.successResultOf(done).number, 1)
        self.assertEqual(self.ram(), [3, 1])

    def test_the_next_qemu_waits_for_it(self) -> None:
        _, thread = self.started("received")
        self.send(self.vm, self.payload())
        self.qemu_there.die()
        self.qemu()
        self.pass_time(1)
        self.assertIn("being prepared", self.vm.refusal())
        thread.run()
        self.pass_time()
        thread.run()
        self.assertEqual((self.vm.refusal(), self.ram()), ("", [3, 1]))

    def test_qemu_dies_while_it_is_done_for_that(self) -> None:
        _, thread = self.started("received")
        self.send(self.vm, self.payload())
        self.qemu_there.die()
        thread._waiting.clear()
        self.dies()
        self.thread = thread = SteppedThread()
        qemu = self.qemu()
        self.vm = standby = self.standby()
        # Its RAM is opened.
        thread.step()
        qemu.die()
        self.pass_time(0.05)
        thread.run()
        self.pass_time(0.05)
        self.assertEqual(self.ram(), [3, 1])
        self.assertEqual(standby.vm_status().status, VmState.UNPROTECTED)
        self.assertIn("not ready", standby.refusal())

    def test_it_fails_and_is_done_again_for_the_next_qemu(self) -> None:
        for ack in ("received", "applied"):
            self.ram_error = VmError("no room for the RAM")
            standby, qemu = self.ready(ack=ack)
            done = self.send(standby, self.payload(4))
            if ack == "applied":
                self.assertIn("no room", self.failureResultOf(done, SinkError).getErrorMessage())
            else:
                self.successResultOf(done)
            self.assertIn("no room for the RAM", self.reason(standby))
            self.assertIn("not ready", standby.refusal())
            self.ram_error = None
            qemu.die()
            self.qemu()
            self.pass_time(1)
            self.assertEqual((standby.refusal(), self.ram()), ("", [3, 4]))
            self.result(standby.stop())
            self.dies()

    def test_an_error_of_our_own_is_logged(self) -> None:
        self.ram_error = RuntimeError("oops")
        standby, _ = self.ready(ack="applied")
        self.failureResultOf(self.send(standby, self.payload()), SinkError)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)


class RestartTests(StandbyCase):
    """An ftd that comes after another one."""

    def test_what_was_committed_is_there_before_qemu_is(self) -> None:
        standby, _ = self.ready()
        checkpoint = self.commit(standby, 1)
        self.dies()
        standby = self.standby(is_started=False)
        self.assertEqual(list(standby.checkpoints()), [checkpoint])
        standby.start()
        self.pass_time()
        self.assertEqual(standby.refusal(), "")
        self.commit(standby, 2, 1)

    def test_what_was_not_in_ram_is_brought_there_first(self) -> None:
        standby, _ = self.ready()
        self.thread = SteppedThread()
        self.send(standby, self.payload(1, pages={5: 55}))
        self.assertEqual(self.ram(), [])
        self.dies()
        standby = self.standby()
        self.assertEqual((standby.refusal(), self.ram()), ("", [5, 55]))

    def test_ram_in_a_new_file_is_not_what_is_held(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby, 1)
        self.commit(standby, 2, 1)
        qemu.die()
        self.make_ram_file()
        self.qemu()
        self.pass_time(1)
        self.assertEqual((standby.refusal(), list(standby.checkpoints())), ("", []))


class StrangerTests(StandbyCase):
    """Somebody else runs a guest in the standby's RAM."""

    def test_what_is_held_is_lost(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby)
        qemu.die()
        self.qemu("running")
        self.pass_time(1)
        self.assertEqual(list(standby.checkpoints()), [])
        self.assertIn("its state is running", standby.refusal())

    def test_it_has_other_ram(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby)
        qemu.die()
        self.discovery_error = CannotProtect("no shared RAM")
        self.qemu("running").replies["query-memdev"] = []
        self.pass_time(1)
        self.assertEqual(len(standby.checkpoints()), 1)

    def test_it_cannot_be_protected_and_has_the_ram(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby)
        qemu.die()
        self.discovery_error = CannotProtect("the guest writes to disks that the standby does not have")
        stranger = self.qemu("running")
        self.pass_time(1)
        self.assertEqual(list(standby.checkpoints()), [])
        self.discovery_error = None
        stranger.die()
        self.qemu()
        self.pass_time(1)
        self.assertEqual((standby.refusal(), list(standby.checkpoints())), ("", []))

    def test_it_begins_to_run_while_it_is_being_prepared(self) -> None:
        qemu = self.qemu()
        self.thread = SteppedThread()
        standby = self.standby()
        qemu.run_state = "running"
        qemu.emit("RESUME")
        self.pass_time()
        self.thread.run()
        self.pass_time()
        self.assertIn("its state is running", standby.refusal())

    def test_it_begins_to_run_while_it_stands_by(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby)
        qemu.run_state = "running"
        qemu.emit("RESUME")
        self.pass_time()
        self.assertEqual(list(standby.checkpoints()), [])
        self.assertIn("its state is running", standby.refusal())

    def test_a_vm_that_the_checkpoint_does_not_fit(self) -> None:
        standby, qemu = self.ready()
        self.commit(standby)
        qemu.die()
        self.result(standby.stop())
        self.dies()
        other = self.qemu()
        other.replies["query-uuid"] = {"UUID": "another one"}
        standby = self.standby()
        self.assertEqual(standby.vm_status().status, VmState.UNPROTECTED)
        self.assertIn("differs", self.reason(standby))
        self.assertEqual(len(standby.checkpoints()), 1)


class CommandTests(StandbyCase):
    """ftd starts the QEMU."""

    def test_it_is_started_and_made_ready(self) -> None:
        self.spawns()
        standby = self.standby(qemu_command="qemu --name 'a vm'")
        self.assertEqual(self.processes.spawned, [["qemu", "--name", "a vm"]])
        self.assertEqual(standby.refusal(), "")

    def test_it_is_not_started_where_one_is(self) -> None:
        self.spawns()
        self.ready(qemu_command="qemu")
        self.pass_time(5)
        self.assertEqual(self.processes.spawned, [])

    def test_it_is_started_again(self) -> None:
        self.spawns()
        standby = self.standby(qemu_command="qemu")
        self.commit(standby)
        for count in (2, 3):
            self.reactor.qemus["/run/vm.qmp"].die()
            self.pass_time(1)
            self.assertEqual((len(self.processes.spawned), standby.refusal()), (count, ""))
        self.commit(standby, 2, 1)

    def test_it_ends_at_once(self) -> None:
        self.processes.words = "qemu: -m 12X: bad size\n"
        self.processes.on_spawn = lambda pid: self.processes.living.pop(pid)
        standby = self.standby(qemu_command="qemu -m 12X")
        self.assertIn("bad size", self.reason(standby))
        self.assertIn("qemu-command has ended", standby.refusal())

    def test_it_stays_when_ftd_stops(self) -> None:
        self.spawns()
        standby = self.standby(qemu_command="qemu")
        self.result(standby.stop())
        self.dies()
        standby = self.standby(qemu_command="qemu")
        self.assertEqual((len(self.processes.spawned), standby.refusal()), (1, ""))
        self.assertEqual(self.processes.killed, [])


def _raise(error: Exception) -> object:
    def act(*_: object) -> None:
        raise error

    return act
