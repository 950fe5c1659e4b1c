"""A small HTTP client on treq: one request, one connection, the whole answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import attrs
from treq.client import HTTPClient
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.web.client import URI, Agent, RequestTransmissionFailed, ResponseFailed
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from tests.waiting import DEADLINE, limited, reactor


class NoAnswer(Exception):
    """Nobody listens there, or the connection broke before the answer was complete."""


@attrs.frozen
class Answer:
    """One answer."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: str) -> str | None:
        """The last header of that name."""
        values = self.headers.getRawHeaders(name)
        return values[-1] if values else None

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


@implementer(IAgentEndpointFactory)
@attrs.frozen
class _Endpoints:
    """Where a client connects to, whatever its URLs say."""

    endpoint: IStreamClientEndpoint

    def endpointForURI(self, _uri: URI) -> IStreamClientEndpoint:  # noqa: N802 (Twisted's name)
        return self.endpoint


class HttpClient:
    """
    :param base: what every URL begins with, ``http://127.0.0.1:8440``.
    :param socket: the path of a unix socket to connect to.
    """

    def __init__(self, base: str, socket: str | None = None) -> None:
        self._base = base
        if socket is not None:
            endpoint: IStreamClientEndpoint = UNIXClientEndpoint(reactor, socket)
        else:
            host, port = base.removeprefix("http://").split(":")
            endpoint = TCP4ClientEndpoint(reactor, host, int(port))
        self._client = HTTPClient(Agent.usingEndpointFactory(reactor, _Endpoints(endpoint)))

    async def request(
        self,
        method: str,
        path: str,
        body: bytes | IBodyProducer | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> Answer:
        """
        Ask, and read all of the answer.

        :raises NoAnswer: if there is none.
        """
        try:
            response = await limited(
                self._client.request(
                    method,
                    self._base + path,
                    data=body,
                    headers=Headers({name: [value] for name, value in (headers or {}).items()}),
                    unbuffered=True,
                ),
                deadline,
            )
            received: Deferred[bytes] = response.content()
            content = await limited(received, deadline)
        except (ConnectError, ConnectionClosed, RequestTransmissionFailed, ResponseFailed) as error:
            raise NoAnswer(f"{method} {path}: {error}") from error
        return Answer(response.code, response.headers, content)

    async def json(self, path: str) -> Any:
        """What a GET answers, which has to be well."""
        answer = await self.request("GET", path)
        assert answer.status == 200, answer
        return answer.json()

    async def send_json(self, method: str, path: str, value: object) -> Answer:
        """Ask with a JSON body."""
        return await self.request(method, path, json.dumps(value).encode(), {"Content-Type": "application/json"})
