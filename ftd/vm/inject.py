"""
Three system calls inside a running QEMU, which no other process can make for it: ``userfaultfd``, ``UFFDIO_API`` and
``UFFDIO_REGISTER`` of the guest's RAM for asynchronous write protection.

One thread of QEMU is borrowed by ``ptrace``: it is interrupted, its registers are kept, and it is let run from one
edge of a system call to the other (PTRACE_SYSCALL), out of code that QEMU has mapped anyway.  It gets its registers
back after every call, so only somebody who kills the injector within those few microseconds can hurt it; whenever else
the injector dies, the kernel detaches it and QEMU runs on.  (Not so with PTRACE_SINGLESTEP: when the tracer dies, the
kernel leaves the thread's trap flag set, and the next instruction kills QEMU.)  All signals are kept from the thread
during a call; that the kernel restarts the call which was interrupted is seen to by the detaching, which makes it look
at that once more.  The file descriptor stays open in QEMU: the registration lives as long as QEMU, whatever becomes of
ftd, and the next ftd finds it.

That is done in a process of its own (``python -m ftd.vm.inject``): ``ptrace`` is bound to a thread, stops are waited
for by ``waitpid``, which another thread of ftd might answer, and neither a busy interpreter nor the end of ftd shall
keep QEMU's thread stopped.

Rejected: gdb (not there), a signal frame (it needs a system call that has to be injected first), a preload library as
the only way (VMs that run already).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import platform
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from ftd.vm.errors import TrackingUnavailable

#: Seconds within which a thread has to stop; then another one is tried.
STOP_LIMIT: Final = 0.5

#: Threads that are tried.
THREADS: Final = 4

#: Seconds that the whole may take, the start of the interpreter included.
LIMIT: Final = 10.0

_UFFD_API: Final = 0xAA
_UFFDIO_API: Final = 0xC018AA3F
_UFFDIO_REGISTER: Final = 0xC020AA00
_UFFDIO_REGISTER_MODE_WP: Final = 2
#: WP_ASYNC: the kernel lifts the protection by itself.  WP_UNPOPULATED: pages that are not there yet are protected too.
#: WP_HUGETLBFS_SHMEM: memory that is a file.
_FEATURES: Final = 1 << 15 | 1 << 13 | 1 << 12
#: ``userfaultfd`` for those who may not have faults of the kernel's own handled; asynchronous ones never are.
_UFFD_USER_MODE_ONLY: Final = 1

_PTRACE_CONT: Final = 7
_PTRACE_DETACH: Final = 17
_PTRACE_SYSCALL: Final = 24
_PTRACE_GETREGSET: Final = 0x4204
_PTRACE_SETREGSET: Final = 0x4205
_PTRACE_SEIZE: Final = 0x4206
_PTRACE_INTERRUPT: Final = 0x4207
_PTRACE_GETSIGMASK: Final = 0x420A
_PTRACE_SETSIGMASK: Final = 0x420B
_PTRACE_EVENT_STOP: Final = 128
_PTRACE_O_TRACESYSGOOD: Final = 1
#: The stop at an edge of a system call, by that option.
_SYSCALL_STOP: Final = signal.SIGTRAP | 0x80
_NT_PRSTATUS: Final = 1
_WALL: Final = 0x40000000

#: Bytes of QEMU's memory that are borrowed for the arguments, and given back.
_SCRATCH: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.restype = ctypes.c_long
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)


@attrs.frozen
class Architecture:
    """
    How a system call is made.

    :ivar instruction: that makes it, and the multiple of bytes at which it is.
    :ivar registers: 64-bit words of ``NT_PRSTATUS``.
    :ivar number: index of the register for the number of the call; that of its ``arguments``; of its ``result``; of
        the ``program_counter``.
    :ivar unrestarted: the register that is -1 for the kernel not to restart the call it interrupted, or ``None`` where
        the kernel sees that by the program counter.
    :ivar elf_machine: ``e_machine`` of its programs.
    :ivar calls: numbers of the calls that are made.
    """

    instruction: bytes
    alignment: int
    registers: int
    number: int
    arguments: tuple[int, ...]
    result: int
    program_counter: int
    unrestarted: int | None
    elf_machine: int
    calls: Mapping[str, int]

    def call(self, saved: Sequence[int], address: int, name: str, *arguments: int) -> list[int]:
        """Registers for a thread that is to make a call, from those it has."""
        registers = list(saved)
        registers[self.number] = self.calls[name]
        for index, value in zip(self.arguments, arguments, strict=False):
            registers[index] = value % (1 << 64)
        if self.unrestarted is not None:
            registers[self.unrestarted] = (1 << 64) - 1
        registers[self.program_counter] = address
        return registers


#: ``struct user_regs_struct`` and ``struct user_pt_regs``: what ``uname -m`` says, and how calls are made there.
ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "x86_64": Architecture(
        instruction=b"\x0f\x05",
        alignment=1,
        registers=27,
        number=10,
        arguments=(14, 13, 12, 7, 9, 8),
        result=10,
        program_counter=16,
        unrestarted=15,
        elf_machine=62,
        calls={"close": 3, "mmap": 9, "munmap": 11, "ioctl": 16, "userfaultfd": 323},
    ),
    "aarch64": Architecture(
        instruction=b"\x01\x00\x00\xd4",
        alignment=4,
        registers=34,
        number=8,
        arguments=(0, 1, 2, 3, 4, 5),
        result=0,
        program_counter=32,
        unrestarted=None,
        elf_machine=183,
        calls={"close": 57, "mmap": 222, "munmap": 215, "ioctl": 29, "userfaultfd": 282},
    ),
}


def register(pid: int, ranges: Sequence[tuple[int, int]], limit: float = LIMIT) -> None:
    """
    Register memory of a process for asynchronous write protection.  Blocks for some tens of milliseconds; one thread of
    the process stands still for one or two of them.

    :param ranges: addresses: the first, and the one after the last.
    :param limit: seconds.
    :raises TrackingUnavailable: it cannot be done; the process is as it was.
    """
    command = [sys.executable, "-m", "ftd.vm.inject", str(pid)]
    command += [f"{start:x}-{end:x}" for start, end in ranges]
    # ftd may have been found by other means than the variable.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        injector = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            # What is sent to ftd's terminal or group is not for it.
            start_new_session=True,
        )
    except OSError as error:
        raise TrackingUnavailable(f"{sys.executable} could not be started: {error.strerror}") from error
    try:
        _, said = injector.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        # It is not killed: it may be within a system call of QEMU's, and gives QEMU back when that ends.
        raise TrackingUnavailable(f"QEMU, process {pid}, did not let itself be borrowed within {limit:g} s") from error
    if injector.returncode:
        lines = said.strip().splitlines()
        raise TrackingUnavailable(lines[-1] if lines else f"the injection ended with {injector.returncode}")


class Refused(Exception):
    """Why it cannot be done, for a person."""


def inject(pid: int, ranges: Sequence[tuple[int, int]]) -> None:
    """
    What `register` does, in this process.

    :raises Refused: it cannot be done; the process is as it was.
    """
    architecture = ARCHITECTURES.get(platform.machine())
    if architecture is None:
        raise Refused(f"not made for {platform.machine()}; made for {' and '.join(ARCHITECTURES)}")
    try:
        _look_at(pid, architecture)
        with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
            address = _find_instruction(pid, memory.fileno(), architecture)
            for thread in _threads(pid):
                try:
                    if _stop(thread):
                        _Borrowed(thread, memory.fileno(), address, architecture).register(ranges)
                        return
                finally:
                    # One that did not stop cannot be detached from; that comes with the end of this process.
                    with contextlib.suppress(ProcessLookupError):
                        _ptrace(_PTRACE_DETACH, thread)
    except PermissionError as error:
        raise Refused(
            f"no right to trace QEMU, process {pid}: run ftd as root, or as QEMU's user with the capability"
            " CAP_SYS_PTRACE or with kernel.yama.ptrace_scope = 0"
        ) from error
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Refused(f"there is no process {pid} (any more): has QEMU ended?") from error
    except OSError as error:
        raise Refused(f"QEMU, process {pid}, cannot be traced: {error.strerror}") from error
    raise Refused(f"no thread of QEMU, process {pid}, stopped within {STOP_LIMIT:g} s")


def _look_at(pid: int, architecture: Architecture) -> None:
    """
    :raises Refused: the process is not one whose threads can be borrowed.
    """
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    if status.get("TracerPid", "0").strip() != "0":
        raise Refused(f"QEMU, process {pid}, is being traced by process {status['TracerPid'].strip()}: detach that")
    if status.get("State", "").startswith(("T", "t")):
        raise Refused(f"QEMU, process {pid}, is stopped by a signal: send it SIGCONT")
    with open(f"/proc/{pid}/exe", "rb") as program:
        header = program.read(20)
    if header[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", header, 18)[0] != architecture.elf_machine:
        raise Refused(f"QEMU, process {pid}, is not a program for {platform.machine()}")


def _find_instruction(pid: int, memory: int, architecture: Architecture) -> int:
    """The address of an instruction that makes a system call; the vDSO has one, and so has every libc."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        lines = [line.split(maxsplit=5) for line in file]
    code = [line for line in lines if line[1].startswith("r-xp") and not line[-1].startswith("[vsyscall]")]
    code.sort(key=lambda line: (not line[-1].startswith("[vdso]"), "libc" not in line[-1]))
    for line in code:
        start, end = (int(part, 16) for part in line[0].split("-"))
        # In parts, as a QEMU has more than 10 MiB of code.
        for part in range(start, end, 1 << 20):
            data = os.pread(memory, min(end - part, 1 << 20), part)
            found = data.find(architecture.instruction)
            while found >= 0:
                if not found % architecture.alignment:
                    return part + found
                found = data.find(architecture.instruction, found + 1)
    raise Refused(f"QEMU, process {pid}, has no code that makes a system call")


