"""The receiving half: who may speak, and what strangers can and cannot do."""

from __future__ import annotations

from twisted.internet.protocol import Factory
from zope.interface.verify import verifyObject

from ftd.errors import PairFailed
from ftd.interfaces import ISecondaryPair
from ftd.primary import PrimaryPair
from ftd.status import LinkState
from ftd.test.link_case import ScriptedPeer
from ftd.test.pair_case import Body, PairTestCase
from ftd.test.wire.reaching import frame, hello_frame
from ftd.wire.constants import Command
from ftd.wire.hello import Hello


class StrangerCase(PairTestCase):
    def connect(self) -> ScriptedPeer:
        """Somebody connects."""
        peer = ScriptedPeer()
        factory = Factory.forProtocol(lambda: peer)
        factory.noisy = False
        self.successResultOf(self.network.client_endpoint().connect(factory))
        return peer

    def open_by_script(self, peer: ScriptedPeer) -> None:
        """The stranger shakes hands as a sender does, without the digest."""
        self.network.pump()
        peer.say(hello_frame(state="primary"))
        self.network.pump()


class SessionTests(StrangerCase):
    """One sender at a time."""

    def start_second(self) -> PrimaryPair:
        """Another primary, of another lineage."""
        second = self.new_primary("other", section="second", name="demo")
        self.successResultOf(second.start())
        self.network.pump()
        return second

    def test_it_is_a_secondary_pair(self) -> None:
        self.start()
        self.assertTrue(verifyObject(ISecondaryPair, self.secondary))

    def test_a_second_sender_is_told_and_the_first_is_not_hurt(self) -> None:
        self.start()
        self.begin()
        self.append(b"abc")
        second = self.start_second()
        error = second.error
        assert error is not None
        self.assertEqual(error.code.name, "STATE_INVALID")
        self.assertEqual(error.detail, "the peer refused the session: pair demo has a sender already, 192.0.2.1:50000")
        self.refusal(PairFailed, second.begin)
        self.assertIs(self.secondary.error, None)
        self.assertIs(self.secondary.status().link_state, LinkState.UP)
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.secondary.status().reconnects, 0)

    def test_it_takes_over_when_the_first_is_gone(self) -> None:
        self.start(self.directory_sink())
        self.committed(b"of the first")
        second = self.start_second()
        self.primary.stop()
        self.network.pump()
        first, self.primary = self.primary, second
        self.reconnect()
        self.assertEqual(self.committed(b"of the second").id, 1)
        self.assertEqual(
            [(held.number, held.id, held.generation) for held in self.store().checkpoints()],
            [(1, 0, first.generation), (2, 1, second.generation)],
        )
        self.assertEqual(second.transactions()[-1].number, 2)
        self.assertEqual(self.secondary.status().generation, second.generation)

    def test_the_first_learns_that_somebody_else_has_taken_over(self) -> None:
        self.start(self.directory_sink())
        self.committed(b"of the first")
        self.begin()
        self.append(b"lost")
        self.network.pump()
        committing = self.primary.commit()
        self.link.cut(clean=False)
        self.network.pump()
        first = self.primary
        self.primary = self.new_primary("other", section="second", name="demo")
        self.primary.start()
        self.network.pump()
        self.committed(b"of the second")
        self.primary.stop()
        self.network.pump()
        self.primary = first
        self.reconnect()
        self.failureResultOf(committing)
        # Its last checkpoint is not the newest of the standby any more.
        self.assertIs(first.status().last_committed, None)
        self.committed(b"again of the first")
        self.assertEqual([held.number for held in self.store().checkpoints()], [1, 2, 3])

    def test_a_primary_that_lost_its_generation_is_somebody_else(self) -> None:
        self.start(self.directory_sink())
        self.committed(b"before")
        self.primary.stop()
        self.network.pump()
        self.start_primary(directory="new")
        self.network.pump()
        self.committed(b"after")
        before, after = self.store().checkpoints()
        self.assertNotEqual(before.generation, after.generation)

    def test_a_link_that_only_the_sender_knows_to_be_broken(self) -> None:
        self.start()
        self.committed(b"first")
        old = self.link
        old.to_client.is_stalled = old.to_server.is_stalled = True
        self.primary.reset()
        # A reset that gets lost: only the sender's end is told.
        old.client.abortConnection()
        old.step()
        self.assertIs(self.secondary.status().link_state, LinkState.UP)
        self.pass_time(1.0)
        error = self.primary.error
        assert error is not None
        self.assertIn("has a sender already", error.detail)
        # After the dead time the old session goes and the sender gets in.
        self.reconnect()
        self.assertEqual(self.committed(b"second").id, 1)
        self.assertEqual(self.held(), [b"first", b"second"])

    def test_two_that_shake_hands_at_once(self) -> None:
        self.start_secondary()
        one, other = self.connect(), self.connect()
        self.open_by_script(one)
        other.say(hello_frame(state="primary"))
        self.network.pump()
        self.assertEqual(one.commands(), ["HELLO", "ACK"])
        self.assertEqual(other.commands(), ["HELLO", "HELLO"])
        refusal = other.frames()[-1][1]
        self.assertIn(b"has a sender already", refusal)
        self.assertIsNotNone(other.lost)

    def test_what_was_told_in_hello_has_to_be_still_true(self) -> None:
        self.start()
        late = self.connect()
        self.network.pump()
        self.committed(b"abc")
        self.primary.stop()
        self.network.pump()
        late.say(hello_frame(state="primary"))
        self.network.pump()
        self.assertEqual(late.commands(), ["HELLO", "HELLO"])
        self.assertIn(b"connect again", late.frames()[-1][1])

    def test_hello_says_what_it_holds(self) -> None:
        self.start(self.directory_sink())
        empty = Hello.decode(self.connect_and_listen())
        self.assertEqual((empty.generation, empty.last, empty.state, empty.node), (None, None, "standby", "host-b"))
        self.committed(b"abc")
        self.committed(b"def")
        told = Hello.decode(self.connect_and_listen())
        assert told.last is not None
        self.assertEqual((told.last.generation, told.last.sequence), (self.primary.generation, 2))
        self.assertEqual((told.generation, told.pair), (self.primary.generation, "demo"))

    def connect_and_listen(self) -> bytes:
        peer = self.connect()
        self.network.pump()
        header, payload = peer.frames()[0]
        self.assertEqual(header.cmd, Command.HELLO)
        return payload


