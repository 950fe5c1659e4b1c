"""
``ftd.client``: a daemon's HTTP API as a typed library, for programs that run in Twisted's reactor.

::

    client = Client.for_url("http://127.0.0.1:8440", reactor)
    with open("state.img", "rb") as file:
        commit = await client.push("demo", file)

Every method is a coroutine (``Deferred.fromCoroutine`` makes a Deferred of one).  Besides what their documentation
says, all of them raise :class:`ApiError` when the daemon refuses and :class:`Unreachable` when there is none, or when
what answers is not one.  Cancelling a call closes its connection, so the daemon cancels an upload that was under way.
"""

from ftd.client.answers import Accepted, DaemonInfo, Fetched, NotReady, Protection, RateLimit, Readiness
from ftd.client.api import Client, Which
from ftd.client.connection import DEFAULT_URL, Address
from ftd.client.errors import ApiError, ClientError, Damaged, Unreachable
from ftd.client.events import Event, EventStream
from ftd.client.transfer import FileBody, PipeBody, Progress, SourceChanged

__all__ = [
    "DEFAULT_URL",
    "Accepted",
    "Address",
    "ApiError",
    "Client",
    "ClientError",
    "DaemonInfo",
    "Damaged",
    "Event",
    "EventStream",
    "Fetched",
    "FileBody",
    "NotReady",
    "PipeBody",
    "Progress",
    "Protection",
    "RateLimit",
    "Readiness",
    "SourceChanged",
    "Unreachable",
    "Which",
]
