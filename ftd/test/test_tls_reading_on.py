"""A TLS link that reads on by itself, outside of any read of the transport below; and what is sent inside of a read."""

from __future__ import annotations

from ftd.test.test_tls_transport import Producer
from ftd.test.tls_case import KIB, TlsCase


class ReadingOnTests(TlsCase):
    def test_an_end_that_breaks_meanwhile_loses_its_link(self) -> None:
        """As it does when it breaks inside of a read, where Twisted sees to it."""
        self.connect()
        self.server.rooms = [1000]
        self.server.pauses_after = 1
        self.client.link.write(bytes(5000))
        self.pump()
        self.assertEqual(len(self.server.received), 1000)

        def broken(_size: int) -> None:
            raise ZeroDivisionError

        self.patch(self.server, "placed", broken)
        self.server.link.resume_reading()
        self.pump()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertIsNotNone(self.server.lost_with)
        self.assertIsNotNone(self.client.lost_with)


class SendingInsideOfAReadTests(TlsCase):
    def test_a_producer_is_paused_when_the_socket_is_full(self) -> None:
        """What waits here would grow as long as the producer goes on."""
        self.connect(capacity=1000)
        producer = Producer(self.server.link, [bytes([number]) * (100 * KIB) for number in range(20)])
        said = b"".join(producer.blocks)
        self.server.link.register_producer(producer)
        self.server.rooms = [1]
        left = []

        def answer(_size: int) -> None:
            producer.go()
            left.append((producer.calls, len(producer.blocks)))

        self.patch(self.server, "placed", answer)
        self.client.link.write(b"x")
        self.wire.to_server.deliver()
        self.assertEqual(left, [(["pause"], 17)])
        self.pump()
        self.assertEqual(self.client.received, said)
