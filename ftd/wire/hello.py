"""HELLO: what two ftd tell each other before the first transaction (a JSON object of at most 64 KiB)."""

from __future__ import annotations

import json
from typing import Any

import attrs

from ftd.wire.constants import FEATURES, MAX_WINDOW, PROTOCOL_VERSION
from ftd.wire.errors import ErrorCode, WireError

#: The ``state`` of a standby that has taken over.
PROMOTED = "promoted"


@attrs.frozen
class LastCheckpoint:
    """The newest committed checkpoint of a receiver: its lineage (a UUID) and its number in the receiver's history."""

    generation: str
    sequence: int


@attrs.frozen(kw_only=True)
class Hello:
    """
    One side's HELLO.

    :ivar pair: the pair's name on the wire; both sides must say the same.
    :ivar generation: the lineage of the state this side holds or sends; ``None`` for a receiver that holds none.
    :ivar last: the receiver's newest committed checkpoint.
    :ivar max_payload: the longest frame this side takes, in bytes.
    :ivar max_transaction: the longest transaction it takes, in bytes; 0 where it does not say (the key is ftd's own
        addition).
    :ivar window: how many transactions the sender wants to have in flight, or the receiver allows it to have; the
        smaller one counts, where the feature of that name is in force.
    :ivar state: ``primary``, ``standby`` or ``promoted``.
    :ivar refused: why the sender of this HELLO will not open the session, empty where it will; the link is closed
        after it.
    """

    pair: str
    node: str
    generation: str | None = None
    last: LastCheckpoint | None = None
    features: frozenset[str] = FEATURES
    max_payload: int
    max_transaction: int = 0
    window: int = 1
    state: str
    refused: str = ""

    def encode(self) -> bytes:
        """The payload of the HELLO frame."""
        body: dict[str, Any] = attrs.asdict(self)
        body["version"] = PROTOCOL_VERSION
        body["features"] = sorted(self.features)
        if not self.refused:
            del body["refused"]
        return json.dumps(body, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, payload: bytes | bytearray) -> Hello:
        """
        Read a peer's HELLO.  Unknown keys are ignored, so that later versions can add some.

        :raises WireError: STATE_INVALID, with a sentence, for anything that is not such an object.
        """
        try:
            body = json.loads(payload)
        except (ValueError, RecursionError):
            raise _invalid("it is not JSON") from None
        if not isinstance(body, dict):
            raise _invalid("it is not a JSON object")
        refused = body.get("refused", "")
        if isinstance(refused, str) and refused:
            raise WireError(ErrorCode.STATE_INVALID, f"the peer refused the session: {_printable(refused[:500])}")
        version = body.get("version")
        if version != PROTOCOL_VERSION or isinstance(version, bool):
            raise _invalid(f"it speaks version {version!r:.40}, this side speaks {PROTOCOL_VERSION}")
        features = body.get("features")
        if not isinstance(features, list) or not all(isinstance(name, str) for name in features):
            raise _invalid("features is not a list of strings")
        generation = body.get("generation")
        if generation is not None and not isinstance(generation, str):
            raise _invalid("generation is not a string")
        return cls(
            pair=_text(body, "pair"),
            node=_text(body, "node"),
            generation=generation,
            last=_last(body.get("last")),
            features=frozenset(features),
            max_payload=_count(body, "max_payload", least=1),
            max_transaction=_count(body, "max_transaction", least=0) if "max_transaction" in body else 0,
            window=min(_count(body, "window", least=1), MAX_WINDOW) if "window" in body else 1,
            state=_text(body, "state"),
        )


def _printable(text: str) -> str:
    """A peer's words as part of a line of a log."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _invalid(why: str) -> WireError:
    return WireError(ErrorCode.STATE_INVALID, f"the peer's HELLO cannot be used: {why}")


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise _invalid(f"{key} is not a string")
    return value


def _count(body: dict[str, Any], key: str, least: int) -> int:
    value = body.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _invalid(f"{key} is not a number of at least {least}")
    return value


def _last(value: object) -> LastCheckpoint | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _invalid("last is neither null nor an object")
    return LastCheckpoint(_text(value, "generation"), _count(value, "sequence", least=0))
