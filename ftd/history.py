"""The last transactions of a pair with their timelines, and the events that tell of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import attrs

from ftd.bus import EventBus
from ftd.status import Outcome, Timeline, TransactionStatus, to_json

#: How many transactions a pair remembers.
REMEMBERED = 256

_ENDINGS = {
    Outcome.COMMITTED: "committed",
    Outcome.CANCELLED: "cancelled",
    Outcome.NACKED: "nacked",
    Outcome.FAILED: "failed",
}


@attrs.define(eq=False)
class Transaction:
    """
    One transaction while it lives and as it is remembered.

    :ivar number: the number of the checkpoint that it becomes, or became; ``None`` before its COMMIT.
    :ivar frozen_seconds: how long the pair was frozen while it was open, up to ``frozen_since``.
    :ivar frozen_since: since when the pair is; ``None`` while it is not, and after the end.
    """

    id: int
    begun: float
    number: int | None = None
    seq: int = 0
    bytes: int = 0
    outcome: Outcome = Outcome.OPEN
    detail: str = ""
    frozen_seconds: float = 0.0
    first_data: float | None = None
    commit: float | None = None
    ended: float | None = None
    frozen_since: float | None = None

    def note_frozen(self, now: float, still_frozen: bool) -> None:
        """The pair froze or thawed, or this is the end."""
        if self.frozen_since is not None:
            self.frozen_seconds += now - self.frozen_since
        self.frozen_since = now if still_frozen else None

    @property
    def commit_seconds(self) -> float:
        """Seconds from COMMIT to its answer, for one that has had both."""
        assert self.commit is not None and self.ended is not None
        return round(self.ended - self.commit, 6)

    def status(self) -> TransactionStatus:
        """The row of ``GET …/transactions``."""
        return TransactionStatus(
            id=self.id,
            number=self.number,
            seq=self.seq,
            bytes=self.bytes,
            outcome=self.outcome,
            detail=self.detail,
            frozen_seconds=round(self.frozen_seconds, 6),
            timeline=Timeline(begun=self.begun, first_data=self.first_data, commit=self.commit, ended=self.ended),
        )


class History:
    """
    Remembers the last `REMEMBERED` transactions and counts how all of them ended.

    :param now: Unix seconds.
    """

    def __init__(self, pair: str, bus: EventBus, now: Callable[[], float]) -> None:
        self.counts = dict.fromkeys(_ENDINGS, 0)
        self._pair = pair
        self._bus = bus
        self._now = now
        self._recent: deque[Transaction] = deque(maxlen=REMEMBERED)

    def begin(self, id: int) -> Transaction:
        """A transaction opens."""
        transaction = Transaction(id, self._now())
        self._recent.append(transaction)
        # An event says how things stood when it happened, and is written out when somebody reads it: here that is not
        # more than these two, and at the end the transaction itself, which does not change any more.
        self._bus.publish("transaction", self._pair, partial(_begun_body, id, transaction.begun))
        return transaction

    def commit_requested(self, transaction: Transaction, seq: int, size: int, number: int) -> None:
        """COMMIT was sent, or has arrived."""
        transaction.outcome = Outcome.IN_FLIGHT
        transaction.seq = seq
        transaction.bytes = size
        transaction.number = number
        transaction.commit = self._now()

    def end(self, transaction: Transaction, outcome: Outcome, detail: str = "") -> None:
        """It is over; ``detail`` says why it was nacked or failed."""
        transaction.outcome = outcome
        transaction.detail = detail
        transaction.ended = self._now()
        self.counts[outcome] += 1
        self._bus.publish("transaction", self._pair, partial(_ended_body, transaction))

    def recent(self) -> list[TransactionStatus]:
        """Those that are remembered, oldest first."""
        return [transaction.status() for transaction in self._recent]


def _begun_body(id: int, begun: float) -> dict[str, Any]:
    return {"action": "begun", **to_json(Transaction(id, begun).status())}


def _ended_body(transaction: Transaction) -> dict[str, Any]:
    return {"action": _ENDINGS[transaction.outcome], **to_json(transaction.status())}
