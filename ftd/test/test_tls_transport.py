"""Tests of :mod:`ftd.transport.tls_transport`: bytes that go both ways, what makes them wait, and how they end."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.task import Clock
from zope.interface import implementer

from ftd.test.tls_case import KIB, End, TlsCase
from ftd.test.wire.profile import examples
from ftd.transport.base import LinkTransport


@implementer(IPushProducer)
class Producer:
    """Writes blocks until it is paused."""

    def __init__(self, link: LinkTransport, blocks: list[bytes]) -> None:
        self._link = link
        self.blocks = blocks
        self.calls: list[str] = []

    def go(self) -> None:
        """Write until paused."""
        while self.blocks and self.calls[-1:] != ["pause"]:
            self._link.gather((self.blocks.pop(0),))
            self._link.flush()

    def pauseProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("pause")

    def resumeProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("resume")
        self.go()

    def stopProducing(self) -> None:
        """See `IPushProducer`."""
        self.calls.append("stop")


class StreamTests(TlsCase):
    def test_both_ways(self) -> None:
        """What is written before TLS stands goes out when it does."""
        self.join(End(self.clock, self.identity(is_server=False)), End(self.clock, self.identity(is_server=True)))
        self.client.link.write(b"early")
        self.server.link.write(b"bird")
        self.pump()
        self.client.link.write(memoryview(b" and late"))
        self.pump()
        self.assertEqual((self.server.received, self.client.received), (b"early and late", b"bird"))
        self.assertEqual(self.client.link.unsent, 0)

    def test_nothing_is_readable_on_the_wire(self) -> None:
        """What the peer reads was not there for others to read."""
        self.connect()
        self.client.link.write(b"secret" * 1000)
        self.pump()
        self.assertEqual(self.server.received, b"secret" * 1000)
        self.assertNotIn(b"secret", self.wire.to_server.delivered)

    @examples(60)
    @given(
        sizes=st.lists(st.integers(0, 40 * KIB), max_size=12),
        chunk=st.integers(1, 70 * KIB),
        rooms=st.lists(st.integers(1, 30 * KIB), max_size=6),
        capacity=st.integers(0, 64 * KIB),
        seed=st.integers(0, 99),
    )
    def test_any_pieces(self, sizes: list[int], chunk: int, rooms: list[int], capacity: int, seed: int) -> None:
        """Pieces of any sizes arrive as they are, whatever the network makes of them and wherever they are wanted."""
        self.clock = Clock()
        self.connect(capacity=capacity)
        self.server.rooms = rooms
        bits = random.Random(seed)
        pieces = [bits.randbytes(size) for size in sizes]
        for piece in pieces:
            self.client.link.gather((piece[:12], memoryview(piece)[12:]))
            if bits.random() < 0.3:
                self.client.link.flush()
        self.pump(max(chunk, sum(sizes) // 500))
        self.assertEqual(self.server.received, b"".join(pieces))
        self.assertEqual(self.client.link.unsent, 0)

    def test_places_are_filled_across_records(self) -> None:
        """Payload of many records that arrives at once is one read to where it is wanted, not one for each record."""
        self.connect()
        self.server.rooms = [100_000, 12, 100_000]
        self.client.link.write(bytes(200_012))
        self.pump(1 << 20)
        self.assertEqual(self.server.placed_sizes, [200_012])

    def test_small_pieces_share_a_record(self) -> None:
        """A hundred headers cost no hundred records."""
        self.connect()
        before = len(self.wire.to_server.delivered)
        self.client.link.gather([b"x" * 12] * 100)
        self.client.link.flush()
        self.pump()
        self.assertEqual(len(self.server.received), 1200)
        self.assertLess(len(self.wire.to_server.delivered) - before, 1200 + 30)

    def test_pieces_larger_than_a_batch_keep_their_order(self) -> None:
        """The rest of one comes before the next."""
        self.connect()
        pieces = [random.Random(seed).randbytes(300 * KIB) for seed in range(3)]
        self.client.link.gather([pieces[0], b"x" * 12, *pieces[1:]])
        self.pump()
        self.assertEqual(self.server.received, b"".join([pieces[0], b"x" * 12, *pieces[1:]]))

    def test_answers_to_one_read_share_a_record(self) -> None:
        """However often they are flushed inside of it."""
        self.connect()
        self.server.rooms = [10]
        self.server.answer = b"ack"
        before = len(self.wire.to_client.delivered)
        self.client.link.write(bytes(1000))
        self.pump()
        self.assertEqual(self.client.received, b"ack" * 100)
        self.assertLess(len(self.wire.to_client.delivered) - before, 300 + 30)

    def test_what_is_gathered_goes_at_the_end_of_the_turn(self) -> None:
        """Nobody has to flush, and nothing goes before that."""
        self.connect()
        self.client.link.gather((b"a", b"b"))
        self.wire.pump()
        self.assertEqual((self.server.received, self.client.link.unsent), (b"", 2))
        self.pump()
        self.assertEqual((self.server.received, self.client.link.unsent), (b"ab", 0))


class FlowTests(TlsCase):
    def test_a_full_socket_pauses_the_producer_and_keeps_its_memory(self) -> None:
        """What the socket does not take stays as it is, where it is: not encrypted, and counted."""
        self.connect(capacity=1000)
        producer = Producer(self.client.link, [bytes(100 * KIB)] * 20)
        self.client.link.register_producer(producer)
        self.wire.to_server.is_stalled = True
        producer.go()
        self.assertEqual((producer.calls[-1], len(producer.blocks)), ("pause", 19))
        self.client.link.gather([bytes(100 * KIB)] * 10)
        self.assertEqual(self.client.link.unsent, 1000 * KIB)
        self.assertLess(self.wire.client.unsent, 110 * KIB)
        self.wire.to_server.is_stalled = False
        self.pump()
        self.assertEqual(len(self.server.received), 3000 * KIB)
        self.assertEqual(producer.calls[-1], "resume")
        self.assertLess(self.wire.client.most_unsent, 300 * KIB)

    def test_a_producer_that_comes_to_a_full_socket(self) -> None:
        """It is paused at once, and resumed in its time."""
        self.connect(capacity=1000)
        self.wire.to_server.is_stalled = True
        self.client.link.write(bytes(2000))
        producer = Producer(self.client.link, [])
        self.client.link.register_producer(producer)
        self.wire.to_server.is_stalled = False
        self.pump()
        self.assertEqual(producer.calls, ["pause", "resume"])

    def test_one_producer_at_a_time(self) -> None:
        self.connect()
        producer = Producer(self.client.link, [])
        self.client.link.register_producer(producer)
        self.assertRaises(RuntimeError, self.client.link.register_producer, producer)
        self.client.link.unregister_producer()
        self.client.link.unregister_producer()
        self.client.link.register_producer(producer)

    def test_a_producer_hears_of_the_end(self) -> None:
        """As from Twisted's transports; one that comes later hears it at once."""
        self.connect()
        producers = [Producer(self.client.link, []), Producer(self.client.link, [])]
        self.client.link.register_producer(producers[0])
        self.wire.cut(clean=False)
        self.pump()
        self.client.link.register_producer(producers[1])
        self.assertEqual([producer.calls for producer in producers], [["stop"], ["stop"]])

    def test_a_paused_end_is_given_nothing(self) -> None:
        """What has arrived waits, encrypted, and comes in order when it reads on."""
        self.connect()
        self.server.pauses_after = 1
        self.server.rooms = [10_000]
        blob = random.Random(1).randbytes(100_000)
        self.client.link.write(blob)
        self.pump(1 << 20)
        self.assertEqual(self.server.received, blob[:10_000])
        self.server.link.resume_reading()
        self.wire.pump()
        self.assertEqual(self.server.received, blob[:10_000], "not before the next turn")
        self.client.link.write(b"and more")
        self.pump()
        self.assertEqual(self.server.received, blob + b"and more")

    def test_paused_again_before_the_turn(self) -> None:
        """The last word counts."""
        self.connect()
        self.server.link.pause_reading()
        self.client.link.write(b"x")
        self.server.link.resume_reading()
        self.server.link.pause_reading()
        self.pump()
        self.assertEqual(self.server.received, b"")
        self.server.link.resume_reading()
        self.pump()
        self.assertEqual(self.server.received, b"x")


