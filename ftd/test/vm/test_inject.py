"""Three system calls inside another process: what is asked of the kernel, and that the process is none the worse."""

from __future__ import annotations

import errno
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from ftd.testing.tracker_suite import Guest, has_page_scan
from ftd.vm import inject
from ftd.vm.errors import TrackingUnavailable
from ftd.vm.inject import ARCHITECTURES, Refused
from ftd.vm.pagemap import NotRegistered, Pagemap
from ftd.vm.ram import PAGE, GuestRam

#: Sets up a mask of signals and a handler, then counts in a file until the end.
_COUNTING = """
import ctypes, mmap, signal, sys
ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)
with open(sys.argv[1], "r+b") as file:
    memory = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
def caught(number, frame):
    memory[1] += 1
signal.signal(signal.SIGUSR1, caught)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
print(flush=True)
while True:
    memory[0] += 1
"""

#: Runs an injection, and kills itself after so many system calls of the other process.
_KILLED = """
import os, signal, sys
from ftd.vm import inject
calls = int(sys.argv[1])
real = inject._Borrowed._call
def call(self, name, *arguments):
    global calls
    result = real(self, name, *arguments)
    calls -= 1
    if not calls:
        os.kill(os.getpid(), signal.SIGKILL)
    return result
inject._Borrowed._call = call
sys.exit(inject.main(sys.argv[2:]))
"""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class ArchitectureTests(SynchronousTestCase):
    """Registers for a system call; the layouts are those of the kernel's ``user_regs_struct`` and ``user_pt_regs``."""

    def test_x86_64(self) -> None:
        names = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"]
        names += ["orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"]
        saved = list(range(100, 127))
        made = dict(zip(names, ARCHITECTURES["x86_64"].call(saved, 0x1234, "mmap", 1, 2, 3, 4, -1, 6), strict=True))
        expected = dict(zip(names, saved, strict=True)) | {
            "rax": 9,
            "rdi": 1,
            "rsi": 2,
            "rdx": 3,
            "r10": 4,
            "r8": (1 << 64) - 1,
            "r9": 6,
            "orig_rax": (1 << 64) - 1,
            "rip": 0x1234,
        }
        self.assertEqual(made, expected)

    def test_aarch64(self) -> None:
        saved = list(range(100, 134))
        made = ARCHITECTURES["aarch64"].call(saved, 0x1234, "ioctl", 5, 6)
        self.assertEqual(made, [5, 6, *range(102, 108), 29, *range(109, 132), 0x1234, 133])

    def test_what_is_kept_is_not_changed(self) -> None:
        for architecture in ARCHITECTURES.values():
            saved = list(range(architecture.registers))
            architecture.call(saved, 1, "close", 77)
            self.assertEqual(saved, list(range(architecture.registers)))


class InjectionCase(SynchronousTestCase):
    """A process that shares a file."""

    def setUp(self) -> None:
        if platform.machine() not in ARCHITECTURES or not has_page_scan():
            raise SkipTest("not made for this kernel")
        self.guest = Guest(Path(self.mktemp()), (10, 30))
        self.addCleanup(self.guest.close)
        self.ram = GuestRam(self.guest.backends, writable=False)
        self.addCleanup(self.ram.close)
        self.spans = self.guest.spans(self.ram)
        self.ranges = [(span.start, span.end) for span in self.spans]
        self.pagemap = Pagemap(self.guest.pid)
        self.addCleanup(self.pagemap.close)

    def status(self, name: str, pid: int = 0) -> str:
        status = Path(f"/proc/{pid or self.guest.pid}/status").read_text(encoding="utf-8")
        return status.split(f"{name}:\t", 1)[1].splitlines()[0]

    def descriptors(self) -> list[str]:
        directory = Path(f"/proc/{self.guest.pid}/fd")
        return [str(each.readlink()) for each in directory.iterdir()]

    def maps(self) -> str:
        """But for the heap, which is the interpreter's."""
        lines = Path(f"/proc/{self.guest.pid}/maps").read_text(encoding="utf-8").splitlines()
        return "\n".join(line for line in lines if "[heap]" not in line)

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """What the kernel does in its own time."""
        until = time.monotonic() + 10
        while not is_so():
            self.assertTrue(time.monotonic() < until)
            os.sched_yield()

    def assert_unharmed(self) -> None:
        self.assertEqual(self.status("TracerPid"), "0")
        self.guest.write(3, 3)
        self.guest.read(3)

    def refused(self, pid: int, ranges: list[tuple[int, int]]) -> str:
        return str(self.assertRaises(TrackingUnavailable, inject.register, pid, ranges))


