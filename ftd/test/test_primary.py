"""The sending half: what may be asked of it when, and what it says otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twisted.internet.defer import Deferred
from zope.interface.verify import verifyObject

from ftd.errors import FtdError, LinkDown, NoAck, NotInState, PairFailed, TooLarge
from ftd.feed import Upload
from ftd.interfaces import IPrimaryPair
from ftd.status import Commit, Outcome
from ftd.test.pair_case import Body, PairTestCase
from ftd.wire.constants import Command
from ftd.wire.errors import ErrorCode


class TransactionTests(PairTestCase):
    """What works."""

    def setUp(self) -> None:
        super().setUp()
        self.start()

    def test_it_is_a_primary_pair(self) -> None:
        self.assertTrue(verifyObject(IPrimaryPair, self.primary))

    def test_begin_data_commit(self) -> None:
        self.assertEqual(self.begin(), 0)
        self.append(b"a" * 1000)
        self.append(b"b" * 2000)
        committing = self.primary.commit()
        self.assertNoResult(committing)
        self.clock.advance(0.25)
        self.network.pump()
        self.assertEqual(self.successResultOf(committing), Commit(id=0, seq=3, bytes=3000, seconds=0.25))
        self.assertEqual(self.held(), [b"a" * 1000 + b"b" * 2000])
        self.assertEqual(self.begin(), 1)

    def test_nothing_is_to_be_seen_before_the_commit(self) -> None:
        self.begin()
        self.append(b"abc")
        self.network.pump()
        self.assertEqual(self.held(), [])

    def test_an_upload_is_cut_into_frames(self) -> None:
        self.begin()
        self.append(bytes(2500))
        self.network.pump()
        status = self.primary.status().transaction
        assert status is not None
        self.assertEqual((status.id, status.seq, status.bytes), (0, 3, 2500))

    def test_a_whole_checkpoint(self) -> None:
        upload = self.primary.checkpoint(Body())
        upload.write(b"x" * 3000)
        self.network.pump()
        self.assertNoResult(upload.done)
        self.assertEqual(self.held(), [])
        upload.finish()
        self.network.pump()
        self.assertEqual(self.successResultOf(upload.done), Commit(id=0, seq=3, bytes=3000, seconds=0.0))
        self.assertEqual(self.held(), [b"x" * 3000])

    def test_an_empty_checkpoint_is_a_checkpoint(self) -> None:
        self.assertEqual(self.committed(b""), Commit(id=0, seq=1, bytes=0, seconds=0.0))
        self.begin()
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(committing), Commit(id=1, seq=1, bytes=0, seconds=0.0))
        self.assertEqual(self.held(), [b"", b""])

    def test_a_cancelled_transaction_leaves_nothing_and_its_id_is_used_again(self) -> None:
        self.begin()
        self.append(b"dropped")
        self.network.pump()
        self.primary.cancel()
        self.assertEqual(self.primary.transactions()[-1].outcome, Outcome.CANCELLED)
        self.assertEqual(self.begin(), 0)
        self.append(b"kept")
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [b"kept"])
        self.assertEqual(self.secondary.status().transactions_cancelled, 1)

    def test_cancel_fails_the_upload_that_is_under_way(self) -> None:
        self.begin()
        upload = self.primary.append(Body())
        upload.write(bytes(5000))
        self.primary.cancel()
        self.assertEqual(self.refusal(NotInState, lambda: upload).state, "CANCEL")
        upload.write(bytes(5000))
        upload.finish()
        self.network.pump()
        self.assertEqual(self.committed(b"next").id, 0)
        self.assertEqual(self.held(), [b"next"])

    def test_an_upload_that_is_cut_cancels_the_transaction(self) -> None:
        for start in (self.primary.checkpoint, self.appended):
            upload = start(Body())
            upload.write(bytes(5000))
            upload.cut("the client went away")
            refused = self.upload_refusal(NotInState, upload)
            self.assertEqual((str(refused), refused.state), ("the client went away", "CANCEL"))
            row = self.primary.transactions()[-1]
            self.assertEqual((row.outcome, row.detail), (Outcome.CANCELLED, "the client went away"))
            self.network.pump()
        self.assertEqual(self.held(), [])
        self.assertEqual(self.committed(b"next").id, 0)

    def appended(self, body: Body) -> Upload:
        self.begin()
        return self.primary.append(body)

    def test_an_upload_that_is_cut_after_its_transaction_was_cancelled_cancels_nothing_else(self) -> None:
        upload = self.primary.checkpoint(Body())
        self.primary.cancel()
        self.refusal(NotInState, lambda: upload)
        self.begin()
        upload.cut("the client went away")
        self.assertIsNotNone(self.primary.status().transaction)

    def test_an_open_transaction_keeps_the_link_alive(self) -> None:
        self.begin()
        self.append(b"abc")
        self.pass_time(12)
        self.append(b"def")
        committing = self.primary.commit()
        self.network.pump()
        self.successResultOf(committing)
        self.assertEqual(self.held(), [b"abcdef"])
        self.assertEqual(self.primary.status().reconnects, 0)


class RefusalTests(PairTestCase):
    """Every call in every state in which it cannot be done."""

    def calls(self) -> Mapping[str, Callable[[], object]]:
        return {
            "begin": lambda: self.primary.begin(),
            "append": lambda: self.primary.append(Body()),
            "checkpoint": lambda: self.primary.checkpoint(Body()),
            "commit": lambda: self.primary.commit(),
            "cancel": lambda: self.primary.cancel(),
        }

    def check_refused(self, error: type[FtdError], state: str = "", but: tuple[str, ...] = ()) -> None:
        """Make sure that every call but these fails so, and changes nothing."""
        before = self.primary.status()
        for name, call in self.calls().items():
            if name not in but:
                refused = self.refusal(error, call)
                self.assertEqual(getattr(refused, "state", ""), state, name)
        self.assertEqual(self.primary.status(), before)
        self.network.pump()

    def test_not_started(self) -> None:
        self.primary = self.new_primary()
        self.check_refused(LinkDown)
        self.assertEqual(
            str(self.refusal(LinkDown, self.primary.begin)), "the link of demo to tcp:192.0.2.2:8441 is down"
        )

    def test_nobody_listens(self) -> None:
        self.start_primary()
        self.network.pump()
        self.check_refused(LinkDown)
        refused = self.refusal(LinkDown, self.primary.begin)
        self.assertEqual(
            str(refused),
            "the link of demo to tcp:192.0.2.2:8441 is down: Connection was refused by other side.",
        )
        self.assertTrue(0 < refused.retry_after <= 0.1)

    def test_nobody_answers(self) -> None:
        self.network.is_silent = True
        self.start_primary()
        self.check_refused(LinkDown)

    def test_the_session_is_not_open_yet(self) -> None:
        self.start_secondary()
        self.start_primary()
        self.check_refused(LinkDown)

    def test_between_transactions(self) -> None:
        self.start()
        self.check_refused(NotInState, "ACK", but=("begin", "checkpoint"))
        self.begin()
        self.primary.cancel()
        self.check_refused(NotInState, "CANCEL", but=("begin", "checkpoint"))
        for name in ("append", "commit", "cancel"):
            self.assertIn("no transaction is open on demo", str(self.refusal(NotInState, self.calls()[name])))

    def test_inside_a_transaction(self) -> None:
        self.start()
        self.begin()
        self.check_refused(NotInState, "BEGIN", but=("append", "commit", "cancel"))
        self.append(b"abc")
        self.check_refused(NotInState, "CONTINUE", but=("append", "commit", "cancel"))
        self.assertEqual(
            str(self.refusal(NotInState, self.primary.begin)),
            "transaction 0 is open on demo; commit or cancel it first",
        )

    def test_inside_an_upload(self) -> None:
        self.start()
        self.begin()
        self.primary.append(Body()).write(bytes(5000))
        self.check_refused(NotInState, "CONTINUE", but=("cancel",))
        self.assertEqual(str(self.refusal(NotInState, self.primary.commit)), "an upload into demo is under way")

    def test_inside_a_whole_checkpoint(self) -> None:
        self.start()
        self.primary.checkpoint(Body())
        self.check_refused(NotInState, "BEGIN", but=("cancel",))

    def test_while_an_ack_is_awaited(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        self.primary.commit()
        self.assertEqual(
            str(self.refusal(NotInState, self.primary.begin)), "a transaction of demo still awaits its ACK"
        )
        self.check_refused(NotInState, "COMMIT")

    def test_after_a_stop(self) -> None:
        self.start()
        stopping = self.primary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.check_refused(LinkDown)
        self.assertEqual(self.refusal(LinkDown, self.primary.begin).retry_after, 0.0)

    def test_after_an_error(self) -> None:
        self.start()
        self.begin()
        self.link.cut(clean=True)
        self.network.pump()
        self.check_refused(PairFailed)
        refused = self.refusal(PairFailed, self.primary.begin)
        self.assertIs(refused.code, ErrorCode.RECV_HDR)
        self.assertEqual(
            str(refused),
            "demo has the error RECV_HDR: the peer closed the link before transaction 0 was committed."
            " It goes when the link is re-opened; `reset` does that now",
        )


class LimitTests(PairTestCase):
    """``max-transaction``, of either half."""

    def test_one_byte_more_cancels_the_transaction(self) -> None:
        self.start(max_transaction=5000)
        for start in (self.primary.checkpoint, self.appended):
            upload = start(Body())
            upload.write(bytes(4096))
            self.assertNoResult(upload.done)
            upload.write(bytes(1024))
            refused = self.upload_refusal(TooLarge, upload)
            self.assertEqual(str(refused), "the transaction is larger than max-transaction of this pair, 5000 bytes")
            upload.write(b"more")
            upload.finish()
            self.network.pump()
            row = self.primary.transactions()[-1]
            self.assertEqual((row.outcome, row.bytes, row.detail), (Outcome.CANCELLED, 4096, str(refused)))
        self.assertEqual(self.secondary.status().transactions_cancelled, 2)
        self.assertIsNone(self.primary.error)

    def appended(self, body: Body) -> Upload:
        self.begin()
        return self.primary.append(body)

    def test_exactly_as_many_are_taken(self) -> None:
        self.start(max_transaction=5000)
        self.assertEqual(self.committed(bytes(5000)).bytes, 5000)

    def test_the_limit_of_the_standby_counts_too(self) -> None:
        self.start_secondary(max_transaction=5000, max_payload=500)
        self.start_primary()
        self.network.pump()
        self.assertEqual(self.committed(bytes(5000)).seq, 10)
        self.refusal(TooLarge, lambda: self.push(bytes(5001)))
        self.assertIsNone(self.primary.error)
        self.assertIsNone(self.secondary.error)


class HeartbeatTests(PairTestCase):
    """What is asked while a heartbeat is in flight waits for its ACK, and nobody notices."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.clock.advance(1.0)
        assert self.primary.status().state == "COMMIT"

    def answer(self) -> None:
        self.network.pump()

    def test_a_heartbeat_counts_as_nothing_else(self) -> None:
        self.answer()
        self.pass_time(2.5)
        for half in (self.primary, self.secondary):
            status = half.status()
            self.assertEqual((status.heartbeats, status.transactions_committed), (3, 0))
            self.assertEqual(status.id, 3)
            self.assertEqual(list(half.transactions()), [])
        self.assertEqual(self.held(), [])

    def test_begin_waits(self) -> None:
        beginning = self.primary.begin()
        self.assertNoResult(beginning)
        self.answer()
        self.assertEqual(self.successResultOf(beginning), 1)
        self.append(b"abc")
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(committing).id, 1)

    def test_a_checkpoint_waits(self) -> None:
        body = Body()
        upload = self.primary.checkpoint(body)
        self.assertTrue(body.is_paused)
        upload.write(bytes(3000))
        upload.finish()
        self.assertNoResult(upload.done)
        self.answer()
        self.assertEqual(self.successResultOf(upload.done), Commit(id=1, seq=3, bytes=3000, seconds=0.0))
        self.assertEqual(self.held(), [bytes(3000)])

    def test_a_checkpoint_goes_on_after_the_wait(self) -> None:
        body = Body()
        upload = self.primary.checkpoint(body)
        upload.write(bytes(3000))
        self.answer()
        self.assertFalse(body.is_paused)
        upload.finish()
        self.network.pump()
        self.successResultOf(upload.done)

    def test_a_checkpoint_that_is_cut_while_it_waits_is_not_begun(self) -> None:
        upload = self.primary.checkpoint(Body())
        upload.write(bytes(3000))
        upload.cut("the client went away")
        self.assertEqual(str(self.refusal(NotInState, lambda: upload)), "the client went away")
        self.answer()
        self.assertEqual(list(self.primary.transactions()), [])
        self.assertEqual(self.committed(b"next").id, 1)

    def test_of_two_that_wait_the_first_gets_it(self) -> None:
        upload = self.primary.checkpoint(Body())
        beginning = self.primary.begin()
        self.refusal(NotInState, lambda: self.primary.checkpoint(Body()))
        self.answer()
        self.assertEqual(self.refusal(NotInState, lambda: beginning).state, "BEGIN")
        self.assertNoResult(upload.done)
        self.assertIsNotNone(self.primary.status().transaction)

    def test_who_waits_when_the_link_breaks_is_told(self) -> None:
        beginning = self.primary.begin()
        upload = self.primary.checkpoint(Body())
        self.link.cut(clean=False)
        self.network.pump()
        self.refusal(PairFailed, lambda: beginning)
        self.refusal(LinkDown, lambda: upload)
        self.assertEqual(list(self.primary.transactions()), [])

    def test_other_calls_do_not_wait(self) -> None:
        for call in (self.primary.commit, self.primary.cancel, lambda: self.primary.append(Body())):
            self.assertEqual(self.refusal(NotInState, call).state, "COMMIT")


