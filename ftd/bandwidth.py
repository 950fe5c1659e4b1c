"""
Token buckets: how many bytes a pair may send now, by its own limit and by its share of the daemon's.

A limit counts every byte that goes to the transport, headers too.  What may not go waits until there are tokens for a
portion, so that a slow link does not wake the process up for every byte, and what is sent is cut where the tokens end,
so that the size of a frame makes no difference.  A timer that comes late costs nothing: tokens are counted by the time
that has passed.  A link that has nothing to send saves up little.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

#: A portion is what comes in within this many seconds; the flow is no less even than that.
_PORTION = 0.025

#: What a bucket holds while nobody waits, in the same way: what an idle link can send at once.
_HELD = 0.075

#: What it holds while somebody does: a process that is no later than this loses nothing of its limit.
_LATE = 0.5

#: Seconds: no wait is shorter, whatever remains to be waited for.  Sums of times are not exact.
_LEAST_WAIT = 0.001

#: Bytes that a pair gets at least when its turn comes at the daemon's limit.
_LEAST_GRANT = 512


class TokenBucket:
    """
    :param now: seconds that only grow.
    :ivar rate: bytes per second, 0 for no limit.
    """

    __slots__ = ("_filled_at", "_held", "_now", "_tokens", "rate")

    def __init__(self, now: Callable[[], float], rate: int = 0) -> None:
        self._now = now
        self._tokens = rate * _PORTION
        self._filled_at = now()
        self._held = _HELD
        self.rate = rate

    @property
    def portion(self) -> int:
        """Bytes that are worth waiting for."""
        return max(1, int(self.rate * _PORTION))

    @property
    def available(self) -> int:
        """Bytes that may go now."""
        self.end_wait()
        return max(0, int(self._tokens))

    def spend(self, size: int) -> None:
        """Account for ``size`` bytes; what did not go after all is given back by a negative size."""
        self._tokens -= size

    def wait(self) -> float:
        """Seconds until a portion may go; somebody waits for that, until `end_wait`."""
        self._fill()
        self._held = _LATE
        return max(_LEAST_WAIT, (self.portion - self._tokens) / self.rate)

    def end_wait(self) -> None:
        """Nobody waits now."""
        self._fill()
        self._held = _HELD

    def set_rate(self, rate: int) -> None:
        """Change the limit; what has gone already counts."""
        self._fill()
        self._tokens = min(self._tokens, rate * _HELD) if self.rate else rate * _PORTION
        self.rate = rate

    def _fill(self) -> None:
        now = self._now()
        most = max(1.0, self.rate * self._held)
        if self._tokens < most:
            self._tokens = min(most, self._tokens + (now - self._filled_at) * self.rate)
        self._filled_at = now


class SharedBandwidth:
    """
    The limit of a daemon, which its pairs share: those that want to send get the same, in turn.

    While nobody waits everybody takes what there is.  Once somebody does, all that comes in is granted in equal parts
    to those who wait.  A grant that is not used until the next ones are made comes back.

    :param rate: bytes per second, 0 for no limit.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, rate: int = 0) -> None:
        self._clock = clock
        self._bucket = TokenBucket(clock.seconds, rate)
        self._waiting: deque[Throttle] = deque()
        self._granted: list[Throttle] = []
        self._timer: IDelayedCall | None = None

    @property
    def rate(self) -> int:
        """Bytes per second, 0 for no limit."""
        return self._bucket.rate

    def set_rate(self, rate: int) -> None:
        """Change the limit."""
        self._bucket.set_rate(rate)
        if self._timer is not None:
            self._timer.cancel()
            self._grant()

    def take(self, throttle: Throttle, wanted: int) -> int:
        """How many of ``wanted`` bytes may go now; if that is not all of them, ``throttle`` is told when more may."""
        size = min(wanted, throttle.credit)
        throttle.credit -= size
        if size < wanted and not self._waiting:
            more = min(wanted - size, self._bucket.available)
            self._bucket.spend(more)
            size += more
        if size < wanted:
            throttle.is_queued = True
            self._waiting.append(throttle)
            self._wait()
        return size

    def leave(self, throttle: Throttle) -> None:
        """It wants no more."""
        self._bucket.spend(-throttle.credit)
        throttle.credit = 0
        if throttle.is_queued:
            throttle.is_queued = False
            self._waiting.remove(throttle)
        if not self._waiting and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        if self._waiting and self._timer is None:
            self._timer = self._clock.callLater(self._bucket.wait(), self._grant)

    def _grant(self) -> None:
        """One round of turns, or less if there is too little for all: the others are first the next time."""
        self._timer = None
        for throttle in self._granted:
            self._bucket.spend(-throttle.credit)
            throttle.credit = 0
        self._granted.clear()
        turns = len(self._waiting)
        left = self._bucket.available
        size = max(min(_LEAST_GRANT, left), left // max(1, turns))
        for _ in range(turns):
            if not self._waiting or (self.rate and left < size):
                break
            throttle = self._waiting.popleft()
            throttle.is_queued = False
            if self.rate:
                left -= size
                self._bucket.spend(size)
                throttle.credit += size
                self._granted.append(throttle)
            try:
                throttle.ready()
            except Exception:
                # The others wait for their turn.
                self.log.failure("in a pair whose turn it was to send")
        self._wait()


class Throttle:
    """
    What holds one pair back: its own limit, and its share of the daemon's.

    :param ready: called when more may go, after `take` gave less than was wanted.
    :ivar credit: bytes that the daemon's limit has granted.
    :ivar is_queued: whether more is wanted of it.
    :ivar is_waiting: whether it is still to say that more may go.
    """

    __slots__ = ("_bucket", "_clock", "_ready", "_shared", "_timer", "credit", "is_queued", "is_waiting")

    def __init__(
        self, clock: IReactorTime, rate: int, shared: SharedBandwidth | None, ready: Callable[[], None]
    ) -> None:
        self.credit = 0
        self.is_queued = False
        self.is_waiting = False
        self._clock = clock
        self._bucket = TokenBucket(clock.seconds, rate)
        self._shared = shared
        self._ready = ready
        self._timer: IDelayedCall | None = None

    @property
    def is_on(self) -> bool:
        """Whether there is any limit."""
        return self._bucket.rate > 0 or (self._shared is not None and self._shared.rate > 0)

    def take(self, wanted: int) -> int:
        """How many of ``wanted`` bytes may go now; they are accounted for."""
        size = wanted
        if self._bucket.rate:
            size = min(wanted, self._bucket.available)
        if size and self._shared is not None and self._shared.rate:
            size = self._shared.take(self, size)
        if self._bucket.rate:
            self._bucket.spend(size)
        self.is_waiting = size < wanted
        if self.is_waiting and not self.is_queued:
            self._timer = self._clock.callLater(self._bucket.wait(), self.ready)
        return size

    def give_back(self, size: int) -> None:
        """Of what was taken last ``size`` bytes did not go."""
        self._bucket.spend(-size)
        if self._shared is not None and self._shared.rate:
            self.credit += size

    def set_rate(self, rate: int) -> None:
        """Change the pair's own limit, in bytes per second; 0 for none."""
        self._bucket.set_rate(rate)
        if self._timer is not None:
            self._timer.cancel()
            self.ready()

    def ready(self) -> None:
        """More may go."""
        self._timer = None
        self.is_waiting = False
        self._bucket.end_wait()
        self._ready()

    def close(self) -> None:
        """Nothing more is wanted."""
        self.is_waiting = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._shared is not None:
            self._shared.leave(self)
