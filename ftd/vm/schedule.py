"""When the next checkpoint is due: by the interval, or when the cluster manager says so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import attrs
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from ftd.errors import LinkDown, NotInState
from ftd.status import Commit
from ftd.vm.carrier import Carrier


@attrs.frozen(eq=False)
class Due:
    """
    A checkpoint is due.

    :ivar answer: whom to tell, if the cluster manager has asked for it; its transaction is open then.
    :ivar limit: seconds to wait for the ACK; ``None``: as long as the link lives.
    """

    answer: Deferred[Commit] | None = None
    limit: float | None = None


class Schedule:
    """
    :param interval: seconds from one checkpoint to the next; 0: the cluster manager says when.
    :param why_not_ready: why no checkpoint can be taken now, empty if one can; and the state, for errors.
    """

    def __init__(
        self, interval: float, carrier: Carrier, clock: IReactorTime, why_not_ready: Callable[[], tuple[str, str]]
    ) -> None:
        self.interval = interval
        self._carrier = carrier
        self._clock = clock
        self._why_not_ready = why_not_ready
        self._next_at = 0.0
        self._wake: Deferred[None] | None = None
        self._asked: deque[Due] = deque()
        self._is_open = False

    # What the cluster manager says

    async def begin(self) -> int:
        """Open its transaction."""
        self._check_manual()
        if self._is_open or self._asked:
            raise NotInState("a transaction is open already; commit or cancel it first", self._why_not_ready()[1])
        self._is_open = True
        try:
            return await self._carrier.open_transaction()
        except BaseException:
            self._is_open = False
            raise

    def commit(self, limit: float) -> Deferred[Commit]:
        """Ask for the checkpoint of its transaction."""
        if not self._is_open:
            self._check_manual()
            raise NotInState("no transaction is open; begin one first", self._why_not_ready()[1])
        self._is_open = False
        due = Due(Deferred(), limit)
        self._asked.append(due)
        self.wake_up()
        assert due.answer is not None
        return due.answer

    def cancel(self) -> None:
        """Drop its transaction."""
        if not self._is_open:
            state = self._why_not_ready()[1]
            raise NotInState("no transaction of the cluster manager's is open; nothing to cancel", state)
        self._is_open = False
        self._carrier.cancel_transaction("the cluster manager cancelled it")

    def change_interval(self, interval: float) -> None:
        """:raises NotInState: while a transaction of the cluster manager's is open."""
        if self._is_open:
            raise NotInState("a transaction is open; commit or cancel it first", self._why_not_ready()[1])
        self.interval = interval
        self._next_at = self._clock.seconds()
        self.wake_up()

    def _check_manual(self) -> None:
        """:raises FtdError: unless the cluster manager may say when there is a checkpoint."""
        why_not, state = self._why_not_ready()
        if self.interval:
            raise NotInState(
                f"a checkpoint is taken every {self.interval * 1000:g} ms; set interval_ms to 0 to say when", state
            )
        if why_not:
            raise NotInState(f"the VM is not ready for a checkpoint: {why_not}", state)

    # What the job asks

    async def due(self) -> Due | None:
        """
        Wait for the next checkpoint.

        :return: ``None`` if something else has changed that is worth a look.
        """
        if not self._asked:
            self._wake = Deferred()
            timer = None
            if self.interval:
                now = self._clock.seconds()
                self._next_at = max(self._next_at + self.interval, now)
                timer = self._clock.callLater(self._next_at - now, self.wake_up)
            await self._wake
            if timer is not None:
                if not timer.active():
                    return Due()
                timer.cancel()
        return self._asked.popleft() if self._asked else None

    def wake_up(self) -> None:
        """Have the job look at what has changed."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake.callback(None)

    def lost(self) -> None:
        """The link, or the guest, is gone, and with it the transaction that was open."""
        self._is_open = False
        self.wake_up()

    def refuse_asked(self) -> None:
        """There will be no checkpoint for those who have asked."""
        asked, self._asked = self._asked, deque()
        for due in asked:
            self.refuse(due)

    def refuse(self, due: Due) -> None:
        """It cannot be taken any more."""
        if due.answer is not None:
            due.answer.errback(LinkDown("the VM is not protected any more; nothing was committed", 1.0))
