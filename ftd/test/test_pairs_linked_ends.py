"""How a primary stops, and how its link is opened anew."""

from __future__ import annotations

from ftd.errors import FtdError, LinkDown, NotInState, PairFailed
from ftd.status import LinkState, Outcome
from ftd.test.pair_case import Body, PairTestCase
from ftd.testing.transport import Network


class StopTests(PairTestCase):
    """Open transactions are cancelled, committed ones are waited for."""

    def check_over(self) -> None:
        """Make sure that nothing of the primary is left."""
        status = self.primary.status()
        self.assertEqual((status.link_state, status.link_detail), (LinkState.DOWN, "stopped"))
        links = len(self.network.links)
        self.secondary.stop()
        self.pass_time(60, step=1.0)
        self.assertEqual(len(self.network.links), links)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_before_the_start(self) -> None:
        self.secondary = self.new_secondary()
        self.primary = self.new_primary()
        self.successResultOf(self.primary.stop())
        self.check_over()

    def test_between_transactions(self) -> None:
        self.start()
        self.committed(b"abc")
        stopping = self.primary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.assertIs(self.secondary.error, None)
        self.check_over()

    def test_while_nobody_listens(self) -> None:
        self.secondary = self.new_secondary()
        self.start_primary()
        self.successResultOf(self.primary.stop())
        self.check_over()

    def test_while_nobody_answers(self) -> None:
        self.secondary = self.new_secondary()
        self.network.is_silent = True
        self.start_primary()
        self.successResultOf(self.primary.stop())
        self.check_over()

    def test_during_the_handshake(self) -> None:
        self.start_secondary()
        self.start_primary()
        stopping = self.primary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.check_over()

    def test_an_open_transaction_is_cancelled(self) -> None:
        self.start()
        self.begin()
        upload = self.primary.append(Body())
        upload.write(bytes(3000))
        self.network.pump()
        stopping = self.primary.stop()
        self.refusal(NotInState, lambda: upload)
        self.network.pump()
        self.successResultOf(stopping)
        for half in (self.primary, self.secondary):
            self.assertEqual(half.transactions()[-1].outcome, Outcome.CANCELLED)
            self.assertIs(half.error, None)
        self.check_over()

    def test_an_ack_is_waited_for(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        stopping = self.primary.stop()
        self.assertNoResult(stopping)
        self.network.pump()
        self.successResultOf(stopping)
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.check_over()

    def test_an_ack_that_cannot_come_any_more_is_not(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        stopping = self.primary.stop()
        self.link.cut(clean=False)
        self.network.pump()
        self.successResultOf(stopping)
        self.assertIn("the pair was stopped before its ACK", str(self.refusal(LinkDown, lambda: committing)))
        self.assertEqual(self.primary.status().link_detail, "stopped")
        self.check_over()

    def test_a_standby_that_is_dead_does_not_hold_it_up_for_ever(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        stopping = self.primary.stop()
        self.link.to_client.is_stalled = self.link.to_server.is_stalled = True
        self.pass_time(4.9)
        self.assertNoResult(stopping)
        self.pass_time(0.2)
        self.successResultOf(stopping)
        self.refusal(LinkDown, lambda: committing)

    def test_what_is_in_doubt_is_not_waited_for(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        self.kill_secondary()
        self.assertNoResult(committing)
        self.successResultOf(self.primary.stop())
        self.assertIn("may be committed", str(self.refusal(LinkDown, lambda: committing)))
        self.check_over()

    def test_a_begin_that_waits_for_a_heartbeat_is_answered(self) -> None:
        self.start()
        self.clock.advance(1.0)
        beginning = self.primary.begin()
        stopping = self.primary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.refusal(FtdError, lambda: beginning)
        self.check_over()

    def test_a_frozen_link_is_closed_all_the_same(self) -> None:
        self.network = Network(capacity=1000)
        self.start()
        self.begin()
        upload = self.primary.append(Body())
        self.link.to_server.is_stalled = True
        upload.write(bytes(50_000))
        stopping = self.primary.stop()
        self.refusal(NotInState, lambda: upload)
        self.pass_time(12)
        self.successResultOf(stopping)
        self.check_over()


class ResetTests(PairTestCase):
    """The operator wants the link opened anew, now."""

    def setUp(self) -> None:
        super().setUp()
        self.start()
        self.primary._dialer._jitter = lambda: 1.0

    def test_a_session_that_stands_is_replaced(self) -> None:
        self.committed(b"first")
        self.successResultOf(self.primary.reset())
        self.pass_time(0.2)
        self.assertEqual((self.primary.link_state, self.primary.status().reconnects), (LinkState.UP, 1))
        self.assertIs(self.primary.error, None)
        self.assertEqual(self.committed(b"second").id, 1)
        self.assertEqual(self.held(), [b"first", b"second"])

    def test_an_open_transaction_is_lost(self) -> None:
        self.begin()
        upload = self.primary.append(Body())
        upload.write(bytes(3000))
        self.network.pump()
        self.primary.reset()
        self.network.pump()
        self.refusal(LinkDown, lambda: upload)
        self.assertEqual(self.primary.transactions()[-1].outcome, Outcome.FAILED)
        self.reconnect()
        self.assertEqual(self.committed(b"abc").id, 0)

    def test_a_commit_in_flight_is_found_out_about(self) -> None:
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        self.link.to_client.is_stalled = True
        self.network.pump()
        self.primary.reset()
        self.network.pump()
        self.assertNoResult(committing)
        self.link.to_client.is_stalled = False
        self.reconnect()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.held(), [b"abc"])

    def test_an_error_goes_at_once(self) -> None:
        self.begin()
        self.network.pump()
        self.kill_secondary()
        self.pass_time(20)
        self.assertEqual(self.primary.status().has_error_name, "RECV_HDR")
        self.refusal(PairFailed, self.primary.begin)
        self.primary.reset()
        self.assertEqual(self.primary.status().has_error, 0)
        self.refusal(LinkDown, self.primary.begin)

    def test_it_does_not_wait_for_the_next_attempt(self) -> None:
        self.kill_secondary()
        self.pass_time(20)
        self.start_secondary()
        self.network.pump()
        retry_after = self.refusal(LinkDown, self.primary.begin).retry_after
        self.assertGreater(retry_after, 1.0)
        self.primary.reset()
        self.network.pump()
        self.assertIs(self.primary.link_state, LinkState.UP)

    def test_an_attempt_that_is_under_way_goes_on(self) -> None:
        self.kill_secondary()
        self.network.is_silent = True
        self.pass_time(20)
        self.assertIs(self.primary.link_state, LinkState.CONNECTING)
        self.primary.reset()
        self.assertIs(self.primary.link_state, LinkState.CONNECTING)

    def test_the_waits_grow_up_to_the_limit_and_start_anew(self) -> None:
        self.kill_secondary()
        # Doubling from 0.1 s: after 20 s the wait is at reconnect-max, 10 s.
        self.pass_time(20)
        self.assertGreater(self.refusal(LinkDown, self.primary.begin).retry_after, 2.0)
        self.primary.reset()
        self.assertLess(self.refusal(LinkDown, self.primary.begin).retry_after, 0.3)
