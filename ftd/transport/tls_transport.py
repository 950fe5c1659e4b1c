"""
A link's transport that is TLS 1.3 on top of another one.

Both ends show a certificate, see :mod:`ftd.transport.tls_identity`.  OpenSSL works on memory: what the transport below
has read is decrypted to where the protocol wants it, and what the protocol sends is encrypted when the transport below
takes it, so that what waits is the protocol's own memory and not a second copy of it.  Small pieces are joined into one
record, as each record costs both ends as much as some kilobytes of payload do.

One connection has one pair of keys for as long as it stands, as :mod:`ssl` has no way to renew them.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from ftd.transport.base import LinkEnd, LinkTransport
from ftd.transport.tls_errors import ended_in_handshake, explained, wrong_name
from ftd.transport.tls_identity import TlsIdentity
from ftd.wire.errors import WireError
from ftd.wire.sender import Buffer

#: Bytes that are given to OpenSSL at a time, either way: few enough that they stay in the processor's cache, and what
#: a link keeps of its own for each direction.
_BATCH = 256 * 1024

#: A piece below this is copied next to its neighbours rather than given a record of its own.
_SMALL = 8 * 1024

#: Payload of the largest record.
_RECORD = 16 * 1024

#: Seconds in which a peer has to take the alert that says what was wrong.
_LAST_WORDS = 1.0

# Where is decrypted what the protocol has no place for: one buffer for all links, as none is needed for longer than a
# call, and another one should calls ever be nested.
_buffers: list[bytearray] = []


class TlsEnd(LinkEnd, Protocol):
    """The protocol on top."""

    clock: IReactorTime

    def fail(self, error: WireError) -> None:
        """End the link because of ``error``, unless it is ending already."""


@implementer(IPushProducer)
class TlsTransport:
    """
    A `LinkTransport` for the protocol above, a `LinkEnd` and a producer for the transport below.

    :param end: the protocol.
    :param carry: makes the transport below, whose end is what it is called with.
    """

    log = Logger()
    takes_all = True

    def __init__(self, end: TlsEnd, identity: TlsIdentity, carry: Callable[[LinkEnd], LinkTransport]) -> None:
        self._end = end
        # The protocol's own, even where whoever carries the bytes is told to bring them here instead.
        self._deliver = end.dataReceived
        self._files = identity.files
        self._clock = end.clock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = identity.connection(self._incoming, self._outgoing)
        self._is_open = False
        # The protocol has asked for an end, which comes when everything is sent.
        self._is_closing = False
        # Nothing goes in or out any more.
        self._is_over = False
        self._has_failed = False
        # The transport below has been told to close.
        self._is_let_go = False
        # What is not encrypted yet.
        self._waiting: deque[Buffer] = deque()
        self._waiting_size = 0
        self._producer: IPushProducer | None = None
        self._producer_is_paused = False
        self._below_is_full = False
        self._is_sending = False
        self._is_reading = False
        self._reading_is_paused = False
        self._at_turn_end: IDelayedCall | None = None
        self._reads_on: IDelayedCall | None = None
        self._gives_up: IDelayedCall | None = None
        self._below = carry(self)
        self._below.register_producer(self)
        self._step()

    # Towards the protocol

    @property
    def unsent(self) -> int:
        """What waits here, and what became of what does not."""
        return self._waiting_size + self._below.unsent

    def gather(self, pieces: Iterable[Buffer]) -> None:
        """See `LinkTransport`."""
        self._put(pieces)
        if self._waiting_size >= _BATCH:
            self.flush()
        elif self._waiting and self._at_turn_end is None:
            self._at_turn_end = self._clock.callLater(0, self._turn_ended)

    def flush(self, window: int = 1) -> None:  # noqa: ARG002
        """See `LinkTransport`.  Decrypting is interrupted only where more than a batch would wait for its end."""
        if not self._is_reading or self._waiting_size >= _BATCH:
            self._send()

    def write(self, data: Buffer) -> None:
        """See `LinkTransport`."""
        self._put((data,))
        self.flush()

    def expect_answer(self) -> None:
        """See `LinkTransport`."""
        self._below.expect_answer()

    def register_producer(self, producer: IPushProducer) -> None:
        """See `LinkTransport`."""
        if self._producer is not None:
            raise RuntimeError(f"{self._producer!r} was never unregistered")
        if self._is_over:
            producer.stopProducing()
            return
        self._producer = producer
        if self._below_is_full:
            self._pause_producer()

    def unregister_producer(self) -> None:
        """See `LinkTransport`."""
        self._producer = None
        self._producer_is_paused = False
        if self._is_closing:
            self.flush()

    def pause_reading(self) -> None:
        """See `LinkTransport`.  What is here already stays as it is meanwhile."""
        self._reading_is_paused = True
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """See `LinkTransport`."""
        if self._reading_is_paused and not self._is_over:
            self._reading_is_paused = False
            if not self._is_here():
                self._below.resume_reading()
            elif self._reads_on is None:
                self._reads_on = self._clock.callLater(0, self._read_on)

    def lose_connection(self) -> None:
        """See `LinkTransport`."""
        self._is_closing = True
        if self._is_over or not self._is_open:
            self._let_go()
        else:
            self.flush()

    def abort_connection(self) -> None:
        """See `LinkTransport`."""
        if self._has_failed and not self._is_let_go:
            # A reset might overtake the alert that tells the peer what was wrong.
            self._gives_up = self._clock.callLater(_LAST_WORDS, self._below.abort_connection)
            self._let_go()
        else:
            self._stop()
            self._is_let_go = True
            self._below.abort_connection()

    def get_peer(self) -> Any:
        """See `LinkTransport`."""
        return self._below.get_peer()

    def closed(self) -> None:
        """See `LinkTransport`."""
        ended_early = not (self._is_open or self._is_over or self._is_closing)
        self._stop()
        if self._gives_up is not None and self._gives_up.active():
            self._gives_up.cancel()
        self._below.closed()
        self.stopProducing()
        if ended_early:
            self._end.fail(ended_in_handshake())

    # Towards the transport below, as its end

    def places(self) -> Sequence[memoryview]:
        """Anywhere: what comes has to be decrypted first."""
        return ()

    def placed(self, size: int) -> None:
        """See `LinkEnd`."""
        raise AssertionError(f"{size} bytes in no place")

    def dataReceived(self, data: bytes | memoryview, /) -> None:
        """See `LinkEnd`."""
        view = memoryview(data)
        for start in range(0, len(view), _BATCH):
            if self._is_over or self._is_closing:
                return
            self._incoming.write(view[start : start + _BATCH])
            if not self._reading_is_paused:
                self._step()

    # Towards the transport below, as its producer

    def pauseProducing(self) -> None:
        """The socket takes no more."""
        self._below_is_full = True
        self._pause_producer()

    def resumeProducing(self) -> None:
        """The socket has taken all there was."""
        self._below_is_full = False
        self.flush()

    def stopProducing(self) -> None:
        """The connection is gone."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.stopProducing()

    # Sending

    def _put(self, pieces: Iterable[Buffer]) -> None:
        if not self._is_over:
            for piece in pieces:
                if piece:
                    self._waiting.append(piece)
                    self._waiting_size += len(piece)

    def _turn_ended(self) -> None:
        self._at_turn_end = None
        self._send()

    def _send(self) -> None:
        """Encrypt and send while the transport below takes it."""
        if self._is_sending:
            # It was called by what is told of it: the loop below goes on with what there is to send now.
            return
        self._is_sending = True
        try:
            self._push()
            while self._waiting and self._is_open and not self._below_is_full:
                self._encrypt()
                self._push()
        except ssl.SSLError as error:
            self._fail(explained(error, self._files, in_handshake=False))
        finally:
            self._is_sending = False
        if self._waiting or not self._is_open or self._below_is_full or self._is_over:
            return
        if self._producer is not None and self._producer_is_paused:
            self._producer_is_paused = False
            self._producer.resumeProducing()
        elif self._is_closing:
            self._say_goodbye()

    def _encrypt(self) -> None:
        """Up to a batch of what waits, from now on in OpenSSL's memory."""
        waiting = self._waiting
        write = self._tls.write
        joined: list[Buffer] = []
        joined_size = size = 0
        while waiting and size < _BATCH:
            piece = waiting.popleft()
            length = len(piece)
            is_small = length < _SMALL
            if is_small:
                joined.append(piece)
                joined_size += length
            if joined and (not is_small or joined_size >= _RECORD):
                write(b"".join(joined))
                joined.clear()
                joined_size = 0
            if not is_small:
                room = max(_RECORD, (_BATCH - size) // _RECORD * _RECORD)
                if length > room:
                    view = memoryview(piece)
                    waiting.appendleft(view[room:])
                    piece = view[:room]
                    length = room
                write(piece)
            size += length
        if joined:
            write(b"".join(joined))
        self._waiting_size -= size

    def _push(self) -> None:
        """What OpenSSL has for the peer goes on its way."""
        if self._outgoing.pending:
            self._below.gather((self._outgoing.read(),))
            self._below.flush()

    def _pause_producer(self) -> None:
        if self._producer is not None:
            self._producer_is_paused = True
            self._producer.pauseProducing()

    # Receiving

    def _step(self) -> None:
        """Go on with what the peer has sent; answer it at the end."""
        self._is_reading = True
        try:
            if not self._is_open:
                self._handshake()
            if self._is_open:
                self._read()
        except ssl.SSLWantReadError:
            # The rest of a record, or of a message of the handshake, has not come yet.
            pass
        except ssl.SSLZeroReturnError:
            # The peer has closed as TLS wants it, and reads no answer.
            self._let_go()
        except ssl.SSLError as error:
            self._fail(explained(error, self._files, in_handshake=not self._is_open))
        finally:
            self._is_reading = False
        if not self._is_over:
            self._send()

    def _handshake(self) -> None:
        self._tls.do_handshake()
        certificate = self._tls.getpeercert()
        if certificate is None or not self._files.is_right_peer(certificate):
            # Python has no alert for this; a peer that does not get all of the handshake knows that something is wrong.
            self._outgoing.read()
            self._fail(wrong_name(self._files))
        else:
            self._is_open = True

    def _read(self) -> None:
        """
        Decrypt what is here, to where the protocol wants it.

        :raises ssl.SSLError: what ended it, after all that came before.
        """
        while self._reads:
            if not self._is_here():
                return
            places = self._end.places()
            if places:
                size, ended = self._fill(places)
                if size:
                    self._end.placed(size)
            else:
                buffer = _buffers.pop() if _buffers else bytearray(_BATCH)
                view = memoryview(buffer)
                size, ended = self._fill((view,))
                if size:
                    self._deliver(view[:size])
                _buffers.append(buffer)
            if ended is not None and not self._is_over:
                raise ended

    def _is_here(self) -> bool:
        """Whether there is something to decrypt, or decrypted and not taken."""
        return bool(self._incoming.pending or self._tls.pending())

    def _fill(self, places: Sequence[memoryview]) -> tuple[int, ssl.SSLError | None]:
        """
        Decrypt into ``places``, a record at a time.

        :return: how many bytes, and what ended it; ``None`` if the places are full.
        """
        read = self._tls.read
        before = done = 0
        try:
            for place in places:
                room = len(place)
                done = 0
                while done < room:
                    # With a buffer it returns how many bytes there are now, which its type does not say.
                    got: Any = read(room - done, place[done:])
                    if not got:
                        return before + done, ssl.SSLZeroReturnError()
                    done += got
                before += room
                done = 0
        except ssl.SSLError as error:
            return before + done, error
        return before, None

    def _read_on(self) -> None:
        self._reads_on = None
        if self._reads:
            try:
                self._step()
            except Exception:
                # Twisted has this end the connection when it comes out of a read of its own.
                self.log.failure("in a link that reads on")
                self.abort_connection()
        # What was read may have been enough again.
        if self._reads:
            self._below.resume_reading()

    @property
    def _reads(self) -> bool:
        """Whether the protocol takes anything."""
        return not (self._reading_is_paused or self._is_over or self._is_closing)

    # The end

    def _say_goodbye(self) -> None:
        """Everything was said: close as TLS wants it, so that the peer knows that nothing was cut off."""
        with suppress(ssl.SSLError):
            # The peer has not said it too; nobody waits for that.
            self._tls.unwrap()
        self._push()
        self._let_go()

    def _fail(self, error: WireError) -> None:
        """End the link, with an alert if OpenSSL has one for the peer."""
        self._push()
        self._stop()
        self._has_failed = True
        self._end.fail(error)

    def _let_go(self) -> None:
        self._stop()
        if not self._is_let_go:
            self._is_let_go = True
            self._below.unregister_producer()
            self._below.lose_connection()

    def _stop(self) -> None:
        """Nothing goes in or out from here on."""
        self._is_over = True
        self._waiting.clear()
        self._waiting_size = 0
        for call in (self._at_turn_end, self._reads_on):
            if call is not None and call.active():
                call.cancel()
        self._at_turn_end = self._reads_on = None
