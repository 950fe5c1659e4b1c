"""What the API answers with beside the values of :mod:`ftd.status`; the field names are the public ones."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from ftd.status import Checkpoint, PairStatus, TransactionStatus, VmStatus


@attrs.frozen(kw_only=True)
class Links:
    """Where to go from ``/v1``."""

    openapi: str = "/v1/openapi.json"
    pairs: str = "/v1/pairs"
    events: str = "/v1/events"


@attrs.frozen(kw_only=True)
class DaemonStatus:
    """The daemon; ``pairs`` are names."""

    name: str = "ftd"
    version: str
    node: str
    uptime_seconds: float
    pairs: list[str]
    links: Links = attrs.field(factory=Links)


@attrs.frozen(kw_only=True)
class Pairs:
    """All pairs."""

    pairs: list[PairStatus]


@attrs.frozen(kw_only=True)
class Transactions:
    """The last transactions of a pair, oldest first."""

    transactions: list[TransactionStatus]


@attrs.frozen(kw_only=True)
class Checkpoints:
    """The checkpoints that a secondary holds, oldest first."""

    checkpoints: list[Checkpoint]


@attrs.frozen(kw_only=True)
class TransactionId:
    """The wire id of the transaction that was begun, is being committed, or was cancelled."""

    id: int


@attrs.frozen(kw_only=True)
class Accepted:
    """
    State bytes that are in the open transaction.

    :ivar accepted: how many.
    :ivar frozen: whether the pair's output is frozen now.
    """

    accepted: int
    frozen: bool


@attrs.frozen(kw_only=True)
class RateLimit:
    """``bandwidth`` is bytes per second, 0 for no limit."""

    enabled: bool
    bandwidth: int


@attrs.frozen(kw_only=True)
class Protection:
    """
    What is wanted for the VM of a primary.

    :ivar interval_ms: from one checkpoint to the next; 0 where `begin` and `commit` say when.
    """

    enabled: bool
    interval_ms: float

    @classmethod
    def of(cls, vm: VmStatus) -> Protection:
        """As the status of a primary's VM has it."""
        return cls(enabled=bool(vm.protection), interval_ms=vm.interval_ms or 0)


@attrs.frozen(kw_only=True)
class TraceSwitches:
    """The trace events by name, and whether each is on."""

    events: Mapping[str, bool]


@attrs.frozen(kw_only=True)
class Nothing:
    """An object without members: there is nothing to say but that it was done."""


@attrs.frozen(kw_only=True)
class Health:
    """The daemon runs."""

    status: str = "ok"


@attrs.frozen(kw_only=True)
class NotReady:
    """A pair that could not replicate now, and why."""

    pair: str
    why: str


@attrs.frozen(kw_only=True)
class Ready:
    """Every pair is up and without an error."""

    ready: bool = True


@attrs.frozen(kw_only=True)
class Unready:
    """Some pairs are not."""

    ready: bool = False
    not_ready: list[NotReady]
