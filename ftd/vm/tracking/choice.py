"""Which way of finding dirty pages is taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from twisted.logger import Logger

from ftd.config import Dirty
from ftd.vm import discovery
from ftd.vm.discovery import Vm
from ftd.vm.errors import TrackingUnavailable, VmError
from ftd.vm.pagemap import spans_of
from ftd.vm.ram import GuestRam
from ftd.vm.tracking.compare import Compare
from ftd.vm.tracking.soft_dirty import SoftDirty
from ftd.vm.tracking.tracker import DirtyTracker
from ftd.vm.tracking.write_protect import WriteProtect

_log = Logger()

#: Makes a tracker that is not started.
Maker: TypeAlias = Callable[[Vm, GuestRam], DirtyTracker]


def _by_mapping(tracker: type[WriteProtect] | type[SoftDirty], vm: Vm, ram: GuestRam) -> DirtyTracker:
    spans = spans_of(ram, [discovery.mappings(vm.pid, backend) for backend in ram.backends])
    return tracker(vm.pid, spans, ram)


#: Best first.
MAKERS: Mapping[Dirty, Maker] = {
    Dirty.WRITE_PROTECT: partial(_by_mapping, WriteProtect),
    Dirty.SOFT_DIRTY: partial(_by_mapping, SoftDirty),
    Dirty.COMPARE: lambda _vm, ram: Compare(ram),
}


def choose(kind: Dirty, vm: Vm, ram: GuestRam, makers: Mapping[Dirty, Maker] = MAKERS) -> DirtyTracker:
    """
    A tracker, started.  Blocking.

    :param kind: ``auto`` takes the best one that works, and notes in its ``why_not`` why those before it did not.
    :raises TrackingUnavailable: the one that is asked for does not work here, or none does.
    """
    why_not = []
    for each, maker in makers.items():
        if kind not in (Dirty.AUTO, each):
            continue
        tracker = None
        try:
            tracker = maker(vm, ram)
            tracker.start()
        except (VmError, OSError, MemoryError) as error:
            if tracker is not None:
                tracker.close()
            why_not.append(f"{each}: {error}")
            continue
        tracker.why_not = "; ".join(why_not)
        if why_not:
            _log.warn("dirty pages are found by {name}; {why_not}", name=tracker.name, why_not=tracker.why_not)
        return tracker
    raise TrackingUnavailable("dirty pages cannot be found: " + "; ".join(why_not))