class StrangerTests(StrangerCase):
    """They cost their own connection, and nobody else anything."""

    def test_no_more_connections_than_allowed(self) -> None:
        self.start_secondary(handshakes=2)
        silent = [self.connect(), self.connect()]
        late = self.connect()
        self.network.pump()
        self.assertIsNotNone(late.lost)
        self.assertEqual(bytes(late.heard), b"")
        self.assertEqual([peer.commands() for peer in silent], [["HELLO"], ["HELLO"]])
        self.start_primary()
        self.network.pump()
        self.assertIsNot(self.primary.link_state, LinkState.UP)
        # The silent ones are thrown out when their time is up.
        self.reconnect()
        self.assertTrue(all(peer.lost is not None for peer in silent))
        self.committed(b"abc")

    def test_those_that_have_left_do_not_count(self) -> None:
        self.start_secondary(handshakes=1)
        for _ in range(5):
            peer = self.connect()
            self.network.pump()
            self.assertEqual(peer.commands(), ["HELLO"])
            peer.close()
            self.network.pump()
        self.start_primary()
        self.network.pump()
        self.assertIs(self.primary.link_state, LinkState.UP)

    def test_a_stranger_beside_a_session_is_nobodys_error(self) -> None:
        self.start()
        for words in (b"GET / HTTP/1.1\r\nHost: ftd\r\n\r\n", b"\xff" * 40, frame(Command.CONTINUE, payload=b"abc")):
            peer = self.connect()
            peer.say(words)
            self.network.pump()
            self.assertIsNotNone(peer.lost)
            self.assertEqual(peer.commands()[0], "HELLO")
        self.assertIs(self.secondary.error, None)
        self.assertEqual(self.secondary.status().link_peer, "192.0.2.1:50000")
        self.committed(b"abc")

    def test_a_stranger_without_a_session_to_hurt_is_shown(self) -> None:
        self.start_secondary()
        self.connect().say(b"GET / HTTP/1.1\r\nHost: ftd\r\n\r\n")
        self.network.pump()
        status = self.secondary.status()
        self.assertEqual(status.has_error_name, "STATE_INVALID")
        self.assertIn("unknown command", status.has_error_detail or "")
        self.assertEqual((status.link_state, status.link_detail), (LinkState.DOWN, "waiting for a sender"))
        self.start_primary()
        self.network.pump()
        self.assertIs(self.secondary.error, None)
        self.committed(b"abc")

    def test_a_stranger_that_says_nothing(self) -> None:
        self.start_secondary()
        peer = self.connect()
        self.pass_time(9.9)
        self.assertIs(peer.lost, None)
        self.pass_time(0.2)
        self.assertIsNotNone(peer.lost)
        self.assertEqual(
            self.secondary.status().has_error_detail,
            "the handshake was not done within 10 s; the peer may want TLS (link-certificate)",
        )

    def test_a_sender_for_another_pair_is_told(self) -> None:
        self.start_secondary()
        self.start_primary(name="other")
        self.network.pump()
        error = self.primary.error
        assert error is not None
        self.assertIn("pair 'demo'", error.detail)

    def test_a_session_whose_sender_misbehaves_ends(self) -> None:
        self.start_secondary()
        peer = self.connect()
        self.open_by_script(peer)
        peer.say(frame(Command.BEGIN, 0), frame(Command.CONTINUE, 0, 0, b"abc"), frame(Command.BEGIN, 0))
        self.network.pump()
        status = self.secondary.status()
        self.assertEqual((status.has_error_name, status.transactions_failed), ("STATE_INVALID", 1))
        self.assertEqual(status.has_error_detail, "BEGIN is not allowed in state CONTINUE")
        self.assertIsNotNone(peer.lost)
        self.assertEqual(self.held(), [])
        self.start_primary()
        self.network.pump()
        self.assertEqual(self.committed(b"abc").id, 0)

    def test_a_payload_over_the_limit(self) -> None:
        self.start_secondary(max_payload=1000, max_transaction=1500)
        for payloads in ([1001], [1000, 501]):
            peer = self.connect()
            self.open_by_script(peer)
            frames = [frame(Command.CONTINUE, 0, seq, bytes(size)) for seq, size in enumerate(payloads)]
            peer.say(frame(Command.BEGIN, 0), *frames)
            self.network.pump()
            self.assertEqual(self.secondary.status().has_error_name, "REALLOC_BUF")
            self.assertEqual(self.held(), [])


