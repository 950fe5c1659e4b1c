"""Large answers, sent past the transport: from memory and from files, to clients that read as they like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from errno import ECONNRESET, EINVAL, EIO
from io import BytesIO
from pathlib import Path
from typing import BinaryIO
from weakref import ref

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from ftd.http import downloads, sending
from ftd.http.downloads import source_of
from ftd.http.sending import FileSource, Source, ViewsSource
from ftd.test import test_http_downloads as in_memory
from ftd.test.api_case import NOW, ApiTestCase
from ftd.testing.http_socket import MemorySocket, SocketConnection

DATA = bytes(range(256)) * 8
PATH = "/v1/pairs/demo-standby/checkpoints"


class OnSockets(ApiTestCase):
    """Where every answer is sent past Twisted's transport."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(downloads, "LARGE_ANSWER", 1)

    def connect(self, capacity: int = 64 * 1024) -> SocketConnection:
        return SocketConnection(self.site, capacity)


class WholeTests(OnSockets, in_memory.WholeTests):
    pass


class RangeTests(OnSockets, in_memory.RangeTests):
    pass


class ConditionTests(OnSockets, in_memory.ConditionTests):
    pass


class _ManyViews(BytesIO):
    """A checkpoint in memory, as a sink gives it."""

    def __init__(self, data: bytes, step: int) -> None:
        super().__init__()
        self._data = memoryview(data)
        self.given: list[ref[memoryview]] = []
        self._step = step

    def views(self, first: int, end: int) -> Iterator[memoryview]:
        """The bytes in pieces."""
        for at in range(first, min(end, len(self._data)), self._step):
            view = self._data[at : min(at + self._step, end)]
            self.given.append(ref(view))
            yield view

    def close(self) -> None:
        """From here on the memory may be somebody else's, or nobody's."""
        super().close()
        assert all(given() is None for given in self.given), "there are views of it still"


class SourceCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.socket = MemorySocket(capacity=1 << 20)
        self.files: list[BinaryIO] = []
        self.patch(os, "sendfile", self.sendfile)

    def sendfile(self, target: int, source: int, offset: int, size: int) -> int:
        """What the kernel does."""
        self.assertEqual(target, self.socket.fileno())
        return self.socket.send(os.pread(source, size, offset))

    def file(self, data: bytes = DATA) -> BinaryIO:
        """A file on the disk."""
        path = Path(self.mktemp())
        path.write_bytes(data)
        file = path.open("rb")
        self.addCleanup(file.close)
        return file

    def sent(self, source: Source, most_taken: int = 1 << 30) -> bytes:
        """All that a source gives, in calls of which each takes so much at most."""
        self.socket.outgoing.clear()
        self.socket.most_taken = most_taken
        while source.left:
            before = source.left
            sent = source.send_to(self.socket)  # type: ignore[arg-type]
            self.assertEqual(source.left, before - sent)
        return bytes(self.socket.outgoing)


class SourceTests(SourceCase):
    @given(
        step=st.integers(1, 3000),
        first=st.integers(0, 2047),
        size=st.integers(1, 2048),
        most_taken=st.integers(1, 2500),
    )
    def test_memory(self, step: int, first: int, size: int, most_taken: int) -> None:
        end = min(first + size, len(DATA))
        self.patch(sending, "_MOST_VIEWS", 3)
        self.patch(sending, "_AT_A_TIME", 1000)
        source = source_of(_ManyViews(DATA, step), first, end)
        self.assertEqual(self.sent(source, most_taken), DATA[first:end])

    def test_a_file(self) -> None:
        self.patch(sending, "_AT_A_TIME", 100)
        for first, end in ((0, 2048), (5, 6), (1000, 2048)):
            source = source_of(self.file(), first, end)
            self.assertIsInstance(source, FileSource)
            self.assertEqual(self.sent(source, most_taken=70), DATA[first:end])

    def test_the_kernel_reads_ahead(self) -> None:
        told: list[tuple[int, int]] = []
        self.patch(os, "posix_fadvise", lambda _fd, offset, size, _what: told.append((offset, size)))
        self.patch(sending, "_AT_A_TIME", 100)
        self.patch(sending, "_AHEAD", 800)
        self.sent(source_of(self.file(), 48, 2048))
        self.assertEqual(told, [(48, 800), (848, 800), (1648, 800)])

    def test_a_file_system_without_sendfile(self) -> None:
        self.patch(os, "sendfile", _failing(EINVAL))
        self.assertEqual(self.sent(source_of(self.file(), 3, 2048), most_taken=700), DATA[3:])

    def test_a_file_that_cannot_be_read(self) -> None:
        self.patch(os, "sendfile", _failing(EIO))
        self.patch(os, "pread", _failing(EIO))
        error = self.assertRaises(sending.SourceError, self.sent, source_of(self.file(), 0, 10))
        self.assertIsInstance(error.__cause__, OSError)

    def test_one_that_is_too_short(self) -> None:
        files: list[BinaryIO] = [self.file(), _ManyViews(DATA, 100)]
        for file in files:
            error = self.assertRaises(sending.SourceError, self.sent, source_of(file, 0, 2050))
            self.assertIn("ends 2 bytes early", str(error.__cause__))

    def test_a_socket_that_is_full(self) -> None:
        self.socket.outgoing += bytes(1 << 20)
        for source in (FileSource(self.file().fileno(), 0, 10), ViewsSource(iter([memoryview(DATA)]), len(DATA))):
            self.assertRaises(BlockingIOError, source.send_to, self.socket)

    def test_a_socket_that_is_broken(self) -> None:
        for source in (FileSource(self.file().fileno(), 0, 10), ViewsSource(iter([memoryview(DATA)]), len(DATA))):
            self.socket.error = ConnectionResetError(ECONNRESET, "reset")
            self.assertRaises(ConnectionResetError, source.send_to, self.socket)


