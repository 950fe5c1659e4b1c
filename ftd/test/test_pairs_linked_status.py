"""What both halves show of themselves, at rest and at work, and the events that they publish."""

from __future__ import annotations

import attrs

from ftd.config import Ack
from ftd.errors import NotInState, PairFailed
from ftd.sinks.directory import BUFFER
from ftd.status import FtMode, LastCommitted, LinkState, OpenTransaction, Outcome, PairStatus, Timeline
from ftd.test.pair_case import EPOCH, Body, PairTestCase
from ftd.testing.threads import SteppedThread
from ftd.testing.transport import Network


class PhaseTests(PairTestCase):
    """The states of a pair, one after the other."""

    def shown(self) -> tuple[LinkState, str, FtMode]:
        """The primary's states."""
        status = self.primary.status()
        return status.link_state, status.state, status.ft_mode

    def test_the_primary_from_its_start_to_its_end(self) -> None:
        self.primary = self.new_primary()
        self.assertEqual(self.shown(), (LinkState.DOWN, "INIT", FtMode.OFF))
        self.network.is_silent = True
        self.successResultOf(self.primary.start())
        self.assertEqual(self.shown(), (LinkState.CONNECTING, "INIT", FtMode.INIT))
        self.start_secondary()
        self.network.is_silent = False
        self.pass_time(10)
        self.assertEqual(self.shown(), (LinkState.DOWN, "INIT", FtMode.OFF))
        self.assertEqual(self.primary.status().link_detail, "no connection within 10 s")
        self.clock.advance(0.1)
        self.assertEqual(self.shown(), (LinkState.HANDSHAKE, "INIT", FtMode.INIT))
        self.network.pump()
        self.assertEqual(self.shown(), (LinkState.UP, "ACK", FtMode.INIT))
        self.begin()
        self.assertEqual(self.shown(), (LinkState.UP, "BEGIN", FtMode.TRANSACTION_BEGIN))
        self.append(b"abc")
        self.assertEqual(self.shown(), (LinkState.UP, "CONTINUE", FtMode.TRANSACTION_ITER))
        self.primary.commit()
        self.assertEqual(self.shown(), (LinkState.UP, "COMMIT", FtMode.TRANSACTION_COMMIT))
        self.network.pump()
        self.assertEqual(self.shown(), (LinkState.UP, "ACK", FtMode.INIT))
        self.begin()
        self.primary.cancel()
        self.assertEqual(self.shown(), (LinkState.UP, "CANCEL", FtMode.INIT))
        self.begin()
        self.network.pump()
        self.link.cut(clean=False)
        self.network.pump()
        self.assertEqual(self.shown(), (LinkState.DOWN, "INIT", FtMode.ERROR))
        self.reconnect()
        self.assertEqual(self.shown(), (LinkState.UP, "ACK", FtMode.INIT))
        self.primary.stop()
        self.network.pump()
        self.assertEqual(self.shown(), (LinkState.DOWN, "INIT", FtMode.OFF))

    def test_a_heartbeat_is_not_shown_as_a_commit(self) -> None:
        self.start()
        self.clock.advance(1.0)
        self.assertEqual(self.shown(), (LinkState.UP, "COMMIT", FtMode.INIT))

    def test_the_secondary_from_its_start_to_its_end(self) -> None:
        def shown() -> tuple[LinkState, str, str, FtMode]:
            status = self.secondary.status()
            return status.link_state, status.link_detail, status.state, status.ft_mode

        thread = SteppedThread()
        self.secondary = self.new_secondary(self.directory_sink(run_in_thread=thread))
        self.assertEqual(shown(), (LinkState.DOWN, "", "INIT", FtMode.OFF))
        self.assertEqual(self.secondary.status().link_address, "tcp:8441")
        self.successResultOf(self.secondary.start())
        self.assertEqual(shown(), (LinkState.DOWN, "waiting for a sender", "INIT", FtMode.OFF))
        self.assertEqual(self.secondary.status().link_address, "192.0.2.2:8441")
        self.start_primary()
        self.assertEqual(shown(), (LinkState.HANDSHAKE, "", "INIT", FtMode.INIT))
        self.network.pump()
        self.assertEqual(shown(), (LinkState.UP, "", "ACK", FtMode.TRANSACTION_RECV))
        self.begin()
        self.network.pump()
        self.assertEqual(shown(), (LinkState.UP, "", "BEGIN", FtMode.TRANSACTION_RECV))
        self.append(b"abc")
        self.network.pump()
        self.assertEqual(shown(), (LinkState.UP, "", "CONTINUE", FtMode.TRANSACTION_RECV))
        self.assertEqual(self.secondary.status().transaction, OpenTransaction(id=0, seq=1, bytes=3))
        self.primary.commit()
        self.network.pump()
        self.assertEqual(shown(), (LinkState.UP, "", "COMMIT", FtMode.TRANSACTION_RECV))
        self.assertTrue(self.secondary.status().freeze_input)
        thread.run()
        self.assertEqual(shown(), (LinkState.UP, "", "ACK", FtMode.TRANSACTION_RECV))
        self.assertFalse(self.secondary.status().freeze_input)
        self.network.pump()
        self.primary.stop()
        self.network.pump()
        self.assertEqual(shown(), (LinkState.DOWN, "the sender closed the link", "INIT", FtMode.OFF))
        self.secondary.stop()
        self.assertEqual(shown(), (LinkState.DOWN, "stopped", "INIT", FtMode.OFF))


