"""
What ftd is compared with: the least that moves the same bytes, with sockets that block, in a process of its own.

``python -m bench.rival`` reads requests from its standard input (`bench.child`).
"""

from __future__ import annotations

import itertools
import json
import mmap
import selectors
import socket
import ssl
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import xxhash

from bench.isolated import end_with_parent, pin
from bench.usage import cpu_time, resident_memory

#: Seconds after which a peer that says nothing has failed.
_PATIENCE = 120.0

#: Bytes that the proxy reads at a time.
_PROXY_READ = 1 << 20

_PAGE = 4096


class Rival:
    """What can be asked."""

    def __init__(self) -> None:
        self._listening: socket.socket | None = None
        self._source = memoryview(b"")
        self._kept = memoryview(b"")
        self._readers: list[socket.socket] = []
        self._read = 0

    # Bulk

    def do_listen(self) -> dict[str, Any]:
        """Be ready for a connection of any of the following; where."""
        if self._listening is None:
            self._listening = pin(socket.socket())
            self._listening.bind(("127.0.0.1", 0))
            self._listening.listen()
            self._listening.settimeout(_PATIENCE)
        return {"port": self._listening.getsockname()[1]}

    def do_receive(self, total: int, size: int, tls: dict[str, str] | None = None, keep: int = 0) -> dict[str, Any]:
        """
        Take ``total`` bytes into a buffer of ``size`` that is used again and again; how long that took.

        :param keep: that many bytes are kept, and a digest of all is made.
        """
        connection = self._accept(tls)
        buffer = bytearray(size)
        digest = xxhash.xxh3_64()
        places = self._places(keep, size)
        with connection:
            connection.sendall(b"x")
            began, cpu = time.perf_counter(), cpu_time()
            left = total
            while left:
                place = next(places) if keep else buffer
                taken = connection.recv_into(place)
                if not taken:
                    raise ConnectionError("the sender has gone")
                left -= taken
                if keep:
                    digest.update(place[:taken])
            taken_time, taken_cpu = time.perf_counter() - began, cpu_time() - cpu
            connection.sendall(b"x")
        return {"seconds": taken_time, "cpu": taken_cpu}

    def do_send(
        self, port: int, total: int, size: int, tls: dict[str, str] | None = None, is_digested: bool = False
    ) -> dict[str, Any]:
        """Send ``total`` bytes, ``size`` at a time, out of memory that is there."""
        digest = xxhash.xxh3_64()
        source = self._memory()
        views = [source[at : at + size] for at in range(0, len(source) - size + 1, size)]
        connection = self._connect(port, tls)
        with connection:
            connection.recv(1)
            cpu = cpu_time()
            for number in range(total // size):
                view = views[number % len(views)]
                if is_digested:
                    digest.update(view)
                if isinstance(connection, ssl.SSLSocket):
                    connection.sendall(view)
                else:
                    sent = connection.sendmsg((view,))
                    while sent < size:
                        sent += connection.sendmsg((view[sent:],))
            taken_cpu = cpu_time() - cpu
            connection.recv(1)
        return {"cpu": taken_cpu}

    # Small messages

    def do_pong(self, size: int, answer: int) -> dict[str, Any]:
        """Answer every ``size`` bytes with ``answer`` bytes, until the other side has had enough."""
        connection = self._accept(None)
        buffer, reply = memoryview(bytearray(size)), bytes(answer)
        with connection:
            while True:
                left = size
                while left:
                    taken = connection.recv_into(buffer[:left])
                    if not taken:
                        return {}
                    left -= taken
                connection.sendall(reply)

    def do_ping(self, port: int, size: int, answer: int, seconds: float) -> dict[str, Any]:
        """Send ``size`` bytes and wait for the answer, again and again; how long that took each time."""
        connection = self._connect(port, None)
        message, buffer = bytes(size), bytearray(answer)
        latencies = []
        with connection:
            cpu = cpu_time()
            until = time.perf_counter() + seconds
            began = time.perf_counter()
            while began < until:
                connection.sendall(message)
                left = answer
                while left:
                    left -= connection.recv_into(buffer, left)
                now = time.perf_counter()
                latencies.append(now - began)
                began = now
            taken_cpu = cpu_time() - cpu
        latencies.sort()
        count = len(latencies)
        return {
            "count": count,
            "p50": latencies[count // 2],
            "p99": latencies[count * 99 // 100],
            "cpu": taken_cpu,
            "seconds": sum(latencies),
        }

    # Memory

    def do_touch(self, size: int) -> dict[str, Any]:
        """Touch every page of fresh memory; how long that took."""
        with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as fresh:
            began = time.perf_counter()
            pages = np.frombuffer(fresh, dtype=np.uint8)
            pages[::_PAGE] = 1
            taken = time.perf_counter() - began
            del pages
        return {"seconds": taken}

    # A slower network

    def do_proxy(self, port: int, delay: float) -> dict[str, Any]:
        """Pass on what comes to a new port, each byte ``delay`` seconds later, as much at a time as there is."""
        listening = pin(socket.socket())
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            while True:
                near, _ = listening.accept()
                far = pin(socket.socket())
                try:
                    far.connect(("127.0.0.1", port))
                except ConnectionRefusedError:
                    # Not there yet: whoever dialled will again.
                    near.close()
                    far.close()
                    continue
                for sock in (near, far):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for source, sink in ((near, far), (far, near)):
                    _in_thread(_Delayed(source, sink, delay).read)

        _in_thread(serve)
        return {"port": listening.getsockname()[1]}

    # Readers of events

    def do_read_events(self, path: str, count: int) -> dict[str, Any]:
        """Have ``count`` readers of the event stream from now on; each has got its first bytes."""
        for _ in range(count):
            reader = socket.socket(socket.AF_UNIX)
            reader.settimeout(_PATIENCE)
            reader.connect(path)
            reader.sendall(b"GET /v1/events HTTP/1.1\r\nHost: bench\r\n\r\n")
            head = reader.recv(65536)
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(f"the API answers {head[:40]!r}")
            self._readers.append(reader)
        _in_thread(self._read_on)
        return {}

    def do_events_read(self) -> dict[str, Any]:
        """How many bytes all readers have got so far."""
        return {"bytes": self._read}

    def do_leave(self) -> dict[str, Any]:
        """Have no readers any more."""
        for reader in self._readers:
            reader.shutdown(socket.SHUT_RDWR)
        self._readers = []
        return {}

    def _read_on(self) -> None:
        with selectors.DefaultSelector() as selector:
            for reader in self._readers:
                selector.register(reader, selectors.EVENT_READ)
            while selector.get_map():
                for found, _ in selector.select():
                    readable: Any = found.fileobj
                    data = readable.recv(65536)
                    self._read += len(data)
                    if not data:
                        selector.unregister(readable)
                        readable.close()

    # Parts

    def _places(self, keep: int, size: int) -> Iterator[memoryview]:
        """Where ``keep`` bytes go, ``size`` at a time, again and again."""
        if len(self._kept) != keep:
            self._kept = memoryview(bytearray(b"\x01") * keep)
        return itertools.cycle([self._kept[at : at + size] for at in range(0, keep - size + 1, size)])

    def _memory(self) -> memoryview:
        if not self._source:
            self._source = resident_memory()
        return self._source

    def _accept(self, tls: dict[str, str] | None) -> socket.socket:
        assert self._listening is not None
        connection, _ = self._listening.accept()
        return _ready(connection, tls, is_server=True)

    def _connect(self, port: int, tls: dict[str, str] | None) -> socket.socket:
        connection = pin(socket.socket())
        connection.connect(("127.0.0.1", port))
        return _ready(connection, tls, is_server=False)


class _Delayed:
    """One direction through the proxy: a thread reads, another writes when it is time."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay: float) -> None:
        self._source = source
        self._sink = sink
        self._delay = delay
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._there = threading.Semaphore(0)
        _in_thread(self._write)

    def read(self) -> None:
        """Until its source ends."""
        while True:
            try:
                data = self._source.recv(_PROXY_READ)
            except OSError:
                data = b""
            self._waiting.append((time.monotonic() + self._delay, data))
            self._there.release()
            if not data:
                return

    def _write(self) -> None:
        while True:
            self._there.acquire()
            due, data = self._waiting.popleft()
            wait = due - time.monotonic()
            if wait > 0:
                time.sleep(wait)
            try:
                if not data:
                    self._sink.shutdown(socket.SHUT_WR)
                    return
                self._sink.sendall(data)
            except OSError:
                return


def _ready(connection: socket.socket, tls: dict[str, str] | None, is_server: bool) -> socket.socket:
    connection.settimeout(_PATIENCE if tls else None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if tls is None:
        return connection
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(tls["certificate"], tls["key"])
    context.load_verify_locations(tls["ca"])
    context.verify_mode = ssl.CERT_REQUIRED
    wrapped = context.wrap_socket(connection, server_side=is_server, server_hostname=None if is_server else tls["name"])
    wrapped.settimeout(None)
    return wrapped


def _in_thread(run: Callable[[], None]) -> None:
    threading.Thread(target=run, daemon=True).start()


def main() -> None:
    """Until the standard input ends."""
    end_with_parent()
    rival = Rival()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(rival, "do_" + request.pop("do"))(**request)
        except (OSError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
