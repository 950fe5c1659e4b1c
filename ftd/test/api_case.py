"""The API on a daemon in memory, as the tests of it need it; every answer is held against the OpenAPI document."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.api import Api
from ftd.bus import EventBus
from ftd.config import ApiConfig
from ftd.testing.fake_pairs import FakeDaemon
from ftd.testing.http_client import Connection, Response

#: When the tests take place, Unix seconds.
NOW = 1_700_000_000.0


class ApiTestCase(SynchronousTestCase):
    """
    :cvar config: of the API.
    """

    config = ApiConfig(body_limit=1000, event_readers=3, idle_time=60.0)

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = NOW
        self.bus = EventBus(self.clock.seconds)
        self.daemon = FakeDaemon(self.bus)
        self.primary = self.daemon.primary
        self.secondary = self.daemon.secondary
        self.api = Api(self.daemon, self.bus, self.config, self.clock)
        self.site = self.api.site()

    def connect(self, capacity: int = 64 * 1024) -> Connection:
        """A new client."""
        return Connection(self.site, capacity)

    def call(self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None) -> Response:
        """
        A request on a connection of its own, and its answer.

        :param body: bytes as they are, anything else as JSON.
        """
        client = self.connect()
        self.request(client, method, path, body, headers)
        response = client.response(method)
        self.check_documented(method, path, response)
        return response

    def request(
        self, client: Connection, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> None:
        """A whole request."""
        sent = dict(headers or {})
        if body is None:
            data = b""
        else:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent["Content-Length"] = str(len(data))
        client.send_head(method, path, sent)
        client.send(data)

    def assert_problem(self, response: Response, status: int, kind: str, **members: object) -> str:
        """Check that an answer is that problem, with those members; return what it tells a person."""
        problem = response.json()
        self.assertEqual((response.status, problem["type"]), (status, f"urn:ftd:problem:{kind}"), problem)
        self.assertEqual(response.header("Content-Type"), "application/problem+json")
        self.assertEqual(response.header("Content-Length"), str(len(response.body)))
        self.assertEqual(problem["status"], status)
        self.assertTrue(problem["title"])
        self.assertEqual({name: problem.get(name) for name in members}, members)
        self.assertEqual(set(problem) - {"type", "title", "status", "detail"}, set(members))
        return str(problem["detail"])

    def check_documented(self, method: str, path: str, response: Response) -> None:
        """Check that the document has the status that was answered, and that the body is as it says."""
        document = openapi_document()
        operation = operation_of(document, method, path)
        if operation is None or method == "HEAD":
            return
        documented = operation["responses"].get(str(response.status))
        self.assertIsNotNone(documented, f"{method} {path}: {response.status} is not documented")
        if "$ref" in documented:
            documented = document["components"]["responses"][documented["$ref"].rpartition("/")[2]]
        content_type = response.header("Content-Type")
        content = documented.get("content", {})
        if response.body or content_type is not None:
            self.assertIn(content_type, content)
        if content_type in ("application/json", "application/problem+json"):
            schema = content[content_type]["schema"]
            self.assertEqual(list(mismatches(response.json(), schema, document, "body")), [])


@cache
def openapi_document() -> dict[str, Any]:
    """What ``/v1/openapi.json`` says."""
    clock = Clock()
    bus = EventBus(clock.seconds)
    api = Api(FakeDaemon(bus), bus, ApiConfig(), clock)
    client = Connection(api.site())
    client.send_head("GET", "/v1/openapi.json")
    document = client.response().json()
    assert isinstance(document, dict)
    return document


def operation_of(document: dict[str, Any], method: str, path: str) -> dict[str, Any] | None:
    """The operation for a path of a request, of which literal ones come first."""
    for template, item in sorted(document["paths"].items(), key=lambda entry: entry[0].count("{")):
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path.partition("?")[0]):
            operation = item.get(method.lower())
            return dict(operation) if operation is not None else None
    return None


def mismatches(value: Any, schema: Mapping[str, Any], document: dict[str, Any], where: str) -> Iterator[str]:
    """
    Where ``value`` is not as ``schema`` says: as much of JSON Schema as the document uses for answers.

    A keyword that is not known here is an error, so that nothing is taken for checked that is not.
    """
    unknown = set(schema) - {*_CHECKS, "properties", "required", "additionalProperties", "description"}
    assert not unknown, f"{where}: the check does not know {unknown}"
    for keyword, argument in schema.items():
        if keyword in _CHECKS:
            yield from _CHECKS[keyword](value, argument, document, where)
    if isinstance(value, dict):
        yield from _members(value, schema, document, where)


def _members(value: dict[str, Any], schema: Mapping[str, Any], document: dict[str, Any], where: str) -> Iterator[str]:
    for name in schema.get("required", ()):
        if name not in value:
            yield f"{where}: {name} is missing"
    more = schema.get("additionalProperties", {})
    for name, member in value.items():
        if name in schema.get("properties", {}):
            yield from mismatches(member, schema["properties"][name], document, f"{where}.{name}")
        elif more is False:
            yield f"{where}: {name} is not documented"
        else:
            yield from mismatches(member, more, document, f"{where}.{name}")


_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "null": (type(None),),
    "integer": (int,),
    "number": (int, float),
}


def _type(value: Any, name: str, _: dict[str, Any], where: str) -> Iterator[str]:
    is_bool_for_number = isinstance(value, bool) and name != "boolean"
    if not isinstance(value, _TYPES[name]) or is_bool_for_number:
        yield f"{where}: {value!r} is no {name}"


def _reference(value: Any, reference: str, document: dict[str, Any], where: str) -> Iterator[str]:
    name = reference.removeprefix("#/components/schemas/")
    yield from mismatches(value, document["components"]["schemas"][name], document, where)


def _any_of(value: Any, choices: list[Any], document: dict[str, Any], where: str) -> Iterator[str]:
    if all(list(mismatches(value, choice, document, where)) for choice in choices):
        yield f"{where}: {value!r} is none of {choices}"


def _enum(value: Any, choices: list[Any], _: dict[str, Any], where: str) -> Iterator[str]:
    if value not in choices:
        yield f"{where}: {value!r} is not one of {choices}"


def _items(value: Any, schema: Mapping[str, Any], document: dict[str, Any], where: str) -> Iterator[str]:
    for index, item in enumerate(value):
        yield from mismatches(item, schema, document, f"{where}[{index}]")


def _pattern(value: Any, pattern: str, _: dict[str, Any], where: str) -> Iterator[str]:
    if not re.search(pattern, value):
        yield f"{where}: {value!r} does not match {pattern}"


_CHECKS: Mapping[str, Callable[[Any, Any, dict[str, Any], str], Iterator[str]]] = {
    "type": _type,
    "$ref": _reference,
    "anyOf": _any_of,
    "enum": _enum,
    "items": _items,
    "pattern": _pattern,
}
