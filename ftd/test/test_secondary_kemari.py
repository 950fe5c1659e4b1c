"""A secondary whose sender is Kemari's own code, which was recorded."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory

from ftd import test
from ftd.config import Ack, Peer
from ftd.status import LinkState
from ftd.test.link_case import ScriptedPeer
from ftd.test.pair_case import PairTestCase
from ftd.test.wire.reaching import frame
from ftd.wire.constants import Command

VECTORS = Path(test.__file__).parent / "vectors"

INDEX: dict[str, dict[str, Any]] = json.loads((VECTORS / "index.json").read_text())


class KemariSenderTests(PairTestCase):
    """``peer = kemari``."""

    def connect(self) -> ScriptedPeer:
        """A Kemari connects."""
        peer = ScriptedPeer()
        factory = Factory.forProtocol(lambda: peer)
        factory.noisy = False
        self.successResultOf(self.network.client_endpoint().connect(factory))
        self.network.pump()
        return peer

    def restart(self, **changes: Any) -> None:
        """A new secondary, that holds nothing."""
        self.network = type(self.network)()
        self.start_secondary(peer=Peer.KEMARI, **changes)

    def test_every_recording(self) -> None:
        self.assertEqual(len(INDEX), 7)
        for ack in Ack:
            for name, session in INDEX.items():
                for chunk in (997, 65536):
                    self.restart(ack=ack)
                    peer = self.connect()
                    peer.say((VECTORS / f"{name}.s2r.bin").read_bytes())
                    self.network.pump(chunk)
                    what = (name, chunk)
                    self.assertEqual(bytes(peer.heard), (VECTORS / f"{name}.r2s.bin").read_bytes(), what)
                    self.assertEqual(
                        [(held.id, held.bytes) for held in self.store().checkpoints()],
                        [(committed["id"], committed["bytes"]) for committed in session["committed"]],
                        what,
                    )
                    self.assertEqual(
                        [f"{zlib.crc32(state):08x}" for state in self.held()],
                        [committed["digest"] for committed in session["committed"]],
                        what,
                    )
                    self.assertEqual(self.secondary.status().transactions_committed, len(session["committed"]), what)
                    self.assertIs(self.secondary.error, None)
                    peer.close()
                    self.network.pump()
                    is_cut_short = name == "eof_inside_transaction"
                    self.assertEqual(self.secondary.error is not None, is_cut_short, what)

    def test_it_is_acknowledged_at_once_and_has_the_session_with_its_first_begin(self) -> None:
        self.restart()
        peer = self.connect()
        self.assertEqual(bytes(peer.heard), frame(Command.ACK))
        self.assertIs(self.secondary.status().link_state, LinkState.HANDSHAKE)
        peer.say(frame(Command.BEGIN))
        self.network.pump()
        status = self.secondary.status()
        self.assertEqual((status.link_state, status.peer, status.state), (LinkState.UP, "kemari", "BEGIN"))

    def test_what_it_sends_has_no_generation(self) -> None:
        self.restart()
        peer = self.connect()
        peer.say((VECTORS / "one_small.s2r.bin").read_bytes())
        self.network.pump()
        self.assertEqual(self.store().checkpoints()[0].generation, "")
        self.assertIs(self.secondary.status().generation, None)

    def test_a_silent_one_between_transactions_is_not_dead(self) -> None:
        # It knows no heartbeat.
        self.restart()
        peer = self.connect()
        peer.say((VECTORS / "one_small.s2r.bin").read_bytes())
        self.pass_time(60, step=0.5)
        self.assertIs(self.secondary.status().link_state, LinkState.UP)
        peer.say(frame(Command.BEGIN, 1), frame(Command.CONTINUE, 1, 0, b"abc"), frame(Command.COMMIT, 1, 1))
        self.network.pump()
        self.assertEqual(self.held()[1], b"abc")

    def test_a_second_one_is_closed_without_a_word_that_it_would_not_understand(self) -> None:
        self.restart()
        first, second = self.connect(), self.connect()
        first.say(frame(Command.BEGIN))
        self.network.pump()
        second.say(frame(Command.BEGIN))
        self.network.pump()
        self.assertIsNotNone(second.lost)
        self.assertEqual(bytes(second.heard), frame(Command.ACK))
        self.assertIs(first.lost, None)
        self.assertIs(self.secondary.error, None)

    def test_a_sink_that_fails_ends_the_link(self) -> None:
        for ack in Ack:
            self.restart(ack=ack, sink=self.memory_sink(limit=1))
            peer = self.connect()
            peer.say((VECTORS / "one_small.s2r.bin").read_bytes())
            self.network.pump()
            self.assertIsNotNone(peer.lost)
            self.assertEqual(self.secondary.status().has_error_name, "REALLOC_BUF")
            self.assertEqual(self.held(), [])
            self.assertEqual(self.secondary.status().transactions_nacked, 1)
            # The opening one and no other.
            self.assertEqual(peer.commands(), ["ACK"])

    def test_an_ftd_that_calls_at_a_secondary_for_kemari(self) -> None:
        # It takes what answers with an ACK for a Kemari and speaks as one.
        self.restart()
        self.start_primary()
        self.network.pump()
        self.assertEqual(self.primary.status().peer, "kemari")
        self.assertEqual(self.committed(b"abc").id, 0)
        self.assertEqual(self.held(), [b"abc"])