class FieldTests(PairTestCase):
    """Every field, when something has happened."""

    def test_the_primary(self) -> None:
        self.start(bandwidth_limit=1 << 20)
        self.clock.advance(0.5)
        self.committed(b"a" * 3000)
        self.begin()
        self.append(b"b" * 2000)
        self.network.pump()
        status = self.primary.status()
        self.assertEqual(
            status,
            PairStatus(
                name="demo",
                role="primary",
                peer="ftd",
                link_state=LinkState.UP,
                link_address="tcp:192.0.2.2:8441",
                link_peer="192.0.2.2:8441",
                link_detail="",
                state="CONTINUE",
                ft_mode=FtMode.TRANSACTION_ITER,
                transaction=OpenTransaction(id=1, seq=2, bytes=2000),
                id=1,
                last_committed=LastCommitted(id=0, number=1, bytes=3000, at=EPOCH + 0.5),
                has_error=0,
                has_error_name=None,
                has_error_detail=None,
                freeze_output=False,
                freeze_input=False,
                rate_limit=True,
                bandwidth_limit=1 << 20,
                buffered_bytes=0,
                generation=self.primary.generation,
                bytes_sent=len(self.link.to_server.delivered),
                bytes_received=len(self.link.to_client.delivered),
                transactions_committed=1,
                transactions_cancelled=0,
                transactions_nacked=0,
                transactions_failed=0,
                heartbeats=0,
                reconnects=0,
            ),
        )
        self.assertTrue(status.bytes_sent > 5000 and status.bytes_received > 0)

    def test_the_secondary(self) -> None:
        self.start()
        self.clock.advance(0.5)
        self.committed(b"a" * 3000)
        primary = self.primary.status()
        self.assertEqual(
            self.secondary.status(),
            attrs.evolve(
                primary,
                name="standby",
                role="secondary",
                link_address="192.0.2.2:8441",
                link_peer="192.0.2.1:50000",
                ft_mode=FtMode.TRANSACTION_RECV,
                bytes_sent=primary.bytes_received,
                bytes_received=primary.bytes_sent,
            ),
        )

    def test_an_error(self) -> None:
        self.start()
        self.begin()
        self.network.pump()
        self.link.cut(clean=True)
        self.network.pump()
        for half in (self.primary, self.secondary):
            status = half.status()
            self.assertEqual((status.has_error, status.has_error_name), (3, "RECV_HDR"))
            self.assertEqual(status.has_error_detail, "the peer closed the link before transaction 0 was committed")
            self.assertEqual(status.link_detail, status.has_error_detail)
            self.assertEqual((status.link_peer, status.transaction), (None, None))

    def test_counters_outlive_links(self) -> None:
        self.start()
        self.committed(b"abc")
        sent = self.primary.status().bytes_sent
        self.link.cut(clean=True)
        self.network.pump()
        self.assertEqual(self.primary.status().bytes_sent, sent)
        self.reconnect()
        for half in (self.primary, self.secondary):
            status = half.status()
            self.assertEqual((status.reconnects, status.transactions_committed), (1, 1))
        self.assertGreater(self.primary.status().bytes_sent, sent)
        self.assertEqual(self.primary.status().last_committed, self.secondary.status().last_committed)

    def test_how_transactions_ended(self) -> None:
        self.start()
        self.committed(b"abc")
        self.begin()
        self.append(b"abc")
        self.network.pump()
        self.primary.cancel()
        self.begin()
        self.append(b"abc")
        self.network.pump()
        self.link.cut(clean=True)
        self.network.pump()
        for half in (self.primary, self.secondary):
            status = half.status()
            self.assertEqual(
                (status.transactions_committed, status.transactions_cancelled, status.transactions_failed), (1, 1, 1)
            )
            self.assertEqual(
                [(row.outcome, row.id, row.number, row.seq, row.bytes) for row in half.transactions()],
                [
                    (Outcome.COMMITTED, 0, 1, 1, 3),
                    (Outcome.CANCELLED, 1, None, 1, 3),
                    (Outcome.FAILED, 1, None, 1, 3),
                ],
            )

    def test_the_timeline(self) -> None:
        self.start()
        self.begin()
        self.clock.advance(0.25)
        self.append(b"abc")
        self.clock.advance(0.25)
        self.primary.commit()
        self.clock.advance(0.25)
        self.network.pump()
        self.assertEqual(
            self.primary.transactions()[0].timeline,
            Timeline(begun=EPOCH, first_data=EPOCH + 0.25, commit=EPOCH + 0.5, ended=EPOCH + 0.75),
        )
        self.assertEqual(
            self.secondary.transactions()[0].timeline,
            Timeline(begun=EPOCH + 0.75, first_data=EPOCH + 0.75, commit=EPOCH + 0.75, ended=EPOCH + 0.75),
        )


