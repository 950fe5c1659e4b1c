"""
The HTTP API: routes, each a few lines between a request and a pair.

What a request may carry is in :mod:`ftd.http.bodies`, what goes wrong in :mod:`ftd.http.problems`, and how bytes
move in :mod:`ftd.http.uploads`, :mod:`ftd.http.downloads` and :mod:`ftd.http.sse`.  Pairs decide; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.bus import EventBus
from ftd.config import ApiConfig, pair_schema
from ftd.errors import FtdError, NotInState, Unknown
from ftd.http import openapi, queries
from ftd.http.answers import (
    Accepted,
    Checkpoints,
    DaemonStatus,
    Health,
    Nothing,
    NotReady,
    Pairs,
    Protection,
    RateLimit,
    Ready,
    TraceSwitches,
    TransactionId,
    Transactions,
    Unready,
)
from ftd.http.bodies import Promotion, ProtectionChange, RateLimitChange, TraceChange
from ftd.http.downloads import send_checkpoint
from ftd.http.problems import BadArgument, problem_of
from ftd.http.readiness import why_not_ready
from ftd.http.routes import BYTES, EVENTS, Answer, RouteTable, json_answer
from ftd.http.site import Site
from ftd.http.sse import EventStreams, last_event_id, selection, set_headers
from ftd.http.uploads import ApiRequest, shielded
from ftd.interfaces import ICheckpointStore, IDaemon, IPair, IPrimaryPair, ISecondaryPair
from ftd.status import Commit, PairStatus, VmStatus

_log = Logger()

_EVENT_STREAM: Mapping[int, Answer] = {200: Answer("Events, until the client goes.", {"type": "string"}, EVENTS)}
_DOWNLOAD: Mapping[int, Answer] = {
    200: Answer("The state.", {"type": "string"}, BYTES),
    206: Answer("The range of it that was asked for.", {"type": "string"}, BYTES),
    304: Answer("The client has it already.", None),
}

#: What can go wrong with a VM, beside its state.
_OF_VMS = (409, 502, 503, 504)


class Api:
    """
    The API of one daemon.

    :param bus: the ring that the pairs publish into.
    :param reactor: for the timers of connections and event streams.
    """

    _table = RouteTable()
    app = _table.klein

    def __init__(self, daemon: IDaemon, bus: EventBus, config: ApiConfig, reactor: IReactorTime) -> None:
        self._daemon = daemon
        self._bus = bus
        self._config = config
        self._reactor = reactor
        self._streams = EventStreams(daemon.pairs, bus, config.event_readers, reactor)

    def site(self) -> Site:
        """The factory for the API's ports."""
        return Site(
            self.app.resource(),
            self._table.takes_upload,
            body_limit=self._config.body_limit,
            idle_time=self._config.idle_time,
            reactor=self._reactor,
        )

    @app.handle_errors(Exception)  # type: ignore[arg-type]
    def problem(self, request: ApiRequest, failure: Failure) -> bytes | Deferred[bytes]:
        """The answer to whatever a route raised."""
        problem = problem_of(failure, request)
        if not request.startedWriting:
            return problem.on(request)
        request.abort()
        # Never: whatever is written now would make what is out look like the whole.  The connection's end ends it all.
        return Deferred()

    @_table.add("GET", "/v1", "The daemon.", {200: Answer("Version, links, uptime.", DaemonStatus)})
    def daemon(self, request: ApiRequest) -> bytes:
        """The entrance."""
        status = DaemonStatus(
            version=self._daemon.version,
            node=self._daemon.node,
            uptime_seconds=round(self._bus.now() - self._daemon.started, 3),
            pairs=list(self._daemon.pairs()),
        )
        return json_answer(request, status)

    @_table.add("GET", "/v1/openapi.json", "This document.", {200: Answer("OpenAPI 3.1.", {"type": "object"})})
    def openapi(self, request: ApiRequest) -> bytes:
        """All of the API, for programs."""
        return json_answer(request, openapi.document(self._table.routes, self._daemon.version))

    @_table.add("GET", "/v1/pairs", "The state of all pairs.", {200: Answer("All pairs.", Pairs)})
    def pairs(self, request: ApiRequest) -> bytes:
        """In the daemon's order."""
        return json_answer(request, Pairs(pairs=[pair.status() for pair in self._daemon.pairs().values()]))

    @_table.add(
        "POST",
        "/v1/pairs",
        "Create a pair that is there after a restart too.",
        {201: Answer("The pair; Location says where.", PairStatus)},
        body=pair_schema(),
        errors=(409,),
    )
    async def create_pair(self, request: ApiRequest, body: dict[str, Any]) -> bytes:
        """The body is flat: the keys of a section, and ``pair`` for the section's name."""
        section = body.get("pair", body.get("name"))
        if not isinstance(section, str):
            raise BadArgument("pair", "is missing" if section is None else "must be a string")
        values = {key: value for key, value in body.items() if key != "pair"}
        pair = await shielded(self._daemon.create_pair(section, values))
        request.set_headers({"Location": _path_of(pair.name)})
        return json_answer(request, pair.status(), 201)

    @_table.add("GET", "/v1/pairs/{pair}", "The state of a pair.", {200: Answer("The pair.", PairStatus)})
    def pair(self, request: ApiRequest, pair: str) -> bytes:
        """Either half."""
        return json_answer(request, self._pair(pair).status())

    @_table.add("DELETE", "/v1/pairs/{pair}", "Remove a pair.", {204: Answer("It is gone.", None)}, errors=(409,))
    async def delete_pair(self, request: ApiRequest, pair: str) -> None:
        """Readers of its events are told by the end of their streams."""
        await shielded(self._daemon.delete_pair(pair))
        self._streams.wake()
        request.setResponseCode(204)

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/begin",
        "Open a transaction.",
        {200: Answer("Its id.", TransactionId)},
        errors=(409, 503),
    )
    async def begin(self, request: ApiRequest, pair: str) -> bytes:
        """Send BEGIN."""
        return json_answer(request, TransactionId(id=await shielded(self._primary(pair, "begin").begin())))

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/data",
        "Append state to the open transaction; answers when it is accepted.",
        {200: Answer("How much was accepted.", Accepted)},
        takes_upload=True,
        errors=(409, 503),
    )
    async def append(self, request: ApiRequest, pair: str) -> bytes:
        """The body is state bytes, of any type."""
        primary = self._primary(pair, "data")
        accepted = await request.feed(primary.append)
        return json_answer(request, Accepted(accepted=accepted, frozen=primary.status().freeze_output))

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/commit",
        "Commit the open transaction; answers on the acknowledgement.",
        {200: Answer("It is committed.", Commit), 202: Answer("COMMIT is on its way.", TransactionId)},
        query=(queries.WAIT, queries.TIMEOUT),
        errors=(409, 503, 504),
    )
    async def commit(self, request: ApiRequest, pair: str) -> bytes:
        """Send COMMIT."""
        primary = self._primary(pair, "commit")
        wait, timeout = queries.wait(request), queries.timeout(request)
        open_transaction = primary.status().transaction
        committed = primary.commit(timeout)
        if wait or open_transaction is None:
            result = await shielded(committed)
            return json_answer(request, result)
        _go_on_alone(committed)
        return json_answer(request, TransactionId(id=open_transaction.id), 202)

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/cancel",
        "Drop the open transaction.",
        {200: Answer("Its id, which the next one will have.", TransactionId)},
        errors=(409, 503),
    )
    def cancel(self, request: ApiRequest, pair: str) -> bytes:
        """Send CANCEL."""
        primary = self._primary(pair, "cancel")
        primary.cancel()
        return json_answer(request, TransactionId(id=primary.status().id))

    @_table.add(
        "PUT",
        "/v1/pairs/{pair}/checkpoint",
        "One whole transaction: begin, the body, commit.",
        {200: Answer("It is committed.", Commit)},
        takes_upload=True,
        errors=(409, 503, 504),
    )
    async def put_checkpoint(self, request: ApiRequest, pair: str) -> bytes:
        """A body that is cut short cancels the transaction."""
        primary = self._primary(pair, "checkpoint")
        if request.getHeader("Content-Range") is not None:
            raise BadArgument("Content-Range", "a checkpoint is replaced as a whole, not in parts")
        return json_answer(request, await request.feed(primary.checkpoint))

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/rate-limit",
        "Whether a frozen pair slows its source, and its bandwidth.",
        {200: Answer("The limits.", RateLimit)},
        errors=(409,),
    )
    def rate_limit(self, request: ApiRequest, pair: str) -> bytes:
        """As they are now."""
        return self._rate_limit(request, self._primary(pair, "rate-limit"))

    @_table.add(
        "PUT",
        "/v1/pairs/{pair}/rate-limit",
        "Change the limits.",
        {200: Answer("The limits, changed.", RateLimit)},
        body=RateLimitChange,
        errors=(409,),
    )
    def put_rate_limit(self, request: ApiRequest, pair: str, body: RateLimitChange) -> bytes:
        """Either key or both."""
        primary = self._primary(pair, "rate-limit")
        if body.enabled is None and body.bandwidth is None:
            raise BadArgument("body", "has to have enabled, bandwidth or both")
        primary.set_rate_limit(body.enabled, body.bandwidth)
        return self._rate_limit(request, primary)

    @_table.add(
        "GET", "/v1/pairs/{pair}/trace", "Which trace events are on.", {200: Answer("All of them.", TraceSwitches)}
    )
    def trace(self, request: ApiRequest, pair: str) -> bytes:
        """Those that a reader of the event stream has on for itself do not show."""
        return json_answer(request, TraceSwitches(events=self._pair(pair).trace_events()))

    @_table.add(
        "PUT",
        "/v1/pairs/{pair}/trace",
        "Turn trace events on and off.",
        {200: Answer("All of them, changed.", TraceSwitches)},
        body=TraceChange,
    )
    def put_trace(self, request: ApiRequest, pair: str, body: TraceChange) -> bytes:
        """Events that are not named stay as they are."""
        changed = self._pair(pair)
        changed.set_trace_events(body.events)
        return json_answer(request, TraceSwitches(events=changed.trace_events()))

    @_table.add(
        "GET", "/v1/events", "What happens, as it happens.", _EVENT_STREAM, query=queries.OF_EVENTS, errors=(503,)
    )
    def events(self, request: ApiRequest) -> Deferred[bytes] | bytes:
        """Of all pairs."""
        return self._events(request, None)

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/events",
        "What happens to a pair; ends when the pair is removed.",
        _EVENT_STREAM,
        query=queries.OF_EVENTS,
        errors=(503,),
    )
    def pair_events(self, request: ApiRequest, pair: str) -> Deferred[bytes] | bytes:
        """Of one pair."""
        self._pair(pair)
        return self._events(request, pair)

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/transactions",
        "The last 256 transactions, with their times.",
        {200: Answer("Oldest first.", Transactions)},
    )
    def transactions(self, request: ApiRequest, pair: str) -> bytes:
        """Without heartbeats."""
        return json_answer(request, Transactions(transactions=list(self._pair(pair).transactions())))

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/checkpoints",
        "The checkpoints that a secondary holds.",
        {200: Answer("Oldest first.", Checkpoints)},
        errors=(409,),
    )
    async def checkpoints(self, request: ApiRequest, pair: str) -> bytes:
        """All that were acknowledged before the request came are among them, unless they were pruned."""
        store = await self._settled_store(pair)
        return json_answer(request, Checkpoints(checkpoints=list(store.checkpoints())))

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/checkpoints/latest",
        "The newest checkpoint's state.",
        _DOWNLOAD,
        errors=(409, 416),
    )
    async def latest_checkpoint(self, request: ApiRequest, pair: str) -> bytes:
        """Content-Location says which one it is."""
        store = await self._settled_store(pair)
        held = store.checkpoints()
        if not held:
            raise Unknown(f"{pair} holds no checkpoint yet.")
        request.set_headers({"Content-Location": f"{_path_of(pair)}/checkpoints/{held[-1].number}"})
        return await send_checkpoint(request, pair, store, held[-1])

    @_table.add("GET", "/v1/pairs/{pair}/checkpoints/{n}", "A checkpoint's state.", _DOWNLOAD, errors=(409, 416))
    async def checkpoint(self, request: ApiRequest, pair: str, n: int) -> bytes:
        """By its number."""
        store = await self._settled_store(pair)
        for checkpoint in store.checkpoints():
            if checkpoint.number == n:
                return await send_checkpoint(request, pair, store, checkpoint)
        raise Unknown(f"{pair} does not hold a checkpoint {n}.")

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/reset",
        "Clear the pair's error and open its link anew.",
        {200: Answer("Done.", Nothing)},
    )
    async def reset(self, request: ApiRequest, pair: str) -> bytes:
        """Answers when the link is being opened, not when it is up."""
        await shielded(self._pair(pair).reset())
        return json_answer(request, Nothing())

    @_table.add(
        "GET",
        "/v1/pairs/{pair}/protection",
        "Whether a primary's VM is to be protected, and how often a checkpoint is taken.",
        {200: Answer("Both.", Protection)},
        errors=(409,),
    )
    def protection(self, request: ApiRequest, pair: str) -> bytes:
        """What is wanted; ``vm`` in the pair's state tells what is."""
        primary = self._primary(pair, "protection")
        return json_answer(request, Protection.of(self._vm(primary)))

    @_table.add(
        "PUT",
        "/v1/pairs/{pair}/protection",
        "Turn the protection of a primary's VM on or off, and say how often a checkpoint is taken.",
        {200: Answer("Both, changed.", Protection)},
        body=ProtectionChange,
        errors=_OF_VMS,
    )
    async def put_protection(self, request: ApiRequest, pair: str, body: ProtectionChange) -> bytes:
        """Either key or both."""
        primary = self._primary(pair, "protection")
        self._vm(primary)
        if body.enabled is None and body.interval_ms is None:
            raise BadArgument("body", "has to have enabled, interval_ms or both")
        interval = None if body.interval_ms is None else body.interval_ms / 1000
        await shielded(primary.set_protection(body.enabled, interval))
        return json_answer(request, Protection.of(self._vm(primary)))

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/promote",
        "The standby's VM takes over, from its newest checkpoint; answers when the guest runs.",
        {200: Answer("The VM.", VmStatus)},
        body=Promotion,
        body_is_optional=True,
        errors=_OF_VMS,
    )
    async def promote(self, request: ApiRequest, pair: str, body: Promotion) -> bytes:
        """Refused while the primary is there, unless it is forced."""
        promoted = self._pair(pair)
        self._vm(promoted)
        await shielded(promoted.promote(body.force))
        return json_answer(request, self._vm(promoted))

    @_table.add(
        "POST",
        "/v1/pairs/{pair}/demote",
        "The primary commits what it has and stops its VM for good; a promoted standby stands by anew.",
        {200: Answer("The VM.", VmStatus)},
        errors=_OF_VMS,
    )
    async def demote(self, request: ApiRequest, pair: str) -> bytes:
        """Answers when it is done."""
        demoted = self._pair(pair)
        self._vm(demoted)
        await shielded(demoted.demote())
        return json_answer(request, self._vm(demoted))

    @_table.add("GET", "/healthz", "Whether the daemon runs.", {200: Answer("It does.", Health)})
    def health(self, request: ApiRequest) -> bytes:
        """Says nothing of the pairs."""
        return json_answer(request, Health())

    @_table.add(
        "GET",
        "/readyz",
        "Whether every pair is up and without an error.",
        {200: Answer("All are.", Ready), 503: Answer("These are not.", Unready)},
    )
    def ready(self, request: ApiRequest) -> bytes:
        """A daemon without pairs is ready."""
        not_ready = [
            NotReady(pair=name, why=why)
            for name, pair in self._daemon.pairs().items()
            if (why := why_not_ready(pair.status()))
        ]
        return json_answer(request, Unready(not_ready=not_ready), 503) if not_ready else json_answer(request, Ready())

    def _pair(self, name: str) -> IPair:
        try:
            return self._daemon.pairs()[name]
        except KeyError:
            raise Unknown(f"There is no pair {name!r}.") from None

    def _primary(self, name: str, what: str) -> IPrimaryPair:
        pair = self._pair(name)
        if not IPrimaryPair.providedBy(pair):
            raise NotInState(f"{name} is a secondary: {what} is for primaries.", pair.status().state)
        return pair

    @staticmethod
    def _vm(pair: IPair) -> VmStatus:
        status = pair.status()
        if status.vm is None:
            raise NotInState(f"{pair.name} has no VM: this is for pairs with source or sink = qemu.", status.state)
        return status.vm

    async def _settled_store(self, name: str) -> ICheckpointStore:
        pair = self._pair(name)
        if not ISecondaryPair.providedBy(pair):
            raise NotInState(f"{name} is a primary: checkpoints are for secondaries.", pair.status().state)
        await shielded(pair.settled())
        return pair.store()

    def _events(self, request: ApiRequest, pair: str | None) -> Deferred[bytes] | bytes:
        wanted, seen = selection(request, pair), last_event_id(request)
        set_headers(request)
        return b"" if request.method == b"HEAD" else self._streams.open(request, wanted, seen)

    @staticmethod
    def _rate_limit(request: ApiRequest, primary: IPrimaryPair) -> bytes:
        status = primary.status()
        return json_answer(request, RateLimit(enabled=status.rate_limit, bandwidth=status.bandwidth_limit))


def _path_of(pair: str) -> str:
    return f"/v1/pairs/{quote(pair, safe='')}"


def _go_on_alone(committed: Deferred[Commit]) -> None:
    """
    Wait no longer for a commit; how it ends is in the events and the history.

    :raises FtdError: if it has failed already.
    """
    failed: list[Failure] = []

    def note(failure: Failure) -> None:
        failed.append(failure)
        if not failure.check(FtdError):
            _log.failure("in a commit that nobody waits for", failure)

    committed.addErrback(note)
    if failed:
        failed[0].raiseException()
