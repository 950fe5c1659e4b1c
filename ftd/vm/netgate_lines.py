"""A connection of a gate over which frames go both ways: to QEMU's end of a NIC, or to a peer on the outside."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, Protocol

from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger

from ftd.vm.netgate_frames import BadFrame, FrameQueue
from ftd.vm.netgate_sockets import IDoor, IEnd, Sockets, Watched, reason_of

_log = Logger()

#: Seconds before the first attempt to have a connection again, and between two at most.
FIRST_WAIT: Final = 0.05
LONGEST_WAIT: Final = 1.0

#: Seconds between two looks for QEMU's end of a connection, and how often: it accepts as soon as it gets round to it.
_LOOK_INTERVAL = 0.01
_LOOKS = 500


class Retry:
    """
    When to try again: after a time that doubles, up to `LONGEST_WAIT`, and is spread by jitter.

    :param attempt: called when it is time.
    """

    def __init__(self, reactor: Any, attempt: Callable[[], None], jitter: Callable[[], float] = random.random) -> None:
        self._reactor = reactor
        self._attempt = attempt
        self._jitter = jitter
        self._wait = FIRST_WAIT
        self._timer: IDelayedCall | None = None

    def later(self) -> None:
        """Try again, in a while."""
        if self._timer is None:
            self._timer = self._reactor.callLater(self._wait * (0.5 + self._jitter() / 2), self._now)
            self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _now(self) -> None:
        self._timer = None
        self._attempt()

    def worked(self) -> None:
        """The next wait is a short one again."""
        self._wait = FIRST_WAIT

    def stop(self) -> None:
        """Do not try again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class ILine(Protocol):
    """
    What a gate has on each of its sides.

    It calls ``readable`` when there may be something to `receive`, ``writable`` when `send` may take more, and
    ``changed`` when `is_up` has changed other than by `start` and `stop`.
    """

    @property
    def is_up(self) -> bool:
        """Whether frames can come and go."""

    @property
    def why_down(self) -> str:
        """A sentence for a person; empty while it is up."""

    @property
    def can_wait(self) -> bool:
        """Whether the other end may be left unread: it goes on with whatever else it does."""

    def start(self) -> None:
        """Be up as soon as it can be, and again whenever it was not.  :raises NetGateError: if it cannot."""

    def stop(self) -> None:
        """Be down."""

    def watch(self, *, reading: bool, writing: bool) -> None:
        """What to be called for, from now on and while it is up."""

    def receive(self, queue: FrameQueue, epoch: int | None) -> int | None:
        """Read once, into a queue; how many frames became whole by it, ``None`` if there was nothing to read."""

    def send(self, piece: memoryview) -> int:
        """How much of a piece, as it comes from `FrameQueue.front`, has gone."""


