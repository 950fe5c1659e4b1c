"""
What stop, device state and cont take without ftd: QEMU asked by a plain socket that blocks, the shortest way there is.

It shares no code with ftd.  That the bench's reactor stands still meanwhile is meant: nothing of it is in the figures.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

#: Seconds for anything that QEMU is asked.
_LIMIT = 10.0

#: Bytes that the pipe is to hold, as the one that ftd uses.
_PIPE_SIZE = 1 << 20

#: Bytes; more than the device state of these machines.
_BUFFER_SIZE = 4 << 20

#: Seconds before ``cont`` is tried again that came too early.
_AGAIN = 0.0002

_FILE_NAME = "bench-device-state"


class Refused(Exception):
    """QEMU has said no."""


@attrs.frozen
class BarePause:
    """
    Seconds: from before ``stop`` to the answer to ``cont``, and the three parts of it.

    :ivar state_bytes: of the device state.
    """

    total: float
    stop: float
    device: float
    cont: float
    state_bytes: int


class Bare:
    """
    The bench's own QMP connection.

    :param path: of a QMP socket that nobody else uses.
    :param scratch: a directory for a socket.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_LIMIT)
        self._socket.connect(str(path))
        self._received = bytearray()
        self._events: list[dict[str, Any]] = []
        self._state_path = scratch / "bare.state"
        self._buffer = bytearray(_BUFFER_SIZE)
        self._next()
        self.ask("qmp_capabilities")

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def ask(self, command: str, *files: int, **arguments: object) -> Any:
        """
        The answer to a command; ``arguments`` have underscores for dashes.

        :param files: open files that go with it.
        :raises Refused: if QEMU does not do it.
        """
        said: dict[str, object] = {"execute": command}
        if arguments:
            said["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        data = json.dumps(said).encode()
        if files:
            socket.send_fds(self._socket, [data], files)
        else:
            self._socket.sendall(data)
        while True:
            message = self._next()
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise Refused(message["error"]["desc"])
            self._events.append(message)

    def events(self) -> list[dict[str, Any]]:
        """All that have come since the last call."""
        self._take_in()
        events, self._events = self._events, []
        return events

    def pause_by_socket(self) -> BarePause:
        """One pause with ``migrate`` to ``unix:``, where the bench listens."""
        self._state_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(_LIMIT)
            listener.bind(str(self._state_path))
            listener.listen(1)

            def read() -> int:
                connection, _ = listener.accept()
                with connection:
                    return self._read_all(lambda room: connection.recv_into(room))

            return self._pause(f"unix:{self._state_path}", read)

    def pause_by_pipe(self) -> BarePause:
        """One pause with ``migrate`` into a pipe that QEMU was given before."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            self.ask("getfd", writing, fdname=_FILE_NAME)
            os.close(writing)
            writing = -1
            return self._pause(f"fd:{_FILE_NAME}", lambda: self._read_all(lambda room: os.readv(reading, [room])))
        finally:
            os.close(reading)
            if writing >= 0:
                os.close(writing)

    def _pause(self, uri: str, read: Callable[[], int]) -> BarePause:
        # What is told of migrations so far is about ftd's.
        self._take_in()
        self._events = [event for event in self._events if event["event"] != "MIGRATION"]
        begin = time.perf_counter()
        self.ask("stop")
        stopped = time.perf_counter()
        self.ask("migrate", uri=uri)
        size = read()
        self._await_end()
        written = time.perf_counter()
        self.cont()
        end = time.perf_counter()
        return BarePause(end - begin, stopped - begin, written - stopped, end - written, size)

    def cont(self) -> None:
        """Let the guest go on; QEMU refuses while the thread that migrated has not quite left."""
        deadline = time.perf_counter() + _LIMIT
        while True:
            try:
                self.ask("cont")
            except Refused:
                if time.perf_counter() > deadline:
                    raise
                time.sleep(_AGAIN)
            else:
                return

    def _read_all(self, read_into: Callable[[memoryview], int]) -> int:
        room, size = memoryview(self._buffer), 0
        while count := read_into(room[size:]):
            size += count
        return size

    def _await_end(self) -> None:
        looked_at = 0
        while True:
            for event in self._events[looked_at:]:
                status = event["data"]["status"] if event["event"] == "MIGRATION" else ""
                if status == "completed":
                    return
                if status in ("failed", "cancelled"):
                    raise Refused(f"the migration has {status}")
            looked_at = len(self._events)
            self._events.append(self._next())

    def _take_in(self) -> None:
        while select.select([self._socket], [], [], 0)[0]:
            self._receive()
        while b"\n" in self._received:
            self._events.append(self._next())

    def _next(self) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._receive()
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received[:] = rest
        message: dict[str, Any] = json.loads(line)
        return message

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        if not data:
            raise ConnectionError("QEMU has hung up")
        self._received += data


def stopped_times(events: list[dict[str, Any]]) -> list[float]:
    """How long the guest stood still each time, in seconds, by the clock of QEMU: from its STOP to its RESUME."""
    times, since = [], None
    for event in events:
        at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
        if event["event"] == "STOP":
            since = at
        elif event["event"] == "RESUME" and since is not None:
            times.append(at - since)
            since = None
    return times
