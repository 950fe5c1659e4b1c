"""
QMP, QEMU's control protocol, from the client's side: one connection.

QEMU greets, ftd negotiates, and from then on every command carries an id, so that answers may come in any order and
between events.  A connection is trusted wholly or not at all: what is not QMP, a message over `MESSAGE_LIMIT`, or a
command that is not answered in its time ends it, and everything that waits on it hears why.
`ftd.vm.qmp_connection` makes a new one.
"""

from __future__ import annotations

import json
import re
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import attrs
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from ftd.vm.errors import QmpClosed, QmpError, QmpRefused, QmpTimeout

#: Bytes of one message from QEMU.  The longest that ftd asks for, query-named-block-nodes, has about 1 KB a node.
MESSAGE_LIMIT = 1024 * 1024

#: How deep a message may be nested; the deepest of QEMU's are backing files in backing files.
NESTING_LIMIT = 100

#: Commands that may wait for their answers at a time.
COMMANDS_LIMIT = 64

#: Events that are waited for, and listeners, at a time.
LISTENERS_LIMIT = 64

# What matters for where a JSON object ends: outside a string, and inside one.
_STRUCTURE = re.compile(rb'["{}\[\]]')
_IN_STRING = re.compile(rb'["\\]')


@attrs.frozen
class QmpEvent:
    """
    Something that QEMU tells without being asked.

    :ivar name: such as ``STOP`` or ``MIGRATION``.
    :ivar timestamp: Unix seconds, by QEMU's clock.
    """

    name: str
    data: Mapping[str, Any] = attrs.Factory(dict)
    timestamp: float = 0.0


