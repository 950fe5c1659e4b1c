"""Large bodies, read past the transport: into which memory, and what becomes of it."""

from __future__ import annotations

from errno import ECONNRESET
from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import TooLarge
from ftd.http import reading
from ftd.http.reading import (
    BLOCK,
    LARGE_BODY,
    READ,
    READS_A_TURN,
    SPARE_BLOCKS,
    BodyReader,
    ReadBlocks,
    is_plain,
)
from ftd.interfaces import IUpload
from ftd.test.api_case import ApiTestCase
from ftd.testing.http_socket import MemorySocket, SocketConnection

PATH = "/v1/pairs/demo/checkpoint"


class _Transport:
    """As much of a connection as a reader uses."""

    def __init__(self) -> None:
        self.socket = MemorySocket(capacity=0)

    def doRead(self) -> object:
        """The connection's own way."""
        raise AssertionError("it is the reader's turn")


class _SlowUpload:
    """
    Keeps views of what it got until they are sent.

    :ivar sent: all that was.
    """

    def __init__(self) -> None:
        self.waiting: list[memoryview] = []
        self.sent = b""
        self.written = 0

    @property
    def unsent(self) -> int:
        """See `IUpload`."""
        return sum(map(len, self.waiting))

    def write(self, data: memoryview) -> None:
        """See `IUpload`."""
        self.waiting.append(data)
        self.written += len(data)

    def send(self, size: int) -> None:
        """So much goes on its way; it is looked at now only."""
        while size and self.waiting:
            piece = self.waiting.pop(0)
            self.sent += piece[:size]
            if len(piece) > size:
                self.waiting.insert(0, piece[size:])
            size -= min(size, len(piece))


class ReaderCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(reading, "BLOCK", 1000)
        self.patch(reading, "READ", 1000)
        self.patch(reading, "_LEAST_ROOM", 100)
        self.goes_on = False
        self.begin()

    def begin(self, size: int = 1_000_000) -> None:
        """A body of ``size`` bytes begins."""
        self.blocks = ReadBlocks()
        self.upload = _SlowUpload()
        self.transport = _Transport()
        self.socket = self.transport.socket
        self.reader = BodyReader(
            cast(Connection, self.transport),
            self.blocks,
            cast(IUpload, self.upload),
            self.deliver,
            lambda: size - self.upload.written,
            lambda: self.upload.written,
        )

    def deliver(self, data: memoryview) -> bool:
        """Take what was read; whether more is wanted."""
        self.upload.write(data)
        return self.goes_on

    def read(self, data: bytes) -> None:
        """``data`` arrives and is read in one go, as far as that goes."""
        self.socket.incoming += data
        self.assertIsNone(self.transport.doRead())


