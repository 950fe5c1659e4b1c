"""
The event stream: Server-Sent Events (WHATWG HTML, section 9.2) out of the daemon's ring.

A reader is a position in the ring and nothing else: no queue, so what it does not read costs no memory.  It writes as
much as its connection takes, in batches, and goes on where it was when the connection takes more.  If the ring has
moved on past it meanwhile, it gets ``lagged``, which says how many events it missed, and then a fresh snapshot, so that
the picture it has of the pairs is right again.  It goes on after the newest event and not after the oldest that is
left: a reader that is too slow would only be overtaken again.

Order on the wire: a snapshot is taken at a position P of the ring.  One ``pair`` event for each pair, then ``sync``
with P as its id, then everything after P.  The messages before ``sync`` have no id, so a client that is cut off between
them does not come back with P and miss the rest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from zope.interface import implementer

from ftd.bus import KINDS, Event, EventBus, encode_sse
from ftd.http.problems import BadArgument, TooManyReaders
from ftd.http.routes import EVENTS, query_argument, query_arguments
from ftd.http.uploads import ApiRequest
from ftd.interfaces import IPair
from ftd.status import to_json
from ftd.trace import TRACE_EVENTS

#: Bytes that are written at a time, about; a connection says after each batch whether it takes more.
BATCH = 32 * 1024

#: Seconds between the comment lines that keep proxies from closing a quiet stream.
HEARTBEAT = 15.0

#: Seconds after which a reader that found no place may try again.
RETRY_AFTER = 5.0


@attrs.frozen(kw_only=True)
class Selection:
    """
    Which events a reader wants.

    :ivar kinds: of `KINDS`.
    :ivar names: trace events, which are to be on as long as the reader stays; ``None`` for those that happen to be on.
    :ivar pair: the one pair; ``None`` for all, those to come included.
    """

    kinds: frozenset[str]
    names: frozenset[str] | None
    pair: str | None

    def wants(self, event: Event) -> bool:
        """Whether the reader gets ``event``."""
        return (
            event.kind in self.kinds
            and (self.pair is None or event.pair == self.pair)
            and (event.kind != "trace" or self.names is None or event.name in self.names)
        )


def selection(request: ApiRequest, pair: str | None) -> Selection:
    """
    What the query arguments ``kinds`` and ``names`` ask for.

    :raises BadArgument: for a name that is not one of those there are.
    """
    kinds = _listed(request, "kinds", KINDS)
    names = _listed(request, "names", (*TRACE_EVENTS, "all"))
    if names is not None and kinds is not None and "trace" not in kinds:
        raise BadArgument("names", "is about trace events, which kinds leaves out")
    if names is not None and "all" in names:
        names = frozenset(TRACE_EVENTS)
    return Selection(kinds=frozenset(KINDS) if kinds is None else kinds, names=names, pair=pair)


def _listed(request: ApiRequest, argument: str, known: tuple[str, ...]) -> frozenset[str] | None:
    values = query_arguments(request, argument)
    chosen = [name for value in values for name in value.split(",")]
    for name in chosen:
        if name not in known:
            raise BadArgument(argument, f"{name!r} is not one of {', '.join(known)}")
    return frozenset(chosen) if values else None


def last_event_id(request: ApiRequest) -> int | None:
    """
    The event after which the reader wants to go on, from ``Last-Event-ID`` or, for who cannot set headers, the query.

    :raises BadArgument: if it is not a number.
    """
    text = request.getHeader("Last-Event-ID") or query_argument(request, "last-event-id")
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise BadArgument("last-event-id", "is not the id of an event")
    return int(text)


def set_headers(request: ApiRequest) -> None:
    """The headers of an event stream: nobody on the way keeps it or collects it before passing it on."""
    request.set_headers({"Content-Type": EVENTS, "Cache-Control": "no-store", "X-Accel-Buffering": "no"})


class EventStreams:
    """
    The readers of a daemon's events.

    :param pairs: the pairs that there are now.
    :param limit: how many readers there may be at once.
    """

    def __init__(
        self, pairs: Callable[[], Mapping[str, IPair]], bus: EventBus, limit: int, reactor: IReactorTime
    ) -> None:
        self.pairs = pairs
        self.bus = bus
        self.reactor = reactor
        self._limit = limit
        self._streams: set[EventStream] = set()
        self._first_id = bus.last_id

    def open(self, request: ApiRequest, wanted: Selection, seen: int | None) -> Deferred[bytes]:
        """
        Answer ``request`` with events.

        :param seen: the last event that the reader has, ``None`` for a new reader.
        :return: fires when the stream has ended, with the nothing that is left to write; cancelling it ends the stream.
        :raises TooManyReaders: if all places are taken.
        """
        if len(self._streams) >= self._limit:
            raise TooManyReaders(f"There are {self._limit} readers already (event-readers of [api]).", RETRY_AFTER)
        stream = EventStream(self, request, wanted)
        self._streams.add(stream)
        stream.start(seen)
        return stream.done

    def missed_since(self, seen: int) -> int:
        """How many events there were since ``seen``, as far as this run of the daemon knows."""
        return max(0, self.bus.last_id - max(seen, self._first_id))

    def wake(self) -> None:
        """Have every reader look whether its pair is still there."""
        for stream in self._streams:
            stream.wake()

    def forget(self, stream: EventStream) -> None:
        """A stream has ended."""
        self._streams.discard(stream)


@implementer(IPushProducer)
class EventStream:
    """
    One reader.

    :ivar done: see `EventStreams.open`.
    """

    def __init__(self, streams: EventStreams, request: ApiRequest, wanted: Selection) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._clean_up())
        self._streams = streams
        self._bus = streams.bus
        self._request = request
        self._wanted = wanted
        self._position = self._bus.last_id
        self._snapshot: deque[str] | None = None
        self._watched: dict[str, tuple[IPair, Callable[[], None]]] = {}
        self._is_paused = False
        self._has_ended = False
        self._pump_call: IDelayedCall | None = None
        self._stop_waking = self._bus.wake_on_publish(self.wake)
        self._heartbeat = streams.reactor.callLater(HEARTBEAT, self._beat)

    def start(self, seen: int | None) -> None:
        """Begin, after the event ``seen`` if the ring still has what came since, else with a snapshot."""
        self._request.registerProducer(self, True)
        self._request.write(b"")  # the headers
        for name in self._streams.pairs():
            self._watch(name)
        if seen is None:
            self._take_snapshot()
        elif self._bus.knows(seen):
            self._position = seen
        else:
            self._request.write(self._lagged(self._streams.missed_since(seen)))
            self._take_snapshot()
        self._pump()

    def wake(self) -> None:
        """There is something new.  However often this is called, the reader looks once, when all that is done."""
        if self._pump_call is None and not self._is_paused and not self._has_ended:
            self._pump_call = self._streams.reactor.callLater(0, self._pump_later)

    def pauseProducing(self) -> None:
        """The reader is slower than the events."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """The reader has read what there was."""
        self._is_paused = False
        self.wake()

    def stopProducing(self) -> None:
        """The reader has gone."""
        self._clean_up()

    def _pump_later(self) -> None:
        self._pump_call = None
        self._pump()

    def _pump(self) -> None:
        """Write all there is, as far as the connection takes it."""
        while not self._is_paused and not self._has_ended:
            batch = self._next_batch()
            if batch:
                self._request.write(batch)
            elif self._wanted.pair is not None and self._wanted.pair not in self._streams.pairs():
                self._end()
            else:
                return

    def _next_batch(self) -> bytes:
        messages = []
        size = 0
        for message in self._messages():
            messages.append(message)
            size += len(message)
            if size >= BATCH:
                break
        return b"".join(messages)

    def _messages(self) -> Iterator[bytes]:
        """What is to be written next.  Whoever stops in between loses nothing: the position is that of each message."""
        if self._snapshot is not None:
            yield from self._snapshot_messages(self._snapshot)
            return
        missed, events = self._bus.since(self._position)
        if missed:
            dropped = self._bus.last_id - self._position
            self._take_snapshot()
            yield self._lagged(dropped)
            return
        for event in events:
            self._position = event.id
            if event.kind == "pair":
                self._watch(event.pair)
            if self._wanted.wants(event):
                yield event.encoded()

    def _take_snapshot(self) -> None:
        """From here on the reader goes on after the newest event, once it has the state of every pair."""
        self._position = self._bus.last_id
        names = self._streams.pairs() if self._wanted.pair is None else (self._wanted.pair,)
        self._snapshot = deque(names if "pair" in self._wanted.kinds else ())

    def _snapshot_messages(self, names: deque[str]) -> Iterator[bytes]:
        while names:
            name = names.popleft()
            pair = self._streams.pairs().get(name)
            if pair is not None:
                state = {"pair": name, "time": self._time(), **to_json(pair.status()), "initial": True}
                yield encode_sse(None, "pair", state)
        self._snapshot = None
        yield encode_sse(self._position, "sync", {"time": self._time()})

    def _lagged(self, dropped: int) -> bytes:
        return encode_sse(None, "lagged", {"time": self._time(), "dropped": dropped})

    def _time(self) -> float:
        return round(self._bus.now(), 6)

    def _watch(self, name: str) -> None:
        """Have the trace events that the reader named on in a pair, which may be a new one of an old name."""
        if self._wanted.names is None or self._wanted.pair not in (None, name):
            return
        pair = self._streams.pairs().get(name)
        watched, stop = self._watched.get(name, (None, None))
        if watched is pair:
            return
        if stop is not None:
            stop()
            del self._watched[name]
        if pair is not None:
            self._watched[name] = (pair, pair.watch_trace(tuple(self._wanted.names)))

    def _beat(self) -> None:
        self._heartbeat = self._streams.reactor.callLater(HEARTBEAT, self._beat)
        if not self._is_paused:
            self._request.write(b": still here\n\n")
            self._pump()

    def _end(self) -> None:
        self._clean_up()
        self._request.unregisterProducer()
        self.done.callback(b"")

    def _clean_up(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        self._stop_waking()
        self._heartbeat.cancel()
        if self._pump_call is not None:
            self._pump_call.cancel()
        for _, stop in self._watched.values():
            stop()
        self._streams.forget(self)
