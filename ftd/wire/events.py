"""What the state machines report: frozen values, in the order in which things happened on the wire."""

from __future__ import annotations

from typing import TypeAlias

import attrs

from ftd.wire.errors import ErrorCode
from ftd.wire.hello import Hello


@attrs.frozen
class HelloReceived:
    """The peer is an ftd, its HELLO is good, and it speaks of the same pair."""

    hello: Hello


@attrs.frozen
class Opened:
    """
    Sender: the opening ACK came; the session is open.

    :ivar next_id: the id the receiver expects next.
    """

    next_id: int


@attrs.frozen
class InFlight:
    """
    Sender: a transaction whose COMMIT was sent.

    :ivar seq: its CONTINUE frames.
    :ivar size: its payload bytes.
    """

    id: int
    seq: int
    size: int
    is_heartbeat: bool


@attrs.frozen
class Acknowledged:
    """Sender: the oldest transaction in flight is committed."""

    transaction: InFlight


@attrs.frozen
class Refused:
    """
    Sender: the receiver has dropped the oldest transaction in flight, and with it all that came after that one; the
    oldest one's id will be used again.

    :ivar behind: the others that were in flight, in order.
    :ivar cancel: the CANCEL of the transaction that was open, to be sent before anything else; empty if none was.
    """

    transaction: InFlight
    code: ErrorCode
    behind: tuple[InFlight, ...] = ()
    cancel: bytes = b""


@attrs.frozen
class Begun:
    """Receiver: a transaction opened."""

    id: int


@attrs.frozen
class Payload:
    """Receiver: bytes of the open transaction.  The view is good for as long as the bytes that were fed."""

    view: memoryview


@attrs.frozen
class CommitRequested:
    """
    Receiver: the sender wants the open transaction committed; the answer is ``acknowledge`` or ``refuse``.

    :ivar xxh3: xxh3-64 of the payload, computed from what arrived.
    :ivar is_heartbeat: a transaction without a single CONTINUE frame, which no sink is to see.
    """

    id: int
    seq: int
    size: int
    xxh3: int
    is_heartbeat: bool


@attrs.frozen
class DigestMismatch:
    """
    Receiver: what arrived is not what was sent.  The transaction is dropped and the NACK is to be sent by ``refuse``.
    """

    id: int
    detail: str


@attrs.frozen
class Cancelled:
    """Receiver: the sender dropped the open transaction."""

    id: int


SenderEvent: TypeAlias = HelloReceived | Opened | Acknowledged | Refused
ReceiverEvent: TypeAlias = HelloReceived | Begun | Payload | CommitRequested | DigestMismatch | Cancelled
