"""What the demonstration has seen, and whether it is what ftd promises."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

#: Rows of the table before the newest committed count, and after the last that both sides have.
_BEFORE, _AFTER = 4, 4

#: Rows of counts that were lost, from which on those in the middle are left out.
_MOST_LOST = 16


@attrs.frozen
class Seen:
    """
    A count that came out of the gate.

    :ivar at: seconds after the kill.
    """

    count: int
    at: float


@attrs.frozen
class Row:
    """One count: who has printed it, and when it was seen outside; ``None`` for what is left out."""

    count: int
    on_a: bool
    on_b: bool
    is_lost: bool
    seen_at: float | None


@attrs.frozen(kw_only=True)
class Story:
    """
    :ivar on_a: counts that the primary's guest has printed, in their order.
    :ivar on_b: those of the standby's.
    :ivar committed: the count in the newest committed checkpoint.
    :ivar seen: what the outside has seen, in its order.
    :ivar asked: when the standby was told to take over, in seconds after the kill; it lets nothing out before.
    """

    on_a: Sequence[int]
    on_b: Sequence[int]
    committed: int
    seen: Sequence[Seen]
    asked: float

    @property
    def lost(self) -> list[int]:
        """What the primary's guest had done that the standby did not know of."""
        return [count for count in self.on_a if count > self.committed]

    @property
    def seen_before(self) -> list[Seen]:
        """What was seen of the primary, of which some may have been on its way when it died."""
        return [seen for seen in self.seen if seen.at <= self.asked]

    @property
    def seen_after(self) -> list[Seen]:
        """What was seen of the standby."""
        return [seen for seen in self.seen if seen.at > self.asked]

    @property
    def seen_and_lost(self) -> list[int]:
        """What the outside knew and the standby did not: what must never be."""
        return [seen.count for seen in self.seen_before if seen.count > self.committed]

    @property
    def silence(self) -> float | None:
        """Seconds for which the outside saw nothing."""
        before, after = self.seen_before, self.seen_after
        return after[0].at - before[-1].at if before and after else None

    @property
    def faults(self) -> list[str]:
        """What is not as it has to be."""
        found = []
        if not self.on_b or self.on_b[0] not in (self.committed, self.committed + 1):
            found.append(f"the standby did not go on from {self.committed:08x} but with {self.on_b[:1]}")
        if list(self.on_b) != list(range(self.on_b[0], self.on_b[0] + len(self.on_b)) if self.on_b else ()):
            found.append("the standby's count has gaps")
        if self.seen_and_lost:
            found.append(f"the outside has seen what was lost: {self.seen_and_lost}")
        counts = [seen.count for seen in self.seen]
        if counts != sorted(set(counts)):
            found.append("the outside has seen a count twice, or out of order")
        return found

    def rows(self) -> list[Row | None]:
        """The table, by count."""
        end = max([self.committed, *self.lost]) + _AFTER
        seen = {each.count: each.at for each in self.seen}
        on_a, on_b = set(self.on_a), set(self.on_b)
        counts = [
            count
            for count in range(max(0, self.committed - _BEFORE), end + 1)
            if count in on_a or count in on_b or count in seen
        ]
        rows: list[Row | None] = [
            Row(count, count in on_a, count in on_b, count in on_a and count > self.committed, seen.get(count))
            for count in counts
        ]
        lost = [number for number, row in enumerate(rows) if row is not None and row.is_lost]
        if len(lost) > _MOST_LOST:
            half = _MOST_LOST // 2
            rows[lost[half] : lost[-half]] = [None]
        return rows
