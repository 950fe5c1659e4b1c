"""Records, cut into frames: nothing is lost, copied or too long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from ftd.test.vm.primary_carrier import FakeCarrier, ModelStandby, Shelf
from ftd.test.vm.primary_world import PAGES, VmReactor
from ftd.testing.threads import SteppedThread
from ftd.vm.checkpoint_writer import CheckpointWriter
from ftd.vm.encoding import Encoding, EncodingChoice
from ftd.vm.ram import PAGE, PAGE_WORDS, Numbers, Pages
from ftd.vm.record_reader import RecordReader
from ftd.vm.records import CheckpointHeader
from ftd.wire.sender import Buffer

HEADER = CheckpointHeader(
    generation="6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11",
    number=1,
    base=None,
    uuid="11111111-2222-3333-4444-555555555555",
    machine="pc",
    fingerprint="00112233445566778899aabbccddeeff",
    ram=(("ram0", PAGES * PAGE),),
    qemu_version="7.2.22",
    time=1.0,
)


class KeepingCarrier(FakeCarrier):
    """:ivar sent: the frames."""

    sent: list[tuple[Buffer, ...]]

    def send(self, pieces: tuple[Buffer, ...]) -> None:
        """See `Carrier`."""
        self.sent.append(pieces)


class WriterCase(SynchronousTestCase):
    """A writer, and a standby that reads what it has written."""

    encoding = Encoding.RAW

    def setUp(self) -> None:
        self.moments: dict[bytes, Pages] = {}
        self.standby = ModelStandby(lambda state: self.moments[state])
        self.carrier = KeepingCarrier(VmReactor(), self.standby)
        self.carrier.sent = []
        self.thread = SteppedThread()
        self.choice = EncodingChoice(self.encoding)
        self.writer = self.new_writer()

    def new_writer(self) -> CheckpointWriter:
        """One that has not begun."""

        def in_thread(act: Callable[..., Any], *args: Any) -> Deferred[Any]:
            return self.thread(lambda: act(*args))

        return CheckpointWriter(self.carrier, self.choice, in_thread)

    def write(self, numbers: list[int], pages: Pages, device: bytes = b"device" * 1000) -> None:
        """A whole checkpoint, with which the RAM is what ``pages`` say and zero otherwise."""

        async def act() -> None:
            self.writer.start(HEADER)
            await self.writer.pages(np.array(numbers, dtype=np.int64), pages)
            await self.writer.device(memoryview(device))
            self.writer.end()

        ram: Pages = np.zeros((PAGES, PAGE_WORDS), np.uint64)
        ram[numbers] = pages
        self.moments[device] = ram
        done = Deferred.fromCoroutine(act())
        self.thread.run()
        self.successResultOf(done)

    @property
    def payload(self) -> bytes:
        """All that was sent."""
        return b"".join(bytes(piece) for frame in self.carrier.sent for piece in frame)

    def assert_whole(self) -> None:
        """The standby takes it; no frame is too long, none is empty."""
        self.assertEqual(self.standby.take(self.payload), "")
        self.assertEqual(self.writer.size, len(self.payload))
        sizes = [sum(map(len, frame)) for frame in self.carrier.sent]
        self.assertTrue(all(0 < size <= min(self.carrier.max_frame, 1 << 20) for size in sizes), sizes)
        self.assertTrue(all(size == min(self.carrier.max_frame, 1 << 20) for size in sizes[:-1]), sizes)


def some(count: int) -> Pages:
    """Pages none of which is zero."""
    return np.arange(1, count * PAGE_WORDS + 1, dtype=np.uint64).reshape(count, PAGE_WORDS)


class WriterTests(WriterCase):
    """Raw pages."""

    def test_nothing_is_dirty(self) -> None:
        self.write([], some(0))
        self.assert_whole()
        self.assertEqual(len(self.carrier.sent), 1)

    def test_pages_zeros_and_a_device_state(self) -> None:
        pages = some(5)
        pages[[0, 2, 3]] = 0
        self.write([3, 9, 10, 11, 40], pages)
        self.assert_whole()
        self.assertLess(self.writer.size, 2 * PAGE + 8000)

    def test_pages_are_sent_from_where_they_lie(self) -> None:
        pages = some(8)
        self.write(list(range(8)), pages)
        where = pages.__array_interface__["data"][0]
        found = [
            piece
            for frame in self.carrier.sent
            for piece in frame
            if isinstance(piece, memoryview) and len(piece) >= PAGE
        ]
        addresses = [np.frombuffer(piece, np.uint8).__array_interface__["data"][0] for piece in found]
        self.assertIn(where, addresses, "they were copied")

    def test_frames_of_every_size(self) -> None:
        for max_frame in (1, 7, 100, PAGE - 1, PAGE, PAGE + 1, 10_000, 1 << 22):
            self.setUp()
            self.carrier.max_frame = max_frame
            self.write([1, 2, 7], some(3), b"d" * 50)
            self.assert_whole()

    def test_more_than_a_frame_of_what_the_carrier_allows(self) -> None:
        self.carrier.max_frame = 1 << 30
        self.write(list(range(PAGES)), some(PAGES), b"d" * (3 << 20 >> 2))
        self.assert_whole()

    def test_flushing_nothing_sends_nothing(self) -> None:
        self.writer.flush()
        self.assertEqual(self.carrier.sent, [])

    def test_few_pages_need_no_thread(self) -> None:
        self.writer.start(HEADER)
        done = Deferred.fromCoroutine(self.writer.pages(np.array([1, 2], dtype=np.int64), some(2)))
        self.successResultOf(done)
        self.assertEqual(self.thread.waiting, 0)

    def test_many_pages_need_one(self) -> None:
        numbers: Numbers = np.arange(2000, dtype=np.int64)
        done = Deferred.fromCoroutine(self.writer.pages(numbers, some(2000)))
        self.assertEqual(self.thread.waiting, 1)
        self.thread.run()
        self.successResultOf(done)

    def test_the_counts_at_the_end(self) -> None:
        pages = some(5)
        pages[1] = 0
        self.write([3, 9, 10, 11, 40], pages, b"12345")
        shelf_reader = RecordReader(lambda _: None, 1 << 20)
        shelf_reader.restart(Shelf())
        shelf_reader.feed(self.payload)
        self.assertTrue(shelf_reader.is_complete)
        self.assertEqual(shelf_reader.tally, self.writer._tally)


class CompressedTests(WriterTests):
    """The same, compressed."""

    encoding = Encoding.ZSTD

    def test_pages_are_sent_from_where_they_lie(self) -> None:
        """Not so here."""

    def test_few_pages_need_no_thread(self) -> None:
        self.writer.start(HEADER)
        done = Deferred.fromCoroutine(self.writer.pages(np.array([1, 2], dtype=np.int64), some(2)))
        self.assertEqual(self.thread.waiting, 1)
        self.thread.run()
        self.successResultOf(done)

    def test_it_is_smaller_and_measured(self) -> None:
        self.write([1, 2, 3], np.full((3, PAGE_WORDS), 7, np.uint64))
        self.assert_whole()
        self.assertLess(self.writer.size, PAGE)
        self.assertGreater(self.choice.compress_rate, 0)


class SampleTests(WriterCase):
    """Raw at first: a sample tells whether compressing would pay."""

    def setUp(self) -> None:
        super().setUp()
        self.choice = EncodingChoice()
        self.writer = self.new_writer()

    def test_one_is_taken_in_the_thread(self) -> None:
        self.assertTrue(self.choice.is_sample_due)
        self.write([1, 2], some(2))
        self.assert_whole()
        self.assertFalse(self.choice.is_sample_due)
        self.assertGreater(self.choice.compress_rate, 0)

    def test_zero_pages_are_no_sample(self) -> None:
        self.write([1, 2], np.zeros((2, PAGE_WORDS), np.uint64))
        self.assert_whole()
        self.assertTrue(self.choice.is_sample_due)
