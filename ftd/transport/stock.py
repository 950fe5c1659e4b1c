"""Any Twisted transport as a link's: what tests in memory and unusual endpoints use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from twisted.internet.interfaces import IPushProducer

from ftd.wire.sender import Buffer


class StockTransport:
    """
    :param transport: an `ITransport` that is an `IConsumer` and an `IPushProducer` as well, as Twisted's all are.
    """

    takes_all = False

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    @property
    def unsent(self) -> int:
        """Whatever the transport has was copied: the pieces are free."""
        return 0

    def gather(self, pieces: Iterable[Buffer]) -> None:
        """See `LinkTransport`."""
        for piece in pieces:
            self.write(piece)

    def flush(self, window: int = 1) -> None:
        """It was sent when it was gathered."""

    def write(self, data: Buffer) -> None:
        """See `LinkTransport`.  Twisted's transports take nothing but bytes."""
        self._transport.write(data if isinstance(data, bytes) else bytes(data))

    def expect_answer(self) -> None:
        """Twisted's transports wait in the reactor."""

    def register_producer(self, producer: IPushProducer) -> None:
        """See `LinkTransport`."""
        self._transport.registerProducer(producer, True)

    def unregister_producer(self) -> None:
        """See `LinkTransport`."""
        self._transport.unregisterProducer()

    def pause_reading(self) -> None:
        """See `LinkTransport`."""
        self._transport.pauseProducing()

    def resume_reading(self) -> None:
        """See `LinkTransport`."""
        self._transport.resumeProducing()

    def lose_connection(self) -> None:
        """See `LinkTransport`."""
        self._transport.loseConnection()

    def abort_connection(self) -> None:
        """See `LinkTransport`."""
        abort = getattr(self._transport, "abortConnection", self._transport.loseConnection)
        abort()

    def get_peer(self) -> Any:
        """See `LinkTransport`."""
        return self._transport.getPeer()

    def closed(self) -> None:
        """There is nothing to give back."""
