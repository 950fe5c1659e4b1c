"""
A directory sink whose disk is full, broken or gone.

Whichever system call fails, the transaction is refused with a sentence that names the directory, the checkpoints from
before are as they were, nothing is left open or lying about, and the next transaction works.
"""

from __future__ import annotations

import errno
import os
import shutil

from twisted.internet.defer import Deferred

from ftd.sinks import DirectorySink, checkpoint_files
from ftd.sinks.blocks import BLOCK_SIZE
from ftd.sinks.sink import SinkError
from ftd.status import Checkpoint
from ftd.test.disk_case import Disk, DiskTestCase, descriptors
from ftd.testing.sink_suite import CountingProducer, commit_state, content, state, write_state
from ftd.testing.threads import SteppedThread
from ftd.wire.errors import ErrorCode

ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)

#: Past the last of these a commit stands, and what fails is no business of the sender.
LAST_OF_COMMIT = "close directory"


class FailureCase(DiskTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.disk = Disk(self.directory, self.patch)
        self.patch(checkpoint_files, "_WRITE_BACK_EVERY", BLOCK_SIZE)
        self.data = state(2 * BLOCK_SIZE + 17, seed=3)

    def begin(self, fail_at: int | None = None, error: int = errno.ENOSPC) -> DirectorySink:
        """A sink that holds two checkpoints, before the transaction in which a call fails."""
        self.disk.wipe()
        sink = self.filled(1, 2)
        self.disk.restart()
        self.disk.fail_at = fail_at
        self.disk.error = error
        return sink

    def calls(self) -> list[str]:
        """The system calls of a commit, in order."""
        sink = self.begin()
        self.committed(sink, self.data)
        return list(self.disk.log)

    def check_refused(self, committing: Deferred[Checkpoint], error: int, what: object = None) -> None:
        """Make sure that it was, with a sentence that helps."""
        refused = self.failureResultOf(committing, SinkError).value
        self.assertIs(refused.code, ErrorCode.FLUSH, what)
        self.assertEqual(refused.detail, f"cannot store a checkpoint in {self.directory}: {os.strerror(error)}", what)

    def check_older(self, sink: DirectorySink, what: object = None) -> None:
        """Make sure that the checkpoints from before are all there is, for this process and for the next."""
        for view in (sink, self.recovered()):
            self.assertEqual(self.check_whole(view), [1, 2], what)
            self.assertEqual(content(view, 1), state(1000, 1), what)
            self.assertEqual(content(view, 2), state(1000, 2), what)


class OneFailureTests(FailureCase):
    """One system call fails, the next ones work again."""

    def test_every_call_with_every_error(self) -> None:
        calls = self.calls()
        before = descriptors()
        for at, call in enumerate(calls[: calls.index(LAST_OF_COMMIT) + 1]):
            for error in ERRORS:
                what = (call, os.strerror(error))
                sink = self.begin(at, error)
                self.check_refused(commit_state(sink, self.data), error, what)
                self.assertEqual(len(self.names()), 2, what)
                self.check_older(sink, what)
                self.assertEqual(descriptors(), before, what)
                self.assertEqual(self.committed(sink, b"again").number, 3, what)
                self.assertEqual(self.check_whole(sink), [2, 3], what)
                self.assertEqual(self.check_whole(self.recovered()), [2, 3], what)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_an_old_checkpoint_that_cannot_be_removed_is_no_failure(self) -> None:
        at = self.calls().index("unlink 1")
        sink = self.begin(at, errno.EIO)
        self.assertEqual(self.committed(sink, self.data).number, 3)
        self.assertEqual([held.number for held in sink.checkpoints()], [2, 3])
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertEqual(self.check_whole(self.recovered()), [1, 2, 3])

    def test_a_partial_file_that_cannot_be_removed_is_logged_and_used_again(self) -> None:
        sink = self.begin()
        write_state(sink, self.data)
        self.disk.fail_at = len(self.disk.log) + 1
        self.disk.error = errno.EIO
        before = descriptors()
        sink.abort()
        self.assertEqual(self.disk.log[-2:], ["close partial", "unlink partial"])
        self.assertEqual(len(descriptors()), len(before) - 1)
        self.assertEqual(len(self.flushLoggedErrors(OSError)), 1)
        self.assertIn("incoming.partial", self.names())
        self.assertEqual(self.committed(sink, b"shorter").number, 3)
        self.assertEqual(content(sink, 3), b"shorter")


class BrokenDiskTests(FailureCase):
    """From one system call on all of them fail, until the disk is mended."""

    def test_from_every_call_on(self) -> None:
        calls = self.calls()
        before = descriptors()
        for at, call in enumerate(calls[: calls.index(LAST_OF_COMMIT) + 1]):
            sink = self.begin(at, errno.EROFS)
            self.disk.is_broken = True
            self.check_refused(commit_state(sink, self.data), errno.EROFS, call)
            self.assertEqual(self.check_whole(sink), [1, 2], call)
            self.check_refused(commit_state(sink, b"again"), errno.EROFS, call)
            self.assertEqual(descriptors(), before, call)
            self.disk.restart()
            self.assertEqual(self.committed(sink, b"at last").number, 3, call)
            self.assertEqual(self.check_whole(sink), [2, 3], call)
            self.assertEqual(content(sink, 3), b"at last", call)
            # There is no second file that is checkpoint 3, too.
            self.assertEqual(len(self.names()), 2, call)
            self.assertEqual(self.check_whole(self.recovered()), [2, 3], call)

    def test_nothing_is_written_after_a_failure(self) -> None:
        sink = self.begin(1)
        write_state(sink, state(10 * BLOCK_SIZE))
        self.assertEqual(self.disk.log, ["open partial", "write partial", "close partial", "unlink partial"])
        self.assertEqual(sink._run.size, 0)
        sink.abort()

    def test_a_disk_that_fails_while_the_room_is_being_filled(self) -> None:
        thread = SteppedThread()
        sink = self.begin(0)
        sink._run_in_thread = thread
        sink.begin()
        sink.write(state(BLOCK_SIZE))
        (place,) = sink.room(100)
        thread.run()
        place[:] = bytes(100)
        sink.filled(100)
        self.assertEqual((sink._run.size, sink._run.blocks), (0, []))
        self.assertEqual(list(sink.room(100)), [])
        committing = sink.commit(0, "0" * 16, "")
        thread.run()
        self.check_refused(committing, errno.ENOSPC)

    def test_a_receiver_is_not_left_waiting_for_a_broken_disk(self) -> None:
        thread = SteppedThread()
        sink = self.begin(0)
        self.disk.is_broken = True
        sink._run_in_thread = thread
        producer = CountingProducer()
        sink.registerProducer(producer, True)
        sink.begin()
        for seed in range(8):
            sink.write(state(BLOCK_SIZE, seed))
        self.assertEqual(producer.calls, ["pause"])
        thread.run()
        self.assertEqual(producer.calls, ["pause", "resume"])
        committing = sink.commit(0, "0" * 16, "")
        thread.run()
        self.check_refused(committing, errno.ENOSPC)


class VanishedDirectoryTests(FailureCase):
    """Somebody removes, or takes away, the directory."""

    def move_away(self) -> None:
        shutil.move(self.directory, f"{self.directory}.away")

    def bring_back(self) -> None:
        shutil.move(f"{self.directory}.away", self.directory)

    def test_before_a_transaction(self) -> None:
        sink = self.begin()
        before = descriptors()
        self.move_away()
        for _ in range(2):
            self.check_refused(commit_state(sink, self.data), errno.ENOENT)
        self.assertRaises(KeyError, sink.open, 1)
        self.assertEqual(descriptors(), before)
        self.bring_back()
        self.check_older(sink)
        self.assertEqual(self.committed(sink, self.data).number, 3)
        self.assertEqual(self.check_whole(self.recovered()), [2, 3])

    def test_during_a_transaction(self) -> None:
        sink = self.begin()
        before = descriptors()
        write_state(sink, self.data)
        self.move_away()
        self.check_refused(sink.commit(0, "0" * 16, ""), errno.ENOENT)
        self.assertEqual(descriptors(), before)
        self.bring_back()
        self.check_older(sink)
        self.assertEqual(self.committed(sink, self.data).number, 3)

    def test_during_a_transaction_that_is_aborted(self) -> None:
        sink = self.begin()
        before = descriptors()
        write_state(sink, self.data)
        self.move_away()
        sink.abort()
        self.assertEqual(descriptors(), before)
        self.bring_back()
        self.assertEqual(self.committed(sink, self.data).number, 3)
        self.assertEqual(self.check_whole(self.recovered()), [2, 3])

    def test_for_good(self) -> None:
        sink = self.begin()
        shutil.rmtree(self.directory)
        self.check_refused(commit_state(sink, self.data), errno.ENOENT)
        self.assertRaises(KeyError, sink.open, 2)
        os.mkdir(self.directory)
        # The numbers go on: none is used twice.
        self.assertEqual(self.committed(sink, self.data).number, 3)
