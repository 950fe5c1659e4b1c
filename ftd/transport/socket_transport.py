"""
A link's transport that reads and writes its socket itself.

Twisted's connection keeps its life-cycle: connecting, being closed, telling its protocol of it.  Only its ``doRead``
and ``doWrite`` are replaced: Twisted's own read at most 64 KiB into new ``bytes`` and join what is to be sent, which is
one copy on each side and one turn of the reactor for every 64 KiB.  Here a read goes to where the end wants it, or into
one block that all links share; and what is sent goes from where it is, many pieces with one ``sendmsg``.

When is it sent?  At `SocketTransport.flush`; and when enough is gathered for a system call; and else at the end of the
reactor's turn.  During a read a flush waits until some part of the window has been flushed, or for the end of the read:
what a read of many answers leads to is a few system calls.  A socket that takes no more is waited for with the reactor,
and the producer is paused meanwhile.

Rejected: a reactor of our own kind (io_uring, asyncio's protocols with buffers), which would decide for the whole
process; a subclass of Twisted's connections, which endpoints do not let one choose.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.transport.base import LinkEnd
from ftd.transport.spin import Crowd, SpinPolicy
from ftd.wire.sender import Buffer

#: Bytes that a link reads and sends before the rest of the process has its turn.
READ_TURN = 2 << 20
SEND_TURN = 8 << 20
#: Reads of a turn.
READS = 4
#: Seconds that a link may look for answers before that.
LOOK_TURN = 1e-3
#: Bytes of one read that the end has no places for.
STAGING = 1 << 20
#: Gathered bytes that are worth a system call.
GATHER = 1 << 20
#: Into how many parts a window is cut, each of which is sent when it is there.
WINDOW_PARTS = 4
#: Pieces of one system call; Linux takes up to 1,024 (IOV_MAX).
PIECES = 1000
#: Bytes of a read up to which a copy costs less than a view that has to be given up again.
SMALL = 4096

#: What a socket says that would take something later.
_LATER = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.ENOBUFS})


class Staging:
    """
    The block that all links read into, one at a time.

    :ivar is_in_use: somebody looks at what it holds.
    """

    def __init__(self) -> None:
        self.is_in_use = False
        self._view: memoryview | None = None

    def view(self) -> memoryview:
        """All of it; the system gives the memory with the first use of each page."""
        if self._view is None:
            self._view = memoryview(bytearray(STAGING))
        return self._view

    def tell(self, end: LinkEnd, size: int) -> None:
        """The first ``size`` bytes are for ``end``."""
        assert not self.is_in_use, "a read inside of another link's read"
        self.is_in_use = True
        try:
            data = self.view()[:size]
            end.dataReceived(data if size > SMALL else bytes(data))
        finally:
            self.is_in_use = False


_STAGING = Staging()
_CROWD = Crowd(time.perf_counter)


def _nothing() -> None:
    """What a connection that is gone has left to do; the reactor may ask once more in the same turn."""


class SocketTransport:
    """
    :param connection: a `twisted.internet.tcp.Connection`, TCP or unix, connected, to which nothing has been written.
    :param end: who reads and writes.
    :param latency_spin: see `LinkOptions`.
    :param clock: seconds, for looking.
    :ivar unsent: bytes that wait in ``_queue``.
    """

    log = Logger()

    takes_all = True

    __slots__ = (
        "_clock",
        "_connection",
        "_end",
        "_flushes",
        "_is_blocked",
        "_is_broken",
        "_is_expecting",
        "_is_gone",
        "_is_in_read",
        "_is_paused",
        "_looking",
        "_queue",
        "_sent",
        "_socket",
        "_spin",
        "_turn_end",
        "unsent",
    )

    def __init__(
        self,
        connection: Any,
        end: LinkEnd,
        latency_spin: float | None = 0.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.unsent = 0
        self._spin = SpinPolicy(latency_spin)
        self._clock = clock
        self._connection = connection
        self._socket: socket.socket = connection.socket
        self._end = end
        self._queue: list[Buffer] = []
        # Bytes since the rest of the process had its turn.
        self._sent = 0
        self._turn_end: IDelayedCall | None = None
        # The reactor says when the socket takes more.
        self._is_blocked = False
        # Sending has failed: what can still be read is read, then that is said.
        self._is_broken = False
        self._is_in_read = False
        # Since something was sent, for those of a read.
        self._flushes = 0
        # What the end did during a read has an answer.
        self._is_expecting = False
        self._looking: IDelayedCall | None = None
        self._is_paused = False
        # Nothing is read or sent any more; the end may not have been told yet.
        self._is_gone = False
        self._connection.doRead = self._do_read
        self._connection.doWrite = self._do_write

    # Sending

    def gather(self, pieces: Iterable[Buffer]) -> None:
        """See `LinkTransport`."""
        if self._is_gone:
            return
        if isinstance(pieces, (list, tuple)):
            self._queue.extend(pieces)
            self.unsent += sum(map(len, pieces))
        else:
            # It may end as soon as the producer is paused.
            for piece in pieces:
                self._queue.append(piece)
                self.unsent += len(piece)
                if self.unsent >= GATHER and not self._is_blocked:
                    self._send()
        if self._is_blocked:
            return
        if self.unsent >= GATHER:
            self._send()
        elif self._turn_end is None and self.unsent and not self._is_in_read:
            self._turn_end = self._connection.reactor.callLater(0, self._turn_ends)

    def flush(self, window: int = 1) -> None:
        """See `LinkTransport`."""
        if self._queue and not self._is_blocked:
            self._flushes += 1
            if not self._is_in_read or self._flushes * WINDOW_PARTS >= window:
                self._send()

    def write(self, data: Buffer) -> None:
        """See `LinkTransport`."""
        if self._is_gone or not data:
            return
        self._queue.append(data)
        self.unsent += len(data)
        if not self._is_blocked and (not self._is_in_read or self.unsent >= GATHER):
            self._send()

    def _turn_ends(self) -> None:
        self._turn_end = None
        self._sent = 0
        self.flush()

    def _send(self) -> None:
        """Send what can be sent, and have a producer that was paused go on if that was all."""
        if self._drain():
            self._go_on()

    def _go_on(self) -> bool:
        """Nothing waits: resume the producer; whether there was one to resume."""
        connection = self._connection
        if connection.producer is None or not connection.producerPaused:
            return False
        connection.producerPaused = False
        connection.producer.resumeProducing()
        return True

    def _drain(self) -> bool:
        """
        Send until nothing is left or the socket takes no more; in that case `_do_write` goes on.

        :return: whether nothing is left.
        """
        if self._turn_end is not None:
            self._turn_end.cancel()
            self._turn_end = None
        if self._is_gone:
            self._give_back()
            return False
        queue = self._queue
        self._flushes = 0
        while queue:
            batch = queue if len(queue) <= PIECES else queue[:PIECES]
            try:
                sent = self._socket.sendmsg(batch)
            except OSError as error:
                self._is_broken = error.errno not in _LATER
                self._block()
                return False
            self.unsent -= sent
            self._sent += sent
            is_full = False
            if self.unsent:
                is_full = self._drop(batch, sent)
            else:
                queue.clear()
            if is_full or self._sent >= SEND_TURN:
                self._block()
                return False
        return True

    def _drop(self, batch: list[Buffer], sent: int) -> bool:
        """The first ``sent`` bytes of ``batch``, which begins the queue, have gone; whether that was not all of it."""
        ends = list(itertools.accumulate(map(len, batch)))
        whole = bisect_right(ends, sent)
        into = sent - (ends[whole - 1] if whole else 0)
        is_rest = whole < len(batch)
        del self._queue[:whole]
        if into:
            self._queue[0] = memoryview(self._queue[0])[into:]
        return is_rest

    def _block(self) -> None:
        """Have the reactor say when the socket takes more, and the producer wait for it."""
        if self._is_blocked:
            return
        self._is_blocked = True
        connection = self._connection
        connection.startWriting()
        if connection.producer is not None and not connection.producerPaused:
            connection.producerPaused = True
            connection.producer.pauseProducing()

    def _do_write(self) -> Exception | None:
        """Twisted's ``doWrite``."""
        if self._is_broken:
            return CONNECTION_LOST
        if self._is_gone:
            return None
        self._is_blocked = False
        self._sent = 0
        if not self._drain():
            return self._loss()
        self._connection.stopWriting()
        if not self._go_on() and self._connection.disconnecting:
            return CONNECTION_DONE
        return None

    def _loss(self) -> Exception | None:
        return CONNECTION_LOST if self._is_broken else None

    def register_producer(self, producer: IPushProducer) -> None:
        """See `LinkTransport`."""
        self._connection.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """See `LinkTransport`."""
        self._connection.unregisterProducer()

    # Reading

    def pause_reading(self) -> None:
        """See `LinkTransport`."""
        self._is_paused = True

    def resume_reading(self) -> None:
        """See `LinkTransport`."""
        if not self._is_gone and not self._connection.disconnecting:
            self._is_paused = False
            self._connection.startReading()

    def _do_read(self) -> Exception | None:
        """Twisted's ``doRead``."""
        if self._is_gone:
            return None
        if self._is_paused:
            # Not before something has arrived: most pauses are over by then, and cost no system call.
            self._connection.stopReading()
            return None
        assert not self._is_in_read, "a read inside of a read"
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        self._is_in_read = True
        self._sent = 0
        try:
            return self._read()
        finally:
            self._is_in_read = False

    def _read(self, budget: float = 0.0) -> Exception | None:
        """
        Read, again and again for as long as there is more than one read takes, or an answer to what the end does about
        it is worth to be looked for.

        :param budget: seconds to look for the first bytes.
        """
        clock = self._clock
        began = since = clock() if budget else 0.0
        total = reads = 0
        while True:
            places = self._end.places()
            room = sum(map(len, places)) if places else STAGING
            into = places if places else (_STAGING.view(),)
            while True:
                try:
                    # The plain call is the faster one.
                    size = self._socket.recv_into(into[0]) if len(into) == 1 else self._socket.recvmsg_into(into)[0]
                    break
                except OSError as error:
                    if error.errno not in _LATER:
                        return CONNECTION_LOST
                    if budget and clock() - since < budget:
                        # The peer may need this processor for its answer.
                        os.sched_yield()
                        continue
                    if budget:
                        self._spin.missed()
                    return None
            if not size:
                # A reset that was met in sending is not met again here.
                return CONNECTION_LOST if self._is_broken else CONNECTION_DONE
            if budget:
                self._spin.answered(clock() - since)
                budget = 0.0
            if places:
                self._end.placed(size)
            else:
                _STAGING.tell(self._end, size)
            if self._queue and not self._is_blocked:
                self._send()
            if not self._may_read():
                return None
            total += size
            reads += 1
            if self._is_expecting:
                self._is_expecting = False
                since = clock()
                began = began or since
                budget = self._budget()
                if budget and since - began > LOOK_TURN:
                    self._looking = self._connection.reactor.callLater(0, self._look, budget)
                    return None
            if not budget and (size < room or total >= READ_TURN or reads >= READS):
                return None

    def _may_read(self) -> bool:
        return not self._is_paused and not self._is_gone

    # Looking for an answer

    def expect_answer(self) -> None:
        """See `LinkTransport`.  During a read the look follows it; otherwise it is for the next turn of the reactor."""
        if self._is_in_read:
            self._is_expecting = True
        elif self._looking is None and self._may_read() and (budget := self._budget()):
            self._looking = self._connection.reactor.callLater(0, self._look, budget)

    def _budget(self) -> float:
        budget = self._spin.budget()
        return budget if budget and _CROWD.leaves_room(self) else 0.0

    def _look(self, budget: float) -> None:
        """What the reactor does when a socket is readable, before it says so."""
        self._looking = None
        if not self._may_read():
            return
        self._is_in_read = True
        self._sent = 0
        try:
            why = self._read(budget)
        except BaseException as error:
            # Twisted has this end the connection when it comes out of ``doRead``.
            self.log.failure("in a link that has read")
            why = error if isinstance(error, Exception) else CONNECTION_LOST
        finally:
            self._is_in_read = False
        if why is not None:
            self._connection.readConnectionLost(Failure(why))

    # The end

    def lose_connection(self) -> None:
        """See `LinkTransport`.  Twisted's connection closes when `_do_write` says that everything is sent."""
        self._is_paused = True
        self._connection.loseConnection()

    def abort_connection(self) -> None:
        """See `LinkTransport`."""
        self._give_back()
        self._connection.abortConnection()

    def get_peer(self) -> Any:
        """See `LinkTransport`."""
        return self._connection.getPeer()

    def closed(self) -> None:
        """See `LinkTransport`."""
        self._give_back()
        # The reactor may ask once more in this turn; and the connection and this object let go of each other.
        self._connection.doRead = self._connection.doWrite = _nothing

    def _give_back(self) -> None:
        self._is_gone = True
        self._queue.clear()
        self.unsent = 0
        for call in (self._turn_end, self._looking):
            if call is not None:
                call.cancel()
        self._turn_end = self._looking = None
        _CROWD.leave(self)
