"""
What a sender has not yet handed to its transport.

The seed writes straight to the socket until that says EAGAIN, then freezes its output and appends to a buffer, which is
flushed when the socket is writable again.  Here the transport says so by ``pauseProducing`` and ``resumeProducing``,
and the buffer is a queue of views with the payload's own memory behind them: nothing is copied, nothing is moved down.
What the transport has taken over it has not necessarily sent, nor copied: `Outbox.unsent` counts that as well.

A bandwidth limit freezes the output in the same way, until more may go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from twisted.internet.interfaces import IReactorTime

from ftd.bandwidth import SharedBandwidth, Throttle
from ftd.trace import PairTrace
from ftd.transport import LinkTransport
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.sender import Buffer


class Outbox:
    """
    :param bandwidth: this pair's own limit, in bytes per second; 0 for none.
    :param shared: the limit that it shares with others.
    :param changed: called when `is_frozen` or `size` may have changed for another reason than a call of this object.
    :ivar size: bytes that were put while the output was frozen and have not gone yet.
    :ivar sent: bytes handed to the transport so far.
    :ivar is_full: whether it is the transport that takes no more, and not just the bandwidth limit.
    """

    __slots__ = (
        "_capacity",
        "_changed",
        "_queue",
        "_throttle",
        "_trace",
        "_transport",
        "is_full",
        "sent",
        "size",
    )

    def __init__(
        self,
        transport: LinkTransport,
        clock: IReactorTime,
        trace: PairTrace,
        bandwidth: int,
        changed: Callable[[], None],
        shared: SharedBandwidth | None = None,
    ) -> None:
        self.size = 0
        self.sent = 0
        self.is_full = False
        self._transport = transport
        self._trace = trace
        self._throttle = Throttle(clock, bandwidth, shared, self._ready)
        self._changed = changed
        self._queue: deque[Buffer] = deque()
        self._capacity = 0

    @property
    def is_frozen(self) -> bool:
        """Whether what is put now has to wait."""
        return self.is_full or self._throttle.is_waiting

    @property
    def unsent(self) -> int:
        """Bytes that were put and are not with the kernel yet."""
        return self.size + self._transport.unsent

    @property
    def backlog(self) -> int:
        """Bytes that wait because the output is frozen, wherever they do."""
        return self.size + self._transport.unsent if self.is_full else self.size

    def put(self, pieces: Iterable[Buffer], flush: bool = False) -> None:
        """
        Send the pieces in order, now or when the output thaws.  They must not change until then.

        :param flush: do not wait for more to send.
        """
        if self._queue or self.is_full or self._throttle.is_waiting:
            for piece in pieces:
                self._append(piece)
            return
        if self._throttle.is_on:
            pieces = list(pieces)
            self._transport.gather(self._within(pieces, self._throttle.take(sum(map(len, pieces)))))
        else:
            self._transport.gather(self._passing(pieces))
        if flush:
            self._transport.flush()

    def pause(self) -> None:
        """The transport is full.  It may say so again and again."""
        if not self.is_full:
            self.is_full = True
            if self._trace.ft_trans_freeze_output is not None:
                self._trace.ft_trans_freeze_output()

    def resume(self) -> None:
        """The transport takes more."""
        self.is_full = False
        if self._trace.ft_trans_put_ready is not None:
            self._trace.ft_trans_put_ready()
        self._flush()
        if not self.is_frozen and self._trace.ft_trans_cb is not None:
            self._trace.ft_trans_cb("put_ready")

    def set_bandwidth(self, rate: int) -> None:
        """Change the pair's own limit, in bytes per second; 0 for none."""
        self._throttle.set_rate(rate)

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
        self._throttle.close()

    def _append(self, piece: Buffer) -> None:
        self._queue.append(piece)
        self.size += len(piece)
        if self.size > self._capacity:
            if self._trace.ft_trans_realloc is not None:
                self._trace.ft_trans_realloc(self._capacity, self.size - self._capacity)
            self._capacity = self.size
        if self._trace.ft_trans_append is not None:
            self._trace.ft_trans_append(len(piece))

    def _passing(self, pieces: Iterable[Buffer]) -> Iterator[Buffer]:
        """
        The pieces that the transport may have.  It may fill up with each; the rest is appended then.  One that takes
        them all before it sends any has them all, and counts them.
        """
        for piece in pieces:
            if self.is_full:
                self._append(piece)
            else:
                self.sent += len(piece)
                yield piece

    def _within(self, pieces: Iterable[Buffer], allowed: int) -> Iterator[Buffer]:
        """The same, up to what the bandwidth limit allows."""
        for piece in pieces:
            size = len(piece)
            if self.is_full or (size and not allowed):
                self._append(piece)
            elif size <= allowed:
                allowed -= size
                self.sent += size
                yield piece
            else:
                first, allowed = allowed, 0
                view = memoryview(piece)
                self._queue.append(view[first:])
                self.size += size - first
                self.sent += first
                yield view[:first]
        if allowed:
            self._throttle.give_back(allowed)

    def _leaving(self, allowed: int) -> Iterator[Buffer]:
        """From the front of the queue, up to ``allowed`` bytes and while the transport takes more."""
        queue = self._queue
        while queue and not self.is_full:
            piece = queue[0]
            size = len(piece)
            if size <= allowed:
                queue.popleft()
            elif allowed:
                view = memoryview(piece)
                queue[0] = view[allowed:]
                piece, size = view[:allowed], allowed
            else:
                break
            allowed -= size
            self.size -= size
            self.sent += size
            yield piece
        if allowed and self._throttle.is_on:
            self._throttle.give_back(allowed)

    def _flush(self) -> None:
        requested = self.size
        if requested and not self._throttle.is_waiting:
            allowed = self._throttle.take(requested) if self._throttle.is_on else requested
            self._transport.gather(self._leaving(allowed))
            self._transport.flush()
        if self._trace.ft_trans_flush is not None:
            self._trace.ft_trans_flush(requested - self.size, requested)

    def _ready(self) -> None:
        if self._queue and not self.is_full:
            self._flush()
        self._changed()
