"""The tests of the link's two ends once more, on the transport that real connections have."""

from __future__ import annotations

from ftd.test import test_protocol_errors, test_protocol_receiver, test_protocol_sender, test_protocol_times
from ftd.test.on_sockets import on_sockets

_MODULES = (test_protocol_errors, test_protocol_receiver, test_protocol_sender, test_protocol_times)

globals().update(on_sockets(_MODULES, __name__))
