"""
The kinds of value a configuration key can have: how one is read, bounded, written back and described.

A key's value comes as text from an INI file, or as JSON from ``POST /v1/pairs``, where numbers and booleans may also be
written as in the file.  One kind serves both readers, the writer, the JSON Schema and the reference in the
documentation, so that none of them can know a bound or a spelling that the others do not.

:class:`Key` puts a kind beside its name, its default and its sentence; :func:`keys_of` reads a class's keys off its
attrs fields, which is where they are declared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Protocol

import attrs

from ftd.trace import TRACE_EVENTS

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

SIZE_UNITS: Mapping[str, int] = {"TiB": TIB, "GiB": GIB, "MiB": MIB, "KiB": KIB, "B": 1}
TIME_UNITS: Mapping[str, Fraction] = {
    "us": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "h": Fraction(3600),
}
SWITCHES: Mapping[str, bool] = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}

#: A pair's section name stands in URLs and file names, its wire name in HELLO: neither needs escaping anywhere.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}"

# The bounds on digits keep int() and Fraction() away from text that is megabytes long.
_SIZE = re.compile(r"([0-9]{1,20}) ?(B|KiB|MiB|GiB|TiB)?")
_TIME = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,20})?) ?(us|ms|s|min|h)?")
_WHOLE = re.compile(r"[0-9]{1,20}")

_LONGEST_TEXT = 4096
_LONGEST_SHOWN = 60


class BadValue(ValueError):
    """A value that a key cannot have; ``str()`` says why, without naming the key."""


def printable(text: str, longest: int = _LONGEST_SHOWN) -> str:
    """Foreign text as part of a line for a terminal or a log: control characters escaped, its length bounded."""
    clipped = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in clipped)


def shown(raw: object) -> str:
    """A foreign value in an error message: text in quotes, anything else as JSON."""
    return f"'{printable(raw)}'" if isinstance(raw, str) else printable(json.dumps(raw, default=str))


def show_size(size: int) -> str:
    """Bytes in the largest unit that divides them: 65536 is ``64KiB``, 1000 is ``1000``."""
    for unit, factor in SIZE_UNITS.items():
        if size and size % factor == 0 and unit != "B":
            return f"{size // factor}{unit}"
    return str(size)


def show_seconds(seconds: float) -> str:
    """Seconds as a person writes them (``500ms``, ``10s``, ``5min``); reads back as exactly the same number."""
    if 0 < seconds < 0.001:
        # The digits that tell a float from all others, moved; the float itself times a million is another one.
        return f"{Decimal(repr(seconds)).scaleb(6).normalize():f}us"
    if seconds == int(seconds):
        whole = int(seconds)
        for unit, factor in (("h", 3600), ("min", 60)):
            if whole > 60 and whole % factor == 0:
                return f"{whole // factor}{unit}"
        return f"{whole}s"
    milliseconds = round(seconds * 1000)
    return f"{milliseconds}ms" if milliseconds / 1000 == seconds else f"{seconds!r}s"


class Kind(Protocol):
    """A kind of value.  The methods of one agree: ``parse(show(v)) == v`` and ``parse(plain(v)) == v``."""

    def parse(self, raw: object) -> Any:
        """
        The value that ``raw``, INI text or JSON, stands for.

        :raises BadValue: if it stands for none, or for one that is out of bounds.
        """

    def show(self, value: Any) -> str:
        """The value as an INI file has it."""

    def plain(self, value: Any) -> Any:
        """The value as JSON has it."""

    def allowed(self) -> str:
        """What ``parse`` takes, in words: they fit after "it has to be" and into a table."""

    def schema(self) -> dict[str, Any]:
        """The JSON Schema of everything ``parse`` takes."""


def _whole(raw: object) -> int | None:
    """A JSON number without a fraction; ``None`` for anything else, booleans (which Python has as integers) too."""
    if isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if isinstance(raw, float) and raw.is_integer():
        return int(raw)
    return None


@attrs.frozen
class Size:
    """
    Bytes: an integer, in text with B, KiB, MiB, GiB or TiB where wanted.

    :ivar zero: what 0 means, where 0 is allowed below ``low``.
    """

    low: int
    high: int
    zero: str = ""

    def parse(self, raw: object) -> int:
        size = _whole(raw)
        if isinstance(raw, str) and (match := _SIZE.fullmatch(raw)):
            size = int(match[1]) * SIZE_UNITS[match[2] or "B"]
        if size is None:
            raise BadValue(f"{shown(raw)} is not a size: a whole number of bytes, or one with KiB, MiB, GiB or TiB")
        if not (self.low <= size <= self.high or (self.zero and size == 0)):
            raise BadValue(f"{shown(raw)} is out of bounds: it has to be {self.allowed()}")
        return size

    def show(self, value: int) -> str:
        return show_size(value)

    def plain(self, value: int) -> int:
        return value

    def allowed(self) -> str:
        or_zero = f", or 0 for {self.zero}" if self.zero else ""
        return f"{show_size(self.low)} to {show_size(self.high)}{or_zero}"

    def schema(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"minimum": self.low, "maximum": self.high}
        bounds = {"anyOf": [{"const": 0}, numbers]} if self.zero else numbers
        return {"type": ["integer", "string"], "pattern": f"^{_SIZE.pattern}$", **bounds}


@attrs.frozen
class Seconds:
    """
    A time: a number of seconds, in text with us, ms, s, min or h where wanted.

    :ivar zero: what 0 means, where 0 is allowed below ``low``.
    """

    low: float
    high: float
    zero: str = ""

    def parse(self, raw: object) -> float:
        seconds: float | None = None
        if isinstance(raw, str) and (match := _TIME.fullmatch(raw)):
            # A Fraction, so that 9ms is the float nearest to 0.009 and show() finds its way back.
            seconds = float(Fraction(match[1]) * TIME_UNITS[match[2] or "s"])
        elif isinstance(raw, int | float) and not isinstance(raw, bool):
            seconds = raw
        if seconds is None:
            raise BadValue(f"{shown(raw)} is not a time: a number of seconds, or one with us, ms, s, min or h")
        if not (
            self.low <= seconds <= self.high or (self.zero and seconds == 0)
        ):  # NaN, which JSON bodies can smuggle in, is refused here too
            raise BadValue(f"{shown(raw)} is out of bounds: it has to be {self.allowed()}")
        return float(seconds)

    def show(self, value: float) -> str:
        return show_seconds(value)

    def plain(self, value: float) -> float:
        return value

    def allowed(self) -> str:
        or_zero = f", or 0 for {self.zero}" if self.zero else ""
        return f"{show_seconds(self.low)} to {show_seconds(self.high)}{or_zero}"

    def schema(self) -> dict[str, Any]:
        numbers: dict[str, Any] = {"minimum": self.low, "maximum": self.high}
        bounds = {"anyOf": [{"const": 0}, numbers]} if self.zero else numbers
        return {"type": ["number", "string"], "pattern": f"^{_TIME.pattern}$", **bounds}


@attrs.frozen
class Count:
    """
    A whole number.

    :ivar why: where the bounds need a reason, the sentence that gives it.
    """

    low: int
    high: int
    why: str = ""

    def parse(self, raw: object) -> int:
        count = int(raw) if isinstance(raw, str) and _WHOLE.fullmatch(raw) else _whole(raw)
        if count is None:
            raise BadValue(f"{shown(raw)} is not a whole number")
        if not self.low <= count <= self.high:
            raise BadValue(f"{shown(raw)} is out of bounds: {self.why or f'it has to be {self.allowed()}'}")
        return count

    def show(self, value: int) -> str:
        return str(value)

    def plain(self, value: int) -> int:
        return value

    def allowed(self) -> str:
        return f"{self.low} to {self.high}" if self.low < self.high else str(self.low)

    def schema(self) -> dict[str, Any]:
        pattern = f"^{_WHOLE.pattern}$"
        return {"type": ["integer", "string"], "pattern": pattern, "minimum": self.low, "maximum": self.high}


@attrs.frozen
class Switch:
    """On or off."""

    def parse(self, raw: object) -> bool:
        value = SWITCHES.get(raw.lower()) if isinstance(raw, str) else raw
        if not isinstance(value, bool):
            raise BadValue(f"{shown(raw)} is not possible here: it has to be {self.allowed()}")
        return value

    def show(self, value: bool) -> str:
        return "on" if value else "off"

    def plain(self, value: bool) -> bool:
        return value

    def allowed(self) -> str:
        return "on or off"

    def schema(self) -> dict[str, Any]:
        return {"enum": [True, False, *SWITCHES]}


@attrs.frozen
class Choice:
    """
    One of a few words.

    :ivar words: what each stands for.
    """

    words: Mapping[str, Any]

    @classmethod
    def of(cls, members: type[Enum]) -> Choice:
        """The values of an enum, standing for its members."""
        return cls({member.value: member for member in members})

    def parse(self, raw: object) -> Any:
        if not isinstance(raw, str) or raw not in self.words:
            raise BadValue(f"{shown(raw)} is not possible here: it has to be {self.allowed()}")
        return self.words[raw]

    def show(self, value: Any) -> str:
        return next(word for word, meaning in self.words.items() if meaning == value)

    def plain(self, value: Any) -> str:
        return self.show(value)

    def allowed(self) -> str:
        return " or ".join(self.words)

    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.words)}


@attrs.frozen
class Text:
    """
    One line of text that an INI file can hold: no control characters, no ``;`` where a comment would begin.

    :ivar what: what the text is, in words.
    :ivar pattern: a regular expression that all of it has to match.
    """

    what: str
    pattern: str = ""

    def parse(self, raw: object) -> str:
        if not isinstance(raw, str):
            raise BadValue(f"{shown(raw)} is not text")
        text = raw.strip(" \t")
        if not text.isprintable():
            raise BadValue(f"{shown(raw)} has control characters in it")
        if re.search(r"(^|\s);", text):
            raise BadValue(f"{shown(raw)} has a ';' where a comment would begin")
        if not text:
            raise BadValue("there is no value; leave the line out if the default is meant")
        if len(text) > _LONGEST_TEXT:
            raise BadValue(f"{shown(raw)} is longer than {_LONGEST_TEXT} characters")
        if self.pattern and not re.fullmatch(self.pattern, text):
            raise BadValue(f"{shown(raw)} will not do: it has to be {self.allowed()}")
        return text

    def show(self, value: str) -> str:
        return value

    def plain(self, value: str) -> str:
        return value

    def allowed(self) -> str:
        return self.what

    def schema(self) -> dict[str, Any]:
        pattern = {"pattern": f"^{self.pattern}$"} if self.pattern else {}
        return {"type": "string", "minLength": 1, "maxLength": _LONGEST_TEXT, **pattern}


@attrs.frozen
class TraceNames:
    """A set of trace events: ``all``, ``none``, names with commas between them, or in JSON a list of names."""

    def parse(self, raw: object) -> frozenset[str]:
        if raw == "all":
            return frozenset(TRACE_EVENTS)
        if raw == "none":
            return frozenset()
        names = [name.strip(" \t") for name in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(names, list | tuple):
            raise BadValue(f"{shown(raw)} is not a list of trace events")
        for name in names:
            if not isinstance(name, str) or name not in TRACE_EVENTS:
                raise BadValue(f"{shown(name)} is not a trace event: it has to be {self.allowed()}")
        return frozenset(names)

    def show(self, value: frozenset[str]) -> str:
        return ("all" if len(value) == len(TRACE_EVENTS) else ",".join(self.plain(value))) or "none"

    def plain(self, value: frozenset[str]) -> list[str]:
        return [name for name in TRACE_EVENTS if name in value]

    def allowed(self) -> str:
        return f"all, or none, or some of {', '.join(TRACE_EVENTS)}"

    def schema(self) -> dict[str, Any]:
        return {"anyOf": [{"type": "array", "items": {"enum": list(TRACE_EVENTS)}}, {"type": "string", "minLength": 1}]}


@attrs.frozen
class Declared:
    """
    What a field of a configuration class says about its key.

    :ivar sentence: what the key is for: in the reference, the schema and ``etc/ftd.conf``.
    :ivar only: the one role whose pairs may have the key, empty for both.
    :ivar example: a right value, for error messages; where there is a plain default, that is the example.
    :ivar otherwise: the default in words, where it is not a plain value.
    :ivar name: the key, where it is not the field's name with dashes.
    :ivar vm: only pairs that have a VM may have the key.
    :ivar in_file: only a pair that stands in the file may have the key.
    :ivar family: the key stands for any number of keys that begin so; the field holds a tuple of what they have.
    """

    kind: Kind
    sentence: str
    only: str = ""
    example: str = ""
    otherwise: str = ""
    name: str = ""
    vm: bool = False
    in_file: bool = False
    family: str = ""


_DECLARED = "ftd.config"


def key(
    kind: Kind,
    sentence: str,
    *,
    only: str = "",
    example: str = "",
    otherwise: str = "",
    name: str = "",
    vm: bool = False,
    in_file: bool = False,
    family: str = "",
) -> Mapping[str, Declared]:
    """The ``metadata=`` of an attrs field that holds a key of the configuration; parameters as in `Declared`."""
    return {_DECLARED: Declared(kind, sentence, only, example, otherwise, name, vm, in_file, family)}


@attrs.frozen
class Key:
    """
    One key of a section.

    :ivar name: as the file and JSON bodies have it, with dashes.
    :ivar attribute: as the configuration class has it.
    :ivar default: the default, ``attrs.NOTHING`` for a key that has to be there, an ``attrs.Factory`` where it depends.
    """

    name: str
    attribute: str
    kind: Kind
    sentence: str
    only: str
    default: Any
    otherwise: str
    example: str
    vm: bool
    in_file: bool
    family: str

    @property
    def required(self) -> bool:
        """Whether the key has to be there."""
        return self.default is attrs.NOTHING

    @property
    def has_plain_default(self) -> bool:
        """Whether the default is a value in itself, rather than missing or worked out from other things."""
        return not self.required and not self.otherwise

    @property
    def description(self) -> str:
        """The sentence, and who may have the key."""
        where = {"": "source = qemu or sink = qemu", "primary": "source = qemu", "secondary": "sink = qemu"}
        whose = f" For a {self.only or 'pair'}" if self.only or self.vm else ""
        with_vm = f" with {where[self.only]}" if self.vm else ""
        in_file = " In the file only, not through the API." if self.in_file else ""
        return self.sentence + (f"{whose}{with_vm} only." if whose else "") + in_file


def keys_of(owner: type[attrs.AttrsInstance]) -> Mapping[str, Key]:
    """The keys that the fields of an attrs class declare, by name, in order; those of its base classes come last."""
    keys = {}
    for field in sorted(attrs.fields(owner), key=lambda field: field.inherited):
        declared = field.metadata.get(_DECLARED)
        if not isinstance(declared, Declared):
            continue
        name = declared.name or field.name.replace("_", "-")
        plain = field.default is not attrs.NOTHING and not declared.otherwise
        keys[name] = Key(
            name=name,
            attribute=field.name,
            kind=declared.kind,
            sentence=declared.sentence,
            only=declared.only,
            default=field.default,
            otherwise=declared.otherwise,
            example=declared.example or (declared.kind.show(field.default) if plain else ""),
            vm=declared.vm,
            in_file=declared.in_file,
            family=declared.family,
        )
    return MappingProxyType(keys)
