"""The values that a daemon's answers become; those of a pair are the classes of :mod:`ftd.status`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import attrs
import cattrs
import treq
from twisted.web.iweb import IResponse

from ftd.client.errors import ApiError

_Value = TypeVar("_Value")

# Keys that a newer daemon has beyond these are ignored: that is what cattrs does unless told otherwise.
_converter = cattrs.Converter()


@attrs.frozen(kw_only=True)
class DaemonInfo:
    """
    The daemon itself.

    :ivar node: its name, by default the host's.
    :ivar pairs: the names of its pairs.
    :ivar links: where other things are, paths by name.
    """

    name: str
    version: str
    node: str
    uptime_seconds: float
    pairs: tuple[str, ...]
    links: Mapping[str, str] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True)
class RateLimit:
    """
    How a primary treats its source.

    :ivar enabled: whether the source is paused while the link is frozen.
    :ivar bandwidth: bytes per second, 0 for no limit.
    """

    enabled: bool
    bandwidth: int


@attrs.frozen(kw_only=True)
class Protection:
    """
    What is wanted for the VM of a primary.

    :ivar enabled: whether it is to be protected.
    :ivar interval_ms: from one checkpoint to the next; 0 where ``begin`` and ``commit`` say when.
    """

    enabled: bool
    interval_ms: float


@attrs.frozen(kw_only=True)
class Accepted:
    """
    State bytes that an open transaction has taken.

    :ivar accepted: how many.
    :ivar frozen: whether the pair is now waiting for its link.
    """

    accepted: int
    frozen: bool


@attrs.frozen(kw_only=True)
class NotReady:
    """A pair that is not ready, and why."""

    pair: str
    why: str


@attrs.frozen(kw_only=True)
class Readiness:
    """Whether every pair is up and without error, and which are not."""

    ready: bool
    not_ready: tuple[NotReady, ...] = ()


@attrs.frozen(kw_only=True)
class Fetched:
    """A checkpoint that has been read: its number, how many bytes, and their xxh3-64 in 16 hexadecimal digits."""

    number: int
    bytes: int
    xxh3: str


def structure(value: Any, kind: type[_Value]) -> _Value:
    """
    JSON as a value of ``kind``.

    :raises ValueError: if it does not have that shape.
    """
    try:
        return _converter.structure(value, kind)
    except Exception as error:  # cattrs gathers whatever the conversions raised, of any kind
        shown = "; ".join(cattrs.transform_error(error))
        raise ValueError(shown) from error


async def json_object(response: IResponse) -> dict[str, Any]:
    """
    The body of an answer, which has to be a JSON object.

    :raises ValueError: if it is not.
    """
    value = json.loads(await treq.content(response))
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value


async def refusal(response: IResponse) -> ApiError:
    """The error that an answer of 400 or above stands for."""
    try:
        problem = await json_object(response)
    except ValueError:
        # Not from a daemon, but from a proxy in front of it, or from quite another server.
        phrase = f"{response.code} {response.phrase.decode('latin-1')}".strip()
        problem = {"title": phrase, "status": response.code, "detail": f"the answer was {phrase}"}
    return ApiError(response.code, problem, _retry_after(response))


def _retry_after(response: IResponse) -> float | None:
    """The ``Retry-After`` header in seconds; a date in it is not a daemon's and ignored."""
    values = response.headers.getRawHeaders("Retry-After") or [""]
    return float(values[0]) if values[0].isdigit() else None
