"""Writing records: the bytes, what is copied, and what is refused."""

from __future__ import annotations

import json
import struct

import attrs
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.records_case import FULL, contents, page_numbers
from ftd.test.wire.profile import examples
from ftd.vm.encoding import Encoding
from ftd.vm.ram import PAGE, PAGE_WORDS
from ftd.vm.records import (
    MAX_PAGES,
    MAX_RECORD_PAGES,
    MAX_RECORD_RUNS,
    CheckpointHeader,
    RecordError,
    Tally,
    checkpoint_record,
    device_record,
    end_record,
    pages_record,
    pages_records,
    split_zero,
    zeros_record,
    zeros_records,
)
from ftd.wire.errors import ErrorCode


class BytesTests(SynchronousTestCase):
    """Every byte of every kind."""

    def test_checkpoint(self) -> None:
        record = checkpoint_record(FULL)
        self.assertEqual(record[:8], bytes.fromhex("0100 0100 00000000"))
        self.assertEqual(struct.unpack("<Q", record[8:16]), (len(record) - 16,))
        self.assertEqual(
            json.loads(record[16:]),
            {
                "generation": "6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11",
                "number": 1,
                "base": None,
                "uuid": "11111111-2222-3333-4444-555555555555",
                "machine": "pc-i440fx-7.2",
                "fingerprint": "00112233445566778899aabbccddeeff",
                "ram": [["ram0", 64 * 4096], ["ram1", 32 * 4096]],
                "qemu_version": "7.2.22",
                "time": 1700000000.25,
            },
        )

    def test_pages(self) -> None:
        pages = contents((3, 0x01020304))
        record = b"".join(pages_record(page_numbers(3, 0x01020304), pages))
        head = "0200 0100 00000000 0c20000000000000 02000000 03000000 04030201"
        self.assertEqual(record[:28], bytes.fromhex(head))
        self.assertEqual(record[28:], pages.tobytes())

    def test_zeros(self) -> None:
        record = zeros_record(np.array([[1, 2], [256, 65536]], np.int64))
        head = "0300 0100 00000000 1000000000000000 01000000 02000000 00010000 00000100"
        self.assertEqual(record, bytes.fromhex(head))

    def test_device(self) -> None:
        record = b"".join(device_record(b"abc"))
        self.assertEqual(record, bytes.fromhex("0400 0100 00000000 0b00000000000000 0300000000000000") + b"abc")

    def test_end(self) -> None:
        record = end_record(Tally(pages=1, zero_pages=2, device_bytes=3, records=4))
        head = "0500 0100 00000000 2000000000000000"
        self.assertEqual(record, bytes.fromhex(head) + struct.pack("<4Q", 1, 2, 3, 4))

    def test_what_shrinks_is_compressed_and_says_so(self) -> None:
        pages = np.zeros((2, PAGE_WORDS), np.uint64)
        head, data = pages_record(page_numbers(0, 1), pages, Encoding.ZSTD)
        self.assertEqual(struct.unpack("<HHIQ", head[:16]), (2, 1, 1, 12 + len(data)))
        self.assertLess(len(data), 1000)
        head, data = device_record(bytes(1000), Encoding.ZSTD)
        self.assertEqual(struct.unpack("<HHIQQ", head), (4, 1, 1, 8 + len(data), 1000))

    def test_what_does_not_shrink_goes_as_it_is(self) -> None:
        pages = np.random.default_rng(1).integers(0, 1 << 63, (2, PAGE_WORDS), np.uint64)
        numbers = page_numbers(0, 1)
        raw = b"".join(pages_record(numbers, pages))
        self.assertEqual(b"".join(pages_record(numbers, pages, Encoding.ZSTD)), raw)
        self.assertEqual(b"".join(device_record(b"", Encoding.ZSTD)), b"".join(device_record(b"")))


class CopyTests(SynchronousTestCase):
    """Nothing large is copied."""

    def test_pages_are_a_view(self) -> None:
        pages = contents(range(8))
        numbers = page_numbers(*range(8))
        _head, data = pages_record(numbers, pages)
        pages[7, 511] = 0x1122334455667788
        self.assertEqual(bytes(data[-8:]), bytes.fromhex("8877665544332211"))

    def test_numbers_are_not(self) -> None:
        numbers = page_numbers(1, 2)
        head, _data = pages_record(numbers, contents((1, 2)))
        numbers[1] = 99
        self.assertEqual(bytes(head[-8:]), struct.pack("<2I", 1, 2))

    def test_a_device_state_is_a_view(self) -> None:
        blob = bytearray(b"state")
        _head, data = device_record(blob)
        blob[0] = ord("S")
        self.assertEqual(bytes(data), b"State")


