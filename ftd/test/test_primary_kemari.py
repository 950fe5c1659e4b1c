"""A primary whose standby is a Kemari: it finds out by itself, and says what it cannot know."""

from __future__ import annotations

from twisted.internet.protocol import Factory, Protocol

from ftd.errors import LinkDown
from ftd.status import LinkState, Outcome
from ftd.test.link_case import ScriptedPeer
from ftd.test.pair_case import PairTestCase
from ftd.test.wire.reaching import frame
from ftd.wire.constants import Command


class KemariStandbyTests(PairTestCase):
    """The standby is played."""

    def setUp(self) -> None:
        super().setUp()
        self.peers: list[ScriptedPeer] = []

        def build() -> Protocol:
            peer = ScriptedPeer()
            self.peers.append(peer)
            return peer

        factory = Factory.forProtocol(build)
        factory.noisy = False
        self.successResultOf(self.network.server_endpoint().listen(factory))
        self.start_primary()
        self.greet()

    @property
    def peer(self) -> ScriptedPeer:
        """The newest connection's other end."""
        return self.peers[-1]

    def greet(self) -> None:
        """The standby is ready."""
        self.network.pump()
        self.peer.say(frame(Command.ACK))
        self.network.pump()

    def test_it_is_found_out(self) -> None:
        status = self.primary.status()
        self.assertEqual((status.peer, status.link_state, status.id), ("kemari", LinkState.UP, 0))

    def test_a_transaction_without_anything_that_kemari_does_not_know(self) -> None:
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        self.network.pump()
        self.assertEqual(
            bytes(self.peer.heard),
            frame(Command.BEGIN) + frame(Command.CONTINUE, 0, 0, b"abc") + frame(Command.COMMIT, 0, 1),
        )
        self.assertNoResult(committing)
        self.peer.say(frame(Command.ACK, 0, 1))
        self.network.pump()
        self.assertEqual(self.successResultOf(committing).id, 0)
        self.assertEqual(self.primary.transactions()[-1].number, 1)
        self.assertEqual(self.begin(), 1)

    def test_it_gets_no_heartbeat(self) -> None:
        self.pass_time(60, step=0.5)
        self.assertEqual(bytes(self.peer.heard), b"")
        self.assertIs(self.primary.link_state, LinkState.UP)

    def test_a_commit_in_doubt_stays_so(self) -> None:
        self.begin()
        self.append(b"abc")
        committing = self.primary.commit()
        self.network.pump()
        self.link.cut(clean=False)
        self.network.pump()
        self.assertNoResult(committing)
        self.pass_time(0.2)
        self.greet()
        self.assertEqual(
            str(self.refusal(LinkDown, lambda: committing)),
            "transaction 0 may be committed: the link broke before its ACK, and a Kemari cannot tell",
        )
        row = self.primary.transactions()[-1]
        self.assertEqual(row.outcome, Outcome.FAILED)
        self.assertIn("may be committed", row.detail)
        self.assertIs(self.primary.status().last_committed, None)
        self.assertIs(self.primary.error, None)
        # The Kemari that is there now has begun to count anew.
        self.assertEqual(self.begin(), 0)

    def test_what_was_committed_before_stays_known(self) -> None:
        upload = self.push(b"abc")
        self.peer.say(frame(Command.ACK, 0, 1))
        self.network.pump()
        self.successResultOf(upload.done)
        self.link.cut(clean=True)
        self.network.pump()
        self.pass_time(0.2)
        self.greet()
        last = self.primary.status().last_committed
        assert last is not None
        self.assertEqual((last.id, last.number), (0, 1))
        self.assertEqual(self.primary.status().reconnects, 1)
