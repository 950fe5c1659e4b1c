"""The memory sink: its limit, and what becomes of its blocks; and the blocks themselves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks import MemorySink
from ftd.sinks.blocks import BLOCK_SIZE, BlockPool, BlockRun
from ftd.sinks.sink import SinkError
from ftd.status import Checkpoint
from ftd.test.wire.profile import examples
from ftd.testing.sink_suite import commit_state, content, state, write_state
from ftd.wire.errors import ErrorCode


class LimitTests(SynchronousTestCase):
    """``memory-limit`` is for all checkpoints and the open transaction, in whole blocks."""

    def setUp(self) -> None:
        self.sink = MemorySink(keep=2, limit=4 * BLOCK_SIZE)

    def committed(self, blocks: float, seed: int = 0) -> Checkpoint:
        return self.successResultOf(commit_state(self.sink, state(int(blocks * BLOCK_SIZE), seed)))

    def refused(self, blocks: float) -> SinkError:
        failure = self.failureResultOf(commit_state(self.sink, state(int(blocks * BLOCK_SIZE))), SinkError)
        assert isinstance(failure.value, SinkError)
        return failure.value

    def test_up_to_the_limit(self) -> None:
        self.assertEqual(self.committed(1).number, 1)
        self.assertEqual(self.committed(3).number, 2)

    def test_one_byte_more_than_the_limit(self) -> None:
        self.committed(1)
        error = self.refused(3 + 1 / BLOCK_SIZE)
        self.assertIs(error.code, ErrorCode.REALLOC_BUF)
        self.assertEqual(
            error.detail,
            f"1 checkpoints and this one need more than memory-limit, {4 * BLOCK_SIZE} bytes; raise it or lower keep",
        )

    def test_the_memory_is_given_back_at_once_and_the_rest_is_not_kept(self) -> None:
        self.committed(2)
        write_state(self.sink, state(3 * BLOCK_SIZE))
        assert self.sink._open is not None
        self.assertEqual(self.sink._open.blocks, [])
        self.failureResultOf(self.sink.commit(0, "", ""), SinkError)

    def test_what_was_there_stays_and_the_next_that_fits_is_taken(self) -> None:
        self.committed(2, seed=1)
        self.refused(2.5)
        self.assertTrue(content(self.sink, 1) == state(2 * BLOCK_SIZE, 1))
        self.assertEqual(self.committed(2).number, 2)

    def test_a_refused_one_that_is_aborted_is_forgotten(self) -> None:
        write_state(self.sink, state(5 * BLOCK_SIZE))
        self.sink.abort()
        self.assertEqual(self.committed(4).number, 1)

    def test_what_is_pruned_no_longer_counts(self) -> None:
        # There are three for a moment: two that are held and the one that comes in.
        self.sink = MemorySink(keep=2, limit=6 * BLOCK_SIZE)
        for number in range(1, 6):
            self.assertEqual(self.committed(1.3, seed=number).number, number)

    def test_many_small_ones_take_a_block_each(self) -> None:
        sink = MemorySink(keep=100, limit=4 * BLOCK_SIZE)
        for _ in range(4):
            self.successResultOf(commit_state(sink, b"x"))
        self.failureResultOf(commit_state(sink, b"x"), SinkError)

    def test_an_empty_one_takes_none(self) -> None:
        sink = MemorySink(keep=100, limit=BLOCK_SIZE)
        for _ in range(5):
            self.successResultOf(commit_state(sink, b""))
        self.assertEqual(self.successResultOf(commit_state(sink, b"x")).number, 6)


class ReuseTests(SynchronousTestCase):
    """Memory that was touched is used again, and never while somebody reads it."""

    def setUp(self) -> None:
        self.sink = MemorySink(keep=1, limit=1 << 30)
        self.ids: list[set[int]] = []

    def commit(self, seed: int, blocks: int = 3) -> None:
        self.successResultOf(commit_state(self.sink, state(blocks * BLOCK_SIZE, seed)))
        self.ids.append({id(block) for block in self.sink._held[-1].run.blocks})

    def test_the_blocks_of_a_pruned_checkpoint_are_used_again(self) -> None:
        for seed in range(5):
            self.commit(seed)
        self.assertEqual(self.ids[0], self.ids[2])
        self.assertEqual(self.ids[1], self.ids[3])
        self.assertEqual(self.ids[2], self.ids[4])

    def test_no_more_is_kept_than_the_next_one_needs(self) -> None:
        self.commit(0, blocks=10)
        self.commit(1, blocks=2)
        self.assertEqual(len(self.sink._pool._free), 2)

    def test_a_reader_keeps_its_blocks_until_it_closes(self) -> None:
        self.commit(0)
        file = self.sink.open(1)
        other = self.sink.open(1)
        for seed in range(1, 4):
            self.commit(seed)
            self.assertEqual(self.ids[0] & self.ids[-1], set())
        file.close()
        self.commit(4)
        self.assertEqual(self.ids[0] & self.ids[-1], set())
        self.assertTrue(other.read() == state(3 * BLOCK_SIZE, 0))
        other.close()
        self.assertEqual(len(self.sink._pool._free), 3)

    def test_a_reader_that_closes_before_the_pruning_changes_nothing(self) -> None:
        self.commit(0)
        self.sink.open(1).close()
        self.assertTrue(content(self.sink, 1) == state(3 * BLOCK_SIZE, 0))

    def test_a_reader_that_is_forgotten_is_closed(self) -> None:
        self.commit(0)
        file = self.sink.open(1)
        self.commit(1)
        self.assertEqual(len(self.sink._pool._free), 0)
        del file
        self.assertEqual(len(self.sink._pool._free), 3)

    def test_the_blocks_of_an_aborted_transaction_go_back(self) -> None:
        self.commit(0)
        write_state(self.sink, state(2 * BLOCK_SIZE))
        assert self.sink._open is not None
        blocks = {id(block) for block in self.sink._open.blocks}
        self.sink.abort()
        self.commit(1, blocks=2)
        self.assertEqual(self.ids[-1], blocks)


class SeekTests(SynchronousTestCase):
    """Where a reader cannot go."""

    def test_before_the_beginning(self) -> None:
        sink = MemorySink(keep=1, limit=1 << 30)
        self.successResultOf(commit_state(sink, b"abc"))
        with sink.open(1) as file:
            self.assertEqual(file.seek(-100, 2), 0)
            self.assertEqual(file.seek(-100, 1), 0)
            self.assertEqual(file.read(), b"abc")


class BlockRunTests(SynchronousTestCase):
    """Bytes in blocks."""

    @given(
        st.lists(st.sampled_from([0, 1, 100, BLOCK_SIZE - 1, BLOCK_SIZE, BLOCK_SIZE + 1, 3 * BLOCK_SIZE]), max_size=5)
    )
    @examples(40)
    def test_what_is_written_is_there_in_order(self, sizes: list[int]) -> None:
        run = BlockRun(BlockPool(spare=0))
        expected = b""
        for seed, size in enumerate(sizes):
            self.assertEqual(run.blocks_for(size), -(-(len(expected) + size) // BLOCK_SIZE))
            run.write(state(size, seed))
            expected += state(size, seed)
            self.assertEqual(len(run.blocks), run.blocks_for(0))
        self.assertEqual(run.size, len(expected))
        self.assertTrue(b"".join(run.blocks)[: run.size] == expected)

    def test_a_released_run_is_empty(self) -> None:
        pool = BlockPool(spare=2)
        run = BlockRun(pool)
        run.write(bytes(3 * BLOCK_SIZE))
        run.release()
        self.assertEqual((run.size, run.blocks), (0, []))
        self.assertEqual(len(pool._free), 2)
        run.write(b"abc")
        self.assertEqual(len(pool._free), 1)
        self.assertEqual(bytes(run.blocks[0][:3]), b"abc")

    def test_a_pool_that_keeps_less_than_before_takes_nothing_back(self) -> None:
        pool = BlockPool(spare=3)
        pool.give([bytearray(), bytearray(), bytearray()])
        pool.spare = 1
        blocks = [bytearray()]
        pool.give(blocks)
        self.assertEqual(blocks, [])
        self.assertEqual(len(pool._free), 3)
