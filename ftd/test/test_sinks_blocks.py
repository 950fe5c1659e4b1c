"""Blocks of memory: their sizes, what is kept of them, and bytes that lie in them."""

from __future__ import annotations

import mmap
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks.blocks import BLOCK_SIZE, LARGEST, MOST_ROOM, SMALLEST, Arena, BlockPool, BlockRun, Share
from ftd.test.wire.profile import examples
from ftd.testing.sink_suite import state

NO_LIMIT = 1 << 40

SIZES = st.sampled_from([1, 100, SMALLEST - 1, SMALLEST, 3 * SMALLEST, 65536, 65537, BLOCK_SIZE, 3 * BLOCK_SIZE + 1])


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


class BlockRunTests(SynchronousTestCase):
    """Bytes in blocks."""

    @given(st.lists(st.tuples(SIZES, st.booleans(), st.integers(0, 100)), max_size=6))
    @examples(80)
    def test_what_is_written_or_filled_is_there_in_order(self, steps: list[tuple[int, bool, int]]) -> None:
        run = BlockRun(Arena())
        expected = b""
        for seed, (size, in_place, percent) in enumerate(steps):
            if in_place:
                places = run.room(size, NO_LIMIT)
                room = sum(map(len, places))
                self.assertTrue(min(size, MOST_ROOM) <= room <= size)
                for place in places:
                    place[:] = b"\xee" * len(place)
                # Asked again it is the same.
                filled = room * percent // 100
                data, done = state(filled, seed), 0
                for place in run.room(filled, NO_LIMIT):
                    place[:] = data[done : done + len(place)]
                    done += len(place)
                self.assertEqual(done, filled)
                run.filled(filled)
            else:
                data = state(size, seed)
                self.assertTrue(run.write(data, NO_LIMIT))
            expected += data
            self.assertEqual(run.capacity, sum(map(len, run.blocks)))
        self.assertEqual(run.size, len(expected))
        run.settle()
        self.assertTrue(b"".join(run.views(0, run.size)) == expected)

    @given(st.lists(SIZES, max_size=8), st.data())
    @examples(60)
    def test_blocks_that_are_full_can_be_taken_away(self, sizes: list[int], data: st.DataObject) -> None:
        run = BlockRun(Arena(), BLOCK_SIZE)
        expected = taken = b""
        for seed, size in enumerate(sizes):
            run.write(state(size, seed), NO_LIMIT)
            expected += state(size, seed)
            if data.draw(st.booleans()):
                full = run.take_full()
                self.assertTrue(all(len(block) <= BLOCK_SIZE for block in full))
                taken += b"".join(full)
        self.assertEqual((run.before, run.size), (len(taken), len(expected) - len(taken)))
        run.settle()
        self.assertTrue(taken + b"".join(run.views(0, run.size)) == expected)

    def test_what_is_left_can_be_looked_at_after_some_was_taken_away(self) -> None:
        run = BlockRun(Arena(), BLOCK_SIZE)
        data = state(17 * SMALLEST)
        for at in range(0, len(data), SMALLEST):
            run.write(data[at : at + SMALLEST], NO_LIMIT)
        self.assertTrue(b"".join(run.views(0, len(data))) == data)
        self.assertTrue(b"".join(run.take_full()) == data[: 16 * SMALLEST])
        more = state(15 * 65536 + BLOCK_SIZE, 2)
        run.write(more, NO_LIMIT)
        # As many blocks as before, of other sizes.
        self.assertEqual([len(block) for block in run.blocks], [65536] * 15 + [BLOCK_SIZE] * 2)
        self.assertTrue(b"".join(run.views(0, run.size)) == data[16 * SMALLEST :] + more)

    def test_no_transaction_takes_twice_what_it_needs(self) -> None:
        for size in (1, SMALLEST, 5000, 65536, 70_000, BLOCK_SIZE, 2 * BLOCK_SIZE + 1, 9 * BLOCK_SIZE):
            run = BlockRun(Arena())
            for _ in range(0, size, 1000):
                run.write(bytes(1000), NO_LIMIT)
            run.settle()
            self.assertLess(run.capacity, 2 * max(run.size, SMALLEST), size)

    def test_a_large_one_takes_large_blocks(self) -> None:
        run = BlockRun(Arena())
        for _ in range(16):
            run.write(bytes(BLOCK_SIZE), NO_LIMIT)
        self.assertEqual([len(block) for block in run.blocks], [BLOCK_SIZE] * 4 + [LARGEST] * 3)
        self.assertIsInstance(run.blocks[-1].obj, mmap.mmap)

    def test_a_large_block_is_there_before_it_is_written(self) -> None:
        run = BlockRun(Arena())
        before = resident()
        places = run.room(BLOCK_SIZE, NO_LIMIT)
        self.assertGreaterEqual(resident() - before, BLOCK_SIZE)
        self.assertEqual(sum(map(len, places)), BLOCK_SIZE)

    def test_near_the_limit_smaller_blocks_use_it_up(self) -> None:
        limit = BLOCK_SIZE + 65536 + 2 * SMALLEST + 17
        run = BlockRun(Arena())
        self.assertTrue(run.write(bytes(BLOCK_SIZE), limit))
        self.assertTrue(run.write(bytes(65536 + 2 * SMALLEST), limit))
        self.assertEqual(len(run.room(1, limit)), 0)
        self.assertFalse(run.write(b"x", limit))

    def test_more_than_there_was_room_for_cannot_be_filled(self) -> None:
        run = BlockRun(Arena())
        run.room(SMALLEST, NO_LIMIT)
        self.assertRaises(AssertionError, run.filled, SMALLEST + 1)

    def test_a_released_run_is_empty(self) -> None:
        run = BlockRun(Arena())
        run.write(bytes(3 * BLOCK_SIZE), NO_LIMIT)
        run.release()
        self.assertEqual((run.size, run.capacity, run.blocks), (0, 0, []))
        run.write(b"abc", NO_LIMIT)
        self.assertEqual(b"".join(run.views(0, 3)), b"abc")


