"""What tests of a primary stand on: the world of `ftd.test.vm.primary_world`, and what has to be true in it always."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from ftd.config import PairConfig, SecondaryLoss, pair_from_mapping
from ftd.errors import FtdError
from ftd.status import Commit, VmState
from ftd.test.vm.primary_carrier import FakeCarrier, ModelStandby
from ftd.test.vm.primary_world import (
    Frame,
    ModelGates,
    RamTracker,
    RunningGuest,
    VmQemu,
    VmReactor,
)
from ftd.test.vm.standby_case import FakeProcesses
from ftd.testing.threads import SteppedThread, run_at_once
from ftd.testing.transport import BoundedTransport
from ftd.vm import guest as guest_module
from ftd.vm import replication
from ftd.vm.discovery import Vm
from ftd.vm.primary import VmPrimary
from ftd.vm.ram import PAGE, GuestRam
from ftd.vm.stop_marker import StopMarker, Stopped
from ftd.vm.surroundings import VmSurroundings
from ftd.wire.hello import LastCheckpoint

QMP_PATH = "/run/vm.qmp"
EPOCH = 1_700_000_000.0

#: Seconds.
INTERVAL, DEAD_TIME, QEMU_TIME = 0.1, 2.0, 1.0

#: Pages that are sent at a time in the background, and that fit into the staging memory.
PORTION, CAPACITY = 8, 16

_LET_OUT = (VmState.UNPROTECTED, VmState.SYNCING)


class PrimaryCase(SynchronousTestCase):
    """
    At the end of each test the primary is stopped, and then nothing of it may be left: no timer, no descriptor, no
    guest that stands still.

    :ivar told: every status that the world was told.
    :ivar guest_stands_still: at the end, for a reason.
    """

    def setUp(self) -> None:
        self.reactor = VmReactor()
        self.root = Path(self.mktemp()).absolute()
        self.state = self.root / "state"
        self.state.mkdir(parents=True)
        self.processes = FakeProcesses(self.reactor)
        self.moments: dict[bytes, NDArray[np.uint64]] = {}
        self.standby = ModelStandby(lambda state: self.moments[state])
        self.thread: SteppedThread | None = None
        self.collects = True
        self.told: list[tuple[VmState, str]] = []
        self.guest_stands_still = False
        self.guests: list[RunningGuest] = []
        self.frames_of = 0
        self.vm: VmPrimary | None = None
        self.config: PairConfig = self._config({})
        self.patch(replication, "_PORTION", PORTION)
        self.patch(guest_module, "choose", self._choose)
        self._descriptors = self._open_descriptors()
        self.new_qemu(4242)

    def tearDown(self) -> None:
        self.end()
        self.qemu.close_pipes()
        gc.collect(1)
        # Each guest has its RAM mapped, which takes one.
        left = self._open_descriptors() - len(self.guests)
        self.guests.clear()
        del self.guest, self.qemu
        self.assertEqual(left, self._descriptors, "descriptors are left open")

    def _open_descriptors(self) -> int:
        """Pipes, and the files of this test."""
        found = 0
        for name in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                target = os.readlink(f"/proc/self/fd/{name}")
                # A slot of a standby's store is mapped, and gone with the last view of it.
                found += target.startswith(("pipe:", str(self.root))) and "/staging/" not in target
        return found

    def _config(self, changes: dict[str, Any]) -> PairConfig:
        keys = {"role": "primary", "link": "tcp:192.0.2.2:8441", "source": "qemu", "qemu-qmp": QMP_PATH}
        times = {"qemu_interval": INTERVAL, "dead_time": DEAD_TIME, "qemu_time": QEMU_TIME, "reconnect_max": 0.2}
        small = {"qemu_staging_limit": CAPACITY * PAGE, "qemu_rounds": 4}
        return attrs.evolve(pair_from_mapping("vm", keys), **times | small | changes)

    # The host

    def new_qemu(self, pid: int, run_state: str = "running") -> VmQemu:
        """Start a QEMU with a guest that has just booted."""
        self.guest = RunningGuest(self.root / f"ram-{pid}", pid)
        self.guest.moments = self.moments
        self.guests.append(self.guest)
        for page in range(1, 20):
            self.guest.write(page, 1000 + page)
        self.qemu = VmQemu(self.reactor, self.guest, run_state=run_state)
        self.reactor.qemus[QMP_PATH] = self.qemu
        self.processes.living[pid] = self.qemu
        return self.qemu

    def kill_qemu(self) -> None:
        """SIGKILL."""
        self.qemu.die()
        self.deliver()

    def break_qmp(self) -> None:
        """QEMU lives on, its QMP connection does not."""
        for link in self.qemu.links:
            if not link.is_over:
                link.cut(clean=True)
        self.deliver()

    def write(self, *pages: int) -> None:
        """The guest writes to these pages what it never wrote before."""
        assert self.qemu.run_state == "running"
        for page in pages:
            self.guest.write(page, int(self.guest.ram[page, 0]) + 1)

    def say(self, frames: int = 1) -> Frame:
        """The guest sends frames; the last of them."""
        assert self.qemu.run_state == "running", f"a guest that is {self.qemu.run_state} says nothing"
        frame = Frame(self.guest.pid, 0)
        for _ in range(frames):
            self.frames_of += 1
            self.guest.write(0, self.frames_of)
            frame = Frame(self.guest.pid, self.frames_of)
            self.gates.sends(frame)
        return frame

    def was_seen(self, frame: Frame) -> bool:
        """Whether the outside has seen it."""
        return frame in self.gates.seen

    def _leaves(self, frame: Frame) -> None:
        """The rule of all rules."""
        if self.standby.covers(frame):
            return
        vm = self.vm
        assert vm is not None
        self.assertEqual(frame.pid, self.qemu.guest.pid, "a frame of a guest that is dead, and that no standby knows")
        self.assertFalse(self.qemu.is_dead, "the guest is dead")
        self.assertIn(vm.state, _LET_OUT, f"{frame} leaves, and no checkpoint covers it")
        self.assertEqual(self.told[-1][0], vm.state, "it was told before")
        if self.config.on_secondary_loss is SecondaryLoss.HOLD:
            self.assertFalse(vm.is_wanted, "on hold nothing leaves that no standby knows")

    # ftd

    def new_primary(self, **changes: Any) -> VmPrimary:
        """ftd comes up; QEMU has not been found."""
        self.config = self._config(changes)
        self.gates = ModelGates(self._leaves)
        self.carrier = FakeCarrier(self.reactor, self.standby)
        self.carrier.on_change = self._changed
        self.reactor.on_turn = self._turn
        around = VmSurroundings(
            reactor=self.reactor,
            run_in_thread=self._in_thread,
            now=self.now,
            ticks=self.reactor.seconds,
        )
        vm = VmPrimary(self.config, self.carrier, around, self.gates, directory=self.state, processes=self.processes)
        self.vm = vm
        self._changed()
        vm.start()
        return vm

    def start(self, **changes: Any) -> VmPrimary:
        """The same, and QEMU is found; there is no standby yet."""
        vm = self.new_primary(**changes)
        self.pass_time(0.05)
        return vm

    def protected(self, **changes: Any) -> VmPrimary:
        """The VM is protected."""
        vm = self.start(**changes)
        self.connect()
        self.pass_time(0.05)
        self.assertIs(vm.state, VmState.PROTECTED, vm.reason)
        return vm

    def connect(self) -> None:
        """The standby is there."""
        assert self.vm is not None
        last = self.carrier.is_back()
        self.vm.session_opened(last)
        self.deliver()

    def lose(self, why: str = "the standby closed the link", *, silence: float = 0.0, has_it: bool = False) -> None:
        """The link breaks; ``has_it``: the standby has what was committed."""
        vm = self.vm
        assert vm is not None
        self.carrier.is_lost(lambda: vm.session_lost(why, silence), has_it=has_it)
        self.deliver()

    def crash(self) -> None:
        """ftd is killed; QEMU and the files stay."""
        self._let_die()
        self.vm = None

    def end(self) -> None:
        """Stop ftd, and see that nothing is left of it."""
        vm, self.vm = self.vm, None
        if vm is None:
            return
        self.vm = vm
        self.let_end()
        self.stop_vm(vm)
        self.vm = None
        if not self.guest_stands_still and not self.qemu.is_dead:
            self.assertEqual(self.qemu.run_state, "running", "the guest was left standing still")

    def let_end(self) -> None:
        """What would hold up its end does so no more."""
        self.carrier.acks = True
        if self.carrier.is_frozen:
            self.carrier.thaw()

    def stop_vm(self, vm: VmPrimary) -> None:
        """Stop it, and see that nothing is left."""
        stopping = vm.stop()
        self.run_threads()
        self.pass_time(2 * QEMU_TIME, 0.05)
        self.run_threads()
        self.assert_stopped(stopping)

    def assert_stopped(self, stopping: Deferred[None]) -> None:
        """It is, and nothing is left."""
        self.successResultOf(stopping)
        self.vm = None
        self.assertEqual(self.reactor.getDelayedCalls(), [], "timers are left")
        self.assertEqual(self.reactor.readers, [], "readers are left")
        self.assertFalse(self.gates.is_started)
        self.assertTrue(all(tracker.is_closed for tracker in self.guest.trackers), "a tracker is left")

    def _let_die(self) -> None:
        vm, marker = self.vm, self.marker
        assert vm is not None
        silence(link.client for link in self.reactor.links)
        # Nothing reaches the world any more.  What waits comes to its end all the same: what is left to the garbage
        # collector would come to it at any time.
        self.vm = None
        self.reactor.on_turn = lambda: False
        vm._is_ending = True
        if vm._keeper.qmp is not None:
            vm._keeper.qmp.hang_up()
        if vm._series.replication is not None:
            vm._series.replication.interrupt(is_link_down=True)
        vm._schedule.lost()
        self.run_threads()
        self.thread = None
        vm._keeper.let_go()
        vm._marker.close()
        self.marker = marker
        for reader in list(self.reactor.readers):
            reader.abandon()
        for call in list(self.reactor.getDelayedCalls()):
            call.cancel()
        self.reactor.unix_dialling.clear()
        self.reactor.deliver()
        self.reactor.links.clear()

    # Time

    def now(self) -> float:
        """Unix seconds."""
        return EPOCH + self.reactor.seconds()

    def deliver(self) -> None:
        """Let everything arrive."""
        self.reactor.deliver()

    def pass_time(self, seconds: float = INTERVAL, step: float = 0.01) -> None:
        """Let time pass, and everything that is said arrive."""
        self.reactor.pass_time(seconds, step)

    def until(self, is_so: Callable[[], bool], most: float = 5.0) -> None:
        """Let time pass until something is so."""
        self.deliver()
        for _ in range(round(most / 0.01)):
            if is_so():
                return
            self.pass_time(0.01)
        raise AssertionError(f"not within {most} s; the VM is {self.told[-1]}")

    def run_threads(self) -> None:
        """Threads that wait to be told do all that there is to do."""
        while self.thread is not None and self.thread.waiting:
            self.thread.step()
            self.deliver()

    def _in_thread(self, act: Callable[..., Any], *args: Any, **more: Any) -> Deferred[Any]:
        run = run_at_once if self.thread is None else self.thread
        return run(partial(act, *args, **more))

    def _turn(self) -> bool:
        if self.carrier.hung_up and self.vm is not None:
            self.carrier.hung_up = False
            vm = self.vm
            self.carrier.is_lost(lambda: vm.session_lost("stopped", 0.0))
            return True
        return self.carrier.turn()

    def _choose(self, kind: str, vm: Vm, ram: GuestRam) -> RamTracker:  # noqa: ARG002
        qemu = self.qemu
        return RamTracker(self.guest, ram, lambda: qemu.run_state == "running", collects=self.collects)

    @property
    def tracker(self) -> RamTracker:
        """The newest."""
        return self.guest.trackers[-1]

    def _changed(self) -> None:
        vm = self.vm
        if vm is not None:
            self.told.append((vm.state, vm.reason))

    # What is to be seen

    @property
    def marker(self) -> Stopped:
        """Why the guest stands still, as the next ftd would read it."""
        marker = StopMarker(self.state / "stopped")
        try:
            return marker.value
        finally:
            marker.close()

    @marker.setter
    def marker(self, value: Stopped) -> None:
        marker = StopMarker(self.state / "stopped")
        marker.value = value
        marker.close()

    def committed(self) -> int:
        """How many checkpoints the standby has taken."""
        return len(self.standby.headers)

    def next_checkpoint(self) -> None:
        """Let time pass until there is one more."""
        before = self.committed()
        self.until(lambda: self.committed() > before)
        self.deliver()

    def assert_state(self, state: VmState, why: str = "") -> None:
        """It is so, was told, and the reason says ``why``."""
        assert self.vm is not None
        self.assertIs(self.vm.state, state, self.vm.reason)
        self.assertIn(why, self.vm.reason)
        self.assertEqual(self.told[-1], (self.vm.state, self.vm.reason))
        self.assertIs(self.vm.status().status, state)

    def assert_protects(self) -> None:
        """All is well: what the guest writes and says now is committed and seen."""
        frame = self.say()
        self.write(7, 9)
        self.next_checkpoint()
        self.until(lambda: self.was_seen(frame))
        self.assert_state(VmState.PROTECTED)
        self.assertEqual(self.qemu.run_state, "running")

    def refusal(self, kind: type[FtdError], doing: Deferred[Any] | Callable[[], object]) -> str:
        """The error that it raises, or errbacks with."""
        if callable(doing):
            return str(self.assertRaises(kind, doing))
        return str(self.failureResultOf(doing, kind).value)

    def commit_of(self, doing: Deferred[Commit]) -> Commit:
        """What a commit came to."""
        self.deliver()
        return self.successResultOf(doing)

    def standby_has(self, generation: str, number: int) -> None:
        """Whatever it had before."""
        self.standby.last = LastCheckpoint(generation, number)


def silence(ends: Iterable[BoundedTransport]) -> None:
    """A process that was killed hears nothing more, and its peers hear that it is gone."""
    for end in ends:
        if end.connected:
            end._protocol = Protocol()
            end.abortConnection()
