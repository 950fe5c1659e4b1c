"""
Links and pairs once more on sockets, with frames of some bytes read in place: what is fuzzed there is mostly too small
for that otherwise.
"""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from ftd.test import (
    test_pairs_linked_losses,
    test_pairs_linked_machine,
    test_pairs_linked_sinks,
    test_protocol_errors,
    test_protocol_receiver,
)
from ftd.test.on_sockets import on_sockets
from ftd.test.wire.test_placement import SMALL
from ftd.wire import placement

_MODULES = (
    test_pairs_linked_losses,
    test_pairs_linked_machine,
    test_pairs_linked_sinks,
    test_protocol_errors,
    test_protocol_receiver,
)


def _in_place(case: type[SynchronousTestCase]) -> type[SynchronousTestCase]:
    def set_up(self: Any) -> None:
        for name, value in SMALL.items():
            self.patch(placement, name, value)
        case.setUp(self)

    return type(case.__name__, (case,), {"setUp": set_up, "__module__": __name__, "__doc__": case.__doc__})


globals().update({name: _in_place(case) for name, case in on_sockets(_MODULES, __name__).items()})
