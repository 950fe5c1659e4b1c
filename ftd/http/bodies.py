"""
The JSON bodies that requests carry: what they may hold, checked strictly, every complaint naming its field.

The content type may be absent, ``application/json``, or the form type that ``curl -d`` sends when nobody tells it
otherwise; nothing is ever parsed as a form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError
from werkzeug.http import parse_options_header

from ftd.config import PAIR_KEYS
from ftd.config_values import BadValue, shown
from ftd.http.problems import BadArgument, UnsupportedBody
from ftd.trace import TRACE_EVENTS

JSON_TYPES = ("application/json", "application/x-www-form-urlencoded")

#: The bounds of a bandwidth are those of the configuration's key; the API takes it as a number only.
_BANDWIDTH = PAIR_KEYS["bandwidth-limit"].kind
BANDWIDTH_SCHEMA: Mapping[str, Any] = {
    **{name: bound for name, bound in _BANDWIDTH.schema().items() if name != "pattern"},
    "type": "integer",
}

#: As are those of an interval, which the API takes in milliseconds.
_INTERVAL = PAIR_KEYS["qemu-interval"].kind
INTERVAL_SCHEMA: Mapping[str, Any] = {
    "type": "number",
    "anyOf": [{"const": 0}, {"minimum": 1, "maximum": 3_600_000}],
}

_JSON_NAMES: Mapping[type, str] = {
    bool: "a boolean",
    int: "a whole number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
    type(None): "null",
}

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class RateLimitChange:
    """What ``PUT …/rate-limit`` changes; ``None`` leaves it."""

    enabled: bool | None = attrs.field(default=None, metadata={"schema": {"type": "boolean"}, "required": False})
    bandwidth: int | None = attrs.field(default=None, metadata={"schema": BANDWIDTH_SCHEMA, "required": False})


@attrs.frozen(kw_only=True)
class ProtectionChange:
    """What ``PUT …/protection`` changes; ``None`` leaves it."""

    enabled: bool | None = attrs.field(default=None, metadata={"schema": {"type": "boolean"}, "required": False})
    interval_ms: float | None = attrs.field(default=None, metadata={"schema": INTERVAL_SCHEMA, "required": False})


@attrs.frozen(kw_only=True)
class Promotion:
    """How ``POST …/promote`` is meant: ``force``, although the other half is up."""

    force: bool = attrs.field(default=False, metadata={"schema": {"type": "boolean"}, "required": False})


@attrs.frozen(kw_only=True)
class TraceChange:
    """What ``PUT …/trace`` changes; events that are not mentioned stay."""

    events: Mapping[str, bool]


class _Wrong(Exception):
    """A value that a field cannot have.  ``below`` is the way from the field to the value, ``.x`` or empty."""

    def __init__(self, detail: str, below: str = "") -> None:
        super().__init__(detail, below)
        self.detail = detail
        self.below = below


def _boolean(value: object, _: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"must be true or false, not {_JSON_NAMES[type(value)]}")
    return value


def _bandwidth(value: object, _: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _Wrong(f"must be a whole number, not {_JSON_NAMES[type(value)]}")
    try:
        _BANDWIDTH.parse(value)
    except BadValue as error:
        raise _Wrong(str(error)) from error
    return value


def _interval(value: object, _: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise _Wrong(f"must be a number of milliseconds, not {_JSON_NAMES[type(value)]}")
    try:
        _INTERVAL.parse(value / 1000)
    except (BadValue, OverflowError):
        raise _Wrong(f"{shown(value)} is out of bounds: it has to be 1 to 3600000, or 0") from None
    return value


def _switches(value: object, _: object) -> Mapping[str, bool]:
    if not isinstance(value, dict):
        raise _Wrong(f"must be an object, not {_JSON_NAMES[type(value)]}")
    for name, on in value.items():
        if name not in TRACE_EVENTS:
            raise _Wrong(f"is not one of {', '.join(TRACE_EVENTS)}", f".{name}")
        if not isinstance(on, bool):
            raise _Wrong(f"must be true or false, not {_JSON_NAMES[type(on)]}", f".{name}")
    return value


def _strict_converter() -> cattrs.Converter:
    """JSON values as they are: a string is not a boolean, ``null`` stands for nothing, unknown keys are errors."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    for kind in (bool, bool | None):
        converter.register_structure_hook(kind, _boolean)
    converter.register_structure_hook(float | None, _interval)
    converter.register_structure_hook(int | None, _bandwidth)
    converter.register_structure_hook_func(lambda kind: kind == Mapping[str, bool], _switches)
    return converter


_converter = _strict_converter()


def json_object(content_type: str | None, body: bytes) -> dict[str, Any]:
    """
    The object that a body holds.

    :raises UnsupportedBody: for a content type that is not JSON.
    :raises BadArgument: for a body that is no JSON object.
    """
    if content_type is not None and parse_options_header(content_type)[0].lower() not in JSON_TYPES:
        raise UnsupportedBody(f"The body has to be JSON (application/json), not {content_type}.")
    try:
        value = json.loads(body, parse_constant=_no_such_number)
    except (ValueError, RecursionError) as error:
        raise BadArgument("body", f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadArgument("body", f"must be a JSON object, not {_JSON_NAMES[type(value)]}")
    return value


def _no_such_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def structured(value: Mapping[str, Any], kind: type[T]) -> T:
    """
    A JSON object as one of the classes above.

    :raises BadArgument: naming the first field that is wrong.
    """
    try:
        return _converter.structure(value, kind)
    except ClassValidationError as error:
        raise _first_complaint(error, kind) from error


def _first_complaint(error: ClassValidationError, kind: type) -> BadArgument:
    by_field, others = error.group_exceptions()
    for inner in others:
        if isinstance(inner, ForbiddenExtraKeysError):
            known = ", ".join(field.name for field in attrs.fields(kind))
            return BadArgument(sorted(inner.extra_fields)[0], f"no such key; there is {known}")
    for inner, note in by_field:
        if isinstance(inner, _Wrong):
            return BadArgument(note.name + inner.below, inner.detail)
        if isinstance(inner, KeyError):
            return BadArgument(note.name, "is missing")
    raise error
