"""Reading records: in pieces, to where they belong, and nothing that is not as it should be."""

from __future__ import annotations

import json
import struct

import attrs
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.sink import SinkError
from ftd.test.vm.records_case import FULL, PAGES, Payload, contents, delta, page_numbers
from ftd.test.wire.profile import examples
from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE
from ftd.vm.record_reader import RecordReader
from ftd.vm.records import (
    MAX_CHECKPOINT,
    MAX_RECORD_PAGES,
    RECORD_HEADER,
    CheckpointHeader,
    RecordError,
    RecordKind,
    Tally,
    end_record,
    pages_record,
    zeros_record,
)
from ftd.wire.errors import ErrorCode

_MAX_DEVICE = 10_000


class Shelf:
    """
    A target that keeps all it gets.

    :ivar entries: in order.
    :ivar asked: bytes of room that were asked for.
    """

    def __init__(self) -> None:
        self.entries: list[tuple[str, object]] = []
        self.asked = 0
        self._room = memoryview(b"")
        self._numbers: list[int] = []

    def room_for_pages(self, numbers: NDArray[np.uint32]) -> memoryview:
        self._numbers = numbers.tolist()
        return self._room_for(len(numbers) * PAGE)

    def pages_filled(self) -> None:
        self.entries.append(("pages", (self._numbers, bytes(self._room))))

    def take_zeros(self, runs: NDArray[np.uint32]) -> None:
        self.entries.append(("zeros", runs.tolist()))

    def room_for_device(self, size: int) -> memoryview:
        room = self._room_for(size)
        self.entries.append(("device", room))
        return room

    def _room_for(self, size: int) -> memoryview:
        self.asked += size
        self._room = memoryview(bytearray(size))
        return self._room


class ReaderTestCase(SynchronousTestCase):
    """A reader with a shelf."""

    def setUp(self) -> None:
        self.headers: list[CheckpointHeader] = []
        self.reader = RecordReader(self.headers.append, _MAX_DEVICE)
        self.restart()

    def restart(self) -> None:
        """Another payload."""
        self.shelf = Shelf()
        self.reader.restart(self.shelf)

    def read(self, data: bytes, step: int = 1 << 30) -> None:
        """All of it, in pieces whose memory is used for something else afterwards."""
        for first in range(0, len(data), step):
            piece = bytearray(data[first : first + step])
            self.reader.feed(memoryview(piece))
            piece[:] = bytes(len(piece))

    def check_refused(self, data: bytes, code: ErrorCode, part: str) -> None:
        """In one piece and byte by byte, at the same place, and again and again."""
        for step in (1 << 30, 1):
            self.restart()
            error = self.assertRaises(SinkError, self.read, data, step)
            self.assertIs(error.code, code, error)
            self.assertIn(part, error.detail)
            self.assertIs(self.assertRaises(SinkError, self.reader.feed, b"x"), error)


