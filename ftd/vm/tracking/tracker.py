"""What a way of finding the pages that a guest has written is asked for."""

from __future__ import annotations

from typing import Protocol

from ftd.vm.ram import Numbers, Pages


class DirtyTracker(Protocol):
    """
    One way of finding them.  Its methods block: they are called in a thread, one at a time.

    Pages are reported that may have been written; that none is missed is what matters.  What `start` and `collect`
    promise while the guest runs is that a write which is not in this answer is in the next; while it is stopped, that
    the answer is complete.

    :ivar name: as in ``qemu-dirty``.
    :ivar collects_while_running: whether `collect` keeps its promise while the guest runs.
    :ivar why_not: why no better way was chosen, empty where none was looked for or this is the best.
    """

    name: str
    collects_while_running: bool
    why_not: str

    def start(self) -> None:
        """
        From now on writes are found.  May be called again, to start over.

        :raises TrackingUnavailable: this way does not work here.
        """

    def collect(self) -> Numbers:
        """
        The pages that may have been written since the previous call, or `start`, sorted.

        :raises VmError: QEMU has ended, or is not what it was.
        """

    def take(self, numbers: Numbers, out: Pages) -> None:
        """
        Copy pages out of the RAM, as `GuestRam.take`.  What is sent of a page is what this gives, nothing else: one way
        finds out what was written by knowing what was sent.
        """

    def close(self) -> None:
        """Give back what it has; may be called again."""
