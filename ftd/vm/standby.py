"""
A standby VM: takes the checkpoints of its primary, and takes over when it is told to.

What it is, in which only the take-over and `demote` are somebody's wish::

    STANDING_BY --promote--> PROMOTING --guest runs--> PROMOTED --demote--> DEMOTING --QEMU is gone--> STANDING_BY
                             PROMOTING --failed before the guest may have run--> STANDING_BY
    (start: the marker is there) --> PROMOTED; if the guest has never run: PROMOTING as soon as QEMU is there

While it stands by it is *ready* or not: ready is a QEMU that waits in ``inmigrate`` and fits, with its RAM mapped here
and in the state of the checkpoint that is held.  A QEMU that comes is met (`_meet`): checked, prepared, its RAM brought
up to date.  One that goes leaves its RAM file, so nothing that was committed is lost with it.

What it does with checkpoints is in `ftd.vm.standby_sink`, what it writes down in `ftd.vm.promotion`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, TimeoutError, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.config import Ack, PairConfig
from ftd.errors import CannotKeep, ConfigError, FtdError, NotInState
from ftd.sinks.sink import SinkError
from ftd.status import VmState, VmStatus
from ftd.vm.device_feed import announce, run_state_of
from ftd.vm.discovery import Vm, shared_ram_files
from ftd.vm.errors import QmpRefused, VmError
from ftd.vm.promotion import Promoted, PromotionMarker, Steps
from ftd.vm.qmp import Qmp, QmpEvent
from ftd.vm.standby_parts import StandbyParts, standby_parts, standby_qemu
from ftd.vm.standby_qemu import prepare
from ftd.vm.standby_sink import StandbySink
from ftd.vm.standby_store import file_identity
from ftd.vm.surroundings import VmSurroundings
from ftd.vm.task import OneTask

#: Seconds for a fresh QEMU to come up where one could not load the checkpoint.
FRESH_QEMU_TIME = 10.0

#: QEMU's events after which its run state is another one.
_RUN_STATE_EVENTS = frozenset({"STOP", "RESUME", "SHUTDOWN", "GUEST_PANICKED", "SUSPEND", "WAKEUP"})

_FINISHING = "finishing the take-over that an earlier ftd has begun"


class _Phase(Enum):
    STOPPED = "stopped"
    STANDING_BY = "standing by"
    PROMOTING = "promoting"
    PROMOTED = "promoted"
    DEMOTING = "demoting"


class VmStandby(StandbySink):
    """
    :param directory: durable, the pair's own.
    :param changed: called when what `vm_status` or `refusal` say is another thing.
    :param parts: what it is made of, where that is not what the configuration says.
    :ivar promotion_ms: by step, how long the last take-over took.
    :raises ConfigError: if its directories cannot be used.
    :raises QmpError: if its QMP socket can be none.
    """

    log = Logger()

    def __init__(
        self,
        config: PairConfig,
        around: VmSurroundings,
        *,
        directory: Path,
        changed: Callable[[], None],
        parts: StandbyParts | None = None,
    ) -> None:
        self.promotion_ms: Mapping[str, float] = {}
        parts = parts or standby_parts(config, around, directory, changed)
        super().__init__(
            parts.store,
            waits_for_ram=config.ack is Ack.APPLIED,
            run_in_thread=around.run_in_thread,
            refusal=self.refusal,
            failed=self._is_unfit,
        )
        self._config = config
        self._around = around
        self._changed = changed
        self._parts = parts
        self._gates = parts.gates
        self._marker = PromotionMarker(directory)
        self._phase = _Phase.STOPPED
        self._promoted: Promoted | None = None
        # A QEMU that could take over now.
        self._ready: Qmp | None = None
        self._vm: Vm | None = None
        self._run_state: str | None = None
        # Why the QEMU that is there will not do, or what happened to RAM.
        self._reason = ""
        self._is_first_visit = True
        # So that one that is overtaken by the next makes nothing ready any more.
        self._visits = 0
        # Whether QEMU was given something to load, which it does once.
        self._is_used = False
        self._task = OneTask()
        self._when_ready: list[Deferred[None]] = []
        self._qemu = standby_qemu(
            config, around, parts, directory, arrived=self._arrived, left=self._left, changed=changed
        )
        self._recover()

    # Life

    def _recover(self) -> None:
        """Find out what an earlier ftd has left."""
        try:
            self._promoted = self._marker.load()
        except OSError as error:
            raise ConfigError(f"{error.filename}: {error.strerror}", "ftd", "state-dir") from None
        try:
            self._store.load()
        except SinkError as error:
            raise ConfigError(error.detail, f"pair {self._config.section}", "qemu-staging-dir") from None

    def start(self) -> None:
        """
        Be a standby, or what the marker says.

        :raises VmError: if a network gate cannot be set up; nothing is started then.
        """
        self._gates.start()
        self._phase = _Phase.STANDING_BY if self._promoted is None else _Phase.PROMOTED
        if self._promoted is not None and not self._can_finish:
            # Its guest may have been running all the time.
            self._gates.open()
        self._qemu.want(self._promoted is None or self._can_finish)
        self._qemu.start()

    def stop(self) -> Deferred[None]:
        """Let go of QEMU, which stays as it is.  A take-over that is under way is finished before."""
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        await self._task.done()
        self._phase = _Phase.STOPPED
        self._ready = None
        await self._qemu.stop()
        await self._gates.stop()
        await self.close()

    # What it is

    @property
    def is_promoted(self) -> bool:
        """Whether the VM is this side's now: the old primary is to be refused."""
        return self._promoted is not None

    def refusal(self) -> str:
        """Why no checkpoint can be taken now; empty if one can."""
        if self._promoted is not None or self._phase in (_Phase.PROMOTING, _Phase.DEMOTING):
            return "this standby has been promoted: it runs the VM itself; `demote` makes it a standby again"
        if self._phase is _Phase.STOPPED:
            return "the standby is stopped"
        if self._ready is None:
            return f"the standby is not ready: {self._why_not_ready}"
        return ""

    def vm_status(self) -> VmStatus:
        """What the API shows."""
        held, promoted = self._store.checkpoint, self._promoted
        if promoted is not None:
            # What it has come from is dropped, but the marker knows.
            generation, number = promoted.generation or None, promoted.checkpoint
        else:
            generation, number = (held.header.generation, held.header.number) if held is not None else (None, 0)
        state, reason = self._state()
        waits = held is not None and promoted is None
        return VmStatus(
            status=state,
            generation=generation,
            checkpoint=number,
            run_state=self._run_state,
            ram_bytes=self._vm.ram_bytes if self._vm is not None else 0,
            checkpoint_bytes=self._store.bytes,
            lag_ms=max(0.0, self._around.now() - self._store.committed_at) * 1e3 if waits else None,
            held_frames=self._gates.held_frames,
            held_bytes=self._gates.held_bytes,
            qemu_version=self._qemu.qmp.version if self._qemu.qmp is not None else None,
            reason=reason,
        )

    def _state(self) -> tuple[VmState, str]:
        if self._promoted is not None and self._phase is not _Phase.PROMOTING:
            return VmState.PROMOTED, self._why_promoted_does_not_run
        if self._ready is None:
            return VmState.UNPROTECTED, self._why_not_ready
        if self._store.held is None:
            return VmState.UNPROTECTED, "no checkpoint has been committed yet"
        return (VmState.UNPROTECTED, self._store.unfit) if self._store.unfit else (VmState.PROTECTED, "")

    @property
    def _why_not_ready(self) -> str:
        if self._qemu.qmp is None:
            return self._qemu.why_absent
        return self._reason or "its QEMU is being prepared"

    @property
    def _why_promoted_does_not_run(self) -> str:
        if self._reason:
            return self._reason
        if self._qemu.qmp is None:
            return f"its QEMU does not answer: {self._qemu.why_absent}"
        return "" if self._run_state == "running" else f"its guest does not run, its state is {self._run_state}"

    @property
    def _can_finish(self) -> bool:
        """Whether the marker is that of a take-over in which the guest has never run, and still can."""
        return self._promoted is not None and not self._marker.guest_started and self._store.held is not None

    # QEMU comes and goes

    def _arrived(self, qmp: Qmp) -> None:
        qmp.listen(lambda event: self._hear(qmp, event))
        self._visit(qmp)

    def _left(self, why: str) -> None:
        self.log.warn("the standby's QEMU is gone: {why}", why=why)
        self._ready = None
        self._run_state = None
        # What is being written to it is finished: its file is still there, and the next QEMU has it.
        self.let_ram_go()
        self._changed()

    def _hear(self, qmp: Qmp, event: QmpEvent) -> None:
        if event.name == "RESUME" and self._phase is _Phase.STANDING_BY:
            # Somebody else has loaded something into it and let it run.
            self._ready = None
            self._visit(qmp)
        elif event.name in _RUN_STATE_EVENTS and self._phase is _Phase.PROMOTED:
            looked = Deferred.fromCoroutine(self._look_at_run_state(qmp))
            looked.addErrback(self._log_failure, "asking for the run state")

    async def _look_at_run_state(self, qmp: Qmp) -> None:
        state = await run_state_of(qmp)
        if self._qemu.qmp is qmp:
            self._run_state = state
            self._changed()

    def _visit(self, qmp: Qmp) -> None:
        self._visits += 1
        visit = self._visits

        def is_current() -> bool:
            return self._visits == visit and self._qemu.qmp is qmp and self._phase is not _Phase.STOPPED

        met = Deferred.fromCoroutine(self._meet(qmp, is_current))
        met.addErrback(self._not_met, is_current)
        met.addBoth(self._has_changed)
        self._changed()

    async def _meet(self, qmp: Qmp, is_current: Callable[[], bool]) -> None:
        """Find out what the QEMU that has come is good for."""
        if self._phase is _Phase.DEMOTING:
            await self._task.done()
        state = self._run_state = await run_state_of(qmp)
        is_first, self._is_first_visit = self._is_first_visit, False
        if self._phase is not _Phase.PROMOTED:
            if state != "inmigrate" and self._phase is _Phase.STANDING_BY:
                await self._distrust_ram_of(qmp)
            await self._make_ready(qmp, is_current)
        elif state == "running":
            # Also where that was not known before.
            self._reason = ""
        elif self._can_finish and state == "inmigrate":
            await self._make_ready(qmp, is_current)
            if self._phase is _Phase.PROMOTED:
                # Nobody has demoted it meanwhile.
                finishing = self._begin(_Phase.PROMOTING, self._take_over(is_marked=True))
                finishing.addErrback(self._log_failure, _FINISHING)
        elif state == "paused" and (self._can_finish or is_first):
            # An ftd has died when all was loaded.
            self._begin(_Phase.PROMOTING, self._go_on(qmp)).addErrback(self._log_failure, _FINISHING)
        elif state == "inmigrate":
            self._reason = "its guest has ended, and a fresh QEMU waits; `demote` makes this a standby again"

    def _not_met(self, failure: Failure, is_current: Callable[[], bool]) -> None:
        if not is_current():
            return
        self._reason = failure.getErrorMessage()
        self._log_failure(failure, "the standby's QEMU cannot be used")

    async def _make_ready(self, qmp: Qmp, is_current: Callable[[], bool]) -> None:
        self._reason = ""
        vm = await prepare(qmp, self._parts.discover)
        ram = await self._around.run_in_thread(self._parts.open_ram, vm.backends)
        await self.use_ram(vm, ram, is_current)
        if not is_current():
            # While what is held was brought into RAM.
            raise VmError("QEMU has gone meanwhile")
        self._vm = vm
        self._is_used = False
        self._ready = qmp
        self._qemu.is_good()
        self.log.info("the standby is ready: QEMU {version}, VM {uuid}", version=vm.version, uuid=vm.uuid)
        waiting, self._when_ready = self._when_ready, []
        for deferred in waiting:
            deferred.callback(None)

    async def _distrust_ram_of(self, qmp: Qmp) -> None:
        """Somebody runs, or is about to run, a guest that is not the standby's: RAM may be anything by now."""
        files = {file_identity(path) for path in await shared_ram_files(qmp)}
        held = self._store.checkpoint
        if held is not None and files.intersection(filter(None, held.ram_files)):
            self.log.warn("QEMU was started without -incoming: the checkpoint in its RAM is lost")
            await self.forget()

    def _is_unfit(self, why: str) -> None:
        """A checkpoint could not be brought into RAM."""
        self._ready = None
        self._reason = why
        self._changed()

    # Taking over

    def promote(self) -> Deferred[None]:
        """
        Take over: fires when the guest runs.

        :return: errbacks with `NotInState` where there is nothing to take over or it has been done, with a `VmError` or
            `CannotKeep` where it has failed: the standby is one still, unless the guest may have run.
        """
        if self._phase is not _Phase.STANDING_BY:
            return fail(NotInState(f"a standby that is {self._phase.value} cannot be promoted", self._phase.value))
        if self._store.held is None:
            return fail(NotInState("no checkpoint has been committed: there is nothing to go on from", "unprotected"))
        if why := self.refusal() or self._store.unfit:
            return fail(NotInState(why, "unprotected"))
        return self._begin(_Phase.PROMOTING, self._take_over(is_marked=False))

    async def _take_over(self, *, is_marked: bool) -> None:
        held = self._store.held
        assert held is not None
        steps = Steps(self._around.ticks)
        self.abort()
        try:
            if not is_marked:
                promoted = Promoted(time=self._around.now(), generation=held.generation, checkpoint=held.number)
                # From here on, as it may be on disk even where writing it fails.
                self._promoted = promoted
                await self._around.run_in_thread(self._marker.write, promoted)
                self._changed()
            steps.done("marker")
            # What is being brought into RAM is waited for.
            await self.apply()
            steps.done("apply")
            qmp = await self._load()
            steps.done("load")
            await self._start_guest(qmp, steps)
        except Exception as error:
            raise await self._back_out(error) from error

    async def _go_on(self, qmp: Qmp) -> None:
        """What is left of a take-over when an earlier ftd has had QEMU load everything."""
        try:
            await self._start_guest(qmp, Steps(self._around.ticks))
        except VmError as error:
            self._phase = _Phase.PROMOTED
            self._reason = f"its guest cannot be let run: {error}"
            raise

    async def _load(self) -> Qmp:
        """Have QEMU load what is held; where one cannot and ftd may start another one, that."""
        for may_try_another in (True, False) if self._qemu.command is not None else (False,):
            try:
                return await self._load_into_ready()
            except VmError as error:
                # It is used up, and when it has ended it has said why.
                await self._qemu.end()
                words = self._qemu.last_words()
                why = f"QEMU has not loaded the checkpoint: {error}{f' (it said: {words})' if words else ''}"
                if not may_try_another:
                    raise VmError(why) from error
            self.log.warn("{why}; a fresh one is to", why=why)
            await self._fresh_qemu()
        raise AssertionError("the last one has not come back without a QEMU")

    async def _load_into_ready(self) -> Qmp:
        qmp = self._ready
        if qmp is None:
            raise VmError(f"it is not there: {self._why_not_ready}")
        self._is_used = True
        await self._parts.load(qmp, self._store.device_state())
        return qmp

    async def _fresh_qemu(self) -> None:
        if self._ready is not None and not self._is_used:
            return
        ready: Deferred[None] = Deferred()
        self._when_ready.append(ready)
        ready.addTimeout(FRESH_QEMU_TIME, self._around.reactor)
        try:
            await ready
        except TimeoutError:
            self._when_ready.remove(ready)
            raise VmError(f"no fresh QEMU is ready within {FRESH_QEMU_TIME:g} s: {self._why_not_ready}") from None

    async def _start_guest(self, qmp: Qmp, steps: Steps) -> None:
        self._marker.guest_started = True
        self._gates.open()
        try:
            await qmp.execute("cont")
        except QmpRefused:
            # The one answer after which it is sure that it has not run.
            self._marker.guest_started = False
            raise
        steps.done("cont")
        self.promotion_ms = steps.milliseconds
        self.log.info("promoted, the guest runs: {steps}", steps=str(steps))
        self._phase = _Phase.PROMOTED
        self._run_state = "running"
        self._reason = ""
        self._ready = None
        self._qemu.want(False)
        Deferred.fromCoroutine(announce(qmp)).addErrback(self._log_failure, "announcing the guest's network addresses")
        self.let_ram_go()
        self.forget().addErrback(self._log_failure, "dropping what the guest has gone on from")

    async def _back_out(self, error: Exception) -> Exception:
        """
        The take-over has failed: be a standby again, if the guest cannot have run.

        :return: what whoever asked for it is told.
        """
        why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else str(error)
        if self._marker.guest_started:
            self._phase = _Phase.PROMOTED
            self._qemu.want(False)
            self._reason = f"it is not known whether its guest ran: {why}"
            return VmError(f"the take-over has failed at its last step, and {self._reason}")
        self._gates.close()
        try:
            if self._is_used or self._qemu.qmp is None:
                await self._qemu.end()
            await self._around.run_in_thread(self._marker.remove)
        except (VmError, OSError) as worse:
            self._phase = _Phase.PROMOTED
            self._reason = f"the take-over has failed ({why}) and cannot be taken back: {worse}"
            return VmError(self._reason)
        self._promoted = None
        self._phase = _Phase.STANDING_BY
        self._qemu.want(True)
        if isinstance(error, OSError):
            return CannotKeep(f"the promotion cannot be written down: {why}")
        if not isinstance(error, (VmError, SinkError)):
            self.log.failure("a take-over failed in a way it should not", Failure(error))
        return VmError(f"the take-over has failed, this is a standby still: {why}")

    # And back

    def demote(self) -> Deferred[None]:
        """
        End the VM that runs here for good and stand by anew; fires when it is gone.

        :return: errbacks with `NotInState` if it is not promoted; with a `VmError` or `CannotKeep` if that cannot be
            done, and then it stays promoted.
        """
        if self._phase is not _Phase.PROMOTED:
            return fail(NotInState(f"a standby that is {self._phase.value} cannot be demoted", self._phase.value))
        return self._begin(_Phase.DEMOTING, self._demote())

    async def _demote(self) -> None:
        self._gates.close()
        try:
            await self._qemu.end()
            await self.forget()
            await self._around.run_in_thread(self._marker.remove)
        except OSError as error:
            self._phase = _Phase.PROMOTED
            self._reason = f"it cannot be demoted, and its network stays closed: {error}; try again"
            raise CannotKeep(self._reason) from error
        except VmError:
            self._phase = _Phase.PROMOTED
            self._gates.open()
            raise
        self._promoted = None
        self._reason = ""
        self._phase = _Phase.STANDING_BY
        self._qemu.want(True)
        self.log.info("demoted: its VM is ended, this is a standby again")

    # The rest

    def _begin(self, phase: _Phase, work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None]:
        """Do ``work``, and nothing else of its kind until it is done."""
        self._phase = phase
        self._changed()
        return self._task.begin(work).addBoth(self._has_changed)

    def _has_changed(self, result: Any) -> Any:
        self._changed()
        return result

    def _log_failure(self, failure: Failure, doing: str) -> None:
        if failure.check(FtdError, SinkError):
            self.log.warn("{doing}: {why}", doing=doing, why=failure.getErrorMessage())
        else:
            self.log.failure("{doing}", failure, doing=doing)
