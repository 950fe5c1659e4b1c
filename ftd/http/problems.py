"""
Errors as answers: ``application/problem+json`` (RFC 9457).

One table says which exception is which status; routes raise and never write an error themselves.  What is not in the
table is a fault of ftd: the client gets an incident id and nothing of the exception, the log gets both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from uuid import uuid4

import attrs
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.http import Request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from ftd.errors import (
    AlreadyExists,
    CannotKeep,
    ConfigError,
    FtdError,
    LinkDown,
    NoAck,
    NotInState,
    PairFailed,
    TooLarge,
    Unknown,
)
from ftd.vm.errors import CannotProtect, QmpClosed, QmpError, QmpTimeout, TrackingUnavailable, VmError

_log = Logger()

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:ftd:problem:"


class BadArgument(FtdError):
    """
    A body, a query argument or a header that cannot be used.

    :ivar field: which one, with dots into an object: ``events.ft_trans_flush``.
    """

    kind = "bad-request"

    def __init__(self, field: str, detail: str) -> None:
        super().__init__(f"{field}: {detail}")
        self.field = field


class UnsupportedBody(FtdError):
    """A body of a content type that the route does not read."""

    kind = "unsupported-media-type"


class TooManyReaders(FtdError):
    """
    Every place for a reader of the event stream is taken.

    :ivar retry_after: seconds after which it is worth trying again.
    """

    kind = "too-many-readers"

    def __init__(self, detail: str, retry_after: float) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


#: The status and the title of every error that has a meaning for a client; one that is not here has those of the
#: nearest class that it comes from and that is.
STATUS_BY_ERROR: Mapping[type[FtdError], tuple[int, str]] = {
    BadArgument: (400, "The request is not well formed"),
    ConfigError: (400, "The configuration cannot be used"),
    Unknown: (404, "There is no such thing"),
    NotInState: (409, "Not possible in this state"),
    PairFailed: (409, "The pair has an error"),
    AlreadyExists: (409, "Already there"),
    VmError: (409, "The VM does not let it be done"),
    CannotProtect: (409, "The VM cannot be protected"),
    TrackingUnavailable: (409, "Written pages cannot be found that way"),
    TooLarge: (413, "Over a limit"),
    UnsupportedBody: (415, "Not a body for this route"),
    CannotKeep: (500, "Cannot be kept"),
    QmpError: (502, "QEMU did not do what it was asked"),
    QmpClosed: (503, "QEMU is gone"),
    LinkDown: (503, "The link is down"),
    TooManyReaders: (503, "Too many readers"),
    NoAck: (504, "No acknowledgement in time"),
    QmpTimeout: (504, "QEMU did not answer in time"),
}

#: Seconds after which it is worth asking a QEMU again that has ended or is being started anew.
_RETRY_QEMU = 1


@attrs.frozen(kw_only=True)
class Problem:
    """
    One error answer.

    :ivar kind: the last part of the ``type`` URI, for programs.
    :ivar members: further members of the body, such as ``field``.
    """

    status: int
    kind: str
    title: str
    detail: str
    members: Mapping[str, object] = attrs.field(factory=dict)
    headers: Mapping[str, str] = attrs.field(factory=dict)

    def on(self, request: Request) -> bytes:
        """Make this the answer to a request of which nothing has been answered yet, and return the body to write."""
        members = {"type": TYPE_PREFIX + self.kind, "title": self.title, "status": self.status, "detail": self.detail}
        body = json.dumps({**members, **self.members}, ensure_ascii=False).encode() + b"\n"
        request.setResponseCode(self.status)
        # What the route had set belongs to an answer that is not given.
        for name, _ in tuple(request.responseHeaders.getAllRawHeaders()):
            if name not in (b"Date", b"Server", b"Connection"):
                request.responseHeaders.removeHeader(name)
        headers = {"Content-Type": CONTENT_TYPE, "Content-Length": str(len(body)), **self.headers}
        for header, value in headers.items():
            request.responseHeaders.setRawHeaders(header, [value])
        return body


def problem_of(failure: Failure, request: Request) -> Problem:
    """The answer to what a route raised."""
    error = failure.value
    method = request.method.decode("ascii", "backslashreplace")
    path = request.path.decode("ascii", "backslashreplace")
    if isinstance(error, FtdError) and (known := _status_of(type(error))) is not None:
        return _of_ftd_error(error, *known)
    if isinstance(error, HTTPException) and error.code is not None:
        return _of_http_exception(error, error.code, method, path)
    incident = uuid4().hex
    _log.failure("incident {incident}: {method} {path}", failure, incident=incident, method=method, path=path)
    return Problem(
        status=500,
        kind="internal",
        title="A fault in ftd",
        detail=f"Something went wrong in ftd itself.  Its log says what, under incident {incident}.",
        members={"incident": incident},
    )


def _status_of(error: type[FtdError]) -> tuple[int, str] | None:
    return next((STATUS_BY_ERROR[kind] for kind in error.__mro__ if kind in STATUS_BY_ERROR), None)


def _of_ftd_error(error: FtdError, status: int, title: str) -> Problem:
    members: dict[str, object] = {}
    headers: dict[str, str] = {}
    match error:
        case BadArgument():
            members["field"] = error.field
        case ConfigError():
            members["field"] = error.key
        case NotInState():
            members["state"] = error.state
        case PairFailed():
            members.update(has_error=int(error.code), has_error_name=error.code.name)
        case LinkDown() | TooManyReaders():
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        case QmpClosed():
            headers["Retry-After"] = str(_RETRY_QEMU)
    return Problem(
        status=status, kind=error.kind, title=title, detail=_sentence(error), members=members, headers=headers
    )


def _sentence(error: FtdError) -> str:
    if isinstance(error, ConfigError):
        # Its text begins with the section of a file, which a request does not have.
        return f"{error.key}: {error.detail}" if error.key else error.detail
    return str(error)


def _of_http_exception(error: HTTPException, status: int, method: str, path: str) -> Problem:
    headers = {name: value for name, value in error.get_headers() if name == "Content-Range"}
    if isinstance(error, NotFound):
        detail = f"There is nothing at {path}; /v1/openapi.json lists what there is."
    elif isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.valid_methods or ()))
        detail = f"{method} is not possible here; allowed: {headers['Allow']}."
    else:
        detail = error.description or error.name
    return Problem(
        status=status,
        kind=error.name.lower().replace(" ", "-"),
        title=HTTPStatus(status).phrase,
        detail=detail,
        headers=headers,
    )
