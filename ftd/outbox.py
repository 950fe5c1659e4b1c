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
from collections.abc import Callable, Iterable, Iterator, Sequence

from twisted.internet.interfaces import IReactorTime

from ftd.bandwidth import SharedBandwidth, Throttle
from ftd.trace import PairTrace
from ftd.transport import LinkTransport
from ftd.wire.errors import ErrorCode, WireError
from ftd.wire.sender import Buffer

#: Enough for one system call to be worth its price.
PORTION = 256 * 1024


class Outbox:
    """
    :param bandwidth: this pair's own limit, in bytes per second; 0 for none.
    :param shared: the limit that it shares with others.
    :param portion: bytes after which the transport is asked whether it takes more, of those that waited.
    :param changed: called when `is_frozen` or `size` may have changed for another reason than a call of this object.
    :ivar size: bytes that were put while the output was frozen and have not gone yet.
    :ivar sent: bytes handed to the transport so far.
    :ivar is_full: whether it is the transport that takes no more, and not just the bandwidth limit.
    :ivar window: how many transactions may be in flight, some of which may be sent together.
    """

    __slots__ = (
        "_capacity",
        "_changed",
        "_portion",
        "_queue",
        "_throttle",
        "_trace",
        "_transport",
        "is_full",
        "sent",
        "size",
        "window",
    )

    def __init__(
        self,
        transport: LinkTransport,
        clock: IReactorTime,
        trace: PairTrace,
        bandwidth: int,
        changed: Callable[[], None],
        shared: SharedBandwidth | None = None,
        portion: int = PORTION,
    ) -> None:
        self.size = 0
        self.sent = 0
        self.is_full = False
        self.window = 1
        self._transport = transport
        self._trace = trace
        self._throttle = Throttle(clock, bandwidth, shared, self._ready)
        self._changed = changed
        self._queue: deque[Buffer] = deque()
        self._capacity = 0
        self._portion = portion

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

    def put(self, pieces: Sequence[Buffer], flush: bool = False) -> None:
        """
        Send the pieces in order, now or when the output thaws.  They must not change until then.

        :param flush: do not wait for more to send.
        """
        if self._queue or self.is_full or self._throttle.is_waiting:
            for piece in pieces:
                self._append(piece)
            return
        if self._throttle.is_on:
            self._transport.gather(self._within(pieces, self._throttle.take(sum(map(len, pieces)))))
        elif len(pieces) == 1 or self._transport.takes_all:
            self.sent += sum(map(len, pieces))
            self._transport.gather(pieces)
        else:
            self._transport.gather(self._passing(pieces))
        if flush:
            self._transport.flush(self.window)

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
        if piece:
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
        """A portion from the front of the queue, up to ``allowed`` bytes and while the transport takes more."""
        queue, portion = self._queue, self._portion
        while queue and not self.is_full and allowed and portion > 0:
            piece = queue[0]
            size = len(piece)
            if size <= allowed:
                queue.popleft()
            else:
                view = memoryview(piece)
                queue[0] = view[allowed:]
                piece, size = view[:allowed], allowed
            allowed -= size
            portion -= size
            self.size -= size
            self.sent += size
            yield piece

    def _flush(self) -> None:
        requested = self.size
        if requested and not self._throttle.is_waiting:
            left = self._throttle.take(requested) if self._throttle.is_on else requested
            while left and self._queue and not self.is_full:
                before = self.sent
                self._transport.gather(self._leaving(left))
                self._transport.flush()
                if self.sent == before:
                    break
                left -= self.sent - before
            if left and self._throttle.is_on:
                self._throttle.give_back(left)
        if self._trace.ft_trans_flush is not None:
            self._trace.ft_trans_flush(requested - self.size, requested)

    def _ready(self) -> None:
        if self._queue and not self.is_full:
            self._flush()
        self._changed()
