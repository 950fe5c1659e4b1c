"""What is behind the gate where it is no tap device: a socket that gets the guest's frames, and notes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
from twisted.internet.defer import maybeDeferred
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.interfaces import IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from tests.waiting import reactor, until

#: The type of the frames that `tests.vm.guest.counter` sends.
_EXPERIMENTAL = b"\x88\xb5"


@attrs.frozen
class Frame:
    """
    A frame that has come out.

    :ivar at: when, in the reactor's seconds.
    """

    at: float
    data: bytes

    @property
    def count(self) -> int | None:
        """The count that it carries, if it is one of the boot sector's."""
        return int.from_bytes(self.data[14:18], "little") if self.data[12:14] == _EXPERIMENTAL else None


class _Uplink(Protocol):
    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._received = bytearray()

    def connectionMade(self) -> None:
        self._observer.uplinks.append(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 (Twisted's signature)
        self._observer.uplinks.remove(self)

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        while len(self._received) >= 4:
            end = 4 + int.from_bytes(self._received[:4])
            if len(self._received) < end:
                break
            self._observer.frames.append(Frame(reactor.seconds(), bytes(self._received[4:end])))
            del self._received[:end]


class Observer(Factory):
    """
    Listens where an uplink of ftd's dials.

    :ivar frames: all that have come out, in their order.
    :ivar uplinks: the connections that there are.
    """

    noisy = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.frames: list[Frame] = []
        self.uplinks: list[_Uplink] = []
        self._port: IListeningPort | None = None

    async def listen(self) -> None:
        """Wait for ftd."""
        self._port = await UNIXServerEndpoint(reactor, str(self.path)).listen(self)

    def counts(self) -> list[int]:
        """The counts that the boot sector sent and that have come out, in their order."""
        return [frame.count for frame in self.frames if frame.count is not None]

    async def stop(self) -> None:
        """Listen no longer and break what there is."""
        if self._port is not None:
            await maybeDeferred(self._port.stopListening)
        for uplink in tuple(self.uplinks):
            transport: Any = uplink.transport
            transport.abortConnection()
        await until(lambda: not self.uplinks, "the uplinks are gone")

    def buildProtocol(self, _address: object) -> _Uplink:
        return _Uplink(self)