class BlocksTests(ReaderCase):
    def test_what_was_sent_makes_room_at_the_same_place(self) -> None:
        self.read(b"a" * 300)
        (first,) = self.upload.waiting
        self.upload.send(300)
        self.read(b"b" * 300)
        self.assertEqual(bytes(first), b"b" * 300)

    def test_what_was_not_stays(self) -> None:
        self.read(b"a" * 300)
        self.read(b"b" * 300)
        self.upload.send(299)
        self.read(b"c" * 300)
        self.read(b"d" * 300)
        self.read(b"e" * 300)
        self.upload.send(10_000)
        self.assertEqual(self.upload.sent, b"a" * 300 + b"b" * 300 + b"c" * 300 + b"d" * 300 + b"e" * 300)

    def test_full_blocks_come_back_one_by_one(self) -> None:
        for letter in b"abc":
            self.read(bytes([letter]) * 1000)
        first = self.upload.waiting[0]
        self.upload.send(999)
        self.read(b"d" * 1000)
        self.assertEqual(bytes(first), b"a" * 1000)
        self.upload.send(1)
        self.read(b"e" * 1000)
        self.assertEqual(bytes(first), b"e" * 1000)

    def test_the_end_of_a_block_that_is_not_worth_a_read_is_left(self) -> None:
        self.read(b"a" * 901)
        self.read(b"b" * 901)
        self.assertEqual([len(piece) for piece in self.upload.waiting], [901, 901])

    def test_nothing_after_the_body_is_read(self) -> None:
        self.begin(size=250)
        self.read(b"a" * 200)
        self.read(b"a" * 50 + b"GET / HTTP/1.1")
        self.assertEqual(bytes(self.socket.incoming), b"GET / HTTP/1.1")

    def test_blocks_are_kept_for_the_next_body(self) -> None:
        self.read(b"a" * 1000)
        self.read(b"b" * 1000)
        self.upload.send(2000)
        self.reader.give_back()
        self.assertEqual(len(self.blocks), 2)

    def test_a_block_that_is_still_needed_is_not_given_to_anybody(self) -> None:
        for letter in b"abc":
            self.read(bytes([letter]) * 950)
        self.upload.send(1900)
        self.reader.give_back()
        self.assertEqual(len(self.blocks), 2)
        taken = [self.blocks.take() for _ in range(4)]
        for block in taken:
            block[:] = bytes(1000)
        self.upload.send(950)
        self.assertEqual(self.upload.sent[-950:], b"c" * 950)

    def test_nor_one_that_is_being_given_to_the_upload(self) -> None:
        seen: list[int] = []

        def deliver(_: memoryview) -> bool:
            self.reader.give_back()
            seen.append(len(self.blocks))
            return False

        self.patch(self.reader, "_deliver", deliver)
        self.read(b"a" * 10)
        self.assertEqual(seen, [0])

    def test_so_many_are_kept_and_no_more(self) -> None:
        for block in [self.blocks.take() for _ in range(SPARE_BLOCKS + 3)]:
            self.blocks.give(block)
        self.assertEqual(len(self.blocks), SPARE_BLOCKS)

    @given(steps=st.lists(st.tuples(st.binary(min_size=1, max_size=1500), st.integers(1, 1200), st.integers(0, 2500))))
    def test_what_is_sent_is_what_arrived(self, steps: list[tuple[bytes, int, int]]) -> None:
        self.begin()
        arrived = b""
        for data, most, sent in steps:
            arrived += data
            self.socket.incoming += data
            self.socket.most_taken = most
            while self.socket.incoming:
                self.transport.doRead()
            self.upload.send(sent)
        self.reader.give_back()
        for block in [self.blocks.take() for _ in range(SPARE_BLOCKS)]:
            block[:] = bytes(1000)
        self.upload.send(len(arrived))
        self.assertEqual(self.upload.sent, arrived)


