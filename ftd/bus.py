"""
The daemon's event ring: what happens is published once, any number of readers follow it at their own pace.

A reader keeps nothing but the id of the last event it has seen and asks for what came since.  So a slow reader costs no
memory: when the ring has moved on past it, it is told how many events it missed (``lagged``) and goes on from the
oldest one that is left.  Rejected: a queue per reader, whose bound would have to be policed a second time for every
reader.

What changes all the time, the state of a pair from one transaction to the next, is worth an event only where somebody
looks.  While nobody does it is *owed*: whoever comes next is told how it stands then (`EventBus.owe`).  All else goes
into the ring whether it is watched or not, for a reader that comes back and wants what it has missed.

Ids grow over the life of the daemon and over restarts, because they start at the clock's microseconds: an id that
a reader brings from before a restart is never mistaken for a newer event of this one.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import attrs

Body: TypeAlias = Mapping[str, Any] | Callable[[], Mapping[str, Any]]

KINDS = ("pair", "trace", "transaction")

#: How many events a reader may be behind before it is skipped over.
RING_SIZE = 4096


@attrs.define(eq=False)
class Event:
    """
    One published event.

    :ivar kind: one of `KINDS`.
    :ivar name: the trace event's name, empty for other kinds.
    :ivar time: Unix seconds.
    :ivar body: what ``data:`` shows besides ``pair`` and ``time``, or what makes that when the first reader asks.
    """

    id: int
    kind: str
    pair: str
    name: str
    time: float
    body: Body
    _encoded: bytes | None = None

    def encoded(self) -> bytes:
        """The event as one Server-Sent Event, made when the first reader asks for it."""
        if self._encoded is None:
            body = self.body() if callable(self.body) else self.body
            data = {"pair": self.pair, "time": round(self.time, 6), **body}
            self._encoded = encode_sse(self.id, self.kind, data)
        return self._encoded


def encode_sse(id: int | None, kind: str, data: Mapping[str, Any]) -> bytes:
    """One message of a ``text/event-stream`` (WHATWG HTML, section 9.2)."""
    head = f"id: {id}\n" if id is not None else ""
    return f"{head}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


class EventBus:
    """
    The ring of the last `RING_SIZE` events.

    :param now: Unix seconds.
    :ivar is_watched: whether there is a reader now.
    """

    def __init__(self, now: Callable[[], float], capacity: int = RING_SIZE) -> None:
        self.now = now
        self.is_watched = False
        self._ring: deque[Event] = deque(maxlen=capacity)
        self._last_id = int(now() * 1_000_000)
        self._wakers: list[Callable[[], None]] = []
        # In the order in which they were owed first.
        self._owed: dict[Callable[[], None], None] = {}

    @property
    def last_id(self) -> int:
        """The id of the newest event; a reader that starts from it sees only what comes after."""
        return self._last_id

    def publish(self, kind: str, pair: str, body: Body, name: str = "") -> None:
        """Add an event and wake the readers.  ``body``, or what it makes, must not change afterwards."""
        self._last_id += 1
        self._ring.append(Event(self._last_id, kind, pair, name, self.now(), body))
        for wake in self._wakers:
            wake()

    def owe(self, tell: Callable[[], None]) -> None:
        """Call ``tell``, which publishes, once and as soon as there is a reader again."""
        self._owed[tell] = None

    def forget(self, tell: Callable[[], None]) -> None:
        """It is not owed any more."""
        self._owed.pop(tell, None)

    def knows(self, id: int) -> bool:
        """Whether nothing was lost since ``id``: a reader that has seen it can resume without a gap."""
        oldest = self._ring[0].id if self._ring else self._last_id + 1
        return oldest - 1 <= id <= self._last_id

    def since(self, id: int) -> tuple[int, Iterator[Event]]:
        """How many events after ``id`` are gone from the ring, and those that are left, oldest first."""
        fresh = min(self._last_id - id, len(self._ring))
        lost = max(0, self._last_id - id - fresh)
        start = len(self._ring) - fresh
        return lost, (self._ring[index] for index in range(start, len(self._ring)))

    def wake_on_publish(self, wake: Callable[[], None]) -> Callable[[], None]:
        """Call ``wake`` at every event, until the returned function is called.  ``wake`` has to be cheap."""
        self._wakers.append(wake)
        self.is_watched = True
        owed, self._owed = self._owed, {}
        for tell in owed:
            tell()

        def stop() -> None:
            self._wakers.remove(wake)
            self.is_watched = bool(self._wakers)

        return stop