class SplittingTests(SynchronousTestCase):
    """As many records as it takes, and all of them counted."""

    def sizes(self, count: int, encoding: Encoding) -> list[int]:
        pages = np.broadcast_to(np.uint64(1), (count, PAGE_WORDS)).copy()
        tally = Tally()
        pieces = list(pages_records(np.arange(count, dtype=np.int64), pages, encoding, tally))
        self.assertEqual((tally.pages, tally.records), (count, len(pieces) // 2))
        return [struct.unpack("<I", head[16:20])[0] for head in pieces[::2]]

    def test_pages(self) -> None:
        self.assertEqual(self.sizes(0, Encoding.RAW), [])
        self.assertEqual(self.sizes(1000, Encoding.RAW), [1000])
        self.assertEqual(self.sizes(MAX_RECORD_PAGES + 1, Encoding.RAW), [MAX_RECORD_PAGES, 1])

    def test_compressed_pages_come_in_small_records(self) -> None:
        self.assertEqual(self.sizes(600, Encoding.ZSTD), [256, 256, 88])

    def test_zeros(self) -> None:
        tally = Tally()
        runs = np.column_stack((np.arange(MAX_RECORD_RUNS + 1) * 3, np.full(MAX_RECORD_RUNS + 1, 2)))
        lengths = [len(record) for record in zeros_records(runs, tally)]
        self.assertEqual(lengths, [16 + 8 * MAX_RECORD_RUNS, 24])
        self.assertEqual(tally, Tally(zero_pages=2 * len(runs), records=2))
        self.assertEqual(list(zeros_records(np.empty((0, 2), np.int64), tally)), [])


class RefusedTests(SynchronousTestCase):
    """What a reader would not take is not written."""

    def test_pages(self) -> None:
        for numbers, pages in (
            (page_numbers(), contents(())),
            (np.arange(MAX_RECORD_PAGES + 1), np.zeros((MAX_RECORD_PAGES + 1, PAGE_WORDS), np.uint64)),
            (page_numbers(1), contents((1, 2))),
            (page_numbers(1), contents((1, 2))[:1, :256]),
            (page_numbers(1, 2), contents((1, 2, 3, 4))[::2]),
            (page_numbers(1), contents((1,)).astype(np.uint32).view(np.uint64)),
            (page_numbers(-1), contents((1,))),
            (page_numbers(MAX_PAGES), contents((1,))),
            (page_numbers(2, 1), contents((2, 1))),
        ):
            with self.assertRaises(ValueError):
                pages_record(numbers, pages)

    def test_zeros(self) -> None:
        for runs in ([], [[1, 2, 3]], [[-1, 1]], [[MAX_PAGES, 1]], [[5, 1], [4, 1]]):
            with self.assertRaises(ValueError):
                zeros_record(np.array(runs, np.int64))

    def test_checkpoint(self) -> None:
        with self.assertRaises(ValueError):
            checkpoint_record(attrs.evolve(FULL, uuid="x" * 70000))


class HeaderTests(SynchronousTestCase):
    """The checkpoint record's JSON."""

    def test_there_and_back(self) -> None:
        for header in (FULL, attrs.evolve(FULL, number=7, base=6)):
            self.assertEqual(CheckpointHeader.from_json(json.loads(checkpoint_record(header)[16:])), header)

    def test_pages(self) -> None:
        self.assertEqual(FULL.pages, 96)

    def test_later_versions_may_say_more(self) -> None:
        document = {**json.loads(checkpoint_record(FULL)[16:]), "disks": []}
        self.assertEqual(CheckpointHeader.from_json(document), FULL)

    def test_base_may_not_be_left_out(self) -> None:
        document = json.loads(checkpoint_record(FULL)[16:])
        del document["base"]
        # It would be a full one, and wipe what it does not mention.
        self.assertRaises(RecordError, CheckpointHeader.from_json, {**document, "number": 5})

    def test_refused(self) -> None:
        good = json.loads(checkpoint_record(FULL)[16:])
        refused: list[dict[str, object]] = [
            {"number": 0},
            {"number": True},
            {"number": 1.5},
            {"number": 1 << 63},
            {"base": 1},
            {"base": "0"},
            {"base": 0},
            {"generation": None},
            {"uuid": "a\nb"},
            {"uuid": "\ud800"},
            {"machine": "x" * 257},
            {"fingerprint": 5},
            {"time": "now"},
            {"time": -1},
            {"time": float("nan")},
            {"time": True},
            {"ram": []},
            {"ram": {}},
            {"ram": [["ram0"]]},
            {"ram": [["ram0", 4095]]},
            {"ram": [["ram0", 4097]]},
            {"ram": [["ram0", 4096], ["ram0", 4096]]},
            {"ram": [[0, 4096]]},
            {"ram": [["ram0", MAX_PAGES * PAGE], ["ram1", PAGE]]},
            {"ram": [[str(number), PAGE] for number in range(257)]},
        ]
        for changes in refused:
            with self.assertRaises(RecordError, msg=str(changes)) as caught:
                CheckpointHeader.from_json({**good, **changes})
            self.assertIs(caught.exception.code, ErrorCode.RECV_PAYLOAD)
        for other in (None, [1], "x"):
            self.assertRaises(RecordError, CheckpointHeader.from_json, other)


class ZeroTests(SynchronousTestCase):
    """Finding pages that are all zeros."""

    @given(st.lists(st.sampled_from([None, 0, 1, 255, 256, 257, 511]), max_size=200), st.booleans())
    @examples(60)
    def test_one_word_makes_a_page_that_is_not_zero(self, words: list[int | None], is_high_bit: bool) -> None:
        pages = np.zeros((len(words), PAGE_WORDS), np.uint64)
        for page, word in enumerate(words):
            if word is not None:
                pages[page, word] = 1 << 63 if is_high_bit else 1
        self.assertEqual(split_zero(pages).tolist(), [word is None for word in words])
