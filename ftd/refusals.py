"""What a primary tells those who want something of it that is not possible now: errors that say why, and what to do."""

from __future__ import annotations

from ftd.errors import LinkDown, NotInState, TooLarge
from ftd.wire.sender import SenderMachine


class Refusals:
    """
    :param pair: its name.
    :param address: where it dials.
    :ivar why_none_open: what came of the transaction that was open last, if that was nobody's wish.
    """

    __slots__ = ("_address", "_pair", "why_none_open")

    def __init__(self, pair: str, address: str) -> None:
        self.why_none_open = ""
        self._pair = pair
        self._address = address

    def upload_under_way(self, machine: SenderMachine) -> NotInState:
        """Something is being written into it already."""
        return NotInState(f"an upload into {self._pair} is under way", machine.state.value)

    def already_open(self, machine: SenderMachine) -> NotInState:
        """One transaction is open at a time."""
        return NotInState(
            f"transaction {machine.id} is open on {self._pair}; commit or cancel it first", machine.state.value
        )

    def none_open(self, machine: SenderMachine, what: str) -> NotInState:
        """
        There is no open transaction.

        :param what: what that means for who wanted one.
        """
        why = f"; {self.why_none_open}" if self.why_none_open else ""
        return NotInState(f"no transaction is open on {self._pair}{why}; {what}", machine.state.value)

    def window_full(self, machine: SenderMachine) -> NotInState:
        """As many are in flight as may be."""
        if machine.window == 1:
            return NotInState(f"a transaction of {self._pair} still awaits its ACK", machine.state.value)
        return NotInState(
            f"{machine.window} transactions of {self._pair}, its window, still await their ACK", machine.state.value
        )

    def too_large(self, machine: SenderMachine) -> TooLarge:
        """More was written into the open transaction than one may have."""
        limit = machine.limits.max_transaction
        return TooLarge(f"the transaction is larger than max-transaction of this pair, {limit} bytes")

    def link_down(self, detail: str, retry_after: float) -> LinkDown:
        """
        There is no session.

        :param detail: why, as far as that is known.
        """
        why = f": {detail}" if detail else ""
        return LinkDown(f"the link of {self._pair} to {self._address} is down{why}", retry_after)

    def link_broke(self, why: str) -> LinkDown:
        """The session has ended with a transaction open."""
        return LinkDown(f"the link of {self._pair} broke: {why}; nothing of the open transaction was committed", 1.0)
