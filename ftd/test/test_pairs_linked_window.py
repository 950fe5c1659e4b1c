"""Several transactions in flight: their answers come in order, and what ends one of them ends all behind it."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred, fail

from ftd.config import Ack
from ftd.errors import LinkDown, NotInState, PairFailed
from ftd.feed import Upload
from ftd.sinks.sink import SinkError
from ftd.status import Commit, FtMode, LinkState, Outcome, PairStatus
from ftd.test.pair_case import Body, PairTestCase
from ftd.wire.errors import ErrorCode

WINDOW = 4


class WindowCase(PairTestCase):
    """The secondary applies first, so that it can refuse."""

    def setUp(self) -> None:
        super().setUp()
        self.start(window=WINDOW, ack=Ack.APPLIED)

    def send(self, data: bytes) -> Deferred[Commit]:
        """A transaction, as far as its COMMIT; nothing is delivered."""
        self.begin()
        self.append(data)
        done: Deferred[Commit] = self.primary.commit()
        return done

    def refuse(self, id: int) -> None:
        """Have the sink fail the commit of transaction ``id``, once."""
        sink: Any = self.secondary.sink
        commit = sink.commit

        def refusing(own: int, *about: str) -> Any:
            if own != id:
                return commit(own, *about)
            sink.abort()
            patch.restore()
            return fail(SinkError(ErrorCode.FLUSH, "no space left on device"))

        patch = self.patch(sink, "commit", refusing)

    def outcomes(self) -> list[Outcome]:
        """Of the primary's transactions, oldest first."""
        return [row.outcome for row in self.primary.transactions()]


class FlowTests(WindowCase):
    """While nothing goes wrong."""

    def test_as_many_as_the_window_says_are_in_flight(self) -> None:
        waits = [self.send(b"%d" % number) for number in range(WINDOW)]
        for done in waits:
            self.assertNoResult(done)
        refusal = self.refusal(NotInState, self.primary.begin)
        self.assertEqual(str(refusal), "4 transactions of demo, its window, still await their ACK")
        self.assertEqual(refusal.state, "COMMIT")
        self.upload_refusal(NotInState, self.primary.checkpoint(Body()))
        self.assertIs(self.primary.status().ft_mode, FtMode.TRANSACTION_COMMIT)
        self.network.pump()
        self.assertEqual([self.successResultOf(done).id for done in waits], [0, 1, 2, 3])
        self.assertEqual(self.held(), [b"0", b"1", b"2", b"3"])
        self.assertEqual([row.number for row in self.primary.transactions()], [1, 2, 3, 4])
        self.committed(b"4")

    def test_each_ack_makes_room_for_one(self) -> None:
        waits = [self.send(b"%d" % number) for number in range(WINDOW)]
        while waits[0].called is False:
            self.link.step(12)
        self.assertEqual([done.called for done in waits], [True, False, False, False])
        waits.append(self.send(b"4"))
        self.refusal(NotInState, self.primary.begin)
        self.network.pump()
        self.assertEqual([self.successResultOf(done).id for done in waits], [0, 1, 2, 3, 4])

    def test_whole_checkpoints_follow_each_other(self) -> None:
        uploads: list[Upload] = [self.push(b"%d" % number) for number in range(WINDOW)]
        self.network.pump()
        for upload in uploads:
            self.successResultOf(upload.done)
        self.assertEqual(self.held(), [b"0", b"1", b"2", b"3"])

    def test_an_ack_does_not_disturb_the_open_one(self) -> None:
        first = self.send(b"first")
        self.begin()
        self.append(b"sec")
        self.network.pump()
        self.successResultOf(first)
        self.assertIs(self.primary.status().ft_mode, FtMode.TRANSACTION_ITER)
        self.append(b"ond")
        second = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(second).bytes, 6)
        self.assertEqual(self.held(), [b"first", b"second"])

    def test_cancelling_the_open_one_leaves_the_earlier_alone(self) -> None:
        waits = [self.send(b"0"), self.send(b"1")]
        self.begin()
        self.append(b"never")
        self.primary.cancel()
        waits.append(self.send(b"2"))
        self.network.pump()
        self.assertEqual([self.successResultOf(done).id for done in waits], [0, 1, 2])
        self.assertEqual(self.held(), [b"0", b"1", b"2"])

    def test_the_smaller_window_counts(self) -> None:
        self.restart_secondary(window=2, ack=Ack.APPLIED)
        self.reconnect()
        self.send(b"0")
        self.send(b"1")
        self.assertIn("2 transactions of demo", str(self.refusal(NotInState, self.primary.begin)))

    def test_stopping_waits_for_all_of_them(self) -> None:
        waits = [self.send(b"%d" % number) for number in range(3)]
        stopped = self.primary.stop()
        self.assertNoResult(stopped)
        self.network.pump()
        self.assertEqual([self.successResultOf(done).id for done in waits], [0, 1, 2])
        self.successResultOf(stopped)