def _threads(pid: int) -> list[int]:
    """Those that are tried, the main one first: it does not run the guest."""
    threads = (int(name) for name in os.listdir(f"/proc/{pid}/task"))
    return sorted(threads, key=lambda thread: (thread != pid, thread))[:THREADS]


def _stop(thread: int) -> bool:
    """
    Seize a thread and stop it; whether it did within the time limit: one that waits for a device does not.

    :raises Refused: the whole process is stopped.
    """
    _ptrace(_PTRACE_SEIZE, thread, data=_PTRACE_O_TRACESYSGOOD)
    _ptrace(_PTRACE_INTERRUPT, thread)
    until = time.monotonic() + STOP_LIMIT
    while (status := _wait(thread, until - time.monotonic())) is not None:
        if not os.WIFSTOPPED(status):
            return False
        if status >> 16 == _PTRACE_EVENT_STOP:
            if os.WSTOPSIG(status) != signal.SIGTRAP:
                raise Refused(f"QEMU, thread {thread}, is stopped by a signal: send it SIGCONT")
            return True
        # A thread that has just been sent a signal stops for that first.
        _ptrace(_PTRACE_CONT, thread, data=os.WSTOPSIG(status))
    return False


class _Borrowed:
    """A thread that is stopped, and what it does meanwhile."""

    def __init__(self, thread: int, memory: int, instruction: int, architecture: Architecture) -> None:
        self._thread = thread
        self._memory = memory
        self._instruction = instruction
        self._architecture = architecture
        self._saved = self._registers()

    def register(self, ranges: Sequence[tuple[int, int]]) -> None:
        """
        The three calls.

        :raises Refused: one of them failed; what the others did is undone.
        """
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        scratch = self._call("mmap", 0, _SCRATCH, protection, flags, -1, 0)
        try:
            self._register(scratch, ranges)
        finally:
            self._call("munmap", scratch, _SCRATCH)

    def _register(self, scratch: int, ranges: Sequence[tuple[int, int]]) -> None:
        flags = os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = self._call("userfaultfd", flags)
        except PermissionError:
            descriptor = self._call("userfaultfd", flags | _UFFD_USER_MODE_ONLY)
        try:
            os.pwrite(self._memory, struct.pack("=3Q", _UFFD_API, _FEATURES, 0), scratch)
            try:
                self._call("ioctl", descriptor, _UFFDIO_API, scratch)
            except OSError as error:
                raise Refused(
                    "the kernel has no asynchronous write protection, which came with Linux 6.7; use a newer one"
                ) from error
            for start, end in ranges:
                os.pwrite(self._memory, struct.pack("=4Q", start, end - start, _UFFDIO_REGISTER_MODE_WP, 0), scratch)
                try:
                    self._call("ioctl", descriptor, _UFFDIO_REGISTER, scratch)
                except OSError as error:
                    raise Refused(_why_unregistered(error)) from error
        except BaseException:
            # With the descriptor goes all that is registered.
            self._call("close", descriptor)
            raise

    def _call(self, name: str, *arguments: int) -> int:
        """
        :raises OSError: what the system call gives.
        """
        with _Quiet(self._thread):
            try:
                self._set_registers(self._architecture.call(self._saved, self._instruction, name, *arguments))
                self._to_edge()
                self._to_edge()
                result = self._registers()[self._architecture.result]
            finally:
                self._set_registers(self._saved)
        value = result - (1 << 64) if result >> 63 else result
        if -4096 < value < 0:
            raise OSError(-value, os.strerror(-value))
        return value

    def _to_edge(self) -> None:
        """Let it run until it enters the system call, or leaves it."""
        while True:
            _ptrace(_PTRACE_SYSCALL, self._thread)
            # However long it takes: a thread that is left within the call runs on with the wrong registers.
            status = None
            while status is None:
                status = _wait(self._thread, STOP_LIMIT)
            if not os.WIFSTOPPED(status):
                raise Refused(f"QEMU, thread {self._thread}, has ended")
            if os.WSTOPSIG(status) == _SYSCALL_STOP:
                return
            # The whole process is being stopped, or let go on: the edge is still to come.

    def _registers(self) -> list[int]:
        words = (ctypes.c_uint64 * self._architecture.registers)()
        self._transfer(_PTRACE_GETREGSET, words)
        return list(words)

    def _set_registers(self, registers: Sequence[int]) -> None:
        self._transfer(_PTRACE_SETREGSET, (ctypes.c_uint64 * len(registers))(*registers))

    def _transfer(self, request: int, words: ctypes.Array[ctypes.c_uint64]) -> None:
        vector = (ctypes.c_uint64 * 2)(ctypes.addressof(words), ctypes.sizeof(words))
        _ptrace(request, self._thread, _NT_PRSTATUS, ctypes.addressof(vector))


