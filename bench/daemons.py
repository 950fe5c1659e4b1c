"""Whole daemons and a client that costs as little as it can: sockets that block, memory that is there."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.child import ChildError
from bench.isolated import pin
from bench.setting import scratch
from bench.usage import cpu_time_of, memory_of
from tests.daemon import Section, environment, free_port, ini, primary, secondary, twistd

#: Seconds in which a daemon answers, and a link is up.
_START = 60.0

#: Seconds for one request.
_PATIENCE = 300.0

_LOOK = 0.05


class WholeDaemon:
    """``twistd ftd`` in a process of its own; ends with a `with`."""

    def __init__(self, directory: Path, pairs: Mapping[str, Section]) -> None:
        directory.mkdir()
        self._port = free_port()
        self._log = directory / "log"
        configuration = directory / "ftd.conf"
        titled = {f"pair {name}": section for name, section in pairs.items()}
        api = {"endpoint": f"tcp:{self._port}:interface=127.0.0.1"}
        configuration.write_text(ini({"ftd": {}, "api": api, **titled}))
        before = "from bench.isolated import pin_twisted; pin_twisted()"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                twistd("-n", "--pidfile=", "ftd", "--config", str(configuration), before=before),
                cwd=directory,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def __enter__(self) -> WholeDaemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def cpu(self) -> float:
        """Seconds so far."""
        return cpu_time_of(self._process.pid)

    @property
    def peak(self) -> int:
        """Bytes that were resident at most."""
        return memory_of(self._process.pid)["peak"]

    @property
    def resident(self) -> int:
        """Bytes that are resident."""
        return memory_of(self._process.pid)["now"]

    def forget_peak(self) -> None:
        """The peak starts anew."""
        Path(f"/proc/{self._process.pid}/clear_refs").write_text("5")

    def status(self, pair: str) -> dict[str, Any] | None:
        """Of a pair; ``None`` while the daemon does not answer."""
        client = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10.0)
        try:
            client.request("GET", f"/v1/pairs/{pair}")
            answer: dict[str, Any] = json.loads(client.getresponse().read())
            return answer
        except OSError:
            return None
        finally:
            client.close()

    def until_up(self, pair: str) -> None:
        """
        Wait until the link of a pair is up.

        :raises ChildError: if that takes too long.
        """
        until = time.monotonic() + _START
        while True:
            status = self.status(pair)
            if status is not None and status["link_state"] == "up":
                return
            if self._process.poll() is not None or time.monotonic() > until:
                raise ChildError(f"the link is not up ({status}); the daemon says\n{self._log.read_text()[-2000:]}")
            time.sleep(_LOOK)

    def put(self, pair: str, body: memoryview, times: int) -> float:
        """``PUT checkpoint`` of ``body`` so many times in one; seconds until the answer is there."""
        path = f"/v1/pairs/{pair}/checkpoint"
        head = f"PUT {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body) * times}\r\n\r\n"
        with self._connected() as connection:
            began = time.perf_counter()
            connection.sendall(head.encode())
            for _ in range(times):
                connection.sendall(body)
            answer = connection.recv(65536)
            taken = time.perf_counter() - began
        if not answer.startswith(b"HTTP/1.1 200"):
            raise ChildError(f"PUT {path}: {answer.decode(errors='replace')}")
        return taken

    def get(self, pair: str, size: int) -> float:
        """``GET checkpoints/latest`` of ``size`` bytes; seconds until the last is there."""
        path = f"/v1/pairs/{pair}/checkpoints/latest"
        buffer = memoryview(bytearray(1 << 20))
        with self._connected() as connection:
            began = time.perf_counter()
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                taken = connection.recv(65536)
                if not taken:
                    raise ChildError(f"GET {path}: the connection has gone")
                head += taken
            head, _, rest = head.partition(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise ChildError(f"GET {path}: {head.decode(errors='replace')}")
            left = size - len(rest)
            while left:
                got = connection.recv_into(buffer)
                if not got:
                    raise ChildError(f"GET {path}: {left} bytes are missing")
                left -= got
            return time.perf_counter() - began

    def _connected(self) -> socket.socket:
        connection = pin(socket.socket())
        connection.connect(("127.0.0.1", self._port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        seconds = int(_PATIENCE)
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            # The kernel's own time-outs: Python's would make every call two.
            connection.setsockopt(socket.SOL_SOCKET, option, seconds.to_bytes(8, "little") + bytes(8))
        return connection


@contextmanager
def daemons(receiving: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[WholeDaemon, WholeDaemon]]:
    """
    The sending and the receiving daemon, with pairs of these names and keys of the receiving halves, all links up.

    :raises ChildError: if they do not start.
    """
    ports = {name: free_port() for name in receiving}
    with (
        scratch() as directory,
        WholeDaemon(directory / "receive", {n: secondary(ports[n], **keys) for n, keys in receiving.items()}) as far,
        WholeDaemon(directory / "send", {name: primary(port) for name, port in ports.items()}) as near,
    ):
        for name in receiving:
            near.until_up(name)
        yield near, far
