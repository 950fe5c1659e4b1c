"""Time limits of a link: the handshake, the signs of life, and when silence means that the peer is dead."""

from __future__ import annotations

import attrs

from ftd.protocol import SenderProtocol
from ftd.test.link_case import CAPACITY, TIMES, LinkTestCase, ScriptedPeer, code_of
from ftd.test.wire.reaching import NO_DIGEST, frame, hello_frame
from ftd.testing.transport import Link
from ftd.wire.constants import Command

BIG = b"b" * (CAPACITY + 500)

#: Just short of a limit, and what is missing to be past it.
NEARLY = 0.2


class HandshakeTests(LinkTestCase):
    """A session is open within ``handshake-time``, or the link ends."""

    def assert_gives_up(self, link: Link, end_errors: list[str]) -> None:
        """The link stands until the limit and not longer."""
        self.clock.advance(TIMES.handshake - NEARLY - self.clock.seconds())
        link.pump()
        self.assertFalse(link.is_over)
        self.clock.advance(2 * NEARLY)
        link.pump()
        self.assertTrue(link.is_over)
        self.assertEqual(code_of(self.primary.lost_with + self.secondary.lost_with), end_errors)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_receiver_that_says_nothing_is_given_up(self) -> None:
        self.assert_gives_up(Link(self.new_sender(), ScriptedPeer()), ["RECV_HDR"])

    def test_a_receiver_that_greets_and_does_not_open_is_given_up(self) -> None:
        peer = ScriptedPeer()
        link = Link(self.new_sender(), peer)
        peer.say(hello_frame())
        link.pump()
        self.assert_gives_up(link, ["RECV_HDR"])

    def test_a_sender_that_says_nothing_is_given_up(self) -> None:
        self.assert_gives_up(Link(ScriptedPeer(), self.new_receiver()), ["RECV_HDR"])

    def test_a_kemari_that_begins_nothing_is_given_up(self) -> None:
        self.assert_gives_up(Link(ScriptedPeer(), self.new_receiver(kemari=True)), ["RECV_HDR"])

    def test_a_sender_that_says_a_byte_a_second_is_given_up(self) -> None:
        peer = ScriptedPeer()
        link = Link(peer, self.new_receiver())
        for byte in hello_frame(state="primary")[:9]:
            peer.say(bytes([byte]))
            self.clock.advance(1)
            link.pump()
        self.assert_gives_up(link, ["RECV_HDR"])

    def test_a_receiver_that_waits_for_an_earlier_commit_is_not_given_more_time(self) -> None:
        peer = ScriptedPeer()
        self.secondary.settling = self.secondary.settled()
        link = Link(peer, self.new_receiver())
        self.assert_gives_up(link, ["RECV_HDR"])

    def test_an_open_session_has_no_such_limit(self) -> None:
        ends = self.open()
        self.pass_time(3 * TIMES.handshake, ends.link)
        self.assertFalse(ends.link.is_over)


