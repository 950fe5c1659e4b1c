"""
A running VM that is to be protected: stop, look, go on.

A capture stops the guest, has QEMU write its device state into a pipe, finds and copies the dirty pages at the same
time in a thread, and lets the guest go on.  All that can be done before the guest is stopped (the pipe, its way to
QEMU) or after it runs again (records, compression, sending) is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.config import PairConfig
from ftd.vm.device_stream import DeviceBuffer, DeviceStream
from ftd.vm.dirty_pages import DirtyPages
from ftd.vm.discovery import Vm, discover
from ftd.vm.errors import CannotProtect, QmpError, QmpRefused, QmpTimeout, VmError
from ftd.vm.pauses import Pause
from ftd.vm.qmp import Qmp, QmpEvent
from ftd.vm.ram import GuestRam, Numbers, Pages
from ftd.vm.staging import Staging
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings
from ftd.vm.tracking import DirtyTracker, choose

_log = Logger()

#: The name under which QEMU has the pipe.
_PIPE_NAME = "ftd-device-state"

#: Bytes per second: the device state is not to be slowed by a limit that is meant for networks.
_NO_LIMIT = 1 << 36

#: QEMU's states of a guest that something like a checkpoint has stopped.
_STOPPED = frozenset({"paused", "postmigrate", "finish-migrate"})

#: A migration in one of these is over, or never was.
_OVER = frozenset({"none", "completed", "failed", "cancelled"})

#: Seconds between two looks at something for which QEMU has no event.
_LOOK_AGAIN = 0.002

Seal: TypeAlias = Callable[[], tuple[int, ...]]


@attrs.frozen(eq=False)
class Captured:
    """
    A state of the guest.

    :ivar numbers: the pages that the standby does not have.
    :ivar pages: what is in them, in the staging memory; ``None`` if they do not fit into it.
    :ivar device: in the device buffer.
    :ivar epochs: what the gates had sealed.
    :ivar at: when the guest was stopped, Unix seconds.
    :ivar pause: how long for; without ``cont`` where the guest was not let go on.
    """

    numbers: Numbers
    pages: Pages | None
    device: memoryview
    epochs: tuple[int, ...]
    at: float
    pause: Pause


async def put_right(qmp: Qmp, marker: StopMarker, clock: Any, limit: float) -> str:
    """
    Let a guest go on that an ftd before this one has left stopped for a checkpoint.

    :param limit: seconds for what it may have left under way to come to an end.
    :return: the run state after that.
    """
    await _end_migration(qmp, clock, limit)
    state = str((await qmp.execute("query-status"))["status"])
    if marker.value is Stopped.FOR_CHECKPOINT:
        if state in _STOPPED:
            _log.warn("the guest was left stopped by an ftd that died during a checkpoint; it goes on")
            await qmp.execute("cont")
            state = "running"
        marker.value = Stopped.NOT_BY_US
    elif state == "running":
        # Somebody has let it go on, or it was never stopped in the end.
        marker.value = Stopped.NOT_BY_US
    return state


async def _end_migration(qmp: Qmp, clock: Any, limit: float) -> None:
    deadline = clock.seconds() + limit
    cancelled = False
    while (await qmp.execute("query-migrate")).get("status", "none") not in _OVER:
        if clock.seconds() > deadline:
            raise VmError("QEMU has a migration under way that does not end; see its monitor's `info migrate`")
        if not cancelled:
            cancelled = True
            await qmp.execute("migrate_cancel")
        await deferLater(clock, _LOOK_AGAIN)


async def attach(qmp: Qmp, config: PairConfig, around: VmSurroundings, marker: StopMarker) -> Guest:
    """
    Get hold of a VM.

    :raises CannotProtect: if it is not set up for that, with what to change.
    :raises TrackingUnavailable: if its dirty pages cannot be found in the way that the configuration wants.
    :raises QmpError: if QMP fails.
    """
    vm = await discover(qmp)
    capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    await qmp.execute("migrate-set-capabilities", {"capabilities": capabilities})
    await qmp.execute("migrate-set-parameters", {"max-bandwidth": _NO_LIMIT})
    ram = await around.run_in_thread(GuestRam, vm.backends, writable=False)
    try:
        tracker = await around.run_in_thread(choose, config.qemu_dirty.value, vm, ram)
    except BaseException:
        ram.close()
        raise
    guest = Guest(qmp, vm, ram, tracker, config, around, marker)
    await around.run_in_thread(guest.staging.warm)
    return guest


class Guest:
    """
    A VM that ftd has got hold of.

    :ivar run_state: QEMU's, kept up to date by its events.
    """

    def __init__(
        self,
        qmp: Qmp,
        vm: Vm,
        ram: GuestRam,
        tracker: DirtyTracker,
        config: PairConfig,
        around: VmSurroundings,
        marker: StopMarker,
    ) -> None:
        self.qmp = qmp
        self.vm = vm
        self.ram = ram
        self.tracker = tracker
        self.dirty = DirtyPages(tracker)
        self.staging = Staging(config.qemu_staging_limit)
        self.run_state = vm.run_state
        self._around = around
        self._marker = marker
        self._limit = config.qemu_time
        self._buffer = DeviceBuffer(config.qemu_device_limit)
        self._stop_listening = qmp.listen(self._hear)
        self._is_capturing = False
        self._when_running: list[Callable[[], None]] = []

    def close(self) -> None:
        """Let go of it; it stays as it is."""
        self._stop_listening()
        self.tracker.close()
        self.ram.close()

    @property
    def is_running(self) -> bool:
        """Whether the guest executes."""
        return self.run_state == "running"

    @property
    def told_run_state(self) -> str:
        """``run_state``, but for the moments in which a checkpoint is taken, which are not worth telling."""
        return "running" if self._is_capturing else self.run_state

    @property
    def is_on_hold(self) -> bool:
        """Whether it is stopped because there is no standby."""
        return self.run_state in _STOPPED and self._marker.value is Stopped.ON_HOLD

    @property
    def is_left_stopped(self) -> bool:
        """Whether it stands still because of a checkpoint, after which it could not be let go on."""
        return self.run_state in _STOPPED and self._marker.value is Stopped.FOR_CHECKPOINT

    def on_running(self, act: Callable[[], None]) -> None:
        """Call ``act`` every time somebody lets the guest go on."""
        self._when_running.append(act)

    async def stop(self, why: Stopped) -> None:
        """Stop the guest."""
        self._marker.value = why
        await self.qmp.execute("stop")
        self.run_state = "paused"

    async def cont(self) -> None:
        """Let it go on."""
        deadline = self._around.reactor.seconds() + self._limit
        while True:
            try:
                await self.qmp.execute("cont")
            except QmpRefused as refused:
                # The thread that migrated has said that it is done and not quite left yet.
                if "not finalized" not in str(refused) or self._around.reactor.seconds() > deadline:
                    raise
                await deferLater(self._around.reactor, _LOOK_AGAIN)
            else:
                self._marker.value = Stopped.NOT_BY_US
                self.run_state = "running"
                return

    async def capture(self, seal: Seal, *, resume: bool) -> Captured:
        """
        Take the state of the guest.

        :param seal: called when the guest has stopped and all it has sent is on its way.
        :param resume: let it go on; it does so when the capture fails, too.
        :raises VmError: if there is none to be had now: the guest is stopped by somebody else, QMP or QEMU fails.
        """
        self._is_capturing = not self.is_on_hold and resume
        try:
            return await self._capture(seal, resume)
        finally:
            self._is_capturing = False

    async def check_unchanged(self) -> None:
        """
        Look whether it is the VM that it was: what is plugged in later, no standby has.

        :raises CannotProtect: if it is not, with what is different.
        """
        vm = await discover(self.qmp)
        if vm.backends != self.vm.backends:
            raise CannotProtect("the VM has other RAM than before; the standby has to be started with the same")
        plugged = set(vm.devices) ^ set(self.vm.devices)
        if plugged:
            names = ", ".join(sorted(plugged))
            raise CannotProtect(f"devices were plugged in or out ({names}); start the standby with the same ones")

    async def _capture(self, seal: Seal, resume: bool) -> Captured:
        is_ours = not self.is_on_hold
        if is_ours and not self.is_running:
            raise VmError(f"the guest is not running but {self.run_state}; `cont` in QEMU's monitor lets it go on")
        stream = await self._hand_over_pipe()
        ticks, at = self._around.ticks, self._around.now()
        begin = ticks()
        try:
            if is_ours:
                await self.stop(Stopped.FOR_CHECKPOINT)
            stopped = ticks()
            epochs = seal()
            finding = self._around.run_in_thread(self._find_and_take)
            try:
                device = await self._device_state(stream)
            except BaseException:
                # The thread has the staging memory until it is done.
                await finding.addErrback(lambda failure: failure.trap(Exception))
                raise
            device_done = ticks()
            pages, dirty_seconds = await finding
            if self.is_running:
                raise VmError("somebody has let the guest go on while its state was taken; it will be taken again")
        except BaseException:
            stream.abandon()
            if is_ours:
                await self._resume_after_failure()
            raise
        before_cont = ticks()
        if resume:
            await self.cont()
        end = ticks()
        pause = Pause(end - begin, stopped - begin, device_done - stopped, dirty_seconds, end - before_cont)
        return Captured(self.dirty.unsent, pages, device, epochs, at, pause)

    async def find_dirty(self) -> None:
        """Have ``dirty.unsent`` up to date; stops the guest for a moment where the tracker needs that."""
        await self._with_tracker(self.dirty.find)

    async def start_over(self) -> None:
        """See `DirtyPages.start_over`."""
        await self._with_tracker(self.dirty.start_over)

    async def _with_tracker(self, look: Callable[[], None]) -> None:
        must_stop = not self.tracker.collects_while_running and self.is_running
        if must_stop:
            await self.stop(Stopped.FOR_CHECKPOINT)
        try:
            await self._around.run_in_thread(look)
        finally:
            if must_stop:
                await self.cont()

    def _find_and_take(self) -> tuple[Pages | None, float]:
        """In a thread, while the guest is stopped."""
        begin = self._around.ticks()
        self.dirty.find()
        numbers = self.dirty.unsent
        pages = self.staging.take(self.tracker, numbers) if len(numbers) <= self.staging.capacity else None
        return pages, self._around.ticks() - begin

    async def _hand_over_pipe(self) -> DeviceStream:
        stream = DeviceStream(self._around.reactor, self._buffer)
        try:
            stream.hand_over(self.qmp.pass_descriptor)
            await self.qmp.execute("getfd", {"fdname": _PIPE_NAME})
        except BaseException:
            stream.abandon()
            raise
        stream.close_ours()
        return stream

    async def _device_state(self, stream: DeviceStream) -> memoryview:
        """Have the device state written and read it; the guest is stopped."""
        ended = self.qmp.wait_for(_is_migration_end, self._limit)
        try:
            await self.qmp.execute("migrate", {"uri": f"fd:{_PIPE_NAME}"})
            event = await ended
        except QmpTimeout:
            raise self._is_late() from None
        finally:
            _forget(ended)
        if event.data["status"] != "completed":
            if stream.failure is not None:
                stream.failure.raiseException()
            state = await self.qmp.execute("query-migrate")
            why = state.get("error-desc", "it does not say why")
            raise VmError(f"QEMU could not write its device state ({event.data['status']}): {why}")
        done: Deferred[memoryview] = stream.done
        done.addTimeout(self._limit, self._around.reactor, lambda _, __: Failure(self._is_late()))
        return await done

    def _is_late(self) -> VmError:
        return VmError(f"QEMU did not write its device state within qemu-time, {self._limit:g} s")

    async def _resume_after_failure(self) -> None:
        """Nothing of the checkpoint goes on, and the guest does."""
        try:
            await _end_migration(self.qmp, self._around.reactor, self._limit)
        except VmError as error:
            _log.warn("after a checkpoint that failed: {error}", error=error)
        try:
            await self.cont()
        except QmpError as error:
            _log.warn("the guest could not be let go on after a checkpoint that failed: {error}", error=error)

    def _hear(self, event: QmpEvent) -> None:
        if event.name == "STOP":
            self.run_state = "paused"
        elif event.name == "RESUME":
            self.run_state = "running"
            # Also when somebody else has done it: from now on it is not we who have stopped it.
            self._marker.value = Stopped.NOT_BY_US
            for act in self._when_running:
                act()
        elif event.name in ("SHUTDOWN", "GUEST_PANICKED"):
            self.run_state = "shutdown" if event.name == "SHUTDOWN" else "guest-panicked"


def _is_migration_end(event: QmpEvent) -> bool:
    return event.name == "MIGRATION" and event.data.get("status") in ("completed", "failed", "cancelled")


def _forget(deferred: Deferred[Any]) -> None:
    """Nobody waits for it any more."""
    deferred.addErrback(lambda _: None)
    if not deferred.called:
        deferred.cancel()
