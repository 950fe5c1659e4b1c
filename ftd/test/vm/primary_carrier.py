"""The standby of a primary in tests, and the link to it, which breaks where the test says; see `primary_world`."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import numpy as np
from numpy.typing import NDArray
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall

from ftd.errors import FtdError, LinkDown, NoAck, NotInState, PairFailed
from ftd.status import Commit
from ftd.test.vm.primary_world import PAGES, Frame, VmReactor
from ftd.vm.ram import PAGE_WORDS
from ftd.vm.record_reader import RecordReader
from ftd.vm.records import CheckpointHeader
from ftd.wire.errors import ErrorCode
from ftd.wire.hello import LastCheckpoint
from ftd.wire.sender import Buffer

_UUID = "00000000-0000-4000-8000-{:012}"


class ModelStandby:
    """
    What a standby holds.

    :ivar headers: of all checkpoints that it has taken.
    :ivar last: the newest of them.
    """

    def __init__(self, moment: Callable[[bytes], NDArray[np.uint64]]) -> None:
        self.headers: list[CheckpointHeader] = []
        self.pages_taken: list[list[int]] = []
        self.ram: NDArray[np.uint64] = np.zeros((PAGES, PAGE_WORDS), np.uint64)
        self.last: LastCheckpoint | None = None
        self._moment = moment

    def covers(self, frame: Frame) -> bool:
        """Whether a guest that goes on from here knows that it has sent it."""
        return self.last is not None and self.ram[0, 1] == frame.pid and self.ram[0, 0] >= frame.number

    def forget(self) -> None:
        """It is another one, or has lost what it had."""
        self.last = None
        self.ram = np.zeros_like(self.ram)

    def take(self, payload: bytes) -> str:
        """Why it does not take it; empty if it does."""
        shelf = Shelf()
        reader = RecordReader(lambda _: None, 1 << 20)
        reader.restart(shelf)
        reader.feed(payload)
        header = reader.header
        assert header is not None and reader.is_complete, "a checkpoint is whole"
        if header.base is not None:
            if self.last != LastCheckpoint(header.generation, header.base):
                return f"checkpoint {header.number} is based on {header.base}, which is not here: {self.last}"
            ram = self.ram.copy()
        else:
            ram = np.zeros_like(self.ram)
        for act in shelf.acts:
            act(ram)
        np.testing.assert_array_equal(ram, self._moment(bytes(shelf.device)), "RAM and device state of one moment")
        self.ram, self.last = ram, LastCheckpoint(header.generation, header.number)
        self.headers.append(header)
        self.pages_taken.append(sorted(shelf.numbers))
        return ""


class Shelf:
    """See `RecordTarget`."""

    def __init__(self) -> None:
        self.acts: list[Callable[[NDArray[np.uint64]], None]] = []
        self.device = bytearray()
        self.numbers: set[int] = set()
        self._room = bytearray()
        self._pages: NDArray[np.uint32] = np.empty(0, np.uint32)

    def room_for_pages(self, numbers: NDArray[np.uint32]) -> memoryview:
        self._pages = numbers.copy()
        self.numbers.update(numbers.tolist())
        self._room = bytearray(len(numbers) * PAGE_WORDS * 8)
        return memoryview(self._room)

    def pages_filled(self) -> None:
        numbers, pages = self._pages, np.frombuffer(self._room, np.uint64).reshape(-1, PAGE_WORDS)

        def put(ram: NDArray[np.uint64]) -> None:
            ram[numbers] = pages

        self.acts.append(put)

    def take_zeros(self, runs: NDArray[np.uint32]) -> None:
        for first, count in runs.tolist():
            self.numbers.update(range(first, first + count))

            def zero(ram: NDArray[np.uint64], first: int = first, count: int = count) -> None:
                ram[first : first + count] = 0

            self.acts.append(zero)

    def room_for_device(self, size: int) -> memoryview:
        self.device = bytearray(size)
        return memoryview(self.device)


@attrs.define(eq=False)
class _Pending:
    """A COMMIT without an ACK."""

    id: int
    payload: bytes
    number: int
    answer: Deferred[Commit]
    timer: IDelayedCall | None

    def settle(self, result: Commit | FtdError) -> None:
        if self.timer is not None and self.timer.active():
            self.timer.cancel()
        if not self.answer.called:
            self.answer.errback(result) if isinstance(result, FtdError) else self.answer.callback(result)


class FakeCarrier:
    """
    A pair and its link, which does as it is told; see `Carrier`.  What is sent is looked at as late as it may change.

    :ivar acks: the standby answers by itself, at the next turn.
    :ivar is_frozen: what was sent is not with the transport yet.
    :ivar on_change: told of every change of the status.
    :ivar opening: holds back the opening of a transaction, as a heartbeat in flight does.
    """

    def __init__(self, reactor: VmReactor, standby: ModelStandby) -> None:
        self.max_frame = 64 * 1024
        self.generation = _UUID.format(0)
        self.number = 0
        self.acks = True
        self.is_up = False
        self.dials = False
        self.is_frozen = False
        self.opening: Deferred[None] | None = None
        self.generation_error: FtdError | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.cancelled: list[str] = []
        self.frames = 0
        self.pending: list[_Pending] = []
        self.hung_up = False
        self._reactor = reactor
        self._standby = standby
        self._id = 0
        self._generations = 0
        self._open: list[Buffer] | None = None
        self._arrived = bytearray()
        self._drained: list[Deferred[None]] = []

    # What the VM's side calls

    def start_generation(self) -> None:
        if self.generation_error is not None:
            raise self.generation_error
        self._generations += 1
        self.generation, self.number = _UUID.format(self._generations), 0

    def open_transaction(self) -> Deferred[int]:
        if self.opening is not None:
            return self.opening.addCallback(lambda _: self._begin())
        try:
            return succeed(self._begin())
        except FtdError as error:
            return fail(error)

    def send(self, pieces: tuple[Buffer, ...]) -> None:
        self._check_up()
        assert self._open is not None, "no transaction is open"
        assert sum(map(len, pieces)) <= self.max_frame, "too long a frame"
        self.frames += 1
        self._open += pieces

    def drained(self) -> Deferred[None]:
        if not self.is_up:
            return fail(self._down())
        if self.is_frozen:
            self._drained.append(Deferred())
            return self._drained[-1]
        self._arrive()
        return succeed(None)

    def commit_transaction(self, limit: float | None) -> Deferred[Commit]:
        self._check_up()
        assert self._open is not None, "no transaction is open"
        pending = _Pending(self._id, b"", self.number + 1, Deferred(), None)
        if limit is not None:
            pending.timer = self._reactor.callLater(limit, lambda: pending.settle(NoAck("no ACK in time")))
        self.pending.append(pending)
        return pending.answer

    def cancel_transaction(self, why: str) -> None:
        if self._open is not None and not self.pending:
            self.cancelled.append(why)
            self._open = None

    def hang_up(self) -> None:
        self.dials = False
        self.hung_up = self.is_up

    def resume_dialing(self) -> None:
        self.dials = True

    def changed(self) -> None:
        self.on_change()

    def counted(self) -> None:
        pass

    # What the test calls

    @property
    def is_open(self) -> bool:
        """Whether a transaction is open."""
        return self._open is not None and not self.pending

    def answer(self) -> None:
        """The standby takes what is committed, or refuses it."""
        pending = self.pending.pop(0)
        refusal = self._standby.take(self._delivered())
        if refusal:
            pending.settle(PairFailed(refusal, ErrorCode.STATE_INVALID))
            return
        self.number = pending.number
        pending.settle(self._commit(pending))

    def refuse(self, code: ErrorCode = ErrorCode.FLUSH) -> None:
        """NACK."""
        self._open = None
        self.pending.pop(0).settle(PairFailed(f"the standby refused ({code.name})", code))

    def thaw(self) -> None:
        """What was sent is with the transport."""
        self.is_frozen = False
        self._arrive()
        waiting, self._drained = self._drained, []
        for deferred in waiting:
            deferred.callback(None)

    def is_lost(self, tell: Callable[[], None], *, has_it: bool = False) -> None:
        """The link breaks; ``has_it``: what is in flight has arrived."""
        self.is_up = False
        if has_it:
            assert self.pending and not self._standby.take(self._delivered())
        tell()
        self._open = None
        self._arrived.clear()
        waiting, self._drained = self._drained, []
        for deferred in waiting:
            deferred.errback(self._down())

    def is_back(self) -> LastCheckpoint | None:
        """A session opens: what is in doubt is known, as is what the standby has."""
        assert self.dials and not self.is_up
        self.is_up = True
        last = self._standby.last
        self.number = last.sequence if last is not None and last.generation == self.generation else 0
        in_doubt, self.pending = self.pending, []
        for pending in in_doubt:
            has_it = last == LastCheckpoint(self.generation, pending.number)
            pending.settle(self._commit(pending) if has_it else LinkDown("it is not committed", 1.0))
        return last

    def turn(self) -> bool:
        """Answer, if it does by itself."""
        if self.acks and self.pending and self.is_up:
            self.answer()
            return True
        return False

    def _begin(self) -> int:
        self._check_up()
        if self._open is not None:
            raise NotInState("a transaction is open", "CONTINUE")
        self._id += 1
        self._open = []
        self._arrived.clear()
        return self._id

    def _arrive(self) -> None:
        if self._open is not None:
            for piece in self._open:
                self._arrived += piece
            self._open.clear()

    def _delivered(self) -> bytes:
        self._arrive()
        self._open = None
        return bytes(self._arrived)

    def _commit(self, pending: _Pending) -> Commit:
        return Commit(id=pending.id, seq=1, bytes=len(self._arrived), seconds=0.0)

    def _check_up(self) -> None:
        if not self.is_up:
            raise self._down()

    def _down(self) -> LinkDown:
        return LinkDown("the link is down", 1.0)