class EndTests(StrangerCase):
    """Stopping, and opening anew."""

    def test_a_stop_lets_nobody_in(self) -> None:
        self.start()
        stopping = self.secondary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.pass_time(2.0)
        self.assertIs(self.primary.link_state, LinkState.DOWN)
        self.assertIn("refused", self.primary.link_detail)

    def test_a_stop_that_was_never_started(self) -> None:
        self.successResultOf(self.new_secondary().stop())

    def test_a_stop_closes_every_connection(self) -> None:
        self.start_secondary()
        peers = [self.connect() for _ in range(3)]
        self.network.pump()
        stopping = self.secondary.stop()
        self.network.pump()
        self.successResultOf(stopping)
        self.assertTrue(all(peer.lost is not None for peer in peers))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_reset_clears_the_error_and_makes_the_sender_come_again(self) -> None:
        self.start()
        self.begin()
        upload = self.primary.append(Body())
        upload.write(bytes(3000))
        self.network.pump()
        self.successResultOf(self.secondary.reset())
        self.network.pump()
        self.failureResultOf(upload.done)
        self.assertIsNot(self.primary.link_state, LinkState.UP)
        self.reconnect()
        self.assertIs(self.secondary.error, None)
        self.assertEqual(self.committed(b"abc").id, 0)
        self.assertEqual(self.held(), [b"abc"])

    def test_a_reset_without_a_sender_clears_the_error(self) -> None:
        self.start_secondary()
        self.connect().say(b"\xff" * 40)
        self.network.pump()
        self.assertIsNotNone(self.secondary.error)
        self.secondary.reset()
        self.assertIs(self.secondary.error, None)