class ReadingTests(ReaderTestCase):
    """What is right."""

    def test_all_kinds(self) -> None:
        for encoding in Encoding:
            for step in (1, 7, 4096, 1 << 30):
                self.restart()
                payload = Payload(encoding=encoding).pages(1, 5, 95).zeros((2, 3), (6, 1)).device(bytes(500))
                self.read(payload.pages(5, seed=1).end(), step)
                self.assertTrue(self.reader.is_complete)
                self.assertIsNone(self.reader.incomplete())
                self.assertEqual(self.headers[-1], FULL)
                self.assertEqual(self.reader.header, FULL)
                self.assertEqual(self.reader.tally, payload.tally)
                expected = [
                    ("pages", ([1, 5, 95], contents((1, 5, 95)).tobytes())),
                    ("zeros", [[2, 3], [6, 1]]),
                    ("device", bytes(500)),
                    ("pages", ([5], contents((5,), 1).tobytes())),
                ]
                self.assertTrue(self.shelf.entries == expected)

    def test_no_pages(self) -> None:
        self.read(Payload(delta(7)).device(b"").end())
        self.assertTrue(self.reader.is_complete)

    def test_a_delta(self) -> None:
        self.read(Payload(delta(7)).pages(0).device().end())
        self.assertEqual(self.headers, [delta(7)])

    def test_the_header_is_told_before_the_rest_is_there(self) -> None:
        self.read(Payload().data)
        self.assertEqual(self.headers, [FULL])

    def test_pages_are_not_kept_by_the_reader(self) -> None:
        """Their bytes are in the room as soon as they have been fed."""
        data = Payload().pages(3).data
        self.read(data[:-1])
        self.assertEqual(bytes(self.shelf._room[:-1]), contents((3,)).tobytes()[:-1])
        self.assertEqual(self.shelf.entries, [])

    def test_runs_that_touch(self) -> None:
        self.read(Payload().zeros((0, 3), (3, PAGES - 3)).data)
        self.assertEqual(self.shelf.entries, [("zeros", [[0, 3], [3, PAGES - 3]])])

    def test_large_compressed_records_leave_no_memory_behind(self) -> None:
        ram = (("ram0", MAX_RECORD_PAGES * PAGE),)
        numbers = np.arange(MAX_RECORD_PAGES, dtype=np.int64)
        # Half of each page cannot be compressed.
        pages = np.random.default_rng(1).integers(0, 1 << 63, (MAX_RECORD_PAGES, 512), np.uint64)
        pages[:, ::2] = 0
        head, data = pages_record(numbers, pages, Encoding.ZSTD)
        self.assertEqual(RECORD_HEADER.unpack(head[:16])[2], Encoding.ZSTD)
        self.read(Payload(attrs.evolve(FULL, ram=ram)).data + head + bytes(data), 65536)
        self.assertEqual(self.reader.tally.pages, MAX_RECORD_PAGES)
        self.assertTrue(self.shelf.entries[0] == ("pages", (numbers.tolist(), pages.tobytes())))
        self.assertLess(len(self.reader._packed), 5 << 20)

    def test_memory_for_what_is_compressed_is_used_again(self) -> None:
        self.read(Payload(encoding=Encoding.ZSTD).pages(*range(20)).device(bytes(200)).end())
        packed = self.reader._packed
        self.restart()
        self.read(Payload(encoding=Encoding.ZSTD).pages(*range(20)).device(bytes(200)).end())
        self.assertIs(self.reader._packed, packed)


class IncompleteTests(ReaderTestCase):
    """What ends too early."""

    def test_nothing(self) -> None:
        error = self.reader.incomplete()
        assert error is not None
        self.assertIs(error.code, ErrorCode.RECV_PAYLOAD)
        self.assertIn("after 0 records", error.detail)

    def test_between_records(self) -> None:
        self.read(Payload().pages(1).device().data)
        self.assertIn("after 3 records, without an end", str(self.reader.incomplete()))

    def test_inside_of_a_record(self) -> None:
        self.read(Payload().pages(1).data[:-1])
        self.assertIn("inside its record 2", str(self.reader.incomplete()))

    def test_every_place(self) -> None:
        data = Payload(encoding=Encoding.ZSTD).pages(1, 2).zeros((3, 4)).device(bytes(99)).end()
        for size in range(len(data)):
            self.restart()
            self.read(data[:size])
            self.assertIsInstance(self.reader.incomplete(), RecordError)


