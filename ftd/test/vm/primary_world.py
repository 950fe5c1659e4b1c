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
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IProtocol

from ftd.testing.fake_qmp import FakeQemu, QmpReactor
from ftd.testing.transport import Link
from ftd.vm.discovery import Backend
from ftd.vm.errors import QmpRefused
from ftd.vm.gates import Gates
from ftd.vm.netgate import GateState
from ftd.vm.ram import PAGE_WORDS, GuestRam, Numbers, Pages

#: Of the guest's RAM.  Page 0 says which guest it is and how many frames it has sent.
PAGES = 64


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
