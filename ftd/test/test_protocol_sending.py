"""The sender over a transport that keeps what it gets: when memory may change again, runs of frames, and the window."""

from __future__ import annotations

from twisted.internet.interfaces import IPushProducer
from twisted.internet.testing import StringTransport

from ftd import link_protocol
from ftd.test.link_case import LinkTestCase
from ftd.test.test_outbox import LazyLink
from ftd.test.wire.reaching import NO_DIGEST, frame, hello
from ftd.wire.constants import HEADER_SIZE, Command
from ftd.wire.errors import ErrorCode
from ftd.wire.framing import Deframer, Header
from ftd.wire.hello import Hello
from ftd.wire.sender import Buffer

_WINDOW = 4


class KeepingLink(LazyLink):
    """
    Sends nothing before it is told to, and does what a socket does when it is full.

    :ivar heard: all that has been sent.
    :ivar answers_expected: how often an answer was.
    :ivar is_full: whether a flush finds the socket full.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heard = bytearray()
        self.answers_expected = 0
        self.is_full = False
        self._producer: IPushProducer | None = None

    def register_producer(self, producer: IPushProducer) -> None:
        """See `LinkTransport`."""
        self._producer = producer

    def unregister_producer(self) -> None:
        """See `LinkTransport`."""
        self._producer = None

    def flush(self, window: int = 1) -> None:
        """See `LinkTransport`."""
        super().flush(window)
        if not self.is_full:
            self.take_all()
        elif self.unsent and self._producer is not None:
            self._producer.pauseProducing()

    def take_all(self) -> None:
        """See `LazyLink`."""
        self.heard += b"".join(self._held)
        super().take_all()

    def thaw(self) -> None:
        """The socket has taken everything and has room."""
        self.is_full = False
        self.take_all()
        assert self._producer is not None
        self._producer.resumeProducing()

    def expect_answer(self) -> None:
        """See `LinkTransport`."""
        self.answers_expected += 1

    def abort_connection(self) -> None:
        """See `LinkTransport`."""

    def frames(self) -> list[tuple[str, int]]:
        """The commands that were sent since the last call, and their ids."""
        found = [
            (Command(piece.cmd).name, piece.id)
            for piece in Deframer("little").feed(bytes(self.heard))
            if isinstance(piece, Header)
        ]
        self.heard.clear()
        return found


class SendingTestCase(LinkTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.link = KeepingLink()
        self.patch(link_protocol, "adopt", lambda _transport, _end, _options: self.link)
        self.patch(self.primary, "hello", lambda: hello(state="primary", window=_WINDOW))
        self.sender = self.new_sender()
        self.sender.makeConnection(StringTransport())
        self.say(frame(Command.HELLO, payload=self.standby().encode()), frame(Command.ACK, 0))
        self.link.frames()
        self.link.flushes = 0
        self.primary.events.clear()

    def standby(self) -> Hello:
        return hello(NO_DIGEST, window=_WINDOW)

    def say(self, *frames: bytes) -> None:
        """The peer does."""
        for data in frames:
            self.sender.dataReceived(data)

    def transaction(self, data: Buffer = b"state") -> None:
        self.sender.begin()
        self.sender.write_frame((data,))
        self.sender.commit()


class MemoryTests(SendingTestCase):
    """`PrimaryPair.drained`, and with it the guest's RAM, is built on this."""

    def test_a_transaction_is_one_flush(self) -> None:
        self.transaction()
        self.assertEqual((self.link.flushes, self.link.answers_expected), (1, 1))
        self.assertEqual(self.link.frames(), [("BEGIN", 0), ("CONTINUE", 0), ("COMMIT", 0)])

    def test_what_is_gathered_is_unsent(self) -> None:
        self.sender.begin()
        self.sender.write_frame((bytes(100),))
        self.assertFalse(self.sender.is_frozen)
        self.assertEqual((self.sender.buffered, self.sender.unsent), (0, 2 * HEADER_SIZE + 100))

    def test_who_wants_it_drained_has_it_sent(self) -> None:
        self.sender.begin()
        self.sender.write_frame((bytes(100),))
        self.sender.want_drained()
        self.assertEqual((self.primary.events, self.sender.unsent), (["all sent"], 0))
        self.sender.commit()
        self.assertEqual(self.primary.events, ["all sent"], "once")

    def test_it_is_not_drained_while_the_transport_has_it(self) -> None:
        """Not frozen for the transport has not noticed yet, and frozen after that."""
        self.link.is_full = True
        self.sender.begin()
        page = bytearray(b"page")
        self.sender.write_frame((page,))
        self.sender.want_drained()
        self.assertTrue(self.sender.is_frozen)
        self.sender.write_frame((b"more",))
        self.assertEqual((self.primary.events, self.sender.unsent), ([], 3 * HEADER_SIZE + 8))
        self.link.thaw()
        self.assertEqual((self.primary.events, self.sender.unsent), (["all sent"], 0))
        page[:] = b"next"
        self.assertIn(b"page", self.link.heard)

    def test_a_flush_that_waits_for_the_end_of_a_read_is_waited_for(self) -> None:
        self.sender.begin()
        self.sender.write_frame((b"page",))
        self.patch(self.link, "flush", lambda: None)
        self.sender.want_drained()
        self.assertEqual(self.primary.events, [])
        self.clock.advance(0.01)
        self.assertEqual(self.primary.events, [])
        self.link.take_all()
        self.clock.advance(0.01)
        self.assertEqual(self.primary.events, ["all sent"])

    def test_what_a_bandwidth_limit_holds_back_is_not_sent(self) -> None:
        self.sender.set_bandwidth(1000)
        self.sender.begin()
        self.sender.write_frame((bytes(500),))
        self.sender.want_drained()
        for _ in range(45):
            self.clock.advance(0.01)
        self.assertEqual(self.primary.events, [])
        for _ in range(20):
            self.clock.advance(0.01)
        self.assertEqual(self.primary.events, ["all sent"])

    def test_a_link_that_is_lost_says_nothing_more(self) -> None:
        self.link.is_full = True
        self.sender.begin()
        self.sender.want_drained()
        self.sender.connectionLost()
        self.assertEqual((self.primary.events, self.clock.getDelayedCalls()), ([], []))

    def test_the_source_waits_for_what_the_transport_has_too(self) -> None:
        """Without the rate limit it runs ahead by ``buffer-limit``, wherever that lies."""
        self.sender.set_rate_limit(False)
        self.link.is_full = True
        self.sender.begin()
        self.sender.write_frame((bytes(9000),))
        self.link.flush()
        paused: list[str] = []

        class Source:
            """Notes what it is told."""

            def pauseProducing(self) -> None:
                paused.append("pause")

            def resumeProducing(self) -> None:
                paused.append("resume")

            def stopProducing(self) -> None:
                pass

        self.sender._source = Source()  # type: ignore[assignment]
        self.sender.write_frame((bytes(1000),))
        self.assertEqual(paused, ["pause"])
        self.link.thaw()
        self.assertEqual(paused, ["pause", "resume"])

    def test_a_run(self) -> None:
        self.sender.begin()
        self.sender.write_run(memoryview(bytes(range(250))), 100)
        self.sender.commit()
        self.assertEqual(self.sender.machine.in_flight[0].seq, 3)
        self.assertEqual(self.link.frames(), [("BEGIN", 0), *[("CONTINUE", 0)] * 3, ("COMMIT", 0)])
        self.assertEqual(self.sender_traffic.sent, self.sender._outbox.sent)


