"""A test's own way into a QEMU: a second QMP socket beside ftd's.  It shares no code with ftd."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import UNIXClientEndpoint
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Factory, connectionDone
from twisted.protocols.basic import LineOnlyReceiver
from twisted.python.failure import Failure

from tests.waiting import limited, pause, reactor

Json = dict[str, Any]


class MonitorClosed(Exception):
    """QEMU is gone."""


class Monitor(LineOnlyReceiver):
    """
    One QMP connection.

    :ivar events: all events so far, oldest first.
    """

    delimiter = b"\n"
    MAX_LENGTH = 1024 * 1024

    def __init__(self) -> None:
        self.events: list[Json] = []
        self._ids = itertools.count(1)
        self._answers: dict[int, Deferred[Any]] = {}
        self._on_event: list[Callable[[Json], object]] = []
        self._ready: Deferred[None] = Deferred()
        self.has_ended = False

    async def ask(self, command: str, **arguments: object) -> Any:
        """
        The answer to a command; ``arguments`` have underscores for dashes.

        :raises MonitorClosed: if QEMU ends before it answers.
        :raises AssertionError: if QEMU refuses.
        """
        if self.has_ended:
            raise MonitorClosed(command)
        number = next(self._ids)
        answer: Deferred[Any] = Deferred()
        self._answers[number] = answer
        said: Json = {"execute": command, "id": number}
        if arguments:
            said["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.sendLine(json.dumps(said).encode())
        return await limited(answer)

    async def run_state(self) -> str:
        """What ``query-status`` calls it."""
        status: str = (await self.ask("query-status"))["status"]
        return status

    def on_event(self, act: Callable[[Json], object]) -> None:
        """Have a function called at once with each event from now on."""
        self._on_event.append(act)

    async def ready(self) -> Monitor:
        """Wait for the greeting, and end the negotiation."""
        await limited(self._ready)
        await self.ask("qmp_capabilities")
        return self

    async def abort(self) -> None:
        """Break the connection."""
        transport: Any = self.transport
        if not self.has_ended and transport is not None:
            transport.abortConnection()
        while not self.has_ended:
            await pause()

    # What Twisted calls

    def lineReceived(self, line: bytes) -> None:
        said: Json = json.loads(line)
        if "QMP" in said:
            self._ready.callback(None)
        elif "event" in said:
            self.events.append(said)
            for act in self._on_event:
                act(said)
        elif "return" in said:
            self._answers.pop(said["id"]).callback(said["return"])
        else:
            self._answers.pop(said["id"]).errback(AssertionError(str(said)))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.has_ended = True
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.called:
                answer.errback(MonitorClosed(str(reason.value)))


async def connect(path: str, deadline: float = 30.0) -> Monitor:
    """A monitor on a socket of a QEMU that runs, or that comes up now."""
    factory = Factory.forProtocol(Monitor)
    factory.noisy = False
    end = reactor.seconds() + deadline
    while True:
        try:
            monitor = await UNIXClientEndpoint(reactor, path).connect(factory)
        except ConnectError:
            if reactor.seconds() > end:
                raise
            await pause()
        else:
            assert isinstance(monitor, Monitor)
            return await monitor.ready()
