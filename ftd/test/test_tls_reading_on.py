"""A TLS link that reads on by itself, outside of any read of the transport below."""

from __future__ import annotations

from ftd.test.tls_case import TlsCase


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