class StreamLine:
    """
    Frames over a unix socket, one connection at a time; see `ILine`.

    :param dials: whether the other end listens.  Else it is the one that connects; a second one waits until the first
        is gone.
    :param unblocks: whether what listens is a QEMU, which has to be kept from standing still where it is not read; see
        `ftd.vm.netgate_peer`.
    :param name: says in the log what this is.
    """

    def __init__(
        self,
        reactor: Any,
        path: str,
        *,
        dials: bool,
        unblocks: bool = False,
        name: str,
        readable: Callable[[], None],
        writable: Callable[[], None],
        changed: Callable[[], None],
        sockets: Sockets,
    ) -> None:
        self._reactor = reactor
        self._path = path
        self._dials = dials
        self._unblocks = unblocks
        self._name = name
        self._readable = readable
        self._writable = writable
        self._changed = changed
        self._sockets = sockets
        self._retry = Retry(reactor, self._attempt)
        self._can_wait = not unblocks
        self._looks = 0
        self._look: IDelayedCall | None = None
        self._end: IEnd | None = None
        self._watched: Watched | None = None
        self._door: IDoor | None = None
        self._watched_door: Watched | None = None
        self._why_down = "not started"

    @property
    def is_up(self) -> bool:
        """See `ILine`."""
        return self._end is not None

    @property
    def why_down(self) -> str:
        """See `ILine`."""
        return "" if self.is_up else self._why_down

    @property
    def can_wait(self) -> bool:
        """See `ILine`."""
        return self._can_wait

    def start(self) -> None:
        """See `ILine`."""
        if self._dials:
            self._dial()
        else:
            self._listen()
            self._why_down = f"nobody has connected to {self._path}; start QEMU with -netdev stream,server=off"

    def stop(self) -> None:
        """See `ILine`."""
        self._retry.stop()
        if self._watched_door is not None:
            self._watched_door.close()
            self._watched_door = self._door = None
            self._sockets.remove(self._path)
        self._hang_up("stopped")

    def watch(self, *, reading: bool, writing: bool) -> None:
        """See `ILine`."""
        if self._watched is not None:
            self._watched.watch(reading=reading, writing=writing)

    def receive(self, queue: FrameQueue, epoch: int | None) -> int | None:
        """See `ILine`."""
        if self._end is None:
            return None
        try:
            size = self._end.recv_into(queue.room())
            if not size:
                self._lost("the other end has closed the connection")
                return None
            frames = queue.received(size, epoch)
        except BlockingIOError:
            return None
        except OSError as error:
            self._lost(reason_of(error))
            return None
        except BadFrame as error:
            _log.error("{name}: {error}; the connection is closed", name=self._name, error=error)
            self._lost(str(error))
            return None
        self._retry.worked()
        return frames

    def send(self, piece: memoryview) -> int:
        """See `ILine`."""
        if self._end is None:
            return 0
        try:
            return self._end.send(piece)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lost(reason_of(error))
            return 0

    def _attempt(self) -> None:
        if self._dials:
            self._dial()
            if self.is_up:
                self._changed()
        else:
            self._accept()

    def _dial(self) -> None:
        try:
            end = self._sockets.dial(self._path)
        except OSError as error:
            self._why_down = f"cannot connect to {self._path}: {reason_of(error)}; start what listens there"
            self._retry.later()
        else:
            self._connected(end)

    def _listen(self) -> None:
        door = self._door = self._sockets.listen(self._path)
        self._watched_door = Watched(
            self._reactor, door, readable=self._accept, writable=self._accept, lost=self._door_lost
        )
        self._watched_door.watch(reading=True, writing=False)

    def _accept(self) -> None:
        if self._door is None or self._watched_door is None:
            return
        try:
            end = self._door.accept()
        except BlockingIOError:
            self._watched_door.watch(reading=True, writing=False)
        except OSError as error:
            # Too many open files, most likely.  The caller waits in the backlog, and the door would be readable all
            # the time.
            _log.error("{name}: cannot accept: {reason}", name=self._name, reason=reason_of(error))
            self._watched_door.watch(reading=False, writing=False)
            self._retry.later()
        else:
            self._watched_door.watch(reading=False, writing=False)
            self._connected(end)
            self._changed()

    def _door_lost(self, reason: str) -> None:
        _log.error("{name}: no longer listens at {path}: {reason}", name=self._name, path=self._path, reason=reason)

    def _connected(self, end: IEnd) -> None:
        self._end = end
        self._watched = Watched(self._reactor, end, readable=self._readable, writable=self._writable, lost=self._lost)
        _log.info("{name}: connected at {path}", name=self._name, path=self._path)
        if self._unblocks:
            self._looks = 0
            self._unblock(end)

    def _unblock(self, end: IEnd) -> None:
        self._look = None
        self._looks += 1
        why = "it does not accept the connection"
        try:
            self._can_wait = self._sockets.unblock_peer(end)
        except OSError as error:
            why = reason_of(error)
        else:
            if self._can_wait:
                return
            if self._looks < _LOOKS:
                self._look = self._reactor.callLater(_LOOK_INTERVAL, self._unblock, end)
                return
        _log.warn(
            "{name}: QEMU's socket cannot be made non-blocking ({why}), so frames from the guest are dropped when"
            " qemu-held-limit is reached; run ftd as root, or use server=off in QEMU and `unix:` here",
            name=self._name,
            why=why,
        )

    def _lost(self, why: str) -> None:
        if self._end is None:
            return
        self._hang_up(f"the connection at {self._path} has ended: {why}")
        _log.warn("{name}: {why}", name=self._name, why=self._why_down)
        if self._watched_door is not None:
            self._watched_door.watch(reading=True, writing=False)
        else:
            self._retry.later()
        self._changed()

    def _hang_up(self, why: str) -> None:
        if self._watched is not None:
            self._watched.close()
        self._watched = self._end = None
        self._why_down = why
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._can_wait = not self._unblocks
