"""
The checkpoints of one guest for one standby, while both are there.

A checkpoint is *ordinary* or *in the background*.  An ordinary one stops the guest, takes what is dirty, lets it go on
and sends.  One in the background, which brings a standby up to date that lacks much, sends pages in portions while the
guest runs, then those that were written meanwhile, and so on until what is left fits an ordinary checkpoint, with which
it ends: one transaction, so that the standby has all of it or keeps what it had.

A guest that writes faster than its pages can be sent would be chased for ever: after ``qemu-rounds`` it is kept stopped
until the rest is out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import attrs
import numpy as np
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from ftd.config import Encoding as ConfiguredEncoding
from ftd.config import PairConfig
from ftd.errors import LinkDown
from ftd.status import Commit, SyncStatus
from ftd.vm.carrier import Carrier
from ftd.vm.checkpoint_writer import CheckpointWriter
from ftd.vm.encoding import Encoding, EncodingChoice
from ftd.vm.errors import VmError
from ftd.vm.gates import Gates
from ftd.vm.guest import Captured, Guest
from ftd.vm.pauses import Pauses
from ftd.vm.ram import PAGE, Numbers, pages_of
from ftd.vm.records import CheckpointHeader
from ftd.vm.surroundings import VmSurroundings

#: Pages that are read and sent at a time in the background: 4 MiB.
_PORTION = 1024

#: The dirty pages that the end of a background checkpoint may take along, as a part of the staging memory.
_LAST_PART = 4

_FIXED = {
    ConfiguredEncoding.AUTO: None,
    ConfiguredEncoding.RAW: Encoding.RAW,
    ConfiguredEncoding.ZSTD: Encoding.ZSTD,
}


@attrs.define
class Figures:
    """
    What is measured of checkpoints, for the status.

    :ivar dirty_pages: of the newest one.
    :ivar bytes: of the newest one, on the wire.
    :ivar committed_at: when the guest was stopped for the newest committed one, Unix seconds.
    :ivar sync: the one in the background, if there is one.
    """

    pauses: Pauses = attrs.Factory(Pauses)
    dirty_pages: int = 0
    bytes: int = 0
    committed_at: float | None = None
    sync: SyncStatus | None = None


def encoding_choice(config: PairConfig) -> EncodingChoice:
    """What ``qemu-encoding`` says."""
    return EncodingChoice(_FIXED[config.qemu_encoding])


class Replication:
    """
    :param figures: kept up to date.
    """

    def __init__(
        self,
        guest: Guest,
        carrier: Carrier,
        gates: Gates,
        choice: EncodingChoice,
        figures: Figures,
        config: PairConfig,
        around: VmSurroundings,
    ) -> None:
        self._guest = guest
        self._carrier = carrier
        self._gates = gates
        self._choice = choice
        self._figures = figures
        self._rounds = config.qemu_rounds
        self._around = around
        self._answer: Deferred[Commit] | None = None
        self._is_interrupted = False

    async def synchronize(self, *, is_full: bool, resume: bool = True) -> None:
        """
        Bring the standby up to date in the background.

        :param is_full: whatever it has; otherwise it has the newest checkpoint of this generation.
        :param resume: let the guest go on at the end.
        """
        guest = self._guest
        try:
            if is_full:
                self._carrier.start_generation()
                await guest.start_over()
                total, todo = guest.ram.bytes, _cut(await self._around.run_in_thread(guest.ram.data_runs))
            else:
                await guest.find_dirty()
                total, todo = len(guest.dirty.unsent) * PAGE, _portions(guest.dirty.unsent)
                guest.dirty.taken()
            self._figures.sync = SyncStatus(done_bytes=0, total_bytes=total)
            await self._carrier.open_transaction()
            writer = self._start(is_full)
            await self._send_portions(writer, todo)
            await self._send_rounds(writer)
            self._gates.hold()
            await self._finish(writer, resume, None)
        finally:
            self._figures.sync = None

    async def checkpoint(self, *, resume: bool = True, is_open: bool = False, limit: float | None = None) -> Commit:
        """
        An ordinary checkpoint.

        :param is_open: its transaction has been opened.
        :param limit: seconds to wait for the ACK; ``None``: as long as the link lives.
        """
        if not is_open:
            await self._carrier.open_transaction()
        return await self._finish(self._start(is_full=False), resume, limit)

    def interrupt(self, *, is_link_down: bool) -> None:
        """
        Come to an end soon: send no more in the background.

        :param is_link_down: do not wait for it to come back and tell what became of the last commit, either.
        """
        self._is_interrupted = True
        if is_link_down and self._answer is not None:
            answer, self._answer = self._answer, None
            answer.errback(LinkDown("the link is down", 1.0))

    async def _answered(self, committing: Deferred[Commit]) -> Commit:
        answer = self._answer = Deferred()

        def pass_on(result: Commit | Failure) -> None:
            # After `interrupt` it is nobody's any more.
            if self._answer is answer:
                self._answer = None
                answer.callback(result)

        committing.addBoth(pass_on)
        return await answer

    def _start(self, is_full: bool) -> CheckpointWriter:
        writer = CheckpointWriter(self._carrier, self._choice, self._around.run_in_thread)
        vm, number = self._guest.vm, self._carrier.number
        writer.start(
            CheckpointHeader(
                generation=self._carrier.generation,
                number=number + 1,
                base=None if is_full else number,
                uuid=vm.uuid,
                machine=vm.machine,
                fingerprint=vm.fingerprint,
                ram=tuple((backend.id, backend.size) for backend in vm.backends),
                qemu_version=vm.version,
                time=self._around.now(),
            )
        )
        return writer

    async def _send_rounds(self, writer: CheckpointWriter) -> None:
        """Send what the guest has written while earlier pages were sent, until little is left."""
        dirty = self._guest.dirty
        for _ in range(self._rounds):
            await self._guest.find_dirty()
            if len(dirty.unsent) <= self._guest.staging.capacity // _LAST_PART:
                return
            await self._send_unsent(writer)

    async def _finish(self, writer: CheckpointWriter, resume: bool, limit: float | None) -> Commit:
        begin = self._around.ticks()
        captured = await self._capture(writer, resume)
        self._figures.pauses.add(captured.pause)
        if captured.pages is not None:
            await writer.pages(captured.numbers, captured.pages)
            self._guest.dirty.taken()
        await writer.device(captured.device)
        writer.end()
        size, since = writer.size, self._around.ticks()
        self._figures.dirty_pages, self._figures.bytes = len(captured.numbers), size
        commit = await self._answered(self._carrier.commit_transaction(limit))
        self._choice.acknowledged(size, self._around.ticks() - (since if size < _PORTION * PAGE else begin))
        self._figures.committed_at = captured.at
        self._guest.dirty.committed()
        self._gates.release(captured.epochs)
        return commit

    async def _capture(self, writer: CheckpointWriter, resume: bool) -> Captured:
        """A capture whose pages fit, or are sent already."""
        for _ in range(self._rounds):
            captured = await self._guest.capture(self._gates.seal, resume=resume)
            if captured.pages is not None:
                return captured
            if not resume:
                break
            await self._send_unsent(writer)
        else:
            captured = await self._guest.capture(self._gates.seal, resume=False)
        begin = self._around.ticks()
        try:
            if captured.pages is None:
                await self._send_unsent(writer)
                if self._guest.is_running:
                    raise VmError("somebody has let the guest go on while its state was sent; it will be taken again")
        finally:
            if resume:
                await self._guest.cont()
        pause = captured.pause
        return attrs.evolve(captured, pause=attrs.evolve(pause, total=pause.total + self._around.ticks() - begin))

    async def _send_unsent(self, writer: CheckpointWriter) -> None:
        numbers = self._guest.dirty.unsent
        self._guest.dirty.taken()
        await self._send_portions(writer, _portions(numbers))

    async def _send_portions(self, writer: CheckpointWriter, portions: Iterable[Numbers]) -> None:
        guest = self._guest
        for numbers in portions:
            if self._is_interrupted:
                raise VmError("the background checkpoint was given up, as something else is to be done")
            begin, before = self._around.ticks(), writer.size
            pages = await self._around.run_in_thread(guest.staging.take, guest.tracker, numbers)
            await writer.pages(numbers, pages)
            writer.flush()
            await self._carrier.drained()
            self._choice.acknowledged(writer.size - before, self._around.ticks() - begin)
            self._progress(len(numbers))

    def _progress(self, pages: int) -> None:
        sync = self._figures.sync
        if sync is not None:
            done = min(sync.total_bytes, sync.done_bytes + pages * PAGE)
            self._figures.sync = attrs.evolve(sync, done_bytes=done)
            self._carrier.counted()


def _portions(numbers: Numbers) -> Iterator[Numbers]:
    for first in range(0, len(numbers), _PORTION):
        yield numbers[first : first + _PORTION]


def _cut(runs: Numbers) -> Iterator[Numbers]:
    """The pages of ``runs``, in portions; only one of them exists at a time, however large the RAM is."""
    gathered: list[tuple[int, int]] = []
    size = 0
    for first, count in runs.tolist():
        while count:
            some = min(count, _PORTION - size)
            gathered.append((first, some))
            first, count, size = first + some, count - some, size + some
            if size == _PORTION:
                yield pages_of(np.array(gathered, dtype=np.int64))
                gathered, size = [], 0
    if gathered:
        yield pages_of(np.array(gathered, dtype=np.int64))