class EventTests(PairTestCase):
    """Who watches sees every change."""

    def setUp(self) -> None:
        super().setUp()
        self.stop_watching = self.bus.wake_on_publish(lambda: None)

    def test_transactions(self) -> None:
        self.start()
        self.committed(b"abc")
        self.begin()
        self.append(b"abc")
        self.primary.cancel()
        self.network.pump()
        for half, begun in (("demo", "begun"), ("standby", "begun")):
            self._seen = 0
            actions = [(event["action"], event["id"]) for event in self.events("transaction", half)]
            self.assertEqual(actions, [(begun, 0), ("committed", 0), (begun, 1), ("cancelled", 1)])

    def test_the_link(self) -> None:
        self.start()
        self.assertEqual(
            [event["link_state"] for event in self.events("pair", "demo")], ["connecting", "handshake", "up"]
        )
        self._seen = 0
        self.assertEqual([event["link_state"] for event in self.events("pair", "standby")], ["down", "handshake", "up"])
        self.link.cut(clean=True)
        self.network.pump()
        last = self.events("pair", "standby")[-1]
        self.assertEqual((last["link_state"], last["link_detail"]), ("down", "the sender closed the link"))

    def test_every_step_of_a_transaction(self) -> None:
        self.start()
        self.events("pair", "demo")
        self.begin()
        self.assertEqual([event["state"] for event in self.events("pair", "demo")], ["BEGIN"])
        self.append(b"abc")
        self.assertEqual(self.events("pair", "demo"), [])
        self.clock.advance(0.1)
        event = self.events("pair", "demo")[0]
        self.assertEqual((event["state"], event["transaction"]["bytes"]), ("CONTINUE", 3))
        self.primary.commit()
        self.assertEqual([event["state"] for event in self.events("pair", "demo")], ["COMMIT"])
        self.network.pump()
        event = self.events("pair", "demo")[-1]
        self.assertEqual((event["state"], event["last_committed"]["number"], event["id"]), ("ACK", 1, 1))

    def test_many_frames_are_told_together(self) -> None:
        self.start()
        self.begin()
        self.events("pair", "demo")
        for _ in range(20):
            self.append(bytes(5000))
            self.network.pump()
            self.clock.advance(0.01)
        self.clock.advance(0.1)
        self.assertIn(len(self.events("pair", "demo")), (2, 3))

    def test_while_nobody_watches_the_state_between_transactions_is_not_worth_an_event(self) -> None:
        self.start()
        self.stop_watching()
        self.events("pair", "demo")
        for size in (0, 1, 5000):
            self.committed(bytes(size))
        self.clock.advance(0.5)
        self.assertEqual(self.events("pair", "demo"), [])
        self._seen = 0
        self.assertEqual(len(self.events("transaction", "demo")), 6)
        seen = self.bus.last_id
        # Who comes next is told how things stand now, once.
        self.bus.wake_on_publish(lambda: None)
        self._seen = seen
        (event,) = self.events("pair", "demo")
        self.assertEqual((event["state"], event["transactions_committed"]), ("ACK", 3))
        self._seen = seen
        (event,) = self.events("pair", "standby")
        self.assertEqual((event["state"], event["last_committed"]["number"]), ("ACK", 3))
        self.begin()
        self.assertEqual([event["state"] for event in self.events("pair", "demo")], ["BEGIN"])

    def test_what_happens_to_the_link_is_told_whether_somebody_watches_or_not(self) -> None:
        self.start()
        self.stop_watching()
        self.events("pair", "demo")
        self.link.cut(clean=False)
        self.network.pump()
        self.reconnect()
        states = [event["link_state"] for event in self.events("pair", "demo")]
        self.assertEqual(states[-3:], ["connecting", "handshake", "up"])

    def test_a_pair_that_has_stopped_owes_nothing(self) -> None:
        self.start()
        self.stop_watching()
        self.committed(b"abc")
        stopped = [self.primary.stop(), self.secondary.stop()]
        self.network.pump()
        for done in stopped:
            self.successResultOf(done)
        seen = self.bus.last_id
        self.bus.wake_on_publish(lambda: None)
        self.assertEqual(self.bus.last_id, seen)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_matters_does_not_wait_for_what_was_gathered(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        self.primary.cancel()
        self.events("pair", "demo")
        self.clock.advance(0.2)
        self.assertEqual(self.events("pair", "demo"), [])

    def test_an_error_and_its_end(self) -> None:
        self.start()
        self.begin()
        self.network.pump()
        self.link.cut(clean=True)
        self.network.pump()
        errors = [event["has_error_name"] for event in self.events("pair", "demo")]
        self.assertEqual(errors[-1], "RECV_HDR")
        self.primary.reset()
        self.assertEqual(self.events("pair", "demo")[0]["has_error"], 0)

    def test_a_rate_limit_that_changes(self) -> None:
        self.start()
        self.events("pair", "demo")
        self.primary.set_rate_limit(False, None)
        self.primary.set_rate_limit(None, 5000)
        limits = [(event["rate_limit"], event["bandwidth_limit"]) for event in self.events("pair", "demo")]
        self.assertEqual(limits, [(False, 0), (False, 5000)])

    def test_a_stopped_pair_says_nothing_any_more(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        self.network.pump()
        for half in (self.primary, self.secondary):
            half.stop()
            self.network.pump()
        self.events("pair", "demo")
        self.clock.advance(30)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self._seen, before = 0, self._seen
        self.assertEqual(self.bus.last_id, before)


class FreezeTests(PairTestCase):
    """``freeze_output``: who feeds a primary whose link is full has to wait, and it is written down for how long."""

    def setUp(self) -> None:
        super().setUp()
        self.network = Network(capacity=1000)
        self.start(buffer_limit=20_000)
        self.body = Body()

    def freeze(self) -> None:
        """Fill the link."""
        self.begin()
        self.link.to_server.is_stalled = True
        self.source = self.primary.append(self.body)
        self.source.write(bytes(4096))

    def thaw(self) -> None:
        """Let the standby read again."""
        self.link.to_server.is_stalled = False
        self.network.pump()

    def test_the_source_waits(self) -> None:
        self.freeze()
        status = self.primary.status()
        self.assertTrue(self.body.is_paused and status.freeze_output)
        self.assertTrue(0 < status.buffered_bytes < 4096)
        self.thaw()
        status = self.primary.status()
        self.assertFalse(self.body.is_paused or status.freeze_output)
        self.assertEqual(status.buffered_bytes, 0)

    def test_an_append_is_answered_when_the_pair_is_not_frozen(self) -> None:
        self.freeze()
        self.source.finish()
        self.assertNoResult(self.source.done)
        self.refusal(NotInState, self.primary.commit)
        self.thaw()
        self.assertEqual(self.successResultOf(self.source.done), 4096)

    def test_without_rate_limit_the_source_runs_on_to_the_limit_of_the_buffer(self) -> None:
        self.primary.set_rate_limit(False, None)
        self.freeze()
        self.assertFalse(self.body.is_paused)
        written = 4096
        while not self.body.is_paused:
            self.source.write(bytes(1024))
            written += 1024
        self.assertTrue(20_000 <= self.primary.status().buffered_bytes < 22_000)
        self.thaw()
        self.assertFalse(self.body.is_paused)
        self.source.finish()
        self.network.pump()
        self.successResultOf(self.source.done)
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(committing).bytes, written)

    def test_the_rate_limit_may_change_at_any_time(self) -> None:
        self.freeze()
        self.primary.set_rate_limit(False, None)
        self.assertFalse(self.body.is_paused)
        self.primary.set_rate_limit(True, None)
        self.assertTrue(self.body.is_paused)

    def test_how_long_it_was_frozen(self) -> None:
        self.freeze()
        self.pass_time(1.5)
        self.thaw()
        self.pass_time(1.0)
        self.link.to_server.is_stalled = True
        self.source.write(bytes(4096))
        self.pass_time(0.5)
        self.thaw()
        self.source.finish()
        self.network.pump()
        self.primary.commit()
        self.network.pump()
        self.assertAlmostEqual(self.primary.transactions()[-1].frozen_seconds, 2.0)

    def test_frozen_to_its_end(self) -> None:
        for end in (self.primary.cancel, lambda: self.link.cut(clean=False)):
            self.freeze()
            self.pass_time(1.5)
            end()
            self.thaw()
            self.failureResultOf(self.source.done)
            self.assertAlmostEqual(self.primary.transactions()[-1].frozen_seconds, 1.5)
            self.body = Body()
            self.reconnect()

    def test_frozen_when_it_is_committed(self) -> None:
        self.primary.set_rate_limit(False, None)
        self.freeze()
        self.pass_time(1.5)
        self.source.finish()
        committing = self.primary.commit()
        self.pass_time(0.5)
        self.thaw()
        self.successResultOf(committing)
        self.committed(b"abc")
        self.assertEqual([round(row.frozen_seconds, 6) for row in self.primary.transactions()], [1.5, 0.0])

    def test_a_transaction_that_begins_frozen(self) -> None:
        self.primary.set_rate_limit(None, 1024)
        self.begin()
        self.source = self.primary.append(self.body)
        self.source.write(bytes(2048))
        self.assertTrue(self.primary.status().freeze_output)
        self.primary.cancel()
        self.failureResultOf(self.source.done)
        self.begin()
        self.assertTrue(self.primary.status().freeze_output)
        # What was cancelled is still on its way: two seconds of it.
        self.pass_time(3.0)
        self.assertFalse(self.primary.status().freeze_output)
        first, second = self.primary.transactions()
        self.assertEqual(first.frozen_seconds, 0.0)
        self.assertTrue(1.9 <= second.frozen_seconds <= 2.2, second.frozen_seconds)

    def test_a_link_that_breaks_frees_the_source(self) -> None:
        self.freeze()
        self.link.cut(clean=False)
        self.network.pump()
        self.assertFalse(self.body.is_paused)
        self.assertIn("nothing of the open transaction was committed", str(self.failureResultOf(self.source.done)))
        self.refusal(PairFailed, self.primary.begin)

    def test_a_standby_whose_sink_is_full_freezes_its_input(self) -> None:
        thread = SteppedThread()
        self.restart_secondary(self.directory_sink(run_in_thread=thread), ack=Ack.APPLIED, max_payload=1 << 26)
        self.reconnect()
        self.primary.set_rate_limit(False, None)
        sink = self.secondary.sink
        self.begin()
        self.source = self.primary.append(self.body)
        self.source.write(bytes(4096))
        self.network.pump()
        for _ in range((BUFFER >> 20) + 1):
            sink.write(bytes(1 << 20))
        self.assertTrue(self.secondary.status().freeze_input)
        thread.run()
        self.assertFalse(self.secondary.status().freeze_input)
