"""
The seam between a link's protocol and whatever carries its bytes.

Twisted's own transports take ``bytes`` and give ``bytes``, each of which is a copy.  A link's transport takes views of
memory that stays where it is, gathers them, and sends them with one system call; and it reads to where the protocol
says, so that payload arrives in the place where it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from twisted.internet.interfaces import IPushProducer

from ftd.wire.sender import Buffer


class LinkEnd(Protocol):
    """What a transport asks of, and tells, the protocol that uses it."""

    def places(self) -> Sequence[memoryview]:
        """
        Where the next bytes of the stream are wanted, in order; empty if anywhere will do.

        Asked before each read.  The memory has to stay until the next `placed`, `dataReceived` or the end of the link.
        """

    def placed(self, size: int) -> None:
        """The next ``size`` bytes of the stream, at least one, are in the places that were asked for last."""

    def dataReceived(self, data: bytes | memoryview, /) -> None:
        """The next bytes of the stream; a memoryview is good only during the call."""


class LinkTransport(Protocol):
    """
    What carries the bytes of a link.

    :ivar unsent: bytes that were gathered or written and are not with the kernel yet.
    :ivar takes_all: `gather` takes all pieces of a sequence before it sends one of them, and so before it says that it
        is full.
    """

    takes_all: bool

    @property
    def unsent(self) -> int: ...

    def gather(self, pieces: Iterable[Buffer]) -> None:
        """
        Send these, not necessarily at once: at the next `flush`, when there is enough for a system call, or at the end
        of this turn of the reactor.  They must not change until ``unsent`` says that they have gone.
        """

    def flush(self, window: int = 1) -> None:
        """
        Send what was gathered now; or, inside of `LinkEnd.dataReceived` or ``placed``, when as many have asked for it
        as are some part of ``window``, at the end of that read at the latest: what answers a read of many goes in a few
        system calls, and still both sides have something to do all the time.

        :param window: how many such things the peer takes without an answer.
        """

    def write(self, data: Buffer) -> None:
        """`gather` and `flush`."""

    def expect_answer(self) -> None:
        """The peer is about to answer what was sent: it may pay to look at the socket before going to sleep."""

    def register_producer(self, producer: IPushProducer) -> None:
        """
        ``producer`` is paused when the socket takes no more, maybe several times in a row, and resumed when all of what
        was written has gone.
        """

    def unregister_producer(self) -> None:
        """No complaint if there is none."""

    def pause_reading(self) -> None:
        """Read no more; what has been read is delivered."""

    def resume_reading(self) -> None:
        """Read on, with the next turn of the reactor."""

    def lose_connection(self) -> None:
        """Close when everything has been sent."""

    def abort_connection(self) -> None:
        """Close now; what waits is not sent.  The protocol hears of it in a later turn of the reactor."""

    def get_peer(self) -> Any:
        """The address of the other end."""

    def closed(self) -> None:
        """The connection is gone: the protocol says so from its ``connectionLost``, so that memory is given back."""
