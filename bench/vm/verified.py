"""
Part ``verify``: whether the tracker misses a page.

ftd's own captures, without a standby: everything that would have been sent is noted, and while the guest is stopped its
whole RAM is compared with that.  Half of the checkpoints have a round in the background before them, in which pages are
found and copied while the guest writes.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

from bench.vm.figures import Figure
from bench.vm.setting import Progress, size
from ftd.config import Dirty, PairConfig, Role, Sink, Source
from ftd.vm.guest import Guest, attach
from ftd.vm.qmp import Qmp
from ftd.vm.qmp_connection import QmpConnection
from ftd.vm.ram import Numbers
from ftd.vm.stop_marker import StopMarker
from ftd.vm.surroundings import VmSurroundings
from ftd.vm.tracking import Verifier
from tests.daemon import scratch_directory
from tests.interruptible import shielded
from tests.vm import guest as guests
from tests.vm.memory import memory_directory
from tests.vm.programs import QemuProgram
from tests.vm.qemu import Qemu
from tests.waiting import pause, reactor

#: MiB.
RAM = 32

#: Seconds for which the guest runs between two checkpoints, at most.
_LONGEST_RUN = 0.008

#: Checkpoints after which there is a word of it.
_SAY_EVERY = 250

_LIMIT = 10.0

GUESTS: dict[str, Callable[[], guests.Guest]] = {
    "256 pages a turn": partial(guests.counter, ram=RAM),
    "as fast as it can": partial(guests.flood, ram=RAM),
}


async def measure(program: QemuProgram, checkpoints: int, progress: Progress) -> list[Figure]:
    """How many pages were missed in so many checkpoints, of each guest."""
    found = []
    for name, make in GUESTS.items():
        progress.say(f"verify: a guest that writes {name}, {checkpoints} checkpoints")
        missed, dirty, tracker = await _count_missed(program, make(), checkpoints, progress)
        note = f"{tracker}, compared with all of RAM; {dirty / checkpoints:.0f} pages a checkpoint"
        found += [
            Figure(
                part="verify",
                guest=size(RAM),
                name=f"missed, {name}",
                value=missed,
                unit="pages",
                samples=checkpoints,
                note=note,
                limit=0,
            )
        ]
    return found


async def _count_missed(
    program: QemuProgram, guest: guests.Guest, checkpoints: int, progress: Progress
) -> tuple[int, int, str]:
    """Pages missed, pages found, and by which tracker."""
    directory, memory = scratch_directory(), memory_directory()
    qemu = Qemu("verified", program, guest, directory=directory, memory=memory)
    marker = StopMarker(directory / "stopped")
    connected: Deferred[Qmp] = Deferred()
    connection = QmpConnection(
        reactor,
        str(qemu.monitor),
        limit=_LIMIT,
        reconnect_max=0.1,
        connected=connected.callback,
        lost=lambda why: progress.say(f"verify: {why}"),
    )
    try:
        qemu.start()
        connection.start()
        qmp = await connected
        await qemu.until_counting()
        around = VmSurroundings(reactor=reactor, run_in_thread=partial(deferToThread))
        config = PairConfig(
            section="bench",
            role=Role.PRIMARY,
            link="unix:/nowhere",
            source=Source.QEMU,
            sink=Sink.QEMU,
            qemu_qmp=str(qemu.monitor),
            qemu_dirty=Dirty.AUTO,
        )
        captures = _Captures(await attach(qmp, config, around, marker))
        try:
            for number in range(checkpoints):
                await pause(random.uniform(0.0, _LONGEST_RUN))
                await captures.one(in_background=number % 2 == 1)
                if (number + 1) % _SAY_EVERY == 0:
                    progress.say(f"verify: {number + 1} checkpoints, {captures.missed} pages missed")
            # That it has not found a page lost is what the guest itself says.
            qemu.counts()
        finally:
            captures.close()
        return captures.missed, captures.found, captures.tracker
    finally:
        with shielded():
            await connection.stop()
            marker.close()
            qemu.remove()
            for each in (directory, memory):
                shutil.rmtree(each, ignore_errors=True)


class _Captures:
    """Takes checkpoints that nobody gets."""

    def __init__(self, guest: Guest) -> None:
        self.missed = 0
        self.found = 0
        self.tracker = guest.tracker.name
        self._guest = guest
        self._verifier = Verifier(guest.ram)
        self._is_first = True

    def close(self) -> None:
        """Let go of the guest."""
        self._verifier.close()
        self._guest.close()

    async def one(self, *, in_background: bool) -> None:
        """One checkpoint, checked."""
        guest = self._guest
        if in_background:
            await guest.find_dirty()
            await self._in_thread(self._send, guest.dirty.unsent)
        captured = await guest.capture(lambda: (), resume=False)
        numbers = captured.numbers
        if self._is_first:
            # The full one: everything that there is.
            self._is_first = False
            numbers = np.arange(guest.ram.pages, dtype=np.int64)
        else:
            self.missed += len(await self._in_thread(self._verifier.check, numbers))
            self.found += len(numbers)
        await self._in_thread(self._send, numbers)
        await guest.cont()

    def _send(self, numbers: Numbers) -> None:
        """Note pages as sent, in portions as they are sent; in a thread."""
        staging, tracker = self._guest.staging, self._guest.tracker
        for first in range(0, len(numbers), staging.capacity):
            portion = numbers[first : first + staging.capacity]
            self._verifier.sent(portion, staging.take(tracker, portion))
        self._guest.dirty.taken()
        self._guest.dirty.committed()

    @staticmethod
    async def _in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
        return await deferToThread(function, *arguments)
