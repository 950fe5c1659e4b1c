"""Tests of :mod:`ftd.transport.tls_transport`: peers that are not who they should be, and what is said of them."""

from __future__ import annotations

import ssl
from datetime import timedelta

from ftd.config_tls import TlsFiles
from ftd.test.tls_case import End, TlsCase
from ftd.testing.certificates import Authority
from ftd.transport.tls_identity import TlsIdentity

DAY = timedelta(days=1)


class BareClient(TlsIdentity):
    """A client that shows nobody who it is."""

    def __init__(self, files: TlsFiles) -> None:
        super().__init__(files)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.context.load_verify_locations(files.ca)

    def connection(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        """See `TlsIdentity`."""
        return self.context.wrap_bio(incoming, outgoing, server_hostname=self.files.peer_name)


class PeerTests(TlsCase):
    """Who is let in, and what is said otherwise."""

    def test_names(self) -> None:
        """A name in the certificate, in any case, or an address in any spelling; or, for a server, no name at all."""
        for client, server in (("HOST-b", "192.0.2.1"), ("fd00:0:0::2", "")):
            self.connect(
                self.identity(is_server=False, peer_name=client), self.identity(is_server=True, peer_name=server)
            )
            self.client.link.write(b"hello")
            self.pump()
            self.assertEqual(self.server.received, b"hello")
            self.wire.cut(clean=False)
            self.pump()

    def test_the_server_is_somebody_else(self) -> None:
        self.connect(client=self.identity(is_server=False, peer_name="host-c"))
        self.assert_ended(
            "the peer's certificate is not for host-c, which is what link-peer-name, or else the host in link, asks",
            "the peer does not take this side's link-certificate, maybe because of the name in it",
        )

    def test_the_client_is_somebody_else(self) -> None:
        for name in ("host-c", "192.0.2.3"):
            self.connect(server=self.identity(is_server=True, peer_name=name))
            self.assert_ended(
                "the peer does not take this side's link-certificate, maybe because of the name in it",
                f"the peer's certificate is not for {name}, which is what link-peer-name asks for",
            )

    def test_a_star_is_nobodys_name(self) -> None:
        """OpenSSL would take it."""
        everybody = self.authority.sign("star", ["*.example.com"])
        self.connect(
            self.identity(is_server=False, peer_name="b.example.com"), self.identity(is_server=True, signed=everybody)
        )
        self.assert_ended("is not for b.example.com", "the peer closed the connection in the TLS handshake")
        self.connect(
            self.identity(is_server=False, signed=everybody), self.identity(is_server=True, peer_name="b.example.com")
        )
        self.pump()
        assert self.server.error is not None
        self.assertIn("is not for b.example.com", self.server.error.detail)
        self.assertIsNotNone(self.client.lost_with)

    def test_a_ca_that_is_not_known(self) -> None:
        """On either side, the one says whose it is not, the other where it has to be."""
        other = Authority(self.directory / "other", "other")
        unknown = f"the peer's certificate is not signed by a CA in {self.authority.ca} (link-ca)"
        there = "the peer does not know the CA of this side's link-certificate: it has to be in link-ca there"
        self.connect(server=self.identity(is_server=True, signed=other.sign("b", ["host-b"])))
        self.assert_ended(unknown, there)
        self.connect(client=self.identity(is_server=False, signed=other.sign("a", ["host-a"])))
        self.assert_ended(there, unknown)

    def test_out_of_date(self) -> None:
        sign = self.authority.sign
        old = sign("old", ["host-a"], since=-3 * DAY, until=-DAY)
        self.connect(client=self.identity(is_server=False, signed=old))
        self.assert_ended(
            "this side's link-certificate is not valid any more: renew it",
            "the peer's certificate is not valid any more: renew it there, or set the clock here",
        )
        early = sign("early", ["host-b"], since=DAY, until=3 * DAY)
        self.connect(server=self.identity(is_server=True, signed=early))
        self.assert_ended(
            "the peer's certificate is not valid yet: look at the clocks of both hosts", "the peer does not"
        )

    def test_the_wrong_use(self) -> None:
        own = self.authority.sign("server-only", ["host-a"], is_for_servers_only=True)
        self.connect(client=self.identity(is_server=False, signed=own))
        self.assert_ended("its extendedKeyUsage has to have clientAuth", "extendedKeyUsage has to have clientAuth")

    def test_no_certificate(self) -> None:
        """A client that has none is told so."""
        self.connect(client=BareClient(self.identity(is_server=False).files))
        self.assert_ended(
            "the peer wants a certificate, and this side's was of no use to it",
            "the peer sent no certificate: it needs link-certificate, link-key and link-ca too",
        )

    def test_an_older_tls(self) -> None:
        client = BareClient(self.identity(is_server=False).files)
        client.context.maximum_version = ssl.TLSVersion.TLSv1_2
        self.connect(client=client)
        self.assert_ended(
            "the peer does not take TLS 1.3", "do not go together in TLS: unsupported protocol; both have to"
        )

    def test_a_server_without_tls(self) -> None:
        """What it says first is no TLS."""
        self.join(End(self.clock, self.identity(is_server=False)), End(self.clock, None))
        self.server.link.write(b"HELLO, I am a plain one, and I say a lot of things at once")
        self.pump()
        assert self.client.error is not None
        self.assertIn("the peer does not speak TLS: both halves of a pair need link-cert", self.client.error.detail)

    def test_a_client_without_tls(self) -> None:
        for said in (b"\x01\x00\x00\x00" * 20, b"GET / HTTP/1.1\r\n\r\n"):
            self.join(End(self.clock, None), End(self.clock, self.identity(is_server=True)))
            self.client.link.write(said)
            self.pump()
            assert self.server.error is not None
            self.assertIn("the peer does not speak TLS", self.server.error.detail)

    def test_a_peer_that_hangs_up(self) -> None:
        self.join(End(self.clock, None), End(self.clock, self.identity(is_server=True)))
        self.client.link.lose_connection()
        self.pump()
        assert self.server.error is not None
        self.assertIn("the peer closed the connection in the TLS handshake", self.server.error.detail)
