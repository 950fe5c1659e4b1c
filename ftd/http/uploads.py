"""
Request bodies: state that streams into a pair as it arrives, and small JSON that is held until it is whole.

twisted.web writes every body to memory or a temporary file and runs the route when it has all of it.  An
:class:`ApiRequest` decides when the headers are there:

- The route takes an upload: it runs now, and hands each chunk to an :class:`ftd.interfaces.IUpload` as it is read.  The
  pair pauses the connection through a :class:`RequestBody`.  Where the connection is a plain socket, a large body is
  read by a :class:`ftd.http.reading.BodyReader`.
- The body is announced to be over the limit: the route runs now, and is refused.
- Otherwise the body is held, and the route runs at its end, or as soon as it turns out to be over the limit.

So a route can answer while the body is still on its way.  Such an answer says ``Connection: close``, and the channel
(:mod:`ftd.http.site`) goes on reading for a while so that the client gets to see it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IPushProducer
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import server
from twisted.web.http import parse_qs
from zope.interface import implementer

from ftd.errors import FtdError
from ftd.http.problems import BadArgument, problem_of
from ftd.http.reading import LARGE_BODY, BodyReader, is_plain
from ftd.interfaces import IUpload

if TYPE_CHECKING:
    from ftd.http.site import Channel

_log = Logger()

T = TypeVar("T")


def shielded(work: Deferred[T]) -> Deferred[T]:
    """
    What ``work`` comes to, for somebody who may go away.

    A route's Deferred is cancelled when its client disconnects; what the pair is doing must not be.
    """
    waiter: Deferred[T] = Deferred()

    def relay(result: T | Failure) -> None:
        if not waiter.called:
            waiter.callback(result)
        elif isinstance(result, Failure) and not result.check(FtdError):
            _log.failure("after its client had gone", result)

    work.addBoth(relay)
    return waiter


@implementer(IPushProducer)
class RequestBody:
    """The body that a client is sending, as a producer that the receiving pair may pause."""

    def __init__(self, channel: Channel, drop: Callable[[], None]) -> None:
        self._channel = channel
        self._drop = drop
        self._is_arriving = True

    def pauseProducing(self) -> None:
        """Stop reading the connection."""
        if self._is_arriving:
            self._channel.pause_body()

    def resumeProducing(self) -> None:
        """Read on."""
        if self._is_arriving:
            self._channel.resume_body()

    def stopProducing(self) -> None:
        """Nobody wants the rest, which is read and dropped."""
        self._drop()
        self.resumeProducing()

    def ended(self) -> None:
        """No more will come; pausing has no meaning from here on."""
        self.resumeProducing()
        self._is_arriving = False


class ApiRequest(server.Request):
    """
    A request whose route may run before the body is there.

    :ivar body_complete: whether the whole body has been read.
    :ivar is_over_limit: whether the body is longer than may be held.
    """

    channel: Channel
    defaultContentType = None  # noqa: N815 (Twisted's name)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.body_complete = False
        self.is_over_limit = False
        self._is_running = False
        self._held = BytesIO()
        self._take: Callable[[bytes | memoryview], object] = self._hold
        self._body: RequestBody | None = None
        self._upload: IUpload | None = None
        self._reader: BodyReader | None = None
        # Bytes of the body: how many there will be, as far as is known, have been read, and were put in the upload.
        self._length: int | None = None
        self._received = 0
        self._written = 0

    def feed(self, open_upload: Callable[[IPushProducer], IUpload]) -> Deferred[Any]:
        """
        Send the body where ``open_upload`` says.  To be called before the route first gives control back.

        :return: the upload's result.
        """
        self._body = RequestBody(self.channel, self._drop_rest)
        self._upload = upload = open_upload(self._body)

        def take(data: bytes | memoryview) -> None:
            upload.write(data)
            self._written += len(data)

        self._take = take
        self._reader = self._reader_for(upload)
        return shielded(upload.done)

    def held_body(self) -> bytes:
        """The whole body of a route that takes no upload."""
        return self._held.getvalue()

    def cut(self, reason: str) -> None:
        """The rest of the body will not come."""
        self._drop_rest()
        self._end_upload(lambda upload: upload.cut(reason))

    def gotLength(self, length: int | None) -> None:
        """The headers are there; ``length`` is ``None`` for a chunked body."""
        channel = self.channel
        self._set_request_line(*channel.request_line())
        self._length = length
        if length == 0:
            return
        if channel.site.takes_upload(self.method, self.path):
            self._run()
        elif length is not None and length > channel.site.body_limit:
            self._refuse_body()

    def handleContentChunk(self, data: bytes | memoryview) -> None:
        """Some of the body."""
        self._received += len(data)
        self._take(data)

    def requestReceived(self, command: bytes, path: bytes, version: bytes) -> None:  # noqa: ARG002 (Twisted's signature)
        """The end of the body."""
        self.body_complete = True
        if not self._is_running:
            self._run()
        self._end_upload(lambda upload: upload.finish())

    def write(self, data: bytes) -> None:
        """Send some of the answer."""
        if not self.startedWriting and not self.body_complete:
            self.responseHeaders.setRawHeaders(b"Connection", [b"close"])
        super().write(data)

    def finish(self) -> None:
        """The answer is complete."""
        self.cut("the request was answered before its body was complete")
        self._end_reading()
        super().finish()

    def connectionLost(self, reason: Failure) -> None:
        """The client has gone."""
        # The route first: it must not answer what the cut makes of the upload.
        super().connectionLost(reason)
        self.cut("the client closed the connection before the end of the body")
        self._end_reading()

    def set_headers(self, headers: Mapping[str, str]) -> None:
        """Headers of the answer."""
        for name, value in headers.items():
            self.responseHeaders.setRawHeaders(name, [value])

    def abort(self) -> None:
        """Break the connection: the one way to say that an answer which has begun is not the whole."""
        self.channel.transport.abortConnection()  # type: ignore[union-attr]

    def getRequestHostname(self) -> bytes:  # noqa: N802 (Twisted's name)
        """The same for all: routes do not depend on the host, and a Host that cannot be one must not upset them."""
        return b"localhost"

    def process(self) -> None:
        """Run the route."""
        try:
            unquote_to_bytes(self.path).decode()
        except UnicodeDecodeError:
            self._answer(Failure(BadArgument("path", "is not UTF-8")))
        else:
            super().process()

    def processingFailed(self, reason: Failure) -> None:
        """Something failed outside of the route."""
        self._answer(reason)

    def _answer(self, reason: Failure) -> None:
        self.write(problem_of(reason, self).on(self))
        self.finish()

    def _set_request_line(self, method: bytes, uri: bytes, version: bytes) -> None:
        self.method, self.uri, self.clientproto = method, uri, version
        self.path, _, query = uri.partition(b"?")
        self.args = parse_qs(query, keep_blank_values=True)

    def _run(self) -> None:
        self._is_running = True
        self.process()

    def _hold(self, data: bytes | memoryview) -> None:
        if self._held.tell() + len(data) > self.channel.site.body_limit:
            self._refuse_body()
        else:
            self._held.write(data)

    def _refuse_body(self) -> None:
        self.is_over_limit = True
        self._run()

    def _reader_for(self, upload: IUpload) -> BodyReader | None:
        """What reads the body past the transport, if it is worth that and the transport is of such a kind."""
        transport, length = self.channel.transport, self._length
        if length is None or length < LARGE_BODY or not is_plain(transport):
            return None
        return BodyReader(
            transport,
            self.channel.site.read_blocks,
            upload,
            self.channel.body_received,
            lambda: length - self._received,
            lambda: self._written,
        )

    def _end_reading(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.give_back()

    def _drop_rest(self) -> None:
        self._take = _nowhere
        if self._reader is not None:
            self._reader.stop()

    def _end_upload(self, end: Callable[[IUpload], None]) -> None:
        """``finish`` or ``cut``, whichever comes first, exactly once."""
        upload, self._upload = self._upload, None
        body, self._body = self._body, None
        if self._reader is not None:
            self._reader.stop()
        if body is not None:
            body.ended()
        if upload is not None:
            end(upload)


def _nowhere(data: bytes | memoryview) -> None:
    """Where the bytes go that nobody wants."""
