"""What drives a primary from within its process, without HTTP in between."""

from __future__ import annotations

import time
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.interfaces import IUpload
from ftd.primary import PrimaryPair


@implementer(IPushProducer)
class Stream:
    """
    Checkpoints from resident memory, one after the other, each in pieces as a program that has much would hand it over.

    :param source: the memory; it is gone through again and again.
    :param piece: bytes that are handed over at a time.
    :param size: bytes of a checkpoint.
    """

    def __init__(self, pair: PrimaryPair, source: memoryview, piece: int, size: int) -> None:
        self._pair = pair
        self._pieces = [source[at : at + piece] for at in range(0, len(source) - piece + 1, piece)]
        self._size = size
        self._upload: IUpload | None = None
        self._at = 0
        self._left = 0
        self._is_paused = False
        self._is_writing = False

    def run(self, count: int) -> Deferred[None]:
        """Send ``count`` checkpoints; fires when the last is committed."""
        done: Deferred[None] = Deferred()

        def next_one(left: int) -> None:
            if not left:
                done.callback(None)
                return
            upload = self._begin()
            upload.done.addCallbacks(lambda _: next_one(left - 1), done.errback)
            self._write()

        next_one(count)
        return done

    def pauseProducing(self) -> None:
        """The pair is frozen."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """The pair goes on."""
        self._is_paused = False
        self._write()

    def stopProducing(self) -> None:
        """The upload's end says the rest."""

    def _begin(self) -> IUpload:
        self._left = self._size
        self._is_paused = False
        self._upload = self._pair.checkpoint(self)
        return self._upload

    def _write(self) -> None:
        # `write` may pause and resume this before it returns.
        if self._is_writing or self._upload is None:
            return
        self._is_writing = True
        upload, pieces = self._upload, self._pieces
        try:
            while self._left and not self._is_paused:
                piece = pieces[self._at][: self._left]
                self._at = (self._at + 1) % len(pieces)
                self._left -= len(piece)
                upload.write(piece)
        finally:
            self._is_writing = False
        if not self._left:
            self._upload = None
            upload.finish()


class Commits:
    """
    Small transactions, as many in flight as the window has, for some time.

    :param payload: of each.
    :ivar latencies: seconds from begin to the ACK.
    """

    def __init__(self, pair: PrimaryPair, payload: memoryview, window: int) -> None:
        self.latencies: list[float] = []
        self._pair = pair
        self._payload = (payload,)
        self._window = window
        self._in_flight = 0
        self._until = 0.0
        self._is_going = False
        self._done: Deferred[None] = Deferred()

    def run(self, seconds: float) -> Deferred[None]:
        """Fires when the last is committed."""
        self._done = Deferred()
        self.latencies = []
        self._until = time.perf_counter() + seconds
        self._go()
        return self._done

    def _go(self) -> None:
        # An answer may come before `commit` returns.
        if self._is_going:
            return
        self._is_going = True
        try:
            while self._in_flight < self._window and time.perf_counter() < self._until:
                self._in_flight += 1
                self._pair.begin().addCallback(self._begun, time.perf_counter()).addErrback(self._failed)
        finally:
            self._is_going = False
        if not self._in_flight and not self._done.called:
            self._done.callback(None)

    def _begun(self, _id: int, began: float) -> None:
        self._pair.send_frame(self._payload)
        self._pair.commit().addCallback(self._committed, began).addErrback(self._failed)

    def _committed(self, _commit: object, began: float) -> None:
        self._latest(began)
        self._in_flight -= 1
        self._go()

    def _latest(self, began: float) -> None:
        self.latencies.append(time.perf_counter() - began)

    def _failed(self, failure: Failure) -> None:
        self._until = 0.0
        self._in_flight -= 1
        if not self._done.called:
            self._done.errback(failure)


def gathered(runs: list[Deferred[None]], then: Callable[[], None], failed: Callable[[Failure], object]) -> None:
    """Call ``then`` when all of ``runs`` have fired, or ``failed`` at the first failure."""
    left = len(runs)

    def one(_: object) -> None:
        nonlocal left
        left -= 1
        if not left:
            then()

    for run in runs:
        run.addCallbacks(one, failed)
