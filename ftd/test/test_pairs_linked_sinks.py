"""A standby that cannot keep what it is sent: what the caller is told, what both halves show, and how it goes on."""

from __future__ import annotations

import errno
import os

from twisted.internet.defer import Deferred, fail

from ftd.config import Ack
from ftd.errors import PairFailed
from ftd.sinks import MemorySink
from ftd.sinks.blocks import BLOCK_SIZE
from ftd.status import Checkpoint, FtMode, LinkState, Outcome
from ftd.test.disk_case import Disk
from ftd.test.pair_case import Body, PairTestCase
from ftd.testing.threads import SteppedThread
from ftd.wire.errors import ErrorCode


class BrokenSink(MemorySink):
    """
    Fails in a way that no sink should.

    :ivar is_broken: while that is so.
    """

    is_broken = True

    def commit(self, id: int, xxh3: str, generation: str) -> Deferred[Checkpoint]:
        """See `ISink`."""
        if self.is_broken:
            self.abort()
            return fail(ZeroDivisionError("division by zero"))
        return super().commit(id, xxh3, generation)


class FullDiskTests(PairTestCase):
    """``ack = applied``, and a disk that is full for a while."""

    def setUp(self) -> None:
        super().setUp()
        self.disk = Disk(self.directory / "checkpoints", self.patch)
        self.start(self.directory_sink())
        self.committed(b"first")

    def fill_disk(self) -> None:
        """From here on nothing can be written."""
        self.disk.restart()
        self.disk.fail_at, self.disk.error, self.disk.is_broken = 0, errno.ENOSPC, True

    def free_disk(self) -> None:
        """Somebody has made room."""
        self.disk.restart()

    def refused(self, data: bytes = b"second") -> PairFailed:
        """A whole checkpoint that the standby does not take."""
        upload = self.push(data)
        self.network.pump()
        error = self.refusal(PairFailed, lambda: upload)
        assert isinstance(error, PairFailed)
        return error

    def test_the_caller_is_told(self) -> None:
        self.fill_disk()
        error = self.refused()
        self.assertIs(error.code, ErrorCode.FLUSH)
        self.assertEqual(str(error), "the standby refused transaction 1 (FLUSH): its sink could not store it")

    def test_the_standby_says_why(self) -> None:
        self.fill_disk()
        self.refused()
        status = self.secondary.status()
        self.assertEqual((status.has_error, status.has_error_name), (ErrorCode.FLUSH, "FLUSH"))
        self.assertEqual(
            status.has_error_detail,
            f"cannot store a checkpoint in {self.directory / 'checkpoints'}: {os.strerror(errno.ENOSPC)}",
        )
        self.assertEqual((status.link_state, status.ft_mode), (LinkState.UP, FtMode.ERROR))
        self.assertEqual(self.events("pair", "standby")[-1]["has_error_name"], "FLUSH")

    def test_both_count_it_and_remember_it(self) -> None:
        self.fill_disk()
        self.refused()
        for half in (self.primary, self.secondary):
            self.assertEqual((half.status().transactions_nacked, half.status().transactions_committed), (1, 1))
            row = half.transactions()[-1]
            self.assertEqual((row.outcome, row.id, row.bytes), (Outcome.NACKED, 1, 6))
        self.assertIn("No space left on device", self.secondary.transactions()[-1].detail)

    def test_the_session_goes_on(self) -> None:
        self.fill_disk()
        self.refused()
        self.assertEqual(self.primary.status().state, "NACK")
        self.assertIs(self.primary.error, None)
        self.pass_time(3.5)
        self.assertEqual(self.primary.status().reconnects, 0)
        self.assertEqual(self.primary.status().heartbeats, 3)
        self.assertEqual(self.held(), [b"first"])

    def test_the_id_is_used_again_and_a_good_commit_ends_the_error(self) -> None:
        self.fill_disk()
        for _ in range(3):
            self.refused()
        self.free_disk()
        self.assertEqual(self.committed(b"third").id, 1)
        self.assertIs(self.secondary.error, None)
        self.assertEqual(self.secondary.status().has_error, 0)
        self.assertEqual([held.number for held in self.store().checkpoints()], [1, 2])
        self.assertEqual(self.held(), [b"first", b"third"])
        self.assertEqual(self.primary.transactions()[-1].number, 2)

    def test_a_heartbeat_does_not_end_the_error(self) -> None:
        self.fill_disk()
        self.refused()
        self.pass_time(2)
        self.assertIsNotNone(self.secondary.error)

    def test_a_reset_ends_the_error(self) -> None:
        self.fill_disk()
        self.refused()
        self.secondary.reset()
        self.assertIs(self.secondary.error, None)
        self.free_disk()
        self.network.pump()
        self.reconnect()
        self.assertEqual(self.committed(b"third").id, 1)

    def test_a_disk_that_fills_up_in_the_middle(self) -> None:
        self.fill_disk()
        self.disk.fail_at = 2
        self.refused(bytes(5 * BLOCK_SIZE))
        self.assertEqual(
            self.disk.log, ["open partial", "write partial", "write partial", "close partial", "unlink partial"]
        )
        self.free_disk()
        self.assertEqual(self.committed(b"third").id, 1)

    def test_a_transaction_that_is_cancelled_is_not_missed(self) -> None:
        self.fill_disk()
        upload = self.primary.checkpoint(Body())
        upload.write(bytes(2 * BLOCK_SIZE))
        self.network.pump()
        self.primary.cancel()
        self.failureResultOf(upload.done)
        self.network.pump()
        self.assertIs(self.secondary.error, None)
        self.free_disk()
        self.assertEqual(self.committed(b"second").id, 1)


