"""
Large answers, sent straight from where they lie: memory with ``sendmsg``, files with ``sendfile``.

Twisted's transports copy what is written into a buffer of their own, and a file has to be read first.  A `SocketSender`
writes in their place, as much as the socket takes and never more, so a slow client costs no memory at all.  Measured
over loopback, one process to another: views 5.0 GB/s, ``sendfile`` 4.7, ``preadv`` and ``send`` 3.5, Twisted's way 3.0,
at 0.6 of its CPU time.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Final, Protocol

from twisted.internet import main
from twisted.internet.defer import Deferred
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure

#: Bytes that are given to the kernel in one call.
_AT_A_TIME: Final = 1024 * 1024

#: Calls after which the reactor's other connections have their turn.
_CALLS_A_TURN: Final = 4

#: Bytes that the kernel is to read ahead of a file, so that the reactor seldom waits for the disk.
_AHEAD: Final = 8 * 1024 * 1024

#: Buffers in one call; the kernel takes 1,024.
_MOST_VIEWS: Final = 1000


class SourceError(Exception):
    """What is to be sent cannot be had; its cause says why."""


class Source(Protocol):
    """
    Bytes that a socket can be given without a copy.

    :ivar left: bytes that have not been sent.
    """

    left: int

    def send_to(self, target: socket.socket) -> int:
        """
        Send some.

        :return: how many, at least one.
        :raises SourceError: if they cannot be had.
        :raises OSError: of the socket, `BlockingIOError` among them.
        """

    def let_go(self) -> None:
        """No more will be sent: look at none of the bytes from here on."""


class ViewsSource:
    """
    Memory.

    :param views: pieces that are not empty and stay as they are; ``size`` bytes together.
    """

    def __init__(self, views: Iterator[memoryview], size: int) -> None:
        self.left = size
        self._views = views
        self._next: list[memoryview] = []
        self._size = 0

    def send_to(self, target: socket.socket) -> int:
        """See `Source`."""
        while self._size < min(_AT_A_TIME, self.left) and len(self._next) < _MOST_VIEWS:
            view = next(self._views, None)
            if view is None:
                raise SourceError from EOFError(f"the checkpoint ends {self.left - self._size} bytes early")
            self._next.append(view)
            self._size += len(view)
        sent = target.sendmsg(self._next)
        self._size -= sent
        self.left -= sent
        gone, rest = 0, sent
        for view in self._next:
            if rest < len(view):
                break
            rest -= len(view)
            gone += 1
        del self._next[:gone]
        if rest:
            self._next[0] = self._next[0][rest:]
        return sent

    def let_go(self) -> None:
        """See `Source`."""
        self._next.clear()
        self._views = iter(())


class FileSource:
    """
    A part of a file.

    :param descriptor: stays the caller's.
    """

    def __init__(self, descriptor: int, first: int, size: int) -> None:
        self.left = size
        self._descriptor = descriptor
        self._at = first
        self._told = first

    def send_to(self, target: socket.socket) -> int:
        """See `Source`."""
        self._read_ahead()
        size = min(_AT_A_TIME, self.left)
        try:
            sent = os.sendfile(target.fileno(), self._descriptor, self._at, size)
        except (BlockingIOError, ConnectionError):
            raise
        except OSError:
            # The file's error or the socket's, or a file system without sendfile: each half by itself will tell.
            sent = target.send(self._read(size))
        if not sent:
            raise SourceError from EOFError(f"the checkpoint's file ends {self.left} bytes early")
        self._at += sent
        self.left -= sent
        return sent

    def let_go(self) -> None:
        """Nothing is held: the descriptor is the caller's."""

    def _read(self, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, self._at)
        except OSError as error:
            raise SourceError from error

    def _read_ahead(self) -> None:
        if self._at + _AHEAD // 2 >= self._told:
            os.posix_fadvise(self._descriptor, self._told, _AHEAD, os.POSIX_FADV_WILLNEED)
            self._told += _AHEAD


class SocketSender:
    """
    Sends ``source`` in the place of the connection, after what was written to that before.

    :ivar done: fires with nothing when all of it is with the kernel; errbacks with what a `SourceError` came of.
        Neither happens where the connection ends before: its protocol hears of that.
    """

    def __init__(self, transport: Connection, source: Source) -> None:
        self.done: Deferred[None] = Deferred()
        self._transport = transport
        self._source = source
        self._own_write = self._write
        transport.doWrite = self._own_write  # type: ignore[method-assign]
        transport.startWriting()

    def stop(self) -> None:
        """Send no more; what is written from here on is the connection's own."""
        # A connection that is being aborted has got another one in the meantime.
        if vars(self._transport).get("doWrite") is self._own_write:
            del self._transport.doWrite
            self._transport.stopWriting()
        self._source.let_go()

    def _write(self) -> BaseException | int | None:
        """`IWriteDescriptor.doWrite`: as much as the socket takes, or a turn allows."""
        transport = self._transport
        if transport._tempDataBuffer or len(transport.dataBuffer) > transport.offset:
            result = _done_by_itself(transport)
            # It is through when it has taken itself off the reactor's list, on which we have to be.
            if result is None and transport.connected:
                transport.startWriting()
            return result
        if transport.disconnecting:
            # Somebody has closed it, which takes effect when it is written to.
            self.stop()
            return _done_by_itself(transport)
        try:
            for _ in range(_CALLS_A_TURN):
                if not self._source.left:
                    break
                self._source.send_to(transport.socket)
        except BlockingIOError:
            return None
        except OSError:
            return main.CONNECTION_LOST
        except SourceError as error:
            self.stop()
            self.done.errback(Failure(error.__cause__))
            return None
        if not self._source.left:
            self.stop()
            self.done.callback(None)
        return None


def _done_by_itself(transport: Connection) -> BaseException | int | None:
    """What the connection writes of its own buffer, and how that went."""
    result: BaseException | int | None = type(transport).doWrite(transport)
    return result