class _Quiet:
    """Signals wait while a thread makes a call."""

    def __init__(self, thread: int) -> None:
        self._thread = thread
        self._mask = ctypes.c_uint64()

    def __enter__(self) -> None:
        _ptrace(_PTRACE_GETSIGMASK, self._thread, 8, ctypes.addressof(self._mask))
        blocked = ctypes.c_uint64((1 << 64) - 1)
        _ptrace(_PTRACE_SETSIGMASK, self._thread, 8, ctypes.addressof(blocked))

    def __exit__(self, *_: object) -> None:
        _ptrace(_PTRACE_SETSIGMASK, self._thread, 8, ctypes.addressof(self._mask))


def _why_unregistered(error: OSError) -> str:
    if error.errno == errno.EBUSY:
        return (
            "QEMU's memory is registered for something else (a post-copy migration, a background snapshot): wait until"
            " that is over, or restart QEMU"
        )
    return f"QEMU's memory cannot be registered: {error.strerror}; use another way of finding dirty pages"


def _ptrace(request: int, thread: int, address: int = 0, data: int = 0) -> None:
    if _libc.ptrace(request, thread, address, data) == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _wait(thread: int, limit: float) -> int | None:
    """The status of a thread that has stopped, or ``None``: it has not within ``limit`` seconds."""
    until = time.monotonic() + limit
    pause = 20e-6
    while True:
        found, status = os.waitpid(thread, os.WNOHANG | _WALL)
        if found:
            return status
        if time.monotonic() >= until:
            return None
        time.sleep(pause)
        pause = min(pause * 2, 0.01)


def main(arguments: Sequence[str]) -> int:
    """``PID START-END…``, addresses in hexadecimal; why it cannot be done goes to standard error."""
    try:
        pid, *ranges = arguments
        parts = [part.partition("-") for part in ranges]
        inject(int(pid), [(int(start, 16), int(end, 16)) for start, _, end in parts])
    except Refused as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
