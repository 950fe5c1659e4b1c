"""The receiving end: what its sink makes it wait for, what becomes of a commit, and what it does to strangers."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from ftd import receiver_protocol
from ftd.protocol import ReceiverProtocol
from ftd.sinks.sink import SinkError
from ftd.test.link_case import FakeSink, LinkTestCase, ScriptedPeer, code_of
from ftd.test.wire.profile import examples
from ftd.test.wire.reaching import NO_DIGEST, frame, hello_frame
from ftd.testing.transport import Link
from ftd.wire.constants import HEADER_SIZE, Command
from ftd.wire.errors import ErrorCode
from ftd.wire.states import State

DISK_FULL = SinkError(ErrorCode.FLUSH, "cannot write: No space left on device")


def transaction(id: int, *payloads: bytes) -> bytes:
    """A whole transaction as a sender without the digest writes it."""
    frames = [frame(Command.CONTINUE, id, seq, payload) for seq, payload in enumerate(payloads)]
    return b"".join((frame(Command.BEGIN, id), *frames, frame(Command.COMMIT, id, len(payloads))))


class FreezeInputTests(LinkTestCase):
    """The sink pauses the receiver, and the receiver its transport."""

    def setUp(self) -> None:
        super().setUp()
        self.receiver, self.peer, self.link = self.open_from_script()
        self.receiver_trace.switch({"ft_trans_freeze_input": True, "ft_trans_get_ready": True, "ft_trans_cb": True})

    def test_a_sink_that_is_full_stops_it_in_the_middle_of_a_read(self) -> None:
        self.sink.pause_at = 3
        self.peer.say(transaction(0, b"a", b"bc", b"def", b"g"))
        self.link.pump()
        self.assertEqual(self.sink.held, b"abc")
        self.assertTrue(self.receiver.is_frozen)
        self.assertFalse(self.link.server.is_reading)
        self.assertEqual(self.traced(self.receiver_bus), [("ft_trans_freeze_input", {})])
        self.sink.resume()
        self.assertEqual(self.sink.kept, [b"abcdefg"])
        self.assertTrue(self.link.server.is_reading)
        self.assertFalse(self.receiver.is_frozen)
        self.assertEqual(
            self.traced(self.receiver_bus)[1:3], [("ft_trans_get_ready", {}), ("ft_trans_cb", {"cb": "get_ready"})]
        )

    def test_it_goes_on_to_be_full_again_where_it_stopped(self) -> None:
        self.sink.pause_at = 1
        self.peer.say(transaction(0, b"a", b"bc", b"def", b"g"))
        self.link.pump()
        self.sink.pause_at = 5
        self.sink.resume()
        self.assertEqual(self.sink.held, b"abcdef")
        self.assertTrue(self.receiver.is_frozen)
        self.assertFalse(self.link.server.is_reading)
        self.sink.resume()
        self.assertEqual(self.sink.kept, [b"abcdefg"])

    def test_what_a_transport_delivers_after_all_waits_too(self) -> None:
        data = transaction(0, b"abc", b"def")
        self.sink.pause_at = 3
        self.receiver.dataReceived(data[:30])
        self.receiver.dataReceived(data[30:])
        self.assertEqual(self.sink.held, b"abc")
        self.sink.resume()
        self.assertEqual(self.sink.kept, [b"abcdef"])

    def test_a_sink_that_changes_its_mind_at_once_loses_nothing(self) -> None:
        class Fickle(FakeSink):
            def write(self, data: bytes | memoryview) -> None:
                self.pause()
                super().write(data)
                self.resume()

        self.secondary.sink = sink = Fickle()
        sink.registerProducer(self.receiver, True)
        self.peer.say(transaction(0, b"abc", b"def"))
        self.link.pump(7)
        self.assertEqual(sink.kept, [b"abcdef"])
        self.assertTrue(self.link.server.is_reading)

    def test_its_owner_hears_of_every_change(self) -> None:
        self.sink.pause()
        self.sink.resume()
        self.assertEqual(self.secondary.states, [(State.ACK, True), (State.ACK, False)])

    def test_saying_it_twice_changes_nothing(self) -> None:
        for _ in range(2):
            self.sink.pause()
        for _ in range(2):
            self.sink.resume()
        names = [name for name, _ in self.traced(self.receiver_bus)]
        self.assertEqual(names, ["ft_trans_freeze_input", "ft_trans_get_ready", "ft_trans_cb"])

    def test_a_sink_that_wants_nothing_more_ends_the_link(self) -> None:
        self.receiver.stopProducing()
        self.link.pump()
        self.assertEqual(code_of(self.secondary.lost_with), ["FLUSH"])

    @examples(100)
    @given(
        st.lists(st.lists(st.binary(max_size=40), max_size=4), max_size=4),
        st.lists(st.integers(1, 60), min_size=1, max_size=20),
        st.integers(1, 30),
    )
    def test_wherever_it_stops_it_loses_nothing(
        self, transactions: list[list[bytes]], pauses: list[int], chunk: int
    ) -> None:
        self.setUp()
        self.sink.is_slow = True
        for id, payloads in enumerate(transactions):
            self.peer.say(transaction(id, *payloads))
        while self.link.to_server.waiting or self.receiver.is_frozen:
            self.sink.pause_at = pauses.pop() if pauses else None
            self.link.pump(chunk)
            if self.sink.committing:
                self.sink.finish()
            elif self.receiver.is_frozen:
                self.sink.resume()
        # What has no frame is a heartbeat.
        self.assertEqual(self.sink.kept, [b"".join(payloads) for payloads in transactions if payloads])
        self.link.pump()
        self.assertEqual(self.peer.commands(), ["ACK"] * len(transactions))


class CommitTests(LinkTestCase):
    """COMMIT, the sink and the ACK."""

    def setUp(self) -> None:
        super().setUp()
        self.sink.is_slow = True

    def open_receiver(self, *, ack_first: bool, features: frozenset[str] = NO_DIGEST) -> None:
        self.receiver, self.peer, self.link = self.open_from_script(
            self.new_receiver(ack_first=ack_first), features=features
        )
        self.receiver_trace.switch({"ft_trans_freeze_input": True, "ft_trans_get_ready": True, "ft_trans_cb": True})

    def send(self, *frames: bytes) -> list[str]:
        """What the peer hears in answer to ``frames``."""
        self.peer.heard.clear()
        self.peer.say(*frames)
        self.link.pump()
        return self.peer.commands()

    def finish(self, error: Exception | None = None) -> list[str]:
        """What it hears when the sink is done."""
        self.peer.heard.clear()
        self.sink.finish(error)
        self.link.pump()
        return self.peer.commands()

    def test_applied_is_acknowledged_when_the_sink_has_it(self) -> None:
        self.open_receiver(ack_first=False)
        self.assertEqual(self.send(transaction(0, b"state")), [])
        self.assertEqual(self.finish(), ["ACK"])
        self.assertEqual(bytes(self.peer.heard), frame(Command.ACK, 0, 1))
        self.assertEqual(self.sink.kept, [b"state"])

    def test_a_sender_that_reads_no_acks_is_not_listened_to_for_ever(self) -> None:
        self.open_receiver(ack_first=True)
        self.patch(receiver_protocol, "_MOST_UNREAD", -1)
        self.send(transaction(0, b"state"))
        (error,) = self.secondary.lost_with
        assert error is not None
        self.assertIn("reads none of its ACKs", error.detail)

    def test_received_is_acknowledged_before_that(self) -> None:
        self.open_receiver(ack_first=True)
        self.assertEqual(self.send(transaction(0, b"state")), ["ACK"])
        self.assertEqual(self.sink.kept, [])
        self.assertEqual(self.finish(), [])
        self.assertEqual(self.sink.kept, [b"state"])

    def test_nothing_is_read_while_a_commit_is_under_way(self) -> None:
        for ack_first in (False, True):
            self.setUp()
            self.open_receiver(ack_first=ack_first)
            self.send(transaction(0, b"one"), transaction(1, b"two"))
            self.assertTrue(self.receiver.is_frozen)
            self.assertFalse(self.link.server.is_reading)
            self.assertIsNone(self.sink.held)
            self.assertEqual(self.traced(self.receiver_bus), [("ft_trans_freeze_input", {})])
            self.finish()
            self.assertEqual(
                self.traced(self.receiver_bus)[1:],
                [
                    ("ft_trans_get_ready", {}),
                    ("ft_trans_cb", {"cb": "get_ready"}),
                    ("ft_trans_freeze_input", {}),
                ],
            )
            self.finish()
            self.assertEqual(self.sink.kept, [b"one", b"two"])
            self.assertTrue(self.link.server.is_reading)

    def test_a_sink_that_is_ready_at_once_freezes_nothing(self) -> None:
        self.open_receiver(ack_first=False)
        self.sink.is_slow = False
        self.assertEqual(self.send(transaction(0, b"one"), transaction(1, b"two")), ["ACK", "ACK"])
        self.assertEqual(self.traced(self.receiver_bus), [("ft_trans_cb", {"cb": "get_ready"})] * 2)

    def test_a_sink_that_is_full_after_its_commit_is_waited_for(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(transaction(0, b"one"), transaction(1, b"two"))
        self.sink.pause()
        self.assertEqual(self.finish(), ["ACK"])
        self.assertTrue(self.receiver.is_frozen)
        self.assertIsNone(self.sink.held)
        self.sink.resume()
        self.finish()
        self.assertEqual(self.sink.kept, [b"one", b"two"])

    def test_a_sink_that_cannot_store_it_is_a_nack_with_the_reason(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(transaction(0, b"one"))
        self.assertEqual(self.finish(DISK_FULL), ["NACK"])
        self.assertEqual(bytes(self.peer.heard), frame(Command.NACK, 0, ErrorCode.FLUSH))
        self.send(transaction(0, b"again"))
        self.assertEqual(self.finish(), ["ACK"])
        self.assertEqual(self.sink.kept, [b"again"])
        self.assertEqual(self.secondary.lost_with, [])

    def test_where_no_nack_is_agreed_the_link_ends(self) -> None:
        self.open_receiver(ack_first=False, features=frozenset())
        self.send(transaction(0, b"one"))
        self.assertEqual(self.finish(DISK_FULL), [])
        self.assertEqual(self.secondary.lost_with, [DISK_FULL])

    def test_what_was_acknowledged_before_it_failed_ends_the_link(self) -> None:
        self.open_receiver(ack_first=True)
        self.send(transaction(0, b"one"))
        self.assertEqual(self.finish(DISK_FULL), [])
        self.assertEqual(self.secondary.lost_with, [DISK_FULL])

    def test_a_sink_that_breaks_is_a_nack_and_stands_in_the_log(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(transaction(0, b"one"))
        self.assertEqual(self.finish(ZeroDivisionError()), ["NACK"])
        self.assertEqual(bytes(self.peer.heard), frame(Command.NACK, 0, ErrorCode.UNKNOWN))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_a_cancelled_transaction_reaches_the_sink_as_abort_and_is_not_answered(self) -> None:
        self.open_receiver(ack_first=False)
        cancelled = (frame(Command.BEGIN), frame(Command.CONTINUE, payload=b"state"), frame(Command.CANCEL, 0, 1))
        self.assertEqual(self.send(*cancelled), [])
        self.assertEqual((self.sink.held, self.sink.aborts), (None, 1))
        self.assertEqual(self.secondary.events[-2:], ["transaction 0 begun", "cancelled"])

    def test_a_transaction_without_a_byte_that_is_cancelled_never_reaches_the_sink(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(frame(Command.BEGIN), frame(Command.CANCEL))
        self.assertEqual(self.sink.aborts, 0)

    def test_a_heartbeat_is_acknowledged_and_uses_an_id_but_never_reaches_the_sink(self) -> None:
        self.open_receiver(ack_first=False)
        self.assertEqual(self.send(transaction(0)), ["ACK"])
        self.assertEqual(self.secondary.events, ["opened", "heartbeat 0"])
        self.send(transaction(1, b""))
        self.finish()
        self.assertEqual(self.sink.kept, [b""])

    def test_a_wrong_digest_is_a_nack_and_nothing_is_kept(self) -> None:
        self.open_receiver(ack_first=False, features=frozenset({"digest", "nack"}))
        begin, data = frame(Command.BEGIN), frame(Command.CONTINUE, payload=b"state")
        self.assertEqual(self.send(begin, data, frame(Command.COMMIT, 0, 1, b"notright")), ["NACK"])
        self.assertEqual(bytes(self.peer.heard), frame(Command.NACK, 0, ErrorCode.RECV_PAYLOAD))
        self.assertEqual((self.sink.held, self.sink.committing), (None, []))
        self.assertEqual(self.secondary.events[-1], "transaction 0 damaged")

    def test_its_owner_is_told_when_it_has_answered(self) -> None:
        for error, state in ((None, State.ACK), (DISK_FULL, State.NACK)):
            self.setUp()
            self.open_receiver(ack_first=False)
            self.send(transaction(0, b"one"))
            self.assertEqual(self.secondary.states, [(State.COMMIT, True)])
            self.finish(error)
            self.assertEqual(self.secondary.states[1:], [(state, True), (state, False)])

    def test_a_link_that_breaks_drops_the_open_transaction(self) -> None:
        self.open_receiver(ack_first=False)
        self.receiver_trace.switch({"ft_trans_close": True})
        self.send(frame(Command.BEGIN), frame(Command.CONTINUE, payload=b"state"))
        self.link.cut(clean=False)
        self.link.pump()
        self.assertEqual((self.sink.held, self.sink.aborts, self.sink.producer), (None, 1, None))
        self.assertEqual(self.traced(self.receiver_bus), [("ft_trans_close", {})])

    def test_who_closes_is_told_when_it_is_over(self) -> None:
        self.open_receiver(ack_first=False)
        closed = self.receiver.close().addCallback(lambda _: len(self.secondary.lost_with))
        self.assertNoResult(closed)
        self.link.pump()
        self.assertEqual(self.successResultOf(closed), 1)

    def test_a_link_that_breaks_does_not_stop_a_commit(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(transaction(0, b"state"))
        self.receiver.hang_up()
        self.link.pump()
        self.assertEqual(self.sink.aborts, 0)
        self.assertEqual(self.finish(), [])
        self.assertEqual(self.sink.kept, [b"state"])

    def test_a_commit_that_fails_after_the_link_is_gone_is_no_news_to_it(self) -> None:
        self.open_receiver(ack_first=False)
        self.send(transaction(0, b"state"))
        self.receiver.hang_up()
        self.link.pump()
        self.assertEqual(self.finish(DISK_FULL), [])
        self.assertEqual(self.secondary.lost_with, [None])


class GreetingTests(LinkTestCase):
    """Who gets a session, and what the others are told."""

    def refusals(self, peer: ScriptedPeer) -> list[str]:
        """Why the receiver refused, from what the peer heard."""
        said = [json.loads(payload) for header, payload in peer.frames() if header.cmd == Command.HELLO]
        return [hello["refused"] for hello in said if "refused" in hello]

    def approach(self, *words: bytes, receiver: ReceiverProtocol | None = None) -> tuple[ScriptedPeer, Link]:
        """A new peer says ``words`` to a new receiver."""
        peer = ScriptedPeer()
        link = Link(peer, receiver or self.new_receiver())
        if words:
            peer.say(*words)
        link.pump()
        return peer, link

    def test_it_greets_first_and_opens_with_the_id_that_it_expects(self) -> None:
        self.secondary.next_id = 41
        peer, _ = self.approach(hello_frame(state="primary"))
        self.assertEqual(peer.commands(), ["HELLO", "ACK"])
        self.assertTrue(peer.heard.endswith(frame(Command.ACK, 41)))

    def test_it_does_not_greet_before_an_earlier_commit_is_done(self) -> None:
        settling = self.secondary.settling = Deferred()
        peer, link = self.approach()
        self.assertEqual(peer.commands(), [])
        self.secondary.next_id = 5
        settling.callback(None)
        peer.say(hello_frame(state="primary"))
        link.pump()
        self.assertTrue(peer.heard.endswith(frame(Command.ACK, 5)))

    def test_a_link_that_ends_before_that_is_not_greeted(self) -> None:
        settling = self.secondary.settling = Deferred()
        peer, link = self.approach()
        link.cut(clean=True)
        link.pump()
        settling.callback(None)
        self.assertEqual(peer.commands(), [])

    def test_a_stranger_that_speaks_before_that_is_told_and_not_greeted_any_more(self) -> None:
        settling = self.secondary.settling = Deferred()
        peer, link = self.approach(b"GET / HTTP/1.1\r\n\r\n")
        self.assertEqual((peer.commands(), len(self.refusals(peer))), (["HELLO"], 1))
        settling.callback(None)
        link.pump()
        self.assertEqual(peer.commands(), ["HELLO"])

    def test_a_sender_of_another_pair_is_told_and_closed(self) -> None:
        peer, link = self.approach(hello_frame(pair="other", state="primary"))
        self.assertEqual(self.refusals(peer), ["the peer speaks of pair 'other', this side of 'demo'"])
        self.assertTrue(link.is_over)
        self.assertEqual(code_of(self.secondary.lost_with), ["STATE_INVALID"])

    def test_a_sender_of_another_version_is_told_and_closed(self) -> None:
        peer, link = self.approach(hello_frame(state="primary").replace(b'"version":1', b'"version":2'))
        self.assertEqual(
            self.refusals(peer), ["the peer's HELLO cannot be used: it speaks version 2, this side speaks 1"]
        )
        self.assertTrue(link.is_over)

    def test_the_sender_says_what_it_was_told(self) -> None:
        self.primary.pair = "other"
        ends = self.connect()
        ends.link.pump()
        (error,) = self.primary.lost_with
        assert error is not None
        self.assertEqual(error.code, ErrorCode.STATE_INVALID)
        self.assertIn("'other'", error.detail)

    def test_a_second_sender_is_told_and_closed_and_the_first_is_not_hurt(self) -> None:
        first = self.open()
        first.sender.begin()
        first.sender.write(b"half of ")
        first.link.pump()
        second = self.connect()
        second.link.pump()
        self.assertTrue(second.link.is_over)
        (error,) = self.primary.lost_with
        assert error is not None
        self.assertEqual(error.detail, "the peer refused the session: the pair has a sender already")
        first.sender.write(b"the state")
        first.sender.commit()
        first.link.pump()
        self.assertEqual(self.sink.kept, [b"half of the state"])

    def test_a_sender_that_was_overtaken_is_told_to_come_again(self) -> None:
        peer, link = self.approach()
        self.secondary.node = "what it holds now is not what it said"
        peer.say(hello_frame(state="primary"))
        link.pump()
        (refusal,) = self.refusals(peer)
        self.assertIn("connect again", refusal)
        self.assertEqual(self.secondary.claimed_with, [])

    def test_a_refused_sender_that_does_not_go_is_hung_up(self) -> None:
        peer, link = self.approach()
        link.to_client.is_stalled = True
        peer.say(hello_frame(pair="other", state="primary"))
        link.pump()
        self.assertTrue(link.server.connected)
        self.clock.advance(10)
        link.pump()
        self.assertFalse(link.server.connected)
        self.assertEqual(code_of(self.secondary.lost_with), ["STATE_INVALID"])

    def test_an_http_client_is_told_and_closed(self) -> None:
        peer, link = self.approach(b"GET /v1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        (refusal,) = self.refusals(peer)
        self.assertIn("unknown command", refusal)
        self.assertIs(peer.lost is not None and peer.lost.check(ConnectionDone), ConnectionDone)
        self.assertTrue(link.is_over)

    @examples(200)
    @given(st.binary(min_size=HEADER_SIZE, max_size=200), st.integers(1, 50))
    def test_random_bytes_hurt_nobody(self, noise: bytes, chunk: int) -> None:
        self.setUp()
        standing = self.open()
        stranger = ScriptedPeer()
        link = Link(stranger, self.new_receiver())
        stranger.say(noise)
        link.pump(chunk)
        standing.sender.begin()
        standing.sender.write(b"state")
        standing.sender.commit()
        standing.link.pump()
        self.assertEqual(self.sink.kept, [b"state"])
        self.clock.advance(10)
        link.pump()
        self.assertTrue(link.is_over)
        self.assertIsNotNone(self.secondary.lost_with[0])


class KemariTests(LinkTestCase):
    """A Kemari sender is greeted with an ACK and shows itself by its first BEGIN."""

    def setUp(self) -> None:
        super().setUp()
        self.receiver = self.new_receiver(kemari=True)
        self.peer = ScriptedPeer()
        self.link = Link(self.peer, self.receiver)
        self.link.pump()

    def test_it_is_greeted_with_an_ack(self) -> None:
        self.assertEqual(bytes(self.peer.heard), frame(Command.ACK))
        self.assertFalse(self.receiver.is_open)

    def test_its_first_transaction_opens_the_session(self) -> None:
        self.peer.say(transaction(0, b"one"), transaction(1, b"two"))
        self.link.pump()
        self.assertEqual(self.secondary.claimed_with, [None])
        self.assertEqual(self.sink.kept, [b"one", b"two"])
        self.assertEqual(self.peer.commands(), ["ACK", "ACK", "ACK"])

    def test_a_second_one_is_closed_without_a_word_that_it_would_not_understand(self) -> None:
        self.peer.say(frame(Command.BEGIN))
        self.link.pump()
        second = ScriptedPeer()
        link = Link(second, self.new_receiver(kemari=True))
        second.say(transaction(0, b"mine"))
        link.pump()
        self.assertTrue(link.is_over)
        self.assertEqual(second.commands(), ["ACK"])
        self.assertEqual(self.sink.kept, [])

    def test_bytes_that_make_no_sense_are_not_answered(self) -> None:
        self.peer.say(b"GET / HTTP/1.1\r\n\r\n")
        self.link.pump()
        self.assertEqual(self.peer.commands(), ["ACK"])
        self.assertEqual(code_of(self.secondary.lost_with), ["STATE_INVALID"])
        self.assertIs(self.receiver.machine.state, State.CLOSED)
