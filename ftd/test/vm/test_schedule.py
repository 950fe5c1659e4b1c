"""When a checkpoint is due."""

from __future__ import annotations

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd.errors import FtdError, LinkDown, NotInState
from ftd.status import Commit
from ftd.test.vm.primary_carrier import FakeCarrier, ModelStandby
from ftd.test.vm.primary_world import VmReactor
from ftd.vm.schedule import Due, Schedule

COMMIT = Commit(id=1, seq=1, bytes=1, seconds=0.0)


class OpeningCarrier(FakeCarrier):
    """One whose transactions open as the test says."""

    result: FtdError | Deferred[int] | None = None

    def open_transaction(self) -> Deferred[int]:
        """See `Carrier`."""
        if isinstance(self.result, FtdError):
            return fail(self.result)
        return succeed(7) if self.result is None else self.result


class ScheduleCase(SynchronousTestCase):
    """A schedule that is ready."""

    interval = 0.0

    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(10)
        self.why_not = ""
        self.carrier = OpeningCarrier(VmReactor(), ModelStandby(lambda _: self.fail("nothing is taken")))
        self.schedule = Schedule(self.interval, self.carrier, self.clock, lambda: (self.why_not, "protected"))

    def due(self) -> Deferred[Due | None]:
        """What the job waits for."""
        return Deferred.fromCoroutine(self.schedule.due())

    def begin(self) -> Deferred[int]:
        """What the cluster manager does."""
        return Deferred.fromCoroutine(self.schedule.begin())

    def tearDown(self) -> None:
        self.assertEqual(self.clock.getDelayedCalls(), [])


class IntervalTests(ScheduleCase):
    """By itself."""

    interval = 0.5

    def test_the_first_is_due_at_once_then_one_each_interval(self) -> None:
        due = self.due()
        self.clock.advance(0)
        self.assertIsNotNone(self.successResultOf(due))
        for _ in range(3):
            due = self.due()
            self.clock.advance(0.49)
            self.assertNoResult(due)
            self.clock.advance(0.01)
            found = self.successResultOf(due)
            assert found is not None
            self.assertEqual((found.answer, found.limit), (None, None))

    def test_the_time_that_a_checkpoint_takes_is_part_of_the_interval(self) -> None:
        self.due()
        self.clock.advance(0)
        self.clock.advance(0.4)
        due = self.due()
        self.clock.advance(0.1)
        self.successResultOf(due)

    def test_one_that_is_late_is_not_made_up_for(self) -> None:
        self.due()
        self.clock.advance(0)
        self.clock.advance(10)
        due = self.due()
        self.clock.advance(0)
        self.successResultOf(due)
        due = self.due()
        self.clock.advance(0.49)
        self.assertNoResult(due)
        self.clock.advance(0.01)
        self.successResultOf(due)

    def test_something_else_has_changed(self) -> None:
        self.due()
        self.clock.advance(0)
        due = self.due()
        self.schedule.wake_up()
        self.assertIsNone(self.successResultOf(due))

    def test_waking_nobody_up(self) -> None:
        self.schedule.wake_up()
        self.schedule.lost()

    def test_a_new_interval_counts_from_now(self) -> None:
        self.due()
        self.clock.advance(0)
        due = self.due()
        self.schedule.change_interval(2.0)
        self.assertIsNone(self.successResultOf(due))
        due = self.due()
        self.clock.advance(1.99)
        self.assertNoResult(due)
        self.clock.advance(0.01)
        self.successResultOf(due)

    def test_the_cluster_manager_has_nothing_to_say(self) -> None:
        error = self.failureResultOf(self.begin(), NotInState).value
        self.assertIn("taken every 500 ms", str(error))


class ManualTests(ScheduleCase):
    """When the cluster manager says so."""

    def test_it_is_due_at_commit(self) -> None:
        due = self.due()
        self.clock.advance(100)
        self.assertEqual(self.successResultOf(self.begin()), 7)
        self.assertNoResult(due)
        answer = self.schedule.commit(3.0)
        found = self.successResultOf(due)
        assert found is not None
        self.assertEqual(found.limit, 3.0)
        self.assertIs(found.answer, answer)

    def test_it_is_asked_for_while_the_job_is_busy(self) -> None:
        self.begin()
        answer = self.schedule.commit(3.0)
        self.failureResultOf(self.begin(), NotInState)
        found = self.successResultOf(self.due())
        assert found is not None and found.answer is not None
        found.answer.callback(COMMIT)
        self.assertIs(self.successResultOf(answer), COMMIT)
        self.successResultOf(self.begin())

    def test_it_cannot_be_opened(self) -> None:
        self.carrier.result = LinkDown("it is down", 1.0)
        self.failureResultOf(self.begin(), LinkDown)
        self.carrier.result = None
        self.successResultOf(self.begin())

    def test_one_at_a_time_also_while_it_is_being_opened(self) -> None:
        opening = self.carrier.result = Deferred()
        first = self.begin()
        self.failureResultOf(self.begin(), NotInState)
        opening.callback(9)
        self.assertEqual(self.successResultOf(first), 9)

    def test_not_ready(self) -> None:
        self.why_not = "there is no standby"
        self.assertIn("there is no standby", str(self.failureResultOf(self.begin(), NotInState).value))
        self.assertIn("there is no standby", str(self.assertRaises(NotInState, self.schedule.commit, 1.0)))

    def test_the_link_is_lost_after_begin(self) -> None:
        self.begin()
        self.schedule.lost()
        self.assertRaises(NotInState, self.schedule.commit, 1.0)
        self.assertRaises(NotInState, self.schedule.cancel)
        self.successResultOf(self.begin())

    def test_those_who_have_asked_are_told_that_there_will_be_none(self) -> None:
        self.begin()
        answer = self.schedule.commit(1.0)
        self.schedule.refuse_asked()
        self.failureResultOf(answer, LinkDown)
        self.schedule.refuse_asked()
        self.schedule.refuse(Due())

    def test_the_interval_stays_while_a_transaction_is_open(self) -> None:
        self.begin()
        self.assertRaises(NotInState, self.schedule.change_interval, 1.0)
        self.schedule.cancel()
        self.schedule.change_interval(1.0)
        self.assertEqual(self.schedule.interval, 1.0)
