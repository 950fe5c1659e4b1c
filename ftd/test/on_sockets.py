"""Tests that run on links in memory, once more, on the transport that real connections have."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType

from twisted.trial.unittest import SynchronousTestCase

from ftd.test import link_case, pair_case
from ftd.testing.fake_socket import SocketLink, SocketNetwork
from ftd.transport import LinkEnd, socket_transport


class ForgetfulStaging(socket_transport.Staging):
    """What was read is gone after the call that brings it."""

    def tell(self, end: LinkEnd, size: int) -> None:
        """See `Staging`."""
        try:
            super().tell(end, size)
        finally:
            self.view()[:size] = b"?" * size


def on_sockets(modules: Iterable[ModuleType], name: str) -> Mapping[str, type[SynchronousTestCase]]:
    """
    All test cases of ``modules``, with `SocketLink` for ``Link`` and `SocketNetwork` for ``Network``.

    :param name: the module that they are for.
    :return: the classes by their names.
    """
    found = {}
    for module in modules:
        for case in vars(module).values():
            if isinstance(case, type) and issubclass(case, SynchronousTestCase) and case.__module__ == module.__name__:
                title = module.__name__.rpartition("_")[2].title() + case.__name__
                found[title] = _on_sockets(module, case, title, name)
    return found


def _on_sockets(
    module: ModuleType, case: type[SynchronousTestCase], title: str, name: str
) -> type[SynchronousTestCase]:
    def set_up(self: SynchronousTestCase) -> None:
        # The sockets of these tests are full after some hundred bytes.
        self.patch(socket_transport, "GATHER", 1)
        self.patch(socket_transport.SocketTransport, "takes_all", False)
        self.patch(socket_transport, "SMALL", 0)
        self.patch(socket_transport, "_STAGING", ForgetfulStaging())
        for place in (link_case, pair_case, module):
            if hasattr(place, "Link"):
                self.patch(place, "Link", SocketLink)
            if hasattr(place, "Network"):
                self.patch(place, "Network", SocketNetwork)
        case.setUp(self)

    return type(title, (case,), {"setUp": set_up, "__module__": name, "__doc__": case.__doc__})
