"""
A reactor in memory: a clock, threads that are done at once, and a network on which what dials finds what listens.

Connections are `ftd.testing.transport.Link` objects; nothing moves on them, and nobody connects, before
`MemoryReactor.deliver`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError, ConnectionRefusedError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from ftd.testing.transport import Link

Address = tuple[str, int]


@implementer(IListeningPort)
class MemoryPort:
    """Something that listens."""

    def __init__(self, reactor: MemoryReactor, address: Address, factory: IProtocolFactory) -> None:
        self.factory = factory
        self._reactor = reactor
        self._address = address

    def startListening(self) -> None:
        """It listens from the start."""

    def stopListening(self) -> Deferred[None]:
        """Nobody connects any more."""
        if self._reactor.listening.get(self._address) is self:
            del self._reactor.listening[self._address]
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """Where it listens."""
        return IPv4Address("TCP", *self._address)


class MemoryConnector:
    """An attempt to connect."""

    def __init__(self, reactor: MemoryReactor, address: Address, factory: Any) -> None:
        self.address = address
        self.factory = factory
        self._reactor = reactor

    def stopConnecting(self) -> None:
        """Give up."""
        if self in self._reactor.dialling:
            self._reactor.dialling.remove(self)


class MemoryThreads:
    """A pool of threads; ``run`` decides when what is given to it is done."""

    def __init__(self, reactor: MemoryReactor) -> None:
        self._reactor = reactor

    def callInThreadWithCallback(
        self, done: Callable[[bool, Any], object], act: Callable[..., Any], *args: Any, **more: Any
    ) -> None:
        """See `twisted.python.threadpool.ThreadPool`."""

        def run() -> None:
            try:
                result = act(*args, **more)
            except Exception:
                done(False, Failure())
            else:
                done(True, result)

        if self._reactor.threads_are_stuck:
            self._reactor.stuck.append(run)
        else:
            run()


class MemoryReactor(Clock):
    """
    :ivar listening: by interface and port, what listens.
    :ivar taken: addresses that somebody else has.
    :ivar dialling: the attempts to connect that nobody has answered.
    :ivar links: the connections, oldest first.
    :ivar threads_are_stuck: what is given to a thread waits in ``stuck``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listening: dict[Address, MemoryPort] = {}
        self.taken: set[Address] = set()
        self.dialling: list[MemoryConnector] = []
        self.links: list[Link] = []
        self.threads_are_stuck = False
        self.stuck: list[Callable[[], None]] = []
        self._threads = MemoryThreads(self)

    # What ftd calls

    def listenTCP(self, port: int, factory: Any, *, interface: str = "", **_: Any) -> MemoryPort:
        """See `IReactorTCP`."""
        address = (interface, port)
        if address in self.taken or address in self.listening:
            raise CannotListenError(interface, port, OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)))
        factory.doStart()
        listening = self.listening[address] = MemoryPort(self, address, factory)
        return listening

    def connectTCP(self, host: str, port: int, factory: Any, **_: Any) -> MemoryConnector:
        """See `IReactorTCP`."""
        connector = MemoryConnector(self, (host, port), factory)
        factory.doStart()
        factory.startedConnecting(connector)
        self.dialling.append(connector)
        return connector

    def getThreadPool(self) -> MemoryThreads:
        """See `IReactorThreads`."""
        return self._threads

    def callFromThread(self, act: Callable[..., object], *args: Any, **more: Any) -> None:
        """See `IReactorFromThreads`; there is but one thread."""
        act(*args, **more)

    # What the test calls

    def deliver(self) -> None:
        """Let everybody connect and everything arrive, until nothing moves any more."""
        while self._answer_dialling() or any(link.step() for link in self.links):
            pass

    def pass_time(self, seconds: float, step: float = 0.05) -> None:
        """Let time pass while what is said arrives."""
        self.deliver()
        for _ in range(round(seconds / step)):
            self.advance(step)
            self.deliver()

    def _answer_dialling(self) -> bool:
        answered, self.dialling = self.dialling, []
        for connector in answered:
            listening = self.listening.get(connector.address)
            server = listening.factory.buildProtocol(IPv4Address("TCP", "127.0.0.1", 50000)) if listening else None
            if server is None:
                connector.factory.clientConnectionFailed(connector, Failure(ConnectionRefusedError()))
                continue
            client = connector.factory.buildProtocol(IPv4Address("TCP", *connector.address))
            assert client is not None
            self.links.append(Link(client, server))
        return bool(answered)