class AckTests(PairTestCase):
    """A standby that takes its time, or says no."""

    def committing(self, timeout: float | None = None) -> Deferred[Commit]:
        """A commit whose ACK does not come: the network is stuck on the way back."""
        self.begin()
        self.append(b"abc")
        self.link.to_client.is_stalled = True
        return self.primary.commit(timeout)

    def test_no_ack_in_time_and_one_later(self) -> None:
        self.start(ack_time=3.0)
        committing = self.committing()
        self.pass_time(2.9)
        self.assertNoResult(committing)
        self.pass_time(0.2)
        self.refusal(NoAck, lambda: committing)
        self.assertEqual(self.refusal(NotInState, self.primary.begin).state, "COMMIT")
        self.assertEqual(self.primary.transactions()[-1].outcome, Outcome.IN_FLIGHT)
        self.link.to_client.is_stalled = False
        self.network.pump()
        self.assertEqual(self.primary.transactions()[-1].outcome, Outcome.COMMITTED)
        last = self.primary.status().last_committed
        assert last is not None
        self.assertEqual((last.id, last.number, last.bytes), (0, 1, 3))
        self.assertEqual(self.begin(), 1)

    def test_the_caller_may_set_the_limit(self) -> None:
        self.start()
        committing = self.committing(timeout=0.5)
        self.pass_time(0.6)
        self.assertIn("within 0.5 s", str(self.refusal(NoAck, lambda: committing)))

    def test_an_upload_waits_as_long_as_the_pair_says(self) -> None:
        self.start(ack_time=2.0)
        self.link.to_client.is_stalled = True
        upload = self.push(b"abc")
        self.pass_time(2.1)
        self.refusal(NoAck, lambda: upload)

    def test_a_standby_that_says_nothing_any_more_is_dead(self) -> None:
        self.start()
        committing = self.committing()
        self.link.to_server.is_stalled = True
        self.pass_time(5.1)
        self.assertNoResult(committing)
        error = self.primary.error
        assert error is not None
        self.assertEqual((error.code, error.detail), (ErrorCode.RECV_HDR, "no sign of life from the peer for 5 s"))

    def test_an_answer_that_makes_no_sense_ends_the_session(self) -> None:
        self.start()
        committing = self.committing()
        self.network.pump()
        sender = self.primary._sender
        assert sender is not None
        sender.dataReceived(bytes([Command.ACK, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0]))
        self.network.pump()
        error = self.primary.error
        assert error is not None
        self.assertIs(error.code, ErrorCode.STATE_INVALID)
        self.link.to_client.is_stalled = False
        self.reconnect()
        # It was committed all the same, and the new session tells so.
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [b"abc"])