class HeartbeatTests(LinkTestCase):
    """A sender that has nothing to say says so."""

    def commands(self, sender: SenderProtocol, peer: ScriptedPeer, link: Link, seconds: float = 1.1) -> list[str]:
        """What the peer hears of the sender within ``seconds``."""
        assert sender.connected
        peer.heard.clear()
        self.pass_time(seconds, link)
        return peer.commands()

    def test_between_transactions_it_is_an_empty_one(self) -> None:
        sender, peer, link = self.open_to_script()
        self.assertEqual(self.commands(sender, peer, link), ["BEGIN", "COMMIT"])
        self.assertEqual(self.commands(sender, peer, link), [], "one at a time")
        peer.say(frame(Command.ACK, 0))
        link.pump()
        self.assertEqual(self.primary.events[-1], "heartbeat 0 acknowledged")
        self.assertEqual(self.commands(sender, peer, link), ["BEGIN", "COMMIT"])

    def test_inside_a_transaction_it_is_an_empty_frame(self) -> None:
        sender, peer, link = self.open_to_script()
        sender.begin()
        self.assertEqual(self.commands(sender, peer, link, 2.1), ["BEGIN", "CONTINUE", "CONTINUE"])
        self.assertEqual([header.payload_len for header, _ in peer.frames()], [0, 0, 0])

    def test_a_sender_that_speaks_needs_none(self) -> None:
        sender, peer, link = self.open_to_script()
        sender.begin()
        for _ in range(6):
            self.pass_time(0.7, link)
            sender.write(b"x")
        link.pump()
        self.assertEqual([header.payload_len for header, _ in peer.frames()], [0, 1, 1, 1, 1, 1, 1])

    def test_none_while_an_ack_is_awaited(self) -> None:
        sender, peer, link = self.open_to_script()
        sender.begin()
        sender.commit()
        link.pump()
        self.assertEqual(self.commands(sender, peer, link, 3), [])

    def test_none_while_frozen(self) -> None:
        sender, peer, link = self.open_to_script()
        sender.begin()
        sender.write(BIG)
        link.to_server.is_stalled = True
        self.assertEqual(self.commands(sender, peer, link, 3), [])
        self.assertEqual(sender.buffered, sender.link.unsent)

    def test_none_to_a_kemari(self) -> None:
        sender, peer, link = self.open_to_script(kemari=True)
        self.assertEqual(self.commands(sender, peer, link, 20), [])
        self.assertFalse(link.is_over)

    def test_none_after_the_end(self) -> None:
        sender, _, link = self.open_to_script()
        sender.hang_up()
        link.pump()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class SenderDeadTimeTests(LinkTestCase):
    """The receiver is dead when it does not answer or does not read, and only then."""

    def setUp(self) -> None:
        super().setUp()
        self.sender, self.peer, self.link = self.open_to_script()

    def assert_dead_after(self, seconds: float) -> None:
        """The link ends after ``seconds``, and with the right words."""
        self.pass_time(seconds - NEARLY, self.link)
        self.assertFalse(self.link.is_over)
        self.pass_time(2 * NEARLY, self.link)
        self.assertFalse(self.link.client.connected)
        (error,) = self.primary.lost_with
        assert error is not None
        self.assertEqual(str(error), "RECV_HDR: no sign of life from the peer for 5 s")

    def test_silence_after_commit(self) -> None:
        self.sender.begin()
        self.sender.commit()
        self.assert_dead_after(TIMES.dead)

    def test_silence_after_a_heartbeat(self) -> None:
        self.assert_dead_after(TIMES.heartbeat + TIMES.dead)

    def test_silence_counts_from_the_commit_and_not_from_the_last_answer(self) -> None:
        self.sender.begin()
        self.pass_time(7, self.link)
        self.sender.commit()
        self.assert_dead_after(TIMES.dead)

    def test_a_receiver_that_stops_reading(self) -> None:
        self.link.to_server.is_stalled = True
        self.sender.begin()
        self.sender.write(BIG)
        self.assert_dead_after(TIMES.dead)

    def test_what_piles_up_in_the_buffer_meanwhile_is_no_sign_of_its_life(self) -> None:
        self.sender.set_rate_limit(False)
        self.link.to_server.is_stalled = True
        self.sender.begin()
        self.sender.write(BIG)
        for _ in range(4):
            self.pass_time(1, self.link)
            self.sender.write(b"more")
        self.assert_dead_after(TIMES.dead - 4)

    def test_a_byte_is_a_sign_of_its_life(self) -> None:
        self.sender.begin()
        self.sender.commit()
        for byte in frame(Command.ACK):
            self.pass_time(TIMES.dead - NEARLY, self.link)
            self.peer.say(bytes([byte]))
        self.link.pump()
        self.assertEqual(self.primary.events[-1], "heartbeat 0 acknowledged")
        self.assertFalse(self.link.is_over)

    def test_one_that_answers_when_it_is_given_up_is_not_heard(self) -> None:
        self.sender.begin()
        self.sender.commit()
        self.clock.advance(TIMES.dead)
        self.sender.dataReceived(frame(Command.ACK))
        self.link.pump()
        self.assertEqual(code_of(self.primary.lost_with), ["RECV_HDR"])
        self.assertNotIn("heartbeat 0 acknowledged", self.primary.events)

    def test_a_receiver_that_reads_slowly_is_not_dead(self) -> None:
        self.sender.begin()
        for _ in range(4):
            self.sender.write(BIG)
        self.link.to_server.is_stalled = True
        while self.sender.is_frozen:
            self.pass_time(4, self.link)
            self.assertFalse(self.link.is_over)
            self.link.to_server.is_stalled = False
            self.link.to_server.deliver()
            self.link.to_server.is_stalled = True

    def test_a_receiver_that_was_not_asked_may_be_silent(self) -> None:
        self.sender.begin()
        self.pass_time(20, self.link)
        self.assertFalse(self.link.is_over)

    def test_what_the_bandwidth_limit_holds_back_is_not_the_receivers_silence(self) -> None:
        self.sender.set_bandwidth(1000)
        self.sender.begin()
        for _ in range(12):
            self.sender.write(b"x" * 1000)
        self.sender.commit()
        self.pass_time(11, self.link)
        self.assertTrue(self.sender.is_frozen)
        self.assertFalse(self.link.is_over)
        self.pass_time(4, self.link)
        self.assertEqual(self.peer.commands()[-1], "COMMIT")
        self.assertFalse(self.link.is_over, "it was asked just now")
        self.pass_time(TIMES.dead, self.link)
        self.assertEqual(code_of(self.primary.lost_with), ["RECV_HDR"])


