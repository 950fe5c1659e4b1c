"""Frames in a queue: whatever pieces they come and go in."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.blocks import BLOCK_SIZE
from ftd.test.vm.netgate_case import framed, numbered
from ftd.test.wire.profile import examples
from ftd.vm.netgate_frames import LONGEST_FRAME, BadFrame, FrameQueue, frames_in


def put(queue: FrameQueue, data: bytes, epoch: int | None = 0, most: int = 1 << 30) -> int:
    """Receive bytes, no more than ``most`` at a time; the frames that became whole."""
    frames = 0
    while data:
        room = queue.room()
        size = min(len(room), len(data), most)
        room[:size] = data[:size]
        frames += queue.received(size, epoch)
        data = data[size:]
    return frames


def take(queue: FrameQueue, most: int = 1 << 30) -> bytes:
    """All that may leave, no more than ``most`` at a time."""
    out = bytearray()
    while (piece := queue.front()) is not None:
        gone = piece[:most]
        out += gone
        queue.sent(len(gone))
    return bytes(out)


class FrameQueueTests(SynchronousTestCase):
    """What comes in goes out."""

    def setUp(self) -> None:
        self.queue = FrameQueue()

    @given(
        st.lists(st.sampled_from([1, 14, 60, 1514, 9000, 65550, LONGEST_FRAME]), min_size=1, max_size=60),
        st.sampled_from([1, 3, 1000, 100_000, 1 << 30]),
        st.sampled_from([7, 1000, 100_000, 1 << 30]),
        st.integers(0, 3),
    )
    @examples(60)
    def test_the_same_bytes_in_the_same_order(self, sizes: list[int], reads: int, writes: int, epochs: int) -> None:
        if reads < 1000 or writes < 1000:
            sizes = [min(size, 1514) for size in sizes]
        queue = FrameQueue()
        chance = random.Random(len(sizes))
        expected, out, held = b"", b"", 0
        for number, size in enumerate(sizes):
            data = framed(number.to_bytes(4, "big").ljust(size, b"x")[:size])
            expected += data
            held += put(queue, data, number * epochs // 10, reads)
            self.assertEqual(queue.frames, held)
            self.assertEqual(queue.bytes, len(expected) - len(out))
            if chance.random() < 0.2:
                queue.released = chance.randrange(queue.released, number * epochs // 10 + 1)
                out += take(queue, writes)
                held = queue.frames
        queue.released = 100
        out += take(queue, writes)
        self.assertTrue(out == expected)
        self.assertEqual((queue.frames, queue.bytes), (0, 0))

    def test_nothing_of_an_epoch_that_is_not_released_leaves(self) -> None:
        for epoch in (0, 1, 1, 2, 3):
            put(self.queue, framed(numbered(epoch, 1)[0]), epoch)
        out = []
        for released in (0, 1, 2):
            self.queue.released = released
            out.append(take(self.queue).count(b"x" * 56))
        self.assertEqual(out, [1, 2, 1])
        self.assertEqual(self.queue.frames, 1)

    def test_frames_that_nobody_wants_are_counted_and_not_kept(self) -> None:
        self.assertEqual(put(self.queue, framed(*numbered(0, 3)), None, 10), 3)
        self.assertEqual((self.queue.frames, self.queue.front()), (0, None))
        put(self.queue, framed(b"after"))
        self.assertEqual(take(self.queue), framed(b"after"))

    def test_a_frame_belongs_to_the_epoch_in_which_it_is_whole(self) -> None:
        data = framed(b"one frame")
        put(self.queue, data[:6], 1)
        self.queue.released = 1
        put(self.queue, data[6:], 2)
        self.assertIsNone(self.queue.front())

    def test_how_many_frames_are_gone(self) -> None:
        put(self.queue, framed(b"abc", b"defg", b"h"))
        self.assertEqual([self.queue.sent(size) for size in (6, 1, 9, 3, 1)], [0, 1, 1, 0, 1])

    def test_lengths_that_no_frame_has(self) -> None:
        for length in (0, LONGEST_FRAME + 1, 0xFFFFFFFF):
            queue = FrameQueue()
            error = self.assertRaises(BadFrame, put, queue, framed(b"good") + length.to_bytes(4, "big") + b"rest")
            self.assertIn(f"a frame of {length} bytes", str(error))
            queue.forget_begun()
            put(queue, framed(b"next"))
            self.assertEqual(take(queue), framed(b"good", b"next"))

    def test_the_beginning_of_a_frame_can_be_forgotten(self) -> None:
        put(self.queue, framed(b"good") + framed(b"never whole")[:9])
        self.queue.forget_begun()
        put(self.queue, framed(b"next"))
        self.assertEqual(take(self.queue), framed(b"good", b"next"))

    def test_a_frame_that_went_in_part_can_go_again(self) -> None:
        put(self.queue, framed(b"first", b"second"))
        self.queue.sent(9 + 3)
        self.queue.rewind()
        self.assertEqual(take(self.queue), framed(b"second"))

    def test_frames_one_at_a_time_without_a_header(self) -> None:
        for frame in (b"first", b"second"):
            self.queue.room()[4 : 4 + len(frame)] = frame
            self.assertEqual(self.queue.received_frame(len(frame), 0), 1)
        self.assertEqual(take(self.queue), framed(b"first", b"second"))

    def test_a_piece_is_taken_apart(self) -> None:
        self.assertEqual([bytes(one) for one in frames_in(memoryview(framed(b"a", b"bc")))], [b"a", b"bc"])


class DiscardTests(SynchronousTestCase):
    """Nothing, or the rest of one frame, is left."""

    def setUp(self) -> None:
        self.queue = FrameQueue()

    def test_all_of_it(self) -> None:
        put(self.queue, framed(*numbered(0, 5)), 1)
        put(self.queue, framed(*numbered(5, 5)), 2)
        self.assertEqual(self.queue.discard(), 10)
        self.assertEqual((self.queue.frames, self.queue.bytes), (0, 0))
        self.queue.released = 2
        self.assertIsNone(self.queue.front())

    def test_the_rest_of_a_frame_still_goes(self) -> None:
        put(self.queue, framed(b"first", b"second"), 0)
        put(self.queue, framed(b"third"), 1)
        self.queue.sent(3)
        self.assertEqual(self.queue.discard(), 2)
        self.assertEqual((self.queue.frames, self.queue.bytes), (1, 9))
        put(self.queue, framed(b"later"), 0)
        self.assertEqual(take(self.queue), framed(b"first", b"later")[3:])

    def test_a_frame_that_is_coming_in_is_not_cut(self) -> None:
        data = framed(b"coming in")
        put(self.queue, framed(b"held") + data[:7], 1)
        self.queue.discard()
        put(self.queue, data[7:], 0)
        self.assertEqual(take(self.queue), data)

    def test_blocks_are_used_again_and_never_by_two(self) -> None:
        frames = numbered(0, 4 * BLOCK_SIZE // 60_000, 60_000)
        for sent in (0, 3):
            for _ in range(3):
                put(self.queue, framed(*frames), 0)
                if sent:
                    self.queue.sent(sent)
                self.queue.discard()
                take(self.queue)
            free = [id(block) for block in self.queue._pool._free] + [id(self.queue._block)]
            self.assertEqual(len(free), len(set(free)))
            put(self.queue, framed(*frames))
            self.assertTrue(take(self.queue) == framed(*frames))

    def test_the_rest_of_a_frame_stays_as_it_is_while_others_come(self) -> None:
        # Many enough for the first to lie in a block that the queue has done with but for it.
        frames = numbered(0, 2 * BLOCK_SIZE // 60_000, 60_000)
        put(self.queue, framed(*frames))
        self.queue.sent(3)
        self.queue.discard()
        put(self.queue, framed(*reversed(frames)))
        self.assertTrue(take(self.queue) == framed(frames[0], *reversed(frames))[3:])


class MemoryTests(SynchronousTestCase):
    """A queue takes about as much memory as there is in it."""

    def test_what_trickles_through_stays_in_one_block(self) -> None:
        queue = FrameQueue()
        block = queue._block
        for number in range(3 * BLOCK_SIZE // 9000):
            put(queue, framed(*numbered(number, 1, 9000)), 0)
            take(queue)
        self.assertIs(queue._block, block)

    def test_blocks_that_are_done_with_come_back_while_others_are_in_use(self) -> None:
        queue = FrameQueue()
        # Kept, so that no other block can get the id of one that was given up.
        seen = {}
        for number in range(20 * BLOCK_SIZE // 60_000):
            put(queue, framed(*numbered(number, 1, 60_000)), number)
            queue.released = number - 5
            take(queue)
            seen[id(queue._block)] = queue._block
        self.assertEqual(len(seen), 2)
