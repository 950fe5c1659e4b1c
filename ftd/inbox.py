"""
What a receiver has read and not looked at yet.

The wire machine's events come from lazy generators, one for each read.  While the receiver is held (its sink is
full, or a commit is under way) the generator stands where it is: what lies behind that point has not even been
decoded, so holding is exact to the frame and costs no copy.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from ftd.wire.events import ReceiverEvent


class Inbox:
    """
    :param take: told each event.
    :param is_held: whether the next event has to wait; asked after each one.
    """

    def __init__(self, take: Callable[[ReceiverEvent], None], is_held: Callable[[], bool]) -> None:
        self._take = take
        self._is_held = is_held
        self._reads: deque[Iterator[ReceiverEvent]] = deque()
        self._is_draining = False

    def put(self, events: Iterator[ReceiverEvent]) -> None:
        """The events of one read."""
        self._reads.append(events)

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
            while self._reads and not self._is_held():
                self._drain_read(self._reads[0])
        finally:
            self._is_draining = False

    def clear(self) -> None:
        """Nobody will look at the rest."""
        self._reads.clear()

    def _drain_read(self, events: Iterator[ReceiverEvent]) -> None:
        for event in events:
            self._take(event)
            if self._is_held():
                return
        if self._reads:
            self._reads.popleft()
