"""Following what happens in a daemon, across broken connections and restarts."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.web.client import ResponseDone
from twisted.web.iweb import IResponse

from ftd.client.answers import structure
from ftd.client.errors import ApiError, Unreachable
from ftd.client.sse import Message, NotAnEventStream, SseReader
from ftd.status import PairStatus, TransactionStatus

#: Events that wait to be asked for; beyond them the connection is paused, and the daemon counts what it skips
#: (``lagged``).
MAX_WAITING = 256

#: Seconds without a byte after which the connection counts as broken; a daemon sends something every 15 s.
SILENCE = 45.0

#: Seconds before the first and, growing twofold, at most before any further attempt to connect again.
FIRST_RETRY, LAST_RETRY = 0.5, 8.0


@attrs.frozen
class Event:
    """
    One event.

    :ivar kind: ``pair``, ``trace``, ``transaction``, ``sync`` or ``lagged``; a newer daemon may have more.
    :ivar id: where to resume after it; empty if the stream has not given a place yet.
    :ivar data: its JSON object.
    """

    kind: str
    id: str
    data: Mapping[str, Any]

    @property
    def pair(self) -> str:
        """The pair's name; empty for an event of no pair."""
        return str(self.data.get("pair", ""))

    @property
    def time(self) -> float:
        """Unix seconds at which it happened; 0 for an event that has no time."""
        return float(self.data.get("time", 0))

    def pair_status(self) -> PairStatus:
        """What a ``pair`` event tells.  :raises ValueError: for another event."""
        return structure(self.data, PairStatus)

    def transaction_status(self) -> TransactionStatus:
        """What a ``transaction`` event tells.  :raises ValueError: for another event."""
        return structure(self.data, TransactionStatus)


#: Sends the request for the stream, with the id to resume after; raises like any method of the client.
Open = Callable[[str], Awaitable[IResponse]]

#: Told why the stream broke or could not be had again, and ``None`` every time it is there (again).
Notice = Callable[[Unreachable | ApiError | None], None]


def unheard(error: Unreachable | ApiError | None) -> None:
    """A :data:`Notice` that nobody hears."""


class EventStream:
    """
    The events, one after the other: ``async for event in stream``.

    Failing to connect the first time raises.  From then on the stream connects again by itself, for as long as it
    takes, and resumes after the last event it has seen; it ends by ``close``, or by raising :class:`ApiError` when the
    daemon is back and does not know the pair any more.  There may be one reader at a time.
    """

    def __init__(self, open: Open, clock: IReactorTime, url: str, notice: Notice) -> None:
        self._open = open
        self._clock = clock
        self._url = url
        self._notice = notice
        self._waiting: deque[Event] = deque()
        self._last_id = ""
        self._was_open = False
        self._retry = FIRST_RETRY
        self._connection: _Connection | None = None
        self._wake: Deferred[None] | None = None
        self._is_closed = False

    def __aiter__(self) -> EventStream:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._is_closed:
                raise StopAsyncIteration
            if self._connection is None:
                await self._connect()
            else:
                wake: Deferred[None] = Deferred()
                self._wake = wake
                self._connection.resume()
                try:
                    await wake
                finally:
                    self._wake = None
        return self._waiting.popleft()

    def close(self) -> None:
        """Hang up.  What has arrived and was not asked for is dropped."""
        self._is_closed = True
        self._waiting.clear()
        if self._connection is not None:
            self._connection.hang_up()
        self._wake_reader()

    async def _connect(self) -> None:
        if self._was_open:
            await deferLater(self._clock, self._retry)
            self._retry = min(self._retry * 2, LAST_RETRY)
        try:
            response = await self._open(self._last_id)
        except Unreachable as error:
            self._give_notice(error)
            return
        except ApiError as error:
            if error.status < 500:
                raise
            self._give_notice(error)
            return
        self._was_open = True
        self._notice(None)
        self._connection = connection = _Connection(self, self._clock)
        response.deliverBody(connection)
        if self._is_closed:
            connection.hang_up()

    def _give_notice(self, error: Unreachable | ApiError) -> None:
        if not self._was_open:
            raise error
        self._notice(error)

    def received(self, message: Message) -> None:
        """
        A message has arrived.

        :raises NotAnEventStream: if its data is no JSON object.
        """
        try:
            data = json.loads(message.data)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise NotAnEventStream("the data of an event is not a JSON object")
        self._last_id = message.id
        self._retry = FIRST_RETRY
        self._waiting.append(Event(message.event, message.id, data))
        if len(self._waiting) >= MAX_WAITING and self._connection is not None:
            self._connection.pause()
        self._wake_reader()

    def broken(self, why: str) -> None:
        """The connection has gone."""
        self._connection = None
        if not self._is_closed:
            self._notice(Unreachable(self._url, why))
        self._wake_reader()

    def _wake_reader(self) -> None:
        if self._wake is not None:
            wake, self._wake = self._wake, None
            wake.callback(None)


class _Connection(Protocol):
    """One answer's body, for as long as it lasts."""

    transport: Any  # Twisted's for a body: pauses, resumes, closes

    def __init__(self, stream: EventStream, clock: IReactorTime) -> None:
        self._stream = stream
        self._reader = SseReader()
        self._clock = clock
        self._why = ""
        self._is_paused = False
        self._silence: IDelayedCall | None = None

    def connectionMade(self) -> None:
        """The body follows."""
        self._silence = self._clock.callLater(SILENCE, self._give_up, f"nothing came for {SILENCE:.0f} s")

    def dataReceived(self, data: bytes) -> None:
        """Some of the body."""
        if self._silence is not None:
            self._silence.reset(SILENCE)
        try:
            for message in self._reader.feed(data):
                self._stream.received(message)
        except NotAnEventStream as error:
            self._give_up(str(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """That was it."""
        self._stop_waiting()
        ended = "the event stream ended" if reason.check(ResponseDone) else "the connection broke"
        self._stream.broken(self._why or ended)

    def pause(self) -> None:
        """Read no more; the silence is then ours.  May be repeated: Twisted resumes after delivering what it had."""
        self._is_paused = True
        self._stop_waiting()
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read on, if paused."""
        if self._is_paused:
            self._is_paused = False
            self.connectionMade()
            self.transport.resumeProducing()

    def hang_up(self) -> None:
        """Close the connection."""
        self._stop_waiting()
        self.transport.loseConnection()

    def _give_up(self, why: str) -> None:
        self._silence = None
        self._why = why
        self.transport.loseConnection()

    def _stop_waiting(self) -> None:
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
