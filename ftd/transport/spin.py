"""
When it pays to look at a socket again and again instead of going to sleep until the kernel says that it is readable.

Going to sleep and being woken costs more than a peer beside us needs for its answer.  But a look that finds nothing
holds up the rest of the process, and, where the peer needs the same processor, the answer itself.  So a link whose
``latency-spin`` is ``auto`` looks while that pays: while at least half of its looks have found something.  After that
it looks once in a while only, less and less often, until a look finds something again.  And nobody looks where many
links wait for answers: there is always something else to do then.
"""

from __future__ import annotations

from collections.abc import Callable

#: Seconds that a look takes at most where nobody has said; a peer on the same host or switch answers within them.
LONGEST_LOOK = 100e-6
#: Seconds that a look takes at least: it may be an answer that is a little late.
SHORTEST_LOOK = 25e-6
#: How many times longer than usual an answer may take.
PATIENCE = 4
#: The weight of the newest look in what is known of those before.
WEIGHT = 1 / 8
#: The share of looks that has to find something.
PAYS = 0.5
#: Answers that are not looked for between two tries, at most.
MOST_SKIPPED = 1024

#: Seconds for which a link that expected an answer counts, and how many may do so.
ACTIVE = 0.1
MOST_ACTIVE = 4


class SpinPolicy:
    """
    What one link knows of its answers.

    :param limit: seconds to look for an answer; 0 for never, ``None`` to find out.
    """

    __slots__ = ("_expected", "_limit", "_rate", "_skip", "_skipped")

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._expected = LONGEST_LOOK / PATIENCE
        self._rate = 0.75
        self._skip = 1
        self._skipped = 0

    def budget(self) -> float:
        """An answer is expected: the seconds to look for it, 0 for not at all."""
        if self._limit is not None:
            return self._limit
        if self._rate >= PAYS:
            return min(LONGEST_LOOK, max(SHORTEST_LOOK, PATIENCE * self._expected))
        self._skipped += 1
        if self._skipped <= self._skip:
            return 0.0
        self._skipped = 0
        return LONGEST_LOOK

    def answered(self, waited: float) -> None:
        """A look found something after ``waited`` seconds."""
        self._expected += (waited - self._expected) * WEIGHT
        if self._rate < PAYS:
            self._rate = PAYS
            self._skip = max(1, self._skip // 2)
        else:
            self._rate += (1 - self._rate) * WEIGHT

    def missed(self) -> None:
        """A look found nothing."""
        if self._rate < PAYS:
            self._skip = min(self._skip * 2, MOST_SKIPPED)
        self._rate -= self._rate * WEIGHT


class Crowd:
    """
    Which links have expected an answer lately.

    :param clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        # In the order of the times, which are the values.
        self._seen: dict[object, float] = {}

    def leaves_room(self, link: object) -> bool:
        """``link`` expects an answer: whether so few do that it may look for it."""
        now = self._clock()
        seen = self._seen
        seen.pop(link, None)
        seen[link] = now
        while now - (oldest := next(iter(seen.items())))[1] > ACTIVE:
            del seen[oldest[0]]
        return len(seen) <= MOST_ACTIVE

    def leave(self, link: object) -> None:
        """``link`` is gone."""
        self._seen.pop(link, None)
