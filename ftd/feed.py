"""
The HTTP-fed source: uploads become CONTINUE frames.

A frame is cut when it has ``frame-size`` bytes.  The pieces that arrive are not joined: a frame is sent as the pieces
it came in.  A writer that sends tiny pieces would make frames of tiny pieces, each with an object of its own; so a
frame ends early when it has `_MOST_PIECES`, which bounds the memory whatever the writer does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol as TypingProtocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from zope.interface import implementer

from ftd.errors import FtdError
from ftd.interfaces import IUpload
from ftd.wire.sender import Buffer

_MOST_PIECES = 64


class UploadTarget(TypingProtocol):
    """What an upload asks of the pair it goes into.  Each call may raise an `FtdError`."""

    @property
    def unsent(self) -> int:
        """Bytes that were sent and are not with the kernel yet; 0 without a link."""

    def send_frame(self, pieces: tuple[Buffer, ...]) -> None:
        """One CONTINUE frame into the open transaction."""

    def send_run(self, data: memoryview, frame_size: int) -> None:
        """``data`` as a run of CONTINUE frames of ``frame_size`` into the open transaction."""

    def upload_finished(self, upload: Upload) -> None:
        """The whole body has been sent."""

    def upload_cut(self, reason: str) -> None:
        """The rest of the body will not come."""


@implementer(IUpload, IPushProducer)
class Upload:
    """
    One request body on its way into a transaction; the sender's source while it lasts.

    :param body: where the bytes come from; paused while the pair is frozen.
    :param frame_size: bytes of a frame.
    :ivar is_checkpoint: it is a whole transaction, to be committed at its end.
    :ivar accepted: bytes sent so far.
    """

    def __init__(self, target: UploadTarget, body: IPushProducer, frame_size: int, is_checkpoint: bool) -> None:
        self.is_checkpoint = is_checkpoint
        self.accepted = 0
        #: Fires with the result, or errbacks with an FtdError.
        self.done: Deferred[object] = Deferred()
        self._target = target
        self._body = body
        self._frame_size = frame_size
        self._pieces: deque[Buffer] = deque()
        self._size = 0
        self._holds: set[str] = set()
        self._is_over = False
        self._is_whole = False
        self._when_free: Callable[[], None] | None = None

    # What the writer of the body calls

    @property
    def unsent(self) -> int:
        """See `IUpload`."""
        return self._size + self._target.unsent

    def write(self, data: Buffer) -> None:
        """See `IUpload`."""
        if data and not self._is_over:
            self._pieces.append(data)
            self._size += len(data)
            self._run(self._send_full_frames)

    def finish(self) -> None:
        """See `IUpload`."""
        self._is_whole = True
        self._run(self._finish_when_free)

    def cut(self, reason: str) -> None:
        """See `IUpload`."""
        if not self._is_over:
            self._run(lambda: self._target.upload_cut(reason))

    # What the pair calls

    def hold(self) -> None:
        """Take nothing to the wire yet: the transaction is not open."""
        self._hold("not begun")

    def release(self) -> None:
        """The transaction is open."""
        self._let_go("not begun")

    def succeed(self, result: object) -> None:
        """The upload has led to ``result``."""
        if not self._is_over:
            self._is_over = True
            self.done.callback(result)

    def fail(self, error: FtdError) -> None:
        """The upload has come to nothing; what is still written is discarded."""
        if not self._is_over:
            self._is_over = True
            self._pieces.clear()
            self._size = 0
            # Whatever held the body up, the rest of it may be read now.
            self._holds.clear()
            self._body.resumeProducing()
            self.done.errback(error)

    # What the sender calls

    def pauseProducing(self) -> None:
        """The pair is frozen."""
        self._hold("frozen")

    def resumeProducing(self) -> None:
        """The pair goes on."""
        self._let_go("frozen")

    def stopProducing(self) -> None:
        """The sender is gone; the pair says so in its own words."""

    def _hold(self, why: str) -> None:
        if not self._holds and not self._is_over:
            self._body.pauseProducing()
        self._holds.add(why)

    def _let_go(self, why: str) -> None:
        if why not in self._holds:
            return
        self._holds.discard(why)
        if self._holds or self._is_over:
            return
        self._run(self._send_full_frames)
        if self._is_whole:
            self._run(self._finish_when_free)
        elif not self._holds:
            self._body.resumeProducing()

    def _run(self, step: Callable[[], None]) -> None:
        if self._is_over:
            return
        try:
            step()
        except FtdError as error:
            self.fail(error)

    def _finish_when_free(self) -> None:
        """
        Send the rest, and wait until the pair is not frozen: a caller that sends one request after the other is slowed
        like one that sends a single long body.
        """
        if "not begun" in self._holds:
            return
        self._send_full_frames()
        if self._pieces:
            self._send(self._size)
        if self._is_whole and not self._holds:
            self._is_whole = False
            self._target.upload_finished(self)

    def _send_full_frames(self) -> None:
        if "not begun" in self._holds:
            return
        while self._size >= self._frame_size:
            if len(self._pieces[0]) >= self._frame_size:
                self._send_run()
            else:
                self._send(self._frame_size)
        if len(self._pieces) >= _MOST_PIECES:
            self._send(self._size)

    def _send_run(self) -> None:
        """Send the whole frames of the first piece."""
        view = memoryview(self._pieces.popleft())
        whole = len(view) - len(view) % self._frame_size
        if whole < len(view):
            self._pieces.appendleft(view[whole:])
        self._size -= whole
        self.accepted += whole
        self._target.send_run(view[:whole], self._frame_size)

    def _send(self, size: int) -> None:
        """Send the first ``size`` bytes as one frame."""
        frame = []
        left = size
        while left:
            piece = self._pieces.popleft()
            if len(piece) > left:
                view = memoryview(piece)
                self._pieces.appendleft(view[left:])
                piece = view[:left]
            frame.append(piece)
            left -= len(piece)
        self._size -= size
        self.accepted += size
        self._target.send_frame(tuple(frame))
