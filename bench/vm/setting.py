"""The machines and daemons that are measured: those of the end to end tests, set up for that."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import numpy as np
from rich.console import Console

from bench.vm.bare import Bare
from tests.daemon import free_port, scratch_directory, start_all
from tests.interruptible import shielded
from tests.vm import guest as guests
from tests.vm.guest import Guest
from tests.vm.memory import memory_directory
from tests.vm.pair import PAIR, VmPair
from tests.vm.programs import QemuProgram
from tests.vm.qemu import Qemu
from tests.waiting import pause

MIB = 1 << 20

#: Pages that the guest dirties in each turn, and so in each epoch.
DIRTY = 256

#: Seconds for a full checkpoint of the largest guest.
_SYNC_TIME = 300.0

#: MiB at both ends of RAM that are the guest's and the BIOS's.
_LOW, _HIGH = 4, 2

#: Times the guest's RAM that a pair takes: both machines, what a standby has staged, what is compared with, a buffer.
_MEMORY_FACTOR = 6


class Progress:
    """
    What is done now, on stderr.

    :ivar console: for that.
    """

    def __init__(self, is_quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=is_quiet, highlight=False)
        self._begin = time.monotonic()

    def say(self, what: str) -> None:
        """One line."""
        self.console.print(f"[dim]{time.monotonic() - self._begin:6.1f} s[/]  {what}", soft_wrap=True)


def counter(ram: int) -> Guest:
    """The guest that counts, with all of its RAM there from the start."""
    guest = guests.counter(pages=DIRTY, ram=ram)
    return attrs.evolve(guest, arguments=(*guest.arguments, "-mem-prealloc"))


def size(ram: int) -> str:
    """MiB as people write them."""
    return f"{ram} MiB" if ram < 1024 else f"{ram / 1024:g} GiB"


def has_memory_for(ram: int) -> bool:
    """Whether this machine can hold a pair of such guests."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].removesuffix("kB")) * 1024
    return available > _MEMORY_FACTOR * ram * MIB and shutil.disk_usage("/dev/shm").free > 4 * ram * MIB


def fill(qemu: Qemu) -> None:
    """
    Put something into all the memory that the guest does not use: pages of zeros would neither be sent nor take the
    time to be compared that others do.  No tracker may be there yet, as it would not see it.
    """
    block = np.random.default_rng(1).integers(0, 1 << 62, (MIB // 4096, 512), dtype=np.uint64)
    with qemu.ram.open("r+b") as file:
        file.seek(_LOW * MIB)
        for number in range(qemu.guest.ram - _LOW - _HIGH):
            block[:, 0] = np.arange(len(block), dtype=np.uint64) + np.uint64(number * len(block))
            file.write(block.data)


class Pair:
    """
    A protected VM: an asynchronous context.

    :param keys: of the primary's section.
    :param interval: milliseconds; 0: checkpoints are taken by `checkpoint` only.
    """

    def __init__(
        self,
        program: QemuProgram,
        guest: Guest,
        *,
        keys: Mapping[str, str] | None = None,
        interval: int = 50,
        **more: Any,
    ) -> None:
        self.directory, self.memory = scratch_directory(), memory_directory()
        port = free_port()
        logs = iter(("a", "b"))
        self.vm = VmPair(
            program,
            guest,
            directory=self.directory,
            memory=self.memory,
            logs=lambda: self.directory / f"{next(logs)}.log",
            # Nothing between the two but the loopback.
            a_keys={"link": f"tcp:127.0.0.1:{port}", "qemu-interval": f"{interval}ms", **(keys or {})},
            b_keys={"link": f"tcp:{port}:interface=127.0.0.1"},
            **more,
        )

    async def __aenter__(self) -> Pair:
        try:
            await self._start()
        except BaseException:
            await self.remove()
            raise
        return self

    async def _start(self) -> None:
        primary = self.vm.primary
        primary.start()
        await primary.until_counting()
        fill(primary)
        await start_all(self.vm.a, self.vm.b)
        if not self.vm.starts_standby:
            self.vm.standby.start()
        await self.vm.protected(within=_SYNC_TIME)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.remove()

    async def remove(self) -> None:
        """End everything and remove its files."""
        with shielded():
            await self.vm.remove()
            for directory in (self.directory, self.memory):
                shutil.rmtree(directory, ignore_errors=True)

    def bare(self) -> Bare:
        """A way to the primary's QEMU that knows nothing of ftd."""
        return Bare(self.vm.primary.test_monitor, self.directory)

    # What is asked of the daemons

    async def protect(self, enabled: bool, interval: int) -> None:
        """Turn protection off, or on and wait until it is."""
        answer = await self.vm.a.http.send_json(
            "PUT", f"/v1/pairs/{PAIR}/protection", {"enabled": enabled, "interval_ms": interval}
        )
        assert answer.status == 200, answer
        status = "protected" if enabled else "unprotected"
        await self.vm.until_vm(self.vm.a, within=_SYNC_TIME, status=status)

    async def checkpoint(self) -> dict[str, Any]:
        """Have one taken now, and wait until it is committed; the ``vm`` of the primary after that."""
        for action in ("begin", "commit"):
            answer = await self.vm.post(self.vm.a, action)
            assert answer.status in (200, 201, 202), answer
        return await self.vm.vm(self.vm.a)

    def cpu_seconds(self) -> float:
        """What both daemons have used so far."""
        return sum(_cpu_seconds(daemon.pid) for daemon in (self.vm.a, self.vm.b))


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def speed(qemu: Qemu, seconds: float) -> float:
    """How often the guest counts in a second."""
    count, begin = qemu.count_in_memory(), time.perf_counter()
    await pause(seconds)
    end_count, end = qemu.count_in_memory(), time.perf_counter()
    return (end_count - count) / (end - begin)