class SlowDiskTests(PairTestCase):
    """A disk that is behind holds up the sender, and only the sender."""

    def test_a_large_transaction_through_a_slow_disk(self) -> None:
        thread = SteppedThread()
        self.start(self.directory_sink(run_in_thread=thread), frame_size=BLOCK_SIZE, dead_time=5.0)
        body = Body()
        upload = self.primary.checkpoint(body)
        data = b""
        while not body.is_paused:
            block = bytes([len(data) // BLOCK_SIZE]) * BLOCK_SIZE
            upload.write(block)
            data += block
            self.network.pump()
        self.assertTrue(self.secondary.status().freeze_input)
        self.assertTrue(self.primary.status().freeze_output)
        # However long it takes, the link is not dead: it is the standby that does not read.
        thread.run()
        self.network.pump()
        self.assertFalse(body.is_paused)
        upload.finish()
        while thread.waiting or not upload.done.called:
            self.network.pump()
            thread.run()
        self.assertEqual(self.successResultOf(upload.done).bytes, len(data))  # type: ignore[attr-defined]
        self.assertTrue(self.held() == [data])

    def test_the_ack_waits_for_the_disk(self) -> None:
        thread = SteppedThread()
        self.start(self.directory_sink(run_in_thread=thread))
        upload = self.push(b"abc")
        self.pass_time(3.0)
        self.assertNoResult(upload.done)
        thread.step()
        self.network.pump()
        self.assertNoResult(upload.done)
        thread.step()
        self.network.pump()
        self.successResultOf(upload.done)
        self.assertEqual(self.held(), [b"abc"])

    def test_a_stop_lets_what_is_committed_reach_the_disk(self) -> None:
        thread = SteppedThread()
        self.start(self.directory_sink(run_in_thread=thread))
        upload = self.push(b"abc")
        self.network.pump()
        stopping = [self.primary.stop(), self.secondary.stop()]
        self.pass_time(1.0)
        for stop in stopping:
            self.assertNoResult(stop)
        thread.run()
        self.network.pump()
        for stop in stopping:
            self.successResultOf(stop)
        self.successResultOf(upload.done)
        self.assertEqual(self.held(), [b"abc"])


class MemoryLimitTests(PairTestCase):
    """``memory-limit`` of the memory sink."""

    def test_a_checkpoint_over_the_limit(self) -> None:
        self.start(self.memory_sink(keep=1, limit=2 * BLOCK_SIZE))
        self.committed(b"first")
        upload = self.push(bytes(2 * BLOCK_SIZE))
        self.network.pump()
        error = self.refusal(PairFailed, lambda: upload)
        self.assertEqual(
            str(error), "the standby refused transaction 1 (REALLOC_BUF): it is larger than the standby takes"
        )
        self.assertIn("more than memory-limit", self.secondary.status().has_error_detail or "")
        self.assertEqual(self.held(), [b"first"])
        self.assertEqual(self.committed(b"second").id, 1)
        self.assertEqual(self.held(), [b"second"])
        self.assertIs(self.secondary.error, None)


class BrokenSinkTests(PairTestCase):
    """A sink with an error in it is a sink that could not store it, and the log says how."""

    def test_it_is_logged_and_refused(self) -> None:
        sink = BrokenSink(8, 1 << 30, self.now)
        self.start(sink)
        upload = self.push(b"abc")
        self.network.pump()
        self.assertIs(self.refusal(PairFailed, lambda: upload).code, ErrorCode.UNKNOWN)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        for half in (self.primary, self.secondary):
            self.assertEqual(half.transactions()[-1].outcome, Outcome.NACKED)
        status = self.secondary.status()
        self.assertEqual(
            (status.has_error_name, status.has_error_detail), ("UNKNOWN", "the sink failed; the log says how")
        )
        sink.is_broken = False
        self.assertEqual(self.committed(b"abc").id, 0)
        self.assertIs(self.secondary.error, None)


class DamageTests(PairTestCase):
    """What arrives is not what was sent."""

    def damage(self) -> None:
        """Change one bit of the first payload byte that is on its way."""
        waiting = self.link.client._unsent
        waiting[waiting.index(b"payload")] ^= 1

    def test_the_digest_tells(self) -> None:
        for ack in Ack:
            self.start_secondary(ack=ack)
            self.start_primary()
            self.network.pump()
            upload = self.push(b"payload")
            self.damage()
            self.network.pump()
            error = self.upload_refusal(PairFailed, upload)
            self.assertEqual(str(error), "the standby refused transaction 0 (RECV_PAYLOAD): it arrived damaged")
            for half in (self.primary, self.secondary):
                self.assertEqual(half.status().transactions_nacked, 1)
                self.assertIs(half.status().link_state, LinkState.UP)
            self.assertEqual(
                self.secondary.transactions()[-1].detail,
                "transaction 0 arrived damaged: its digest does not match",
            )
            self.assertEqual(self.secondary.transactions()[-1].bytes, 7)
            self.assertEqual(self.held(), [])
            self.assertEqual(self.committed(b"payload").id, 0)
            self.assertEqual(self.held(), [b"payload"])
            self.kill_secondary()
            self.primary.stop()


class LostBeforeTheAckTests(PairTestCase):
    """``ack = received`` acknowledges what is held whole, and nothing else."""

    def test_what_did_not_fit_is_refused(self) -> None:
        self.start_secondary(MemorySink(keep=8, limit=BLOCK_SIZE), ack=Ack.RECEIVED)
        self.start_primary()
        self.network.pump()
        upload = self.push(bytes(BLOCK_SIZE + 1))
        self.network.pump()
        error = self.upload_refusal(PairFailed, upload)
        self.assertIs(error.code, ErrorCode.REALLOC_BUF)
        self.assertEqual(self.held(), [])
        self.assertEqual((self.primary.status().id, self.secondary.status().id), (0, 0))
        self.assertEqual(self.committed(b"small").id, 0)
        self.assertEqual(self.held(), [b"small"])
