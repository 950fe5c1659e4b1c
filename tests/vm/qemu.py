"""One QEMU: its command line, its memory file, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.vm import guest as guests
from tests.vm import leash
from tests.vm.guest import Guest
from tests.vm.programs import QemuProgram
from tests.waiting import until

#: What both machines of a pair are called.
UUID = "5c4b8a52-6b0e-4f0d-9d3b-2f6d4a1f7e90"

#: The ``netdev`` of a guest that has a network.
NETDEV = "n0"

#: Where `tests.vm.guest.counter` keeps its count.
_COUNTER = 0x8000


class Qemu:
    """
    A machine, which is started here or, by its `command`, by ftd.

    The tests have a monitor of their own, ``test_monitor``, beside the one that is ftd's, ``monitor``.  Whoever starts
    it, it does not outlive the process of the tests.

    :param directory: for its sockets and what it prints.
    :param memory: a directory on tmpfs, for the file of its RAM.
    :param is_standby: whether it waits for the state of another.
    :param network_listens: whether QEMU listens on the socket of its network, or dials it.
    """

    def __init__(
        self,
        name: str,
        program: QemuProgram,
        guest: Guest,
        *,
        directory: Path,
        memory: Path,
        is_standby: bool = False,
        network_listens: bool = True,
    ) -> None:
        self.name = name
        self.guest = guest
        self.ram = memory / f"{name}.ram"
        self.monitor = directory / f"{name}.qmp"
        self.test_monitor = directory / f"{name}.test.qmp"
        self.network = directory / f"{name}.net"
        self._serial = directory / f"{name}.serial"
        self._reins = directory / f"{name}.reins"
        self._log = directory / f"{name}.log"
        self._pid_file = directory / f"{name}.pid"
        self._program = program
        self._is_standby = is_standby
        self._network_listens = network_listens
        self._process: subprocess.Popen[bytes] | None = None
        self._rein_socket: socket.socket | None = None

    @property
    def command(self) -> list[str]:
        """The command line, leash and all."""
        size = f"{self.guest.ram}M"
        return [
            *(sys.executable, leash.__file__, str(os.getpid())),
            *self._program.command,
            *("-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"),
            *("-uuid", UUID, "-m", size, "-machine", "pc,memory-backend=ram0"),
            *("-object", f"memory-backend-file,id=ram0,size={size},mem-path={self.ram},share=on"),
            *self.guest.arguments,
            *self._network_arguments(),
            *("-chardev", f"file,id=com1,path={self._serial},append=on", "-serial", "chardev:com1"),
            *("-chardev", f"socket,id=com2,path={self._reins},server=on,wait=off", "-serial", "chardev:com2"),
            *("-qmp", f"unix:{self.monitor},server=on,wait=off"),
            *("-qmp", f"unix:{self.test_monitor},server=on,wait=off"),
            *("-pidfile", str(self._pid_file)),
            *(("-incoming", "defer") if self._is_standby else ()),
        ]

    def _network_arguments(self) -> tuple[str, ...]:
        if not self.guest.nic:
            return ()
        server = "on" if self._network_listens else "off"
        netdev = f"stream,id={NETDEV},server={server},addr.type=unix,addr.path={self.network}"
        return ("-netdev", netdev, "-device", f"{self.guest.nic},netdev={NETDEV}")

    # Life

    def start(self) -> None:
        """Start it and do not wait."""
        assert self.pid is None, "it runs already"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    @property
    def pid(self) -> int | None:
        """Its process id, whoever started it; ``None`` if it does not run."""
        if self._process is not None:
            return self._process.pid if self._process.poll() is None else None
        try:
            pid = int(self._pid_file.read_text())
            return pid if str(self._pid_file).encode() in Path(f"/proc/{pid}/cmdline").read_bytes() else None
        except (OSError, ValueError):
            return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        pid = self.pid
        assert pid is not None, f"{self.name} does not run: {self.log()}"
        os.kill(pid, number)

    def kill(self) -> None:
        """``kill -9``; nothing happens if it does not run."""
        if self.pid is not None:
            self.send(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._rein_socket is not None:
            self._rein_socket.close()
            self._rein_socket = None

    def hang(self) -> None:
        """Have it do nothing any more: neither its guest nor QMP goes on, and its sockets stay open."""
        self.send(signal.SIGSTOP)

    def wake(self) -> None:
        """Have it go on after `hang`."""
        self.send(signal.SIGCONT)

    async def stand_still(self) -> None:
        """Have a boot sector with reins stop counting, and touch no memory from then on; wait until it does."""
        already = self.serial().count(guests.STILL)
        self._rein()
        await until(lambda: self.serial().count(guests.STILL) > already, f"{self.name} stands still")

    def count_on(self) -> None:
        """Let it go on."""
        self._rein()

    def _rein(self) -> None:
        if self._rein_socket is None:
            # It stays connected: QEMU forgets what it has not read yet when the other side hangs up.
            self._rein_socket = socket.socket(socket.AF_UNIX)
            self._rein_socket.connect(str(self._reins))
        self._rein_socket.sendall(b"\n")

    def remove(self) -> None:
        """Kill it and remove its memory."""
        self.kill()
        self.ram.unlink(missing_ok=True)

    # What it shows

    def log(self) -> str:
        """What QEMU itself has said, where it was started here."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def serial(self) -> str:
        """All that the guest has printed."""
        return self._serial.read_text(errors="replace") if self._serial.exists() else ""

    def counts(self) -> list[int]:
        """All counts that the boot sector has printed to the end."""
        return guests.counts(self.serial())

    def last_count(self) -> int:
        """The newest of them; 0 if there is none."""
        return (self.counts() or [0])[-1]

    def count_in_memory(self) -> int:
        """The count as it stands in the memory file: of a standby, that of the newest checkpoint applied."""
        with self.ram.open("rb") as file:
            return int.from_bytes(os.pread(file.fileno(), 4, _COUNTER), "little")

    async def until_counting(self, more: int = 20) -> None:
        """Wait until the boot sector has counted on."""
        start = self.last_count()
        await until(
            lambda: self.last_count() >= start + more,
            lambda: f"{self.name} counts on from {start}; it is at {self.last_count()} {self.log()}",
        )

    async def until_printed(self, text: str, within: float = guests.BOOT_TIME) -> None:
        """Wait until the guest has printed ``text``."""
        await until(lambda: text in self.serial(), lambda: f"{text!r} in {self.serial()[-500:]!r} {self.log()}", within)
