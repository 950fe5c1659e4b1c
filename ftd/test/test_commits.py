"""What became of a transaction whose COMMIT was sent, and what its caller is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.bus import EventBus
from ftd.commits import Commits
from ftd.errors import LinkDown, NoAck, PairFailed
from ftd.history import History, Transaction
from ftd.status import Commit, Outcome, TransactionStatus
from ftd.wire.constants import ID_MODULUS
from ftd.wire.errors import ErrorCode
from ftd.wire.hello import Hello, LastCheckpoint

OURS = "6f9c4a0e-3b1d-4c55-9a2b-0d2f5a8c7e11"
THEIRS = "0c0ffee0-0000-4000-8000-000000000001"


def hello(number: int | None, generation: str = OURS) -> Hello:
    """The HELLO of a standby whose newest checkpoint has this number."""
    last = LastCheckpoint(generation, number) if number is not None else None
    return Hello(pair="demo", node="b", last=last, max_payload=1 << 20, state="standby")


class CommitsCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.history = History("demo", EventBus(self.clock.seconds), self.clock.seconds)
        self.commits = Commits(self.history, self.clock, OURS)

    def sent(self, id: int = 0, limit: float = 30.0) -> tuple[Transaction, Deferred[Commit]]:
        """A transaction of 3 frames and 700 bytes whose COMMIT goes out."""
        transaction = self.history.begin(id)
        return transaction, self.commits.sent(transaction, 3, 700, limit)

    def row(self, index: int = -1) -> TransactionStatus:
        """What the API shows of a transaction."""
        return self.history.recent()[index]

    def after(self, done: Deferred[Commit], act: Callable[[], None]) -> None:
        """Have ``act`` called as soon as the caller is told."""

        def told(result: Any) -> Any:
            act()
            return result

        done.addBoth(told)

    def check_clock(self) -> None:
        """Make sure that no time limit is left: the one timer there may be finds nobody who waits."""
        self.assertLessEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(1000)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class AnswerTests(CommitsCase):
    """While the link stands."""

    def test_an_ack(self) -> None:
        transaction, done = self.sent(id=65535)
        self.assertTrue(self.commits.in_flight)
        self.assertNoResult(done)
        self.assertEqual((self.row().outcome, self.row().number), (Outcome.IN_FLIGHT, 1))
        self.clock.advance(0.125)
        self.assertIs(self.commits.acknowledged(), transaction)
        self.assertEqual(self.successResultOf(done), Commit(id=65535, seq=3, bytes=700, seconds=0.125))
        self.assertFalse(self.commits.in_flight)
        self.assertEqual(self.row().outcome, Outcome.COMMITTED)
        self.assertEqual(self.commits.number, 1)
        self.check_clock()

    def test_numbers_go_on_from_what_the_standby_holds(self) -> None:
        self.commits.number = 41
        self.sent()
        self.commits.acknowledged()
        self.sent(1)
        self.assertEqual([self.row(-2).number, self.row().number], [42, 43])

    def test_a_nack_for_each_reason(self) -> None:
        means = {
            ErrorCode.FLUSH: "its sink could not store it",
            ErrorCode.RECV_PAYLOAD: "it arrived damaged",
            ErrorCode.REALLOC_BUF: "it is larger than the standby takes",
            ErrorCode.STATE_INVALID: "it does not fit what the standby holds, whose own status says more",
        }
        for code in ErrorCode:
            _, done = self.sent(id=7)
            self.commits.refused(7, code)
            failed = self.failureResultOf(done, PairFailed).value
            self.assertIs(failed.code, code)
            why = means.get(code, "it does not say why")
            self.assertEqual(str(failed), f"the standby refused transaction 7 ({code.name}): {why}")
            self.assertEqual((self.row().outcome, self.row().detail), (Outcome.NACKED, str(failed)))
            self.assertEqual(self.commits.number, 0)
            self.check_clock()

    def test_the_number_of_a_refused_one_goes_to_the_next(self) -> None:
        self.sent()[1].addErrback(lambda failure: failure.trap(PairFailed))
        self.commits.refused(7, ErrorCode.FLUSH)
        self.sent()
        self.assertEqual(self.row().number, 1)

    def test_no_ack_in_time_and_one_later(self) -> None:
        _, done = self.sent(limit=2.5)
        self.clock.advance(2.4)
        self.assertNoResult(done)
        self.clock.advance(0.2)
        late = self.failureResultOf(done, NoAck).value
        self.assertEqual(
            str(late),
            "no ACK for transaction 0 within 2.5 s; it may still be committed: its pair's transactions tell",
        )
        self.assertTrue(self.commits.in_flight)
        self.assertEqual(self.row().outcome, Outcome.IN_FLIGHT)
        self.commits.acknowledged()
        self.assertEqual(self.row().outcome, Outcome.COMMITTED)
        self.check_clock()

    def test_no_ack_in_time_and_a_nack_later(self) -> None:
        _, done = self.sent(7, limit=1)
        self.clock.advance(1)
        self.failureResultOf(done, NoAck)
        self.commits.refused(7, ErrorCode.FLUSH)
        self.assertEqual(self.row().outcome, Outcome.NACKED)

    def test_a_nack_is_the_end_of_all_behind_it(self) -> None:
        sent = [self.sent(id) for id in (65535, 0, 1)]
        order: list[int] = []
        for transaction, done in sent:
            self.after(done, partial(order.append, transaction.id))
        # Who is told first finds none of them in flight any more.
        again: list[Transaction] = []
        self.after(sent[0][1], lambda: again.append(self.sent(65535)[0]))
        self.commits.refused(65535, ErrorCode.FLUSH)
        why = "the standby refused transaction 65535 (FLUSH): its sink could not store it"
        self.assertEqual(
            [str(self.failureResultOf(done, PairFailed).value) for _, done in sent],
            [
                why,
                f"transaction 0 was dropped with an earlier one, as {why}",
                f"transaction 1 was dropped with an earlier one, as {why}",
            ],
        )
        self.assertEqual(order, [65535, 0, 1])
        self.assertEqual(self.history.counts[Outcome.NACKED], 3)
        self.assertEqual((again[0].number, again[0].outcome), (1, Outcome.IN_FLIGHT))
        self.assertIs(self.commits.acknowledged(), again[0])

    def test_a_heartbeat_that_is_refused_takes_those_behind_it_along(self) -> None:
        _, done = self.sent(8)
        self.commits.refused(7, ErrorCode.RECV_PAYLOAD)
        self.assertEqual(self.failureResultOf(done, PairFailed).value.code, ErrorCode.RECV_PAYLOAD)
        self.assertFalse(self.commits.in_flight)

    def test_there_is_one_timer_whatever_is_in_flight(self) -> None:
        for id in range(5):
            self.sent(id, limit=2.0 + id)
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)

    def test_each_time_limit_is_its_own(self) -> None:
        limits = (86_400.0, 3.0, 1.0, 2.0)
        waits = [self.sent(id, limit=limit)[1] for id, limit in enumerate(limits)]
        for _ in range(4):
            self.clock.advance(0.5)
        self.assertNoResult(waits[0])
        self.assertNoResult(waits[1])
        self.failureResultOf(waits[2], NoAck)
        self.failureResultOf(waits[3], NoAck)
        self.clock.advance(1)
        self.failureResultOf(waits[1], NoAck)
        self.clock.advance(86_397)
        self.failureResultOf(waits[0], NoAck)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_is_told_that_it_is_too_late_may_go_on(self) -> None:
        _, done = self.sent(0, limit=1)
        later: list[Deferred[Commit]] = []
        self.after(done, lambda: later.append(self.sent(1, limit=1)[1]))
        self.clock.advance(1)
        self.failureResultOf(done, NoAck)
        self.assertNoResult(later[0])
        self.clock.advance(1)
        self.failureResultOf(later[0], NoAck)

    def test_answers_come_in_order(self) -> None:
        first, second = self.sent(0), self.sent(1)
        self.assertEqual([self.row(0).number, self.row(1).number], [1, 2])
        self.assertIs(self.commits.acknowledged(), first[0])
        self.assertNoResult(second[1])
        self.assertIs(self.commits.acknowledged(), second[0])
        self.assertEqual(self.successResultOf(second[1]).id, 1)
        self.assertEqual(self.commits.number, 2)


class DoubtTests(CommitsCase):
    """The link broke before the answer, and a new session tells."""

    def lost(self, id: int = 0, limit: float = 30.0) -> Deferred[Commit]:
        """The commit of checkpoint 8, in doubt."""
        self.commits.number = 7
        _, done = self.sent(id, limit)
        self.commits.link_lost((id + 1) % ID_MODULUS)
        self.assertFalse(self.commits.in_flight)
        self.assertNoResult(done)
        return done

    def check_not_committed(self, done: Deferred[Commit]) -> None:
        failed = self.failureResultOf(done, LinkDown).value
        self.assertEqual(
            str(failed),
            "transaction 0 is not committed: the link broke before its ACK, and the standby does not have it",
        )
        self.assertEqual(failed.retry_after, 1.0)
        self.assertEqual((self.row().outcome, self.row().detail), (Outcome.FAILED, str(failed)))
        self.assertEqual(self.commits.number, 7)
        self.check_clock()

    def test_the_standby_has_it(self) -> None:
        done = self.lost()
        self.clock.advance(3)
        transaction = self.commits.resolve(hello(8), 1)
        assert transaction is not None
        self.assertEqual(transaction.number, 8)
        self.assertEqual(self.successResultOf(done), Commit(id=0, seq=3, bytes=700, seconds=3.0))
        self.assertEqual(self.row().outcome, Outcome.COMMITTED)
        self.assertEqual(self.commits.number, 8)
        self.check_clock()

    def test_the_standby_has_it_and_its_id_was_the_last(self) -> None:
        done = self.lost(id=65535)
        self.commits.resolve(hello(8), 0)
        self.assertEqual(self.successResultOf(done).id, 65535)

    def test_the_standby_is_where_it_was(self) -> None:
        done = self.lost()
        self.assertIs(self.commits.resolve(hello(7), 0), None)
        self.check_not_committed(done)

    def test_the_standby_expects_the_next_id_only_because_ids_wrap(self) -> None:
        # A heartbeat has used every id since checkpoint 7, and a restart has forgotten them.
        done = self.lost()
        self.assertIs(self.commits.resolve(hello(7), 1), None)
        self.check_not_committed(done)

    def test_the_standby_has_a_checkpoint_of_that_number_under_another_id(self) -> None:
        done = self.lost()
        self.assertIs(self.commits.resolve(hello(8), 5), None)
        self.check_not_committed(done)

    def test_the_standby_has_lost_everything(self) -> None:
        done = self.lost()
        self.assertIs(self.commits.resolve(hello(None), 0), None)
        self.check_not_committed(done)

    def test_the_standby_follows_somebody_else(self) -> None:
        done = self.lost()
        self.assertIs(self.commits.resolve(hello(8, THEIRS), 1), None)
        self.check_not_committed(done)

    def test_a_kemari_cannot_tell(self) -> None:
        done = self.lost()
        self.assertIs(self.commits.resolve(None, 0), None)
        self.assertEqual(
            str(self.failureResultOf(done, LinkDown).value),
            "transaction 0 may be committed: the link broke before its ACK, and a Kemari cannot tell",
        )
        self.assertEqual(self.row().outcome, Outcome.FAILED)

    def test_the_time_limit_goes_on(self) -> None:
        done = self.lost(limit=2)
        self.clock.advance(2)
        self.failureResultOf(done, NoAck)
        self.commits.resolve(hello(8), 1)
        self.assertEqual(self.row().outcome, Outcome.COMMITTED)

    def test_without_doubt_there_is_nothing_to_resolve(self) -> None:
        self.assertIs(self.commits.resolve(hello(7), 0), None)
        done = self.lost()
        self.commits.resolve(hello(8), 1)
        self.assertIs(self.commits.resolve(hello(8), 1), None)
        self.assertEqual(self.history.counts[Outcome.COMMITTED], 1)
        self.successResultOf(done)

    def test_the_doubt_outlives_more_than_one_link(self) -> None:
        done = self.lost()
        self.commits.link_lost(0)
        self.commits.link_lost(0)
        self.commits.resolve(hello(8), 1)
        self.successResultOf(done)

    def several(self, *ids: int, after: int) -> list[Deferred[Commit]]:
        """The commits of checkpoints 8, 9, …, in doubt; the next id would have been ``after``."""
        self.commits.number = 7
        waits = [self.sent(id)[1] for id in ids]
        self.commits.link_lost(after)
        return waits

    def outcomes(self) -> list[Outcome]:
        """Of all transactions."""
        return [row.outcome for row in self.history.recent()]

    def test_the_standby_has_some_of_several(self) -> None:
        for held in range(4):
            with self.subTest(held=held):
                self.setUp()
                waits = self.several(65534, 65535, 0, after=1)
                newest = self.commits.resolve(hello(7 + held), (65534 + held) % ID_MODULUS)
                self.assertEqual(newest.number if newest is not None else 7, 7 + held)
                self.assertEqual(self.outcomes(), [Outcome.COMMITTED] * held + [Outcome.FAILED] * (3 - held))
                self.assertEqual([self.successResultOf(done).id for done in waits[:held]], [65534, 65535, 0][:held])
                for done in waits[held:]:
                    self.assertIn("the standby does not have it", str(self.failureResultOf(done, LinkDown).value))
                self.assertEqual(self.commits.number, 7 + held)

    def test_heartbeats_in_between(self) -> None:
        # 3, a heartbeat, 5, two heartbeats.
        for sequence, next_id, held in (
            *((8, 4, 1), (8, 5, 1), (8, 6, 0), (8, 3, 0)),
            *((9, 6, 2), (9, 7, 2), (9, 8, 2), (9, 9, 0), (9, 5, 0)),
            *((7, 3, 0), (10, 8, 0)),
        ):
            with self.subTest(sequence=sequence, next_id=next_id):
                self.setUp()
                waits = self.several(3, 5, after=8)
                self.commits.resolve(hello(sequence), next_id)
                self.assertEqual(self.outcomes(), [Outcome.COMMITTED] * held + [Outcome.FAILED] * (2 - held))
                for done in waits:
                    done.addErrback(lambda failure: failure.trap(LinkDown))

    def test_who_hears_of_several_may_go_on_at_once(self) -> None:
        waits = self.several(0, 1, after=2)
        fresh: list[Transaction] = []
        waits[0].addCallback(lambda _: fresh.append(self.sent(2)[0]))
        self.commits.resolve(hello(9), 2)
        self.assertEqual(fresh[0].number, 10)
        self.assertEqual(self.outcomes(), [Outcome.COMMITTED, Outcome.COMMITTED, Outcome.IN_FLIGHT])


class EndTests(CommitsCase):
    """The pair is about to stop."""

    def setUp(self) -> None:
        super().setUp()
        self.told: list[str] = []

    def wait(self) -> None:
        self.commits.when_none(lambda: self.told.append("none"))

    def test_nothing_is_in_flight(self) -> None:
        self.wait()
        self.assertEqual(self.told, ["none"])

    def test_an_ack_ends_the_wait(self) -> None:
        self.sent()
        self.wait()
        self.assertEqual(self.told, [])
        self.commits.acknowledged()
        self.assertEqual(self.told, ["none"])
        self.sent()
        self.commits.acknowledged()
        self.assertEqual(self.told, ["none"])

    def test_a_nack_ends_the_wait(self) -> None:
        _, done = self.sent()
        self.wait()
        self.commits.refused(7, ErrorCode.FLUSH)
        self.assertEqual(self.told, ["none"])
        self.failureResultOf(done, PairFailed)

    def test_the_loss_of_the_link_ends_the_wait(self) -> None:
        self.sent()
        self.wait()
        self.commits.link_lost(1)
        self.assertEqual(self.told, ["none"])

    def test_the_last_of_several_ends_the_wait(self) -> None:
        self.sent(0)
        self.sent(1)
        self.wait()
        self.commits.acknowledged()
        self.assertEqual(self.told, [])
        self.commits.acknowledged()
        self.assertEqual(self.told, ["none"])

    def test_the_caller_knows_before_the_wait_ends(self) -> None:
        _, done = self.sent()
        done.addCallback(lambda _: self.told.append("answered"))
        self.wait()
        self.commits.acknowledged()
        self.assertEqual(self.told, ["answered", "none"])

    def test_what_is_abandoned_may_be_committed(self) -> None:
        _, doubtful = self.sent(3)
        self.commits.link_lost(4)
        _, flying = self.sent(4)
        self.commits.abandon()
        for id, done in ((3, doubtful), (4, flying)):
            self.assertEqual(
                str(self.failureResultOf(done, LinkDown).value),
                f"transaction {id} may be committed: the pair was stopped before its ACK",
            )
        self.assertEqual(self.history.counts[Outcome.FAILED], 2)
        self.assertFalse(self.commits.in_flight)
        self.check_clock()
        self.assertIs(self.commits.resolve(hello(1), 5), None)
