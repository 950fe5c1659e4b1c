"""
The world around a primary in tests: a guest that runs, its QEMU, its NIC, and a standby that keeps what it is sent.

The guest counts: every frame that it sends has the next number, which is in its RAM before the frame is on its way.
So what a checkpoint covers can be read in it, and a frame that leaves before that is noticed at once.  Every device
state names the moment it was taken at, at which the RAM is remembered: a checkpoint is right if the RAM that the
standby puts together is the one of its device state.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IProtocol

from ftd.errors import FtdError, LinkDown, NoAck, NotInState, PairFailed
from ftd.status import Commit
from ftd.testing.fake_qmp import FakeQemu, QmpReactor
from ftd.testing.transport import Link
from ftd.vm.discovery import Backend
from ftd.vm.errors import QmpRefused
from ftd.vm.gates import Gates
from ftd.vm.netgate import GateState
from ftd.vm.ram import PAGE_WORDS, GuestRam, Numbers, Pages
from ftd.vm.record_reader import RecordReader
from ftd.vm.records import CheckpointHeader
from ftd.wire.errors import ErrorCode
from ftd.wire.hello import LastCheckpoint
from ftd.wire.sender import Buffer

#: Of the guest's RAM.  Page 0 says which guest it is and how many frames it has sent.
PAGES = 64

_UUID = "00000000-0000-4000-8000-{:012}"


class VmReactor(QmpReactor):
    """
    A `QmpReactor` that reads pipes, too.

    :ivar readers: what waits for something to read.
    :ivar on_turn: does what there is to do, and says whether it was anything.
    """

    def __init__(self) -> None:
        super().__init__()
        self.readers: list[Any] = []
        self.on_turn: Callable[[], bool] = lambda: False

    def addReader(self, reader: Any) -> None:  # noqa: N802 - Twisted's name
        """See `IReactorFDSet`."""
        if reader not in self.readers:
            self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:  # noqa: N802 - Twisted's name
        """See `IReactorFDSet`."""
        if reader in self.readers:
            self.readers.remove(reader)

    def _answer_dialling(self) -> bool:
        return super()._answer_dialling() or self._read() or self.on_turn()

    def _read(self) -> bool:
        ready = select.select(self.readers, [], [], 0)[0] if self.readers else []
        for reader in ready:
            reader.doRead()
        return bool(ready)


class RunningGuest:
    """
    A guest's RAM, in a file, and what it does.

    :ivar sent: the number of its newest frame.
    :ivar moments: by device state, the RAM at that moment.
    """

    def __init__(self, path: Path, pid: int) -> None:
        self.backend = Backend("ram0", PAGES * PAGE_WORDS * 8, str(path))
        with path.open("wb") as file:
            file.truncate(self.backend.size)
        self.ram: NDArray[np.uint64] = np.memmap(path, np.uint64, "r+").reshape(PAGES, PAGE_WORDS)
        self.trackers: list[RamTracker] = []
        self.moments: dict[bytes, NDArray[np.uint64]] = {}
        self.sent = 0
        self.pid = pid
        self.write(0, pid, word=1)

    def write(self, page: int, value: int, *, word: int = 0) -> None:
        """Write to the RAM."""
        self.ram[page, word] = value
        for tracker in self.trackers:
            tracker.written.add(page)

    def moment(self) -> bytes:
        """The device state of now."""
        state = b"device state %d of %d " % (len(self.moments), self.pid) * 100
        self.moments[state] = np.array(self.ram)
        return state


class RamTracker:
    """
    A tracker that is told.

    :ivar collects_while_running: see `DirtyTracker`.
    :ivar error: what `collect` fails with.
    """

    name = "told"
    why_not = ""

    def __init__(self, guest: RunningGuest, ram: GuestRam, is_running: Callable[[], bool], *, collects: bool) -> None:
        self.collects_while_running = collects
        self.written: set[int] = set()
        self.is_closed = False
        self.error: Exception | None = None
        self._guest = guest
        self._ram = ram
        self._is_running = is_running
        guest.trackers.append(self)

    def start(self) -> None:
        """See `DirtyTracker`."""

    def collect(self) -> Numbers:
        """See `DirtyTracker`."""
        assert not self.is_closed, "collect() of a tracker that is closed"
        assert self.collects_while_running or not self._is_running(), "collect() while the guest runs"
        if self.error is not None:
            raise self.error
        found = np.array(sorted(self.written), dtype=np.int64)
        self.written = set()
        return found

    def take(self, numbers: Numbers, out: Pages) -> None:
        """See `DirtyTracker`."""
        assert not self.is_closed, "take() of a tracker that is closed"
        self._ram.take(numbers, out)

    def close(self) -> None:
        """See `DirtyTracker`."""
        self.is_closed = True


class VmQemu(FakeQemu):
    """
    A `FakeQemu` that writes device states into the pipes that it is passed.

    :ivar writes_end: it closes its end of the pipe after that.
    :ivar not_finalized: how many times ``cont`` is refused after the next migration.
    """

    def __init__(self, reactor: VmReactor, guest: RunningGuest, **more: Any) -> None:
        super().__init__(reactor, backends=[guest.backend], pid=guest.pid, **more)
        self.guest = guest
        self.writes_end = True
        self.not_finalized = 0
        self.on_migrate = self._write_state
        self._passed: list[int] = []
        self._pipes: dict[str, int] = {}

    def attach(self, client: IProtocol) -> Link:
        """See `FakeQemu`."""
        link = super().attach(client)
        vars(link.client)["sendFileDescriptor"] = lambda descriptor: self._passed.append(os.dup(descriptor))
        return link

    def close_pipes(self) -> None:
        """As its death does."""
        for descriptor in (*self._passed, *self._pipes.values()):
            os.close(descriptor)
        self._passed.clear()
        self._pipes.clear()

    def _is_gone(self) -> None:
        super()._is_gone()
        self.close_pipes()

    def _left(self, client: Any) -> None:
        super()._left(client)
        self.close_pipes()

    def _write_state(self, uri: str) -> None:
        assert self.run_state not in ("running", "dead"), f"a migration of a guest that is {self.run_state}"
        pipe = self._pipes.pop(uri.removeprefix("fd:"))
        os.write(pipe, self.guest.moment())
        if self.writes_end:
            os.close(pipe)
        else:
            self._passed.append(pipe)

    def _do_getfd(self, arguments: dict[str, Any]) -> Any:
        name = arguments["fdname"]
        if name in self._pipes:
            os.close(self._pipes.pop(name))
        self._pipes[name] = self._passed.pop()
        return {}

    def _do_migrate_set_parameters(self, _: dict[str, Any]) -> Any:
        return {}

    def _do_cont(self, arguments: dict[str, Any]) -> Any:
        if self.not_finalized:
            self.not_finalized -= 1
            raise QmpRefused("cont", "GenericError", "The migration has not been finalized yet; not finalized")
        return super()._do_cont(arguments)


@attrs.frozen
class Frame:
    """One that the guest ``pid`` has sent."""

    pid: int
    number: int


class ModelGates(Gates):
    """
    Gates of one NIC, that keep whole frames.

    :param leaves: told of every frame before the outside sees it.
    :ivar seen: what the outside has seen, in order.
    """

    def __init__(self, leaves: Callable[[Frame], None]) -> None:
        super().__init__(())
        self.state = GateState.CLOSED
        self.seen: list[Frame] = []
        self.held: list[tuple[int, Frame]] = []
        self.is_started = False
        self._leaves = leaves
        self._epoch = 1

    @property
    def held_frames(self) -> int:
        """See `Gates`."""
        return len(self.held)

    @property
    def held_bytes(self) -> int:
        """See `Gates`."""
        return 100 * len(self.held)

    def sends(self, frame: Frame) -> None:
        """The guest does."""
        if self.state is GateState.OPEN:
            self._leave(frame)
        elif self.state is GateState.HOLDING:
            self.held.append((self._epoch, frame))

    def start(self) -> None:
        """See `Gates`."""
        self.is_started = True

    def stop(self) -> Deferred[None]:
        """See `Gates`."""
        self.is_started = False
        self.close()
        return succeed(None)

    def open(self) -> None:
        """See `Gates`."""
        self.state = GateState.OPEN
        self._release(self._epoch)

    def hold(self) -> None:
        """See `Gates`."""
        if self.state is not GateState.HOLDING:
            self.state = GateState.HOLDING
            self._epoch += 1

    def close(self) -> None:
        """See `Gates`."""
        self.state = GateState.CLOSED
        self.held.clear()

    def discard(self) -> None:
        """See `Gates`."""
        self.held.clear()

    def seal(self) -> tuple[int, ...]:
        """See `Gates`."""
        self._epoch += 1
        return (self._epoch - 1,)

    def release(self, epochs: tuple[int, ...]) -> None:
        """See `Gates`."""
        (epoch,) = epochs
        assert epoch < self._epoch, "it is not sealed"
        self._release(epoch)

    def _release(self, epoch: int) -> None:
        while self.held and self.held[0][0] <= epoch:
            self._leave(self.held.pop(0)[1])

    def _leave(self, frame: Frame) -> None:
        self._leaves(frame)
        assert frame not in self.seen, "seen twice"
        assert not self.seen or self.seen[-1].pid != frame.pid or self.seen[-1].number < frame.number, "out of order"
        self.seen.append(frame)


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
        shelf = _Shelf()
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


class _Shelf:
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
