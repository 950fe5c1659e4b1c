"""
The QEMU of a standby: kept in reach over QMP, started where ftd is to do that, and ended when it is used up.

It comes with ``-incoming defer`` and waits in ``inmigrate``.  Found with QEMU 7.2.22 and what the rest relies on:

- Starting it leaves the files of its RAM as they are, byte for byte: also with ``-kernel``, ``-initrd``, a ``loader``
  device and when it is started again and again; so does ``system_reset``, ``quit``, and a device state that it cannot
  load.  (Without ``-incoming`` the same options overwrite RAM.)
- It loads once.  Given something that it cannot load it ends with status 1 and the reason on its standard error.
- A device that the primary does not have is not noticed by it; that is what the fingerprint is for.
- Without ``x-ignore-shared`` on this side too it ends: "Capability x-ignore-shared is off, but received … on".
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from ftd.vm.device_feed import run_state_of
from ftd.vm.discovery import Vm
from ftd.vm.errors import CannotProtect, QmpError, VmError
from ftd.vm.processes import Processes, ProcessIdentity
from ftd.vm.qemu_command import QemuCommand
from ftd.vm.qmp import Qmp

#: Seconds between two looks at a process that is about to end.
_LOOK_AGAIN = 0.01

#: Seconds that a QEMU which has not answered `quit` has to end, where ftd may kill it.
_GRACE = 0.5

_CAPABILITIES = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]


class Connection(Protocol):
    """What is used of a `ftd.vm.qmp_connection.QmpConnection`."""

    qmp: Qmp | None
    why_down: str

    def start(self) -> None:
        """Connect, and keep connected."""

    def stop(self) -> Deferred[None]:
        """Hang up."""


Connect = Callable[[Callable[[Qmp], None], Callable[[str], None], Callable[[str], None]], Connection]


async def prepare(qmp: Qmp, discover: Callable[[Qmp], Deferred[Vm]]) -> Vm:
    """
    Make a QEMU that waits ready to load what is given to it later.

    :raises CannotProtect: if it is not one that waits.
    :raises QmpError: if QMP fails.
    """
    state = await run_state_of(qmp)
    if state != "inmigrate":
        raise CannotProtect(
            f"the standby's QEMU does not wait for its take-over, its state is {state}; end it, and start it with"
            " -incoming defer"
        )
    migration = await qmp.execute("query-migrate")
    if "socket-address" in migration or migration.get("status", "none") != "none":
        raise CannotProtect(
            "the standby's QEMU waits for somebody else's migration, or has begun one; end it, and start it with"
            " -incoming defer"
        )
    await qmp.execute("migrate-set-capabilities", {"capabilities": _CAPABILITIES})
    return await discover(qmp)


class StandbyQemu:
    """
    :param connect: makes the connection from what it calls when there is one, when that is lost, and when there is
        none for another reason than before.
    :param command: what starts it; ``None`` where somebody else does.
    :param limit: seconds for it to end.
    :param arrived: QMP answers.
    :param left: it does not any more.
    :param changed: `why_absent` is another one.
    """

    def __init__(
        self,
        connect: Connect,
        command: QemuCommand | None,
        *,
        clock: Any,
        processes: Processes,
        qmp_path: str,
        limit: float,
        arrived: Callable[[Qmp], None],
        left: Callable[[str], None],
        changed: Callable[[], None],
    ) -> None:
        self.command = command
        self._clock = clock
        self._processes = processes
        self._qmp_path = qmp_path
        self._limit = limit
        self._arrived = arrived
        self._left = left
        self._process: ProcessIdentity | None = None
        self._connection = connect(self._connected, self._lost, lambda _: changed())

    @property
    def qmp(self) -> Qmp | None:
        """``None`` while it does not answer."""
        return self._connection.qmp

    @property
    def why_absent(self) -> str:
        """Why it does not answer, with what to do."""
        return (self.command.reason if self.command is not None else "") or self._connection.why_down

    def start(self) -> None:
        """Begin to look after it."""
        self._connection.start()
        if self.command is not None:
            self.command.start()

    def stop(self) -> Deferred[None]:
        """Leave it alone; it stays."""
        if self.command is not None:
            self.command.stop()
        return self._connection.stop()

    def want(self, is_wanted: bool) -> None:
        """Whether one is to be started where there is none."""
        if self.command is not None:
            self.command.want(is_wanted)

    def is_good(self) -> None:
        """It is ready for its take-over."""
        if self.command is not None:
            self.command.is_good()

    def last_words(self) -> str:
        """What it has said last, if ftd has started it."""
        return self.command.last_words() if self.command is not None else ""

    async def end(self) -> None:
        """
        End it for good, with its guest if it has one; nothing if it has ended already.  Returns when it is gone.

        One that ftd is to start, ftd may also kill.

        :raises VmError: if it lives on, or nobody knows.
        """
        qmp = self.qmp
        # Those that are there now: another one may come meanwhile.
        started = self.command.process if self.command is not None else None
        processes = {process for process in (self._process, started) if process is not None}
        is_ending = False
        if qmp is not None:
            # It may have ended before it could answer.  If it has not, that is seen below.
            with suppress(QmpError):
                await qmp.execute("quit", limit=self._limit)
                is_ending = True
            await self._until(lambda: self.qmp is not qmp, self._limit)
        # Of a QEMU in another PID namespace no process is known: it has ended when its socket is nobody's.
        is_heard = not processes and not await self._until(self._nobody_listens, self._limit if is_ending else 0.0)
        if is_heard:
            raise VmError(
                f"a QEMU listens at {self._qmp_path} and does not answer ({self._connection.why_down}): whether its"
                " guest runs is not known; kill it, and try again"
            )
        grace = _GRACE if self.command is not None and not is_ending else self._limit
        is_gone = await self._are_gone(processes, grace)
        if not is_gone and self.command is not None:
            # What is not allowed is seen below, too.
            with suppress(PermissionError):
                for process in processes:
                    self._processes.kill(process)
            is_gone = await self._are_gone(processes, self._limit)
        if not is_gone:
            numbers = ", ".join(str(process.pid) for process in processes if self._lives(process))
            raise VmError(f"QEMU, process {numbers}, does not end; kill it, and try again")
        if self.command is not None:
            self.command.is_gone()

    def _nobody_listens(self) -> bool:
        return not self._processes.somebody_listens(self._qmp_path)

    def _are_gone(self, processes: Iterable[ProcessIdentity], limit: float) -> Coroutine[Deferred[None], Any, bool]:
        return self._until(lambda: not any(map(self._lives, processes)), limit)

    def _lives(self, process: ProcessIdentity) -> bool:
        return self._processes.identity(process.pid) == process

    async def _until(self, is_so: Callable[[], bool], limit: float) -> bool:
        deadline = self._clock.seconds() + limit
        while not is_so():
            if self._clock.seconds() >= deadline:
                return False
            await deferLater(self._clock, _LOOK_AGAIN)
        return True

    def _connected(self, qmp: Qmp) -> None:
        self._process = None
        with suppress(OSError):
            self._process = self._processes.identity(qmp.peer_pid) if qmp.peer_pid else None
        if self.command is not None:
            self.command.connected()
        self._arrived(qmp)

    def _lost(self, why: str) -> None:
        if self.command is not None:
            self.command.lost()
        self._left(why)
