"""The directory sink: its files, the order of its system calls, and what it finds when it starts."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ftd.sinks import DirectorySink
from ftd.sinks.blocks import BLOCK_SIZE, SMALLEST
from ftd.sinks.sink import SinkError
from ftd.status import Checkpoint
from ftd.test.disk_case import Disk, DiskTestCase
from ftd.testing.sink_suite import OURS, THEIRS, CountingProducer, commit_state, content, digest, state, write_state
from ftd.testing.threads import SteppedThread


class FileTests(DiskTestCase):
    """What stands in the directory."""

    def test_a_checkpoint_is_a_file_whose_name_says_everything(self) -> None:
        data = state(1000)
        self.committed(self.recovered(), data, id=7)
        self.assertEqual(self.names(), [f"0000000001.00007.{OURS}.{digest(data)}.checkpoint"])
        self.assertEqual((self.directory / self.names()[0]).read_bytes(), data)

    def test_a_kemari_sender_has_no_generation(self) -> None:
        self.successResultOf(commit_state(self.recovered(), b"abc", generation=""))
        self.assertEqual(self.names(), [f"0000000001.00000..{digest(b'abc')}.checkpoint"])
        self.assertEqual(self.recovered().checkpoints()[0].generation, "")

    def test_nobody_else_may_look(self) -> None:
        previous = os.umask(0)
        self.addCleanup(os.umask, previous)
        sink = self.filled(1)
        write_state(sink, state(2 * BLOCK_SIZE))
        self.assertEqual(len(self.names()), 2)
        for path in self.directory.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path.name)
        self.assertEqual(stat.S_IMODE(self.directory.stat().st_mode), 0o700)

    def test_the_time_of_the_commit_is_the_time_of_the_file(self) -> None:
        self.committed(self.recovered(), b"abc")
        self.assertEqual((self.directory / self.names()[0]).stat().st_mtime, self.now)
        self.now += 100
        self.assertEqual(self.recovered().checkpoints()[0].committed_at, 1_700_000_000.5)

    def test_state_is_written_as_it_arrives(self) -> None:
        sink = self.recovered()
        write_state(sink, state(3 * BLOCK_SIZE + 5))
        self.assertEqual(self.names(), ["incoming.partial"])
        self.assertEqual((self.directory / "incoming.partial").stat().st_size, 3 * BLOCK_SIZE)

    def test_abort_leaves_nothing(self) -> None:
        sink = self.recovered()
        write_state(sink, state(3 * BLOCK_SIZE + 5))
        sink.abort()
        self.assertEqual(self.names(), [])

    def test_a_link_in_place_of_the_partial_file_is_not_followed(self) -> None:
        sink = self.filled(1)
        victim = Path(self.mktemp())
        victim.write_bytes(b"precious")
        (self.directory / "incoming.partial").symlink_to(victim.absolute())
        self.failureResultOf(commit_state(sink, b"abc"), SinkError)
        self.assertEqual(victim.read_bytes(), b"precious")

    def test_a_checkpoint_that_somebody_removed_is_not_found(self) -> None:
        sink = self.filled(1, 2)
        (self.directory / self.names()[0]).unlink()
        self.assertRaises(KeyError, sink.open, 1)
        self.assertEqual(content(sink, 2), state(1000, 2))


class SystemCallTests(DiskTestCase):
    """A checkpoint counts once file, name and directory are on the disk, in this order."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = Disk(self.directory, self.patch)

    def test_the_order_of_a_commit(self) -> None:
        sink = self.filled(1)
        self.disk.restart()
        self.committed(sink, state(1000))
        self.assertEqual(
            self.disk.log,
            [
                "open partial",
                "write partial",
                "utime partial",
                "fsync partial",
                "close partial",
                "rename partial to 2",
                "open directory",
                "fsync directory",
                "close directory",
            ],
        )

    def test_it_is_not_committed_before_that(self) -> None:
        thread = SteppedThread()
        sink = self.recovered(run_in_thread=thread)
        self.disk.restart()
        committing = commit_state(sink, state(1000))
        thread.step()
        self.assertNoResult(committing)
        self.assertEqual(list(sink.checkpoints()), [])
        thread.step()
        self.assertEqual(self.successResultOf(committing).number, 1)
        self.assertEqual(self.disk.log[-2:], ["fsync directory", "close directory"])

    def test_older_ones_go_after_that_and_never_before(self) -> None:
        thread = SteppedThread()
        sink = self.filled(1, 2)
        sink._run_in_thread = thread
        self.disk.restart()
        committing = commit_state(sink, b"abc")
        thread.step()
        thread.step()
        self.assertEqual(self.successResultOf(committing).number, 3)
        self.assertNotIn("unlink 1", self.disk.log)
        thread.step()
        self.assertEqual(self.disk.log[-2:], ["close directory", "unlink 1"])
        self.assertEqual(len(self.names()), 2)

    def test_the_kernel_is_told_to_write_before_too_much_has_piled_up(self) -> None:
        sink = self.recovered()
        # What is really written does not matter here.
        self.patch(os, "writev", lambda _descriptor, views: sum(map(len, views)))
        self.disk.restart()
        sink.begin()
        block = bytes(BLOCK_SIZE)
        for _ in range(10):
            sink.write(block)
        self.assertEqual(self.disk.log, ["open partial", "write back partial", "write back partial"])
        # All of it, and nothing twice.
        self.assertEqual(self.disk.written_back, [(0, 4 * BLOCK_SIZE), (4 * BLOCK_SIZE, 4 * BLOCK_SIZE)])
        sink.abort()

    def test_a_kernel_that_takes_a_little_at_a_time_gets_it_all(self) -> None:
        sink = self.recovered()
        data = state(2 * BLOCK_SIZE + 17)
        self.disk.most_written = 300_007
        self.committed(sink, data)
        self.assertTrue(content(sink, 1) == data)

    def test_an_abort_closes_and_removes(self) -> None:
        sink = self.recovered()
        write_state(sink, state(BLOCK_SIZE))
        self.disk.restart()
        sink.abort()
        self.assertEqual(self.disk.log, ["close partial", "unlink partial"])

    def test_an_abort_before_the_first_block_touches_nothing(self) -> None:
        sink = self.recovered()
        write_state(sink, state(1000))
        self.disk.restart()
        sink.abort()
        self.assertEqual(self.disk.log, [])