class InjectionTests(InjectionCase):
    """It works."""

    def test_registered(self) -> None:
        self.assertRaises(NotRegistered, self.pagemap.written, self.spans)
        inject.register(self.guest.pid, self.ranges)
        self.pagemap.written(self.spans)
        self.guest.write(9, 1)
        self.guest.write(10, 1)
        self.assertEqual(self.pagemap.written(self.spans).tolist(), [9, 10])
        self.assert_unharmed()

    def test_all_that_is_left_is_a_descriptor(self) -> None:
        descriptors, maps, blocked = self.descriptors(), self.maps(), self.status("SigBlk")
        inject.register(self.guest.pid, self.ranges)
        self.assertEqual(sorted(self.descriptors()), sorted([*descriptors, "anon_inode:[userfaultfd]"]))
        self.assertEqual(self.maps(), maps)
        self.assertEqual(self.status("SigBlk"), blocked)

    def test_the_descriptor_is_not_inherited(self) -> None:
        inject.register(self.guest.pid, self.ranges)
        (number,) = (
            each.name
            for each in Path(f"/proc/{self.guest.pid}/fd").iterdir()
            if str(each.readlink()) == "anon_inode:[userfaultfd]"
        )
        info = Path(f"/proc/{self.guest.pid}/fdinfo/{number}").read_text(encoding="utf-8")
        flags = int(info.split("flags:\t", 1)[1].split()[0], 8)
        self.assertEqual(flags & (os.O_CLOEXEC | os.O_NONBLOCK), os.O_CLOEXEC | os.O_NONBLOCK)

    def test_without_the_right_to_handle_faults_of_the_kernel(self) -> None:
        """The second attempt is with UFFD_USER_MODE_ONLY."""
        flags: list[int] = []

        class Borrowed(inject._Borrowed):
            def __init__(self) -> None:
                self._memory = os.open("/dev/null", os.O_RDWR)

            def _call(self, name: str, *arguments: int) -> int:
                if name == "userfaultfd":
                    flags.append(arguments[0])
                    if len(flags) == 1:
                        raise PermissionError(errno.EPERM, "Operation not permitted")
                return 77

        Borrowed()._register(0, [])
        self.assertEqual(flags, [os.O_CLOEXEC | os.O_NONBLOCK, os.O_CLOEXEC | os.O_NONBLOCK | 1])

    def test_a_process_that_never_waits_for_anything(self) -> None:
        """It goes on counting, gets its signals, and still has those blocked that it had."""
        process, counters = self.counting()
        blocked = self.status("SigBlk", process.pid)
        for _ in range(5):
            os.kill(process.pid, signal.SIGUSR1)
            self.assertIn("cannot be registered", self.refused(process.pid, [(PAGE, 2 * PAGE)]))
            os.kill(process.pid, signal.SIGUSR1)
        self.assertEqual(self.status("SigBlk", process.pid), blocked)
        before = int(counters[0])
        self.wait_until(lambda: int(counters[0]) > before and int(counters[1]) >= 1)
        self.assertIsNone(process.poll())

    def counting(self) -> tuple[subprocess.Popen[bytes], np.ndarray[tuple[int], np.dtype[np.uint64]]]:
        path = Path(self.mktemp()).resolve()
        path.write_bytes(bytes(PAGE))
        process = subprocess.Popen([sys.executable, "-c", _COUNTING, str(path)], stdout=subprocess.PIPE)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        assert process.stdout is not None
        process.stdout.readline()
        return process, np.memmap(path, dtype=np.uint64, mode="r")


