"""What the source of a transaction hears when that is cancelled: nothing that could make it write into the next one."""

from __future__ import annotations

from ftd.test.link_case import BUFFER_LIMIT, GreedySource
from ftd.test.test_protocol_sending import SendingTestCase
from ftd.test.wire.reaching import frame
from ftd.wire.constants import Command
from ftd.wire.errors import ErrorCode


class CancellingTests(SendingTestCase):
    """A source that was paused at the buffer's limit would go on when the transport has sent some of that."""

    def paused_source(self) -> GreedySource:
        """A source in the open transaction; the transport has sent what it waits for, and is to say so."""
        self.sender.set_rate_limit(False)
        self.link.is_full = True
        self.sender.begin()
        source = GreedySource(self.sender, [bytes(BUFFER_LIMIT)])
        self.sender.registerProducer(source, True)
        source.go()
        self.link.flush()
        self.assertTrue(source.is_paused)
        source._frames.append(b"more")
        self.link.take_all()
        return source

    def test_by_the_owner(self) -> None:
        source = self.paused_source()
        self.sender.cancel()
        self.assertTrue(source.is_paused)

    def test_by_a_refusal_of_one_before_it(self) -> None:
        self.transaction()
        source = self.paused_source()
        self.say(frame(Command.NACK, 0, ErrorCode.FLUSH))
        self.assertTrue(source.is_paused)
        self.assertIn("the open transaction cancelled", self.primary.events)
