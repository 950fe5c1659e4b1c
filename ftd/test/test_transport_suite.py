"""The transports of links keep to what is said of them all."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ftd.testing.fake_socket import SocketLink
from ftd.testing.transport_suite import SuiteEnd, TransportSuite
from ftd.transport import LinkTransport, socket_transport
from ftd.transport.socket_transport import SocketTransport
from ftd.transport.stock import StockTransport


class StockTests(TransportSuite, SynchronousTestCase):
    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:  # noqa: ARG002
        return StockTransport(transport)


class SocketTests(TransportSuite, SynchronousTestCase):
    link_type = SocketLink

    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:
        return SocketTransport(transport, end, latency_spin=None)


class EagerSocketTests(SocketTests):
    """Whatever is gathered is sent at once."""

    def setUp(self) -> None:
        self.patch(socket_transport, "GATHER", 1)
        super().setUp()


class StockOnSocketTests(StockTests):
    """Twisted's own transport, as a check of the sockets in memory."""

    link_type = SocketLink
