"""How long the guest was stopped for each of the last checkpoints."""

from __future__ import annotations

from collections import deque

import attrs

from ftd.status import PauseStatus

#: Checkpoints whose pauses the median and the 99th percentile are of.
REMEMBERED = 1024


@attrs.frozen
class Pause:
    """Seconds: the whole, and its steps; ``device`` and ``dirty`` overlap."""

    total: float
    stop: float
    device: float
    dirty: float
    cont: float


class Pauses:
    """The last `REMEMBERED` of them."""

    def __init__(self) -> None:
        self._totals: deque[float] = deque(maxlen=REMEMBERED)
        self._last: Pause | None = None

    def add(self, pause: Pause) -> None:
        """One more."""
        self._totals.append(pause.total)
        self._last = pause

    def status(self) -> PauseStatus | None:
        """For the API, in milliseconds."""
        last = self._last
        if last is None:
            return None
        ordered = sorted(self._totals)
        return PauseStatus(
            last=_ms(last.total),
            p50=_ms(ordered[len(ordered) // 2]),
            p99=_ms(ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]),
            stop=_ms(last.stop),
            device=_ms(last.device),
            dirty=_ms(last.dirty),
            cont=_ms(last.cont),
        )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
