"""A token bucket: how many bytes may go now, and how long to wait for the next ones."""

from __future__ import annotations

from collections.abc import Callable

#: Bytes are let through in portions of this share of a second, so that the flow is even ...
_PORTION_SECONDS = 0.05

#: ... but never in smaller ones than this.
_LEAST_PORTION = 512


class TokenBucket:
    """
    :param now: seconds that only grow.
    :ivar rate: bytes per second, 0 for no limit.
    """

    def __init__(self, now: Callable[[], float], rate: int = 0) -> None:
        self._now = now
        self._tokens = 0.0
        self._filled_at = now()
        self.rate = rate

    def set_rate(self, rate: int) -> None:
        """Change the limit; what has gone already counts."""
        self._fill()
        self.rate = rate

    @property
    def portion(self) -> int:
        """How many bytes to send at a time."""
        return max(_LEAST_PORTION, int(self.rate * _PORTION_SECONDS))

    def take(self, size: int) -> float:
        """Account for ``size`` bytes that go now; the seconds after which the next may go."""
        self._fill()
        self._tokens -= size
        return max(0.0, -self._tokens / self.rate)

    def _fill(self) -> None:
        now = self._now()
        # An idle link saves up one portion, no more: a limit is a limit also after a pause.
        self._tokens = min(float(self.portion), self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now
