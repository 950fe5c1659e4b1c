"""The memory sink: its limit, what becomes of its blocks, and readers that look straight at them."""

from __future__ import annotations

from typing import cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from ftd.sinks import MemorySink
from ftd.sinks.blocks import BLOCK_SIZE, SMALLEST, Arena
from ftd.sinks.memory import MemoryReader
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
        sink = MemorySink(keep=100, limit=4 * SMALLEST)
        for _ in range(4):
            self.successResultOf(commit_state(sink, b"x"))
        self.failureResultOf(commit_state(sink, b"x"), SinkError)

    def test_an_empty_one_takes_none(self) -> None:
        sink = MemorySink(keep=100, limit=SMALLEST)
        for _ in range(5):
            self.successResultOf(commit_state(sink, b""))
        self.assertEqual(self.successResultOf(commit_state(sink, b"x")).number, 6)

    def test_room_that_was_not_filled_does_not_count(self) -> None:
        sink = MemorySink(keep=100, limit=4 * BLOCK_SIZE)
        for number in range(1, 9):
            sink.begin()
            sink.write(b"x")
            self.assertEqual(sum(map(len, sink.room(BLOCK_SIZE))), BLOCK_SIZE)
            self.assertEqual(self.successResultOf(sink.commit(0, "", "")).number, number)
        self.assertEqual(sink._account.bytes, sum(held.run.capacity for held in sink._held))
        self.assertTrue(all(len(held.run.blocks) == 1 for held in sink._held))

    def test_no_room_is_given_over_the_limit(self) -> None:
        self.committed(3)
        self.sink.begin()
        given = 0
        while places := self.sink.room(BLOCK_SIZE):
            given += sum(map(len, places))
            self.sink.filled(sum(map(len, places)))
        self.assertEqual(given, BLOCK_SIZE)
        self.assertIsNone(self.sink.failure())
        self.sink.write(b"x")
        self.assertIsNotNone(self.sink.failure())
        self.assertEqual(list(self.sink.room(1)), [])
        self.sink.filled(1)
        self.failureResultOf(self.sink.commit(0, "", ""), SinkError)

    def test_one_that_is_pruned_and_still_being_read_counts(self) -> None:
        self.sink = MemorySink(keep=1, limit=4 * BLOCK_SIZE)
        self.committed(2, seed=1)
        reader = self.sink.open(1)
        self.committed(1)
        self.committed(1)
        self.assertEqual(
            self.refused(2).detail,
            f"1 checkpoints and this one need more than memory-limit, {4 * BLOCK_SIZE} bytes (1 older ones are still"
            " being read); raise it or lower keep",
        )
        self.assertTrue(reader.read() == state(2 * BLOCK_SIZE, 1))
        reader.close()
        self.assertEqual(self.committed(2).number, 4)


class ReuseTests(SynchronousTestCase):
    """Memory that was touched is used again, and never while somebody reads it."""

    def setUp(self) -> None:
        self.arena = Arena()
        self.sink = MemorySink(keep=1, limit=1 << 30, arena=self.arena)
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
        self.assertEqual(self.arena.unused, 2 * BLOCK_SIZE)

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
        self.assertEqual(self.arena.unused, 3 * BLOCK_SIZE)

    def test_a_reader_that_closes_before_the_pruning_changes_nothing(self) -> None:
        self.commit(0)
        self.sink.open(1).close()
        self.assertTrue(content(self.sink, 1) == state(3 * BLOCK_SIZE, 0))

    def test_a_reader_that_is_forgotten_is_closed(self) -> None:
        self.commit(0)
        file = self.sink.open(1)
        self.commit(1)
        self.assertEqual(self.arena.unused, 0)
        del file
        self.assertEqual(self.arena.unused, 3 * BLOCK_SIZE)

    def test_the_blocks_of_an_aborted_transaction_go_back(self) -> None:
        self.commit(0)
        write_state(self.sink, state(2 * BLOCK_SIZE))
        assert self.sink._open is not None
        blocks = {id(block) for block in self.sink._open.blocks}
        self.sink.abort()
        self.commit(1, blocks=2)
        self.assertEqual(self.ids[-1], blocks)

    def test_what_one_pair_gives_back_another_takes(self) -> None:
        self.commit(0)
        self.commit(1)
        given = self.ids[0]
        other = MemorySink(keep=1, limit=1 << 30, arena=self.arena)
        self.successResultOf(commit_state(other, state(3 * BLOCK_SIZE)))
        self.assertEqual({id(block) for block in other._held[-1].run.blocks}, given)

    def test_the_memory_of_a_pair_that_is_gone_is_not_kept(self) -> None:
        for seed in range(3):
            self.commit(seed)
        self.assertEqual(self.arena.unused, 3 * BLOCK_SIZE)
        del self.sink
        self.assertEqual(self.arena.unused, 0)

    def test_a_transaction_of_4_kib_takes_4_kib(self) -> None:
        sink = MemorySink(keep=8, limit=1 << 30)
        for _ in range(9):
            sink.begin()
            (place,) = sink.room(4096)
            self.assertEqual(len(place), 4096)
            sink.filled(4096)
            self.successResultOf(sink.commit(0, "", ""))
        self.assertEqual(sink._account.bytes, 8 * 4096)
        self.assertEqual(sink._arena.unused, 4096)


class ViewTests(SynchronousTestCase):
    """A checkpoint as it lies in memory."""

    def setUp(self) -> None:
        self.sink = MemorySink(keep=1, limit=1 << 30)
        self.data = state(2 * BLOCK_SIZE + 100)
        self.successResultOf(commit_state(self.sink, self.data))
        self.reader = cast(MemoryReader, self.sink.open(1))

    def test_any_part_of_it(self) -> None:
        edges = [0, 1, 64 * 1024, BLOCK_SIZE, 2 * BLOCK_SIZE, len(self.data)]
        places = st.sampled_from(edges).flatmap(lambda edge: st.integers(max(0, edge - 3), edge + 3))

        @examples(60)
        @given(places, places)
        def property(first: int, end: int) -> None:
            views = list(self.reader.views(first, end))
            self.assertTrue(b"".join(views) == self.data[first:end], (first, end))
            self.assertTrue(all(view and view.readonly for view in views))

        property()

    def test_it_is_no_copy(self) -> None:
        views = list(self.reader.views(0, len(self.data)))
        blocks = self.sink._held[-1].run.blocks
        self.assertEqual([view.obj for view in views], [block.obj for block in blocks])

    def test_what_is_looked_at_is_not_used_again_before_the_reader_closes(self) -> None:
        views = list(self.reader.views(0, len(self.data)))
        for seed in range(1, 4):
            self.successResultOf(commit_state(self.sink, state(2 * BLOCK_SIZE, seed)))
        self.assertTrue(b"".join(views) == self.data)

    def test_nothing_is_to_be_seen_through_a_closed_one(self) -> None:
        self.reader.close()
        self.assertRaises(ValueError, self.reader.views, 0, 1)


class SeekTests(SynchronousTestCase):
    """Where a reader cannot go."""

    def test_before_the_beginning(self) -> None:
        sink = MemorySink(keep=1, limit=1 << 30)
        self.successResultOf(commit_state(sink, b"abc"))
        with sink.open(1) as file:
            self.assertEqual(file.seek(-100, 2), 0)
            self.assertEqual(file.seek(-100, 1), 0)
            self.assertEqual(file.read(), b"abc")