def _failing(errno: int) -> object:
    def fail(*_: object) -> int:
        raise OSError(errno, os.strerror(errno))

    return fail


class PaceTests(OnSockets):
    """A client that has asked for a large checkpoint and reads nothing."""

    SIZE = 100_000

    def setUp(self) -> None:
        super().setUp()
        self.data = os.urandom(self.SIZE)
        self.store = self.secondary.kept
        self.store.add(self.data, NOW)
        self.file = _ManyViews(self.data, step=1000)
        self.patch(self.store, "open", lambda _: self.file)
        self.client = self.connect(capacity=5000)
        self.end = self.client.end

    def get(self) -> None:
        """Ask for it."""
        self.request(self.client, "GET", f"{PATH}/1")

    def test_no_more_is_taken_than_the_socket_takes(self) -> None:
        self.get()
        self.assertEqual(len(self.end.socket.outgoing), 5000)
        self.assertEqual((len(self.end.connection.dataBuffer), self.end.connection._tempDataLen), (0, 0))
        self.client.received += self.end.take()
        self.assertEqual(len(self.end.socket.outgoing), 5000)
        self.assertFalse(self.file.closed)
        self.assertEqual(self.client.response().body, self.data)
        self.assertTrue(self.file.closed)

    def test_what_was_written_before_goes_before(self) -> None:
        self.get()
        self.request(self.client, "GET", f"{PATH}/1", headers={"Range": "bytes=-10"})
        self.request(self.client, "GET", "/healthz")
        self.assertEqual(self.client.response().body, self.data)
        self.assertEqual(self.client.response().body, self.data[-10:])
        self.assertEqual(self.client.response().json(), {"status": "ok"})

    def test_others_have_their_turn(self) -> None:
        self.patch(sending, "_AT_A_TIME", 100)
        self.end.socket.most_taken = 100
        turns: list[int] = []
        connection = self.end.connection
        self.get()
        self.end.take()
        before = len(self.end.socket.outgoing)
        self.end.socket.outgoing.clear()
        self.assertEqual(before, 5000)
        while len(turns) < 3:
            connection.doWrite()
            turns.append(len(self.end.socket.outgoing))
        self.assertEqual(turns, [400, 800, 1200])

    def test_a_client_that_goes_away(self) -> None:
        for reason in (ConnectionLost(), ConnectionDone()):
            self.get()
            self.end.close(Failure(reason))
            self.assertTrue(self.file.closed)
            self.assertEqual(self.flushLoggedErrors(), [])
            self.setUp()

    def test_a_client_that_resets(self) -> None:
        self.get()
        self.end.socket.error = ConnectionResetError(ECONNRESET, "reset")
        self.end.socket.outgoing.clear()
        self.end.pump()
        self.assertTrue(self.end.is_closed)
        self.assertTrue(self.file.closed)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_a_checkpoint_that_is_too_short_breaks_the_connection(self) -> None:
        self.file = _ManyViews(self.data[:-5], step=1000)
        self.get()
        self.client.read()
        self.assertTrue(self.end.was_aborted)
        self.assertTrue(self.file.closed)
        self.assertEqual(len(self.flushLoggedErrors(EOFError)), 1)

    def test_a_connection_that_is_closed_sends_no_more(self) -> None:
        self.get()
        self.end.connection.loseConnection()
        self.client.read()
        self.assertTrue(self.end.is_closed)
        self.assertLess(len(self.client.received), self.SIZE)
        self.assertTrue(self.file.closed)

    def test_the_connection_has_its_own_way_back(self) -> None:
        self.get()
        self.assertIn("doWrite", vars(self.end.connection))
        self.client.response()
        self.assertNotIn("doWrite", vars(self.end.connection))

    def test_the_log_says_how_much_was_sent(self) -> None:
        lines: list[int] = []
        self.patch(self.site, "log", lambda request: lines.append(request.sentLength))
        self.get()
        self.client.response()
        self.assertEqual(lines, [self.SIZE])


class ChoiceTests(ApiTestCase):
    def test_a_small_answer_goes_the_usual_way(self) -> None:
        self.secondary.kept.add(DATA, NOW)
        self.patch(downloads, "SocketSender", None)
        client = SocketConnection(self.site)
        self.request(client, "GET", f"{PATH}/1")
        self.assertEqual(client.response().body, DATA)