class RefusalTests(InjectionCase):
    """It does not work, says why, and leaves the process as it was."""

    def test_memory_that_is_not_there(self) -> None:
        descriptors, maps = self.descriptors(), self.maps()
        self.assertEqual(
            self.refused(self.guest.pid, [self.ranges[0], (PAGE, 2 * PAGE)]),
            "QEMU's memory cannot be registered: Invalid argument; use another way of finding dirty pages",
        )
        self.assertEqual(sorted(self.descriptors()), sorted(descriptors))
        self.assertEqual(self.maps(), maps)
        # The first range, which could be, is not either.
        self.assertRaises(NotRegistered, self.pagemap.written, self.spans[:1])
        self.assert_unharmed()

    def test_memory_that_is_registered_already(self) -> None:
        inject.register(self.guest.pid, self.ranges)
        descriptors = self.descriptors()
        self.assertIn("is registered for something else", self.refused(self.guest.pid, self.ranges))
        self.assertEqual(sorted(self.descriptors()), sorted(descriptors))
        self.pagemap.written(self.spans)
        self.assert_unharmed()

    def test_no_such_process(self) -> None:
        process = subprocess.Popen(["true"])
        process.communicate()
        self.assertEqual(
            self.refused(process.pid, self.ranges),
            f"there is no process {process.pid} (any more): has QEMU ended?",
        )

    def test_a_process_that_is_stopped(self) -> None:
        os.kill(self.guest.pid, signal.SIGSTOP)
        os.waitpid(self.guest.pid, os.WUNTRACED)
        try:
            self.assertEqual(
                self.refused(self.guest.pid, self.ranges),
                f"QEMU, process {self.guest.pid}, is stopped by a signal: send it SIGCONT",
            )
            self.assertTrue(self.status("State").startswith("T (stopped)"))
        finally:
            os.kill(self.guest.pid, signal.SIGCONT)
        self.assert_unharmed()

    def test_a_process_that_is_stopped_meanwhile(self) -> None:
        """Seen only when it is seized."""
        os.kill(self.guest.pid, signal.SIGSTOP)
        os.waitpid(self.guest.pid, os.WUNTRACED)
        try:
            self.patch(inject, "_look_at", lambda _pid, _architecture: None)
            error = self.assertRaises(Refused, inject.inject, self.guest.pid, self.ranges)
            self.assertIn("is stopped by a signal", str(error))
            self.wait_until(lambda: self.status("State").startswith("T (stopped)"))
        finally:
            os.kill(self.guest.pid, signal.SIGCONT)
        self.assert_unharmed()

    def test_an_architecture_that_it_was_not_made_for(self) -> None:
        self.patch(platform, "machine", lambda: "riscv64")
        error = self.assertRaises(Refused, inject.inject, self.guest.pid, self.ranges)
        self.assertEqual(str(error), "not made for riscv64; made for x86_64 and aarch64")

    def test_a_program_for_another_architecture(self) -> None:
        other = {"x86_64": "aarch64", "aarch64": "x86_64"}[platform.machine()]
        self.patch(platform, "machine", lambda: other)
        error = self.assertRaises(Refused, inject.inject, self.guest.pid, self.ranges)
        self.assertIn(f"is not a program for {other}", str(error))
        self.assert_unharmed()

    def test_no_right(self) -> None:
        def seize(_thread: int) -> bool:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        self.patch(inject, "_stop", seize)
        error = self.assertRaises(Refused, inject.inject, self.guest.pid, self.ranges)
        self.assertIn("run ftd as root, or as QEMU's user with", str(error))
        self.assert_unharmed()

    def test_a_thread_that_does_not_stop(self) -> None:
        self.patch(inject, "_stop", lambda _thread: False)
        error = self.assertRaises(Refused, inject.inject, self.guest.pid, self.ranges)
        self.assertEqual(str(error), f"no thread of QEMU, process {self.guest.pid}, stopped within 0.5 s")
        self.assert_unharmed()

    def test_an_injector_that_is_killed_in_the_middle(self) -> None:
        """After each of its calls, the process goes on as if nothing had been, and the next attempt works."""
        ranges = [f"{start:x}-{end:x}" for start, end in self.ranges]
        for calls in range(1, 4):
            command = [sys.executable, "-c", _KILLED, str(calls), str(self.guest.pid), *ranges]
            done = subprocess.run(command, env=environment(), check=False)
            self.assertEqual(done.returncode, -signal.SIGKILL)
            self.assertEqual(self.status("SigBlk"), "0000000000000000")
            self.assert_unharmed()
        inject.register(self.guest.pid, self.ranges)
        self.pagemap.written(self.spans)


class InjectorTests(SynchronousTestCase):
    """The process that does it."""

    def script(self, text: str) -> str:
        path = Path(self.mktemp()).resolve()
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return str(path)

    def refused(self, limit: float = 10.0) -> str:
        return str(self.assertRaises(TrackingUnavailable, inject.register, os.getpid(), [(0x1000, 0xA0000)], limit))

    def test_what_it_is_told(self) -> None:
        self.patch(sys, "executable", self.script('echo "$@" >&2; exit 1'))
        self.assertEqual(self.refused(), f"-m ftd.vm.inject {os.getpid()} 1000-a0000")

    def test_it_cannot_be_started(self) -> None:
        self.patch(sys, "executable", "/nowhere/python")
        self.assertEqual(self.refused(), "/nowhere/python could not be started: No such file or directory")

    def test_it_says_nothing(self) -> None:
        self.patch(sys, "executable", self.script("exit 3"))
        self.assertEqual(self.refused(), "the injection ended with 3")

    def test_it_takes_too_long(self) -> None:
        """It is let finish: to kill it might leave QEMU within a system call that is not its own."""
        gate = self.mktemp()
        os.mkfifo(gate)
        done = self.mktemp()
        os.mkfifo(done)
        self.patch(sys, "executable", self.script(f"cat {os.path.abspath(gate)}; echo done > {os.path.abspath(done)}"))
        self.assertIn("did not let itself be borrowed within 0.01 s", self.refused(0.01))
        Path(gate).write_bytes(b"")
        self.assertEqual(Path(done).read_bytes(), b"done\n")
