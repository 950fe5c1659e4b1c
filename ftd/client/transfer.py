"""Bytes on their way: the sources of uploads, and the files that downloads go to."""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IDelayedCall, IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from twisted.web.iweb import UNKNOWN_LENGTH, IBodyProducer
from zope.interface import implementer

#: How much is read at a time.
BLOCK = 256 * 1024


#: Called as bytes move: how many have so far, and of how many, if that is known.
Progress = Callable[[int, int | None], None]


def silent(_moved: int, _total: int | None) -> None:
    """A `Progress` that nobody watches."""


class SourceChanged(Exception):
    """A file became shorter while it was being sent, so that what was promised cannot be sent."""


class _Flow:
    """
    What both sources share: the consumer, the Deferred that says it was all, and the count.

    As `IBodyProducer` demands, the Deferred never fires after ``stopProducing``; cancelling it stops too.
    """

    def __init__(self, progress: Progress, total: int | None) -> None:
        self._progress = progress
        self._total = total
        self._moved = 0

    def begin(self, consumer: IConsumer, stop: Callable[[], None]) -> Deferred[None]:
        self._consumer = consumer
        self._done: Deferred[None] = Deferred(lambda _: stop())
        return self._done

    def write(self, block: bytes) -> None:
        self._moved += len(block)
        self._consumer.write(block)
        self._progress(self._moved, self._total)

    def finish(self) -> None:
        self._done.callback(None)

    def fail(self, reason: Exception) -> None:
        self._done.errback(Failure(reason))


@implementer(IBodyProducer)
class FileBody:
    """
    The rest of a file, from where it stands; sent by blocks, one per turn of the reactor, as fast as the connection
    takes them.

    :param length: how many bytes of it; ``None`` to find out, which works for what can seek.  What cannot is read to
        its end and sent in chunks.
    """

    length: int | str

    def __init__(
        self, file: BinaryIO, clock: IReactorTime, length: int | None = None, progress: Progress = silent
    ) -> None:
        self._file = file
        self._clock = clock
        self._left = rest_of(file) if length is None else length
        self.length = UNKNOWN_LENGTH if self._left is None else self._left
        self._flow = _Flow(progress, self._left)
        self._next: IDelayedCall | None = None

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Begin; the Deferred fires when all has been written, or errbacks when the file cannot be read."""
        done = self._flow.begin(consumer, self.stopProducing)
        self.resumeProducing()
        return done

    def pauseProducing(self) -> None:
        """Read no more until ``resumeProducing``."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def resumeProducing(self) -> None:
        """Go on reading."""
        if self._next is None:
            self._next = self._clock.callLater(0, self._move)

    def stopProducing(self) -> None:
        """Read no more."""
        self.pauseProducing()

    def _move(self) -> None:
        self._next = None
        try:
            block = self._file.read(BLOCK if self._left is None else min(BLOCK, self._left))
        except OSError as error:
            self._flow.fail(error)
            return
        if self._left is not None:
            self._left -= len(block)
            if not block and self._left:
                self._flow.fail(SourceChanged(f"the file ended {self._left} bytes early: it changed while it was sent"))
                return
        if not block:
            self._flow.finish()
            return
        # Scheduled first: the write may pause, which takes it back.
        self.resumeProducing()
        self._flow.write(block)


@implementer(IBodyProducer, IReadDescriptor)
class PipeBody:
    """
    All that comes out of a file descriptor: a pipe, a terminal.  It is read when the reactor says that there is
    something, so a source that has nothing to say holds nothing up.  Sent in chunks.
    """

    length: int | str = UNKNOWN_LENGTH

    def __init__(self, fd: int, reactor: IReactorFDSet, progress: Progress = silent) -> None:
        self._fd = fd
        self._reactor = reactor
        self._flow = _Flow(progress, None)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        """Begin; the Deferred fires at the end of the stream, or errbacks when it cannot be read."""
        done = self._flow.begin(consumer, self.stopProducing)
        self.resumeProducing()
        return done

    def pauseProducing(self) -> None:
        """Read no more until ``resumeProducing``."""
        self._reactor.removeReader(self)

    def resumeProducing(self) -> None:
        """Go on reading."""
        self._reactor.addReader(self)

    def stopProducing(self) -> None:
        """Read no more."""
        self._reactor.removeReader(self)

    def fileno(self) -> int:
        """For the reactor."""
        return self._fd

    def doRead(self) -> None:
        """Something can be read, or the stream has ended."""
        try:
            block = os.read(self._fd, BLOCK)
        except OSError as error:
            self._reactor.removeReader(self)
            self._flow.fail(error)
            return
        if block:
            self._flow.write(block)
        else:
            self._reactor.removeReader(self)
            self._flow.finish()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 (IReadDescriptor's)
        """The reactor gives the descriptor up: a pipe whose writer has gone and that has been read to its end."""
        self._reactor.removeReader(self)
        self._flow.finish()

    def logPrefix(self) -> str:
        """For the reactor."""
        return "upload"


def rest_of(file: BinaryIO) -> int | None:
    """How many bytes a file still has, ``None`` if it cannot tell."""
    try:
        here = file.tell()
        end = file.seek(0, io.SEEK_END)
        file.seek(here)
    except OSError:
        return None
    return max(0, end - here)


def is_regular(file: BinaryIO) -> bool:
    """Whether it is a file on a disk, which can be read at any time."""
    return stat.S_ISREG(os.fstat(file.fileno()).st_mode)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """
    A file to write to that takes the place of ``path`` when the block ends, fsynced and whole; when the block raises,
    nothing is left of it and ``path`` is as it was.  What is not a regular file (``/dev/null``, a pipe) is written to
    as it is.
    """
    target = os.path.realpath(path)
    if os.path.exists(target) and not os.path.isfile(target):
        with open(target, "wb") as device:
            yield device
        return
    partial = f"{target}.{secrets.token_hex(4)}.part"
    with open(partial, "xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException:
            os.unlink(partial)
            raise


def body_of(
    source: BinaryIO | bytes | IBodyProducer,
    clock: IReactorTime,
    length: int | None = None,
    progress: Progress = silent,
) -> IBodyProducer:
    """What Twisted's HTTP client sends for ``source``; a producer is taken as it is and reports its own progress."""
    if IBodyProducer.providedBy(source):
        return source
    if isinstance(source, bytes):
        source = io.BytesIO(source)
    return FileBody(source, clock, length, progress)