class RegulationTests(DiskTestCase):
    """The receiver is paused while the disk is behind."""

    def setUp(self) -> None:
        super().setUp()
        self.thread = SteppedThread()
        self.sink = self.recovered(run_in_thread=self.thread)
        self.producer = CountingProducer()
        self.sink.registerProducer(self.producer, True)

    def write_blocks(self, count: int) -> None:
        for seed in range(count):
            self.sink.write(state(BLOCK_SIZE, seed))

    def test_it_is_paused_at_eight_waiting_blocks_and_resumed_below_four(self) -> None:
        self.sink.begin()
        self.write_blocks(7)
        self.assertEqual(self.producer.calls, [])
        self.write_blocks(1)
        self.assertEqual(self.producer.calls, ["pause"])
        self.write_blocks(1)
        for _ in range(5):
            self.thread.step()
        self.assertEqual(self.producer.calls, ["pause"])
        self.thread.step()
        self.assertEqual(self.producer.calls, ["pause", "resume"])

    def test_nothing_is_lost_by_it(self) -> None:
        self.sink.begin()
        self.write_blocks(9)
        self.thread.run()
        self.write_blocks(9)
        committing = self.sink.commit(0, "0" * 16, OURS)
        self.thread.run()
        self.assertEqual(self.producer.calls, ["pause", "resume"] * 2)
        data = b"".join(state(BLOCK_SIZE, seed) for seed in range(9))
        self.assertEqual(self.successResultOf(committing).bytes, 18 * BLOCK_SIZE)
        self.assertTrue(content(self.sink, 1) == data + data)
        # As many blocks are kept as were on their way to the disk at a time.
        self.assertEqual(self.sink._arena.unused, 9 * BLOCK_SIZE)
        committing = commit_state(self.sink, b"abc")
        self.thread.run()
        self.successResultOf(committing)
        self.assertEqual(self.sink._arena.unused, SMALLEST)

    def test_a_producer_that_comes_while_the_disk_is_behind_is_paused_at_once(self) -> None:
        self.sink.begin()
        self.write_blocks(8)
        self.sink.unregisterProducer()
        self.sink.abort()
        late = CountingProducer()
        self.sink.registerProducer(late, True)
        self.assertEqual(late.calls, ["pause"])
        self.thread.run()
        self.assertEqual(late.calls, ["pause", "resume"])
        self.assertEqual(self.producer.calls, ["pause"])

    def test_blocks_are_used_again(self) -> None:
        # They are kept here, so none can have the identity of one that is gone.
        seen: list[memoryview] = []
        for _ in range(3):
            self.sink.begin()
            for seed in range(6):
                self.sink.write(state(BLOCK_SIZE // 2, seed))
                seen += [block for block in self.sink._run.blocks if not any(block is other for other in seen)]
                self.sink.write(state(BLOCK_SIZE // 2, seed))
                self.thread.run()
            committing = self.sink.commit(0, "0" * 16, OURS)
            self.thread.run()
            self.successResultOf(committing)
        # There are small ones for the first megabyte; the large one after that is back from the disk by the time that
        # it is needed again.
        self.assertEqual(len([block for block in seen if len(block) == BLOCK_SIZE]), 1)
        self.assertEqual(self.sink._arena.unused, BLOCK_SIZE)

    def test_a_pull_producer_is_refused(self) -> None:
        self.sink.unregisterProducer()
        self.assertRaises(AssertionError, self.sink.registerProducer, self.producer, False)


class RecoveryTests(DiskTestCase):
    """What a sink finds when it starts."""

    def test_a_directory_that_is_not_there_is_made(self) -> None:
        self.directory = self.directory / "a" / "b"
        self.assertEqual(list(self.recovered().checkpoints()), [])
        self.assertEqual(self.names(), [])

    def test_everything_is_known_again(self) -> None:
        sink = self.recovered()
        before = [
            self.successResultOf(commit_state(sink, state(10), 65535, OURS)),
            self.successResultOf(commit_state(sink, state(2 * BLOCK_SIZE + 1), 0, THEIRS)),
        ]
        self.assertEqual(self.recovered().checkpoints(), before)

    def test_numbers_go_on(self) -> None:
        self.filled(1, 2, 3)
        sink = self.recovered()
        self.assertEqual(self.committed(sink, b"abc").number, 4)
        self.assertEqual(self.check_whole(self.recovered()), [3, 4])

    def test_numbers_of_more_than_ten_digits_are_in_order(self) -> None:
        for number in (9_999_999_999, 10_000_000_000):
            name = f"{number:010}.00001.{OURS}.{digest(b'abc')}.checkpoint"
            self.recovered()
            (self.directory / name).write_bytes(b"abc")
        sink = self.recovered()
        self.assertEqual(self.check_whole(sink), [9_999_999_999, 10_000_000_000])
        self.assertEqual(self.committed(sink, b"x").number, 10_000_000_001)

    def test_what_a_crash_left_is_removed(self) -> None:
        self.filled(1)
        (self.directory / "incoming.partial").write_bytes(b"half")
        sink = self.recovered()
        self.assertEqual(self.check_whole(sink), [1])
        self.assertEqual(len(self.names()), 1)

    def test_what_is_not_a_checkpoint_is_left_alone(self) -> None:
        self.filled(1)
        good = self.names()[0]
        (self.directory / "subdirectory").mkdir()
        (self.directory / good.replace("0000000001", "0000000009")).mkdir()
        (self.directory / good.replace("0000000001", "0000000008")).symlink_to(good)
        foreign = [
            "notes.txt",
            good + "~",
            "x" + good,
            good.replace(".checkpoint", ""),
            good.replace("0000000001", "1"),
            good.replace(".00001.", ".1."),
            good.replace(".00001.", ".0000x."),
            f"0000000005.00001.{OURS}.short.checkpoint",
            f"0000000005.00001.not a uuid.{'0' * 16}.checkpoint",
            f"0000000005.00001.{'0' * 16}.checkpoint",
        ]
        for name in foreign:
            (self.directory / name).write_bytes(b"abc")
        before = self.names()
        sink = self.recovered()
        self.assertEqual(self.check_whole(sink), [1])
        self.assertEqual(self.names(), before)
        self.assertEqual(self.committed(sink, b"abc").number, 2)

    def test_a_lower_keep_prunes_with_the_next_commit_and_not_before(self) -> None:
        sink = self.recovered(keep=5)
        for number in range(1, 6):
            self.committed(sink, state(10, number))
        sink = self.recovered(keep=2)
        self.assertEqual(self.check_whole(sink), [1, 2, 3, 4, 5])
        write_state(sink, b"abc")
        sink.abort()
        self.assertEqual(len(self.names()), 5)
        self.committed(sink, b"abc")
        self.assertEqual(self.check_whole(sink), [5, 6])
        self.assertEqual(self.check_whole(self.recovered()), [5, 6])

    def test_what_pruning_left_is_pruned_later(self) -> None:
        sink = self.filled(1, 2)
        copy = self.names()[0]
        self.committed(sink, b"abc")
        (self.directory / copy).write_bytes(state(1000, 1))
        sink = self.recovered()
        self.assertEqual(self.check_whole(sink), [1, 2, 3])
        self.committed(sink, b"abc")
        self.assertEqual(self.check_whole(self.recovered()), [3, 4])

    def test_the_directories_that_are_made_are_made_durable(self) -> None:
        above = self.directory
        above.mkdir()
        synced: list[str] = []
        self.patch(os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}")))
        self.directory = above / "a" / "b"
        self.recovered()
        self.assertEqual(synced, [str(above.absolute()), str((above / "a").absolute())])
        synced.clear()
        self.recovered()
        self.assertEqual(synced, [])

    def test_a_directory_that_cannot_be_used_is_an_error(self) -> None:
        Path(self.directory).write_bytes(b"")
        self.assertRaises(OSError, self.recovered)

    def test_a_new_sink_says_nothing_of_what_it_has_not_looked_for(self) -> None:
        self.filled(1)
        sink = DirectorySink(self.directory, 2, SteppedThread())
        self.assertEqual(list(sink.checkpoints()), [])
        sink.recover()
        self.assertEqual([type(held) for held in sink.checkpoints()], [Checkpoint])
