"""What a call of :class:`ftd.client.Client` can end in, other than its result."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from twisted.internet import error
from twisted.internet.defer import CancelledError
from twisted.web.client import RequestGenerationFailed, RequestTransmissionFailed, ResponseFailed


class ClientError(Exception):
    """A call that did not do what was asked.  ``str()`` of it is one sentence for a person."""


class ApiError(ClientError):
    """
    The daemon refused.

    :ivar status: the HTTP status.
    :ivar problem: the members of the ``application/problem+json`` document; of an answer that is none, ``title``,
        ``status`` and ``detail`` made from the status line.
    :ivar retry_after: seconds after which it is worth trying again, where the daemon says so.
    """

    def __init__(self, status: int, problem: Mapping[str, Any], retry_after: float | None = None) -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"HTTP status {status}"))
        self.status = status
        self.problem = problem
        self.retry_after = retry_after

    @property
    def kind(self) -> str:
        """The problem's short name, ``not-in-state`` for one; empty if it has none."""
        return str(self.problem.get("type", "")).rpartition(":")[2]


class Unreachable(ClientError):
    """
    There is no daemon at that URL, or the connection to it broke.

    :ivar url: the URL as it was given.
    :ivar why: what happened, in words.
    """

    def __init__(self, url: str, why: str) -> None:
        super().__init__(f"{url}: {why}")
        self.url = url
        self.why = why


class Damaged(ClientError):
    """What arrived is not the checkpoint that the daemon holds; none of it was kept."""


#: What Twisted's HTTP client fails with, for :func:`connection_error`.
CONNECTION_ERRORS = (
    CancelledError,
    RequestGenerationFailed,
    RequestTransmissionFailed,
    ResponseFailed,
    error.ConnectError,
    error.ConnectionClosed,
    error.ConnectingCancelledError,
    error.DNSLookupError,
)


def connection_error(failed: Exception, url: str) -> Exception:
    """
    What to raise for an exception of Twisted's HTTP client: what the caller can act on, not how the request was built.

    An error of the upload's own source (a file that cannot be read) and a cancellation come out as themselves.
    """
    causes = tuple(_causes(failed))
    if any(isinstance(cause, CancelledError | error.ConnectingCancelledError) for cause in causes):
        return CancelledError()
    if isinstance(failed, RequestGenerationFailed):
        return causes[0]
    if isinstance(failed, ResponseFailed) and not any(isinstance(cause, error.ConnectionClosed) for cause in causes):
        return Unreachable(url, f"what answers there does not speak HTTP ({causes[0]})")
    return Unreachable(url, _why(failed))


def _causes(failed: Exception) -> Iterator[Exception]:
    """The exceptions inside Twisted's ``…Failed`` wrappers, or the exception itself."""
    if not isinstance(failed, RequestGenerationFailed | RequestTransmissionFailed | ResponseFailed):
        yield failed
        return
    for reason in failed.reasons:
        yield from _causes(reason.value)


def _why(failed: Exception) -> str:
    if isinstance(failed, error.ConnectionRefusedError):
        return "the connection was refused"
    if isinstance(failed, error.TimeoutError):
        return "no connection in time"
    if isinstance(failed, error.DNSLookupError):
        return "the host's name cannot be resolved"
    if isinstance(failed, error.ConnectError) and isinstance(failed.osError, int):
        return os.strerror(failed.osError)
    if isinstance(failed, RequestTransmissionFailed):
        return "the connection broke while the request was being sent"
    if isinstance(failed, ResponseFailed):
        return "the connection broke before the answer was through"
    return str(failed) or type(failed).__name__