class ReceiverDeadTimeTests(LinkTestCase):
    """The sender is dead when it says nothing, not even a heartbeat, while it could."""

    def test_silence(self) -> None:
        _, _, link = self.open_from_script()
        self.pass_time(TIMES.dead - NEARLY, link)
        self.assertFalse(link.is_over)
        self.pass_time(2 * NEARLY, link)
        self.assertTrue(link.is_over)
        self.assertEqual(code_of(self.secondary.lost_with), ["RECV_HDR"])

    def test_a_byte_is_a_sign_of_life(self) -> None:
        _, peer, link = self.open_from_script()
        for byte in frame(Command.BEGIN)[:5]:
            self.pass_time(TIMES.dead - NEARLY, link)
            peer.say(bytes([byte]))
        link.pump()
        self.assertFalse(link.is_over)

    def test_it_does_not_blame_the_sender_for_its_own_freeze(self) -> None:
        receiver, peer, link = self.open_from_script()
        peer.say(frame(Command.BEGIN), frame(Command.CONTINUE, payload=b"state"))
        self.sink.pause_at = 1
        link.pump()
        self.assertTrue(receiver.is_frozen)
        self.pass_time(22, link)
        self.sink.resume()
        self.pass_time(TIMES.dead - NEARLY, link)
        self.assertFalse(link.is_over)
        self.pass_time(2 * NEARLY, link)
        self.assertTrue(link.is_over)

    def test_nor_for_a_commit_that_takes_long(self) -> None:
        for ack_first in (False, True):
            self.setUp()
            self.sink.is_slow = True
            _, peer, link = self.open_from_script(self.new_receiver(ack_first=ack_first))
            peer.say(frame(Command.BEGIN), frame(Command.CONTINUE, payload=b"state"), frame(Command.COMMIT, 0, 1))
            self.pass_time(22, link)
            self.sink.finish()
            self.pass_time(TIMES.dead - NEARLY, link)
            self.assertFalse(link.is_over)
            self.pass_time(2 * NEARLY, link)
            self.assertTrue(link.is_over)

    def test_a_kemari_may_be_silent_for_as_long_as_it_likes(self) -> None:
        peer = ScriptedPeer()
        link = Link(peer, self.new_receiver(kemari=True))
        peer.say(frame(Command.BEGIN))
        self.pass_time(30, link)
        self.assertFalse(link.is_over)

    def test_two_ftd_that_have_nothing_to_say_stay_together(self) -> None:
        ends = self.open()
        self.pass_time(30, ends.link)
        self.assertFalse(ends.link.is_over)
        self.assertEqual((self.sink.kept, self.sink.aborts), ([], 0))
        self.assertEqual(self.secondary.events[-1], self.primary.events[-1].removesuffix(" acknowledged"))
        ends.sender.begin()
        self.pass_time(30, ends.link)
        ends.sender.write(b"state")
        ends.sender.commit()
        ends.link.pump()
        self.assertEqual(self.sink.kept, [b"state"])

    def test_a_receiver_with_longer_times_than_its_sender_is_no_matter(self) -> None:
        times = attrs.evolve(TIMES, dead=60.0)
        _, _, link = self.open_from_script(self.new_receiver(times=times), features=NO_DIGEST)
        self.pass_time(30, link)
        self.assertFalse(link.is_over)