class ArenaTests(SynchronousTestCase):
    """What is kept for later."""

    def setUp(self) -> None:
        self.arena = Arena()
        self.share = Share(self.arena)

    def run_of(self, size: int) -> BlockRun:
        run = BlockRun(self.arena)
        run.write(bytes(size), NO_LIMIT)
        return run

    def test_nothing_that_nobody_expects_to_need(self) -> None:
        self.run_of(9 * BLOCK_SIZE).release()
        self.assertEqual(self.arena.unused, 0)

    def test_what_the_next_one_needs_and_no_more(self) -> None:
        for size in (9 * BLOCK_SIZE, 5 * SMALLEST, 3 * BLOCK_SIZE):
            run, other = self.run_of(size), self.run_of(size)
            self.share.expect(run)
            needed = run.capacity
            run.release()
            other.release()
            self.assertEqual(self.arena.unused, needed)
            blocks = {id(block) for block in self.run_of(size).blocks}
            self.assertEqual(self.arena.unused, 0)
            self.assertEqual(len(blocks), len(run.blocks) or len(blocks))

    def test_what_is_no_longer_expected_goes_at_once(self) -> None:
        run = self.run_of(9 * BLOCK_SIZE)
        self.share.expect(run)
        run.release()
        self.share.expect_blocks([BLOCK_SIZE, SMALLEST])
        self.assertEqual(self.arena.unused, BLOCK_SIZE)

    def test_several_shares_add_up(self) -> None:
        other = Share(self.arena)
        for share in (self.share, other):
            share.expect_blocks([BLOCK_SIZE] * 2)
        self.run_of(5 * BLOCK_SIZE).release()
        self.assertEqual(self.arena.unused, 4 * BLOCK_SIZE)
        del other, share
        self.assertEqual(self.arena.unused, 2 * BLOCK_SIZE)


class BlockPoolTests(SynchronousTestCase):
    """Blocks of one size for one user."""

    def test_as_many_as_it_is_to_keep(self) -> None:
        pool = BlockPool(spare=2)
        blocks = [pool.take() for _ in range(3)]
        first = blocks[0]
        pool.give(blocks)
        self.assertEqual(blocks, [])
        self.assertEqual(len(pool._free), 2)
        self.assertIn(first, [pool.take(), pool.take()])

    def test_a_pool_that_keeps_less_than_before_takes_nothing_back(self) -> None:
        pool = BlockPool(spare=3)
        pool.give([bytearray(), bytearray(), bytearray()])
        pool.spare = 1
        blocks = [bytearray()]
        pool.give(blocks)
        self.assertEqual(blocks, [])
        self.assertEqual(len(pool._free), 3)
