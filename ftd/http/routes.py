"""
The routes as a table: what stands beside each is checked before it runs, and is what ``/v1/openapi.json`` says of it.

A route that is not in the table is not routed, and a query argument that its route does not name is an error, so that a
misspelt one is not taken for its default.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote_to_bytes

import attrs
from klein import Klein
from werkzeug.exceptions import HTTPException

from ftd.errors import TooLarge
from ftd.http.bodies import json_object, structured
from ftd.http.problems import BadArgument
from ftd.http.uploads import ApiRequest
from ftd.status import to_json

Schema = Mapping[str, Any]
Function = TypeVar("Function", bound=Callable[..., Any])

JSON = "application/json"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"

#: How a part of a path is matched, where it is not any text without a slash.
_CONVERTERS = {"n": "int:n"}


@attrs.frozen
class Query:
    """A query argument; ``schema`` is a JSON Schema."""

    name: str
    description: str
    schema: Schema


@attrs.frozen
class Answer:
    """
    What a route answers when nothing is wrong.

    :ivar content: an attrs class or a JSON Schema, ``None`` for an answer without a body.
    """

    description: str
    content: type | Schema | None
    content_type: str = JSON


@attrs.frozen(kw_only=True)
class Route:
    """
    One method of one path.

    :ivar path: with ``{pair}`` and ``{n}`` for what varies.
    :ivar name: of the function, and in the OpenAPI document.
    :ivar body: an attrs class, or the JSON Schema of an object that the route checks; ``None`` where no body is read.
    :ivar body_is_optional: no body is an object without members.
    :ivar takes_upload: the body is state, streamed.
    :ivar answers: by status.
    :ivar errors: the statuses of errors that are not common to all routes.
    """

    method: str
    path: str
    name: str
    summary: str
    query: tuple[Query, ...]
    body: type | Schema | None
    body_is_optional: bool
    takes_upload: bool
    answers: Mapping[int, Answer]
    errors: tuple[int, ...]

    def check(self, request: ApiRequest) -> None:
        """
        What can be said of any request before its route runs.

        :raises TooLarge: for a body over the limit.
        :raises BadArgument: for query arguments that the route does not have, and for a body that it does not read.
        """
        if request.is_over_limit:
            limit = request.channel.site.body_limit
            raise TooLarge(f"The body is longer than the {limit} bytes that this route reads (body-limit of [api]).")
        known = [argument.name for argument in self.query]
        for name in request.args or ():
            text = name.decode("utf-8", "backslashreplace")
            if text not in known:
                there_is = f"there is {', '.join(known)}" if known else "there are none here"
                raise BadArgument(text, f"no such query argument; {there_is}")
        if self.method != "GET" and self.body is None and request.held_body().strip() not in (b"", b"{}"):
            raise BadArgument("body", "has to be empty here")

    def read_body(self, request: ApiRequest) -> object:
        """
        The body, as an object of the class that ``body`` is, or as a dictionary.

        :raises UnsupportedBody: for a content type that is not JSON.
        :raises BadArgument: naming the field that is wrong.
        """
        held = request.held_body()
        if self.body_is_optional and not held.strip():
            held = b"{}"
        value = json_object(request.getHeader("Content-Type"), held)
        return structured(value, self.body) if isinstance(self.body, type) else value


class RouteTable:
    """The routes of one :class:`klein.Klein`, in the order in which they were added."""

    def __init__(self) -> None:
        self.klein = Klein()
        # Two slashes are not one, and nothing is redirected.
        self.klein.url_map.merge_slashes = False
        self.routes: list[Route] = []

    def add(
        self,
        method: str,
        path: str,
        summary: str,
        answers: Mapping[int, Answer],
        *,
        query: tuple[Query, ...] = (),
        body: type | Schema | None = None,
        body_is_optional: bool = False,
        takes_upload: bool = False,
        errors: tuple[int, ...] = (),
    ) -> Callable[[Function], Function]:
        """The decorator of a method that answers a route; where there is a ``body`` it gets that as well."""

        def decorate(function: Function) -> Function:
            route = Route(
                method=method,
                path=path,
                name=function.__name__,
                summary=summary,
                query=query,
                body=body,
                body_is_optional=body_is_optional,
                takes_upload=takes_upload,
                answers=answers,
                errors=errors,
            )

            @functools.wraps(function)
            def run(api: object, request: ApiRequest, **parts: Any) -> Any:
                route.check(request)
                if route.body is not None:
                    parts["body"] = route.read_body(request)
                return function(api, request, **parts)

            self.routes.append(route)
            self.klein.route(_as_rule(path), methods=[method])(run)
            return function

        return decorate

    def takes_upload(self, method: bytes, path: bytes) -> bool:
        """Whether a request line's method and path are those of a route that streams its body."""
        try:
            mapper = self.klein.url_map.bind("localhost")
            name, _ = mapper.match(unquote_to_bytes(path).decode(), method.decode())
        except (HTTPException, UnicodeDecodeError):
            return False
        return any(route.takes_upload for route in self.routes if route.name == name)


def _as_rule(path: str) -> str:
    """``/v1/pairs/{pair}/checkpoints/{n}`` in werkzeug's form."""
    for part, converter in _CONVERTERS.items():
        path = path.replace(f"{{{part}}}", f"<{converter}>")
    return path.replace("{", "<").replace("}", ">")


def json_answer(request: ApiRequest, value: attrs.AttrsInstance | Mapping[str, Any], status: int = 200) -> bytes:
    """Make ``value``, an instance of an attrs class or a JSON object, the answer; return it as it is to be written."""
    plain = value if isinstance(value, Mapping) else to_json(value)
    body = json.dumps(plain, ensure_ascii=False).encode() + b"\n"
    request.setResponseCode(status)
    # It tells how things are now.
    request.set_headers({"Content-Type": JSON, "Content-Length": str(len(body)), "Cache-Control": "no-store"})
    return body


def query_argument(request: ApiRequest, name: str) -> str | None:
    """
    A query argument, ``None`` if it is not there.

    :raises BadArgument: if it is there twice, or is not UTF-8.
    """
    values = query_arguments(request, name)
    if len(values) > 1:
        raise BadArgument(name, "is there more than once")
    return values[0] if values else None


def query_arguments(request: ApiRequest, name: str) -> list[str]:
    """
    A query argument as often as it is there.

    :raises BadArgument: if one is not UTF-8.
    """
    try:
        return [value.decode() for value in (request.args or {}).get(name.encode(), ())]
    except UnicodeDecodeError as error:
        raise BadArgument(name, "is not UTF-8") from error
