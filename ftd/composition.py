"""How a pair is put together from its configuration: endpoints, sinks, directories."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from twisted.internet.endpoints import clientFromString, serverFromString
from twisted.internet.threads import deferToThreadPool
from twisted.python.threadpool import ThreadPool

from ftd.config import PairConfig, Role, Sink, Source
from ftd.errors import ConfigError
from ftd.interfaces import IStoringSink
from ftd.pair import Surroundings
from ftd.primary import PrimaryPair
from ftd.primary_vm import VmPrimaryPair
from ftd.secondary import SecondaryPair
from ftd.secondary_vm import VmSecondaryPair
from ftd.sinks import DirectorySink, MemorySink
from ftd.sinks.blocks import Arena
from ftd.vm.carrier import Carrier
from ftd.vm.gates import Gates
from ftd.vm.netgate import NetGate
from ftd.vm.primary import VmPrimary
from ftd.vm.promotion import become_primary
from ftd.vm.standby import VmStandby
from ftd.vm.surroundings import VmSurroundings

#: Threads that all VMs of a daemon may use at a time: one each while a guest is stopped.
_VM_THREADS = 64


def build_pair(config: PairConfig, around: Surroundings, state_dir: Path, reactor: Any) -> PrimaryPair | SecondaryPair:
    """
    Make a half-pair that has not started yet.

    :raises ConfigError: if its part of ``state-dir`` cannot be used.
    """
    directory = state_dir / "pairs" / config.section
    try:
        return _build(config, around, directory, reactor)
    except OSError as error:
        raise ConfigError(f"{error.filename or directory}: {error.strerror}", "ftd", "state-dir") from None


def _build(config: PairConfig, around: Surroundings, directory: Path, reactor: Any) -> PrimaryPair | SecondaryPair:
    if config.source is Source.QEMU:
        return _build_vm_primary(config, around, directory, reactor)
    if config.sink is Sink.QEMU:
        return _build_vm_secondary(config, around, directory, reactor)
    if config.role is Role.PRIMARY:
        return PrimaryPair(config, around, endpoint=clientFromString(reactor, config.link), directory=directory)
    return SecondaryPair(
        config,
        around,
        endpoint=serverFromString(reactor, config.link),
        sink=_build_sink(config, directory / "checkpoints", reactor),
    )


def _build_sink(config: PairConfig, directory: Path, reactor: Any) -> IStoringSink:
    arena = _arena(reactor)
    if config.sink is Sink.MEMORY:
        return MemorySink(config.keep, config.memory_limit, arena=arena)
    in_thread = partial(deferToThreadPool, reactor, reactor.getThreadPool())
    sink = DirectorySink(directory, config.keep, in_thread, arena=arena)
    sink.recover()
    return sink


@lru_cache(maxsize=1)
def _arena(reactor: Any) -> Arena:
    """The memory that all pairs of the daemon take turns in using."""
    del reactor
    return Arena()


def _build_vm_primary(config: PairConfig, around: Surroundings, directory: Path, reactor: Any) -> PrimaryPair:
    vm_around = _vm_surroundings(around, reactor)
    become_primary(directory)

    def make_vm(carrier: Carrier) -> VmPrimary:
        gates = [
            NetGate(reactor, net, held_limit=config.qemu_held_limit, name=config.section) for net in config.qemu_nets
        ]
        return VmPrimary(config, carrier, vm_around, Gates(gates), directory=directory)

    endpoint = clientFromString(reactor, config.link)
    return VmPrimaryPair(config, around, endpoint=endpoint, directory=directory, make_vm=make_vm)


def _build_vm_secondary(config: PairConfig, around: Surroundings, directory: Path, reactor: Any) -> SecondaryPair:
    def make_standby(changed: Callable[[], None]) -> VmStandby:
        return VmStandby(config, _vm_surroundings(around, reactor), directory=directory, changed=changed)

    endpoint = serverFromString(reactor, config.link)
    return VmSecondaryPair(config, around, endpoint=endpoint, make_standby=make_standby)


def _vm_surroundings(around: Surroundings, reactor: Any) -> VmSurroundings:
    return VmSurroundings(reactor=reactor, run_in_thread=_run_in_vm_thread(reactor), node=around.node, now=around.now)


@lru_cache(maxsize=1)
def _run_in_vm_thread(reactor: Any) -> Callable[..., Any]:
    """
    Threads of the VMs' own: a guest that is stopped does not wait for a disk that another pair syncs.
    """
    pool = ThreadPool(minthreads=0, maxthreads=_VM_THREADS, name="ftd-vm")
    pool.start()
    reactor.addSystemEventTrigger("after", "shutdown", pool.stop)
    return partial(deferToThreadPool, reactor, pool)