class RefusedTests(ReaderTestCase):
    """What is wrong."""

    def setUp(self) -> None:
        super().setUp()
        self.start = Payload().data
        self.tally = Tally(records=1)

    def record(self, kind: int, body: bytes, flags: int = 0, version: int = 1, length: int | None = None) -> bytes:
        return self.start + RECORD_HEADER.pack(kind, version, flags, len(body) if length is None else length) + body

    def damaged(self, data: bytes, part: str) -> None:
        self.check_refused(data, ErrorCode.RECV_PAYLOAD, part)

    def misplaced(self, data: bytes, part: str) -> None:
        self.check_refused(data, ErrorCode.STATE_INVALID, part)

    def test_unknown(self) -> None:
        self.damaged(self.record(0, b""), "kind 0, version 1")
        self.damaged(self.record(6, b""), "kind 6, version 1")
        self.damaged(self.record(2, b"", version=2), "kind 2, version 2")
        self.damaged(self.record(2, b"", flags=2), "flags 0x2")
        self.damaged(self.record(3, b"", flags=1), "flags 0x1")

    def test_order(self) -> None:
        self.start = b""
        self.misplaced(self.record(2, b""), "PAGES stands before CHECKPOINT")
        self.misplaced(self.record(5, b""), "END stands before CHECKPOINT")
        first = Payload().data
        self.misplaced(first + first, "a second CHECKPOINT")
        self.misplaced(Payload().device().device().data, "a second DEVICE")
        self.misplaced(Payload().end(), "END stands before DEVICE")
        self.misplaced(Payload().device().end() + b"more", "follow the end record")
        self.misplaced(Payload().device().end() + Payload().data, "follow the end record")

    def test_checkpoint(self) -> None:
        self.start = b""
        for body in (b"{", b"\xff", b"[" * 50000, b"9" * 50000, b'{"number": 1}'):
            self.damaged(self.record(1, body), "the checkpoint record")
        self.damaged(self.record(1, b"", length=0), "0 bytes")
        self.damaged(self.record(1, b"", length=MAX_CHECKPOINT + 1), f"1 to {MAX_CHECKPOINT}")

    def test_lengths_of_pages(self) -> None:
        self.damaged(self.record(2, b"", length=8), "a record of 8 bytes")
        self.damaged(self.record(2, b"", length=1 << 63), "a record of")
        self.damaged(self.record(2, struct.pack("<I", 0), length=5000), "0 pages")
        self.damaged(self.record(2, struct.pack("<I", MAX_RECORD_PAGES + 1), length=5000), "pages; 1 to")
        self.damaged(self.record(2, struct.pack("<I", 1), length=4 + 4 + PAGE - 1), "4095 bytes of raw data")
        self.damaged(self.record(2, struct.pack("<I", 2), length=4 + 4 + PAGE), "4092 bytes of raw data")
        self.damaged(self.record(2, struct.pack("<I", 1), flags=1, length=4 + 4 + PAGE), "4096 bytes of zstd data")
        self.damaged(self.record(2, struct.pack("<I", 10000), flags=1, length=5000), "bytes of zstd data")

    def test_page_numbers(self) -> None:
        for numbers in ((1, 1), (2, 1), (5, 4, 6), (PAGES,), (0, (1 << 32) - 1)):
            count = len(numbers)
            body = struct.pack(f"<I{count}I", count, *numbers) + bytes(count * PAGE)
            self.damaged(self.record(2, body), "page numbers do not ascend")
            self.assertEqual(self.shelf.asked, 0)

    def test_compressed_pages(self) -> None:
        head, data = pages_record(page_numbers(1), np.zeros((1, 512), np.uint64), Encoding.ZSTD)
        broken = bytearray(data)
        broken[0] ^= 1
        self.damaged(self.start + bytes(head) + bytes(broken), "compressed data is damaged")
        self.assertEqual(self.shelf.entries, [])

    def test_zeros(self) -> None:
        self.damaged(self.record(3, b""), "a record of 0 bytes")
        self.damaged(self.record(3, bytes(9)), "no whole runs")
        for runs in (((1, 0),), ((0, 3), (2, 1)), ((5, 1), (1, 1)), ((PAGES - 1, 2),), ((1, (1 << 32) - 1),)):
            body = b"".join(struct.pack("<2I", *run) for run in runs)
            self.damaged(self.record(3, body), "runs overlap, are empty")

    def test_device(self) -> None:
        self.damaged(self.record(4, b"", length=7), "a device record of 7 bytes")
        self.damaged(self.record(4, struct.pack("<Q", 9), length=16), "8 bytes of raw data")
        self.damaged(self.record(4, struct.pack("<Q", 8), flags=1, length=16), "8 bytes of zstd data")
        self.damaged(self.record(4, struct.pack("<Q", 0), flags=1, length=8), "0 bytes of zstd data")
        too_large = self.record(4, struct.pack("<Q", _MAX_DEVICE + 1), length=_MAX_DEVICE + 9)
        self.check_refused(too_large, ErrorCode.REALLOC_BUF, "qemu-device-limit, 10000; raise it")
        self.assertEqual(self.shelf.asked, 0)

    def test_counts(self) -> None:
        payload = Payload().pages(1, 2).zeros((3, 4)).device()
        for name in ("pages", "zero_pages", "device_bytes", "records"):
            tally = attrs.evolve(payload.tally, **{name: getattr(payload.tally, name) + 1})
            self.damaged(payload.data + end_record(tally), "the end record counts")
        self.damaged(payload.data + RECORD_HEADER.pack(5, 1, 0, 31), "32 to 32")

    def test_a_check_that_refuses_ends_it(self) -> None:
        def refuse(header: CheckpointHeader) -> None:
            raise SinkError(ErrorCode.STATE_INVALID, f"no {header.number}")

        self.reader = RecordReader(refuse, _MAX_DEVICE)
        self.misplaced(Payload().pages(1).data, "no 1")


