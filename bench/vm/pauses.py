"""Parts ``pause`` and ``compare``: how long a checkpoint stops the guest, how fast it runs, and what that takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs

from bench.vm.bare import Bare, BarePause, stopped_times
from bench.vm.figures import Figure, median, milliseconds
from bench.vm.memory_pass import MemoryPass
from bench.vm.setting import MIB, Pair, Progress, counter, has_memory_for, size, speed
from tests.vm.programs import QemuProgram
from tests.waiting import pause

#: What a pause with write protection may be longer than QEMU's own, in milliseconds, and for each GiB of RAM.
WRITE_PROTECT_MORE, WRITE_PROTECT_PER_GIB = 3.0, 0.5

#: Times a pass over RAM that a pause with comparison may be longer.
PASSES = 1.3

#: Seconds between two pauses: an epoch.
EPOCH = 0.05


@attrs.frozen(kw_only=True)
class Extent:
    """
    How much is measured.

    :ivar rounds: of protection off, bare, protection on.
    :ivar pauses: of each kind in a round.
    :ivar seconds: for which the guest's speed is measured, twice in a round; 0: it is not.
    """

    rounds: int
    pauses: int
    seconds: float


class Samples:
    """What has been measured, in seconds and counts a second."""

    def __init__(self) -> None:
        self.by_socket: list[BarePause] = []
        self.by_pipe: list[BarePause] = []
        self.ftd: list[dict[str, float]] = []
        self.dirty: list[int] = []
        self.passes: list[float] = []
        self.bare_stopped: list[float] = []
        self.ftd_stopped: list[float] = []
        self.timed_stopped: list[float] = []
        self.free: list[float] = []
        self.protected: list[float] = []
        self.cpu: list[float] = []


async def measure(program: QemuProgram, ram: int, dirty: str, extent: Extent, progress: Progress) -> list[Figure]:
    """All figures of one guest with one way of finding dirty pages."""
    part, guest = ("compare" if dirty == "compare" else "pause"), size(ram)
    if not has_memory_for(ram):
        progress.say(f"[yellow]{guest}: this machine has not the memory for it[/]")
        return []
    progress.say(f"{guest}, {dirty}: two machines, two daemons, the first full checkpoint")
    samples = Samples()
    async with Pair(program, counter(ram), keys={"qemu-dirty": dirty}, interval=0) as pair:
        bare = pair.bare()
        memory = MemoryPass(ram * MIB, pair.memory / "pass") if dirty == "compare" else None
        try:
            for number in range(extent.rounds):
                progress.say(f"{guest}, {dirty}: round {number + 1} of {extent.rounds}")
                await _unprotected(pair, bare, memory, extent, samples)
                await _protected(pair, bare, extent, samples)
        finally:
            bare.close()
            if memory is not None:
                memory.close()
    return [*_pause_figures(part, guest, ram, dirty, samples), *_speed_figures(part, guest, samples)]


async def _unprotected(pair: Pair, bare: Bare, memory: MemoryPass | None, extent: Extent, samples: Samples) -> None:
    await pair.protect(False, 0)
    if extent.seconds:
        samples.free.append(await speed(pair.vm.primary, extent.seconds))
    bare.events()
    for _ in range(extent.pauses):
        await pause(EPOCH)
        samples.by_socket.append(bare.pause_by_socket())
        await pause(EPOCH)
        bare.events()
        samples.by_pipe.append(bare.pause_by_pipe())
        samples.bare_stopped += stopped_times(bare.events())
        if memory is not None:
            # With the cores as idle as they are in a pause.
            bare.ask("stop")
            samples.passes.append(memory.seconds())
            bare.cont()


async def _protected(pair: Pair, bare: Bare, extent: Extent, samples: Samples) -> None:
    await pair.protect(True, 0)
    # The first ones have what was written meanwhile, and memory that was not used for a while.
    for _ in range(2):
        await pair.checkpoint()
    for _ in range(extent.pauses):
        await pause(EPOCH)
        bare.events()
        vm = await pair.checkpoint()
        samples.ftd.append(vm["pause_ms"])
        samples.dirty.append(vm["dirty_pages"])
        samples.ftd_stopped += stopped_times(bare.events())
    if extent.seconds:
        await pair.protect(True, round(EPOCH * 1000))
        await pause(2 * EPOCH)
        checkpoint, cpu = (await pair.vm.vm(pair.vm.a))["checkpoint"], pair.cpu_seconds()
        bare.events()
        samples.protected.append(await speed(pair.vm.primary, extent.seconds))
        samples.timed_stopped += stopped_times(bare.events())
        cpu = pair.cpu_seconds() - cpu
        samples.cpu.append(cpu / ((await pair.vm.vm(pair.vm.a))["checkpoint"] - checkpoint))


def _pause_figures(part: str, guest: str, ram: int, dirty: str, samples: Samples) -> list[Figure]:
    def times(name: str, seconds: Sequence[float], **more: Any) -> Figure:
        return milliseconds(part, guest, name, seconds, **more)

    found = []
    for name, bare in (("unix:", samples.by_socket), ("fd:", samples.by_pipe)):
        steps = ", ".join(f"{step} {median(getattr(each, step) for each in bare) * 1e3:.2f}" for step in _STEPS)
        note = f"QEMU alone: {steps}; {bare[0].state_bytes >> 10} KiB"
        found.append(times(f"bare, {name}", [each.total for each in bare], note=note))
    by_socket, by_pipe = found[0].value, found[1].value
    if dirty == "compare":
        found.append(times("one pass over RAM", samples.passes, note="memcmp, two threads"))
        more = PASSES * found[-1].value
        of_what = f"{PASSES:g} passes"
    else:
        more = WRITE_PROTECT_MORE + WRITE_PROTECT_PER_GIB * ram / 1024
        of_what = f"{more:.2f} ms"
    totals = [each["last"] / 1e3 for each in samples.ftd]
    value = median(totals) * 1e3
    for name, reference in (("unix:", by_socket), ("fd:", by_pipe)):
        note = f"bare {name} {reference:.2f} ms {value - reference:+.2f} ms; allowed + {of_what}"
        found.append(times(f"ftd, {dirty}", totals, limit=reference + more, note=note))
    found += [times(f"  {step}", [each[step] / 1e3 for each in samples.ftd]) for step in _FTD_STEPS]
    note = f"from STOP to RESUME; bare, fd: {median(samples.bare_stopped) * 1e3:.2f} ms"
    found.append(times("stopped, QEMU's clock", samples.ftd_stopped, note=note))
    if samples.timed_stopped:
        found.append(times("stopped, by the timer", samples.timed_stopped, note="the same, with ftd saying when"))
    pages = Figure(
        part=part,
        guest=guest,
        name="dirty pages",
        value=median(samples.dirty),
        unit="pages",
        samples=len(samples.dirty),
    )
    return [*found, pages]


def _speed_figures(part: str, guest: str, samples: Samples) -> list[Figure]:
    if not samples.free:
        return []
    free, protected = median(samples.free), median(samples.protected)
    rate = 1 / EPOCH
    return [
        Figure(
            part=part,
            guest=guest,
            name="guest's speed, protected",
            value=protected / free,
            unit="",
            samples=len(samples.free),
            note=f"of unprotected ({protected:.0f} of {free:.0f} counts/s), {rate:g} checkpoints/s",
        ),
        milliseconds(part, guest, "CPU a checkpoint", samples.cpu, note="of both daemons, all that they do"),
    ]


_STEPS = ("stop", "device", "cont")
_FTD_STEPS = ("stop", "device", "dirty", "cont")
