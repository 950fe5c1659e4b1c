"""
What the API shows of a pair, its transactions and its checkpoints: frozen values, made on demand, JSON by ``to_json``.

The field names are the public ones of ``docs/api.md``; other programs are written against them.
"""

from __future__ import annotations

from enum import Enum, StrEnum
from typing import Any

import attrs


class LinkState(StrEnum):
    """The link of a half-pair."""

    DOWN = "down"
    CONNECTING = "connecting"
    HANDSHAKE = "handshake"
    UP = "up"


class Outcome(StrEnum):
    """How a transaction stands, or ended."""

    OPEN = "open"
    IN_FLIGHT = "in-flight"
    COMMITTED = "committed"
    CANCELLED = "cancelled"
    NACKED = "nacked"
    FAILED = "failed"


class FtMode(StrEnum):
    """The seed's ``enum FT_MODE``."""

    ERROR = "FT_ERROR"
    OFF = "FT_OFF"
    INIT = "FT_INIT"
    TRANSACTION_BEGIN = "FT_TRANSACTION_BEGIN"
    TRANSACTION_ITER = "FT_TRANSACTION_ITER"
    TRANSACTION_COMMIT = "FT_TRANSACTION_COMMIT"
    TRANSACTION_ATOMIC = "FT_TRANSACTION_ATOMIC"
    TRANSACTION_RECV = "FT_TRANSACTION_RECV"


def to_json(value: Any) -> dict[str, Any]:
    """A frozen status value as what ``json.dumps`` takes; enums become their values, times stay Unix seconds."""
    return attrs.asdict(value, value_serializer=lambda _i, _f, v: v.value if isinstance(v, Enum) else v)


@attrs.frozen(kw_only=True)
class OpenTransaction:
    """The transaction that is open: id, CONTINUE frames so far, payload bytes so far."""

    id: int
    seq: int
    bytes: int


@attrs.frozen(kw_only=True)
class LastCommitted:
    """The newest committed checkpoint: wire id, number in the standby's history, bytes, Unix seconds of the ACK."""

    id: int
    number: int
    bytes: int
    at: float


@attrs.frozen(kw_only=True)
class Commit:
    """
    The answer to a commit.

    :ivar seq: number of CONTINUE frames.
    :ivar seconds: from COMMIT to its ACK.
    """

    id: int
    seq: int
    bytes: int
    seconds: float


@attrs.frozen(kw_only=True)
class Timeline:
    """Unix seconds at which each step of a transaction was reached; ``None`` where it was not (yet)."""

    begun: float
    first_data: float | None = None
    commit: float | None = None
    ended: float | None = None


@attrs.frozen(kw_only=True)
class TransactionStatus:
    """One row of ``GET …/transactions``; ``detail`` says why it was nacked or failed."""

    id: int
    number: int | None
    seq: int
    bytes: int
    outcome: Outcome
    detail: str
    frozen_seconds: float
    timeline: Timeline


@attrs.frozen(kw_only=True)
class Checkpoint:
    """
    A committed checkpoint that a store holds.

    :ivar number: grows by one with every checkpoint of the store, starts at 1, never reused.
    :ivar id: the wire's transaction id (wraps at 65536).
    :ivar xxh3: xxh3-64 of the bytes, 16 hexadecimal digits.
    :ivar generation: the lineage it belongs to, a UUID; empty from a Kemari sender.
    :ivar committed_at: Unix seconds.
    """

    number: int
    id: int
    bytes: int
    xxh3: str
    generation: str
    committed_at: float


class VmState(StrEnum):
    """How far a VM is protected (``vm.status``); QEMU.md's names."""

    UNPROTECTED = "unprotected"
    SYNCING = "syncing"
    PROTECTED = "protected"
    HOLDING = "holding"
    PROMOTED = "promoted"
    FENCED = "fenced"


@attrs.frozen(kw_only=True)
class PauseStatus:
    """
    How long checkpoints stop the guest, in milliseconds: the newest, and the median and 99th percentile of the last
    1,024; then the steps of the newest.  ``device`` and ``dirty`` overlap.
    """

    last: float
    p50: float
    p99: float
    stop: float
    device: float
    dirty: float
    cont: float


@attrs.frozen(kw_only=True)
class SyncStatus:
    """How far the background checkpoint is: bytes of guest RAM that have been read, and that there are to read."""

    done_bytes: int
    total_bytes: int


@attrs.frozen(kw_only=True)
class VmStatus:
    """
    The VM of a qemu pair.

    :ivar generation: of the newest committed checkpoint.
    :ivar checkpoint: its number; 0 where there is none.
    :ivar interval_ms: of a primary; 0 where the checkpoints are the cluster manager's.
    :ivar protection: whether a primary is to be protected.
    :ivar run_state: what QEMU says (``query-status``), ``None`` without QEMU.
    :ivar dirty_tracking: ``write-protect``, ``soft-dirty`` or ``compare``; ``None`` while nothing is tracked.
    :ivar dirty_pages: of the newest checkpoint.
    :ivar checkpoint_bytes: of the newest checkpoint, on the wire.
    :ivar lag_ms: the age of the newest committed state: what would be lost now; ``None`` where there is none.
    :ivar held_frames: Ethernet frames of the guest that wait for their checkpoint's ACK.
    :ivar sync: the background checkpoint under way.
    :ivar reason: why it is not protected, with what to do; empty where it is.
    """

    status: VmState
    generation: str | None = None
    checkpoint: int = 0
    interval_ms: float | None = None
    protection: bool | None = None
    run_state: str | None = None
    dirty_tracking: str | None = None
    ram_bytes: int = 0
    pause_ms: PauseStatus | None = None
    dirty_pages: int = 0
    checkpoint_bytes: int = 0
    lag_ms: float | None = None
    held_frames: int = 0
    held_bytes: int = 0
    sync: SyncStatus | None = None
    qemu_version: str | None = None
    reason: str = ""


@attrs.frozen(kw_only=True)
class PairStatus:
    """A whole pair, as ``GET /v1/pairs/{pair}`` and the ``pair`` event show it."""

    name: str
    role: str
    peer: str
    link_state: LinkState
    link_address: str
    link_peer: str | None
    link_detail: str
    state: str
    ft_mode: FtMode
    transaction: OpenTransaction | None
    id: int
    last_committed: LastCommitted | None
    has_error: int
    has_error_name: str | None
    has_error_detail: str | None
    freeze_output: bool
    freeze_input: bool
    rate_limit: bool
    bandwidth_limit: int
    buffered_bytes: int
    generation: str | None
    bytes_sent: int
    bytes_received: int
    transactions_committed: int
    transactions_cancelled: int
    transactions_nacked: int
    transactions_failed: int
    heartbeats: int
    reconnects: int
    vm: VmStatus | None = None
