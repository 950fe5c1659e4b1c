"""What the tests of virtual machines stand on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tests.case import EndToEndCase
from tests.daemon import Daemon
from tests.vm import programs
from tests.vm.guest import Guest
from tests.vm.memory import memory_directory
from tests.vm.network import Client, Network
from tests.vm.observer import Observer
from tests.vm.pair import VmPair, told
from tests.vm.programs import QemuProgram
from tests.vm.qemu import Qemu

#: The taps of the primary and of the standby.
TAPS = ("tap-a", "tap-b")


class VmCase(EndToEndCase):
    """A case whose tests run virtual machines."""

    timeout = 240.0

    def setUp(self) -> None:
        self.program = self.which_qemu()

    def which_qemu(self) -> QemuProgram:
        """The QEMU that these tests are about.  :raises SkipTest: if it is not here."""
        return programs.system_qemu()

    def assert_no_fault(self, daemon: Daemon) -> None:
        """Nothing that happened was a surprise to the daemon."""
        if "Traceback (most recent call last)" in daemon.log():
            self.fail(told(daemon))

    def memory(self) -> Path:
        """A directory of this test on tmpfs."""
        directory = memory_directory()
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        return directory

    def machine(self, guest: Guest, name: str = "alone", **more: Any) -> Qemu:
        """A machine of this test that no daemon knows, not yet started."""
        qemu = Qemu(name, self.program, guest, directory=self.scratch(), memory=self.memory(), **more)
        self.addCleanup(qemu.remove)
        return qemu

    def pair(self, guest: Guest, *, directory: Path | None = None, **more: Any) -> VmPair:
        """A pair of this test, not yet started; see `VmPair` for what there is to say of it."""
        pair = VmPair(
            self.program,
            guest,
            directory=directory or self.scratch(),
            memory=self.memory(),
            logs=lambda: Path(self.mktemp()).absolute(),
            **more,
        )
        self.addCleanup(pair.remove)
        for daemon in (pair.a, pair.b):
            self.addCleanup(self.assert_no_fault, daemon)
        return pair

    async def observed_pair(self, guest: Guest, **more: Any) -> tuple[VmPair, Observer]:
        """A pair of this test, not yet started, whose frames all go to an observer."""
        directory = self.scratch()
        observer = Observer(directory / "uplink")
        self.addCleanup(observer.stop)
        await observer.listen()
        uplink = f"unix:{observer.path}"
        return self.pair(guest, directory=directory, uplinks=(uplink, uplink), **more), observer

    def network(self) -> Network:
        """A network of this test, with a tap for each machine of a pair."""
        network = Network(TAPS)
        self.addCleanup(network.remove)
        return network

    def networked_pair(self, guest: Guest, network: Network, **more: Any) -> VmPair:
        """A pair of this test, not yet started, that is in a network."""
        uplinks = (f"tap:{TAPS[0]}", f"tap:{TAPS[1]}")
        return self.pair(guest, uplinks=uplinks, prefix=network.inside(), **more)

    def client(self, network: Network, kind: str, port: int) -> Client:
        """A client of this test in a network: it starts at once, and asks the Linux guest."""
        client = Client(network, kind, "10.0.2.15", port, self.scratch())
        self.addCleanup(client.end)
        return client


class OnQemu10:
    """Before a `VmCase` among the bases of a class: its tests once more, with QEMU 10."""

    def which_qemu(self) -> QemuProgram:
        """See `VmCase.which_qemu`."""
        return programs.qemu_10()
