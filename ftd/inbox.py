"""
What a receiver has read and not looked at yet.

The wire machine's events come from lazy generators, one for each read.  While the receiver is held (its sink is
full, or a commit is under way) the generator stands where it is: what lies behind that point has not even been
decoded, so holding is exact to the frame.  What was read is good only for as long as the call that brings it, so the
part that has to wait is copied: it is less than one read, since nothing more is read while the receiver is held.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from ftd.wire.events import ReceiverEvent


class Machine(Protocol):
    """What an inbox needs of a `ftd.wire.receiver.ReceiverMachine`."""

    def receive(self, data: bytes | memoryview, /) -> Iterator[ReceiverEvent]:
        """The events of the next bytes."""

    def keep_rest(self) -> None:
        """Copy what has not been looked at."""


class Inbox:
    """
    :param take: told each event.
    :param is_held: whether the next event has to wait; asked after each one.
    """

    __slots__ = ("_events", "_is_draining", "_is_held", "_later", "_machine", "_take")

    def __init__(self, machine: Machine, take: Callable[[ReceiverEvent], None], is_held: Callable[[], bool]) -> None:
        self._machine = machine
        self._take = take
        self._is_held = is_held
        # Of the read that is being looked at, and the reads behind it, which are rare.
        self._events: Iterator[ReceiverEvent] | None = None
        self._later: deque[bytes] | None = None
        self._is_draining = False

    @property
    def is_empty(self) -> bool:
        """Whether everything has been looked at."""
        return self._events is None and not self._later

    def put(self, data: bytes | memoryview) -> None:
        """
        The next read, which is handed over as far as that is possible now; a memoryview is good only during the call.

        :raises WireError: as the machine does.
        """
        if self._events is not None or self._later or self._is_draining or self._is_held():
            if self._later is None:
                self._later = deque()
            self._later.append(bytes(data))
            self.drain()
            return
        events = self._events = self._machine.receive(data)
        self.drain()
        if self._events is events and not isinstance(data, bytes):
            self._machine.keep_rest()

    def drain(self) -> None:
        """
        Hand over events until there are none or it is held.  A call from within ``take`` leaves that to the one
        under way.

        :raises WireError: as the machine does.
        """
        if self._is_draining:
            return
        self._is_draining = True
        try:
            while not self._is_held():
                if self._events is None:
                    if not self._later:
                        break
                    self._events = self._machine.receive(self._later.popleft())
                self._drain_read(self._events)
        finally:
            self._is_draining = False

    def clear(self) -> None:
        """Nobody will look at the rest."""
        self._events = None
        self._later = None

    def _drain_read(self, events: Iterator[ReceiverEvent]) -> None:
        try:
            for event in events:
                self._take(event)
                if self._is_held():
                    return
        except BaseException:
            self._events = None
            raise
        # It may have been cleared meanwhile.
        self._events = None
