"""A TLS link keeps to what is said of all links, and carries pairs, whatever it stands on."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from ftd import link_protocol
from ftd.config_tls import TlsFiles
from ftd.receiver_protocol import ReceiverProtocol
from ftd.test import test_pairs_linked_machine
from ftd.test.on_sockets import on_sockets
from ftd.testing.certificates import Authority
from ftd.testing.fake_socket import SocketLink
from ftd.testing.transport import TWISTED_BUFFER, Link
from ftd.testing.transport_suite import SuiteEnd, TransportSuite
from ftd.transport import LinkEnd, LinkOptions, LinkTransport, adopt, socket_transport
from ftd.transport.stock import StockTransport
from ftd.transport.tls_identity import TlsIdentity
from ftd.transport.tls_transport import TlsTransport
from ftd.wire.errors import WireError


def both_options(directory: Path) -> dict[bool, LinkOptions]:
    """Those of the server and of the client, with certificates of a new CA."""
    authority = Authority(directory)
    options = {}
    for is_server, name, peer_name in ((True, "server", "client"), (False, "client", "server")):
        own = authority.sign(name, [name])
        files = TlsFiles(
            section="a",
            is_server=is_server,
            certificate=own.certificate,
            key=own.key,
            ca=authority.ca,
            peer_name=peer_name,
        )
        options[is_server] = LinkOptions(tls=TlsIdentity(files))
    return options


class TurningLink(Link):
    """A link whose ends have a reactor, which turns with it."""

    def __init__(self, clock: Clock, *ends: Any, capacity: int) -> None:
        self._clock = clock
        super().__init__(*ends, capacity=capacity)

    def step(self, chunk: int = TWISTED_BUFFER) -> bool:
        """See `Link.step`."""
        is_due = any(call.getTime() <= self._clock.seconds() for call in self._clock.getDelayedCalls())
        self._clock.advance(0)
        return super().step(chunk) or is_due


class TlsOnSocketTests(TransportSuite, SynchronousTestCase):
    link_type = SocketLink
    below: type = socket_transport.SocketTransport

    def setUp(self) -> None:
        self.options = both_options(Path(self.mktemp()))
        super().setUp()

    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:
        return self.over_tls(transport, end, transport.reactor)

    def over_tls(self, transport: Any, end: Any, clock: Clock) -> LinkTransport:
        """On what this case is about."""

        def fail(error: WireError) -> None:
            raise AssertionError(error)

        end.clock = clock
        end.fail = fail
        link = adopt(transport, end, self.options[end is self.server])
        assert isinstance(link, TlsTransport) and isinstance(link._below, self.below)
        return link


class TlsOnEagerSocketTests(TlsOnSocketTests):
    """Whatever is encrypted is sent at once."""

    def setUp(self) -> None:
        self.patch(socket_transport, "GATHER", 1)
        super().setUp()


class TlsOnStockTests(TlsOnSocketTests):
    """On one of Twisted's own transports."""

    below = StockTransport

    def setUp(self) -> None:
        self.clock = Clock()
        self.link_type: Any = partial(TurningLink, self.clock)
        super().setUp()

    def new_transport(self, transport: Any, end: SuiteEnd) -> LinkTransport:
        return self.over_tls(transport, end, self.clock)


class TlsPairMachineTests(on_sockets((test_pairs_linked_machine,), __name__)["MachinePairMachineTests"]):  # type: ignore[misc]
    """Whatever happens to a pair, it happens to one with TLS too, and the truth stays the truth."""

    def setUp(self) -> None:
        options = both_options(Path(self.mktemp()))

        def adopt_with_tls(transport: Any, end: LinkEnd, _: LinkOptions) -> LinkTransport:
            return adopt(transport, end, options[isinstance(end, ReceiverProtocol)])

        self.patch(link_protocol, "adopt", adopt_with_tls)
        super().setUp()