class TurnTests(ReaderCase):
    """How much is read before others have their turn."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(reading, "READ", 100)
        self.goes_on = True

    def test_as_long_as_reads_are_full(self) -> None:
        self.read(b"a" * 250)
        self.assertEqual([len(piece) for piece in self.upload.waiting], [100, 100, 50])
        self.socket.most_taken = 99
        self.read(b"a" * 250)
        self.assertEqual(self.upload.written, 250 + 99)

    def test_so_often_and_no_more(self) -> None:
        self.read(b"a" * 1000)
        self.assertEqual(self.upload.written, READS_A_TURN * 100)

    def test_as_long_as_more_is_wanted(self) -> None:
        self.goes_on = False
        self.read(b"a" * 1000)
        self.assertEqual(self.upload.written, 100)

    def test_as_long_as_it_is_to_be_read_this_way(self) -> None:
        self.patch(self.upload, "write", lambda _: self.reader.stop())
        self.read(b"a" * 1000)
        self.assertEqual(len(self.socket.incoming), 900)


class ReadErrorTests(ReaderCase):
    def test_nothing_there(self) -> None:
        self.assertIsNone(self.transport.doRead())
        self.assertEqual(self.upload.written, 0)

    def test_the_client_closes(self) -> None:
        self.socket.is_at_end = True
        read = self.transport.doRead
        self.assertIs(read(), CONNECTION_DONE)

    def test_the_client_resets(self) -> None:
        self.socket.error = ConnectionResetError(ECONNRESET, "reset")
        read = self.transport.doRead
        self.assertIs(read(), CONNECTION_LOST)

    def test_the_connection_has_its_own_way_back(self) -> None:
        self.reader.stop()
        self.reader.stop()
        self.assertNotIn("doRead", vars(self.transport))

    def test_an_abort_meanwhile_stays(self) -> None:
        aborted = lambda: None  # noqa: E731 (as Twisted does it)
        self.transport.doRead = aborted  # type: ignore[method-assign]
        self.reader.stop()
        self.assertIs(self.transport.doRead, aborted)


class ChoiceTests(ApiTestCase):
    """Which bodies are read in which way."""

    def connect(self, capacity: int = 64 * 1024) -> SocketConnection:
        return SocketConnection(self.site, capacity)

    def begin(self, headers: dict[str, str]) -> Connection:
        """The server's end of a connection on which a body has begun."""
        self.client = self.connect()
        self.client.send_head("PUT", PATH, headers)
        return self.client.end.connection

    def test_a_large_one_is_read_past_the_transport_until_it_ends(self) -> None:
        connection = self.begin({"Content-Length": str(LARGE_BODY)})
        self.assertIn("doRead", vars(connection))
        self.client.send(bytes(LARGE_BODY - 1))
        self.assertIn("doRead", vars(connection))
        self.client.send(bytes(1))
        self.assertNotIn("doRead", vars(connection))
        self.assertEqual(self.client.response().json()["bytes"], LARGE_BODY)

    def test_a_small_one_is_not(self) -> None:
        connection = self.begin({"Content-Length": str(LARGE_BODY - 1)})
        self.assertNotIn("doRead", vars(connection))

    def test_nor_is_one_of_unknown_length(self) -> None:
        connection = self.begin({"Transfer-Encoding": "chunked"})
        self.assertNotIn("doRead", vars(connection))
        self.client.send(b"1\r\nx\r\n0\r\n\r\n")
        self.assertEqual(self.client.response().json()["bytes"], 1)

    def test_nor_one_that_does_not_come_as_it_is(self) -> None:
        connection = self.begin({"Content-Length": "10"})
        self.assertTrue(is_plain(connection))
        connection.TLS = True
        self.assertFalse(is_plain(connection))
        self.assertFalse(is_plain(StringTransport()))

    def test_the_blocks_are_there_for_the_next_one(self) -> None:
        for _ in range(3):
            self.begin({"Content-Length": str(LARGE_BODY)})
            self.primary.acknowledges = False
            self.client.send(bytes(LARGE_BODY))
            self.primary.acknowledge()
            self.assertEqual(self.client.response().json()["bytes"], LARGE_BODY)
            self.assertEqual(len(self.site.read_blocks), 1)

    def test_what_comes_after_it_is_read_as_ever(self) -> None:
        self.primary.acknowledges = False
        connection = self.begin({"Content-Length": str(LARGE_BODY)})
        self.client.send(bytes(LARGE_BODY))
        self.assertNotIn("doRead", vars(connection))
        self.request(self.client, "GET", "/healthz")
        self.primary.acknowledge()
        self.assertEqual(self.client.response().json()["bytes"], LARGE_BODY)
        self.assertEqual(self.client.response().json(), {"status": "ok"})

    def test_a_body_that_nobody_wants_takes_no_blocks(self) -> None:
        connection = self.begin({"Content-Length": str(LARGE_BODY)})
        self.client.send(b"x")
        (upload,) = self.primary.uploads
        upload.body.stopProducing()
        self.assertNotIn("doRead", vars(connection))

    def test_only_what_was_sent_is_there_for_the_next_one(self) -> None:
        self.primary.acknowledges = False
        self.begin({"Content-Length": str(3 * BLOCK)})
        (upload,) = self.primary.uploads
        upload.unsent = 1
        for _ in range(3):
            self.client.send(bytes(BLOCK))
            upload.unsent += BLOCK
        upload.unsent = 2 * BLOCK
        self.primary.acknowledge()
        self.assertEqual(self.client.response().json()["bytes"], 3 * BLOCK)
        self.assertEqual(len(self.site.read_blocks), 1)

    def test_a_pause_in_the_middle_of_a_turn(self) -> None:
        connection = self.begin({"Content-Length": str(10 * READ)})
        (upload,) = self.primary.uploads
        upload.on_write = upload.body.pauseProducing
        self.client.send(bytes(10 * READ))
        self.assertEqual([len(chunk) for chunk in upload.chunks], [READ])
        upload.on_write = lambda: upload.body.stopProducing() if len(upload.chunks) == 3 else None
        upload.body.resumeProducing()
        self.assertEqual([len(chunk) for chunk in upload.chunks], [READ] * 3)
        self.assertNotIn("doRead", vars(connection))
        self.assertEqual(self.client.response().status, 200)

    def test_an_answer_in_the_middle_of_a_turn(self) -> None:
        self.begin({"Content-Length": str(10 * READ)})
        (upload,) = self.primary.uploads
        upload.on_write = lambda: upload.break_off(TooLarge("that is all there may be"))
        self.client.send(bytes(9 * READ))
        self.assertEqual([len(chunk) for chunk in upload.chunks], [READ])
        self.assert_problem(self.client.response(), 413, "too-large")
