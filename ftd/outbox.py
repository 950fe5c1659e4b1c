"""
What a sender has not yet handed to its transport.

The seed writes straight to the socket until that says EAGAIN, then freezes its output and appends to a buffer, which is
flushed when the socket is writable again.  Here the transport says so by ``pauseProducing`` and ``resumeProducing``,
and the buffer is a queue of views with the payload's own memory behind them: nothing is copied, nothing is moved down.

A bandwidth limit freezes the output in the same way, for as long as the bucket is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from ftd.bandwidth import TokenBucket
from ftd.trace import PairTrace
from ftd.transport import LinkTransport
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.sender import Buffer


class Outbox:
    """
    :param changed: called when `is_frozen` or `size` may have changed for another reason than a call of this object.
    :ivar size: bytes that were put while the output was frozen and have not gone yet.
    :ivar sent: bytes handed to the transport so far.
    """

    def __init__(
        self,
        transport: LinkTransport,
        clock: IReactorTime,
        trace: PairTrace,
        bandwidth: int,
        changed: Callable[[], None],
    ) -> None:
        self.size = 0
        self.sent = 0
        self._transport = transport
        self._clock = clock
        self._trace = trace
        self._bucket = TokenBucket(clock.seconds, bandwidth)
        self._changed = changed
        self._queue: deque[Buffer] = deque()
        self._capacity = 0
        self._is_paused = False
        self._refill: IDelayedCall | None = None

    @property
    def is_frozen(self) -> bool:
        """Whether what is put now has to wait."""
        return self._is_paused or self._refill is not None

    @property
    def is_full(self) -> bool:
        """Whether it is the transport that takes no more, and not just the bandwidth limit."""
        return self._is_paused

    def put(self, pieces: Iterable[Buffer]) -> None:
        """Send the pieces in order, now or when the output thaws.  They must not change until then."""
        for piece in pieces:
            if self._queue or self.is_frozen:
                self._append(piece)
            elif self._bucket.rate:
                self._send_portions(piece)
            else:
                self._send(piece)

    def pause(self) -> None:
        """The transport is full.  It may say so again and again."""
        if not self._is_paused:
            self._is_paused = True
            if self._trace.ft_trans_freeze_output is not None:
                self._trace.ft_trans_freeze_output()

    def resume(self) -> None:
        """The transport takes more."""
        self._is_paused = False
        if self._trace.ft_trans_put_ready is not None:
            self._trace.ft_trans_put_ready()
        self._flush()
        if not self.is_frozen and self._trace.ft_trans_cb is not None:
            self._trace.ft_trans_cb("put_ready")

    def set_bandwidth(self, rate: int) -> None:
        """Change the limit, in bytes per second; 0 for none."""
        self._bucket.set_rate(rate)
        if self._refill is not None:
            self._refill.cancel()
            self._thaw()

    def cut_short(self, in_payload: bool) -> WireError | None:
        """
        The link broke: the error of what was on its way out, if anything was.

        :param in_payload: the frame that was put last has a payload.
        """
        if self.size:
            return WireError(ErrorCode.FLUSH, f"the link broke with {self.size} buffered bytes unsent")
        if not self.is_full:
            return None
        if in_payload:
            return WireError(ErrorCode.SEND_PAYLOAD, "the link broke while a payload was being sent")
        return WireError(ErrorCode.SEND_HDR, "the link broke while a header was being sent")

    def close(self) -> None:
        """Drop what has not gone."""
        self._queue.clear()
        self.size = 0
        if self._refill is not None:
            self._refill.cancel()
            self._refill = None

    def _append(self, piece: Buffer, in_front: bool = False) -> None:
        self.size += len(piece)
        if in_front:
            self._queue.appendleft(piece)
            return
        self._queue.append(piece)
        if self.size > self._capacity:
            if self._trace.ft_trans_realloc is not None:
                self._trace.ft_trans_realloc(self._capacity, self.size - self._capacity)
            self._capacity = self.size
        if self._trace.ft_trans_append is not None:
            self._trace.ft_trans_append(len(piece))

    def _flush(self) -> None:
        requested = self.size
        while self._queue and not self.is_frozen:
            piece = self._queue.popleft()
            self.size -= len(piece)
            if self._bucket.rate:
                self._send_portions(piece)
            else:
                self._send(piece)
        if self._trace.ft_trans_flush is not None:
            self._trace.ft_trans_flush(requested - self.size, requested)

    def _send(self, piece: Buffer) -> None:
        self.sent += len(piece)
        self._transport.write(piece)

    def _send_portions(self, piece: Buffer) -> None:
        """Send what the bucket and the transport allow; the rest goes in front of the queue."""
        at = 0
        view = memoryview(piece)
        while at < len(view) and not self.is_frozen:
            portion = view[at : at + self._bucket.portion]
            at += len(portion)
            wait = self._bucket.take(len(portion))
            if wait > 0:
                self._refill = self._clock.callLater(wait, self._thaw)
            self._send(portion)
        if at < len(view):
            self._append(view[at:], in_front=True)

    def _thaw(self) -> None:
        self._refill = None
        if self._queue and not self._is_paused:
            self._flush()
        self._changed()
