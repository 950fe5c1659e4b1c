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

from pathlib import Path

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ftd.config import PairConfig, SecondaryLoss
from ftd.errors import FtdError, NotInState, PairFailed
from ftd.status import Commit, VmState, VmStatus
from ftd.vm.background import cancel, spawn
from ftd.vm.carrier import Carrier
from ftd.vm.errors import CannotProtect, QmpError, VmError
from ftd.vm.exposure import Exposure
from ftd.vm.fence import FENCE, Fence
from ftd.vm.fencing import Fencing
from ftd.vm.gates import Gates
from ftd.vm.guest import Guest
from ftd.vm.guest_keeper import GuestKeeper
from ftd.vm.pagemap import NotRegistered
from ftd.vm.processes import Processes, SystemProcesses
from ftd.vm.replication import Replication
from ftd.vm.retry import Retry
from ftd.vm.schedule import Due, Schedule
from ftd.vm.series import Series
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings
from ftd.vm.task import OneTask
from ftd.wire.hello import LastCheckpoint

#: Seconds between two looks at whether the VM is made of what it was.
_LOOK_AT_VM = 10.0

#: Seconds until a checkpoint that failed is tried again at most: for an ordinary one, and for one in the background,
#: which may have sent all of the RAM.
_RETRY_MOST, _RETRY_SYNC_MOST = 1.0, 30.0


