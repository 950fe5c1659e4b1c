"""What every `LinkTransport` does, whatever it is made of: a mixin for the tests of each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from ftd.test.wire.profile import examples
from ftd.testing.fake_socket import SocketLink
from ftd.testing.transport import Link
from ftd.transport import LinkTransport

if TYPE_CHECKING:
    _Case = SynchronousTestCase
else:
    _Case = object


@implementer(IPushProducer)
class SuiteEnd(Protocol):
    """
    One end: keeps what it is brought, and writes blocks for as long as it is not paused.

    :ivar heard: every byte, in order, wherever it was read to.
    :ivar room: places for the next bytes, in turn.
    :ivar lost: why it ended.
    :ivar blocks: what is to be written.
    :ivar calls: what it was told as a producer.
    """

    def __init__(self, suite: TransportSuite) -> None:
        self.heard = bytearray()
        self.lost: Failure | None = None
        self.room: list[int] = []
        self.blocks: list[bytes] = []
        self.calls: list[str] = []
        self.link: LinkTransport
        self._suite = suite
        self._places: list[memoryview] = []

    def connectionMade(self) -> None:
        """See `IProtocol`."""
        self.link = self._suite.new_transport(self.transport, self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """See `IProtocol`."""
        assert self.lost is None, "lost twice"
        self.lost = reason
        self.link.closed()

    def places(self) -> Sequence[memoryview]:
        """See `LinkEnd`."""
        self._places = [memoryview(bytearray(size)) for size in self.room]
        return self._places

    def placed(self, size: int) -> None:
        """See `LinkEnd`."""
        assert size
        self.heard += b"".join(self._places)[:size]

    def dataReceived(self, data: bytes | memoryview) -> None:
        """See `LinkEnd`."""
        assert data
        self.heard += data

    def go(self) -> None:
        """Write until paused."""
        while self.blocks and not self.is_paused:
            self.link.write(self.blocks.pop(0))

    @property
    def is_paused(self) -> bool:
        """Whether the last word was to pause."""
        return self.calls[-1:] == ["pause"]

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        assert self.is_paused
        self.calls.append("resume")
        self.go()

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("stop")


class TransportSuite(_Case):
    """
    The tests.

    :cvar link_type: what connects two ends.
    """

    link_type: Any = Link

    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:
        """The transport that is tested, on Twisted's ``transport``."""
        raise NotImplementedError

    def connect(self, capacity: int = 1000) -> None:
        """Two ends and what is between them."""
        self.client, self.server = SuiteEnd(self), SuiteEnd(self)
        self.link: Link | SocketLink = self.link_type(self.client, self.server, capacity=capacity)
        self.link.pump()

    def setUp(self) -> None:
        self.connect()

    def test_both_ways(self) -> None:
        self.client.link.write(b"one")
        self.client.link.write(memoryview(b" and two"))
        self.server.link.write(b"three")
        self.link.pump()
        self.assertEqual((self.server.heard, self.client.heard), (b"one and two", b"three"))

    def test_what_is_gathered_goes_at_the_end_of_the_turn_at_the_latest(self) -> None:
        self.client.link.gather((b"one", memoryview(b" and"), b""))
        self.client.link.gather(iter((b" two",)))
        self.link.pump()
        self.assertEqual((self.server.heard, self.client.link.unsent), (b"one and two", 0))

    def test_nothing_is_nothing(self) -> None:
        self.client.link.gather(())
        self.client.link.gather((b"", b""))
        self.client.link.flush()
        self.client.link.write(b"")
        self.client.link.expect_answer()
        self.link.pump()
        self.assertEqual((self.server.heard, self.client.link.unsent, self.server.lost), (b"", 0, None))

    def test_a_reader_that_has_places_has_it_there(self) -> None:
        self.server.room = [3, 1, 5]
        self.client.link.write(b"0123456789" * 10)
        self.link.pump(7)
        self.assertEqual(self.server.heard, b"0123456789" * 10)

    def test_who_pauses_reading_hears_nothing_until_it_goes_on(self) -> None:
        self.server.link.pause_reading()
        self.client.link.write(b"one")
        self.link.pump()
        self.assertEqual(self.server.heard, b"")
        self.server.link.resume_reading()
        self.assertEqual(self.server.heard, b"", "not from inside of the call")
        self.link.pump()
        self.assertEqual(self.server.heard, b"one")

    def test_a_producer_is_paused_while_the_socket_is_full(self) -> None:
        self.client.link.register_producer(self.client)
        self.link.to_server.is_stalled = True
        self.client.blocks = [bytes([number]) * 3000 for number in range(100)]
        whole = b"".join(self.client.blocks)
        self.client.go()
        self.link.pump()
        self.assertTrue(self.client.is_paused)
        self.assertTrue(self.client.blocks)
        self.link.to_server.is_stalled = False
        self.link.pump()
        self.assertEqual(self.server.heard, whole)
        self.assertEqual(self.client.calls[-1], "resume")
        self.client.link.unregister_producer()
        self.client.link.unregister_producer()

    def test_closing_sends_everything_first(self) -> None:
        self.client.link.write(b"x" * 5000)
        self.client.link.lose_connection()
        self.link.pump(300)
        self.assertEqual(self.server.heard, b"x" * 5000)
        for end in (self.client, self.server):
            assert end.lost is not None
            self.assertIs(end.lost.type, ConnectionDone)

    def test_closing_waits_for_a_producer_that_is_paused(self) -> None:
        self.client.link.register_producer(self.client)
        self.client.blocks = [b"x" * 900, b"y" * 900]
        self.client.go()
        self.client.link.lose_connection()
        self.link.pump()
        if self.client.lost is None:
            self.client.link.unregister_producer()
            self.link.pump()
        self.assertEqual(self.server.heard, b"x" * 900 + b"y" * 900)
        self.assertIsNotNone(self.client.lost)

    def test_aborting_is_told_in_a_later_turn(self) -> None:
        self.client.link.write(b"x" * 5000)
        self.client.link.abort_connection()
        self.client.link.abort_connection()
        self.assertIsNone(self.client.lost)
        self.client.link.write(b"too late")
        self.link.pump()
        self.assertIsNotNone(self.client.lost)
        self.assertIsNotNone(self.server.lost)
        self.assertNotIn(b"late", bytes(self.server.heard))

    def test_what_is_done_after_the_end_does_nothing(self) -> None:
        self.link.cut(clean=True)
        self.link.pump()
        link = self.client.link
        link.gather((b"one",))
        link.flush()
        link.write(b"two")
        link.expect_answer()
        link.pause_reading()
        link.resume_reading()
        link.lose_connection()
        link.abort_connection()
        link.closed()
        self.link.pump()
        self.assertEqual(link.unsent, 0)

    def test_whatever_is_said_arrives_in_order(self) -> None:
        @examples(60)
        @given(
            st.integers(1, 2000),
            st.integers(1, 700),
            st.lists(st.tuples(st.booleans(), st.lists(st.integers(0, 900), max_size=5), st.booleans()), max_size=12),
            st.lists(st.integers(1, 300), max_size=3),
        )
        def check(capacity: int, chunk: int, says: list[tuple[bool, list[int], bool]], room: list[int]) -> None:
            self.connect(capacity)
            self.client.room = room
            said = {True: bytearray(), False: bytearray()}
            for number, (is_client, sizes, at_once) in enumerate(says):
                end = self.client if is_client else self.server
                pieces = [bytes([number + 1]) * size for size in sizes]
                said[is_client] += b"".join(pieces)
                end.link.gather(pieces)
                if at_once:
                    end.link.flush()
                    self.link.step(chunk)
            self.link.pump(chunk)
            self.assertEqual((self.server.heard, self.client.heard), (said[True], said[False]))
            self.assertEqual((self.client.link.unsent, self.server.link.unsent), (0, 0))

        check()
