"""Compressed data that is not what it says, and the choice between compressing and not."""

from __future__ import annotations

import tracemalloc

import zstandard
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.blocks import BLOCK_SIZE
from ftd.test.wire.profile import examples
from ftd.testing.sink_suite import state
from ftd.vm.encoding import SAMPLE_BYTES, Encoding, EncodingChoice, compress, decompress

MB = 1_000_000


def fills(frame: bytes, size: int) -> bytes | None:
    """What ``frame`` decompresses to, if it is ``size`` bytes."""
    room = bytearray(size)
    return bytes(room) if decompress(memoryview(frame), memoryview(room)) else None


class FrameTests(SynchronousTestCase):
    """One frame, whole, with the size that is expected, and nothing after it."""

    @given(st.sampled_from([0, 1, 100, 4096, 131072, 131073, BLOCK_SIZE + 17]), st.integers(0, 250))
    @examples(40)
    def test_there_and_back(self, size: int, seed: int) -> None:
        data = state(size, seed)
        self.assertTrue(fills(compress(memoryview(data)), size) == data)

    def test_incompressible(self) -> None:
        data = zstandard.ZstdCompressor(level=19).compress(state(BLOCK_SIZE)) * 3
        self.assertTrue(fills(compress(memoryview(data)), len(data)) == data)

    def test_another_size(self) -> None:
        frame = compress(memoryview(state(1000)))
        self.assertIsNone(fills(frame, 999))
        self.assertIsNone(fills(frame, 1001))

    def test_cut_at_every_byte(self) -> None:
        frame = compress(memoryview(state(3000)))
        for size in range(len(frame)):
            self.assertIsNone(fills(frame[:size], 3000), size)

    def test_something_after_it(self) -> None:
        frame = compress(memoryview(state(1000)))
        skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
        for more in (b"\0", frame, compress(memoryview(b"")), skippable):
            self.assertIsNone(fills(frame + more, 1000))

    def test_a_checksum_is_taken_and_checked(self) -> None:
        frame = zstandard.ZstdCompressor(write_checksum=True).compress(state(1000))
        self.assertEqual(fills(frame, 1000), state(1000))
        self.assertIsNone(fills(frame[:-1] + bytes([frame[-1] ^ 1]), 1000))

    def test_a_frame_that_does_not_say_its_size(self) -> None:
        self.assertIsNone(fills(zstandard.ZstdCompressor(write_content_size=False).compress(state(1000)), 1000))

    def test_a_window_that_needs_too_much_memory(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=24)
        compressor = zstandard.ZstdCompressor(compression_params=parameters)
        size = 20 * BLOCK_SIZE
        self.assertTrue(fills(compressor.compress(bytes(size)), size) is None)

    def test_a_frame_of_nothing_but_empty_blocks_ends_soon(self) -> None:
        frame = compress(memoryview(bytes(1000)))
        head = frame[: zstandard.frame_header_size(frame)]
        self.assertIsNone(fills(head + bytes(3 * 1000 * 1000) + frame[len(head) :], 1000))

    def test_a_small_frame_that_says_it_is_large_takes_no_memory(self) -> None:
        frame = compress(memoryview(bytes(32 * BLOCK_SIZE)))
        tracemalloc.start()
        try:
            self.assertIsNone(fills(frame, 1000))
            self.assertLess(tracemalloc.get_traced_memory()[1], BLOCK_SIZE)
        finally:
            tracemalloc.stop()

    @given(st.data())
    @examples(200)
    def test_damage_is_an_answer_and_no_exception(self, data: st.DataObject) -> None:
        frame = bytearray(compress(memoryview(state(3000))))
        for _ in range(data.draw(st.integers(1, 4))):
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        fills(bytes(frame), 3000)

    @given(st.binary(max_size=100))
    @examples(100)
    def test_anything_is_an_answer_and_no_exception(self, frame: bytes) -> None:
        fills(frame, 10)


class ChoiceTestCase(SynchronousTestCase):
    """A choice with a clock that goes by itself."""

    def setUp(self) -> None:
        self.seconds = 0.0
        self.choice = EncodingChoice(clock=self.clock)

    def clock(self) -> float:
        """A millisecond goes by each time."""
        self.seconds += 0.001
        return self.seconds

    def link(self, rate: float, times: int = 30, choice: EncodingChoice | None = None) -> Encoding:
        """Checkpoints of 1 MB at so many bytes per second."""
        choice = choice or self.choice
        for _ in range(times):
            choice.acknowledged(MB, MB / rate)
        return choice.encoding

    def compressor(self, rate: float, ratio: float, times: int = 30) -> Encoding:
        for _ in range(times):
            self.choice.compressed(MB, int(MB * ratio), MB / rate)
        return self.choice.encoding


