"""The tests of both halves of a pair once more, on the transport that real connections have."""

from __future__ import annotations

from ftd.test import (
    test_pairs_linked_ends,
    test_pairs_linked_losses,
    test_pairs_linked_machine,
    test_pairs_linked_sinks,
    test_pairs_linked_status,
)
from ftd.test.on_sockets import on_sockets

_MODULES = (
    test_pairs_linked_ends,
    test_pairs_linked_losses,
    test_pairs_linked_machine,
    test_pairs_linked_sinks,
    test_pairs_linked_status,
)

globals().update(on_sockets(_MODULES, __name__))