class MessageReader:
    """
    Cuts a stream of JSON objects into objects.

    It finds the end of an object by its braces and not by line ends: QEMU breaks lines inside of a message when it was
    started with ``pretty=on``.  Every byte is looked at once, however it arrives.
    """

    def __init__(self, limit: int = MESSAGE_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """
        The objects that ``data`` completes; no more than the limit is ever kept.

        :raises QmpError: if it is not a stream of JSON objects, or one is over the limit.
        """
        self._buffer += data
        while (end := self._end_of_object()) is not None:
            message = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._at = 0
            self._check_size(len(message))
            yield _parse(message)
        self._check_size(len(self._buffer))

    def _check_size(self, size: int) -> None:
        if size > self._limit:
            raise QmpError(f"QEMU sent a message of more than {self._limit} bytes, which is no QMP that ftd asked for")

    def _end_of_object(self) -> int | None:
        """Where the object at the start of the buffer ends, if it does."""
        if not self._depth:
            self._skip_to_object()
        while True:
            found = (_IN_STRING if self._in_string else _STRUCTURE).search(self._buffer, self._at)
            if found is None:
                self._at = max(self._at, len(self._buffer))
                return None
            self._at = found.end()
            mark = found.group()
            if mark == b"\\":
                # Whatever follows is a part of the string, also when it has not arrived yet.
                self._at += 1
            elif mark == b'"':
                self._in_string = not self._in_string
            elif mark in b"{[":
                self._depth += 1
                if self._depth > NESTING_LIMIT:
                    raise QmpError(f"QEMU sent a message nested more than {NESTING_LIMIT} deep, which is no QMP")
            else:
                self._depth -= 1
                if not self._depth:
                    return self._at

    def _skip_to_object(self) -> None:
        blank = len(self._buffer) - len(self._buffer.lstrip(b" \t\r\n"))
        del self._buffer[:blank]
        self._at = 0
        if self._buffer and not self._buffer.startswith(b"{"):
            start = bytes(self._buffer[:20]).decode("ascii", "backslashreplace")
            raise QmpError(f"what QEMU's socket says is not QMP ('{start}'); is it another monitor's socket?")


def _parse(message: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise QmpError(f"QEMU sent what is not JSON: {error}") from None
    assert isinstance(parsed, dict), "it starts with a brace"
    return parsed


@attrs.define(eq=False)
class _Waiting:
    """
    A command without an answer, or an event that is waited for.

    :ivar error: what it ends with when the connection does, where that is more than that the connection has ended.
    """

    what: str
    answer: Deferred[Any]
    timer: IDelayedCall
    error: QmpError | None = None

    def settle(self, result: object) -> None:
        """The answer, or a `Failure`; nothing if whoever asked has turned away (cancelled)."""
        self.stop_timer()
        # A Deferred that was cancelled lets this pass, once, and no more than once is it called.
        self.answer.callback(result)

    def stop_timer(self) -> None:
        """There is no hurry any more."""
        if self.timer.active():
            self.timer.cancel()


class Qmp(Protocol):
    """
    One connection to a QEMU.

    :param limit: seconds in which a command has to be answered where the caller does not say.
    :param ready: called once, when commands can be given.
    :ivar greeting: what QEMU greeted with, the value of ``QMP``; empty before.
    :ivar version: such as ``7.2.22``; empty before the greeting.
    :ivar peer_pid: the process that opened QEMU's socket, where the transport tells; QEMU itself, unless something like
        libvirt opened it.
    :ivar is_open: commands can be given.
    """

    log = Logger()

    def __init__(self, clock: IReactorTime, *, limit: float, ready: Callable[[Qmp], None] | None = None) -> None:
        self.greeting: Mapping[str, Any] = {}
        self.version = ""
        self.peer_pid: int | None = None
        self.is_open = False
        self._clock = clock
        self._limit = limit
        self._ready = ready
        self._reader = MessageReader()
        self._next_id = 1
        self._commands: dict[int, _Waiting] = {}
        self._events: list[_Waiting] = []
        self._listeners: list[Callable[[QmpEvent], None]] = []
        self._when_closed: list[Callable[[str], None]] = []
        self._why_closed: str | None = None

    # What its owner calls

    def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, limit: float | None = None
    ) -> Deferred[Any]:
        """
        Have QEMU do something.

        :param limit: seconds; when they are over the connection is given up, since what would come is an answer that
            nobody waits for, from a QEMU that hangs.
        :return: what QEMU returned.  Errbacks with `QmpRefused`, `QmpTimeout` or `QmpClosed`.
        """
        if not self.is_open:
            return fail(self._closed(command))
        return self._send(command, arguments, self._limit if limit is None else limit)

    def pass_descriptor(self, descriptor: int) -> None:
        """
        Send an open file along with the next command, which has to be ``getfd``.

        :param descriptor: it has to stay open until that is answered.
        :raises QmpError: if this connection cannot carry files.
        """
        send = getattr(self.transport, "sendFileDescriptor", None)
        if send is None:
            raise QmpError("this QMP connection cannot carry files: it has to be a unix socket")
        send(descriptor)

    def listen(self, callback: Callable[[QmpEvent], None]) -> Callable[[], None]:
        """Have every event from now on; what is returned ends that."""
        assert len(self._listeners) < LISTENERS_LIMIT, "somebody never stops listening"
        self._listeners.append(callback)

        def stop() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return stop

    def wait_for(self, predicate: Callable[[QmpEvent], bool], limit: float) -> Deferred[QmpEvent]:
        """
        The next event for which ``predicate`` is true; ask before the command that leads to it.

        :param limit: seconds.  When they are over the connection stays: an event that does not come is no fault of it.
        :return: errbacks with `QmpTimeout` or `QmpClosed`.
        """
        answer: Deferred[QmpEvent] = Deferred()
        if self._why_closed is not None:
            answer.errback(self._closed("an event"))
            return answer

        def hear(event: QmpEvent) -> None:
            if predicate(event):
                waiting.settle(event)

        def too_late() -> None:
            waiting.settle(Failure(QmpTimeout(f"QEMU did not tell of what was waited for within {limit:g} s")))

        def over(result: QmpEvent | Failure) -> QmpEvent | Failure:
            stop()
            waiting.stop_timer()
            if waiting in self._events:
                self._events.remove(waiting)
            return result

        stop = self.listen(hear)
        waiting = _Waiting("an event", answer, self._clock.callLater(limit, too_late))
        self._events.append(waiting)
        # However it ends, also when whoever waits cancels it.
        answer.addBoth(over)
        return answer

    def when_closed(self, callback: Callable[[str], None]) -> None:
        """Have the reason told, once, when the connection is gone; at once if it is."""
        if self._why_closed is not None:
            callback(self._why_closed)
        else:
            self._when_closed.append(callback)

    def hang_up(self, why: str = "ftd has hung up") -> None:
        """End the connection now; what waits hears of it before this returns."""
        self._end(why)

    # What Twisted calls

    def dataReceived(self, data: bytes) -> None:
        """See `IProtocol`."""
        try:
            for message in self._reader.feed(data):
                if self._why_closed is not None:
                    return
                self._received(message)
        except QmpError as error:
            self._end(str(error))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        how = "" if reason.check(ConnectionDone) else f" ({reason.getErrorMessage()})"
        self._end(f"QEMU has closed its QMP connection{how}: it has ended, or it was told to")

    # The rest

    def _closed(self, what: str) -> QmpClosed:
        why = "it has not been negotiated yet" if self._why_closed is None else self._why_closed
        return QmpClosed(f"no QMP connection for {what}: {why}")

    def _send(self, command: str, arguments: Mapping[str, object] | None, limit: float) -> Deferred[Any]:
        if len(self._commands) >= COMMANDS_LIMIT:
            return fail(QmpError(f"{COMMANDS_LIMIT} commands wait for QEMU's answers already; {command} was not sent"))
        number, self._next_id = self._next_id, self._next_id + 1
        message: dict[str, object] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        answer: Deferred[Any] = Deferred()
        timer = self._clock.callLater(limit, self._too_slow, number, limit)
        self._commands[number] = _Waiting(command, answer, timer)
        assert self.transport is not None, "used before it was connected"
        self.transport.write(line)
        return answer

    def _too_slow(self, number: int, limit: float) -> None:
        slow = self._commands[number]
        why = f"QEMU did not answer {slow.what} within {limit:g} s; it hangs, or its host is overloaded"
        slow.error = QmpTimeout(why)
        self._end(why)

    def _received(self, message: dict[str, Any]) -> None:
        if "event" in message:
            self._tell(_event(message))
        elif "return" in message or "error" in message:
            self._answered(message)
        elif isinstance(greeting := message.get("QMP"), dict) and not self.greeting:
            self._greeted(greeting)
        else:
            raise QmpError(f"QEMU sent a message that is no QMP: {_short(message)}")

    def _greeted(self, greeting: dict[str, Any]) -> None:
        try:
            qemu = greeting["version"]["qemu"]
            self.version = f"{int(qemu['major'])}.{int(qemu['minor'])}.{int(qemu['micro'])}"
        except (KeyError, TypeError, ValueError):
            raise QmpError(f"QEMU's greeting names no version: {_short(greeting)}") from None
        self.greeting = greeting
        self.peer_pid = _peer_pid(self.transport)
        negotiated = self._send("qmp_capabilities", None, self._limit)
        negotiated.addCallbacks(self._negotiated, self._not_negotiated)

    def _negotiated(self, _: object) -> None:
        self.is_open = True
        ready, self._ready = self._ready, None
        if ready is not None:
            ready(self)

    def _not_negotiated(self, failure: Failure) -> None:
        # Whoever waits hears it from when_closed, like any other end.
        failure.trap(QmpError)
        self._end(failure.getErrorMessage())

    def _answered(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        waiting = self._commands.pop(number, None) if type(number) is int else None
        if waiting is None:
            raise QmpError(f"QEMU answered what it was not asked: {_short(message)}")
        if "return" in message:
            waiting.settle(message["return"])
            return
        error = message["error"]
        error = error if isinstance(error, dict) else {}
        kind, detail = str(error.get("class", "GenericError")), str(error.get("desc", "it does not say why"))
        waiting.settle(Failure(QmpRefused(waiting.what, kind, detail)))

    def _tell(self, event: QmpEvent) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception:
                self.log.failure("What listens to QEMU's event {name} failed.", name=event.name)

    def _end(self, why: str) -> None:
        """The connection is no more: everybody hears it, once, and only then is it broken off."""
        if self._why_closed is not None:
            return
        self._why_closed = why
        self.is_open = False
        self._listeners.clear()
        commands, events, callbacks = tuple(self._commands.values()), tuple(self._events), tuple(self._when_closed)
        self._commands.clear()
        self._events.clear()
        self._when_closed.clear()
        if self.transport is not None:
            getattr(self.transport, "abortConnection", self.transport.loseConnection)()
        for waiting in (*commands, *events):
            waiting.settle(Failure(waiting.error or self._closed(waiting.what)))
        for callback in callbacks:
            callback(why)


def _event(message: dict[str, Any]) -> QmpEvent:
    name, data, stamp = message["event"], message.get("data", {}), message.get("timestamp", {})
    try:
        timestamp = stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6
    except (AttributeError, TypeError):
        timestamp = None
    if not isinstance(name, str) or not isinstance(data, dict) or timestamp is None:
        raise QmpError(f"QEMU sent an event that is no QMP: {_short(message)}")
    return QmpEvent(name, data, timestamp)


def _short(message: object) -> str:
    text = json.dumps(message)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _peer_pid(transport: Any) -> int | None:
    """The process at the other end of a unix socket; 0 stands for one in another PID namespace."""
    get_handle = getattr(transport, "getHandle", None)
    if get_handle is None or not hasattr(socket, "SO_PEERCRED"):
        return None
    handle = get_handle()
    if handle.family != socket.AF_UNIX:
        return None
    size = struct.calcsize("3i")
    pid: int = struct.unpack("3i", handle.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[0]
    return pid or None