class FuzzTests(ReaderTestCase):
    """Damage of any kind."""

    @given(st.data())
    @examples(400)
    def test_damage(self, data: st.DataObject) -> None:
        """It is an error or a payload of the same form: no other exception, and no more memory than is due."""
        encoding = data.draw(st.sampled_from(Encoding))
        whole = Payload(encoding=encoding).pages(1, 5, 95).zeros((2, 3)).device(bytes(500)).pages(2).end()
        payload = bytearray(whole)
        # Most of a payload is contents of pages, in which damage is not seen: aim at the rest as well.
        places = st.one_of(
            st.integers(0, len(whole) - 1), st.integers(0, 400), st.integers(len(whole) - 60, len(whole))
        )
        for _ in range(data.draw(st.integers(1, 3))):
            at = min(data.draw(places), max(0, len(payload) - 1))
            kind = data.draw(st.sampled_from(["change", "insert", "remove", "repeat", "cut"]))
            size = data.draw(st.sampled_from([1, 4, 8, 16, 32, PAGE]))
            if kind == "change":
                payload[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            elif kind == "insert":
                payload[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            elif kind == "remove":
                del payload[at : at + size]
            elif kind == "repeat":
                payload[at:at] = payload[at : at + size]
            else:
                del payload[at:]
        self.restart()
        try:
            self.read(bytes(payload), data.draw(st.sampled_from([1 << 30, 1000, 17])))
        except SinkError:
            self.assertFalse(self.reader.is_complete and self.reader._error is None)
        self.assertLessEqual(self.shelf.asked, len(payload) + MAX_RECORD_PAGES * PAGE + _MAX_DEVICE)
        if self.reader.is_complete and self.reader._error is None:
            self.assertEqual(len(payload), len(whole))

    @given(st.binary(max_size=300))
    @examples(200)
    def test_noise(self, noise: bytes) -> None:
        self.restart()
        try:
            self.read(noise)
        except SinkError:
            return
        self.assertIsNotNone(self.reader.incomplete())

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        ),
        st.sampled_from([field.name for field in attrs.fields(CheckpointHeader)]),
    )
    @examples(300)
    def test_any_json_for_any_key(self, value: object, name: str) -> None:
        document = {**json.loads(Payload().data[16:]), name: value}
        body = json.dumps(document).encode()
        self.restart()
        try:
            self.read(RECORD_HEADER.pack(RecordKind.CHECKPOINT, 1, 0, len(body)) + body)
        except RecordError:
            return
        assert self.reader.header is not None
        got = self.reader.header.to_json()[name]
        self.assertEqual(json.loads(json.dumps(got)), value)

    def test_the_largest_runs_do_not_overflow(self) -> None:
        self.read(Payload().data)
        runs = np.array([[(1 << 32) - 1, (1 << 32) - 1]], np.int64)
        self.assertRaises(RecordError, self.read, zeros_record(runs))
