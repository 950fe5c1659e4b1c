"""
A checkpoint's bytes as an answer: streamed from the store at the client's pace, whole or one range of them (RFC 9110,
sections 13 and 14).

The entity tag is the digest, so it is the same for a number and for ``latest``, and a download that broke off can go on
with ``If-Range`` whichever of the two it began with.

A large one goes from where it lies to a plain socket without a copy, by :mod:`ftd.http.sending`.  For all others there
is a producer of blocks: twisted.web's own for files are pull producers, which are driven by the global reactor, and
wait for ever for the rest of a file that is shorter than was said.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.python.failure import Failure
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.http import http_date, is_resource_modified, parse_if_range_header, parse_range_header
from zope.interface import implementer

from ftd.errors import Unknown
from ftd.http.reading import is_plain
from ftd.http.routes import BYTES
from ftd.http.sending import FileSource, SocketSender, Source, SourceError, ViewsSource
from ftd.http.uploads import ApiRequest
from ftd.interfaces import ICheckpointStore
from ftd.status import Checkpoint

_log = Logger()

#: Bytes that are read and written at a time.
BLOCK = 128 * 1024

#: Bytes of an answer that is worth a system call of its own.
LARGE_ANSWER = 256 * 1024


async def send_checkpoint(request: ApiRequest, pair: str, store: ICheckpointStore, checkpoint: Checkpoint) -> bytes:
    """
    Answer with a checkpoint that ``store`` holds.

    :param pair: whose it is.
    :return: the nothing that is left to write when all has been written.
    :raises Unknown: if the store dropped it just now.
    :raises RequestedRangeNotSatisfiable: for a range that begins after the end.
    """
    request.set_headers(
        {
            "ETag": f'"{checkpoint.xxh3}"',
            "Last-Modified": http_date(checkpoint.committed_at),
            "X-Ftd-Checkpoint": str(checkpoint.number),
            "Cache-Control": "no-cache",
        }
    )
    if not _is_modified(request, checkpoint):
        request.setResponseCode(304)
        return b""
    asked = _asked_range(request, checkpoint)
    first, end = (0, checkpoint.bytes) if asked is None else asked
    if asked is not None:
        request.setResponseCode(206)
        request.set_headers({"Content-Range": f"bytes {first}-{end - 1}/{checkpoint.bytes}"})
    request.set_headers(
        {
            "Accept-Ranges": "bytes",
            "Content-Type": BYTES,
            "Content-Length": str(end - first),
            "Content-Disposition": f'attachment; filename="{pair}-{checkpoint.number}.bin"',
        }
    )
    if request.method == b"HEAD":
        return b""
    try:
        file = store.open(checkpoint.number)
    except KeyError as error:
        raise Unknown(f"Checkpoint {checkpoint.number} is no longer held.") from error
    transport = request.channel.transport
    if end - first >= LARGE_ANSWER and is_plain(transport):
        return await DirectDownload(request, transport, file, first, end).done
    return await Download(request, file, first, end).done


def _is_modified(request: ApiRequest, checkpoint: Checkpoint) -> bool:
    """Whether the client, if it has a copy, has another one."""
    conditions = {
        "HTTP_IF_NONE_MATCH": request.getHeader("If-None-Match") or "",
        "HTTP_IF_MODIFIED_SINCE": request.getHeader("If-Modified-Since") or "",
    }
    return is_resource_modified(
        conditions, etag=f'"{checkpoint.xxh3}"', last_modified=http_date(checkpoint.committed_at)
    )


def _asked_range(request: ApiRequest, checkpoint: Checkpoint) -> tuple[int, int] | None:
    """First byte, and the byte after the last; ``None`` for all, which is also the answer to several ranges."""
    asked = parse_range_header(request.getHeader("Range"))
    if request.method != b"GET" or asked is None or asked.units != "bytes" or len(asked.ranges) != 1:
        return None
    if not _applies(request.getHeader("If-Range"), checkpoint):
        return None
    size = checkpoint.bytes
    first, end = asked.ranges[0]
    if first < 0:
        first = max(0, size + first)
    if first >= size:
        raise RequestedRangeNotSatisfiable(size, description=f"The checkpoint has {size} bytes.")
    return first, size if end is None else min(end, size)


def _applies(if_range: str | None, checkpoint: Checkpoint) -> bool:
    """Whether the part that the client has is of this checkpoint."""
    if not if_range:
        return True
    condition = parse_if_range_header(if_range)
    if condition.date is not None:
        return int(condition.date.timestamp()) == int(checkpoint.committed_at)
    return condition.etag == checkpoint.xxh3 and not if_range.startswith("W/")


@implementer(IPushProducer)
class Download:
    """
    Some of a file on its way to a client.  The file is closed at the end, however that comes.

    :ivar done: fires with nothing, ``b""``, when all has been written; cancelling it stops.
    """

    def __init__(self, request: ApiRequest, file: BinaryIO, first: int, end: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._file.close())
        self._request = request
        self._file = file
        self._left = end - first
        self._is_paused = False
        self._is_writing = False
        file.seek(first)
        request.registerProducer(self, True)
        self._write()

    def pauseProducing(self) -> None:
        """The client reads more slowly than we do."""
        self._is_paused = True

    def resumeProducing(self) -> None:
        """The client has read what there was."""
        self._is_paused = False
        self._write()

    def stopProducing(self) -> None:
        """The client has gone."""
        self._file.close()

    def _write(self) -> None:
        """Write until the connection says stop, which it may do, and take back, inside of a write."""
        if self._is_writing:
            return
        self._is_writing = True
        try:
            while not self._is_paused and not self._file.closed:
                self._write_block()
        finally:
            self._is_writing = False

    def _write_block(self) -> None:
        try:
            data = self._file.read(min(BLOCK, self._left))
            if self._left and not data:
                raise EOFError(f"the checkpoint's file ends {self._left} bytes early")
        except (OSError, EOFError):
            # The headers are out: all that can be said is that this is not the whole.
            _log.failure("while sending {uri}", uri=self._request.uri)
            self._file.close()
            self._request.abort()
            return
        if data:
            self._left -= len(data)
            self._request.write(data)
        else:
            self._file.close()
            self._request.unregisterProducer()
            self.done.callback(b"")


class DirectDownload:
    """
    Some of a file on its way to a client on a plain socket.  The file is closed at the end, however that comes.

    :ivar done: see `Download`.
    """

    def __init__(self, request: ApiRequest, transport: Connection, file: BinaryIO, first: int, end: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._stop())
        self._request = request
        self._file = file
        self._size = end - first
        # The headers, which go out before it.
        request.write(b"")
        self._sender = SocketSender(transport, source_of(file, first, end))
        self._sender.done.addCallbacks(self._sent, self._failed)

    def _stop(self) -> None:
        self._sender.stop()
        self._file.close()

    def _sent(self, _: None) -> None:
        self._file.close()
        self._request.sentLength += self._size
        self.done.callback(b"")

    def _failed(self, failure: Failure) -> None:
        # As in `Download`: the headers are out.
        _log.failure("while sending {uri}", failure, uri=self._request.uri)
        self._file.close()
        self._request.abort()


def source_of(file: BinaryIO, first: int, end: int) -> Source:
    """
    The bytes of ``file`` from ``first`` up to ``end``, without a copy where it has a descriptor or views, and otherwise
    in blocks that are read as they are needed.
    """
    views = getattr(file, "views", None)
    if views is not None:
        return ViewsSource(iter(views(first, end)), end - first)
    try:
        descriptor = file.fileno()
    except io.UnsupportedOperation:
        return ViewsSource(_blocks_of(file, first, end), end - first)
    return FileSource(descriptor, first, end - first)


def _blocks_of(file: BinaryIO, first: int, end: int) -> Iterator[memoryview]:
    """:raises SourceError: if the file cannot be read."""
    file.seek(first)
    while first < end:
        try:
            block = file.read(min(BLOCK, end - first))
        except OSError as error:
            raise SourceError from error
        if not block:
            return
        first += len(block)
        yield memoryview(block)
