"""
Both halves of a VM's pair, linked in memory: the real pairs, the real primary and standby, and a real store.

Each side has a host of its own, with a reactor, so that one of them can be killed and the other one lives on.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from twisted.internet.defer import Deferred, maybeDeferred

from ftd.bus import EventBus
from ftd.config import pair_from_mapping
from ftd.pair import Surroundings
from ftd.primary_vm import VmPrimaryPair
from ftd.secondary_vm import VmSecondaryPair
from ftd.status import LinkState, VmState
from ftd.test.vm.primary_carrier import ModelStandby
from ftd.test.vm.primary_case import QEMU_TIME, PrimaryCase, silence
from ftd.test.vm.primary_world import PAGES, Frame, ModelGates, VmReactor
from ftd.test.vm.standby_case import FakeProcesses
from ftd.testing.fake_qmp import FakeQemu
from ftd.testing.threads import run_at_once
from ftd.testing.transport import Link, Network
from ftd.vm.carrier import Carrier
from ftd.vm.device_feed import load_from
from ftd.vm.discovery import Backend, discover
from ftd.vm.netgate import GateState
from ftd.vm.primary import VmPrimary
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.ram import PAGE_WORDS, GuestRam
from ftd.vm.standby import VmStandby
from ftd.vm.standby_parts import StandbyParts
from ftd.vm.standby_store import StandbyStore
from ftd.vm.surroundings import VmSurroundings
from ftd.wire.hello import LastCheckpoint

QMP_B = "/run/standby.qmp"

#: Seconds.
HEARTBEAT = 0.5


class StoredStandby(ModelStandby):
    """What the standby's host has: the store, and the file that is its QEMU's RAM."""

    def __init__(self, case: LinkedCase) -> None:
        super().__init__(lambda state: case.moments[state])
        self._case = case

    def covers(self, frame: Frame) -> bool:
        """See `ModelStandby`."""
        ram = self._case.ram_b()
        return bool(ram[0, 1] == frame.pid and ram[0, 0] >= frame.number)


class _Pair(VmPrimaryPair):
    """One that a test listens to."""

    on_change: Any = None

    def changed(self) -> None:
        """See `Carrier`."""
        super().changed()
        self.on_change()


class LinkedCase(PrimaryCase):
    """
    A primary on host A, as in `PrimaryCase`, and a standby on host B.

    :ivar pair: the primary's half; `secondary` the other one.
    :ivar loaded: device states that the standby's QEMU has loaded.
    """

    def setUp(self) -> None:
        super().setUp()
        self.standby = StoredStandby(self)
        self.network = Network()
        self.bus = EventBus(self.now)
        self.reactor_b = VmReactor()
        self.processes_b = FakeProcesses(self.reactor_b)
        self.state_b = self.root / "state-b"
        self.state_b.mkdir()
        self.loaded: list[bytes] = []
        self.log_b: list[str] = []
        self.secondary: VmSecondaryPair | None = None
        self.pair: VmPrimaryPair | None = None
        # Durability has its own tests.
        self.patch(os, "fsync", lambda _: None)
        self._pids = 7000
        self.new_qemu_b()

    def tearDown(self) -> None:
        if self.secondary is not None:
            self.end_b()
        super().tearDown()

    # Host B

    def new_qemu_b(self) -> FakeQemu:
        """One that waits for a VM, with RAM that is another one's or new."""
        self._pids += 1
        path = self.root / "ram-b"
        if not path.exists():
            with path.open("wb") as file:
                file.truncate(PAGES * PAGE_WORDS * 8)
        backend = Backend("ram0", PAGES * PAGE_WORDS * 8, str(path))
        self.qemu_b = FakeQemu(self.reactor_b, backends=[backend], run_state="inmigrate", pid=self._pids)
        self.reactor_b.qemus[QMP_B] = self.qemu_b
        self.processes_b.living[self._pids] = self.qemu_b
        return self.qemu_b

    def ram_b(self) -> NDArray[np.uint64]:
        """The RAM of the standby's QEMU."""
        return np.fromfile(self.root / "ram-b", np.uint64).reshape(PAGES, PAGE_WORDS)

    def start_b(self, **keys: str) -> VmSecondaryPair:
        """ftd comes up on host B."""
        values = {"role": "secondary", "link": "tcp:8441", "sink": "qemu", "qemu-qmp": QMP_B}
        config = attrs.evolve(pair_from_mapping("vm", values | keys), qemu_time=QEMU_TIME, heartbeat=HEARTBEAT)
        around = VmSurroundings(reactor=self.reactor_b, run_in_thread=self._in_thread_b, now=self.now)
        self.gates_b = ModelGates(lambda _: None)

        def connect(connected: Any, lost: Any, failed: Any) -> QmpConnection:
            return QmpConnection(
                self.reactor_b, QMP_B, limit=QEMU_TIME, reconnect_max=0.2, connected=connected, lost=lost, failed=failed
            )

        def load(qmp: Qmp, state: memoryview) -> Deferred[None]:
            take = partial(self.loaded.append, bytes(state))
            return Deferred.fromCoroutine(load_from(qmp, "fd:test", take, self.reactor_b, QEMU_TIME))

        parts = StandbyParts(
            connect=connect,
            store=StandbyStore(self.root / "staging", limit=16 << 20, now=self.now),
            gates=self.gates_b,
            processes=self.processes_b,
            discover=partial(discover, standby=True),
            load=load,
            open_ram=partial(GuestRam, writable=True),
        )
        self.secondary = VmSecondaryPair(
            config,
            Surroundings(clock=self.reactor_b, bus=EventBus(self.now), node="host-b", now=self.now),
            endpoint=self.network.server_endpoint(),
            make_standby=lambda changed: VmStandby(
                config, around, directory=self.state_b, changed=changed, parts=parts
            ),
        )
        self.successResultOf(self.secondary.start())
        self.pass_time(0.1)
        return self.secondary

    def end_b(self) -> None:
        """Stop ftd on host B; nothing is left of it."""
        secondary, self.secondary = self.secondary, None
        assert secondary is not None
        stopping = secondary.stop()
        self.pass_time(0.5)
        self.successResultOf(stopping)
        self.assertEqual(self.reactor_b.getDelayedCalls(), [], "timers of the standby are left")

    def crash_b(self) -> None:
        """ftd is killed on host B; QEMU and the files stay."""
        secondary, self.secondary = self.secondary, None
        assert secondary is not None
        assert secondary._port is not None
        self.successResultOf(maybeDeferred(secondary._port.stopListening))
        silence(link.client for link in self.reactor_b.links)
        silence(link.server for link in self.network.links)
        for call in list(self.reactor_b.getDelayedCalls()):
            call.cancel()
        self.reactor_b.unix_dialling.clear()
        self.deliver()
        self.reactor_b.links.clear()
        # The kernel closes what it had open.
        secondary._standby._close_ram()
        secondary._standby._store.close()

    def kill_qemu_b(self) -> None:
        """SIGKILL."""
        self.qemu_b.die()
        self.deliver()

    def _in_thread_b(self, act: Any, *args: Any, **more: Any) -> Deferred[Any]:
        return run_at_once(partial(act, *args, **more))

    # Host A

    def new_primary(self, **changes: Any) -> VmPrimary:
        """See `PrimaryCase`."""
        changes = {"heartbeat": HEARTBEAT} | changes
        self.config = self._config(changes)
        self.gates = ModelGates(self._leaves)
        self.reactor.on_turn = self._turn
        made: list[VmPrimary] = []

        def make_vm(carrier: Carrier) -> VmPrimary:
            around = VmSurroundings(
                reactor=self.reactor, run_in_thread=self._in_thread, now=self.now, ticks=self.reactor.seconds
            )
            made.append(
                VmPrimary(self.config, carrier, around, self.gates, directory=self.state, processes=self.processes)
            )
            return made[0]

        pair = self.pair = _Pair(
            self.config,
            Surroundings(clock=self.reactor, bus=self.bus, node="host-a", now=self.now),
            endpoint=self.network.client_endpoint(),
            directory=self.state,
            make_vm=make_vm,
        )
        pair.on_change = self._changed
        self.vm = made[0]
        self._changed()
        self.successResultOf(pair.start())
        return self.vm

    def protect(self, **changes: Any) -> VmPrimary:
        """Both sides come up, and the VM is protected."""
        self.start_b()
        vm = self.start(**changes)
        self.until_protected()
        return vm

    def until_protected(self) -> None:
        """Let time pass until it is."""
        self.until(lambda: self.told[-1] == (VmState.PROTECTED, ""), 10.0)

    def let_end(self) -> None:
        """See `PrimaryCase`."""

    def stop_vm(self, vm: VmPrimary) -> None:
        """See `PrimaryCase`."""
        pair = self.pair
        assert pair is not None and vm is self.vm
        stopping = pair.stop()
        self.pass_time(1.0)
        self.assert_stopped(stopping)

    def _let_die(self) -> None:
        silence(link.client for link in self.network.links)
        super()._let_die()
        self.reactor.on_turn = self._turn
        self.deliver()

    def kill_host_a(self) -> None:
        """Its power is cut: ftd and QEMU are gone, and nobody says so."""
        self.qemu.die()
        self.crash()

    def host_a_is_back(self, **changes: Any) -> VmPrimary:
        """Somebody has started its VM and ftd again."""
        self._pids += 1
        self.new_qemu(self._pids)
        return self.start(**changes)

    # Time and the network

    @property
    def link(self) -> Link:
        """The newest."""
        return self.network.links[-1]

    def cut(self, *, clean: bool = False) -> None:
        """The link breaks now."""
        self.link.cut(clean=clean)
        self.deliver()

    def pass_time(self, seconds: float = 0.1, step: float = 0.01) -> None:
        """See `PrimaryCase`."""
        self.deliver()
        for _ in range(round(seconds / step)):
            self.reactor.advance(step)
            self.reactor_b.advance(step)
            self.deliver()

    def _turn(self) -> bool:
        moved = any(link.step() for link in self.network.links)
        moved |= any(link.step() for link in self.reactor_b.links)
        return moved or self.reactor_b._answer_dialling()

    # What is to be seen

    def committed(self) -> int:
        """The number of the newest checkpoint that the standby has, in whatever generation."""
        return sum(self.held()[1:])

    def held(self) -> tuple[str, int]:
        """What the standby holds."""
        assert self.secondary is not None
        held = self.secondary._standby._store.held
        return (held.generation, held.number) if held is not None else ("", 0)

    def last(self) -> LastCheckpoint:
        """The same, as the wire has it."""
        return LastCheckpoint(*self.held())

    def assert_taken_over(self, **result: Any) -> None:
        """Host B runs the VM from the newest committed checkpoint, and nobody has seen anything it does not know."""
        del result
        ram = self.ram_b()
        np.testing.assert_array_equal(ram, self.moments[self.loaded[-1]])
        self.assertEqual(self.qemu_b.run_state, "running")
        self.assertIs(self.gates_b.state, GateState.OPEN)
        for frame in self.gates.seen:
            self.assertLessEqual(frame.number, int(ram[0, 0]), "it was seen, and nobody knows it any more")

    def promote(self, *, force: bool = False) -> None:
        """Host B takes over."""
        assert self.secondary is not None
        promoting = self.secondary.promote(force)
        self.pass_time(0.2)
        self.successResultOf(promoting)
        self.assertEqual(self.secondary.link_state, LinkState.DOWN)

    def path_b(self, name: str) -> Path:
        """A file of ftd's on host B."""
        return self.state_b / name