class EndTests(TlsCase):
    def test_everything_is_sent_before_the_end(self) -> None:
        """A close waits for what was written, and both sides see a clean end."""
        self.connect(capacity=1000)
        self.client.link.write(bytes(500 * KIB))
        self.client.link.lose_connection()
        self.pump()
        self.assertEqual(len(self.server.received), 500 * KIB)
        for end in (self.client, self.server):
            assert end.lost_with is not None
            self.assertIsNotNone(end.lost_with.check(ConnectionDone))
            self.assertIsNone(end.error)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_paused_producer_finishes_before_the_end(self) -> None:
        """As with Twisted's transports."""
        self.connect(capacity=1000)
        producer = Producer(self.client.link, [bytes(100 * KIB)] * 5)
        self.client.link.register_producer(producer)
        producer.go()
        self.client.link.lose_connection()
        self.pump()
        self.assertEqual(len(self.server.received), 500 * KIB)
        self.assertIsNotNone(self.client.lost_with)

    def test_abort(self) -> None:
        """Nothing that waits is sent."""
        self.connect(capacity=1000)
        self.client.link.write(bytes(500 * KIB))
        self.client.link.abort_connection()
        self.client.link.write(b"x")
        self.pump()
        self.assertLess(len(self.server.received), 500 * KIB)
        self.assertEqual(self.client.link.unsent, 0)
        self.assertIsNotNone(self.client.lost_with)
        self.assertIsNotNone(self.server.lost_with)

    def test_a_cut_is_no_error_of_tls(self) -> None:
        """It is what Twisted says it is; whether it hurts is for the protocol to know."""
        self.connect()
        self.wire.cut(clean=False)
        self.pump()
        self.assertEqual((self.client.error, self.server.error), (None, None))

    def test_a_damaged_record(self) -> None:
        """What was changed on its way is not given to the protocol, what came before is."""
        self.connect()
        self.client.link.write(b"good")
        self.client.link.write(b"evil" * 100)
        self.wire.client._unsent[-50] ^= 1
        self.pump()
        self.assertEqual(self.server.received, b"good")
        assert self.server.error is not None
        self.assertIn("TLS failed: decryption failed or bad record mac", self.server.error.detail)
        assert self.client.error is not None
        self.assertIn("the peer ended TLS: bad record mac", self.client.error.detail)

    def test_close_before_tls_stands(self) -> None:
        """There is nobody to say goodbye to."""
        self.join(End(self.clock, self.identity(is_server=False)), End(self.clock, self.identity(is_server=True)))
        self.client.link.write(b"never")
        self.client.link.lose_connection()
        self.assert_ended("", "the peer closed the connection in the TLS handshake: it may not speak TLS")

    def test_an_alert_that_the_peer_does_not_take(self) -> None:
        """It is not waited for longer than it is worth."""
        self.connect()
        self.wire.to_server.is_stalled = True
        self.server.link.write(b"evil" * 100)
        self.wire.server._unsent[-50] ^= 1
        self.wire.to_client.deliver()
        self.clock.advance(0.9)
        self.wire.step()
        self.assertFalse(self.wire.client.is_aborted)
        self.clock.advance(0.2)
        self.assertTrue(self.wire.client.is_aborted)