class HeartbeatTests(WindowCase):
    """A heartbeat takes a place in the window, which is nobody's business."""

    def beat(self) -> None:
        """Have a heartbeat in flight."""
        self.clock.advance(1.0)
        assert self.primary._sender is not None
        self.assertTrue(self.primary._sender.machine.in_flight[-1].is_heartbeat)

    def test_with_room_left_nothing_waits(self) -> None:
        self.beat()
        done = self.send(b"0")
        self.network.pump()
        self.assertEqual(self.successResultOf(done).id, 1)

    def test_where_a_heartbeat_has_the_last_place_a_begin_waits_for_an_ack(self) -> None:
        self.beat()
        waits = [self.send(b"%d" % number) for number in range(WINDOW - 1)]
        begun = self.primary.begin()
        self.assertNoResult(begun)
        self.network.pump()
        self.assertEqual(self.successResultOf(begun), WINDOW)
        for done in waits:
            self.successResultOf(done)

    def test_a_begin_inside_of_a_transaction_does_not_wait_for_one(self) -> None:
        self.beat()
        self.begin()
        self.assertIn("is open on demo", str(self.refusal(NotInState, self.primary.begin)))


class RefusalTests(WindowCase):
    """A NACK is the end of all that is under way."""

    def test_all_behind_a_refused_one_are_dropped(self) -> None:
        waits = [self.send(b"%d" % number) for number in range(WINDOW)]
        self.refuse(1)
        self.network.pump()
        self.assertEqual(self.successResultOf(waits[0]).id, 0)
        for done in waits[1:]:
            self.assertIs(self.failureResultOf(done, PairFailed).value.code, ErrorCode.FLUSH)
        self.assertEqual(self.outcomes(), [Outcome.COMMITTED, *[Outcome.NACKED] * 3])
        self.assertEqual(self.held(), [b"0"])
        self.assertEqual(self.committed(b"1 again").id, 1)
        self.assertEqual(self.held(), [b"0", b"1 again"])
        self.assertEqual(self.primary.transactions()[-1].number, 2)

    def test_the_open_one_is_cancelled_and_says_why(self) -> None:
        refused = self.send(b"0")
        self.begin()
        self.append(b"1")
        self.refuse(0)
        self.network.pump()
        self.failureResultOf(refused, PairFailed)
        self.assertEqual(self.outcomes(), [Outcome.NACKED, Outcome.CANCELLED])
        why = "the standby refused transaction 0 (FLUSH) before it"
        self.assertIn(why, self.primary.transactions()[-1].detail)
        for act in (lambda: self.primary.append(Body()), self.primary.commit, self.primary.cancel):
            self.assertIn(f"the last one was cancelled: {why}", str(self.refusal(NotInState, act)))
        self.committed(b"0 again")
        self.assertNotIn(why, str(self.refusal(NotInState, self.primary.commit)))
        self.assertEqual(self.held(), [b"0 again"])

    def test_an_upload_into_the_open_one_comes_to_nothing(self) -> None:
        refused = self.send(b"0")
        body = Body()
        upload = self.primary.checkpoint(body)
        upload.write(b"1")
        self.refuse(0)
        # Whoever hears of the first may begin the next at once, and it is another one.
        again: list[Upload] = []
        refused.addErrback(lambda _: again.append(self.push(b"0 again")))
        self.network.pump()
        self.assertIn("refused transaction 0", str(self.upload_refusal(NotInState, upload)))
        self.assertFalse(body.is_paused)
        self.successResultOf(again[0].done)
        self.assertEqual(self.held(), [b"0 again"])


class LossTests(WindowCase):
    """The link breaks, and the next session says how many of them are committed."""

    def look(self, _: object, seen: list[PairStatus]) -> None:
        """A caller that looks at the pair as soon as it is told."""
        seen.append(self.primary.status())

    def test_wherever_it_breaks(self) -> None:
        for held in range(WINDOW + 1):
            with self.subTest(held=held):
                self.tearDown()
                self.setUp()
                waits = [self.send(b"%d" % number) for number in range(WINDOW)]
                self.link.to_client.is_stalled = True
                while len(self.held()) < held:
                    self.link.step(12)
                self.link.cut(clean=False)
                self.network.pump()
                for done in waits:
                    self.assertNoResult(done)
                self.reconnect()
                self.assertEqual([self.successResultOf(done).id for done in waits[:held]], list(range(held)))
                for done in waits[held:]:
                    self.failureResultOf(done, LinkDown)
                self.assertEqual(len(self.held()), held)
                self.committed(b"next")
                self.assertEqual(self.primary.transactions()[-1].number, held + 1)

    def test_who_hears_what_became_of_it_may_begin_anew(self) -> None:
        for held in (0, 1):
            with self.subTest(held=held):
                self.tearDown()
                self.setUp()
                done = self.send(b"0")
                self.link.to_client.is_stalled = True
                while len(self.held()) < held:
                    self.link.step(12)
                self.link.cut(clean=False)
                self.network.pump()
                seen: list[PairStatus] = []
                again = done.addBoth(self.look, seen).addCallback(lambda _: self.send(b"again"))
                self.reconnect()
                self.network.pump()
                self.assertIs(seen[0].link_state, LinkState.UP)
                self.assertEqual(seen[0].last_committed.number if seen[0].last_committed is not None else 0, held)
                self.successResultOf(again)
                self.assertEqual(self.held()[held:], [b"again"])

    def test_what_an_ack_has_told_is_to_be_seen(self) -> None:
        seen: list[PairStatus] = []
        self.send(b"0").addCallback(self.look, seen)
        self.network.pump()
        last = seen[0].last_committed
        self.assertEqual(last.number if last is not None else 0, 1)
