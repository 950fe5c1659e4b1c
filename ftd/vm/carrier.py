"""What the primary side of a VM asks of the pair that carries its checkpoints."""

from __future__ import annotations

from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred

from ftd.status import Commit
from ftd.wire.sender import Buffer


class Carrier(TypingProtocol):
    """
    One transaction at a time.  Each call raises, or errbacks with, an `ftd.errors.FtdError`; a link that breaks fails
    whatever is under way with `ftd.errors.LinkDown`.
    """

    @property
    def max_frame(self) -> int:
        """Bytes that one `send` may have at most."""

    @property
    def generation(self) -> str:
        """The lineage that is being sent."""

    @property
    def number(self) -> int:
        """Of the newest checkpoint of this generation that the standby holds; 0 if there is none."""

    def start_generation(self) -> None:
        """
        Begin a new lineage, kept over restarts; its first checkpoint has the number 1.

        :raises CannotKeep: if it cannot be kept.
        """

    def open_transaction(self) -> Deferred[int]:
        """Send BEGIN; fires with the id."""

    def send(self, pieces: tuple[Buffer, ...]) -> None:
        """One CONTINUE frame.  The pieces must not change before `drained` fires or the transaction has ended."""

    def drained(self) -> Deferred[None]:
        """Fires when everything that was sent is with the transport, so that its memory may be used again."""

    def commit_transaction(self, limit: float | None) -> Deferred[Commit]:
        """
        Send COMMIT; fires on the ACK.  If the link breaks before that, the next session tells what became of it.

        :param limit: seconds to wait; ``None``: as long as it takes.
        """

    def cancel_transaction(self, why: str) -> None:
        """Drop the open transaction; nothing if there is none."""

    def hang_up(self) -> None:
        """Close the link and do not dial again until `resume_dialing`."""

    def resume_dialing(self) -> None:
        """Dial again."""

    def changed(self) -> None:
        """The status is another one: tell the world now."""

    def counted(self) -> None:
        """A counter has changed: tell the world soon."""
