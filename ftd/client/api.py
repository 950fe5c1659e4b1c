"""The calls: one method of :class:`Client` for every route of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from json import dumps
from os import PathLike
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote

import treq
import xxhash
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.web.client import HTTPConnectionPool
from twisted.web.iweb import IBodyProducer, IResponse

from ftd.client.answers import (
    Accepted,
    DaemonInfo,
    Fetched,
    Protection,
    RateLimit,
    Readiness,
    json_object,
    refusal,
    structure,
)
from ftd.client.connection import Address, make_agent
from ftd.client.errors import CONNECTION_ERRORS, ApiError, Damaged, Unreachable, connection_error
from ftd.client.events import EventStream, Notice, unheard
from ftd.client.transfer import Progress, body_of, replacing, silent
from ftd.status import Checkpoint, Commit, PairStatus, TransactionStatus, VmStatus

_Value = TypeVar("_Value")

#: A number of a checkpoint, or the newest.
Which = int | Literal["latest"]


class Client:
    """
    One daemon.

    :param http: sends the requests.
    :param address: where they go.
    :param clock: an `IReactorTime`, for the time limits and for what an upload does in between.
    :param answer_time: seconds until an answer has to begin.  Calls that take as long as the pair takes (``begin``,
        ``data``, ``commit``, ``push``, and those that change what becomes of a VM) have no limit but the daemon's own.
    :param pool: where the idle connections are, for ``close``.
    """

    def __init__(
        self,
        http: HTTPClient,
        address: Address,
        clock: Any,
        *,
        answer_time: float = 30.0,
        pool: HTTPConnectionPool | None = None,
    ) -> None:
        self._http = http
        self.address = address
        self._clock = clock
        self._answer_time = answer_time
        self._pool = pool

    @classmethod
    def for_url(cls, url: str, reactor: Any, *, connect_time: float = 10.0, answer_time: float = 30.0) -> Client:
        """
        A client of the daemon at ``http://host:port`` or ``unix:/path/to/socket``.

        :param connect_time: seconds that connecting may take.
        :raises ValueError: for another form of URL.
        """
        address = Address.parse(url)
        agent, pool = make_agent(reactor, address, connect_time)
        return cls(HTTPClient(agent), address, reactor, answer_time=answer_time, pool=pool)

    async def close(self) -> None:
        """Close the connections that were kept for the next call."""
        if self._pool is not None:
            await self._pool.closeCachedConnections()

    # The daemon

    async def info(self) -> DaemonInfo:
        """Version, node, uptime, names of the pairs."""
        return await self._value("GET", "/v1", DaemonInfo)

    async def health(self) -> bool:
        """Whether the daemon is alive: ``True``, or an exception."""
        await self._json("GET", "/healthz")
        return True

    async def ready(self) -> Readiness:
        """Whether every pair is up and without error."""
        try:
            return await self._value("GET", "/readyz", Readiness)
        except ApiError as error:
            if "ready" not in error.problem:
                raise
            return self._structured(error.problem, Readiness)

    async def openapi(self) -> Mapping[str, Any]:
        """The OpenAPI document of the API."""
        return await self._json("GET", "/v1/openapi.json")

    # Pairs

    async def pairs(self) -> list[PairStatus]:
        """All pairs."""
        return await self._rows("/v1/pairs", "pairs", PairStatus)

    async def pair(self, pair: str) -> PairStatus:
        """One pair."""
        return await self._value("GET", _path(pair), PairStatus)

    async def create_pair(self, pair: str, settings: Mapping[str, str | int | float | bool]) -> PairStatus:
        """
        Create a pair.

        :param settings: the keys of a ``[pair …]`` section: ``role``, ``link`` and so on.
        """
        return await self._value("POST", "/v1/pairs", PairStatus, json={"pair": pair, **settings})

    async def delete_pair(self, pair: str) -> None:
        """Remove a pair that was created by ``create_pair``."""
        response = await self._request("DELETE", _path(pair))
        await treq.content(response)

    async def reset(self, pair: str) -> None:
        """Clear the pair's error and open its link anew."""
        await self._json("POST", _path(pair, "reset"))

    async def transactions(self, pair: str) -> list[TransactionStatus]:
        """The last 256 transactions, oldest first."""
        return await self._rows(_path(pair, "transactions"), "transactions", TransactionStatus)

    # Transactions

    async def begin(self, pair: str) -> int:
        """Open a transaction and return its id."""
        return await self._id("POST", _path(pair, "begin"), is_limited=False)

    async def data(
        self,
        pair: str,
        source: BinaryIO | bytes | IBodyProducer,
        *,
        length: int | None = None,
        progress: Progress = silent,
    ) -> Accepted:
        """Append to the open transaction.  Parameters as for ``push``."""
        body = body_of(source, self._clock, length, progress)
        return await self._value("POST", _path(pair, "data"), Accepted, body=body, is_limited=False)

    async def commit(self, pair: str, *, timeout: float | None = None) -> Commit:
        """
        Commit the open transaction and wait for the ACK.

        :param timeout: seconds the daemon waits for it, ``None`` for the pair's ``ack-time``.
        """
        params = {} if timeout is None else {"timeout": f"{timeout:g}"}
        return await self._value("POST", _path(pair, "commit"), Commit, params=params, is_limited=False)

    async def commit_without_waiting(self, pair: str) -> int:
        """Send the COMMIT of the open transaction, whose id is returned."""
        return await self._id("POST", _path(pair, "commit"), params={"wait": "false"})

    async def cancel(self, pair: str) -> int:
        """Drop the open transaction, whose id is returned."""
        return await self._id("POST", _path(pair, "cancel"))

    async def push(
        self,
        pair: str,
        source: BinaryIO | bytes | IBodyProducer,
        *,
        length: int | None = None,
        progress: Progress = silent,
    ) -> Commit:
        """
        Send one whole checkpoint and wait for its ACK.

        :param source: a file, sent from where it stands to its end; or a producer, which reports its own progress.
        :param length: how many bytes of the file; found out where it can seek, else it is sent in chunks.
        :param progress: told of the bytes as they are handed to the connection.
        :raises SourceChanged: if the file turns out shorter than it was.
        :raises OSError: if the file cannot be read.  In both cases the daemon cancels.
        """
        body = body_of(source, self._clock, length, progress)
        return await self._value("PUT", _path(pair, "checkpoint"), Commit, body=body, is_limited=False)

    # Switches

    async def rate_limit(self, pair: str) -> RateLimit:
        """How the pair treats its source."""
        return await self._value("GET", _path(pair, "rate-limit"), RateLimit)

    async def set_rate_limit(
        self, pair: str, *, enabled: bool | None = None, bandwidth: int | None = None
    ) -> RateLimit:
        """Change either: whether the source is paused while the link is frozen; bytes per second, 0 for no limit."""
        wanted = {"enabled": enabled, "bandwidth": bandwidth}
        json = {key: value for key, value in wanted.items() if value is not None}
        return await self._value("PUT", _path(pair, "rate-limit"), RateLimit, json=json)

    async def trace(self, pair: str) -> dict[str, bool]:
        """The pair's trace events and whether each is on."""
        return await self._switches("GET", pair)

    async def set_trace(self, pair: str, switches: Mapping[str, bool]) -> dict[str, bool]:
        """Turn trace events on and off; those that are not named stay.  Returns all of them."""
        return await self._switches("PUT", pair, json={"events": dict(switches)})

    # VMs

    async def protection(self, pair: str) -> Protection:
        """Whether a primary's VM is to be protected, and how often a checkpoint is taken."""
        return await self._value("GET", _path(pair, "protection"), Protection)

    async def set_protection(
        self, pair: str, *, enabled: bool | None = None, interval_ms: float | None = None
    ) -> Protection:
        """Change either: whether it is to be; milliseconds, 0 where ``begin`` and ``commit`` say when."""
        wanted = {"enabled": enabled, "interval_ms": interval_ms}
        json = {key: value for key, value in wanted.items() if value is not None}
        return await self._value("PUT", _path(pair, "protection"), Protection, json=json, is_limited=False)

    async def promote(self, pair: str, *, force: bool = False) -> VmStatus:
        """
        Have the standby's VM take over; returns when the guest runs.

        :param force: although the primary is up.
        """
        return await self._value("POST", _path(pair, "promote"), VmStatus, json={"force": force}, is_limited=False)

    async def demote(self, pair: str) -> VmStatus:
        """Have a primary stop its VM for good, after a last commit, or a promoted standby stand by anew."""
        return await self._value("POST", _path(pair, "demote"), VmStatus, is_limited=False)

    # Events

    def events(
        self,
        pair: str | None = None,
        *,
        kinds: Iterable[str] = (),
        names: Iterable[str] = (),
        notice: Notice = unheard,
    ) -> EventStream:
        """
        What happens, as it happens.

        :param pair: only of this pair.
        :param kinds: only these kinds of event.
        :param names: only these trace events, which are on for as long as the stream lasts.
        :param notice: told when the stream breaks and when it is there again.
        """
        path = _path(pair, "events") if pair is not None else "/v1/events"
        params = {"kinds": ",".join(kinds), "names": ",".join(names)}
        params = {key: value for key, value in params.items() if value}

        async def open(last_id: str) -> IResponse:
            headers = {"Accept": "text/event-stream"}
            if last_id:
                headers["Last-Event-ID"] = last_id
            response = await self._request("GET", path, params=params, headers=headers)
            if not (response.headers.getRawHeaders("Content-Type") or [""])[0].startswith("text/event-stream"):
                raise self._not_ftd("the answer is not an event stream")
            return response

        return EventStream(open, self._clock, self.address.url, notice)

    # Checkpoints

    async def checkpoints(self, pair: str) -> list[Checkpoint]:
        """What a secondary holds, oldest first."""
        return await self._rows(_path(pair, "checkpoints"), "checkpoints", Checkpoint)

    async def fetch(self, pair: str, which: Which, file: BinaryIO, *, progress: Progress = silent) -> Fetched:
        """
        Write a checkpoint's bytes to ``file``, and compare them with the digest that the daemon has of them.

        :raises Damaged: if they differ.
        :raises OSError: if the file cannot be written.
        """
        response = await self._request("GET", _path(pair, "checkpoints", str(which)))
        total = response.length if isinstance(response.length, int) else None
        digest = xxhash.xxh3_64()
        moved = 0

        def store(block: bytes) -> None:
            nonlocal moved
            file.write(block)
            digest.update(block)
            moved += len(block)
            progress(moved, total)

        await self._whole(treq.collect(response, store))
        number, expected = _identity(response) or await self._listed(pair, which)
        if digest.hexdigest() != expected:
            raise Damaged(
                f"checkpoint {number} of {pair} arrived damaged: its xxh3 is {expected}, that of the {moved} bytes "
                f"that came is {digest.hexdigest()}"
            )
        return Fetched(number=number, bytes=moved, xxh3=expected)

    async def fetch_to(
        self, pair: str, which: Which, path: str | PathLike[str], *, progress: Progress = silent
    ) -> Fetched:
        """As ``fetch``, to a file that appears, or is replaced, only when the checkpoint is whole and right."""
        with replacing(path) as file:
            return await self.fetch(pair, which, file, progress=progress)

    async def _listed(self, pair: str, which: Which) -> tuple[int, str]:
        """Number and digest out of the list, for an answer whose headers do not have them (a proxy took them away)."""
        for held in reversed(await self.checkpoints(pair)):
            if which in ("latest", held.number):
                return held.number, held.xxh3
        raise Damaged(f"checkpoint {which} of {pair} is no longer held, so nothing tells whether it arrived whole")

    # How requests are made

    async def _request(
        self,
        method: str,
        path: str,
        *,
        is_limited: bool = True,
        body: IBodyProducer | None = None,
        json: Mapping[str, Any] | None = None,
        **rest: Any,
    ) -> IResponse:
        """
        Send a request; returns when the headers of a good answer have arrived.

        :param is_limited: whether they have to arrive in ``answer_time``.
        :param json: the body.  (treq's own ``json`` would be sent by the global reactor.)
        """
        if json is not None:
            encoded = dumps(json, separators=(",", ":")).encode()
            rest |= {"data": body_of(encoded, self._clock), "headers": {"Content-Type": "application/json"}}
        elif body is not None:
            rest |= {"data": body, "headers": {"Content-Type": "application/octet-stream"}}
        sent = self._http.request(
            method, self.address.base + path, unbuffered=True, allow_redirects=False, reactor=self._clock, **rest
        )
        limit = self._clock.callLater(self._answer_time, sent.cancel) if is_limited else None
        try:
            response: IResponse = await sent
        except CONNECTION_ERRORS as error:
            if limit is not None and not limit.active():
                raise Unreachable(self.address.url, f"no answer in {self._answer_time:g} s") from error
            raise connection_error(error, self.address.url) from error
        finally:
            if limit is not None and limit.active():
                limit.cancel()
        if response.code >= 300:
            raise await self._whole(Deferred.fromCoroutine(refusal(response)))
        return response

    async def _whole(self, arriving: Deferred[_Value]) -> _Value:
        """The rest of an answer whose headers have arrived."""
        try:
            return await arriving
        except CONNECTION_ERRORS as error:
            raise connection_error(error, self.address.url) from error

    async def _json(self, method: str, path: str, **rest: Any) -> dict[str, Any]:
        response = await self._request(method, path, **rest)
        try:
            return await self._whole(Deferred.fromCoroutine(json_object(response)))
        except ValueError as error:
            raise self._not_ftd(f"the answer is not JSON: {error}") from error

    async def _value(self, method: str, path: str, kind: type[_Value], **rest: Any) -> _Value:
        return self._structured(await self._json(method, path, **rest), kind)

    async def _rows(self, path: str, key: str, kind: type[_Value]) -> list[_Value]:
        rows = (await self._json("GET", path)).get(key)
        return [self._structured(row, kind) for row in self._structured(rows, list[Any])]

    async def _id(self, method: str, path: str, **rest: Any) -> int:
        return self._structured((await self._json(method, path, **rest)).get("id"), int)

    async def _switches(self, method: str, pair: str, **rest: Any) -> dict[str, bool]:
        events = (await self._json(method, _path(pair, "trace"), **rest)).get("events")
        return self._structured(events, dict[str, bool])

    def _structured(self, value: Any, kind: type[_Value]) -> _Value:
        try:
            return structure(value, kind)
        except ValueError as error:
            raise self._not_ftd(f"the answer has another shape than expected: {error}") from error

    def _not_ftd(self, why: str) -> Unreachable:
        return Unreachable(self.address.url, f"something answers there that does not seem to be an ftd: {why}")


def _identity(response: IResponse) -> tuple[int, str] | None:
    """Number and digest of the checkpoint that an answer brings, from its headers."""
    (etag,) = response.headers.getRawHeaders("ETag") or [""]
    (number,) = response.headers.getRawHeaders("X-Ftd-Checkpoint") or [""]
    xxh3 = etag.removeprefix("W/").strip('"')
    return (int(number), xxh3) if number.isdigit() and xxh3 else None


def _path(pair: str, *parts: str) -> str:
    return "/".join(("/v1/pairs", quote(pair, safe=""), *parts))