class ChoiceTests(ChoiceTestCase):
    """What is measured decides."""

    def test_nothing_is_compressed_before_both_are_known(self) -> None:
        self.assertIs(self.choice.encoding, Encoding.RAW)
        self.assertIs(self.link(1.0), Encoding.RAW)
        self.choice = EncodingChoice()
        self.assertIs(self.compressor(1000 * MB, 0.1), Encoding.RAW)

    def test_a_slow_link(self) -> None:
        self.compressor(700 * MB, 0.4)
        self.assertIs(self.link(10 * MB), Encoding.ZSTD)

    def test_a_fast_link(self) -> None:
        self.compressor(700 * MB, 0.4)
        self.assertIs(self.link(1000 * MB), Encoding.RAW)

    def test_what_does_not_shrink(self) -> None:
        self.compressor(700 * MB, 1.0)
        self.assertIs(self.link(MB), Encoding.RAW)

    def test_what_hardly_shrinks_pays_on_a_very_slow_link_only(self) -> None:
        self.compressor(700 * MB, 0.99)
        self.assertIs(self.link(50 * MB), Encoding.RAW)
        self.assertIs(self.link(MB), Encoding.ZSTD)

    def test_near_the_break_even_it_stays_as_it_is(self) -> None:
        # 700 · (1 - 0.5) = 350 MB/s.
        self.compressor(700 * MB, 0.5)
        for rate, encoding in (
            (400, Encoding.RAW),
            (300, Encoding.RAW),
            (270, Encoding.ZSTD),
            (300, Encoding.ZSTD),
            (400, Encoding.ZSTD),
            (450, Encoding.RAW),
            (400, Encoding.RAW),
        ):
            self.assertIs(self.link(rate * MB), encoding, rate)

    def test_data_that_stops_to_shrink(self) -> None:
        self.compressor(700 * MB, 0.2)
        self.link(100 * MB)
        self.assertIs(self.compressor(700 * MB, 0.99), Encoding.RAW)

    def test_one_slow_checkpoint_changes_nothing(self) -> None:
        self.compressor(700 * MB, 0.4)
        self.link(1000 * MB)
        self.assertIs(self.link(MB * 100, times=1), Encoding.RAW)

    def test_small_checkpoints_say_nothing_of_the_link(self) -> None:
        self.compressor(700 * MB, 0.4)
        for _ in range(100):
            self.choice.acknowledged(4096, 0.02)
        self.assertEqual(self.choice.link_rate, 0.0)

    def test_the_round_trip_is_not_the_links_speed(self) -> None:
        self.choice.acknowledged(MB, 0.021, round_trip=0.02)
        self.assertAlmostEqual(self.choice.link_rate / (1000 * MB), 1.0)
        self.choice.acknowledged(MB, 0.01, round_trip=0.02)
        self.assertAlmostEqual(self.choice.link_rate / (1000 * MB), 1.0)

    def test_a_fixed_one_stays(self) -> None:
        for fixed, rate in ((Encoding.ZSTD, 10_000 * MB), (Encoding.RAW, 1.0)):
            choice = EncodingChoice(fixed)
            choice.compressed(MB, MB // 2, 0.001)
            self.assertIs(self.link(rate, choice=choice), fixed)
            self.assertFalse(choice.is_sample_due)

    def test_measurements_that_cannot_be_are_left_out(self) -> None:
        self.choice.compressed(0, 9, 0.1)
        self.choice.compressed(MB, 9, 0.0)
        self.assertEqual(self.choice.compress_rate, 0.0)


class SampleTests(ChoiceTestCase):
    """While nothing is compressed, a sample now and then tells whether it would pay."""

    def test_due_at_first_and_every_64_checkpoints(self) -> None:
        self.assertTrue(self.choice.is_sample_due)
        self.choice.sample(memoryview(state(5000)))
        self.assertFalse(self.choice.is_sample_due)
        self.link(1000 * MB, times=63)
        self.assertFalse(self.choice.is_sample_due)
        self.link(1000 * MB, times=1)
        self.assertTrue(self.choice.is_sample_due)

    def test_it_is_measured_and_bounded(self) -> None:
        self.choice.sample(memoryview(bytes(SAMPLE_BYTES * 2)))
        self.assertAlmostEqual(self.choice.compress_rate, SAMPLE_BYTES / 0.001, 3)
        self.assertLess(self.choice.ratio, 0.01)

    def test_an_empty_one_says_nothing(self) -> None:
        self.choice.sample(memoryview(b""))
        self.assertEqual(self.choice.compress_rate, 0.0)

    def test_not_while_compressing(self) -> None:
        self.compressor(700 * MB, 0.4)
        self.link(MB, times=200)
        self.assertFalse(self.choice.is_sample_due)

    def test_not_at_once_after_compressing_did_not_pay(self) -> None:
        self.compressor(700 * MB, 0.4)
        self.link(MB)
        self.compressor(700 * MB, 1.0)
        self.assertIs(self.choice.encoding, Encoding.RAW)
        self.assertFalse(self.choice.is_sample_due)
        self.link(MB, times=64)
        self.assertTrue(self.choice.is_sample_due)
