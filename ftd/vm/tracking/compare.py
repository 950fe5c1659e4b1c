"""Dirty pages by comparison with what was sent: slow, and always there."""

from __future__ import annotations

from ftd.vm.ram import GuestRam, Numbers, Pages
from ftd.vm.tracking.shadow import Shadow


class Compare:
    """See `DirtyTracker`.  It needs as much memory as the guest uses."""

    name = "compare"
    collects_while_running = True

    def __init__(self, ram: GuestRam) -> None:
        self.why_not = ""
        self._ram = ram
        self._shadow: Shadow | None = None

    def start(self) -> None:
        """See `DirtyTracker`.  Everything that is not zero was written since."""
        if self._shadow is None:
            self._shadow = Shadow(self._ram)
        else:
            self._shadow.clear()

    def collect(self) -> Numbers:
        """See `DirtyTracker`.  A page that is reported and not taken is reported again."""
        assert self._shadow is not None, "not started"
        return self._shadow.differing()

    def take(self, numbers: Numbers, out: Pages) -> None:
        """See `DirtyTracker`."""
        assert self._shadow is not None, "not started"
        self._ram.take(numbers, out)
        # Not from the RAM, in which they may be others by now.
        self._shadow.note(numbers, out)

    def close(self) -> None:
        """See `DirtyTracker`."""
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None
