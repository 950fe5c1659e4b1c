"""
Transactions whose COMMIT was sent: who waits for them, and what became of them.

They are *in flight* while their link stands, as many as ``window`` says, and are acknowledged in order.  A NACK is the
end of the oldest and of all behind it: the standby takes nothing that would leave a gap.

A link that breaks leaves them *in doubt*: their callers wait on, and the next session says which of them the standby
has.  Its newest checkpoint has to be of our generation and to have the number that one of them was to get: it has that
one and those before it.  And the id it expects has to lie behind that one, and not behind the next one that it does not
have, with nothing but heartbeats in between.  The id alone would not do: ids wrap, and heartbeats, which a standby does
not keep over a restart, use them up.

Callers are told when everything here is as it will be: what they do next may well be the next commit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeAlias

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


#: Told of the newest transaction that is committed, if there is one.
_Known: TypeAlias = Callable[[Transaction | None], None]

#: Seconds: a time limit that is no further away has been reached.  Sums of times are not exact.
_TICK = 1e-6


@attrs.define(eq=False)
class _Pending:
    """
    A transaction and the caller that waits for it, until one of its ACK, its end and its time limit.

    :ivar deadline: by the clock's seconds.
    """

    transaction: Transaction
    caller: Deferred[Commit] | None
    limit: float
    deadline: float

    def answer(self, result: Commit | FtdError) -> None:
        caller, self.caller = self.caller, None
        if caller is not None:
            # An error is a result like any other here; Deferred tells them apart by type.
            caller.errback(result) if isinstance(result, FtdError) else caller.callback(result)

    def answer_too_late(self) -> None:
        self.answer(
            NoAck(
                f"no ACK for transaction {self.transaction.id} within {self.limit:g} s; it may still be committed: its"
                " pair's transactions tell"
            )
        )

    def answer_committed(self) -> None:
        if self.caller is not None:
            did = self.transaction
            self.answer(Commit(id=did.id, seq=did.seq, bytes=did.bytes, seconds=did.commit_seconds))


def _nobody(transaction: Transaction | None) -> None:
    """Who does not care."""


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
        # The id that the standby expects if it has all of those in doubt.
        self._id_after_doubt = 0
        self._when_none: list[Callable[[], None]] = []
        # One timer for the earliest deadline of all.  It is not moved when that is met, which is what mostly happens:
        # it looks for the next one when it is due.
        self._timer: IDelayedCall | None = None
        self._due = math.inf

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
        deadline = self._clock.seconds() + limit
        self._in_flight.append(_Pending(transaction, caller, limit, deadline))
        if deadline < self._due:
            self._look_at(deadline, limit)
        return caller

    def acknowledged(self, known: _Known = _nobody) -> Transaction:
        """
        The oldest one in flight is committed.

        :param known: told of it before its caller is.
        """
        pending = self._in_flight.popleft()
        transaction = pending.transaction
        assert transaction.number is not None
        self.number = transaction.number
        self._history.end(transaction, Outcome.COMMITTED)
        known(transaction)
        pending.answer_committed()
        self._tell_when_none()
        return transaction

    def refused(self, id: int, code: ErrorCode) -> None:
        """
        The standby dropped what had this id, the oldest transaction in flight or a heartbeat before it, and all behind
        it.
        """
        dropped, self._in_flight = self._in_flight, deque()
        why = f"the standby refused transaction {id} ({code.name}): {_NACK_MEANS.get(code, 'it does not say why')}"
        for pending in dropped:
            own = pending.transaction.id
            detail = why if own == id else f"transaction {own} was dropped with an earlier one, as {why}"
            self._history.end(pending.transaction, Outcome.NACKED, detail)
        for pending in dropped:
            pending.answer(PairFailed(pending.transaction.detail, code))
        self._tell_when_none()

    def link_lost(self, next_id: int) -> None:
        """
        What is in flight is in doubt now.

        :param next_id: the first id that was not used.
        """
        if self._in_flight:
            self._in_doubt.extend(self._in_flight)
            self._in_flight.clear()
            self._id_after_doubt = next_id
        self._tell_when_none()

    def resolve(self, hello: Hello | None, next_id: int, known: _Known = _nobody) -> Transaction | None:
        """
        A new session says what became of those in doubt.

        :param hello: ``None`` from a Kemari, which cannot tell.
        :param known: told what is returned, before any caller is told anything.
        :return: the newest one that turned out to be committed.
        """
        in_doubt, self._in_doubt = self._in_doubt, deque()
        if hello is None:
            lost = self._end_failed(
                in_doubt, "may be committed: the link broke before its ACK, and a Kemari cannot tell"
            )
            known(None)
            self._answer_failed(lost)
            return None
        held = self._count_held(in_doubt, hello, next_id)
        committed = [in_doubt.popleft() for _ in range(held)]
        for pending in committed:
            self._history.end(pending.transaction, Outcome.COMMITTED)
        newest = committed[-1].transaction if committed else None
        if newest is not None and newest.number is not None:
            self.number = newest.number
        lost = self._end_failed(
            in_doubt, "is not committed: the link broke before its ACK, and the standby does not have it"
        )
        known(newest)
        for pending in committed:
            pending.answer_committed()
        self._answer_failed(lost)
        return newest

    def restart(self, generation: str) -> None:
        """A new lineage begins, of which the standby has nothing yet."""
        self.generation = generation
        self.number = 0

    def abandon(self) -> None:
        """There will be no other session."""
        left = (*self._in_flight, *self._in_doubt)
        self._in_flight.clear()
        self._in_doubt.clear()
        self._failed(left, "may be committed: the pair was stopped before its ACK")
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._due = math.inf

    def when_none(self, act: Callable[[], None]) -> None:
        """Call ``act`` as soon as nothing is in flight."""
        self._when_none.append(act)
        self._tell_when_none()

    def _count_held(self, in_doubt: deque[_Pending], hello: Hello, next_id: int) -> int:
        """How many of those in doubt, from the oldest on, the standby has."""
        if hello.last is None or hello.last.generation != self.generation:
            return 0
        for index, pending in enumerate(in_doubt):
            if pending.transaction.number == hello.last.sequence:
                after = (pending.transaction.id + 1) % ID_MODULUS
                is_newest = index + 1 == len(in_doubt)
                latest = self._id_after_doubt if is_newest else in_doubt[index + 1].transaction.id
                return index + 1 if (next_id - after) % ID_MODULUS <= (latest - after) % ID_MODULUS else 0
        return 0

    def _failed(self, pending: Iterable[_Pending], what: str) -> None:
        self._answer_failed(self._end_failed(pending, what))

    def _end_failed(self, failed: Iterable[_Pending], what: str) -> list[_Pending]:
        ended = list(failed)
        for pending in ended:
            self._history.end(pending.transaction, Outcome.FAILED, f"transaction {pending.transaction.id} {what}")
        return ended

    def _answer_failed(self, ended: list[_Pending]) -> None:
        for pending in ended:
            pending.answer(LinkDown(pending.transaction.detail, retry_after=1.0))

    def _tell_when_none(self) -> None:
        if self._when_none and not self._in_flight:
            waiting, self._when_none = self._when_none, []
            for act in waiting:
                act()

    def _look_at(self, deadline: float, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = deadline
        self._timer = self._clock.callLater(delay, self._look)

    def _look(self) -> None:
        """Tell those whose time is over, and wait for the next."""
        self._timer = None
        self._due = math.inf
        now = self._clock.seconds()
        waiting = [pending for pending in (*self._in_doubt, *self._in_flight) if pending.caller is not None]
        for pending in waiting:
            if pending.deadline <= now + _TICK:
                pending.answer_too_late()
        left = [pending.deadline for pending in waiting if pending.caller is not None]
        if left and min(left) < self._due:
            self._look_at(min(left), min(left) - now)