class WindowTests(SendingTestCase):
    """Several in flight, as the owner hears of them."""

    def test_acks(self) -> None:
        for _ in range(4):
            self.transaction()
        self.say(b"".join(frame(Command.ACK, id, 1) for id in range(3)), frame(Command.ACK, 3, 1))
        self.assertEqual(self.primary.events, [f"transaction {id} acknowledged" for id in range(4)])

    def test_acks_in_any_pieces(self) -> None:
        for size in range(1, 37):
            for _ in range(3):
                self.transaction()
            first = self.sender.machine.in_flight[0].id
            said = b"".join(frame(Command.ACK, first + at, 1) for at in range(3))
            self.say(*(said[at : at + size] for at in range(0, len(said), size)))
            self.assertEqual(len(self.primary.events), 3, size)
            self.primary.events.clear()

    def test_the_owner_goes_on_from_inside_of_an_ack(self) -> None:
        """As a primary does that has always something to send."""
        for _ in range(3):
            self.transaction()
        self.patch(self.primary, "acknowledged", lambda _transaction: self.transaction())
        self.say(b"".join(frame(Command.ACK, id, 1) for id in range(3)))
        self.assertEqual([transaction.id for transaction in self.sender.machine.in_flight], [3, 4, 5])

    def test_a_nack(self) -> None:
        for _ in range(3):
            self.transaction()
        self.sender.begin()
        self.link.frames()
        self.say(frame(Command.ACK, 0, 1), frame(Command.NACK, 1, ErrorCode.FLUSH))
        self.assertEqual(
            self.primary.events,
            [
                "transaction 0 acknowledged",
                "transaction 1 refused: FLUSH",
                "transaction 2 dropped behind it",
                "the open transaction cancelled",
            ],
        )
        self.transaction()
        self.assertEqual(
            self.link.frames(), [("BEGIN", 3), ("CANCEL", 3), ("BEGIN", 1), ("CONTINUE", 1), ("COMMIT", 1)]
        )

    def test_no_heartbeat_while_an_answer_is_awaited(self) -> None:
        """Between the ACKs of two transactions the sender stands in ACK."""
        for _ in range(2):
            self.transaction()
        self.say(frame(Command.ACK, 0, 1))
        self.link.frames()
        self.clock.advance(self.sender.times.heartbeat)
        self.assertEqual(self.link.frames(), [])
        self.say(frame(Command.ACK, 1, 1))
        self.clock.advance(self.sender.times.heartbeat)
        self.assertEqual(self.link.frames(), [("BEGIN", 2), ("COMMIT", 2)])
