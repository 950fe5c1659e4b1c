"""
The primary side of a protected VM: when checkpoints are taken, and what happens when something dies.

Everything hangs on three things that come and go by themselves: the *guest* (QEMU is there and the VM can be
protected), the *session* (the standby is there) and whether protection is *wanted*.  `_regulate` is called at every
change and is the one place that starts the job which takes checkpoints; the job ends by itself when one of the three
is gone.

What the outside may see follows one rule.  The gates hold what the guest sends from the moment at which its first
checkpoint is taken; from then on a frame leaves with the ACK of a checkpoint that covers it, or because protection was
given up (`_give_up`), which is told in the status before anything is let out.  They are closed until the standby was
heard or ``dead-time`` has passed: it may have taken over while this host was away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.config import PairConfig, SecondaryLoss
from ftd.errors import FtdError, LinkDown, NotInState, PairFailed
from ftd.status import Commit, VmState, VmStatus
from ftd.vm.carrier import Carrier
from ftd.vm.errors import QmpClosed, QmpError, QmpTimeout, VmError
from ftd.vm.fence import Fence
from ftd.vm.gates import Gates
from ftd.vm.guest import Guest, attach, put_right
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.replication import Figures, Replication, encoding_choice
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings
from ftd.wire.hello import LastCheckpoint

#: Seconds after which a VM that cannot be protected is looked at again: somebody may have changed it.
_LOOK_AGAIN = 5.0

#: Seconds after a checkpoint that failed; doubled each time, up to the second of them.
_RETRY_FIRST, _RETRY_MOST = 0.05, 1.0


@attrs.frozen(eq=False)
class _Request:
    """A commit that the cluster manager has asked for."""

    answer: Deferred[Commit]
    limit: float | None


class VmPrimary:
    """
    :param directory: for what outlives ftd: the fence and the stop marker.
    :raises OSError: if it cannot be used.
    """

    log = Logger()

    def __init__(
        self, config: PairConfig, carrier: Carrier, around: VmSurroundings, gates: Gates, *, directory: Path
    ) -> None:
        self.state = VmState.UNPROTECTED
        self.reason = f"QEMU has not been found at {config.qemu_qmp} yet"
        self.is_wanted = config.qemu_protect
        self.interval = config.qemu_interval
        self._config = config
        self._carrier = carrier
        self._around = around
        self._gates = gates
        self._fence = Fence(directory / "fenced")
        self._marker = StopMarker(directory / "stopped")
        self._connection = QmpConnection(
            around.reactor,
            config.qemu_qmp,
            limit=config.qemu_time,
            reconnect_max=config.reconnect_max,
            connected=self._connected,
            lost=self._lost_qemu,
        )
        self._choice = encoding_choice(config)
        self._figures = Figures()
        self._qmp: Qmp | None = None
        self._guest: Guest | None = None
        self._process: int | None = None
        self._has_session = False
        self._link_problem = "the standby has not been reached yet"
        # The newest checkpoint that the standby has and from which on this guest's dirty pages are known.
        self._base: LastCheckpoint | None = None
        self._standby_has: LastCheckpoint | None = None
        self._job: Deferred[None] | None = None
        self._replication: Replication | None = None
        self._when_idle: list[Deferred[None]] = []
        self._wake: Deferred[None] | None = None
        self._next_at = 0.0
        self._requests: deque[_Request] = deque()
        self._manual_is_open = False
        self._is_ending = False
        self._contact_timer: IDelayedCall | None = None
        self._loss_timer: IDelayedCall | None = None
        self._again_timer: IDelayedCall | None = None
        self._retry_after = _RETRY_FIRST
        self._failing_since: float | None = None
        if self._fence.reason:
            self.state, self.reason = VmState.FENCED, self._fence.reason

    @property
    def is_fenced(self) -> bool:
        """Whether the VM must not run, so that there is nothing to dial for."""
        return bool(self._fence.reason)

    # Life

    def start(self) -> None:
        """Look for QEMU and let it connect its NICs.  :raises VmError: if a gate cannot be set up."""
        self._gates.start()
        self._connection.start()
        if not self.is_fenced:
            self._contact_timer = self._around.reactor.callLater(self._config.dead_time, self._no_contact)

    def stop(self) -> Deferred[None]:
        """Let go of the guest, which runs on."""
        self._is_ending = True
        for timer in (self._contact_timer, self._loss_timer, self._again_timer):
            _cancel(timer)
        self._wake_up()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._idle()
        self._detach()
        await self._connection.stop()
        await self._gates.stop()
        self._marker.close()

    # What the pair tells

    def session_opened(self, last: LastCheckpoint | None) -> None:
        """
        The standby is there.

        :param last: the newest checkpoint that it has.
        """
        self._has_session = True
        self._standby_has = last
        _cancel(self._loss_timer)
        self._loss_timer = None
        self._admit()
        self._regulate()

    def session_lost(self, why: str, silence: float) -> None:
        """
        The link is gone.

        :param silence: seconds since the standby was last heard.
        """
        was_there, self._has_session = self._has_session, False
        self._link_problem = why
        self._manual_is_open = False
        self._wake_up()
        if self.is_fenced or self._is_ending:
            return
        if was_there and self.state is VmState.PROTECTED:
            wait = max(0.0, self._config.dead_time - silence)
            self._loss_timer = self._around.reactor.callLater(wait, self._secondary_is_lost)
            self._tell(self.state, f"{why}; what the guest sends is held for {wait:.1f} s more")
        elif self._guest is not None:
            self._tell(self._state_without(self._guest), why)

    def link_problem(self, why: str) -> None:
        """A session could not be opened, and why."""
        self._link_problem = why
        if not self._has_session and self.state is VmState.UNPROTECTED and self._guest is not None:
            self._tell(self.state, why)

    def superseded(self, node: str) -> None:
        """The standby has taken over: this VM must not run any more."""
        self._spawn(self._put_up_fence(f"{node} has taken over; `promote` with force lets this VM go on all the same"))

    # What the API asks

    def begin(self) -> Deferred[int]:
        """Open a transaction of the cluster manager's."""
        return Deferred.fromCoroutine(self._begin())

    def commit(self, limit: float | None) -> Deferred[Commit]:
        """Capture, send, and wait for the ACK, ``limit`` seconds at most."""
        if not self._manual_is_open:
            self._check_manual()
            raise NotInState("no transaction is open; begin one first", self.state.value)
        self._manual_is_open = False
        request = _Request(Deferred(), limit)
        self._requests.append(request)
        self._wake_up()
        return request.answer

    def cancel(self) -> None:
        """Drop the cluster manager's transaction."""
        if not self._manual_is_open:
            raise NotInState("no transaction of the cluster manager's is open; nothing to cancel", self.state.value)
        self._manual_is_open = False
        self._carrier.cancel_transaction("the cluster manager cancelled it")

    def set_protection(self, enabled: bool | None, interval: float | None) -> Deferred[None]:
        """See `IPrimaryPair`."""
        if self._manual_is_open:
            raise NotInState("a transaction is open; commit or cancel it first", self.state.value)
        if interval is not None:
            self.interval = interval
            self._next_at = self._around.reactor.seconds()
        self._wake_up()
        if enabled is None or enabled == self.is_wanted:
            self._carrier.changed()
            return succeed(None)
        self.is_wanted = enabled
        if enabled:
            self._regulate()
            self._carrier.changed()
            return succeed(None)
        return Deferred.fromCoroutine(self._do_without())

    def demote(self) -> Deferred[None]:
        """Commit what there is, and stop the VM for good."""
        if self.is_fenced:
            raise NotInState(f"the VM is stopped for good already: {self._fence.reason}", self.state.value)
        return Deferred.fromCoroutine(self._demote())

    def promote(self, force: bool) -> Deferred[None]:
        """Let a fenced VM go on: the operator knows that no other one runs."""
        if not self.is_fenced:
            raise NotInState("this is the primary: its VM runs here already", self.state.value)
        if not force:
            raise NotInState(
                f"the VM is fenced: {self._fence.reason}; with force it goes on, which is right only if it runs"
                " nowhere else",
                self.state.value,
            )
        return Deferred.fromCoroutine(self._take_down_fence())

    def status(self) -> VmStatus:
        """For the API."""
        guest, figures = self._guest, self._figures
        at = figures.committed_at
        is_current = self._base is not None
        return VmStatus(
            status=self.state,
            generation=self._carrier.generation if is_current else None,
            checkpoint=self._carrier.number if is_current else 0,
            interval_ms=self.interval * 1000,
            protection=self.is_wanted,
            run_state=guest.run_state if guest is not None else None,
            dirty_tracking=guest.tracker.name if guest is not None else None,
            ram_bytes=guest.vm.ram_bytes if guest is not None else 0,
            pause_ms=figures.pauses.status(),
            dirty_pages=figures.dirty_pages,
            checkpoint_bytes=figures.bytes,
            lag_ms=round((self._around.now() - at) * 1000, 3) if at is not None else None,
            held_frames=self._gates.held_frames,
            held_bytes=self._gates.held_bytes,
            sync=figures.sync,
            qemu_version=self._qmp.version if self._qmp is not None else None,
            reason=self.reason,
        )

    # The guest comes and goes

    def _connected(self, qmp: Qmp) -> None:
        self._qmp = qmp
        if self._process is not None and self._process != qmp.peer_pid:
            # Another QEMU: what the one before has sent must never be seen.
            self._gates.discard()
        self._process = qmp.peer_pid
        self._let_out_unprotected()
        self._spawn(self._attach(qmp))

    def _lost_qemu(self, why: str) -> None:
        self._qmp = None
        _cancel(self._again_timer)
        self._wake_up()
        if self._guest is not None and self._job is None:
            self._detach()
        if not self.is_fenced and not self._is_ending:
            # What is held stays so: if the guest has died, it has said things that no standby knows.
            has = f"; the standby has checkpoint {self._base.sequence}" if self._base is not None else ""
            self._tell(VmState.UNPROTECTED, why + has)

    async def _attach(self, qmp: Qmp) -> None:
        """Get hold of the guest; ends in a reason and another try where that cannot be."""
        try:
            if self.is_fenced:
                await self._keep_stopped(qmp)
                return
            await put_right(qmp, self._marker, self._around.reactor, self._config.qemu_time)
            guest = await attach(qmp, self._config, self._around, self._marker)
        except (QmpClosed, QmpTimeout):
            # `_lost_qemu` says so.
            return
        except VmError as error:
            if qmp is self._qmp:
                self._tell(VmState.FENCED if self._fence.reason else VmState.UNPROTECTED, str(error))
                self._again_timer = self._around.reactor.callLater(_LOOK_AGAIN, self._attach_again, qmp)
            return
        await self._idle()
        if qmp is not self._qmp or self.is_fenced or self._is_ending:
            guest.close()
            return
        self._take(guest)

    def _take(self, guest: Guest) -> None:
        self._guest = guest
        self._base = None
        guest.on_running(self._regulate)
        if guest.is_on_hold:
            self._tell(VmState.HOLDING, "the guest is on hold, as before: there is no standby")
        else:
            self._tell(VmState.UNPROTECTED, self._why_not())
        self.log.info(
            "{uuid}: QEMU {version}, {machine}, {mib} MiB, dirty pages by {tracker}",
            uuid=guest.vm.uuid,
            version=guest.vm.version,
            machine=guest.vm.machine,
            mib=guest.vm.ram_bytes >> 20,
            tracker=guest.tracker.name,
        )
        self._regulate()

    def _attach_again(self, qmp: Qmp) -> None:
        if qmp is self._qmp and self._guest is None:
            self._spawn(self._attach(qmp))

    def _detach(self) -> None:
        guest, self._guest = self._guest, None
        self._base = None
        if guest is not None:
            guest.close()

    async def _keep_stopped(self, qmp: Qmp) -> None:
        """A fenced VM does not run, whoever has started it."""
        if (await qmp.execute("query-status"))["running"]:
            self.log.warn("a fenced VM was running; it is stopped: {reason}", reason=self._fence.reason)
            await qmp.execute("stop")
        self._marker.value = Stopped.NOT_BY_US

    # The job

    def _regulate(self) -> None:
        """Start the job if all that it needs is there."""
        guest = self._guest
        if guest is None or self._job is not None or not self._may_go_on(guest):
            return
        if not guest.is_running and not guest.is_on_hold:
            self._tell(
                self.state, f"the guest does not run ({guest.run_state}); `cont` in QEMU's monitor lets it go on"
            )
            return
        self._job = Deferred.fromCoroutine(self._protect(guest))
        self._job.addErrback(lambda failure: self.log.failure("protecting a VM", failure))
        self._job.addBoth(lambda _: self._job_ended(guest))

    def _may_go_on(self, guest: Guest) -> bool:
        return (
            guest is self._guest
            and self._qmp is guest.qmp
            and self._has_session
            and self.is_wanted
            and not self.is_fenced
            and not self._is_ending
        )

    async def _protect(self, guest: Guest) -> None:
        replication = self._replication = self._new_replication(guest)
        try:
            await self._synchronize(guest, replication)
            while self._may_go_on(guest) and guest.is_running and self.state is VmState.PROTECTED:
                if self.interval or self._requests:
                    self._next_at = max(self._next_at + self.interval, self._around.reactor.seconds())
                request = await self._due(guest)
                if request is not None or (self.interval and self._may_go_on(guest) and guest.is_running):
                    await self._checkpoint(replication, request)
        except FtdError as error:
            self._checkpoint_failed(guest, error)
        for request in self._requests:
            request.answer.errback(LinkDown("the VM is not protected any more; nothing was committed", 1.0))
        self._requests.clear()

    def _new_replication(self, guest: Guest) -> Replication:
        return Replication(guest, self._carrier, self._gates, self._choice, self._figures, self._config, self._around)

    async def _synchronize(self, guest: Guest, replication: Replication) -> None:
        is_full = self._base is None or self._base != self._standby_has
        was_on_hold = guest.is_on_hold
        if is_full and self.state is VmState.PROTECTED:
            await self._give_up("the standby does not have the newest checkpoint any more")
            was_on_hold = guest.is_on_hold
        if self.state is not VmState.PROTECTED:
            what = "a full checkpoint" if is_full else "what has changed"
            self._tell(VmState.SYNCING, f"{what} is being sent in the background")
        await replication.synchronize(is_full=is_full, resume=not was_on_hold)
        self._committed()
        if was_on_hold:
            await guest.cont()
        self._tell(VmState.PROTECTED, "")

    async def _checkpoint(self, replication: Replication, request: _Request | None) -> None:
        try:
            commit = await replication.checkpoint(
                is_open=request is not None, limit=request.limit if request is not None else None
            )
        except FtdError as error:
            if request is not None:
                request.answer.errback(error)
            raise
        self._committed()
        if request is not None:
            request.answer.callback(commit)
        if self.state is VmState.PROTECTED and self.reason:
            self._tell(VmState.PROTECTED, "")
        else:
            self._carrier.counted()

    def _committed(self) -> None:
        self._base = self._standby_has = LastCheckpoint(self._carrier.generation, self._carrier.number)
        self._failing_since = None
        self._retry_after = _RETRY_FIRST

    async def _due(self, guest: Guest) -> _Request | None:
        """Wait until the next checkpoint is due, or asked for, or something has changed."""
        timer = None
        if not self._requests:
            self._wake = Deferred()
            if self.interval:
                wait = max(0.0, self._next_at - self._around.reactor.seconds())
                timer = self._around.reactor.callLater(wait, self._wake_up)
            await self._wake
            _cancel(timer)
        if self._requests and self._may_go_on(guest):
            return self._requests.popleft()
        return None

    def _wake_up(self) -> None:
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.callback(None)

    def _checkpoint_failed(self, guest: Guest, error: FtdError) -> None:
        """Nothing was committed; the guest runs on, and what it sends is held while it is protected."""
        self._carrier.cancel_transaction(str(error))
        guest.dirty.failed()
        if isinstance(error, QmpClosed | QmpTimeout) or not self._has_session:
            # Those who have told of that say what follows.
            return
        if isinstance(error, PairFailed):
            # It was refused: the standby does not have what this side thinks it has.
            self._base = None
        self.log.warn("a checkpoint failed: {error}", error=error)
        now = self._around.reactor.seconds()
        if self._failing_since is None:
            self._failing_since = now
        self._tell(self._state_without(guest), str(error))
        self._again_timer = self._around.reactor.callLater(self._retry_after, self._try_again)
        self._retry_after = min(2 * self._retry_after, _RETRY_MOST)

    def _try_again(self) -> None:
        since = self._failing_since
        has_failed_long = since is not None and self._around.reactor.seconds() - since >= self._config.dead_time
        if self.state is VmState.PROTECTED and has_failed_long:
            self._spawn(self._give_up(self.reason))
        self._regulate()

    def _job_ended(self, guest: Guest) -> None:
        self._job = None
        if self._qmp is not guest.qmp:
            if guest is self._guest:
                self._detach()
        else:
            # It may have begun to hold for a checkpoint that did not come to be.
            self._let_out_unprotected()
        waiting, self._when_idle = self._when_idle, []
        for deferred in waiting:
            deferred.callback(None)
        if self._has_session and self._failing_since is None:
            self._regulate()

    async def _idle(self) -> None:
        """Wait for the job, which somebody has seen to that it ends."""
        if self._job is not None:
            if self._replication is not None and not self._has_session:
                self._replication.abandon("the link is down")
            idle: Deferred[None] = Deferred()
            self._when_idle.append(idle)
            await idle

    # The cluster manager's checkpoints

    def _check_manual(self) -> None:
        """:raises FtdError: unless the cluster manager may say when there is a checkpoint."""
        if self.interval:
            raise NotInState(
                f"checkpoints are taken every {self.interval * 1000:g} ms; with interval_ms 0 the time is yours to choose",
                self.state.value,
            )
        if self.state is not VmState.PROTECTED or self._job is None or not self._has_session:
            raise NotInState(f"the VM is not ready for a checkpoint: {self.reason or self.state}", self.state.value)

    async def _begin(self) -> int:
        self._check_manual()
        if self._manual_is_open or self._requests:
            raise NotInState("a transaction is open already; commit or cancel it first", self.state.value)
        self._manual_is_open = True
        try:
            return await self._carrier.open_transaction()
        except BaseException:
            self._manual_is_open = False
            raise

    # Protection is given up, fences go up and down

    def _secondary_is_lost(self) -> None:
        self._loss_timer = None
        self._spawn(self._give_up(f"the standby is lost: {self._link_problem}"))

    async def _give_up(self, reason: str) -> None:
        """The VM is not protected any more: let it go on for itself, or stop it, as ``on-secondary-loss`` says."""
        if self._config.on_secondary_loss is SecondaryLoss.CONTINUE:
            self._tell(VmState.UNPROTECTED, reason)
            self._let_out()
            return
        guest = self._guest
        self._tell(VmState.HOLDING, f"{reason}; the guest is on hold until the standby is back or protection is off")
        if guest is not None and guest.is_running:
            try:
                await guest.stop(Stopped.ON_HOLD)
            except QmpError as error:
                self.log.warn("the guest could not be put on hold: {error}", error=error)

    async def _do_without(self) -> None:
        """Protection is off."""
        await self._idle()
        _cancel(self._loss_timer)
        self._tell(VmState.UNPROTECTED, self._why_not())
        self._admit()
        self._gates.open()
        if self._guest is not None and self._guest.is_on_hold:
            await self._guest.cont()

    async def _demote(self) -> None:
        self._is_ending = True
        self._wake_up()
        try:
            await self._idle()
            if self._guest is not None and self._has_session and self.state is not VmState.HOLDING:
                await self._last_checkpoint(self._guest)
        finally:
            self._is_ending = False
        await self._put_up_fence("it was demoted; `promote` with force lets it go on")

    async def _last_checkpoint(self, guest: Guest) -> None:
        replication = self._new_replication(guest)
        try:
            is_full = self._base is None or self._base != self._standby_has
            await replication.synchronize(is_full=is_full, resume=False)
            self._committed()
        except FtdError as error:
            self.log.warn("the last checkpoint before the VM was stopped failed: {error}", error=error)
            self._carrier.cancel_transaction(str(error))

    async def _put_up_fence(self, reason: str) -> None:
        if self.is_fenced:
            return
        self._gates.close()
        self._tell(VmState.FENCED, reason)
        problem: FtdError | None = None
        try:
            self._fence.put_up(reason)
        except FtdError as error:
            problem = error
        self._wake_up()
        await self._idle()
        self._gates.close()
        if self._qmp is not None:
            try:
                await self._keep_stopped(self._qmp)
            except QmpError as error:
                problem = problem or error
        self._detach()
        self._carrier.hang_up()
        self._tell(VmState.FENCED, reason if problem is None else f"{reason} ({problem})")
        if problem is not None:
            raise problem

    async def _take_down_fence(self) -> None:
        self._fence.take_down()
        self._tell(VmState.UNPROTECTED, self._why_not())
        if self._qmp is not None:
            await self._qmp.execute("cont")
            self._spawn(self._attach(self._qmp))
        self._carrier.resume_dialing()
        self._contact_timer = self._around.reactor.callLater(self._config.dead_time, self._no_contact)

    # What the outside sees

    def _no_contact(self) -> None:
        self._contact_timer = None
        self._let_out()

    def _admit(self) -> None:
        """The standby was heard, and has not taken over."""
        if self._contact_timer is not None:
            _cancel(self._contact_timer)
            self._contact_timer = None
            self._let_out()

    def _let_out_unprotected(self) -> None:
        if self.state is VmState.UNPROTECTED:
            self._let_out()

    def _let_out(self) -> None:
        """What an unprotected guest sends is seen, unless that is what must not be."""
        if self.is_fenced or self._contact_timer is not None or self._qmp is None:
            # Without QMP nobody knows whether what is held comes from a guest that has died.
            return
        if self._config.on_secondary_loss is SecondaryLoss.CONTINUE or not self.is_wanted:
            self._gates.open()
        else:
            self._gates.hold()

    # Telling

    def _state_without(self, guest: Guest) -> VmState:
        """What a checkpoint that did not come to be leaves."""
        if self.state is not VmState.SYNCING:
            return self.state
        return VmState.HOLDING if guest.is_on_hold else VmState.UNPROTECTED

    def _why_not(self) -> str:
        """Why a guest that is there is not protected."""
        if not self.is_wanted:
            return "protection is off"
        return "" if self._has_session else self._link_problem

    def _tell(self, state: VmState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            if state is not self.state:
                self.log.info("the VM is {state}{why}", state=state.value, why=f": {reason}" if reason else "")
            self.state, self.reason = state, reason
            self._carrier.changed()

    def _spawn(self, act: Coroutine[Deferred[Any], Any, None]) -> None:
        """Something that goes on by itself."""
        Deferred.fromCoroutine(act).addErrback(self._log_failure)

    def _log_failure(self, failure: Failure) -> None:
        if failure.check(FtdError):
            self.log.warn("{error}", error=failure.value)
        else:
            self.log.failure("an error in ftd", failure)


def _cancel(timer: IDelayedCall | None) -> None:
    if timer is not None and timer.active():
        timer.cancel()
