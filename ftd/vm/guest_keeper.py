"""Getting hold of the primary's VM, whenever QEMU is there, and letting go of it when it is not."""

from __future__ import annotations

from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.config import PairConfig
from ftd.errors import FtdError
from ftd.vm.background import cancel
from ftd.vm.errors import QmpClosed, QmpTimeout, VmError
from ftd.vm.guest import Guest, attach, put_right
from ftd.vm.processes import Processes, ProcessIdentity
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings
from ftd.vm.task import OneTask

#: Seconds between two looks at whether a QEMU whose QMP is gone still lives.
_CHECK_END = 0.1

#: Seconds after which a VM that cannot be protected is looked at again: somebody may have changed it.
_LOOK_AGAIN = 5.0


class GuestOwner(TypingProtocol):
    """Who wants the guest."""

    @property
    def is_fenced(self) -> bool:
        """Whether the VM must not run."""

    def qemu_found(self, is_another: bool) -> None:
        """QMP is there; ``is_another``: not of the process that was there before."""

    def attached(self, guest: Guest) -> None:
        """The VM can be protected."""

    def cannot_attach(self, why: str) -> None:
        """It cannot; it will be tried again."""

    def qemu_lost(self, why: str) -> None:
        """QMP is gone.  ``guest`` stays until `GuestKeeper.let_go`."""

    def qemu_ended(self) -> None:
        """Its process is gone too, and the VM with it."""

    async def idle(self) -> None:
        """Wait until nobody works with the guest that was there before."""


class GuestKeeper:
    """
    :ivar qmp: while QEMU is there.
    :ivar guest: the VM that can be protected; it may be one whose QMP is gone, until `let_go`.
    """

    log = Logger()

    def __init__(
        self,
        config: PairConfig,
        around: VmSurroundings,
        marker: StopMarker,
        owner: GuestOwner,
        processes: Processes,
    ) -> None:
        self.qmp: Qmp | None = None
        self.guest: Guest | None = None
        self._config = config
        self._around = around
        self._marker = marker
        self._owner = owner
        self._processes = processes
        # Whoever opened QEMU's socket: QEMU, or what started it.
        self._peer: ProcessIdentity | None = None
        self._process: ProcessIdentity | None = None
        self._again: IDelayedCall | None = None
        self._end_check: IDelayedCall | None = None
        self._is_ending = False
        # One at a time: it starts a tracker, which forgets what another one of the same QEMU has not told yet.
        self._attaching = OneTask()
        self._has_to_look_again = False
        self._connection = QmpConnection(
            around.reactor,
            config.qemu_qmp,
            limit=config.qemu_time,
            reconnect_max=config.reconnect_max,
            connected=self._connected,
            lost=self._lost,
            failed=self._not_found,
        )

    def start(self) -> None:
        """Look for QEMU."""
        self._connection.start()

    def stop(self) -> Deferred[None]:
        """Let go of the guest, which stays as it is."""
        self._is_ending = True
        cancel(self._again)
        cancel(self._end_check)
        self.let_go()
        return self._connection.stop()

    @property
    def version(self) -> str | None:
        """QEMU's."""
        return self.qmp.version if self.qmp is not None else None

    def attach(self) -> None:
        """Try to get hold of the VM, if QEMU is there."""
        qmp = self.qmp
        if self._attaching.is_busy:
            self._has_to_look_again = True
        elif qmp is not None and (self.guest is None or self.guest.qmp is not qmp):
            cancel(self._again)
            self._attaching.begin(self._attach(qmp)).addErrback(self._failed).addCallback(lambda _: self._looked())

    def _looked(self) -> None:
        again, self._has_to_look_again = self._has_to_look_again, False
        if again and not self._is_ending:
            self.attach()

    def let_go(self) -> None:
        """Nobody works with the guest any more."""
        guest, self.guest = self.guest, None
        if guest is not None:
            guest.close()

    async def keep_stopped(self) -> None:
        """See to it that the VM does not run, whoever has started it.  :raises QmpError: if QEMU does not do it."""
        qmp = self.qmp
        if qmp is not None:
            if (await qmp.execute("query-status"))["running"]:
                await qmp.execute("stop")
            self._marker.value = Stopped.NOT_BY_US

    def _connected(self, qmp: Qmp) -> None:
        self.qmp = qmp
        cancel(self._end_check)
        was = self._peer
        self._peer = self._process = self._identity(qmp.peer_pid or 0)
        self._owner.qemu_found(is_another=was is not None and was != self._peer)
        self.attach()

    def _lost(self, why: str) -> None:
        self.qmp = None
        cancel(self._again)
        self._owner.qemu_lost(why)
        self._check_end()

    def _check_end(self) -> None:
        """A QEMU that ends is there for a little while after its connections are gone."""
        process = self._process
        try:
            has_ended = process is None or self._processes.identity(process.pid) != process
        except OSError:
            # Nobody knows, and it is not to be taken for ended while it may run.
            has_ended = False
        if has_ended:
            self._owner.qemu_ended()
        else:
            self._end_check = self._around.reactor.callLater(_CHECK_END, self._check_end)

    def _identity(self, pid: int) -> ProcessIdentity | None:
        try:
            return self._processes.identity(pid)
        except OSError:
            return None

    def _not_found(self, why: str) -> None:
        if self.qmp is None and self._process is None:
            self._owner.cannot_attach(why)

    async def _attach(self, qmp: Qmp) -> None:
        try:
            if self._owner.is_fenced:
                await self.keep_stopped()
                return
            await put_right(qmp, self._marker, self._around.reactor, self._config.qemu_time)
            guest = await attach(qmp, self._config, self._around, self._marker)
        except (QmpClosed, QmpTimeout):
            # `_lost` tells of it.
            return
        except VmError as error:
            if qmp is self.qmp and not self._is_ending:
                self._owner.cannot_attach(str(error))
                self._again = self._around.reactor.callLater(_LOOK_AGAIN, self.attach)
            return
        await self._owner.idle()
        if not self._is_wanted(guest):
            guest.close()
            return
        self.guest = guest
        self._process = self._identity(guest.vm.pid) or self._process
        self.log.info(
            "VM {uuid}: QEMU {version}, {machine}, {mib} MiB, dirty pages by {tracker}",
            uuid=guest.vm.uuid,
            version=guest.vm.version,
            machine=guest.vm.machine,
            mib=guest.vm.ram_bytes >> 20,
            tracker=guest.tracker.name,
        )
        self._owner.attached(guest)

    def _is_wanted(self, guest: Guest) -> bool:
        """Whether it still is: getting hold of it has taken a while."""
        return guest.qmp is self.qmp and self.guest is None and not self._owner.is_fenced and not self._is_ending

    def _failed(self, failure: Failure) -> None:
        if failure.check(FtdError):
            self.log.warn("{error}", error=failure.value)
        else:
            self.log.failure("while getting hold of a VM", failure)
            self._owner.cannot_attach("an error in ftd; the log says which")
