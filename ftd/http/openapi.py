"""
``/v1/openapi.json``: an OpenAPI 3.1 document, made from the route table and the attrs classes of bodies and answers.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from http import HTTPStatus
from typing import Any, Union

import attrs

from ftd.http.problems import CONTENT_TYPE, TYPE_PREFIX
from ftd.http.routes import BYTES, JSON, Answer, Route, Schema

PATH_PARAMETERS: Mapping[str, Schema] = {
    "pair": {
        "name": "pair",
        "in": "path",
        "required": True,
        "description": "The name of a pair's section in the configuration.",
        "schema": {"type": "string"},
    },
    "n": {
        "name": "n",
        "in": "path",
        "required": True,
        "description": "The number of a checkpoint.",
        "schema": {"type": "integer", "minimum": 0},
    },
}

PROBLEM: Schema = {
    "type": "object",
    "description": "What went wrong, after RFC 9457.",
    "properties": {
        "type": {"type": "string", "pattern": f"^{TYPE_PREFIX}", "description": "For programs."},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "One sentence for a person."},
        "field": {"type": "string", "description": "With 400: which key, argument or header is wrong."},
        "state": {"type": "string", "description": "With 409: the state that the pair is in."},
        "has_error": {"type": "integer", "description": "The pair's error, where that is the cause."},
        "has_error_name": {"type": "string"},
        "incident": {"type": "string", "description": "With 500: what to look for in the daemon's log."},
    },
    "required": ["type", "title", "status", "detail"],
    "additionalProperties": False,
}

_PLAIN: Mapping[object, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    bool: {"type": "boolean"},
    types.NoneType: {"type": "null"},
}

#: What any route may answer: an argument that it does not have, a body that is too long, a fault of ftd.
_COMMON_ERRORS = (400, 413, 500)


def document(routes: Iterable[Route], version: str) -> dict[str, Any]:
    """
    The document.

    :param version: of ftd.
    """
    schemas: dict[str, Schema] = {"Problem": PROBLEM}
    errors: set[int] = set()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = paths.setdefault(route.path, _shared(route.path))
        path[route.method.lower()] = _operation(route, schemas)
        errors |= _errors(route)
        if route.method == "GET":
            path["head"] = _head(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ftd",
            "version": version,
            "summary": "Keeps a standby copy of a running state one committed transaction behind the original.",
            "license": {"name": "GPL-2.0-or-later", "identifier": "GPL-2.0-or-later"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {_error_name(status): _error(status) for status in sorted(errors)},
        },
    }


def schema_of(kind: Any, schemas: dict[str, Schema]) -> Schema:
    """
    The JSON Schema of a type: a plain one, an enum, an attrs class, or a union, list or mapping of them.

    :param schemas: where the schemas of attrs classes are put; what is returned refers to them.
    """
    if kind in _PLAIN:
        return _PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return {"anyOf": [schema_of(one, schemas) for one in arguments]}
    if origin in (list, tuple, Sequence):
        return {"type": "array", "items": schema_of(arguments[0], schemas)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1], schemas)}
    if issubclass(kind, Enum):
        return {"enum": [member.value for member in kind]}
    if kind.__name__ not in schemas:
        schemas[kind.__name__] = {}  # a class that refers to itself finds the name taken
        schemas[kind.__name__] = _schema_of_class(kind, schemas)
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _schema_of_class(kind: type[attrs.AttrsInstance], schemas: dict[str, Schema]) -> Schema:
    hints = typing.get_type_hints(kind)
    fields = attrs.fields(kind)
    return {
        "type": "object",
        "properties": {
            field.name: field.metadata.get("schema") or schema_of(hints[field.name], schemas) for field in fields
        },
        "required": [field.name for field in fields if field.metadata.get("required", True)],
        "additionalProperties": False,
    }


def _shared(path: str) -> dict[str, Any]:
    """What all methods of a path have in common: the parts of it that vary."""
    parameters = [parameter for name, parameter in PATH_PARAMETERS.items() if f"{{{name}}}" in path]
    return {"parameters": parameters} if parameters else {}


def _operation(route: Route, schemas: dict[str, Schema]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary}
    if route.query:
        operation["parameters"] = [
            {"name": query.name, "in": "query", "description": query.description, "schema": query.schema}
            for query in route.query
        ]
    if route.takes_upload:
        operation["requestBody"] = {"required": True, "content": {"*/*": {}}}
    elif route.body is not None:
        content = {JSON: {"schema": _as_schema(route.body, schemas)}}
        operation["requestBody"] = {"required": not route.body_is_optional, "content": content}
    responses = {str(status): _response(answer, schemas) for status, answer in route.answers.items()}
    for status in _errors(route):
        responses[str(status)] = {"$ref": f"#/components/responses/{_error_name(status)}"}
    operation["responses"] = dict(sorted(responses.items()))
    return operation


def _errors(route: Route) -> set[int]:
    errors = {*_COMMON_ERRORS, *route.errors}
    if "{pair}" in route.path:
        errors.add(404)
    if route.body is not None:
        errors.add(415)
    return errors - set(route.answers)


def _error_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _error(status: int) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "description": HTTPStatus(status).phrase,
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    if status == 503:
        answer["headers"] = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}}
    return answer


def _head(route: Route) -> dict[str, Any]:
    """HEAD answers as GET does, with nothing after the headers."""
    operation: dict[str, Any] = {
        "operationId": f"head_{route.name}",
        "summary": f"The headers of: {route.summary}",
        "responses": {"default": {"description": "As GET, without a body."}},
    }
    if route.query:
        operation["parameters"] = [
            {"name": query.name, "in": "query", "description": query.description, "schema": query.schema}
            for query in route.query
        ]
    return operation


def _response(answer: Answer, schemas: dict[str, Schema]) -> dict[str, Any]:
    response: dict[str, Any] = {"description": answer.description}
    if answer.content is not None:
        schema = {} if answer.content_type == BYTES else {"schema": _as_schema(answer.content, schemas)}
        response["content"] = {answer.content_type: schema}
    return response


def _as_schema(content: type | Schema, schemas: dict[str, Schema]) -> Schema:
    return schema_of(content, schemas) if isinstance(content, type) else content
