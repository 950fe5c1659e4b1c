"""A standby's QEMU as a process: when it is started, and what is said where that comes to nothing."""

from __future__ import annotations

import errno
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.standby_case import QMP_PATH, FakeProcesses
from ftd.testing.fake_qmp import FakeQemu, QmpReactor
from ftd.vm.processes import ProcessIdentity, SystemProcesses
from ftd.vm.qemu_command import LONGEST_LOG, STARTS_A_MINUTE, QemuCommand


class IdentityTests(SynchronousTestCase):
    def test_too_many_open_files_is_not_the_end_of_a_process(self) -> None:
        def refuse(*_: object, **__: object) -> str:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        self.patch(Path, "read_text", refuse)
        self.assertRaises(OSError, SystemProcesses().identity, os.getpid())


class CommandTests(SynchronousTestCase):
    """When it is started."""

    def setUp(self) -> None:
        self.reactor = QmpReactor()
        self.processes = FakeProcesses(self.reactor)
        self.directory = Path(self.mktemp())
        self.changes = 0
        self.command = self.make()
        self.starts: list[float] = []

    def make(self, text: str = "qemu -m '1 G'") -> QemuCommand:
        return QemuCommand(
            self.reactor,
            text,
            qmp_path=QMP_PATH,
            directory=self.directory,
            processes=self.processes,
            changed=self.changed,
        )

    def changed(self) -> None:
        self.changes += 1

    def ends_at_once(self, words: str = "", status: int | None = None) -> None:
        """From now on a process that is started does."""

        def spawn(pid: int) -> None:
            self.starts.append(self.reactor.seconds())
            del self.processes.living[pid]
            if status is not None:
                self.processes.statuses[pid] = status

        self.processes.words = words
        self.processes.on_spawn = spawn

    def run_for(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.reactor.advance(0.1)

    def begin(self) -> None:
        self.command.want(True)
        self.command.start()
        self.run_for(0.5)

    def test_as_soon_as_it_is_wanted(self) -> None:
        self.command.start()
        self.run_for(5)
        self.assertEqual(self.processes.spawned, [])
        self.command.want(True)
        self.run_for(0.2)
        self.assertEqual(self.processes.spawned, [["qemu", "-m", "1 G"]])
        # And once.
        self.run_for(30)
        self.assertEqual(len(self.processes.spawned), 1)

    def test_not_where_somebody_listens(self) -> None:
        qemu = self.reactor.qemus[QMP_PATH] = FakeQemu(self.reactor)
        self.begin()
        self.run_for(20)
        self.assertEqual(self.processes.spawned, [])
        qemu.die()
        self.run_for(6)
        self.assertEqual(len(self.processes.spawned), 1)

    def test_it_does_not_ask_often_who_listens(self) -> None:
        asked: list[str] = []

        def somebody_listens(path: str) -> bool:
            asked.append(path)
            return True

        self.patch(self.processes, "somebody_listens", somebody_listens)
        self.begin()
        self.run_for(9)
        self.assertEqual(asked, [QMP_PATH] * 2)

    def test_not_while_qmp_answers(self) -> None:
        self.begin()
        self.command.connected()
        self.processes.living.clear()
        self.run_for(30)
        self.assertEqual(len(self.processes.spawned), 1)
        self.command.lost()
        self.run_for(0.2)
        self.assertEqual(len(self.processes.spawned), 2)

    def test_one_that_fails_is_tried_less_and_less_often(self) -> None:
        self.ends_at_once()
        self.begin()
        self.run_for(40)
        waits = [later - earlier for earlier, later in pairwise(self.starts)]
        # The time until it is looked at comes on top.
        for wait, expected in zip(waits, (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0), strict=True):
            self.assertTrue(expected + 0.05 < wait < expected + 0.25, waits)

    def test_never_more_often_than_so_many_times_a_minute(self) -> None:
        self.ends_at_once("no luck\n")
        self.begin()
        for _ in range(550):
            # It was good every time, and ended nevertheless.
            self.command.is_good()
            self.run_for(0.1)
        self.assertEqual(len(self.starts), STARTS_A_MINUTE)
        self.assertIn("10 times in a minute", self.command.reason)
        self.assertIn("no luck", self.command.reason)
        self.run_for(10)
        self.assertGreater(len(self.starts), STARTS_A_MINUTE)
        for start in self.starts:
            within = [other for other in self.starts if start <= other < start + 60]
            self.assertLessEqual(len(within), STARTS_A_MINUTE)

    def test_being_wanted_again_is_a_new_beginning(self) -> None:
        self.ends_at_once()
        self.begin()
        self.run_for(20)
        self.command.want(False)
        before = len(self.starts)
        self.run_for(60)
        self.assertEqual((len(self.starts), self.command.reason), (before, ""))
        self.command.want(True)
        self.run_for(0.2)
        self.assertGreater(len(self.starts), before)

    def test_what_it_said_last(self) -> None:
        self.ends_at_once("a warning\nqemu: no such file\n\n", 1)
        self.begin()
        reason = self.command.reason
        self.assertIn("ended with status 1: qemu: no such file", reason)
        self.assertIn(str(self.directory / "qemu.log"), reason)
        self.assertTrue(self.changes)

    def test_what_an_earlier_one_said_is_not_told(self) -> None:
        self.ends_at_once("first\n")
        self.begin()
        self.processes.words = ""
        self.run_for(2)
        self.assertIn("it says nothing", self.command.reason)

    def test_a_signal(self) -> None:
        self.ends_at_once("", -9)
        self.begin()
        self.assertIn("by signal 9", self.command.reason)

    def test_long_and_odd_words(self) -> None:
        self.directory.mkdir()
        (self.directory / "qemu.log").write_bytes(b"x" * 100_000 + b"\xff\n")
        words = self.command.last_words()
        self.assertEqual((len(words), words[-4:]), (300, "\\xff"))

    def test_it_cannot_be_started(self) -> None:
        self.processes.error = FileNotFoundError(2, "No such file or directory", "qemu")
        self.begin()
        self.assertIn("cannot be started: qemu: No such file", self.command.reason)

    def test_it_lives_and_does_not_answer(self) -> None:
        self.processes.words = "VNC server running\n"
        self.begin()
        self.run_for(9)
        self.assertEqual(self.command.reason, "")
        self.run_for(2)
        self.assertIn("does not answer at /run/vm.qmp", self.command.reason)
        self.assertIn("VNC server", self.command.reason)
        self.command.connected()
        self.assertEqual(self.command.reason, "")

    def test_a_later_ftd_knows_it(self) -> None:
        self.begin()
        self.command.stop()
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        self.command = self.make()
        self.begin()
        self.assertEqual(len(self.processes.spawned), 1)
        self.assertEqual(self.command.process, ProcessIdentity(1001, 7007))
        # But not another process that has its number since.
        self.command.stop()
        note = self.directory / "qemu-process"
        note.write_text(note.read_text().replace("7007", "7000"))
        self.command = self.make()
        self.begin()
        self.assertEqual(len(self.processes.spawned), 2)

    def test_a_damaged_note(self) -> None:
        self.directory.mkdir()
        for text in ("", "[]", "{}", '{"pid": "x", "start": null}'):
            (self.directory / "qemu-process").write_text(text)
            self.command = self.make()
            self.begin()
            self.assertIsNotNone(self.command.process)
            self.command.stop()

    def test_the_log_does_not_grow_for_ever(self) -> None:
        self.directory.mkdir()
        (self.directory / "qemu.log").write_bytes(bytes((1 << 20) + 1))
        self.begin()
        self.assertLess((self.directory / "qemu.log").stat().st_size, 100)
        self.assertTrue((self.directory / "qemu.log.old").exists())

    def test_one_that_talks_on_and_on_does_not_fill_the_disk(self) -> None:
        self.command.want(True)
        self.command.start()
        self.reactor.advance(1)
        log = self.directory / "qemu.log"
        with log.open("ab") as file:
            file.truncate(LONGEST_LOG + 1)
            self.command.want(False)
            self.reactor.pump([1] * 11)
            file.write(b"still here\n")
        self.assertEqual((log.stat().st_size, self.command.last_words()), (11, "still here"))


class SystemProcessesTests(SynchronousTestCase):
    """Real processes."""

    def setUp(self) -> None:
        self.processes = SystemProcesses()
        self.log = Path(self.mktemp())

    def spawn(self, program: str) -> int:
        pid = self.processes.spawn([sys.executable, "-c", program], self.log)
        self.addCleanup(self.end, pid)
        return pid

    def end(self, pid: int) -> None:
        child = self.processes._children.get(pid)
        if child is not None:
            child.kill()
            child.wait()

    def test_what_it_says_and_how_it_ends(self) -> None:
        pid = self.spawn("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)")
        self.processes._children[pid].wait()
        self.assertEqual(self.log.read_text(), "out\nerr\n")
        self.assertEqual(self.processes.exit_status(pid), 3)
        self.assertIsNone(self.processes.exit_status(pid))
        self.assertIsNone(self.processes.identity(pid))

    def test_it_has_a_session_of_its_own(self) -> None:
        pid = self.spawn("input()")
        self.assertEqual(os.getsid(pid), pid)
        self.processes._children[pid].wait()

    def test_a_process_and_its_identity(self) -> None:
        pid = self.spawn("import signal; signal.pause()")
        identity = self.processes.identity(pid)
        assert identity is not None
        self.assertEqual((identity.pid, self.processes.identity(pid)), (pid, identity))
        self.assertIsNone(self.processes.exit_status(pid))
        self.processes.kill(identity)
        # A zombie has ended, though nobody has asked for its status yet.
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        self.assertIsNone(self.processes.identity(pid))
        self.assertEqual(self.processes.exit_status(pid), -9)
        self.processes.kill(identity)

    def test_another_one_that_had_its_number_is_not_killed(self) -> None:
        killed: list[object] = []
        self.patch(signal, "pidfd_send_signal", lambda *arguments: killed.append(arguments))
        identity = self.processes.identity(os.getpid())
        assert identity is not None
        self.processes.kill(ProcessIdentity(identity.pid, identity.start - 1))
        self.assertEqual(killed, [])
        self.processes.kill(identity)
        self.assertEqual(len(killed), 1)

    def test_it_cannot_be_started(self) -> None:
        self.assertRaises(OSError, self.processes.spawn, ["/nonexistent/qemu"], self.log)

    def test_nobody_listens_where_nothing_is(self) -> None:
        self.assertFalse(self.processes.somebody_listens(self.mktemp()))