class VmPrimary:
    """
    :param directory: for what outlives ftd: the fence and the stop marker.
    :param processes: those of this host, unless it is a test.
    :raises OSError: if it cannot be used.
    """

    log = Logger()

    def __init__(
        self,
        config: PairConfig,
        carrier: Carrier,
        around: VmSurroundings,
        gates: Gates,
        *,
        directory: Path,
        processes: Processes | None = None,
    ) -> None:
        self.state = VmState.UNPROTECTED
        self.reason = f"QEMU has not been found at {config.qemu_qmp} yet"
        self.is_wanted = config.qemu_protect
        self._config = config
        self._carrier = carrier
        self._around = around
        self._gates = gates
        self._fence = Fence(directory / FENCE)
        self._marker = StopMarker(directory / "stopped")
        self._keeper = GuestKeeper(config, around, self._marker, self, processes or SystemProcesses())
        self._schedule = Schedule(config.qemu_interval, carrier, around.reactor, self._why_not_ready)
        self._series = Series(config, carrier, gates, around)
        self._exposure = Exposure(
            gates,
            carrier,
            around.reactor,
            config.dead_time,
            is_unprotected=lambda: self.state is VmState.UNPROTECTED and not self.is_fenced,
            may_pass=lambda: not self._holds_when_lost,
        )
        self._fencing = Fencing(
            self._fence, self._exposure, self._keeper, tell=self._tell, come_to_rest=self._come_to_rest
        )
        self._has_session = False
        self._link_problem = "the standby has not been reached yet"
        self._job = OneTask()
        self._is_ending = False
        # The guest is being put on hold: whether it runs is not known.
        self._is_stopping = False
        self._loss_timer: IDelayedCall | None = None
        # Seconds for which the link may be down before the standby is lost.
        self._loss_left = config.dead_time
        self._retry = Retry(around.reactor, self._try_again)
        if self._fence.reason:
            self.state, self.reason = VmState.FENCED, self._fence.reason

    @property
    def is_fenced(self) -> bool:
        """Whether the VM must not run, so that there is nothing to dial for."""
        return bool(self._fence.reason)

    @property
    def _holds_when_lost(self) -> bool:
        """Whether a guest that is to be protected must not go on when it is not."""
        return self.is_wanted and self._config.on_secondary_loss is SecondaryLoss.HOLD

    # Life

    def start(self) -> None:
        """Look for QEMU and let it connect its NICs.  :raises VmError: if a gate cannot be set up."""
        self._gates.start()
        self._keeper.start()

    def stop(self) -> Deferred[None]:
        """Let go of the guest, which runs on."""
        self._is_ending = True
        self._exposure.stop()
        cancel(self._loss_timer)
        self._retry.stop()
        self._schedule.lost()
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self.idle()
        await self._keeper.stop()
        await self._gates.stop()
        self._marker.close()

    # What the pair tells

    def session_opened(self, last: LastCheckpoint | None) -> None:
        """
        The standby is there.

        :param last: the newest checkpoint that it has.
        """
        self._has_session = True
        self._series.standby_has = last
        if self._loss_timer is not None and self._loss_timer.active():
            self._loss_left = self._loss_timer.getTime() - self._around.reactor.seconds()
            self._loss_timer.cancel()
        self._exposure.contact()
        self._regulate()

    def session_lost(self, why: str, silence: float) -> None:
        """
        The link is gone.

        :param silence: seconds since the standby was last heard.
        """
        self._has_session = False
        self._link_problem = why
        self._schedule.lost()
        if self._series.replication is not None and (self._job.is_awaited or self._is_ending):
            self._series.replication.interrupt(is_link_down=True)
        if self.is_fenced or self._is_ending:
            return
        if self.state is VmState.PROTECTED:
            wait = max(0.0, min(self._loss_left, self._config.dead_time - silence))
            self._loss_timer = self._around.reactor.callLater(wait, self._secondary_is_lost)
            self._tell(self.state, f"{why}; what the guest sends is held for {wait:.1f} s more")
        elif self._keeper.guest is not None and self._keeper.qmp is not None:
            self._tell(self._state_without(self._keeper.guest), self._why_not())
            # A commit in doubt may hold what no ACK will let out.
            self._exposure.adapt()

    def link_problem(self, why: str) -> None:
        """A session could not be opened, and why."""
        self._link_problem = why
        is_there = self._keeper.guest is not None and self._keeper.qmp is not None
        if not self._has_session and self.state is VmState.UNPROTECTED and is_there:
            self._tell(self.state, self._why_not())

    def superseded(self, node: str) -> None:
        """The standby has taken over: this VM must not run any more."""
        reason = f"{node} has taken over; `promote` with force lets this VM go on all the same"
        spawn(self._fencing.put_up(reason), self.log)

    # What the API asks

    def begin(self) -> Deferred[int]:
        """Open a transaction of the cluster manager's."""
        return Deferred.fromCoroutine(self._schedule.begin())

    def commit(self, limit: float) -> Deferred[Commit]:
        """Capture, send, and wait for the ACK, ``limit`` seconds at most."""
        return self._schedule.commit(limit)

    def cancel(self) -> None:
        """Drop the cluster manager's transaction."""
        self._schedule.cancel()

    def set_protection(self, enabled: bool | None, interval: float | None) -> Deferred[None]:
        """See `IPrimaryPair`."""
        if interval is not None:
            self._schedule.change_interval(interval)
        if enabled is None or enabled == self.is_wanted:
            self._carrier.changed()
            return succeed(None)
        self.is_wanted = enabled
        if not enabled:
            return Deferred.fromCoroutine(self._do_without())
        self._carrier.changed()
        self._regulate()
        return succeed(None)

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
        return Deferred.fromCoroutine(self._fencing.take_down(self._why_not))

    def status(self) -> VmStatus:
        """For the API."""
        guest, figures = self._keeper.guest, self._series.figures
        at, newest = figures.committed_at, self._series.standby_has
        return VmStatus(
            status=self.state,
            generation=newest.generation if newest is not None else None,
            checkpoint=newest.sequence if newest is not None else 0,
            interval_ms=self._schedule.interval * 1000,
            protection=self.is_wanted,
            run_state=guest.told_run_state if guest is not None else None,
            dirty_tracking=guest.tracker.name if guest is not None else None,
            ram_bytes=guest.vm.ram_bytes if guest is not None else 0,
            pause_ms=figures.pauses.status(),
            dirty_pages=figures.dirty_pages,
            checkpoint_bytes=figures.bytes,
            lag_ms=round((self._around.now() - at) * 1000, 3) if at is not None else None,
            held_frames=self._gates.held_frames,
            held_bytes=self._gates.held_bytes,
            sync=figures.sync,
            qemu_version=self._keeper.version,
            reason=self.reason,
        )

    # The guest comes and goes (`GuestOwner`)

    def qemu_found(self, is_another: bool) -> None:
        """See `GuestOwner`."""
        if not self.is_fenced and not self._is_ending:
            self._exposure.qemu_found(is_another)

    def attached(self, guest: Guest) -> None:
        """See `GuestOwner`."""
        guest.on_running(self._regulate)
        if guest.is_on_hold and self._holds_when_lost:
            self._tell(VmState.HOLDING, "the guest is on hold, as before: there is no standby")
        else:
            self._tell(VmState.UNPROTECTED, self._why_not())
            if guest.is_on_hold:
                # Under another configuration.
                spawn(guest.cont(), self.log)
        self._regulate()

    def cannot_attach(self, why: str) -> None:
        """See `GuestOwner`."""
        self._tell(VmState.FENCED if self._fence.reason else VmState.UNPROTECTED, self._fence.reason or why)

    def qemu_lost(self, why: str) -> None:
        """See `GuestOwner`."""
        self._exposure.qemu_lost()
        if not self.is_fenced and not self._is_ending:
            self._tell(VmState.UNPROTECTED, why)
        self._schedule.lost()
        if not self._job.is_busy:
            self._let_go()

    def qemu_ended(self) -> None:
        """See `GuestOwner`.  A primary without a VM is none: its standby may take over without being forced to."""
        cancel(self._loss_timer)
        self._exposure.hang_up()
        if not self.is_fenced:
            last = self._series.standby_has
            has = "to go on" if last is None else f"the standby has checkpoint {last.sequence} and can be promoted, or"
            self._tell(VmState.UNPROTECTED, f"QEMU has ended; {has} start QEMU again")

    def _let_go(self) -> None:
        self._series.lose_track()
        self._keeper.let_go()

    # The job

    def _regulate(self) -> None:
        """Start the job if all that it needs is there."""
        guest = self._keeper.guest
        if guest is None or self._job.is_busy or self._is_stopping or not self._may_go_on(guest):
            return
        if not (guest.is_running or guest.is_on_hold):
            if guest.is_left_stopped:
                # It is tried again.
                return
            self._tell(self.state, f"the guest is {guest.run_state}; `cont` in QEMU's monitor lets it go on")
            return
        self._job.begin(self._protect(guest)).addCallback(lambda _: self._job_ended())

    def _may_go_on(self, guest: Guest) -> bool:
        return (
            guest is self._keeper.guest
            and guest.qmp.is_open
            and self._has_session
            and self.is_wanted
            and not self.is_fenced
            and not self._is_ending
            and not self._job.is_awaited
        )

    async def _protect(self, guest: Guest) -> None:
        replication = self._series.begin(guest)
        look_at = self._around.reactor.seconds() + _LOOK_AT_VM
        try:
            await self._synchronize(guest, replication)
            while self._may_go_on(guest) and guest.is_running and self.state is VmState.PROTECTED:
                due = await self._schedule.due()
                if self._around.reactor.seconds() >= look_at:
                    look_at = self._around.reactor.seconds() + _LOOK_AT_VM
                    await guest.check_unchanged()
                if due is not None and self._may_go_on(guest) and guest.is_running:
                    await self._checkpoint(replication, due)
                elif due is not None:
                    self._schedule.refuse(due)
        except CannotProtect as error:
            await self._give_up(str(error), is_in_job=True)
            self._let_go()
        except FtdError as error:
            self._checkpoint_failed(guest, error)
        except Exception:
            self.log.failure("while protecting a VM")
            self._checkpoint_failed(guest, VmError("an error in ftd; the log says which"))
        finally:
            self._series.end()
            # Of the cluster manager's transactions none is left open, and nobody waits for one.
            self._schedule.lost()
            self._schedule.refuse_asked()
            self._carrier.cancel_transaction(self.reason)
            self._leave(guest)

    async def _synchronize(self, guest: Guest, replication: Replication) -> None:
        is_full = self._series.needs_full
        if is_full and self.state is VmState.PROTECTED:
            await self._give_up("the standby does not have the newest checkpoint any more", is_in_job=True)
        was_on_hold = guest.is_on_hold
        if self.state is not VmState.PROTECTED:
            what = "a full checkpoint" if is_full else "what has changed"
            self._tell(VmState.SYNCING, f"{what} is being sent in the background")
        await replication.synchronize(is_full=is_full, resume=not was_on_hold)
        self._committed()
        if was_on_hold:
            await guest.cont()
        if self.state in (VmState.SYNCING, VmState.PROTECTED):
            self._tell(VmState.PROTECTED, "")

    async def _checkpoint(self, replication: Replication, due: Due) -> None:
        try:
            commit = await replication.checkpoint(is_open=due.answer is not None, limit=due.limit)
        except FtdError as error:
            if due.answer is not None:
                due.answer.errback(error)
            raise
        self._committed()
        if due.answer is not None:
            due.answer.callback(commit)
        if self.state is VmState.PROTECTED and self.reason:
            self._tell(VmState.PROTECTED, "")
        else:
            self._carrier.counted()

    def _committed(self) -> None:
        self._series.committed()
        # Not before: a link that comes and goes and brings nothing to the standby is none.
        self._loss_left = self._config.dead_time
        self._retry.succeeded()

    def _checkpoint_failed(self, guest: Guest, error: FtdError) -> None:
        """Nothing was committed; the guest runs on, and what it sends is held while it is protected."""
        self._carrier.cancel_transaction(str(error))
        guest.dirty.failed()
        if self._is_ending or not guest.qmp.is_open or not (self._has_session or guest.is_left_stopped):
            # Those who have told of that say what follows.
            return
        if isinstance(error, PairFailed | NotRegistered):
            # It was refused, as the standby does not have what this side thinks it has; or what is dirty is not known.
            self._series.lose_track()
        self.log.warn("a checkpoint failed: {error}", error=error)
        self._tell(self._state_without(guest), str(error))
        self._retry.failed(_RETRY_MOST if self.state is VmState.PROTECTED else _RETRY_SYNC_MOST)

    def _try_again(self) -> None:
        if self.state is VmState.PROTECTED and self._retry.failing_for >= self._config.dead_time:
            spawn(self._give_up(self.reason), self.log)
        guest = self._keeper.guest
        if guest is not None and guest.is_left_stopped and not self._job.is_busy and not self.is_fenced:
            spawn(self._let_go_on(guest), self.log)
        else:
            self._regulate()

    async def _let_go_on(self, guest: Guest) -> None:
        """A checkpoint has stopped it, and QEMU did not let it go on then."""
        try:
            await guest.cont()
        except QmpError as error:
            self._checkpoint_failed(guest, error)
        else:
            self._regulate()

    def _leave(self, guest: Guest) -> None:
        """The job does nothing with it any more."""
        if guest.qmp is not self._keeper.qmp:
            if guest is self._keeper.guest:
                self._let_go()
        else:
            # It may have begun to hold for a checkpoint that did not come to be.
            self._exposure.adapt()

    def _job_ended(self) -> None:
        if self._keeper.guest is None:
            # It is not what it was: it has to be found out anew what it is.
            self._keeper.attach()
        if not self._retry.is_failing:
            self._regulate()

    async def idle(self) -> None:
        """Wait for the job, which somebody has seen to that it ends."""
        if self._series.replication is not None:
            self._series.replication.interrupt(is_link_down=not self._has_session)
        await self._job.done()

    # Protection is given up, fences go up and down

    def _secondary_is_lost(self) -> None:
        spawn(self._give_up(f"the standby is lost: {self._link_problem}"), self.log)

    async def _give_up(self, reason: str, *, is_in_job: bool = False) -> None:
        """The VM is not protected any more: let it go on for itself, or stop it, as ``on-secondary-loss`` says."""
        if not self._holds_when_lost:
            self._tell(VmState.UNPROTECTED, reason)
            self._exposure.adapt()
            return
        self._tell(VmState.HOLDING, f"{reason}; the guest is on hold until the standby is back or protection is off")
        if not is_in_job:
            # A checkpoint that is under way lets the guest go on at its end.
            await self.idle()
        guest = self._keeper.guest
        if self.state is VmState.HOLDING and guest is not None and (guest.is_running or guest.is_left_stopped):
            await self._put_on_hold(guest)

    async def _put_on_hold(self, guest: Guest) -> None:
        self._is_stopping = True
        try:
            await guest.stop(Stopped.ON_HOLD)
            if self.state is VmState.UNPROTECTED and not self._holds_when_lost:
                # Protection was turned off meanwhile.
                await guest.cont()
        except QmpError as error:
            self.log.warn("the guest could not be put on hold: {error}", error=error)
        finally:
            self._is_stopping = False
        self._regulate()

    async def _do_without(self) -> None:
        """Protection is off."""
        self._schedule.wake_up()
        await self.idle()
        if self.is_wanted or self.is_fenced:
            return
        cancel(self._loss_timer)
        self._tell(VmState.UNPROTECTED, self._why_not())
        self._exposure.adapt()
        guest = self._keeper.guest
        if guest is not None and guest.is_on_hold:
            await guest.cont()

    async def _demote(self) -> None:
        # Nothing new begins; what is under way ends.
        self._is_ending = True
        self._schedule.wake_up()
        try:
            await self.idle()
            if self._keeper.guest is not None and self._has_session:
                await self._job.begin(self._last_checkpoint(self._keeper.guest))
        finally:
            self._is_ending = False
        await self._fencing.put_up("it was demoted; `promote` with force lets it go on")

    async def _last_checkpoint(self, guest: Guest) -> None:
        replication = self._series.begin(guest)
        try:
            await replication.synchronize(is_full=self._series.needs_full, resume=False)
            self._committed()
        except FtdError as error:
            self.log.warn("the last checkpoint before the VM was stopped failed: {error}", error=error)
            self._carrier.cancel_transaction(str(error))
        finally:
            self._series.end()

    async def _come_to_rest(self) -> None:
        cancel(self._loss_timer)
        self._schedule.lost()
        await self.idle()
        self._series.lose_track()

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

    def _why_not_ready(self) -> tuple[str, str]:
        is_ready = self.state is VmState.PROTECTED and self._job.is_busy and self._has_session
        return "" if is_ready else self.reason or self.state.value, self.state.value

    def _tell(self, state: VmState, reason: str) -> None:
        if (state, reason) != (self.state, self.reason):
            if state is not self.state:
                self.log.info("the VM is {state}{why}", state=state.value, why=f": {reason}" if reason else "")
            self.state, self.reason = state, reason
            self._carrier.changed()
