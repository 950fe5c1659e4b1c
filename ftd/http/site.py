"""
The connections of the HTTP API: what :class:`twisted.web.http.HTTPChannel` lacks for uploads that are paused, fall
silent, or are answered before they are through.

*Paused.*  A frozen pair stops the reading of its client's connection.  The idle timer stops with it, since it is ftd
that keeps the client waiting, and a drained send buffer, at which the channel would read on, does not lift the pause.

*Silent.*  A client that sends nothing for the idle time in the middle of its body is cut off.

*Answered early.*  Closing a socket on which data is still arriving makes the kernel send a reset, and a reset makes the
client's kernel throw away the answer that it had received.  So the connection lingers: for a bounded time everything is
read and dropped, until the client has seen the answer and closes.  A client that waits for ``100 Continue`` before it
sends gets the answer instead.
"""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web import http, server
from twisted.web.resource import IResource

from ftd.http.reading import ReadBlocks
from ftd.http.uploads import ApiRequest

_log = Logger()

#: Seconds without a byte after which a client that was answered early is taken to have read the answer.
LINGER_SILENCE = 2.0

#: Seconds for which such a client may go on sending in any case.
LINGER_TIME = 5.0


class Linger:
    """
    The time between an early answer and the end of its connection.

    :param close: called once, unless `stop` was called before.
    """

    def __init__(self, call_later: Callable[..., IDelayedCall], close: Callable[[], None]) -> None:
        self._close = close
        self._silence = call_later(LINGER_SILENCE, self._end)
        self._total = call_later(LINGER_TIME, self._end)

    def heard(self) -> None:
        """The client is still sending."""
        if self._silence.active():
            self._silence.reset(LINGER_SILENCE)

    def stop(self) -> None:
        """The connection is closed or closing already."""
        for call in (self._silence, self._total):
            if call.active():
                call.cancel()

    def _end(self) -> None:
        self.stop()
        self._close()


class Channel(http.HTTPChannel):
    """One connection of a client."""

    site: Site
    requests: list[ApiRequest]

    _linger: Linger | None = None
    _body_is_paused = False
    _held_timeout: float | None = None

    def request_line(self) -> tuple[bytes, bytes, bytes]:
        """Method, URI and version of the request that is being read."""
        return self._command, self._path, self._version

    def pause_body(self) -> None:
        """Read no more of the body that is arriving, until `resume_body`."""
        if not self._body_is_paused:
            self._body_is_paused = True
            self._held_timeout = self.setTimeout(None)
        self._networkProducer.pauseProducing()

    def resume_body(self) -> None:
        """Read on."""
        if self._body_is_paused:
            self._body_is_paused = False
            self.setTimeout(self._held_timeout)
            if not self._waitingForTransport:
                self._networkProducer.resumeProducing()

    def resumeProducing(self) -> None:
        """The transport has sent what it held."""
        super().resumeProducing()
        if self._body_is_paused:
            self._networkProducer.pauseProducing()

    def requestDone(self, request: ApiRequest) -> None:  # noqa: N802 (Twisted's name)
        """The answer to ``request`` has been written."""
        if request.body_complete:
            super().requestDone(request)
        else:
            self.requests.remove(request)
            self.setTimeout(None)
            self._linger = Linger(self.callLater, self.loseConnection)
            self._networkProducer.resumeProducing()

    def rawDataReceived(self, data: bytes | memoryview) -> None:
        """Some of a body, or of a request that comes after the one that is being answered."""
        if self._linger is None:
            super().rawDataReceived(data)  # type: ignore[arg-type]  # a decoder slices it, no more
        else:
            self._linger.heard()

    def body_received(self, data: memoryview) -> bool:
        """Some of a large body, and nothing of what comes after it; whether more is wanted now."""
        self.resetTimeout()
        self.rawDataReceived(data)
        return not (self._body_is_paused or self._waitingForTransport)

    def allContentReceived(self) -> None:
        """The end of a body; from here on there is neither a pause nor an idle timer."""
        self.resume_body()
        super().allContentReceived()

    def timeoutConnection(self) -> None:
        """The client has been silent for the idle time, between requests or within one."""
        for request in tuple(self.requests):
            request.cut(f"the client sent nothing for {self.site.idle_time:g} s")
        super().timeoutConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """The connection is gone."""
        if self._linger is not None:
            self._linger.stop()
        super().connectionLost(reason)

    def _send100Continue(self) -> None:  # noqa: N802 (Twisted's name)
        if self._linger is None:
            super()._send100Continue()

    def _finishRequestBody(self, data: bytes) -> None:  # noqa: N802 (Twisted's name)
        if self._linger is None:
            super()._finishRequestBody(data)


class Site(server.Site):
    """
    The API on any number of ports.

    :param takes_upload: whether a method and an undecoded path belong to a route that streams its body.
    :param body_limit: bytes of a body that is held in memory.
    :param idle_time: seconds after which a client that says nothing is cut off.
    :ivar read_blocks: where large bodies are read into.
    """

    requestFactory = ApiRequest
    protocol = Channel  # type: ignore[assignment]

    def __init__(
        self,
        resource: IResource,
        takes_upload: Callable[[bytes, bytes], bool],
        body_limit: int,
        idle_time: float,
        reactor: IReactorTime,
    ) -> None:
        super().__init__(resource, timeout=idle_time, reactor=reactor)
        self.takes_upload = takes_upload
        self.body_limit = body_limit
        self.idle_time = idle_time
        self.read_blocks = ReadBlocks()

    def startFactory(self) -> None:
        """No access log in a file of its own, nor the timer that stamps its lines: `log` uses ftd's log."""

    def stopFactory(self) -> None:
        """Nothing was started."""

    def acceptableProtocols(self) -> list[bytes]:  # noqa: N802 (Twisted's name)
        """HTTP/1.1 only: that is what a `Channel` speaks."""
        return [b"http/1.1"]

    def log(self, request: http.Request) -> None:
        """One line for every answer."""
        _log.info(
            "{client} {method} {uri}: {status}, {sent} bytes",
            # A client on a unix socket has no address.
            client=getattr(request.getClientAddress(), "host", "unix"),
            method=request.method.decode("ascii", "backslashreplace"),
            uri=request.uri.decode("ascii", "backslashreplace"),
            status=request.code,
            sent=request.sentLength,
        )
