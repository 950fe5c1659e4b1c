"""The end of the daemon: what is committed is finished, what is open is cancelled, and none of it takes for ever."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.logger import LogLevel

from ftd.errors import NotInState
from ftd.status import Commit, LinkState, Outcome
from ftd.test.pair_case import Body
from ftd.test.service_case import ServiceTestCase, pair


class StopTests(ServiceTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.halves = (self.primary(), self.secondary())

    def stop(self) -> Deferred[None]:
        """Begin to stop."""
        return self.service.stopService()

    def check_stopped(self, stopping: Deferred[None], within: float) -> None:
        """Make sure that it ends in time, and without a complaint."""
        with self.logged(LogLevel.warn) as lines:
            self.reactor.pass_time(within)
        self.successResultOf(stopping)
        self.assertEqual(lines, [])

    def test_nobody_listens_any_more_and_nobody_dials(self) -> None:
        stopping = self.stop()
        self.assertEqual([port for port in self.ports() if port == 8440], [])
        self.check_stopped(stopping, 0.3)
        self.assertEqual(self.ports(), [])
        self.assertTrue(all(link.is_over for link in self.reactor.links))
        self.reactor.pass_time(30, step=1)
        self.assertEqual((len(self.reactor.links), self.reactor.dialling), (1, []))
        self.assertEqual(self.reactor.getDelayedCalls(), [])
        for half in self.halves:
            self.assertEqual((half.link_state, half.error), (LinkState.DOWN, None))

    def test_an_open_transaction_is_cancelled(self) -> None:
        upload = self.primary().checkpoint(Body())
        upload.write(bytes(300_000))
        self.reactor.deliver()
        stopping = self.stop()
        self.failureResultOf(upload.done, NotInState)
        self.check_stopped(stopping, 0.3)
        for half in self.halves:
            self.assertEqual(half.transactions()[-1].outcome, Outcome.CANCELLED)

    def test_a_commit_is_finished(self) -> None:
        committing = self.push("demo", b"abc")
        stopping = self.stop()
        self.check_stopped(stopping, 0.3)
        self.assertIsInstance(self.successResultOf(committing), Commit)
        self.assertEqual(len(self.secondary().store().checkpoints()), 1)
        self.assertEqual(self.restarted_with(), [1])

    def restarted_with(self) -> list[int]:
        self.restart()
        return [held.number for held in self.secondary().store().checkpoints()]

    def test_standbys_stop_after_the_primaries_that_they_have_to_answer(self) -> None:
        self.reactor.threads_are_stuck = True
        committing = self.push("demo", b"abc")
        self.reactor.deliver()
        stopping = self.stop()
        self.reactor.pass_time(3.0)
        self.assertNoResult(stopping)
        self.assertIs(self.halves[1].link_state, LinkState.UP)
        self.reactor.threads_are_stuck = False
        while self.reactor.stuck:
            self.reactor.stuck.pop(0)()
        self.check_stopped(stopping, 0.3)
        self.successResultOf(committing)

    def test_a_commit_is_given_four_seconds(self) -> None:
        self.reactor.threads_are_stuck = True
        committing = self.push("demo", b"abc")
        self.reactor.deliver()
        stopping = self.stop()
        with self.logged(LogLevel.warn) as lines:
            self.reactor.pass_time(3.9)
            self.assertNoResult(stopping)
            self.reactor.pass_time(0.3)
        self.successResultOf(stopping)
        self.assertEqual(lines, ["not everything could be finished within 4.0 s"])
        self.assertNoResult(committing)

    def test_a_standby_that_hangs_is_given_four_seconds(self) -> None:
        self.reactor.threads_are_stuck = True
        upload = self.primary().checkpoint(Body())
        upload.write(b"abc")
        upload.finish()
        self.reactor.deliver()
        # The primary's end of the link is gone, so it has nothing to wait for.
        self.reactor.links[-1].cut(clean=False)
        self.reactor.deliver()
        stopping = self.stop()
        with self.logged(LogLevel.warn) as lines:
            self.reactor.pass_time(4.2)
        self.successResultOf(stopping)
        self.assertEqual(lines, ["not everything could be finished within 4.0 s"])
        self.failureResultOf(upload.done)

    def test_what_was_said_last_has_time_to_go_out(self) -> None:
        stopping = self.stop()
        self.reactor.deliver()
        self.assertNoResult(stopping)
        self.reactor.advance(0.1)
        self.successResultOf(stopping)


class ManyTests(ServiceTestCase):
    def test_one_that_hangs_does_not_keep_the_others_from_finishing(self) -> None:
        self.start(pair("slow", 8441), pair("fast", 8442))
        self.reactor.links[0].to_client.is_stalled = True
        hanging = self.push("slow", b"abc")
        committing = self.push("fast", b"abc")
        stopping = self.service.stopService()
        self.reactor.deliver()
        self.successResultOf(committing)
        self.reactor.pass_time(4.2)
        self.successResultOf(stopping)
        self.assertNoResult(hanging)
