"""
Transactions whose COMMIT was sent: who waits for them, and what became of them.

They are *in flight* while their link stands.  A link that breaks leaves them *in doubt*: their callers wait on, and
the next session says whether the standby has them.  It has one if its newest checkpoint is of our generation and has
the number that this transaction was to get, and it expects the id after it.  The id alone would not do: ids wrap,
and heartbeats, which a standby does not keep over a restart, use them up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ftd.errors import FtdError, LinkDown, NoAck, PairFailed
from ftd.history import History, Transaction
from ftd.status import Commit, Outcome
from ftd.wire.constants import ID_MODULUS
from ftd.wire.errors import ErrorCode
from ftd.wire.hello import Hello

_NACK_MEANS = {
    ErrorCode.FLUSH: "its sink could not store it",
    ErrorCode.RECV_PAYLOAD: "it arrived damaged",
    ErrorCode.REALLOC_BUF: "it is larger than the standby takes",
    ErrorCode.STATE_INVALID: "it does not fit what the standby holds, whose own status says more",
}


@attrs.define(eq=False)
class _Pending:
    """A transaction and the caller that waits for it, until one of its ACK, its end and its time limit."""

    transaction: Transaction
    caller: Deferred[Commit] | None
    timer: IDelayedCall

    def answer(self, result: Commit | FtdError) -> None:
        if self.timer.active():
            self.timer.cancel()
        caller, self.caller = self.caller, None
        if caller is not None:
            # An error is a result like any other here; Deferred tells them apart by type.
            caller.errback(result) if isinstance(result, FtdError) else caller.callback(result)


class Commits:
    """
    :ivar generation: ours.
    :ivar number: the number of the newest checkpoint that the standby is known to hold.
    """

    def __init__(self, history: History, clock: IReactorTime, generation: str) -> None:
        self.number = 0
        self._history = history
        self._clock = clock
        self.generation = generation
        self._in_flight: deque[_Pending] = deque()
        self._in_doubt: deque[_Pending] = deque()
        self._when_none: list[Callable[[], None]] = []

    @property
    def in_flight(self) -> bool:
        """Whether an ACK is awaited."""
        return bool(self._in_flight)

    def sent(self, transaction: Transaction, seq: int, size: int, limit: float) -> Deferred[Commit]:
        """
        COMMIT goes out.

        :param limit: seconds after which the caller is told that there was no ACK; the transaction stays in flight.
        """
        number = self.number + len(self._in_flight) + 1
        self._history.commit_requested(transaction, seq, size, number)
        caller: Deferred[Commit] = Deferred()
        pending = _Pending(transaction, caller, self._clock.callLater(limit, lambda: pending.answer(too_late)))
        too_late = NoAck(
            f"no ACK for transaction {transaction.id} within {limit:g} s; it may still be committed: its pair's"
            " transactions tell"
        )
        self._in_flight.append(pending)
        return caller

    def acknowledged(self) -> Transaction:
        """The oldest one in flight is committed."""
        return self._committed(self._in_flight.popleft())

    def refused(self, code: ErrorCode) -> None:
        """The oldest one in flight was dropped by the standby."""
        pending = self._in_flight.popleft()
        why = _NACK_MEANS.get(code, "it does not say why")
        detail = f"the standby refused transaction {pending.transaction.id} ({code.name}): {why}"
        self._history.end(pending.transaction, Outcome.NACKED, detail)
        pending.answer(PairFailed(detail, code))
        self._tell_when_none()

    def link_lost(self) -> None:
        """What is in flight is in doubt now."""
        self._in_doubt.extend(self._in_flight)
        self._in_flight.clear()
        self._tell_when_none()

    def resolve(self, hello: Hello | None, next_id: int) -> Transaction | None:
        """
        A new session says what became of those in doubt.

        :param hello: ``None`` from a Kemari, which cannot tell.
        :return: the newest one that turned out to be committed.
        """
        committed = None
        in_doubt, self._in_doubt = self._in_doubt, deque()
        for pending in in_doubt:
            if hello is not None and self._has(hello, next_id, pending.transaction):
                committed = self._committed(pending)
            elif hello is not None:
                self._failed(
                    pending, "is not committed: the link broke before its ACK, and the standby does not have it"
                )
            else:
                self._failed(pending, "may be committed: the link broke before its ACK, and a Kemari cannot tell")
        return committed

    def restart(self, generation: str) -> None:
        """A new lineage begins, of which the standby has nothing yet."""
        self.generation = generation
        self.number = 0

    def abandon(self) -> None:
        """There will be no other session."""
        for pending in (*self._in_flight, *self._in_doubt):
            self._failed(pending, "may be committed: the pair was stopped before its ACK")
        self._in_flight.clear()
        self._in_doubt.clear()

    def when_none(self, act: Callable[[], None]) -> None:
        """Call ``act`` as soon as nothing is in flight."""
        self._when_none.append(act)
        self._tell_when_none()

    def _has(self, hello: Hello, next_id: int, transaction: Transaction) -> bool:
        return (
            hello.last is not None
            and hello.last.generation == self.generation
            and hello.last.sequence == transaction.number
            and next_id == (transaction.id + 1) % ID_MODULUS
        )

    def _committed(self, pending: _Pending) -> Transaction:
        transaction = pending.transaction
        assert transaction.number is not None
        self.number = transaction.number
        self._history.end(transaction, Outcome.COMMITTED)
        pending.answer(
            Commit(id=transaction.id, seq=transaction.seq, bytes=transaction.bytes, seconds=transaction.commit_seconds)
        )
        self._tell_when_none()
        return transaction

    def _failed(self, pending: _Pending, what: str) -> None:
        detail = f"transaction {pending.transaction.id} {what}"
        self._history.end(pending.transaction, Outcome.FAILED, detail)
        pending.answer(LinkDown(detail, retry_after=1.0))

    def _tell_when_none(self) -> None:
        if not self._in_flight:
            waiting, self._when_none = self._when_none, []
            for act in waiting:
                act()
