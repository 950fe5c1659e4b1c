"""What a standby is made of, so that tests can put something else in its place."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import attrs
import xxhash
from twisted.internet.defer import Deferred

from ftd.config import PairConfig
from ftd.vm.device_feed import load_device_state
from ftd.vm.discovery import Backend, Vm, discover
from ftd.vm.gates import Gates
from ftd.vm.netgate import NetGate
from ftd.vm.processes import Processes, SystemProcesses
from ftd.vm.qemu_command import QemuCommand
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.ram import GuestRam
from ftd.vm.standby_qemu import Connection, StandbyQemu
from ftd.vm.standby_store import StandbyStore
from ftd.vm.surroundings import VmSurroundings

#: Seconds between two attempts to reach QEMU at most: it is on this host, and a fresh one is waited for.
_RECONNECT_MAX = 0.5

#: Bytes of pages that a checkpoint may have, whatever the configuration allows a transaction: address space is
#: reserved for them.
_MOST_STAGED = 1 << 40


@attrs.frozen(kw_only=True)
class StandbyParts:
    """
    :ivar connect: see `ftd.vm.standby_qemu.StandbyQemu`.
    :ivar load: has QEMU load a device state, see `load_device_state`.
    :ivar open_ram: of the VM's backends, to write; blocks.
    """

    connect: Callable[[Callable[[Qmp], None], Callable[[str], None], Callable[[str], None]], Connection]
    store: StandbyStore
    gates: Gates
    processes: Processes
    discover: Callable[[Qmp], Deferred[Vm]]
    load: Callable[[Qmp, memoryview], Awaitable[None]]
    open_ram: Callable[[Sequence[Backend]], GuestRam]


def standby_parts(
    config: PairConfig, around: VmSurroundings, directory: Path, changed: Callable[[], None]
) -> StandbyParts:
    """
    Those of a standby on this host.

    :param directory: the pair's own.
    :raises QmpError: if its QMP socket can be none.
    """
    reactor, limit = around.reactor, config.qemu_time

    def connect(
        connected: Callable[[Qmp], None], lost: Callable[[str], None], failed: Callable[[str], None]
    ) -> Connection:
        return QmpConnection(
            reactor,
            config.qemu_qmp,
            limit=limit,
            reconnect_max=_RECONNECT_MAX,
            connected=connected,
            lost=lost,
            failed=failed,
        )

    def load(qmp: Qmp, state: memoryview) -> Awaitable[None]:
        return load_device_state(qmp, state, reactor, limit)

    gates = (
        NetGate(reactor, net, held_limit=config.qemu_held_limit, name=config.name, changed=changed)
        for net in config.qemu_nets
    )
    return StandbyParts(
        connect=connect,
        store=StandbyStore(
            staging_directory(config, directory),
            limit=min(config.max_transaction, _MOST_STAGED),
            device_limit=config.qemu_device_limit,
            now=around.now,
        ),
        gates=Gates(tuple(gates)),
        processes=SystemProcesses(),
        discover=partial(discover, standby=True),
        load=load,
        open_ram=partial(GuestRam, writable=True),
    )


def standby_qemu(
    config: PairConfig,
    around: VmSurroundings,
    parts: StandbyParts,
    directory: Path,
    *,
    arrived: Callable[[Qmp], None],
    left: Callable[[str], None],
    changed: Callable[[], None],
) -> StandbyQemu:
    """What looks after its QEMU, and starts it where there is a ``qemu-command``; see `StandbyQemu`."""
    command = None
    if config.qemu_command:
        command = QemuCommand(
            around.reactor,
            config.qemu_command,
            qmp_path=config.qemu_qmp,
            directory=directory,
            processes=parts.processes,
            changed=changed,
        )
    return StandbyQemu(
        parts.connect,
        command,
        clock=around.reactor,
        processes=parts.processes,
        qmp_path=config.qemu_qmp,
        limit=config.qemu_time,
        arrived=arrived,
        left=left,
        changed=changed,
    )


def staging_directory(config: PairConfig, directory: Path) -> Path:
    """
    Where what a pair was sent is kept: below ``qemu-staging-dir``, where several ftd may have pairs of one name.

    :param directory: the pair's own, by which they are told apart.
    """
    whose = xxhash.xxh3_64_hexdigest(os.fsencode(directory.absolute()))[:8]
    return Path(config.qemu_staging_dir) / f"ftd-{config.section}-{whose}"
